"""What an origin's `credential` section means: places, and what can't be combined. Reads no key, no token."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final, NamedTuple

from accelerator.policy.model import Credential, Verify

CLOUDFRONT_NAMES: Final = ("Policy", "Expires", "Signature", "Key-Pair-Id", "Hash-Algorithm")
_TOKEN_ALGORITHMS: Final = ("ES256", "EdDSA", "RS256", "HS256")
_URL_ALGORITHMS: Final = ("RSA-SHA1", "RSA-SHA256", "ECDSA-SHA1", "ECDSA-SHA256")
# Which keys of `verify` a scheme needs, and which it may have besides.
_NEEDS: Final = {
    "jwt": ("algorithm", "issuer"),
    "cat": ("algorithm", "issuer"),
    "cloudfront": ("algorithm", "resource"),
    "akamai": (),
    "secure-link": ("signed",),
    "hmac": ("signed",),
}
_MAY_HAVE: Final = {"jwt": ("audience", "path_claim"), "cat": ("audience",)}
_SPECIAL: Final = ("algorithm", "issuer", "audience", "path_claim", "resource", "signed")
_RESOURCE = re.compile(r"https?://[A-Za-z0-9.-]+(:[0-9]{1,5})?")


class Places(NamedTuple):
    """Where the credential is: names of parameters, of fields in lower case, of cookies."""

    parameters: tuple[str, ...] = ()
    headers: tuple[str, ...] = ()
    cookies: tuple[str, ...] = ()


def places_of(credential: Credential | None) -> Places:
    """CloudFront's names are fixed, and one rule reads its URLs and its cookies."""
    if credential is None:
        return Places()
    if credential.verify is not None and credential.verify.scheme == "cloudfront":
        return Places(CLOUDFRONT_NAMES, (), tuple(f"CloudFront-{name}" for name in CLOUDFRONT_NAMES))
    return Places(credential.parameters, credential.headers, credential.cookies)


def problems_of(credential: Credential) -> Iterator[tuple[tuple[str, ...], str, bool]]:
    """(path below the section, message, whether it is a warning only) of each thing that doesn't go together."""
    verify, places = credential.verify, places_of(credential)
    if (verify is None) == (credential.ask is None):
        yield (), "needs either verify or ask: somebody has to judge the credential, and one only", False
        return
    if not any(places):
        yield (), "needs parameters, headers or cookies: nothing says where the credential is", False
    if len(set(places.parameters)) < len(places.parameters) or len(set(places.cookies)) < len(places.cookies):
        yield (), "names a place twice", False
    if credential.refusal == 402:
        yield ("refusal",), "must be 401 or 403", False
    if verify is None:
        return
    if credential.when_unreachable != "refuse":
        yield ("when_unreachable",), "has no effect with verify: no origin is asked", True
    yield from _verify_problems(verify, credential)


def _verify_problems(verify: Verify, credential: Credential) -> Iterator[tuple[tuple[str, ...], str, bool]]:
    scheme, places = verify.scheme, places_of(credential)
    needs = _NEEDS[scheme]
    for key in needs:
        if getattr(verify, key) is None:
            yield ("verify",), f"scheme {scheme} needs {key}", False
    for key in _SPECIAL:
        if getattr(verify, key) is not None and key not in (*needs, *_MAY_HAVE.get(scheme, ())):
            yield ("verify", key), f"has no effect with scheme {scheme}", False
    known = _URL_ALGORITHMS if scheme == "cloudfront" else _TOKEN_ALGORITHMS
    if verify.algorithm is not None and "algorithm" in needs and verify.algorithm not in known:
        yield ("verify", "algorithm"), f"scheme {scheme} has {', '.join(known)}", False
    if scheme == "cloudfront":
        if credential.parameters or credential.headers or credential.cookies:
            yield (), "scheme cloudfront has its own names: leave parameters, headers and cookies out", False
        if verify.resource is not None and not _RESOURCE.fullmatch(verify.resource):
            yield ("verify", "resource"), "expected https://HOST, without path", False
    if scheme in ("secure-link", "hmac"):
        yield from _template_problems(verify, places)


def _template_problems(verify: Verify, places: Places) -> Iterator[tuple[tuple[str, ...], str, bool]]:
    if places.headers or places.cookies:
        yield (), f"scheme {verify.scheme} is for parameters only", False
    most = 3 if verify.scheme == "hmac" else 2
    if not 2 <= len(places.parameters) <= most:
        what = "signature, expiry" + (", directory" if most == 3 else "")
        yield ("parameters",), f"scheme {verify.scheme} needs these, in order: {what}", False
    names = re.findall(r"\{([^{}]*)\}", verify.signed or "")
    unknown = [name for name in names if name not in ("path", "uri", "expires", "secret")]
    if unknown or re.sub(r"\{[^{}]*\}", "", verify.signed or "").strip("{}") != re.sub(
        r"\{[^{}]*\}", "", verify.signed or ""
    ):
        yield ("verify", "signed"), "placeholders are {path}, {uri}, {expires} and {secret}", False
    if verify.signed is not None and ("expires" not in names or not {"path", "uri"} & set(names)):
        yield ("verify", "signed"), "needs {expires}, and {path} or {uri}: what isn't signed can be changed", False
    if verify.scheme == "secure-link" and verify.signed is not None and "secret" not in names:
        yield ("verify", "signed"), "needs {secret}: anybody can make an MD5", False
    if verify.scheme == "hmac" and "secret" in names:
        yield ("verify", "signed"), "{secret} is for secure-link: an HMAC has its key besides", False
