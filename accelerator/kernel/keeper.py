"""Holds duplicates of netd's multicast-routing sockets, so that routes outlive netd: the kernel deletes them with the
last one. Parses nothing that is said, decides nothing; it must be so small that it needs no restart. It does nothing
with the capabilities that it has from netd, but shows who may have what is kept: who has them too.

    python -m accelerator.kernel.keeper SOCKET SECONDS

Who connects gets what is kept, in one message: a byte for each slot, and the descriptors. Each byte it then sends is
a slot, to keep the descriptor that comes along, or to close what is kept there. Without a connection for SECONDS the
keeper ends, and the routes with it. netd's end is kept.py."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import struct
import sys

SLOTS = b"46"
ALONE_S = 300.0
_NETWORK = 1 << 12 | 1 << 13  # CAP_NET_ADMIN, CAP_NET_RAW


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
            if not is_equal(newer):
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


def is_equal(connection: socket.socket) -> bool:
    """Whether the other end has our user and our network capabilities: what is kept is as good as those, and
    acceleratord, which has none, is of the same user."""
    pid, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    try:
        return uid == os.geteuid() and not _capabilities("self") & ~_capabilities(f"{pid}")
    except (OSError, ValueError):
        return False  # gone, or not ours to see


def _capabilities(pid: str) -> int:
    with open(f"/proc/{pid}/status", "rb") as file:
        line = next(each for each in file if each.startswith(b"CapEff:"))
    return int(line[7:], 16) & _NETWORK


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    serve(sys.argv[1], float(sys.argv[2]))
