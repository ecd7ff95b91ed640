"""HTTP viewers of relays: who asks for a path gets the relay's stream, as soon as something is there to begin with.
Bytes go from the ring to sockets in the data plane; none passes here.

A HEAD is answered at once and wants nothing; a GET makes its relay wanted, and waits for a signal.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from accelerator import clock
from accelerator.dataplane import DataPlane, Exchange, Ring

# Whoever waits for a signal gives up about then; a group of pictures is rarely longer.
PATIENCE_S = 10.0
LOOK_S = 0.02
# After so long without a packet nobody reads on; a sender that pauses for less loses nobody.
SILENCE_S = 60.0
# What is older than this is no signal: a ring that nothing came into since has a past, but no present.
FRESH_S = 2.0
# Between our answer and the worker that takes it, nobody reads yet.
GRACE_S = 2.0
NS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Shape:
    """What a ring is made of: with another one it begins anew."""

    window_bytes: int
    hold_ns: int


@dataclass(slots=True)
class _Waiting:
    exchange: Exchange
    until_ns: int


class Viewers:
    """Of one relay. `ring` is the data plane's to write while it is set there."""

    def __init__(self, dataplane: DataPlane, shape: Shape, index: int) -> None:
        self.shape = shape
        self.ring: Ring = dataplane.ring(shape.window_bytes, shape.hold_ns, int(SILENCE_S * NS), index)
        self._waiting: dict[tuple[int, int, int], _Waiting] = {}
        self._wanted_until_ns = 0
        self.n_timed_out = 0

    @property
    def n(self) -> int:
        """Who reads, or waits to."""
        return self.ring.readers + len(self._waiting)

    @property
    def is_waited_for(self) -> bool:
        return bool(self._waiting)

    def is_wanted(self, now_ns: int) -> bool:
        return bool(self._waiting) or self.ring.has_readers or now_ns < self._wanted_until_ns

    def want(self, now_ns: int) -> None:
        """Somebody is about to ask."""
        self._wanted_until_ns = max(self._wanted_until_ns, now_ns + int(GRACE_S * NS))

    def ask(self, exchange: Exchange, now_ns: int) -> None:
        self._waiting[exchange.identity] = _Waiting(exchange, now_ns + int(PATIENCE_S * NS))
        self.answer(now_ns)

    def forget(self, identity: tuple[int, int, int]) -> bool:
        """Its viewer has left. True: it waited here."""
        gone = self._waiting.pop(identity, None)
        if gone is not None:
            gone.exchange.error(503)  # nobody sees it: the slot comes free
        return gone is not None

    def answer(self, now_ns: int) -> None:
        """Who waits and can begin, or has waited long enough."""
        if not self._waiting:
            return
        known = self.ring.known()
        is_live = self.ring.has_entry and now_ns - known["published_ns"] < FRESH_S * NS
        # Not a transport stream: nothing will ever be there to begin with.
        is_other = not known["packets"] and known["refused"] > 0
        for identity, waiting in list(self._waiting.items()):
            if is_live:
                self._wanted_until_ns = now_ns + int(GRACE_S * NS)
                waiting.exchange.stream(self.ring)
            elif is_other:
                waiting.exchange.error(502)
            elif now_ns >= waiting.until_ns:
                self.n_timed_out += 1
                waiting.exchange.error(504)
            else:
                continue
            del self._waiting[identity]

    def close(self) -> None:
        """Who reads gets what is there, and then the end."""
        for waiting in self._waiting.values():
            waiting.exchange.error(503)
        self._waiting = {}
        self.ring.close()


class Desk:
    """Where workers' questions come in. `find`: the viewers of the relay that a path stands for, made wanted; a status:
    why not. `is_known`: what a HEAD is told."""

    def __init__(
        self,
        find: Callable[[str, str], Viewers | int],
        is_known: Callable[[str, str], int],
        all_viewers: Callable[[], list[Viewers]],
    ) -> None:
        self._find = find
        self._is_known = is_known
        self._all = all_viewers
        self._timer: asyncio.TimerHandle | None = None

    def ask(self, exchange: Exchange, name: str) -> None:
        """`name`: of the row that the path belongs to."""
        path = exchange.key.partition(b"?")[0].decode("ascii", "replace")
        if exchange.head.startswith(b"HEAD "):
            status = self._is_known(name, path)
            if status == 200:
                exchange.stream(None)
            else:
                exchange.error(status)
            return
        found = self._find(name, path)
        if isinstance(found, int):
            exchange.error(found)
            return
        found.ask(exchange, clock.monotonic_ns())
        if found.is_waited_for and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(LOOK_S, self._look)

    def cancel(self, identity: tuple[int, int, int]) -> None:
        for viewers in self._all():
            if viewers.is_waited_for and viewers.forget(identity):
                return

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = None
        now_ns = clock.monotonic_ns()
        waited_for = [each for each in self._all() if each.is_waited_for]
        for viewers in waited_for:
            viewers.answer(now_ns)
        if any(each.is_waited_for for each in waited_for):
            self._timer = asyncio.get_running_loop().call_later(LOOK_S, self._look)
