"""Routes and rules as rtnetlink messages: bytes from rows and rows from bytes. Pure. Below pyroute2, whose decoding of
a dump of 10,000 routes alone takes longer than a whole pass may (docs/decisions/0221); rows are plain tuples, so that
what is there and what is wanted are compared as sets."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Iterator
from typing import NamedTuple

from accelerator.kernel.objects import PROTOCOL

NLMSG_ERROR, NLMSG_DONE = 2, 3
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_NEWRULE, RTM_DELRULE, RTM_GETRULE = 32, 33, 34
F_REQUEST, F_ACK, F_DUMP, F_REPLACE, F_EXCL, F_CREATE = 1, 4, 0x300, 0x100, 0x200, 0x400
_HEAD = struct.Struct("=IHHII")  # nlmsghdr
_ROUTE = struct.Struct("=BBBBBBBBI")  # rtmsg
_RULE = struct.Struct("=BBBBBBBBI")  # fib_rule_hdr
_ATTRIBUTE = struct.Struct("=HH")
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY, _RTA_PREFSRC, _RTA_TABLE = 1, 4, 5, 6, 7, 15
_FRA_DST, _FRA_SRC, _FRA_IIFNAME, _FRA_PRIORITY, _FRA_FWMARK, _FRA_TABLE = 1, 2, 3, 6, 10, 15
_FRA_FWMASK, _FRA_OIFNAME, _FRA_PROTOCOL = 16, 17, 21
_TO_TABLE = 1  # FR_ACT_TO_TBL
INET, INET6 = int(socket.AF_INET), int(socket.AF_INET6)
IPMR, IP6MR = 128, 129  # linux/rtnetlink.h RTNL_FAMILY_*: multicast routing
_TABLE_COMPAT = 252  # RT_TABLE_COMPAT: the number stands in the attribute
_KINDS = {"unicast": 1, "local": 2, "blackhole": 6, "unreachable": 7, "throw": 9}
_KIND_NAMES = {number: name for name, number in _KINDS.items()}
_SCOPE_UNIVERSE, _SCOPE_LINK, _SCOPE_HOST = 0, 253, 254
# What the kernel gives an IPv6 route without one (IP6_RT_PRIO_USER).
METRIC6 = 1024


# A dump's request, once it is told which number its answers shall have.
Request = Callable[[int], bytes]


class RouteRow(NamedTuple):
    """One route, addresses packed; `interface` is the kernel's number, 0: none."""

    family: int
    table: int
    destination: bytes
    length: int
    metric: int
    kind: str = "unicast"
    gateway: bytes = b""
    interface: int = 0
    source: bytes = b""

    @property
    def key(self) -> tuple[int, int, bytes, int, int]:
        """What a table can have once: a route with the same key replaces another."""
        return self[:5]


class RuleRow(NamedTuple):
    family: int
    priority: int
    table: int
    source: bytes = b""
    source_length: int = 0
    destination: bytes = b""
    destination_length: int = 0
    interface_in: str = ""
    interface_out: str = ""
    mark: int = 0
    mask: int = 0


def attribute(kind: int, value: bytes) -> bytes:
    return _ATTRIBUTE.pack(4 + len(value), kind) + value + bytes(-len(value) % 4)


def number(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("=I", value))


def message(kind: int, flags: int, number: int, body: bytes) -> bytes:
    return _HEAD.pack(16 + len(body), kind, flags | F_REQUEST, number, 0) + body


def route_message(row: RouteRow, *, is_added: bool) -> bytes:
    """Adds a route, in place of another one of its key, or takes it away."""
    if row.kind == "local":
        scope = _SCOPE_HOST
    else:
        scope = _SCOPE_LINK if row.kind == "unicast" and not row.gateway else _SCOPE_UNIVERSE
    scope = _SCOPE_UNIVERSE if row.family == socket.AF_INET6 else scope
    body = _ROUTE.pack(row.family, row.length, 0, 0, _TABLE_COMPAT, PROTOCOL, scope, _KINDS[row.kind], 0)
    body += attribute(_RTA_DST, row.destination) + number(_RTA_TABLE, row.table)
    if row.interface:
        body += number(_RTA_OIF, row.interface)
    if row.gateway:
        body += attribute(_RTA_GATEWAY, row.gateway)
    if row.metric:
        body += number(_RTA_PRIORITY, row.metric)
    if row.source:
        body += attribute(_RTA_PREFSRC, row.source)
    if is_added:
        return message(RTM_NEWROUTE, F_ACK | F_CREATE | F_REPLACE, 0, body)
    return message(RTM_DELROUTE, F_ACK, 0, body)


def rule_message(row: RuleRow, *, is_added: bool) -> bytes:
    body = _RULE.pack(row.family, row.destination_length, row.source_length, 0, _TABLE_COMPAT, 0, 0, _TO_TABLE, 0)
    body += number(_FRA_PRIORITY, row.priority) + number(_FRA_TABLE, row.table)
    if row.destination:
        body += attribute(_FRA_DST, row.destination)
    if row.source:
        body += attribute(_FRA_SRC, row.source)
    if row.interface_in:
        body += attribute(_FRA_IIFNAME, row.interface_in.encode() + b"\0")
    if row.interface_out:
        body += attribute(_FRA_OIFNAME, row.interface_out.encode() + b"\0")
    if row.mask:
        body += number(_FRA_FWMARK, row.mark) + number(_FRA_FWMASK, row.mask)
    body += attribute(_FRA_PROTOCOL, bytes([PROTOCOL]))
    if is_added:
        return message(RTM_NEWRULE, F_ACK | F_CREATE | F_EXCL, 0, body)
    return message(RTM_DELRULE, F_ACK, 0, body)


def routes_request(family: int, *, table: int = 0) -> Request:
    """Asks for our routes of a family, or for anybody's in one table; the kernel sorts out (strict checking)."""
    body = _ROUTE.pack(family, 0, 0, 0, 0, 0 if table else PROTOCOL, 0, 0, 0)
    if table:
        body += number(_RTA_TABLE, table)
    return lambda number: message(RTM_GETROUTE, F_DUMP, number, body)


def lookup_request(address: bytes) -> Request:
    """Asks which route packets to the address take."""
    family = INET if len(address) == 4 else INET6
    body = _ROUTE.pack(family, 8 * len(address), 0, 0, 0, 0, 0, 0, 0) + attribute(_RTA_DST, address)
    return lambda number: message(RTM_GETROUTE, 0, number, body)


def multicast_routes_request(family: int, table: int) -> Request:
    """Asks for a table of multicast routes: `family` is RTNL_FAMILY_IPMR or RTNL_FAMILY_IP6MR."""
    body = _ROUTE.pack(family, 0, 0, 0, 0, 0, 0, 0, 0) + number(_RTA_TABLE, table)
    return lambda number: message(RTM_GETROUTE, F_DUMP, number, body)


def rules_request(family: int) -> Request:
    body = _RULE.pack(family, 0, 0, 0, 0, 0, 0, 0, 0)
    return lambda number: message(RTM_GETRULE, F_DUMP, number, body)


def messages(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """(type, sequence number, body) of each."""
    at = 0
    while at + 16 <= len(data):
        length, kind, _, number, _ = _HEAD.unpack_from(data, at)
        if length < 16 or at + length > len(data):
            return
        yield kind, number, data[at + 16 : at + length]
        at += (length + 3) & ~3


def attributes(body: bytes, at: int) -> dict[int, bytes]:
    found = {}
    while at + 4 <= len(body):
        length, kind = _ATTRIBUTE.unpack_from(body, at)
        if length < 4 or at + length > len(body):
            break
        found[kind & 0x3FFF] = body[at + 4 : at + length]
        at += (length + 3) & ~3
    return found


def int_of(value: bytes | None) -> int:
    """Of an attribute that has four bytes; 0: it has none."""
    return struct.unpack("=I", value)[0] if value is not None and len(value) == 4 else 0


def read_route(body: bytes) -> tuple[int, RouteRow] | None:
    """(protocol, row); None: no route that could be one of ours."""
    if len(body) < 12:
        return None
    family, length, _, _, table, protocol, _, kind, _ = _ROUTE.unpack_from(body)
    if family not in (socket.AF_INET, socket.AF_INET6):
        return None
    found = attributes(body, 12)
    destination = found.get(_RTA_DST) or bytes(4 if family == socket.AF_INET else 16)
    return protocol, RouteRow(
        family,
        int_of(found.get(_RTA_TABLE)) or table,
        destination,
        length,
        int_of(found.get(_RTA_PRIORITY)),
        _KIND_NAMES.get(kind, f"kind {kind}"),
        found.get(_RTA_GATEWAY, b""),
        int_of(found.get(_RTA_OIF)),
        found.get(_RTA_PREFSRC, b""),
    )


def read_rule(body: bytes) -> tuple[int, RuleRow] | None:
    """(protocol, row)."""
    if len(body) < 12:
        return None
    family, destination_length, source_length, _, table, _, _, action, _ = _RULE.unpack_from(body)
    found = attributes(body, 12)
    protocol = found.get(_FRA_PROTOCOL, b"\0")
    if action != _TO_TABLE or not protocol:
        return None
    mask = int_of(found.get(_FRA_FWMASK))
    return protocol[0], RuleRow(
        family,
        int_of(found.get(_FRA_PRIORITY)),
        int_of(found.get(_FRA_TABLE)) or table,
        found.get(_FRA_SRC, b""),
        source_length,
        found.get(_FRA_DST, b""),
        destination_length,
        found.get(_FRA_IIFNAME, b"").rstrip(b"\0").decode(errors="replace"),
        found.get(_FRA_OIFNAME, b"").rstrip(b"\0").decode(errors="replace"),
        int_of(found.get(_FRA_FWMARK)) if mask else 0,
        mask,
    )


def read_error(body: bytes) -> int:
    """The errno of an answer; 0: it was done."""
    return -int(struct.unpack_from("=i", body)[0]) if len(body) >= 4 else 0
