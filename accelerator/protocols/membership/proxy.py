"""The RFC 4605 proxy of one family: what the downstreams want, merged and asked for upstream; and for each flow,
where its packets go. Sans-IO; the kernel's routes are installed by who asks decide()."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from accelerator.protocols.membership.filters import NOTHING, Filter, merge
from accelerator.protocols.membership.host import HostSide, VersionChanged
from accelerator.protocols.membership.messages import (
    Drop,
    Heard,
    Kind,
    Message,
    Prefix,
    Record,
    is_forwardable,
)
from accelerator.protocols.membership.router import GroupChanged, QuerierChanged, Refused, RouterSide
from accelerator.protocols.membership.settings import HostSettings, RouterSettings


@dataclass(frozen=True, slots=True)
class FlowsChanged:
    """decide() may answer otherwise for the group's flows, or for all (None)."""

    group: bytes | None


@dataclass(frozen=True, slots=True)
class DownstreamQuerierChanged:
    """Who asks on a downstream; None: we, or nobody."""

    interface: str
    querier: bytes | None


@dataclass(frozen=True, slots=True)
class UpstreamVersionChanged:
    """Below 3, source filters don't reach the upstream router."""

    version: int


@dataclass(frozen=True, slots=True)
class DownstreamRefused:
    """What a host of a downstream sends is left aside, which the administrator should know."""

    interface: str
    why: Drop
    sender: bytes


Event = FlowsChanged | DownstreamQuerierChanged | UpstreamVersionChanged | DownstreamRefused


class Proxy:
    """One proxy: interfaces are names, the upstream is one of them. Downstreams come and go while it runs."""

    def __init__(self, upstream: str, settings: HostSettings, fraction: Callable[[], float]) -> None:
        self.upstream = upstream
        self.host = HostSide(settings, fraction)
        self._routers: dict[str, RouterSide] = {}
        self._may_forward: dict[str, bool] = {}  # when routes were last made
        self._wanted: dict[bytes, dict[str, Filter]] = {}
        self._always: dict[bytes, Filter] = {}
        self._events: deque[Event] = deque()

    @property
    def downstreams(self) -> Mapping[str, RouterSide]:
        return self._routers

    def add_downstream(
        self, name: str, settings: RouterSettings, address: bytes | None, nets: tuple[Prefix, ...], now_s: float
    ) -> None:
        """ValueError: it is there already, or is the upstream."""
        if name in self._routers or name == self.upstream:
            raise ValueError(f"{name} is an interface of this proxy already")
        self._routers[name] = RouterSide(settings, address, nets, now_s)
        self._may_forward[name] = self._routers[name].may_forward
        self._events.append(FlowsChanged(None))

    def remove_downstream(self, name: str, now_s: float) -> None:
        """What only it wanted is left upstream."""
        router = self._routers.pop(name)
        for group in list(router.groups):
            self._want(name, group, NOTHING, now_s)
        self._events.append(FlowsChanged(None))

    def set_address(self, name: str, address: bytes | None, nets: tuple[Prefix, ...], now_s: float) -> None:
        """A downstream's addresses have changed."""
        self._routers[name].set_address(address, nets, now_s)
        self._may_forward[name] = self._routers[name].may_forward
        self._events.append(FlowsChanged(None))

    def receive(self, interface: str, heard: Heard | Drop, now_s: float) -> None:
        """One packet that came in on an interface of ours."""
        if interface == self.upstream:
            self.host.receive(heard, now_s)
        elif interface in self._routers:
            self._routers[interface].receive(heard, now_s)
            self._take_events(interface, now_s)

    def ask_always(self, wanted: Mapping[bytes, Filter], now_s: float) -> None:
        """Groups that are asked for upstream whoever wants them downstream: those of static routes."""
        self._always = dict(wanted)
        for group in self._always:
            self._ask_upstream(group, now_s)

    def assume(self, name: str, group: bytes, wanted: Filter, now_s: float) -> None:
        """A downstream wanted this before we started: it counts until its hosts have had the time to say otherwise."""
        kind = Kind.IS_EXCLUDE if wanted.is_exclude else Kind.IS_INCLUDE
        self._routers[name].assume(Record(kind, group, wanted.sources), now_s)
        self._take_events(name, now_s)

    def decide(self, source: bytes, group: bytes, interface: str) -> tuple[str, ...]:
        """The interfaces to which packets of the flow that arrive on `interface` go, sorted. From a downstream they
        go up whoever wants them, and to the other downstreams that do (RFC 4605 section 4.2)."""
        if not is_forwardable(group) or (interface != self.upstream and interface not in self._routers):
            return ()
        wanted = [
            name
            for name in self._wanted.get(group, ())
            if name != interface and self._routers[name].may_forward and self._routers[name].accepts(source, group)
        ]
        return tuple(sorted(wanted if interface == self.upstream else [*wanted, self.upstream]))

    def decide_any(self, group: bytes) -> tuple[str, ...]:
        """Where packets from upstream of a source that nobody names go. Nowhere, if that hangs on the source all the
        same: where a downstream has an allow-list of sources, decide() has to be asked for each."""
        wanted = [
            name
            for name, each in self._wanted.get(group, {}).items()
            if each.is_exclude and self._routers[name].may_forward
        ]
        if any(self._routers[name].settings.admission.sources is not None for name in wanted):
            return ()
        return tuple(sorted(wanted))

    def named_sources(self, group: bytes) -> frozenset[bytes]:
        """The sources that some downstream lists, wanted or not."""
        return frozenset().union(*(each.sources for each in self._wanted.get(group, {}).values()))

    @property
    def groups(self) -> list[bytes]:
        """The groups that some downstream wants."""
        return list(self._wanted)

    def next_event(self) -> Event | None:
        return self._events.popleft() if self._events else None

    def to_send(self, now_s: float) -> list[tuple[str, Message]]:
        """What is due, with the interface to send it on."""
        self.on_timer(now_s)
        sending: list[tuple[str, Message]] = []
        for name, router in self._routers.items():
            sending += [(name, query) for query in router.to_send(now_s)]
            self._take_events(name, now_s)
        sending += [(self.upstream, message) for message in self.host.to_send(now_s)]
        return sending

    def next_timer(self) -> float | None:
        times = [self.host.next_timer(), *(router.next_timer() for router in self._routers.values())]
        return min((at_s for at_s in times if at_s is not None), default=None)

    def on_timer(self, now_s: float) -> None:
        for name, router in self._routers.items():
            router.on_timer(now_s)
            self._take_events(name, now_s)
        self.host.on_timer(now_s)
        while (changed := self.host.next_event()) is not None:
            self._events.append(_told(changed))

    def _take_events(self, name: str, now_s: float) -> None:
        router = self._routers[name]
        while (event := router.next_event()) is not None:
            match event:
                case GroupChanged(group=group, filter=wanted):
                    self._want(name, group, wanted, now_s)
                case Refused(why=why, sender=sender):
                    self._events.append(DownstreamRefused(name, why, sender))
                case QuerierChanged(querier=querier):
                    self._events.append(DownstreamQuerierChanged(name, querier))
                    # Another one in office changes no route; who forges queries changes it with each packet.
                    if router.may_forward != self._may_forward[name]:
                        self._may_forward[name] = router.may_forward
                        self._events.append(FlowsChanged(None))

    def _want(self, name: str, group: bytes, wanted: Filter, now_s: float) -> None:
        """The membership database (RFC 4605 section 4.1): one downstream's filter of a group has changed."""
        filters = self._wanted.setdefault(group, {})
        if wanted == NOTHING:
            filters.pop(name, None)
        else:
            filters[name] = wanted
        self._ask_upstream(group, now_s)
        if not filters:
            del self._wanted[group]
        self._events.append(FlowsChanged(group))

    def _ask_upstream(self, group: bytes, now_s: float) -> None:
        always = self._always.get(group, NOTHING)
        self.host.set_filter(group, merge([*self._wanted.get(group, {}).values(), always]), now_s)


def _told(changed: VersionChanged) -> UpstreamVersionChanged:
    return UpstreamVersionChanged(changed.version)
