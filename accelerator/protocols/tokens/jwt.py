"""JSON Web Tokens (RFC 7519, 7515, 7518, 8037, with RFC 8725's practices): compact, signed, one pinned algorithm."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from accelerator.protocols.tokens.claims import ClaimRules, check_parties, subject_digest, until_s
from accelerator.protocols.tokens.encoding import decode_base64url, read_json_object
from accelerator.protocols.tokens.keys import Algorithm, VerificationKey
from accelerator.protocols.tokens.scope import EVERYWHERE, Scope, scope_of
from accelerator.protocols.tokens.verdict import CREDENTIAL_BYTES_MAX, Reason, Refused, Verdict, refusal

_EMBEDDED = frozenset({"jwk", "jku", "x5u", "x5c", "x5t", "x5t#S256"})
# What says that the rest must be read otherwise. `crit` names extensions, of which we have none (RFC 7515, 4.1.11).
_CRITICAL = frozenset({"crit", "b64", "zip", "enc", "cty"})
_TYPES = frozenset({"jwt", "at+jwt", "application/jwt", "application/at+jwt"})


@dataclass(frozen=True, slots=True)
class JwtRules:
    """`keys` by id, all of `algorithm`. `path_claim`: the claim whose text, or list of texts, says which paths the
    token is for; None: it is for all paths."""

    algorithm: Algorithm
    keys: Mapping[str, VerificationKey]
    claims: ClaimRules
    path_claim: str | None = None


def verify_jwt(token: bytes, rules: JwtRules, *, now_s: float) -> Verdict:
    """Verdict on a token, whatever its bytes are. `now_s`: wall clock. Raises nothing."""
    try:
        return _verify(token, rules, now_s)
    except Refused as refused:
        return refusal(refused.reason)


def _verify(token: bytes, rules: JwtRules, now_s: float) -> Verdict:
    if len(token) > CREDENTIAL_BYTES_MAX:
        raise Refused(Reason.TOO_LONG)
    parts = token.split(b".")
    if len(parts) != 3 or not all(parts[:2]):
        raise Refused(Reason.MALFORMED)
    key = _key(read_json_object(decode_base64url(parts[0])), rules)
    signature = decode_base64url(parts[2])
    if not key.verifies(signature, parts[0] + b"." + parts[1]):
        raise Refused(Reason.SIGNATURE)
    claims = read_json_object(decode_base64url(parts[1]))
    end_s = until_s(claims.get("exp"), claims.get("nbf"), claims.get("iat"), rules.claims, now_s)
    check_parties(claims.get("iss"), claims.get("aud"), rules.claims)
    return Verdict(True, Reason.VALID, _scope(claims, rules), end_s, subject_digest(claims.get("sub")))


def _key(header: Mapping[str, Any], rules: JwtRules) -> VerificationKey:
    if header.get("alg") != rules.algorithm:
        raise Refused(Reason.ALGORITHM)
    if not _EMBEDDED.isdisjoint(header):
        raise Refused(Reason.EMBEDDED_KEY)
    if not _CRITICAL.isdisjoint(header):
        raise Refused(Reason.CRITICAL)
    kind = header.get("typ", "JWT")
    if not isinstance(kind, str) or kind.lower() not in _TYPES:  # RFC 8725 section 3.11
        raise Refused(Reason.MALFORMED)
    key_id = header.get("kid")
    if key_id is None and len(rules.keys) == 1:
        return next(iter(rules.keys.values()))
    key = rules.keys.get(key_id) if isinstance(key_id, str) else None
    if key is None:
        raise Refused(Reason.KEY)
    return key


def _scope(claims: Mapping[str, Any], rules: JwtRules) -> Scope:
    if rules.path_claim is None:
        return EVERYWHERE
    value = claims.get(rules.path_claim)
    patterns = []
    for path in value if isinstance(value, list) else [value]:
        if not isinstance(path, str) or not path.isascii():
            raise Refused(Reason.CLAIM)
        patterns.append(path.encode("ascii"))
    scope = scope_of(tuple(patterns))
    if scope is None:
        raise Refused(Reason.CLAIM)
    return scope
