"""What purges leave in the disk tier's log, so that what was purged is not found again: tombstones. Reads no body.

A tombstone is owed until it is written, and moves on when its segment goes while an older one
stays. Who purges waits for the sync.
"""

from __future__ import annotations

import asyncio
import errno
from typing import TYPE_CHECKING, Any

from accelerator.errors import AcceleratorError
from accelerator.services.disk.keys import Naming
from accelerator.store.index import CLASS_GONE, GONE, ORIGIN_GONE, Head, Place, Tombstone

if TYPE_CHECKING:
    from accelerator.dataplane import DiskIo
    from accelerator.services.disk.records import Records

# How long who purges waits for the disk: an operator gets an answer even where it hangs.
SETTLE_S = 10.0


class Graves:
    def __init__(self, log: Records) -> None:
        self._log = log
        # (kind, number) -> what it names, and the sequence below which it holds (0: all before it is written)
        self.owed: dict[tuple[int, int], tuple[Naming, int]] = {}
        # The index has let go of what is still in the log, without a mark there: a purge would not meet it.
        self.has_unmarked = False

    def drop(self, head: Head) -> None:
        """A head that can't be read. Its record may be found again: see `settle`."""
        self._log.index.remove(head.row)
        self.has_unmarked = True

    def bury(self, kind: int, naming: Naming) -> int:
        """Takes a key (GONE), or all of an origin or a class, out at once; how many objects there were. `settle` says
        when it would survive a power cut."""
        if not self._log.is_loaded:
            return 0
        number = {GONE: naming.key, ORIGIN_GONE: naming.origin_id, CLASS_GONE: naming.class_id}[kind]
        gone = self._log.index.bury(kind, number, naming.digest, self._log.index.sequence + 1, self._log.segment)
        self.owed[(kind, number)] = (naming, 0)
        self.pay()
        return gone

    async def settle(self) -> None:
        """Returns when all that was buried is on the disk. Raises AcceleratorError where the disk doesn't take it: what
        was purged might be back after a restart.

        So might be what the index has let go of and a purge did not meet: then a checkpoint is written, so that no
        replay finds it again."""
        for _ in range(3):  # a write that fails ends its segment, and what was in it is owed once more
            self.pay()
            if not self._log.is_usable or await self._sync() or self.owed or await self._forget_unmarked():
                continue
            return
        raise AcceleratorError("disk", "purged, but the disk does not take it down yet: it will be written later")

    async def _forget_unmarked(self) -> int:
        """An errno; 0: what the index doesn't have, no start finds."""
        if not self.has_unmarked:
            return 0
        self.has_unmarked = False
        error = await self._log.write_checkpoint()
        self.has_unmarked |= error != 0
        return error

    async def quiesce(self) -> None:
        """Returns when all that was queued before is in the index. Raises AcceleratorError."""
        if self._log.is_usable and await self._sync() == errno.ETIMEDOUT:
            raise AcceleratorError("disk", "the disk does not answer: purged from memory only, try again")

    async def wait_loaded(self) -> None:
        """Returns when the index is there, or the disk is put aside. Raises AcceleratorError where that takes long."""
        if self._log.is_loaded or not self._log.health.is_ok:
            return
        try:
            async with asyncio.timeout(SETTLE_S):
                await self._log.loaded.wait()
        except TimeoutError:
            raise AcceleratorError(
                "disk", "purged from memory; the disk tier is loading, and follows when it has: try again"
            ) from None

    async def _sync(self) -> int:
        """An errno; 0: all that was queued before is on the disk."""
        try:
            async with asyncio.timeout(SETTLE_S):
                error, _ = await self._log.ask(lambda io: io.sync())
        except TimeoutError:
            return errno.ETIMEDOUT
        return error

    def pay(self) -> None:
        """Writes the marks that are owed."""
        for (kind, number), (naming, moved_limit) in list(self.owed.items()):
            del self.owed[(kind, number)]
            if not self._bury(kind, naming, number, moved_limit):
                self.owed[(kind, number)] = (naming, moved_limit)
                return

    def _bury(self, kind: int, naming: Naming, number: int, moved_limit: int) -> bool:
        """`moved_limit`: of a mark that is moved; 0: all that was written before this."""

        def written(place: Place, sequence: int) -> None:
            self._log.index.bury(kind, number, naming.digest, moved_limit or sequence, place.segment)

        def queue(io: DiskIo, place: Place, sequence: int) -> int:
            row = self._log.row(kind, naming, 0, moved_limit or sequence, 0, 0, sequence)
            return io.write(place.segment, place.offset, row, b"")

        def done(error: int, _: Any) -> None:
            if error:
                self.owed[(kind, number)] = (naming, moved_limit)

        return self._log.append(0, queue, written, done, must=True)

    async def move(self, stones: list[Tombstone]) -> bool:
        """To the log's end, and onto the platter: what they bury must not be found again. False: not all of them."""
        for stone in stones:
            naming = _naming_of(stone)
            if not self._bury(stone.kind, naming, stone.key, stone.limit):
                self.owed[(stone.kind, stone.key)] = (naming, stone.limit)
        return not stones or (await self._sync() == 0 and not self.owed)

    def segment_lost(self, segment: int) -> None:
        """What was written there may not be on the platter: it is owed again."""
        for stone in self._log.index.tombstones.values():
            if stone.segment == segment:
                self.owed[(stone.kind, stone.key)] = (_naming_of(stone), stone.limit)


def _naming_of(stone: Tombstone) -> Naming:
    """What a tombstone's record names."""
    origin_id = stone.key if stone.kind == ORIGIN_GONE else 0
    return Naming(stone.digest or bytes(16), origin_id, "", stone.key if stone.kind == CLASS_GONE else 0)
