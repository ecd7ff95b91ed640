"""A fill: one upstream body on its way into an object: back-pressure, resume, end. Decides nothing on storing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from accelerator import clock
from accelerator.errors import OriginError
from accelerator.protocols.cache_tags import without_tags
from accelerator.services.objects.freshen import freshen_by_part
from accelerator.services.objects.heads import NS
from accelerator.services.origins.request import continuation

if TYPE_CHECKING:
    from accelerator.dataplane import DataPlane, StoredObject
    from accelerator.io.origin import Upstream
    from accelerator.io.response import Response
    from accelerator.io.upstream import Call
    from accelerator.services.disk.tier import DiskTier
    from accelerator.services.origins.request import UpstreamRequest

# How far a fill may run ahead of its furthest reader before it pauses: at 60 ms and 1 Gbit/s the path itself holds
# 7.5 MB, so that less would halve the rate. A private body is kept only until it is sent.
WINDOW_BYTES = 8 << 20
PRIVATE_WINDOW_BYTES = 1 << 20
# A reader that is at most this far ahead of a fill waits for it; from further on, a request of its own is cheaper.
NEAR_BYTES = 2 << 20
# What is still worth fetching for the cache when the last reader has left.
FINISH_BYTES = 16 << 20
# Readers attach a moment after the answer, and one may leave before the next one comes.
NO_READERS_S = 0.5
# A paused fill holds a connection that others wait for; what can be asked for again later lets it go.
PAUSED_S = 10.0
MEMORY_RETRY_S = 0.005
NO_MEMORY_S = 10.0
SPILL_BYTES = 65536
PASSED_WANTS_MAX = 16
# Less than this over a whole body time-out is a drip (reliability.md section 13, row 23), not a slow network.
RATE_MIN_BPS = 100


class Fill:
    """Writes body bytes from `offset` on into `stored`; `end` exclusive, None: to the body's end.

    `etag`: the strong tag under which parts may be combined. `ended(fill)` is called once, after the last byte or for
    good; `error` says then what went wrong.
    """

    def __init__(
        self,
        dataplane: DataPlane,
        stored: StoredObject,
        offset: int,
        end: int | None,
        *,
        is_private: bool,
        etag: bytes | None,
        source: UpstreamRequest,
        ended: Callable[[Fill], None],
        keeper: DiskTier | None = None,
    ) -> None:
        self.stored = stored
        self.offset = offset
        self.end = end
        self.call: Call | None = None
        self.is_over = False
        self.is_stream = False
        self.error: OriginError | None = None
        self._plane = dataplane.plane
        self._loop = asyncio.get_running_loop()
        self._is_private = is_private
        self.is_awaited = False  # by the control plane, which is no reader, and wants all of it
        self._etag = etag
        self.source = source
        self._ended = ended
        self._keeper = keeper
        self._limit_bytes: int = self._plane.memory["limit"]
        self._upstream: Upstream | None = None
        self._skip = 0  # bytes before `offset` that an origin without ranges sends once more
        self._runs_on = False  # and it goes on behind `end`
        self._is_paused = False
        self._paused_ns = 0
        self._has_resumed = False
        self._spill = bytearray()
        self._spill_room: bytearray | None = None
        self._is_spilling = False
        self._is_draining = False
        self._no_memory_ns = 0
        self._has_ended = False
        self._alone_ns = 0
        self._passed_wants = 0
        self._rate_ns = 0
        self._rate_offset = offset
        # The furthest place that a reader has asked this fill for.
        self._reach = offset
        # Parts of one body may be filled at several places at once: then what its readers have passed tells how far
        # they are behind this one, which the furthest reader's place doesn't.
        self._is_one_of_many = stored.is_strong and stored.total_length >= 0
        self._asked_ns = 0
        self._asked_wall_s = 0.0
        stored.begin_fill()

    def become_stream(self) -> None:
        """It may say nothing for hours: gives its place to others, and keeps no memory while it is silent."""
        self.is_stream = True
        self.stored.become_stream()
        if self.call is not None and self.call.become_stream():
            self._plane.count("streams")

    def ask(self, avoid: Upstream | None = None) -> None:
        """Asks the origin for what this fill lacks, by Range and If-Range."""
        total = self.stored.total_length
        end = total if self.end is None else self.end
        self._rate_ns = 0
        self._upstream = None
        self._is_paused = False
        self.stored.unpause()
        self._asked_ns = clock.monotonic_ns()
        self._asked_wall_s = clock.wall_s()
        self.call = self.source.send(self, byte_ranges=[(self.offset, end - 1)], if_range=self._etag, avoid=avoid)

    # -- the sink of an upstream call ----------------------------------------------------------------------------------

    def interim_received(self, response: Response) -> None:
        """Of a part that nobody asked for by himself: it is nobody's."""

    def head_received(self, response: Response, upstream: Upstream) -> None:
        """Of a part that `ask` asked for: it must go on with the same representation (RFC 9110 section 15.3.7.3)."""
        self.started(upstream)
        found = continuation(response, self.offset, self._etag, self.stored.total_length)
        if found is None:
            self._give_up(OriginError("changed", f"{upstream}: another representation than the one being sent"))
            return
        self._skip, end, self._runs_on = found
        if not self._runs_on:
            self.end = end
        self._freshen(response)

    def started(self, upstream: Upstream) -> None:
        """A response's head is there, and its body will come."""
        self._upstream = upstream
        self._rate_ns = clock.monotonic_ns()
        self._rate_offset = self.offset

    def get_buffer(self, size_hint: int) -> memoryview:
        """Memory of the object itself; where there is none just now, a buffer of our own, and the origin is paused."""
        if self.is_stream:
            self.stored.trim()
        if not self._spill and not self._skip:
            room = self._room(max(size_hint, 1))
            if room is not None:
                self._is_spilling = False
                return room
        self._is_spilling = True
        if self._spill_room is None:
            self._spill_room = bytearray(SPILL_BYTES)
        if self._skip:
            return memoryview(self._spill_room)[: self._skip]
        return memoryview(self._spill_room)

    def bytes_received(self, n: int) -> None:
        if self.is_over:
            return
        self.source.received(n)
        if self._skip:
            self._skip -= n
            self._rate_offset -= n
            return
        if self.end is not None and self.offset + len(self._spill) + n > self.end:
            if not self._runs_on:
                self._give_up(OriginError("excess", f"{self._upstream}: a part is longer than its Content-Range"))
                return
            n = self.end - self.offset - len(self._spill)
        if self._is_spilling:
            assert self._spill_room is not None
            self._spill += self._spill_room[:n]
            self._pause()
            self._drain_spill()
            return
        self._commit(n)
        self._passed_wants = 0
        if self._runs_on and self.offset == self.end:
            self._stop_quietly()
            return
        self._regulate()

    def ended(self) -> None:
        if self.is_over:
            return
        if self.end is not None and self.offset + len(self._spill) < self.end:
            # Asking on would go on for ever where an origin sends parts without a byte.
            self.failed(OriginError("truncated", f"{self._upstream}: a part is shorter than its Content-Range"), True)
            return
        self._has_ended = True
        if not self._spill:
            self._finish()

    def failed(self, error: OriginError, received_any: bool) -> None:
        """The transfer broke: once more by Range and If-Range, at another upstream first (DESIGN.md section 5)."""
        if self.is_over:
            return
        self._spill.clear()  # not committed: it is asked for again
        total = self.stored.total_length
        end = total if self.end is None else self.end
        can_resume = self._etag is not None and not self._is_private and not self._has_resumed
        if can_resume and self.offset < end:
            self._has_resumed = True
            self._plane.count("upstream_resumed")
            self.ask(avoid=self._upstream)
            return
        self._give_up(error)

    @property
    def pinned_bytes(self) -> int:
        """Memory that can't be evicted until the body is whole."""
        if self._is_private or self.stored.is_strong:
            return 0
        return max(self.stored.total_length, self.offset)

    # -- readers -------------------------------------------------------------------------------------------------------

    def wanted(self, offset: int) -> None:
        """A reader waits at `offset` for this fill."""
        self._reach = max(self._reach, offset)
        self.nudge()

    def serves(self, offset: int) -> bool:
        """Whether a reader at `offset` does best to wait for this fill."""
        if self.offset > offset or (self.end is not None and offset >= self.end):
            return False
        return not self.stored.is_strong or offset <= self.offset + NEAR_BYTES

    def is_passed(self, offset: int) -> bool:
        """Whether a want at `offset` is an old one of a reader that is further on; False: somebody waits for bytes
        that were dropped, as he keeps asking."""
        self._passed_wants += 1
        return offset < self.stored.want and self._passed_wants < PASSED_WANTS_MAX

    def nudge(self) -> None:
        """A reader has moved on, or the last one has left."""
        if self.is_over:
            return
        if self.stored.n_readers == 0 and not self._is_worth_finishing():
            if self.is_stream or (self.stored.is_strong and not self._is_private):
                self.stop()
            else:
                self._pause()
            return
        if self._is_one_of_many and self._lead() > self._window:
            return  # another reader's
        if self._is_paused and not self._spill:
            self._is_paused = False
            self.stored.unpause()
            if self.call is not None:
                self.call.resume()
            self._regulate()

    def look_around(self, now_ns: int) -> None:
        """From time to time: what no event tells. Nobody reads; a nudge was lost; the origin drips."""
        if self.is_over:
            return
        if self.is_stream:
            self.stored.trim()
        if self.stored.n_readers or self._is_worth_finishing():
            self._alone_ns = 0
        elif self._alone_ns == 0:
            self._alone_ns = now_ns
            self._pause()
        elif now_ns - self._alone_ns > NO_READERS_S * NS:
            self.stop()
            return
        if self._spill or self._alone_ns:
            self._rate_ns = 0
        elif self._is_paused:
            self._rate_ns = 0
            if (self.stored.has_waiting and not self._is_one_of_many) or self._lead() <= self._window // 2:
                self.nudge()
            elif now_ns - self._paused_ns > PAUSED_S * NS and self.stored.is_strong and not self._is_private:
                self._stop_quietly()
        elif self._rate_ns:
            self._judge_rate(now_ns)
        elif self.call is not None and self._upstream is not None:
            self._rate_ns = now_ns
            self._rate_offset = self.offset

    def stop(self) -> None:
        """Gives the fill up; what it has filled stays when it can be completed later."""
        if self.is_over:
            return
        if self._is_private or not self.stored.is_strong or self.stored.total_length < 0:
            self.stored.fail()
        self._stop_quietly()

    # -- inside --------------------------------------------------------------------------------------------------------

    def _freshen(self, response: Response) -> None:
        if self._is_private:
            return
        if not self.source.origin.rules.forward_tags:
            response.fields[:] = without_tags(response.fields)
        checked_ns = self.stored.validated_ns
        is_kept = freshen_by_part(
            self.stored, self.source.fields, response.fields, self.source.origin.rules,
            request_wall_s=self._asked_wall_s, response_wall_s=clock.wall_s(),
            request_ns=self._asked_ns, response_ns=clock.monotonic_ns(),
        )  # fmt: skip
        if is_kept:
            if self._keeper is not None:
                self._keeper.head_changed(self.stored, checked_ns)
            return
        key = self.stored.key
        self.stored.detach()
        if self._keeper is not None and key is not None:
            self._keeper.forget(self.source.origin, key)

    @property
    def _window(self) -> int:
        if self._is_private:
            return PRIVATE_WINDOW_BYTES
        return window_bytes(self._limit_bytes)

    def _is_worth_finishing(self) -> bool:
        if self.is_awaited:
            return True
        if self._is_private:
            return False
        most = min(FINISH_BYTES, self._limit_bytes // 4)
        total = self.stored.total_length
        if total < 0:
            return self.offset <= most  # a body without end has no rest to measure
        return (total if self.end is None else self.end) - self.offset <= most

    def _room(self, most: int) -> memoryview | None:
        room: memoryview | None = self.stored.room(self.offset, most)
        if room is not None or self.stored.has_bytes(self.offset):
            return room
        # No memory. What can't be evicted while it is read, because it can't be asked for again, gives way by itself:
        # such bodies would else stop each other, each holding what the next one waits for.
        if not self._is_private and not self.stored.is_strong and self.stored.n_readers <= 1:
            self.stored.detach()
            self._is_private = True
        if self._is_private:
            self.stored.drop_before(self.stored.want)
            room = self.stored.room(self.offset, most)
        return room

    def _regulate(self) -> None:
        """Pauses the origin when it is far ahead of every reader."""
        if self.stored.total_length < 0 and not self._is_private and self.offset > self._limit_bytes // 4:
            # Perhaps endless: nobody new joins, and a single reader's body is kept only until it is sent.
            self.stored.detach()
            self._is_private = self.stored.n_readers <= 1
        if self._is_private:
            self.stored.drop_before(self.stored.want)
        window = self._window
        if self._is_paused or self._lead() <= window:
            return
        if self.stored.n_readers == 0 and self._is_worth_finishing():
            return
        if self._is_one_of_many:
            if self.stored.rest_until(self.offset - window // 2, self.offset):
                self._pause()
        elif self.stored.pause_at(self.offset - window // 2):
            self._pause()

    def _lead(self) -> int:
        """How many bytes this fill is ahead of its readers."""
        if self._is_one_of_many:
            return min(self.stored.lead(self.offset, self._window), self.offset - self._reach)
        return self.offset - self.stored.want

    def _commit(self, n: int) -> None:
        self.stored.commit(self.offset, n)
        self.offset += n
        if self._keeper is not None and not self._is_private:
            self._keeper.slice_done(self.stored, self.offset)

    def _judge_rate(self, now_ns: int) -> None:
        passed_s = (now_ns - self._rate_ns) / NS
        if passed_s < self.source.origin.policy.timeouts.body:
            return
        is_drip = not self._is_private and self.offset - self._rate_offset < RATE_MIN_BPS * passed_s
        self._rate_ns, self._rate_offset = now_ns, self.offset
        if is_drip:
            if self.call is not None:
                self.call.cancel()
            self.failed(OriginError("slow", f"{self._upstream}: below {RATE_MIN_BPS} bytes a second"), True)

    def _pause(self) -> None:
        if self._is_paused:
            return
        self._is_paused = True
        self._paused_ns = clock.monotonic_ns()
        if self.call is not None:
            self.call.pause()

    def _drain_spill(self) -> None:
        """Moves what waits in our own buffer into the object as memory comes free."""
        if self.is_over or self._is_draining:
            return
        while self._spill:
            room = self._room(len(self._spill))
            if room is None:
                if self.stored.has_bytes(self.offset):  # another fill got here first
                    self._stop_quietly()
                    return
                self._wait_for_memory()
                return
            n = len(room)
            room[:] = self._spill[:n]
            del self._spill[:n]
            self._commit(n)
        self._no_memory_ns = 0
        if self._has_ended:
            self._finish()
            return
        self._is_paused = False
        if self.call is not None:
            self.call.resume()
        self._regulate()

    def _wait_for_memory(self) -> None:
        now_ns = clock.monotonic_ns()
        if self._no_memory_ns == 0:
            self._no_memory_ns = now_ns
        elif now_ns - self._no_memory_ns > NO_MEMORY_S * NS:
            self._give_up(OriginError("no-memory", "a body found no memory: all of it is in use", status=503))
            return
        self._is_draining = True
        self._loop.call_later(MEMORY_RETRY_S, self._drain_again)

    def _drain_again(self) -> None:
        self._is_draining = False
        self._drain_spill()

    def _stop_quietly(self) -> None:
        """No more than this; readers at what is absent ask again."""
        if self.call is not None:
            self.call.cancel()
        self._over()

    def _finish(self) -> None:
        total = self.stored.total_length
        if total < 0:
            self.stored.finish(self.offset)
            if self._keeper is not None:
                self._keeper.body_done(self.stored)
        elif self.stored.is_whole and not self._is_private:
            self.stored.finish(total)
        self._over()

    def _give_up(self, error: OriginError) -> None:
        self.error = error
        if self.call is not None:
            self.call.cancel()
        if self._keeper is not None:
            self._keeper.given_up(self.stored, error.kind)
        self._plane.count("truncated")
        self.stored.fail()
        self._over()

    def _over(self) -> None:
        if self.is_over:
            return
        self.is_over = True
        self._spill.clear()
        self.call = None
        self.stored.end_fill()
        self._ended(self)


def window_bytes(limit_bytes: int) -> int:
    """How far ahead of its readers one body may be: no more than a sixteenth of all memory."""
    return max(PRIVATE_WINDOW_BYTES, min(WINDOW_BYTES, limit_bytes // 16))
