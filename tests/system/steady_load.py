"""Viewers at a steady rate as a process of its own, which counts every failed request. No test itself.

    python steady_load.py ADDRESS:PORT RATE HOST[,HOST] [MISSES]    until its stdin ends; prints one JSON document

A failed request is a refused or reset connection, a 5xx, or a short body. Requests are sent when they are due, whether
or not earlier ones were answered; one in ten goes over a connection of its own, one in MISSES (50) asks for what is not
stored. Bodies are checked by length and content.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections import Counter, deque
from types import TracebackType
from typing import Any

import uvloop

TICK_S = 0.005
CONNECTIONS = 40
BODY_BYTES = 2000
BODY = bytes(BODY_BYTES)


class Viewer(asyncio.Protocol):
    """One connection with at most one request under way."""

    def __init__(self, load: Load, *, is_single: bool) -> None:
        self.load = load
        self.is_single = is_single
        self.received = bytearray()
        self.began_s: float | None = None
        self.is_open = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport
        self.is_open = True

    def ask(self, request: bytes, due_s: float) -> None:
        self.began_s = due_s
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        self.received += data
        end = self.received.find(b"\r\n\r\n")
        if end < 0 or self.began_s is None:
            return
        head = bytes(self.received[:end]).lower()
        length = int(head.partition(b"content-length:")[2].split(b"\r\n")[0] or b"0")
        if len(self.received) < end + 4 + length:
            return
        status = int(head[9:12])
        body = self.received[end + 4 :]
        self.load.answered(status, status == 200 and body != BODY, time.monotonic() - self.began_s)
        self.began_s = None
        self.received.clear()
        if self.is_single or b"connection: close" in head:
            self.transport.close()
        else:
            self.load.free.append(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_open = False
        if self.began_s is not None:
            self.load.failed(f"short after {len(self.received)} bytes" if self.received else "reset")
        self.load.lost(self)


class Load:
    def __init__(self, address: str, rate: int, hosts: list[str], misses: int) -> None:
        self.host, _, port = address.rpartition(":")
        self.port = int(port)
        self.rate = rate
        self.hosts = hosts
        self.misses = misses
        self.free: deque[Viewer] = deque()
        self.n = 0
        self.n_waiting = 0
        self.statuses: Counter[int] = Counter()
        self.failures: Counter[str] = Counter()
        self.slowest_ms: list[float] = []
        self.tasks: set[asyncio.Task[None]] = set()

    def answered(self, status: int, is_wrong: bool, took_s: float) -> None:
        self.statuses[status] += 1
        self.slowest_ms.append(took_s * 1000)
        if status >= 500:
            self.failed(str(status))
        elif is_wrong:
            self.failed("wrong body")

    def failed(self, what: str) -> None:
        self.failures[what] += 1

    def lost(self, viewer: Viewer) -> None:
        if viewer in self.free:
            self.free.remove(viewer)
        if not viewer.is_single:
            self.spawn(self.connect())

    def spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def connect(self, request: tuple[bytes, float] | None = None) -> None:
        loop = asyncio.get_running_loop()
        try:
            _, viewer = await loop.create_connection(
                lambda: Viewer(self, is_single=request is not None), self.host, self.port
            )
        except OSError as error:
            self.failed(f"refused: {error.strerror or error}"[:80])
            return
        if request is not None:
            viewer.ask(*request)
        else:
            self.free.append(viewer)

    def send(self, due_s: float) -> None:
        self.n += 1
        name = f"miss-{self.n}" if self.n % self.misses == 0 else f"hit-{self.n % 20}"
        is_single = self.n % 10 == 0
        request = (
            f"GET /bytes/{BODY_BYTES}/{name} HTTP/1.1\r\nHost: {self.hosts[self.n % len(self.hosts)]}\r\n"
            f"{'Connection: close' if is_single else 'Accept: */*'}\r\n\r\n"
        ).encode()
        if not is_single and self.free:
            self.free.popleft().ask(request, due_s)
        else:
            self.spawn(self.connect((request, due_s)))

    async def run(self) -> None:
        ending = asyncio.Event()
        asyncio.get_running_loop().add_reader(0, ending.set)
        for _ in range(CONNECTIONS):
            await self.connect()
        began_s = time.monotonic()
        sent = 0
        print("running", flush=True)
        while not ending.is_set():
            now_s = time.monotonic()
            for index in range(sent, int((now_s - began_s) * self.rate)):
                self.send(began_s + index / self.rate)
                sent += 1
            try:
                await asyncio.wait_for(ending.wait(), TICK_S)
            except TimeoutError:
                continue
        seconds = time.monotonic() - began_s
        deadline_s = time.monotonic() + 10
        while sum(self.statuses.values()) + sum(self.failures.values()) < self.n and time.monotonic() < deadline_s:
            await asyncio.sleep(TICK_S)
        unanswered = self.n - sum(self.statuses.values()) - sum(
            count for what, count in self.failures.items() if not what[:1].isdigit() and what != "wrong body"
        )
        if unanswered > 0:  # connections made in advance may have been refused too
            self.failures["unanswered"] += unanswered
        latencies = sorted(self.slowest_ms) or [0.0]
        print(
            json.dumps(
                {
                    "requests": self.n, "seconds": round(seconds, 2), "statuses": self.statuses,
                    "failures": self.failures, "p50_ms": round(latencies[len(latencies) // 2], 2),
                    "p99_ms": round(latencies[len(latencies) * 99 // 100], 2), "max_ms": round(latencies[-1], 1),
                }
            ),
            flush=True,
        )  # fmt: skip


class SteadyLoad:
    """The process, between __enter__ and __exit__; `result` is there after `end`."""

    def __init__(self, address: tuple[str, int], rate: int, *hosts: str, misses: int = 50) -> None:
        self._arguments = [f"{address[0]}:{address[1]}", str(rate), ",".join(hosts), str(misses)]
        self.result: dict[str, Any] = {}

    def __enter__(self) -> SteadyLoad:
        self._process = subprocess.Popen(
            [sys.executable, __file__, *self._arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "running\n"
        return self

    def end(self) -> dict[str, Any]:
        out, _ = self._process.communicate(timeout=30)
        self.result = json.loads(out)
        return self.result

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.communicate()


if __name__ == "__main__":
    load = Load(sys.argv[1], int(sys.argv[2]), sys.argv[3].split(","), int(sys.argv[4]) if len(sys.argv) > 4 else 50)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(load.run())
