"""A Plane with tables, a listener and viewers, for tests that play the control plane themselves.

No test lives here. What every test of a plane must leave behind is checked in Rig.close()."""

from __future__ import annotations

import gc
import select
import socket
import ssl
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ext import layout
from ext.asked import Exchange
from ext.plane import FOREVER_NS, Plane
from ext.stored import StoredObject
from ext.tls_context import TlsServer

# Sanitizers slow the workers down by ten and more; nothing waits this long when all is well.
PATIENCE_S = 40.0
SECOND_NS = 10**9
SITE = b"lyon"
MEDIA, GENERIC, CREDENTIAL, RELAY = 1, 2, 3, 4
PREFIXES = ((b"media", MEDIA), (b"box", GENERIC))
HOST_PATHS = 3  # any host, for paths that it has
METHODS_MEDIA = 0b1110  # GET, HEAD, OPTIONS
METHODS_ANY = 0b11_1111_1111 & ~(1 << 8 | 1 << 9)  # all tokens but CONNECT and TRACE


def wait_until(condition: Callable[[], object], what: str = "", patience_s: float = PATIENCE_S) -> None:
    """Returns once `condition` holds. Raises AssertionError after `patience_s`."""
    end = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < end, f"never came true: {what or condition}"
        select.select([], [], [], 0.001)


def pattern(n: int, seed: int = 1) -> bytes:
    """`n` bytes that differ at every offset that a slice or a buffer might be off by."""
    return (np.arange(n, dtype="u8") * 2654435761 + seed * 40503 >> 7).astype("u1").tobytes()


@dataclass
class Reply:
    status: int
    line: bytes
    fields: list[tuple[str, str]]
    body: bytes
    is_chunked: bool

    def __getitem__(self, name: str) -> str:
        values = [value for key, value in self.fields if key == name.lower()]
        assert len(values) == 1, f"{name}: {values}"
        return values[0]

    def has(self, name: str) -> bool:
        return any(key == name.lower() for key, _ in self.fields)


class Viewer:
    """One connection, and a strict reader of what comes over it."""

    def __init__(self, receive_bytes: int = 0, source: str = "") -> None:
        self.socket = socket.socket()
        if receive_bytes:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        if source:
            self.socket.bind((source, 0))
        self.socket.settimeout(PATIENCE_S)
        self.data = bytearray()

    def connect(self, address: tuple[str, int]) -> None:
        self.socket.connect(address)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def ask(self, path: str = "/x", *fields: str, method: str = "GET", minor: int = 1, host: str = "a") -> None:
        lines = [f"{method} {path} HTTP/1.{minor}", f"Host: {host}", *fields, "", ""]
        self.send("\r\n".join(lines).encode())

    def more(self) -> bool:
        """Takes what comes next. False: the end. Raises ConnectionResetError on a reset."""
        piece = self.socket.recv(1 << 20)
        self.data += piece
        return bool(piece)

    def until(self, n: int) -> bytes:
        while len(self.data) < n:
            assert self.more(), f"ended after {bytes(self.data)!r}"
        piece = bytes(self.data[:n])
        del self.data[:n]
        return piece

    def line(self) -> bytes:
        while b"\r\n" not in self.data:
            assert self.more(), f"ended after {bytes(self.data)!r}"
        return self.until(self.data.index(b"\r\n") + 2)[:-2]

    def head(self) -> Reply:
        line = self.line()
        assert line.startswith(b"HTTP/1.1 "), line
        fields = []
        while text := self.line():
            name, value = text.split(b": ", 1)
            fields.append((name.decode().lower(), value.decode()))
        names = [name for name, _ in fields]
        chunked = "transfer-encoding" in names
        assert names.count("content-length") + names.count("transfer-encoding") <= 1, fields
        assert max(names.count(name) for name in ("cache-status", "connection", "age")) <= 1, fields
        return Reply(int(line.split()[1]), line, fields, b"", chunked)

    def chunk(self) -> bytes:
        size = int(self.line(), 16)
        data = self.until(size)
        assert self.until(2) == b"\r\n"
        return data

    def reply(self, method: str = "GET") -> Reply:
        """A whole response, by its framing (RFC 9112 section 6.3)."""
        reply = self.head()
        if method == "HEAD" or reply.status in (204, 304):
            return reply
        if reply.is_chunked:
            while piece := self.chunk():
                reply.body += piece
        elif reply.has("content-length"):
            reply.body = self.until(int(reply["content-length"]))
        else:
            reply.body = self.rest()
        return reply

    def get(self, path: str = "/x", *fields: str, method: str = "GET", minor: int = 1, host: str = "a") -> Reply:
        self.ask(path, *fields, method=method, minor=minor, host=host)
        return self.reply(method)

    def rest(self) -> bytes:
        """All that comes until the peer ends."""
        while self.more():
            pass
        data = bytes(self.data)
        self.data.clear()
        return data

    def is_reset(self) -> bool:
        """Waits for the end: True when it is a reset."""
        try:
            self.rest()
        except ConnectionResetError:
            return True
        return False

    def is_silent(self) -> bool:
        """Nothing is there to read now."""
        has_more = getattr(self.socket, "pending", lambda: 0)()  # decrypted, or on its way to be
        return not self.data and not has_more and not select.select([self.socket], [], [], 0)[0]

    def close(self) -> None:
        self.socket.close()

    def reset(self) -> None:
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


class Rig:
    def __init__(
        self, workers: int = 1, memory: int = 64 << 20, slice_bytes: int = 4096, exchange_slots: int = 8192,
        send_bytes: int = 0, zone_mask: int = 0, http2: int = 0, body_max: int = (1 << 64) - 1,
        nets: tuple[tuple[bytes, int, int], ...] = (), tls: TlsServer | None = None,
        relay_zone_mask: int = 0, has_prefix: bool = False, listeners: int = 1, **limits: float,
    ) -> None:  # fmt: skip
        self.slice_bytes = slice_bytes
        self.plane = Plane(workers, memory, slice_bytes, exchange_slots)
        self.empty = self.plane.memory
        self.exchanges: list[Exchange] = []
        self.cancelled: list[tuple[int, int, int]] = []
        self.nudged: list[StoredObject] = []
        self.viewers: list[Viewer] = []
        self.zone_mask, self.nets, self.limits = zone_mask, nets, limits
        self.body_max, self.http2 = body_max, http2
        self.relay_zone_mask = relay_zone_mask
        self.listeners = listeners
        self.has_prefix = has_prefix  # /media/… and /box/… at any other host are the origins' paths
        self.tls = tls  # None: the listener is plain
        self.context: ssl.SSLContext | None = None  # how viewers speak TLS
        self.secure: Callable[[socket.socket], socket.socket] | None = None  # instead of `context`
        self.marks: dict[int, int] = {}  # DSCP of answers, by origin
        self.rule = 0  # not 0: viewers' credentials are judged at /signed
        self.publish()
        self.plane.start()
        self.listener = socket.socket()
        self.listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if send_bytes:
            self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_bytes)
        self.listener.bind(("127.0.0.1", 0))
        self.listener.listen(4096)
        self.listener.setblocking(False)
        self.plane.listen(self.listener.fileno(), 0)

    def publish(self, hosts: tuple[bytes, ...] = (b"a",), **limits: float) -> int:
        """Tables: origins MEDIA at /, GENERIC at /generic, CREDENTIAL (media, less `token`) at /signed.

        RELAY at /relay is no origin, but a stream."""
        strings = bytearray(SITE)

        def text(value: bytes) -> tuple[int, int]:
            strings.extend(value)
            return len(strings) - len(value), len(value)

        prefixes = ((b"/relay", RELAY), (b"/signed", CREDENTIAL), (b"/generic", GENERIC), (b"/", MEDIA))
        paths = [(*text(prefix), origin, 0) for prefix, origin in prefixes]
        parameter = text(b"token")
        origins = np.zeros(5, dtype=layout.ORIGIN_DTYPE)
        origins["is_used"] = 1
        origins["wait_ns"] = 120 * SECOND_NS
        origins["body_max"] = self.body_max
        origins["methods"] = METHODS_MEDIA
        origins[GENERIC]["methods"], origins[GENERIC]["profile"] = METHODS_ANY, 1
        origins[GENERIC]["may_tunnel"] = 1
        origins[CREDENTIAL]["n_credentials"] = 1
        origins[CREDENTIAL]["rule"], origins[CREDENTIAL]["refusal"] = self.rule, 403
        origins[RELAY]["is_relay"], origins[RELAY]["zone_mask"] = 1, self.relay_zone_mask
        for origin, dscp in self.marks.items():
            origins[origin]["dscp"] = dscp
        host_rows = [(*text(host), 0, len(paths), 0) for host in hosts]
        if self.has_prefix:
            below = [(*text(b"/" + name), origin, len(name) + 1) for name, origin in PREFIXES]
            host_rows.append((*text(b""), len(paths), len(below), HOST_PATHS))
            paths += below
        row = np.zeros(1, dtype=layout.LIMITS_DTYPE)
        chosen = {
            "head_timeout_ns": 30 * SECOND_NS, "idle_timeout_ns": 60 * SECOND_NS, "body_timeout_ns": 30 * SECOND_NS,
            "send_window_ns": 30 * SECOND_NS,
            "send_window_bytes": 0, "connections": 100_000, "connections_per_address": 100_000,
        }  # fmt: skip
        for name, value in {**chosen, **self.limits, **limits}.items():
            row[name] = value
        return self.plane.publish(
            bytes(strings), (0, len(SITE)), np.array(host_rows, dtype=layout.HOST_DTYPE),
            np.array(paths, dtype=layout.PATH_DTYPE),
            origins,
            np.array([(list(net), bits, zone) for net, bits, zone in self.nets], dtype=layout.NET_DTYPE),
            np.array([(self.zone_mask, 1, self.http2)] * self.listeners, dtype=layout.LISTENER_DTYPE),
            np.array([parameter], dtype=layout.STRING_DTYPE), row, (self.tls,) * self.listeners,
        )  # fmt: skip

    # --- viewers

    @property
    def address(self) -> tuple[str, int]:
        return self.listener.getsockname()

    def viewer(self, receive_bytes: int = 0, source: str = "") -> Viewer:
        viewer = Viewer(receive_bytes, source)
        self.connect(viewer)
        self.viewers.append(viewer)
        return viewer

    def connect(self, viewer: Viewer) -> None:
        """Over TLS, where the listener speaks it, the handshake too."""
        viewer.connect(self.address)
        if self.secure is not None:
            viewer.socket = self.secure(viewer.socket)
        elif self.context is not None:
            viewer.socket = self.context.wrap_socket(viewer.socket, server_hostname="a", suppress_ragged_eofs=False)

    # --- the control plane's part

    def create(
        self, total: int, *, status: int = 200, lines: bytes = b"", etag: bytes = b"", last_modified_s: int = -1,
        fresh_s: float | None = None, stale_s: float = 0, validated_ns: int = 0, age_s: float = 0, flags: int = 0,
        private: bool = False, strong: bool = False, origin: int = MEDIA,
    ) -> StoredObject | None:  # fmt: skip
        now_ns = time.monotonic_ns()
        lines = b"Content-Type: text/plain\r\n" + (b"ETag: " + etag + b"\r\n" if etag else b"") + lines
        short = b"ETag: " + etag + b"\r\n" if etag else b""
        fresh_ns = FOREVER_NS if fresh_s is None else now_ns + int(fresh_s * SECOND_NS)
        return self.plane.create(
            origin, total, status, b"HTTP/1.1 %d Some\r\n" % status, lines, short, etag, last_modified_s, fresh_ns,
            now_ns + int(stale_s * SECOND_NS), validated_ns, now_ns - int(age_s * SECOND_NS), flags, private, strong,
        )  # fmt: skip

    def begin(
        self, path: str, total: int, *, vary: bytes = b"", request: bytes = b"", **options: object
    ) -> StoredObject:
        """A listed object, to be filled."""
        stored = self.create(total, **options)  # type: ignore[arg-type]
        assert stored is not None
        stored.begin_fill()
        assert stored.insert(path.encode(), vary, request)
        return stored

    def append(self, stored: StoredObject, offset: int, data: bytes) -> int:
        """Puts all of `data` at `offset`, waiting for memory. Returns where it ends."""
        rest = memoryview(data)
        while rest:
            room = self.room(stored, offset, len(rest))
            n = len(room)
            room[:] = rest[:n]
            stored.commit(offset, n)
            offset, rest = offset + n, rest[n:]
        return offset

    def room(self, stored: StoredObject, offset: int, most: int) -> memoryview:
        room = stored.room(offset, most)
        if room is None:
            found: list[memoryview] = []

            def try_again() -> bool:
                self.plane.reclaim()
                again = stored.room(offset, most)
                found.extend([again] if again is not None else [])
                return again is not None

            wait_until(try_again, "memory")
            room = found[0]
        return room

    def store(self, path: str, body: bytes, **options: object) -> StoredObject:
        """A complete, listed object."""
        stored = self.begin(path, len(body), **options)
        self.append(stored, 0, body)
        stored.finish(len(body))
        stored.end_fill()
        return stored

    def refill(self, stored: StoredObject, body: bytes, offset: int) -> None:
        """What a `want` gets: its slice, from where it is filled to."""
        start = offset // self.slice_bytes * self.slice_bytes
        stored.begin_fill()
        here = start + stored.has_bytes(start)
        self.append(stored, here, body[here : start + self.slice_bytes])
        stored.end_fill()

    def take(self) -> None:
        asked, cancelled, nudged = self.plane.take()
        self.exchanges += asked
        self.cancelled += cancelled
        self.nudged += nudged

    def exchange(self, kind: str | None = None) -> Exchange:
        """The next question of that kind."""

        def find() -> bool:
            self.take()
            return any(kind in (None, e.kind) for e in self.exchanges)

        wait_until(find, f"an exchange {kind}")
        found = next(e for e in self.exchanges if kind in (None, e.kind))
        self.exchanges.remove(found)
        return found

    def no_exchange(self) -> bool:
        self.take()
        return not self.exchanges

    def total(self, name: str) -> int:
        return self.plane.totals()[name]

    def passes(self) -> int:
        return sum(passes for _, passes, _ in self.plane.workers_state())

    def kept(self) -> int:
        """Bytes that connections hold, less what TLS takes of each that is idle (TLS_BYTES of ext/tls.pyx)."""
        tls = 16384 * self.plane.n_connections if self.tls is not None else 0
        return self.plane.memory["outside"] - self.empty["outside"] - tls

    # --- the end

    def check_counters(self) -> None:
        totals = self.plane.totals()
        parts = ("hits", "misses", "collapsed", "passed", "refused")
        assert totals["requests"] == sum(totals[name] for name in parts), totals
        memory = self.plane.memory
        assert memory["mapped"] + memory["outside"] <= memory["limit"], memory

    def close(self) -> None:
        """Ends everything, and holds the plane to account: nothing is kept of what is gone."""
        for viewer in self.viewers:
            viewer.close()

        def everybody_left() -> bool:
            self.take()
            self.nudged.clear()
            for exchange in self.exchanges:
                exchange.error(504)
            self.exchanges.clear()
            return self.plane.n_connections == 0 and self.plane.memory["outside"] == self.empty["outside"]

        if not any(alive for _, _, alive in self.plane.workers_state()):
            self.listener.close()  # the test has closed it
            return
        try:
            assert all(alive for _, _, alive in self.plane.workers_state())
            wait_until(everybody_left, "all connections gone, and their memory")
            self.check_counters()
            totals = self.plane.totals()
            assert totals["connections_accepted"] == totals["connections_closed"]
        finally:
            self.plane.close()
            self.listener.close()
        for _, key, stored in self.plane.objects():
            stored.detach()
            self.plane.mark_unshareable(stored.origin, key, 0)
        stored = None
        gc.collect()
        self.plane.reclaim()

