"""netd with real kernels around it: hosts of every version, a kernel bridge as the oracle of what goes up, packets
that must arrive, a netd that is killed, interfaces that go and come back."""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import netns
import pytest
from netd_box import NetdBox, wait_for
from streams import (
    ASM,
    FAMILIES,
    FAR_HOST,
    PORT,
    SOURCE,
    SSM,
    TO_FAR_HOST,
    Count,
    Stream,
    listener,
)

pytestmark = [pytest.mark.netns, pytest.mark.skipif(bool(netns.why_not()), reason=netns.why_not() or "")]

TV: dict[str, object] = {"name": "tv", "upstream": "wan", "downstream": ["lan0", "lan1"]}


class Branch:
    """The topology and netd in its middle."""

    def __init__(self, topology: netns.Topology, state_dir: Path) -> None:
        self.source, self.box, self.hosts = topology.proxy(2)
        self.netd = NetdBox(self.box, state_dir)


@pytest.fixture
def branch(tmp_path: Path) -> Iterator[Branch]:
    with netns.Topology() as topology:
        made = Branch(topology, tmp_path)
        with made.netd:
            made.netd.desire(TV)
            made.netd.ready()
            yield made


def routes(branch: Branch, *, is_v6: bool) -> dict[tuple[str, str], list[str]]:
    return {(each["source"], each["group"]): each["to"] for each in branch.netd.proxy(is_v6=is_v6)["routes"]}


def forwarded(branch: Branch, interface: str, *, is_v6: bool) -> int:
    """Packets of multicast routes that have left by the interface."""
    lines = branch.box.read(f"/proc/net/ip{'6' if is_v6 else ''}_mr_vif").splitlines()[1:]
    return next(int(line.split()[5]) for line in lines if line.split()[1] == interface)


@FAMILIES
def test_a_flow_that_somebody_joined_loses_nothing(branch: Branch, is_v6: bool) -> None:
    """2,000 packets/s from the first packet on, for members of any source and of this one."""
    for group, sources in ((ASM[is_v6], ()), (SSM[is_v6], (SOURCE[is_v6],))):
        count = Count(netns.join(branch.hosts[0], "eth0", group, PORT, sources))
        source = sources[0] if sources else "*"
        wait_for(lambda source=source, group=group: (source, group) in routes(branch, is_v6=is_v6), "the route")
        stream = Stream(branch.source, group, 2000)
        wait_for(lambda count=count: len(count.numbers) >= 2000, "packets")
        stream.stop()
        assert count.stop() == list(range(stream.n_sent))
        assert all(each["is_installed"] for each in branch.netd.proxy(is_v6=is_v6)["routes"])


@FAMILIES
def test_filters_of_hosts_decide(branch: Branch, is_v6: bool) -> None:
    group = SSM[is_v6]
    other = "2001:db8::9" if is_v6 else "192.0.2.9"
    wanted = netns.join(branch.hosts[0], "eth0", group, PORT, (SOURCE[is_v6],))
    unwanted = netns.join(branch.hosts[1], "eth0", group, PORT, (other,))
    expected = {(SOURCE[is_v6], group): ["lan0"], (other, group): ["lan1"]}
    wait_for(lambda: expected.items() <= routes(branch, is_v6=is_v6).items(), "both routes")
    out = netns.sender(branch.source, "eth0", is_v6=is_v6)
    out.sendto(b"for one", (group, PORT))
    assert wanted.recv(100) == b"for one"
    # The second host's kernel would hide it: the box must not send it there at all.
    assert forwarded(branch, "lan1", is_v6=is_v6) == 0
    assert forwarded(branch, "lan0", is_v6=is_v6) == 1
    for each in (wanted, unwanted, out):
        each.close()
    # Both have left: asked for last members, and gone.
    wait_for(lambda: not branch.netd.proxy(is_v6=is_v6)["asked_upstream"].get(group), "the leave", 8)


@pytest.mark.parametrize("version", [1, 2, 3])
def test_hosts_of_every_igmp_version(branch: Branch, version: int) -> None:
    branch.hosts[0].sysctl("net.ipv4.conf.eth0.force_igmp_version", str(version))
    group = ASM[False]
    player = netns.join(branch.hosts[0], "eth0", group, PORT)
    wait_for(lambda: ("*", group) in routes(branch, is_v6=False), "the route")
    out = netns.sender(branch.source, "eth0")
    out.sendto(b"here", (group, PORT))
    assert player.recv(100) == b"here"
    player.close()
    if version > 1:
        wait_for(lambda: ("*", group) not in routes(branch, is_v6=False), "the leave", 8)
    out.close()


@pytest.mark.parametrize("version", [1, 2])
def test_hosts_of_every_mld_version(branch: Branch, version: int) -> None:
    branch.hosts[0].sysctl("net.ipv6.conf.eth0.force_mld_version", str(version))
    group = ASM[True]
    player = netns.join(branch.hosts[0], "eth0", group, PORT)
    wait_for(lambda: ("*", group) in routes(branch, is_v6=True), "the route")
    out = netns.sender(branch.source, "eth0", is_v6=True)
    out.sendto(b"here", (group, PORT))
    assert player.recv(100) == b"here"
    player.close()
    wait_for(lambda: ("*", group) not in routes(branch, is_v6=True), "the leave", 8)
    out.close()


@FAMILIES
def test_the_process_that_answers_for_multicast_is_killed(branch: Branch, is_v6: bool) -> None:
    """Its routes stay, netd notices and starts another one, which takes membership from them. What else netd does goes
    on."""
    count = Count(netns.join(branch.hosts[0], "eth0", ASM[is_v6], PORT))
    wait_for(lambda: ("*", ASM[is_v6]) in routes(branch, is_v6=is_v6), "the route")
    before = routes(branch, is_v6=is_v6)
    stream = Stream(branch.source, ASM[is_v6], 1000)
    wait_for(lambda: len(count.numbers) > 100, "packets")
    (killed,) = branch.netd.answering()
    os.kill(killed, signal.SIGKILL)
    wait_for(lambda: set(branch.netd.answering()) - {killed}, "another one")
    assert branch.netd.ask("queues")["queues"] == []
    wait_for(lambda: routes(branch, is_v6=is_v6) == before, "the routes again")
    (event,) = branch.netd.events("multicast-restarted")
    assert "was ended" in event["message"]
    n_seen = len(count.numbers)
    wait_for(lambda: len(count.numbers) > n_seen + 300, "packets after it")
    stream.stop()
    assert count.stop() == list(range(stream.n_sent))
    # It answers as the first one did.
    with netns.join(branch.hosts[1], "eth0", ASM[is_v6], PORT):
        name = "lan1"
        wait_for(lambda: name in routes(branch, is_v6=is_v6)["*", ASM[is_v6]], "a join")


def test_without_multicast_there_is_no_process_for_it(branch: Branch) -> None:
    assert len(branch.netd.answering()) == 1
    branch.netd.desire()
    wait_for(lambda: not branch.netd.answering(), "it has ended")
    assert branch.netd.ask("show")["multicast"] == {}
    wait_for(lambda: len(branch.box.read("/proc/net/ip_mr_vif").splitlines()) == 1, "nothing is left in the kernel")
    assert not branch.netd.events("multicast-restarted")
    # Taken out and wanted again at once, while the one before ends.
    for _ in range(3):
        branch.netd.desire(TV)
        branch.netd.desire()
    branch.netd.desire(TV)
    branch.netd.ready()
    wait_for(lambda: len(branch.netd.answering()) == 1, "one of them")
    assert not branch.netd.events("multicast-restarted")


@FAMILIES
def test_killed_netd_loses_no_packet(branch: Branch, is_v6: bool) -> None:
    """The keeper has the routes; the next netd takes membership from them, and hosts are asked again."""
    count = Count(netns.join(branch.hosts[0], "eth0", ASM[is_v6], PORT))
    single = netns.join(branch.hosts[1], "eth0", SSM[is_v6], PORT, (SOURCE[is_v6],))
    wait_for(lambda: len(routes(branch, is_v6=is_v6)) == 2, "the routes")
    before = routes(branch, is_v6=is_v6)
    stream = Stream(branch.source, ASM[is_v6], 1000)
    wait_for(lambda: len(count.numbers) > 100, "packets")
    keepers = branch.netd.keepers()
    branch.netd.stop(signal.SIGKILL)
    wait_for(lambda: len(count.numbers) > 500, "packets without netd")
    branch.netd.start()
    wait_for(lambda: routes(branch, is_v6=is_v6) == before, "the routes again", 1.0)
    wait_for(lambda: len(count.numbers) > 1500, "packets after it")
    stream.stop()
    assert count.stop() == list(range(stream.n_sent))
    assert branch.netd.keepers() == keepers
    out = netns.sender(branch.source, "eth0", is_v6=is_v6)
    out.sendto(b"still", (SSM[is_v6], PORT))
    assert single.recv(100) == b"still"
    single.close()
    out.close()


def test_killed_netd_loses_no_packet_of_unicast_either(branch: Branch) -> None:
    """Routes and rules stay in the kernel; the next netd finds them right, and changes nothing."""
    branch.box.sysctl("net.ipv4.ip_forward", "1")
    branch.hosts[0].ip("addr", "add", f"{FAR_HOST}/32", "dev", "lo")
    branch.netd.desire(TV, **TO_FAR_HOST)
    counts = [
        Count(listener(branch.hosts[0], FAR_HOST)),
        Count(netns.join(branch.hosts[1], "eth0", ASM[False], PORT)),
    ]
    wait_for(lambda: routes(branch, is_v6=False).get(("*", ASM[False])) == ["lan1"], "the multicast route")
    wait_for(lambda: branch.netd.ask("show")["kernel"]["rules"], "the rule")
    streams = [Stream(branch.source, to, 1000) for to in (FAR_HOST, ASM[False])]
    wait_for(lambda: all(len(each.numbers) > 100 for each in counts), "packets")
    branch.netd.stop(signal.SIGKILL)
    wait_for(lambda: all(len(each.numbers) > 400 for each in counts), "packets without netd")
    branch.netd.start()

    def is_right() -> bool:
        kernel = branch.netd.ask("show")["kernel"]
        return not kernel["n_steps"] and not kernel["repairs"] and ("*", ASM[False]) in routes(branch, is_v6=False)

    wait_for(is_right, "all as it was", 1.0)
    wait_for(lambda: all(len(each.numbers) > 800 for each in counts), "packets after it")
    for stream in streams:
        stream.stop()
    for stream, count in zip(streams, counts, strict=True):
        assert count.stop() == list(range(stream.n_sent))


def test_a_killed_keeper_is_replaced(branch: Branch) -> None:
    player = netns.join(branch.hosts[0], "eth0", ASM[False], PORT)
    wait_for(lambda: ("*", ASM[False]) in routes(branch, is_v6=False), "the route")
    (first,) = branch.netd.keepers()
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: any(event["kind"] == "keeper-restarted" for event in branch.netd.ask("show")["events"]), "another")
    branch.netd.stop(signal.SIGKILL)
    assert len(branch.box.read("/proc/net/ip_mr_cache").splitlines()) == 2
    player.close()


def test_proxies_that_are_wanted_no_more_leave_nothing(branch: Branch) -> None:
    player = netns.join(branch.hosts[0], "eth0", ASM[False], PORT)
    wait_for(lambda: ("*", ASM[False]) in routes(branch, is_v6=False), "the route")
    branch.netd.desire()
    for family in ("", "6"):
        path = f"/proc/net/ip{family}_mr_vif"
        wait_for(lambda path=path: len(branch.box.read(path).splitlines()) == 1, "nothing is left")
    player.close()


def test_another_policy_keeps_the_flows(branch: Branch) -> None:
    count = Count(netns.join(branch.hosts[0], "eth0", ASM[False], PORT))
    wait_for(lambda: ("*", ASM[False]) in routes(branch, is_v6=False), "the route")
    stream = Stream(branch.source, ASM[False], 1000)
    wait_for(lambda: len(count.numbers) > 100, "packets")
    branch.netd.desire({**TV, "downstream": ["lan0"], "interval_s": 60})
    wait_for(lambda: len(count.numbers) > 1000, "packets after it")
    stream.stop()
    assert count.stop() == list(range(stream.n_sent))
    assert "lan1" not in branch.box.read("/proc/net/ip_mr_vif")


def test_an_interface_that_comes_back_is_used_again(branch: Branch) -> None:
    """With another index, as after a driver's reload, and while a host is a member behind it."""
    branch.box.ip("link", "del", "lan0")
    wait_for(lambda: branch.netd.proxy()["missing"] == ["lan0"], "its going", 2)
    host = branch.hosts[0]
    host.ip("link", "add", "eth0", "type", "veth", "peer", "name", "lan0", "netns", branch.box.name)
    for namespace, name, last in ((host, "eth0", "2"), (branch.box, "lan0", "1")):
        namespace.ip("addr", "add", f"10.1.0.{last}/24", "dev", name)
        namespace.ip("link", "set", name, "up")
    wait_for(lambda: not branch.netd.proxy()["missing"], "its return", 2)
    player = netns.join(host, "eth0", ASM[False], PORT)
    wait_for(lambda: routes(branch, is_v6=False).get(("*", ASM[False])) == ["lan0"], "the route")
    out = netns.sender(branch.source, "eth0")
    out.sendto(b"back", (ASM[False], PORT))
    assert player.recv(100) == b"back"
    kinds = [event["kind"] for event in branch.netd.ask("show")["events"]]
    assert "interface-gone" in kinds
    player.close()
    out.close()


def mdb(namespace: netns.Namespace, bridge: str) -> list[dict[str, Any]]:
    """What a kernel bridge has heard: its multicast database."""
    shown = json.loads(namespace.run("bridge", "-d", "-s", "-j", "mdb", "show", "dev", bridge))
    entries: list[dict[str, Any]] = shown[0]["mdb"]
    return entries


@FAMILIES
def test_a_bridge_upstream_hears_the_merged_filters(tmp_path: Path, is_v6: bool) -> None:
    """The kernel's own snooping is the oracle: filter mode and source list of the port that leads to us."""
    with netns.Topology() as topology:
        branch = Branch(topology, tmp_path)
        source = branch.source
        source.ip(
            "link",
            "add",
            "br0",
            "type",
            "bridge",
            "mcast_snooping",
            "1",
            "mcast_querier",
            "1",
            "mcast_igmp_version",
            "3",
            "mcast_mld_version",
            "2",
        )
        source.ip("link", "set", "eth0", "master", "br0")
        source.ip("link", "set", "br0", "up")
        with branch.netd:
            branch.netd.desire(TV)
            branch.netd.ready()
            sources = [f"2001:db8::{i}" if is_v6 else f"192.0.2.{i}" for i in range(1, 4)]
            group = SSM[is_v6]
            players = [
                netns.join(branch.hosts[0], "eth0", group, PORT, (sources[0], sources[1])),
                netns.join(branch.hosts[1], "eth0", group, PORT, (sources[1], sources[2])),
            ]
            heard: list[dict[str, Any]] = []

            def is_heard() -> bool:
                heard[:] = [each for each in mdb(source, "br0") if each["grp"] == group and "source_list" in each]
                return any({one["address"] for one in each["source_list"]} == set(sources) for each in heard)

            wait_for(is_heard, f"the bridge hears {sources}, heard {heard}")
            assert [each["filter_mode"] for each in heard if "src" not in each] == ["include"]
            # Any source but these: two lists of excluded sources become what both exclude.
            group = ASM[is_v6]
            players += [
                netns.join(branch.hosts[0], "eth0", group, PORT, (sources[0], sources[1]), excludes=True),
                netns.join(branch.hosts[1], "eth0", group, PORT, (sources[1], sources[2]), excludes=True),
            ]
            wait_for(
                lambda: (
                    branch.netd.proxy(is_v6=is_v6)["asked_upstream"].get(group)
                    == {"mode": "exclude", "sources": [sources[1]]}
                ),
                "the merged filter",
            )

            def is_excluded() -> bool:
                entries = [each for each in mdb(source, "br0") if each["grp"] == group and "src" not in each]
                return any(
                    each.get("filter_mode") == "exclude"
                    and sources[1] in {one["address"] for one in each.get("source_list", [])}
                    for each in entries
                )

            wait_for(is_excluded, "the bridge hears the excluded source")
            for player in players:
                player.close()


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ([], "no mapping"),
        ({"roads": []}, "no key 'roads'"),
        ({"multicast": [{"name": "tv", "upstream": "wan", "downstream": []}]}, "names no interface"),
        (
            {"multicast": [{"name": "tv", "upstream": "wan", "downstream": ["wan"]}]},
            "stands in proxy tv and in proxy tv",
        ),
        ({"multicast": [{"name": "tv", "upstream": "w/n", "downstream": ["lan0"]}]}, "no interface name"),
        ({"multicast": [{**TV, "interval_s": 0}]}, "interval_s is a number"),
        ({"multicast": [{**TV, "querier": "maybe"}]}, "querier is one of"),
        ({"multicast": [{**TV, "groups": ["239.0.0.0/33"]}]}, "239.0.0.0/33"),
        ({"multicast": [TV, {"name": "b", "upstream": "lan0", "downstream": ["wan"]}]}, "proxy tv and in proxy b"),
    ],
)
def test_a_state_that_makes_no_sense_changes_nothing(branch: Branch, state: object, message: str) -> None:
    before = branch.netd.ask("show")["services"]
    with pytest.raises(RuntimeError, match=message):
        branch.netd.ask("desire", service="test", generation=9, state=state)
    assert branch.netd.ask("show")["services"] == before


def test_services_and_generations(branch: Branch) -> None:
    with pytest.raises(RuntimeError, match="generation 1 already"):
        branch.netd.ask("desire", service="test", generation=0, state={})
    with pytest.raises(RuntimeError, match="stands in proxy tv"):
        branch.netd.ask("desire", service="other", generation=0, state={"multicast": [TV]})
    with pytest.raises(RuntimeError, match="no command"):
        branch.netd.ask("reboot")
    branch.netd.ask("desire", service="other", generation=0, state={})
    assert set(branch.netd.ask("show")["services"]) == {"test", "other"}


def test_events_are_followed(branch: Branch) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(10)
        connection.connect(str(branch.netd.state_dir / "netd.sock"))
        connection.sendall(b'{"command": "follow"}\n')
        with connection.makefile("rb") as reader:
            last = json.loads(reader.readline())["result"]["events"][-1]["n"]
            branch.box.ip("link", "set", "lan1", "down")
            event = json.loads(reader.readline())["event"]
    assert (event["n"], event["kind"], event["interface"]) == (last + 1, "interface-gone", "lan1")


def delete_kernel_route(box: netns.Namespace, source: str, group: str, interface: str) -> None:
    """What another program with the right to can do: RTM_DELROUTE of family RTNL_FAMILY_IPMR."""

    def attribute(kind: int, data: bytes) -> bytes:
        return (4 + len(data)).to_bytes(2, "little") + kind.to_bytes(2, "little") + data

    index = box.index(interface).to_bytes(4, "little")
    body = bytes((128, 32, 32, 0, 253, 17, 0, 5)) + bytes(4)
    body += attribute(2, socket.inet_aton(source)) + attribute(1, socket.inet_aton(group)) + attribute(3, index)
    head = (16 + len(body)).to_bytes(4, "little") + (25).to_bytes(2, "little") + (5).to_bytes(2, "little") + bytes(8)

    def delete() -> int:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as netlink:
            netlink.sendall(head + body)
            return int.from_bytes(netlink.recv(4096)[16:20], "little", signed=True)

    assert box.call(delete) == 0


def test_a_route_that_someone_deleted_is_back_with_the_next_packet(branch: Branch) -> None:
    """For any source too: the kernel asks for the packet's own source then, which has no route by itself."""
    for group, sources in ((SSM[False], (SOURCE[False],)), (ASM[False], ())):
        player = netns.join(branch.hosts[0], "eth0", group, PORT, sources)
        source = sources[0] if sources else "*"
        wait_for(lambda source=source, group=group: (source, group) in routes(branch, is_v6=False), "the route")
        delete_kernel_route(branch.box, sources[0] if sources else "0.0.0.0", group, "wan")
        out = netns.sender(branch.source, "eth0")
        out.sendto(b"again", (group, PORT))
        assert player.recv(100) == b"again"
        player.close()
        out.close()


def test_a_new_flow_loses_nothing_while_ten_thousand_routes_are_reconciled(branch: Branch) -> None:
    """2,000 packets/s from the first one on, of a source that nobody knew: the members' (*,G) route takes it, so that
    no upcall has to be answered meanwhile. Where the machine itself is away some may be lost whatever netd does."""
    rows = [
        {"table": 86_001, "destination": f"172.16.{i >> 8}.{i & 255}/32", "gateway": "10.1.0.2", "interface": "lan0"}
        for i in range(10_000)
    ]
    done = threading.Event()

    def reconcile() -> None:
        for n in itertools.count(1):
            if done.is_set():
                return
            state = {"routes": rows[: 5000 if n % 2 else 10_000]}
            branch.netd.ask("desire", service="routes", generation=n, state=state)

    groups = [f"239.1.3.{n + 1}" for n in range(60)]
    counts = [Count(netns.join(branch.hosts[0], "eth0", group, PORT)) for group in groups]
    wait_for(lambda: {("*", group) for group in groups} <= routes(branch, is_v6=False).keys(), "the routes")
    worker = threading.Thread(target=reconcile)
    worker.start()
    try:
        wait_for(lambda: branch.netd.ask("show")["kernel"]["routes"], "it has begun", 30)
        n_sent = []
        for group in groups:
            stream = Stream(branch.source, group, 2000)
            wait_for(lambda stream=stream: stream.n_sent >= 60, "packets")
            stream.stop()
            n_sent.append(stream.n_sent)
    finally:
        done.set()
        worker.join()
    lost = [n - len(count.stop()) for n, count in zip(n_sent, counts, strict=True)]
    assert sum(each > 0 for each in lost) <= len(groups) // 10, lost
