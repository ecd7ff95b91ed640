"""Opens upstream connections: checked addresses in turn, TCP, then TLS. Knows neither pool nor requests."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from typing import TypeVar

from accelerator.errors import OriginError
from accelerator.io.connection import Connection
from accelerator.io.origin import OriginCounters, OriginSettings, Upstream
from accelerator.io.resolve import Address, Resolver
from accelerator.io.tls import client_context

_TLS_CLOSE_S = 2.0  # asyncio waits 30 s for a peer's close_notify, which no pool needs

CallT = TypeVar("CallT")


class Dialler:
    """Opens connections under one origin's settings."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, settings: OriginSettings, resolver: Resolver, counters: OriginCounters
    ) -> None:
        self._loop = loop
        self._settings = settings
        self._resolver = resolver
        self._counters = counters
        self._tls_context: ssl.SSLContext | None = None

    async def connect(
        self, upstream: Upstream, make: Callable[[socket.socket], Connection[CallT]]
    ) -> Connection[CallT]:
        """A connection to the first of its addresses that takes one. Raises OriginError, that of the last address."""
        settings = self._settings
        try:
            addresses = await self._resolver.addresses(
                upstream.host,
                upstream.port,
                pins=settings.resolve,
                own_listeners=settings.own_listeners,
                timeout_s=settings.connect_timeout_s,
            )
        except OriginError as error:
            self._counters.connect_failures += 1
            self._counters.addresses_refused += error.kind == "forbidden-address"
            raise
        failure = OriginError("dns", f"{upstream}: no address")
        for address in addresses:
            try:
                return await self._connect_to(upstream, address, make)
            except OriginError as error:
                self._counters.connect_failures += 1
                self._counters.timeouts += error.kind == "connect-timeout"
                failure = error
        raise failure

    async def _connect_to(
        self, upstream: Upstream, address: Address, make: Callable[[socket.socket], Connection[CallT]]
    ) -> Connection[CallT]:
        where = f"{upstream} ({address.ip})"
        timeout_s = self._settings.connect_timeout_s
        tls: ssl.SSLContext | None = None
        if upstream.is_tls:
            if self._tls_context is None:
                self._tls_context = client_context(self._settings.ca_file)
            tls = self._tls_context
        try:
            sock = socket.socket(address.family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        except OSError as exc:
            raise _connect_error(where, exc) from exc
        connection = make(sock)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            async with asyncio.timeout(timeout_s):
                # The socket is ours so that nothing between the check and connect() can look the name up again.
                await self._loop.sock_connect(sock, (address.ip, address.port))
                await self._loop.create_connection(
                    lambda: connection,
                    sock=sock,
                    ssl=tls,
                    server_hostname=upstream.host if tls else None,
                    ssl_handshake_timeout=timeout_s + 1 if tls else None,
                    ssl_shutdown_timeout=_TLS_CLOSE_S if tls else None,
                )
        except BaseException as exc:
            connection.abandon()
            sock.close()
            if isinstance(exc, Exception):
                raise _connect_error(where, exc) from exc
            raise
        if not connection.is_open:
            raise OriginError("closed", f"{where}: closed at once", can_retry=True)
        self._counters.connections_opened += 1
        return connection


def _connect_error(where: str, exc: Exception) -> OriginError:
    if isinstance(exc, OriginError):
        return exc
    message = f"{where}: {exc or type(exc).__name__}"
    if isinstance(exc, TimeoutError):
        return OriginError("connect-timeout", f"{where}: no connection in time", status=504, can_retry=True)
    if isinstance(exc, ssl.SSLError):
        return OriginError("tls", message)
    if isinstance(exc, ConnectionRefusedError):
        return OriginError("refused", message, can_retry=True)
    if isinstance(exc, ConnectionError):
        return OriginError("reset", message, can_retry=True)
    return OriginError("unreachable", message, can_retry=True)
