"""Records of the disk tier's log: appended to the last segment, read by their place, and the keys they are sealed with.

Knows nothing of starts, checkpoints and eviction: what is owed to those is log.py's, which is told by `_make_room` and
`_segment_begun`. All runs on the control loop but the I/O, which has threads of its own.
"""

from __future__ import annotations

import asyncio
import errno
import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from accelerator import clock
from accelerator.dataplane import SLICE_BYTES, START_BYTES, DiskIo, DiskKind, space_of
from accelerator.services.disk.health import DiskHealth
from accelerator.services.disk.keys import FILE_NAME, DiskKeys, Naming
from accelerator.store.index import HEAD, SLICE, DiskIndex, Head, Place

if TYPE_CHECKING:
    from accelerator.dataplane import DataPlane, StoredObject

SEGMENT_BYTES = 256 << 20
SEGMENT_BYTES_MIN = 4 << 20
# A disk of fewer segments could only be evicted in large pieces.
SEGMENTS_MIN = 8
# Copies of slices that wait for the disk; what comes faster waits as it is, in its object (services/disk/tier.py). They
# are taken from the memory limit for good, so that a burst of them never takes what connections need.
QUEUE_BYTES = 16 << 20
QUEUE_BYTES_MIN = 2 * (SLICE_BYTES + 65536)
READS_MOST = 256

Done = Callable[[int, Any], None]


class Records(ABC):
    """`note(kind, subject, why)` hears of what an operator should know."""

    def __init__(
        self,
        dataplane: DataPlane,
        loop: asyncio.AbstractEventLoop,
        size_bytes: int,
        site_key: bytes | None,
        note: Callable[[str, str, str], None],
    ) -> None:
        self.index = DiskIndex()
        self.keys = DiskKeys.make(site_key)
        self.health = DiskHealth(note, loop, self._probe)
        self.limit_bytes = size_bytes
        self.segment_bytes = max(SEGMENT_BYTES_MIN, min(SEGMENT_BYTES, size_bytes // SEGMENTS_MIN))
        self.segment = 0
        self.is_loaded = False  # the index is: look-ups and writes may come
        self.loaded = asyncio.Event()
        self.pinned: frozenset[int] = frozenset()  # numbers of classes whose objects are never evicted
        self.on_room: Callable[[], None] = lambda: None  # a write is done, or a segment was evicted
        self.counts = dict.fromkeys(("hits", "reads", "writes", "write_drops", "errors", "corrupt", "evictions"), 0)
        self.counts |= dict.fromkeys(("read_bytes", "write_bytes"), 0)
        self._plane = dataplane.plane
        self._loop = loop
        self._note = note
        self._queue_bytes = max(QUEUE_BYTES_MIN, min(QUEUE_BYTES, self._plane.memory["limit"] // 16))
        self._io: DiskIo | None = None
        self._waiting: dict[int, Done] = {}
        self._in_flight: dict[int, Place] = {}
        self._n_reads = 0
        self._offset = 0
        self._salt = b""
        self._is_dirty = False  # what was written is not synced yet
        self._is_changed = False  # the index is not what the checkpoint has

    @property
    def is_usable(self) -> bool:
        return self.is_loaded and self.health.is_ok and self._io is not None

    @abstractmethod
    def _make_room(self) -> None:
        """A segment is wanted, and there is no room for it."""

    @abstractmethod
    def _segment_begun(self) -> None: ...

    @abstractmethod
    def _probe(self, done: Callable[[int, int], None]) -> None:
        """Whether the disk takes a file again."""

    @abstractmethod
    async def write_checkpoint(self) -> int:
        """One of all that is known now; 0 when it is on the disk."""

    # -- writing -------------------------------------------------------------------------------------------------------

    def write_head(
        self, naming: Naming, variant: int, generation: int, total: int, payload: bytes, done: Done | None = None,
        *, tags: tuple[int, ...] = (),
    ) -> bool:  # fmt: skip
        """Queues an object's head; it is found once it is written. False: dropped."""

        def written(place: Place, sequence: int) -> None:
            self.index.put_head(
                naming.key, variant, generation, sequence, total, place, naming.class_id, naming.origin_id, tags,
                len(tags),
            )  # fmt: skip

        def queue(io: DiskIo, place: Place, sequence: int) -> int:
            key = self._saved_key(naming)
            row = self.row(HEAD, naming, variant, generation, len(tags), total, sequence)
            return io.write(place.segment, place.offset, row, payload, key)

        return self.append(len(payload), queue, written, done)

    def write_slice(
        self, naming: Naming, generation: int, number: int, total: int, length: int, stored: StoredObject
    ) -> bool:
        """Queues a copy of a slice that is whole in memory. False: dropped."""

        def written(place: Place, sequence: int) -> None:
            self.index.put_slice(naming.key, generation, number, sequence, place)

        def queue(io: DiskIo, place: Place, sequence: int) -> int:
            row = self.row(SLICE, naming, 0, generation, number, total, sequence)
            key = self._saved_key(naming)
            return io.write_slice(place.segment, place.offset, row, stored, number, key)

        return self.append(length, queue, written, None)

    def write_bytes(
        self, naming: Naming, generation: int, number: int, total: int, payload: bytes, done: Done
    ) -> bool:
        """The same of bytes that were read here: a slice that moves, for which there is always room."""

        def written(place: Place, sequence: int) -> None:
            self.index.put_slice(naming.key, generation, number, sequence, place)

        def queue(io: DiskIo, place: Place, sequence: int) -> int:
            row = self.row(SLICE, naming, 0, generation, number, total, sequence)
            return io.write(place.segment, place.offset, row, payload, self._saved_key(naming))

        return self.append(len(payload), queue, written, done, must=True)

    def can_take(self, length: int) -> bool:
        """Whether records of so many bytes could be queued now; False: `on_room` says when to try again."""
        io = self._io
        space = space_of(length)
        return (
            io is not None
            and self.is_usable
            and io.queued_bytes + space <= self._queue_bytes
            and (self._offset + space <= self.segment_bytes or self._next_segment(must=False))
        )

    def row(
        self, kind: int, naming: Naming, variant: int, generation: int, number: int, total: int, sequence: int
    ) -> tuple[Any, ...]:
        return (
            kind, sequence, naming.digest, variant, generation, number, total, clock.steady_wall_ns(),
            naming.class_id, naming.origin_id, self._salt,
        )  # fmt: skip

    def append(
        self,
        length: int,
        queue: Callable[[DiskIo, Place, int], int],
        written: Callable[[Place, int], None],
        done: Done | None,
        *,
        must: bool = False,
    ) -> bool:
        io = self._io
        space = space_of(length)
        if io is None or not self.is_usable or (io.queued_bytes + space > self._queue_bytes and not must):
            self.counts["write_drops"] += 1
            return False
        if self._offset + space > self.segment_bytes and not self._next_segment(must=must):
            self.counts["write_drops"] += 1
            return False
        place = Place(self.segment, self._offset, length)
        sequence = self.index.sequence + 1
        job = queue(io, place, sequence)
        if job == 0:
            return False
        self.index.sequence = sequence
        self._offset += space
        self.index.segments[self.segment] = self._offset
        self._in_flight[job] = place

        def finished(error: int, value: Any) -> None:
            self._in_flight.pop(job, None)
            if error:
                self.counts["write_drops"] += 1
                if place.offset == START_BYTES:
                    self.index.segments.pop(place.segment, None)  # its file could not be begun, or was removed
                if place.segment == self.segment:
                    self._offset = self.segment_bytes + 1  # what follows a torn record would never be found
                self._failed(error, "write")
            else:
                self.counts["writes"] += 1
                self.counts["write_bytes"] += length
                self._is_dirty = self._is_changed = True
                self.health.worked()
                written(place, sequence)
            if done is not None:
                done(error, value)
            self.on_room()

        self._waiting[job] = finished
        return True

    def _next_segment(self, *, must: bool) -> bool:
        """Begins a segment where there is room for one. False: eviction has yet to make it."""
        has_room = self.index.used_bytes + self.segment_bytes <= self.limit_bytes
        if not has_room:
            self._make_room()
            if not must:
                return False
        self.segment += 1
        self._offset = START_BYTES
        self._salt = os.urandom(16)
        # One segment more than is needed now, so that the next one needn't wait.
        if self.index.used_bytes + 2 * self.segment_bytes > self.limit_bytes:
            self._make_room()
        self._segment_begun()
        return True

    # -- keys ----------------------------------------------------------------------------------------------------------

    def _saved_key(self, naming: Naming) -> bytes | None:
        """A class's key. Its file is queued before what it seals: a kill between them leaves nothing unreadable."""
        key = self.keys.key_of(naming.class_name)
        if self.keys.is_changed:
            self.save_keys()
        return key

    def save_keys(self) -> None:
        if self._io is not None:
            self.keys.is_changed = False
            # What it replaces may hold a key that was dropped.
            job = self._io.replace(FILE_NAME.encode(), [self.keys.dump()], True)
            self._waiting[job] = self._keys_saved

    def _keys_saved(self, error: int, _: Any) -> None:
        if error:
            self.keys.is_changed = True
            self._failed(error, "keys")

    # -- reading -------------------------------------------------------------------------------------------------------

    def read_head(self, head: Head, done: Done) -> bool:
        """Asks for a head: `done(error, (digest, payload))`. False: not now."""
        return self.read_record(head.place, HEAD, head.generation, 0, None, head.class_id, done)

    def read_record(
        self, place: Place, kind: int, generation: int, number: int, digest: bytes | None, class_id: int, done: Done
    ) -> bool:
        """Asks for a head, or for a slice of the key `digest`: `done(error, (digest, payload))`. False: not now."""
        key = self.keys.key_of_number(class_id)
        return self._read(
            lambda io: io.read(place.segment, place.offset, place.length, kind, generation, key, number, digest),
            place, done,
        )  # fmt: skip

    def read_slice(
        self, naming: Naming, generation: int, number: int, place: Place, stored: StoredObject, done: Done
    ) -> bool:
        """Asks for a slice into its object's memory: `done(error, was published)`. False: no memory, or not now."""
        key = self.keys.key_of(naming.class_name)
        return self._read(
            lambda io: io.read_slice(
                place.segment, place.offset, place.length, naming.digest, generation, stored, number, key
            ),
            place, done,
        )  # fmt: skip

    def _read(self, ask: Callable[[DiskIo], int], place: Place, done: Done) -> bool:
        if self._io is None or not self.is_usable or self._n_reads >= READS_MOST:
            return False
        job = ask(self._io)
        if job == 0:
            return False
        self._n_reads += 1

        def finished(error: int, value: Any) -> None:
            self._n_reads -= 1
            if error:
                self._failed(error, "read")
            else:
                self.counts["reads"] += 1
                self.counts["read_bytes"] += place.length
                self.health.worked()
            done(error, value)

        self._waiting[job] = finished
        return True

    # -- what the I/O answers ------------------------------------------------------------------------------------------

    async def ask(self, ask: Callable[[DiskIo], int]) -> tuple[int, Any]:
        assert self._io is not None
        result: asyncio.Future[tuple[int, Any]] = self._loop.create_future()

        def done(error: int, value: Any) -> None:
            if not result.done():
                result.set_result((error, value))

        self._waiting[ask(self._io)] = done
        return await result

    def _on_bell(self) -> None:
        if self._io is None:
            return
        for job, _, error, value, took_ns in self._io.take():
            self.health.took(took_ns)
            done = self._waiting.pop(job, None)
            if done is not None:
                done(error, value)

    def _failed(self, error: int, what: str) -> None:
        # Behind a write that has failed and was counted; a segment that was evicted meanwhile.
        if error == errno.ECANCELED or (error == errno.ENOENT and what == "read"):
            return
        if error < 0:
            self.counts["corrupt"] += 1
            self._note("disk-corrupt", "a record on the disk is not what was written", DiskKind.name_of(error))
            return
        self.counts["errors"] += 1
        if error == errno.ENOSPC and len(self.index.segments) > 1:
            # Others fill the file system: the tier gives way, to nine tenths of what it has (reliability.md, row 9).
            self.limit_bytes = max(2 * self.segment_bytes, self.index.used_bytes * 9 // 10)
            self._make_room()
            self._note("disk-full", "the file system of the cache is full", "the tier keeps less until a restart")
            return
        self.health.failed(error, what)
