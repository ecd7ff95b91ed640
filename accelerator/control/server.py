"""The control socket's server: who may connect, what a line may be, which box method answers it. No command's work is
done here.

Anyone who can open the socket is treated as hostile (reliability.md threat 17, faults 47 and 48): whatever a peer
does costs at most one connection of a bounded number, one bounded line and one counter.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import socket
import stat
import struct
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from inspect import isawaitable
from pathlib import Path
from typing import cast

from accelerator.control.box import Box, Figures, Stream
from accelerator.control.commands import BY_NAME, Command, Files, Value, check_arguments, parameters_of
from accelerator.control.message import (
    BEGINNING_BYTES,
    REQUEST_BYTES_MAX,
    Request,
    command_of,
    encode_error,
    encode_result,
    parse_request,
)
from accelerator.errors import AcceleratorError, ControlError

_log = logging.getLogger(__name__)

SUN_PATH_MAX = 107  # unix(7): sun_path has 108 bytes, one is the NUL
DENIAL_RECORDED_EACH_S = 10.0
_SO_PEERGROUPS = 59  # asm-generic/socket.h, Linux 4.13; the socket module does not know it

# Every event that a peer can cause has a name; all stand in /metrics from the start, at 0.
COUNTERS: Mapping[str, str] = {
    "connections": "connections accepted",
    "commands": "commands carried out",
    "failed": "commands that the daemon could not carry out",
    "refused_busy": "connections refused, too many are open",
    "refused_peer": "connections refused, the peer may not even read",
    "refused_right": "commands refused, the peer may only read",
    "refused_oversized": "requests over the size limit",
    "refused_binary": "requests with control bytes or not UTF-8",
    "refused_syntax": "requests that are no JSON request",
    "refused_unknown": "unknown commands",
    "refused_arguments": "commands with wrong arguments",
    "refused_command": "commands that the daemon refused",
    "streams_dropped": "followers dropped, they read too slowly or had half closed",
    "timed_out_line": "connections closed, a started line did not end in time",
    "timed_out_idle": "connections closed, nothing was asked for too long",
    "timed_out_reader": "connections closed, an answer was not read in time",
}


@dataclass(frozen=True)
class ControlLimits:
    """`reserved`: of `connections`, those that only peers with the right to change may take, so that readers can't
    lock root out.
    """

    connections: int = 64
    reserved: int = 8
    line_s: float = 1.0
    idle_s: float = 30.0
    read_answer_s: float = 10.0


@dataclass(frozen=True)
class Peer:
    """Who connected, as the kernel says (SO_PEERCRED): what was true when it called connect()."""

    pid: int
    uid: int
    gid: int
    may_read: bool
    may_change: bool


@dataclass(frozen=True)
class AuditEntry:
    """One attempt to change something. `outcome` is "done", "refused" or "failed", `detail` its result or reason.

    `arguments` can hold URLs with viewers' credentials: the log that keeps them decides what it strips.
    """

    command: str
    arguments: Mapping[str, object]
    uid: int
    pid: int
    outcome: str
    detail: str


Audit = Callable[[AuditEntry], None]


def prepare_directory(directory: Path) -> None:
    """Make the socket's directory, mode 0750, or check the one that is there.

    An empty one is tightened to 0750. One with contents is left as it is (it may be anything: `--state-dir /etc`),
    but refused where others may write, since they could put their own socket in our place. Raises
    ControlError("directory").
    """
    try:
        directory.mkdir(mode=0o750, parents=True, exist_ok=True)
        found = directory.stat()
        if found.st_uid == os.geteuid() and found.st_mode & 0o027 and not any(directory.iterdir()):
            directory.chmod(found.st_mode & 0o750)
            found = directory.stat()
    except OSError as error:
        raise ControlError("directory", f"{directory}: {error.strerror}") from error
    if found.st_mode & stat.S_IWOTH:
        raise ControlError(
            "directory", f"{directory}: others may write there; chmod o-w it, or choose another state directory"
        )


class ControlServer:
    """Serves `box` on a unix socket, mode 0660, from start() to stop(). Belongs to one event loop (asyncio's or
    uvloop's).

    Root and the daemon's own user may read and change. Members of the socket's group (`group_id`, by default what the
    directory gives) may read. Nobody else may do anything.
    """

    def __init__(
        self,
        box: Box,
        path: Path,
        *,
        audit: Audit,
        limits: ControlLimits | None = None,
        group_id: int | None = None,
    ) -> None:
        self.box = box
        self.path = path
        self.audit = audit
        # Told of each refusal: (its text in COUNTERS, the peer's uid). For a log that sums them up.
        self.refused: Callable[[str, int], None] = lambda _, __: None
        self.limits = limits or ControlLimits()
        self.counts: Counter[str] = Counter()
        self.connections: set[_Connection] = set()
        self._group_id = group_id
        self._server: asyncio.Server | None = None
        self._inode: tuple[int, int] | None = None
        self._hidden: Path | None = None
        self._logged: set[tuple[str, str]] = set()
        self._denied_at: dict[int, float] = {}

    async def start(self, *, is_hidden: bool = False) -> None:
        """Listen. `is_hidden`: a live daemon has the socket; show() puts ours in its place. Raises ControlError:
        "directory", "in-use" (a live daemon has the socket), "socket" (the system says no).
        """
        prepare_directory(self.path.parent)
        if len(os.fsencode(self.path)) > SUN_PATH_MAX:
            raise ControlError("socket", f"{self.path}: a socket's path has at most {SUN_PATH_MAX} bytes")
        try:
            with _starting(self.path.parent):
                if not is_hidden:
                    _refuse_live(self.path)
                listening = self._bind()
                if not is_hidden:
                    self.show()
        except OSError as error:
            raise ControlError("socket", f"{self.path}: {error.strerror or error}") from error
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(lambda: _Connection(self), sock=listening, backlog=128)

    def show(self) -> None:
        """Take the path, whoever had it: in one step, so that somebody answers there at any time. Raises OSError."""
        if self._hidden is not None:
            self._hidden.rename(self.path)
            self._hidden = None

    async def stop(self, *, is_left: bool = False) -> None:
        """Close the socket, remove its file (unless another daemon has put its own there), close all connections.

        `is_left`: another daemon is putting its own there, perhaps between our look and our unlink."""
        if self._server is None:
            return
        self._server.close()
        with contextlib.suppress(OSError):
            path = self._hidden or self.path
            found = path.lstat()
            if not is_left and (found.st_dev, found.st_ino) == self._inode:
                path.unlink()
        for connection in list(self.connections):
            connection.close()
        await self._server.wait_closed()
        self._server = None

    def counters(self) -> Figures:
        """For Box.counters(): every event of this socket, named."""
        return {f"control_{name}": (self.counts[name], f"Control socket: {text}") for name, text in COUNTERS.items()}

    def _bind(self) -> socket.socket:
        # Bound under another name and renamed: the socket never shows itself with the wrong mode or owner, and a dead
        # daemon's file is replaced in one step. ".new" is shorter than any socket name that would fit.
        new = self.path.parent / ".new"
        new.unlink(missing_ok=True)
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            listening.bind(os.fspath(new))
            if self._group_id is not None:
                os.chown(new, -1, self._group_id)
            new.chmod(0o660)
            listening.listen(128)
            found = new.stat()
        except OSError:
            listening.close()
            new.unlink(missing_ok=True)
            raise
        self._hidden = new
        self._inode = (found.st_dev, found.st_ino)
        self._group_id = found.st_gid
        return listening

    def peer_of(self, connected: socket.socket) -> Peer:
        pid, uid, gid = struct.unpack("3i", connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        may_change = uid in (0, os.geteuid())
        return Peer(
            pid, uid, gid, may_change or gid == self._group_id or self._group_id in _groups(connected), may_change
        )

    def admit(self, peer: Peer) -> ControlError | None:
        """Why a new connection is refused, if it is; counted."""
        self.counts["connections"] += 1
        if not peer.may_read:
            self.refuse("refused_peer", peer)
            return ControlError(
                "not-permitted", f"user {peer.uid} may not read here: join the group of the control socket"
            )
        n_free = self.limits.connections - len(self.connections)
        if n_free <= (0 if peer.may_change else self.limits.reserved):
            self.refuse("refused_busy", peer)
            return ControlError("busy", "too many control connections are open; try again")
        return None

    def refuse(self, name: str, peer: Peer) -> None:
        """Counts, and tells the log. A reader that is done and idle has done nothing wrong."""
        self.counts[name] += 1
        if name != "timed_out_idle":
            self.refused(COUNTERS[name], peer.uid)

    async def answer(self, request: Request, peer: Peer) -> bytes | Stream:
        """Carry out one well-formed request; the reply's line, or lines to come. Counts, and audits what would change
        something.
        """
        command = BY_NAME.get(request.command)
        if command is None or command.is_offline:
            self.refuse("refused_unknown", peer)
            return encode_error(ControlError("unknown-command", f"no command {request.command[:80]!r}"))
        try:
            arguments = check_arguments(command, request.arguments)
        except ControlError as error:
            self.refuse("refused_arguments", peer)
            return encode_error(error)
        if command.may_change and not peer.may_change:
            self.counts["refused_right"] += 1
            denial = ControlError(
                "not-permitted", f"{command.name}: only root and the daemon's own user may change things"
            )
            self._record_denial(command, arguments, peer, denial.message)
            return encode_error(denial)
        try:
            reply = await self._carry_out(command, arguments)
        except ControlError as error:
            self._record(command, arguments, peer, "failed" if error.kind == "internal" else "refused", error.message)
            return encode_error(error)
        self.counts["commands"] += 1
        if isinstance(reply, bytes):
            detail = "" if command.is_secret else reply[:200].decode().rstrip()
            self._record(command, arguments, peer, "done", detail)
        return reply

    async def _carry_out(self, command: Command, arguments: dict[str, Value | None]) -> bytes | Stream:
        try:
            result = getattr(self.box, command.box_method)(**parameters_of(command, arguments))
            if isawaitable(result):
                result = await result
            if hasattr(result, "__anext__"):
                return cast(Stream, result)
            return encode_result(result)
        except AcceleratorError as error:
            self.counts["refused_command"] += 1
            raise ControlError(error.kind, error.message) from error
        except Exception as error:
            # A fault of ours must not end the daemon, nor leave the peer without an answer, nor let it fill the log.
            self.counts["failed"] += 1
            fault = (command.name, type(error).__name__)
            if fault not in self._logged:
                self._logged.add(fault)
                _log.exception("control command %s failed; later %s of it are only counted", *fault)
            raise ControlError("internal", f"{command.name} failed: {fault[1]}") from error

    def _record(self, command: Command, arguments: Mapping[str, object], peer: Peer, outcome: str, detail: str) -> None:
        if not command.may_change:
            return
        arguments = dict(arguments)
        for argument in command.arguments:
            if argument.kind == "files":
                files = cast(Files, arguments.get(argument.name) or ())
                arguments[argument.name] = f"{len(files)} with {sum(len(text) for _, text in files)} characters"
        try:
            self.audit(AuditEntry(command.name, arguments, peer.uid, peer.pid, outcome, detail))
        except Exception:
            _log.exception("the audit log refused an entry")

    def _record_denial(self, command: Command, arguments: Mapping[str, object], peer: Peer, detail: str) -> None:
        """At most one entry a user in 10 s (reliability.md goal 22): a reader must not be able to fill the audit
        log.
        """
        now = asyncio.get_running_loop().time()
        if now - self._denied_at.get(peer.uid, -DENIAL_RECORDED_EACH_S) >= DENIAL_RECORDED_EACH_S:
            self._denied_at[peer.uid] = now
            self._record(command, arguments, peer, "refused", detail)


class _Connection(asyncio.Protocol):
    """One peer: collects lines, answers them one after another, and knows why it has to close."""

    def __init__(self, server: ControlServer) -> None:
        self._server = server
        self._limits = server.limits
        self._loop = asyncio.get_running_loop()
        self._received = bytearray()
        self._deadline: asyncio.TimerHandle | None = None
        self._answering: asyncio.Task[None] | None = None
        self._is_write_paused = False
        self._is_eof = False
        self._is_ending = False
        self._is_streaming = False
        self._can_write = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclass of asyncio.Transport, so the type can only be stated.
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=0)  # pause_writing() as soon as the peer has not taken an answer
        self._peer = self._server.peer_of(transport.get_extra_info("socket"))
        refusal = self._server.admit(self._peer)
        if refusal is not None:
            self._end_with(refusal)
            return
        self._server.connections.add(self)
        self._wait("timed_out_idle", self._limits.idle_s)

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.connections.discard(self)
        self._is_ending = True
        self._stop_waiting()
        if self._is_streaming and self._answering is not None:
            self._answering.cancel()

    def data_received(self, data: bytes) -> None:
        if self._is_ending or self._is_streaming:  # a stream has the connection to itself
            return
        was_empty = not self._received
        self._received += data
        if self._answering is not None or self._is_write_paused:
            # Bounded: this piece is looked at after the answer, and what comes meanwhile the kernel holds.
            self._transport.pause_reading()
        elif not self._take_line() and was_empty:
            # The line's deadline counts from its first byte: one byte a second does not prolong it.
            self._wait("timed_out_line", self._limits.line_s)

    def eof_received(self) -> bool:
        # A peer may shut down its sending side after its last request and still read the answers (`socat`, `nc -N`).
        self._is_eof = True
        return not self._is_ending and not self._is_streaming and (self._answering is not None or self._is_write_paused)

    def pause_writing(self) -> None:
        self._is_write_paused = True
        self._can_write.clear()
        self._wait("timed_out_reader", self._limits.read_answer_s)

    def resume_writing(self) -> None:
        self._is_write_paused = False
        self._can_write.set()
        if not self._is_ending:
            self._next()

    def close(self) -> None:
        self._is_ending = True
        self._stop_waiting()
        if self._answering is not None:
            self._answering.cancel()
        if self._is_write_paused:
            self._transport.abort()
        else:
            self._transport.close()

    def _take_line(self) -> bool:
        """Start to answer the first whole line, or refuse what can't become one. False: the line is not whole yet."""
        bytes_max = self._request_bytes_max()
        end = self._received.find(b"\n", 0, bytes_max + 1)
        if end < 0:
            if len(self._received) <= bytes_max:
                return False
            end = bytes_max + 1
        line = bytes(self._received[:end])
        del self._received[: end + 1]
        self._stop_waiting()
        try:
            request = parse_request(line, bytes_max)
        except ControlError as error:
            # After this nobody knows where the next request begins.
            self._server.refuse(f"refused_{error.kind}", self._peer)
            self._end_with(error)
            return True
        self._answering = self._loop.create_task(self._answer(request))
        return True

    def _request_bytes_max(self) -> int:
        """More than usual only for a command that needs it, from a peer that may give it."""
        if len(self._received) <= REQUEST_BYTES_MAX or not self._peer.may_change:
            return REQUEST_BYTES_MAX
        command = BY_NAME.get(command_of(bytes(self._received[:BEGINNING_BYTES])))
        return max(REQUEST_BYTES_MAX, command.request_bytes_max if command is not None else 0)

    async def _answer(self, request: Request) -> None:
        reply = await self._server.answer(request, self._peer)
        if not isinstance(reply, bytes):
            reply = await self._stream(reply)
        self._answering = None
        if self._is_ending or self._transport.is_closing():
            return
        self._transport.write(reply)
        if not self._is_write_paused:
            self._next()

    async def _stream(self, stream: Stream) -> bytes:
        """Push a line for each value. Ends with the peer, or with the error that is returned; the connection with it.

        A peer that has said its last word already can't be seen to leave, so it is given nothing."""
        self._is_streaming = True
        self._received.clear()
        self._transport.resume_reading()
        try:
            if self._is_eof:
                raise ControlError("syntax", "a connection that is followed on must stay open both ways")
            self._transport.write(encode_result({"following": True}))
            async for value in stream:
                self._transport.write(encode_result(value))
                if self._is_write_paused:
                    await self._can_write.wait()
        except ControlError as error:
            self._server.counts["streams_dropped"] += 1
            return encode_error(error)
        finally:
            stream.close()
            self._is_eof = True  # nothing is asked any more on this connection
        return b""

    def _next(self) -> None:
        """After an answer was sent: the line that already waits, or wait for one. A task per line, so other work gets
        its turn.
        """
        self._stop_waiting()
        if self._answering is not None or self._take_line():
            return
        if self._is_eof:
            self._is_ending = True
            self._transport.close()
            return
        self._transport.resume_reading()
        if self._received:
            self._wait("timed_out_line", self._limits.line_s)
        else:
            self._wait("timed_out_idle", self._limits.idle_s)

    def _end_with(self, error: ControlError) -> None:
        self._is_ending = True
        self._transport.write(encode_error(error))
        self._transport.close()
        self._wait("timed_out_reader", self._limits.read_answer_s)

    def _wait(self, reason: str, seconds: float) -> None:
        self._stop_waiting()
        self._deadline = self._loop.call_later(seconds, self._expired, reason)

    def _stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _expired(self, reason: str) -> None:
        self._deadline = None
        self._server.refuse(reason, self._peer)
        if reason == "timed_out_reader":
            self._is_ending = True
            self._transport.abort()
        else:
            self._end_with(ControlError("timed-out", COUNTERS[reason].partition(", ")[2]))


def _groups(connected: socket.socket) -> tuple[int, ...]:
    """The peer's supplementary groups; empty above 256 of them, which is as much as Python's getsockopt can fetch."""
    try:
        packed = connected.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, 1024)
    except OSError:
        return ()
    return struct.unpack(f"{len(packed) // 4}I", packed)


@contextlib.contextmanager
def _starting(directory: Path) -> Iterator[None]:
    """Only one daemon at a time may look for a live socket and put its own there. The lock dies with its process."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise ControlError("in-use", f"{directory}: another daemon is starting there") from error
    finally:
        os.close(fd)


def _refuse_live(path: Path) -> None:
    """Return where there is nothing, or a dead daemon's socket. Raises ControlError("in-use") otherwise."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ControlError("in-use", f"{path}: this is no socket; it is left alone")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            return
        except BlockingIOError:
            pass  # its queue is full: a daemon lives, however busy or stopped
    raise ControlError("in-use", f"{path}: a daemon is already running there")
