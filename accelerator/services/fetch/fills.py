"""The fills under way, and wants: readers at a slice that is not there, who join a fill or get one of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from accelerator import clock
from accelerator.dataplane import SLICE_BYTES
from accelerator.protocols.representation import selected_etag
from accelerator.services.fetch.fill import Fill
from accelerator.services.objects.heads import split_lines

if TYPE_CHECKING:
    from collections.abc import Callable

    from accelerator.dataplane import DataPlane, StoredObject
    from accelerator.services.disk.tier import DiskTier
    from accelerator.services.origins.request import UpstreamRequest

STREAM_LOOKS = 20


class Fills:
    """All fills under way, by object. `note_failure(fill)` hears of those that broke off."""

    def __init__(self, dataplane: DataPlane, note_failure: Callable[[Fill], None]) -> None:
        self._dataplane = dataplane
        self._plane = dataplane.plane
        self._note_failure = note_failure
        self._n_looks = 0
        self.disk: DiskTier | None = None
        self._by_object: dict[StoredObject, list[Fill]] = {}

    def begun(self, fill: Fill) -> None:
        self._by_object.setdefault(fill.stored, []).append(fill)

    def over(self, fill: Fill) -> None:
        fills = self._by_object.get(fill.stored)
        if fills is not None and fill in fills:
            fills.remove(fill)
            if not fills:
                del self._by_object[fill.stored]
        if fill.error is not None:
            self._note_failure(fill)

    @property
    def pinned_bytes(self) -> int:
        return sum(fill.pinned_bytes for fill in self._all())

    def nudge(self, stored: StoredObject) -> None:
        for fill in list(self._by_object.get(stored, ())):
            fill.nudge()

    def await_whole(self, stored: StoredObject) -> None:
        """The control plane reads it once it is whole: it is filled although no viewer reads it."""
        for fill in self._by_object.get(stored, ()):
            fill.is_awaited = True
            fill.nudge()

    def look_around(self) -> None:
        now_ns = clock.monotonic_ns()
        self._n_looks += 1
        for fill in self._all():
            # Thousands of streams may be silent: looking at each twenty times a second would cost a tenth of a core.
            if not fill.is_stream or self._n_looks % STREAM_LOOKS == 0:
                fill.look_around(now_ns)

    def stop(self) -> None:
        for fill in self._all():
            fill.stop()

    def _all(self) -> list[Fill]:
        return [fill for fills in self._by_object.values() for fill in fills]

    def want(self, stored: StoredObject, offset: int, last: int, source: UpstreamRequest) -> None:
        """A reader of `stored` waits at `offset`, and its response ends with byte `last` (negative: with the body)."""
        start = offset - offset % SLICE_BYTES
        start += stored.has_bytes(start)
        # It came while the want was on its way. A stream has dropped what stands before it, so its own place counts.
        if start > offset or stored.has_bytes(offset):
            stored.forget_want()
            return
        for fill in self._by_object.get(stored, ()):
            if fill.serves(offset):
                fill.wanted(offset)
                return
            if not stored.is_strong and fill.is_passed(offset):
                stored.forget_want()
                return
        if self.disk is not None and start % SLICE_BYTES == 0 and self.disk.want(stored, start):
            return
        total = stored.total_length
        etag = selected_etag(split_lines(stored.lines()))
        if not stored.is_strong or etag is None or not 0 <= start < total:
            stored.fail()
            return
        end = self._missing_end(stored, start, total, last)
        fill = Fill(
            self._dataplane, stored, start, end, is_private=False, etag=etag, source=source, ended=self.over,
            keeper=self.disk,
        )  # fmt: skip
        self.begun(fill)
        fill.ask()

    def _missing_end(self, stored: StoredObject, start: int, total: int, last: int) -> int:
        """The end: a slice after the viewer's last byte at most, where bytes are there again, or the body's own."""
        end = total
        if last >= start:
            end = min(total, last - last % SLICE_BYTES + SLICE_BYTES)
        position = start - start % SLICE_BYTES + SLICE_BYTES
        while position < end:
            if stored.has_bytes(position) or (self.disk is not None and self.disk.has(stored, position)):
                return position
            position += SLICE_BYTES
        return end
