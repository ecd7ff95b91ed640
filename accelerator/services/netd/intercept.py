"""acceleratord's side of interception: the transparent listening socket comes from accelerator-netd, which alone may
make one, and netd is told each second that the workers move. It withdraws interception where that stops.

A beat is only sent when every worker has begun a pass since the last one: a control plane that lives beside a stuck
worker says nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from accelerator.services.logs.events import Events

BEAT_S = 1.0
RETRY_S = 2.0
_LINE_MAX = 1 << 16


class Workers(Protocol):
    def poke_workers(self) -> None: ...

    def worker_passes(self) -> Sequence[int | None]: ...


class Interceptor:
    """`take(socket)` gets the listening socket, which is the taker's to close, or None: close it."""

    def __init__(
        self, path: Path, workers: Workers, events: Events, take: Callable[[socket.socket | None], None]
    ) -> None:
        self._path = path
        self._workers = workers
        self._events = events
        self._take = take
        self._port = 0
        self._socket: socket.socket | None = None
        self._task: asyncio.Task[None] | None = None

    def want(self, port: int) -> None:
        """Where the policy wants to intercept; 0: it doesn't."""
        if port == self._port:
            return
        self._port = port
        self._drop()
        if self._task is not None:
            self._task.cancel()
            self._task = None
        if port:
            self._task = asyncio.get_running_loop().create_task(self._run(port))

    async def stop(self) -> None:
        """netd hears the connection's end, and withdraws at once."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        self._drop()

    def _drop(self) -> None:
        if self._socket is not None:
            self._take(None)
            self._socket = None

    async def _run(self, port: int) -> None:
        while True:
            try:
                await self._beat(port)
            except (OSError, ValueError, TimeoutError) as fault:
                self._events.note(
                    "intercept-waits", "interception waits for accelerator-netd", why=str(fault),
                    cause=f"intercept {fault}",
                )  # fmt: skip
            await asyncio.sleep(RETRY_S)

    async def _beat(self, port: int) -> None:
        """One connection, until it ends."""
        if self._socket is None:
            self._socket = await asyncio.to_thread(fetch_socket, self._path, port)
            self._take(self._socket)
        reader, writer = await asyncio.open_unix_connection(str(self._path), limit=_LINE_MAX)
        try:
            before: Sequence[int | None] = ()
            while True:
                passes = self._workers.worker_passes()
                moved = [new is not None and new != old for new, old in zip(passes, before, strict=False)]
                if before and moved and all(moved):
                    writer.write(b'{"command": "alive", "args": {}}\n')
                    async with asyncio.timeout(BEAT_S * 2):
                        answer = await reader.readline()
                    if not answer:
                        raise ConnectionError("accelerator-netd has ended")
                before = passes
                self._workers.poke_workers()
                await asyncio.sleep(BEAT_S / 2 if not moved else BEAT_S)
        finally:
            writer.close()


def fetch_socket(path: Path, port: int) -> socket.socket:
    """Blocks for a moment. OSError: netd isn't there, or refuses."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as asking:
        asking.settimeout(5)
        asking.connect(str(path))
        asking.sendall(json.dumps({"command": "transparent", "args": {"port": port}}).encode() + b"\n")
        data, descriptors, _, _ = socket.recv_fds(asking, _LINE_MAX, 1)
        answer = json.loads(data)
        if not answer["ok"] or not descriptors:
            for descriptor in descriptors:
                os.close(descriptor)
            raise OSError(answer.get("error", {}).get("message", "no socket came"))
        made = socket.socket(fileno=descriptors[0])
        made.setblocking(False)
        made.set_inheritable(False)
        return made
