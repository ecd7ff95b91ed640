"""Fuzz target: viewers' credentials of every scheme. Whatever the bytes are, a verdict comes out; nothing that was not
signed is allowed: a token that is accepted is one of the good ones, as it was made.

    .venv/bin/python -m pytest tests/fuzz/fuzz_tokens.py          a short run
    PYTHONPATH=. .venv/bin/python tests/fuzz/fuzz_tokens.py 600   so many seconds; prints the number of runs
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import random
import sys
from pathlib import Path

from mutation import mutated, run

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "protocols"))

from minting import EC_KEY, NOW_S, SECRET, b64, cat, cbor, jwt, pem

from accelerator.protocols.tokens.cbor import decode
from accelerator.protocols.tokens.claims import ClaimRules
from accelerator.protocols.tokens.cta5007 import CatRules
from accelerator.protocols.tokens.jwt import JwtRules
from accelerator.protocols.tokens.keys import key_from_pem, key_from_secret
from accelerator.protocols.tokens.presented import Places, split_target
from accelerator.protocols.tokens.scope import is_ambiguous
from accelerator.protocols.tokens.signed_url import CLOUDFRONT_PARAMETERS, SignedUrlRules
from accelerator.protocols.tokens.verdict import Refused
from accelerator.protocols.tokens.verify import Verifier

KEYS = {"k1": key_from_pem("k1", "ES256", pem(EC_KEY))}
CLAIMS = ClaimRules("portal", "box", 3600.0)
TOKEN = Places((b"t",), (b"authorization",), (b"t",))
LINK = Places((b"s", b"e", b"d"))
SECRETS = {"k": key_from_secret("k", "HMAC-SHA256", SECRET)}
VERIFIERS = [
    Verifier(TOKEN, JwtRules("ES256", KEYS, CLAIMS, "path")),
    Verifier(TOKEN, CatRules("ES256", KEYS, CLAIMS)),
    Verifier(TOKEN, SignedUrlRules("akamai", SECRETS, TOKEN)),
    Verifier(LINK, SignedUrlRules("hmac", SECRETS, LINK, signed="{path}{expires}")),
    Verifier(Places(CLOUDFRONT_PARAMETERS), SignedUrlRules("cloudfront", KEYS, TOKEN, resource=b"https://x")),
]


def _akamai() -> bytes:
    text = b"exp=%d~acl=/a/*" % (NOW_S + 60)
    return text + b"~hmac=" + hmac.new(SECRET, text, hashlib.sha256).hexdigest().encode()


def _hmac() -> bytes:
    digest = hmac.new(SECRET, b"/a/b%d" % (NOW_S + 60), hashlib.sha256).hexdigest().encode()
    return b"/a/b?s=" + digest + b"&e=%d" % (NOW_S + 60)


GOOD = [jwt(path="/a/"), cat(claims={312: {3: {1: "/a/"}}}), _akamai()]
SEEDS = [*GOOD, b64(cbor([b"", {}, b"", b""])), b"eyJhbGciOiJub25lIn0.e30.", b"exp=1~acl=*~hmac=" + b"0" * 64]
TARGETS = [b"/a/b", b"/a/../b", b"/a/%2e%2e/b?x=1", _hmac(), b"/a/b?Policy=e30_&Signature=AAAA&Key-Pair-Id=k1"]
WORDS = [b".", b"~", b"=", b"&", b"%2f", b"/../", b"hmac=", b"acl=", b"eyJ", b"_", b"-", b"t=", b"Bearer "]
CBOR = [cbor({1: [b"a", "b", {2: -3}]}), bytes.fromhex("d28443a10126a0"), bytes.fromhex("9f01ff")]


def check(source: random.Random) -> None:
    token = mutated(source, SEEDS, WORDS, most=2)
    target = mutated(source, TARGETS, WORDS, most=2)
    fields = []
    match source.randrange(3):
        case 0:
            target += (b"&" if b"?" in target else b"?") + b"t=" + token
        case 1:
            fields = [(b"Authorization", b"Bearer " + token)]
        case 2:
            fields = [(b"Cookie", b"t=" + token)]
    path, query = split_target(target)
    for verifier in VERIFIERS:
        verdict = verifier.verify(target, fields, now_s=NOW_S)
        if verdict.is_allowed:
            assert path.startswith(b"/a/"), target
            assert not is_ambiguous(path)
            assert verdict.scope is not None
            assert NOW_S < verdict.until_s <= NOW_S + 3605
            assert any(good in token for good in GOOD) or b"e=1700000060" in query, token
        else:
            assert verdict.scope is None
    with contextlib.suppress(Refused):
        decode(mutated(source, CBOR))


def test_fuzz_tokens() -> None:
    for seed in range(3000):
        check(random.Random(seed))


if __name__ == "__main__":
    run(check)
