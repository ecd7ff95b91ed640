"""An origin that keeps every byte it was sent, connection by connection, and reads it strictly (h11). Test support.

What it answers depends on the path only: see `Answers`. Everything that a request said is in the body of `/echo`, so
that whatever one viewer can smuggle in is seen by the next one who is given the stored answer.
"""

from __future__ import annotations

import asyncio
import hashlib
import threading
from dataclasses import dataclass, field
from types import TracebackType

import h11

GOOD_BODY = b"good body " * 100


@dataclass
class Asked:
    """One request, as a strict reader sees it."""

    method: bytes
    target: bytes
    fields: list[tuple[bytes, bytes]]
    body: bytes = b""
    is_whole: bool = False

    @property
    def head(self) -> bytes:
        return self.method + b" " + self.target + b"\n" + b"".join(b"%s: %s\n" % pair for pair in self.fields)


@dataclass
class Connection:
    received: bytearray = field(default_factory=bytearray)
    asked: list[Asked] = field(default_factory=list)
    fault: str = ""


class RecordingOrigin:
    """Runs in a thread of its own between __enter__ and __exit__. `connections` only ever grows."""

    def __init__(self) -> None:
        self.connections: list[Connection] = []
        self.port = 0
        self._gates: dict[str, asyncio.Event] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="origin", daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def asked(self) -> list[Asked]:
        return [each for connection in self.connections for each in connection.asked]

    @property
    def n_bytes(self) -> int:
        return sum(len(connection.received) for connection in self.connections)

    @property
    def faults(self) -> list[str]:
        return [connection.fault for connection in self.connections if connection.fault]

    def targets(self, prefix: str = "") -> list[str]:
        return [
            each.target.decode("latin-1") for each in self.asked if each.target.decode("latin-1").startswith(prefix)
        ]

    def open_gate(self, name: str) -> None:
        """Lets `/gate/NAME...` go on."""
        self._loop.call_soon_threadsafe(lambda: self._gate(name).set())

    def __enter__(self) -> RecordingOrigin:
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(
            asyncio.start_server(self._serve, "127.0.0.1", self.port, backlog=1024, limit=1 << 20), self._loop
        ).result(10)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        async def end() -> None:
            self._server.close()
            tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def _gate(self, name: str) -> asyncio.Event:
        return self._gates.setdefault(name, asyncio.Event())

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = Connection()
        self.connections.append(connection)
        parser = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
        try:
            while True:
                asked = await self._next(connection, parser, reader)
                if asked is None or not await self._answer(asked, writer):
                    return
                parser.send(h11.Response(status_code=200, headers=[(b"content-length", b"0")]))
                parser.send(h11.EndOfMessage())
                parser.start_next_cycle()
        except h11.RemoteProtocolError as fault:
            connection.fault = str(fault)
        except (ConnectionError, asyncio.CancelledError, h11.LocalProtocolError):
            pass
        finally:
            writer.close()

    async def _next(self, connection: Connection, parser: h11.Connection, reader: asyncio.StreamReader) -> Asked | None:
        asked = None
        while True:
            event = parser.next_event()
            if event is h11.NEED_DATA:
                data = await reader.read(65536)
                connection.received += data
                parser.receive_data(data)
            elif isinstance(event, h11.Request):
                asked = Asked(event.method, event.target, [tuple(pair) for pair in event.headers.raw_items()])
                connection.asked.append(asked)
            elif isinstance(event, h11.Data):
                assert asked is not None
                asked.body += event.data
            elif isinstance(event, h11.EndOfMessage):
                assert asked is not None
                asked.is_whole = True
                return asked
            else:
                return None

    async def _answer(self, asked: Asked, writer: asyncio.StreamWriter) -> bool:
        """False: the connection is over."""
        path = asked.target.decode("latin-1").partition("?")[0]
        words = path.strip("/").split("/")
        status, body, lines = 200, asked.head, ["Cache-Control: max-age=60"]
        if words[0] == "gate":  # /gate/NAME/N: N bytes, the second half after open_gate(NAME)
            size = int(words[2]) if len(words) > 2 else 2000
            half = bytes(size // 2)
            head = f"HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nContent-Length: {2 * len(half)}\r\n\r\n"
            writer.write(head.encode() + half)
            await writer.drain()
            await self._gate(words[1]).wait()
            writer.write(half)
            await writer.drain()
            return True
        if words[0] == "hold":  # /hold/NAME: not even a head before open_gate(NAME)
            await self._gate(words[1]).wait()
        elif words[0] == "bytes":  # /bytes/N/...: N bytes
            body = bytes(int(words[1]))
        elif words[0] == "tagged":  # /tagged/N/...: N bytes, each place another, and a strong validator
            body = hashlib.shake_128(path.encode()).digest(int(words[1]))
            lines.append('ETag: "one"')
        elif words[0] == "good":
            body = GOOD_BODY
        elif words[0] == "silent":  # no caching field at all
            lines = []
        elif words[0] == "account":  # what a portal answers: personal, whatever the path ends in
            lines = ["Cache-Control: no-store", "Set-Cookie: session=secret"]
        elif words[0] == "status":
            status = int(words[1])
        elif words[0] == "break":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
            return False
        elif words[0] == "garbage":
            writer.write(b"\x00\x01garbage\r\n\r\n")
            return False
        head = f"HTTP/1.1 {status} OK\r\nContent-Length: {len(body)}\r\n" + "".join(f"{line}\r\n" for line in lines)
        writer.write(head.encode() + b"\r\n" + (b"" if asked.method == b"HEAD" else body))
        await writer.drain()
        return True
