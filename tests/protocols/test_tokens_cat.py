"""Common Access Tokens (CTA-5007): good ones, every reason to refuse, each single-bit change; strict CBOR."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from minting import EC_KEY, ED_KEY, NOW_S, SECRET, cat, cbor, pem

from accelerator.protocols.tokens.cbor import Tagged, decode
from accelerator.protocols.tokens.claims import ClaimRules
from accelerator.protocols.tokens.cta5007 import CatRules, verify_cat
from accelerator.protocols.tokens.keys import VerificationKey, key_from_pem, key_from_secret
from accelerator.protocols.tokens.scope import Scope
from accelerator.protocols.tokens.verdict import Reason, Refused

KEYS: dict[str, VerificationKey] = {
    "ES256": key_from_pem("k1", "ES256", pem(EC_KEY)),
    "EdDSA": key_from_pem("k1", "EdDSA", pem(ED_KEY)),
    "HS256": key_from_secret("k1", "HS256", SECRET),
}
CLAIMS = ClaimRules("portal", "box", 3600.0, 5.0)
NOW = int(NOW_S)


def rules(algorithm: str = "ES256", **changes: Any) -> CatRules:
    return CatRules(**{"algorithm": algorithm, "keys": {"k1": KEYS[algorithm]}, "claims": CLAIMS, **changes})


@pytest.mark.parametrize("algorithm", KEYS)
@pytest.mark.parametrize("prefix", [b"", b"\xd8\x3d"], ids=["plain", "with the tag of CWT"])
def test_a_good_token_is_allowed(algorithm: str, prefix: bytes) -> None:
    verdict = verify_cat(cat(algorithm, prefix=prefix), rules(algorithm), now_s=NOW_S)
    assert (verdict.is_allowed, verdict.reason, verdict.until_s) == (True, Reason.VALID, NOW_S + 605)
    assert len(verdict.subject) == 8


def test_the_key_may_be_named_outside_what_is_signed() -> None:
    token = cat(protected={1: -7}, unprotected={4: b"k1"})
    assert verify_cat(token, rules(), now_s=NOW_S).is_allowed


@pytest.mark.parametrize(
    ("catu", "scope"),
    [
        ({3: {0: "/live/a.mpd"}}, Scope("object", (b"/live/a.mpd",))),
        ({3: {1: "/live/"}}, Scope("directory", (b"/live/",))),
        ({3: {1: "/live/event"}}, Scope("acl", (b"/live/event*",))),
    ],
)
def test_a_uri_claim_says_which_paths(catu: Any, scope: Scope) -> None:
    assert verify_cat(cat(claims={312: catu}), rules(), now_s=NOW_S).scope == scope


REFUSED = {
    "empty": (b"", Reason.MALFORMED),
    "no base64url": (b"####", Reason.ENCODING),
    "huge": (cat(claims={2: "x" * 4000}), Reason.TOO_LONG),
    "bytes after the end": (cat(suffix=b"\0"), Reason.ENCODING),
    "no COSE": (base64.urlsafe_b64encode(cbor({1: 2})).rstrip(b"="), Reason.MALFORMED),
    "tag of a MAC where a signature is pinned": (cat(tag=17), Reason.ALGORITHM),
    "tag of encryption": (cat(tag=16), Reason.MALFORMED),
    "HS256 where ES256 is pinned": (cat("HS256"), Reason.ALGORITHM),
    "alg of another kind": (cat(protected={1: -8, 4: b"k1"}), Reason.ALGORITHM),
    "alg missing": (cat(protected={4: b"k1"}), Reason.ALGORITHM),
    "alg outside what is signed": (cat(protected={4: b"k1"}, unprotected={1: -7}), Reason.ALGORITHM),
    "alg twice": (cat(unprotected={1: -7}), Reason.ALGORITHM),
    "crit": (cat(protected={1: -7, 2: [4], 4: b"k1"}), Reason.CRITICAL),
    "unknown header": (cat(protected={1: -7, 4: b"k1", 99: 1}), Reason.CRITICAL),
    "x5chain": (cat(protected={1: -7, 4: b"k1", 33: b"cert"}), Reason.EMBEDDED_KEY),
    "x5u": (cat(unprotected={35: "https://evil.example"}), Reason.EMBEDDED_KEY),
    "kid unknown": (cat(protected={1: -7, 4: b"k2"}), Reason.KEY),
    "kid twice": (cat(unprotected={4: b"k1"}), Reason.DUPLICATE),
    "exp twice": (cat(payload=b"\xa2\x04\x01\x04\x02"), Reason.DUPLICATE),
    "claims a list": (cat(payload=b"\x80"), Reason.MALFORMED),
    "claims of indefinite length": (cat(payload=b"\xbf\x04\x01\xff"), Reason.ENCODING),
    "no exp": (cat(claims={4: None}), Reason.NO_EXPIRY),
    "expired": (cat(claims={4: NOW - 5}), Reason.EXPIRED),
    "exp a text": (cat(claims={4: "soon"}), Reason.CLAIM),
    "not yet": (cat(claims={5: NOW + 6}), Reason.NOT_YET),
    "valid for too long": (cat(claims={4: NOW + 3600}), Reason.LIFETIME),
    "other issuer": (cat(claims={1: "evil"}), Reason.ISSUER),
    "other audience": (cat(claims={3: ["a", "b"]}), Reason.AUDIENCE),
    "another version": (cat(claims={310: 2}), Reason.CRITICAL),
    "other methods": (cat(claims={313: ["POST"]}), Reason.SCOPE),
    "bound to an address": (cat(claims={311: [b"\x0a\0\0\x01"]}), Reason.CRITICAL),
    "bound to a country": (cat(claims={316: ["FR"]}), Reason.CRITICAL),
    "once only": (cat(claims={308: 1}), Reason.CRITICAL),
    "proof of possession": (cat(claims={8: {}}), Reason.CRITICAL),
    "a URI by a regular expression": (cat(claims={312: {3: {4: ["/.*"]}}}), Reason.CRITICAL),
    "a URI by host too": (cat(claims={312: {1: {0: "h"}, 3: {1: "/"}}}), Reason.CRITICAL),
    "a URI by two matches": (cat(claims={312: {3: {1: "/a", 2: ".ts"}}}), Reason.CRITICAL),
    "a URI with a star": (cat(claims={312: {3: {1: "/a*"}}}), Reason.CLAIM),
    "a URI with dots": (cat(claims={312: {3: {1: "/a/../"}}}), Reason.CLAIM),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_token_is_refused(name: str) -> None:
    token, reason = REFUSED[name]
    verdict = verify_cat(token, rules(), now_s=NOW_S)
    assert (verdict.is_allowed, verdict.reason, verdict.scope) == (False, reason, None)


@pytest.mark.parametrize("algorithm", KEYS)
def test_each_bit_counts(algorithm: str) -> None:
    token, wanted = cat(algorithm), rules(algorithm)
    data = base64.urlsafe_b64decode(token + b"=" * (-len(token) % 4))
    for at in range(len(data)):
        for bit in range(8):
            changed = bytearray(data)
            changed[at] ^= 1 << bit
            text = base64.urlsafe_b64encode(changed).rstrip(b"=")
            assert not verify_cat(text, wanted, now_s=NOW_S).is_allowed, (at, bit)


@pytest.mark.parametrize(
    ("data", "value"),
    [
        ("00", 0), ("17", 23), ("1818", 24), ("1903e8", 1000), ("1a000f4240", 10**6), ("20", -1), ("3903e7", -1000),
        ("f90000", 0.0), ("fb3ff199999999999a", 1.1), ("f4", False), ("f6", None), ("40", b""), ("6161", "a"),
        ("83010203", [1, 2, 3]), ("a10102", {1: 2}), ("c11a514b67b0", Tagged(1, 1363896240)),
    ],
)  # fmt: skip
def test_the_vectors_of_rfc_8949_appendix_a(data: str, value: object) -> None:
    assert decode(bytes.fromhex(data)) == value


@pytest.mark.parametrize(
    "data",
    [
        "", "18", "1817", "1900ff", "1a0000ffff", "1b00000000ffffffff", "1c", "5f42010243030405ff", "9fff", "bfff",
        "0000", "41", "61ff", "8201", "a101", "a201020103", "a1010201", "a1820102f6", "f8ff", "f97c00", "f97e00",
        "9b00ffffffffffffff", "bb00ffffffffffffff", "5b7fffffffffffffff", "8181818181818181818101", "c1", "ff",
    ],
)  # fmt: skip
def test_other_cbor_is_refused(data: str) -> None:
    with pytest.raises(Refused):
        decode(bytes.fromhex(data))
