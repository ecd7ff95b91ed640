"""The only place that reads clocks: everything else is given `now`. No timer, no sleep here."""

from __future__ import annotations

import time


def monotonic_ns() -> int:
    """Nanoseconds of CLOCK_MONOTONIC, the clock that the data plane compares with."""
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC)


def wall_s() -> float:
    """Seconds since the epoch. Enters cache arithmetic only through Date and response_time (RFC 9111 section 4.2.3)."""
    return time.time()
