"""The fetch service: takes the workers' exchanges, collapses them into flights, fills wants. One per box."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any
from urllib.parse import urljoin, urlsplit

from accelerator import clock
from accelerator.dataplane import SLICE_BYTES, DataPlane, Exchange, HeadError, StoredObject, parse_request
from accelerator.errors import OriginError
from accelerator.protocols.cache_control import request_directives
from accelerator.protocols.representation import selected_etag
from accelerator.protocols.upstream_fields import is_loop, upstream_fields
from accelerator.services.fill import Fill
from accelerator.services.flight import Flight, upstream_target, viewer_host
from accelerator.services.heads import NS, split_lines
from accelerator.services.origins import Origin, Origins

RECLAIM_S = 0.05
TIMING_URLS_MAX = 1024
UNSHAREABLE_MAX = 65536


class Fetcher:
    """`note_error(origin, error)` hears each upstream failure once."""

    def __init__(
        self,
        dataplane: DataPlane,
        origins: Origins,
        loop: asyncio.AbstractEventLoop,
        note_error: Callable[[Origin, OriginError], None],
    ) -> None:
        self.dataplane = dataplane
        self.origins = origins
        self.site = b""
        self.note_error = note_error
        self._plane = dataplane.plane
        self._loop = loop
        self._flights: dict[tuple[int, bytes], Flight] = {}
        self._all: set[Flight] = set()
        self._by_exchange: dict[tuple[int, int, int], tuple[Flight, Exchange]] = {}
        self._fills: dict[StoredObject, list[Fill]] = {}
        self._timing: set[tuple[int, bytes]] = set()
        self._unshareable: deque[tuple[int, int, bytes]] = deque()
        self._tick: asyncio.TimerHandle | None = None

    def start(self) -> None:
        self._loop.add_reader(self._plane.bell_fd, self.on_bell)
        self._reclaim()

    def stop(self) -> None:
        """Hears no bell any more; what waits is answered by the plane's end."""
        self._loop.remove_reader(self._plane.bell_fd)
        if self._tick is not None:
            self._tick.cancel()
        for fills in list(self._fills.values()):
            for fill in list(fills):
                fill.stop()

    @property
    def n_flights(self) -> int:
        return len(self._all)

    # -- exchanges -----------------------------------------------------------------------------------------------------

    def on_bell(self) -> None:
        asked, cancelled, nudged = self._plane.take()
        for exchange in asked:
            try:
                self._handle(exchange)
            except Exception as fault:
                # A fault of ours costs this one request, never the box; the exchange must be answered all the same.
                exchange.error(502)
                self._loop.call_exception_handler({"message": "exchange failed", "exception": fault})
        for identity in cancelled:
            waiting = self._by_exchange.get(identity)
            if waiting is not None:
                waiting[0].leave(waiting[1])
        for stored in nudged:
            for fill in list(self._fills.get(stored, ())):
                fill.nudge()

    def _handle(self, exchange: Exchange) -> None:
        origin = self.origins.by_id.get(exchange.origin)
        if origin is None:  # the policy has changed since the worker routed it
            exchange.error(421)
            return
        try:
            request = parse_request(exchange.head)
        except HeadError as error:
            exchange.error(error.status)
            return
        if request is None:
            exchange.error(400)
            return
        if is_loop(request.fields, self.site):
            self.note_error(origin, OriginError("loop", "a request came back to this box: the origin leads here"))
            exchange.error(502)
            return
        if exchange.kind == "want":
            self._want(exchange, origin, request)
            return
        if request_directives(request.fields, origin.rules).only_if_cached:  # RFC 9111 section 5.2.1.7
            exchange.error(504)
            return
        name = (origin.id, exchange.key)
        flight = None if exchange.kind == "alone" else self._flights.get(name)
        if flight is not None:
            if flight.is_answered:
                exchange.match()
            else:
                flight.join(exchange)
                self._by_exchange[exchange.identity] = (flight, exchange)
            return
        flight = Flight(self, origin, exchange, request, is_alone=exchange.kind == "alone")
        self._by_exchange[exchange.identity] = (flight, exchange)
        self._all.add(flight)
        if not flight.is_alone:
            self._flights[name] = flight
        flight.start()

    def unlist(self, flight: Flight) -> None:
        """From here on the flight is its leader's alone."""
        name = (flight.origin.id, flight.key)
        if self._flights.get(name) is flight:
            del self._flights[name]

    def flight_over(self, flight: Flight) -> None:
        self.unlist(flight)
        self._all.discard(flight)
        for exchange in flight.exchanges:
            self._by_exchange.pop(exchange.identity, None)

    # -- wants: slices that readers are at, and that are not there -----------------------------------------------------

    def _want(self, exchange: Exchange, origin: Origin, request: Any) -> None:
        stored = exchange.stored
        exchange.done()
        assert stored is not None
        for fill in self._fills.get(stored, ()):
            if fill.covers(exchange.offset):
                fill.nudge()
                return
        start = exchange.offset - exchange.offset % SLICE_BYTES
        start += stored.has_bytes(start)
        if start > exchange.offset:
            stored.forget_want()
            return
        total = stored.total_length
        etag = selected_etag(split_lines(stored.lines()))
        if not stored.is_strong or etag is None or not 0 <= start < total:
            stored.fail()
            return
        end = self._missing_end(stored, start, total, exchange.range_last)

        def resume(offset: int, sink: Any, avoid: Any) -> Any:
            fields = upstream_fields(
                request.fields, origin.rules,
                host=viewer_host(request.fields) if origin.policy.upstream_host == "viewer" else b"",
                site=self.site, byte_range=(offset, end - 1), if_range=etag,
            )  # fmt: skip
            self._plane.count("upstream_requests")
            return origin.client.request(b"GET", upstream_target(request), fields, sink, avoid=avoid)

        def received(n: int) -> None:
            self._plane.count("bytes_from_origin", n)
            origin.bytes_from_origin += n

        fill = Fill(
            self.dataplane, stored, start, end, is_private=False, received=received, ended=self.fill_over, resume=resume
        )
        fill.etag = etag
        self.fill_begun(fill)
        fill.call = resume(start, fill, None)

    @staticmethod
    def _missing_end(stored: StoredObject, start: int, total: int, range_last: int) -> int:
        """Where the gap at `start` ends: at the viewer's last slice, at a slice that is there, or at the body's end."""
        end = total
        if range_last >= start:
            end = min(total, range_last - range_last % SLICE_BYTES + SLICE_BYTES)
        position = start - start % SLICE_BYTES + SLICE_BYTES
        while position < end:
            if stored.has_bytes(position):
                return position
            position += SLICE_BYTES
        return end

    def fill_begun(self, fill: Fill) -> None:
        self._fills.setdefault(fill.stored, []).append(fill)

    def fill_over(self, fill: Fill) -> None:
        fills = self._fills.get(fill.stored)
        if fills is not None and fill in fills:
            fills.remove(fill)
            if not fills:
                del self._fills[fill.stored]

    # -- what is remembered of keys ------------------------------------------------------------------------------------

    def remember_unshareable(self, origin_id: int, key: bytes, seconds: float) -> None:
        until_ns = clock.monotonic_ns() + int(seconds * NS)
        if len(self._unshareable) >= UNSHAREABLE_MAX:
            _, oldest_origin, oldest_key = self._unshareable.popleft()
            self._plane.mark_unshareable(oldest_origin, oldest_key, 0)
        if self._plane.mark_unshareable(origin_id, key, until_ns):
            self._unshareable.append((until_ns, origin_id, key))

    def forget_soon(self, origin_id: int, key: bytes, seconds: float) -> None:
        """A 404 at the live edge is forgotten, so that the segment is found the moment it is there."""

        def forget() -> None:
            now_ns = clock.monotonic_ns()
            for stored in self._plane.find(origin_id, key):
                if stored.status in (404, 410) and stored.fresh_until_ns <= now_ns:
                    stored.detach()

        self._loop.call_later(seconds + 0.05, forget)

    def is_timing(self, origin_id: int, key: bytes) -> bool:
        return (origin_id, key) in self._timing

    def add_timing(self, origin_id: int, manifest_key: bytes, url: bytes) -> None:
        """A UTCTiming resource is never stored, wherever on this origin it is (DESIGN.md section 5)."""
        if len(self._timing) >= TIMING_URLS_MAX:
            return
        joined = urlsplit(urljoin("http://box" + manifest_key.decode("latin-1"), url.decode("latin-1")))
        path = joined.path + (f"?{joined.query}" if joined.query else "")
        self._timing.add((origin_id, path.encode("latin-1", "replace")))

    def withdraw(self, matches: Callable[[int, bytes], bool]) -> None:
        """Flights under way for purged keys answer those who wait, and store nothing."""
        for flight in self._all:
            if matches(flight.origin.id, flight.key):
                flight.is_withdrawn = True

    def _reclaim(self) -> None:
        self._plane.reclaim()
        now_ns = clock.monotonic_ns()
        while self._unshareable and self._unshareable[0][0] <= now_ns:
            _, origin_id, key = self._unshareable.popleft()
            self._plane.mark_unshareable(origin_id, key, 0)
        for fills in list(self._fills.values()):
            for fill in list(fills):
                fill.look_around()
        self._tick = self._loop.call_later(RECLAIM_S, self._reclaim)
