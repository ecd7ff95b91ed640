"""Listening sockets: opened as the workers want them, refusing once they are left. Whose they are isn't known here."""

from __future__ import annotations

import contextlib
import socket

BACKLOG = 4096


def open_listener(host: str, port: int) -> socket.socket:
    """A listening, non-blocking socket that all workers share. Raises OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Accepted sockets inherit it on Linux: one system call here instead of one per connection.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((host, port))
        sock.listen(BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock


def refuse(listening: socket.socket) -> None:
    """Linux ends listening on shutdown: the port refuses, its address is free, the descriptor stays ours."""
    with contextlib.suppress(OSError):
        listening.shutdown(socket.SHUT_RDWR)
