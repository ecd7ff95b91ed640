"""Thousands of idle chat sockets through the box, messages fanned to them by the origin, live video beside it.

What a tunnel costs is printed: growth of the box's resident memory, and what the kernel keeps for the two sockets.
"""

from __future__ import annotations

import asyncio
import base64
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import pytest
import uvloop
from chat_origin import FRAME_BYTES, SEGMENT
from running_box import HOST, PROJECT, RunningBox, policy_for, wait_for

KEY = base64.b64encode(b"sixteen bytes ok")
ASK = (
    b"GET /chat HTTP/1.1\r\nHost: %b\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: %b\r\n\r\n" % (HOST.encode(), KEY)
)
AT_ONCE = 200
SLABS = ("TCP", "sock_inode_cache", "filp", "dentry", "eventpoll_epi", "eventpoll_pwq", "ep_head")


class ChatOrigin:
    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.port = int(self.answer())

    def answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def begin(self, command: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()

    def tell(self, command: str) -> int:
        self.begin(command)
        return int(self.answer())


@contextmanager
def chat_origin() -> Iterator[ChatOrigin]:
    command = [sys.executable, str(PROJECT / "tests/system/chat_origin.py")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield ChatOrigin(process)
        finally:
            process.kill()


class Chat(asyncio.Protocol):
    """One viewer's socket: counts its messages, and checks that none is missing and none comes early."""

    def __init__(self) -> None:
        self.data, self.n = b"", 0
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.closed: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self.faults: list[str] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.write(ASK)

    def data_received(self, data: bytes) -> None:
        self.data += data
        if not self.opened.done():
            head, found, rest = self.data.partition(b"\r\n\r\n")
            if not found:
                return
            assert head.startswith(b"HTTP/1.1 101"), head
            self.data = rest
            self.opened.set_result(None)
        while len(self.data) >= FRAME_BYTES:
            frame, self.data = self.data[:FRAME_BYTES], self.data[FRAME_BYTES:]
            if frame != b"\x81\x40%-64d" % self.n:
                self.faults.append(f"message {self.n}: {frame!r}")
            self.n += 1

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.opened.done():
            self.opened.set_exception(ConnectionError(f"closed: {self.data!r}"))
        self.closed.set_result(self.data)


class Video:
    """A viewer of live video: a new segment every 20 ms, each checked."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.address, self.n, self.slowest_s = address, 0, 0.0
        self.must_stop = False

    async def watch(self) -> None:
        reader, writer = await asyncio.open_connection(*self.address)
        while not self.must_stop:
            began = time.monotonic()
            writer.write(b"GET /segment/%d HTTP/1.1\r\nHost: %b\r\n\r\n" % (self.n, HOST.encode()))
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200"), head
            assert await reader.readexactly(len(SEGMENT)) == SEGMENT
            self.n += 1
            self.slowest_s = max(self.slowest_s, time.monotonic() - began)
            await asyncio.sleep(0.02)
        writer.close()


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def kernel_bytes_per_socket() -> dict[str, int]:
    """What each slab takes for one object."""
    sizes = {}
    for line in Path("/proc/slabinfo").read_text().splitlines()[2:]:
        name, *numbers = line.split()
        if name in SLABS:
            sizes[name] = int(numbers[2])
            sizes["what slabs waste"] = (
                sizes.get("what slabs waste", 0)
                + int(numbers[4]) * os.sysconf("SC_PAGESIZE") // int(numbers[3]) - sizes[name]
            )  # fmt: skip
    return sizes


async def open_all(address: tuple[str, int], n: int) -> list[Chat]:
    gate = asyncio.Semaphore(AT_ONCE)

    async def open_one() -> Chat:
        async with gate:
            _, chat = await asyncio.get_running_loop().create_connection(Chat, *address)
            await asyncio.wait_for(chat.opened, 20)
            return chat

    return await asyncio.gather(*(open_one() for _ in range(n)))


async def received(chats: list[Chat], total: int) -> float:
    """Seconds until all messages are there."""
    began = time.monotonic()
    while sum(chat.n for chat in chats) < total:
        assert time.monotonic() - began < 60, f"{total - sum(chat.n for chat in chats)} messages are missing"
        await asyncio.sleep(0.01)
    return time.monotonic() - began


async def run(box: RunningBox, origin: ChatOrigin, n: int, rate: int, seconds: int, n_bursts: int) -> None:
    pid, address = box.process.pid, box.address()
    warm = await open_all(address, 100)
    for chat in warm:
        chat.transport.close()
    await asyncio.gather(*(chat.closed for chat in warm))
    wait_for(lambda: box.status()["tunnels"] == 0)
    before, outside = resident_bytes(pid), box.stats()["memory_bytes"]
    began = time.monotonic()
    chats = await open_all(address, n)
    print(f"\n{n} tunnels opened in {time.monotonic() - began:.1f} s")
    assert box.status()["tunnels"] == n
    grown, counted = resident_bytes(pid) - before, box.stats()["memory_bytes"] - outside
    kernel = kernel_bytes_per_socket() if os.access("/proc/slabinfo", os.R_OK) else {}
    both = 2 * sum(kernel.values())
    print(f"resident memory: {grown / n:.0f} bytes a tunnel, of which counted {counted / n:.0f}")
    print(f"kernel: {both} bytes a tunnel (two sockets: {kernel})")
    print(f"together: {grown / n + both:.0f} bytes a tunnel")
    if n >= 1000:
        assert grown / n < 2048, "nothing but the worker's own structs may be left of a tunnel"
    video = Video(address)
    watching = asyncio.create_task(video.watch())
    cpu = box.cpu_seconds()
    loop = asyncio.get_running_loop()
    sent = await loop.run_in_executor(None, origin.tell, f"in-turn {rate} {seconds}")
    tail_s = await received(chats, sent)
    print(f"{sent} messages in {seconds} s ({rate}/s), the last {tail_s * 1000:.0f} ms late")
    print(f"CPU of the box meanwhile: {(box.cpu_seconds() - cpu) / seconds:.0%} of a core")
    bursts_began = time.monotonic()
    await loop.run_in_executor(None, origin.tell, f"burst {n_bursts}")
    await received(chats, sent + n * n_bursts)
    print(f"{n_bursts} bursts to all {n}: {time.monotonic() - bursts_began:.2f} s")
    video.must_stop = True
    await watching
    assert video.n > 5 * seconds
    assert [fault for chat in chats for fault in chat.faults] == []
    print(f"{video.n} segments, none failed, the slowest took {video.slowest_s:.2f} s")
    grown, counted = resident_bytes(pid) - before, box.stats()["memory_bytes"] - outside
    print(f"resident memory after it, without what is stored of the video: {(grown - counted) / n:.0f} bytes a tunnel")
    for chat in chats:
        chat.transport.close()
    await asyncio.gather(*(chat.closed for chat in chats))
    wait_for(lambda: box.status()["tunnels"] == 0, seconds=30)


@pytest.mark.parametrize(("n", "rate", "seconds", "n_bursts"), [
    (200, 200, 3, 5),
    pytest.param(6000, 600, 30, 3, marks=pytest.mark.slow),
])  # fmt: skip
def test_chat_beside_live_video(tmp_path: Path, n: int, rate: int, seconds: int, n_bursts: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2 * n + 1000:
        pytest.skip(f"needs {2 * n + 1000} descriptors for a process; the hard limit is {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        with chat_origin() as origin:
            policy = policy_for(f"http://127.0.0.1:{origin.port}", origins={"media": {"profile": "generic"}})
            with RunningBox(tmp_path, policy, nofile=hard) as box:
                uvloop.run(run(box, origin, n, rate, seconds, n_bursts))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
