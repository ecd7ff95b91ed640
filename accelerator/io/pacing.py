"""Who reads when: transfers of one WAN link in the order that its budget gives (protocols/budget.py), by holding and
letting go of their connections. No socket is read here, nothing is decided on classes.

What the wire has carried is counted, not what was read: the kernel says it of each socket (TCP_INFO), so that bytes
that wait in receive buffers, and TLS, count when they come.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from accelerator.protocols.budget import Budget, Share

# uvloop's timers count whole milliseconds; a wait that ends early by less than this is over.
TICK_S = 0.002
# Windows and rates change slowly against this.
WINDOW_EACH_S = 0.05
# How many of those that wait are looked at in one tick, for what has come for them meanwhile.
LOOKED_AT = 256
# What may come before anything is known of a connection. Without it, it is 64 KiB: as many as the queue of a slow link
# holds, for each new connection.
FIRST_BUFFER_BYTES = 8 << 10
# Until the kernel has measured it: a branch's usual way.
ROUND_TRIP_S = 0.03
UNBOUNDED_BPS = 1e12
_TCP_INFO_BYTES = 232
# <asm-generic/socket.h>; 0: the kernel tunes the buffers by itself.
_SO_BUF_LOCK = 72
_RECEIVED_AT, _MIN_RTT_AT = 128, 148  # tcpi_bytes_received, tcpi_min_rtt in linux/tcp.h


def _rmem_max() -> int:
    """The largest receive buffer that a process may ask for."""
    try:
        return int(Path("/proc/sys/net/core/rmem_max").read_text())
    except (OSError, ValueError):
        return 212_992


_RMEM_MAX = _rmem_max()


class Held(Protocol):
    """A connection in the midst of a body."""

    def hold(self) -> None:
        """Reads nothing from here on."""

    def let_go(self) -> None:
        """Reads on."""


@dataclass
class ClassCounters:
    """Plain counts since the start. `bytes`: payload of the wire, as TCP counts it; `held`: how often a transfer
    waited."""

    name: str
    bytes: int = 0
    held: int = 0


class Pacer:
    """One link's budget, in one event loop."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, rate_bps: float, names: Sequence[str], shares: Sequence[Share]
    ) -> None:
        self._loop = loop
        self.counters = [ClassCounters(name) for name in names]
        self._set(rate_bps, shares)
        self._waiting: list[deque[Flow]] = [deque() for _ in shares]
        self._flows: set[Flow] = set()
        self._timer: asyncio.TimerHandle | None = None

    def _set(self, rate_bps: float, shares: Sequence[Share]) -> None:
        self._shares = tuple(shares)
        self.budget = Budget(rate_bps, shares, self._loop.time())

    def change(self, rate_bps: float, names: Sequence[str], shares: Sequence[Share]) -> None:
        """Another policy: transfers under way go on under it, by their class's name; a class that is gone has the last
        one's place."""
        if rate_bps == self.budget.rate_bps and tuple(shares) == self._shares and list(names) == self.names:
            return
        known = {each.name: each for each in self.counters}
        old = self.names
        self.counters = [known.get(name) or ClassCounters(name) for name in names]
        self._set(rate_bps, shares)
        self._waiting = [deque() for _ in shares]
        place = {name: index for index, name in enumerate(names)}
        for flow in self._flows:
            flow.index = place.get(old[flow.index], len(names) - 1)
            self.budget.joined(flow.index)
            if flow.is_held:
                self._waiting[flow.index].append(flow)
        self._mark_waiting()
        self._tick_soon()

    def release(self) -> None:
        """There is no budget any more: whoever waits reads on."""
        self.change(UNBOUNDED_BPS, self.names, self._shares)

    @property
    def names(self) -> list[str]:
        return [each.name for each in self.counters]

    def n_flows(self, index: int) -> int:
        return sum(flow.index == index for flow in self._flows)

    def n_waiting(self, index: int) -> int:
        return len(self._waiting[index])

    def begin(self, connection: Held, sock: socket.socket, index: int) -> Flow:
        """A transfer begins; it is held at once where others of its class wait."""
        flow = Flow(self, connection, sock, index)
        self._flows.add(flow)
        self.budget.joined(index)
        if self._waiting[index]:
            self._hold(flow)
        return flow

    def read(self, flow: Flow, n: int) -> None:
        """`n` bytes have come since the last time."""
        now_s = self._loop.time()
        self._count(flow, n, now_s)
        if not flow.is_held and self.budget.wait_s(flow.index, now_s) > 0:
            self._hold(flow)

    def took_outside(self, n: int) -> None:
        """Of what this pacer can't hold up."""
        self.budget.took_outside(n, self._loop.time())

    def end(self, flow: Flow) -> None:
        if flow in self._flows:
            self._flows.remove(flow)
            self.budget.left(flow.index)
            if flow.is_held:
                flow.is_held = False
                self._waiting[flow.index].remove(flow)
                self._mark_waiting()

    def _count(self, flow: Flow, n: int, now_s: float) -> None:
        if n:
            self.counters[flow.index].bytes += n
            self.budget.took(flow.index, n, now_s)

    def _hold(self, flow: Flow) -> None:
        flow.is_held = True
        self.counters[flow.index].held += 1
        self._waiting[flow.index].append(flow)
        self._mark_waiting()
        flow.connection.hold()
        self._tick_soon()

    def _mark_waiting(self) -> None:
        for index, waiting in enumerate(self._waiting):
            self.budget.set_waiting(index, bool(waiting))

    def _tick_soon(self) -> None:
        if self._timer is None and any(self._waiting):
            now_s = self._loop.time()
            waits = [self.budget.wait_s(index, now_s) for index, each in enumerate(self._waiting) if each]
            self._timer = self._loop.call_later(max(TICK_S, min(*waits, 0.02)), self._tick)

    def _tick(self) -> None:
        """Lets so many go as the buckets hold quanta, the most important class first."""
        self._timer = None
        now_s = self._loop.time()
        n_looked = 0
        for waiting in self._waiting:
            for flow in waiting:
                if n_looked == LOOKED_AT:
                    break
                n_looked += 1
                self._count(flow, flow.arrived(), now_s)
        quantum = self.budget.quantum
        promised = 0.0
        for index, waiting in enumerate(self._waiting):
            while waiting and self.budget.wait_s(index, now_s) == 0 and promised < self.budget.rate * TICK_S + quantum:
                flow = waiting.popleft()
                flow.is_held = False
                promised += quantum
                flow.connection.let_go()
        self._mark_waiting()
        self._tick_soon()


class Flow:
    """One transfer. Made by Pacer.begin; `read` after each read, `end` once."""

    __slots__ = ("_granted", "_pacer", "_seen", "_sock", "_window", "_window_at_s", "connection", "index", "is_held")

    def __init__(self, pacer: Pacer, connection: Held, sock: socket.socket, index: int) -> None:
        self._pacer = pacer
        self._sock = sock
        self.connection = connection
        self.index = index
        self.is_held = False
        self._window = self._granted = 0
        self._window_at_s = 0.0
        self._seen, round_trip_s = self._look()
        self._clamp(round_trip_s, pacer._loop.time())

    @property
    def quantum(self) -> int:
        """The most that one read may take."""
        return self._pacer.budget.quantum

    def read(self) -> None:
        self._pacer.read(self, self.arrived())

    def end(self) -> None:
        self._pacer._count(self, self.arrived(), self._pacer._loop.time())
        self._pacer.end(self)

    def arrived(self) -> int:
        """What has come since the last time."""
        received, round_trip_s = self._look()
        n, self._seen = max(0, received - self._seen), max(received, self._seen)
        now_s = self._pacer._loop.time()
        if now_s - self._window_at_s >= WINDOW_EACH_S:
            self._clamp(round_trip_s, now_s)
        return n

    def _look(self) -> tuple[int, float]:
        """Bytes that TCP has received of the peer, and the shortest round trip. A socket that is gone has no more."""
        try:
            info = self._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
        except OSError:
            return 0, ROUND_TRIP_S
        if len(info) < _MIN_RTT_AT + 4:
            return 0, ROUND_TRIP_S
        (received,) = struct.unpack_from("=Q", info, _RECEIVED_AT)
        (min_rtt_us,) = struct.unpack_from("=I", info, _MIN_RTT_AT)
        return received, min_rtt_us / 1e6 if 0 < min_rtt_us < 2_000_000 else ROUND_TRIP_S

    def _clamp(self, round_trip_s: float, now_s: float) -> None:
        """The kernel's own tuning of the receive buffer raises the clamp with it, for packets out of order too (a
        transfer that was held got 32 MB so): where windows are smaller than a process may set, its size is set, which
        ends the tuning. It is never made smaller, as what is under way would be dropped."""
        self._window_at_s = now_s
        budget = self._pacer.budget
        window = budget.window_bytes(self.index, round_trip_s, now_s)
        # Opened by and by: of several that begin at once each would take all that is free for its own.
        window = self._granted = min(window, 2 * self._granted or budget.quantum)
        with contextlib.suppress(OSError):
            if window <= _RMEM_MAX:
                if window > self._window:
                    self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
            else:
                self._sock.setsockopt(socket.SOL_SOCKET, _SO_BUF_LOCK, 0)
            self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_WINDOW_CLAMP, window)
            self._window = max(window, self._window)


@dataclass(frozen=True)
class Lane:
    """How an origin's transfers go: by which link, whose budget, as which class, bound to which interface (None: as
    routes say), with which mark."""

    pacer: Pacer | None = None
    index: int = 0
    device: str | None = None
    link: str = ""
    dscp: int = 0

    def prepare(self, sock: socket.socket) -> None:
        """Of a socket that isn't connected yet. Raises OSError."""
        if self.pacer is not None:
            # The first window goes by the buffer's size, how far it can be opened later by what the kernel may tune.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, FIRST_BUFFER_BYTES)
            sock.setsockopt(socket.SOL_SOCKET, _SO_BUF_LOCK, 0)
        if self.dscp:
            is_v6 = sock.family == socket.AF_INET6
            option = (socket.IPPROTO_IPV6, socket.IPV6_TCLASS) if is_v6 else (socket.IPPROTO_IP, socket.IP_TOS)
            sock.setsockopt(*option, self.dscp << 2)
        if self.device is not None:
            # Needs no capability while the socket is bound to none (Linux 5.7).
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, self.device.encode())

    def begin(self, connection: Held, sock: socket.socket) -> Flow | None:
        return self.pacer.begin(connection, sock, self.index) if self.pacer is not None else None
