"""What is looked at once a second: feeds the judge of policies, takes the figures' sample, tells of workers that ended
and memory that was refused. Judges and mends nothing."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from accelerator.dataplane import DataPlane
    from accelerator.services.figures.pulse import Pulse
    from accelerator.services.logs.events import Events
    from accelerator.services.rollout.rollout import Rollout

EVERY_S = 1.0


class Watch:
    """Each second: feeds the judge, tells of workers that ended and memory that was refused, lets events go on."""

    def __init__(
        self, dataplane: DataPlane, pulse: Pulse, rollout: Rollout, events: Events, loop: asyncio.AbstractEventLoop
    ) -> None:
        self._plane = dataplane.plane
        self._pulse = pulse
        self._rollout = rollout
        self._events = events
        self._loop = loop
        self._timer: asyncio.TimerHandle | None = None
        self._ended_workers: set[int] = set()
        self._memory_refused = 0

    def start(self) -> None:
        self._timer = self._loop.call_later(EVERY_S, self._look)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        self._timer = self._loop.call_later(EVERY_S, self._look)
        self._events.tick()
        self._pulse.tick()
        self._rollout.look()
        for index, (_, _, is_alive) in enumerate(self._plane.workers_state()):
            if not is_alive and index not in self._ended_workers:
                self._ended_workers.add(index)
                self._events.note(
                    "worker-ended", f"edge worker {index} has ended", why="a fault of ours",
                    advice="restart acceleratord, and report what its log says",
                )  # fmt: skip
        refused: int = self._plane.totals()["memory_refused"]
        if refused > self._memory_refused:
            self._events.note(
                "memory-refused", f"{refused - self._memory_refused} allocations refused",
                why="cache.memory is full of what is being read", cause="memory",
                advice="raise cache.memory, or lower limits.connections",
            )  # fmt: skip
        self._memory_refused = refused
