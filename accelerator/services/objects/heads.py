"""Stored heads as the data plane takes them: lines of bytes and monotonic times. No decision on freshness."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus

from accelerator.dataplane import (
    FLAG_DATE_IS_STRONG,
    FLAG_HAS_AGE,
    FLAG_MAY_BE_STALE,
    FLAG_MUST_VALIDATE,
    FLAG_NO_BODY,
    FOREVER_NS,
)
from accelerator.protocols.cache_decide import Verdict
from accelerator.protocols.dates import parse_http_date
from accelerator.protocols.fields import Field, Fields, get_all, get_first, get_list, has

NS = 1_000_000_000
# RFC 9110 section 15.4.5, and what a browser's CORS check needs on a 304 too.
_IN_304 = frozenset(
    {b"content-location", b"date", b"etag", b"vary", b"cache-control", b"expires", b"cdn-cache-control"}
)
# Players tune in by Age; scripts may only read what is exposed (low-latency.md section 1).
_EXPOSED = (b"Age", b"Cache-Status", b"Content-Length", b"Content-Range", b"Date")


@dataclass(frozen=True)
class StoredHead:
    """Arguments of Plane.create and StoredObject.set_head, in their order."""

    status: int
    status_line: bytes
    lines: bytes
    short_lines: bytes
    etag: bytes
    last_modified_s: int
    fresh_until_ns: int
    stale_until_ns: int
    validated_ns: int
    born_ns: int
    flags: int

    def arguments(self) -> tuple[int, bytes, bytes, bytes, bytes, int, int, int, int, int, int]:
        return (
            self.status, self.status_line, self.lines, self.short_lines, self.etag, self.last_modified_s,
            self.fresh_until_ns, self.stale_until_ns, self.validated_ns, self.born_ns, self.flags,
        )  # fmt: skip


def status_line(status: int) -> bytes:
    """Ours: an origin's reason phrase goes nowhere (it has crashed a cache before: VSV00009)."""
    try:
        reason = HTTPStatus(status).phrase
    except ValueError:
        reason = ""
    return b"HTTP/1.1 %d %s\r\n" % (status, reason.encode("ascii"))


def join_lines(fields: Fields) -> bytes:
    return b"".join(b"%s: %s\r\n" % field for field in fields)


def split_lines(lines: bytes) -> list[Field]:
    """The inverse of join_lines: stored lines have one form only."""
    fields = []
    for line in lines.split(b"\r\n")[:-1]:
        name, _, value = line.partition(b": ")
        fields.append((name, value))
    return fields


def with_exposed(fields: Fields) -> list[Field]:
    """Where the origin allows reading across origins, our fields may be read too."""
    if not has(fields, b"access-control-allow-origin"):
        return list(fields)
    named = get_list(fields, b"access-control-expose-headers")
    if b"*" in named:
        return list(fields)
    known = {name.lower() for name in named}
    names = named + [name for name in _EXPOSED if name.lower() not in known]
    kept = [field for field in fields if field[0].lower() != b"access-control-expose-headers"]
    return [*kept, (b"Access-Control-Expose-Headers", b", ".join(names))]


def compose(
    status: int, fields: Sequence[Field], verdict: Verdict | None, *, request_ns: int, response_ns: int, has_age: bool
) -> StoredHead:
    """The head of a response whose request was sent at `request_ns` and whose head came at `response_ns` (monotonic).

    `verdict` None: not stored, for those who asked only.
    """
    lines = join_lines(fields)
    short = join_lines(
        [field for field in fields if field[0].lower() in _IN_304 or field[0].lower().startswith(b"access-control-")]
    )
    flags = (FLAG_HAS_AGE if has_age else 0) | (FLAG_NO_BODY if status in (204, 304) else 0)
    if verdict is None:
        return StoredHead(
            status, status_line(status), lines, short, b"", -1, 0, 0, request_ns, _born(fields, response_ns), flags
        )
    age_ns = int(verdict.initial_age_s * NS)
    fresh_until_ns = 0
    if not verdict.must_validate:
        fresh_until_ns = min(FOREVER_NS, response_ns + int(verdict.lifetime_s * NS) - age_ns)
    else:
        flags |= FLAG_MUST_VALIDATE
    if not verdict.forbids_stale:
        flags |= FLAG_MAY_BE_STALE
    date_s = parse_http_date(get_first(fields, b"date") or b"")
    if verdict.last_modified_s is not None and date_s is not None and date_s > verdict.last_modified_s:
        flags |= FLAG_DATE_IS_STRONG  # RFC 9110 section 8.8.2.2: at least a second lies between them
    stale_until_ns = 0
    if verdict.stale_while_revalidate_s > 0 and not verdict.forbids_stale and fresh_until_ns:
        window_s = min(verdict.stale_while_revalidate_s, verdict.stale_limit_s)
        stale_until_ns = min(FOREVER_NS, fresh_until_ns + int(window_s * NS))
    return StoredHead(
        status,
        status_line(status),
        lines,
        short,
        verdict.etag or b"",
        -1 if verdict.last_modified_s is None else verdict.last_modified_s,
        fresh_until_ns,
        stale_until_ns,
        request_ns,
        response_ns - age_ns,
        flags,
    )


def _born(fields: Sequence[Field], response_ns: int) -> int:
    values = get_all(fields, b"age")
    age_s = int(values[0]) if len(values) == 1 and values[0].isdigit() and len(values[0]) < 10 else 0
    return response_ns - age_s * NS
