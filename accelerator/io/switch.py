"""A connection whose origin has changed to another protocol, on its way to who takes it. Reads and writes nothing."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable


class Switch:
    """One of `take_socket` and `take_transport`, once. `given_away()`: the transport isn't ours any more."""

    def __init__(
        self, sock: socket.socket, transport: asyncio.Transport, given_away: Callable[[], None], *, is_tls: bool
    ) -> None:
        self._sock = sock
        self._transport = transport
        self._given_away = given_away
        self._is_tls = is_tls

    def take_socket(self) -> socket.socket | None:
        """The connected, non-blocking socket; None: TLS lies over it. Raises OSError without a free descriptor."""
        if self._is_tls:
            return None
        taken = self._sock.dup()
        taken.setblocking(False)
        # Closing ours leaves the connection open as long as the other descriptor is.
        self._transport.abort()
        return taken

    def take_transport(self, protocol: asyncio.Protocol) -> asyncio.Transport:
        """The transport, whose next bytes `protocol` gets."""
        self._transport.set_protocol(protocol)
        self._given_away()
        return self._transport
