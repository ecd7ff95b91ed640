"""What is said of a viewer's credential: yes or no, why, for which paths, until when. No scheme's rules live here."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from accelerator.protocols.tokens.scope import Scope

# A credential is a line of a head, or less: what is longer is no token that we know (a COSE or JWT claims set of a
# viewer is below 2 KiB), and each byte of it is work for whoever sends it.
CREDENTIAL_BYTES_MAX = 4096


class Reason(StrEnum):
    """Why a credential is accepted or refused. Stable tokens: counted, shown, and never with the token beside them."""

    VALID = "valid"
    MISSING = "missing"
    SEVERAL = "several"  # two different credentials, or one parameter twice: others in the chain may read the other one
    TOO_LONG = "too-long"
    MALFORMED = "malformed"
    ENCODING = "not-canonical"  # base64url or CBOR that has a shorter or another spelling, or bytes after its end
    DUPLICATE = "duplicate-member"
    ALGORITHM = "algorithm"  # not the one that policy pins, `none` among them
    EMBEDDED_KEY = "embedded-key"  # jwk, jku, x5u, x5c, x5t: the token may not choose its key
    CRITICAL = "critical"  # crit, or a claim that restricts and that we don't implement
    KEY = "unknown-key"
    SIGNATURE = "signature"
    CLAIM = "claim"  # missing where required, or of the wrong type
    NO_EXPIRY = "no-expiry"
    EXPIRED = "expired"
    NOT_YET = "not-yet"
    LIFETIME = "lifetime"  # valid for longer than policy allows
    AUDIENCE = "audience"
    ISSUER = "issuer"
    SCOPE = "scope"  # genuine, but not for this path
    PATH = "ambiguous-path"  # an origin may read another path than the one that was signed


@dataclass(frozen=True, slots=True)
class Verdict:
    """`scope` is what the credential covers and `until_s` (wall clock) how long, both only where it is allowed.

    `subject`: a digest of whom it names, for counting viewers without knowing them; b"" where it names nobody.
    """

    is_allowed: bool
    reason: Reason
    scope: Scope | None = None
    until_s: float = 0.0
    subject: bytes = b""


class Refused(Exception):
    """Ends a verification. Never has a token's content."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason.value)
        self.reason = reason


def refusal(reason: Reason) -> Verdict:
    """A no."""
    return Verdict(False, reason)
