"""When a WAN link counts as down and as up again."""

from __future__ import annotations

from accelerator.protocols.link_health import FAILURES_DOWN, GOOD_S, GOOD_S_MAX, LinkHealth, choose


def test_one_lost_probe_is_no_outage() -> None:
    health = LinkHealth()
    assert not health.failed("no answer", 0.0)
    assert not health.failed("no answer", 1.0)
    health.worked(2.0)
    assert not health.failed("no answer", 3.0)
    assert health.is_up


def test_three_in_a_row_are_told_once() -> None:
    health = LinkHealth()
    assert [health.failed("no answer", float(i)) for i in range(5)] == [False, False, True, False, False]
    assert (health.is_up, health.why) == (False, "no answer")


def test_an_interface_that_is_gone_needs_no_probes() -> None:
    health = LinkHealth()
    assert health.lost("there is no interface", 0.0)
    assert not health.lost("there is no interface", 1.0)


def fall(health: LinkHealth, now_s: float) -> float:
    for _ in range(FAILURES_DOWN):
        health.failed("no answer", now_s)
    return now_s


def up_after_s(health: LinkHealth, now_s: float) -> float:
    began_s = now_s
    while not health.worked(now_s):
        now_s += 1
    return now_s - began_s


def test_a_link_that_returns_is_used_once_it_has_been_good_for_a_while() -> None:
    health = LinkHealth()
    fall(health, 0.0)
    assert not health.worked(10.0)
    assert not health.worked(10.0 + GOOD_S - 1)
    health.failed("no answer", 15.0)  # and its time begins anew
    assert not health.worked(16.0)
    assert health.left_s(18.0) == GOOD_S - 2
    assert health.worked(16.0 + GOOD_S)


def test_a_link_that_flaps_waits_twice_as_long_each_time_but_not_for_ever() -> None:
    health, now_s, waits = LinkHealth(), 0.0, []
    for _ in range(8):
        fall(health, now_s)
        waits.append(up_after_s(health, now_s + 1))
        now_s += waits[-1] + 2
    assert waits == [5, 10, 20, 40, 80, 160, 160, 160]
    assert waits[-1] == GOOD_S_MAX


def test_a_link_that_was_well_for_long_is_no_flapping_one() -> None:
    health = LinkHealth()
    fall(health, 0.0)
    up_after_s(health, 1.0)
    fall(health, 10_000.0)
    assert up_after_s(health, 10_001.0) == GOOD_S


def test_the_first_link_that_is_up_is_chosen_and_the_first_of_all_where_none_is() -> None:
    assert choose(["main", "backup"], lambda name: name == "backup") == "backup"
    assert choose(["main", "backup"], lambda name: True) == "main"
    assert choose(["main", "backup"], lambda name: False) == "main"
    assert choose([], lambda name: True) is None
