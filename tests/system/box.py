"""One running box with an origin of each sort, and viewers on asyncio for it. Test support, no test.

The box lives as long as a test module; each test starts the origins that it needs on the box's reserved ports, within
its own loop, so that it can hold them with events. At the end of the module nothing may have been logged as a fault of
ours, and each request must have been counted once.
"""

from __future__ import annotations

import asyncio
import functools
import random
import socket
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import uvloop
from hostile_origin import HostileOrigin, Script
from running_box import PROBE, RunningBox, merge, policy_for

MEDIA = "media.example"
GENERIC = "generic.example"
TWIN = "twin.example"
QUICK = "quick.example"
NARROW = "narrow.example"
OVERRIDE = "override.example"
BY_VIEWER = "by-viewer.example"
REFUSING = "refusing.example"

# Origins for tests that break them: spare-N.media.example and spare-N.generic.example. A breaker that one test opened
# would answer the next one's requests.
SPARES = 12

FAULTS = ("Traceback", "exception", "failed\n", "never retrieved", "internal fault")


def free_port() -> int:
    """A port below those that connections get by themselves, so that it stays free until somebody listens."""
    while True:
        port = random.randint(20_000, 32_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


class Box(RunningBox):
    """The daemon with `ports` reserved: origins listen on the first, TWIN has both."""

    def __init__(self, work: Path, **sections: Any) -> None:
        self.ports = (free_port(), free_port())
        first, second = (f"http://127.0.0.1:{port}" for port in self.ports)
        origins: dict[str, Any] = {
            "media": {"from": [first], "hosts": [MEDIA]},
            "generic": {"from": [first], "hosts": [GENERIC], "profile": "generic"},
            "twin": {"from": [first, second], "hosts": [TWIN]},
            "quick": {
                "from": [first],
                "hosts": [QUICK],
                "timeouts": {"connect": "500ms", "head": "500ms", "body": "500ms"},
            },
            "narrow": {"from": [first], "hosts": [NARROW], "connections": 4},
            "override": {"from": [first], "hosts": [OVERRIDE], "override_private": True},
            "by-viewer": {"from": [first], "hosts": [BY_VIEWER], "upstream_host": "viewer", "forward": ["X-Tenant"]},
            "refusing": {"from": [f"http://127.0.0.1:{free_port()}"], "hosts": [REFUSING]},
        }
        for i in range(SPARES):
            origins[f"spare-{i}"] = {"from": [first], "hosts": [f"spare-{i}.{MEDIA}"]}
            origins[f"spare-generic-{i}"] = {"from": [first], "hosts": [f"spare-{i}.{GENERIC}"], "profile": "generic"}
        policy = policy_for(first)
        policy["origins"] = origins
        super().__init__(work, merge(policy, sections))
        self.addresses: dict[str, tuple[str, int]] = {}

    def address(self, listener: str = "lan") -> tuple[str, int]:
        if listener not in self.addresses:
            self.addresses[listener] = super().address(listener)
        return self.addresses[listener]

    def assert_sound(self) -> None:
        """No fault of ours was logged; each request counts once."""
        for fault in FAULTS:
            assert fault not in self.output, self.output
        stats = self.stats()
        parts = ("hits", "misses", "collapsed", "passed", "refused")
        assert stats["requests"] == sum(stats[part] for part in parts), stats

    @asynccontextmanager
    async def origin(
        self, scripts: Mapping[bytes, Script], *more: Mapping[bytes, Script]
    ) -> AsyncIterator[HostileOrigin]:
        """Origins on the reserved ports, the first of which is given; the others are in its `others`."""
        running = [
            await HostileOrigin(each).start(port) for each, port in zip((scripts, *more), self.ports, strict=False)
        ]
        running[0].others = running[1:]  # type: ignore[attr-defined]
        try:
            yield running[0]
        finally:
            for each in running:
                await each.close()

    @asynccontextmanager
    async def growth(self) -> AsyncIterator[dict[str, int]]:
        """Filled at the end with how much each counter has grown meanwhile."""
        before = self.stats()
        found: dict[str, int] = {}
        yield found
        after = self.stats()
        found.update({name: after[name] - before[name] for name in after})


@contextmanager
def sound_box(work: Path, **sections: Any) -> Iterator[Box]:
    """A box, and at its end the checks of assert_sound."""
    with Box(work, **sections) as box:
        yield box
        box.assert_sound()


def scenario(test: Callable[..., Awaitable[None]], *, seconds: float = 30.0) -> Callable[..., None]:
    """A coroutine function as a test, on a loop of its own, for so long at most."""

    @functools.wraps(test)
    def run(*arguments: Any, **named: Any) -> None:
        async def within() -> None:
            async with asyncio.timeout(seconds):
                await test(*arguments, **named)

        uvloop.run(within())

    return run


async def until(condition: Callable[[], Any], what: str = "", *, seconds: float = 10.0) -> Any:
    """The first true value of `condition`."""
    ends = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < ends, f"not within {seconds} s: {what}"
        await asyncio.sleep(0.005)
    return value


class Answer:
    """A response, read strictly: `is_whole` only if its framing says so; `body` is what came in any case."""

    def __init__(self, status: int, fields: list[tuple[str, str]]) -> None:
        self.status = status
        self.fields = fields
        self.received = bytearray()
        self.is_whole = False
        self.first_byte_s = 0.0

    @property
    def body(self) -> bytes:
        return bytes(self.received)

    def __getitem__(self, name: str) -> str:
        """The field's lines, joined; "" without it."""
        return ", ".join(value for key, value in self.fields if key.lower() == name.lower())

    def __contains__(self, name: str) -> bool:
        return any(key.lower() == name.lower() for key, _ in self.fields)

    @property
    def age(self) -> int:
        return int(self["Age"])

    @property
    def cache(self) -> dict[str, str]:
        """Parameters of our member of Cache-Status (RFC 9211), by name; "" for a bare one."""
        member = self["Cache-Status"].split(", ")[-1]
        name, *parameters = member.split("; ")
        assert name == "test", member
        return {each.partition("=")[0]: each.partition("=")[2] for each in parameters}

    def __repr__(self) -> str:
        body = f"{bytes(self.received[:60])!r} ({len(self.received)})"
        return f"<{self.status} {self.fields} {body}, whole: {self.is_whole}>"


class Viewer:
    """One connection to the box. `ask` sends, `head` and `more` read as far as they say, `answer` reads all."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.answer_: Answer | None = None
        self.is_head = False
        self._left = 0  # of the body, or of a chunk; -1: until the connection closes
        self._is_chunked = False

    @classmethod
    async def connect(cls, box: Box, *, receive_buffer: int | None = None) -> Viewer:
        sock = socket.socket()
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, box.address())
        limit = receive_buffer or (1 << 17)
        return cls(*await asyncio.open_connection(sock=sock, limit=limit))

    def ask(
        self,
        target: str,
        fields: Mapping[str, str] | None = None,
        *,
        host: str = MEDIA,
        method: str = "GET",
        version: str = "1.1",
    ) -> None:
        lines = [f"{method} {target} HTTP/{version}", f"Host: {host}"]
        lines += [f"{name}: {value}" for name, value in (fields or {}).items()]
        self.is_head = method == "HEAD"
        self.writer.write("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n")

    async def head(self) -> Answer:
        """The final head; interim ones before it (RFC 9110 section 15.2) are passed over."""
        raw = b"HTTP/1.1 1"
        while raw.startswith(b"HTTP/1.1 1"):
            raw = await self.reader.readuntil(b"\r\n\r\n")
        first = time.perf_counter()
        line, *rest = raw.decode("latin-1").split("\r\n")[:-2]
        pairs = [each.partition(":") for each in rest]
        answer = Answer(int(line.split(" ", 2)[1]), [(name, value.strip()) for name, _, value in pairs])
        answer.first_byte_s = first
        assert line.startswith("HTTP/1.1 "), line
        assert answer["Content-Length"] == "" or answer["Content-Length"].isdigit(), answer
        self._is_chunked = answer["Transfer-Encoding"] == "chunked"
        if self.is_head or answer.status in (204, 304):
            self._left, answer.is_whole = 0, True
        elif self._is_chunked:
            self._left = 0
        elif "Content-Length" in answer:
            self._left = int(answer["Content-Length"])
            answer.is_whole = self._left == 0
        else:
            self._left = -1
        self.answer_ = answer
        return answer

    async def more(self, most: int = 1 << 17) -> bytes:
        """Some body bytes; none at its end, or where it broke off."""
        answer = self.answer_
        assert answer is not None
        if answer.is_whole:
            return b""
        try:
            if self._is_chunked and self._left == 0:
                line = await self.reader.readuntil(b"\r\n")
                self._left = int(line.strip(), 16)
                if self._left == 0:
                    assert await self.reader.readexactly(2) == b"\r\n"
                    answer.is_whole = True
                    return b""
            data = await self.reader.read(most if self._left < 0 else min(most, self._left))
            if not data:
                answer.is_whole = self._left < 0
                return b""
            if self._left > 0:
                self._left -= len(data)
                if self._is_chunked and self._left == 0:
                    assert await self.reader.readexactly(2) == b"\r\n"
                elif self._left == 0:
                    answer.is_whole = True
        except (ConnectionError, asyncio.IncompleteReadError):
            return b""
        answer.received += data
        return data

    async def answer(self) -> Answer:
        answer = await self.head() if self.answer_ is None else self.answer_
        while await self.more():
            pass
        self.answer_ = None
        return answer

    async def bytes_of_body(self, n: int) -> bytes:
        """At least the first `n` bytes of the body, as far as it goes."""
        assert self.answer_ is not None
        while len(self.answer_.received) < n and await self.more():
            pass
        return self.answer_.body

    def reset(self) -> None:
        sock = self.writer.get_extra_info("socket")
        if sock is None or self.writer.is_closing():  # the box was first
            return
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    def close(self) -> None:
        self.writer.close()


async def get(box: Box, target: str, fields: Mapping[str, str] | None = None, **how: Any) -> Answer:
    """One whole exchange on a connection of its own. A connection that ends before a head has status 0."""
    viewer = await Viewer.connect(box)
    try:
        viewer.ask(target, fields, **how)
        return await viewer.answer()
    except (ConnectionError, asyncio.IncompleteReadError):
        return Answer(0, [])
    finally:
        viewer.close()


async def heard(box: Box) -> None:
    """Until the worker has read what futures and viewers made before this have asked.

    It takes connections and requests in the order of their arrival, so that it has come by them when it has answered
    probes that came later: one to connect after them, one to ask after them.
    """
    for _ in range(3):
        assert (await get(box, PROBE)).status == 200
