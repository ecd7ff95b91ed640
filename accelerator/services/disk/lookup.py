"""One key that is looked for on the disk for those who wait for it. Knows what is read in which order, no policy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from accelerator.dataplane import SLICE_BYTES
from accelerator.store.head import DiskHead, unpack_head

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from accelerator.dataplane import Exchange, StoredObject
    from accelerator.services.disk.keys import Naming
    from accelerator.services.disk.log import DiskLog
    from accelerator.services.objects.remembered import Key
    from accelerator.services.origins.origins import Origin
    from accelerator.store.index import Head


class Tier(Protocol):
    """Who asked for it (tier.py): what is found goes there, and from there to those who wait."""

    log: DiskLog

    def find(self, key: Key) -> list[StoredObject]: ...
    def restore(
        self, head: Head, naming: Naming, origin: Origin, key: bytes, found: DiskHead
    ) -> StoredObject | None: ...
    def has(self, stored: StoredObject, offset: int) -> bool: ...
    def want(self, stored: StoredObject, offset: int) -> bool: ...
    def answer(self, key: Key, *, is_restored: bool, go_on: Callable[[Exchange], None]) -> None: ...


class LookUp:
    """One key that is looked for on the disk: all its variants are read, then those who wait look again."""

    def __init__(
        self, tier: Tier, key: Key, naming: Naming, origin: Origin, n_heads: int, first: int,
        go_on: Callable[[Exchange], None],
    ) -> None:  # fmt: skip
        self.timer: asyncio.TimerHandle | None = None
        self._tier = tier
        self._key = key
        self._naming = naming
        self._origin = origin
        self._n_heads = n_heads
        self._first = max(0, first)
        self._go_on = go_on
        self._restored: list[StoredObject] = []
        self._is_over = False

    def late(self) -> None:
        self._tier.log.health.late()
        self._end()

    def head_read(self, head: Head, error: int, value: Any) -> None:
        index = self._tier.log.index
        found = unpacked(value[1]) if value is not None else None
        written = self._tier.log.keys.written(self._key[1])
        is_it = found is not None and value[0] == self._naming.digest and found.key == written
        if error and index.is_current(self._naming.key, head.generation):
            self._tier.log.graves.drop(head)
        if found is None or not is_it or self._is_over or not self._is_wanted(head, found):
            self._one_less()
            return
        stored = self._tier.restore(head, self._naming, self._origin, self._key[1], found)
        if stored is None:
            self._one_less()
            return
        index.touch(head.row)
        if stored.is_strong or found.total_length == 0:
            self._list(head, stored, found)
            return
        place = index.slice_of(head.generation, 0)

        def done(error: int, was_published: Any) -> None:
            if was_published and self._is_wanted(head, found):
                self._list(head, stored, found)
            else:
                self._one_less()

        if place is None or not self._tier.log.read_slice(self._naming, head.generation, 0, place, stored, done):
            self._one_less()

    def _is_wanted(self, head: Head, found: DiskHead) -> bool:
        """Still what the index says: it may have been purged, or replaced, while it was read."""
        return (
            self._tier.log.index.is_current(self._naming.key, head.generation)
            and found.origin == self._origin.name
            and found.total_length == head.total
        )

    def _list(self, head: Head, stored: StoredObject, found: DiskHead) -> None:
        vary = (found.vary, found.vary_values)
        # What the origin has sent since is newer (RFC 9111 section 4), however long the disk took.
        has_newer = any(other.vary == vary for other in self._tier.find(self._key))
        if self._is_over or has_newer or not stored.insert_as(self._key[1], *vary):
            self._one_less()
            return
        n_slices = -(-found.total_length // SLICE_BYTES)
        if head.n_slices >= n_slices:
            stored.finish(found.total_length)
            stored.mark_on_disk()
        self._restored.append(stored)
        first = self._first - self._first % SLICE_BYTES
        if stored.is_strong and first < found.total_length and self._tier.has(stored, first):
            stored.mark_wanted(first // SLICE_BYTES)
            self._tier.want(stored, first)
        self._one_less()

    def _one_less(self) -> None:
        self._n_heads -= 1
        if self._n_heads == 0:
            self._end()

    def _end(self) -> None:
        if self._is_over:
            return
        self._is_over = True
        if self.timer is not None:
            self.timer.cancel()
        self._tier.answer(self._key, is_restored=bool(self._restored), go_on=self._go_on)


def unpacked(payload: bytes) -> DiskHead | None:
    try:
        return unpack_head(payload)
    except ValueError:
        return None
