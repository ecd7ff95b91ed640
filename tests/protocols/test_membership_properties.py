"""Membership as a whole: whatever hosts ask for, in whatever order, routers forward all of it at every moment, and no
more once timers have run; the proxy's upstream sees the merged filters. Merging against sets of every possible
source."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from membership_link import ROUTER, ROUTER6, Network, packed

from accelerator.protocols.membership.deadlines import Deadlines
from accelerator.protocols.membership.filters import EVERYTHING, NOTHING, Filter, merge
from accelerator.protocols.membership.host import HostSide

SOURCES = [packed(f"192.0.2.{each}") for each in range(1, 6)]
SOURCES6 = [packed(f"2001:db8::{each}") for each in range(1, 6)]
GROUPS = [packed("239.1.1.1"), packed("239.1.1.2")]
GROUPS6 = [packed("ff15::1:1"), packed("ff15::1:2")]

indices = st.frozensets(st.integers(0, 4), max_size=5)
filters = st.builds(
    lambda is_exclude, few: Filter(is_exclude, frozenset(SOURCES[i] for i in few)), st.booleans(), indices
)
asking = st.tuples(st.integers(0, 2), st.integers(0, 1), st.booleans(), indices, st.floats(0, 300))


@given(st.lists(filters))
def test_merge_accepts_what_at_least_one_accepts(several: list[Filter]) -> None:
    merged = merge(several)
    for source in [*SOURCES, packed("198.51.100.1")]:
        assert merged.accepts(source) == any(each.accepts(source) for each in several)


@given(st.lists(filters, max_size=4), st.lists(filters, max_size=4))
def test_merging_in_steps_is_merging_at_once(some: list[Filter], others: list[Filter]) -> None:
    assert merge([merge(some), merge(others)]) == merge([*some, *others])
    assert merge([*some, EVERYTHING]) == EVERYTHING
    assert merge([*some, NOTHING]) == merge(some)


def asked_for(hosts: Sequence[HostSide], group: bytes) -> Filter:
    return merge(host.filters.get(group, NOTHING) for host in hosts)


@pytest.mark.parametrize("is_v6", [False, True], ids=["igmp", "mld"])
@settings(max_examples=60, deadline=None)
@given(st.lists(asking, max_size=8), st.integers(0, 1000))
def test_a_router_follows_its_hosts(
    is_v6: bool, steps: list[tuple[int, int, bool, frozenset[int], float]], seed: int
) -> None:
    groups, sources = (GROUPS6, SOURCES6) if is_v6 else (GROUPS, SOURCES)
    network = Network(seed)
    router = network.router("lan", ROUTER6 if is_v6 else ROUTER)
    hosts = [network.host("lan", packed(f"fe80::1{i}" if is_v6 else f"10.0.0.1{i}")) for i in range(3)]

    def forwards_enough() -> None:
        for group in groups:
            wanted = asked_for(hosts, group)
            assert all(router.filter(group).accepts(source) for source in sources if wanted.accepts(source))

    network.run(1.0)
    for host, group, is_exclude, few, pause_s in steps:
        hosts[host].set_filter(groups[group], Filter(is_exclude, frozenset(sources[i] for i in few)), network.now_s)
        network.run(pause_s, forwards_enough)
    network.run(1200, forwards_enough)
    for group in groups:
        assert router.filter(group) == asked_for(hosts, group)


@pytest.mark.parametrize("is_v6", [False, True], ids=["igmp", "mld"])
@settings(max_examples=40, deadline=None)
@given(st.lists(asking, max_size=8), st.integers(0, 1000))
def test_upstream_sees_the_merged_filters(
    is_v6: bool, steps: list[tuple[int, int, bool, frozenset[int], float]], seed: int
) -> None:
    groups, sources = (GROUPS6, SOURCES6) if is_v6 else (GROUPS, SOURCES)
    network = Network(seed)
    wan = network.router("wan", packed("fe80::ff" if is_v6 else "10.0.0.254"))
    proxy = network.proxy("wan", ["lan0", "lan1"], ROUTER6 if is_v6 else ROUTER)
    hosts = [network.host(f"lan{i % 2}", packed(f"fe80::1{i}" if is_v6 else f"10.0.0.1{i}")) for i in range(3)]
    for host, group, is_exclude, few, pause_s in steps:
        hosts[host].set_filter(groups[group], Filter(is_exclude, frozenset(sources[i] for i in few)), network.now_s)
        network.run(pause_s)
    network.run(1200)
    for group in groups:
        merged = asked_for(hosts, group)
        assert wan.filter(group) == merged
        for source in sources:
            wanted = tuple(
                name for i, name in enumerate(("lan0", "lan1")) if asked_for(hosts[i::2], group).accepts(source)
            )
            assert proxy.decide(source, group, "wan") == wanted
            others = tuple(name for name in wanted if name != "lan0")
            assert proxy.decide(source, group, "lan0") == tuple(sorted([*others, "wan"]))


@given(st.lists(st.tuples(st.integers(0, 5), st.none() | st.floats(0, 100), st.floats(0, 5))))
def test_deadlines_are_those_of_a_plain_table(steps: list[tuple[int, float | None, float]]) -> None:
    deadlines, plain, now_s = Deadlines(), dict[bytes, float](), 0.0
    for key, when_s, passed_s in steps:
        address = bytes([key])
        deadlines.set(address, when_s)
        if when_s is None:
            plain.pop(address, None)
        else:
            plain[address] = when_s
        now_s += passed_s
        assert deadlines.next() == min(plain.values(), default=None)
        due = deadlines.pop_due(now_s)
        assert sorted(due) == sorted(each for each, at_s in plain.items() if at_s <= now_s)
        plain = {each: at_s for each, at_s in plain.items() if at_s > now_s}
        assert len(deadlines) == len(plain)


def test_deadlines_of_keys_that_come_and_go_are_forgotten() -> None:
    deadlines = Deadlines()
    for each in range(100_000):
        deadlines.set(each.to_bytes(4), 260.0)
        deadlines.set(each.to_bytes(4), None)
    assert len(deadlines._heap) < 2000
    assert len(deadlines._queued) < 2000
