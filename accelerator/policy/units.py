"""Sizes, rates, times, whole numbers and switches, from the text that was written in a policy. No YAML, no model here.

YAML 1.1 would read `010` as 8, `1:30` as 90 and `on` as true, so nothing is taken from YAML's own typing: every
function here takes the text and raises ValueError with a clear line (and a nearest spelling where there is one).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from difflib import get_close_matches

SIZE_UNITS = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "kB": 10**3, "MB": 10**6, "GB": 10**9}
RATE_UNITS = {"bit/s": 1, "kbit/s": 10**3, "Mbit/s": 10**6, "Gbit/s": 10**9}
PERCENT_UNITS = {"%": 1}
TIME_UNITS_MS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}

# int() refuses text of more than 4,300 digits; 15 are enough for all, and each key has bounds of its own.
_QUANTITY = re.compile(r"([0-9]{1,15})(?:\.([0-9]{1,6}))?( *[A-Za-z].*|)", re.DOTALL)
_WHOLE = re.compile(r"[0-9]{1,18}")

# What people write by habit from other tools (nginx, tc, iptables). difflib would offer MiB for TiB.
_HABITS = {
    "k": "KiB", "m": "MiB", "g": "GiB", "kb": "kB", "mb": "MB", "gb": "GB", "kib": "KiB", "mib": "MiB", "gib": "GiB",
    "ki": "KiB", "mi": "MiB", "gi": "GiB", "bps": "bit/s", "kbps": "kbit/s", "mbps": "Mbit/s", "gbps": "Gbit/s",
    "kbit": "kbit/s", "mbit": "Mbit/s", "gbit": "Gbit/s", "kb/s": "kbit/s", "mb/s": "Mbit/s", "gb/s": "Gbit/s",
    "msec": "ms", "sec": "s", "secs": "s", "second": "s", "seconds": "s", "min": "m", "mins": "m", "minute": "m",
    "minutes": "m", "hour": "h", "hours": "h", "hr": "h", "day": "d", "days": "d",
}  # fmt: skip


def quoted(text: str) -> str:
    """`text` in quotes, short and printable: what a message shows of a value."""
    return repr(text if len(text) <= 60 else text[:57] + "...")


def nearest(text: str, known: list[str]) -> str:
    """` (did you mean 'x'?)` with the nearest of `known`, or nothing."""
    if len(text) > 64:  # difflib is quadratic, and nobody mistypes 64 characters
        return ""
    close = get_close_matches(text, known, n=1, cutoff=0.6) or [name for name in known if name.lower() == text.lower()]
    return f" (did you mean '{close[0]}'?)" if close else ""


def _names(units: list[str]) -> str:
    return ", ".join(units[:-1]) + " or " + units[-1]


def _nearest_unit(unit: str, units: list[str]) -> str | None:
    habit = _HABITS.get(unit.lower())
    return habit if habit in units else {name.lower(): name for name in units}.get(unit.lower())


def _quantity(text: str, what: str, units: dict[str, int], usual: str) -> tuple[int, int]:
    """The value as a fraction (numerator, denominator) of the smallest unit."""
    names = list(units)
    match = _QUANTITY.fullmatch(text)
    if match is None:
        raise ValueError(f"expected {what} such as '10{usual}', got {quoted(text)}")
    whole, decimals, unit = match.group(1), match.group(2) or "", match.group(3)
    if unit not in units:
        number = text[: match.start(3)]
        if not unit:
            # 3 means 3MiB to most people, 536870912 means bytes.
            meant = f"{number}{usual}" if decimals or len(whole) <= 3 else _IN_SMALLEST_UNIT[usual](int(whole))
            raise ValueError(f"{what} needs a unit: {_names(names)} (did you mean '{meant}'?)")
        close = _nearest_unit(unit.strip(), names)
        hint = f" (did you mean '{number}{close}'?)" if close else ""
        raise ValueError(f"{quoted(text)} is not {what}: the units are {_names(names)}{hint}")
    return int(whole + decimals) * units[unit], 10 ** len(decimals)


def _whole_quantity(text: str, what: str, units: dict[str, int], usual: str, smallest: str) -> int:
    value, divisor = _quantity(text, what, units, usual)
    if value % divisor:
        raise ValueError(f"{quoted(text)} is not a whole number of {smallest}")
    return value // divisor


def parse_size_bytes(text: str) -> int:
    """`512MiB` -> bytes. ValueError: no unit, unknown unit, not whole."""
    return _whole_quantity(text, "a size", SIZE_UNITS, "MiB", "bytes")


def parse_rate_bps(text: str) -> int:
    """`30Mbit/s` -> bits per second. ValueError: no unit, unknown unit, not whole."""
    return _whole_quantity(text, "a rate", RATE_UNITS, "Mbit/s", "bits per second")


def parse_percent(text: str) -> int:
    """`70%` -> 70. ValueError: no %, not a whole number."""
    number = text.removesuffix("%")
    if number == text or not (number.isascii() and number.isdigit()) or len(number) > 3:
        raise ValueError(f"expected a share such as '70%', got {quoted(text)}")
    return int(number)


def format_percent(percent: int) -> str:
    return f"{percent}%"


def parse_time_s(text: str) -> float:
    """`30s`, `1.5h` -> seconds. ValueError: no unit, unknown unit, not a number (`1:30` is not one)."""
    value, divisor = _quantity(text, "a time", TIME_UNITS_MS, "s")
    return value / divisor / 1000


def format_size(size_bytes: int) -> str:
    """The shortest text that parse_size_bytes reads as `size_bytes`."""
    for unit in ("GiB", "MiB", "KiB", "GB", "MB", "kB"):
        if size_bytes % SIZE_UNITS[unit] == 0:
            return f"{size_bytes // SIZE_UNITS[unit]}{unit}"
    return f"{size_bytes // 1000}.{size_bytes % 1000:03}kB"


def format_rate(rate_bps: int) -> str:
    """The shortest text that parse_rate_bps reads as `rate_bps`."""
    unit = next(
        unit for unit in reversed(RATE_UNITS) if rate_bps % RATE_UNITS[unit] == 0 and (rate_bps or unit == "bit/s")
    )
    return f"{rate_bps // RATE_UNITS[unit]}{unit}"


def format_time(time_s: float) -> str:
    """The shortest text that parse_time_s reads as `time_s`, to the nanosecond."""
    for unit in ("d", "h", "m", "s"):
        if time_s * 1000 % TIME_UNITS_MS[unit] == 0 and (time_s or unit == "s"):
            return f"{int(time_s * 1000) // TIME_UNITS_MS[unit]}{unit}"
    return f"{time_s * 1000:.6f}".rstrip("0").rstrip(".") + "ms"


_IN_SMALLEST_UNIT: dict[str, Callable[[int], str]] = {
    "MiB": format_size,
    "Mbit/s": format_rate,
    "s": lambda time_ms: format_time(time_ms / 1000),
}


def parse_whole(text: str) -> int:
    """`10` and `010` -> 10: decimal always. ValueError for signs, underscores, other digits than ASCII."""
    if not _WHOLE.fullmatch(text):
        raise ValueError(f"expected a whole number, got {quoted(text)}")
    return int(text)


def parse_switch(text: str) -> bool:
    """`true` or `false`, nothing else: `on`, `yes`, `1` mean different things to different YAML readers."""
    if text in ("true", "false"):
        return text == "true"
    habit = {
        "yes": "true",
        "on": "true",
        "y": "true",
        "1": "true",
        "no": "false",
        "off": "false",
        "n": "false",
        "0": "false",
    }
    meant = habit.get(text.lower(), text.lower())
    hint = f" (did you mean '{meant}'?)" if meant in ("true", "false") else ""
    raise ValueError(f"expected true or false, got {quoted(text)}{hint}")
