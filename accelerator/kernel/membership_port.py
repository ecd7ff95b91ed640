"""IGMP or MLD of one family through the kernel: what neighbours say, by interface, and what we say to them. Reads by
protocols/igmp.py and mld.py; what it means is decided elsewhere."""

from __future__ import annotations

import socket
import struct
from ipaddress import ip_address

from accelerator.kernel.mroute import MulticastSocket, Unrouted, read_upcall
from accelerator.protocols import igmp, mld
from accelerator.protocols.membership.messages import Drop, Heard, Message

_IP_PKTINFO, _IP_HDRINCL, _IP_MULTICAST_LOOP = 8, 3, 34
_IPV6_PKTINFO, _IPV6_HOPLIMIT, _IPV6_HOPOPTS = 50, 52, 54
_IPV6_MULTICAST_HOPS, _IPV6_MULTICAST_LOOP = 18, 19
_MCAST_JOIN_GROUP = 42
_ICMP6_FILTER = 1
_PACKET_MAX = 65536
_ANCILLARY_MAX = 512
# IGMPv3 reports, and IGMPv2 leaves; MLDv2 reports, and MLDv1's Done. Queries go to groups that every host is in.
_ROUTER_GROUPS = {
    False: (igmp.ALL_ROUTERS, igmp.ALL_V3_ROUTERS),
    True: (mld.ALL_ROUTERS, mld.ALL_V2_ROUTERS),
}


class MembershipPort:
    """Receives on the multicast router's socket, since the kernel gives reports to routable groups to that one only."""

    def __init__(self, router: MulticastSocket) -> None:
        self._router = router
        self._is_v6 = router.is_v6
        self._members: dict[int, socket.socket] = {}
        protocol = socket.IPPROTO_ICMPV6 if self._is_v6 else socket.IPPROTO_RAW
        kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        self._sender = socket.socket(router.family, kind, protocol)
        if self._is_v6:
            self._sender.setsockopt(socket.IPPROTO_ICMPV6, _ICMP6_FILTER, b"\xff" * 32)
            self._sender.setsockopt(socket.IPPROTO_IPV6, _IPV6_MULTICAST_HOPS, 1)
            self._sender.setsockopt(socket.IPPROTO_IPV6, _IPV6_MULTICAST_LOOP, 0)
            self._sender.setsockopt(socket.IPPROTO_IPV6, _IPV6_HOPOPTS, mld.HOP_BY_HOP)
        else:
            self._sender.setsockopt(socket.IPPROTO_IP, _IP_HDRINCL, 1)
            self._sender.setsockopt(socket.IPPROTO_IP, _IP_MULTICAST_LOOP, 0)

    def close(self) -> None:
        """Not the router's socket."""
        self._sender.close()
        for member in self._members.values():
            member.close()
        self._members.clear()

    def attach(self, interface_index: int) -> None:
        """Hears the reports of this link. A socket for each: one may be in 20 groups only. OSError: no such
        interface."""
        member = socket.socket(self._router.family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        try:
            level = socket.IPPROTO_IPV6 if self._is_v6 else socket.IPPROTO_IP
            for group in _ROUTER_GROUPS[self._is_v6]:
                if self._is_v6:
                    address = struct.pack("=HHI16sI", socket.AF_INET6, 0, 0, group, 0)
                else:
                    address = struct.pack("=HH4s", socket.AF_INET, 0, group)
                request = struct.pack("@I4x", interface_index) + address.ljust(128, b"\0")
                member.setsockopt(level, _MCAST_JOIN_GROUP, request)
        except OSError:
            member.close()
            raise
        self._members[interface_index] = member

    def detach(self, interface_index: int) -> None:
        member = self._members.pop(interface_index, None)
        if member is not None:
            member.close()

    def receive(self) -> Unrouted | tuple[int, Heard | Drop] | None:
        """The next upcall, or the next packet with the index of its interface; None: nothing is waiting."""
        try:
            data, ancillary, _, sender = self._router.socket.recvmsg(_PACKET_MAX, _ANCILLARY_MAX)
        except (BlockingIOError, InterruptedError):
            return None
        upcall = read_upcall(data, is_v6=self._is_v6)
        if upcall is not None:
            return upcall
        if not self._is_v6:
            index = next((struct.unpack_from("=i", each)[0] for _, kind, each in ancillary if kind == _IP_PKTINFO), 0)
            return index, igmp.read(data)
        index, hops, options, destination = 0, 0, None, bytes(16)
        for _, kind, each in ancillary:
            if kind == _IPV6_PKTINFO:
                destination, index = each[:16], struct.unpack_from("=I", each, 16)[0]
            elif kind == _IPV6_HOPLIMIT:
                hops = struct.unpack("=i", each)[0]
            elif kind == _IPV6_HOPOPTS:
                options = each
        source = ip_address(sender[0].partition("%")[0]).packed
        return index, mld.read(data, source, destination, hops, options)

    def send(self, interface_index: int, message: Message, address: bytes | None, mtu: int) -> None:
        """Says it on the link. OSError: the interface has gone, or its queue is full."""
        if self._is_v6:
            if address is None:
                return
            for packet in mld.write(message, address, mtu):
                to = socket.inet_ntop(socket.AF_INET6, packet.destination)
                info = address + struct.pack("=I", interface_index)
                self._sender.sendmsg(
                    [packet.data], [(socket.IPPROTO_IPV6, _IPV6_PKTINFO, info)], 0, (to, 0, 0, interface_index)
                )
        else:
            for packet in igmp.write(message, address or bytes(4), mtu):
                info = struct.pack("=i4s4s", interface_index, bytes(4), bytes(4))
                to = socket.inet_ntoa(packet.destination)
                self._sender.sendmsg([packet.data], [(socket.IPPROTO_IP, _IP_PKTINFO, info)], 0, (to, 0))
