"""Uploads tortured over real sockets: viewers of all manners send random bodies in random pieces, pipeline and leave at
random, against a control plane that reads them at random, answers early, drops and fails. Each body that is whole is
checked by digest, none that was cut may count as whole. TORTURE_S and TORTURE_SEED as in test_torture.py."""

from __future__ import annotations

import hashlib
import os
import random
import ssl
import threading
from collections.abc import Callable

import pytest
from plane_rig import GENERIC, Rig, Viewer
from tls_rig import rig_of
from torture_run import run_for

from ext.asked import Exchange

SECONDS = float(os.environ.get("TORTURE_S", "4"))
SEED = int(os.environ.get("TORTURE_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 32)
SIZES = [0, 1, 100, 511, 513, 4096, 70_000, 200_000, 600_000]


class Reader:
    """One upload at the control plane."""

    def __init__(self, exchange: Exchange, chance: random.Random) -> None:
        self.exchange: Exchange | None = exchange
        self.body = exchange.body
        self.digest, self.n = hashlib.sha256(), 0
        self.is_early = chance.random() < 0.1
        self.is_failing = chance.random() < 0.05

    def step(self, rig: Rig, chance: random.Random) -> bool:
        """True: over."""
        assert self.exchange is not None
        if self.body is not None:
            data = self.body.read(chance.choice([1, 1000, 65536, 1 << 20]))
            self.digest.update(data)
            self.n += len(data)
            if self.body.is_aborted:
                assert not self.body.is_over
                self.exchange.done()
                return self.end()
            if self.is_early and chance.random() < 0.05:
                self.answer(rig, b"early")
                return self.end()
            if self.is_failing and chance.random() < 0.05:
                self.exchange.error(502)
                return self.end()
            if not self.body.is_over:
                return False
        self.answer(rig, f"{self.digest.hexdigest()} {self.n}".encode())
        return self.end()

    def answer(self, rig: Rig, text: bytes) -> None:
        assert self.exchange is not None
        stored = rig.create(len(text), private=True, origin=GENERIC)
        room = stored.room(0, len(text)) if stored is not None else None
        if stored is None or room is None:
            self.exchange.error(503)
            return
        room[:] = text
        stored.commit(0, len(text))
        stored.finish(len(text))
        if self.n % 3 == 0:
            self.exchange.interim(b"HTTP/1.1 103 Early Hints\r\n\r\n")
        self.exchange.leader(stored, 200)

    def end(self) -> bool:
        if self.body is not None:
            self.body.drop()
        self.exchange = self.body = None
        return True


class Control(threading.Thread):
    def __init__(self, rig: Rig, seed: int) -> None:
        super().__init__()
        self.rig, self.chance, self.must_stop = rig, random.Random(seed), threading.Event()
        self.error: BaseException | None = None

    def run(self) -> None:
        readers: list[Reader] = []
        try:
            while readers or not self.must_stop.is_set():
                asked, _, _ = self.rig.plane.take()
                self.rig.plane.bodies()
                readers += [Reader(exchange, self.chance) for exchange in asked]
                asked.clear()
                readers = [reader for reader in readers if not reader.step(self.rig, self.chance)]
                if self.chance.random() < 0.01:
                    self.rig.plane.reclaim()
        except BaseException as error:
            self.error = error


class Client(threading.Thread):
    def __init__(self, rig: Rig, seed: int) -> None:
        super().__init__()
        self.rig, self.chance, self.must_stop = rig, random.Random(seed), threading.Event()
        self.n_whole = self.n_left = self.n_cut = 0
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            while not self.must_stop.is_set():
                self.visit()
        except BaseException as error:
            self.error = error

    def visit(self) -> None:
        viewer = Viewer()
        try:
            self.rig.connect(viewer)
            for _ in range(self.chance.randrange(1, 8)):
                if not self.upload(viewer):
                    return
        except (ConnectionError, ssl.SSLError, AssertionError) as error:
            if isinstance(error, AssertionError) and "ended after" not in str(error):
                raise
            self.n_cut += 1
        finally:
            viewer.close()

    def upload(self, viewer: Viewer) -> bool:
        """False: the connection is over."""
        chance = self.chance
        body = chance.randbytes(chance.choice(SIZES))
        head = b"PUT /generic/x HTTP/1.1\r\nHost: a\r\n"
        if chance.random() < 0.5:
            data = head + b"Content-Length: %d\r\n\r\n" % len(body) + body
        else:
            step = chance.choice([1000, 65536, 100_000])
            pieces = [body[i : i + step] for i in range(0, len(body), step)]
            coded = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
            data = head + b"Transfer-Encoding: chunked\r\n\r\n" + coded + b"0\r\n\r\n"
        is_leaving = chance.random() < 0.1
        if is_leaving:
            data = data[: chance.randrange(len(data))]
        while data:
            n = chance.choice([1, 500, 65536, len(data)])
            viewer.send(data[:n])
            data = data[n:]
        if is_leaving:
            self.n_left += 1
            if chance.random() < 0.5:
                viewer.reset()
            return False
        reply = viewer.head()
        while reply.status == 103:
            reply = viewer.head()
        text = viewer.until(int(reply["content-length"]))
        if reply.status == 200 and text != b"early":
            assert text == f"{hashlib.sha256(body).hexdigest()} {len(body)}".encode()
            self.n_whole += 1
        else:
            assert reply.status in (200, 502, 503)
        return not reply.has("connection")


@pytest.mark.timeout(120 + 2 * SECONDS)
@pytest.mark.parametrize(
    ("memory", "kind"), [(6 << 20, "plain"), (64 << 20, "plain"), (6 << 20, "tls-1.3")], ids=["tight", "wide", "tls"]
)
def test_uploads_against_a_control_plane(rigs: Callable[..., Rig], memory: int, kind: str) -> None:
    print(f"seed {SEED}")
    rig = rig_of(rigs, kind, workers=2, memory=memory)
    control = Control(rig, SEED)
    clients = [Client(rig, SEED + i) for i in range(1, 9)]
    run_for(SECONDS, control, clients)
    figures = {name: n for name, n in rig.plane.totals().items() if n}
    whole = sum(client.n_whole for client in clients)
    print(whole, sum(client.n_left for client in clients), sum(client.n_cut for client in clients), figures)
    assert whole > 20
    assert {"uploads", "uploads_aborted", "passed"} <= figures.keys()
    rig.check_counters()
