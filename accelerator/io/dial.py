"""Opens upstream connections: checked addresses raced, TCP, the parent proxy's tunnel, TLS. Knows no pool or requests.

Addresses start 250 ms apart, the families in turn (RFC 8305 sections 4 and 5), and the first that connects wins; one
whose tunnel or TLS then fails leaves the field to the others. One time-out is over all of it.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from typing import TypeVar

from accelerator.errors import OriginError
from accelerator.io.connection import Connection
from accelerator.io.origin import OriginCounters, OriginSettings, ParentProxy, Upstream
from accelerator.io.pacing import Lane
from accelerator.io.request import build_connect
from accelerator.io.resolve import Address, Resolver
from accelerator.io.response import ParseResponse
from accelerator.io.tls import client_context
from accelerator.io.tunnel import TunnelReply

STAGGER_S = 0.25  # RFC 8305 section 5
_TLS_CLOSE_S = 2.0  # asyncio waits 30 s for a peer's close_notify, which no pool needs

CallT = TypeVar("CallT")


class Dialler:
    """Opens connections under one origin's settings."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        settings: OriginSettings,
        resolver: Resolver,
        counters: OriginCounters,
        parse_response: ParseResponse,
        head_error: type[Exception],
    ) -> None:
        self._loop = loop
        self._settings = settings
        self._resolver = resolver
        self._counters = counters
        self._parse_response = parse_response
        self._head_error = head_error
        self._tls_context: ssl.SSLContext | None = None

    async def connect(
        self,
        upstream: Upstream,
        make: Callable[[socket.socket], Connection[CallT]],
        *,
        by_tunnel: bool = False,
        lane: Lane | None = None,
    ) -> Connection[CallT]:
        """A connection to one of its addresses (with `via`: of the proxy's). Raises OriginError, the last address's.

        `by_tunnel`: a proxy is asked for a tunnel also where the upstream is plain HTTP. `lane`: what its
        socket is made for.
        """
        settings = self._settings
        first_hop = settings.via or upstream
        try:
            addresses = await self._resolver.addresses(
                first_hop.host,
                first_hop.port,
                pins=settings.resolve,
                own_listeners=settings.own_listeners,
                timeout_s=settings.connect_timeout_s,
                grace_s=settings.resolve_grace_s,
            )
        except OriginError as error:
            self._counters.connect_failures += 1
            self._counters.addresses_refused += error.kind == "forbidden-address"
            raise
        left = list(addresses)
        failure = OriginError("dns", f"{upstream}: no address")
        try:
            async with asyncio.timeout(settings.connect_timeout_s):
                while left:
                    try:
                        sock, address = await self._race(upstream, left, lane or Lane())
                        return await self._establish(upstream, sock, address, make, by_tunnel)
                    except OriginError as error:
                        failure = error
        except TimeoutError as exc:
            self._counters.connect_failures += 1
            self._counters.timeouts += 1
            where = self._where(upstream, *addresses)
            message = f"{where}: no connection in time"
            raise OriginError("connect-timeout", message, status=504, can_retry=True) from exc
        raise failure

    # -- TCP ---------------------------------------------------------------------------------------------------------

    async def _race(
        self, upstream: Upstream, left: list[Address], lane: Lane
    ) -> tuple[socket.socket, Address]:
        """The first to connect; `left` then has those that did not fail. Raises OriginError when all have."""
        attempts: dict[asyncio.Task[socket.socket], Address] = {}
        failure: OriginError | None = None
        try:
            while left or attempts:
                if left:
                    address = left.pop(0)
                    attempts[self._loop.create_task(self._reach(address, lane))] = address
                stagger_s = STAGGER_S if left else None
                done, _ = await asyncio.wait(attempts, timeout=stagger_s, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    address = attempts[task]
                    error = task.exception()
                    if error is None:
                        del attempts[task]
                        return task.result(), address
                    del attempts[task]
                    if not isinstance(error, OSError):
                        raise error
                    self._counters.connect_failures += 1
                    failure = _connect_error(self._where(upstream, address), error)
        finally:
            await self._call_off(attempts)
            left.extend(attempts.values())
        assert failure is not None
        raise failure

    async def _reach(self, address: Address, lane: Lane) -> socket.socket:
        # The socket is ours so that nothing between the check and connect() can look the name up again.
        sock = socket.socket(address.family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            lane.prepare(sock)
            await self._loop.sock_connect(sock, (address.ip, address.port))
        except BaseException:
            sock.close()
            raise
        return sock

    @staticmethod
    async def _call_off(attempts: dict[asyncio.Task[socket.socket], Address]) -> None:
        for task in attempts:
            task.cancel()
        for outcome in await asyncio.gather(*attempts, return_exceptions=True):
            if isinstance(outcome, socket.socket):
                outcome.close()

    # -- what goes over it -------------------------------------------------------------------------------------------

    async def _establish(
        self,
        upstream: Upstream,
        sock: socket.socket,
        address: Address,
        make: Callable[[socket.socket], Connection[CallT]],
        by_tunnel: bool,
    ) -> Connection[CallT]:
        where = self._where(upstream, address)
        connection = make(sock)
        try:
            tls = self._context() if upstream.is_tls else None
            if self._settings.via is not None and (tls is not None or by_tunnel):
                await self._open_tunnel(upstream, self._settings.via, sock)
            await self._loop.create_connection(
                lambda: connection,
                sock=sock,
                ssl=tls,
                server_hostname=upstream.host if tls else None,
                # Later than the time-out over all of it.
                ssl_handshake_timeout=self._settings.connect_timeout_s + 1 if tls else None,
                ssl_shutdown_timeout=_TLS_CLOSE_S if tls else None,
            )
            if not connection.is_open:
                raise OriginError("closed", "closed at once", can_retry=True)
        except BaseException as exc:
            connection.abandon()
            sock.close()
            if not isinstance(exc, Exception):
                raise
            self._counters.connect_failures += 1
            raise _connect_error(where, exc) from exc
        self._counters.connections_opened += 1
        return connection

    def _context(self) -> ssl.SSLContext:
        if self._tls_context is None:
            self._tls_context = client_context(self._settings.ca_file, self._settings.client_certificate)
        return self._tls_context

    async def _open_tunnel(self, upstream: Upstream, proxy: ParentProxy, sock: socket.socket) -> None:
        await self._loop.sock_sendall(sock, build_connect(upstream, proxy))
        reply = TunnelReply(proxy, self._parse_response, self._head_error)
        is_open = False
        while not is_open:
            is_open = reply.received(await self._loop.sock_recv_into(sock, reply.buffer()))

    def _where(self, upstream: Upstream, *addresses: Address) -> str:
        ips = ", ".join(address.ip for address in addresses)
        return f"{upstream} ({ips})" if self._settings.via is None else f"{upstream} by {self._settings.via} ({ips})"


def _connect_error(where: str, exc: Exception) -> OriginError:
    if isinstance(exc, OriginError):
        return OriginError(exc.kind, f"{where}: {exc.message}", status=exc.status, can_retry=exc.can_retry)
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
