"""The benchmarks' origin: a process that answers GET with bytes made from the path, at full speed or paced, and counts.

    origin.py PORT RATE_BPS ROUND_TRIP_S

/paced/… comes at RATE_BPS (bits per second) over all connections, after ROUND_TRIP_S; everything else at once.
`SIZE` in `/NAME-SIZE.EXT` is the body's length. GET /count?PATH: how often PATH was asked for. Not a model of a web
server: requests have no body, and a request arrives in one read.
"""

from __future__ import annotations

import asyncio
import re
import sys
from collections import Counter
from email.utils import formatdate

import uvloop

TYPES = {"m3u8": "application/vnd.apple.mpegurl", "m4s": "video/iso.segment"}
TICK_S = 0.005


def body_of(path: str) -> bytes:
    """The same bytes for the same path: a repeated block that names its path and place."""
    match = re.search(r"-(\d+)\.", path)
    size = int(match[1]) if match else 0
    if path.endswith(".m3u8"):
        head = "#EXTM3U\n#EXT-X-VERSION:7\n#EXT-X-TARGETDURATION:4\n#EXT-X-PLAYLIST-TYPE:VOD\n"
        end = "#EXT-X-ENDLIST\n"
        line = "#EXTINF:4.000,\nsegment-{:06d}.m4s\n"
        lines = "".join(line.format(i) for i in range((size - len(head) - len(end)) // len(line.format(0))))
        text = head + lines
        return (text + "#" * (size - len(text) - len(end) - 1) + "\n" + end).encode()
    block = b"".join(f"{path} {i:06d}\n".encode() for i in range(64))
    return (block * (size // len(block) + 1))[:size]


class Origin(asyncio.Protocol):
    """One connection."""

    counts: Counter[str] = Counter()
    bodies: dict[str, bytes] = {}
    rate_bps = 50e6
    round_trip_s = 0.0
    next_free_s = 0.0  # when the paced link has sent what it took so far

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]  # uvloop's is no subclass

    def data_received(self, data: bytes) -> None:
        target = data.split(b" ", 2)[1].decode("latin-1")
        if target.startswith("/count?"):
            body = str(Origin.counts[target.removeprefix("/count?")]).encode()
            head = b"HTTP/1.1 200 OK\r\nCache-Control: no-store\r\nContent-Length: %d\r\n\r\n" % len(body)
            self.transport.write(head + body)
            return
        Origin.counts[target] += 1
        body = Origin.bodies.setdefault(target, body_of(target))
        head = (
            f"HTTP/1.1 200 OK\r\nServer: origin\r\nDate: {formatdate(usegmt=True)}\r\n"
            f"Content-Type: {TYPES.get(target.rpartition('.')[2], 'text/plain')}\r\nContent-Length: {len(body)}\r\n"
            "Last-Modified: Sun, 06 Nov 2022 08:49:37 GMT\r\nETag: \"63677311-a8c\"\r\nCache-Control: max-age=86400\r\n"
            "Accept-Ranges: bytes\r\n\r\n"
        ).encode()
        if target.startswith("/paced/"):
            self.task = asyncio.get_running_loop().create_task(self.send_paced(head, body))
        else:
            self.transport.write(head + body)

    async def send_paced(self, head: bytes, body: bytes) -> None:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(self.round_trip_s)
        self.transport.write(head)
        per_tick = int(self.rate_bps / 8 * TICK_S)
        at_s = max(loop.time(), Origin.next_free_s)
        for offset in range(0, len(body), per_tick):
            Origin.next_free_s = at_s = max(at_s, Origin.next_free_s) + TICK_S
            if (wait_s := at_s - loop.time()) > 0:
                await asyncio.sleep(wait_s)
            self.transport.write(body[offset : offset + per_tick])


async def main() -> None:
    port, Origin.rate_bps, Origin.round_trip_s = int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])
    server = await asyncio.get_running_loop().create_server(Origin, "127.0.0.1", port, backlog=1024)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main())
