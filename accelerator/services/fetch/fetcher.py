"""The fetch service: takes the workers' exchanges and collapses them into flights. One per box."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from accelerator import clock
from accelerator.dataplane import BOX_ORIGIN, SLICE_BYTES, DataPlane, Exchange, HeadError, parse_request
from accelerator.errors import OriginError
from accelerator.protocols.byte_ranges import are_scattered
from accelerator.protocols.cache_control import RequestDirectives, request_directives
from accelerator.protocols.upstream_fields import is_loop
from accelerator.protocols.url_prefix import Places
from accelerator.services.fetch.authorise import Authoriser
from accelerator.services.fetch.connects import Connects
from accelerator.services.fetch.fill import Fill
from accelerator.services.fetch.fills import Fills
from accelerator.services.fetch.flight import Flight
from accelerator.services.fetch.passing import Passing
from accelerator.services.fetch.prefixed import PrefixedManifest, is_rewritten, places_of
from accelerator.services.fetch.tunnels import Tunnels
from accelerator.services.objects.heads import NS
from accelerator.services.objects.remembered import Remembered, WithdrawnTags
from accelerator.services.objects.stale import is_known
from accelerator.services.origins.origins import Origin, Origins
from accelerator.services.origins.request import UpstreamRequest, has_range, has_several_ranges, several_ranges
from accelerator.services.relays.viewers import Desk

if TYPE_CHECKING:
    from accelerator.policy.model import Policy
    from accelerator.services.disk.tier import DiskTier

TICK_S = 0.05


class Fetcher:
    """`note_error(origin, error)` hears each upstream failure once, `note_refused(origin, reason)` each credential that
    was judged and refused."""

    def __init__(
        self,
        dataplane: DataPlane,
        origins: Origins,
        loop: asyncio.AbstractEventLoop,
        note_error: Callable[[Origin, OriginError], None],
        note_refused: Callable[[Origin, str], None],
    ) -> None:
        self.dataplane = dataplane
        self.origins = origins
        self.site = b""
        self.loop = loop
        self.fills = Fills(dataplane, self._note_broken_fill)
        self._disk: DiskTier | None = None
        self.remembered = Remembered(dataplane.plane)
        self.withdrawn_tags = WithdrawnTags()
        self.authoriser = Authoriser(dataplane, note_refused)
        self._note_error = note_error
        self._plane = dataplane.plane
        # Flights that may be joined: by key, until they are answered.
        self._flights: dict[tuple[int, bytes], Flight] = {}
        self._all: set[Flight | Passing] = set()
        self._by_exchange: dict[tuple[int, int, int], tuple[Flight | Passing, Exchange]] = {}
        self._uploads: dict[int, Passing] = {}
        self._timer: asyncio.TimerHandle | None = None
        self.tunnels = Tunnels(self)
        self.desk: Desk | None = None
        self.connects = Connects(self)
        self.places = Places({})

    def take_over(self, policy: Policy, own_listeners: frozenset[tuple[str, int]]) -> None:
        """What of a policy is for requests of no origin, or of any."""
        self.places = places_of(policy)
        self.connects.allow(policy.steering.connect, own_listeners)

    def start(self) -> None:
        self.loop.add_reader(self._plane.bell_fd, self.on_bell)
        self._tick()

    def stop(self) -> None:
        """Hears no bell any more; what waits is answered by the plane's end."""
        self.loop.remove_reader(self._plane.bell_fd)
        if self._timer is not None:
            self._timer.cancel()
        for flight in list(self._all):
            flight.abandon()
        self.fills.stop()
        self.tunnels.close()
        self.authoriser.stop()

    @property
    def disk(self) -> DiskTier | None:
        """Where a miss is looked for before its origin is asked; None: there is no disk."""
        return self._disk

    @disk.setter
    def disk(self, disk: DiskTier | None) -> None:
        self._disk = self.fills.disk = disk

    @property
    def n_flights(self) -> int:
        return len(self._all)

    def on_bell(self) -> None:
        asked, cancelled, nudged = self._plane.take()
        for exchange in asked:
            try:
                self._handle(exchange)
            except Exception as fault:
                # A fault of ours costs this one request, never the box; who waits must hear of it all the same.
                if exchange.kind == "want" and exchange.stored is not None:
                    exchange.stored.fail()
                exchange.error(502)
                self.loop.call_exception_handler({"message": "exchange failed", "exception": fault})
        for identity in cancelled:
            waiting = self._by_exchange.get(identity)
            if waiting is not None:
                waiting[0].leave(waiting[1])
            elif self.desk is not None:
                self.desk.cancel(identity)
        for body in self._plane.bodies():
            passing = self._uploads.get(body)
            if passing is not None:
                passing.body_moved()
        for stored in nudged:
            self.fills.nudge(stored)

    def _handle(self, exchange: Exchange) -> None:
        if exchange.kind == "stream":
            if self.desk is not None:
                self.desk.ask(exchange, self.dataplane.origin_name(exchange.origin))
            else:
                exchange.error(503)
            return
        if exchange.origin == BOX_ORIGIN and exchange.kind == "tunnel":
            self.connects.ask(exchange)
            return
        origin = self.origins.by_id.get(exchange.origin)
        if origin is None:  # the policy has changed since the worker routed it
            if exchange.kind == "want" and exchange.stored is not None:
                exchange.stored.fail()
            exchange.error(421)
            return
        try:
            request = parse_request(exchange.head)
        except HeadError as error:
            exchange.refuse(error.status)
            return
        if request is None:
            exchange.refuse(400)
            return
        if exchange.kind == "want":
            assert exchange.stored is not None
            exchange.done()  # its readers wait for the object
            source = UpstreamRequest(self._plane, origin, request, self.site)
            self.fills.want(exchange.stored, exchange.offset, exchange.range_last, source)
            return
        if is_loop(request.fields, self.site):
            self.note_error(origin, OriginError("loop", "a request came back to this box: the origin leads here"))
            exchange.refuse(502)
            return
        if exchange.kind == "authorise":
            self.authoriser.judge(exchange, origin, request, self.site)
            return
        if exchange.kind == "tunnel":
            upgrade = self.tunnels.ask(origin, exchange, request)
            if upgrade is not None:
                self._begin(upgrade, exchange)
            return
        if exchange.kind == "pass":
            passing = Passing(self, origin, exchange, request)
            if exchange.body is not None:
                self._uploads[exchange.body.identity] = passing
            self._begin(passing, exchange)
            return
        if is_rewritten(exchange.key):
            PrefixedManifest(self, origin, exchange).begin()
            return
        self.look_up(exchange, origin, request)

    def look_up(self, exchange: Any, origin: Origin, request: Any) -> None:
        """From the disk, or else from the origin."""
        may_look = self._disk is not None and exchange.kind == "miss"
        if may_look and not self.remembered.is_timing((origin.id, exchange.key)):
            assert self._disk is not None
            if self._disk.look_up(exchange, origin, self._go_on):
                return
        self._ask_origin(exchange, origin, request)

    def _go_on(self, exchange: Exchange) -> None:
        """The disk hasn't got it."""
        origin = self.origins.by_id.get(exchange.origin)
        request = parse_request(exchange.head)
        if origin is None or request is None:
            exchange.error(421)
            return
        try:
            self._ask_origin(exchange, origin, request)
        except Exception as fault:
            exchange.error(502)
            self.loop.call_exception_handler({"message": "exchange failed", "exception": fault})

    def _ask_origin(self, exchange: Exchange, origin: Origin, request: Any) -> None:
        wanted = request_directives(request.fields, origin.rules)
        if exchange.kind != "refresh" and wanted.only_if_cached:
            exchange.refuse(504)  # RFC 9111 section 5.2.1.7
            return
        if exchange.kind != "alone" and self._is_answered(exchange, wanted):
            exchange.match(joined=True)
            return
        key = (origin.id, exchange.key)
        is_alone = exchange.kind == "alone"
        if has_range(exchange) and has_several_ranges(request.fields):
            if not origin.knows_one_range_only():
                is_alone |= are_scattered(several_ranges(request.fields), SLICE_BYTES)
            elif is_alone and self._turn_to_slices(exchange):
                return
        elif has_range(exchange):
            is_alone |= self.remembered.is_uncombinable(key)
        flight = None if is_alone else self._flights.get(key)
        if flight is not None:
            flight.exchanges.append(exchange)
            self._by_exchange[exchange.identity] = (flight, exchange)
            return
        self._begin(Flight(self, origin, exchange, request, is_alone=is_alone), exchange)

    def _turn_to_slices(self, exchange: Exchange) -> bool:
        """Whether several ranges that came past a stored object are answered from it after all."""
        stored = self._plane.match(exchange.origin, exchange.key, exchange.head)
        if stored is None or stored.is_failed or stored.is_by_slices:
            return False
        stored.mark_by_slices()
        exchange.match(0, False)
        return True

    def _begin(self, flight: Flight | Passing, exchange: Exchange) -> None:
        self._by_exchange[exchange.identity] = (flight, exchange)
        self._all.add(flight)
        if isinstance(flight, Flight) and not flight.is_alone:
            self._flights[flight.key] = flight
        try:
            flight.start()
        except BaseException:
            self.unlist(flight)
            self.flight_over(flight)
            raise

    def _is_answered(self, exchange: Exchange, wanted: RequestDirectives) -> bool:
        """Whether an answer came while this exchange was on its way here: the rule of the worker's look-up."""
        stored = self._plane.match(exchange.origin, exchange.key, exchange.head)
        if stored is None or stored.is_failed:
            return False
        now_ns = clock.monotonic_ns()
        is_fresh = is_known(stored, self.origins.by_id[exchange.origin].rules, now_ns)
        is_fresh = is_fresh and stored.fresh_until_ns > now_ns and wanted.accepts(
            age_s=(now_ns - stored.born_ns) / NS, lifetime_s=(stored.fresh_until_ns - stored.born_ns) / NS
        )
        return is_fresh or (
            stored.validated_ns >= exchange.arrival_ns and exchange.kind != "refresh"
        )

    # -- what flights tell ---------------------------------------------------------------------------------------------

    def unlist(self, flight: Flight | Passing) -> None:
        """Nobody joins any more: it has been answered, or is its leader's alone."""
        if self._flights.get(flight.key) is flight:
            del self._flights[flight.key]

    def answered(self, exchanges: list[Exchange]) -> None:
        for exchange in exchanges:
            self._by_exchange.pop(exchange.identity, None)

    def flight_over(self, flight: Flight | Passing) -> None:
        self.unlist(flight)
        if isinstance(flight, Passing) and flight.body is not None:
            self._uploads.pop(flight.body.identity, None)
        self.answered(flight.exchanges)
        self._all.discard(flight)
        flight.release()

    def note_error(self, origin: Origin, error: OriginError) -> None:
        origin.errors += 1
        self._plane.count("upstream_errors")
        self._note_error(origin, error)

    def _note_broken_fill(self, fill: Fill) -> None:
        if fill.error is not None:
            self.note_error(fill.source.origin, fill.error)

    def withdraw(self, matches: Callable[[int, bytes], bool]) -> None:
        """Flights under way for purged keys answer who asked before the purge, and store nothing."""
        for flight in self._all:
            if matches(*flight.key):
                flight.is_withdrawn = True
                self.unlist(flight)

    def withdraw_tag(self, tag: int, origin_id: int | None) -> None:
        """What is under way may turn out to have this tag: then it is as if it had been withdrawn by its key."""
        now_ns = clock.monotonic_ns()
        asked_ns = [flight.requested_ns for flight in self._all if isinstance(flight, Flight)]
        self.withdrawn_tags.add(tag, origin_id, now_ns, min(filter(None, asked_ns), default=now_ns))

    def _tick(self) -> None:
        self._timer = self.loop.call_later(TICK_S, self._tick)
        self._plane.reclaim()
        self.fills.look_around()
        for passing in list(self._uploads.values()):
            passing.body_moved()  # a full ring may have cost its word
