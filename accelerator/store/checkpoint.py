"""The index as one file, so that a start need not read the log: header, segments, tombstones, rows. Pure; CRC comes in.

A checkpoint says up to where of the log it knows everything; the rest is replayed.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from accelerator.store.index import DiskIndex, Tombstone

# magic, version, heads, head slots, slices, slice slots, tags, segments, tombstones, covered segment and offset,
# sequence, suspect_below, latest wall clock
_START = struct.Struct("<4sIQQQQQIIQQQQq")
_SEGMENT = struct.Struct("<QQ")
_TOMBSTONE = struct.Struct("<IQ16sQQ")
MAGIC = b"ACRX"
VERSION = 2
CRC_BYTES = 4


def dump_checkpoint(index: DiskIndex, segment: int, offset: int) -> list[bytes]:
    """The file's parts; its writer adds their CRC32C. `segment`, `offset`: where replay begins."""
    start = _START.pack(
        MAGIC, VERSION, index.heads.n_high, len(index.heads.slots), index.slices.n_high, len(index.slices.slots),
        index.tags.n, len(index.segments), len(index.tombstones), segment, offset,
        index.sequence, index.suspect_below, index.latest_wall_ns,
    )  # fmt: skip
    segments = b"".join(_SEGMENT.pack(*row) for row in index.segments.items())
    stones = b"".join(
        _TOMBSTONE.pack(stone.kind, stone.key, stone.digest, stone.limit, stone.segment)
        for stone in index.tombstones.values()
    )
    return [start, segments, stones, *index.heads.dump(), *index.slices.dump(), *index.tags.dump()]


def load_checkpoint(data: memoryview, checksum: Callable[[memoryview], int]) -> tuple[DiskIndex, int, int]:
    """(index, segment, offset) of a file's content. Raises ValueError where it is not whole, or not of this version."""
    if len(data) < _START.size + CRC_BYTES:
        raise ValueError("too short")
    if checksum(data[:-CRC_BYTES]) != int.from_bytes(data[-CRC_BYTES:], "little"):
        raise ValueError("its checksum differs")
    (magic, version, n_heads, head_slots, n_slices, slice_slots, n_tags, n_segments, n_stones, segment,
     offset, sequence, suspect_below, latest_wall_ns) = _START.unpack_from(data)  # fmt: skip
    if magic != MAGIC or version != VERSION:
        raise ValueError("of another version")
    index = DiskIndex()
    expected = _START.size + n_segments * _SEGMENT.size + n_stones * _TOMBSTONE.size + CRC_BYTES
    expected += index.heads.size_of_dump(n_heads, head_slots) + index.slices.size_of_dump(n_slices, slice_slots)
    expected += index.tags.size_of_dump(n_tags)
    if len(data) != expected:
        raise ValueError("of another length than its rows say")
    at = _START.size
    for number, used in _SEGMENT.iter_unpack(data[at : at + n_segments * _SEGMENT.size]):
        index.segments[number] = used
    at += n_segments * _SEGMENT.size
    for kind, key, digest, limit, stone_segment in _TOMBSTONE.iter_unpack(data[at : at + n_stones * _TOMBSTONE.size]):
        index.tombstones[(kind, key)] = Tombstone(kind, key, digest, limit, stone_segment)
    at += n_stones * _TOMBSTONE.size
    at += index.heads.load(data[at:-CRC_BYTES], n_heads, head_slots)
    at += index.slices.load(data[at:-CRC_BYTES], n_slices, slice_slots)
    index.tags.load(data[at:-CRC_BYTES], n_tags)
    n_owners = max(1, index.heads.n_high)
    if index.slices.n_high and int(index.slices.array["owner"].max()) >= n_owners:
        raise ValueError("slices of objects that are not there")
    if index.tags.owner_most >= n_owners:
        raise ValueError("tags of objects that are not there")
    index.sequence, index.suspect_below, index.latest_wall_ns = sequence, suspect_below, latest_wall_ns
    return index, segment, offset
