"""Erasing a class: its key is dropped and overwritten, then its records lose their names and blocks. Crash-safe: what
was begun is ended after the next start. Decides not what is erased, and touches no memory.

The order: a note in the key file that it is to be erased (from here on a start ends it), tombstone (nothing of it is
found), key file without the key (nothing of it can be read), the records.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from accelerator.errors import AcceleratorError
from accelerator.services.disk.keys import FILE_NAME, Naming, number_of
from accelerator.store.index import CLASS_GONE

if TYPE_CHECKING:
    from accelerator.services.disk.graves import Graves
    from accelerator.services.disk.records import Records


class Eraser:
    def __init__(self, log: Records, graves: Graves) -> None:
        self._log = log
        self._graves = graves
        self._lock = asyncio.Lock()
        self._resuming: asyncio.Task[None] | None = None

    async def erase(self, class_name: str) -> tuple[int, int]:
        """(objects, segments) that there were. Raises AcceleratorError: then it is not, or not wholly, erased."""
        async with self._lock:
            log, number = self._log, number_of(class_name)
            await self._graves.wait_loaded()
            if not log.is_usable:
                raise AcceleratorError("disk", "the disk is not there now: nothing on it is erased")
            log.keys.erasing[number] = log.index.sequence + 1
            await self._save()
            return await self._bury(number, class_name)

    def resume(self) -> None:
        """After a start: what a kill has left undone. Nothing of it is found from here on."""
        for number in self._log.keys.erasing:
            self._graves.bury(CLASS_GONE, Naming(bytes(16), 0, "", number))
        if self._log.keys.erasing:
            self._resuming = asyncio.get_running_loop().create_task(self._resume())

    async def _resume(self) -> None:
        async with self._lock:
            for number in list(self._log.keys.erasing):
                try:
                    await self._bury(number, None)
                except AcceleratorError:
                    return  # the disk is at fault, which is told; after the next start once more

    async def _bury(self, number: int, class_name: str | None) -> tuple[int, int]:
        """(objects, segments) that there were. What has come since the note is erased with the rest."""
        log = self._log
        n_objects = self._graves.bury(CLASS_GONE, Naming(bytes(16), 0, class_name or "", number))
        await self._graves.settle()
        log.keys.drop(number)
        log.keys.erasing[number] = log.index.sequence + 1
        await self._save()
        log.index.forget_rows(number)
        return n_objects, await self._wipe(number)

    async def _wipe(self, number: int) -> int:
        log = self._log
        limit = log.keys.erasing[number]
        segments = sorted(log.index.segments)
        for segment in segments:
            if not log.is_usable:
                raise AcceleratorError("disk", "the disk went away: the rest is erased after the next start")
            # Sealed ones are unreadable already: only unsealed bytes have to be overwritten.
            error, _ = await log.ask(
                lambda io, segment=segment: io.wipe(segment, number, limit, log.keys.site is None)  # type: ignore[misc]
            )
            if error:
                raise AcceleratorError("disk", f"segment {segment}: error {error}: the rest follows at the next start")
        del log.keys.erasing[number]
        await self._save()
        return len(segments)

    async def _save(self) -> None:
        log = self._log
        log.keys.is_changed = False
        error, _ = await log.ask(lambda io: io.replace(FILE_NAME.encode(), [log.keys.dump()], True))
        if error:
            log.keys.is_changed = True
            raise AcceleratorError("disk", f"the keys can't be written (error {error}): not erased")
