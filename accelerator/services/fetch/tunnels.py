"""The tunnel service: a viewer's Upgrade is checked, asked of its origin, and the connection given to the worker.

After that nothing of a plain tunnel is left here; of one over TLS, its relay (io/tls_relay.py). Moves no bytes itself.
"""

from __future__ import annotations

import asyncio
import resource
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

from accelerator import clock
from accelerator.dataplane import SPARE_DESCRIPTORS
from accelerator.errors import OriginError
from accelerator.io.tls_relay import TlsRelay
from accelerator.protocols.upstream_fields import upstream_fields
from accelerator.protocols.websocket import (
    Handshake,
    HandshakeError,
    check_switch,
    read_handshake,
    switch_head,
    upgrade_fields,
)
from accelerator.services.fetch.flight import Flight

if TYPE_CHECKING:
    import socket

    from accelerator.dataplane import Exchange
    from accelerator.io.origin import Upstream
    from accelerator.io.response import Response
    from accelerator.io.switch import Switch
    from accelerator.services.fetch.ledger import Ledger
    from accelerator.services.origins.origins import Origin


class Tunnels:
    """One per box. Tunnels outlive reloads, also those of origins that a new policy does not have."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self._plane = ledger.dataplane.plane
        self._given: dict[int, int] = {}
        # Handshakes under way, by origin, and those that wait for one of them to end. When everybody comes back at
        # once, asking the origin thousands of times at once would only bring time-outs, and open its breaker.
        self._asking: dict[int, set[Upgrade]] = {}
        self._waiting: dict[int, OrderedDict[Upgrade, None]] = {}
        self._relays: set[TlsRelay] = set()

    # -- figures -------------------------------------------------------------------------------------------------------

    def n_open(self, origin_id: int) -> int:
        """Tunnels to an origin that are open now."""
        given = self._given.get(origin_id, 0)
        return max(0, given - self._plane.origin_tunnels([origin_id])[origin_id][0]) if given else 0

    @property
    def n_open_all(self) -> int:
        ended = self._plane.origin_tunnels(list(self._given))
        return max(0, sum(self._given.values()) - sum(row[0] for row in ended.values()))

    def bytes_by_origin(self) -> dict[int, int]:
        """What tunnels have brought to viewers, by the origin's number; 0: of CONNECT."""
        return {origin: row[1] for origin, row in self._plane.origin_tunnels(list(self._given)).items()}

    @property
    def n_relays(self) -> int:
        return len(self._relays)

    # -- a request -----------------------------------------------------------------------------------------------------

    def ask(self, origin: Origin, exchange: Exchange, request: Any) -> Upgrade | None:
        """The flight that asks for it; None: refused, and answered."""
        try:
            handshake = read_handshake(request.fields)
        except HandshakeError as error:
            self._plane.count("tunnel_handshakes_refused")
            exchange.refuse(error.status)
            return None
        n_before = len(self._asking.get(origin.id, ())) + len(self._waiting.get(origin.id, ()))
        if self.n_open(origin.id) + n_before >= origin.policy.tunnels or not self.has_descriptors():
            self._plane.count("tunnels_refused")
            exchange.refuse(503)
            return None
        return Upgrade(self, origin, exchange, request, handshake)

    def has_descriptors(self) -> bool:
        """A tunnel takes two. Better one viewer refused than no descriptor left for anybody's video."""
        most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return most == resource.RLIM_INFINITY or (
            self._plane.n_connections + self.n_open_all + 2 * self.n_relays < most - SPARE_DESCRIPTORS // 2
        )

    def enter(self, upgrade: Upgrade) -> None:
        asking = self._asking.setdefault(upgrade.origin.id, set())
        if len(asking) < upgrade.origin.policy.connections:
            asking.add(upgrade)
            upgrade.send()
        else:
            self._waiting.setdefault(upgrade.origin.id, OrderedDict())[upgrade] = None

    def leave(self, upgrade: Upgrade) -> None:
        """It is over, however. The one that has waited longest is next; safe to call again."""
        origin_id = upgrade.origin.id
        waiting = self._waiting.get(origin_id)
        if waiting is not None:
            waiting.pop(upgrade, None)
        asking = self._asking.get(origin_id)
        if asking is None or upgrade not in asking:
            return
        asking.discard(upgrade)
        if waiting:
            following, _ = waiting.popitem(last=False)
            asking.add(following)
            following.send()

    def give(self, exchange: Exchange, connection: Switch, head: bytes, first: bytes, is_websocket: bool) -> None:
        """Gives the connection to the worker of the one who asked."""
        origin = self.ledger.origins.by_id.get(exchange.origin)
        idle_s = origin.policy.timeouts.tunnel if origin is not None else 0.0
        sock = connection.take_socket()
        if sock is not None:
            fd = sock.detach()
        else:
            relay = TlsRelay(self.ledger.loop, self._relays.discard)
            fd = relay.begin(connection)
            self._relays.add(relay)
        self._hand_over(exchange, fd, head, first, is_websocket, idle_s)

    def give_connected(self, exchange: Exchange, sock: socket.socket, head: bytes, idle_s: float) -> None:
        """A connection that speaks what the viewer wants it to: a CONNECT's."""
        self._hand_over(exchange, sock.detach(), head, b"", False, idle_s)

    def _hand_over(
        self, exchange: Exchange, fd: int, head: bytes, first: bytes, is_websocket: bool, idle_s: float
    ) -> None:
        if exchange.tunnel(fd, head, first, is_websocket, int(idle_s * 1e9)):
            self._given[exchange.origin] = self._given.get(exchange.origin, 0) + 1

    def close(self) -> None:
        for relay in list(self._relays):
            relay.abort()


class Upgrade(Flight):
    """Asks the origin for another protocol, for one viewer; an answer that grants none is passed like any other."""

    def __init__(
        self, tunnels: Tunnels, origin: Origin, exchange: Exchange, request: Any, handshake: Handshake
    ) -> None:
        super().__init__(tunnels.ledger, origin, exchange, request, is_alone=True)
        self._tunnels = tunnels
        self._handshake = handshake
        self._timer: asyncio.TimerHandle | None = None

    def start(self, *, unconditional: bool = False) -> None:
        self._range = None
        self._timer = self.ledger.loop.call_later(self.origin.policy.head_timeout, self._waited_too_long)
        self._tunnels.enter(self)

    def send(self) -> None:
        """Its turn has come."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        source = self._source
        sent = upstream_fields(source.fields, self.origin.rules, host=source.host(), site=self.ledger.site)
        self._requested_ns = clock.monotonic_ns()
        self._requested_wall_s = clock.wall_s()
        self._plane.count("upstream_requests")
        fields = upgrade_fields(sent, source.fields, self._handshake)
        self._call = self.origin.client.upgrade(source.target, fields, self)

    def _waited_too_long(self) -> None:
        self._timer = None
        self.failed(OriginError("queue-timeout", f"{self.origin.name}: no handshake in time", status=503), False)

    def switched(self, response: Response, upstream: Upstream, first: bytes, connection: Switch) -> None:
        """SwitchSink: the origin grants it."""
        self.origin.answered += 1
        try:
            protocol = check_switch(self._handshake, response.fields)
        except OriginError:
            self._plane.count("tunnel_handshakes_failed")
            raise
        head = switch_head(protocol, response.fields)
        is_websocket = protocol.lower() == b"websocket"
        self._answer(lambda exchange: self._tunnels.give(exchange, connection, head, first, is_websocket))
        self.ledger.over(self)

    def release(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        super().release()
        self._tunnels.leave(self)
