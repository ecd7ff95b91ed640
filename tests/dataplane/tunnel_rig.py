"""Tunnels of a Rig with a plain socket as origin, and WebSocket frames as bytes. No test lives here."""

from __future__ import annotations

import random
import socket

from plane_rig import GENERIC, PATIENCE_S, Rig, Viewer, wait_until

HEAD = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: test\r\n\r\n"
GOING_AWAY = b"\x03\xe9"
UPGRADE = ("Connection: keep-alive, Upgrade", "Upgrade: websocket")


def frame(payload: bytes, *, opcode: int = 2, mask: bytes = b"", fin: bool = True, long: int = 0) -> bytes:
    """One frame (RFC 6455 section 5.2). `long`: bytes of the extended length; 0: as few as it takes."""
    n = len(payload)
    long = long or (0 if n < 126 else 2 if n < 65536 else 8)
    short = 126 if long == 2 else 127 if long else n
    head = bytes([opcode | (0x80 if fin else 0), short | (0x80 if mask else 0)])
    head += n.to_bytes(long, "big") if long else b""
    if mask:
        payload = bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))
    return head + mask + payload


class Peer:
    """The origin's end of a tunnel."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        sock.settimeout(PATIENCE_S)

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def until(self, n: int) -> bytes:
        data = b""
        while len(data) < n:
            piece = self.socket.recv(n - len(data))
            assert piece, f"ended after {data!r}"
            data += piece
        return data

    def rest(self) -> bytes:
        data = b""
        while piece := self.socket.recv(1 << 20):
            data += piece
        return data


class Tunnels:
    """Opens tunnels over a rig: the test's part of the control plane."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.settimeout(PATIENCE_S)
        self.peers: list[Peer] = []

    def close(self) -> None:
        self.listener.close()
        for peer in self.peers:
            peer.socket.close()

    def upstream(self, *, is_pair: bool = False, buffer_bytes: int = 0) -> tuple[int, Peer]:
        """A connected descriptor, to be given away, and its other end."""
        if is_pair:
            ours, theirs = socket.socketpair()
        else:
            ours = socket.socket()
            if buffer_bytes:
                ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer_bytes)
                ours.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
            ours.connect(self.listener.getsockname())
            theirs, _ = self.listener.accept()
        ours.setblocking(False)
        peer = Peer(theirs)
        self.peers.append(peer)
        return ours.detach(), peer

    def open(
        self, *, is_websocket: bool = True, first: bytes = b"", early: bytes = b"", is_pair: bool = False,
        idle_ns: int = 0, receive_bytes: int = 0, buffer_bytes: int = 0,
    ) -> tuple[Viewer, Peer]:  # fmt: skip
        """`early`: what the viewer sends behind its request; `first`: what the origin sent behind its 101."""
        viewer = self.rig.viewer(receive_bytes)
        lines = ["GET /generic/chat HTTP/1.1", "Host: a", *UPGRADE, "", ""]
        viewer.send("\r\n".join(lines).encode() + early)
        exchange = self.rig.exchange("tunnel")
        assert exchange.origin == GENERIC
        assert exchange.key == b"/generic/chat"
        fd, peer = self.upstream(is_pair=is_pair, buffer_bytes=buffer_bytes)
        exchange.tunnel(fd, HEAD, first, is_websocket, idle_ns)
        assert viewer.until(len(HEAD)) == HEAD
        return viewer, peer

    def all_closed(self) -> None:
        wait_until(lambda: self.rig.total("tunnels_closed") == self.rig.total("tunnels_opened"), "tunnels closed")
        opened = self.rig.total("tunnels_opened")
        assert self.rig.plane.origin_tunnels([GENERIC])[GENERIC][0] >= opened


def random_frames(rng: random.Random, n: int, *, masked: bool) -> bytes:
    data = b""
    for _ in range(n):
        size = rng.choice([0, 1, 5, 125, 126, 127, 1000, 65535, 65536, 70000])
        mask = rng.randbytes(4) if masked else b""
        data += frame(rng.randbytes(size), opcode=rng.choice([0, 1, 2, 9, 10]), mask=mask, fin=rng.random() < 0.7)
    return data
