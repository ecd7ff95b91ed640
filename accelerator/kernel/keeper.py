"""Holds duplicates of netd's multicast-routing sockets, so that routes outlive netd: the kernel deletes them with the
last one. Parses nothing, decides nothing, needs no capability; it must be so small that it needs no restart.

    python -m accelerator.kernel.keeper SOCKET SECONDS

Who connects gets what is kept, in one message: a byte for each slot, and the descriptors. Each byte it then sends is
a slot, to keep the descriptor that comes along, or to close what is kept there. Without a connection for SECONDS the
keeper ends, and the routes with it. `Kept` is netd's end."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import struct
import subprocess
import sys
from pathlib import Path

SLOTS = b"46"
ALONE_S = 300.0
_ANSWER_S = 2.0


def serve(path: str, alone_s: float) -> None:
    """Runs until nobody has been connected for `alone_s` seconds."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    previous = os.umask(0o177)
    listener.bind(path)
    os.umask(previous)
    listener.listen(4)
    kept: dict[int, int] = {}
    client: socket.socket | None = None
    while True:
        waiting = [listener] if client is None else [listener, client]
        ready = select.select(waiting, [], [], alone_s if client is None else None)[0]
        if not ready:
            # Who has come to this very path since is another keeper's.
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            return
        if client is not None and client in ready:
            # First what it has said: a netd that is killed may have just given a socket.
            client = _take(client, kept)
        else:
            newer = listener.accept()[0]
            if _peer(newer) != os.geteuid():
                newer.close()
                continue
            if client is not None:
                client.close()
            client = newer
            with contextlib.suppress(OSError):
                socket.send_fds(client, [bytes(kept) or b"-"], list(kept.values()))


def _take(client: socket.socket, kept: dict[int, int]) -> socket.socket | None:
    """One message; None: the client has gone."""
    try:
        data, descriptors, _, _ = socket.recv_fds(client, 1, 1)
    except OSError:
        data, descriptors = b"", []
    if not data:
        client.close()
        return None
    if data in (SLOTS[:1], SLOTS[1:]):
        old = kept.pop(data[0], None)
        if old is not None:
            os.close(old)
        if descriptors:
            kept[data[0]] = descriptors.pop()
    for descriptor in descriptors:
        os.close(descriptor)
    return client


def _peer(connection: socket.socket) -> int:
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return int(struct.unpack("3i", credentials)[1])


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
        command = [sys.executable, "-m", "accelerator.kernel.keeper", str(path), str(alone_s)]
        self._process = subprocess.Popen(command, start_new_session=True, stdin=subprocess.DEVNULL, close_fds=True)
        while not self._connect():
            if self._process.poll() is not None:
                raise RuntimeError("the keeper process ended at its start")
            select.select([], [], [], 0.01)

    def fileno(self) -> int:
        """Readable when the keeper has ended: it says nothing else."""
        assert self._socket is not None
        return self._socket.fileno()

    def keep(self, slot: int, descriptor: int) -> None:
        """A duplicate of it from now on, here too: should the keeper be ended, there is one to give to the next."""
        assert self._socket is not None
        socket.send_fds(self._socket, [bytes([slot])], [descriptor])
        self.descriptors[slot] = os.dup(descriptor)

    def drop(self, slot: int) -> None:
        """OSError: the keeper has ended."""
        assert self._socket is not None
        kept = self.descriptors.pop(slot, None)
        if kept is not None:
            os.close(kept)
        self._socket.send(bytes([slot]))

    def close(self) -> None:
        """The connection, not what is kept."""
        assert self._socket is not None
        self._socket.close()

    def _connect(self) -> bool:
        """Whether a keeper is there and has said what it keeps: one that is being ended may take a connection, and
        never answer."""
        made = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        made.settimeout(_ANSWER_S)
        try:
            made.connect(str(self._path))
            data, descriptors, _, _ = socket.recv_fds(made, len(SLOTS), len(SLOTS))
        except OSError:
            data, descriptors = b"", []
        if not data:
            made.close()
            return False
        self._socket = made
        self.descriptors = dict(zip(data, descriptors, strict=False))
        return True


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    serve(sys.argv[1], float(sys.argv[2]))
