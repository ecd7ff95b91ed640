"""HTTP dates (RFC 9110 section 5.6.7): the three formats and no other, GMT only, no locale and no local time zone."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta

_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_MONTH_NUMBERS = {name.lower().encode(): number for number, name in enumerate(_MONTHS, 1)}

_DAY = rb"(?:mon|tue|wed|thu|fri|sat|sun)"
_LONG_DAY = rb"(?:monday|tuesday|wednesday|thursday|friday|saturday|sunday)"
_MONTH = rb"(jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)"
_CLOCK = rb"([0-9]{2}):([0-9]{2}):([0-9]{2})"
# Matched case-insensitively, as RFC 9111 section 4.2 asks of a cache.
_IMF = re.compile(_DAY + rb", ([0-9]{2}) " + _MONTH + rb" ([0-9]{4}) " + _CLOCK + rb" gmt", re.IGNORECASE)
_RFC850 = re.compile(_LONG_DAY + rb", ([0-9]{2})-" + _MONTH + rb"-([0-9]{2}) " + _CLOCK + rb" gmt", re.IGNORECASE)
_ASCTIME = re.compile(_DAY + rb" " + _MONTH + rb" ([0-9]{2}| [0-9]) " + _CLOCK + rb" ([0-9]{4})", re.IGNORECASE)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_EPOCH_ORDINAL = date(1970, 1, 1).toordinal()
# Used where the caller has no `now`: two-digit years are then 1976 to 2075.
_DEFAULT_NOW_S = (date(2026, 1, 1).toordinal() - _EPOCH_ORDINAL) * 86400
_LAST_S = (date(9999, 12, 31).toordinal() - _EPOCH_ORDINAL) * 86400 + 86399
_FIRST_S = (date(1, 1, 1).toordinal() - _EPOCH_ORDINAL) * 86400


def parse_http_date(value: bytes, now_s: float = _DEFAULT_NOW_S) -> int | None:
    """Seconds since the epoch, or None where the value is none of the three formats or names no day that exists.

    `now_s` places the two-digit year of the RFC 850 format. The name of the day is not compared with the date: no
    recipient needs it, and origins with a wrong one exist.
    """
    if match := _IMF.fullmatch(value):
        day, month, year, hour, minute, second = match.groups()
        return _seconds(int(year), month, day, hour, minute, second)
    if match := _RFC850.fullmatch(value):
        day, month, year, hour, minute, second = match.groups()
        return _seconds(_full_year(int(year), now_s), month, day, hour, minute, second)
    if match := _ASCTIME.fullmatch(value):
        month, day, hour, minute, second, year = match.groups()
        return _seconds(int(year), month, day, hour, minute, second)
    return None


def format_http_date(seconds: float) -> bytes:
    """IMF-fixdate. What lies outside years 1 to 9999 is clamped, so that no clock can make this raise."""
    moment = _EPOCH + timedelta(seconds=max(_FIRST_S, min(int(seconds), _LAST_S)))
    day, month = _DAYS[moment.weekday()], _MONTHS[moment.month - 1]
    return (
        f"{day}, {moment.day:02} {month} {moment.year:04} {moment.hour:02}:{moment.minute:02}:{moment.second:02} GMT"
    ).encode()


def _full_year(two_digits: int, now_s: float) -> int:
    # RFC 9110 section 5.6.7: more than 50 years in the future means the most recent past year with these two digits.
    now_year = (_EPOCH + timedelta(seconds=max(_FIRST_S, min(int(now_s), _LAST_S)))).year
    year = now_year - now_year % 100 + two_digits
    if year > now_year + 50:
        return year - 100
    if year <= now_year - 50:
        return year + 100
    return year


def _seconds(year: int, month: bytes, day: bytes, hour: bytes, minute: bytes, second: bytes) -> int | None:
    hours, minutes, seconds = int(hour), int(minute), int(second)
    if hours > 23 or minutes > 59 or seconds > 60:  # 60: a leap second is in the grammar
        return None
    try:
        ordinal = date(year, _MONTH_NUMBERS[month.lower()], int(day)).toordinal()
    except ValueError:
        return None
    return (ordinal - _EPOCH_ORDINAL) * 86400 + hours * 3600 + minutes * 60 + seconds
