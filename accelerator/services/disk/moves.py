"""What an evicted segment holds and must not be lost moves to the log's end: heads whose slices lie elsewhere, and all
that is pinned. Decides nothing: the index says what stays."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from accelerator.services.disk.keys import Naming, number_of
from accelerator.store.head import unpack_head
from accelerator.store.index import HEAD, SLICE, Head, Place

if TYPE_CHECKING:
    from accelerator.services.disk.records import Records

RETRY_S = 0.02
RETRIES = 500


class Moves:
    """One after the other: viewers' reads and new slices come between."""

    def __init__(self, log: Records) -> None:
        self._log = log

    async def pinned(self, segment: int) -> bool:
        """Moves what is pinned out of a segment. False: not all of it could be, so the segment has to stay."""
        for head, slices in self._log.index.pinned_in(segment, self._log.pinned):
            found = await self._read(head.place, HEAD, head.generation, 0, None, head.class_id)
            naming = self._naming(head, found[0]) if found is not None else None
            if found is None or naming is None:
                if not self._log.is_usable:
                    return False
                continue  # no record any more, or nobody can open it
            if head.place.segment == segment and not await self._head(head, naming, found[1]):
                return False
            for number, place in slices:
                if not await self._slice(head, naming, number, place):
                    return False
        return True

    async def head(self, head: Head) -> None:
        """One head, as far as it can be."""
        found = await self._read(head.place, HEAD, head.generation, 0, None, head.class_id)
        naming = self._naming(head, found[0]) if found is not None else None
        if found is not None and naming is not None:
            await self._head(head, naming, found[1])

    def _naming(self, head: Head, digest: bytes) -> Naming | None:
        keys = self._log.keys
        class_name = next((name for name in keys.classes if number_of(name) == head.class_id), None)
        if class_name is None and keys.site is not None:
            return None  # erased meanwhile
        return Naming(digest, head.origin_id, class_name or "", head.class_id)

    def _is_current(self, head: Head) -> bool:
        at = self._log.index.heads.at
        return bool(at["generation"][head.row] == head.generation)

    async def _head(self, head: Head, naming: Naming, data: bytes) -> bool:
        if not self._is_current(head):
            return True
        try:
            tags = tuple(map(self._log.keys.tag, unpack_head(data).tags))
        except ValueError:
            return True  # a newer version's
        result: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        queued = self._log.write_head(
            naming, head.variant, head.generation, head.total, data, lambda error, _: _set(result, error), tags=tags
        )
        return queued and await result == 0

    async def _slice(self, head: Head, naming: Naming, number: int, place: Place) -> bool:
        index = self._log.index
        found = await self._read(place, SLICE, head.generation, number, naming.digest, head.class_id)
        if found is None:
            return self._log.is_usable  # it can't be read: lost, and a miss
        if not self._is_current(head) or index.slice_of(head.generation, number) != place:
            return True
        for _ in range(RETRIES):
            result: asyncio.Future[int] = asyncio.get_running_loop().create_future()
            if self._log.write_bytes(
                naming, head.generation, number, head.total, found[1], lambda error, _, to=result: _set(to, error)  # type: ignore[misc]
            ):
                return await result == 0
            if not self._log.is_usable:
                break
            await asyncio.sleep(RETRY_S)  # the queue is full of what viewers have just fetched
        return False

    async def _read(
        self, place: Place, kind: int, generation: int, number: int, digest: bytes | None, class_id: int
    ) -> tuple[bytes, bytes] | None:
        """(digest, payload) of a record; None: it isn't there, or can't be read now."""
        for _ in range(RETRIES):
            result: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
            if self._log.read_record(
                place, kind, generation, number, digest, class_id,
                lambda error, value, to=result: _set(to, None if error else value),  # type: ignore[misc]
            ):  # fmt: skip
                found: tuple[bytes, bytes] | None = await result
                return found
            if not self._log.is_usable:
                break
            await asyncio.sleep(RETRY_S)  # too many reads are under way: viewers' come first
        return None


def _set(result: asyncio.Future[Any], value: Any) -> None:
    if not result.done():
        result.set_result(value)
