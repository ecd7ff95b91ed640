"""Listens on interfaces for a while: who asks for multicast members, which streams come with TTL 1. Sends nothing,
keeps nothing but addresses of queriers, senders and groups. Needs CAP_NET_RAW."""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Iterable
from ipaddress import IPv4Address

from accelerator.doctor.facts import Heard

_ETH_P_IP = 0x0800
_PACKET_MAX = 2048
_KEPT_MAX = 1000
_PACKET_OUTGOING = 4
_IGMP_QUERY = 0x11
_SHORTEST = 20


def listen(interfaces: Iterable[str], seconds: float) -> list[Heard]:
    """PermissionError: only root, and who has CAP_NET_RAW, may listen. An interface that isn't there is left out."""
    sockets: dict[socket.socket, str] = {}
    queriers: dict[str, dict[str, None]] = {}
    expiring: dict[str, dict[tuple[str, str], None]] = {}
    try:
        for name in interfaces:
            kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
            made = socket.socket(socket.AF_PACKET, kind, socket.htons(_ETH_P_IP))
            try:
                made.bind((name, _ETH_P_IP))
            except OSError:
                made.close()
                continue
            sockets[made] = name
            queriers[name], expiring[name] = {}, {}
        end_s = time.monotonic() + seconds
        while sockets and (left_s := end_s - time.monotonic()) > 0:
            for ready in select.select(list(sockets), [], [], left_s)[0]:
                _take(ready, queriers[sockets[ready]], expiring[sockets[ready]])
    finally:
        for made in sockets:
            made.close()
    return [Heard(name, seconds, tuple(queriers[name]), tuple(expiring[name])) for name in sockets.values()]


def _take(ready: socket.socket, queriers: dict[str, None], expiring: dict[tuple[str, str], None]) -> None:
    try:
        packet, sender = ready.recvfrom(_PACKET_MAX)
    except OSError:
        return
    if sender[2] == _PACKET_OUTGOING:
        return
    found = read_packet(packet)
    if found is None:
        return
    kind, source, group = found
    if kind == "query" and len(queriers) < _KEPT_MAX:
        queriers[source] = None
    elif kind == "expiring" and len(expiring) < _KEPT_MAX:
        expiring[source, group] = None


def read_packet(packet: bytes) -> tuple[str, str, str] | None:
    """("query", querier, group) of an IGMP query from somebody; ("expiring", source, group) of UDP with TTL 1 to a
    group that routers would pass; None for the rest."""
    if len(packet) < _SHORTEST or packet[0] >> 4 != 4:
        return None
    length = (packet[0] & 0xF) * 4
    if length < _SHORTEST or len(packet) < length:
        return None
    source, group = IPv4Address(packet[12:16]), IPv4Address(packet[16:20])
    if not group.is_multicast:
        return None
    if packet[9] == socket.IPPROTO_IGMP:
        # RFC 4541 section 2.1.1: a snooping switch asks from 0.0.0.0, and that elects nobody.
        is_query = len(packet) >= length + 8 and packet[length] == _IGMP_QUERY
        return ("query", str(source), str(group)) if is_query and int(source) else None
    is_local = packet[16:19] == b"\xe0\x00\x00" or packet[16:20] == b"\xef\xff\xff\xfa"  # 224.0.0.x; SSDP
    if packet[9] == socket.IPPROTO_UDP and packet[8] == 1 and not is_local:
        return "expiring", str(source), str(group)
    return None
