"""Tells accelerator-netd what policy wants of the kernel, whenever both run, and passes its events on. acceleratord
works without netd: only what policy wants of the kernel waits then. What netd does about it is kernel/ and
netd.py."""

from __future__ import annotations

import asyncio
import contextlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerator.kernel.objects import Route, Rule
from accelerator.kernel.state import GENERATION_MAX, DesiredState, encode
from accelerator.policy.compile import Tables
from accelerator.services.logs.events import Events
from accelerator.services.netd.wishes import desired

SERVICE = "policy"
RETRY_S = 2.0
SHOW_S = 5.0
ANSWER_S = 30.0  # 100,000 routes are read within a few seconds
QUEUES_EACH_S = 5.0  # for status and metrics
_LINE_MAX = 16 << 20  # 100,000 routes
_ADVICE = "see systemctl status accelerator-netd, or start accelerator-netd --state-dir with the same directory"


class NetdError(Exception):
    """netd can't be reached, or refuses: one clear line."""


class NetdClient:
    """One connection that is held while both run. `wanted` may be set at any time; netd hears of it at once, or when it
    comes."""

    def __init__(self, path: Path, events: Events) -> None:
        self._path = path
        self._events = events
        self._wanted = self._of_policy = DesiredState()
        self._steered: tuple[tuple[Route, ...], tuple[Rule, ...]] = ((), ())
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._looking: asyncio.Task[None] | None = None
        # The kernel's queues, as netd saw them last.
        self.queues: list[dict[str, Any]] = []
        self._is_waiting_told = False

    def want(self, tables: Tables) -> None:
        """What this policy wants, in place of all that was wanted before."""
        self._of_policy = desired(tables)
        self._want_both()

    def want_steered(self, routes: tuple[Route, ...], rules: tuple[Rule, ...]) -> None:
        """Besides: what is forwarded to origins' servers (services/links/forwarded.py)."""
        self._steered = routes, rules
        self._want_both()

    def _want_both(self) -> None:
        before, (routes, rules) = self._of_policy, self._steered
        wanted = replace(before, routes=before.routes + routes, rules=before.rules + rules)
        if wanted != self._wanted:
            self._wanted = wanted
            self._changed.set()

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run())
        self._looking = asyncio.get_running_loop().create_task(self._look_at_queues())

    async def stop(self) -> None:
        """netd goes on with what it was told."""
        for task in (self._task, self._looking):
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task

    async def show(self) -> dict[str, Any]:
        """What netd wants and has done. NetdError: it doesn't run, or hangs."""
        try:
            async with asyncio.timeout(SHOW_S):
                return await _ask(self._path, "show")
        except TimeoutError:
            raise NetdError(f"accelerator-netd can't be asked: it runs, and doesn't answer in {SHOW_S:g} s") from None
        except (FileNotFoundError, ConnectionRefusedError):
            raise NetdError("accelerator-netd can't be asked: it doesn't run with this state directory") from None
        except (OSError, ValueError) as fault:
            raise NetdError(f"accelerator-netd can't be asked: {fault}") from None

    async def _look_at_queues(self) -> None:
        while True:
            rows: list[dict[str, Any]] = []
            if self._wanted.shapers:
                with contextlib.suppress(OSError, ValueError, TimeoutError, NetdError):
                    async with asyncio.timeout(QUEUES_EACH_S):
                        rows = (await _ask(self._path, "queues"))["queues"]
            self.queues = rows
            await asyncio.sleep(QUEUES_EACH_S)

    async def _run(self) -> None:
        while True:
            try:
                await self._talk()
            except TimeoutError:
                self._tell_waiting("it doesn't answer")
            except (OSError, ValueError, asyncio.IncompleteReadError):
                self._tell_waiting("it doesn't run, or isn't reached")
            except NetdError as refusal:
                self._tell_waiting(str(refusal))
            await asyncio.sleep(RETRY_S)

    async def _talk(self) -> None:
        """Until netd ends: says what is wanted, as often as that changes, and follows its events."""
        async with asyncio.timeout(ANSWER_S):
            shown = await _ask(self._path, "show")
        known = shown["services"].get(SERVICE)
        generation = known["generation"] if known is not None else 0
        # A box without any of it doesn't make netd begin anything.
        is_said = known is None and self._wanted == DesiredState()
        follower = asyncio.get_running_loop().create_task(self._follow())
        try:
            while not follower.done():
                self._changed.clear()
                if not is_said:
                    generation = min(generation + 1, GENERATION_MAX)
                    state = encode(self._wanted)
                    async with asyncio.timeout(ANSWER_S):
                        await _ask(self._path, "desire", service=SERVICE, generation=generation, state=state)
                    self._is_waiting_told = False
                is_said = False
                changed = asyncio.get_running_loop().create_task(self._changed.wait())
                await asyncio.wait({changed, follower}, return_when=asyncio.FIRST_COMPLETED)
                changed.cancel()
            await follower
        finally:
            follower.cancel()

    async def _follow(self) -> None:
        reader, writer = await asyncio.open_unix_connection(str(self._path), limit=_LINE_MAX)
        try:
            writer.write(b'{"command": "follow"}\n')
            await reader.readline()  # the past, which others have told
            while line := await reader.readline():
                event = json.loads(line)["event"]
                self._events.note(str(event["kind"]), str(event["message"]), cause=f"netd:{event['message']}")
        finally:
            writer.close()

    def _tell_waiting(self, why: str) -> None:
        """Once, until it works."""
        if self._wanted != DesiredState() and not self._is_waiting_told:
            self._is_waiting_told = True
            wanted = self._wanted
            parts: dict[str, Any] = {
                "multicast": wanted.multicast or wanted.multicast_routes,
                "links' routes": wanted.routes,
            }
            parts["marks"] = wanted.packet_rules
            parts["shaping"] = wanted.shapers
            if wanted.intercept is not None:
                parts["interception"] = (wanted.intercept,)
            what = f"{' and '.join(name for name, rows in parts.items() if rows)}: waiting for accelerator-netd"
            self._events.note("netd-waiting", what, why=why, advice=_ADVICE)


async def _ask(path: Path, command: str, **arguments: object) -> dict[str, Any]:
    reader, writer = await asyncio.open_unix_connection(str(path), limit=_LINE_MAX)
    try:
        writer.write(json.dumps({"command": command, "args": arguments}).encode() + b"\n")
        answer = json.loads(await reader.readline())
    finally:
        writer.close()
    if not answer["ok"]:
        raise NetdError(answer["error"]["message"])
    result: dict[str, Any] = answer["result"]
    return result
