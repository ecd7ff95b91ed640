"""The control socket's client: one blocking call after another. Standard library only, and only what starts fast."""

from __future__ import annotations

import json
import socket
import struct
import time
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any

from accelerator.errors import ControlError

NO_DAEMON = 3
# A page of `cache ls` with 10,000 URLs of 8 KiB: nothing that the server sends is larger.
_REPLY_BYTES_MAX = 128 * 1024 * 1024


class ControlClient:
    """A connection to a daemon, for one thread. `timeout_s` bounds each call in all.

    Raises ControlError: exit_code 3 where no daemon answers, 2 where it calls the request wrong, 1 where it refuses.
    """

    def __init__(self, path: str, *, timeout_s: float = 30.0) -> None:
        self._path = path
        self._timeout_s = timeout_s
        self._received = b""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            # With a timeout of Python's the socket would not block, and connect() would fail at once on a full queue;
            # the kernel's own makes it wait for its turn.
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", max(1, int(timeout_s)), 0))
            self._socket.connect(path)
        except OSError as error:
            self._socket.close()
            raise _unreachable(path, error) from error

    def call(self, command: str, arguments: Mapping[str, object] | None = None) -> dict[str, Any]:
        """The command's result."""
        request = json.dumps({"command": command, "args": dict(arguments or {})}).encode() + b"\n"
        deadline = time.monotonic() + self._timeout_s
        try:
            self._socket.settimeout(self._timeout_s)
            self._socket.sendall(request)
        except TimeoutError as error:
            raise self._silent() from error
        except OSError:
            pass  # It closed on us: perhaps it has said why.
        return self._result(self._line(deadline))

    def stream(self, command: str, arguments: Mapping[str, object] | None = None) -> Iterator[dict[str, Any]]:
        """The values of a command that goes on answering, however long the next takes; the connection is used up."""
        self.call(command, arguments)
        while True:
            yield self._result(self._line(None))

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> ControlClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _line(self, deadline: float | None) -> bytes:
        pieces = [self._received]
        n_bytes = len(self._received)
        while b"\n" not in pieces[-1]:
            try:
                self._socket.settimeout(None if deadline is None else max(0.001, deadline - time.monotonic()))
                piece = self._socket.recv(1 << 18)
            except TimeoutError as error:
                raise self._silent() from error
            except OSError:
                piece = b""
            if not piece:
                raise ControlError(
                    "no-daemon", f"{self._path}: the daemon closed without an answer", exit_code=NO_DAEMON
                )
            pieces.append(piece)
            n_bytes += len(piece)
            if n_bytes > _REPLY_BYTES_MAX:
                raise ControlError("protocol", f"{self._path}: the answer does not end")
        line, _, self._received = b"".join(pieces).partition(b"\n")
        return line

    def _result(self, line: bytes) -> dict[str, Any]:
        try:
            reply = json.loads(line)
            if reply["ok"] is True and isinstance(reply["result"], dict):
                return reply["result"]
            kind, message = reply["error"]["kind"], reply["error"]["message"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ControlError("protocol", f"{self._path}: the answer is not one of a video accelerator") from error
        raise ControlError(str(kind), str(message), exit_code=2 if kind == "arguments" else 1)

    def _silent(self) -> ControlError:
        return ControlError("no-daemon", f"{self._path}: no answer within {self._timeout_s:g} s", exit_code=NO_DAEMON)


def _unreachable(path: str, error: OSError) -> ControlError:
    if isinstance(error, PermissionError):
        return ControlError("not-permitted", f"{path}: permission denied; join the group of the control socket")
    if isinstance(error, BlockingIOError):
        return ControlError("no-daemon", f"{path}: the daemon does not accept connections", exit_code=NO_DAEMON)
    reason = error.strerror or str(error)
    return ControlError("no-daemon", f"no daemon on {path}: {reason}", exit_code=NO_DAEMON)
