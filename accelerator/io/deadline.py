"""A time that may move at each byte: one timer, moved only when it fires early. Knows nothing of what it is for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Deadline:
    """`passed` is called once `at_s` (loop time) is there; None: nothing is awaited."""

    __slots__ = ("_loop", "_now", "_passed", "_timer", "_timer_at_s", "at_s")

    def __init__(self, loop: asyncio.AbstractEventLoop, passed: Callable[[], None]) -> None:
        self.at_s: float | None = None
        self._loop = loop
        self._now = loop.time
        self._passed = passed
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at_s = 0.0

    def set(self, seconds: float) -> None:
        at_s = self._now() + seconds
        self.at_s = at_s
        if self._timer is not None:
            if self._timer_at_s <= at_s:
                return
            self._timer.cancel()
        self._timer_at_s = at_s
        self._timer = self._loop.call_at(at_s, self._tick)

    def move(self, seconds: float) -> None:
        """The same of one that is set, as at each byte: a later time costs nothing."""
        self.at_s = self._now() + seconds

    def clear(self) -> None:
        self.at_s = None

    @property
    def left_s(self) -> float:
        return 0.0 if self.at_s is None else max(0.0, self.at_s - self._now())

    def cancel(self) -> None:
        """For good: what it would call may go."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _tick(self) -> None:
        self._timer = None
        if self.at_s is None:
            return
        # uvloop's timers count whole milliseconds.
        if self.at_s - self._now() > 0.001:
            self._timer_at_s = self.at_s
            self._timer = self._loop.call_at(self.at_s, self._tick)
        else:
            self._passed()
