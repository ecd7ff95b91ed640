"""What multicast routes the kernel has in a table, by netlink: /proc shows the usual table only, and no table's IPv6
interfaces can be listed otherwise. Looks only, but for the moment in which interfaces are told by routes."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from accelerator.kernel import wire
from accelerator.kernel.mroute import VIFS_MAX, MulticastSocket

TABLES = {False: 253, True: 254}  # which the kernel uses where none is named
_SOL_NETLINK, _NETLINK_GET_STRICT_CHK = 270, 12
_RTA_DST, _RTA_SRC, _RTA_IIF, _RTA_MULTIPATH, _RTA_TABLE, _RTA_MFC_STATS = 1, 2, 3, 9, 15, 17
_NEXT_HOP = struct.Struct("=HBBi")  # rtnexthop
_RECEIVE_BYTES = 1 << 17
_TIMEOUT_S = 5.0
# Of link scope, which no router forwards: these stand there for as long as it takes to look.
_MARKERS = {False: bytes((224, 0, 0, 254)), True: b"\xff\x02" + bytes(13) + b"\xfe"}


@dataclass(frozen=True, slots=True)
class KernelRoute:
    """A multicast route as the kernel has it: interfaces by their numbers, of a route for any source without its
    parent among the outputs, as add_route() takes it. `n_wrong`: packets that came in elsewhere."""

    source: bytes | None
    group: bytes
    parent: int
    outputs: frozenset[int]
    n_packets: int = 0
    n_bytes: int = 0
    n_wrong: int = 0


def read_routes(*, is_v6: bool, table: int | None = None) -> list[KernelRoute]:
    """The routes of a table, those left out that wait for their flow's. OSError: the kernel refuses. Blocks."""
    wanted = table or TABLES[is_v6]
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as netlink:
        netlink.settimeout(_TIMEOUT_S)
        netlink.setsockopt(_SOL_NETLINK, _NETLINK_GET_STRICT_CHK, 1)
        netlink.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        netlink.bind((0, 0))
        netlink.send(wire.multicast_routes_request(wire.IP6MR if is_v6 else wire.IPMR, wanted)(1))
        return [route for body in _answers(netlink) if (route := _route(body, wanted)) is not None]


def _answers(netlink: socket.socket) -> Iterator[bytes]:
    while True:
        for kind, _, body in wire.messages(netlink.recv(_RECEIVE_BYTES)):
            if kind == wire.NLMSG_DONE:
                return
            if kind == wire.NLMSG_ERROR:
                fault = wire.read_error(body)
                if fault == errno.ENOENT:  # a table that isn't there
                    return
                raise OSError(fault, f"netlink: {os.strerror(fault)}")
            yield body


def _route(body: bytes, table: int) -> KernelRoute | None:
    found = wire.attributes(body, 12)
    parent, group = found.get(_RTA_IIF), found.get(_RTA_DST)
    if parent is None or group is None or wire.int_of(found.get(_RTA_TABLE)) != table:
        return None
    outputs, hops, at = set(), found.get(_RTA_MULTIPATH, b""), 0
    while at + _NEXT_HOP.size <= len(hops):
        length, _, _, index = _NEXT_HOP.unpack_from(hops, at)
        if length < _NEXT_HOP.size:
            break
        outputs.add(index)
        at += (length + 3) & ~3
    origin, index = found.get(_RTA_SRC, b""), wire.int_of(parent)
    stats = found.get(_RTA_MFC_STATS, b"")
    counted = struct.unpack("=QQQ", stats[:24]) if len(stats) >= 24 else (0, 0, 0)
    is_any = not any(origin)
    source = None if is_any else origin
    return KernelRoute(source, group, index, frozenset(outputs - {index} if is_any else outputs), *counted)


def read_interfaces(router: MulticastSocket) -> dict[int, int]:
    """Which interface, by its number, each of the table's virtual interfaces is. A route is put up for each, since a
    route shows its parent by the interface's number: nothing else tells them of IPv6, or of a table of our own."""
    group, size = _MARKERS[router.is_v6], 16 if router.is_v6 else 4
    markers = {(each + 1).to_bytes(size): each for each in range(VIFS_MAX)}
    for source, vif in markers.items():
        router.add_route(source, group, vif, ())
    try:
        routes = read_routes(is_v6=router.is_v6, table=router.table)
    finally:
        for source, vif in markers.items():
            router.delete_route(source, group, vif)
    return {markers[each.source]: each.parent for each in routes if each.group == group and each.source in markers}
