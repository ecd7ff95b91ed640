"""The kernel's multicast routing: virtual interfaces and routes by setsockopt on a raw socket, upcalls from it. It is
the one way that serves both families: netlink can't add an IPv6 route (decision 0111). Which routes is not decided
here.

Constants and structs: linux/mroute.h, linux/mroute6.h.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum

from accelerator.errors import AcceleratorError

VIFS_MAX = 32

_BASE = 200
_INIT, _ADD_VIF, _DEL_VIF, _ADD_MFC, _DEL_MFC = _BASE, _BASE + 2, _BASE + 3, _BASE + 4, _BASE + 5
_PIM, _TABLE, _ADD_MFC_PROXY, _DEL_MFC_PROXY, _FLUSH = _BASE + 8, _BASE + 9, _BASE + 10, _BASE + 11, _BASE + 12
_FLUSH_ALL = 1 | 2 | 4 | 8
_VIFF_USE_IFINDEX = 8
_NOT_HERE = 255
_ICMP6_FILTER = 1
_IPV6_RECVPKTINFO, _IPV6_RECVHOPLIMIT, _IPV6_RECVHOPOPTS = 49, 51, 53
_MLD_TYPES = (130, 131, 132, 143)
# Reports of every host of a link may come within one response time's last moments.
_RECEIVE_BUFFER_BYTES = 4 << 20
_SO_RCVBUFFORCE, _SO_MARK = 33, 36
# struct sioc_vif_req and sioc_mif_req6: a number, and four counts.
_SIOCGETVIFCNT, _VIF_COUNTS_SIZE = 0x89E0, struct.calcsize("@H4L")


class Upcall(IntEnum):
    """What the kernel asks for (linux/mroute.h IGMPMSG_*, linux/mroute6.h MRT6MSG_*)."""

    NO_ROUTE = 1
    WRONG_INTERFACE = 2
    WHOLE_PACKET = 3
    WRONG_INTERFACE_WHOLE = 4


@dataclass(frozen=True, slots=True)
class Unrouted:
    """Packets of a flow have no route, or came in on another interface than its route's."""

    kind: Upcall
    vif: int
    source: bytes
    group: bytes


class MulticastRoutingError(AcceleratorError):
    """The kernel refused: `kind` is `busy` where another program routes multicast in the same table."""


class MulticastSocket:
    """One family's raw socket that is the multicast router of a table. Closing the last duplicate of it removes its
    routes and interfaces. It also receives IGMP or MLD: `receive()` of membership packets is another file's."""

    def __init__(self, family: socket.AddressFamily, table: int | None = None, kept: int | None = None) -> None:
        """`kept`: the descriptor of such a socket that outlived its process, with its routes, of whatever table.
        MulticastRoutingError: no right to (CAP_NET_ADMIN, CAP_NET_RAW), no kernel support, or another program does
        it."""
        self.family = family
        self.table = table
        self.is_v6 = family == socket.AF_INET6
        self._level = socket.IPPROTO_IPV6 if self.is_v6 else socket.IPPROTO_IP
        protocol = socket.IPPROTO_ICMPV6 if self.is_v6 else socket.IPPROTO_IGMP
        if kept is not None:
            self.socket = socket.socket(family, socket.SOCK_RAW, protocol, kept)
            self.table = kept_table(kept)
            return
        try:
            self.socket = socket.socket(family, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, protocol)
        except OSError as error:
            raise MulticastRoutingError(
                "forbidden", f"no raw socket for multicast routing: {error.strerror}"
            ) from error
        try:
            self._prepare(table)
        except OSError as error:
            self.socket.close()
            raise _refusal(error, table) from error

    def _prepare(self, table: int | None) -> None:
        try:
            self.socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BUFFER_BYTES)
        except PermissionError:  # in a user namespace: up to net.core.rmem_max
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER_BYTES)
        if self.is_v6:
            passed = 0
            for kind in _MLD_TYPES:
                passed |= 1 << kind
            blocked = ~passed & (1 << 256) - 1
            words = struct.pack("=8I", *(blocked >> 32 * each & 0xFFFFFFFF for each in range(8)))
            self.socket.setsockopt(socket.IPPROTO_ICMPV6, _ICMP6_FILTER, words)
            for option in (_IPV6_RECVPKTINFO, _IPV6_RECVHOPLIMIT, _IPV6_RECVHOPOPTS):
                self.socket.setsockopt(socket.IPPROTO_IPV6, option, 1)
        else:
            self.socket.setsockopt(socket.IPPROTO_IP, 8, 1)  # IP_PKTINFO
        if table is not None:
            self.socket.setsockopt(self._level, _TABLE, struct.pack("=I", table))
            # The kernel doesn't tell a socket's table again. Nothing is sent by this one, so its mark is free for it.
            self.socket.setsockopt(socket.SOL_SOCKET, _SO_MARK, table)
        self.socket.setsockopt(self._level, _INIT, 1)
        # What an earlier router left in the table, static entries too, would be bound to our interfaces' numbers.
        self.socket.setsockopt(self._level, _FLUSH, _FLUSH_ALL)
        # Without it the kernel is silent about packets on the wrong interface.
        self.socket.setsockopt(self._level, _PIM, 1)

    def fileno(self) -> int:
        return self.socket.fileno()

    def close(self) -> None:
        self.socket.close()

    def add_vif(self, vif: int, interface_index: int) -> None:
        """OSError ENFILE or EINVAL: there are VIFS_MAX; EADDRINUSE: this number is taken; EADDRNOTAVAIL or ENODEV: no
        such interface."""
        if self.is_v6:
            data = struct.pack("@HBBHI", vif, 0, 1, interface_index & 0xFFFF, 0)
            if interface_index > 0xFFFF:
                raise MulticastRoutingError("interface", f"interface index {interface_index} is too large for IPv6")
        else:
            data = struct.pack("=HBBIi4x", vif, _VIFF_USE_IFINDEX, 1, 0, interface_index)
        self.socket.setsockopt(self._level, _ADD_VIF, data)

    def delete_vif(self, vif: int) -> None:
        """Routes that lead to it go on without it. One that the kernel has taken away already, with its interface, is
        fine."""
        data = struct.pack("@i", vif) if self.is_v6 else struct.pack("=HBBIi4x", vif, 0, 0, 0, 0)
        try:
            self.socket.setsockopt(self._level, _DEL_VIF, data)
        except OSError as error:
            if error.errno != 99:  # EADDRNOTAVAIL
                raise

    def has_vif(self, vif: int) -> bool:
        """The kernel takes it away with its interface, also where that is back a moment later, by the same number."""
        request = struct.pack("@H", vif).ljust(_VIF_COUNTS_SIZE, b"\0")
        try:
            fcntl.ioctl(self.socket.fileno(), _SIOCGETVIFCNT, request)
        except OSError:
            return False
        return True

    def add_route(self, source: bytes | None, group: bytes, parent: int, outputs: Iterable[int]) -> None:
        """Installs or replaces the route of (source, group). No source: any, from `parent` only; for that to match,
        the kernel wants the parent among the outputs, and doesn't send back to it (ipmr_cache_find_any,
        ip_mr_forward)."""
        wanted = set(outputs) if source is not None else {*outputs, parent}
        option = _ADD_MFC if source is not None else _ADD_MFC_PROXY
        self.socket.setsockopt(self._level, option, self._route(source, group, parent, wanted))

    def delete_route(self, source: bytes | None, group: bytes, parent: int) -> None:
        """One that is gone already is fine."""
        option = _DEL_MFC if source is not None else _DEL_MFC_PROXY
        try:
            self.socket.setsockopt(self._level, option, self._route(source, group, parent, set()))
        except FileNotFoundError:
            return

    def _route(self, source: bytes | None, group: bytes, parent: int, outputs: set[int]) -> bytes:
        if self.is_v6:
            bits = sum(1 << vif for vif in outputs)
            words = (bits >> 32 * each & 0xFFFFFFFF for each in range(8))
            origin = struct.pack("=HHI16sI", socket.AF_INET6, 0, 0, source or bytes(16), 0)
            target = struct.pack("=HHI16sI", socket.AF_INET6, 0, 0, group, 0)
            return origin + target + struct.pack("=HH8I", parent, 0, *words)
        ttls = bytes(1 if vif in outputs else _NOT_HERE for vif in range(VIFS_MAX))
        # Two bytes of padding before the counters: the struct has 60 bytes.
        return struct.pack("=4s4sH32s2xIIIi", source or bytes(4), group, parent, ttls, 0, 0, 0, 0)


def kept_table(descriptor: int) -> int | None:
    """The table of a router's socket, as _prepare() has marked it; None: the usual one."""
    with socket.socket(fileno=os.dup(descriptor)) as kept:
        return kept.getsockopt(socket.SOL_SOCKET, _SO_MARK) or None


def read_upcall(data: bytes, *, is_v6: bool) -> Unrouted | None:
    """An upcall, told from a packet by the zero where IPv4 has the protocol and ICMPv6 the type; None: it's a
    packet."""
    if is_v6:
        if len(data) < 40 or data[0] != 0:
            return None
        kind, source, group = data[1], data[8:24], data[24:40]
        vif: int = struct.unpack_from("=H", data, 2)[0]
    else:
        if len(data) < 20 or data[9] != 0:
            return None
        kind, source, group = data[8], data[12:16], data[16:20]
        vif = data[10] | data[11] << 8
    try:
        return Unrouted(Upcall(kind), vif, source, group)
    except ValueError:
        return None


def _refusal(error: OSError, table: int | None) -> MulticastRoutingError:
    where = "" if table is None else f" in table {table}"
    if error.errno == 98:  # EADDRINUSE
        return MulticastRoutingError("busy", f"another program routes multicast{where} already", can_retry=True)
    if error.errno in (92, 95):  # ENOPROTOOPT, EOPNOTSUPP
        return MulticastRoutingError("unsupported", "this kernel has no multicast routing")
    return MulticastRoutingError("forbidden", f"multicast routing is refused{where}: {error.strerror}")
