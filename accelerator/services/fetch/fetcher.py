"""The fetch service: takes the workers' exchanges and collapses them into flights. One per box."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from accelerator import clock
from accelerator.dataplane import BOX_ORIGIN, SLICE_BYTES, Exchange, HeadError, parse_request
from accelerator.errors import OriginError
from accelerator.protocols.byte_ranges import are_scattered
from accelerator.protocols.cache_control import RequestDirectives, request_directives
from accelerator.protocols.upstream_fields import is_loop
from accelerator.protocols.url_prefix import Places
from accelerator.services.fetch.authorise import Authoriser
from accelerator.services.fetch.connects import Connects
from accelerator.services.fetch.flight import Flight
from accelerator.services.fetch.ledger import Ledger
from accelerator.services.fetch.passing import Passing
from accelerator.services.fetch.prefixed import PrefixedManifest, is_rewritten, places_of
from accelerator.services.fetch.tunnels import Tunnels
from accelerator.services.objects.heads import NS
from accelerator.services.objects.stale import is_known
from accelerator.services.origins.origins import Origin
from accelerator.services.origins.request import UpstreamRequest, has_range, has_several_ranges, several_ranges
from accelerator.services.relays.viewers import Desk

if TYPE_CHECKING:
    from accelerator.policy.model import Policy

TICK_S = 0.05


class Fetcher:
    """`note_refused(origin, reason)` hears each credential that was judged and refused."""

    def __init__(self, ledger: Ledger, note_refused: Callable[[Origin, str], None]) -> None:
        self._ledger = ledger
        self._dataplane = ledger.dataplane
        self._plane = ledger.dataplane.plane
        self._origins = ledger.origins
        self._loop = ledger.loop
        self.authoriser = Authoriser(ledger.dataplane, note_refused)
        self.tunnels = Tunnels(ledger)
        self.connects = Connects(ledger, self.tunnels)
        self.desk: Desk | None = None
        self._places = Places({})
        self._timer: asyncio.TimerHandle | None = None

    def take_over(self, policy: Policy, own_listeners: frozenset[tuple[str, int]]) -> None:
        """What of a policy is for requests of no origin, or of any."""
        self._places = places_of(policy)
        self.connects.allow(policy.steering.connect, own_listeners)

    def start(self) -> None:
        self._loop.add_reader(self._plane.bell_fd, self.on_bell)
        self._tick()

    def stop(self) -> None:
        """Hears no bell any more; what waits is answered by the plane's end."""
        self._loop.remove_reader(self._plane.bell_fd)
        if self._timer is not None:
            self._timer.cancel()
        self._ledger.abandon_all()
        self._ledger.fills.stop()
        self.tunnels.close()
        self.authoriser.stop()

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
                self._loop.call_exception_handler({"message": "exchange failed", "exception": fault})
        for identity in cancelled:
            if not self._ledger.leave(identity) and self.desk is not None:
                self.desk.cancel(identity)
        for body in self._plane.bodies():
            passing = self._ledger.uploads.get(body)
            if passing is not None:
                passing.body_moved()
        for stored in nudged:
            self._ledger.fills.nudge(stored)

    def _handle(self, exchange: Exchange) -> None:
        if exchange.kind == "stream":
            if self.desk is not None:
                self.desk.ask(exchange, self._dataplane.origin_name(exchange.origin))
            else:
                exchange.error(503)
            return
        if exchange.origin == BOX_ORIGIN and exchange.kind == "tunnel":
            self.connects.ask(exchange)
            return
        origin = self._origins.by_id.get(exchange.origin)
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
            source = UpstreamRequest(self._plane, origin, request, self._ledger.site)
            self._ledger.fills.want(exchange.stored, exchange.offset, exchange.range_last, source)
            return
        if is_loop(request.fields, self._ledger.site):
            fault = OriginError("loop", "a request came back to this box: the origin leads here")
            self._ledger.note_error(origin, fault)
            exchange.refuse(502)
            return
        if exchange.kind == "authorise":
            self.authoriser.judge(exchange, origin, request, self._ledger.site)
            return
        if exchange.kind == "tunnel":
            upgrade = self.tunnels.ask(origin, exchange, request)
            if upgrade is not None:
                self._ledger.begin(upgrade, exchange)
            return
        if exchange.kind == "pass":
            self._ledger.begin(Passing(self._ledger, origin, exchange, request), exchange)
            return
        if is_rewritten(exchange.key):
            PrefixedManifest(self._ledger, self._places, self._look_up, origin, exchange).begin()
            return
        self._look_up(exchange, origin, request)

    def _look_up(self, exchange: Any, origin: Origin, request: Any) -> None:
        """From the disk, or else from the origin."""
        disk = self._ledger.disk if exchange.kind == "miss" else None
        may_look = disk is not None and not self._ledger.remembered.is_timing((origin.id, exchange.key))
        if disk is not None and may_look and disk.look_up(exchange, origin, self._go_on):
            return
        self._ask_origin(exchange, origin, request)

    def _go_on(self, exchange: Exchange) -> None:
        """The disk hasn't got it."""
        origin = self._origins.by_id.get(exchange.origin)
        request = parse_request(exchange.head)
        if origin is None or request is None:
            exchange.error(421)
            return
        try:
            self._ask_origin(exchange, origin, request)
        except Exception as fault:
            exchange.error(502)
            self._loop.call_exception_handler({"message": "exchange failed", "exception": fault})

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
            is_alone |= self._ledger.remembered.is_uncombinable(key)
        if not is_alone and self._ledger.join(key, exchange):
            return
        self._ledger.begin(Flight(self._ledger, origin, exchange, request, is_alone=is_alone), exchange)

    def _turn_to_slices(self, exchange: Exchange) -> bool:
        """Whether several ranges that came past a stored object are answered from it after all."""
        stored = self._plane.match(exchange.origin, exchange.key, exchange.head)
        if stored is None or stored.is_failed or stored.is_by_slices:
            return False
        stored.mark_by_slices()
        exchange.match(0, False)
        return True

    def _is_answered(self, exchange: Exchange, wanted: RequestDirectives) -> bool:
        """Whether an answer came while this exchange was on its way here: the rule of the worker's look-up."""
        stored = self._plane.match(exchange.origin, exchange.key, exchange.head)
        if stored is None or stored.is_failed:
            return False
        now_ns = clock.monotonic_ns()
        is_fresh = is_known(stored, self._origins.by_id[exchange.origin].rules, now_ns)
        is_fresh = is_fresh and stored.fresh_until_ns > now_ns and wanted.accepts(
            age_s=(now_ns - stored.born_ns) / NS, lifetime_s=(stored.fresh_until_ns - stored.born_ns) / NS
        )
        return is_fresh or (
            stored.validated_ns >= exchange.arrival_ns and exchange.kind != "refresh"
        )

    def _tick(self) -> None:
        self._timer = self._loop.call_later(TICK_S, self._tick)
        self._plane.reclaim()
        self._ledger.fills.look_around()
        for passing in list(self._ledger.uploads.values()):
            passing.body_moved()  # a full ring may have cost its word
