"""An HTTP/1.1 origin on a raw socket that does what each path's script says, right or wrong. Test support, no test.

    origin = HostileOrigin({b"/a": reply(b"ok"), b"/b": raw(b"HTTP/1.1 200 OK\\r\\nContent-Length: 9\\r\\n\\r\\nabc")})
    await origin.start()            # within a loop; origin.port, origin.requests, origin.n_connections
    await origin.close()

or, for tests that have no loop, `with serving({...}) as origin:`, which runs it in a thread. A script is a coroutine
function `(peer, request) -> bool`, True to read another request from the connection; `reply`, `raw`, `drip` make them.
STANDARD names one script for each hostile behaviour; a path that has no script is answered by 404.
"""

from __future__ import annotations

import asyncio
import gzip
import socket
import ssl
import struct
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field


@dataclass
class Request:
    """A request as the origin saw it: head, number of the connection from 0, number of the request on it from 0."""

    raw: bytes
    connection: int
    index: int

    @property
    def method(self) -> bytes:
        return self.raw.split(b" ", 1)[0]

    @property
    def target(self) -> bytes:
        return self.raw.split(b" ", 2)[1]

    def field(self, name: bytes) -> bytes | None:
        """The field's first value, None without it."""
        for line in self.raw.split(b"\r\n")[1:]:
            key, _, value = line.partition(b":")
            if key.lower() == name.lower():
                return value.strip()
        return None


@dataclass
class Peer:
    """The origin's end of one connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    # Set while nobody may go on: a script waits here until the test releases it.
    gates: dict[str, asyncio.Event] = field(default_factory=dict)

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    def reset(self) -> None:
        """Closes with RST."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    def shut_tcp(self) -> None:
        """Over TLS: ends the TCP stream without close_notify."""
        sock = self.writer.get_extra_info("socket")
        with socket.fromfd(sock.fileno(), sock.family, sock.type) as same:
            same.shutdown(socket.SHUT_RDWR)

    async def closed_by_client(self) -> None:
        """Waits until the client has closed or reset the connection."""
        with suppress(ConnectionError):
            while await self.reader.read(65536):
                pass


Script = Callable[[Peer, Request], Awaitable[bool]]


def reply(
    body: bytes = b"",
    *,
    status: int = 200,
    reason: bytes = b"OK",
    fields: tuple[tuple[bytes, bytes], ...] = (),
    keep: bool = True,
) -> Script:
    """A right response with Content-Length, without body to HEAD; `keep=False` says Connection: close and does so."""
    lines = [b"HTTP/1.1 %d %b\r\n" % (status, reason), b"Content-Length: %d\r\n" % len(body)]
    lines += [b"%b: %b\r\n" % item for item in fields]
    head = b"".join(lines) + (b"" if keep else b"Connection: close\r\n") + b"\r\n"

    async def script(peer: Peer, request: Request) -> bool:
        await peer.send(head if request.method == b"HEAD" else head + body)
        return keep

    return script


def raw(data: bytes, then: str = "close") -> Script:
    """Sends `data`. `then`: "close" (FIN), "reset" (RST), "keep" (next request), "hang" (until the client closes)."""

    async def script(peer: Peer, request: Request) -> bool:
        if data:
            await peer.send(data)
        return await _finish(peer, then)

    return script


def pieces(*parts: bytes, gate: str = "", then: str = "close") -> Script:
    """Sends the first part, then each other one when the test has set `origin.gate(gate)` (cleared each time)."""

    async def script(peer: Peer, request: Request) -> bool:
        for i, part in enumerate(parts):
            if i:
                await peer.gates[gate].wait()
                peer.gates[gate].clear()
            await peer.send(part)
        return await _finish(peer, then)

    return script


def drip(head: bytes, body: bytes, interval_s: float, then: str = "keep") -> Script:
    """Sends `head` at once, then one byte of `body` each `interval_s` seconds."""

    async def script(peer: Peer, request: Request) -> bool:
        if head:
            await peer.send(head)
        with suppress(ConnectionError):
            for i in range(len(body)):
                await asyncio.sleep(interval_s)
                await peer.send(body[i : i + 1])
            return await _finish(peer, then)
        return False

    return script


def endless(line: bytes = b"X-Filler: " + b"a" * 1000 + b"\r\n", start: bytes = b"HTTP/1.1 200 OK\r\n") -> Script:
    """A head (or whatever `start` begins) that never ends."""

    async def script(peer: Peer, request: Request) -> bool:
        with suppress(ConnectionError):
            await peer.send(start)
            while not peer.writer.is_closing():
                await peer.send(line * 8)
        return False

    return script


def in_turn(*scripts: Script) -> Script:
    """The first script for the first request (over all connections), and so on; the last one from then on."""
    left = list(scripts)

    async def script(peer: Peer, request: Request) -> bool:
        return await (left.pop(0) if len(left) > 1 else left[0])(peer, request)

    return script


def then_close(script: Script, n: int = 1) -> Script:
    """Keep-alive as far as the head says, but the connection is closed silently after its `n`-th response."""

    async def closing(peer: Peer, request: Request) -> bool:
        return await script(peer, request) and request.index + 1 < n

    return closing


def die_on_reuse(script: Script, how: str = "close") -> Script:
    """Answers a connection's first request; reads a second one and closes or resets (`how`) without a byte."""

    async def dying(peer: Peer, request: Request) -> bool:
        return await script(peer, request) if request.index == 0 else await _finish(peer, how)

    return dying


async def _finish(peer: Peer, then: str) -> bool:
    if then == "reset":
        peer.reset()
    elif then == "hang":
        await peer.closed_by_client()
    return then == "keep"


def chunked(*chunks: bytes, end: bytes = b"0\r\n\r\n") -> bytes:
    """A response with `chunks`, framed right unless `end` says otherwise."""
    body = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + body + end


def _ok(fields: bytes, body: bytes = b"", status: bytes = b"200 OK") -> bytes:
    return b"HTTP/1.1 " + status + b"\r\n" + fields + b"\r\n" + body


STANDARD: Mapping[bytes, Script] = {
    b"/ok": reply(b"hello"),
    b"/empty": reply(b""),
    b"/close": reply(b"hello", keep=False),
    b"/until-close": raw(_ok(b"", b"hello")),
    b"/gzip": reply(gzip.compress(b"hello"), fields=((b"Content-Encoding", b"gzip"),)),
    b"/no-bytes": raw(b"", "close"),
    b"/silence": raw(b"", "hang"),
    b"/reset-at-once": raw(b"", "reset"),
    b"/length-short": raw(_ok(b"Content-Length: 5\r\n", b"hello and more"), "hang"),
    b"/length-long": raw(_ok(b"Content-Length: 50\r\n", b"hello")),
    b"/length-double": raw(_ok(b"Content-Length: 5\r\nContent-Length: 6\r\n", b"hello"), "hang"),
    b"/length-list": raw(_ok(b"Content-Length: 5, 6\r\n", b"hello"), "hang"),
    b"/length-negative": raw(_ok(b"Content-Length: -5\r\n", b"hello"), "hang"),
    b"/length-plus": raw(_ok(b"Content-Length: +5\r\n", b"hello"), "hang"),
    b"/length-underscore": raw(_ok(b"Content-Length: 0_5\r\n", b"hello"), "hang"),
    b"/length-huge": raw(_ok(b"Content-Length: 99999999999999999999999\r\n", b"hello"), "hang"),
    b"/length-hex": raw(_ok(b"Content-Length: 0x5\r\n", b"hello"), "hang"),
    b"/length-empty": raw(_ok(b"Content-Length:\r\n", b"hello"), "hang"),
    b"/length-and-chunked": raw(_ok(b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\n"), "hang"),
    b"/coding-unknown": raw(_ok(b"Transfer-Encoding: gzip\r\n", b"hello"), "hang"),
    b"/coding-two": raw(_ok(b"Transfer-Encoding: gzip, chunked\r\n", b"0\r\n\r\n"), "hang"),
    b"/coding-twice": raw(_ok(b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\n"), "hang"),
    b"/coding-in-1.0": raw(b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "hang"),
    b"/bare-lf": raw(b"HTTP/1.1 200 OK\nContent-Length: 5\n\nhello", "hang"),
    b"/obs-fold": raw(_ok(b"X-A: b\r\n c\r\nContent-Length: 5\r\n", b"hello"), "hang"),
    b"/nul": raw(_ok(b"X-A: b\0c\r\nContent-Length: 5\r\n", b"hello"), "hang"),
    b"/no-colon": raw(_ok(b"nonsense\r\nContent-Length: 5\r\n", b"hello"), "hang"),
    b"/space-before-colon": raw(_ok(b"Content-Length : 5\r\n", b"hello"), "hang"),
    b"/not-http": raw(b"220 mail.example ESMTP\r\n\r\n", "hang"),
    b"/http-2": raw(b"HTTP/2.0 200 OK\r\nContent-Length: 5\r\n\r\nhello", "hang"),
    b"/status-two-digits": raw(_ok(b"", status=b"20 OK"), "hang"),
    b"/status-letters": raw(_ok(b"", status=b"2x0 OK"), "hang"),
    b"/switching": raw(_ok(b"Upgrade: x\r\nConnection: upgrade\r\n", status=b"101 Switching Protocols"), "hang"),
    b"/endless-head": endless(),
    b"/endless-field": endless(line=b"a" * 1024, start=b"HTTP/1.1 200 OK\r\nX-Long: "),
    b"/endless-reason": endless(line=b"a" * 1024, start=b"HTTP/1.1 200 "),
    b"/reason-none": raw(b"HTTP/1.1 200 \r\nContent-Length: 5\r\n\r\nhello", "keep"),
    b"/reason-odd": raw(_ok(b"Content-Length: 5\r\n", b"hello", b"200 \xff\xfe (odd)\t%s%n{}"), "keep"),
    b"/interim": raw(b"HTTP/1.1 103 Early\r\nX-H: a\r\n\r\n" * 16 + _ok(b"Content-Length: 5\r\n", b"hello"), "keep"),
    b"/interim-flood": raw(b"HTTP/1.1 103 Early Hints\r\n\r\n" * 17 + _ok(b"Content-Length: 5\r\n", b"hello"), "hang"),
    b"/head-cut": raw(b"HTTP/1.1 200 OK\r\nContent-Le"),
    b"/reset-in-head": raw(b"HTTP/1.1 200 OK\r\nContent-Le", "reset"),
    b"/no-content-with-body": raw(_ok(b"", b"hello", b"204 No Content"), "hang"),
    b"/not-modified-with-body": raw(_ok(b"Content-Length: 5\r\n", b"hello", b"304 Not Modified"), "hang"),
    b"/chunked": raw(chunked(b"hel", b"lo"), "keep"),
    b"/chunked-trailers": raw(chunked(b"hello", end=b"0\r\nX-T: 1\r\n\r\n"), "keep"),
    b"/chunked-cut": raw(chunked(b"hel", b"lo", end=b"")),
    b"/chunked-cut-in-chunk": raw(chunked(b"hel", end=b"5\r\nlo")),
    b"/chunked-bad-size": raw(chunked(b"hel", end=b"-1\r\n\r\n"), "hang"),
    b"/chunked-bare-lf": raw(chunked(b"hel", end=b"2\nlo\r\n0\r\n\r\n"), "hang"),
    b"/chunked-too-long": raw(chunked(b"hel", end=b"2\r\nlonger\r\n0\r\n\r\n"), "hang"),
    b"/chunked-excess": raw(chunked(b"hello", end=b"0\r\n\r\nHTTP/1.1 200 OK\r\n\r\n"), "hang"),
    b"/reset-in-body": raw(_ok(b"Content-Length: 50\r\n", b"hello"), "reset"),
    b"/stalls-in-body": raw(_ok(b"Content-Length: 50\r\n", b"hello"), "hang"),
}


class HostileOrigin:
    """Counts what it is asked (`requests`, `n_connections`) while it runs its scripts. `tls`: a server context."""

    def __init__(self, scripts: Mapping[bytes, Script] = STANDARD, *, tls: ssl.SSLContext | None = None) -> None:
        self.scripts: dict[bytes, Script] = dict(scripts)
        self.requests: list[Request] = []
        self.n_connections = 0
        self.host = "127.0.0.1"
        self.port = 0
        self._tls = tls
        self._server: asyncio.Server | None = None
        self.peers: list[Peer] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._gates: dict[str, asyncio.Event] = _Gates()

    def __hash__(self) -> int:
        return id(self)

    async def start(self, port: int = 0) -> HostileOrigin:
        self._server = await asyncio.start_server(self._connected, self.host, port, ssl=self._tls, backlog=4096)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    def gate(self, name: str) -> asyncio.Event:
        """The event that `pieces(gate=name)` waits for."""
        return self._gates[name]

    def targets(self) -> list[bytes]:
        return [request.target for request in self.requests]

    async def stop_listening(self) -> None:
        """No new connections (they are refused); open ones live on."""
        if self._server is not None:
            self._server.close()
            self._server = None

    def close_connections(self) -> None:
        for task in list(self._tasks):
            task.cancel()

    async def close(self) -> None:
        await self.stop_listening()
        self.close_connections()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        number = self.n_connections
        self.n_connections += 1
        peer = Peer(reader, writer, self._gates)
        self.peers.append(peer)
        index = 0
        try:
            keep = True
            while keep:
                head = await reader.readuntil(b"\r\n\r\n")
                request = Request(head, number, index)
                self.requests.append(request)
                index += 1
                path = request.target.partition(b"?")[0]
                keep = await self.scripts.get(path, _NOT_FOUND)(peer, request)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError, asyncio.LimitOverrunError):
            pass
        finally:
            self._tasks.discard(task)
            self.peers.remove(peer)
            writer.close()


class _Gates(dict[str, asyncio.Event]):
    def __missing__(self, name: str) -> asyncio.Event:
        self[name] = asyncio.Event()
        return self[name]


_NOT_FOUND = reply(b"not here", status=404, reason=b"Not Found")


@contextmanager
def serving(
    scripts: Mapping[bytes, Script] = STANDARD, *, tls: ssl.SSLContext | None = None, port: int = 0
) -> Iterator[HostileOrigin]:
    """Runs an origin on a loop of its own in a thread. Its lists may be read from outside; its gates may not."""
    origin = HostileOrigin(scripts, tls=tls)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="hostile-origin", daemon=True)
    thread.start()
    try:
        asyncio.run_coroutine_threadsafe(origin.start(port), loop).result(10)
        yield origin
    finally:
        asyncio.run_coroutine_threadsafe(origin.close(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()
