"""The WAN budget's arithmetic against a simulated link: rate, guarantees, ceilings, order."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accelerator.protocols.budget import BURST_S, Budget, Share

RATE_BPS = 12_000_000


def simulate(shares: list[Share], wants: list[bool], seconds: float = 5.0) -> tuple[list[float], float, float]:
    """Bytes per second that each class read, the most of any second, and the rate: a reader of each class that wants
    reads as soon as it may."""
    budget = Budget(RATE_BPS, shares, 0.0)
    read = [0.0] * len(shares)
    times: list[tuple[float, int]] = []
    now_s, step_s = 0.0, 0.002
    for index, is_wanted in enumerate(wants):
        if is_wanted:
            budget.joined(index)
    while now_s < seconds:
        for index, is_wanted in enumerate(wants):
            while is_wanted and budget.wait_s(index, now_s) == 0:
                budget.set_waiting(index, False)
                budget.took(index, budget.quantum, now_s)
                read[index] += budget.quantum
                times.append((now_s, budget.quantum))
            budget.set_waiting(index, is_wanted)
        now_s += step_s
    most = max(
        (sum(n for at_s, n in times if begin_s <= at_s < begin_s + 1) for begin_s in [t / 10 for t in range(40)]),
        default=0,
    )
    return [each / seconds for each in read], most, budget.rate


def test_one_class_has_the_whole_link_and_no_more() -> None:
    (rate,), most, limit = simulate([Share()], [True])
    assert rate == pytest.approx(limit, rel=0.05)
    assert most * 8 <= RATE_BPS, "over a window of a second"


def test_the_first_class_has_what_it_wants_and_the_others_their_guarantee() -> None:
    (first, second, third), _, limit = simulate([Share(), Share(0.3), Share(0.01)], [True] * 3)
    assert second == pytest.approx(0.3 * limit, rel=0.1)
    assert third == pytest.approx(0.01 * limit, rel=0.5)
    assert first == pytest.approx(0.69 * limit, rel=0.1)


def test_a_guarantee_of_who_wants_nothing_is_lent() -> None:
    (_, second), _, limit = simulate([Share(0.8), Share()], [False, True])
    assert second == pytest.approx(limit, rel=0.05)


def test_a_ceiling_holds_on_an_empty_link() -> None:
    (rate,), _, limit = simulate([Share(0.0, 0.25)], [True])
    assert rate == pytest.approx(0.25 * limit, rel=0.05)


def test_who_has_borrowed_for_long_has_its_guarantee_at_once_when_another_comes() -> None:
    """A class that had borrowed owed it, and had nothing for as long as it had borrowed."""
    budget = Budget(RATE_BPS, [Share(), Share(0.5)], 0.0)
    now_s = 0.0
    while now_s < 10:
        if budget.wait_s(1, now_s) == 0:
            budget.took(1, budget.quantum, now_s)
        now_s += 0.002
    read = 0
    while now_s < 11:
        budget.set_waiting(0, True)
        if budget.wait_s(0, now_s) == 0:
            budget.took(0, budget.quantum, now_s)
        if budget.wait_s(1, now_s) == 0:
            budget.took(1, budget.quantum, now_s)
            read += budget.quantum
        now_s += 0.002
    assert read == pytest.approx(0.5 * budget.rate, rel=0.15)


def test_a_debt_is_forgotten_after_half_a_second() -> None:
    """12 MB came into one receive buffer at once, and everybody waited for 6 s."""
    budget = Budget(RATE_BPS, [Share(0.4), Share()], 0.0)
    budget.took(1, 12_000_000, 0.0)
    assert budget.wait_s(0, 0.0) < 0.6
    assert budget.wait_s(0, 0.6) == 0


def test_what_nobody_can_hold_up_comes_first_and_classes_share_the_rest() -> None:
    """A tunnel of 60 % of the link: who borrows gets 40 %, and windows are of that size; a guarantee still holds."""
    budget = Budget(8e6, [Share(0.2), Share()], 0.0)
    read, now_s = [0, 0], 0.0
    while now_s < 3.0:
        budget.took_outside(int(budget.rate * 0.6 * 0.05), now_s)
        for _ in range(25):
            now_s += 0.002
            for index in (0, 1):
                while budget.wait_s(index, now_s) == 0:
                    budget.took(index, 1000, now_s)
                    read[index] += 1000
    assert 0.3 < sum(read) / (3 * budget.rate) < 0.45
    assert read[0] / (3 * budget.rate) >= 0.19
    assert budget.outside_rate(now_s) == pytest.approx(budget.rate * 0.6, rel=0.15)
    budget.joined(1)
    free = Budget(8e6, [Share(0.2), Share()], 0.0)
    free.joined(1)
    assert budget.window_bytes(1, 0.2, now_s) < free.window_bytes(1, 0.2, 0.0) * 0.6


def test_windows_go_by_what_a_class_may_have_and_how_many_share_it() -> None:
    budget = Budget(100_000_000, [Share(0.4), Share(0.0, 0.5)], 0.0)
    budget.joined(0)
    alone = budget.window_bytes(0, 0.06, 0.0)
    assert alone == pytest.approx(budget.rate * 0.08, rel=0.05)
    for _ in range(3):
        budget.joined(0)
    assert budget.window_bytes(0, 0.06, 0.0) == pytest.approx(alone / 4, rel=0.05)
    budget.joined(1)
    assert budget.window_bytes(1, 0.06, 0.0) == pytest.approx(0.5 * budget.rate * 0.08, rel=0.05)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0.0, 0.5), st.floats(0.1, 1.0), st.booleans()), min_size=1, max_size=5).filter(
        lambda rows: sum(row[0] for row in rows) <= 1 and all(low <= high for low, high, _ in rows)
    )
)
def test_nobody_exceeds_the_link_or_a_ceiling_and_every_guarantee_holds(
    rows: list[tuple[float, float, bool]],
) -> None:
    shares = [Share(low, high) for low, high, _ in rows]
    wants = [each for _, _, each in rows]
    rates, _, limit = simulate(shares, wants, 2.0)
    slack = limit * (BURST_S + 0.06)
    assert sum(rates) <= limit + slack
    for share, is_wanted, rate in zip(shares, wants, rates, strict=True):
        assert rate <= share.ceiling * limit + slack
        if is_wanted:
            assert rate >= share.guarantee * limit - slack
