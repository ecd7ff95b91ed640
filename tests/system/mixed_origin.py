"""What the mixed run's answers must be, and the origin that gives them, wrongly at times. Test support, no test.

A body is computed from (path, version, variant), so that no two are alike and each can be compared whole. `Key` knows
when each version was the current one: an answer may be as old as its key's rules allow, and no older.
"""

from __future__ import annotations

import asyncio
import random
import time
import zlib
from collections import Counter
from dataclasses import dataclass, field
from enum import Enum
from functools import lru_cache
from typing import Any

POOL = random.Random(4).randbytes(6 << 20)
KIB, MIB = 1 << 10, 1 << 20
LANGUAGES = ("fr", "de", "it")
CODINGS = ("identity", "gzip")
MEDIA, GENERIC, SIGNED = "media.example", "generic.example", "signed.example"
HOST_OF = {"v": MEDIA, "s": MEDIA, "l": MEDIA, "e": MEDIA, "g": GENERIC, "p": GENERIC, "t": SIGNED}
# What the box's clocks and ours may differ by, and how long an answer is under way.
SLACK_S = 0.5
SLOW_S = 0.3


class Kind(Enum):
    """What a key is: how its answers are marked, and how old they may be."""

    VOD = "v"  # media segments, for an hour, also while the origin is away
    STRICT = "s"  # media segments of a second, must-revalidate
    LIVE = "l"  # a live playlist of one second and the segments that it names
    CODED = "e"  # media, Vary: Accept-Encoding
    PAGE = "g"  # generic: lifetimes of seconds, languages, stale-while-revalidate, stale-if-error, no-cache
    PERSONAL = "p"  # generic: each viewer's own
    SIGNED = "t"  # media behind signed URLs


@dataclass
class Key:
    """`versions[n]`: when version n became the current one. `floor`: what was purged before may never be seen again."""

    path: str
    kind: Kind
    size: int
    lifetime_s: float
    cache_control: str
    stale_s: float = 0.0  # stale that needs no failure
    stale_failed_s: float = 0.0  # stale while the origin fails
    has_etag: bool = True
    has_length: bool = True
    vary: str = ""
    versions: list[float] = field(default_factory=lambda: [0.0])
    floor: float = 0.0
    settled_floor: float = 0.0

    @property
    def host(self) -> str:
        return HOST_OF[self.kind.value]

    @property
    def current(self) -> int:
        return len(self.versions) - 1

    def etag(self, version: int, variant: str) -> str:
        return f'"{zlib.crc32(self.path.encode()):x}-{version}-{variant}"'

    def was_current_after(self, version: int, moment: float) -> bool:
        """Whether the version was the current one at that moment or later."""
        return version + 1 >= len(self.versions) or self.versions[version + 1] >= moment

    def may_answer(self, version: int, asked_at: float, floor: float, *, is_stale: bool) -> bool:
        """`floor`: of the key when the answer was asked for."""
        if not 0 <= version < len(self.versions):
            return False
        allowed_s = self.lifetime_s + self.stale_s + (self.stale_failed_s if is_stale else 0.0) + SLACK_S
        return self.was_current_after(version, max(asked_at - allowed_s, floor))

    def body(self, version: int, variant: str) -> bytes:
        return body_of(self.path, self.kind, self.size - version % 3, version, variant)


@lru_cache(maxsize=2000)
def body_of(path: str, kind: Kind, size: int, version: int, variant: str) -> bytes:
    name = f"{path} {version} {variant}\n"
    if kind is Kind.LIVE:
        lines = "".join(f"#EXTINF:1,\nsegment-{each}.m4s\n" for each in range(version, version + 3))
        head = f"#EXTM3U\n#EXT-X-VERSION:6\n#EXT-X-TARGETDURATION:1\n#EXT-X-MEDIA-SEQUENCE:{version}\n"
        return f"{head}# {name}{lines}".encode()
    start = name.encode()
    at = zlib.crc32(start) % (len(POOL) - size)
    return (start + POOL[at : at + size])[:size]


def make_keys(dice: random.Random, n: int) -> dict[str, Key]:
    """`n` keys or so, of all kinds; the first of each kind are asked for most."""
    keys = []
    sizes = (300, 1000, 3000, 3000, 9000, 20_000, 70_000)
    hour = "max-age=3600"
    for i in range(n):
        keys.append(Key(f"/v/{i}.m4s", Kind.VOD, dice.choice(sizes), 3600, hour, 0, 3600, dice.random() < 0.9))
        keys[-1].has_length = dice.random() < 0.9
    for i in range(max(2, n // 25)):
        size = dice.choice((MIB - 1, MIB, MIB + 1, 2 * MIB + 77, 3 * MIB))
        keys.append(Key(f"/v/large-{i}.mp4", Kind.VOD, size, 3600, hour, 0, 3600))
    for i in range(n // 3):
        keys.append(Key(f"/s/{i}.m4s", Kind.STRICT, dice.choice(sizes), 1, "max-age=1, must-revalidate"))
        keys.append(Key(f"/e/{i}.m4s", Kind.CODED, dice.choice(sizes), 30, "max-age=30", 0, 3600))
        keys[-1].vary = "Accept-Encoding"
        keys.append(Key(f"/t/{i}.m4s", Kind.SIGNED, dice.choice(sizes), 20, "max-age=20", 0, 3600))
        words, lifetime_s, stale_s, failed_s = dice.choice(
            (
                ("max-age=1", 1, 0, 0), ("max-age=2, stale-while-revalidate=1", 2, 1, 0), ("no-cache", 0, 0, 0),
                ("max-age=1, stale-if-error=5", 1, 0, 5), ("s-maxage=3, max-age=0", 3, 0, 0), ("no-store", 0, 0, 0),
            )
        )  # fmt: skip
        keys.append(Key(f"/g/{i}", Kind.PAGE, dice.choice(sizes), lifetime_s, words, stale_s, failed_s))
        keys[-1].vary = "Accept-Language" if dice.random() < 0.6 else ""
        keys[-1].has_length = dice.random() < 0.8
        keys.append(Key(f"/p/{i}", Kind.PERSONAL, 700, 0, "private, max-age=60"))
    for i in range(3):
        # Half a target duration is its lifetime, from when the answer came; a target duration more while all fails.
        keys.append(Key(f"/l/{i}/live.m3u8", Kind.LIVE, 0, 0.5 + SLOW_S, "", 0, 1.0))
    return {key.path: key for key in keys}


# How often each fault is met, by weather. `closed` and `silent` are of the whole origin.
WEATHER: dict[str, dict[str, float]] = {
    "calm": {},
    "showers": {
        "reset": 0.02, "cut": 0.02, "short": 0.02, "extra": 0.02, "5xx": 0.02, "slow": 0.02, "garbage": 0.01,
        "two lengths": 0.01, "bad chunk": 0.02, "drip": 0.01,
    },
    "burst of 5xx": {"5xx": 0.6},
    "slow": {"slow": 0.5, "drip": 0.1},
    "closed": {"reset": 1.0},
    "silent": {"silent": 0.3},
}  # fmt: skip
EVIL = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nCache-Control: max-age=9999\r\nX-Version: 0\r\n\r\nEVIL!"


class Origin:
    """Serves `keys` on `port`; `weather` says how it fails. Counts what it did."""

    def __init__(self, keys: dict[str, Key], port: int, dice: random.Random) -> None:
        self.keys, self.port, self.dice = keys, port, dice
        self.counts: Counter[str] = Counter()
        self.weather = "calm"
        self._server: asyncio.Server | None = None
        self._open: set[_Connection] = set()

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Connection(self), "127.0.0.1", self.port, backlog=512)

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for each in list(self._open):
            each.transport.abort()

    async def change_weather(self, weather: str) -> None:
        if self.weather == "closed" and self._server is None:
            await self.start()
        self.weather = weather
        if weather == "closed":
            await self.stop()

    def fault(self) -> str:
        dice = self.dice.random()
        for name, rate in WEATHER[self.weather].items():
            dice -= rate
            if dice < 0:
                self.counts[f"origin {name}"] += 1
                return name
        return ""


class _Connection(asyncio.Protocol):
    def __init__(self, origin: Origin) -> None:
        self.origin = origin
        self.received = b""
        self.is_busy = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport
        self.origin._open.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.origin._open.discard(self)

    def data_received(self, data: bytes) -> None:
        self.received += data
        if not self.is_busy:
            self._next()

    def _next(self) -> None:
        while not self.is_busy and b"\r\n\r\n" in self.received and not self.transport.is_closing():
            head, _, rest = self.received.partition(b"\r\n\r\n")
            line, *lines = head.decode("latin-1").split("\r\n")
            fields = {}
            for each in lines:
                name, _, value = each.partition(":")
                fields[name.lower()] = value.strip()
            body = b""
            if "chunked" in fields.get("transfer-encoding", ""):
                body, is_whole, rest = dechunked(rest)
                if not is_whole:
                    return
            elif length := int(fields.get("content-length", "0")):
                if len(rest) < length:
                    return
                body, rest = rest[:length], rest[length:]
            self.received = rest
            method, target, _ = line.split(" ")
            self._answer(method, target.partition("?")[0], fields, body)

    def _answer(self, method: str, path: str, fields: dict[str, str], sent: bytes) -> None:
        origin = self.origin
        origin.counts["asked"] += 1
        fault = origin.fault()
        if fault == "reset":
            return self.transport.abort()
        if fault == "silent":
            self.is_busy = True
            return None
        if fault == "garbage":
            self.transport.write(b"HTTP/1.1 2x0 OK\r\nContent-Length 5\r\n\r\nEVIL!")
            return self.transport.close()
        if fault == "5xx":
            return self._send(b"HTTP/1.1 503 Sorry\r\nContent-Length: 5\r\n\r\nsorry", method)
        if path == "/echo":
            body = b"echo %08x %d %s\n" % (zlib.crc32(sent), len(sent), fields.get("x-nonce", "").encode())
            return self._send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body), method)
        key = origin.keys.get(path)
        if key is None:
            return self._send(self._segment(path), method)
        answer = self._made(key, method, fields)
        if fault in ("cut", "short") and len(answer) > 40:
            # Behind the head or within it, by reset or as if all had been said.
            self.transport.write(answer[: origin.dice.randrange(20, len(answer) - 1)])
            return self.transport.abort() if fault == "cut" else self.transport.close()
        if fault == "two lengths":
            answer = answer.replace(b"\r\n", b"\r\nContent-Length: 5\r\n", 1)
        if fault == "bad chunk" and b"chunked" in answer[:300]:
            answer = answer.replace(b"\r\n\r\n", b"\r\n\r\nzz\r\n", 1)
        if fault == "extra":
            self.transport.write(answer + EVIL)
            return None
        if fault in ("slow", "drip"):
            self.is_busy = True
            self.under_way = asyncio.ensure_future(self._slowly(answer, fault))
            return None
        return self._send(answer, method)

    async def _slowly(self, answer: bytes, fault: str) -> None:
        if fault == "slow":
            await asyncio.sleep(self.origin.dice.random() * SLOW_S)
        else:
            step = max(1, len(answer) // 5)
            for at in range(0, 4 * step, step):
                if self.transport.is_closing():
                    return
                self.transport.write(answer[at : at + step])
                await asyncio.sleep(SLOW_S / 5)
            answer = answer[4 * step :]
        self.is_busy = False
        if not self.transport.is_closing():
            self.transport.write(answer)
            self._next()

    def _send(self, answer: bytes, method: str) -> None:
        self.transport.write(answer if method != "HEAD" else answer.partition(b"\r\n\r\n")[0] + b"\r\n\r\n")

    def _segment(self, path: str) -> bytes:
        """Segments of the live channels: those that the playlist has named so far."""
        version = segment_number(path)
        channel = self.origin.keys.get(path.rpartition("/")[0] + "/live.m3u8")
        if channel is None or version < 0 or version >= channel.current + 3:
            return b"HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\nnone"
        body = body_of(path, Kind.VOD, 2000, 0, "")
        return b"HTTP/1.1 200 OK\r\nX-Version: 0\r\nCache-Control: max-age=60\r\nContent-Length: 2000\r\n\r\n" + body

    def _made(self, key: Key, method: str, fields: dict[str, str]) -> bytes:
        version, variant = key.current, variant_of(key, fields)
        etag, body = key.etag(version, variant), key.body(version, variant)
        lines = [f"X-Version: {version}", f"Date: {time.strftime('%a, %d %b %Y %H:%M:%S GMT', time.gmtime())}"]
        if key.cache_control:
            lines.append(f"Cache-Control: {key.cache_control}")
        if key.vary:
            lines.append(f"Vary: {key.vary}")
        if key.vary == "Accept-Encoding" and variant != "identity":
            lines.append(f"Content-Encoding: {variant}")
        if key.has_etag:
            lines.append(f"ETag: {etag}")
            if etag in fields.get("if-none-match", ""):
                return _head("304 Not Modified", lines)
            unit, _, span = fields.get("range", "").partition("=")
            if unit == "bytes" and "," not in span and fields.get("if-range") in (None, etag):
                first, last = span_of(span, len(body))
                if first > last:
                    return _head("416 Range Not Satisfiable", [f"Content-Range: bytes */{len(body)}"], b"")
                lines.append(f"Content-Range: bytes {first}-{last}/{len(body)}")
                return _head("206 Partial Content", lines, body[first : last + 1])
        if not key.has_length and method == "GET":
            lines.append("Transfer-Encoding: chunked")
            middle = len(body) // 2
            chunks = b"%x\r\n%b\r\n%x\r\n%b\r\n0\r\n\r\n" % (middle, body[:middle], len(body) - middle, body[middle:])
            return _head("200 OK", lines) + chunks
        return _head("200 OK", lines, body)


def _head(status: str, lines: list[str], body: bytes | None = None) -> bytes:
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join((f"HTTP/1.1 {status}", *lines, "", "")).encode() + (body or b"")


def variant_of(key: Key, fields: dict[str, str]) -> str:
    """Which of a key's variants a request gets; `fields` by lower-case name."""
    if key.kind is Kind.PERSONAL:
        return fields.get("cookie", "nobody").partition("=")[2] or "nobody"
    if key.vary == "Accept-Language":
        return fields.get("accept-language", "none")
    if key.vary == "Accept-Encoding":
        return "gzip" if "gzip" in fields.get("accept-encoding", "") else "identity"
    return "-"


def segment_number(path: str) -> int:
    text = path.rpartition("/segment-")[2].removesuffix(".m4s")
    return int(text) if text.isascii() and text.isdigit() else -1


def span_of(span: str, size: int) -> tuple[int, int]:
    """First and last byte of `a-b`, `a-` or `-n`; first > last where there is none of it."""
    first, _, last = span.partition("-")
    if not first:
        n = min(int(last), size)
        return (size - n, size - 1) if n else (1, 0)
    return int(first), min(int(last), size - 1) if last else size - 1


def dechunked(data: bytes) -> tuple[bytes, bool, bytes]:
    """(body, whether its end is there, what follows). Raises ValueError."""
    pieces, at = [], 0
    while True:
        end = data.find(b"\r\n", at)
        if end < 0:
            return b"".join(pieces), False, b""
        size = int(data[at:end].partition(b";")[0], 16)
        if len(data) < end + 2 + size + 2:
            pieces.append(data[end + 2 : end + 2 + size])
            return b"".join(pieces), False, b""
        if size == 0:
            return b"".join(pieces), True, data[end + 4 :]
        pieces.append(data[end + 2 : end + 2 + size])
        if data[end + 2 + size : end + 4 + size] != b"\r\n":
            raise ValueError("no end of chunk")
        at = end + 4 + size
