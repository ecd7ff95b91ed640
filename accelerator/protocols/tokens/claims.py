"""What JWT and CAT have in common once the signature is good: times, issuer, audience, subject. Parses no token."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Any

from accelerator.protocols.tokens.verdict import Reason, Refused

_TIME_MAX = 10.0**12


@dataclass(frozen=True, slots=True)
class ClaimRules:
    """What policy pins. `issuer`, `audience` None: not asked for. `leeway_s`: how far clocks may differ, either way."""

    issuer: str | None = None
    audience: str | None = None
    max_lifetime_s: float = 86_400.0
    leeway_s: float = 5.0


def until_s(expires: Any, not_before: Any, issued: Any, rules: ClaimRules, now_s: float) -> float:
    """When the token ends, wall clock, leeway included (RFC 7519 sections 4.1.4 to 4.1.6); else Refused.

    `iat` in the future is refused as `nbf` is: a clock that far ahead can't be trusted with `exp` either. The lifetime
    runs from `iat`, else from `nbf`, else from now, so that a token without them can't be valid for longer either.
    """
    if expires is None:
        raise Refused(Reason.NO_EXPIRY)
    expires_s = _time(expires)
    if expires_s + rules.leeway_s <= now_s:
        raise Refused(Reason.EXPIRED)
    begins = [_time(value) for value in (issued, not_before) if value is not None]
    if any(begin_s > now_s + rules.leeway_s for begin_s in begins):
        raise Refused(Reason.NOT_YET)
    if expires_s - (begins[0] if begins else now_s) > rules.max_lifetime_s:
        raise Refused(Reason.LIFETIME)
    return expires_s + rules.leeway_s


def check_parties(issuer: Any, audience: Any, rules: ClaimRules) -> None:
    """`iss` and `aud` (one text, or a list of texts) against policy (RFC 7519 sections 4.1.1, 4.1.3); else Refused.

    A token with an audience that policy does not know was made for somebody else.
    """
    if rules.issuer is not None and issuer != rules.issuer:
        raise Refused(Reason.ISSUER)
    named = audience if isinstance(audience, list) else [] if audience is None else [audience]
    if not all(isinstance(each, str) for each in named):
        raise Refused(Reason.CLAIM)
    if (rules.audience is not None or named) and rules.audience not in named:
        raise Refused(Reason.AUDIENCE)


def subject_digest(subject: Any) -> bytes:
    """8 bytes that stand for a subject; b"" for none."""
    if subject is None:
        return b""
    if not isinstance(subject, str | bytes):
        raise Refused(Reason.CLAIM)
    data = subject.encode("utf-8", "surrogatepass") if isinstance(subject, str) else subject
    return hashlib.blake2s(data, digest_size=8).digest()


def _time(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise Refused(Reason.CLAIM)
    if not 0 <= value < _TIME_MAX:
        raise Refused(Reason.CLAIM)
    return float(value)
