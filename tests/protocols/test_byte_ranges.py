"""Several ranges as they go to an origin: the same bytes, each once, and no more parts than the data plane makes."""

from __future__ import annotations

import random

import pytest

from accelerator.protocols.byte_ranges import ByteRange, are_scattered, ranges_of, united, written

MIB = 1 << 20


@pytest.mark.parametrize(
    ("value", "up"),
    [
        (b"bytes=0-0,5-9", b"bytes=0-0,5-9"),
        (b"bytes=5-9, 0-1 ,,\t3-3", b"bytes=0-1,3-3,5-9"),
        (b"bytes=0-9,5-20,21-30", b"bytes=0-30"),
        (b"bytes=0-,0-,7-,-5,-9", b"bytes=0-,-9"),
        (b"bytes=100-,5-,200-300", b"bytes=5-"),
        (b"bytes=1-2,-0", b"bytes=1-2"),
        (b"Bytes=0-1,4-5", b"bytes=0-1,4-5"),
    ],
)
def test_9110_17_15_overlapping_ranges_are_asked_for_once(value: bytes, up: bytes) -> None:
    assert written(united(ranges_of(value))) == up


def test_more_parts_than_eight_are_not_asked_for() -> None:
    assert len(united([(i * 10, i * 10) for i in range(8)])) == 8
    assert united([(i * 10, i * 10) for i in range(9)]) == []
    assert united([*((i * 10, i * 10) for i in range(8)), (-1, None)]) == []


def test_united_ranges_are_the_same_bytes() -> None:
    dice = random.Random(3)
    for _ in range(300):
        ranges = [(first := dice.randrange(60), first + dice.randrange(9)) for _ in range(dice.randrange(1, 20))]
        asked = {place for first, last in ranges for place in range(first, last + 1)}
        parts = united([(first, last) for first, last in ranges])
        if not parts:
            continue
        got = [place for first, last in parts for place in range(first, (last or 0) + 1)]
        assert got == sorted(asked)


@pytest.mark.parametrize(
    ("parts", "is_so"),
    [
        ([(0, 0), (-1, None)], False),
        ([(0, 0), (5 * MIB, 5 * MIB)], False),
        ([(0, 0), (5 * MIB, 5 * MIB), (9 * MIB, 9 * MIB)], True),
        ([(0, 0), (5, 5), (10, 10), (20, 20), (30, 30)], False),
        ([(0, MIB - 1), (5 * MIB, 6 * MIB - 1), (9 * MIB, 10 * MIB - 1)], False),
        ([(0, 0), (5 * MIB + 5, None)], False),
    ],
)
def test_what_its_slices_hold_beyond_the_ranges(parts: list[ByteRange], is_so: bool) -> None:
    assert are_scattered(parts, MIB) == is_so
