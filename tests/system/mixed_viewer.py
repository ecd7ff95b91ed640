"""One viewer of the mixed run: a connection that asks, reads answers as they are framed, asks again. Judges nothing."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any

from mixed_check import Answer, Asked, Wrong
from mixed_origin import dechunked

if TYPE_CHECKING:
    from mixed_run import Run

PIPELINED = (1, 1, 1, 2, 4)


class Viewer(asyncio.Protocol):
    """One connection after the other: asks, compares, asks again. Some leave in the middle."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.waiting: deque[Asked] = deque()
        self.received = bytearray()
        self.head: tuple[int, dict[str, str], int] | None = None  # status, fields, length of the body or -1
        self.gone = run.loop.create_future()
        self.leaves_at = run.dice.randrange(200) if run.dice.random() < 0.02 else -1

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport
        self._ask()

    def connection_lost(self, exc: Exception | None) -> None:
        for asked in list(self.waiting)[:1]:
            self._end_of_connection(asked)
        self.waiting.clear()
        if not self.gone.done():
            self.gone.set_result(None)

    def _end_of_connection(self, asked: Asked) -> None:
        if self.head is None:
            self.run.seen["closed before an answer"] += 1
            return
        status, fields, length = self.head
        body = bytes(self.received)
        if "chunked" in fields.get("transfer-encoding", ""):
            body = dechunked(body)[0]
        elif "content-length" not in fields and status not in (204, 304):
            self.run.seen["end by close"] += 1
        self.run.check(asked, Answer(status, fields, body[: length if length >= 0 else None], False, self.run.now()))

    def _ask(self) -> None:
        if self.run.is_over or self.run.is_pausing:
            self.transport.abort()
            return
        for _ in range(self.run.dice.choice(PIPELINED)):
            asked = self.run.request()
            asked.at, asked.floor = self.run.now(), asked.key.floor if asked.key is not None else 0.0
            self.waiting.append(asked)
        self.transport.write(b"".join(asked.raw for asked in self.waiting))

    def data_received(self, data: bytes) -> None:
        self.received += data
        try:
            while self.waiting and self._one():
                pass
        except (Wrong, ValueError, LookupError) as problem:
            self.run.wrong(self.waiting[0] if self.waiting else None, f"{type(problem).__name__}: {problem}")
            self.transport.abort()
            return
        if not self.waiting and not self.transport.is_closing():
            self._ask()

    def _one(self) -> bool:
        """Whether an answer was whole, and taken."""
        if self.head is None and not self._read_head():
            return False
        assert self.head is not None
        status, fields, length = self.head
        asked = self.waiting[0]
        if "chunked" in fields.get("transfer-encoding", "") and length < 0:
            body, is_whole, rest = dechunked(bytes(self.received))
            if not is_whole:
                return False
            self.received = bytearray(rest)
        elif length < 0:
            return False  # its end is the connection's
        elif len(self.received) < length:
            if self.leaves_at == 0:
                self.waiting.clear()
                self.transport.abort()
            return False
        else:
            body = bytes(memoryview(self.received)[:length])
            del self.received[:length]
        self.waiting.popleft()
        self.head = None
        self.leaves_at -= 1
        self.run.check(asked, Answer(status, fields, body, True, self.run.now()))
        if fields.get("connection", "").lower() == "close":
            self.waiting.clear()
            self.transport.close()
            return False
        return True

    def _read_head(self) -> bool:
        end = self.received.find(b"\r\n\r\n")
        if end < 0:
            return False
        line, *lines = bytes(self.received[:end]).decode("latin-1").split("\r\n")
        del self.received[: end + 4]
        status = int(line[9:12])
        fields: dict[str, str] = {}
        for each in lines:
            name, _, value = each.partition(": ")
            name = name.lower()
            if name in fields and name == "content-length":
                raise Wrong("two lengths")
            fields[name] = value
        if status < 200:
            return self._read_head()
        has_none = self.waiting[0].method == "HEAD" or status in (204, 304)
        length = 0 if has_none else int(fields.get("content-length", -1))
        self.head = (status, fields, length)
        return True
