"""Lists, digits, hop-by-hop fields: tables by clause. No field's own meaning is tested here."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accelerator.protocols import fields


@pytest.mark.parametrize(
    ("value", "members"),
    [
        (b"", []),
        (b" , ,\t,", []),
        (b"a", [b"a"]),
        (b"a, b ,\tc", [b"a", b"b", b"c"]),
        (b'a="x, y", b', [b'a="x, y"', b"b"]),
        (b'a="x\\", y", b', [b'a="x\\", y"', b"b"]),
        (b'"a","b"', [b'"a"', b'"b"']),
    ],
)
def test_9110_5_6_1_list_members(value: bytes, members: list[bytes]) -> None:
    assert fields.split_list(value) == members


@pytest.mark.parametrize("value", [b'max-age="60, no-store', b'"a", x="b, no-store', b'a="\\", no-store'])
def test_an_open_quote_hides_no_directive(value: bytes) -> None:
    assert fields.split_list(value)[-1] == b"no-store"


def test_9110_5_3_lines_join_in_order() -> None:
    lines = [(b"Vary", b"a, b"), (b"X", b"y"), (b"vARY", b'"c'), (b"vary", b"d")]
    assert fields.get_list(lines, b"vary") == [b"a", b"b", b'"c', b"d"]


@given(st.lists(st.binary(max_size=8).filter(lambda part: not set(part) & set(b'," \t')), max_size=8))
def test_members_come_back_as_they_were_joined(parts: list[bytes]) -> None:
    assert fields.split_list(b" , ".join(parts)) == [part for part in parts if part]


@pytest.mark.parametrize("value", [b'"\\' * 32_000, b'"' * 64_001, b'a="' * 20_000, b"," * 64_000])
def test_a_head_full_of_quotes_takes_linear_time(value: bytes) -> None:
    began = time.process_time()
    fields.split_list(value)
    assert time.process_time() - began < 0.5


@pytest.mark.parametrize(
    ("value", "number"),
    [(b"0", 0), (b"007", 7), (b"99", 99), (b"100", 100), (b"101", 100), (b"9" * 5000, 100), (b"0" * 5000 + b"5", 5)],
)
def test_digits_clamp(value: bytes, number: int) -> None:
    assert fields.parse_digits(value, 100) == number


@pytest.mark.parametrize("value", [b"", b"+5", b"-5", b"0_5", b" 5", b"5 ", b"1.5", b"0x5", "٣".encode(), b"5\x00"])
def test_digits_are_ascii_digits_only(value: bytes) -> None:
    assert fields.parse_digits(value, 100) is None


def test_9110_7_6_1_hop_by_hop_fields_and_those_that_connection_names_are_dropped() -> None:
    head = [
        (b"Connection", b"close, X-Own"),
        (b"connection", b"x-more"),
        (b"X-OWN", b"1"),
        (b"X-More", b"2"),
        (b"X-Rest", b"3"),
        (b"Keep-Alive", b"timeout=5"),
        (b"Proxy-Connection", b"close"),
        (b"Proxy-Authenticate", b"Basic"),
        (b"TE", b"trailers"),
        (b"Trailer", b"X"),
        (b"Transfer-Encoding", b"chunked"),
        (b"Upgrade", b"h2c"),
        (b"Content-Type", b"video/mp4"),
    ]
    assert fields.without_hop_by_hop(head) == [(b"X-Rest", b"3"), (b"Content-Type", b"video/mp4")]


@pytest.mark.parametrize("name", [b"Cache-Control", b"Set-Cookie", b"Authorization", b"Vary", b"Date", b"Cookie"])
def test_9110_7_6_1_connection_cannot_name_a_field_that_is_for_all(name: bytes) -> None:
    head = [(b"Connection", name), (name, b"x")]
    assert fields.without_hop_by_hop(head) == [(name, b"x")]
