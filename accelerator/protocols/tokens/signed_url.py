"""Signed URLs and cookies as CloudFront, Akamai EdgeAuth 2, nginx secure_link and plain HMAC schemes write them."""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from accelerator.protocols.fields import Fields
from accelerator.protocols.tokens.encoding import decode_base64, read_json_object, read_seconds
from accelerator.protocols.tokens.keys import VerificationKey
from accelerator.protocols.tokens.presented import (
    Places,
    cookies,
    one_token,
    parameters,
    required,
    split_target,
    unquote,
    without_parameters,
)
from accelerator.protocols.tokens.scope import Scope, is_ambiguous, matches, scope_of
from accelerator.protocols.tokens.verdict import Reason, Refused, Verdict, refusal

Scheme = Literal["cloudfront", "akamai", "secure-link", "hmac"]

# Names are CloudFront's: they can't be configured there either.
CLOUDFRONT_PARAMETERS = (b"Policy", b"Expires", b"Signature", b"Key-Pair-Id", b"Hash-Algorithm")
_COOKIE_PREFIX = b"CloudFront-"
_CLOUDFRONT_ALPHABET = bytes.maketrans(b"-_~", b"+=/")
_HEX_SHA256 = re.compile(rb"[0-9a-f]{64}")
_MD5_TEXT = re.compile(rb"[A-Za-z0-9_-]{22}")
_AKAMAI_FIELDS = frozenset({b"st", b"exp", b"acl", b"id", b"data"})
_PLACEHOLDER = re.compile(r"\{([a-z]*)\}")


@dataclass(frozen=True, slots=True)
class SignedUrlRules:
    """`keys` by id. `resource`: scheme and host of the URL that was signed (CloudFront). `signed`: what is signed, with
    placeholders (secure-link, hmac); `places.parameters` are then signature, expiry and perhaps a directory."""

    scheme: Scheme
    keys: Mapping[str, VerificationKey]
    places: Places
    resource: bytes = b""
    signed: str = ""
    max_lifetime_s: float = 86_400.0
    leeway_s: float = 5.0


def verify_signed_url(target: bytes, fields: Fields, rules: SignedUrlRules, *, now_s: float) -> Verdict:
    """Verdict on the credential of a request (target in origin-form, and its fields). Raises nothing."""
    try:
        if is_ambiguous(split_target(target)[0]):
            raise Refused(Reason.PATH)
        match rules.scheme:
            case "cloudfront":
                scope, until_s = _cloudfront(target, fields, rules, now_s)
            case "akamai":
                scope, until_s = _akamai(target, fields, rules, now_s)
            case _:
                scope, until_s = _templated(target, rules, now_s)
    except Refused as refused:
        return refusal(refused.reason)
    return Verdict(True, Reason.VALID, scope, until_s)


def _end(expires_s: int, rules: SignedUrlRules, now_s: float, begins_s: int | None = None) -> float:
    if expires_s + rules.leeway_s <= now_s:
        raise Refused(Reason.EXPIRED)
    if begins_s is not None and begins_s > now_s + rules.leeway_s:
        raise Refused(Reason.NOT_YET)
    if expires_s - (now_s if begins_s is None else begins_s) > rules.max_lifetime_s:
        raise Refused(Reason.LIFETIME)
    return expires_s + rules.leeway_s


# -- CloudFront: canned and custom policies ----------------------------------------------------------------------------


def _cloudfront(target: bytes, fields: Fields, rules: SignedUrlRules, now_s: float) -> tuple[Scope, float]:
    path, query = split_target(target)
    values = parameters(query, CLOUDFRONT_PARAMETERS)
    in_cookies = cookies(fields, tuple(_COOKIE_PREFIX + name for name in CLOUDFRONT_PARAMETERS))
    if values and in_cookies:
        raise Refused(Reason.SEVERAL)
    if in_cookies:
        values = {name.removeprefix(_COOKIE_PREFIX): value for name, value in in_cookies.items()}
    key = rules.keys.get(required(values, b"Key-Pair-Id").decode("latin-1"))
    if key is None:
        raise Refused(Reason.KEY)
    if values.get(b"Hash-Algorithm", b"SHA1") != (b"SHA256" if key.algorithm.endswith("SHA256") else b"SHA1"):
        raise Refused(Reason.ALGORITHM)
    signature = _cloudfront_base64(required(values, b"Signature"))
    rest = without_parameters(query, CLOUDFRONT_PARAMETERS)
    if (b"Policy" in values) == (b"Expires" in values):
        raise Refused(Reason.SEVERAL if b"Policy" in values else Reason.MISSING)
    if b"Policy" in values:
        policy = _cloudfront_base64(values[b"Policy"])
        if not key.verifies(signature, policy):
            raise Refused(Reason.SIGNATURE)
        return _custom_policy(policy, path, rest, rules, now_s)
    expires_s = read_seconds(values[b"Expires"])
    resource = rules.resource + path + (b"?" + rest if rest else b"")
    if b'"' in resource:
        raise Refused(Reason.PATH)
    canned = b'{"Statement":[{"Resource":"%b","Condition":{"DateLessThan":{"AWS:EpochTime":%d}}}]}'
    if not key.verifies(signature, canned % (resource, expires_s)):
        raise Refused(Reason.SIGNATURE)
    return Scope("object", (path,)), _end(expires_s, rules, now_s)


def _cloudfront_base64(text: bytes) -> bytes:
    if not set(b"+=/").isdisjoint(text):
        raise Refused(Reason.ENCODING)
    return decode_base64(text.translate(_CLOUDFRONT_ALPHABET))


def _custom_policy(
    policy: bytes, path: bytes, query: bytes, rules: SignedUrlRules, now_s: float
) -> tuple[Scope, float]:
    match read_json_object(policy):
        case {"Statement": [{"Resource": str() as resource, "Condition": dict() as condition, **others}], **rest} if (
            not others and not rest
        ):
            pass
        case _:
            raise Refused(Reason.MALFORMED)
    # An address can't be compared: the box may see another one than CloudFront does. Not the same as "any address".
    if condition.keys() - {"DateLessThan", "DateGreaterThan", "IpAddress"}:
        raise Refused(Reason.CRITICAL)
    if condition.get("IpAddress", {"AWS:SourceIp": "0.0.0.0/0"}) != {"AWS:SourceIp": "0.0.0.0/0"}:
        raise Refused(Reason.CRITICAL)
    expires_s = _epoch(condition.get("DateLessThan"))
    if expires_s is None:
        raise Refused(Reason.NO_EXPIRY)
    begins_s = _epoch(condition["DateGreaterThan"]) if "DateGreaterThan" in condition else None
    if not resource.isascii():
        raise Refused(Reason.CLAIM)
    signed = resource.encode("ascii")
    _, _, host = rules.resource.partition(b"://")
    # A pattern for every host is not one for ours.
    ours = next((each for each in (rules.resource, b"http*://" + host) if signed.startswith(each + b"/")), None)
    if ours is None:
        raise Refused(Reason.SCOPE)
    # CloudFront compares the whole URL, so a `?` (any one byte) may stand for the query's mark.
    pattern = signed[len(ours) :]
    if not matches(pattern, path + (b"?" + query if query else b"")):
        raise Refused(Reason.SCOPE)
    until_s = _end(expires_s, rules, now_s, begins_s)
    if pattern.endswith(b"*") and matches(pattern, path) and not is_ambiguous(pattern):
        return Scope("acl", (pattern,)), until_s
    return Scope("object", (path,)), until_s


def _epoch(value: Any) -> int | None:
    match value:
        case {"AWS:EpochTime": int() as seconds, **rest} if (
            not rest and not isinstance(seconds, bool) and 0 < seconds < 10**12
        ):
            return seconds
        case None:
            return None
    raise Refused(Reason.CLAIM)


# -- Akamai EdgeAuth token 2.0 -----------------------------------------------------------------------------------------


def _akamai(target: bytes, fields: Fields, rules: SignedUrlRules, now_s: float) -> tuple[Scope, float]:
    """`st=..~exp=..~acl=/live/*!/vod/*~id=..~data=..~hmac=..`; without acl the path itself is signed."""
    path, _ = split_target(target)
    token = one_token(target, fields, rules.places, is_raw=True)
    if b"~hmac=" not in token:  # a player has encoded the tildes; what an encoded acl is signed as stays
        token = unquote(token)
    signed, mark, digest = token.rpartition(b"~hmac=")
    if not mark or _HEX_SHA256.fullmatch(digest) is None:
        raise Refused(Reason.MALFORMED)
    values: dict[bytes, bytes] = {}
    for part in signed.split(b"~"):
        name, equals, value = part.partition(b"=")
        if name == b"ip":  # the address that Akamai saw: ours may be another one, and must not be guessed
            raise Refused(Reason.CRITICAL)
        if not equals or name not in _AKAMAI_FIELDS:
            raise Refused(Reason.MALFORMED)
        if name in values:
            raise Refused(Reason.DUPLICATE)
        values[name] = value
    message = signed if b"acl" in values else signed + b"~url=" + path
    tag = bytes.fromhex(digest.decode("ascii"))
    if not any(key.verifies(tag, message) for key in rules.keys.values()):
        raise Refused(Reason.SIGNATURE)
    if b"exp" not in values:
        raise Refused(Reason.NO_EXPIRY)
    begins_s = read_seconds(values[b"st"]) if b"st" in values else None
    until_s = _end(read_seconds(values[b"exp"]), rules, now_s, begins_s)
    if b"acl" not in values:
        return Scope("object", (path,)), until_s
    patterns = tuple(unquote(values[b"acl"]).split(b"!"))
    scope = scope_of(patterns)
    if scope is None:
        raise Refused(Reason.CLAIM)
    # "/live/" is that one path for Akamai, not what is below it.
    return Scope("acl" if any(b"*" in each or b"?" in each for each in patterns) else "object", patterns), until_s


# -- what is signed is written in policy: nginx secure_link, HMAC ------------------------------------------------------


def placeholders(signed: str) -> list[str]:
    """The names in braces of a template, in order."""
    return _PLACEHOLDER.findall(signed)


def _templated(target: bytes, rules: SignedUrlRules, now_s: float) -> tuple[Scope, float]:
    path, query = split_target(target)
    names = rules.places.parameters
    # As they stand: neither digits nor a digest need an encoding, and nginx's $arg_ undoes none.
    values = parameters(query, names[:2], is_raw=True) | parameters(query, names[2:])
    signature, expires = required(values, names[0]), required(values, names[1])
    prefix = values.get(names[2], b"") if len(names) > 2 else b""
    if prefix and (not prefix.endswith(b"/") or is_ambiguous(prefix)):
        raise Refused(Reason.CLAIM)
    expires_s = read_seconds(expires)
    parts = {"path": prefix or path, "uri": unquote(prefix or path), "expires": expires, "prefix": prefix}
    if not any(_is_signed(signature, key, rules, parts) for key in rules.keys.values()):
        raise Refused(Reason.SIGNATURE)
    scope = Scope("directory", (prefix,)) if prefix else Scope("object", (path,))
    return scope, _end(expires_s, rules, now_s)


def _is_signed(signature: bytes, key: VerificationKey, rules: SignedUrlRules, parts: Mapping[str, bytes]) -> bool:
    message = b"".join(
        (key.material if piece == "secret" else parts[piece]) if at % 2 else piece.encode()
        for at, piece in enumerate(_PLACEHOLDER.split(rules.signed))
    )
    if rules.scheme == "secure-link":
        digest = hashlib.md5(message, usedforsecurity=False).digest()
        wanted = base64.urlsafe_b64encode(digest).rstrip(b"=")
        return _MD5_TEXT.fullmatch(signature) is not None and hmac.compare_digest(wanted, signature)
    if _HEX_SHA256.fullmatch(signature) is None:
        return False
    return key.verifies(bytes.fromhex(signature.decode("ascii")), message)
