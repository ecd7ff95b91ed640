"""The disk tier's log: appends records, reads them, evicts and replays segments, keeps the index and its checkpoint.

Knows records and keys' digests, no HTTP. All runs on the control loop but the I/O, which has threads of its own.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from accelerator import clock
from accelerator.dataplane import RECORD_DTYPE, SLICE_BYTES, START_BYTES, DiskIo, DiskKind, space_of
from accelerator.services.disk.erase import Eraser
from accelerator.services.disk.files import CHECKPOINT, CLOCK, DiskBusy, Found, in_thread, prepare, segment_file
from accelerator.services.disk.graves import Graves
from accelerator.services.disk.health import DiskHealth
from accelerator.services.disk.keys import FILE_NAME, DiskKeys, Naming
from accelerator.services.disk.moves import Moves
from accelerator.store.checkpoint import dump_checkpoint
from accelerator.store.index import HEAD, SLICE, DiskIndex, Head, Place

if TYPE_CHECKING:
    from accelerator.dataplane import DataPlane, StoredObject

# Written through: what is older than this is on the platter (DESIGN.md section 5 allows 5 s).
SYNC_S = 2.0
CHECKPOINT_S = 60.0
CHECKPOINT_POLL_S = 0.005
SEGMENT_BYTES = 256 << 20
SEGMENT_BYTES_MIN = 4 << 20
# A disk of fewer segments could only be evicted in large pieces.
SEGMENTS_MIN = 8
# Copies of slices that wait for the disk; what comes faster waits as it is, in its object (services/disk/tier.py). They
# are taken from the memory limit for good, so that a burst of them never takes what connections need.
QUEUE_BYTES = 16 << 20
QUEUE_BYTES_MIN = 2 * (SLICE_BYTES + 65536)
READS_MOST = 256
# A disk that needs longer to load its index is loaded behind the service, which says that it is well meanwhile.
LOAD_S = 5.0
# Records behind a torn one may have had higher numbers than any that is found.
SEQUENCE_GAP = 1 << 20
APPLIED_AT_ONCE = 1000
BUSY_RETRY_S = 0.2
CLOSE_S = 5.0

Done = Callable[[int, Any], None]


class DiskLog:
    """`folder`: the tier's own. `note(kind, subject, why)` hears of what an operator should know."""

    def __init__(
        self,
        dataplane: DataPlane,
        loop: asyncio.AbstractEventLoop,
        folder: Path,
        size_bytes: int,
        site_key: bytes | None,
        note: Callable[[str, str, str], None],
    ) -> None:
        self.folder = folder
        self.index = DiskIndex()
        self.keys = DiskKeys.make(site_key)
        self._queue_bytes = max(QUEUE_BYTES_MIN, min(QUEUE_BYTES, dataplane.plane.memory["limit"] // 16))
        self.on_room: Callable[[], None] = lambda: None  # a write is done, or a segment was evicted
        self.health = DiskHealth(note, loop, self._probe)
        self.limit_bytes = size_bytes
        self.segment_bytes = max(SEGMENT_BYTES_MIN, min(SEGMENT_BYTES, size_bytes // SEGMENTS_MIN))
        self.is_loaded = False  # the index is: look-ups and writes may come
        self.is_settled = False  # nothing that a health probe should wait for
        self.on_loaded: Callable[[], None] = lambda: None
        self.loaded = asyncio.Event()
        self.graves = Graves(self)
        self.eraser = Eraser(self)
        self.pinned: frozenset[int] = frozenset()  # numbers of classes whose objects are never evicted
        self._moves = Moves(self)
        self.counts = dict.fromkeys(("hits", "reads", "writes", "write_drops", "errors", "corrupt", "evictions"), 0)
        self.counts |= dict.fromkeys(("read_bytes", "write_bytes"), 0)
        self._site_key = site_key
        self._plane = dataplane.plane
        self._loop = loop
        self._note = note
        self._io: DiskIo | None = None
        self._lock_fd = -1
        self._waiting: dict[int, Done] = {}
        self._in_flight: dict[int, Place] = {}
        self._n_reads = 0
        self.segment = 0
        self._offset = 0
        self._salt = b""
        self._is_dirty = False
        self._is_changed = False
        self._checkpoint_ns = 0
        self.keeps_time = False  # whether the age of what is here must be known after any start
        self._marked_ns = 0
        self._is_checkpointing = False
        self._checkpoint_error = 0
        self._timer: asyncio.TimerHandle | None = None
        self._opening: asyncio.Task[None] | None = None
        self._overdue: asyncio.TimerHandle | None = None
        self._evicting: asyncio.Task[None] | None = None

    # -- life ----------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Loads behind the service; until `is_loaded`, nothing is found and nothing is written."""
        self._opening = self._loop.create_task(self._open())
        self._overdue = self._loop.call_later(LOAD_S, self._load_late)

    def _load_late(self) -> None:
        if not self.is_settled:
            self.is_settled = True
            self._note("disk-slow", "the disk's index is not loaded yet: memory and origins serve on", "it goes on")

    @property
    def is_usable(self) -> bool:
        return self.is_loaded and self.health.is_ok and self._io is not None

    async def _open(self) -> None:
        while True:
            try:
                found = await in_thread(self._loop, lambda: prepare(self.folder, self._site_key))
                break
            except DiskBusy:
                self.is_settled = True  # the predecessor has it until it has drained
                await asyncio.sleep(BUSY_RETRY_S)
            except OSError as fault:
                self.is_settled = True
                self.health.failed(fault.errno or errno.EIO, "open")
                self.health.put_aside("the disk can't be opened")
                return
            except Exception as fault:
                self.is_settled = True
                self._note("disk-aside", "the disk tier could not start", type(fault).__name__)
                raise
        self._lock_fd = found.lock_fd
        self.keys = found.keys
        if found.note:
            self._note("disk-rebuilt", "the disk index is made anew", found.note)
        make = lambda: DiskIo(str(self.folder), self._plane, 2, self.segment_bytes, self._queue_bytes)  # noqa: E731
        self._io = await in_thread(self._loop, make)
        self._loop.add_reader(self._io.bell_fd, self._on_bell)
        for name in found.unwanted:
            self._io.unlink(name.encode())
        for name in found.secret:
            self._io.shred(name.encode())
        self.is_settled |= found.index is None
        await self._replay(found)
        self.segment = max([0, found.covered[0], *found.segments, *self.index.segments])
        self._offset = self.segment_bytes + 1  # the next record begins a segment: an old one is never written to again
        self.index.sequence += SEQUENCE_GAP
        self._look_at_clock(found.latest_wall_ns)
        self.is_loaded = self.is_settled = True
        self.on_loaded()
        self.loaded.set()
        self.eraser.resume()
        self._checkpoint_ns = clock.monotonic_ns()
        if self.keys.is_changed:
            self.save_keys()
        self._tick()

    async def _replay(self, found: Found) -> None:
        """What the log says behind the checkpoint; all of it, where there is none."""
        if found.index is not None:
            self.index = found.index
            self.index.keep_segments(set(found.segments))
        first, offset = found.covered
        is_damaged = False
        for segment in sorted(found.segments):
            if found.index is not None and segment < first:
                continue
            start = offset if found.index is not None and segment == first else 0
            error, value = await self.ask(lambda io, s=segment, o=start: io.scan(s, o))  # type: ignore[misc]
            rows, offsets, end = value
            is_damaged |= error != 0
            if error > 0:
                self._failed(error, "scan")
            records = np.frombuffer(rows, RECORD_DTYPE)
            places = np.frombuffer(offsets, "u8")
            self.index.segments[segment] = max(end, START_BYTES, self.index.segments.get(segment, 0))
            for at in range(0, len(records), APPLIED_AT_ONCE):
                self.index.apply(records[at : at + APPLIED_AT_ONCE], places[at : at + APPLIED_AT_ONCE])
                await asyncio.sleep(0)
        if (found.index is None and found.segments) or is_damaged:
            # A purge may be told of in what can't be read.
            self.index.suspect_below = self.index.sequence + 1
        if is_damaged:
            self._note("disk-corrupt", "records on the disk are not what was written", "all is validated before use")

    def _look_at_clock(self, latest_wall_ns: int) -> None:
        """A clock that was set back says of nothing how old it is."""
        now_ns = clock.steady_wall_ns()
        latest_wall_ns = max(latest_wall_ns, self.index.latest_wall_ns)
        if now_ns < latest_wall_ns:
            self.index.suspect_below = self.index.sequence + 1
            behind_s = (latest_wall_ns - now_ns) // 1_000_000_000
            self._note("disk-clock", "the clock is behind what the disk was written at", f"by {behind_s:,} s at least")
        self.index.latest_wall_ns = now_ns  # else a clock that once was wrong would be believed for ever

    def _mark_time(self) -> None:
        """From time to time, where age counts (max_offline): an hour without a record is an hour nevertheless."""
        if self._io is not None and self.keeps_time:
            self._marked_ns = clock.monotonic_ns()
            mark = clock.steady_wall_ns().to_bytes(8, "little")
            self._waiting[self._io.replace(CLOCK.encode(), [mark])] = lambda error, _: None

    async def close(self) -> None:
        """What waits is written, the checkpoint too, as far as the disk answers in time."""
        if self._opening is not None and not self._opening.done():
            self._opening.cancel()
        for timer in (self._timer, self._overdue):
            if timer is not None:
                timer.cancel()
        self.health.stop()
        was_loaded, self.is_loaded = self.is_loaded, False
        if self._io is not None:
            if was_loaded and self.health.is_ok:
                end_ns = clock.monotonic_ns() + int(CLOSE_S * 1e9)
                while self._in_flight and clock.monotonic_ns() < end_ns:
                    await asyncio.sleep(0.01)
                self._io.sync()
                self._mark_time()
                self.save_checkpoint()
                while self._is_checkpointing and clock.monotonic_ns() < end_ns:
                    await asyncio.sleep(0.01)
            self._loop.remove_reader(self._io.bell_fd)
            await asyncio.to_thread(self._io.close, CLOSE_S)
            self._io = None
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

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

    def _saved_key(self, naming: Naming) -> bytes | None:
        """A class's key. Its file is queued before what it seals: a kill between them leaves nothing unreadable."""
        key = self.keys.key_of(naming.class_name)
        if self.keys.is_changed:
            self.save_keys()
        return key

    def _next_segment(self, *, must: bool) -> bool:
        """Begins a segment where there is room for one. False: eviction has yet to make it."""
        has_room = self.index.used_bytes + self.segment_bytes <= self.limit_bytes
        if not has_room:
            self._evict()
            if not must:
                return False
        self.segment += 1
        self._offset = START_BYTES
        self._salt = os.urandom(16)
        # One segment more than is needed now, so that the next one needn't wait.
        if self.index.used_bytes + 2 * self.segment_bytes > self.limit_bytes:
            self._evict()
        self.save_checkpoint()
        return True

    # -- eviction ------------------------------------------------------------------------------------------------------

    def _evict(self) -> None:
        if self._evicting is None or self._evicting.done():
            self._evicting = self._loop.create_task(self._evict_one())

    async def _evict_one(self) -> None:
        segment = self.index.least_useful(but=self.segment, pinned=self.pinned)
        if segment is None:
            return
        for head in self.index.heads_to_keep(segment):
            await self._moves.head(head)
        if not await self._moves.pinned(segment):
            return
        if not await self.graves.move(self.index.tombstones_to_keep(segment)):
            return  # it stays until the next time: what was purged must not come back
        self.index.drop_segment(segment)
        self.index.forget_tombstones()
        self.index.decay()
        self.counts["evictions"] += 1
        self._is_changed = True
        if self._io is not None:
            self._waiting[self._io.unlink(segment_file(segment).encode())] = self._unlinked
        self.on_room()

    def _unlinked(self, error: int, _: Any) -> None:
        if error:
            self._failed(error, "unlink")

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

    # -- inside --------------------------------------------------------------------------------------------------------

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
            self._evict()
            self._note("disk-full", "the file system of the cache is full", "the tier keeps less until a restart")
            return
        self.health.failed(error, what)

    def _probe(self, done: Callable[[int, int], None]) -> None:
        """Whether the disk takes a file again."""
        if self._io is None:
            if self._lock_fd < 0:
                self.start()
            return
        began_ns = clock.monotonic_ns()
        job = self._io.replace(b"probe", [b"probe"])
        self._waiting[job] = lambda error, _: done(error, clock.monotonic_ns() - began_ns)

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

    @property
    def is_settling(self) -> bool:
        """Whether anything is being written."""
        return bool(self._in_flight) or self._is_checkpointing

    def save_checkpoint(self) -> None:
        if self._io is None or self._is_checkpointing or not self.health.is_ok:
            return
        covered = next(iter(self._in_flight.values()), Place(self.segment, self._offset, 0))
        self.index.latest_wall_ns = clock.steady_wall_ns()
        parts = dump_checkpoint(self.index, covered.segment, covered.offset)
        self._is_checkpointing, self._is_changed = True, False
        self._checkpoint_ns = clock.monotonic_ns()
        self._waiting[self._io.replace(CHECKPOINT.encode(), parts)] = self._checkpoint_saved

    def _checkpoint_saved(self, error: int, _: Any) -> None:
        self._is_checkpointing = False
        self._checkpoint_error = error
        if error:
            self._failed(error, "checkpoint")

    async def write_checkpoint(self) -> int:
        """One of all that is known now; 0 when it is on the disk."""
        while self._is_checkpointing:
            await asyncio.sleep(CHECKPOINT_POLL_S)
        self._checkpoint_error = errno.EIO
        self.save_checkpoint()
        while self._is_checkpointing:
            await asyncio.sleep(CHECKPOINT_POLL_S)
        return self._checkpoint_error

    def _tick(self) -> None:
        self._timer = self._loop.call_later(SYNC_S, self._tick)
        if self._io is None or not self.health.is_ok:
            return
        self.graves.pay()
        self.on_room()
        if self._is_dirty:
            self._is_dirty = False
            segment = self.segment
            self._waiting[self._io.sync()] = lambda error, _: self._synced(error, segment)
        if self._is_changed and clock.monotonic_ns() - self._checkpoint_ns > CHECKPOINT_S * 1e9:
            self.save_checkpoint()
        if clock.monotonic_ns() - self._marked_ns > CHECKPOINT_S * 1e9:
            self._mark_time()

    def _synced(self, error: int, segment: int) -> None:
        """What a failed sync covered is gone: the kernel has dropped it, whatever reads of it say now."""
        if error:
            self._failed(error, "sync")
            self.graves.segment_lost(segment)
            self.index.drop_segment(segment)
            self.graves.has_unmarked = True
            if segment == self.segment:
                self._offset = self.segment_bytes + 1

    def figures(self) -> dict[str, int]:
        return {
            "disk_bytes": self.index.used_bytes,
            "disk_limit_bytes": self.limit_bytes,
            "disk_objects": self.index.n_objects,
            "disk_index_bytes": self.index.memory_bytes,
            "disk_queued_bytes": self._io.queued_bytes if self._io is not None else 0,
            **{f"disk_{name}": value for name, value in self.counts.items()},
        }


def _name(error: int) -> str:
    return os.strerror(error) if error > 0 else DiskKind.name_of(error)

