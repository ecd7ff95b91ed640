"""Unicast routes, rules of policy routing, and packet rules, as services desire them: frozen values, checked when they
are read from JSON. Whatever is ours can be told by its numbers, which stand here; the system's own tables, and so the
default route, can't be named at all.

A packet rule is fields, never a text of nft's: acceleratord parses what strangers send, and must not be able to say
anything to the packet filter but this."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from ipaddress import ip_address, ip_network
from typing import Any

from accelerator.kernel import checked
from accelerator.kernel.checked import StateError

# The mark of whatever is ours: `ip route show proto 86`, `ip rule show` (priorities 8600 to 8699), `ip route show table
# 86000`, `nft list table inet accelerator`.
PROTOCOL = 86
TABLE_FIRST, TABLE_LAST = 86_000, 86_099
PRIORITY_FIRST, PRIORITY_LAST = 8600, 8699
NFT_TABLE = "accelerator"

ROUTES_MAX, RULES_MAX, PACKET_RULES_MAX = 100_000, 100, 1000
ROUTE_KINDS = ("unicast", "local", "blackhole", "unreachable", "throw")
HOOKS = ("prerouting", "input", "forward", "output", "postrouting")
# Networks that are wider are nearly everything.
WIDEST_V4, WIDEST_V6 = 8, 16
_NO_GATEWAY = ("local", "blackhole", "unreachable", "throw")


@dataclass(frozen=True, slots=True)
class Route:
    """`interface` isn't there: the route waits for it. `metric` 0: the kernel's usual one."""

    table: int
    destination: str
    gateway: str | None = None
    interface: str | None = None
    kind: str = "unicast"
    metric: int = 0
    source: str | None = None


@dataclass(frozen=True, slots=True)
class Rule:
    """Packets that have all that is named look in `table`. `mark` is compared under `mask`; mask 0: not at all.
    `family` is 4 or 6; of netd's own making also 128 or 129, for tables of multicast routes of the two."""

    priority: int
    table: int
    family: int = 4
    source: str | None = None
    destination: str | None = None
    interface_in: str | None = None
    interface_out: str | None = None
    mark: int = 0
    mask: int = 0


@dataclass(frozen=True, slots=True)
class PacketRule:
    """What is done to packets at a hook that have all that is named. Networks of both families may stand together;
    `*_not`: in none of them. `dscp`, `mark`, `priority` (a class of tc, MAJOR:MINOR) are set, `tproxy` (ADDRESS:PORT)
    is where the connection goes; `verdict` comes last."""

    hook: str
    protocol: str | None = None
    source: tuple[str, ...] = ()
    destination: tuple[str, ...] = ()
    destination_not: tuple[str, ...] = ()
    ports: tuple[int, ...] = ()
    source_ports: tuple[int, ...] = ()
    interface_in: str | None = None
    interface_out: str | None = None
    dscp_is: int | None = None
    mark_is: int | None = None
    has_socket: bool = False
    dscp: int | None = None
    mark: int | None = None
    priority: str | None = None
    tproxy: str | None = None
    verdict: str = "continue"


def routes(document: object) -> tuple[Route, ...]:
    rows = checked.items(document, "routes")
    if len(rows) > ROUTES_MAX:
        raise StateError("value", f"more than {ROUTES_MAX:,} routes")
    return tuple(map(_route, rows))


def rules(document: object) -> tuple[Rule, ...]:
    rows = checked.items(document, "rules")
    if len(rows) > RULES_MAX:
        raise StateError("value", f"more than {RULES_MAX} rules")
    return tuple(map(_rule, rows))


def packet_rules(document: object) -> tuple[PacketRule, ...]:
    rows = checked.items(document, "packet_rules")
    if len(rows) > PACKET_RULES_MAX:
        raise StateError("value", f"more than {PACKET_RULES_MAX:,} packet rules")
    return tuple(map(_packet_rule, rows))


def check_routes(routes: Iterable[Route]) -> None:
    """StateError where two routes of a table would replace each other, for ever."""
    seen: dict[tuple[int, str, int], Route] = {}
    for route in routes:
        key = route.table, route.destination, route.metric
        if seen.setdefault(key, route) != route:
            raise StateError("conflict", f"two routes to {route.destination} in table {route.table}")


def check_steered(rules: Iterable[Rule], routes: Iterable[Route]) -> None:
    """StateError where a rule would lead nearly everything by a table of ours, which would be the default route by
    another name. Packets that are marked, or bound to an interface, may go so: that is how links are chosen."""
    free = {
        (rule.table, rule.family): rule.priority
        for rule in rules
        if rule.interface_out is None and not rule.mask and not _is_narrow(rule.destination)
    }
    for route in routes if free else ():
        priority = free.get((route.table, 6 if ":" in route.destination else 4))
        if priority is not None and route.kind != "throw" and not _is_narrow(route.destination):
            what = f"rule {priority}: it would lead all packets to {route.destination} by table {route.table}"
            raise StateError("foreign", f"{what}: it has to name a mark, an interface to leave by, or a destination")


def _is_narrow(network: str | None) -> bool:
    if network is None:
        return False
    return int(network.rpartition("/")[2]) >= (WIDEST_V6 if ":" in network else WIDEST_V4)


def encode(each: Route | Rule | PacketRule) -> dict[str, Any]:
    """Without what has its usual value."""
    known = {field.name: (getattr(each, field.name), field.default) for field in fields(each)}
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, (value, usual) in known.items()
        if value != usual
    }


def _table(given: Mapping[str, object], where: str) -> int:
    table = checked.whole(given, "table", 0, 0, 2**32 - 1, where)
    if not TABLE_FIRST <= table <= TABLE_LAST:
        what = f"{where}: table {table} is the system's, which is never touched: ours are {TABLE_FIRST} to {TABLE_LAST}"
        raise StateError("foreign", what)
    return table


def _optional(given: Mapping[str, object], key: str, read: Any, where: str) -> Any:
    value = given.get(key)
    return None if value is None else read(value, where)


def _route(document: object) -> Route:
    given = checked.mapping(document, "a route", {field.name for field in fields(Route)})
    destination = checked.network(given.get("destination"), "a route's destination")
    where = f"the route to {destination}"
    route = Route(
        _table(given, where),
        destination,
        _optional(given, "gateway", checked.address, where),
        _optional(given, "interface", checked.interface, where),
        checked.choice(given, "kind", "unicast", ROUTE_KINDS, where),
        checked.whole(given, "metric", 0, 0, 2**31, where),
        _optional(given, "source", checked.address, where),
    )
    version = ip_network(destination).version
    if any(each is not None and ip_address(each).version != version for each in (route.gateway, route.source)):
        raise StateError("value", f"{where}: its addresses are of another family")
    if route.kind in _NO_GATEWAY and route.gateway is not None:
        raise StateError("value", f"{where}: {route.kind} has no gateway")
    if route.kind in ("unicast", "local") and route.interface is None:
        raise StateError("value", f"{where}: it names no interface")
    return route


def _rule(document: object) -> Rule:
    given = checked.mapping(document, "a rule", {field.name for field in fields(Rule)})
    priority = checked.whole(given, "priority", 0, 0, 2**32 - 1, "a rule")
    where = f"rule {priority}"
    if not PRIORITY_FIRST <= priority <= PRIORITY_LAST:
        raise StateError("foreign", f"{where}: our priorities are {PRIORITY_FIRST} to {PRIORITY_LAST}")
    rule = Rule(
        priority,
        _table(given, where),
        checked.whole(given, "family", 4, 4, 6, where),
        _optional(given, "source", checked.network, where),
        _optional(given, "destination", checked.network, where),
        _optional(given, "interface_in", checked.interface, where),
        _optional(given, "interface_out", checked.interface, where),
        checked.whole(given, "mark", 0, 0, 2**32 - 1, where),
        checked.whole(given, "mask", 0, 0, 2**32 - 1, where),
    )
    if rule.family not in (4, 6) or any(
        each is not None and ip_network(each).version != rule.family for each in (rule.source, rule.destination)
    ):
        raise StateError("value", f"{where}: its networks are of another family")
    if rule.mark & ~rule.mask:
        raise StateError("value", f"{where}: its mark has bits outside its mask")
    return rule


def _packet_rule(document: object) -> PacketRule:
    given = checked.mapping(document, "a packet rule", {field.name for field in fields(PacketRule)})
    hook = checked.choice(given, "hook", "", HOOKS, "a packet rule")
    where = f"a packet rule at {hook}"
    protocol = given.get("protocol")
    if protocol is not None and protocol not in ("tcp", "udp"):
        raise StateError("value", f"{where}: protocol is tcp or udp")
    has_socket = given.get("has_socket", False)
    if not isinstance(has_socket, bool):
        raise StateError("value", f"{where}: has_socket is true or false")
    rule = PacketRule(
        hook,
        protocol if isinstance(protocol, str) else None,
        source=checked.networks(given.get("source", []), where) or (),
        destination=checked.networks(given.get("destination", []), where) or (),
        destination_not=checked.networks(given.get("destination_not", []), where) or (),
        ports=checked.ports(given.get("ports", []), where),
        source_ports=checked.ports(given.get("source_ports", []), where),
        interface_in=_optional(given, "interface_in", checked.interface, where),
        interface_out=_optional(given, "interface_out", checked.interface, where),
        dscp_is=_bounded(given, "dscp_is", 63, where),
        mark_is=_bounded(given, "mark_is", 2**32 - 1, where),
        has_socket=has_socket,
        dscp=_bounded(given, "dscp", 63, where),
        mark=_bounded(given, "mark", 2**32 - 1, where),
        priority=_optional(given, "priority", _tc_class, where),
        tproxy=_optional(given, "tproxy", _target, where),
        verdict=checked.choice(given, "verdict", "continue", ("continue", "accept", "return"), where),
    )
    if (rule.ports or rule.source_ports or rule.tproxy or rule.has_socket) and rule.protocol is None:
        raise StateError("value", f"{where}: ports and sockets need a protocol")
    if rule.tproxy is not None and rule.hook != "prerouting":
        raise StateError("value", f"{where}: tproxy is for prerouting")
    return rule


def _bounded(given: Mapping[str, object], key: str, high: int, where: str) -> int | None:
    return None if given.get(key) is None else checked.whole(given, key, 0, 0, high, where)


def _tc_class(value: object, where: str) -> str:
    major, _, minor = str(value).partition(":")
    try:
        return f"{int(major, 16):x}:{int(minor, 16):x}"
    except ValueError:
        raise StateError("value", f"{where}: {value!r:.20} is no class of tc") from None


def _target(value: object, where: str) -> str:
    host, _, port = str(value).rpartition(":")
    if not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise StateError("value", f"{where}: {value!r:.60} is no ADDRESS:PORT")
    host = checked.address(host.removeprefix("[").removesuffix("]"), where)
    return f"[{host}]:{int(port)}" if ":" in host else f"{host}:{int(port)}"
