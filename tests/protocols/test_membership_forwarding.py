"""Multicast routes of a proxy: ahead of the packets where membership tells enough; by hypothesis, what the routes do
with any packet is what the proxy decides."""

from __future__ import annotations

from ipaddress import ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from membership_link import NETS, ROUTER, START_S, over_the_wire, packed

from accelerator.protocols.membership.forwarding import (
    MOVE_AFTER_S,
    Entry,
    Forwarding,
    Install,
    Key,
    Remove,
    StaticRoute,
)
from accelerator.protocols.membership.messages import Kind, Query, Record, Report, prefix
from accelerator.protocols.membership.proxy import FlowsChanged, Proxy
from accelerator.protocols.membership.settings import Admission, HostSettings, RouterSettings

GROUP, SSM = packed("239.1.2.3"), packed("232.1.2.3")
S = [packed(f"192.0.2.{each}") for each in range(5)]
LOWER = packed("10.0.0.0")


class Table:
    """The kernel's table, as far as it matters: changes applied in order, packets looked up as ipmr.c does."""

    def __init__(self, router_settings: RouterSettings | None = None, static: tuple[StaticRoute, ...] = ()) -> None:
        self.proxy = Proxy("wan", HostSettings(), lambda: 0.5)
        for name in ("lan0", "lan1"):
            self.proxy.add_downstream(name, router_settings or RouterSettings(), ROUTER, NETS, START_S)
        self.proxy.to_send(START_S)
        self.forwarding = Forwarding(self.proxy, static=static)
        self.forwarding.refresh(None)
        self.routes: dict[Key, Entry] = {}
        self.settle()

    def settle(self) -> None:
        while (event := self.proxy.next_event()) is not None:
            if isinstance(event, FlowsChanged):
                self.forwarding.refresh(event.group)
        while (change := self.forwarding.next_change()) is not None:
            key = change.entry.source, change.entry.group
            if isinstance(change, Install):
                self.routes[key] = change.entry
            else:
                assert isinstance(change, Remove)
                assert self.routes.pop(key) == change.entry
        assert self.routes == self.forwarding.entries

    def hear(
        self, interface: str, message: Report | Query, now_s: float = START_S, sender: bytes = ROUTER[:3] + b"\x09"
    ) -> None:
        for heard in over_the_wire(message, sender):
            self.proxy.receive(interface, heard, now_s)
        self.settle()

    def packet(
        self, source: bytes, group: bytes, interface: str, now_s: float = START_S
    ) -> tuple[tuple[str, ...], bool]:
        """Where it goes, and whether the routes knew that without asking."""
        for asked in (False, True):
            entry = self.routes.get((source, group)) or self.routes.get((None, group))
            if entry is not None and entry.parent == interface:
                return entry.outputs, not asked
            self.forwarding.seen(source, group, interface, now_s)
            self.settle()
        raise AssertionError("no route after the upcall")


def join(table: Table, interface: str, kind: Kind, group: bytes, sources: frozenset[bytes] = frozenset()) -> None:
    table.hear(interface, Report(3, (Record(kind, group, sources),)))


def test_what_is_foretold_has_its_route_before_the_first_packet() -> None:
    table = Table()
    join(table, "lan0", Kind.ALLOW, SSM, frozenset(S[:1]))
    join(table, "lan1", Kind.TO_EXCLUDE, GROUP)
    assert table.packet(S[0], SSM, "wan") == (("lan0",), True)
    assert table.packet(S[3], GROUP, "wan") == (("lan1",), True)
    assert table.packet(S[1], SSM, "wan") == ((), False)
    assert table.packet(S[1], SSM, "wan") == ((), True)
    join(table, "lan0", Kind.BLOCK, SSM, frozenset(S[:1]))
    table.proxy.on_timer(START_S)
    table.proxy.on_timer(START_S + 3)
    table.settle()
    # Only the flow that was seen is left.
    assert [key for key in table.routes if key[1] == SSM] == [(S[1], SSM)]
    table.forwarding.forget(S[1], SSM)
    table.settle()
    assert list(table.routes) == [(None, GROUP)]


def test_a_flow_moves_but_not_with_each_packet() -> None:
    table = Table()
    join(table, "lan0", Kind.TO_EXCLUDE, GROUP)
    assert table.packet(S[0], GROUP, "lan1") == (("lan0", "wan"), False)
    table.forwarding.seen(S[0], GROUP, "wan", START_S + 1)
    table.settle()
    assert table.routes[S[0], GROUP].parent == "lan1"
    table.forwarding.seen(S[0], GROUP, "wan", START_S + MOVE_AFTER_S)
    table.settle()
    # From upstream it is like any other.
    assert list(table.routes) == [(None, GROUP)]


def test_another_querier_takes_the_routes_away() -> None:
    table = Table()
    join(table, "lan0", Kind.TO_EXCLUDE, GROUP)
    table.hear("lan0", Query(3, 10.0), START_S, LOWER)
    assert table.routes == {}


def test_with_an_allow_list_each_source_is_asked_for() -> None:
    table = Table(RouterSettings(admission=Admission(sources=(prefix(ip_network("192.0.2.0/31")),))))
    join(table, "lan0", Kind.TO_EXCLUDE, GROUP)
    assert table.packet(S[1], GROUP, "wan") == (("lan0",), False)
    assert table.packet(S[2], GROUP, "wan") == ((), False)


def test_flows_that_nobody_foretold_are_bounded() -> None:
    proxy = Proxy("wan", HostSettings(), lambda: 0.5)
    forwarding = Forwarding(proxy, n_flows_max=3)
    for source in S:
        forwarding.seen(source, GROUP, "wan", START_S)
    assert len(forwarding.flows) == len(forwarding.entries) == 3
    assert forwarding.n_flows_refused == 2


records = st.tuples(
    st.sampled_from(["lan0", "lan1"]),
    st.sampled_from(list(Kind)),
    st.sampled_from([GROUP, SSM]),
    st.frozensets(st.sampled_from(S[:4]), max_size=3),
)
packets = st.tuples(st.sampled_from(["wan", "lan0", "lan1"]), st.sampled_from([GROUP, SSM]), st.sampled_from(S))


@pytest.mark.parametrize("has_allow_list", [False, True])
@settings(deadline=None)
@given(st.lists(records | packets, max_size=20))
def test_routes_do_what_the_proxy_decides(has_allow_list: bool, steps: list[tuple[str, ...]]) -> None:
    sources = (prefix(ip_network("192.0.2.0/31")),) if has_allow_list else None
    table = Table(RouterSettings(admission=Admission(sources=sources)))
    now_s = START_S
    for step in steps:
        now_s += MOVE_AFTER_S
        if len(step) == 4:
            interface, kind, group, few = step
            table.hear(interface, Report(3, (Record(kind, group, few),)), now_s)  # type: ignore[arg-type]
        else:
            interface, group, source = step
            went, _ = table.packet(source, group, interface, now_s)  # type: ignore[arg-type]
            assert went == table.proxy.decide(source, group, interface)  # type: ignore[arg-type]
        table.proxy.to_send(now_s)
        table.settle()
        for source, group in [(each, group) for each in S for group in (GROUP, SSM)]:
            assert table.packet(source, group, "wan", now_s + MOVE_AFTER_S)[0] == table.proxy.decide(
                source, group, "wan"
            )
        now_s += MOVE_AFTER_S


STATIC = (
    StaticRoute(None, GROUP, "wan", ("aux", "lan0")),
    StaticRoute(S[0], GROUP, "wan", ("lan1",)),
    StaticRoute(S[1], SSM, "wan", ("aux",)),
    StaticRoute(S[2], SSM, "lan0", ("aux",)),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(records, max_size=12))
def test_static_routes_go_on_whatever_hosts_say(steps: list[tuple[str, ...]]) -> None:
    """And members get what they would without them."""
    table = Table(static=STATIC)
    now_s = START_S
    for interface, kind, group, few in [("lan0", Kind.TO_INCLUDE, GROUP, frozenset()), *steps]:
        now_s += MOVE_AFTER_S
        table.hear(interface, Report(3, (Record(kind, group, few),)), now_s)  # type: ignore[arg-type]
        table.proxy.to_send(now_s)
        table.settle()
        for each in STATIC:
            for source in S if each.source is None else [each.source]:
                entry = table.routes.get((source, each.group)) or table.routes[None, each.group]
                decided = table.proxy.decide(source, each.group, each.parent)
                assert {*each.outputs, *decided} <= set(entry.outputs)
                assert set(entry.outputs) <= {*decided, "aux", "lan0", "lan1"}
                assert each.parent == entry.parent
                assert entry.parent not in entry.outputs


def test_a_source_with_another_proxys_static_route_is_left_to_it() -> None:
    proxy = Proxy("wan", HostSettings(), lambda: 0.5)
    proxy.add_downstream("lan0", RouterSettings(), ROUTER, NETS, START_S)
    forwarding = Forwarding(proxy, foreign=frozenset({(S[0], SSM)}))
    for heard in over_the_wire(Report(3, (Record(Kind.ALLOW, SSM, frozenset(S[:2])),)), ROUTER[:3] + b"\x09"):
        proxy.receive("lan0", heard, START_S)
    forwarding.refresh(None)
    assert forwarding.entries.keys() == {(S[1], SSM)}
