"""Desired state: what services want of the kernel, as plain frozen values, and how it is written in JSON. It is read
from a socket and from disk, so every key and value is checked; what is carried out, and how, is elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from accelerator.kernel import checked, objects
from accelerator.kernel.checked import StateError
from accelerator.kernel.objects import PacketRule, Route, Rule

_QUERIER_MODES = ("if-none", "always", "never")

__all__ = ["DesiredState", "MulticastProxy", "StateError", "check_interfaces", "decode", "encode"]


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


@dataclass(frozen=True, slots=True)
class Interception:
    """Plain HTTP of viewers that is taken (TPROXY): `destinations` are IPv4 networks, `port` is our socket's."""

    interfaces: tuple[str, ...]
    destinations: tuple[str, ...]
    ports: tuple[int, ...]
    port: int


@dataclass(frozen=True, slots=True)
class DesiredState:
    """Of one service, whole."""

    multicast: tuple[MulticastProxy, ...] = ()
    routes: tuple[Route, ...] = ()
    rules: tuple[Rule, ...] = ()
    packet_rules: tuple[PacketRule, ...] = ()
    intercept: Interception | None = None


def decode(document: object) -> DesiredState:
    """From JSON's values. StateError names the first problem."""
    top = checked.mapping(document, "the state", {"intercept", "multicast", "routes", "rules", "packet_rules"})
    proxies = tuple(_proxy(each) for each in checked.items(top.get("multicast", []), "multicast"))
    check_interfaces(proxies)
    routes = objects.routes(top.get("routes", []))
    objects.check_routes(routes)
    return DesiredState(
        proxies,
        routes,
        objects.rules(top.get("rules", [])),
        objects.packet_rules(top.get("packet_rules", [])),
        None if top.get("intercept") is None else _interception(top["intercept"]),
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
    if state.intercept is not None:
        encoded["intercept"] = {name: getattr(state.intercept, name) for name in Interception.__slots__}
    return encoded


def check_interfaces(proxies: tuple[MulticastProxy, ...]) -> None:
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


def _interception(document: object) -> Interception:
    given = checked.mapping(document, "intercept", set(Interception.__slots__))
    names = checked.items(given.get("interfaces"), "intercept: interfaces")
    interfaces = tuple(checked.interface(each, "intercept") for each in names)
    destinations = checked.networks(given.get("destinations"), "intercept: destinations") or ()
    listed = checked.items(given.get("ports"), "intercept: ports")
    ports = tuple(checked.whole({"port": each}, "port", 0, 1, 65_535, "intercept") for each in listed)
    if not interfaces or not destinations or not ports or any(":" in each for each in destinations):
        raise StateError("value", "intercept names interfaces, IPv4 destinations and ports")
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
    )
