"""HTTP dates by RFC 9110 section 5.6.7, and what is none."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accelerator.protocols.dates import format_http_date, parse_http_date

EXAMPLE_S = 784111777


@pytest.mark.parametrize(
    "value",
    [
        b"Sun, 06 Nov 1994 08:49:37 GMT",
        b"Sunday, 06-Nov-94 08:49:37 GMT",
        b"Sun Nov  6 08:49:37 1994",
        b"sun, 06 nov 1994 08:49:37 gmt",  # RFC 9111 section 4.2: a cache matches case-insensitively
        b"Mon, 06 Nov 1994 08:49:37 GMT",  # the wrong day's name
    ],
)
def test_9110_5_6_7_the_three_formats(value: bytes) -> None:
    assert parse_http_date(value) == EXAMPLE_S


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"0",
        b"-1",
        b"784111777",
        b"Sun, 06 Nov 1994 08:49:37",
        b"Sun, 06 Nov 1994 08:49:37 UTC",
        b"Sun, 06 Nov 1994 08:49:37 CET",
        b"Sun, 06 Nov 1994 08:49:37 +0000",
        b"Sun, 6 Nov 1994 08:49:37 GMT",
        b"Sun, 06 Nov 94 08:49:37 GMT",
        b"Sun,  06 Nov 1994 08:49:37 GMT",
        b"Sun, 06-Nov-1994 08:49:37 GMT",
        b"Sun, 31 Feb 1994 08:49:37 GMT",
        b"Sun, 00 Nov 1994 08:49:37 GMT",
        b"Sun, 06 Nov 0000 08:49:37 GMT",
        b"Sun, 06 Nov 1994 24:00:00 GMT",
        b"Sun, 06 Nov 1994 08:60:00 GMT",
        b"Sun, 06 Nov 1994 08:49:61 GMT",
        b"Sun, 06 Nov 1994 +8:49:37 GMT",
        b"Sun, 06 Nov 1994 08:49:37 GMT ",
        b"Sun, 06 Nov 1994 08:49:37 GMT, Sun, 06 Nov 1994 08:49:37 GMT",
        b"Sun Nov 6 08:49:37 1994",
        b"Sun Nov 06 08:49:37 1994 GMT",
        b"1994-11-06T08:49:37Z",
        "Sun, ٠٦ Nov 1994 08:49:37 GMT".encode(),
    ],
)
def test_9110_5_6_7_all_else_is_no_date(value: bytes) -> None:
    assert parse_http_date(value) is None


def test_9110_5_6_7_a_leap_second_is_in_the_grammar() -> None:
    assert parse_http_date(b"Sat, 31 Dec 2016 23:59:60 GMT") == parse_http_date(b"Sun, 01 Jan 2017 00:00:00 GMT")


@pytest.mark.parametrize(
    ("now_year", "two_digits", "year"),
    [(2026, 94, 1994), (2026, 26, 2026), (2026, 76, 2076), (2026, 77, 1977), (2060, 9, 2109), (1999, 0, 2000)],
)
def test_9110_5_6_7_two_digit_years_lie_within_50_years(now_year: int, two_digits: int, year: int) -> None:
    now_s = datetime(now_year, 6, 1, tzinfo=UTC).timestamp()
    expected_s = datetime(year, 3, 1, tzinfo=UTC).timestamp()
    assert parse_http_date(b"Monday, 01-Mar-%02d 00:00:00 GMT" % two_digits, now_s) == expected_s


@given(st.integers(min_value=-62135596800, max_value=253402300799))
def test_what_is_written_is_read(seconds: int) -> None:
    assert parse_http_date(format_http_date(seconds)) == seconds


@pytest.mark.parametrize("seconds", [1e18, -1e18, 2.0**63])
def test_no_clock_makes_writing_raise(seconds: float) -> None:
    assert parse_http_date(format_http_date(seconds)) is not None


@given(st.binary(max_size=40))
def test_nothing_makes_reading_raise(value: bytes) -> None:
    parse_http_date(value)
