"""CONNECT of viewers who use the box as their proxy: checked against the policy's list, connected, and the socket given
to the worker, which passes bytes on unread. Nothing of it is stored; only how many bytes it had is known.

The addresses are checked as an origin's are: a name never leads to this box or its link (io/resolve.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterable
from ipaddress import ip_address
from typing import TYPE_CHECKING

from accelerator.errors import OriginError
from accelerator.io.origin import OriginCounters
from accelerator.io.resolve import Address, Resolver

if TYPE_CHECKING:
    from accelerator.dataplane import Exchange
    from accelerator.services.fetch.ledger import Ledger
    from accelerator.services.fetch.tunnels import Tunnels

TIMEOUT_S = 10.0
IDLE_S = 900.0
GRACE_S = 3600.0
OPEN_MAX = 10_000
_ESTABLISHED = b"HTTP/1.1 200 Connection established\r\n\r\n"


class Connects:
    """One per box. `allow` takes a policy's list over; tunnels that are open stay."""

    def __init__(self, ledger: Ledger, tunnels: Tunnels) -> None:
        self._plane = ledger.dataplane.plane
        self._loop = ledger.loop
        self._tunnels = tunnels
        self._allowed: frozenset[tuple[str, int]] = frozenset()
        self._own_listeners: frozenset[tuple[str, int]] = frozenset()
        self._resolver = Resolver(ledger.loop, OriginCounters())
        self._tasks: set[asyncio.Task[None]] = set()

    def allow(self, targets: Iterable[tuple[str, int]], own_listeners: frozenset[tuple[str, int]]) -> None:
        self._allowed = frozenset(targets)
        self._own_listeners = own_listeners

    def ask(self, exchange: Exchange) -> None:
        """Answers it, soon: the tunnel, 501 where policy allows none, 502 and 504 where none can be had."""
        target = parse_authority(exchange.key)
        if target is None or target not in self._allowed:
            exchange.refuse(501)
            return
        if self._tunnels.n_open(0) + len(self._tasks) >= OPEN_MAX or not self._tunnels.has_descriptors():
            self._plane.count("tunnels_refused")
            exchange.refuse(503)
            return
        task = self._loop.create_task(self._connect(exchange, *target))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(self, exchange: Exchange, host: str, port: int) -> None:
        try:
            async with asyncio.timeout(TIMEOUT_S):
                addresses = await self._resolver.addresses(
                    host, port, pins=(), own_listeners=self._own_listeners, timeout_s=TIMEOUT_S, grace_s=GRACE_S
                )
                sock = await self._first_of(addresses)
        except TimeoutError:
            exchange.refuse(504)
        except (OSError, OriginError):
            exchange.refuse(502)
        except asyncio.CancelledError:
            exchange.refuse(503)
            raise
        else:
            self._tunnels.give_connected(exchange, sock, _ESTABLISHED, IDLE_S)

    async def _first_of(self, addresses: Iterable[Address]) -> socket.socket:
        failure: OSError = ConnectionError("no address")
        for address in addresses:
            sock = socket.socket(address.family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
            try:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                await self._loop.sock_connect(sock, (address.ip, address.port))
            except OSError as fault:
                sock.close()
                failure = fault
            except BaseException:
                sock.close()
                raise
            else:
                return sock
        raise failure

    async def close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._resolver.close()


def parse_authority(text: bytes) -> tuple[str, int] | None:
    """Host in its one spelling, and port, of what the data plane's parser let through."""
    host, _, port = text.decode("ascii", "replace").lower().rpartition(":")
    if not (port.isascii() and port.isdecimal()) or len(port) > 5:
        return None
    host = host.removeprefix("[").removesuffix("]").removesuffix(".")
    with contextlib.suppress(ValueError):
        host = str(ip_address(host))
    return host, int(port)
