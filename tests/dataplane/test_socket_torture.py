"""Workers tortured over real sockets: viewers of all manners against a control plane that fills, fails, swaps, purges
and reloads at random, in memory that never suffices. Every byte is checked. TORTURE_S and TORTURE_SEED as in
test_torture.py."""

from __future__ import annotations

import os
import random
import ssl
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest
from plane_rig import MEDIA, SECOND_NS, Reply, Rig, Viewer, wait_until

from ext.asked import Exchange
from ext.stored import StoredObject

SECONDS = float(os.environ.get("TORTURE_S", "4"))
SEED = int(os.environ.get("TORTURE_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 32)
N_KEYS = 40
OURS = {404, 502, 503, 504}


def body_of(seed: int, n: int) -> bytes:
    return ((np.arange(n, dtype="u8") * 2654435761 + seed * 97) >> 9).astype("u1").tobytes()


class Fill:
    """A body that grows a step at a time between others."""

    def __init__(self, stored: StoredObject, body: bytes, offset: int, end: int, is_whole: bool) -> None:
        self.stored, self.body, self.offset, self.end, self.is_whole = stored, body, offset, end, is_whole
        self.n_refused = 0
        stored.begin_fill()

    def step(self, chance: random.Random) -> bool:
        """True: over."""
        if self.stored.is_failed:
            self.stored.end_fill()
            return True
        if self.offset >= self.end:
            if self.is_whole:
                self.stored.finish(self.end)
            self.stored.end_fill()
            return True
        room = self.stored.room(self.offset, min(self.end - self.offset, chance.randrange(1, 30_000)))
        if room is None:
            self.n_refused += 1
        if self.n_refused > 200 or chance.random() < 0.003:
            self.stored.fail()
            self.stored.end_fill()
            return True
        if room is not None:
            room[:] = self.body[self.offset : self.offset + len(room)]
            self.stored.commit(self.offset, len(room))
            self.offset += len(room)
        return False


class Control(threading.Thread):
    def __init__(self, rig: Rig, seed: int) -> None:
        super().__init__()
        self.rig, self.chance, self.must_stop = rig, random.Random(seed), threading.Event()
        self.fills: list[Fill] = []
        self.bodies: dict[StoredObject, bytes] = {}
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            while not self.must_stop.is_set() or self.is_busy():
                self.turn()
        except BaseException as error:
            self.error = error

    def is_busy(self) -> bool:
        return bool(self.fills)

    def new(self, path: str, private: bool = False) -> StoredObject | None:
        """An object whose head says what its body is."""
        seed, n = self.chance.randrange(1 << 30), self.chance.choice([0, 1, 300, 4096, 20_000, 150_000])
        is_known = self.chance.random() < 0.6
        lines = b"X-Path: %s\r\nX-Seed: %d\r\nX-Total: %d\r\n" % (path.encode(), seed, n)
        fresh_s = self.chance.choice([100, 0.05, -1])
        stored = self.rig.create(
            n if is_known else -1, lines=lines, etag=b'"%d"' % seed, fresh_s=fresh_s, private=private,
            stale_s=self.chance.choice([0, 5]), validated_ns=time.monotonic_ns(),
            strong=is_known and self.chance.random() < 0.7,
        )  # fmt: skip
        if stored is not None:
            body = body_of(seed, n)
            self.fills.append(Fill(stored, body, 0, n, True))
            if stored.is_strong:  # any other would never be evicted while it is held here
                self.bodies[stored] = body
        return stored

    def answer(self, exchange: Exchange) -> None:
        path = exchange.key.decode()
        if exchange.kind == "want":
            stored = exchange.stored
            assert stored is not None
            body = self.bodies.get(stored)
            start = exchange.offset // self.rig.slice_bytes * self.rig.slice_bytes
            if body is not None and not stored.is_filling and not stored.is_failed:
                end = min(start + self.rig.slice_bytes, len(body))
                self.fills.append(Fill(stored, body, start + stored.has_bytes(start), end, False))
            elif not stored.is_filling and not stored.is_failed:
                stored.fail()
            exchange.done()
            return
        what = self.chance.random()
        if exchange.kind == "refresh":
            if what < 0.5 and exchange.stored is not None:
                self.swap(exchange.stored)
            exchange.done()
        elif exchange.kind == "stale" and what < 0.3 and exchange.stored is not None:
            exchange.stale(exchange.stored)
        elif exchange.kind == "stale" and what < 0.7 and exchange.stored is not None:
            self.swap(exchange.stored)
            exchange.match(304)
        elif exchange.kind == "alone" or what < 0.1:
            stored = self.new(path, private=True)
            exchange.error(503) if stored is None else exchange.leader(stored, 200)
        elif what < 0.15:
            exchange.error(504)
        elif what < 0.2:
            self.rig.plane.mark_unshareable(MEDIA, exchange.key, time.monotonic_ns() + SECOND_NS // 20)
            exchange.match(200)
        elif what < 0.25:
            shared = self.rig.create(0, status=404)
            if shared is None:
                exchange.error(503)
            else:
                shared.finish(0)
                exchange.everybody(shared, 404)
        else:
            stored = self.new(path)
            if stored is None or not stored.insert(exchange.key, b"", b""):
                exchange.error(503)
            else:
                exchange.match(200)

    def swap(self, stored: StoredObject) -> None:
        now_ns = time.monotonic_ns()
        lines = stored.lines()
        etag = next(line[6:] for line in lines.split(b"\r\n") if line.startswith(b"ETag: "))
        stored.set_head(200, b"HTTP/1.1 200 OK\r\n", lines, b"ETag: " + etag + b"\r\n", etag, -1,
                        now_ns + SECOND_NS // 10, 0, now_ns, now_ns, 0)  # fmt: skip

    def turn(self) -> None:
        rig, chance = self.rig, self.chance
        asked, _, _ = rig.plane.take()
        for exchange in asked:
            self.answer(exchange)
        chance.shuffle(self.fills)
        self.fills = [fill for fill in self.fills if not fill.step(chance)]
        if chance.random() < 0.02:
            for stored in rig.plane.find(MEDIA, b"/%d" % chance.randrange(N_KEYS)):
                stored.detach()
        if chance.random() < 0.01:
            rig.publish(hosts=(b"a", b"b%d" % chance.randrange(100)))
        if chance.random() < 0.05:
            rig.plane.reclaim()
            rig.plane.acknowledged()
        if len(self.bodies) > 400:
            self.bodies = {stored: body for stored, body in self.bodies.items() if stored.n_readers or stored.is_listed}
        memory = rig.plane.memory
        assert memory["mapped"] + memory["outside"] <= memory["limit"], memory


class Client(threading.Thread):
    def __init__(self, rig: Rig, seed: int) -> None:
        super().__init__()
        self.rig, self.chance, self.must_stop = rig, random.Random(seed), threading.Event()
        self.viewer: Viewer | None = None
        self.n_replies = self.n_bytes = self.n_resets = 0
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            while not self.must_stop.is_set():
                self.visit()
        except BaseException as error:
            self.error = error

    def visit(self) -> None:
        chance = self.chance
        viewer = Viewer(chance.choice([0, 0, 4096]))
        try:
            self.rig.connect(viewer)
            for _ in range(chance.randrange(1, 12)):
                asked = [self.request() for _ in range(chance.choice([1, 1, 1, 3]))]
                viewer.send(b"".join(text for text, _, _, _ in asked))
                if chance.random() < 0.05:
                    viewer.reset()
                    return
                for _, path, method, byte_range in asked:
                    self.check(viewer.reply(method), path, method, byte_range)
            if chance.random() < 0.2:
                viewer.ask(f"/{chance.randrange(N_KEYS)}", minor=0)
                self.check(viewer.reply(), "", "GET", None)
        except (ConnectionError, ssl.SSLError):  # the latter: over TLS, in the midst of a handshake
            self.n_resets += 1
        finally:
            viewer.close()

    def request(self) -> tuple[bytes, str, str, tuple[int, int] | None]:
        path = f"/{self.chance.randrange(N_KEYS)}"
        method = self.chance.choice(["GET", "GET", "GET", "GET", "HEAD"])
        byte_range = None
        text = f"{method} {path} HTTP/1.1\r\nHost: a\r\n"
        if method == "GET" and self.chance.random() < 0.3:
            first = self.chance.randrange(160_000)
            byte_range = (first, first + self.chance.randrange(1, 40_000))
            text += f"Range: bytes={byte_range[0]}-{byte_range[1]}\r\n"
        return (text + "\r\n").encode(), path, method, byte_range

    def check(self, reply: Reply, path: str, method: str, byte_range: tuple[int, int] | None) -> None:
        self.n_replies += 1
        self.n_bytes += len(reply.body)
        if reply.status in OURS:
            return
        if reply.status == 416:
            assert byte_range is not None
            assert byte_range[0] >= int(reply["content-range"].split("/")[1])
            return
        if path:
            assert reply["x-path"] == path
        whole = body_of(int(reply["x-seed"]), int(reply["x-total"]))
        if reply.status == 206:
            assert byte_range is not None
            last = min(byte_range[1], len(whole) - 1)
            assert reply["content-range"] == f"bytes {byte_range[0]}-{last}/{len(whole)}"
            whole = whole[byte_range[0] : last + 1]
        else:
            assert reply.status == 200
        if method == "GET":
            assert reply.body == whole, (len(reply.body), len(whole))


@pytest.mark.timeout(120 + 2 * SECONDS)
@pytest.mark.parametrize(
    ("memory", "slice_bytes", "send_bytes"),
    [(4 << 20, 8192, 16384), (64 << 20, 8192, 16384), (6 << 20, 1 << 16, 1 << 18)],
    ids=["tight", "wide", "by-reference"],
)
def test_viewers_against_a_control_plane(
    rigs: Callable[..., Rig], memory: int, slice_bytes: int, send_bytes: int
) -> None:
    print(f"seed {SEED}")
    rig = rigs(workers=2, memory=memory, slice_bytes=slice_bytes, send_bytes=send_bytes)
    control = Control(rig, SEED)
    clients = [Client(rig, SEED + i) for i in range(1, 7)]
    for thread in (control, *clients):
        thread.start()
    end = time.monotonic() + SECONDS
    threads = (control, *clients)
    wait_until(
        lambda: time.monotonic() > end or not all(thread.is_alive() for thread in threads), patience_s=SECONDS + 10
    )
    for client in clients:
        client.must_stop.set()
    for client in clients:
        client.join()
    control.must_stop.set()
    control.join()
    for thread in (control, *clients):
        if thread.error is not None:
            raise thread.error
    control.bodies.clear()
    figures = {name: n for name, n in rig.plane.totals().items() if n}
    print(sum(client.n_replies for client in clients), sum(client.n_resets for client in clients), figures)
    assert sum(client.n_replies for client in clients) > 100
    assert {"hits", "misses", "collapsed", "passed"} <= figures.keys()
    assert ("bytes_by_reference" in figures) == (slice_bytes > 32768)
    rig.check_counters()
