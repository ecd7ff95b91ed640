"""Carries a tunnel's bytes between an origin's TLS and a worker, which has the other end of a pair of local sockets.

Memory is bounded: who can't be written to stops the reading on the other side. Knows no protocol inside the tunnel.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import cast

from accelerator.io.switch import Switch

# Of each side's transport, besides one read of the other side's.
BUFFER_BYTES = 65536
# Of each end of the pair; the kernel doubles the number.
PAIR_BYTES = 32768
# TLS has no half close (asyncio closes both ways): who ended his side has so long to hear the answer.
HALF_CLOSE_S = 5.0
_KEEPALIVE = ((socket.TCP_KEEPIDLE, 60), (socket.TCP_KEEPINTVL, 15), (socket.TCP_KEEPCNT, 4))


class _Side(asyncio.Protocol):
    """One side of a relay: what it receives goes to `other`."""

    def __init__(self, lost: Callable[[_Side, Exception | None], None]) -> None:
        self.other: _Side
        self.transport: asyncio.Transport | None = None
        self.is_full = False
        self._lost = lost

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(high=BUFFER_BYTES)

    def data_received(self, data: bytes) -> None:
        if self.other.transport is not None:
            self.other.transport.write(data)

    def pause_writing(self) -> None:
        self.is_full = True
        if self.other.transport is not None:
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        self.is_full = False
        if self.other.transport is not None and not self.other.transport.is_closing():
            self.other.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        self._lost(self, exc)


class _WorkerSide(_Side):
    """The worker's: may end its half alone."""

    def __init__(self, loop: asyncio.AbstractEventLoop, lost: Callable[[_Side, Exception | None], None]) -> None:
        super().__init__(lost)
        self._loop = loop

    def eof_received(self) -> bool:
        self._loop.call_later(HALF_CLOSE_S, self._end)
        return True

    def _end(self) -> None:
        if self.other.transport is not None:
            self.other.transport.close()


class TlsRelay:
    """One tunnel. `over(relay)` is called once, when both sides are gone."""

    def __init__(self, loop: asyncio.AbstractEventLoop, over: Callable[[TlsRelay], None]) -> None:
        self._loop = loop
        self._over = over
        self._origin = _Side(self._lost)
        self._worker = _WorkerSide(loop, self._lost)
        self._origin.other, self._worker.other = self._worker, self._origin
        self._task: asyncio.Task[None] | None = None
        self._is_over = False

    def begin(self, connection: Switch) -> int:
        """The worker's descriptor, which is the caller's; what comes from the origin waits until it is read."""
        ours, theirs = socket.socketpair()
        for end in (ours, theirs):
            end.setblocking(False)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, PAIR_BYTES)
        transport = connection.take_transport(self._origin)
        self._origin.connection_made(transport)
        transport.pause_reading()
        watched = transport.get_extra_info("socket")
        watched.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _KEEPALIVE:
            watched.setsockopt(socket.IPPROTO_TCP, option, value)
        self._task = self._loop.create_task(self._join(ours))
        return theirs.detach()

    def abort(self) -> None:
        """Ends it at once."""
        for side in (self._origin, self._worker):
            if side.transport is not None:
                side.transport.abort()

    async def _join(self, ours: socket.socket) -> None:
        try:
            await self._loop.create_unix_connection(lambda: self._worker, sock=ours)
        except OSError:
            ours.close()
            self.abort()
            return
        self._task = None
        origin = self._origin.transport
        if origin is None:
            self.abort()
        elif not self._worker.is_full and not origin.is_closing():
            origin.resume_reading()

    def _lost(self, side: _Side, exc: Exception | None) -> None:
        other = side.other.transport
        if other is not None:
            # What was received before the end still goes out.
            other.close()
        elif self._task is None and not self._is_over:
            self._is_over = True
            self._over(self)
