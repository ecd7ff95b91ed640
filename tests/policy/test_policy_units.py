"""Units, numbers and switches: text to value, and value to text and back. No policy here."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accelerator.policy import units


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("512MiB", 512 * 2**20),
        ("1KiB", 1024),
        ("1.5GiB", 3 * 2**29),
        ("1kB", 1000),
        ("20GB", 20 * 10**9),
        ("010MB", 10**7),
        ("1.001kB", 1001),
        ("0MB", 0),
    ],
)
def test_size(text: str, size_bytes: int) -> None:
    assert units.parse_size_bytes(text) == size_bytes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("512", "a size needs a unit: KiB, MiB, GiB, kB, MB or GB (did you mean '512MiB'?)"),
        ("0", "a size needs a unit: KiB, MiB, GiB, kB, MB or GB (did you mean '0MiB'?)"),
        ("536870912", "a size needs a unit: KiB, MiB, GiB, kB, MB or GB (did you mean '512MiB'?)"),
        ("512mb", "'512mb' is not a size: the units are KiB, MiB, GiB, kB, MB or GB (did you mean '512MB'?)"),
        ("512 MiB", "'512 MiB' is not a size: the units are KiB, MiB, GiB, kB, MB or GB (did you mean '512MiB'?)"),
        ("1.5G", "'1.5G' is not a size: the units are KiB, MiB, GiB, kB, MB or GB (did you mean '1.5GiB'?)"),
        ("1TiB", "'1TiB' is not a size: the units are KiB, MiB, GiB, kB, MB or GB"),
        ("0.3KiB", "'0.3KiB' is not a whole number of bytes"),
        ("-1MiB", "expected a size such as '10MiB', got '-1MiB'"),
        ("+1MiB", "expected a size such as '10MiB', got '+1MiB'"),
        ("1_000MiB", "expected a size such as '10MiB', got '1_000MiB'"),
        ("٣MiB", "expected a size such as '10MiB', got '٣MiB'"),
        ("", "expected a size such as '10MiB', got ''"),
    ],
)
def test_size_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the message is compared whole
        units.parse_size_bytes(text)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("text", "rate_bps"), [("30Mbit/s", 30_000_000), ("8kbit/s", 8000), ("2.5Gbit/s", 2_500_000_000), ("0bit/s", 0)]
)
def test_rate(text: str, rate_bps: int) -> None:
    assert units.parse_rate_bps(text) == rate_bps


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("30", "30Mbit/s"),
        ("30Mbps", "30Mbit/s"),
        ("30mbit/s", "30Mbit/s"),
        ("30MB/s", "30Mbit/s"),
        ("8kbit", "8kbit/s"),
    ],
)
def test_rate_hint(text: str, hint: str) -> None:
    with pytest.raises(ValueError, match=f"did you mean '{hint}'"):
        units.parse_rate_bps(text)


@pytest.mark.parametrize(
    ("text", "time_s"),
    [("30s", 30.0), ("250ms", 0.25), ("1.5h", 5400.0), ("5m", 300.0), ("30d", 2_592_000.0), ("0s", 0.0)],
)
def test_time(text: str, time_s: float) -> None:
    assert units.parse_time_s(text) == time_s


@pytest.mark.parametrize(
    ("text", "hint"),
    [("30", "30s"), ("5000", "5s"), ("30sec", "30s"), ("5min", "5m"), ("30S", "30s"), ("1 h", "1h"), ("2days", "2d")],
)
def test_time_hint(text: str, hint: str) -> None:
    with pytest.raises(ValueError, match=f"did you mean '{hint}'"):
        units.parse_time_s(text)


def test_sexagesimal_is_no_time() -> None:
    with pytest.raises(ValueError, match="expected a time such as '10s', got '1:30'"):
        units.parse_time_s("1:30")


@pytest.mark.parametrize(
    "text", ["", "+5", "-5", " 5", "5 ", "0x10", "0o10", "1_000", "5.0", "1e3", "٣", "²", "9" * 5000, "1:30"]
)
def test_whole_number_is_ascii_digits_only(text: str) -> None:
    with pytest.raises(ValueError, match="expected a whole number"):
        units.parse_whole(text)


def test_octal_trap_is_decimal() -> None:
    assert units.parse_whole("010") == 10


@pytest.mark.parametrize(
    ("text", "meant"),
    [("yes", "true"), ("on", "true"), ("True", "true"), ("no", "false"), ("off", "false"), ("FALSE", "false")],
)
def test_switch_is_true_or_false(text: str, meant: str) -> None:
    with pytest.raises(ValueError, match=f"did you mean '{meant}'"):
        units.parse_switch(text)
    assert units.parse_switch(meant) is (meant == "true")


@given(st.integers(0, 10**15 - 1))
def test_size_and_rate_survive_writing(value: int) -> None:
    assert units.parse_size_bytes(units.format_size(value)) == value
    assert units.parse_rate_bps(units.format_rate(value)) == value


@given(st.integers(0, 10**9).map(lambda time_us: units.parse_time_s(f"{time_us // 1000}.{time_us % 1000:03}ms")))
def test_time_survives_writing(time_s: float) -> None:
    assert units.parse_time_s(units.format_time(time_s)) == time_s


@given(st.text(max_size=30) | st.from_regex(r"[0-9]{1,20}(\.[0-9]{1,8})? ?[a-zA-Z/]{0,8}"))
def test_any_text_gives_a_value_or_a_clear_line(text: str) -> None:
    messages = []
    for parse in (
        units.parse_size_bytes,
        units.parse_rate_bps,
        units.parse_time_s,
        units.parse_whole,
        units.parse_switch,
    ):
        try:
            parse(text)
        except ValueError as error:
            messages.append(str(error))
    assert all(message.isprintable() for message in messages)
