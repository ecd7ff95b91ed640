"""Fuzz target: TLS into a worker. ClientHellos with hostile names, protocols, tickets and key shares, flights and
records cut and changed anywhere, and records sealed with a connection's own keys: alerts, key updates, renegotiation,
messages out of place, early ends. What was only cut is answered to the byte. Other viewers get their bytes, each
connection is counted as one handshake or one failure, and when all have left nothing is kept.

    .venv/bin/python tests/fuzz/fuzz_tls.py 600   so many seconds; prints the number of runs
"""

from __future__ import annotations

import contextlib
import random
import select
import socket
import ssl
import sys
import tempfile
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[1:1] = [str(ROOT / "tests" / "dataplane")]
sys.path.append(str(ROOT))  # last, so that a sanitized build on PYTHONPATH wins

import tls_wire as wire  # noqa: E402
from fuzz_h2 import PREFACE  # noqa: E402
from fuzz_h2 import WORDS as FRAMES  # noqa: E402
from fuzz_h2 import seeds as h2_seeds  # noqa: E402
from h2_rig import H2Viewer  # noqa: E402
from mutation import mutated, run  # noqa: E402
from plane_rig import GENERIC, PATIENCE_S, Rig, Viewer, pattern, wait_until  # noqa: E402
from tls_rig import authority, certificate, ticket_key  # noqa: E402

from ext.tls_context import TlsServer  # noqa: E402

OFFERED = 1  # layout.pxd: HTTP/2 by ALPN
BODY, LARGE = pattern(30_000), pattern(400_000)
GET = b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n"
REQUESTS = [
    GET * 3,
    b"GET /x HTTP/1.1\r\nHost: a\r\nRange: bytes=5-9,20-29,-3\r\n\r\n",
    b"POST /generic/x HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello" + GET,
    b"PUT /generic/x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n" + GET,
    b"GET /generic/chat HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n\x81\x80abcd",
]
HOSTS = [b"a", b"A.", b"www.corp.example", b".corp.example", b"", b".", b"..", b"*", b"a\0b", b"\xff" * 300,
         b"127.0.0.1", b"x" * 255, b"xn--", b"a" * 65000]  # fmt: skip
PROTOCOLS = [b"h2", b"http/1.1", b"", b"h2c", b"acme-tls/1", b"\0", b"h2\0", b"x" * 255]
FAILURES = ("broken", "left", "plain", "refused", "slow", "suite", "version")
SUITES = {
    ssl.TLSVersion.TLSv1_3: "",
    ssl.TLSVersion.TLSv1_2: "ECDHE-ECDSA-AES128-GCM-SHA256",  # which Seal12 knows
    ssl.TLSVersion.TLSv1: "ALL:@SECLEVEL=0",
}
GONE = (ssl.SSLError, ConnectionError)


class Client:
    """A kind of viewer: version and ALPN, with a session to resume and its keys told."""

    def __init__(self, folder: Path, version: ssl.TLSVersion, *protocols: str) -> None:
        self.version = version
        self.context = authority().context()
        if SUITES[version]:
            self.context.set_ciphers(SUITES[version])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            self.context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
            self.context.maximum_version = version
            self.context.minimum_version = version
        if protocols:
            self.context.set_alpn_protocols(list(protocols))
        self.log = wire.KeyLog(folder / f"{version.name}-{'-'.join(protocols).replace('/', '')}", self.context)
        self.session: ssl.SSLSession | None = None


def changed_hello(source: random.Random, data: bytes) -> bytes:
    """The message of a flight's first record, changed in an extension or two, mostly with lengths that fit."""
    hello = wire.Hello.read(next(wire.records(data))[1][4:])
    for _ in range(source.randrange(1, 4)):
        extensions = hello.extensions
        at = source.randrange(len(extensions))
        kind, content = extensions[at]
        match source.randrange(9):
            case 0 | 1:
                names = [mutated(source, HOSTS) for _ in range(source.choice([1, 1, 1, 2, 0]))]
                kind, content = wire.SNI, wire.server_names(*names, kind=source.choice([0, 0, 0, 1, 255]))
            case 2 | 3:
                names = [source.choice(PROTOCOLS) for _ in range(source.choice([1, 2, 3, 60, 0]))]
                kind, content = wire.ALPN, wire.protocols(*names)
            case 4:
                kind, content = wire.STATUS, mutated(source, [b"\1\0\0\0\0", b"\2\0\0\0\0", b"\1\xff\xff\0\0"])
            case 5:
                content = mutated(source, [content])
            case 6:
                del extensions[at]
                continue
            case 7:
                source.shuffle(extensions)  # a pre-shared key that is not the last one is refused
                continue
            case _:
                hello.session = source.randbytes(source.choice([0, 1, 31, 32, 33, 255]))
                hello.suites = mutated(source, [hello.suites, b"\0\xff\x56\0\x13\1", b"\x0a\x0a\xc0\x2b"])
                continue
        if source.random() < 0.2:
            content = mutated(source, [content])
        same = [i for i, (other, _) in enumerate(extensions) if other == kind]
        if same and source.random() < 0.9:
            extensions[same[0]] = (kind, content)
        else:
            extensions.insert(source.randrange(len(extensions) + 1), (kind, content))
    return hello.write()


def as_records(source: random.Random, kind: int, data: bytes) -> bytes:
    """A message in records of odd sizes, with what doesn't belong there now and then in between."""
    out = b""
    while data:
        n = source.choice([1, 5, 100, 16_384])
        out += wire.record(kind, data[:n], source.choice([b"\3\1", b"\3\3", b"\3\3", b"\3\0", b"\7\7"]))
        data = data[n:]
        if source.random() < 0.05:
            out += source.choice(
                [wire.record(20, b"\1"), wire.record(21, b"\1\0"), wire.record(21, b"\2\x28"), wire.record(22, b""),
                 wire.record(23, b"early"), wire.record(99, b"?"), wire.record(22, bytes(16_385))]
            )  # fmt: skip
    return out


def messages(source: random.Random) -> tuple[int, bytes]:
    """(kind of record, content) that a viewer might seal."""
    old_hello = wire.message(wire.CLIENT_HELLO, b"\3\3" + bytes(32) + b"\0\0\2\xc0\x2b\1\0")
    return source.choice([
        (wire.DATA, b""),
        (wire.DATA, mutated(source, REQUESTS)),
        (wire.HANDSHAKE, wire.message(wire.KEY_UPDATE, source.choice([b"\0", b"\1", b"\2", b"", b"\1\1"]))),
        (wire.HANDSHAKE, wire.message(wire.KEY_UPDATE, b"\1") * source.choice([2, 40])),
        (wire.HANDSHAKE, old_hello),
        (wire.HANDSHAKE, mutated(source, [old_hello])),
        (wire.HANDSHAKE, wire.message(source.choice([0, 2, 4, 5, 8, 11, 13, 15, 20, 254]), source.randbytes(40))),
        (wire.HANDSHAKE, b"\1\0\xff\xff"),
        (wire.HANDSHAKE, b""),
        (wire.ALERT, wire.CLOSE_NOTIFY),
        (wire.ALERT, source.choice([b"\1\x64", b"\1\x5a", b"\2\x50", b"\2\0", b"\1", b"", b"\1\0\1\0"])),
        (wire.CHANGE_CIPHER, b"\1"),
        (source.choice([0, 24, 99, 255]), b"?"),
    ])  # fmt: skip


class Target:
    def __init__(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        folder = Path(self.folder.name)
        new, old = ssl.TLSVersion.TLSv1_3, ssl.TLSVersion.TLSv1_2
        self.clients = [Client(folder, new), Client(folder, old), Client(folder, new, "h2", "http/1.1"),
                        Client(folder, old, "h2")]  # fmt: skip
        self.ancient = Client(folder, ssl.TLSVersion.TLSv1)
        self.rigs = [self.rig(is_legacy=False), self.rig(is_legacy=True)]
        self.good = [self.rigs[0].viewer(), H2Viewer(self.rigs[0])]
        self.frames = h2_seeds()
        self.flights = [GET, b"\x80\x2e\1\3\1", b"SSH-2.0-x\r\n", b"CONNECT a:443 HTTP/1.1\r\n\r\n"]
        self.runs = 0

    def rig(self, *, is_legacy: bool) -> Rig:
        chain, key, names = certificate()
        other = authority().issue("*.corp.example", rsa=True)
        rows = [(chain, key, names, b"stapled" * 100, 1 << 40), (*other, b"", 0)]
        rig = Rig(tls=TlsServer(rows, is_legacy), http2=OFFERED, memory=32 << 20, send_bytes=8192)
        rig.context = authority().context()
        rig.store("/x", BODY)
        rig.store("/large", LARGE)
        return rig

    # --- one connection

    def check(self, source: random.Random) -> None:
        is_legacy = source.random() < 0.15
        rig = self.rigs[is_legacy]
        client = self.ancient if is_legacy else source.choice(self.clients)
        if source.random() < 0.02:
            rig.plane.set_ticket_keys([ticket_key() for _ in range(source.randrange(1, 4))], 0)
        viewer = Viewer()
        viewer.connect(rig.address)
        session = client.session if source.random() < 0.5 else None
        connected = wire.TlsSocket(viewer.socket, client.context, source.choice(["a", "www.corp.example"]), session)
        way = source.choice([self.hello, self.flight, self.phase, self.sealed, self.sealed, self.cut, self.cut])
        with contextlib.suppress(*GONE):
            way(source, client, connected)
        self.leave(source, viewer, connected)
        for each in self.rigs:
            each.take()
            for exchange in each.exchanges:
                self.answer(each, exchange, source)
            each.exchanges.clear()
        self.runs += 1
        if self.runs % 100 == 0:
            self.look()

    def leave(self, source: random.Random, viewer: Viewer, connected: wire.TlsSocket) -> None:
        viewer.socket = connected.raw
        with contextlib.suppress(*GONE, OSError):
            what = source.randrange(4)
            if what == 0:
                viewer.socket.shutdown(socket.SHUT_WR)
            elif what == 1:
                connected.shutdown(socket.SHUT_WR)
            if what < 2 and select.select([viewer.socket], [], [], 0.002)[0]:
                viewer.socket.recv(1 << 20)
        viewer.reset() if source.random() < 0.3 else viewer.close()

    def look(self) -> None:
        """Good viewers are served, and no connection went without being counted once."""
        second, first = self.good
        assert isinstance(first, H2Viewer)
        assert first.fetch("/x").body == BODY
        assert second.get("/x").body == BODY
        for client in (*self.clients, self.ancient):
            client.log.forget()
        for rig in self.rigs:
            assert all(alive for _, _, alive in rig.plane.workers_state())
            rig.plane.reclaim()

            def is_counted(rig: Rig = rig) -> bool:
                n = rig.total("tls_handshakes") + sum(rig.total(f"tls_failed_{each}") for each in FAILURES)
                return n == rig.total("connections_accepted")

            wait_until(is_counted, f"each connection counted once: {rig.plane.totals()}")

    def answer(self, rig: Rig, exchange: object, source: random.Random) -> None:
        if source.random() < 0.5:
            exchange.error(404)  # type: ignore[attr-defined]
            return
        stored = rig.create(4, private=True, origin=GENERIC)
        assert stored is not None
        rig.append(stored, 0, b"four")
        stored.finish(4)
        exchange.leader(stored, 200)  # type: ignore[attr-defined]

    def send(self, source: random.Random, raw: socket.socket, data: bytes) -> None:
        """Cut anywhere."""
        while data:
            n = source.choice([1, 4, 5, 6, 100, 1000, 100_000, 100_000])
            raw.sendall(data[:n])
            data = data[n:]

    # --- ways to go wrong

    def hello(self, source: random.Random, client: Client, connected: wire.TlsSocket) -> None:
        """A ClientHello with other extensions, and something behind it."""
        data = connected.flight()
        self.flights = [*self.flights[-40:], data] if source.random() < 0.05 else self.flights
        self.send(source, connected.raw, as_records(source, wire.HANDSHAKE, changed_hello(source, data)))
        if source.random() < 0.5:
            select.select([connected.raw], [], [], 0.002)
            kind, content = messages(source)
            self.send(source, connected.raw, wire.record(kind, content[:16_384]))

    def flight(self, source: random.Random, client: Client, connected: wire.TlsSocket) -> None:
        """Bytes of one flight changed: the first one, or the one that ends the handshake."""
        data = connected.flight()
        if source.random() < 0.5:
            connected.raw.sendall(data)
            while not (data := connected.flight()):
                connected.feed(self.take(connected))
        self.flights = [*self.flights[-40:], data] if source.random() < 0.05 else self.flights
        self.send(source, connected.raw, mutated(source, [data, data, data, *self.flights]))

    def phase(self, source: random.Random, client: Client, connected: wire.TlsSocket) -> None:
        """Records sealed with the handshake's own keys (TLS 1.3) in the place of Finished; else plain messages."""
        connected.raw.sendall(connected.flight())
        while not (data := connected.flight()):
            connected.feed(self.take(connected))
        out = b""
        if client.version == ssl.TLSVersion.TLSv1_3:
            seal = wire.seal_of(connected, client.log, "CLIENT_HANDSHAKE_TRAFFIC_SECRET")
            finished = wire.message(wire.FINISHED, source.randbytes(32))
            for _ in range(source.randrange(1, 4)):
                kind, content = source.choice([messages(source), (wire.HANDSHAKE, mutated(source, [finished]))])
                out += seal(kind, content[:16_384], source.choice([0, 0, 1, 1000]))
        else:
            for _ in range(source.randrange(1, 4)):
                kind, content = messages(source)
                out += wire.record(kind, content[:16_384])
            out += data
        self.send(source, connected.raw, out)

    def sealed(self, source: random.Random, client: Client, connected: wire.TlsSocket) -> None:
        """After the handshake: messages of all kinds, well sealed; requests between them; or frames of HTTP/2."""
        connected.handshake()
        if client is self.ancient:
            self.send(source, connected.raw, wire.record(wire.DATA, source.randbytes(source.choice([0, 16, 48, 160]))))
            return
        seal, out = wire.seal_of(connected, client.log), b""
        if connected.tls.selected_alpn_protocol() == "h2":
            data = PREFACE + mutated(source, self.frames, FRAMES)
            while data:
                n = source.choice([1, 9, 100, 16_384])
                out += seal(wire.DATA, data[:n])
                data = data[n:]
        else:
            for _ in range(source.randrange(1, 9)):
                kind, content = messages(source) if source.random() < 0.6 else (wire.DATA, GET)
                out += seal(kind, content[:16_384], source.choice([0, 0, 0, 1, 300, 17_000]))
                if kind == wire.HANDSHAKE and content[:1] == bytes([wire.KEY_UPDATE]):
                    for _ in range(source.choice([1, 1, len(content) // 5, 0])):
                        seal.update()
                if source.random() < 0.05:
                    out += mutated(source, [out, source.randbytes(50)])[:100_000]
        out = out if source.random() < 0.8 else out[: source.randrange(len(out) + 1)]
        self.send(source, connected.raw, out)

    def cut(self, source: random.Random, client: Client, connected: wire.TlsSocket) -> None:
        """What is right, however it is cut, padded and sealed anew in between, is answered to the byte."""
        connected.handshake()
        try:
            self.exactly(source, client, connected)
        except GONE as error:  # nothing here may end a connection
            raise AssertionError(f"{client.version.name}: {error}") from error

    def exactly(self, source: random.Random, client: Client, connected: wire.TlsSocket) -> None:
        if client is self.ancient or connected.tls.selected_alpn_protocol() == "h2":
            if client is self.ancient:
                connected.sendall(GET)
                self.read(connected, BODY)
            return
        seal, out = wire.seal_of(connected, client.log), b""
        small = (b"/x", BODY, source.choice([1, 1, 3]))
        path, body, n_requests = source.choice([small, small, small, (b"/large", LARGE, 1)])
        data = GET.replace(b"/x", path) * n_requests
        while data:
            n = source.choice([1, 7, 100, 1000])
            out += seal(wire.DATA, data[:n], source.choice([0, 0, 1, 900]))
            data = data[n:]
            if client.version == ssl.TLSVersion.TLSv1_3 and source.random() < 0.1:
                out += seal(wire.HANDSHAKE, wire.message(wire.KEY_UPDATE, source.choice([b"\0", b"\1"])))
                seal.update()
            elif source.random() < 0.05:
                out += seal(wire.DATA, b"")
        self.send(source, connected.raw, out)
        self.read(connected, body, n_requests)
        with contextlib.suppress(*GONE):
            client.session = connected.tls.session

    def read(self, connected: wire.TlsSocket, body: bytes, n: int = 1) -> None:
        viewer = Viewer()
        viewer.socket.close()
        viewer.socket = connected  # type: ignore[assignment]
        for _ in range(n):
            assert viewer.reply().body == body

    def take(self, connected: wire.TlsSocket) -> bytes:
        connected.raw.settimeout(PATIENCE_S)
        data = connected.raw.recv(1 << 16)
        if not data:
            raise ConnectionResetError
        return data


def main() -> None:
    target = Target()
    run(target.check)
    target.look()
    for viewer in target.good:
        viewer.close()
    for rig in target.rigs:
        rig.close()  # holds the plane to account: memory, counters, connections
    target.folder.cleanup()


if __name__ == "__main__":
    main()
