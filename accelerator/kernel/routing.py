"""The kernel's unicast routes and rules over one netlink socket: what of them is ours, and the steps of a plan carried
out. Blocks, so that a thread of its own has it: an upcall of multicast must not wait for 10,000 routes. Decides
nothing."""

from __future__ import annotations

import errno
import os
import socket
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice

from accelerator.kernel import wire
from accelerator.kernel.objects import PRIORITY_FIRST, PRIORITY_LAST, PROTOCOL, TABLE_FIRST, TABLE_LAST
from accelerator.kernel.plan import Steps
from accelerator.kernel.wire import RouteRow, RuleRow

_SOL_NETLINK, _NETLINK_CAP_ACK, _NETLINK_GET_STRICT_CHK = 270, 10, 12
# So many messages are written at once; their answers fit into the socket's buffer.
BATCH = 200
_RECEIVE_BYTES = 1 << 17
_TIMEOUT_S = 5.0
# What is fine: gone already, there already.
_DONE_ALREADY = frozenset({errno.ENOENT, errno.ESRCH, errno.EEXIST})
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
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        self._socket.settimeout(_TIMEOUT_S)
        self._socket.setsockopt(_SOL_NETLINK, _NETLINK_CAP_ACK, 1)
        # Without it the kernel ignores what a dump asks for, and gives everything.
        self._socket.setsockopt(_SOL_NETLINK, _NETLINK_GET_STRICT_CHK, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        self._socket.bind((0, 0))
        self._number = 0
        # A route is the same bytes in each dump: what was read once needs no reading again.
        self._read: dict[bytes, tuple[int, RouteRow] | None] = {}

    def close(self) -> None:
        self._socket.close()

    def observe(self, tables: Iterable[int], *, everywhere: bool = True) -> Found:
        """`tables`: those that are written to. `everywhere`: also what of ours stands in tables that are no more."""
        found, read, foreign = Found(), {}, set()
        tables = set(tables)
        for family in _FAMILIES:
            requests = [(table, wire.routes_request(family, table=table)) for table in sorted(tables)]
            if everywhere:
                requests.append((0, wire.routes_request(family)))
            for asked, request in requests:
                for body in self._dump(request):
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
            for body in self._dump(wire.rules_request(rules)):
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
            while batch := list(islice(messages, BATCH)):
                failed.update(self._send(batch))
        return failed

    def _send(self, batch: list[bytes]) -> Iterator[str]:
        self._socket.send(b"".join(batch))
        left = len(batch)
        while left:
            for kind, _, body in wire.messages(self._socket.recv(_RECEIVE_BYTES)):
                if kind == wire.NLMSG_ERROR:
                    left -= 1
                    number = wire.read_error(body)
                    if number and number not in _DONE_ALREADY:
                        yield os.strerror(number)

    def _dump(self, request: wire.Request) -> Iterator[bytes]:
        """Bodies of the answers, to be read to their end. OSError where the kernel refuses."""
        self._number += 1
        self._socket.send(request(self._number))
        while True:
            for kind, answered, body in wire.messages(self._socket.recv(_RECEIVE_BYTES)):
                if answered != self._number:
                    continue
                if kind == wire.NLMSG_DONE:
                    return
                if kind == wire.NLMSG_ERROR:
                    fault = wire.read_error(body)
                    # A table that isn't there; a kernel with one table of multicast routes only.
                    if fault in (errno.ENOENT, errno.EAFNOSUPPORT, errno.EOPNOTSUPP):
                        return
                    raise OSError(fault, f"netlink: {os.strerror(fault)}")
                yield body


def _route(body: bytes) -> tuple[int, RouteRow] | None:
    read = wire.read_route(body)
    if read is None or not TABLE_FIRST <= read[1].table <= TABLE_LAST:
        return None
    protocol, row = read
    # IPv6 says that what leads nowhere leads to the loopback interface.
    return protocol, row._replace(interface=0) if row.kind in ("blackhole", "unreachable", "throw") else row
