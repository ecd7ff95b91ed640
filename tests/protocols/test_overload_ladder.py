"""The rungs of the overload ladder: when each begins and ends, and what the cache gives up."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accelerator.protocols.overload import BEGINS, Ladder, Rung

LIMIT = 1000
CACHE = 512 << 20


def at(ladder: Ladder, used: int, cache: int = 0, connections: float = 0.0) -> Rung:
    ladder.observe(used, LIMIT, cache, connections)
    return ladder.rung


@pytest.mark.parametrize(
    ("used", "rung"),
    [(0, 0), (849, 0), (850, 1), (919, 1), (920, 2), (949, 2), (950, 3), (1000, 3), (2000, 3)],
)
def test_where_each_rung_begins(used: int, rung: int) -> None:
    assert at(Ladder(CACHE), used) == rung


def test_a_rung_is_left_below_where_it_begins() -> None:
    ladder = Ladder(CACHE)
    steps = [(960, 3), (930, 3), (919, 2), (900, 2), (889, 1), (830, 1), (819, 0), (849, 0), (850, 1)]
    assert [at(ladder, used) for used, _ in steps] == [rung for _, rung in steps]


def test_connections_alone_end_keep_alive_and_refuse_but_shrink_nothing() -> None:
    ladder = Ladder(CACHE)
    assert at(ladder, 100, cache=500, connections=0.9) == Rung.NONE
    assert at(ladder, 100, cache=500, connections=0.92) == Rung.NO_KEEP_ALIVE
    assert at(ladder, 100, cache=500, connections=0.95) == Rung.REFUSE
    assert ladder.give_up_bytes == 0
    assert at(ladder, 100, cache=500, connections=0.5) == Rung.NONE


def test_the_cache_gives_what_is_over_and_takes_it_back_slowly() -> None:
    ladder = Ladder(CACHE)
    at(ladder, 900, cache=400)
    assert ladder.give_up_bytes == 50
    at(ladder, 870, cache=370)
    assert ladder.give_up_bytes == 70
    at(ladder, 840, cache=340)  # between the two marks nothing moves
    assert ladder.give_up_bytes == 70
    at(ladder, 700, cache=300)
    assert ladder.give_up_bytes == 50
    for _ in range(10):
        at(ladder, 700, cache=300)
    assert ladder.give_up_bytes == 0


def test_it_never_gives_what_it_does_not_have() -> None:
    ladder = Ladder(CACHE)
    for _ in range(100):
        at(ladder, 990, cache=0)
    assert ladder.give_up_bytes == 0


def test_bug_a_cache_that_had_given_everything_could_pass_no_miss_on() -> None:
    mebibyte = 1 << 20
    ladder = Ladder(256 * mebibyte)
    for _ in range(50):
        ladder.observe(1000 * mebibyte, 1000 * mebibyte, 256 * mebibyte, 0.0)
    assert ladder.give_up_bytes == 240 * mebibyte
    small = Ladder(16 * mebibyte)
    for _ in range(50):
        small.observe(1000 * mebibyte, 1000 * mebibyte, 16 * mebibyte, 0.0)
    assert small.give_up_bytes == 8 * mebibyte


def test_without_a_limit_that_can_be_read_there_is_no_pressure() -> None:
    ladder = Ladder(CACHE)
    ladder.give_up_bytes = 100
    ladder.observe(0, 0, 100, 0.0)
    assert (ladder.rung, ladder.give_up_bytes) == (Rung.NONE, 0)


@given(st.lists(st.tuples(st.integers(0, 1100), st.integers(0, 1000), st.floats(0, 1.2)), max_size=60))
def test_the_rung_is_never_below_what_is_seen(looks: list[tuple[int, int, float]]) -> None:
    ladder = Ladder(CACHE)
    for used, cache, connections in looks:
        ladder.observe(used, LIMIT, cache, connections)
        for rung, begins in BEGINS.items():
            if used / LIMIT >= begins:
                assert ladder.rung >= rung
        assert ladder.give_up_bytes >= 0
