"""Tunnels tortured: random sizes, stalls, half closes and resets on both sides at once, over TCP and local pairs. Every
byte that arrives is checked, and all of them where nobody resets. TORTURE_S and TORTURE_SEED as in test_torture.py."""

from __future__ import annotations

import os
import random
import select
import socket
import struct
import time
from collections.abc import Callable

import pytest
from plane_rig import PATIENCE_S, Rig, pattern, wait_until
from tls_rig import rig_of
from tunnel_rig import HEAD, UPGRADE, Tunnels

SECONDS = float(os.environ.get("TORTURE_S", "4"))
SEED = int(os.environ.get("TORTURE_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 32)
BYTES = pattern(1 << 20)
N_TUNNELS = 24


class End:
    """One side: sends its stream in pieces, checks the other's."""

    def __init__(self, sock: socket.socket, chance: random.Random) -> None:
        self.socket, self.chance = sock, chance
        sock.setblocking(False)
        self.to_send = chance.choice([0, 1, 3000, 100_000, 700_000])
        self.sent = self.received = 0
        self.has_ended = self.is_shut = self.is_broken = False
        self.stalled_until = 0.0

    def step(self, now: float, resets: bool) -> None:
        if self.is_broken or now < self.stalled_until:
            return
        what = self.chance.random()
        if what < 0.02:
            self.stalled_until = now + self.chance.random() * 0.05
        elif resets and what < 0.021:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.break_off()
        else:
            try:
                self.receive() if what < 0.5 else self.send()
            except BlockingIOError:
                pass
            except (ConnectionError, OSError):  # SSLError is one of them
                self.break_off()

    def receive(self) -> None:
        if self.has_ended:
            return
        piece = self.socket.recv(self.chance.choice([1, 100, 20_000, 200_000]))
        assert piece == BYTES[self.received : self.received + len(piece)], "other bytes than were sent"
        self.received += len(piece)
        self.has_ended = not piece

    def send(self) -> None:
        if self.sent < self.to_send:
            n = min(self.to_send - self.sent, self.chance.choice([1, 125, 16_384, 16_385, 100_000]))
            self.sent += self.socket.send(BYTES[self.sent : self.sent + n])
        elif not self.is_shut and self.chance.random() < 0.2:
            self.is_shut = True
            self.socket.shutdown(socket.SHUT_WR)

    def break_off(self) -> None:
        self.is_broken = True
        self.socket.close()


def play(rig: Rig, tunnels: Tunnels, chance: random.Random) -> None:
    pairs: list[tuple[End, End, bool]] = []
    for _ in range(N_TUNNELS):
        resets = chance.random() < 0.4
        early = chance.choice([0, 0, 10, 3000])
        first = chance.choice([0, 0, 10, 20_000])
        viewer = rig.viewer(chance.choice([0, 4096]))
        viewer.send("\r\n".join(["GET /generic/x HTTP/1.1", "Host: a", *UPGRADE, "", ""]).encode() + BYTES[:early])
        exchange = rig.exchange("tunnel")
        fd, peer = tunnels.upstream(is_pair=chance.random() < 0.5, buffer_bytes=chance.choice([0, 8192]))
        exchange.tunnel(fd, HEAD, BYTES[:first], chance.random() < 0.5)
        if chance.random() < 0.05:
            viewer.reset()
            peer.socket.close()
            continue
        assert viewer.until(len(HEAD)) == HEAD
        inner, outer = End(viewer.socket, chance), End(peer.socket, chance)
        outer.sent = first
        outer.to_send = max(first, outer.to_send)
        inner.sent = early
        inner.to_send = max(early, inner.to_send)
        inner.received = 0
        assert BYTES[: len(viewer.data)] == bytes(viewer.data)
        inner.received = len(viewer.data)
        pairs.append((inner, outer, resets))
    deadline = time.monotonic() + PATIENCE_S
    open_pairs = list(pairs)
    while open_pairs:
        now = time.monotonic()
        assert now < deadline, f"stuck: {[(vars(a), vars(b)) for a, b, _ in open_pairs]}"
        for inner, outer, resets in open_pairs:
            inner.step(now, resets)
            outer.step(now, resets)
        select.select([], [], [], 0.0002)
        still = []
        for inner, outer, resets in open_pairs:
            whole = all(a.has_ended and a.is_shut and a.received == b.sent for a, b in ((inner, outer), (outer, inner)))
            if whole or inner.is_broken or outer.is_broken:
                assert resets or whole, f"broken without a reset: {vars(inner)} {vars(outer)}"
                inner.socket.close()
                outer.socket.close()
            else:
                still.append((inner, outer, resets))
        open_pairs = still


@pytest.mark.parametrize("kind", ["plain", "tls-1.3"])
def test_torture(rigs: Callable[..., Rig], kind: str) -> None:
    chance = random.Random(SEED)
    print(f"TORTURE_SEED={SEED}")
    rig = rig_of(rigs, kind, workers=2, send_bytes=16384)
    tunnels = Tunnels(rig)
    end = time.monotonic() + SECONDS
    try:
        while time.monotonic() < end:
            play(rig, tunnels, chance)
            wait_until(lambda: rig.plane.n_connections == 0, "all tunnels gone")
            for viewer in rig.viewers:
                viewer.close()
            rig.viewers.clear()
            tunnels.peers.clear()
    finally:
        tunnels.close()
    print(f"{rig.total('tunnels_opened')} tunnels, {rig.total('tunnel_bytes_to_viewers')} bytes to viewers")
