"""Several ranges of one body, as they go to an origin: united, counted, written.

Takes Range fields that the data plane has found well-formed; what they select of a body is decided there.
"""

from __future__ import annotations

from collections.abc import Sequence

from accelerator.protocols.fields import parse_digits

# First and last byte, inclusive; last None: open; first negative: the last bytes.
ByteRange = tuple[int, int | None]

# As ext/request.pxd has it: more are not worth their parts (RFC 9110 section 17.15).
PARTS_MAX = 8
_LARGEST = (1 << 63) - 1
_ENDLESS = 1 << 63


def ranges_of(value: bytes) -> list[ByteRange]:
    """The ranges as written, in their order; those of no byte (`-0`) left out."""
    found: list[ByteRange] = []
    for member in value.partition(b"=")[2].split(b","):
        first, dash, last = member.strip(b" \t").partition(b"-")
        if not dash:
            continue  # an empty member of the list
        # A place behind any body is one as the data plane reads it, however many digits it has: int() raises at 4,300.
        start, end = (parse_digits(each, _LARGEST) for each in (first, last))
        if start is not None:
            found.append((start, end))
        elif end:
            found.append((-end, None))
    return found


def united(ranges: Sequence[ByteRange]) -> list[ByteRange]:
    """The same bytes, each once, by place; a suffix, of which nobody knows yet where it begins, last.

    Empty where more than PARTS_MAX are left: overlapping ones would make an origin send a body many times over.
    """
    merged: list[tuple[int, int]] = []
    for first, last in sorted((a, _ENDLESS if b is None else b) for a, b in ranges if a >= 0):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(merged[-1][1], last))
        else:
            merged.append((first, last))
    parts: list[ByteRange] = [(first, None if last == _ENDLESS else last) for first, last in merged]
    suffix = min((first for first, _ in ranges if first < 0), default=0)
    if suffix:
        parts.append((suffix, None))
    return parts if len(parts) <= PARTS_MAX else []


def are_scattered(parts: Sequence[ByteRange], slice_bytes: int) -> bool:
    """Whether their slices hold more than two slices beyond them: then the parts alone are asked for, and not kept."""
    excess = 0
    whole_to = -1  # the last slice that is counted
    for first, last in parts:
        if first < 0:
            excess += slice_bytes
            continue
        if first // slice_bytes > whole_to:
            excess += first % slice_bytes
        if last is None:
            break
        if last // slice_bytes > whole_to:
            excess += slice_bytes - 1 - last % slice_bytes
        whole_to = last // slice_bytes
    return excess > 2 * slice_bytes


def written(parts: Sequence[ByteRange]) -> bytes:
    """A Range field's value."""
    texts = [
        b"%d" % first if first < 0 else b"%d-" % first if last is None else b"%d-%d" % (first, last)
        for first, last in parts
    ]
    return b"bytes=" + b",".join(texts)
