"""Strict readers of what tokens are written in: base64url, decimal numbers, JSON objects. One spelling each."""

from __future__ import annotations

import base64
import binascii
import json
import re
from typing import Any, NoReturn

from accelerator.protocols.tokens.verdict import Reason, Refused

_BASE64URL = re.compile(rb"[A-Za-z0-9_-]*")
_NUMBER_DIGITS_MAX = 12  # seconds until the year 33,000


def decode_base64url(text: bytes) -> bytes:
    """RFC 7515 section 2: no padding, no line break, unused bits zero (RFC 4648 section 3.5), else Refused."""
    if len(text) % 4 == 1 or _BASE64URL.fullmatch(text) is None:
        raise Refused(Reason.ENCODING)
    data = base64.urlsafe_b64decode(text + b"=" * (-len(text) % 4))
    if base64.urlsafe_b64encode(data).rstrip(b"=") != text:
        raise Refused(Reason.ENCODING)
    return data


def decode_base64(text: bytes) -> bytes:
    """RFC 4648 section 4 with padding and zero unused bits, else Refused."""
    try:
        data = base64.b64decode(text, validate=True)
    except binascii.Error:
        raise Refused(Reason.ENCODING) from None
    if base64.b64encode(data) != text:
        raise Refused(Reason.ENCODING)
    return data


def read_seconds(text: bytes) -> int:
    """A time in seconds since 1970: digits only, no sign, no leading zero; else Refused."""
    if not text.isdigit() or len(text) > _NUMBER_DIGITS_MAX or (len(text) > 1 and text.startswith(b"0")):
        raise Refused(Reason.MALFORMED)
    return int(text)


def read_json_object(data: bytes) -> dict[str, Any]:
    """One JSON object (RFC 8259) in UTF-8, nothing after it, no member twice at any depth, no NaN; else Refused."""
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_members, parse_constant=_no_constant)
    except (UnicodeDecodeError, ValueError, RecursionError):
        raise Refused(Reason.MALFORMED) from None
    if not isinstance(value, dict):
        raise Refused(Reason.MALFORMED)
    return value


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # RFC 7515 section 4: duplicates MUST be rejected, or the last one taken. Two readers of one token must not differ.
    members = dict(pairs)
    if len(members) != len(pairs):
        raise Refused(Reason.DUPLICATE)
    return members


def _no_constant(name: str) -> NoReturn:
    raise ValueError(name)
