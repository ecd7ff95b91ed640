"""Scripts for hostile_origin that serve a file rightly (RFC 9110), but held or cut where a test says. No test."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Callable

from hostile_origin import Peer, Request, Script, reply

Fields = tuple[tuple[bytes, bytes], ...]
RANGE = re.compile(rb"bytes=(\d*)-(\d*)")
PIECE_BYTES = 1 << 18


def noise(n: int, seed: str = "") -> bytes:
    """`n` bytes that differ at each place and for each seed, so that a shifted or foreign byte is seen."""
    return hashlib.shake_128(seed.encode()).digest(n)


def fields(**named: str) -> Fields:
    """cache_control="no-cache" becomes Cache-Control: no-cache."""
    return tuple((name.replace("_", "-").title().encode(), value.encode()) for name, value in named.items())


class File:
    """A representation; its attributes may change between requests. `hold`: whole bodies wait before the byte at
    this offset.

    `cut_at`: each response ends after so many of its bytes, `how`: "close" or "reset"; only the first `cuts` ones.
    """

    def __init__(self, body: bytes, *, etag: str | None = '"v1"', **named: str) -> None:
        self.body = body
        self.etag = etag
        self.fields = fields(**named)
        self.has_ranges = True
        self.hold: tuple[int, asyncio.Event] | None = None
        self.cut_at: int | None = None
        self.cuts = 1 << 30
        self.how = "reset"
        self.n_bytes = 0
        self.asked: list[Request] = []

    async def __call__(self, peer: Peer, request: Request) -> bool:
        self.asked.append(request)
        body, status, extra = self._select(request)
        lines = [b"HTTP/1.1 %b\r\nContent-Length: %d\r\n" % (status, len(body))]
        if status.startswith(b"304"):
            lines = [b"HTTP/1.1 304 Not Modified\r\n"]
        if self.etag:
            lines.append(b"ETag: %b\r\n" % self.etag.encode())
        lines += [b"%b: %b\r\n" % pair for pair in (*self.fields, *extra)]
        await peer.send(b"".join(lines) + b"\r\n")
        if request.method == b"HEAD" or status.startswith(b"304"):
            return True
        return await self._send(peer, body, self.hold if status.startswith(b"200") else None)

    def _select(self, request: Request) -> tuple[bytes, bytes, Fields]:
        known = request.field(b"If-None-Match")
        if known is not None and self.etag is not None and known == self.etag.encode():
            return b"", b"304 Not Modified", ()
        asked = RANGE.fullmatch(request.field(b"Range") or b"") if self.has_ranges else None
        condition = request.field(b"If-Range")
        if asked is None or (condition is not None and condition != (self.etag or "").encode()):
            return self.body, b"200 OK", ()
        total = len(self.body)
        if not asked.group(1):
            first, last = max(0, total - int(asked.group(2))), total - 1
        else:
            first = int(asked.group(1))
            last = min(total - 1, int(asked.group(2) or total))
        if first >= total:
            return b"", b"416 Range Not Satisfiable", ((b"Content-Range", b"bytes */%d" % total),)
        part = self.body[first : last + 1]
        return part, b"206 Partial Content", ((b"Content-Range", b"bytes %d-%d/%d" % (first, last, total)),)

    async def _send(self, peer: Peer, body: bytes, hold: tuple[int, asyncio.Event] | None) -> bool:
        cut_at = None
        if self.cut_at is not None and self.cuts > 0:
            self.cuts -= 1
            cut_at = self.cut_at
        sent = 0
        while sent < len(body):
            if hold is not None and sent >= hold[0]:
                await hold[1].wait()
            if sent == cut_at:
                if self.how == "reset":
                    await peer.writer.drain()
                    peer.reset()
                return False
            end = min(len(body), sent + PIECE_BYTES)
            for place in (hold[0] if hold is not None else None, cut_at):
                if place is not None and sent < place < end:
                    end = place
            await peer.send(body[sent:end])
            self.n_bytes += end - sent
            sent = end
        return True


def by_request(choose: Callable[[Request], Script]) -> Script:
    """What to do depends on the request."""

    async def script(peer: Peer, request: Request) -> bool:
        return await choose(request)(peer, request)

    return script


def gated(gate: asyncio.Event, script: Script) -> Script:
    """The script, once the gate is open."""

    async def waiting(peer: Peer, request: Request) -> bool:
        await gate.wait()
        return await script(peer, request)

    return waiting


def cached(body: bytes, seconds: int = 60, **named: str) -> Script:
    """A right answer that may be stored."""
    return reply(body, fields=fields(cache_control=f"max-age={seconds}", **named))
