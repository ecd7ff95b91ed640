"""The kernel's unicast routes and rules over one netlink socket: what of them is ours, and the steps of a plan carried
out. Blocks, so that a thread of its own has it: an upcall of multicast must not wait for 10,000 routes. Decides
nothing."""

from __future__ import annotations

import os
import socket
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from accelerator.kernel import wire
from accelerator.kernel.netlink import Netlink
from accelerator.kernel.objects import PRIORITY_FIRST, PRIORITY_LAST, PROTOCOL, TABLE_FIRST, TABLE_LAST
from accelerator.kernel.plan import Steps
from accelerator.kernel.wire import RouteRow, RuleRow

_FAMILIES = (socket.AF_INET, socket.AF_INET6)


@dataclass(slots=True)
class Found:
    """What is ours. `foreign`: tables of our numbers that somebody else has put a route into."""

    routes: list[RouteRow] = field(default_factory=list)
    rules: list[RuleRow] = field(default_factory=list)
    foreign: frozenset[int] = frozenset()


class Routing:
    """One thread at a time. OSError: netlink failed as a whole."""

    def __init__(self) -> None:
        self._netlink = Netlink()
        # A route is the same bytes in each dump: what was read once needs no reading again.
        self._read: dict[bytes, tuple[int, RouteRow] | None] = {}

    def close(self) -> None:
        self._netlink.close()

    def observe(self, tables: Iterable[int], *, everywhere: bool = True) -> Found:
        """`tables`: those that are written to. `everywhere`: also what of ours stands in tables that are no more."""
        found, read, foreign = Found(), {}, set()
        tables = set(tables)
        for family in _FAMILIES:
            requests = [(table, wire.routes_request(family, table=table)) for table in sorted(tables)]
            if everywhere:
                requests.append((0, wire.routes_request(family)))
            for asked, request in requests:
                for body in self._netlink.dump(request):
                    known = self._read[body] if body in self._read else _route(body)
                    read[body] = known
                    # A dump of a table that isn't there gives nothing, or on old kernels everything.
                    if known is None or (known[1].table != asked if asked else known[1].table in tables):
                        continue
                    if known[0] == PROTOCOL:
                        found.routes.append(known[1])
                    else:
                        foreign.add(known[1].table)
        for rules in (*_FAMILIES, wire.IPMR, wire.IP6MR):
            for body in self._netlink.dump(wire.rules_request(rules)):
                rule = wire.read_rule(body)
                if rule is not None and rule[0] == PROTOCOL and PRIORITY_FIRST <= rule[1].priority <= PRIORITY_LAST:
                    found.rules.append(rule[1])
        found.foreign = frozenset(foreign)
        self._read = read
        return found

    def carry_out(self, steps: Steps) -> Counter[str]:
        """How often each error came; none: all is done."""
        failed: Counter[str] = Counter()
        for messages in (
            (wire.route_message(row, is_added=True) for row in steps.routes_added),
            (wire.rule_message(row, is_added=True) for row in steps.rules_added),
            (wire.rule_message(row, is_added=False) for row in steps.rules_deleted),
            (wire.route_message(row, is_added=False) for row in steps.routes_deleted),
        ):
            failed.update(map(os.strerror, self._netlink.send(messages)))
        return failed



def _route(body: bytes) -> tuple[int, RouteRow] | None:
    read = wire.read_route(body)
    if read is None or not TABLE_FIRST <= read[1].table <= TABLE_LAST:
        return None
    protocol, row = read
    # IPv6 says that what leads nowhere leads to the loopback interface.
    return protocol, row._replace(interface=0) if row.kind in ("blackhole", "unreachable", "throw") else row
