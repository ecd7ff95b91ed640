"""Desired state: what services want of the kernel, as plain frozen values, and how it is written in JSON. It is read
from a socket and from disk, so every key and value is checked; what is carried out, and how, is elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Any

from accelerator.kernel import checked, objects, shaped
from accelerator.kernel.checked import StateError
from accelerator.kernel.objects import PacketRule, Route, Rule
from accelerator.kernel.shaped import Shaper
from accelerator.protocols.membership.messages import (
    SSM_RANGES,
    is_forwardable,
    is_multicast,
    is_unicast,
    is_within,
)

_QUERIER_MODES = ("if-none", "always", "never")
# Said again with the same number, a state is taken over: so the last number is no end.
GENERATION_MAX = 2**63 - 1
# Of interception's destinations, by whether it is IPv6: as policy check has it, for who asks without a policy.
WIDEST_TAKEN = {False: 8, True: 32}

__all__ = [
    "GENERATION_MAX",
    "DesiredState",
    "MulticastProxy",
    "MulticastRoute",
    "StateError",
    "check_multicast",
    "decode",
    "encode",
]


@dataclass(frozen=True, slots=True)
class MulticastProxy:
    """An RFC 4605 proxy for IGMP and MLD. `groups`, `sources`: what hosts may ask for, as networks; None: anything."""

    name: str
    upstream: str
    downstream: tuple[str, ...]
    querier: str = "if-none"
    interval_s: float = 125.0
    robustness: int = 2
    last_member_interval_s: float = 1.0
    fast_leave: bool = False
    groups: tuple[str, ...] | None = None
    sources: tuple[str, ...] | None = None
    n_groups_max: int = 4096
    version_min: int = 1
    n_groups_host_max: int = 1024
    other_present_max_s: float = 900.0


@dataclass(frozen=True, slots=True)
class MulticastRoute:
    """What is sent on whoever joins. No source: any. `to`: where to."""

    name: str
    source: str | None
    group: str
    interface: str
    to: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Interception:
    """Plain HTTP of viewers that is taken (TPROXY): `destinations` are networks, `port` is our socket's."""

    interfaces: tuple[str, ...]
    destinations: tuple[str, ...]
    ports: tuple[int, ...]
    port: int


@dataclass(frozen=True, slots=True)
class DesiredState:
    """Of one service, whole. `multicast_never`: networks of hosts that get none; an interface with an address there
    gets none either. `multicast_table` 0: the kernel's usual one."""

    multicast: tuple[MulticastProxy, ...] = ()
    routes: tuple[Route, ...] = ()
    rules: tuple[Rule, ...] = ()
    packet_rules: tuple[PacketRule, ...] = ()
    intercept: Interception | None = None
    multicast_routes: tuple[MulticastRoute, ...] = ()
    multicast_never: tuple[str, ...] = ()
    multicast_table: int = 0
    shapers: tuple[Shaper, ...] = ()


def decode(document: object) -> DesiredState:
    """From JSON's values. StateError names the first problem."""
    top = checked.mapping(document, "the state", set(DesiredState.__slots__))
    proxies = tuple(_proxy(each) for each in checked.items(top.get("multicast", []), "multicast"))
    _check_interfaces(proxies)
    multicast_routes = tuple(_multicast_route(each) for each in checked.items(top.get("multicast_routes", []), "them"))
    _check_multicast_routes(multicast_routes, proxies)
    routes = objects.routes(top.get("routes", []))
    objects.check_routes(routes)
    return DesiredState(
        proxies,
        routes,
        objects.rules(top.get("rules", [])),
        objects.packet_rules(top.get("packet_rules", [])),
        None if top.get("intercept") is None else _interception(top["intercept"]),
        multicast_routes,
        checked.networks(top.get("multicast_never", []), "multicast_never") or (),
        _multicast_table(top),
        shaped.shapers(top.get("shapers", [])),
    )


def encode(state: DesiredState) -> dict[str, Any]:
    """decode() of it gives the same state."""
    proxies = []
    for each in state.multicast:
        known = {name: getattr(each, name) for name in MulticastProxy.__slots__}
        proxies.append({name: list(value) if isinstance(value, tuple) else value for name, value in known.items()})
    encoded: dict[str, Any] = {"multicast": proxies}
    for key, rows in (("routes", state.routes), ("rules", state.rules), ("packet_rules", state.packet_rules)):
        if rows:
            encoded[key] = [objects.encode(row) for row in rows]
    if state.multicast_routes:
        names = MulticastRoute.__slots__
        encoded["multicast_routes"] = [
            {name: getattr(each, name) for name in names} | {"to": list(each.to)} for each in state.multicast_routes
        ]
    if state.multicast_never:
        encoded["multicast_never"] = list(state.multicast_never)
    if state.multicast_table:
        encoded["multicast_table"] = state.multicast_table
    if state.shapers:
        encoded["shapers"] = [shaped.encode(row) for row in state.shapers]
    if state.intercept is not None:
        encoded["intercept"] = {name: getattr(state.intercept, name) for name in Interception.__slots__}
    return encoded


def _check_interfaces(proxies: tuple[MulticastProxy, ...]) -> None:
    """StateError where an interface has two places: of two proxies one would loop what the other sends, or the
    kernel, which has one route for a flow, could serve only one."""
    places: dict[str, str] = {}
    for proxy in proxies:
        for interface in (proxy.upstream, *proxy.downstream):
            if interface in places:
                raise StateError(
                    "interface", f"{interface} stands in proxy {places[interface]} and in proxy {proxy.name}"
                )
            places[interface] = proxy.name


def check_multicast(states: Iterable[DesiredState]) -> None:
    """StateError where services are at odds."""
    states = list(states)
    proxies = tuple(proxy for each in states for proxy in each.multicast)
    _check_interfaces(proxies)
    _check_multicast_routes([route for each in states for route in each.multicast_routes], proxies)
    if len({each.multicast_table for each in states if each.multicast or each.multicast_routes}) > 1:
        raise StateError("conflict", "services want multicast in different tables of the kernel")


def _check_multicast_routes(routes: Iterable[MulticastRoute], proxies: Iterable[MulticastProxy]) -> None:
    """StateError where two would be the kernel's one route of a flow, or a proxy could not do its part beside one."""
    downstreams = {each for proxy in proxies for each in proxy.downstream}
    filtered = {proxy.upstream for proxy in proxies if proxy.sources is not None}
    seen: dict[tuple[str | None, str], str] = {}
    for route in routes:
        other = seen.setdefault((route.source, route.group), route.name)
        if other != route.name:
            raise StateError("conflict", f"multicast routes {other} and {route.name} are of one source and group")
        if route.source is None and route.interface in downstreams | filtered:
            what = f"multicast route {route.name} names no source, and a proxy decides by it on {route.interface}"
            raise StateError("conflict", what)


def _multicast_route(document: object) -> MulticastRoute:
    given = checked.mapping(document, "a multicast route", set(MulticastRoute.__slots__))
    name = checked.text(given, "name", "a multicast route")
    where = f"multicast route {name}"
    group = ip_address(checked.address(given.get("group"), where))
    source = None if given.get("source") is None else ip_address(checked.address(given["source"], where))
    if not is_multicast(group.packed) or not is_forwardable(group.packed):
        raise StateError("value", f"{where}: {group} is no group that may leave its link")
    if source is not None and (source.version != group.version or not is_unicast(source.packed)):
        raise StateError("value", f"{where}: {source} can't be a source of {group}")
    if source is None and is_within(group.packed, SSM_RANGES):
        raise StateError("value", f"{where}: {group} is source-specific, and no source is named")
    interface = checked.interface(given.get("interface"), where)
    to = tuple(checked.interface(each, where) for each in checked.items(given.get("to"), f"{where}: to"))
    if not to or interface in to:
        raise StateError("value", f"{where}: it goes to interfaces, and to others than where it comes from")
    return MulticastRoute(name, None if source is None else str(source), str(group), interface, to)


def _multicast_table(given: Mapping[str, object]) -> int:
    table = checked.whole(given, "multicast_table", 0, 0, 99_999_999, "the state")
    if 252 <= table <= 255:
        raise StateError("foreign", f"multicast table {table} is the kernel's own")
    return table


def _interception(document: object) -> Interception:
    given = checked.mapping(document, "intercept", set(Interception.__slots__))
    names = checked.items(given.get("interfaces"), "intercept: interfaces")
    interfaces = tuple(checked.interface(each, "intercept") for each in names)
    destinations = checked.networks(given.get("destinations"), "intercept: destinations") or ()
    listed = checked.items(given.get("ports"), "intercept: ports")
    ports = tuple(checked.whole({"port": each}, "port", 0, 1, 65_535, "intercept") for each in listed)
    wide = next((each for each in destinations if ip_network(each).prefixlen < WIDEST_TAKEN[":" in each]), None)
    if wide is not None:
        raise StateError("value", f"intercept: {wide} is far more than video servers")
    if not interfaces or not destinations or not ports:
        raise StateError("value", "intercept names interfaces, destinations and ports")
    port = checked.whole(given, "port", 0, 1024, 65_535, "intercept")
    return Interception(interfaces, destinations, ports, port)


def _proxy(document: object) -> MulticastProxy:
    known = set(MulticastProxy.__slots__)
    given = checked.mapping(document, "a multicast proxy", known)
    name = checked.text(given, "name", "a multicast proxy")
    where = f"multicast proxy {name}"
    named = checked.items(given.get("downstream", []), f"{where}: downstream")
    downstream = tuple(checked.interface(each, where) for each in named)
    if not downstream:
        raise StateError("value", f"{where}: downstream names no interface")
    querier = given.get("querier", "if-none")
    if querier not in _QUERIER_MODES:
        raise StateError("value", f"{where}: querier is one of {', '.join(_QUERIER_MODES)}")
    fast_leave = given.get("fast_leave", False)
    if not isinstance(fast_leave, bool):
        raise StateError("value", f"{where}: fast_leave is true or false")
    return MulticastProxy(
        name,
        checked.interface(given.get("upstream"), where),
        downstream,
        querier,
        checked.number(given, "interval_s", 125.0, 1, 3600, where),
        int(checked.number(given, "robustness", 2, 1, 7, where)),
        checked.number(given, "last_member_interval_s", 1.0, 0.1, 25, where),
        fast_leave,
        checked.networks(given.get("groups"), where),
        checked.networks(given.get("sources"), where),
        int(checked.number(given, "n_groups_max", 4096, 1, 65536, where)),
        int(checked.number(given, "version_min", 1, 1, 3, where)),
        int(checked.number(given, "n_groups_host_max", 1024, 1, 65536, where)),
        checked.number(given, "other_present_max_s", 900.0, 60, 43200, where),
    )
