"""How one acceleratord takes over the listening sockets of another, of the same state directory: both ends of the talk.

The running one serves on until the new one has said that it is ready, and for good if it never says so. Only sockets
and the keys of TLS tickets are handed over: what a message claims about a process the kernel must say (SO_PEERCRED).

    new -> old  {"take_over": 1}
    old -> new  {"sockets": [NAME, ...], "tickets": KEYS} with their descriptors, or {"refused": REASON}
    new -> old  {"ready": [NAME, ...]}            the names that it serves on now
    old -> new  {"yours": true}                   from here on the old one accepts nothing, drains and ends
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import json
import logging
import os
import socket
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerator.errors import AcceleratorError, Source
from accelerator.io.inherited import Named

log = logging.getLogger("accelerator")

# The policy of a large site is checked in under a second, and an index of 1 M objects loaded in another.
READY_WITHIN_S = 30.0
ANSWER_WITHIN_S = 5.0
# The data plane knows 64 listeners, and the kernel passes 253 descriptors at once (SCM_MAX_FD).
SOCKETS_MAX = 128
MESSAGE_BYTES_MAX = 64 << 10


class HandOverError(AcceleratorError):
    """Nothing was taken over: the running acceleratord serves on, or there is none."""

    source = Source.OPERATOR


class HandOverServer:
    """The running one's end, at `path`. One successor at a time.

    `sockets` gives what is handed over now; `leave(pid, names)` is called once, when `pid` serves on those `names`;
    `only_pid` is the one process that may, if it matters.
    """

    def __init__(
        self,
        path: Path,
        sockets: Callable[[], Mapping[str, socket.socket]],
        leave: Callable[[int, frozenset[str]], None],
        *,
        only_pid: Callable[[], int | None] = lambda: None,
        tickets: Callable[[], Mapping[str, object] | None] = lambda: None,
        ready_within_s: float = READY_WITHIN_S,
    ) -> None:
        self._path = path
        self._sockets = sockets
        self._leave = leave
        self._only_pid = only_pid
        self._tickets = tickets
        self._ready_within_s = ready_within_s
        self._listening: socket.socket | None = None
        self._task: asyncio.Task[None] | None = None
        self._refusing: set[asyncio.Task[None]] = set()
        self._inode: tuple[int, int] | None = None
        self._has_left = False

    @property
    def is_busy(self) -> bool:
        """Whether a successor is getting ready."""
        return self._task is not None

    def start(self) -> None:
        """Listens, in place of whoever did before. Raises HandOverError."""
        new = self._path.with_name(".next")
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        try:
            new.unlink(missing_ok=True)
            listening.bind(os.fspath(new))
            new.chmod(0o600)
            listening.listen(4)
            found = new.stat()
            new.rename(self._path)
        except OSError as fault:
            listening.close()
            raise HandOverError("socket", f"{self._path}: {fault.strerror or fault}") from fault
        self._inode = (found.st_dev, found.st_ino)
        self._listening = listening
        asyncio.get_running_loop().add_reader(listening.fileno(), self._accept)

    def stop(self) -> None:
        """Ends a talk that is under way, and removes the socket's file, unless it is another's. Who has left the place
        to a successor removes nothing: its file may come between our look and our unlink.
        """
        if self._listening is None:
            return
        asyncio.get_running_loop().remove_reader(self._listening.fileno())
        self._listening.close()
        self._listening = None
        with contextlib.suppress(OSError):
            found = self._path.lstat()
            if not self._has_left and (found.st_dev, found.st_ino) == self._inode:
                self._path.unlink()
        for task in (self._task, *self._refusing):
            if task is not None:
                task.cancel()

    def _accept(self) -> None:
        assert self._listening is not None
        try:
            connected, _ = self._listening.accept()
        except OSError:
            return
        connected.setblocking(False)
        pid, uid = _peer(connected)
        loop = asyncio.get_running_loop()
        if uid not in (0, os.geteuid()):
            log.warning("hand-over: process %d is refused: user %d may not take over", pid, uid)
            connected.close()
            return
        refusal = ""
        if self.is_busy:
            refusal = "another one is taking over already"
        elif self._only_pid() not in (None, pid):
            refusal = (
                "a service manager runs it, which knows only its own: send it SIGUSR2, it starts its successor itself"
            )
        if refusal:
            log.warning("hand-over: process %d is refused: %s", pid, refusal)
            task = loop.create_task(_refuse(connected, refusal))
            self._refusing.add(task)
            task.add_done_callback(self._refusing.discard)
        else:
            self._task = loop.create_task(self._talk(connected, pid))

    async def _talk(self, connected: socket.socket, pid: int) -> None:
        with connected:
            try:
                names = await self._offer(connected)
                self._has_left = True  # before it can know
                connected.send(b'{"yours": true}')
            except (HandOverError, OSError, TimeoutError) as fault:
                self._has_left = False
                log.error("hand-over: process %d did not take over: %s; this one serves on", pid, fault or "time is up")
                return
            finally:
                self._task = None
            log.info("hand-over: process %d serves now", pid)
            self._leave(pid, names)

    async def _offer(self, connected: socket.socket) -> frozenset[str]:
        async with asyncio.timeout(ANSWER_WITHIN_S):
            message = await _receive_text(connected)
        if message.get("take_over") != 1:
            raise HandOverError("protocol", "it speaks another protocol")
        sockets = self._sockets()
        fds = array.array("i", [sock.fileno() for sock in sockets.values()])
        reply = json.dumps({"sockets": list(sockets), "tickets": self._tickets()}).encode()
        connected.sendmsg([reply], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)] if fds else [])
        async with asyncio.timeout(self._ready_within_s):
            message = await _receive_text(connected)
        names = message.get("ready")
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise HandOverError("protocol", "it speaks another protocol")
        return frozenset(names)


class Predecessor:
    """The new one's end: who still serves. A context: left without ready(), that one serves on."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connected = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        self.pid = 0
        self.tickets: object = None  # as it said them: of another version they may be anything

    def __enter__(self) -> Predecessor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._connected.close()

    async def ask(self) -> list[Named]:
        """Its listening sockets, owned by the caller. Raises HandOverError."""
        try:
            self._connected.connect(os.fspath(self._path))
        except (OSError, ValueError) as fault:
            reason = fault.strerror if isinstance(fault, OSError) else fault
            raise HandOverError("no-daemon", f"{self._path}: no acceleratord to take over from: {reason}") from fault
        self.pid, uid = _peer(self._connected)
        if uid not in (0, os.geteuid()):
            raise HandOverError("not-permitted", f"{self._path}: user {uid} listens there, neither root nor this user")
        message, fds = await self._exchange({"take_over": 1}, ANSWER_WITHIN_S)
        sockets = [socket.socket(fileno=fd) for fd in fds]
        self.tickets = message.get("tickets")
        names = message.get("sockets")
        if isinstance(names, list) and len(names) == len(sockets) and all(isinstance(name, str) for name in names):
            return list(zip(names, sockets, strict=True))
        for sock in sockets:
            sock.close()
        raise HandOverError(
            "refused", f"the running acceleratord refuses: {message.get('refused', 'another protocol')}"
        )

    async def ready(self, names: Sequence[str]) -> None:
        """Says that we serve on the sockets `names`; returns when they are ours alone. Raises HandOverError."""
        message, _ = await self._exchange({"ready": list(names)}, ANSWER_WITHIN_S)
        if message.get("yours") is not True:
            raise HandOverError("refused", "the running acceleratord serves on")

    async def _exchange(self, message: Mapping[str, object], within_s: float) -> tuple[dict[str, Any], list[int]]:
        try:
            self._connected.send(json.dumps(message).encode())
            async with asyncio.timeout(within_s):
                return await _receive(self._connected)
        except TimeoutError as fault:
            raise HandOverError("timed-out", f"the running acceleratord (pid {self.pid}) does not answer") from fault
        except OSError as fault:
            raise HandOverError("broken-off", f"the running acceleratord broke off: {fault.strerror}") from fault


async def _refuse(connected: socket.socket, reason: str) -> None:
    """Reads the question first: closing with it unread would throw the answer away (unix(7), ECONNRESET)."""
    with connected, contextlib.suppress(HandOverError, OSError, TimeoutError):
        async with asyncio.timeout(ANSWER_WITHIN_S):
            await _receive_text(connected)
        connected.send(json.dumps({"refused": reason}).encode())


async def _receive_text(connected: socket.socket) -> dict[str, Any]:
    """One message that should bring no descriptors; what it brings is closed. Raises as _receive()."""
    message, fds = await _receive(connected)
    for fd in fds:
        os.close(fd)
    return message


async def _receive(connected: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """One message, and descriptors that are the caller's. Raises HandOverError for what is no message, OSError."""
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(connected.fileno(), readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(connected.fileno())
    # socket.recv_fds of Python 3.11 drops its flags: the descriptors would go to every child of ours.
    fds = array.array("i")
    room = socket.CMSG_SPACE(SOCKETS_MAX * fds.itemsize)
    data, ancillary, flags, _ = connected.recvmsg(MESSAGE_BYTES_MAX, room, socket.MSG_CMSG_CLOEXEC)
    for level, kind, value in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(value[: len(value) - len(value) % fds.itemsize])
    try:
        if not data:
            raise HandOverError("broken-off", "the other side broke off")
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            raise HandOverError("protocol", "a message is too long")
        message = json.loads(data)
        if not isinstance(message, dict):
            raise HandOverError("protocol", "a message is no object")
    except (HandOverError, ValueError, RecursionError) as fault:
        for fd in fds:
            os.close(fd)
        if isinstance(fault, HandOverError):
            raise
        raise HandOverError("protocol", "a message is no JSON") from fault
    return message, list(fds)


def _peer(connected: socket.socket) -> tuple[int, int]:
    """Process and user of the other end, as the kernel knows them."""
    pid, uid, _ = struct.unpack("3i", connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return pid, uid
