"""A chat server for thousands of sockets, in a process of its own: `chat_origin.py`. Test support, no test.

Prints its port, then obeys lines: `in-turn RATE SECONDS` sends RATE messages a second in all, the sockets in turn;
`burst N` sends N messages to every socket; `count` says how many sockets there are. Each answers with one line. A
message is a text frame of 64 bytes that begins with its number on that socket. `/segment/N`: 50 kB of video.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import resource
import sys
from typing import cast

import uvloop

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
FRAME_BYTES = 66
SEGMENT = b"v" * 50_000
_SEGMENT_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: video/mp4\r\nCache-Control: max-age=2\r\nContent-Length: %d\r\n\r\n"


class Socket(asyncio.Protocol):
    all: dict[Socket, None] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport, self.data, self.n = cast(asyncio.Transport, transport), b"", 0

    def connection_lost(self, exc: Exception | None) -> None:
        self.all.pop(self, None)

    def data_received(self, data: bytes) -> None:
        if self in self.all:
            if data[0] & 15 == 8:
                self.transport.write(b"\x88\x02\x03\xe9")
                self.transport.close()
            return
        self.data += data
        while b"\r\n\r\n" in self.data:
            head, _, self.data = self.data.partition(b"\r\n\r\n")
            if head.startswith(b"GET /segment/"):
                self.transport.write(_SEGMENT_HEAD % len(SEGMENT) + SEGMENT)
                continue
            lines = head.split(b"\r\n")
            key = next(line[18:].strip() for line in lines if line.lower().startswith(b"sec-websocket-key"))
            accept = base64.b64encode(hashlib.sha1(key + GUID).digest())
            head = b"HTTP/1.1 101 x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: %b\r\n\r\n"
            self.transport.write(head % accept)
            self.all[self] = None

    def say(self) -> None:
        self.transport.write(b"\x81\x40%-64d" % self.n)
        self.n += 1


async def in_turn(rate: int, seconds: float) -> int:
    loop = asyncio.get_running_loop()
    sockets, sent, began = list(Socket.all), 0, loop.time()
    while sent < rate * seconds:
        due = min(int((loop.time() - began) * rate), int(rate * seconds))
        while sent < due:
            sockets[sent % len(sockets)].say()
            sent += 1
        await asyncio.sleep(0.005)
    return sent


async def main() -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Socket, "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := (await reader.readline()).split():
        answer = len(Socket.all)
        if line[0] == b"in-turn":
            answer = await in_turn(int(line[1]), float(line[2]))
        elif line[0] == b"burst":
            for _ in range(int(line[1])):
                for each in Socket.all:
                    each.say()
        print(answer, flush=True)


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
