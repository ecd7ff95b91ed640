"""Looks how short memory is, often once it is; the data plane gives up what protocols/overload.py says. Tells of it."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from accelerator import clock
from accelerator.io.memory import MemoryGauge
from accelerator.protocols.overload import Ladder, Rung
from accelerator.services.logs.lines import Causes, about
from accelerator.services.objects.heads import NS

if TYPE_CHECKING:
    from accelerator.dataplane import DataPlane
    from accelerator.services.logs.events import Events

log = logging.getLogger("accelerator")

EVERY_S = 1.0
# Once memory is short: whoever takes it may take 100 MiB in a tenth of a second.
WHEN_SHORT_S = 0.1
SHORT_SHARE = 0.8

_WORDS = {
    Rung.NONE: "memory suffices again: everything is as before",
    Rung.SHRINK: "memory is short: the cache gives back",
    Rung.NO_KEEP_ALIVE: "memory is short: connections are closed after their answer",
    Rung.REFUSE: "memory is short: new connections are refused (503)",
}


class Overload:
    def __init__(self, dataplane: DataPlane, events: Events, loop: asyncio.AbstractEventLoop) -> None:
        self._plane = dataplane.plane
        self._events = events
        self._loop = loop
        self._gauge = MemoryGauge()
        self._timer: asyncio.TimerHandle | None = None
        self._looked_ns = 0
        self._ladder = Ladder(self._plane.memory["limit"])
        self._causes = Causes()

    @property
    def rung(self) -> Rung:
        return self._ladder.rung

    @property
    def give_up_bytes(self) -> int:
        return self._ladder.give_up_bytes

    def start(self) -> None:
        self._looked_ns = clock.monotonic_ns()
        self._look()

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        now_ns = clock.monotonic_ns()
        since_s, self._looked_ns = (now_ns - self._looked_ns) / NS, now_ns
        own = self._plane.memory
        memory = self._gauge.read()
        used, limit = (memory.used_bytes, memory.limit_bytes) if memory is not None else (0, 0)
        before = self._ladder.rung
        given_up = self._ladder.give_up_bytes
        self._ladder.observe(used, limit, own["mapped"], own["outside"] / own["limit"], since_s)
        if self._ladder.give_up_bytes != given_up:
            self._plane.give_up(self._ladder.give_up_bytes)
        if self._ladder.rung is not before:
            self._plane.set_overload(int(self._ladder.rung))
            self._tell(used, limit)
        is_short = self._ladder.rung is not Rung.NONE or used > SHORT_SHARE * limit > 0
        self._timer = self._loop.call_later(WHEN_SHORT_S if is_short else EVERY_S, self._look)

    def _tell(self, used: int, limit: int) -> None:
        rung = self._ladder.rung
        why = f"{used >> 20} MiB of {limit >> 20} MiB can't be given back" if limit else "connections fill cache.memory"
        end = self._causes.due(f"overload:{rung.name}", clock.monotonic_ns())
        if end is not None:
            log.warning("%s (%s)%s", _WORDS[rung], why, end, extra=about(event="overload"))
        self._events.note(
            "overload", _WORDS[rung], why=why, cause=f"overload:{rung.name}",
            advice="" if rung is Rung.NONE else "lower cache.memory, or give the machine more of it",
        )  # fmt: skip
