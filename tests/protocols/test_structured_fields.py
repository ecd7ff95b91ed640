"""Structured Field dictionaries by RFC 8941 section 4.2.2."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accelerator.protocols.structured_fields import ItemType, parse_dictionary


@pytest.mark.parametrize(
    ("value", "item_type", "text"),
    [
        (b"a", ItemType.BOOLEAN, b"1"),
        (b"a=?0", ItemType.BOOLEAN, b"0"),
        (b"a;p=1", ItemType.BOOLEAN, b"1"),
        (b"a=5", ItemType.INTEGER, b"5"),
        (b"a=-5", ItemType.INTEGER, b"-5"),
        (b"a=999999999999999", ItemType.INTEGER, b"999999999999999"),
        (b"a=1.5", ItemType.DECIMAL, b"1.5"),
        (b'a="x \\"y\\" \\\\"', ItemType.STRING, b'x "y" \\'),
        (b"a=tok/en:x", ItemType.TOKEN, b"tok/en:x"),
        (b"a=*", ItemType.TOKEN, b"*"),
        (b"a=:aGk=:", ItemType.BYTES, b"aGk="),
        (b'a=(1 "b";q=1  c)', ItemType.INNER_LIST, b'(1 "b";q=1  c)'),
        (b"a=()", ItemType.INNER_LIST, b"()"),
        (b"  a=5;x;y=2 ", ItemType.INTEGER, b"5"),
    ],
)
def test_8941_4_2_values(value: bytes, item_type: ItemType, text: bytes) -> None:
    assert parse_dictionary(value) == {b"a": (item_type, text)}


@pytest.mark.parametrize(
    "value",
    [
        b"A",
        b"1a",
        b"a=",
        b"a =1",
        b"a= 1",
        b"a=1000000000000000",  # 16 digits
        b"a=1.",
        b"a=1.2345",
        b"a=1234567890123.1",
        b"a=1.2.3",
        b"a=-",
        b"a=+1",
        b'a="x',
        b'a="\\x"',
        b'a="\xe9"',
        b"a=?2",
        b"a=:a:b",
        b"a=(1",
        b"a=(1,2)",
        b"a=(1\t2)",
        b"a,",
        b"a,,b",
        b"a b",
        b"a;",
        b"a;P",
        b"\ta",
        b"a=@1659578233",
    ],
)
def test_8941_4_2_one_wrong_byte_makes_the_field_invalid(value: bytes) -> None:
    assert parse_dictionary(value) is None


@pytest.mark.parametrize(("value", "keys"), [(b"", []), (b"a,b", [b"a", b"b"]), (b"a=1 ,\tb", [b"a", b"b"])])
def test_8941_4_2_2_members(value: bytes, keys: list[bytes]) -> None:
    members = parse_dictionary(value)
    assert members is not None
    assert list(members) == keys


@given(st.binary(max_size=60))
def test_nothing_makes_reading_raise(value: bytes) -> None:
    parse_dictionary(value)
