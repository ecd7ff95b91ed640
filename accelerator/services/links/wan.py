"""WAN links at run time: their video budgets, whether they work, and which link each origin's fetches go by. The
arithmetic is protocols/budget.py, the damping protocols/link_health.py; routes are netd's (kernel/).
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from accelerator.io.links import Link as Interface
from accelerator.io.links import Links
from accelerator.io.pacing import Lane, Pacer
from accelerator.policy.model import Class, Link, Policy
from accelerator.policy.relay_addresses import dscp_value
from accelerator.protocols.budget import Share
from accelerator.protocols.link_health import LinkHealth, choose
from accelerator.services.links.outside import ANY, KINDS, Outside
from accelerator.services.logs.events import Events
from accelerator.services.origins.origins import Origins

LOOK_EACH_S = 1.0
OUTSIDE_EACH_S = 0.05
PROBE_S = 1.0
# What belongs to no class of the policy comes last.
NO_CLASS = "(none)"
# Without any guarantee a class still has so much: a fill that gets no byte for its body time-out would be taken for a
# dead origin's.
TRICKLE = 0.01


@dataclass
class _Running:
    row: Link
    pacer: Pacer | None
    health: LinkHealth = field(default_factory=LinkHealth)


class Wan:
    """All links of the running policy. Lives on one loop."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, origins: Origins, events: Events, outside: Outside | None = None
    ) -> None:
        self._loop = loop
        self._origins = origins
        self._events = events
        self._links: dict[str, _Running] = {}
        self._classes: list[str] = []
        self._policy_classes: Mapping[str, Class] = {}
        self._interfaces: Links | None = None
        self._seen: Mapping[str, Interface] = {}
        self._task: asyncio.Task[None] | None = None
        self._outside = outside
        self.on_steered: Callable[[], None] = lambda: None
        self._counting: asyncio.TimerHandle | None = None

    def apply(self, policy: Policy) -> None:
        """After the origins have taken the policy over. Transfers under way go on, under the new budgets."""
        self._classes = [*policy.classes, NO_CLASS]
        self._policy_classes = policy.classes
        shares = shares_of(policy)
        before, self._links = self._links, {}
        for name, row in policy.links.items():
            known = before.get(name)
            pacer = known.pacer if known is not None else None
            if row.video is None and pacer is not None:
                pacer.release()
                pacer = None
            elif row.video is None:
                pass
            elif pacer is None:
                pacer = Pacer(self._loop, row.video, self._classes, shares)
            else:
                pacer.change(row.video, self._classes, shares)
            running = _Running(row, pacer)
            if known is not None and (known.row.interface, known.row.probe) == (row.interface, row.probe):
                running.health = known.health
            self._links[name] = running
        for name, gone in before.items():
            if name not in self._links and gone.pacer is not None:
                gone.pacer.release()
        self._steer()
        self.start()

    def start(self) -> None:
        if self._links and self._task is None:
            self._interfaces = Links()
            self._task = self._loop.create_task(self._watch())
            self._count_outside()

    async def stop(self) -> None:
        if self._counting is not None:
            self._counting.cancel()
            self._counting = None
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        if self._interfaces is not None:
            self._interfaces.close()
            self._interfaces = None

    def link_of(self, origin: str) -> str:
        """The link that an origin goes by now; "": none of the policy's."""
        return next((each.client.lane.link for each in self._origins.by_id.values() if each.name == origin), "")

    def _steer(self) -> dict[str, list[str]]:
        """Gives each origin its lane; the origins whose link is another one now, by the link they left."""
        moved: dict[str, list[str]] = {}
        for origin in self._origins.by_id.values():
            named = origin.policy.link
            link = choose(named or [*self._links][:1], lambda name: self._links[name].health.is_up)
            running = self._links.get(link or "")
            index = self._classes.index(origin.policy.class_ or NO_CLASS)
            before = origin.client.lane
            own_class = self._policy_classes.get(origin.policy.class_ or "")
            dscp = dscp_value(own_class.dscp) if own_class is not None else 0
            if running is None:
                origin.client.set_lane(Lane(dscp=dscp))
                continue
            device = running.row.interface if named else None
            origin.client.set_lane(Lane(running.pacer, index, device, link or "", dscp))
            if before.link and before.link != link and named:
                moved.setdefault(before.link, []).append(origin.name)
        return moved

    def _count_outside(self) -> None:
        """What isn't paced takes from the budgets first, and the rest adapts."""
        self._counting = self._loop.call_later(OUTSIDE_EACH_S, self._count_outside)
        if self._outside is None:
            return
        first = next(iter(self._links), "")
        of_interface = {running.row.interface: name for name, running in self._links.items()} | {ANY: first}

        def of_origin(number: int) -> str:
            origin = self._origins.by_id.get(number)
            return (origin.client.lane.link if origin is not None else "") or first

        for name, n in self._outside.grown(of_origin, lambda interface: of_interface.get(interface, "")).items():
            pacer = self._links[name].pacer if name in self._links else None
            if pacer is not None:
                pacer.took_outside(n)

    # -- whether links work --------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        while True:
            started_s = self._loop.time()
            try:
                await self._look_at_all()
            except Exception as fault:
                # Of ours; links are looked at again, as nobody else would.
                self._loop.call_exception_handler({"message": "looking at WAN links failed", "exception": fault})
            await asyncio.sleep(max(0.0, started_s + LOOK_EACH_S - self._loop.time()))

    async def _look_at_all(self) -> None:
        links = dict(self._links)
        assert self._interfaces is not None
        self._seen = self._interfaces.look({running.row.interface for running in links.values()})
        outcomes = await asyncio.gather(*(self._look(running) for running in links.values()))
        for (name, running), why in zip(links.items(), outcomes, strict=True):
            if self._links.get(name) is not None and self._links[name].health is running.health:
                self._judge(name, running, why)

    async def _look(self, running: _Running) -> tuple[str, bool]:
        """("", _): it works; else why it doesn't, and whether that is certain."""
        interface = self._seen.get(running.row.interface)
        if interface is None:
            return f"there is no interface {running.row.interface}", True
        if not interface.is_up:
            return f"{running.row.interface} is down", True
        probe = running.row.probe
        if probe is None:
            return "", False
        try:
            async with asyncio.timeout(PROBE_S):
                await self._probe(running.row.interface, probe.host, probe.port)
        except TimeoutError:
            return f"{probe} doesn't answer by {running.row.interface}", False
        except OSError as fault:
            return f"{probe} by {running.row.interface}: {fault.strerror or fault}", False
        return "", False

    async def _probe(self, interface: str, host: str, port: int) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        kind = socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        with socket.socket(family, kind) as sock:
            # Of a socket that is bound to none yet: needs no capability (Linux 5.7).
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode())
            await self._loop.sock_connect(sock, (host, port))

    def _judge(self, name: str, running: _Running, outcome: tuple[str, bool]) -> None:
        why, is_certain = outcome
        now_s = self._loop.time()
        health = running.health
        if not why:
            if health.worked(now_s):
                self._events.note("link-up", f"link {name} is used again", why="it has been well long enough")
                self._steer()
                self.on_steered()
            return
        if health.lost(why, now_s) if is_certain else health.failed(why, now_s):
            moved = self._steer().get(name, [])
            self.on_steered()
            others = sorted({origin.client.lane.link for origin in self._origins.by_id.values()} - {name, ""})
            goes = f": {', '.join(moved)} by {', '.join(others)}" if moved else ""
            self._events.note(
                "link-down", f"link {name} is down{goes}", why=why,
                advice="look at the link; it is tried again by itself",
            )  # fmt: skip
            for origin in self._origins.by_id.values():
                if origin.name in moved:
                    origin.client.leave_way()

    # -- what operators are shown --------------------------------------------------------------------------------------

    def rows(self) -> list[dict[str, Any]]:
        now_s = self._loop.time()
        return [
            {
                "name": name,
                "interface": running.row.interface,
                "up": running.health.is_up,
                "why": running.health.why,
                "up_again_in_s": round(running.health.left_s(now_s), 1),
                "video_bps": running.row.video or 0,
                "origins": [each.name for each in self._origins.by_id.values() if each.client.lane.link == name],
                "outside": self._outside_row(name, running, now_s),
                "classes": [] if running.pacer is None else _class_rows(running.pacer, now_s),
            }
            for name, running in self._links.items()
        ]

    def _outside_row(self, name: str, running: _Running, now_s: float) -> dict[str, int]:
        totals = self._outside.totals if self._outside is not None else {}
        row = {kind: totals.get((name, kind), 0) for kind in KINDS}
        return row | {"bps": 0 if running.pacer is None else int(running.pacer.budget.outside_rate(now_s) * 8)}


def _class_rows(pacer: Pacer, now_s: float) -> list[dict[str, Any]]:
    return [
        {
            "name": each.name,
            "bytes": each.bytes,
            "bps": int(pacer.budget.rate_of(index, now_s) * 8),
            "transfers": pacer.n_flows(index),
            "waiting": pacer.n_waiting(index),
            "held": each.held,
        }
        for index, each in enumerate(pacer.counters)
    ]


def shares_of(policy: Policy) -> list[Share]:
    """Of each class in the policy's order, and of what has none."""
    rows = [(row.guarantee / 100, row.ceiling / 100) for row in policy.classes.values()] + [(0.0, 1.0)]
    guarantees = [guarantee or min(TRICKLE, ceiling) for guarantee, ceiling in rows]
    scale = max(1.0, sum(guarantees))
    return [Share(each / scale, ceiling) for each, (_, ceiling) in zip(guarantees, rows, strict=True)]
