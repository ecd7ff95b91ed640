"""Marks of packets on the loopback interface, as a peer's network would see them. No assertion stands here."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager

_ETH_P_ALL = 3


def why_not() -> str | None:
    """Why packets can't be seen here; None: they can."""
    try:
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close()
    except OSError as error:
        return f"seeing packets needs CAP_NET_RAW: {error.strerror}"
    return None


class Sniffer:
    def __init__(self, port: int) -> None:
        self._port = port
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
        self._socket.bind(("lo", _ETH_P_ALL))
        self._socket.setblocking(False)

    def close(self) -> None:
        self._socket.close()

    def marks(self) -> list[int]:
        """DSCPs of the data packets that came from the port since the last time."""
        found = []
        while True:
            try:
                packet, address = self._socket.recvfrom(1 << 17)
            except BlockingIOError:
                return found
            if address[2] == socket.PACKET_OUTGOING:  # the loopback interface shows each packet twice
                continue
            read = _read(packet[14:])
            if read is not None and read[0] == self._port and read[2]:
                found.append(read[1])


def _read(packet: bytes) -> tuple[int, int, int] | None:
    """(source port, DSCP, bytes of payload) of TCP."""
    if packet[0] >> 4 == 4 and packet[9] == 6:
        dscp, head = packet[1] >> 2, (packet[0] & 15) * 4
        length = int(struct.unpack_from("!H", packet, 2)[0])
    elif packet[0] >> 4 == 6 and packet[6] == 6:
        dscp, head = (struct.unpack_from("!H", packet)[0] >> 6) & 63, 40
        length = 40 + int(struct.unpack_from("!H", packet, 4)[0])
    else:
        return None
    (port,) = struct.unpack_from("!H", packet, head)
    return port, dscp, length - head - (packet[head + 12] >> 4) * 4


@contextmanager
def sniffing(port: int) -> Iterator[Sniffer]:
    sniffer = Sniffer(port)
    try:
        yield sniffer
    finally:
        sniffer.close()
