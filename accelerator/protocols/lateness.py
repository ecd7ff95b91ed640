"""What a histogram of late trains says (`RelayPlane.late`). Pure: counts in, milliseconds out."""

from __future__ import annotations

from collections.abc import Sequence


def late_p99_ms(counts: Sequence[int]) -> float:
    """Below which 99 of 100 were late; `counts[n]` were so by less than 2^n microseconds. 0: none was counted."""
    left = sum(counts) * 0.99
    for n, count in enumerate(counts):
        left -= count
        if count and left <= 0:
            return float(2**n / 1000)
    return 0.0
