"""Sockets of relays: inputs that join groups, outputs with TTL, DSCP, interface and source port. Opened here, read and
written by relay workers only. No capability is needed: forced buffer sizes are tried, what the kernel gives is kept.

Joins are per interface and source (RFC 3678): on IPv4 and IPv6 alike, and a socket hears its own memberships only.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address

from accelerator.errors import AcceleratorError

# <linux/in.h>, <linux/in6.h>, <linux/udp.h>, <asm/socket.h>: what Python's socket module has no names for.
_MCAST_JOIN_GROUP, _MCAST_LEAVE_GROUP = 42, 45
_MCAST_JOIN_SOURCE_GROUP, _MCAST_LEAVE_SOURCE_GROUP = 46, 47
_IP_MULTICAST_ALL, _IPV6_MULTICAST_ALL = 49, 29
_UDP_GRO = 104
_SO_RXQ_OVFL = 40
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 32, 33
_IP_FREEBIND, _IPV6_FREEBIND = 15, 78
_IPV6_RECVPKTINFO = 49
_SOCKADDR_STORAGE_BYTES = 128

# A train to 1,000 receivers takes some 16 ms, in which 100 Mbit/s bring 160 packets, counted twice by the kernel.
INPUT_BUFFER_BYTES = 4 << 20
OUTPUT_BUFFER_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Membership:
    """What an input hears: a group on an interface (None: the kernel's choice), of these sources or of any."""

    group: str
    interface: str | None = None
    sources: tuple[str, ...] = ()


def open_input(address: str, port: int, *, interface: str | None = None) -> socket.socket:
    """A non-blocking UDP socket bound to a group or an own address. A group is heard only once it is joined.

    Raises AcceleratorError (`interface`: there is none of this name, `relay-socket`: anything else)."""
    ip = ip_address(address)
    made = _socket(isinstance(ip, IPv6Address))
    try:
        # The same group and port may be the input of several relays, each with its own interface or source; an own
        # address that of a successor, which binds while we still run, and the source of outputs with this port.
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        set_receiving(made, INPUT_BUFFER_BYTES)
        if made.family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, _IPV6_MULTICAST_ALL, 0)
            made.setsockopt(socket.IPPROTO_IPV6, _IPV6_FREEBIND, 1)
            if ip.is_multicast:  # by which interface a packet came, and to whom: the worker looks
                made.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVPKTINFO, 1)
        else:
            made.setsockopt(socket.IPPROTO_IP, _IP_MULTICAST_ALL, 0)
            # An address that the box will only be given later, or loses for a while, is no reason to refuse a policy.
            made.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
        made.bind(_socket_address(made, address, port, interface))
    except BaseException as fault:
        made.close()
        raise _told(fault, f"{address} port {port}") from fault
    return made


def set_receiving(made: socket.socket, size_bytes: int) -> None:
    """A large buffer, its drops counted, datagrams joined where the kernel can."""
    _set_buffer(made, _SO_RCVBUFFORCE, socket.SO_RCVBUF, size_bytes)
    made.setsockopt(socket.SOL_SOCKET, _SO_RXQ_OVFL, 1)
    made.setsockopt(socket.SOL_UDP, _UDP_GRO, 1)


def join(made: socket.socket, membership: Membership) -> None:
    """Joins; a membership that exists already is left as it is. Raises AcceleratorError as open_input does."""
    _change(made, membership, _MCAST_JOIN_GROUP, _MCAST_JOIN_SOURCE_GROUP)


def leave(made: socket.socket, membership: Membership, index: int = 0) -> None:
    """Leaves; one that is gone already, with its interface or address, is no error. `index`: of the interface where it
    was joined, which may have another name by now."""
    with contextlib.suppress(AcceleratorError):
        _change(made, membership, _MCAST_LEAVE_GROUP, _MCAST_LEAVE_SOURCE_GROUP, index)


def open_output(
    *,
    is_v6: bool = False,
    interface: str | None = None,
    ttl: int = 1,
    dscp: int = 0,
    source_port: int = 0,
    loops: bool = False,
) -> socket.socket:
    """A non-blocking UDP socket to send from. `ttl` (hop limit) holds for groups and single receivers; `dscp` is 0 to
    63; `interface` is where groups are sent; `loops`: this host's own members hear them too.

    Raises AcceleratorError as open_input does, ValueError for numbers out of range."""
    if not 1 <= ttl <= 255 or not 0 <= dscp <= 63:
        raise ValueError("ttl is 1 to 255, dscp 0 to 63")
    made = _socket(is_v6)
    try:
        index = _index(interface)
        _set_buffer(made, _SO_SNDBUFFORCE, socket.SO_SNDBUF, OUTPUT_BUFFER_BYTES)
        # Nothing is read here, and with a fixed port much could come.
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 0)
        if source_port:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if is_v6:
            for option, value in (
                (socket.IPV6_MULTICAST_HOPS, ttl), (socket.IPV6_UNICAST_HOPS, ttl), (socket.IPV6_TCLASS, dscp << 2),
                (socket.IPV6_MULTICAST_LOOP, int(loops)), (_IPV6_MULTICAST_ALL, 0),
            ):  # fmt: skip
                made.setsockopt(socket.IPPROTO_IPV6, option, value)
        else:
            for option, value in (
                (socket.IP_MULTICAST_TTL, ttl), (socket.IP_TTL, ttl), (socket.IP_TOS, dscp << 2),
                (socket.IP_MULTICAST_LOOP, int(loops)), (_IP_MULTICAST_ALL, 0),
            ):  # fmt: skip
                made.setsockopt(socket.IPPROTO_IP, option, value)
        _point(made, index)
        made.bind(("::" if is_v6 else "0.0.0.0", source_port))
    except BaseException as fault:
        made.close()
        raise _told(fault, f"output port {source_port}" if source_port else "output") from fault
    return made


def point_output(made: socket.socket, interface: str | None) -> None:
    """Where groups are sent from now on: to be said again when the interface was away, as its number is another then.

    Raises AcceleratorError as open_input does."""
    try:
        _point(made, _index(interface))
    except OSError as fault:
        raise _told(fault, f"output on {interface}") from fault


def _point(made: socket.socket, index: int) -> None:
    if made.family == socket.AF_INET6:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
    else:
        made.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, struct.pack("=4s4si", b"", b"", index))


def destination_row(address: str, port: int, *, interface: str | None = None) -> bytes:
    """A receiver's row of a relay's fan-out table, as ext/relay.pxd has it (Destination). `interface` matters for
    link-local IPv6 addresses only."""
    if not 0 < port < 65_536:
        raise ValueError("port is 1 to 65535")
    ip = ip_address(address)
    if isinstance(ip, IPv6Address):
        scope = _index(interface)
        packed = struct.pack("=H", socket.AF_INET6) + struct.pack("!HI", port, 0) + ip.packed + struct.pack("=I", scope)
    else:
        packed = struct.pack("=H", socket.AF_INET) + struct.pack("!H", port) + ip.packed + bytes(8)
    return packed.ljust(28, b"\0") + struct.pack("=I", len(packed))


def _socket(is_v6: bool) -> socket.socket:
    try:
        made = socket.socket(socket.AF_INET6 if is_v6 else socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    except OSError as fault:  # no descriptor, or no IPv6 on this machine
        raise _told(fault, "socket") from fault
    if is_v6:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    return made


def _set_buffer(made: socket.socket, forced: int, asked: int, size_bytes: int) -> None:
    """Beyond net.core.*mem_max with CAP_NET_ADMIN only; netd raises those limits for who has it not."""
    try:
        made.setsockopt(socket.SOL_SOCKET, forced, size_bytes)
    except PermissionError:
        made.setsockopt(socket.SOL_SOCKET, asked, size_bytes)


def _index(interface: str | None) -> int:
    if interface is None:
        return 0
    try:
        return socket.if_nametoindex(interface)
    except OSError as fault:
        raise AcceleratorError("interface", f"no interface {interface!r}", can_retry=True) from fault


def is_link_group(ip: IPv6Address) -> bool:
    """RFC 4291 section 2.7: a group that stays on its link, whatever its flags are."""
    return ip.is_multicast and ip.packed[1] & 15 == 2


def _socket_address(
    made: socket.socket, address: str, port: int, interface: str | None
) -> tuple[str, int] | tuple[str, int, int, int]:
    if made.family == socket.AF_INET6:
        ip = IPv6Address(address)
        if is_link_group(ip) and interface is not None:
            # Bound with its scope it would never hear of an interface that comes back with another number, nor could it
            # be opened before there is one.
            return ("::", port, 0, 0)
        # A scope holds link-local addresses to their interface; on others it would hold nothing and age.
        return (address, port, 0, _index(interface) if ip.is_link_local else 0)
    return (address, port)


def _packed(address: str) -> bytes:
    """struct sockaddr_storage without a port."""
    ip = ip_address(address)
    if isinstance(ip, IPv6Address):
        packed = struct.pack("=H", socket.AF_INET6) + bytes(6) + ip.packed
    else:
        packed = struct.pack("=H", socket.AF_INET) + bytes(2) + ip.packed
    return packed.ljust(_SOCKADDR_STORAGE_BYTES, b"\0")


def _change(made: socket.socket, membership: Membership, of_any: int, of_source: int, index: int = 0) -> None:
    level = socket.IPPROTO_IPV6 if made.family == socket.AF_INET6 else socket.IPPROTO_IP
    try:
        # struct group_req, struct group_source_req: the index is padded to eight bytes.
        head = struct.pack("=II", index or _index(membership.interface), 0) + _packed(membership.group)
        if not membership.sources:
            _set_membership(made, level, of_any, head)
        for source in membership.sources:
            _set_membership(made, level, of_source, head + _packed(source))
    except OSError as fault:
        raise _told(fault, membership.group) from fault


def _set_membership(made: socket.socket, level: int, option: int, value: bytes) -> None:
    try:
        made.setsockopt(level, option, value)
    except OSError as fault:
        # Joined already: EADDRINUSE for a group, EADDRNOTAVAIL for a source of it (net/ipv4/igmp.c, ip_mc_source).
        already = errno.EADDRNOTAVAIL if option == _MCAST_JOIN_SOURCE_GROUP else errno.EADDRINUSE
        if fault.errno != already:
            raise


def _told(fault: BaseException, what: str) -> BaseException:
    if isinstance(fault, OSError):
        return AcceleratorError("relay-socket", f"{what}: {fault.strerror or fault}", can_retry=True)
    return fault
