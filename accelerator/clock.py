"""The only place that reads clocks: everything else is given `now`. No timer, no sleep here."""

from __future__ import annotations

import time


def monotonic_ns() -> int:
    """Nanoseconds of CLOCK_MONOTONIC, the clock that the data plane compares with."""
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC)


def steady_wall_ns() -> int:
    """The wall clock as it was when this process began, and what has passed since: no step of the clock is in it. What
    is written to the disk is dated by it, so that its age is right for as long as the process lives."""
    return _STARTED_WALL_NS + monotonic_ns()


def wall_s() -> float:
    """Seconds since the epoch. Enters cache arithmetic only through Date and response_time (RFC 9111 section 4.2.3)."""
    return time.time()


_STARTED_WALL_NS = time.time_ns() - monotonic_ns()
