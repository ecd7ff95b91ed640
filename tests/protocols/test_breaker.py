"""The circuit breaker as tables of steps, with `now` as an argument, and against a model by random steps."""

from __future__ import annotations

import random

import pytest

from accelerator.protocols.breaker import (
    CONNECT_FAILURES_MAX,
    FAILURES_MAX,
    OPEN_MAX_S,
    TRIALS_MAX,
    WINDOW,
    Breaker,
    Permit,
    State,
)


def step(breaker: Breaker, what: str, now_s: float) -> None:
    """`good`, `bad` (an answer that is a failure), `cut` (a body that broke off), `lost` (no connection), `left`."""
    permit = breaker.admit(now_s)
    assert permit is not None, f"{what} at {now_s}: not admitted"
    if what in ("good", "cut"):
        breaker.answered(permit)
    match what:
        case "good":
            breaker.released(permit)
        case "bad" | "cut":
            breaker.failed(permit, now_s)
        case "lost":
            breaker.connect_failed(permit, now_s)
        case "left":
            breaker.released(permit)


def after(*steps: str, at_s: float = 0.0) -> Breaker:
    breaker = Breaker()
    for what in steps:
        step(breaker, what, at_s)
    return breaker


N, M = CONNECT_FAILURES_MAX, FAILURES_MAX
TABLE: list[tuple[list[str], State]] = [
    ([], State.OK),
    (["good"] * 30, State.OK),
    (["left"] * 30, State.OK),
    (["lost"], State.SUSPECT),
    (["bad"], State.SUSPECT),
    (["cut"], State.SUSPECT),
    (["lost", "good"], State.OK),
    (["lost"] * (N - 1), State.SUSPECT),
    (["lost"] * N, State.OPEN),
    ([*["lost"] * (N - 1), "left", "lost"], State.OPEN),
    ([*["lost"] * (N - 1), "good", "lost"], State.SUSPECT),
    ([*["lost"] * (N - 1), "bad", "lost"], State.SUSPECT),
    (["bad"] * (M - 1), State.SUSPECT),
    (["bad"] * M, State.OPEN),
    (["good", "bad"] * (M - 1), State.SUSPECT),
    (["good", "bad"] * M, State.OPEN),
    (["good", "good", "bad"] * 20, State.SUSPECT),
    (["cut"] * (M - 1), State.SUSPECT),
    (["cut"] * M, State.OPEN),
    # Failures leave the window as others come.
    ([*["bad"] * (M - 1), *["good"] * WINDOW, *["bad"] * (M - 1)], State.SUSPECT),
    ([*["bad"] * (M - 1), *["good"] * (WINDOW - M), "bad"], State.OPEN),
    ([*["bad"] * (M - 1), *["good"] * (WINDOW - M + 1), "bad"], State.SUSPECT),
]


@pytest.mark.parametrize(("steps", "state"), TABLE, ids=range(len(TABLE)))
def test_what_opens_it(steps: list[str], state: State) -> None:
    breaker = after(*steps)
    assert breaker.state(0) is state
    assert breaker.may_ask(0) == (breaker.admit(0) is not None) == (state is not State.OPEN)
    assert breaker.is_closed == (state is not State.OPEN)


def test_trials_come_after_a_second_that_doubles_to_thirty() -> None:
    breaker = after(*["lost"] * N, at_s=100)
    now_s = 100.0
    for open_s in (1, 2, 4, 4, 4):
        assert breaker.trial_in_s(now_s) == open_s
        assert not breaker.may_ask(now_s + open_s - 0.001)
        assert breaker.state(now_s + open_s - 0.001) is State.OPEN
        now_s += open_s
        assert breaker.state(now_s) is State.HALF_OPEN
        assert breaker.trial_in_s(now_s) == 0
        step(breaker, "lost" if open_s % 4 else "bad", now_s)
        assert breaker.state(now_s) is State.OPEN
    now_s += OPEN_MAX_S
    step(breaker, "good", now_s)
    assert breaker.state(now_s) is State.OK
    assert breaker.n_failures == 0
    # From the beginning again.
    for _ in range(N):
        step(breaker, "lost", now_s)
    assert breaker.trial_in_s(now_s) == 1


def half_open(n_trials: int) -> tuple[Breaker, list[Permit]]:
    breaker = after(*["lost"] * N)
    permits = [breaker.admit(1) for _ in range(n_trials)]
    return breaker, [permit for permit in permits if permit is not None]


def test_two_trials_at_once() -> None:
    breaker, permits = half_open(10)
    assert len(permits) == TRIALS_MAX
    assert all(permit.is_trial for permit in permits)
    breaker.released(permits[0])
    breaker.released(permits[0])
    assert breaker.admit(1) is not None
    assert breaker.admit(1) is None


def test_the_first_trial_that_ends_decides() -> None:
    breaker, (one, two) = half_open(2)
    breaker.connect_failed(one, 1)
    breaker.answered(two)
    breaker.released(two)
    assert breaker.state(1) is State.OPEN
    assert breaker.trial_in_s(1) == 2
    breaker, (one, two) = half_open(2)
    breaker.answered(one)
    breaker.connect_failed(two, 1)
    assert breaker.state(1) is State.OK


def test_a_trial_that_is_answered_closes_it_before_its_body_is_whole_and_its_breaking_off_counts() -> None:
    breaker, (one,) = half_open(1)
    breaker.answered(one)
    assert breaker.state(1) is State.OK
    breaker.failed(one, 1)
    assert breaker.state(1) is State.SUSPECT
    assert breaker.n_failures == 1


def test_requests_from_before_it_opened_neither_open_nor_close_it() -> None:
    breaker = Breaker()
    early = [breaker.admit(0) for _ in range(12)]
    for _ in range(N):
        step(breaker, "lost", 0)
    for i, permit in enumerate(early):
        assert permit is not None
        if i % 2:
            breaker.answered(permit)
            breaker.released(permit)
        else:
            breaker.failed(permit, 0.5)
    assert breaker.state(0.5) is State.OPEN
    assert breaker.trial_in_s(0.5) == 0.5


def test_random_steps_keep_its_bounds() -> None:
    source = random.Random(5)
    for _ in range(200):
        breaker, now_s, held = Breaker(), 0.0, []
        for _ in range(300):
            now_s += source.choice([0, 0, 0.1, 1, 5])
            could = breaker.may_ask(now_s)
            permit = breaker.admit(now_s)
            assert could == (permit is not None)
            if permit is not None:
                held.append(permit)
            if held and source.random() < 0.7:
                one = held.pop(source.randrange(len(held)))
                match source.randrange(4):
                    case 0:
                        breaker.answered(one)
                        held.append(one)
                    case 1:
                        breaker.released(one)
                    case 2:
                        breaker.failed(one, now_s)
                    case _:
                        breaker.connect_failed(one, now_s)
            current = [permit for permit in held if permit.is_trial and permit.epoch == breaker._epoch]
            assert len(current) == breaker._trials <= TRIALS_MAX
            assert breaker.trial_in_s(now_s) <= OPEN_MAX_S + 1e-9
            assert breaker.n_failures < FAILURES_MAX
