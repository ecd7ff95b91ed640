"""The router side: the tables of RFC 9776 section 6, last-member queries, election, older versions, and what is
refused."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_network

import pytest
from membership_link import NETS, ROUTER, START_S, over_the_wire, packed, router_side

from accelerator.protocols.membership.filters import EVERYTHING, NOTHING, Filter
from accelerator.protocols.membership.messages import Drop, Heard, Kind, Leave, Message, Query, Record, Report, prefix
from accelerator.protocols.membership.router import GroupChanged, QuerierChanged, Refused, RouterSide
from accelerator.protocols.membership.settings import Admission, QuerierMode, RouterSettings, Timing

HOST, OTHER_HOST = packed("10.0.0.7"), packed("10.0.0.8")
LOWER, HIGHER = packed("10.0.0.0"), packed("10.0.0.99")
GROUP, SSM = packed("239.1.2.3"), packed("232.1.2.3")
TIMING = Timing()
S = [packed(f"192.0.2.{each}") for each in range(6)]
MEMBERSHIP_S = 2 * 125 + 10 + 0.5
LAST_MEMBER_S = 2 * 1 + 0.5


def some(*indices: int) -> frozenset[bytes]:
    return frozenset(S[i] for i in indices)


def include(*indices: int) -> Filter:
    return Filter(False, some(*indices))


def exclude(*indices: int) -> Filter:
    return Filter(True, some(*indices))


def say(router: RouterSide, message: Message, now_s: float, sender: bytes = HOST) -> None:
    for heard in over_the_wire(message, sender):
        router.receive(heard, now_s)


def record(router: RouterSide, kind: Kind, sources: frozenset[bytes], now_s: float, group: bytes = GROUP) -> None:
    say(router, Report(3, (Record(kind, group, sources),)), now_s)


def fresh(router_settings: RouterSettings | None = None) -> RouterSide:
    """A router that has asked its first general query."""
    router = router_side(router_settings)
    assert [query.group for query in router.to_send(START_S)] == [None]
    return router


def state(router: RouterSide, group: bytes = GROUP) -> tuple[str, set[bytes], set[bytes]]:
    found = router.groups[group]
    return "EX" if found.is_exclude else "IN", set(found.requested), set(found.excluded)


# Old state, record, new state, sources asked for (None: the group itself): RFC 9776 sections 6.4.1 and 6.4.2. The old
# state EXCLUDE({1,2},{3,4}) is reached by TO_EX{3,4}, ALLOW... so requested and excluded sources differ.
FROM_INCLUDE = [
    (Kind.IS_INCLUDE, (2, 3), ("IN", {1, 2, 3}, set()), []),
    (Kind.IS_EXCLUDE, (2, 3), ("EX", {2}, {3}), []),
    (Kind.ALLOW, (2, 3), ("IN", {1, 2, 3}, set()), []),
    (Kind.BLOCK, (2, 3), ("IN", {1, 2}, set()), [{2}]),
    (Kind.TO_EXCLUDE, (2, 3), ("EX", {2}, {3}), [{2}]),
    (Kind.TO_INCLUDE, (2, 3), ("IN", {1, 2, 3}, set()), [{1}]),
]
FROM_EXCLUDE = [
    (Kind.IS_INCLUDE, (2, 3, 5), ("EX", {1, 2, 3, 5}, {4}), []),
    (Kind.IS_EXCLUDE, (2, 3, 5), ("EX", {2, 5}, {3}), []),
    (Kind.ALLOW, (2, 3, 5), ("EX", {1, 2, 3, 5}, {4}), []),
    (Kind.BLOCK, (2, 3, 5), ("EX", {1, 2, 5}, {3, 4}), [{2, 5}]),
    (Kind.TO_EXCLUDE, (2, 3, 5), ("EX", {2, 5}, {3}), [{2, 5}]),
    (Kind.TO_INCLUDE, (2, 3, 5), ("EX", {1, 2, 3, 5}, {4}), [None, {1}]),
]


@pytest.mark.parametrize(("kind", "said", "after", "asked"), FROM_INCLUDE)
def test_table_from_include(
    kind: Kind, said: tuple[int, ...], after: tuple[str, set[int], set[int]], asked: list[set[int]]
) -> None:
    router = fresh()
    record(router, Kind.IS_INCLUDE, some(1, 2), START_S)
    check_table(router, kind, said, after, asked)


@pytest.mark.parametrize(("kind", "said", "after", "asked"), FROM_EXCLUDE)
def test_table_from_exclude(
    kind: Kind, said: tuple[int, ...], after: tuple[str, set[int], set[int]], asked: list[set[int] | None]
) -> None:
    router = fresh()
    record(router, Kind.IS_EXCLUDE, some(3, 4), START_S)
    record(router, Kind.ALLOW, some(1, 2), START_S)
    check_table(router, kind, said, after, asked)


def check_table(
    router: RouterSide,
    kind: Kind,
    said: tuple[int, ...],
    after: tuple[str, set[int], set[int]],
    asked: list[set[int]] | list[set[int] | None],
) -> None:
    now_s = START_S + 10
    old = dict(router.groups[GROUP].requested)
    was_exclude, group_timer_s = router.groups[GROUP].is_exclude, router.groups[GROUP].expires_s
    record(router, kind, some(*said), now_s)
    mode, requested, excluded = after
    assert state(router) == (mode, {S[i] for i in requested}, {S[i] for i in excluded})
    queries = router.to_send(now_s)
    assert [query.sources or None for query in queries] == [each and {S[i] for i in each} for each in asked]
    assert all(query.group == GROUP and not query.suppress and query.max_response_s == 1.0 for query in queries)
    # The timers of the same tables.
    lowered = set().union(*(each or set() for each in asked))
    for source, expires_s in router.groups[GROUP].requested.items():
        index = S.index(source)
        if index in lowered:
            expected = now_s + LAST_MEMBER_S
        elif kind in (Kind.IS_INCLUDE, Kind.ALLOW, Kind.TO_INCLUDE) and index in said:
            expected = now_s + MEMBERSHIP_S
        elif source in old:
            expected = old[source]
        else:
            expected = now_s + MEMBERSHIP_S if kind is Kind.IS_EXCLUDE else group_timer_s
        assert expires_s == expected, index
    if kind in (Kind.IS_EXCLUDE, Kind.TO_EXCLUDE):
        assert router.groups[GROUP].expires_s == now_s + MEMBERSHIP_S
    elif None in asked:
        assert router.groups[GROUP].expires_s == now_s + LAST_MEMBER_S
    elif was_exclude:
        assert router.groups[GROUP].expires_s == group_timer_s


def test_a_report_a_moment_late_still_counts() -> None:
    """A router that drops the group at the timer's very end cuts off hosts that answer at the last moment allowed."""
    router = fresh()
    record(router, Kind.IS_EXCLUDE, frozenset(), START_S)
    late_s = START_S + 2 * 125 + 10 + 0.01
    router.on_timer(late_s)
    record(router, Kind.IS_EXCLUDE, frozenset(), late_s)
    router.on_timer(late_s + 200)
    assert router.filter(GROUP) == EVERYTHING
    record(router, Kind.TO_INCLUDE, frozenset(), late_s + 200)
    router.to_send(late_s + 200)
    router.on_timer(late_s + 202.01)
    record(router, Kind.IS_EXCLUDE, frozenset(), late_s + 202.01)
    router.on_timer(late_s + 210)
    assert router.filter(GROUP) == EVERYTHING


def test_nobody_answers_and_the_group_ends() -> None:
    router = fresh()
    record(router, Kind.TO_EXCLUDE, frozenset(), START_S)
    assert router.next_event() == GroupChanged(GROUP, EVERYTHING)
    record(router, Kind.TO_INCLUDE, frozenset(), START_S + 5)
    asked = [(at_s, query) for at_s in (START_S + 5, START_S + 6, START_S + 7) for query in router.to_send(at_s)]
    # Twice, a second apart (RFC 9776 section 8.9), neither with the S flag: nobody has answered.
    assert [(at_s, query.suppress) for at_s, query in asked] == [(START_S + 5, False), (START_S + 6, False)]
    assert router.next_event() is None
    router.on_timer(START_S + 5 + LAST_MEMBER_S)
    assert router.next_event() == GroupChanged(GROUP, NOTHING)
    assert not router.groups
    assert router.filter(GROUP) == NOTHING


def test_an_answer_puts_the_s_flag_on_the_queries_that_follow() -> None:
    router = fresh()
    record(router, Kind.TO_EXCLUDE, frozenset(), START_S)
    record(router, Kind.TO_INCLUDE, frozenset(), START_S + 5)
    assert [query.suppress for query in router.to_send(START_S + 5)] == [False]
    record(router, Kind.IS_EXCLUDE, frozenset(), START_S + 5.3)
    assert [query.suppress for query in router.to_send(START_S + 6)] == [True]
    record(router, Kind.IS_INCLUDE, some(1, 2), START_S + 7, SSM)
    record(router, Kind.BLOCK, some(1, 2), START_S + 8, SSM)
    assert [(query.suppress, query.sources) for query in router.to_send(START_S + 8)] == [(False, some(1, 2))]
    record(router, Kind.IS_INCLUDE, some(1), START_S + 8.5, SSM)
    assert {(query.suppress, query.sources) for query in router.to_send(START_S + 9)} == {
        (True, some(1)),
        (False, some(2)),
    }
    router.on_timer(START_S + 11)
    assert router.filter(SSM) == include(1)


def test_the_end_of_the_group_timer_leaves_the_requested_sources() -> None:
    router = fresh()
    record(router, Kind.IS_EXCLUDE, some(3), START_S)
    record(router, Kind.ALLOW, some(1), START_S + 100)
    assert router.filter(GROUP) == exclude(3)
    router.on_timer(START_S + MEMBERSHIP_S)
    assert router.filter(GROUP) == include(1)
    router.on_timer(START_S + 100 + MEMBERSHIP_S)
    assert router.filter(GROUP) == NOTHING


def test_fast_leave_asks_nobody() -> None:
    router = fresh(RouterSettings(has_fast_leave=True))
    say(router, Report(2, (Record(Kind.IS_EXCLUDE, GROUP),)), START_S)
    assert router.filter(GROUP) == EVERYTHING
    say(router, Leave(GROUP), START_S + 1)
    assert router.filter(GROUP) == NOTHING
    record(router, Kind.ALLOW, some(1, 2), START_S + 2, SSM)
    record(router, Kind.BLOCK, some(1), START_S + 3, SSM)
    assert router.filter(SSM) == include(2)
    assert router.to_send(START_S + 3) == []


def test_what_older_hosts_cannot_say_is_not_done_to_them() -> None:
    """RFC 9776 section 7.3.2."""
    router = fresh()
    say(router, Report(2, (Record(Kind.IS_EXCLUDE, GROUP),)), START_S)
    record(router, Kind.BLOCK, some(1), START_S + 1)
    record(router, Kind.TO_EXCLUDE, some(1), START_S + 2)
    assert router.filter(GROUP) == EVERYTHING
    assert router.to_send(START_S + 2) == []
    say(router, Report(1, (Record(Kind.IS_EXCLUDE, GROUP),)), START_S + 3)
    say(router, Leave(GROUP), START_S + 4)
    record(router, Kind.TO_INCLUDE, frozenset(), START_S + 4)
    assert router.to_send(START_S + 4) == []
    assert router.drops == {Drop.OLDER_VERSION: 3}
    # Version 1's member is forgotten with its timer, and version 3 means again what it says.
    later_s = START_S + 3 + MEMBERSHIP_S
    record(router, Kind.IS_EXCLUDE, some(1), later_s - 1)
    assert router.filter(GROUP) == EVERYTHING
    record(router, Kind.IS_EXCLUDE, some(1), later_s + 1)
    record(router, Kind.TO_INCLUDE, frozenset(), later_s + 2)
    asked = [query.sources for query in router.to_send(later_s + 2) if query.group]
    assert asked == [frozenset(), some(1)]


def test_what_is_refused_is_counted_by_name() -> None:
    admission = Admission(
        groups=(prefix(ip_network("239.1.0.0/16")), prefix(ip_network("232.0.0.0/8"))),
        sources=(prefix(ip_network("192.0.2.0/30")),),
        n_groups_max=2,
        n_sources_max=3,
    )
    router = fresh(RouterSettings(admission=admission))
    record(router, Kind.TO_EXCLUDE, frozenset(), START_S, packed("224.0.0.251"))
    record(router, Kind.TO_EXCLUDE, frozenset(), START_S, packed("239.2.0.1"))
    record(router, Kind.TO_EXCLUDE, frozenset(), START_S, SSM)
    say(router, Report(2, (Record(Kind.IS_EXCLUDE, SSM),)), START_S)
    record(router, Kind.ALLOW, some(1, 4, 5), START_S, SSM)
    record(router, Kind.ALLOW, some(2, 3) | some(0), START_S, SSM)
    say(router, Report(2, (Record(Kind.IS_EXCLUDE, GROUP),)), START_S, packed("198.51.100.1"))
    say(router, Report(2, (Record(Kind.IS_EXCLUDE, GROUP),)), START_S, bytes(4))  # a host without an address yet
    record(router, Kind.TO_EXCLUDE, frozenset(), START_S, packed("239.1.0.9"))
    say(router, Query(3, 10.0), START_S, bytes(4))
    router.receive(Drop.CHECKSUM, START_S)
    assert router.drops == {
        Drop.LINK_SCOPE: 1,
        Drop.GROUP_NOT_ALLOWED: 1,
        Drop.ANY_SOURCE_OF_SSM: 2,
        Drop.SOURCE_NOT_ALLOWED: 2,
        Drop.SOURCE_LIMIT: 1,
        Drop.OFF_LINK: 1,
        Drop.GROUP_LIMIT: 1,
        Drop.SENDER_UNKNOWN: 1,
        Drop.CHECKSUM: 1,
    }
    assert router.filter(SSM) == include(1)
    assert router.filter(GROUP) == EVERYTHING
    assert router.is_querier
    # All sources are wanted, those of the allow-list are let through.
    assert router.accepts(S[3], GROUP)
    assert not router.accepts(S[4], GROUP)


def test_a_host_asked_for_millions_of_sources_each_of_them_a_route() -> None:
    """So many of a group, of thousands of groups: 8,000 packets made two million routes."""
    settings = RouterSettings(admission=Admission(n_sources_max=10, n_sources_all_max=25))
    router = fresh(settings)
    groups = [packed(f"239.9.0.{each}") for each in range(6)]
    for group in groups:
        for first in (0, 5):
            sources = frozenset(packed(f"198.51.100.{first + each}") for each in range(5))
            record(router, Kind.ALLOW, sources, START_S, group)
    assert sum(len(each.requested) for each in router.groups.values()) == 25
    assert router.drops[Drop.SOURCE_LIMIT] == 7
    # What is there is kept, whatever else is asked for; members of any source have their place.
    record(router, Kind.ALLOW, frozenset([packed("198.51.100.1")]), START_S + 1, groups[0])
    record(router, Kind.TO_EXCLUDE, frozenset(), START_S + 1, groups[5])
    assert router.drops[Drop.SOURCE_LIMIT] == 7
    # What ends gives its places back.
    router.to_send(START_S + 2 * MEMBERSHIP_S)
    assert not router.groups
    record(router, Kind.ALLOW, frozenset(packed(f"198.51.100.{each}") for each in range(10)), START_S + 600, groups[0])
    assert len(router.groups[groups[0]].requested) == 10


def test_records_that_change_nothing_leave_nothing_behind() -> None:
    router = fresh()
    for kind in (Kind.TO_INCLUDE, Kind.IS_INCLUDE, Kind.ALLOW, Kind.BLOCK):
        record(router, kind, frozenset(), START_S)
    record(router, Kind.BLOCK, some(1), START_S)
    say(router, Leave(GROUP), START_S)
    assert not router.groups
    assert router.next_event() is None


def general_queries(router: RouterSide, seconds: int) -> list[int]:
    return [at for at in range(seconds) for query in router.to_send(START_S + at) if query.group is None]


def test_startup_queries_come_quickly() -> None:
    """RFC 9776 sections 8.6 and 8.7: two, 31.25 s apart, then one each 125 s."""
    assert general_queries(router_side(), 400) == [0, 32, 157, 282]


def test_the_query_tells_our_times() -> None:
    (query,) = router_side().to_send(START_S)
    assert query == Query(3, 10.0, robustness=2, interval_s=125.0)


def test_the_lower_address_wins() -> None:
    router = fresh()
    say(router, Query(3, 10.0, robustness=2, interval_s=125.0), START_S + 1, HIGHER)
    assert router.is_querier
    assert router.may_forward
    say(router, Query(3, 10.0, robustness=3, interval_s=60.0), START_S + 2, LOWER)
    assert not router.is_querier
    assert not router.may_forward
    assert router.next_event() == QuerierChanged(LOWER)
    assert router.other_querier == LOWER
    # Its silence for 3 x 60 + 5 s makes us querier again, with our own times.
    assert router.next_timer() == START_S + 2 + 185.5
    assert [query.interval_s for query in router.to_send(START_S + 2 + 185.5)] == [125.0]
    assert router.next_event() == QuerierChanged(None)
    assert router.is_querier


def test_a_querier_that_was_there_first_stays() -> None:
    router = fresh()
    say(router, Query(3, 10.0, robustness=2, interval_s=125.0), START_S + 2, LOWER)
    say(router, Query(2, 10.0), START_S + 100, HIGHER)
    router.on_timer(START_S + 2 + 255.5)
    assert not router.is_querier
    router.on_timer(START_S + 100 + 255.5)
    assert router.is_querier


def test_always_and_never() -> None:
    always = fresh(RouterSettings(querier=QuerierMode.ALWAYS))
    say(always, Query(3, 10.0), START_S + 1, LOWER)
    assert always.is_querier
    assert always.may_forward
    never = router_side(RouterSettings(querier=QuerierMode.NEVER))
    assert never.to_send(START_S + 500) == []
    assert never.may_forward
    assert not never.is_querier
    say(never, Leave(GROUP), START_S)
    assert never.to_send(START_S + 500) == []


def test_a_query_that_would_silence_us_for_hours_is_dropped() -> None:
    """RFC 9776 section 8.5 has no bound: 7 x 31,744 s."""
    router = fresh()
    absurd = Query(3, 10.0, robustness=7, interval_s=31744.0)
    for second in range(1000):
        say(router, absurd, START_S + second, LOWER)
    assert router.is_querier
    assert router.drops == {Drop.QUERY_ABSURD: 1000}
    # Told at once and after ten minutes: not with each packet.
    told = [router.next_event() for _ in range(3)]
    assert told == [Refused(Drop.QUERY_ABSURD, LOWER), Refused(Drop.QUERY_ABSURD, LOWER), None]
    say(router, Query(3, 10.0, robustness=2, interval_s=297.0), START_S + 1000, LOWER)
    assert router.other_querier == LOWER


def test_another_box_with_our_own_long_times_is_a_querier_all_the_same() -> None:
    timing = replace(TIMING, interval_s=3600.0)
    router = fresh(RouterSettings(timing))
    say(router, Query(3, 10.0, robustness=2, interval_s=3600.0), START_S, LOWER)
    assert router.other_querier == LOWER


def test_one_hosts_groups_are_limited() -> None:
    """Each group counts among those of who asked for it first, until he leaves it; then of who says next that he
    wants it."""
    router = fresh(RouterSettings(admission=Admission(n_groups_host_max=3)))

    def wants(group: int, kind: Kind, sender: bytes) -> None:
        say(router, Report(3, (Record(kind, packed(f"239.1.2.{group}")),)), START_S, sender)

    for group in range(5):
        wants(group, Kind.TO_EXCLUDE, HOST)
    assert router.drops == {Drop.GROUP_LIMIT_HOST: 2}
    assert router.next_event() == GroupChanged(packed("239.1.2.0"), EVERYTHING)
    wants(4, Kind.TO_EXCLUDE, OTHER_HOST)
    wants(0, Kind.TO_EXCLUDE, OTHER_HOST)
    assert len(router.groups) == 4
    # It leaves one that the other wants too: that is the other's from now on.
    wants(0, Kind.TO_INCLUDE, HOST)
    wants(0, Kind.IS_EXCLUDE, OTHER_HOST)
    wants(5, Kind.TO_EXCLUDE, HOST)
    wants(6, Kind.TO_EXCLUDE, HOST)
    wants(7, Kind.TO_EXCLUDE, OTHER_HOST)
    wants(8, Kind.TO_EXCLUDE, OTHER_HOST)
    assert [group[3] for group in router.groups] == [0, 1, 2, 4, 5, 7]
    assert router.drops == {Drop.GROUP_LIMIT_HOST: 4}
    # All of it ends with the groups.
    router.to_send(START_S + MEMBERSHIP_S)
    assert not router.groups
    for group in range(3):
        say(router, Report(3, (Record(Kind.TO_EXCLUDE, packed(f"239.1.3.{group}")),)), START_S + 400, HOST)
    assert len(router.groups) == 3


def test_what_was_wanted_before_a_restart_is_nobodys() -> None:
    router = fresh(RouterSettings(admission=Admission(n_groups_host_max=1)))
    for group in range(3):
        router.assume(Record(Kind.IS_EXCLUDE, packed(f"239.1.2.{group}")), START_S)
        say(router, Report(3, (Record(Kind.IS_EXCLUDE, packed(f"239.1.2.{group}")),)), START_S, HOST)
    assert len(router.groups) == 3
    assert not router.drops


def test_a_router_that_is_not_querier_follows_the_queriers_questions() -> None:
    """RFC 9776 section 6.6.1."""
    router = fresh()
    record(router, Kind.IS_INCLUDE, some(1, 2), START_S, SSM)
    record(router, Kind.IS_EXCLUDE, frozenset(), START_S)
    say(router, Query(3, 10.0, robustness=2, interval_s=125.0), START_S, LOWER)
    record(router, Kind.BLOCK, some(1), START_S + 1, SSM)
    assert router.to_send(START_S + 1) == []
    say(router, Query(3, 1.0, SSM, some(2), suppress=True, robustness=2), START_S + 1, LOWER)
    say(router, Query(3, 1.0, SSM, some(1), robustness=2), START_S + 1, LOWER)
    say(router, Query(3, 1.0, GROUP, robustness=2), START_S + 1, LOWER)
    router.on_timer(START_S + 1 + LAST_MEMBER_S)
    assert router.filter(SSM) == include(2)
    assert router.filter(GROUP) == NOTHING


def test_losing_the_office_ends_our_questions() -> None:
    router = fresh()
    record(router, Kind.IS_EXCLUDE, frozenset(), START_S)
    record(router, Kind.TO_INCLUDE, frozenset(), START_S + 1)
    say(router, Query(3, 10.0), START_S + 1, LOWER)
    assert router.to_send(START_S + 2) == []


def test_no_address_no_queries() -> None:
    router = router_side(address=None)
    assert router.to_send(START_S) == []
    router.set_address(ROUTER, NETS, START_S + 5)
    assert [query.group for query in router.to_send(START_S + 5)] == [None]
    router.set_address(None, (), START_S + 6)
    assert router.to_send(START_S + 100) == []
    assert not router.may_forward


def test_our_own_packets_are_nobodys() -> None:
    router = fresh()
    router.receive(Heard(ROUTER, Report(3, (Record(Kind.TO_EXCLUDE, GROUP),))), START_S)
    assert not router.groups


def test_other_counts_and_intervals() -> None:
    timing = replace(TIMING, robustness=3, last_member_interval_s=0.2, last_member_count=5, interval_s=40.0)
    router = fresh(RouterSettings(timing=timing))
    record(router, Kind.IS_EXCLUDE, frozenset(), START_S)
    record(router, Kind.TO_INCLUDE, frozenset(), START_S + 1)
    asked = [query for tick in range(30) for query in router.to_send(START_S + 1 + tick / 10) if query.group]
    assert len(asked) == 5
    assert router.filter(GROUP) == NOTHING
