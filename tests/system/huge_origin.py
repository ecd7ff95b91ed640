"""An origin of bodies of any size, whose every byte is known from its offset, behind a WAN. Test support, no test.

    python tests/system/huge_origin.py [--rate BITS_PER_S --delay SECONDS] [--behind PORT]

runs both in a process of their own and prints {"origin": PORT, "wan": PORT}. `wan` forwards to the origin, or to
`--behind`: each byte arrives `delay` later, and all connections share `rate` towards the box, as on a branch's link.
The origin answers GET and HEAD of /SIZE/NAME, by Range and If-Range; `?weak` and `?norange` change how. GET /counters
tells what was asked and how many body bytes the origin's socket took for each.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

BLOCK_BYTES = 65536
# A prime number of places that a block may begin at, so that no two near each other begin at the same one.
PLACES = 1_000_003
PIECE_BYTES = 1 << 18
RANGE = re.compile(rb"bytes=([0-9]*)-([0-9]*)")
_base = b""


def _block(number: int) -> bytes:
    global _base
    if not _base:
        import random

        _base = random.Random(20).randbytes(PLACES + BLOCK_BYTES)
    place = number * 2654435761 % PLACES
    return number.to_bytes(8, "big") + _base[place + 8 : place + BLOCK_BYTES]


def bytes_at(first: int, n: int) -> bytes:
    """`n` bytes of every body, from offset `first` on. A byte from another place differs with all likelihood."""
    number, within = divmod(first, BLOCK_BYTES)
    parts = []
    left = n + within
    while left > 0:
        parts.append(_block(number))
        number, left = number + 1, left - BLOCK_BYTES
    return b"".join(parts)[within : within + n]


class Origin:
    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                await self._answer(head, writer)
        writer.close()

    async def _answer(self, head: bytes, writer: asyncio.StreamWriter) -> None:
        method, target, _ = head.split(b" ", 2)
        lines = head.decode("latin-1").split("\r\n")[1:-2]
        named = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        if target == b"/counters":
            text = json.dumps(self.asked).encode()
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(text), text))
            return
        path, _, query = target.partition(b"?")
        total = int(path.split(b"/")[1])
        etag = 'W/"huge"' if query == b"weak" else '"huge"'
        first, last, status = 0, total - 1, "200 OK"
        shown = f"ETag: {etag}\r\n"
        found = RANGE.fullmatch(named.get("range", "").encode())
        if found and query != b"norange" and named.get("if-range", etag) == etag:
            first = int(found[1]) if found[1] else max(0, total - int(found[2]))
            last = min(last, int(found[2])) if found[1] and found[2] else last
            status = "206 Partial Content"
            shown += f"Content-Range: bytes {first}-{last}/{total}\r\n"
            if first >= total:
                writer.write(b"HTTP/1.1 416 No\r\nContent-Length: 0\r\nContent-Range: bytes */%d\r\n\r\n" % total)
                return
        writer.write(
            f"HTTP/1.1 {status}\r\nContent-Length: {last - first + 1}\r\nCache-Control: max-age=3600\r\n"
            f"Content-Type: video/mp4\r\n{shown}\r\n".encode()
        )
        note = {"target": target.decode(), "range": named.get("range", ""), "sent": 0}
        self.asked.append(note)
        while method == b"GET" and first <= last:
            n = min(PIECE_BYTES, last - first + 1)
            writer.write(bytes_at(first, n))
            await writer.drain()
            first, note["sent"] = first + n, note["sent"] + n


class Wan:
    """Bytes towards the box share `rate_bps`; in both directions they take `delay_s`."""

    def __init__(self, port: int, rate_bps: float, delay_s: float) -> None:
        self.port, self.rate_bps, self.delay_s = port, rate_bps, delay_s
        self._free_s = 0.0

    async def join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self.port, limit=PIECE_BYTES)
        # What is on the way, and a router's queue: one round trip and a quarter second of the rate.
        on_way = int(self.rate_bps / 8 * (2 * self.delay_s)) + 262144
        await asyncio.gather(
            self._carry(reader, there_writer, 65536, 0.0), self._carry(there_reader, writer, on_way, self.rate_bps)
        )

    async def _carry(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, most: int, rate_bps: float
    ) -> None:
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        room = asyncio.Semaphore(max(1, most // 16384))

        async def take() -> None:
            while True:
                await room.acquire()
                try:
                    data = await reader.read(16384)
                except ConnectionError:
                    data = b""
                due_s = loop.time()
                if rate_bps:
                    self._free_s = due_s = max(due_s, self._free_s) + 8 * len(data) / rate_bps
                queue.put_nowait((due_s + self.delay_s, data))
                if not data:
                    return

        taking = asyncio.ensure_future(take())
        with contextlib.suppress(ConnectionError, RuntimeError):  # uvloop's word for a closed transport
            while True:
                due_s, data = await queue.get()
                if due_s > loop.time():
                    await asyncio.sleep(due_s - loop.time())
                if not data:
                    break
                writer.write(data)
                await writer.drain()
                room.release()
        taking.cancel()
        writer.close()


async def run(arguments: argparse.Namespace) -> None:
    origin = await asyncio.start_server(Origin().serve, "127.0.0.1", 0, limit=PIECE_BYTES)
    port = origin.sockets[0].getsockname()[1]
    wan = Wan(arguments.behind or port, arguments.rate, arguments.delay)
    server = await asyncio.start_server(wan.join, "127.0.0.1", 0, limit=PIECE_BYTES)
    print(json.dumps({"origin": port, "wan": server.sockets[0].getsockname()[1]}), flush=True)
    await asyncio.to_thread(sys.stdin.read)  # until whoever started it is gone


class HugeOrigin:
    """The process: `port` of the origin itself, `wan` of the way over the WAN."""

    def __init__(self, port: int, wan: int) -> None:
        self.port, self.wan = port, wan

    def asked(self) -> list[dict[str, Any]]:
        """All requests so far: target, range, sent."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/counters") as answer:
            found: list[dict[str, Any]] = json.load(answer)
        return found

    def sent(self) -> int:
        return sum(each["sent"] for each in self.asked())


@contextmanager
def huge_origin(*, rate_bps: float = 0.0, delay_s: float = 0.0, behind: int = 0) -> Iterator[HugeOrigin]:
    command = [sys.executable, str(Path(__file__)), "--rate", str(rate_bps), "--delay", str(delay_s)]
    process = subprocess.Popen(
        [*command, "--behind", str(behind)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        ports = json.loads(process.stdout.readline())
        yield HugeOrigin(ports["origin"], ports["wan"])
    finally:
        process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)
        process.kill()
        process.wait()
        process.stdout.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=float, default=0.0, help="bits a second towards the box; 0: no limit")
    parser.add_argument("--delay", type=float, default=0.0, help="seconds each way")
    parser.add_argument("--behind", type=int, default=0, help="another server's port that the WAN leads to")
    import uvloop

    with contextlib.suppress(KeyboardInterrupt):
        uvloop.run(run(parser.parse_args()))
