"""The data plane alone, for profiling: one edge worker that answers from objects stored at the start. No control plane.

    plane_box.py PORT PATH…        GET PATH has the bytes that benchmarks/origin.py gives it

SEND_BUFFER_BYTES and NOTSENT_LOWAT_BYTES of the environment are tried instead of what the daemon sets (loops.py).
The figures that count come from the daemon; this shows how much of them is the worker's.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from origin import TYPES, body_of
from servers import SEND_BUFFER_BYTES

from ext import layout
from ext.plane import Plane

SITE, ROOT_PATH = b"bench", b"/"
HTTP2_CLEARTEXT = 2
HOUR_NS = 3600 * 10**9
HEALTH_PATH = "/.well-known/accelerator/health"


def rows(dtype: np.dtype, *values: tuple[int, ...]) -> np.ndarray:
    return np.array(list(values), dtype=dtype)


def publish(plane: Plane) -> None:
    """One origin (row 1; row 0 is the box's own) for every host and path."""
    limits = np.zeros(1, dtype=layout.LIMITS_DTYPE)
    for name in ("head_timeout_ns", "idle_timeout_ns", "send_window_ns"):
        limits[name] = HOUR_NS
    limits["connections"] = limits["connections_per_address"] = 65536
    origins = np.zeros(2, dtype=layout.ORIGIN_DTYPE)
    origins["is_used"], origins["methods"], origins["wait_ns"] = 1, 0b1110, HOUR_NS
    plane.publish(
        SITE + ROOT_PATH, (0, len(SITE)),
        rows(layout.HOST_DTYPE, (0, 0, 0, 1, 2)), rows(layout.PATH_DTYPE, (len(SITE), 1, 1, 0)),
        origins, rows(layout.NET_DTYPE),
        rows(layout.LISTENER_DTYPE, (0, 1, HTTP2_CLEARTEXT)), rows(layout.STRING_DTYPE), limits,
    )  # fmt: skip


def store(plane: Plane, origin: int, path: str, body: bytes) -> None:
    now_ns = time.monotonic_ns()
    content_type = TYPES.get(path.rpartition(".")[2], "text/plain")
    lines = (
        f"Server: origin\r\nDate: Sun, 06 Nov 2022 08:49:37 GMT\r\nContent-Type: {content_type}\r\n"
        "Last-Modified: Sun, 06 Nov 2022 08:49:37 GMT\r\nETag: \"63677311-a8c\"\r\nCache-Control: max-age=86400\r\n"
        "Accept-Ranges: bytes\r\n"
    ).encode()
    stored = plane.create(
        origin, len(body), 200, b"HTTP/1.1 200 OK\r\n", lines, b"", b'"63677311-a8c"', -1, now_ns + 24 * HOUR_NS, 0, 0,
        now_ns, 0, False, True,
    )  # fmt: skip
    offset = 0
    while offset < len(body):
        room = stored.room(offset, len(body) - offset)
        n = len(room)
        room[:] = body[offset : offset + n]
        stored.commit(offset, n)
        offset += n
    stored.finish(len(body))
    if not stored.insert(path.encode(), b"", b""):
        raise MemoryError(path)


def main() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    plane = Plane(1, 512 << 20)
    publish(plane)
    store(plane, 0, HEALTH_PATH, b"ok\n")
    for path in sys.argv[2:]:
        store(plane, 1, path, body_of(path))
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if send_buffer_bytes := int(os.environ.get("SEND_BUFFER_BYTES", SEND_BUFFER_BYTES)):
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer_bytes)
        if lowat_bytes := int(os.environ.get("NOTSENT_LOWAT_BYTES", "0")):
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, lowat_bytes)
        listener.bind(("127.0.0.1", int(sys.argv[1])))
        listener.listen(4096)
        listener.setblocking(False)
        plane.start()
        plane.listen(listener.fileno(), 0)
        signal.sigwait({signal.SIGTERM, signal.SIGINT})
        plane.close()


if __name__ == "__main__":
    main()
