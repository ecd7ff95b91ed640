"""Keeps the kernel's routes, rules, queues and packet rules as services want them: looks when something has changed,
does what is missing, and stops where somebody else keeps undoing it. Looks at everything each time: an event that was
lost, or never sent, costs nothing. No kind of object is known here beyond what plan.py, queue_plan.py and
packet_filter.py say of it."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import os
import socket
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from accelerator.kernel.links import Link
from accelerator.kernel.netlink import NETFILTER, NFT_GROUPS, ROUTE_GROUPS, TC_GROUP, drain, watch
from accelerator.kernel.objects import PacketRule, Route, Rule
from accelerator.kernel.packet_filter import FilterError, PacketFilter
from accelerator.kernel.plan import Steps, Wanted, plan, route_text, rule_text, wanted
from accelerator.kernel.queue_plan import FoundQueues, QueuePlan
from accelerator.kernel.queue_plan import plan as plan_queues
from accelerator.kernel.queues import Queues
from accelerator.kernel.queues import rows as queue_rows
from accelerator.kernel.routing import Found, Routing
from accelerator.kernel.shaped import DEVICE_PREFIX, Shaper

# Several changes come at once; a table of the Internet's routes that moves must not make us look all the time.
SETTLE_S = 0.05
# From so many on, what stays is looked at by no collection any more: each would take milliseconds.
MANY_ROUTES = 1000
# What failed for want of something (a gateway's link has no address yet) is tried again.
RETRY_S = 5.0
# Whoever undoes the same thing so often in a minute will go on: it is a program. We stop for so long, and say so.
FIGHT_ROUNDS, FIGHT_S, STOP_S = 5, 60.0, 300.0

Tell = Callable[[dict[str, Any]], None]


_Given = tuple[Sequence[Route], Sequence[Rule], Mapping[str, int], Sequence[Shaper]]


class _Outcome(NamedTuple):
    """Of one pass: tables of others, what was changed, what the kernel refused, what was found of queues."""

    foreign: frozenset[int]
    groups: frozenset[str]
    failed: Counter[str]
    queues: QueuePlan


class Reconciler:
    """Lives in netd's event loop. `want` may be called at any time; the work goes on in a task of its own."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self._routing = Routing()
        self._queues = Queues()
        self._filter = PacketFilter()
        self._routes: tuple[Route, ...] = ()
        self._rules: tuple[Rule, ...] = ()
        self._packet_rules: tuple[PacketRule, ...] = ()
        self._shapers: tuple[Shaper, ...] = ()
        self._links: Mapping[str, int] | None = None  # not read yet
        self._wake = asyncio.Event()
        self._watches = [watch(socket.NETLINK_ROUTE, ROUTE_GROUPS | TC_GROUP), watch(NETFILTER, NFT_GROUPS)]
        self._task: asyncio.Task[None] | None = None
        # What has been wanted once is looked after; before that, a box without any of it does nothing here.
        self._is_used = False
        self._has_filter = False
        self._has_queues = True  # an earlier netd's, perhaps
        self._is_changed = False
        self._repairs: dict[str, deque[float]] = {}
        self._stopped_until_s: dict[str, float] = {}
        self._told: set[str] = set()
        self._want = Wanted(frozenset(), frozenset())
        self._queue_plan = QueuePlan()
        self._given: object = None
        self._problem = ""
        self._is_filter_right = True
        self.n_passes = 0
        self.n_repairs = 0

    def start(self) -> asyncio.Task[None]:
        """The work, which never ends by itself: who starts it watches that."""
        loop = asyncio.get_running_loop()
        for each in self._watches:
            loop.add_reader(each.fileno(), self._event, each)
        self._task = loop.create_task(self._run())
        return self._task

    async def stop(self) -> None:
        """What is in the kernel stays there."""
        loop = asyncio.get_running_loop()
        for each in self._watches:
            loop.remove_reader(each.fileno())
            each.close()
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        self._routing.close()
        self._queues.close()

    def want(
        self,
        routes: Sequence[Route],
        rules: Sequence[Rule],
        packet_rules: Sequence[PacketRule],
        shapers: Sequence[Shaper] = (),
    ) -> None:
        """All that services want together, in place of what they wanted before."""
        now = (tuple(routes), tuple(rules), tuple(packet_rules), tuple(shapers))
        self._is_used = self._is_used or any(now)
        if now == (self._routes, self._rules, self._packet_rules, self._shapers) and self.n_passes:
            return
        self._routes, self._rules, self._packet_rules, self._shapers = now
        self._is_changed = True
        # Whoever changes what is wanted wants it tried anew.
        self._stopped_until_s.clear()
        self._repairs.clear()
        self._wake.set()

    async def clear(self) -> str:
        """Takes out all that is ours, whoever put it there, where `start` has not been called; what the kernel
        refused."""
        self._links = {}
        self._has_filter = True
        await self._pass()
        return self._problem

    def links_changed(self, links: Mapping[str, Link]) -> None:
        # Not our own: whoever takes one away undoes something, which must count as that.
        up = {
            name: link.index for name, link in links.items() if link.is_up and not name.startswith(DEVICE_PREFIX)
        }
        if self._shapers:
            self._wake.set()
        if up == self._links:
            return
        self._links = up
        # Routes over an interface that went down are gone without a word of the kernel's.
        self._is_changed = True
        self._wake.set()

    def _event(self, watching: socket.socket) -> None:
        drain(watching)
        self._wake.set()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._patience_s(loop.time())):
                    await self._wake.wait()
            self._wake.clear()
            if not self._is_used or self._links is None:
                continue
            try:
                await self._pass()
            except (OSError, FilterError) as error:
                self._problem = str(error)
                self._say("kernel-refused", "kernel", f"the kernel's routes can't be kept: {error}")
            await asyncio.sleep(SETTLE_S)

    def _patience_s(self, now_s: float) -> float | None:
        """How long nothing needs to be looked at, unless something happens."""
        self._stopped_until_s = {group: until_s for group, until_s in self._stopped_until_s.items() if until_s > now_s}
        ends = [until_s - now_s for until_s in self._stopped_until_s.values()] + ([RETRY_S] if self._problem else [])
        return min(ends, default=None)

    async def _pass(self) -> None:
        """Looks at everything once and does what is missing."""
        now_s = asyncio.get_running_loop().time()
        is_changed, self._is_changed = self._is_changed, False
        stopped = frozenset(group for group, until_s in self._stopped_until_s.items() if until_s > now_s)
        given = (self._routes, self._rules, self._links or {}, self._shapers)
        # In a thread: an upcall of multicast must not wait for 10,000 routes. Nor for a collection of garbage that
        # looks at them all: rows are freed by their counts.
        gc.disable()
        try:
            outcome = await asyncio.to_thread(self._kernel_pass, given, is_changed or not self.n_passes, stopped)
        finally:
            if is_changed and len(self._routes) > MANY_ROUTES:
                gc.freeze()
            gc.enable()
        self._queue_plan = outcome.queues
        self._tell_missing()
        for name in sorted(outcome.queues.taken):
            self._say("queue-taken", name, f"{name} has another program's queues: ours are not put there")
        for table in sorted(outcome.foreign):
            self._say("table-taken", f"{table}", f"table {table} has routes of another program: ours are not put there")
        # An interface has gone down, with its routes, and what says so is still on its way: nobody has undone anything.
        is_link_gone = any(os.strerror(each) in outcome.failed for each in (errno.ENETDOWN, errno.ENODEV))
        if not is_changed and self.n_passes and not is_link_gone:
            for group in outcome.groups:
                self._repaired(group, now_s)
        failed = outcome.failed
        self._problem = ", ".join(f"{text} ({n})" for text, n in failed.items())
        if failed:
            self._say("kernel-refused", "routes", f"routes, rules or queues that the kernel refuses: {self._problem}")
        else:
            self._told.discard("kernel-refused routes")
        await self._pass_filter(is_changed, stopped, now_s)
        self.n_passes += 1

    def _kernel_pass(self, given: _Given, is_changed: bool, stopped: frozenset[str]) -> _Outcome:
        routes, rules, links, shapers = given
        if is_changed or self._given != given:
            self._want, self._given = wanted(routes, rules, links), given
        tables = {row.table for row in self._want.routes}
        found = self._routing.observe(tables, everywhere=is_changed)
        steps = plan(self._want, found.routes, found.rules, stopped | _groups(found.foreign))
        failed = self._routing.carry_out(steps)
        queues = QueuePlan()
        if shapers or self._has_queues:
            there = self._queues.observe(shapers)
            queues = plan_queues(shapers, there, stopped)
            failed += self._queues.carry_out(queues, there)
            self._has_queues = bool(shapers or queues.steps)
        return _Outcome(found.foreign, steps.groups | queues.groups, failed, queues)

    async def _pass_filter(self, is_changed: bool, stopped: frozenset[str], now_s: float) -> None:
        if "nft" in stopped or not (self._packet_rules or self._has_filter):
            return
        self._is_filter_right = await self._filter.look(self._packet_rules)
        if self._is_filter_right:
            return
        if self._has_filter and not is_changed:
            self._repaired("nft", now_s)
        await self._filter.load(self._packet_rules)
        self._has_filter = bool(self._packet_rules)
        self._is_filter_right = True

    def _repaired(self, group: str, now_s: float) -> None:
        """Somebody has undone what was there."""
        self.n_repairs += 1
        times = self._repairs.setdefault(group, deque(maxlen=FIGHT_ROUNDS))
        times.append(now_s)
        self._tell({"kind": "kernel-repaired", "message": f"{group}: somebody has taken out what is wanted; put back"})
        if len(times) == FIGHT_ROUNDS and now_s - times[0] < FIGHT_S:
            self._stopped_until_s[group] = now_s + STOP_S
            times.clear()
            self._tell(
                {
                    "kind": "kernel-fight",
                    "message": f"{group}: another program undoes it again and again; left alone for {STOP_S:.0f} s: "
                    "find out which (ip monitor, nft monitor)",
                }
            )

    def _tell_missing(self) -> None:
        """And what somebody else has taken is told again when he takes it again."""
        missing = {*self._want.missing, *self._queue_plan.missing}
        for name in sorted(missing):
            self._say("interface-missing", name, f"routes or queues wait for interface {name}")
        for kind, names in (("interface-missing ", missing), ("queue-taken ", self._queue_plan.taken)):
            for said in [each for each in self._told if each.startswith(kind)]:
                if said.removeprefix(kind) not in names:
                    self._told.discard(said)

    def _say(self, kind: str, what: str, message: str) -> None:
        """Once, until it is otherwise."""
        if f"{kind} {what}" not in self._told:
            self._told.add(f"{kind} {what}")
            self._tell({"kind": kind, "message": message})

    async def queues(self) -> list[dict[str, Any]]:
        """The shapers' queues with the kernel's counts."""
        found, _ = await asyncio.to_thread(_compare_queues, self._shapers)
        return queue_rows(self._shapers, found)

    async def show(self) -> dict[str, Any]:
        """What is wanted, what is there, and what would be done now: nothing is done for it."""
        links = self._links or {}
        names = {index: name for name, index in links.items()}
        given = (self._routes, self._rules, links, self._shapers)
        want, found, steps = await asyncio.to_thread(_compare, given)
        queues, planned = await asyncio.to_thread(_compare_queues, self._shapers)
        is_right = True
        if self._packet_rules or self._has_filter:
            try:
                is_right = await self._filter.look(self._packet_rules)
            except FilterError:
                is_right = False
        lines = [*steps.lines(names), *(step.text for step in planned.steps)]
        return {
            "wanted": {
                "routes": len(self._routes),
                "rules": len(self._rules),
                "packet_rules": len(self._packet_rules),
                "queues": len(self._shapers),
            },
            "routes": [route_text(row, names) for row in sorted(found.routes)[:1000]],
            "rules": [rule_text(row) for row in sorted(found.rules)],
            "nft": await self._filter.rows() if self._packet_rules else [],
            "queues": queue_rows(self._shapers, queues),
            "waiting_for": sorted({*want.missing, *planned.missing}),
            "taken_interfaces": sorted(planned.taken),
            "taken_tables": sorted(found.foreign),
            "stopped": sorted(self._stopped_until_s),
            "steps": [*lines[:1000], *([] if is_right else ["nft: load table inet accelerator"])],
            "n_steps": len(lines) + (not is_right),
            "repairs": self.n_repairs,
            "problem": self._problem,
        }


def _compare(given: _Given) -> tuple[Wanted, Found, Steps]:
    """What would be done now, by a socket of its own: a pass may be under way."""
    routes, rules, links, _ = given
    routing = Routing()
    try:
        want = wanted(routes, rules, links)
        found = routing.observe({row.table for row in want.routes})
        return want, found, plan(want, found.routes, found.rules, _groups(found.foreign))
    finally:
        routing.close()


def _compare_queues(shapers: Sequence[Shaper]) -> tuple[FoundQueues, QueuePlan]:
    queues = Queues()
    try:
        found = queues.observe(shapers)
        return found, plan_queues(shapers, found, frozenset())
    finally:
        queues.close()


def _groups(tables: frozenset[int]) -> frozenset[str]:
    return frozenset(f"table {table}" for table in tables)
