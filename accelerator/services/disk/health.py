"""Whether the disk may be used: put aside after five errors, tried again from time to time. Does no I/O of its own."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

from accelerator import clock

ERRORS_MOST = 5
# Errors further apart than this are single misfortunes.
ERRORS_WITHIN_S = 60.0
RETRY_S = 10.0
# A disk that needs this long for one operation helps nobody: the origin is nearer.
SLOW_NS = 2_000_000_000

Probe = Callable[[Callable[[int, int], None]], None]


class DiskHealth:
    """`probe(done)` tries the disk and calls `done(error, took_ns)`. `note(kind, subject, why)` hears of changes."""

    def __init__(self, note: Callable[[str, str, str], None], loop: asyncio.AbstractEventLoop, probe: Probe) -> None:
        self.is_ok = True
        self.why = ""
        self._note = note
        self._loop = loop
        self._probe = probe
        self._errors: list[int] = []
        self._timer: asyncio.TimerHandle | None = None

    def failed(self, error: int, what: str) -> None:
        """One operation has failed, with an errno."""
        self._error(f"{what}: {os.strerror(error)}")

    def took(self, took_ns: int) -> None:
        if took_ns > SLOW_NS:
            self._error(f"an operation took {took_ns / 1e9:.1f} s")

    def late(self) -> None:
        """Somebody has stopped waiting for the disk."""
        self._error("a read did not come in time")

    def worked(self) -> None:
        if self._errors and clock.monotonic_ns() - self._errors[-1] > ERRORS_WITHIN_S * 1e9:
            self._errors.clear()

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def put_aside(self, why: str) -> None:
        if not self.is_ok:
            return
        self.is_ok, self.why = False, why
        self._note("disk-aside", "the disk is put aside: memory and origins serve on", why)
        self._timer = self._loop.call_later(RETRY_S, self._try)

    def _error(self, why: str) -> None:
        now_ns = clock.monotonic_ns()
        self._errors = [at for at in self._errors if now_ns - at < ERRORS_WITHIN_S * 1e9][-ERRORS_MOST:]
        self._errors.append(now_ns)
        if len(self._errors) >= ERRORS_MOST:
            self.put_aside(why)

    def _try(self) -> None:
        self._timer = self._loop.call_later(RETRY_S, self._try)
        self._probe(self._tried)

    def _tried(self, error: int, took_ns: int) -> None:
        if error or took_ns > SLOW_NS or self.is_ok:
            return
        self.stop()
        self._errors.clear()
        self.is_ok, self.why = True, ""
        self._note("disk-returned", "the disk is used again", "it took a file, and synced it")
