"""What has to be done, from what is wanted and what is there. Pure: no step is carried out here, and doing nothing is
what comes of a state that is right."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address, ip_network

from accelerator.kernel.objects import Route, Rule
from accelerator.kernel.wire import INET, INET6, IP6MR, IPMR, METRIC6, RouteRow, RuleRow

_FAMILIES = {4: INET, 6: INET6, 128: IPMR, 129: IP6MR}


@dataclass(frozen=True, slots=True)
class Wanted:
    """Rows that can be installed, and the names of interfaces that others wait for."""

    routes: frozenset[RouteRow]
    rules: frozenset[RuleRow]
    missing: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Steps:
    """In this order: routes first, so that no rule ever leads into an empty table; then what is wanted no more."""

    routes_added: tuple[RouteRow, ...] = ()
    rules_added: tuple[RuleRow, ...] = ()
    rules_deleted: tuple[RuleRow, ...] = ()
    routes_deleted: tuple[RouteRow, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.routes_added or self.rules_added or self.rules_deleted or self.routes_deleted)

    @property
    def groups(self) -> frozenset[str]:
        """What is touched, as one fights for it: each table, and the rules."""
        tables = {f"table {row.table}" for row in (*self.routes_added, *self.routes_deleted)}
        return frozenset(tables | ({"rules"} if self.rules_added or self.rules_deleted else set()))

    def lines(self, names: Mapping[int, str]) -> list[str]:
        """As `ip` would be told, for those who want to see it first."""
        return [
            *(f"ip route replace {route_text(row, names)}" for row in sorted(self.routes_added)),
            *(f"ip {_kind(row)} add {rule_text(row)}" for row in self.rules_added),
            *(f"ip {_kind(row)} del {rule_text(row)}" for row in self.rules_deleted),
            *(f"ip route del {route_text(row, names)}" for row in sorted(self.routes_deleted)),
        ]


def wanted(routes: Iterable[Route], rules: Iterable[Rule], interfaces: Mapping[str, int]) -> Wanted:
    """`interfaces`: those that are up, by name."""
    rows, missing = set(), set()
    for route in routes:
        if route.interface is not None and route.interface not in interfaces:
            missing.add(route.interface)
            continue
        rows.add(_route_row(route, interfaces))
    return Wanted(frozenset(rows), frozenset(map(_rule_row, rules)), tuple(sorted(missing)))


def plan(want: Wanted, routes: Sequence[RouteRow], rules: Sequence[RuleRow], stopped: frozenset[str]) -> Steps:
    """`routes`, `rules`: ours, as the kernel has them. Nothing is done about `stopped` groups."""
    there_rules = frozenset(rules)
    # Row by row, unsorted: what is one step of the interpreter's for 10,000 rows, such as a difference of sets, holds
    # up everybody else for as long as it takes, 10 ms and more (docs/decisions/0262).
    there: set[RouteRow] = set()
    for row in routes:
        there.add(row)
    added = [row for row in want.routes if row not in there]
    keys = {row.key for row in added}
    # What is replaced needs no deletion, which would take the new one away.
    deleted = [row for row in there if row not in want.routes and row.key not in keys]
    doubled = _doubled(rules)
    has_rules = "rules" not in stopped
    closed = {int(group.removeprefix("table ")) for group in stopped if group.startswith("table ")}
    return Steps(
        tuple(row for row in added if row.table not in closed),
        tuple(sorted(want.rules - there_rules)) if has_rules else (),
        tuple(sorted([*(there_rules - want.rules), *doubled])) if has_rules else (),
        tuple(row for row in deleted if row.table not in closed),
    )


def _doubled(rules: Sequence[RuleRow]) -> list[RuleRow]:
    """Of rules that stand there several times (the kernel allows it) all but one."""
    return [row for row, n in Counter(rules).items() for _ in range(n - 1)]


def _route_row(route: Route, interfaces: Mapping[str, int]) -> RouteRow:
    network = ip_network(route.destination)
    is_v6 = network.version == 6
    return RouteRow(
        _FAMILIES[network.version],
        route.table,
        network.network_address.packed,
        network.prefixlen,
        route.metric or (METRIC6 if is_v6 else 0),
        route.kind,
        _packed(route.gateway),
        interfaces[route.interface] if route.interface is not None else 0,
        _packed(route.source),
    )


def _rule_row(rule: Rule) -> RuleRow:
    source, source_length = _packed_network(rule.source)
    destination, destination_length = _packed_network(rule.destination)
    return RuleRow(
        _FAMILIES[rule.family],
        rule.priority,
        rule.table,
        source,
        source_length,
        destination,
        destination_length,
        rule.interface_in or "",
        rule.interface_out or "",
        rule.mark,
        rule.mask,
    )


def _packed(address: str | None) -> bytes:
    return ip_address(address).packed if address is not None else b""


def _packed_network(network: str | None) -> tuple[bytes, int]:
    if network is None:
        return b"", 0
    found = ip_network(network)
    return (found.network_address.packed, found.prefixlen) if found.prefixlen else (b"", 0)


def route_text(row: RouteRow, names: Mapping[int, str]) -> str:
    kind = "" if row.kind == "unicast" else f"{row.kind} "
    text = f"{kind}{ip_address(row.destination)}/{row.length}"
    if row.gateway:
        text += f" via {ip_address(row.gateway)}"
    if row.interface:
        text += f" dev {names.get(row.interface, row.interface)}"
    if row.source:
        text += f" src {ip_address(row.source)}"
    if row.metric and not (row.family == INET6 and row.metric == METRIC6):
        text += f" metric {row.metric}"
    return f"{text} table {row.table}"


def _kind(row: RuleRow) -> str:
    return "mrule" if row.family in (IPMR, IP6MR) else "rule"


def rule_text(row: RuleRow) -> str:
    text = f"pref {row.priority}"
    if row.source:
        text += f" from {ip_address(row.source)}/{row.source_length}"
    if row.destination:
        text += f" to {ip_address(row.destination)}/{row.destination_length}"
    if row.interface_in:
        text += f" iif {row.interface_in}"
    if row.interface_out:
        text += f" oif {row.interface_out}"
    if row.mask:
        text += f" fwmark {row.mark:#x}/{row.mask:#x}"
    return f"{'-6 ' if row.family in (INET6, IP6MR) else ''}{text} lookup {row.table}"
