"""The RFC 4605 proxy: merged filters upstream, where flows go, who may forward, interfaces that come and go."""

from __future__ import annotations

from dataclasses import replace

import pytest
from membership_link import NETS, ROUTER, START_S, Network, over_the_wire, packed

from accelerator.protocols.membership.filters import EVERYTHING, NOTHING, Filter
from accelerator.protocols.membership.host import HostSide
from accelerator.protocols.membership.messages import Kind, Leave, Query, Record, Report
from accelerator.protocols.membership.proxy import DownstreamQuerierChanged, FlowsChanged, Proxy, UpstreamVersionChanged
from accelerator.protocols.membership.settings import Admission, HostSettings, QuerierMode, RouterSettings

GROUP, SSM = packed("239.1.2.3"), packed("232.1.2.3")
S = [packed(f"192.0.2.{each}") for each in range(6)]
HOST, LOWER = packed("10.0.0.7"), packed("10.0.0.0")


def some(*indices: int) -> frozenset[bytes]:
    return frozenset(S[i] for i in indices)


def proxy(settings: RouterSettings | None = None) -> Proxy:
    side = Proxy("wan", HostSettings(), lambda: 0.5)
    for name in ("lan0", "lan1"):
        side.add_downstream(name, settings or RouterSettings(), ROUTER, NETS, START_S)
    side.to_send(START_S)
    while side.next_event() is not None:
        pass
    return side


def say(side: Proxy, interface: str, message: Query | Report | Leave, now_s: float, sender: bytes = HOST) -> None:
    for heard in over_the_wire(message, sender):
        side.receive(interface, heard, now_s)


def join(side: Proxy, interface: str, kind: Kind, group: bytes, sources: frozenset[bytes] = frozenset()) -> None:
    say(side, interface, Report(3, (Record(kind, group, sources),)), START_S)


def test_a_source_specific_join_goes_up_as_one() -> None:
    """What igmpproxy makes an any-source join of."""
    side = proxy()
    join(side, "lan0", Kind.ALLOW, SSM, some(1))
    assert side.next_event() == FlowsChanged(SSM)
    assert side.to_send(START_S) == [("wan", Report(3, (Record(Kind.ALLOW, SSM, some(1)),)))]
    join(side, "lan1", Kind.ALLOW, SSM, some(1, 2))
    assert side.host.filters[SSM] == Filter(False, some(1, 2))


def test_filters_of_downstreams_are_merged() -> None:
    side = proxy()
    join(side, "lan0", Kind.TO_EXCLUDE, GROUP, some(1, 2))
    assert side.host.filters[GROUP] == Filter(True, some(1, 2))
    join(side, "lan1", Kind.ALLOW, GROUP, some(2, 3))
    assert side.host.filters[GROUP] == Filter(True, some(1))
    say(side, "lan1", Report(2, (Record(Kind.IS_EXCLUDE, GROUP),)), START_S)
    assert side.host.filters[GROUP] == EVERYTHING


def test_where_flows_go() -> None:
    side = proxy()
    join(side, "lan0", Kind.ALLOW, SSM, some(1))
    join(side, "lan1", Kind.ALLOW, SSM, some(1, 2))
    assert side.decide(S[1], SSM, "wan") == ("lan0", "lan1")
    assert side.decide(S[2], SSM, "wan") == ("lan1",)
    assert side.decide(S[3], SSM, "wan") == ()
    # From a downstream: upstream whoever wants it there, and to the other downstreams that do, never back.
    assert side.decide(S[1], SSM, "lan1") == ("lan0", "wan")
    assert side.decide(S[3], SSM, "lan0") == ("wan",)
    assert side.decide(S[1], SSM, "elsewhere") == ()
    assert side.decide(S[1], packed("224.0.0.5"), "lan0") == ()


def test_only_the_querier_forwards() -> None:
    """RFC 4605 section 3."""
    side = proxy()
    join(side, "lan0", Kind.TO_EXCLUDE, GROUP)
    assert side.decide(S[1], GROUP, "wan") == ("lan0",)
    assert side.next_event() == FlowsChanged(GROUP)
    say(side, "lan0", Query(3, 10.0, robustness=2, interval_s=125.0), START_S + 1, LOWER)
    assert side.next_event() == DownstreamQuerierChanged("lan0", LOWER)
    assert side.next_event() == FlowsChanged(None)
    assert side.decide(S[1], GROUP, "wan") == ()
    # Hosts answer the other's queries, so what they want is known when we take over.
    for at_s in (100, 200):
        say(side, "lan0", Report(3, (Record(Kind.IS_EXCLUDE, GROUP),)), START_S + at_s)
    side.on_timer(START_S + 257)
    assert side.decide(S[1], GROUP, "wan") == ("lan0",)


@pytest.mark.parametrize("mode", [QuerierMode.ALWAYS, QuerierMode.NEVER])
def test_who_says_so_forwards_beside_another_querier(mode: QuerierMode) -> None:
    side = proxy(RouterSettings(querier=mode))
    join(side, "lan0", Kind.TO_EXCLUDE, GROUP)
    say(side, "lan0", Query(3, 10.0), START_S, LOWER)
    assert side.decide(S[1], GROUP, "wan") == ("lan0",)


def test_sources_that_are_not_allowed_do_not_pass() -> None:
    admission = Admission(sources=())
    side = proxy(replace(RouterSettings(), admission=admission))
    join(side, "lan0", Kind.TO_EXCLUDE, GROUP)
    assert side.decide(S[1], GROUP, "wan") == ()


def test_a_downstream_that_goes_takes_its_wishes_along() -> None:
    side = proxy()
    join(side, "lan0", Kind.ALLOW, SSM, some(1))
    join(side, "lan1", Kind.ALLOW, SSM, some(2))
    side.remove_downstream("lan1", START_S + 1)
    assert side.host.filters == {SSM: Filter(False, some(1))}
    assert side.decide(S[2], SSM, "wan") == ()
    side.remove_downstream("lan0", START_S + 2)
    assert side.host.filters == {}
    side.add_downstream("lan0", RouterSettings(), ROUTER, NETS, START_S + 3)
    assert [name for name, message in side.to_send(START_S + 3) if isinstance(message, Query)] == ["lan0"]


def test_an_interface_has_one_place() -> None:
    side = proxy()
    for name in ("lan0", "wan"):
        with pytest.raises(ValueError, match="already"):
            side.add_downstream(name, RouterSettings(), ROUTER, NETS, START_S)


def test_an_older_upstream_is_told() -> None:
    side = proxy()
    say(side, "wan", Query(2, 10.0), START_S + 1, packed("10.0.0.254"))
    side.on_timer(START_S + 1)
    assert side.next_event() == UpstreamVersionChanged(2)


def test_proxies_in_a_row() -> None:
    """A host behind two proxies: its filter reaches the router at the top, and its leave too."""
    network = Network(3)
    top = network.router("core", packed("10.0.0.250"))
    network.proxy("core", ["middle"], packed("10.0.0.5"))
    network.proxy("middle", ["lan"], packed("10.0.0.1"))
    host: HostSide = network.host("lan", HOST)
    network.run(5)
    host.set_filter(SSM, Filter(False, some(1, 2)), network.now_s)
    network.run(0.001)
    assert top.filter(SSM) == Filter(False, some(1, 2))
    network.run(1000)
    assert top.filter(SSM) == Filter(False, some(1, 2))
    host.set_filter(SSM, NOTHING, network.now_s)
    # Each proxy waits for other members before it leaves: 2.5 s a level.
    network.run(8)
    assert top.filter(SSM) == NOTHING
