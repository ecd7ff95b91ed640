"""Rows of multicast proxies and routes, as netd is told them. Nothing is checked here."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network

from accelerator.policy.model import Policy


@dataclass(frozen=True, slots=True)
class ProxyRow:
    """One proxy, for netd: networks as text, none = any."""

    name: str
    upstream: str
    downstream: tuple[str, ...]
    groups: tuple[str, ...]
    sources: tuple[str, ...]
    group_limit: int
    group_limit_per_host: int
    fast_leave: bool
    querier: str
    interval_s: float
    robustness: int
    last_member_s: float
    other_present_max_s: float


@dataclass(frozen=True, slots=True)
class RouteRow:
    """A route that policy wants whoever joins. No source: any."""

    name: str
    source: str | None
    group: str
    interface: str
    to: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class MulticastRows:
    """`never`: networks of the zones that get none. `table` 0: the kernel's usual one."""

    proxies: tuple[ProxyRow, ...] = ()
    routes: tuple[RouteRow, ...] = ()
    never: tuple[str, ...] = ()
    table: int = 0


def multicast_rows(policy: Policy) -> MulticastRows:
    wanted = policy.multicast
    if not wanted.proxies and not wanted.routes:
        return MulticastRows()
    return MulticastRows(
        tuple(_proxy_row(policy, name) for name in wanted.proxies),
        tuple(RouteRow(name, row.source, row.group, row.from_, row.to) for name, row in wanted.routes.items()),
        _never(policy),
        wanted.table,
    )


def _never(policy: Policy) -> tuple[str, ...]:
    """Networks whose zone says never, without what in them belongs to another zone: the most specific one wins."""
    # The first zone of a network has it.
    owners: dict[IPv4Network | IPv6Network, bool] = {}
    for zone in policy.zones.values():
        for net in zone.nets:
            owners.setdefault(net, zone.multicast == "never")
    never: list[IPv4Network | IPv6Network] = []
    for net in sorted(owners, key=lambda each: each.prefixlen):
        if owners[net]:
            never.append(net)
        else:
            never = [piece for each in never for piece in _without(each, net)]
    return tuple(dict.fromkeys(map(str, never)))


def _without(net: IPv4Network | IPv6Network, hole: IPv4Network | IPv6Network) -> Iterable[IPv4Network | IPv6Network]:
    if isinstance(net, IPv4Network) and isinstance(hole, IPv4Network):
        return net.address_exclude(hole) if hole.subnet_of(net) else [net]
    if isinstance(net, IPv6Network) and isinstance(hole, IPv6Network):
        return net.address_exclude(hole) if hole.subnet_of(net) else [net]
    return [net]


def _proxy_row(policy: Policy, name: str) -> ProxyRow:
    proxy, querier = policy.multicast.proxies[name], policy.multicast.querier
    return ProxyRow(
        name=name,
        upstream=proxy.upstream,
        downstream=proxy.downstream,
        groups=tuple(map(str, proxy.groups)),
        sources=tuple(map(str, proxy.sources)),
        group_limit=proxy.group_limit,
        group_limit_per_host=proxy.group_limit_per_host,
        fast_leave=proxy.fast_leave,
        querier=querier.mode,
        interval_s=querier.interval,
        robustness=querier.robustness,
        last_member_s=querier.last_member,
        other_present_max_s=querier.other_present_max,
    )
