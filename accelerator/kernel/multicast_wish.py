"""What multicast is wanted of the kernel, as the machines take it, made of what services desire (state.py). Values
only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import ip_address, ip_network

from accelerator.kernel.objects import PRIORITY_LAST, Rule
from accelerator.kernel.state import DesiredState, MulticastProxy, MulticastRoute
from accelerator.protocols.membership.forwarding import StaticRoute
from accelerator.protocols.membership.messages import Prefix, prefix
from accelerator.protocols.membership.settings import Admission, HostSettings, QuerierMode, RouterSettings, Timing


@dataclass(frozen=True, slots=True)
class ProxyWish:
    """One proxy, as policy wants it. Each interface stands in one proxy only."""

    name: str
    upstream: str
    downstreams: Mapping[str, RouterSettings]
    host: HostSettings = field(default_factory=HostSettings)


@dataclass(frozen=True, slots=True)
class MulticastWish:
    """All that is wanted. `never`: an interface with an address in these networks gets none. `table`: the kernel's, of
    both families; None: the usual one."""

    proxies: tuple[ProxyWish, ...] = ()
    routes: tuple[StaticRoute, ...] = ()
    never: tuple[Prefix, ...] = ()
    table: int | None = None

    def is_of(self, *, is_v6: bool) -> bool:
        """Whether anything of the family is wanted."""
        return bool(self.proxies) or any((len(each.group) == 16) == is_v6 for each in self.routes)

    @property
    def interfaces(self) -> frozenset[str]:
        named = [name for each in self.proxies for name in (each.upstream, *each.downstreams)]
        return frozenset([*named, *(name for each in self.routes for name in (each.parent, *each.outputs))])


def proxies_of_routes(wish: MulticastWish, static: Iterable[StaticRoute]) -> list[ProxyWish]:
    """One for each interface that static routes come from and no proxy has: it asks for their groups there."""
    named = {name for each in wish.proxies for name in (each.upstream, *each.downstreams)}
    parents = dict.fromkeys(each.parent for each in static if each.parent not in named)
    return [ProxyWish(f"routes from {each}", each, {}) for each in parents]


def multicast_wish(states: Iterable[DesiredState]) -> MulticastWish:
    """All services' together; check_multicast() has found nothing against it."""
    states = list(states)
    never = tuple(dict.fromkeys(prefix(ip_network(net)) for each in states for net in each.multicast_never))
    return MulticastWish(
        tuple(_proxy_wish(proxy, never) for each in states for proxy in each.multicast),
        tuple(_static_route(route) for each in states for route in each.multicast_routes),
        never,
        next((each.multicast_table for each in states if each.multicast_table), None),
    )


def multicast_rules(wish: MulticastWish) -> list[Rule]:
    """What steers packets that come in on our interfaces to a table of our own, those of IGMP and MLD too."""
    if wish.table is None:
        return []
    return [
        Rule(PRIORITY_LAST, wish.table, family, interface_in=name)
        for family in (128, 129)
        for name in sorted(wish.interfaces)
    ]


def _static_route(route: MulticastRoute) -> StaticRoute:
    source = None if route.source is None else ip_address(route.source).packed
    return StaticRoute(source, ip_address(route.group).packed, route.interface, tuple(sorted(route.to)))


def _proxy_wish(proxy: MulticastProxy, never: tuple[Prefix, ...]) -> ProxyWish:
    settings = RouterSettings(
        replace(
            Timing(),
            robustness=proxy.robustness,
            interval_s=proxy.interval_s,
            response_s=min(10.0, proxy.interval_s / 2),
            last_member_interval_s=proxy.last_member_interval_s,
        ),
        QuerierMode(proxy.querier),
        Admission(
            _prefixes(proxy.groups),
            _prefixes(proxy.sources),
            n_groups_max=proxy.n_groups_max,
            n_groups_host_max=proxy.n_groups_host_max,
            hosts_refused=never,
        ),
        proxy.other_present_max_s,
        proxy.fast_leave,
    )
    host = HostSettings(robustness=proxy.robustness, version_min=proxy.version_min)
    return ProxyWish(proxy.name, proxy.upstream, dict.fromkeys(proxy.downstream, settings), host)


def _prefixes(networks: tuple[str, ...] | None) -> tuple[Prefix, ...] | None:
    return None if networks is None else tuple(prefix(ip_network(each)) for each in networks)
