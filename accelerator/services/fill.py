"""A fill: one upstream body on its way into an object: back-pressure, resume, end. Decides nothing on storing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from accelerator.errors import OriginError
from accelerator.protocols.representation import ContentRange, partial_range, selected_etag

if TYPE_CHECKING:
    from accelerator.dataplane import DataPlane, StoredObject
    from accelerator.io.origin import Upstream
    from accelerator.io.response import Response
    from accelerator.io.upstream import Call

# How far a fill may run ahead of its furthest reader before it pauses: at 60 ms and 1 Gbit/s the path itself holds
# 7.5 MB, so that less would halve the rate. A private body is kept only until it is sent.
WINDOW_BYTES = 8 << 20
PRIVATE_WINDOW_BYTES = 1 << 20
# What is still worth fetching for the cache when the last reader has left.
FINISH_BYTES = 16 << 20
MEMORY_RETRY_S = 0.005
SPILL_BYTES = 65536


class Fill:
    """Writes body bytes from `offset` on into `stored`; `end` exclusive, None: to the body's end.

    `resume(offset, sink, avoid)` asks the origin again from there on, and returns the call, or None where that is not
    possible. `ended(fill)` is called once, after the last byte or for good.
    """

    def __init__(
        self,
        dataplane: DataPlane,
        stored: StoredObject,
        offset: int,
        end: int | None,
        *,
        is_private: bool,
        received: Callable[[int], None],
        ended: Callable[[Fill], None],
        resume: Callable[[int, Any, Upstream | None], Call | None] | None = None,
    ) -> None:
        self.stored = stored
        self.offset = offset
        self.end = end
        self.call: Call | None = None
        self.is_over = False
        self.error: OriginError | None = None
        self.etag: bytes | None = None
        self._plane = dataplane.plane
        self._loop = asyncio.get_running_loop()
        self._is_private = is_private
        self._received = received
        self._ended = ended
        self._resume = resume
        self._upstream: Upstream | None = None
        self._is_paused = False
        self._has_resumed = False
        self._is_spilling = False
        self._spill = bytearray()
        self._spill_room: bytearray | None = None
        self._at_end: Callable[[], None] | None = None
        stored.begin_fill()

    # -- the sink of an upstream call ----------------------------------------------------------------------------------

    def head_received(self, response: Response, upstream: Upstream) -> None:
        """Of a resumed or wanted part only: it must be exactly the rest (RFC 9110 section 15.3.7.3)."""
        self._upstream = upstream
        if not continues(response, self.offset, self.etag, self.stored.total_length):
            self._give_up(OriginError("changed", "the origin's content has changed while it was being sent"))

    def started(self, upstream: Upstream) -> None:
        """The first response's head has been dealt with elsewhere."""
        self._upstream = upstream

    def get_buffer(self, size_hint: int) -> memoryview:
        """Memory of the object itself; where there is none just now, a buffer of our own, and the origin is paused."""
        if not self._spill:
            room: memoryview | None = self.stored.room(self.offset, max(size_hint, 1))
            if room is not None:
                self._is_spilling = False
                return room
        self._is_spilling = True
        if self._spill_room is None:
            self._spill_room = bytearray(SPILL_BYTES)
        return memoryview(self._spill_room)

    def bytes_received(self, n: int) -> None:
        self._received(n)
        if self._is_spilling:
            assert self._spill_room is not None
            self._spill += self._spill_room[:n]
            self._pause()
            self._drain_spill()
            return
        self.stored.commit(self.offset, n)
        self.offset += n
        self._regulate()

    def ended(self) -> None:
        if self._spill:
            self._at_end = self._finish
            self._drain_spill()
            return
        self._finish()

    def failed(self, error: OriginError, received_any: bool) -> None:
        """The transfer broke: once more by Range and If-Range, at another upstream first (DESIGN.md section 5)."""
        if self.is_over:
            return
        self.error = error
        if self._spill:
            self._spill.clear()  # not committed: it is asked for again
        if (
            self._resume is not None
            and not self._has_resumed
            and self.etag is not None
            and self.stored.total_length >= 0
        ):
            self._has_resumed = True
            call = self._resume(self.offset, self, self._upstream)
            if call is not None:
                self._plane.count("upstream_resumed")
                self.call = call
                self._is_paused = False
                return
        self._give_up(error)

    # -- readers -------------------------------------------------------------------------------------------------------

    def covers(self, offset: int) -> bool:
        """Whether a reader at `offset` gets its bytes from this fill soon."""
        return (
            self.offset <= offset + 1
            and offset < self.offset + 2 * WINDOW_BYTES
            and (self.end is None or offset < self.end)
        )

    def nudge(self) -> None:
        """A reader has moved on, or the last one has left."""
        if self.is_over:
            return
        if self.stored.n_readers == 0 and not self._is_worth_finishing():
            self.stop()
            return
        if self._is_paused and not self._spill:
            self._is_paused = False
            self.stored.unpause()
            if self.call is not None:
                self.call.resume()
            self._regulate()

    def look_around(self) -> None:
        """From time to time: a nudge may have been lost to a full ring."""
        if (
            self._is_paused
            and not self._spill
            and (self.stored.has_waiting or self.offset - self.stored.want <= WINDOW_BYTES // 2)
        ):
            self.nudge()

    def stop(self) -> None:
        """Gives the fill up; what it has filled stays when it can be completed later."""
        if self.is_over:
            return
        if self.call is not None:
            self.call.cancel()
        self._over()
        if self._is_private or not self.stored.is_strong or self.stored.total_length < 0:
            self.stored.fail()

    # -- inside --------------------------------------------------------------------------------------------------------

    def _is_worth_finishing(self) -> bool:
        if self._is_private:
            return False
        total = self.stored.total_length
        return total < 0 or (self.end or total) - self.offset <= FINISH_BYTES

    def _regulate(self) -> None:
        """Pauses the origin when it is far ahead of every reader."""
        window = PRIVATE_WINDOW_BYTES if self._is_private else WINDOW_BYTES
        if self._is_private:
            self.stored.drop_before(self.stored.want)
        if self._is_paused or self.offset - self.stored.want <= window:
            return
        if not self._is_private and self.stored.n_readers == 0 and self._is_worth_finishing():
            return
        if self.stored.pause_at(self.offset - window // 2):
            self._pause()

    def _pause(self) -> None:
        self._is_paused = True
        if self.call is not None:
            self.call.pause()

    def _drain_spill(self) -> None:
        """Moves what waits in our own buffer into the object as memory comes free."""
        if self.is_over:
            return
        while self._spill:
            room: memoryview | None = self.stored.room(self.offset, len(self._spill))
            if room is None:
                if self.stored.has_bytes(self.offset):  # another fill got here first
                    self.stop_quietly()
                    return
                self._loop.call_later(MEMORY_RETRY_S, self._drain_spill)
                return
            n = len(room)
            room[:] = self._spill[:n]
            del self._spill[:n]
            self.stored.commit(self.offset, n)
            self.offset += n
        if self._at_end is not None:
            self._at_end()
            return
        self._is_paused = False
        if self.call is not None:
            self.call.resume()
        self._regulate()

    def stop_quietly(self) -> None:
        """The rest is there already."""
        if self.call is not None:
            self.call.cancel()
        self._over()

    def _finish(self) -> None:
        if self.is_over:
            return
        if self.stored.total_length < 0:
            self.stored.finish(self.offset)
        elif self.stored.is_whole and not self._is_private:
            self.stored.finish(self.stored.total_length)
        self._over()

    def _give_up(self, error: OriginError) -> None:
        if self.is_over:
            return
        self.error = error
        if self.call is not None:
            self.call.cancel()
        self._plane.count("truncated")
        self.stored.fail()
        self._over()

    def _over(self) -> None:
        self.is_over = True
        self.stored.end_fill()
        self._ended(self)


def continues(response: Response, offset: int, etag: bytes | None, total: int) -> bool:
    """Whether a 206 is the rest, from `offset` on, of the representation (strong `etag`, `total` bytes)."""
    if response.status != 206 or etag is None or selected_etag(response.fields) != etag:
        return False
    try:
        part: ContentRange | None = partial_range(response.fields)
    except OriginError:
        return False
    return part is not None and part.first == offset and part.total == total
