"""The box's counters as the judge of policies reads them, and what else is looked at once a second. Judges nothing."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from accelerator import clock
from accelerator.protocols.probation import Counts, OriginCounts

if TYPE_CHECKING:
    from accelerator.services.appliance import Appliance
    from accelerator.services.logs.events import Events
    from accelerator.services.rollout.rollout import Rollout

EVERY_S = 1.0
# Own refusals that a policy's hosts, paths, zones and profiles decide. Bad syntax is the viewer's fault whatever it is.
_ROUTING = ("refused_zone", "status_404", "status_405", "status_413", "status_421", "status_501")
_UPSTREAM = ("status_502", "status_503", "status_504")
_CUT = ("refused_connections_all", "refused_connections_address", "closed_slow_head", "closed_slow_reader")


def counts_of(box: Appliance) -> Counts:
    """Since the start of the process."""
    totals = box.dataplane.plane.totals()
    by_id = box.origins.by_id
    viewers = box.dataplane.plane.origin_totals(list(by_id))
    return Counts(
        requests=totals["requests"],
        routing=sum(totals[name] for name in _ROUTING),
        upstream=sum(totals[name] for name in _UPSTREAM),
        connections=totals["connections_accepted"],
        cut=sum(totals[name] for name in _CUT),
        origins={
            origin.name: OriginCounts(viewers[origin_id][0], origin.answered, origin.refused, origin.errors)
            for origin_id, origin in by_id.items()
        },
    )


class Watch:
    """Each second: feeds the judge, tells of workers that ended and memory that was refused, lets events go on."""

    def __init__(self, box: Appliance, rollout: Rollout, events: Events, loop: asyncio.AbstractEventLoop) -> None:
        self._box = box
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
        self._box.pulse.tick()
        judgement = self._rollout.probation.observe(counts_of(self._box), clock.monotonic_ns() / 1e9)
        if judgement is not None:
            self._rollout.judged(judgement)
        plane = self._box.dataplane.plane
        for index, (_, _, is_alive) in enumerate(plane.workers_state()):
            if not is_alive and index not in self._ended_workers:
                self._ended_workers.add(index)
                self._events.note(
                    "worker-ended", f"edge worker {index} has ended", why="a fault of ours",
                    advice="restart acceleratord, and report what its log says",
                )  # fmt: skip
        refused: int = plane.totals()["memory_refused"]
        if refused > self._memory_refused:
            self._events.note(
                "memory-refused", f"{refused - self._memory_refused} allocations refused",
                why="cache.memory is full of what is being read", cause="memory",
                advice="raise cache.memory, or lower limits.connections",
            )  # fmt: skip
        self._memory_refused = refused
