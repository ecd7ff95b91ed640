"""The disk tier's log: starts and ends, replays and evicts segments, keeps the index and its checkpoint.

How a record is written and read is records.py's. Knows keys' digests, no HTTP. All runs on the control loop but the
I/O, which has threads of its own.
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
from accelerator.dataplane import RECORD_DTYPE, START_BYTES, DiskIo, DiskKind
from accelerator.services.disk.erase import Eraser
from accelerator.services.disk.files import CHECKPOINT, CLOCK, DiskBusy, Found, in_thread, prepare, segment_file
from accelerator.services.disk.graves import Graves
from accelerator.services.disk.moves import Moves
from accelerator.services.disk.records import Records
from accelerator.store.checkpoint import dump_checkpoint
from accelerator.store.index import Place

if TYPE_CHECKING:
    from accelerator.dataplane import DataPlane

# Written through: what is older than this is on the platter (DESIGN.md section 5 allows 5 s).
SYNC_S = 2.0
CHECKPOINT_S = 60.0
CHECKPOINT_POLL_S = 0.005
# A disk that needs longer to load its index is loaded behind the service, which says that it is well meanwhile.
LOAD_S = 5.0
# Records behind a torn one may have had higher numbers than any that is found.
SEQUENCE_GAP = 1 << 20
APPLIED_AT_ONCE = 1000
BUSY_RETRY_S = 0.2
CLOSE_S = 5.0


class DiskLog(Records):
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
        super().__init__(dataplane, loop, size_bytes, site_key, note)
        self.folder = folder
        self.is_settled = False  # nothing that a health probe should wait for
        self.on_loaded: Callable[[], None] = lambda: None
        self.graves = Graves(self)
        self.eraser = Eraser(self, self.graves)
        self.keeps_time = False  # whether the age of what is here must be known after any start
        self._moves = Moves(self)
        self._site_key = site_key
        self._lock_fd = -1
        self._marked_ns = 0
        self._checkpoint_ns = 0
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

    # -- eviction ------------------------------------------------------------------------------------------------------

    def _make_room(self) -> None:
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

    # -- upkeep --------------------------------------------------------------------------------------------------------

    def _probe(self, done: Callable[[int, int], None]) -> None:
        """Whether the disk takes a file again."""
        if self._io is None:
            if self._lock_fd < 0:
                self.start()
            return
        began_ns = clock.monotonic_ns()
        job = self._io.replace(b"probe", [b"probe"])
        self._waiting[job] = lambda error, _: done(error, clock.monotonic_ns() - began_ns)

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

    def _segment_begun(self) -> None:
        self.save_checkpoint()

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

