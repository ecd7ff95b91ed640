"""What does it cost to receive a 200 MB body? The upstream client beside aiohttp on uvloop, and the floor.

    .venv/bin/python benchmarks/bench_upstream_client.py

Each client runs in a process of its own and writes the body to one buffer that has been touched before, as a fill does;
the origin is another process, whose CPU time does not count. Medians of 5 runs, taken in turn after one to warm up; CPU
seconds are user + system of the client by getrusage. "floor" is recv_into() on a blocking socket and nothing else.
Small responses: 4,000 of 2.7 KB one after the other on one connection (aiohttp and ours only).
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import resource
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import aiohttp
import uvloop

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from accelerator.io.upstream import OriginSettings, Upstream, UpstreamClient
from ext.http_head import HeadError, read_response

BODY_BYTES = 200_000_000
SMALL_BYTES = 2_700
N_SMALL = 4_000
N_RUNS = 5


def origin(ready: Any) -> None:
    """Answers /large and everything else, keep-alive, from memory."""
    listener = socket.create_server(("127.0.0.1", 0))
    ready.send(listener.getsockname()[1])
    block = bytes(range(256)) * 4096
    small = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % SMALL_BYTES + block[:SMALL_BYTES]
    while True:
        peer, _ = listener.accept()
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with peer:
            while data := peer.recv(65536):
                if not data.startswith(b"GET /large"):
                    peer.sendall(small)
                    continue
                peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % BODY_BYTES)
                for start in range(0, BODY_BYTES, len(block)):
                    peer.sendall(block[: BODY_BYTES - start])


class Fill:
    """A sink that keeps the body in one buffer, 1 MiB slice by slice."""

    def __init__(self, memory: memoryview) -> None:
        self.memory = memory
        self.filled = 0
        self.done = asyncio.get_running_loop().create_future()

    def interim_received(self, response: Any) -> None:
        pass

    def head_received(self, response: Any, upstream: Any) -> None:
        pass

    def get_buffer(self, size_hint: int) -> memoryview:
        end = (self.filled & ~0xFFFFF) + 0x100000
        return self.memory[self.filled : end]

    def bytes_received(self, n: int) -> None:
        self.filled += n

    def ended(self) -> None:
        self.done.set_result(None)

    def failed(self, error: Exception, received_any: bool) -> None:
        self.done.set_exception(error)


async def run_ours(port: int, target: str, n: int, memory: memoryview) -> int:
    settings = OriginSettings("bench", (Upstream("http", "127.0.0.1", port),))
    client = UpstreamClient(settings, asyncio.get_running_loop(), parse_response=read_response, head_error=HeadError)
    filled = 0
    for _ in range(n):
        fill = Fill(memory)
        client.request(b"GET", target.encode(), [(b"Accept", b"*/*")], fill)
        await fill.done
        filled += fill.filled
    await client.close()
    return filled


async def run_floor(port: int, target: str, n: int, memory: memoryview) -> int:
    """Large bodies only: what the kernel's copy costs anybody."""
    with socket.create_connection(("127.0.0.1", port)) as sock:
        sock.sendall(b"GET %b HTTP/1.1\r\n\r\n" % target.encode())
        head = len(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % BODY_BYTES)
        filled = 0
        while filled < head + BODY_BYTES:
            filled += sock.recv_into(memory[filled : filled + (1 << 20)])
    return filled - head


async def run_aiohttp(port: int, target: str, n: int, memory: memoryview) -> int:
    filled = 0
    async with aiohttp.ClientSession(auto_decompress=False) as session:
        for _ in range(n):
            async with session.get(f"http://127.0.0.1:{port}{target}", headers={"Accept": "*/*"}) as response:
                at = 0
                async for data in response.content.iter_any():
                    memory[at : at + len(data)] = data
                    at += len(data)
                filled += at
    return filled


def measure(which: str, port: int, target: str, n: int) -> None:
    """One run, as a process: prints CPU seconds and wall seconds."""
    memory = memoryview(bytearray(BODY_BYTES + (1 << 20)))
    work = {"ours": run_ours, "aiohttp": run_aiohttp, "floor": run_floor}[which]
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        before, started = resource.getrusage(resource.RUSAGE_SELF), time.monotonic()
        filled = runner.run(work(port, target, n, memory))
        wall_s = time.monotonic() - started
        after = resource.getrusage(resource.RUSAGE_SELF)
    assert filled == n * (BODY_BYTES if target == "/large" else SMALL_BYTES)
    print(json.dumps({
        "user_s": after.ru_utime - before.ru_utime, "system_s": after.ru_stime - before.ru_stime, "wall_s": wall_s,
    }))  # fmt: skip


def main() -> None:
    here, there = multiprocessing.Pipe()
    server = multiprocessing.Process(target=origin, args=(there,), daemon=True)
    server.start()
    port = here.recv()
    for target, n in (("/large", 1), ("/small", N_SMALL)):
        medians: dict[str, dict[str, float]] = {}
        runs: dict[str, list[dict[str, float]]] = {"ours": [], "aiohttp": []}
        if target == "/large":
            runs["floor"] = []
        for i in range(N_RUNS + 1):
            for which in runs:
                command = [sys.executable, __file__, which, str(port), target, str(n)]
                result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
                if i:
                    runs[which].append(result)
        for which, results in runs.items():
            medians[which] = {key: statistics.median(result[key] for result in results) for key in results[0]}
            m = medians[which]
            m["cpu_s"] = statistics.median(result["user_s"] + result["system_s"] for result in results)
            print(
                f"{target:7} {which:8} cpu {m['cpu_s']:.3f} s (user {m['user_s']:.3f}, system {m['system_s']:.3f}), "
                f"wall {m['wall_s']:.3f} s"
            )
        for key in ("cpu_s", "user_s"):
            ratio = medians["aiohttp"][key] / max(medians["ours"][key], 1e-6)
            print(f"{target:7} aiohttp / ours, {key}: {ratio:.2f}")
    server.terminate()


if __name__ == "__main__":
    if len(sys.argv) > 1:
        measure(sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
    else:
        main()
