"""Events: past facts for operators, what happened, why, and what to do. In memory only, bounded, one a cause and 10 s.

No viewer's address may come here, and of a query only a digest stays, whoever wrote the text.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from accelerator import clock
from accelerator.errors import ControlError
from accelerator.services.logs.queries import without_queries

EVENTS_MAX = 1000
EVERY_NS = 10_000_000_000
CAUSES_MAX = 4096
TEXT_MAX = 500
FOLLOWERS_MAX = 16
# A follower this far behind, besides the past that it asked for, has stopped reading: it is told so and dropped.
BACKLOG_MAX = 256

_BREAKS = str.maketrans("\r\n\t", "   ")


@dataclass(frozen=True, slots=True)
class Event:
    """`number` counts from 1 and says whether one was missed; `at_s` since the epoch; `count`: how often it happened
    since it was told last, this time included. `what` and `why` are one line each, `advice` what an operator can do."""

    number: int
    at_s: float
    kind: str
    what: str
    why: str = ""
    advice: str = ""
    count: int = 1


class Events:
    """The ring and its followers. Lives on one loop."""

    def __init__(self, now_ns: Callable[[], int] = clock.monotonic_ns) -> None:
        self._now_ns = now_ns
        self.n_dropped_followers = 0
        self._ring: deque[Event] = deque(maxlen=EVENTS_MAX)
        self._number = 0
        # cause -> (when it was told last, what happened since and is not told yet), the oldest first
        self._causes: OrderedDict[str, tuple[int, Event | None]] = OrderedDict()
        self._followers: set[Feed] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        # Told of each event, at once: the log that keeps some.
        self.on_told: Callable[[Event], None] = lambda _: None

    def use_loop(self, loop: asyncio.AbstractEventLoop) -> None:
        """The loop that this lives on, for those who note from other threads."""
        self._loop = loop

    def note_from_thread(self, kind: str, what: str, *, why: str = "", advice: str = "", cause: str = "") -> None:
        """note(), from any thread. Nothing is told before use_loop() and after the loop's end."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(partial(self.note, kind, what, why=why, advice=advice, cause=cause))

    @property
    def n_told(self) -> int:
        return self._number

    def note(self, kind: str, what: str, *, why: str = "", advice: str = "", cause: str = "") -> None:
        """Something happened. Of one `cause` (by default kind and what) one is told in 10 s, with the count."""
        now_ns = self._now_ns()
        event = Event(0, round(clock.wall_s(), 3), kind, clean(what), clean(why), clean(advice))
        key = cause or f"{kind}:{event.what}"
        last_ns, waiting = self._causes.get(key, (now_ns - EVERY_NS, None))
        if now_ns - last_ns < EVERY_NS:
            count = waiting.count + 1 if waiting is not None else 1
            self._causes[key] = (last_ns, replace(event, count=count))
            return
        if waiting is not None:
            event = replace(event, count=waiting.count + 1)
        self._tell(key, event, now_ns)

    def tick(self) -> None:
        """To be called each second: tells what was held back, once its 10 s are over."""
        now_ns = self._now_ns()
        due = [
            (key, waiting)
            for key, (last_ns, waiting) in self._causes.items()
            if waiting is not None and now_ns - last_ns >= EVERY_NS
        ]
        for key, waiting in due:
            self._tell(key, waiting, now_ns)

    def _tell(self, key: str, event: Event, now_ns: int) -> None:
        self._number += 1
        event = replace(event, number=self._number)
        self._causes[key] = (now_ns, None)
        self._causes.move_to_end(key)
        if len(self._causes) > CAUSES_MAX:
            self._causes.popitem(last=False)
        self._ring.append(event)
        self.on_told(event)
        for follower in list(self._followers):
            self.n_dropped_followers += not follower.push(event)

    def latest(self, *, since_s: float | None) -> list[Event]:
        """Those that are kept, the oldest first; `since_s`: only of the last so many seconds."""
        begins = clock.wall_s() - since_s if since_s is not None else float("-inf")
        return [event for event in self._ring if event.at_s >= begins]

    def after(self, number: int) -> list[Event]:
        """Those that are kept and were told after the one of this number, the oldest first."""
        return [event for event in self._ring if event.number > number]

    def follow(self, *, since_s: float | None) -> Feed:
        """Those of the last `since_s` seconds first, and then each when it comes. Raises ControlError("busy")."""
        if len(self._followers) >= FOLLOWERS_MAX:
            raise ControlError("busy", f"{FOLLOWERS_MAX} followers are there already")
        feed = Feed(self._followers, self.latest(since_s=since_s) if since_s is not None else [])
        self._followers.add(feed)
        return feed


class Feed:
    """One follower's events as plain values. To be closed by whoever got it, however it ends."""

    def __init__(self, followers: set[Feed], past: list[Event]) -> None:
        self._followers = followers
        self._waiting = deque(past)
        self._is_slow = False
        self._rung = asyncio.Event()

    def push(self, event: Event) -> bool:
        """False: its reader is too far behind and gets no more."""
        if len(self._waiting) >= BACKLOG_MAX + EVENTS_MAX:
            self._is_slow = True
            self._followers.discard(self)
        else:
            self._waiting.append(event)
        self._rung.set()
        return not self._is_slow

    def __aiter__(self) -> Feed:
        return self

    async def __anext__(self) -> dict[str, Any]:
        """The next event. Raises ControlError("slow") where events were lost."""
        while not self._waiting or self._is_slow:
            if self._is_slow:
                raise ControlError("slow", "this reader is too far behind: follow again")
            self._rung.clear()
            await self._rung.wait()
        return asdict(self._waiting.popleft())

    def close(self) -> None:
        self._followers.discard(self)


def clean(text: str) -> str:
    """One printable line of bounded length, with digests for queries: names and reasons come from strangers too."""
    text = without_queries(text)
    text = text.translate(_BREAKS)
    if not text.isprintable():
        text = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)
    return text if len(text) <= TEXT_MAX else text[: TEXT_MAX - 3] + "..."
