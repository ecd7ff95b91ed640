"""Common Access Tokens (CTA-5007): CWT (RFC 8392) in COSE_Sign1 or COSE_Mac0 (RFC 9052), a strict subset.

Read: iss, sub, aud, exp, nbf, iat, cti; catv 1; catm; catu on the path (component 3) by exact (0) or prefix
(1) match. A token with any other claim of CTA-5007 is refused: it restricts in a way that we would not enforce.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from accelerator.protocols.tokens import cbor
from accelerator.protocols.tokens.claims import ClaimRules, check_parties, subject_digest, until_s
from accelerator.protocols.tokens.encoding import decode_base64url
from accelerator.protocols.tokens.keys import Algorithm, VerificationKey
from accelerator.protocols.tokens.scope import EVERYWHERE, Scope, is_ambiguous
from accelerator.protocols.tokens.verdict import CREDENTIAL_BYTES_MAX, Reason, Refused, Verdict, refusal

# RFC 9053 sections 2 and 3, RFC 8812 section 2
COSE_ALGORITHMS: Mapping[Algorithm, int] = {"ES256": -7, "EdDSA": -8, "HS256": 5, "RS256": -257}
_TAG_CWT, _TAG_SIGN1, _TAG_MAC0 = 61, 18, 17
_ALG, _CRIT, _CONTENT_TYPE, _KID = 1, 2, 3, 4
# COSE headers that bring a key along (RFC 9360; RFC 9052 has none of its own): x5bag, x5chain, x5t, x5u
_EMBEDDED = frozenset({32, 33, 34, 35})
_ISS, _SUB, _AUD, _EXP, _NBF, _IAT = range(1, 7)
_CATV, _CATU, _CATM = 310, 312, 313
_CAT_CLAIMS = range(308, 336)
_CNF = 8  # proof of possession (RFC 8747), which a cache can't ask for


@dataclass(frozen=True, slots=True)
class CatRules:
    """`keys` by id (a COSE kid is compared as bytes of UTF-8), all of `algorithm`."""

    algorithm: Algorithm
    keys: Mapping[str, VerificationKey]
    claims: ClaimRules


def verify_cat(token: bytes, rules: CatRules, *, now_s: float, method: bytes = b"GET") -> Verdict:
    """Verdict on a token in base64url, whatever its bytes are. `now_s`: wall clock. Raises nothing."""
    try:
        return _verify(token, rules, now_s, method)
    except Refused as refused:
        return refusal(refused.reason)


def _verify(token: bytes, rules: CatRules, now_s: float, method: bytes) -> Verdict:
    if len(token) > CREDENTIAL_BYTES_MAX:
        raise Refused(Reason.TOO_LONG)
    protected, unprotected, payload, signature = _parts(cbor.decode(decode_base64url(token)), rules)
    key = _key(cbor.decode(protected) if protected else {}, unprotected, rules)
    context = "MAC0" if rules.algorithm == "HS256" else "Signature1"
    if not key.verifies(signature, cbor.encode_structure(context, protected, b"", payload)):
        raise Refused(Reason.SIGNATURE)
    claims = cbor.decode(payload)
    if not isinstance(claims, dict):
        raise Refused(Reason.MALFORMED)
    end_s = until_s(claims.get(_EXP), claims.get(_NBF), claims.get(_IAT), rules.claims, now_s)
    check_parties(claims.get(_ISS), claims.get(_AUD), rules.claims)
    return Verdict(True, Reason.VALID, _scope(claims, method), end_s, subject_digest(claims.get(_SUB)))


def _parts(message: Any, rules: CatRules) -> tuple[bytes, dict[Any, Any], bytes, bytes]:
    """Protected header, unprotected one, payload, signature or tag."""
    if isinstance(message, cbor.Tagged) and message.number == _TAG_CWT:
        message = message.value
    wanted = _TAG_MAC0 if rules.algorithm == "HS256" else _TAG_SIGN1
    if not isinstance(message, cbor.Tagged) or message.number not in (_TAG_MAC0, _TAG_SIGN1):
        raise Refused(Reason.MALFORMED)
    if message.number != wanted:  # the tag is the token's word on how it is signed: policy's counts
        raise Refused(Reason.ALGORITHM)
    match message.value:
        case [bytes() as protected, dict() as unprotected, bytes() as payload, bytes() as signature]:
            return protected, unprotected, payload, signature
    raise Refused(Reason.MALFORMED)


def _key(protected: Any, unprotected: Mapping[Any, Any], rules: CatRules) -> VerificationKey:
    if not isinstance(protected, dict):
        raise Refused(Reason.MALFORMED)
    algorithm = protected.get(_ALG)
    if isinstance(algorithm, bool) or algorithm != COSE_ALGORITHMS.get(rules.algorithm) or _ALG in unprotected:
        raise Refused(Reason.ALGORITHM)
    names = {*protected, *unprotected}
    if not names.isdisjoint(_EMBEDDED):
        raise Refused(Reason.EMBEDDED_KEY)
    if _CRIT in names or not names <= {_ALG, _CONTENT_TYPE, _KID}:
        raise Refused(Reason.CRITICAL)
    if _KID in protected and _KID in unprotected:
        raise Refused(Reason.DUPLICATE)
    key_id = protected.get(_KID, unprotected.get(_KID))
    if key_id is None and len(rules.keys) == 1:
        return next(iter(rules.keys.values()))
    found = [key for name, key in rules.keys.items() if name.encode() == key_id]
    if not found:
        raise Refused(Reason.KEY)
    return found[0]


def _scope(claims: Mapping[Any, Any], method: bytes) -> Scope:
    restricting = {key for key in claims if isinstance(key, int) and key in _CAT_CLAIMS}
    if restricting - {_CATV, _CATU, _CATM} or _CNF in claims:
        raise Refused(Reason.CRITICAL)
    if claims.get(_CATV, 1) != 1 or isinstance(claims.get(_CATV), bool):
        raise Refused(Reason.CRITICAL)
    # A HEAD tells nothing that a GET wouldn't.
    asked = "GET" if method == b"HEAD" else method.decode("latin-1")
    methods = claims.get(_CATM, [asked])
    if not isinstance(methods, list) or asked not in methods:
        raise Refused(Reason.SCOPE)
    if _CATU not in claims:
        return EVERYWHERE
    match claims[_CATU]:
        case {3: {0: str() as path, **rest}, **others} if not rest and not others:
            return Scope("object", (_path(path),))
        case {3: {1: str() as path, **rest}, **others} if not rest and not others:
            prefix = _path(path)
            return Scope("directory", (prefix,)) if prefix.endswith(b"/") else Scope("acl", (_literal(prefix) + b"*",))
    raise Refused(Reason.CRITICAL)


def _path(text: str) -> bytes:
    if not text.isascii() or is_ambiguous(text.encode("ascii")):
        raise Refused(Reason.CLAIM)
    return text.encode("ascii")


def _literal(prefix: bytes) -> bytes:
    if b"*" in prefix or b"?" in prefix:
        raise Refused(Reason.CLAIM)
    return prefix
