"""How single values are written for people: sizes, rates, durations, names from strangers. Pure; no tables, no rich
here.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

_BINARY = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_DECIMAL = ("bit/s", "kbit/s", "Mbit/s", "Gbit/s", "Tbit/s")


def printable(text: object) -> str:
    """`text` with every character escaped that is not simply seen: control codes, terminal escapes, bidi marks, line
    separators.

    URLs and names come from viewers and origins: printed raw, they could rewrite an operator's screen.
    """
    raw = str(text)
    if raw.isprintable():
        return raw
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in raw)


def size_text(size_bytes: float) -> str:
    """1536 -> "1.5 KiB"."""
    return _scaled(size_bytes, 1024, _BINARY)


def rate_text(rate_bps: float) -> str:
    """Bits each second: 2_500_000 -> "2.5 Mbit/s"."""
    return _scaled(rate_bps, 1000, _DECIMAL)


def count_text(count: float) -> str:
    """1234567 -> "1,234,567"; a fraction keeps one digit below 100."""
    return f"{count:,.1f}" if count < 100 and count != int(count) else f"{count:,.0f}"


def ratio_text(ratio: float | None) -> str:
    """0.987 -> "98.7 %"; None (nothing to divide by) -> "-"."""
    return "-" if ratio is None else f"{100 * ratio:.1f} %"


def duration_text(seconds: float) -> str:
    """Two units at most: 3725 -> "1 h 02 min". Negative ones keep their sign."""
    sign, rest = ("-", -seconds) if seconds < 0 else ("", seconds)
    if rest < 10:
        return f"{sign}{rest:.1f} s"
    whole = round(rest)
    if whole < 60:
        return f"{sign}{whole} s"
    if whole < 3600:
        return f"{sign}{whole // 60} min {whole % 60:02} s"
    if whole < 86400:
        return f"{sign}{whole // 3600} h {whole % 3600 // 60:02} min"
    return f"{sign}{whole // 86400} d {whole % 86400 // 3600:02} h"


def time_text(at_s: float) -> str:
    """Local time with the zone's offset: "2026-11-23 13:05:09+0100"."""
    return time.strftime("%Y-%m-%d %H:%M:%S%z", time.localtime(at_s))


def event_line(event: Mapping[str, Any]) -> str:
    """One event on one line."""
    parts = [f"{time_text(event['at_s'])} {event['kind']}: {event['what']}"]
    if event.get("count", 1) > 1:
        parts.append(f" ({event['count']} times)")
    if event.get("why"):
        parts.append(f": {event['why']}")
    if event.get("advice"):
        parts.append(f" [{event['advice']}]")
    return printable("".join(parts))


def _scaled(value: float, step: int, units: tuple[str, ...]) -> str:
    for unit in units[:-1]:
        # Just below the step it would round to "1024.0 KiB".
        if abs(value) < step - 0.05:
            return f"{value:.0f} {unit}" if unit == units[0] else f"{value:.1f} {unit}"
        value /= step
    return f"{value:.1f} {units[-1]}"
