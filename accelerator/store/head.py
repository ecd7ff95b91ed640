"""A stored response's head as bytes in the log: lines, decision in wall-clock times, key and Vary values. Pure.

Times on disk are of the wall clock, as the monotonic one begins anew with each boot.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

NEVER_NS = 0
FOREVER_NS = (1 << 63) - 1
# Of what was never checked: so far back that no age overflows 64 bits.
LONG_AGO_NS = -(1 << 61)
# version, kind, flags, status, last-modified, fresh until, stale until, born, written, checked, total; eight lengths
_START = struct.Struct("<BBHIqqqqqqq8I")
VERSION = 2
PART_MOST = 1 << 20
NS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class DiskHead:
    """One head. Times: wall clock, ns; `fresh_until_ns` 0: never, FOREVER_NS: always. `checked_ns`: when the request to
    the origin that it rests on was sent. `total_length`: of the body. `tags`: 64-bit numbers."""

    origin: str
    key: bytes
    vary: bytes
    vary_values: bytes
    lines: bytes
    short_lines: bytes
    etag: bytes
    kind: int
    flags: int
    status: int
    last_modified_s: int
    fresh_until_ns: int
    stale_until_ns: int
    born_ns: int
    written_ns: int
    checked_ns: int
    total_length: int
    tags: tuple[int, ...] = ()


def pack_head(head: DiskHead) -> bytes:
    """Raises ValueError for parts that no response of ours has."""
    parts = [head.origin.encode(), head.key, head.vary, head.vary_values, head.lines, head.short_lines, head.etag]
    parts.append(struct.pack(f"<{len(head.tags)}Q", *head.tags))
    if any(len(part) > PART_MOST for part in parts):
        raise ValueError("a part of a head is too long")
    return _START.pack(
        VERSION, head.kind, head.flags, head.status, head.last_modified_s, head.fresh_until_ns, head.stale_until_ns,
        head.born_ns, head.written_ns, head.checked_ns, head.total_length, *map(len, parts),
    ) + b"".join(parts)  # fmt: skip


def unpack_head(data: bytes) -> DiskHead:
    """The inverse. Raises ValueError for anything else."""
    if len(data) < _START.size:
        raise ValueError("too short")
    (version, kind, flags, status, last_modified_s, fresh_until_ns, stale_until_ns, born_ns, written_ns, checked_ns,
     total_length, *lengths) = _START.unpack_from(data)  # fmt: skip
    if version != VERSION:
        raise ValueError("of another version")
    if max(lengths) > PART_MOST or _START.size + sum(lengths) != len(data) or lengths[-1] % 8:
        raise ValueError("of another length than its parts")
    parts = []
    at = _START.size
    for length in lengths:
        parts.append(data[at : at + length])
        at += length
    if not 100 <= status <= 999 or total_length < 0:
        raise ValueError("no response of ours")
    origin, key, vary, vary_values, lines, short_lines, etag, tags = parts
    if not key.startswith(b"/") or (lines and not lines.endswith(b"\r\n")):
        raise ValueError("no response of ours")
    return DiskHead(
        origin.decode("utf-8"), key, vary, vary_values, lines, short_lines, etag, kind, flags, status, last_modified_s,
        fresh_until_ns, stale_until_ns, born_ns, written_ns, checked_ns, total_length,
        struct.unpack(f"<{len(tags) // 8}Q", tags),
    )  # fmt: skip


def to_wall(at_ns: int, now_ns: int, wall_ns: int) -> int:
    """A monotonic time as wall clock. 0 and what lies beyond all time stay."""
    if at_ns <= 0 or at_ns == FOREVER_NS:
        return at_ns
    return min(FOREVER_NS - 1, max(1, at_ns - now_ns + wall_ns))


def to_monotonic(head: DiskHead, now_ns: int, wall_ns: int) -> tuple[int, int, int, int]:
    """(fresh until, stale until, born, checked) on the monotonic clock. Where the wall clock is behind what was written
    (a clock set back), nothing says how old it is: it is stale, never checked, and validated before use."""
    if wall_ns < head.written_ns:
        return 0, 0, now_ns - max(0, head.written_ns - head.born_ns), LONG_AGO_NS

    def monotonic(at_ns: int) -> int:
        return at_ns if at_ns in (NEVER_NS, FOREVER_NS) else max(0, at_ns - wall_ns + now_ns)

    checked_ns = max(LONG_AGO_NS, min(now_ns, head.checked_ns - wall_ns + now_ns))
    return monotonic(head.fresh_until_ns), monotonic(head.stale_until_ns), head.born_ns - wall_ns + now_ns, checked_ns
