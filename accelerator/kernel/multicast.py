"""One family's multicast proxies in the kernel: joins the proxies' machines to the multicast router's socket, and
follows interfaces that come, go and change. Knows no event loop: who has one calls it when the socket is readable or
a time has come."""

from __future__ import annotations

import fcntl
import random
import socket
import struct
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from accelerator.kernel import wire
from accelerator.kernel.links import Link
from accelerator.kernel.membership_port import MembershipPort
from accelerator.kernel.mroute import VIFS_MAX, MulticastRoutingError, MulticastSocket, Unrouted, Upcall
from accelerator.kernel.mroute_table import KernelRoute, read_interfaces, read_routes
from accelerator.kernel.multicast_wish import MulticastWish, ProxyWish, proxies_of_routes
from accelerator.kernel.netlink import Netlink
from accelerator.kernel.stream_watch import OddPacket, StreamWatch, explained
from accelerator.protocols.membership.filters import EVERYTHING, Filter, merge
from accelerator.protocols.membership.forwarding import Entry, Forwarding, Install, StaticRoute
from accelerator.protocols.membership.messages import Drop, Heard, Prefix, is_within
from accelerator.protocols.membership.proxy import (
    DownstreamQuerierChanged,
    DownstreamRefused,
    FlowsChanged,
    Proxy,
    UpstreamVersionChanged,
)
from accelerator.protocols.membership.settings import QuerierMode

# How many packets are read before their answers leave: bounds what a flood holds back.
_BATCH = 256
# A flow that nobody foretold is forgotten when no packet came between two looks.
IDLE_LOOK_S = 60.0
QUERIER_TOLD_S = 10.0
# What the kernel refuses for want of something (a limit that somebody raises) is tried again: no event says when.
RETRY_S = 5.0
_SIOCGETSGCNT = 0x89E1


@dataclass(slots=True)
class _Running:
    wish: ProxyWish
    proxy: Proxy
    forwarding: Forwarding
    installed: dict[tuple[bytes | None, bytes], Entry] = field(default_factory=dict)


class MulticastService:
    """Takes over `router`: it is closed with close(). `events` are dicts with a `kind`, for netd to pass on. What an
    earlier process, or the policy before, left in the kernel is taken as what hosts wanted then: routes stay, and who
    wants nothing any more doesn't answer our first queries."""

    def __init__(
        self, router: MulticastSocket, wish: MulticastWish, now_s: float, before: MulticastWish | None = None
    ) -> None:
        """`before`: what was wanted until now. What its static routes sent is not taken for hosts' wishes."""
        self.router = router
        self.events: deque[dict[str, Any]] = deque()
        self.drops: Counter[Drop] = Counter()
        self.n_unsent = 0
        self._port = MembershipPort(router)
        self._netlink = Netlink()
        self.n_forged = 0
        self._left: tuple[dict[int, int], list[KernelRoute]] | None = (
            read_interfaces(router),
            read_routes(is_v6=router.is_v6, table=router.table),
        )
        self._links: dict[str, Link] = {}
        self._names: dict[int, str] = {}
        self._seen: Mapping[str, Link] = {}  # all of the box's, as they were when netd looked last
        self._retry_s: float | None = None
        self._vifs: dict[str, int] = {}
        self._never = wish.never
        self._sent_always: dict[tuple[bytes | None, bytes], frozenset[str]] = {}
        for each in (*wish.routes, *(before.routes if before is not None else ())):
            key = each.source, each.group
            self._sent_always[key] = self._sent_always.get(key, frozenset()).union(each.outputs)
        self._told: set[tuple[str, str]] = set()
        # Who asks on a link since it was told last, and when that was.
        self._queriers: dict[str, bytes | None] = {}
        self._queriers_told_s: dict[str, float] = {}
        self._now_s = now_s
        self._idle_look_s = now_s + IDLE_LOOK_S
        self._packets: dict[tuple[bytes, bytes], int] = {}
        self._watch = StreamWatch(is_v6=router.is_v6, now_s=now_s)
        self._running: list[_Running] = []
        self._by_interface: dict[str, _Running] = {}
        static = [each for each in wish.routes if (len(each.group) == 16) == router.is_v6]
        for proxy in (*wish.proxies, *proxies_of_routes(wish, static)):
            self._begin(proxy, static, now_s)
        for route in static:
            # An interface that only gets packets has nobody to ask, or to be asked by.
            for name in route.outputs:
                self._by_interface.setdefault(name, self._by_interface[route.parent])

    def _begin(self, wish: ProxyWish, static: list[StaticRoute], now_s: float) -> None:
        proxy = Proxy(wish.upstream, wish.host, random.Random().random)
        places = (wish.upstream, *wish.downstreams)
        mine = [each for each in static if each.parent in places]
        foreign = frozenset((each.source, each.group) for each in static if each.source and each.parent not in places)
        running = _Running(wish, proxy, Forwarding(proxy, static=mine, foreign=foreign))
        self._running.append(running)
        for name in places:
            if name in self._by_interface:
                raise ValueError(f"interface {name} stands in two places")
            self._by_interface[name] = running
        asked: dict[bytes, Filter] = {}
        for each in mine:
            if each.parent == wish.upstream:
                wanted = EVERYTHING if each.source is None else Filter(False, frozenset((each.source,)))
                asked[each.group] = merge([asked.get(each.group, Filter()), wanted])
        proxy.ask_always(asked, now_s)

    def close(self) -> None:
        self._watch.close()
        self._netlink.close()
        self._port.close()
        self.router.close()

    def fileno(self) -> int:
        return self.router.fileno()

    def links_changed(self, links: Mapping[str, Link], now_s: float) -> None:
        """The interfaces as they are now. Those that aren't there yet are waited for, and an event says so."""
        self._seen, self._retry_s = links, None
        usable = {name: link for name in self._by_interface if (link := self._usable(name, links)) is not None}
        # What goes first: two interfaces may have changed names.
        for name, running in self._by_interface.items():
            old, new = self._links.get(name), usable.get(name)
            if old is not None and (new is None or new.index != old.index or not self.router.has_vif(self._vifs[name])):
                self._remove(name, running, old, now_s)
        for name, running in self._by_interface.items():
            old, new = self._links.get(name), usable.get(name)
            if new is None:
                continue
            if old is None:
                self._add(name, running, new, now_s)
            elif new != old:
                self._links[name] = new
                if name in running.wish.downstreams:
                    self._tell_no_address(name, running)
                    running.proxy.set_address(name, self._address(new), self._nets(new), now_s)
                elif name == running.wish.upstream and new.addresses != old.addresses:
                    # Another address there may well be another router.
                    running.proxy.host.announce(now_s)
        if self._left is not None:
            vifs, routes = self._left
            self._left = None
            self._adopt(vifs, routes, now_s)
        self._act(now_s)

    def _usable(self, name: str, links: Mapping[str, Link]) -> Link | None:
        link = links.get(name)
        if link is None or not link.is_up:
            if name not in self._links:
                self._tell_once("interface-missing", name, f"multicast waits for interface {name}")
            return None
        if link.port_of is not None:
            what = f"{name} is a port of {link.port_of}, which gets what comes in there: policy should name that"
            self._tell_once("interface-is-port", name, what)
            return None
        running = self._by_interface[name]
        is_source = name == running.wish.upstream
        if self._never and not is_source and any(is_within(each, self._never) for each in link.addresses):
            what = f"{name} has an address in a zone that says multicast: never: none is sent there"
            self._tell_once("multicast-never", name, what)
            return None
        self._told -= {(kind, name) for kind in ("interface-missing", "interface-is-port", "multicast-never")}
        return link

    def readable(self, now_s: float) -> None:
        """Reads what has come, then answers all of it: so a report that came with a timer's end still counts."""
        for _ in range(_BATCH):
            received = self._port.receive()
            if received is None:
                break
            if isinstance(received, Unrouted):
                self._unrouted(received, now_s)
            else:
                self._heard(*received, now_s)
        self._act(now_s)

    def next_timer(self) -> float:
        first_s = min(self._idle_look_s, self._watch.next_timer())
        if self._retry_s is not None:
            first_s = min(first_s, self._retry_s)
        for name in self._queriers:
            first_s = min(first_s, self._queriers_told_s[name] + QUERIER_TOLD_S)
        return min([first_s, *(t for each in self._running if (t := each.proxy.next_timer()) is not None)])

    def on_timer(self, now_s: float) -> None:
        self.readable(now_s)
        if self._retry_s is not None and now_s >= self._retry_s:
            self.links_changed(self._seen, now_s)
        if now_s >= self._idle_look_s:
            self._idle_look_s = now_s + IDLE_LOOK_S
            self._forget_idle()
            self._act(now_s)
        if now_s >= self._watch.next_timer():
            self._look_for_lost(now_s)

    def kernel_routes(self) -> list[KernelRoute]:
        """What show() compares with. Blocks for as long as the kernel needs to say it: for a thread."""
        return read_routes(is_v6=self.router.is_v6, table=self.router.table)

    def show(self, actual: list[KernelRoute]) -> dict[str, Any]:
        """What `accelctl routes` shows of it, routes compared with the kernel's. Addresses of groups and sources, of no
        viewer."""
        found = {(each.source, each.group, each.parent): each for each in actual}
        return {running.wish.name: self._show(running, found) for running in self._running}

    def _show(self, running: _Running, found: Mapping[tuple[bytes | None, bytes, int], KernelRoute]) -> dict[str, Any]:
        upstream = {
            _text(group): {"mode": "exclude" if each.is_exclude else "include", "sources": _texts(each.sources)}
            for group, each in sorted(running.proxy.host.filters.items())
        }
        downstreams = {
            name: {
                "is_querier": router.is_querier,
                "querier": None if router.other_querier is None else _text(router.other_querier),
                "groups": len(router.groups),
                "reports": router.n_reports,
                "drops": _counts(router.drops),
            }
            for name, router in running.proxy.downstreams.items()
        }
        routes = []
        for entry in running.forwarding.entries.values():
            parent = self._links.get(entry.parent)
            route = None if parent is None else found.get((entry.source, entry.group, parent.index))
            outputs = frozenset(self._links[name].index for name in entry.outputs if name in self._vifs)
            routes.append(
                {
                    "source": "*" if entry.source is None else _text(entry.source),
                    "group": _text(entry.group),
                    "from": entry.parent,
                    "to": list(entry.outputs),
                    "is_installed": route is not None and route.outputs == outputs,
                    "packets": 0 if route is None else route.n_packets,
                    "bytes": 0 if route is None else route.n_bytes,
                    "wrong_interface": 0 if route is None else route.n_wrong,
                }
            )
        names = [name for name, each in self._by_interface.items() if each is running]
        return {
            "upstream": running.wish.upstream,
            "asked_upstream": upstream,
            "drops": _counts(running.proxy.host.drops),
            "downstreams": downstreams,
            "routes": routes,
            "missing": [name for name in names if name not in self._links],
        }

    def _tell_no_address(self, name: str, running: _Running) -> None:
        """IPv6's comes by itself, a moment after the interface."""
        is_asking = running.wish.downstreams[name].querier is not QuerierMode.NEVER
        if is_asking and not self.router.is_v6 and self._links[name].address4 is None:
            what = f"{name} has no IPv4 address: nobody is asked there for IPv4 groups, and none is sent there"
            self._tell_once("interface-no-address", name, what)
        else:
            self._told.discard(("interface-no-address", name))

    def _address(self, link: Link) -> bytes | None:
        return link.address6 if self.router.is_v6 else link.address4

    def _nets(self, link: Link) -> tuple[Prefix, ...]:
        return () if self.router.is_v6 else link.nets4

    def _add(self, name: str, running: _Running, link: Link, now_s: float) -> None:
        left = {index: vif for vif, index in self._left[0].items()} if self._left is not None else {}
        taken = {*self._vifs.values(), *left.values()}
        vif = left.get(link.index, next((each for each in range(VIFS_MAX) if each not in taken), None))
        if vif is None:
            what = f"{name} gets no multicast: the kernel routes it between {VIFS_MAX} interfaces at most"
            self._tell_once("interface-refused", name, what)
            return
        try:
            if link.index not in left:
                self.router.add_vif(vif, link.index)
            self._port.attach(link.index)
        except (OSError, MulticastRoutingError) as error:
            # Gone between reading and here, or going, or the kernel has a limit.
            self.router.delete_vif(vif)
            self._retry_s = now_s + RETRY_S
            why = error.strerror if isinstance(error, OSError) else error.message
            self._tell_once("interface-refused", name, f"{name} can't take part in multicast routing: {why}")
            return
        self._vifs[name], self._links[name], self._names[link.index] = vif, link, name
        if name in running.wish.downstreams:
            settings = running.wish.downstreams[name]
            self._tell_no_address(name, running)
            running.proxy.add_downstream(name, settings, self._address(link), self._nets(link), now_s)
        if name == running.wish.upstream:
            # What was said while there was no upstream was heard by nobody.
            running.proxy.host.announce(now_s)
        if self._left is None:
            # Routes that waited for the interface. At first all interfaces are added, or outputs would be cut off.
            running.forwarding.refresh(None)
            self._reinstall(name)
        self._told.discard(("interface-refused", name))
        self._tell("interface-used", name, f"{name} takes part in multicast routing")

    def _remove(self, name: str, running: _Running, link: Link, now_s: float) -> None:
        vif = self._vifs.pop(name)
        del self._links[name], self._names[link.index]
        self._port.detach(link.index)
        # The number may be another interface's soon: no route may lead there, or from there.
        for each in self._running:
            for key, entry in list(each.installed.items()):
                if entry.parent == name:
                    self.router.delete_route(entry.source, entry.group, vif)
                    del each.installed[key]
        self._reinstall(name)
        self.router.delete_vif(vif)
        if name in running.wish.downstreams:
            running.proxy.remove_downstream(name, now_s)
        # Who had no number for want of one may have this.
        self._told = {each for each in self._told if each[0] != "interface-refused"}
        self._tell("interface-gone", name, f"{name} has gone: multicast is not routed there until it is back")

    def _adopt(self, vifs: dict[int, int], routes: list[KernelRoute], now_s: float) -> None:
        """Membership from the routes that are there; what no proxy wants any more goes."""
        names = self._names
        for running in self._running:
            mine = [each for each in routes if self._by_interface.get(names.get(each.parent, "")) is running]
            any_source = {each.group: each for each in mine if each.source is None}
            filters: dict[tuple[str, bytes], Filter] = {}
            for each in mine:
                static = [self._sent_always.get((source, each.group), ()) for source in (each.source, None)]
                for name in running.wish.downstreams.keys() - {*static[0], *static[1]}:
                    index = self._links[name].index if name in self._links else 0
                    is_output = index in each.outputs
                    is_any = each.group in any_source and index in any_source[each.group].outputs
                    before = filters.get((name, each.group), Filter(is_any))
                    if each.source is not None and names[each.parent] == running.wish.upstream and is_output != is_any:
                        before = Filter(is_any, before.sources | {each.source})
                    filters[name, each.group] = before
                if each.source is not None and (names[each.parent] != running.wish.upstream or not each.outputs):
                    running.forwarding.seen(each.source, each.group, names[each.parent], now_s)
            for (name, group), each_filter in filters.items():
                if name in self._vifs:
                    running.proxy.assume(name, group, each_filter, now_s)
            running.forwarding.refresh(None)
        self._act(now_s)
        kept = {(key, entry.parent) for each in self._running for key, entry in each.installed.items()}
        numbers = {index: vif for vif, index in vifs.items()}
        for route in routes:
            if ((route.source, route.group), names.get(route.parent)) not in kept and route.parent in numbers:
                self.router.delete_route(route.source, route.group, numbers[route.parent])
        for vif, index in vifs.items():
            if index not in names:
                self.router.delete_vif(vif)

    def _heard(self, index: int, heard: Heard | Drop, now_s: float) -> None:
        name = self._names.get(index)
        if name is None:
            return
        if isinstance(heard, Drop):
            self.drops[heard] += 1
        self._by_interface[name].proxy.receive(name, heard, now_s)

    def _unrouted(self, upcall: Unrouted, now_s: float) -> None:
        name = next((name for name, vif in self._vifs.items() if vif == upcall.vif), None)
        if name is None or upcall.kind not in (Upcall.NO_ROUTE, Upcall.WRONG_INTERFACE):
            return
        running = self._by_interface[name]
        home = name if name == running.wish.upstream else self._home(upcall.source, name, running)
        if home != name:
            # One packet that names another's address as its sender would take the stream away from all who watch it.
            self.n_forged += 1
            self._tell_forged(upcall, name, now_s)
            if upcall.kind is not Upcall.NO_ROUTE:
                return
        running.forwarding.seen(upcall.source, upcall.group, home, now_s, is_forged=home != name)
        if upcall.kind is not Upcall.NO_ROUTE:
            return
        # Someone has deleted what we think is there, or the kernel asked before it was.
        for source in (upcall.source, None):
            entry = running.installed.get((source, upcall.group))
            if entry is not None and entry.parent == name:
                self._install(running, entry)
                if source is None:
                    # What waits in the kernel waits for a route of its own source.
                    vif, outputs = self._vifs[name], self._outputs(entry)
                    self.router.add_route(upcall.source, upcall.group, vif, outputs)
                    self.router.delete_route(upcall.source, upcall.group, vif)
                return

    def _home(self, source: bytes, name: str, running: _Running) -> str:
        """Where a sender is whose packets came in on a downstream, by the kernel's own routes (reverse path)."""
        if source[:1] == b"\xfe" and len(source) == 16 and source[1] & 0xC0 == 0x80:
            return name  # of this link, whichever that is
        try:
            body = self._netlink.ask(wire.lookup_request(source))
        except OSError:
            return name
        found = None if body is None else wire.read_route(body)
        home = None if found is None else self._names.get(found[1].interface)
        return home if home is not None and home in running.wish.downstreams else running.wish.upstream

    def _tell_forged(self, upcall: Unrouted, name: str, now_s: float) -> None:
        packet = OddPacket(name, upcall.source, upcall.group, 0, 0, False)
        if self._watch.is_news("stream-forged", packet, now_s):
            # Not its address: it may be a viewer's, and events are kept.
            what = f"a host sends {_text(upcall.group)} on {name} from an address to which another way leads"
            why = "not routed: somebody forges that address, or the box lacks a route there"
            self._tell("stream-forged", name, f"{what}; {why}")

    def _act(self, now_s: float) -> None:
        """Carries out what the machines want: packets, routes, events."""
        self._now_s = now_s
        for running in self._running:
            for name, message in running.proxy.to_send(now_s):
                link = self._links.get(name)
                if link is None:
                    continue
                try:
                    self._port.send(link.index, message, self._address(link), link.mtu)
                except OSError:
                    # Lost like any packet may be: that is what robustness is for.
                    self.n_unsent += 1
            while (event := running.proxy.next_event()) is not None:
                match event:
                    case FlowsChanged(group=group):
                        running.forwarding.refresh(group)
                    case DownstreamQuerierChanged(interface=interface, querier=querier):
                        self._queriers[interface] = querier
                    case DownstreamRefused(interface=interface, why=why, sender=sender):
                        self._tell(why.value, interface, _refused(interface, why, sender))
                    case UpstreamVersionChanged(version=version):
                        name = running.wish.upstream
                        self._tell("upstream-version", name, f"version {version} of IGMP is spoken upstream on {name}")
            while (change := running.forwarding.next_change()) is not None:
                key = change.entry.source, change.entry.group
                if isinstance(change, Install):
                    self._install(running, change.entry)
                elif (there := running.installed.pop(key, None)) is not None:
                    self.router.delete_route(there.source, there.group, self._vifs[there.parent])

        self._tell_queriers(now_s)

    def _tell_queriers(self, now_s: float) -> None:
        """Of each link seldom: a host that forges queries can change it with each packet."""
        for name, querier in list(self._queriers.items()):
            if now_s < self._queriers_told_s.get(name, now_s - QUERIER_TOLD_S) + QUERIER_TOLD_S:
                continue
            del self._queriers[name]
            self._queriers_told_s[name] = now_s
            if name in self._links:
                what = f"we are querier on {name} now"
                if querier is not None:
                    # If it is no router, or forged, nobody forwards there.
                    what = f"{_text(querier)} is querier on {name} now, and forwards multicast there in our place"
                self._tell("querier-changed", name, what)

    def _reinstall(self, name: str) -> None:
        """What leads from or to the interface."""
        for running in self._running:
            for entry in list(running.forwarding.entries.values()):
                if name == entry.parent or name in entry.outputs:
                    self._install(running, entry)

    def _install(self, running: _Running, entry: Entry) -> None:
        key = entry.source, entry.group
        there = running.installed.get(key)
        parent = self._vifs.get(entry.parent)
        # A route for any source is told from others by its parent: it isn't replaced.
        if there is not None and (parent is None or (entry.source is None and there.parent != entry.parent)):
            self.router.delete_route(there.source, there.group, self._vifs[there.parent])
            del running.installed[key]
        if parent is None:
            return
        self.router.add_route(entry.source, entry.group, parent, self._outputs(entry))
        running.installed[key] = entry
        if there is None:
            self._watch.soon(self._now_s)

    def _outputs(self, entry: Entry) -> list[int]:
        return [self._vifs[name] for name in entry.outputs if name in self._vifs]

    def _look_for_lost(self, now_s: float) -> None:
        """Packets that the kernel drops without a word."""
        # Of all links but its own: a look at each of thousands of routes would hold up upcalls.
        mtus = {
            name: min((link.mtu for other, link in self._links.items() if other != name), default=mine.mtu)
            for name, mine in self._links.items()
            if self._by_interface[name].installed
        }
        packets = self._watch.on_timer(now_s, mtus, self._links)
        if self._watch.fault:
            what = f"streams that no router may forward can't be seen: {self._watch.fault}"
            self._tell_once("streams-unwatched", "", f"{what}; accelctl doctor looks for them, as root")
        for packet in packets:
            running = self._by_interface[packet.interface]
            keys = ((packet.source, packet.group), (None, packet.group))
            entry = next((running.installed[key] for key in keys if key in running.installed), None)
            if entry is None or entry.parent != packet.interface or not entry.outputs:
                continue
            outputs = {name: self._links[name].mtu for name in entry.outputs if name in self._vifs}
            is_viewer = packet.interface in running.wish.downstreams
            for kind, message in explained(packet, outputs, is_viewer=is_viewer):
                if self._watch.is_news(kind, packet, now_s):
                    self._tell(kind, packet.interface, message)

    def _forget_idle(self) -> None:
        packets: dict[tuple[bytes, bytes], int] = {}
        for running in self._running:
            for flow in running.forwarding.flows:
                count = self._packet_count(*flow)
                if count is None or self._packets.get(flow) == count:
                    running.forwarding.forget(*flow)
                else:
                    packets[flow] = count
        self._packets = packets

    def _packet_count(self, source: bytes, group: bytes) -> int | None:
        """Packets that the route of the flow has taken; None: it has none of its own."""
        if self.router.is_v6:
            head = b"".join(struct.pack("=HHI16sI", socket.AF_INET6, 0, 0, each, 0) for each in (source, group))
            request, at = head + bytes(24), len(head)
        else:
            head = source + group
            request, at = head + bytes(24), 8
        try:
            answer = fcntl.ioctl(self.router.fileno(), _SIOCGETSGCNT, request)
        except OSError:
            return None
        return int(struct.unpack_from("@L", answer, at)[0])

    def _tell_once(self, kind: str, interface: str, message: str) -> None:
        """Until it is otherwise."""
        if (kind, interface) not in self._told:
            self._told.add((kind, interface))
            self._tell(kind, interface, message)

    def _tell(self, kind: str, interface: str, message: str) -> None:
        family = "ipv6" if self.router.is_v6 else "ipv4"
        self.events.append({"kind": kind, "interface": interface, "family": family, "message": message})


def _counts(drops: Counter[Drop]) -> dict[str, int]:
    return {drop.value: n for drop, n in sorted(drops.items(), key=lambda each: each[0].value)}


def _refused(interface: str, why: Drop, sender: bytes) -> str:
    """For events, which are kept: the sender's network only, as it may be a viewer. IPv6's are link-local."""
    who = f"a host of {_text(sender[:3] + bytes(1))}/24" if len(sender) == 4 else "a host"
    protocol = "igmp" if len(sender) == 4 else "icmp6"
    shows = f"tcpdump -vni {interface} {protocol} shows it"
    match why:
        case Drop.QUERY_ABSURD:
            return (
                f"{who} on {interface} sends queries that would silence us for longer than "
                f"multicast.querier.other_present_max: dropped; {shows}, and if it is a router, raise that key"
            )
        case Drop.GROUP_LIMIT_HOST:
            return (
                f"{who} on {interface} wants more groups than group_limit_per_host: the others are not routed; "
                f"{shows}, and if it speaks for many hosts, raise that key of the proxy"
            )
        case _:
            return (
                f"{interface} has as many groups as group_limit allows: no other is routed; {shows} who asks, "
                "and if all of them are meant, raise that key of the proxy"
            )


def _text(address: bytes) -> str:
    return socket.inet_ntop(socket.AF_INET if len(address) == 4 else socket.AF_INET6, address)


def _texts(addresses: frozenset[bytes]) -> list[str]:
    return [_text(each) for each in sorted(addresses)]
