"""netd among other people's routers: FRR's pimd upstream and beside it on the same box, igmpproxy and smcroute as they
are. What the merged filters must be is computed here, from what each host has joined."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator
from pathlib import Path

import frr_box
import netns
import pytest
from merged_filters import Hosts, bridge_above, bridge_says, pimd_says
from netd_box import NetdBox, wait_for
from streams import ASM, FAMILIES, PORT, SOURCE, SSM, Count, Stream

from accelerator.kernel.mroute_table import read_routes

pytestmark = [pytest.mark.netns, pytest.mark.skipif(bool(netns.why_not()), reason=netns.why_not() or "")]
needs_frr = pytest.mark.skipif(bool(frr_box.why_not()), reason=frr_box.why_not() or "")

# Who leaves was the last: what is compared changes at once.
TV: dict[str, object] = {"name": "tv", "upstream": "wan", "downstream": ["lan0", "lan1"], "fast_leave": True}
Net = tuple[netns.Topology, netns.Namespace, netns.Namespace, list[netns.Namespace]]


@pytest.fixture
def net(tmp_path: Path) -> Iterator[Net]:
    with netns.Topology() as topology:
        yield (topology, *topology.proxy(2))


@needs_frr
def test_pimd_upstream_hears_the_merged_filters(net: Net, tmp_path: Path) -> None:
    """Whatever hosts do: pimd's filter mode and source list are those of the merged database."""
    _, source, box, hosts = net
    chance = random.Random(7)

    with frr_box.Frr(source, tmp_path / "frr", "eth0") as frr, NetdBox(box, tmp_path) as netd:
        netd.desire(TV)
        netd.ready()
        players = Hosts(hosts, is_v6=False)
        for _ in range(10):
            players.change(chance)
            for group in (ASM[False], SSM[False]):
                wanted = players.merged(group)
                wait_for(lambda group=group, wanted=wanted: pimd_says(frr, group) == wanted, f"{group}: {wanted}")
        players.close()


@pytest.mark.slow  # the normal suite has one course of it, in test_netd.py
@FAMILIES
def test_a_bridge_upstream_hears_the_merged_filters_whatever_hosts_do(net: Net, tmp_path: Path, is_v6: bool) -> None:
    """The kernel's own snooping, for MLDv2 too."""
    _, source, box, hosts = net
    chance = random.Random(11)
    bridge_above(source)
    with NetdBox(box, tmp_path) as netd:
        netd.desire(TV)
        netd.ready()
        players = Hosts(hosts, is_v6=is_v6)
        for _ in range(10):
            players.change(chance)
            for group in (ASM[is_v6], SSM[is_v6]):
                wanted = players.merged(group)
                wait_for(lambda group=group, wanted=wanted: bridge_says(source, group) == wanted, f"{group}: {wanted}")
        players.close()


@needs_frr
def test_a_stream_behind_pimd_reaches_the_hosts_that_asked_for_its_source(net: Net, tmp_path: Path) -> None:
    """Source, PIM router, our proxy, host: the join goes the whole way up, by IGMPv3 at each hop, and no further than
    asked."""
    topology, router, box, hosts = net
    studio = topology.namespace("studio")
    topology.wire(studio, "eth0", router, "eth1")
    studio.ip("addr", "add", "10.9.0.2/24", "dev", "eth0")
    studio.ip("route", "add", "default", "via", "10.9.0.1")
    router.ip("addr", "add", "10.9.0.1/24", "dev", "eth1")
    router.sysctl("net.ipv4.ip_forward", "1")
    with frr_box.Frr(router, tmp_path / "frr", "eth0", "eth1"), NetdBox(box, tmp_path) as netd:
        netd.desire(TV)
        netd.ready()
        stream = Stream(studio, SSM[False], 200)
        count = Count(netns.join(hosts[0], "eth0", SSM[False], PORT, ("10.9.0.2",)))
        wait_for(lambda: len(count.numbers) > 200, "packets of the studio's", 20)
        # Who wants another source gets nothing of it.
        other = netns.join(hosts[1], "eth0", SSM[False], PORT, ("192.0.2.1",))
        wait_for(lambda: "192.0.2.1" in {each["source"] for each in netd.proxy()["routes"]}, "the other's route")
        assert {each["source"]: each["to"] for each in netd.proxy()["routes"]}["10.9.0.2"] == ["lan0"]
        stream.stop()
        numbers = count.stop()
        assert numbers == list(range(numbers[0], stream.n_sent))
        other.close()


@needs_frr
def test_pimd_on_the_same_box_has_the_usual_table_and_we_our_own(net: Net, tmp_path: Path) -> None:
    """Both forward at once, each between its own interfaces; neither touches the other's routes."""
    topology, source, box, hosts = net
    box.sysctl("net.ipv4.ip_forward", "1")
    ends = []
    for number, name in enumerate(("pim0", "pim1")):
        end = topology.namespace(name)
        topology.wire(end, "eth0", box, name)
        end.ip("addr", "add", f"10.8.{number}.2/24", "dev", "eth0")
        end.ip("route", "add", "default", "via", f"10.8.{number}.1")
        box.ip("addr", "add", f"10.8.{number}.1/24", "dev", name)
        ends.append(end)
    with frr_box.Frr(box, tmp_path / "frr", "pim0", "pim1") as frr, NetdBox(box, tmp_path) as netd:
        wait_for(lambda: set(frr.ask("show ip igmp interface")) == {"pim0", "pim1"}, "pimd has its interfaces")
        netd.desire(TV, multicast_table=8600)
        netd.ready()
        ours, theirs = SSM[False], "232.8.8.8"
        streams = [Stream(source, ours, 500), Stream(ends[0], theirs, 500)]
        counts = [
            Count(netns.join(hosts[0], "eth0", ours, PORT, (SOURCE[False],))),
            Count(netns.join(ends[1], "eth0", theirs, PORT, ("10.8.0.2",))),
        ]
        wait_for(lambda: all(len(each.numbers) > 300 for each in counts), "packets by both", 30)
        in_usual = box.call(lambda: read_routes(is_v6=False))
        in_own = box.call(lambda: read_routes(is_v6=False, table=8600))
        assert {socket.inet_ntoa(each.group) for each in in_usual} == {theirs}
        assert {socket.inet_ntoa(each.group) for each in in_own} == {ours}
        for stream, count in zip(streams, counts, strict=True):
            stream.stop()
            numbers = count.stop()
            assert numbers == list(range(numbers[0], stream.n_sent))
