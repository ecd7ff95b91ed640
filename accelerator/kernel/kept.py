"""netd's end of the keeper (keeper.py): finds or starts it, gives it the sockets whose routes shall outlive netd, and
has what an earlier netd gave."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import subprocess
import time
from pathlib import Path

from accelerator.kernel.keeper import ALONE_S, SLOTS, is_equal
from accelerator.kernel.own_process import command_of

_ANSWER_S, _START_S = 2.0, 10.0


class Kept:
    """netd's end: a connection that is held for as long as netd runs."""

    def __init__(self, path: Path, alone_s: float = ALONE_S) -> None:
        """Finds the keeper of this path or starts one, in a session of its own: what kills netd's group spares it."""
        self._path = path
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self.descriptors: dict[int, int] = {}
        if self._connect():
            return
        # Who listens there and isn't a keeper is put aside by it.
        command = command_of("accelerator.kernel.keeper", str(path), str(alone_s))
        self._process = subprocess.Popen(command, start_new_session=True, stdin=subprocess.DEVNULL, close_fds=True)
        end_s = time.monotonic() + _START_S
        while not self._connect():
            if self._process.poll() is not None:
                raise RuntimeError("the keeper process ended at its start")
            if time.monotonic() > end_s:
                self._process.kill()
                raise RuntimeError("the keeper process doesn't answer")
            select.select([], [], [], 0.01)

    def fileno(self) -> int:
        """Readable when the keeper has ended: it says nothing else."""
        assert self._socket is not None
        return self._socket.fileno()

    def keep(self, slot: int, descriptor: int) -> None:
        """A duplicate of it from now on, here too: should the keeper be ended, there is one to give to the next."""
        assert self._socket is not None
        old = self.descriptors.pop(slot, None)
        if old is not None:
            os.close(old)
        self.descriptors[slot] = os.dup(descriptor)
        with contextlib.suppress(OSError):  # it has ended: the next one gets this with the others
            socket.send_fds(self._socket, [bytes([slot])], [descriptor])

    def drop(self, slot: int) -> None:
        assert self._socket is not None
        kept = self.descriptors.pop(slot, None)
        if kept is not None:
            os.close(kept)
        with contextlib.suppress(OSError):
            self._socket.send(bytes([slot]))

    def close(self) -> None:
        """The connection, not what is kept."""
        assert self._socket is not None
        self._socket.close()

    def _connect(self) -> bool:
        """Whether a keeper is there and has said what it keeps: one that is being ended may take a connection, and
        never answer; and what isn't one must not get our sockets."""
        made = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        made.settimeout(_ANSWER_S)
        try:
            made.connect(str(self._path))
            if not is_equal(made):
                made.close()
                return False
            data, descriptors, _, _ = socket.recv_fds(made, len(SLOTS), len(SLOTS))
        except OSError:
            data, descriptors = b"", []
        if not data:
            made.close()
            return False
        self._socket = made
        self.descriptors = dict(zip(data, descriptors, strict=False))
        return True
