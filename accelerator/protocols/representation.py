"""Which representation a response carries, and which part: ETag, Content-Range, and what is stored of its head.

Reads and filters fields only. Whether anything is stored is decided in cache_decide.py.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from accelerator.errors import OriginError
from accelerator.protocols.dates import format_http_date
from accelerator.protocols.fields import Field, Fields, get_all, get_first, has, parse_digits, without_hop_by_hop

_ENTITY_TAG = re.compile(rb'(W/)?"[\x21\x23-\x7e\x80-\xff]*"')
_CONTENT_RANGE = re.compile(rb"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18}|\*)", re.IGNORECASE)


@dataclass(frozen=True)
class ContentRange:
    """Content-Range of a 206: first and last byte, inclusive; total None for `*` (RFC 9110 section 14.4)."""

    first: int
    last: int
    total: int | None


def stored_fields(response_fields: Fields, *, response_wall_s: float, shared: bool = True) -> list[Field]:
    """What is stored and replayed of a head: end-to-end fields (RFC 9111 section 3.1) but those that the edge writes.

    Content-Length and Age are the edge's. Without Date one is added (RFC 9110 section 6.6.1). `shared` False: the
    response goes to one viewer, and keeps its Set-Cookie.
    """
    dropped = {b"content-length", b"age"} | ({b"set-cookie", b"set-cookie2"} if shared else set())
    kept = [field for field in without_hop_by_hop(response_fields) if field[0].lower() not in dropped]
    if not has(kept, b"date"):
        kept.append((b"Date", format_http_date(response_wall_s)))
    return kept


def parse_content_range(value: bytes) -> ContentRange:
    """`bytes FIRST-LAST/TOTAL` or `/*` (RFC 9110 section 14.4); anything else raises OriginError("content-range")."""
    match = _CONTENT_RANGE.fullmatch(value)
    if match is None:
        raise OriginError("content-range", f"Content-Range is malformed: {value[:80]!r}")
    first, last = int(match.group(1)), int(match.group(2))
    total = None if match.group(3) == b"*" else int(match.group(3))
    if first > last or (total is not None and last >= total):
        raise OriginError("content-range", f"Content-Range is impossible: {value[:80]!r}")
    return ContentRange(first, last, total)


def is_what_was_asked(part: ContentRange, first: int, last: int | None) -> bool:
    """Whether a 206 carries the range that was asked for, or its beginning (RFC 9110 sections 14.4 and 15.3.7.1).

    `last` None: to the end; `first` negative: the last bytes. Anything else is another place of the body than the one
    that somebody waits for.
    """
    if first >= 0:
        return part.first == first and (last is None or part.last <= last)
    return part.total is None or (part.last == part.total - 1 and part.first >= part.total + first)


def holds(if_range: bytes, response_fields: Fields) -> bool:
    """Whether a 206 may answer this If-Range: its own validator is not another one (RFC 9110 section 13.1.5)."""
    name = b"etag" if if_range.endswith(b'"') else b"last-modified"
    value = get_first(response_fields, name)
    return value is None or value == if_range


def entity_tag(value: bytes) -> bytes | None:
    """An ETag as it stands, None if it is not one (RFC 9110 section 8.8.3). Strong unless it begins with `W/`."""
    return value if _ENTITY_TAG.fullmatch(value) else None


def selected_etag(fields: Fields) -> bytes | None:
    """The ETag of a head; None: absent, malformed, or several that differ."""
    tags = set(get_all(fields, b"etag"))
    # two different tags name no representation
    return entity_tag(tags.pop()) if len(tags) == 1 else None


def partial_range(response_fields: Fields) -> ContentRange | None:
    """Content-Range of a 206; None: multipart/byteranges, whose parts carry their own (RFC 9110 section 15.3.7.2)."""
    values = get_all(response_fields, b"content-range")
    if not values and (get_first(response_fields, b"content-type") or b"").lower().startswith(b"multipart/byteranges"):
        return None
    if len(values) != 1:
        raise OriginError("content-range", f"206 with {len(values)} Content-Range fields")
    content_range = parse_content_range(values[0])
    length = get_first(response_fields, b"content-length")
    if length is not None and parse_digits(length, 2**62) != content_range.last - content_range.first + 1:
        raise OriginError("content-range", "Content-Range and Content-Length differ")
    return content_range
