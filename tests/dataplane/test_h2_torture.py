"""HTTP/2 tortured over real sockets, plain and over TLS: many streams of one connection with random windows,
priorities, ranges, uploads, resets and stalls, against a control plane that fills, fails, swaps, purges and reloads at
random, in memory that doesn't suffice. Every body is compared. TORTURE_S and TORTURE_SEED as in test_torture.py."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import threading
from collections.abc import Callable

import h2.events
import h2.exceptions
import pytest
from h2_rig import CANCEL, CLEARTEXT, Answer, H2Viewer, raw_frame
from plane_rig import MEDIA, Rig
from test_socket_torture import N_KEYS, SECONDS, SEED, Client, Control, body_of
from test_upload_torture import SIZES, Reader
from tls_rig import one_way_socket, tls_rig
from torture_run import run_for

from ext.asked import Exchange

OFFERED = 1  # layout.pxd: HTTP/2 by ALPN
PRIORITY_UPDATE, PING = 16, 6


class Reading(H2Viewer):
    """Ends by ConnectionResetError, and can leave what came unacknowledged for a while."""

    def __init__(self, rig: Rig, window: int, receive_bytes: int) -> None:
        self.owed: list[tuple[int, int]] = []
        self.is_shut = window == 0
        super().__init__(rig, window=window, receive_bytes=receive_bytes)
        rig.viewers.remove(self)

    def step(self) -> bool:
        if not super().step():
            raise ConnectionResetError("ended")
        return True

    def on(self, event: h2.events.Event) -> None:
        super().on(event)
        if isinstance(event, h2.events.DataReceived) and not self.takes and event.flow_controlled_length:
            self.owed.append((event.flow_controlled_length, event.stream_id))

    def open_up(self, *streams: int) -> None:
        """What is owed is acknowledged; and windows that began shut are opened."""
        self.takes = True
        for stream in streams if self.is_shut else ():
            with contextlib.suppress(h2.exceptions.StreamClosedError):
                self.h2.increment_flow_control_window(200_000, stream)
        for n, stream in self.owed:
            self.h2.acknowledge_received_data(n, stream)
        self.owed.clear()
        self.flush()


class Streams(Client):
    """A viewer of many streams."""

    n_uploads = n_taken_back = n_cut = 0

    def visit(self) -> None:
        chance = self.chance
        viewer = None
        try:
            viewer = Reading(self.rig, chance.choice([0, 100, 65535, 65535, 1 << 20]), chance.choice([0, 0, 4096]))
            for _ in range(chance.randrange(1, 5)):
                self.round(viewer)
            if chance.random() < 0.1:
                viewer.reset()
        except (ConnectionError, h2.exceptions.ProtocolError) as error:
            if viewer is not None and isinstance(error, h2.exceptions.ProtocolError):
                raise
            self.n_resets += 1
        finally:
            if viewer is not None:
                viewer.close()

    def round(self, viewer: Reading) -> None:
        chance = self.chance
        asked: dict[int, tuple[str, str, tuple[int, int] | None]] = {}
        sent: dict[int, bytes] = {}
        if chance.random() < 0.3:
            viewer.takes = False
        for _ in range(chance.choice([1, 4, 12])):
            if chance.random() < 0.15:
                stream = viewer.request("/generic/x", method="PUT", end=False)
                sent[stream] = chance.randbytes(chance.choice(SIZES))
            else:
                stream = self.ask(viewer, asked)
            if chance.random() < 0.2:
                about = f"u={chance.randrange(8)}{chance.choice(['', ',i'])}".encode()
                viewer.raw(raw_frame(PRIORITY_UPDATE, stream.to_bytes(4, "big") + about))
        left = {stream for stream in (*asked, *sent) if chance.random() < 0.1}
        for stream in left:
            self.take_back(viewer, stream)
        viewer.raw(raw_frame(PING, bytes(8)))
        viewer.open_up(*(stream for stream in (*asked, *sent) if stream not in left))
        for stream, body in sent.items():
            if stream not in left:
                self.upload(viewer, stream, body)
        going = [stream for stream in (*asked, *sent) if stream not in left]
        if chance.random() < 0.1 and going and viewer.answers[going[0]].is_open:
            viewer.step()
            if viewer.answers[going[0]].is_open:
                left.add(going[0])
                self.take_back(viewer, going.pop(0))
        for stream, answer in zip(going, viewer.until_over(*going), strict=True):
            if answer.reset is not None:
                self.n_cut += 1
            elif stream in asked:
                self.check(answer, *asked[stream])  # type: ignore[arg-type]
            else:
                self.check_upload(answer, sent[stream])

    def ask(self, viewer: Reading, asked: dict[int, tuple[str, str, tuple[int, int] | None]]) -> int:
        chance = self.chance
        path = f"/{chance.randrange(N_KEYS)}"
        method = chance.choice(["GET", "GET", "GET", "GET", "HEAD"])
        byte_range, fields = None, []
        if method == "GET" and chance.random() < 0.3:
            first = chance.randrange(160_000)
            byte_range = (first, first + chance.randrange(1, 40_000))
            fields.append(("range", f"bytes={byte_range[0]}-{byte_range[1]}"))
        priority = chance.choice(["", "", "u=0", "u=7,i", "u=3"])
        stream = viewer.request(path, *fields, method=method, priority=priority)
        asked[stream] = (path, method, byte_range)
        return stream

    def take_back(self, viewer: Reading, stream: int) -> None:
        self.n_taken_back += 1
        try:
            viewer.h2.reset_stream(stream, CANCEL)
        except h2.exceptions.StreamClosedError:  # it was answered meanwhile
            return
        viewer.taken_back.add(stream)
        viewer.flush()

    def upload(self, viewer: Reading, stream: int, body: bytes) -> None:
        try:
            viewer.body(stream, body)
        except h2.exceptions.StreamClosedError:  # answered early, and the rest is not wanted
            return

    def check_upload(self, answer: Answer, body: bytes) -> None:
        self.n_replies += 1
        if answer.status == 200 and answer.body != b"early":
            assert answer.body == f"{hashlib.sha256(body).hexdigest()} {len(body)}".encode()
            self.n_uploads += 1
        else:
            assert answer.status in (200, 502, 503)


class Both(Control):
    """The control plane of bodies and of uploads."""

    def __init__(self, rig: Rig, seed: int) -> None:
        super().__init__(rig, seed)
        self.readers: list[Reader] = []

    def is_busy(self) -> bool:
        return super().is_busy() or bool(self.readers)

    def answer(self, exchange: Exchange) -> None:
        if exchange.kind == "pass":
            self.readers.append(Reader(exchange, self.chance))
        else:
            super().answer(exchange)

    def turn(self) -> None:
        super().turn()
        self.rig.plane.bodies()
        self.readers = [reader for reader in self.readers if not reader.step(self.rig, self.chance)]


@pytest.mark.timeout(120 + 2 * SECONDS)
@pytest.mark.parametrize(("memory", "kind"), [(6 << 20, "tls-1.3"), (64 << 20, "plain")], ids=["tight-tls", "wide"])
def test_streams_against_a_control_plane(rigs: Callable[..., Rig], memory: int, kind: str) -> None:
    print(f"seed {SEED}")
    options = {"workers": 2, "memory": memory, "slice_bytes": 8192, "send_bytes": 16384}
    if kind == "plain":
        rig = rigs(http2=CLEARTEXT, **options)
    else:
        rig = tls_rig(rigs, http2=OFFERED, **options)
        rig.secure = one_way_socket(kind, "h2")
    control = Both(rig, SEED)
    clients = [Streams(rig, SEED + i) for i in range(1, 7)]
    run_for(SECONDS / 2, control, clients)
    control.bodies.clear()
    control.readers.clear()
    gc.collect()
    figures = {name: n for name, n in rig.plane.totals().items() if n}
    n_replies, n_uploads = sum(client.n_replies for client in clients), sum(client.n_uploads for client in clients)
    n_cut, n_resets = sum(client.n_cut for client in clients), sum(client.n_resets for client in clients)
    print(n_replies, n_uploads, n_cut, n_resets, figures)
    assert n_replies > 50
    assert n_uploads > 2
    assert {"hits", "misses", "passed", "uploads", "h2_streams"} <= figures.keys()
    assert "h2_protocol_errors" not in figures
    rig.check_counters()


class Purger(threading.Thread):
    """Stores an object under the same key again and again, takes it away while it is sent, and frees what it can."""

    def __init__(self, rig: Rig) -> None:
        super().__init__()
        self.rig, self.must_stop = rig, threading.Event()
        self.error: BaseException | None = None

    def run(self) -> None:
        seed = 0
        try:
            while not self.must_stop.is_set():
                seed += 1
                n_hits = self.rig.total("hits")
                self.rig.store("/0", body_of(seed, 20_000), lines=b"X-Seed: %d\r\n" % seed)
                while self.rig.total("hits") == n_hits and not self.must_stop.is_set():
                    self.refuse()
                for stored in self.rig.plane.find(MEDIA, b"/0"):
                    stored.detach()
                stored = None
                for _ in range(50):
                    self.rig.plane.reclaim()
                self.refuse()
        except BaseException as error:
            self.error = error


    def refuse(self) -> None:
        self.rig.take()
        for exchange in self.rig.exchanges:
            exchange.error(503)
        self.rig.exchanges.clear()


class Taker(threading.Thread):
    def __init__(self, rig: Rig) -> None:
        super().__init__()
        self.rig, self.must_stop = rig, threading.Event()
        self.n = 0
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            viewer = H2Viewer(self.rig, window=1 << 20)
            while not self.must_stop.is_set():
                for answer in viewer.until_over(*(viewer.request("/0") for _ in range(20))):
                    if answer.status == 200:
                        assert answer.body == body_of(int(answer["x-seed"]), 20_000)
                        self.n += 1
        except BaseException as error:
            self.error = error


@pytest.mark.parametrize("kind", ["plain", "tls-1.3"])
def test_a_body_that_is_purged_while_its_last_frame_is_on_its_way(rigs: Callable[..., Rig], kind: str) -> None:
    """The stream was closed, and its reference given back, before the write that pointed into the body: a purge and a
    reclaim in between freed it under the write, which then sent whatever was there. ThreadSanitizer saw it."""
    if kind == "plain":
        rig = rigs(workers=2, http2=CLEARTEXT)
    else:
        rig = tls_rig(rigs, workers=2, http2=OFFERED)
        rig.secure = one_way_socket(kind, "h2")
    purger, takers = Purger(rig), [Taker(rig) for _ in range(3)]
    run_for(1, purger, takers)
    assert sum(taker.n for taker in takers) > 0
    gc.collect()
