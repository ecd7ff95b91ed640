"""A disk folder with 1,000,000 small objects, each with records as the box itself writes them. Test support, no test.

One object comes by way of a box; the others are that one with other names, bodies, entity tags and checksums.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from disk_box import VideoOrigin, body_of, disk_box, fill

from accelerator.dataplane import START_BYTES, disk_checksum, space_of
from accelerator.services.disk.files import CHECKPOINT, prepare, segment_file
from accelerator.services.disk.keys import DiskKeys
from accelerator.services.disk.records import SEGMENT_BYTES
from accelerator.store.checkpoint import CRC_BYTES, dump_checkpoint, load_checkpoint
from accelerator.store.head import DiskHead, pack_head, unpack_head
from accelerator.store.index import HEAD, SLICE

SIZE = 64
# As in ext/disk_record.pxd: Record and SegmentHead.
_RECORD = struct.Struct("<IHBBIIQQ16sQQIIQqII16s16s")
_SEGMENT_HEAD = struct.Struct("<IIQ16s28s")
_CRC = struct.Struct("<I")
_CRC_AT = 8
_MAGIC, _VERSION = 0x31524341, 1
_WRITTEN_AT_ONCE = 4 << 20


def path_of(number: int) -> str:
    return f"/v/{SIZE}/object{number:07d}"


def etag_of(path: str) -> bytes:
    """What VideoOrigin gives."""
    return f'"{zlib.crc32(path.encode())}-1"'.encode()


@dataclass
class _Seed:
    """What a box has written of the object 0."""

    keys: DiskKeys
    head: DiskHead
    variant: int
    class_id: int
    origin_id: int


def make_disk(work: Path, origin: VideoOrigin, n_objects: int, **sections: object) -> tuple[int, int]:
    """Fills the folder of a box of this policy, without a checkpoint: (segments, bytes)."""
    with disk_box(work, origin, **sections) as box:  # type: ignore[arg-type]
        fill(box, [path_of(0)])
    folder = work / "state" / "cache"
    seed = _read_seed(folder)
    for each in [*folder.glob("seg-*.log"), folder / CHECKPOINT]:
        each.unlink()
    return _write_segments(folder, seed, n_objects)


def _read_seed(folder: Path) -> _Seed:
    found = prepare(folder, None)
    os.close(found.lock_fd)
    assert found.index is not None, found.note
    digest = found.keys.digest("media", path_of(0).encode())
    (head,) = found.index.find(int.from_bytes(digest[:8], "little"))
    with (folder / segment_file(head.place.segment)).open("rb") as file:
        file.seek(head.place.offset + _RECORD.size)
        unpacked = unpack_head(file.read(head.place.length))
    assert unpacked.etag == etag_of(path_of(0))
    return _Seed(found.keys, unpacked, head.variant, head.class_id, head.origin_id)


def _records(seed: _Seed, number: int, segment: int, salt: bytes) -> Iterator[bytes]:
    """Head and slice of one object, padded."""
    path = path_of(number)
    key = path.encode()
    etag = etag_of(path)
    lines = seed.head.lines.replace(seed.head.etag, etag)
    short_lines = seed.head.short_lines.replace(seed.head.etag, etag)
    payload = pack_head(replace(seed.head, key=key, lines=lines, short_lines=short_lines, etag=etag))
    digest = seed.keys.digest("media", key)
    for kind, data in ((HEAD, payload), (SLICE, body_of(path))):
        record = bytearray(
            _RECORD.pack(
                _MAGIC, _VERSION, kind, 0, 0, disk_checksum(data), segment, 2 * number + kind, digest, seed.variant,
                number + 1, 0, len(data), SIZE, seed.head.written_ns, seed.class_id, seed.origin_id, salt, bytes(16),
            )
        )  # fmt: skip
        _CRC.pack_into(record, _CRC_AT, disk_checksum(record))
        yield bytes(record) + data + bytes(space_of(len(data)) - len(record) - len(data))


def _write_segments(folder: Path, seed: _Seed, n_objects: int) -> tuple[int, int]:
    segment, n_bytes, number = 0, 0, 0
    while number < n_objects:
        segment += 1
        salt = os.urandom(16)
        start = _SEGMENT_HEAD.pack(_MAGIC, _VERSION, segment, salt, bytes(28))
        waiting = bytearray(start + _CRC.pack(disk_checksum(start)))
        assert len(waiting) == START_BYTES
        with (folder / segment_file(segment)).open("wb") as file:
            os.fchmod(file.fileno(), 0o600)
            while number < n_objects:
                both = b"".join(_records(seed, number, segment, salt))
                if file.tell() + len(waiting) + len(both) > SEGMENT_BYTES:
                    break
                waiting += both
                number += 1
                if len(waiting) > _WRITTEN_AT_ONCE:
                    file.write(waiting)
                    waiting.clear()
            file.write(waiting)
            n_bytes += file.tell()
    return segment, n_bytes


def trust_checkpoint(folder: Path) -> int:
    """Makes the checkpoint that of a disk whose index was never lost: objects needn't be validated. Its length."""
    index, segment, offset = load_checkpoint(memoryview((folder / CHECKPOINT).read_bytes()), disk_checksum)
    assert index.suspect_below > 0
    index.suspect_below = 0
    data = b"".join(dump_checkpoint(index, segment, offset))
    (folder / CHECKPOINT).write_bytes(data + disk_checksum(data).to_bytes(CRC_BYTES, "little"))
    return len(data)


def forget_pages(folder: Path) -> None:
    """Takes the folder's files out of the page cache, as after a power cut."""
    for each in folder.iterdir():
        fd = os.open(each, os.O_RDONLY)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)
