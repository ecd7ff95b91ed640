"""A link in simulated time: hosts and routers that are our own machines, joined by the wire formats. What a test has
in common with another stands here; no assertion does."""

from __future__ import annotations

import random
from collections.abc import Callable
from ipaddress import ip_address, ip_network

from accelerator.protocols import igmp, mld
from accelerator.protocols.membership.host import HostSide
from accelerator.protocols.membership.messages import Drop, Heard, Message, prefix
from accelerator.protocols.membership.proxy import Proxy
from accelerator.protocols.membership.router import RouterSide
from accelerator.protocols.membership.settings import HostSettings, RouterSettings

START_S = 1000.0


def packed(text: str) -> bytes:
    return ip_address(text).packed


ROUTER, ROUTER6 = packed("10.0.0.1"), packed("fe80::1")
NETS = (prefix(ip_network("10.0.0.0/24")),)


def over_the_wire(message: Message, sender: bytes) -> list[Heard | Drop]:
    """What a neighbour hears of a message, packet by packet."""
    if len(sender) == 4:
        return [igmp.read(packet.data) for packet in igmp.write(message, sender)]
    return [
        mld.read(packet.data, sender, packet.destination, 1, mld.HOP_BY_HOP) for packet in mld.write(message, sender)
    ]


def router_side(
    settings: RouterSettings | None = None, address: bytes | None = ROUTER, now_s: float = START_S
) -> RouterSide:
    nets = NETS if address is None or len(address) == 4 else ()
    return RouterSide(settings or RouterSettings(), address, nets, now_s)


class Network:
    """Machines, the links between them, and the time. Each link is a list of (address, receive) pairs."""

    def __init__(self, seed: int = 0) -> None:
        self.random = random.Random(seed)
        self.now_s = START_S
        self._links: dict[str, list[tuple[bytes, Callable[[Heard | Drop, float], None]]]] = {}
        self._hosts: list[tuple[str, bytes, HostSide]] = []
        self._routers: list[tuple[str, bytes, RouterSide]] = []
        self._proxies: list[tuple[dict[str, tuple[str, bytes]], Proxy]] = []

    def host(self, link: str, address: bytes, settings: HostSettings | None = None) -> HostSide:
        side = HostSide(settings or HostSettings(), self.random.random)
        self._hosts.append((link, address, side))
        self._links.setdefault(link, []).append((address, side.receive))
        return side

    def router(self, link: str, address: bytes, settings: RouterSettings | None = None) -> RouterSide:
        side = router_side(settings, address, self.now_s)
        self._routers.append((link, address, side))
        self._links.setdefault(link, []).append((address, side.receive))
        return side

    def proxy(self, upstream: str, downstreams: list[str], address: bytes) -> Proxy:
        """Its interfaces have the links' names."""
        side = Proxy(upstream, HostSettings(), self.random.random)
        for name in downstreams:
            nets = NETS if len(address) == 4 else ()
            side.add_downstream(name, RouterSettings(), address, nets, self.now_s)
        for name in [upstream, *downstreams]:
            self._links.setdefault(name, []).append(
                (address, lambda heard, now_s, at=name: side.receive(at, heard, now_s))
            )
        self._proxies.append(({name: (name, address) for name in [upstream, *downstreams]}, side))
        return side

    def run(self, seconds: float, each: Callable[[], None] | None = None) -> None:
        """Lets time pass: every timer at its time, every message at once to all others of its link."""
        end_s = self.now_s + seconds
        while True:
            self._exchange()
            if each is not None:
                each()
            machines = [side for _, _, side in self._hosts + self._routers] + [side for _, side in self._proxies]
            times = [at_s for side in machines if (at_s := side.next_timer()) is not None]
            next_s = min(times, default=end_s)
            if next_s >= end_s:
                self.now_s = end_s
                return
            self.now_s = max(next_s, self.now_s)

    def _exchange(self) -> None:
        for _ in range(100):
            sent = [(link, address, m) for link, address, side in self._hosts for m in side.to_send(self.now_s)]
            sent += [(link, address, m) for link, address, side in self._routers for m in side.to_send(self.now_s)]
            for places, side in self._proxies:
                sent += [(*places[name], message) for name, message in side.to_send(self.now_s)]
            if not sent:
                return
            for link, address, message in sent:
                for heard in over_the_wire(message, address):
                    for other, receive in self._links[link]:
                        if other != address:
                            receive(heard, self.now_s)
        raise RuntimeError("the link never falls silent")
