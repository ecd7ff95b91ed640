"""Fuzz target: a proxy that hears anything at any time: queries, reports and leaves of every version on any
interface, some of them damaged packets. It never raises, keeps to its limits, and what is asked upstream is what the
downstreams want.

    .venv/bin/python -m pytest tests/fuzz/fuzz_membership.py          a short run
    PYTHONPATH=. .venv/bin/python tests/fuzz/fuzz_membership.py 600   so many seconds; prints the number of runs
"""

from __future__ import annotations

import random
from collections import Counter
from ipaddress import ip_address, ip_network

from mutation import mutated, run

from accelerator.protocols import igmp
from accelerator.protocols.membership.filters import NOTHING, merge
from accelerator.protocols.membership.messages import Heard, Kind, Leave, Message, Query, Record, Report, prefix
from accelerator.protocols.membership.proxy import Proxy
from accelerator.protocols.membership.settings import Admission, HostSettings, QuerierMode, RouterSettings


def packed(text: str) -> bytes:
    return ip_address(text).packed


US = packed("10.0.0.5")
NETS = (prefix(ip_network("10.0.0.0/24")),)
GROUPS = [packed(text) for text in ("239.1.1.1", "239.1.1.2", "232.1.1.1", "224.0.0.9", "239.2.0.1")]
SENDERS = [packed(text) for text in ("10.0.0.1", "10.0.0.9", "0.0.0.0", "192.0.2.9", "10.0.0.5")]
SOURCES = [packed(f"192.0.2.{each}") for each in range(8)]
INTERFACES = ["wan", "lan0", "lan1"]
N_GROUPS, N_SOURCES = 3, 5


def any_message(source: random.Random) -> Message:
    group = source.choice(GROUPS)
    sources = frozenset(source.sample(SOURCES, source.randrange(len(SOURCES))))
    match source.randrange(4):
        case 0:
            asked = source.choice([None, group])
            return Query(
                source.choice([1, 2, 3]),
                source.choice([0.0, 1.0, 10.0, 3174.4]),
                asked,
                sources if asked and source.random() < 0.5 else frozenset(),
                source.random() < 0.5,
                source.randrange(8),
                source.choice([0.0, 20.0, 125.0, 31744.0]),
            )
        case 1:
            return Leave(group)
        case 2:
            return Report(source.choice([1, 2]), (Record(Kind.IS_EXCLUDE, group),))
        case _:
            kinds = source.choices(list(Kind), k=source.randrange(4))
            return Report(3, tuple(Record(kind, source.choice(GROUPS), sources) for kind in kinds))


def check(source: random.Random) -> None:
    """The target's invariant, for one course of events."""
    settings = RouterSettings(
        querier=source.choice(list(QuerierMode)),
        admission=Admission(n_groups_max=N_GROUPS, n_groups_host_max=source.choice([1, 2]), n_sources_max=N_SOURCES),
        has_fast_leave=source.random() < 0.3,
    )
    proxy = Proxy("wan", HostSettings(version_min=source.choice([1, 2, 3])), source.random)
    now_s = 1000.0
    for name in INTERFACES[1:]:
        proxy.add_downstream(name, settings, US, NETS, now_s)
    for _ in range(source.randrange(60)):
        now_s += source.choice([0.0, 0.001, 0.5, 1.0, 2.5, 60.0, 300.0])
        message = any_message(source)
        for packet in igmp.write(message, source.choice(SENDERS)):
            data = mutated(source, [packet.data]) if source.random() < 0.2 else packet.data
            proxy.receive(source.choice(INTERFACES), igmp.read(data, needs_router_alert=False), now_s)
        for _, sent in proxy.to_send(now_s):
            assert all(isinstance(igmp.read(packet.data), Heard) for packet in igmp.write(sent, US))
        next_s = proxy.next_timer()
        assert next_s is None or next_s > now_s - 1e-6
        routers = proxy.downstreams.values()
        for group in GROUPS:
            wanted = merge(router.filter(group) for router in routers)
            assert proxy.host.filters.get(group, NOTHING) == wanted
            for each in SOURCES:
                outputs = proxy.decide(each, group, "wan")
                assert not outputs or wanted.accepts(each)
        for router in routers:
            assert len(router.groups) <= N_GROUPS
            owners = Counter(each.owner for each in router.groups.values() if each.owner is not None)
            assert router._owned == owners, "nobody is counted who has no group"
            assert not owners or max(owners.values()) <= N_GROUPS
            assert all(len(one.requested.keys() | one.excluded) <= N_SOURCES for one in router.groups.values())
        while proxy.next_event() is not None:
            pass
    now_s += 7 * 3600.0 * 8
    for _ in range(8):
        proxy.to_send(now_s)
        now_s += 4000.0
    assert not any(router.groups for router in proxy.downstreams.values())
    assert not proxy.host.filters


def test_fuzz_membership() -> None:
    for seed in range(600):
        check(random.Random(seed))


if __name__ == "__main__":
    run(check)
