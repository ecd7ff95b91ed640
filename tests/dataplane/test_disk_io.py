"""The disk's threads on real files: what is written comes back, and what was torn, flipped or moved never does."""

from __future__ import annotations

import errno
import os
import select
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from plane_rig import pattern

from ext.disk import BAD, OTHER, DiskIo
from ext.disk_record import (
    HEADER_BYTES,
    KIND_HEAD,
    KIND_SLICE,
    RECORD_DTYPE,
    START_BYTES,
    checksum,
    checksum_soft,
    seal_bytes,
    space_of,
    unseal_bytes,
)
from ext.plane import Plane

SALT = b"s" * 16
KEY = bytes(range(32))
DIGEST = b"d" * 16


def row(sequence: int, kind: int = KIND_HEAD, generation: int = 5, number: int = 0, total: int = 0) -> tuple[Any, ...]:
    return (kind, sequence, DIGEST, 1, generation, number, total, 123, 7, 8, SALT)


class Disk:
    """A DiskIo whose results are waited for."""

    def __init__(self, folder: Path, plane: Plane | None = None) -> None:
        self.folder = folder
        self.io = DiskIo(str(folder), plane, 2, 1 << 20)
        self.done: dict[int, tuple[int, Any]] = {}
        self.n_segments = 0

    def wait(self, job: int) -> tuple[int, Any]:
        assert job
        while job not in self.done:
            assert select.select([self.io.bell_fd], [], [], 40)[0], "no result"
            for number, _, error, value, _ in self.io.take():
                self.done[number] = (error, value)
        return self.done.pop(job)

    def write(self, segment: int, payloads: list[bytes], key: bytes | None = None) -> list[int]:
        """Records one after the other from the segment's start; their offsets."""
        at, offsets, jobs = START_BYTES, [], []
        for sequence, payload in enumerate(payloads, 1):
            jobs.append(self.io.write(segment, at, row(sequence), payload, key))
            offsets.append(at)
            at += space_of(len(payload))
        assert [self.wait(job)[0] for job in jobs] == [0] * len(jobs)
        return offsets

    def read(self, segment: int, offset: int, length: int, key: bytes | None = None) -> tuple[int, Any]:
        return self.wait(self.io.read(segment, offset, length, KIND_HEAD, 5, key))

    def scan(self, segment: int, offset: int = 0) -> tuple[int, Any, Any, int]:
        error, (rows, offsets, end) = self.wait(self.io.scan(segment, offset))
        return error, np.frombuffer(rows, RECORD_DTYPE), np.frombuffer(offsets, "u8"), end

    def path(self, segment: int) -> Path:
        return self.folder / f"seg-{segment:016x}.log"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    found = Disk(tmp_path)
    yield found
    assert found.io.close()
    assert found.io.queued_bytes == 0


def test_both_ways_to_sum_agree() -> None:
    # Around the sizes of which three parts are taken at a time.
    for n in (0, 1, 7, 8, 9, 767, 768, 769, 1535, 1536, 4097, 24575, 24576, 24577, 49152, 50001, 1 << 20):
        assert checksum(pattern(n)) == checksum_soft(pattern(n))
        assert checksum(pattern(n + 3)[3:]) == checksum_soft(pattern(n + 3)[3:])
    assert checksum(b"123456789") == 0xE3069283


def test_seal_opens_only_with_what_sealed_it() -> None:
    sealed = seal_bytes(KEY, b"n" * 12, b"bound", b"hello")
    assert unseal_bytes(KEY, b"n" * 12, b"bound", sealed) == b"hello"
    assert unseal_bytes(KEY, b"n" * 12, b"other", sealed) is None
    assert unseal_bytes(bytes(32), b"n" * 12, b"bound", sealed) is None
    assert unseal_bytes(KEY, b"n" * 12, b"bound", sealed[:-1] + b"\0") is None


@pytest.mark.parametrize("key", [None, KEY])
def test_records_come_back(disk: Disk, key: bytes | None) -> None:
    payloads = [pattern(n, n) for n in (0, 1, 63, 64, 65, 5000, 200_000)]
    offsets = disk.write(3, payloads, key)
    for offset, payload in zip(offsets, payloads, strict=True):
        assert disk.read(3, offset, len(payload), key) == (0, (DIGEST, payload))
    error, rows, found, end = disk.scan(3)
    assert (error, found.tolist(), rows["length"].tolist()) == (0, offsets, [len(p) for p in payloads])
    assert end == offsets[-1] + space_of(len(payloads[-1]))
    assert disk.path(3).stat().st_mode & 0o777 == 0o600
    if key is not None:
        assert payloads[-1][:64] not in disk.path(3).read_bytes()


def test_sealed_record_opens_with_its_own_key_and_at_its_own_place_only(disk: Disk) -> None:
    first, second = disk.write(1, [b"a" * 100, b"b" * 100], KEY)
    assert disk.read(1, first, 100, bytes(32))[0] == BAD
    assert disk.read(1, first, 100, None)[0] < 0
    data = bytearray(disk.path(1).read_bytes())
    data[first:second] = data[second : second + second - first]
    disk.path(1).write_bytes(data)
    assert disk.read(1, first, 100, KEY)[0] == BAD


def test_plain_record_is_not_believed_where_a_key_is_set(disk: Disk) -> None:
    (offset,) = disk.write(1, [b"planted"])
    assert disk.read(1, offset, 7, KEY)[0] == BAD


def test_record_of_another_object_is_not_taken_for_it(disk: Disk) -> None:
    (offset,) = disk.write(1, [b"x"])
    assert disk.wait(disk.io.read(1, offset, 1, KIND_HEAD, 6))[0] == OTHER
    assert disk.wait(disk.io.read(1, offset, 1, KIND_SLICE, 5))[0] == OTHER


def test_segment_that_is_gone_is_an_error_and_no_more(disk: Disk) -> None:
    disk.write(1, [b"x"])
    assert disk.wait(disk.io.unlink(b"seg-0000000000000001.log"))[0] == 0
    assert disk.read(1, START_BYTES, 1)[0] == errno.ENOENT
    assert disk.scan(1)[0] == errno.ENOENT


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_whatever_byte_changes_nothing_else_is_read(disk: Disk, data: st.DataObject) -> None:
    """Flip a bit or cut the file anywhere: a record is what was written, or is not there."""
    payloads = [pattern(n, n) for n in data.draw(st.lists(st.integers(0, 700), min_size=1, max_size=5))]
    disk.n_segments += 1
    segment = disk.n_segments
    key = data.draw(st.sampled_from([None, KEY]))
    offsets = disk.write(segment, payloads, key)
    content = bytearray(disk.path(segment).read_bytes())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content)))]
    else:
        at = data.draw(st.integers(0, len(content) - 1))
        content[at] ^= 1 << data.draw(st.integers(0, 7))
    disk.path(segment).write_bytes(content)
    n_good = 0
    for offset, payload in zip(offsets, payloads, strict=True):
        error, value = disk.read(segment, offset, len(payload), key)
        assert error < 0 or (error, value) == (0, (DIGEST, payload))
        n_good += error == 0
    _, rows, found, _ = disk.scan(segment)
    assert found.tolist() == offsets[: len(found)]
    assert n_good >= min(len(payloads) - 1, len(found) - 1)
    for record, payload in zip(rows, payloads, strict=False):
        assert record["length"] == len(payload)


def test_record_that_is_larger_than_any_is_not_read(disk: Disk) -> None:
    assert disk.io.read(1, START_BYTES, 1 << 40, KIND_HEAD, 5) == 0


def test_write_that_fails_ends_its_segment(disk: Disk) -> None:
    """Behind a torn record nothing would be found again, so nothing is written there."""
    disk.path(1).write_bytes(b"in the way")
    first = disk.io.write(1, START_BYTES, row(1), b"x")
    second = disk.io.write(1, START_BYTES + space_of(1), row(2), b"y")
    assert disk.wait(first)[0] == errno.EEXIST
    assert disk.wait(second)[0] == errno.ECANCELED
    assert disk.write(2, [b"z"]) == [START_BYTES]


def test_file_is_replaced_as_a_whole(disk: Disk) -> None:
    for parts in ([b"one"], [b"two", b"", b"three" * 1000]):
        assert disk.wait(disk.io.replace(b"checkpoint", parts))[0] == 0
        data = (disk.folder / "checkpoint").read_bytes()
        assert data[:-4] == b"".join(parts)
        assert int.from_bytes(data[-4:], "little") == checksum(data[:-4])
    assert not (disk.folder / "checkpoint.new").exists()


def test_slice_is_read_into_its_object(tmp_path: Path) -> None:
    """Memory of the store is taken for it, given back where another came first, and published only when it is good."""
    plane = Plane(1, 64 << 20, 1 << 20)
    disk = Disk(tmp_path, plane)
    body = pattern((1 << 20) + 1000)
    arguments = (200, b"HTTP/1.1 200 OK\r\n", b"A: b\r\n", b"", b'"x"', -1, 0, 0, 0, 0, 0, False, True)
    source = plane.create(1, len(body), *arguments)
    assert source is not None
    for start in (0, 1 << 20):
        piece = body[start : start + (1 << 20)]
        room = source.room(start, len(piece))
        assert room is not None
        room[:] = piece
        source.commit(start, len(piece))
    at = START_BYTES
    places = []
    for number in (0, 1):
        job = disk.io.write_slice(9, at, row(number + 1, KIND_SLICE, 5, number, len(body)), source, number, KEY)
        assert disk.wait(job)[0] == 0
        length = min(1 << 20, len(body) - (number << 20))
        places.append((at, length))
        at += space_of(length)
    target = plane.create(1, len(body), *arguments)
    assert target is not None
    mapped = plane.memory["mapped"]
    for number, (offset, length) in enumerate(places):
        assert disk.wait(disk.io.read_slice(9, offset, length, DIGEST, 5, target, number, KEY)) == (0, True)
        assert disk.wait(disk.io.read_slice(9, offset, length, DIGEST, 5, target, number, KEY)) == (0, False)
    assert target.is_whole
    assert target.body(len(body)) == body
    assert disk.wait(disk.io.read_slice(9, START_BYTES, 1 << 20, b"e" * 16, 5, target, 0, KEY))[0] == OTHER
    assert disk.io.read_slice(9, START_BYTES, 77, DIGEST, 5, target, 0, KEY) == 0
    flipped = bytearray(disk.path(9).read_bytes())
    flipped[START_BYTES + HEADER_BYTES + 500] ^= 4
    disk.path(9).write_bytes(flipped)
    third = plane.create(1, len(body), *arguments)
    assert third is not None
    assert disk.wait(disk.io.read_slice(9, START_BYTES, 1 << 20, DIGEST, 5, third, 0, KEY))[0] == BAD
    assert third.filled_bytes == 0
    assert plane.memory["outside"] == 0 or disk.io.queued_bytes == 0
    assert disk.io.close()
    assert plane.memory["mapped"] >= mapped
    del source, target, third
    plane.reclaim()


def test_queued_writes_count_against_memory(tmp_path: Path) -> None:
    plane = Plane(1, 64 << 20, 1 << 20)
    before = plane.memory["outside"]
    disk = Disk(tmp_path, plane)
    job = disk.io.write(1, START_BYTES, row(1), bytes(100_000))
    assert plane.memory["outside"] - before >= 100_000
    assert disk.wait(job)[0] == 0
    assert plane.memory["outside"] == before
    assert disk.io.close()


def test_full_disk_is_an_error_of_the_write(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("mounts a small file system")
    import subprocess

    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k,nr_inodes=16", "none", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("no mounts here")
    try:
        disk = Disk(folder)
        job = disk.io.write(1, START_BYTES, row(1), bytes(100_000))
        assert disk.wait(job)[0] == errno.ENOSPC  # a segment that doesn't fit is not begun
        for number in range(2, 30):
            error = disk.wait(disk.io.replace(b"f%d" % number, [b"x"]))[0]
            if error:
                break
        assert error == errno.ENOSPC
        assert disk.io.close()
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def patched(data: bytearray, offset: int, field: str, value: Any) -> None:
    """A header field changed by somebody who knows how sums are made."""
    header = np.frombuffer(data, RECORD_DTYPE, 1, offset)
    header[field] = value
    header["header_crc"] = 0
    header["header_crc"] = checksum(bytes(data[offset : offset + HEADER_BYTES]))


BOUND = [name for name in RECORD_DTYPE.names or () if name not in ("magic", "header_crc", "payload_crc", "tag")]


@pytest.mark.parametrize("field", BOUND)
def test_each_field_of_a_header_is_bound_by_the_seal(disk: Disk, field: str) -> None:
    """Object, slice, generation, segment, sequence, class, times: none can be exchanged with its sums put right."""
    offset = disk.write(1, [b"x" * 500], KEY)[0]
    data = bytearray(disk.path(1).read_bytes())
    known = np.frombuffer(data, RECORD_DTYPE, 1, offset)[field][0]
    other = bytes(16) if isinstance(known, np.void) else int(known) ^ 1
    patched(data, offset, field, np.void(other) if isinstance(other, bytes) else other)
    disk.path(1).write_bytes(data)
    length = 501 if field == "length" else 500
    job = disk.io.read(1, offset, length, KIND_HEAD, 4 if field == "generation" else 5, KEY)
    assert disk.wait(job)[0] != 0


@pytest.mark.parametrize("takes", ["payload", "payload and tag", "all", "all but what the place wants"])
@pytest.mark.parametrize("source", ["same segment", "other segment"])
def test_sealed_records_do_not_change_places(disk: Disk, source: str, takes: str) -> None:
    """Whatever of another record is put into a record's place: it is not that record, and not the other one there."""
    first, second = disk.write(1, [b"a" * 300, b"b" * 300], KEY)
    disk.write(2, [b"c" * 300, b"d" * 300], KEY)
    data = bytearray(disk.path(1).read_bytes())
    donor = data if source == "same segment" else bytearray(disk.path(2).read_bytes())
    record = bytes(donor[second : second + HEADER_BYTES + 300])
    payload = slice(first + HEADER_BYTES, first + HEADER_BYTES + 300)
    if takes.startswith("payload"):
        data[payload] = record[HEADER_BYTES:]
        if takes == "payload and tag":
            np.frombuffer(data, RECORD_DTYPE, 1, first)["tag"] = np.frombuffer(record, RECORD_DTYPE, 1)["tag"]
            patched(data, first, "sequence", 1)
    else:
        data[first : first + len(record)] = record
        if takes != "all":
            patched(data, first, "segment", 1)
            patched(data, first, "sequence", 1)
    disk.path(1).write_bytes(data)
    assert disk.read(1, first, 300, KEY)[0] != 0


def test_a_file_that_holds_keys_is_overwritten_before_it_goes(disk: Disk) -> None:
    """Through another name of the same file one sees what becomes of its bytes."""
    assert disk.wait(disk.io.replace(b"keys", [b"first" * 20], True))[0] == 0
    os.link(disk.folder / "keys", disk.folder / "seen")
    # A file with two names is alive: it is not touched under the second one.
    os.link(disk.folder / "keys", disk.folder / "keys.old")
    assert disk.wait(disk.io.shred(b"keys.old"))[0] == 0
    assert (disk.folder / "keys").read_bytes().startswith(b"first")
    (disk.folder / "seen").unlink()
    descriptor = os.open(disk.folder / "keys", os.O_RDONLY)
    assert disk.wait(disk.io.replace(b"keys", [b"second" * 20], True))[0] == 0
    assert set(os.pread(descriptor, 4096, 0)) == {0}
    os.close(descriptor)
    assert (disk.folder / "keys").read_bytes()[:-4] == b"second" * 20
    assert not (disk.folder / "keys.old").exists()
    assert disk.wait(disk.io.shred(b"is not there"))[0] == 0


@pytest.mark.parametrize("overwrites", [True, False])
def test_a_class_is_wiped_and_the_others_stay(disk: Disk, overwrites: bool) -> None:
    at, places = START_BYTES, []
    for sequence in range(1, 9):
        values = list(row(sequence))
        values[8] = 7 if sequence % 2 else 9
        assert disk.wait(disk.io.write(1, at, tuple(values), b"%d" % sequence * 9000))[0] == 0
        places.append(at)
        at += space_of(9000)
    with disk.path(1).open("ab") as file:
        file.write(b"torn" * 2000)
    assert disk.wait(disk.io.wipe(1, 7, 7, overwrites))[0] == 0
    error, rows, found, _ = disk.scan(1)
    assert (error, found.tolist()) == (0 if overwrites else -1, places)  # what is torn is told, what is blank is not
    for number, (offset, header) in enumerate(zip(places, rows, strict=True), 1):
        is_gone = number in (1, 3, 5)
        assert (int(header["kind"]) == 0) is is_gone
        assert (disk.read(1, offset, 9000)[0] == 0) is not is_gone
    data = disk.path(1).read_bytes()
    assert (b"torn" in data) is not overwrites
    if overwrites:
        assert b"1" * 100 not in data
    assert disk.wait(disk.io.wipe(99, 7, 7, overwrites))[0] == 0  # a segment that is gone
