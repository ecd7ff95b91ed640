"""HTTP fields as lists of (name, value) bytes: look-up, lists, what passes a proxy. No field's meaning."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

Field = tuple[bytes, bytes]
Fields = Sequence[Field]

# RFC 9110 section 7.6.1: an intermediary removes these even when Connection does not name them. Trailer goes too,
# because we drop trailers; the Proxy-* fields of authentication end at the next hop (RFC 9110 section 11.7).
HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authentication-info",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)

# Connection may not name fields meant for every recipient ("Cache-Control is never appropriate as a connection
# option", RFC 9110 section 7.6.1). A peer that does so anyway would strip a `private` on its way to the next cache,
# or a viewer's own credentials after we looked at them, so such an option is not obeyed.
NOT_CONNECTION_OPTIONS = frozenset(
    {
        b"age",
        b"authorization",
        b"cache-control",
        b"cdn-cache-control",
        b"cdn-loop",
        b"content-encoding",
        b"content-length",
        b"content-range",
        b"content-type",
        b"cookie",
        b"date",
        b"etag",
        b"expires",
        b"host",
        b"last-modified",
        b"location",
        b"set-cookie",
        b"vary",
        b"via",
    }
)

_OWS = b" \t"
_QUOTED = re.compile(rb'"(?:[^"\\]|\\.)*+"', re.DOTALL)
_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")


def is_token(value: bytes) -> bool:
    """RFC 9110 section 5.6.2."""
    return _TOKEN.fullmatch(value) is not None


def get_all(fields: Iterable[Field], name: bytes) -> list[bytes]:
    """Values of every line called `name` (given in lower case), in order."""
    return [value for key, value in fields if key.lower() == name]


def get_first(fields: Iterable[Field], name: bytes) -> bytes | None:
    """Value of the first line called `name` (given in lower case)."""
    for key, value in fields:
        if key.lower() == name:
            return value
    return None


def has(fields: Iterable[Field], name: bytes) -> bool:
    """Whether there is a line called `name` (given in lower case)."""
    return any(key.lower() == name for key, _ in fields)


def get_list(fields: Iterable[Field], name: bytes) -> list[bytes]:
    """Members of a list field over all its lines (RFC 9110 sections 5.3, 5.6.1): trimmed, none empty, quotes kept."""
    members: list[bytes] = []
    for value in get_all(fields, name):
        members += split_list(value)
    return members


def split_list(value: bytes) -> list[bytes]:
    """One line's members, split at commas outside quoted strings.

    After a quote that never closes every comma separates: `x="a, no-store` must not hide the `no-store`. For the same
    reason a quote that opens in one line does not reach into the next.
    """
    if b'"' not in value:
        parts = value.split(b",")
    else:
        parts = []
        start = position = 0
        while position < len(value):
            byte = value[position]
            if byte == 0x22:
                quoted = _QUOTED.match(value, position)
                if quoted is None:
                    break
                position = quoted.end()
                continue
            if byte == 0x2C:
                parts.append(value[start:position])
                start = position + 1
            position += 1
        parts += value[start:].split(b",") if position < len(value) else [value[start:]]
    return [member for part in parts if (member := part.strip(_OWS))]


def without_hop_by_hop(fields: Fields) -> list[Field]:
    """The end-to-end fields: what a proxy may pass on or store (RFC 9110 section 7.6.1, RFC 9111 section 3.1)."""
    options = {option.lower() for option in get_list(fields, b"connection")} - NOT_CONNECTION_OPTIONS
    dropped = HOP_BY_HOP | options
    return [field for field in fields if field[0].lower() not in dropped]


def parse_digits(value: bytes, limit: int) -> int | None:
    """An unsigned decimal number, clamped to `limit`; None if anything but ASCII digits stands in it.

    int() alone takes `+5`, `0_5` and ` 5 `, and raises beyond 4,300 digits.
    """
    if not value.isdigit():  # bytes.isdigit() knows ASCII digits only
        return None
    significant = value.lstrip(b"0")
    if len(significant) > len(str(limit)):
        return limit
    return min(int(significant or b"0"), limit)
