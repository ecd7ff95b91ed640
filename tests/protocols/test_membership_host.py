"""The host side: what is told of a change and how often, answers to queries, older queriers (RFC 9776 sections 5 and
7.2)."""

from __future__ import annotations

from collections.abc import Callable

from membership_link import START_S, over_the_wire, packed

from accelerator.protocols.membership.filters import EVERYTHING, NOTHING, Filter
from accelerator.protocols.membership.host import HostSide, VersionChanged
from accelerator.protocols.membership.messages import Drop, Heard, Kind, Leave, Message, Query, Record, Report
from accelerator.protocols.membership.settings import HostSettings

QUERIER = packed("10.0.0.254")
GROUP, SSM = packed("239.1.2.3"), packed("232.1.2.3")
S = [packed(f"192.0.2.{each}") for each in range(6)]


def some(*indices: int) -> frozenset[bytes]:
    return frozenset(S[i] for i in indices)


def include(*indices: int) -> Filter:
    return Filter(False, some(*indices))


def exclude(*indices: int) -> Filter:
    return Filter(True, some(*indices))


def host(fraction: Callable[[], float] = lambda: 0.5, **settings: float) -> HostSide:
    return HostSide(HostSettings(**settings), fraction)  # type: ignore[arg-type]


def ask(side: HostSide, query: Query, now_s: float) -> None:
    for heard in over_the_wire(query, QUERIER):
        side.receive(heard, now_s)


def told(side: HostSide, now_s: float) -> list[tuple[Kind, bytes, frozenset[bytes]]]:
    """The records of the one report that is due, or none."""
    messages = side.to_send(now_s)
    assert len(messages) <= 1
    return [
        (record.kind, record.group, record.sources)
        for message in messages
        if isinstance(message, Report) and message.version == 3
        for record in message.records
    ]


def settled(side: HostSide, now_s: float) -> None:
    while (at_s := side.next_timer()) is not None and at_s <= now_s:
        side.to_send(at_s)


def test_a_change_is_told_as_often_as_robustness_says() -> None:
    side = host()
    side.set_filter(GROUP, EVERYTHING, START_S)
    assert told(side, START_S) == [(Kind.TO_EXCLUDE, GROUP, frozenset())]
    assert side.next_timer() == START_S + 0.5
    assert told(side, START_S + 0.5) == [(Kind.TO_EXCLUDE, GROUP, frozenset())]
    assert side.next_timer() is None
    side.set_filter(GROUP, exclude(1, 2), START_S + 1)
    assert told(side, START_S + 1) == [(Kind.BLOCK, GROUP, some(1, 2))]
    side.set_filter(GROUP, exclude(2, 3), START_S + 1.2)
    assert told(side, START_S + 1.2) == [(Kind.ALLOW, GROUP, some(1)), (Kind.BLOCK, GROUP, some(2, 3))]
    assert told(side, START_S + 1.7) == [(Kind.ALLOW, GROUP, some(1)), (Kind.BLOCK, GROUP, some(3))]
    side.set_filter(GROUP, NOTHING, START_S + 2)
    assert told(side, START_S + 2) == [(Kind.TO_INCLUDE, GROUP, frozenset())]
    assert told(side, START_S + 2.5) == [(Kind.TO_INCLUDE, GROUP, frozenset())]
    assert side.next_timer() is None


def test_source_specific_joins_and_leaves_are_allow_and_block() -> None:
    side = host()
    side.set_filter(SSM, include(1), START_S)
    assert told(side, START_S) == [(Kind.ALLOW, SSM, some(1))]
    side.set_filter(SSM, include(1, 2), START_S + 0.1)
    assert told(side, START_S + 0.1) == [(Kind.ALLOW, SSM, some(1, 2))]
    assert told(side, START_S + 0.6) == [(Kind.ALLOW, SSM, some(2))]
    side.set_filter(SSM, NOTHING, START_S + 1)
    assert told(side, START_S + 1) == [(Kind.BLOCK, SSM, some(1, 2))]


def test_a_new_change_of_mode_takes_over_what_is_still_to_be_told() -> None:
    side = host()
    side.set_filter(GROUP, include(1), START_S)
    assert told(side, START_S) == [(Kind.ALLOW, GROUP, some(1))]
    side.set_filter(GROUP, exclude(2), START_S + 0.1)
    assert told(side, START_S + 0.1) == [(Kind.TO_EXCLUDE, GROUP, some(2))]
    side.set_filter(GROUP, exclude(2, 3), START_S + 0.2)
    # The list that is told with the mode is the list of now; the new source is told once more than the mode.
    assert told(side, START_S + 0.2) == [(Kind.TO_EXCLUDE, GROUP, some(2, 3))]
    assert told(side, START_S + 0.7) == [(Kind.BLOCK, GROUP, some(3))]


def test_changes_of_many_groups_go_in_one_report() -> None:
    side = host()
    groups = [packed(f"239.1.1.{each}") for each in range(100)]
    for group in groups:
        side.set_filter(group, EVERYTHING, START_S)
    (report,) = side.to_send(START_S)
    assert isinstance(report, Report)
    assert {record.group for record in report.records} == set(groups)


def standing(*changes: tuple[bytes, Filter]) -> HostSide:
    """A host whose filters are told and settled."""
    side = host()
    for group, wanted in changes:
        side.set_filter(group, wanted, START_S - 100)
    settled(side, START_S)
    return side


def test_a_general_query_is_answered_whole_after_a_random_part_of_the_response_time() -> None:
    side = standing((GROUP, exclude(1)), (SSM, include(2)))
    ask(side, Query(3, 10.0, robustness=2, interval_s=125.0), START_S)
    assert side.next_timer() == START_S + 5
    # A second one that would be answered later changes nothing; rule 1 of section 5.2.
    ask(side, Query(3, 10.0, robustness=2, interval_s=125.0), START_S + 1)
    assert sorted(told(side, START_S + 5)) == [
        (Kind.IS_INCLUDE, SSM, some(2)),
        (Kind.IS_EXCLUDE, GROUP, some(1)),
    ]
    assert side.next_timer() is None


def test_group_and_source_queries_are_answered_for_what_is_wanted() -> None:
    side = standing((GROUP, exclude(1)), (SSM, include(2, 3)))
    ask(side, Query(3, 1.0, SSM, some(1, 2)), START_S)
    ask(side, Query(3, 1.0, GROUP, some(1, 2)), START_S)
    ask(side, Query(3, 1.0, packed("239.9.9.9")), START_S)
    assert sorted(told(side, START_S + 0.5)) == [
        (Kind.IS_INCLUDE, SSM, some(2)),
        (Kind.IS_INCLUDE, GROUP, some(2)),
    ]
    # Sources add up while an answer is pending (rule 5), a query for the group takes them all in (rule 4).
    ask(side, Query(3, 1.0, SSM, some(2)), START_S + 1)
    ask(side, Query(3, 1.0, SSM, some(3)), START_S + 1.1)
    assert told(side, START_S + 1.5) == [(Kind.IS_INCLUDE, SSM, some(2, 3))]
    ask(side, Query(3, 1.0, SSM, some(2)), START_S + 2)
    ask(side, Query(3, 1.0, SSM), START_S + 2.1)
    ask(side, Query(3, 1.0, SSM, some(2)), START_S + 2.2)
    assert told(side, START_S + 2.5) == [(Kind.IS_INCLUDE, SSM, some(2, 3))]
    ask(side, Query(3, 1.0, SSM, some(1)), START_S + 3)
    assert told(side, START_S + 4) == []


def test_an_absurd_response_time_does_not_hold_back_the_next_answer() -> None:
    side = standing((GROUP, EVERYTHING))
    ask(side, Query(3, 3174.4), START_S)
    ask(side, Query(3, 10.0), START_S + 1)
    assert told(side, START_S + 6) == [(Kind.IS_EXCLUDE, GROUP, frozenset())]


def test_an_absurd_response_time_silenced_our_reports_for_an_hour() -> None:
    side = standing((GROUP, EVERYTHING))
    ask(side, Query(3, 3174.4), START_S)
    assert told(side, START_S + 60) == [(Kind.IS_EXCLUDE, GROUP, frozenset())]
    ask(side, Query(3, 3174.4, GROUP), START_S + 100)
    assert told(side, START_S + 160) == [(Kind.IS_EXCLUDE, GROUP, frozenset())]
    assert side.drops == {Drop.RESPONSE_TIME: 2}


def test_robustness_is_the_queriers() -> None:
    side = standing()
    ask(side, Query(3, 1.0, SSM, robustness=4), START_S)
    side.set_filter(GROUP, EVERYTHING, START_S)
    times = 0
    while (at_s := side.next_timer()) is not None:
        times += len(told(side, at_s))
    assert times == 4


def said(side: HostSide, until_s: float) -> list[Message]:
    messages: list[Message] = []
    while (at_s := side.next_timer()) is not None and at_s <= until_s:
        messages += side.to_send(at_s)
    return messages


def test_an_older_querier_hears_its_own_version() -> None:
    side = standing((GROUP, EVERYTHING), (SSM, include(1)))
    ask(side, Query(2, 10.0), START_S)
    settled(side, START_S)
    assert side.version == 2
    assert side.next_event() == VersionChanged(2)
    v2 = [Report(2, (Record(Kind.IS_EXCLUDE, group),)) for group in (GROUP, SSM)]
    assert sorted(said(side, START_S + 20), key=repr) == sorted(v2, key=repr)
    # Another filter of a member is no news; leaving is.
    side.set_filter(SSM, include(1, 2), START_S + 30)
    assert said(side, START_S + 50) == []
    side.set_filter(SSM, NOTHING, START_S + 50)
    assert side.to_send(START_S + 50) == [Leave(SSM)]
    side.set_filter(SSM, include(3), START_S + 60)
    assert said(side, START_S + 90) == [v2[1], v2[1]]
    # 260 s after its last query version 3 is back, and tells the filters.
    assert said(side, START_S + 260) == [
        Report(3, (Record(Kind.ALLOW, SSM, some(3)), Record(Kind.TO_EXCLUDE, GROUP))),
    ]
    assert side.next_event() == VersionChanged(3)


def test_version_1_knows_no_leave() -> None:
    side = standing((GROUP, EVERYTHING))
    ask(side, Query(1, 10.0), START_S)
    assert said(side, START_S + 10) == [Report(1, (Record(Kind.IS_EXCLUDE, GROUP),))]
    side.set_filter(GROUP, NOTHING, START_S + 20)
    assert said(side, START_S + 100) == []


def test_another_members_report_spares_ours_in_version_2() -> None:
    side = standing((GROUP, EVERYTHING))
    ask(side, Query(2, 10.0), START_S)
    for heard in over_the_wire(Report(2, (Record(Kind.IS_EXCLUDE, GROUP),)), packed("10.0.0.9")):
        side.receive(heard, START_S + 1)
    assert said(side, START_S + 100) == []


def test_older_queriers_can_be_ignored() -> None:
    """A stray version 2 querier takes every source filter away for minutes."""
    side = host(version_min=3)
    side.set_filter(SSM, include(1), START_S)
    settled(side, START_S + 10)
    ask(side, Query(2, 10.0), START_S + 20)
    assert side.version == 3
    assert told(side, START_S + 25) == [(Kind.IS_INCLUDE, SSM, some(1))]


def test_setting_the_same_filter_says_nothing() -> None:
    side = host()
    side.set_filter(GROUP, NOTHING, START_S)
    assert side.next_timer() is None
    side.set_filter(GROUP, EVERYTHING, START_S)
    settled(side, START_S + 10)
    side.set_filter(GROUP, EVERYTHING, START_S + 20)
    assert side.next_timer() is None


def test_queries_for_ever_more_sources_held_everything_up() -> None:
    """Each was added to those before, for as long as the query said: 1,500 packets took half a minute."""
    side = host(lambda: 0.9)
    side.set_filter(GROUP, EVERYTHING, START_S)
    side.to_send(START_S + 100)
    for number in range(40):
        sources = frozenset((0x0B000000 + number * 100 + each).to_bytes(4) for each in range(100))
        side.receive(Heard(QUERIER, Query(3, 10.0, GROUP, sources)), START_S + 100)
    # Everything that is wanted of the group, in place of 4,000 sources.
    assert side.to_send(START_S + 110)[-1] == Report(3, (Record(Kind.IS_EXCLUDE, GROUP),))
