"""A policy's `credential` section with its keys: places, verifier, times. Judges nothing itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from accelerator.io.credentials import Credentials
from accelerator.policy.credentials import places_of
from accelerator.policy.model import Credential, Verify
from accelerator.protocols.tokens.claims import ClaimRules
from accelerator.protocols.tokens.cta5007 import CatRules
from accelerator.protocols.tokens.jwt import JwtRules
from accelerator.protocols.tokens.keys import Algorithm, VerificationKey
from accelerator.protocols.tokens.presented import Places
from accelerator.protocols.tokens.signed_url import SignedUrlRules
from accelerator.protocols.tokens.verify import SchemeRules, Verifier


@dataclass(frozen=True, slots=True)
class CredentialRule:
    """`verifier` None: the origin is asked."""

    places: Places
    verifier: Verifier | None
    covers_directory: bool
    authorise_for_s: float
    when_unreachable: Literal["refuse", "last-yes"]
    refusal: int


def rule_of(section: Credential, credentials: Credentials) -> CredentialRule:
    """Reads the keys that the section names. Raises CredentialError."""
    found = places_of(section)
    places = Places(*(tuple(name.encode("ascii") for name in names) for names in found))
    verifier = Verifier(places, _scheme(section.verify, places, credentials)) if section.verify is not None else None
    covers_directory = section.covers == "directory"
    return CredentialRule(
        places, verifier, covers_directory, section.authorise_for, section.when_unreachable, section.refusal
    )


def _scheme(verify: Verify, places: Places, credentials: Credentials) -> SchemeRules:
    algorithm: Algorithm = "HMAC-SHA256"
    if verify.scheme == "secure-link":
        algorithm = "MD5"
    elif verify.algorithm is not None:
        algorithm = verify.algorithm
    is_hex = verify.scheme == "akamai"
    keys: dict[str, VerificationKey] = {}
    for name in verify.keys:
        key = credentials.verification_key(name, algorithm, is_hex=is_hex)
        keys[key.key_id] = key
    if verify.scheme == "jwt" or verify.scheme == "cat":
        claims = ClaimRules(verify.issuer, verify.audience, verify.max_lifetime, verify.leeway)
        if verify.scheme == "jwt":
            return JwtRules(algorithm, keys, claims, verify.path_claim)
        return CatRules(algorithm, keys, claims)
    return SignedUrlRules(
        verify.scheme, keys, places, (verify.resource or "").encode("ascii"), verify.signed or "",
        verify.max_lifetime, verify.leeway,
    )  # fmt: skip
