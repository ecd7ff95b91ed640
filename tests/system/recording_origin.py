"""An origin that keeps every byte it was sent, connection by connection, and reads it strictly (h11). Test support.

What it answers depends on the path only: see `Answers`. Everything that a request said is in the body of `/echo`, so
that whatever one viewer can smuggle in is seen by the next one who is given the stored answer.
"""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass, field

import h11
from thread_origin import ThreadOrigin

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


class RecordingOrigin(ThreadOrigin):
    """`connections` only ever grows."""

    def __init__(self) -> None:
        super().__init__()
        self.connections: list[Connection] = []

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
