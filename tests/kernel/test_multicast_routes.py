"""Multicast that policy wants whoever joins, in the usual table or one of our own; interfaces that come late, are
renamed, have other addresses or are too many; zones that get none. Real kernels in namespaces."""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import netns
import pytest
from netd_box import NetdBox, wait_for
from streams import ASM, FAMILIES, PORT, SOURCE, SSM, Count, Stream

from accelerator.control.display import what_waits
from accelerator.doctor.judge_kernel import judge_kernel
from accelerator.kernel.mroute import MulticastSocket
from accelerator.kernel.mroute_table import read_interfaces, read_routes

pytestmark = [pytest.mark.netns, pytest.mark.skipif(bool(netns.why_not()), reason=netns.why_not() or "")]

TV: dict[str, object] = {"name": "tv", "upstream": "wan", "downstream": ["lan0", "lan1"], "fast_leave": True}


class Branch:
    def __init__(self, topology: netns.Topology, state_dir: Path) -> None:
        self.topology = topology
        self.source, self.box, self.hosts = topology.proxy(2)
        self.netd = NetdBox(self.box, state_dir)

    def entries(self, proxy: str, *, is_v6: bool) -> dict[tuple[str, str], dict[str, Any]]:
        shown = self.netd.ask("show")["multicast"].get("ipv6" if is_v6 else "ipv4", {}).get(proxy, {"routes": []})
        return {(each["source"], each["group"]): each for each in shown["routes"]}

    def installed(self, proxy: str, source: str, group: str, *, is_v6: bool) -> list[str] | None:
        entry = self.entries(proxy, is_v6=is_v6).get((source, group))
        return entry["to"] if entry is not None and entry["is_installed"] else None


@pytest.fixture
def branch(tmp_path: Path) -> Iterator[Branch]:
    with netns.Topology() as topology:
        made = Branch(topology, tmp_path)
        with made.netd:
            yield made


def route(group: str, *to: str, source: str | None = None, interface: str = "wan") -> dict[str, object]:
    return {"name": f"to {group}", "source": source, "group": group, "interface": interface, "to": list(to)}


@FAMILIES
def test_a_static_route_needs_no_proxy_and_asks_upstream_by_itself(branch: Branch, is_v6: bool) -> None:
    """From the first packet on, for any source and for one; what is asked for is seen by a bridge."""
    routes = [route(ASM[is_v6], "lan0"), route(SSM[is_v6], "lan0", "lan1", source=SOURCE[is_v6])]
    branch.netd.desire(multicast_routes=routes)
    own = "routes from wan"
    wait_for(lambda: branch.installed(own, "*", ASM[is_v6], is_v6=is_v6) == ["lan0"], "the route")
    wait_for(lambda: branch.installed(own, SOURCE[is_v6], SSM[is_v6], is_v6=is_v6) == ["lan0", "lan1"], "the other")
    asked = branch.netd.proxy(is_v6=is_v6, name=own)["asked_upstream"]
    assert asked == {
        ASM[is_v6]: {"mode": "exclude", "sources": []},
        SSM[is_v6]: {"mode": "include", "sources": [SOURCE[is_v6]]},
    }
    for group, host in ((ASM[is_v6], 0), (SSM[is_v6], 0), (SSM[is_v6], 1)):
        # The host's own report finds nobody who listens: there is no proxy.
        count = Count(netns.join(branch.hosts[host], "eth0", group, PORT))
        stream = Stream(branch.source, group, 2000)
        wait_for(lambda count=count: len(count.numbers) >= 200, "packets")
        stream.stop()
        assert count.stop() == list(range(stream.n_sent))
    shown = branch.entries(own, is_v6=is_v6)[SOURCE[is_v6], SSM[is_v6]]
    assert shown["packets"] > 400
    assert shown["bytes"] > 400 * 20
    branch.netd.desire()
    wait_for(lambda: branch.box.call(lambda: read_routes(is_v6=is_v6)) == [], "nothing is left")


@FAMILIES
def test_members_get_what_a_static_route_sends_elsewhere(branch: Branch, is_v6: bool) -> None:
    """The kernel has one route for a flow: what policy sends and what hosts join is in it together, and each goes
    without the other."""
    branch.netd.desire(TV, multicast_routes=[route(ASM[is_v6], "lan0")])
    branch.netd.ready()
    wait_for(lambda: branch.installed("tv", "*", ASM[is_v6], is_v6=is_v6) == ["lan0"], "the static route")
    anything = netns.join(branch.hosts[1], "eth0", ASM[is_v6], PORT)
    wait_for(lambda: branch.installed("tv", "*", ASM[is_v6], is_v6=is_v6) == ["lan0", "lan1"], "both")
    anything.close()
    wait_for(lambda: branch.installed("tv", "*", ASM[is_v6], is_v6=is_v6) == ["lan0"], "the leave")
    # A member of one source has a route of its own, which must not take the source away from lan0.
    one = netns.join(branch.hosts[1], "eth0", ASM[is_v6], PORT, (SOURCE[is_v6],))
    key = SOURCE[is_v6], ASM[is_v6]
    wait_for(lambda: branch.installed("tv", *key, is_v6=is_v6) == ["lan0", "lan1"], "both for this source")
    branch.netd.desire(TV)
    wait_for(lambda: branch.installed("tv", *key, is_v6=is_v6) == ["lan1"], "the member alone", 3)
    assert branch.installed("tv", "*", ASM[is_v6], is_v6=is_v6) is None
    one.close()


def test_two_proxies_keep_to_themselves(branch: Branch) -> None:
    """The same group of two uplinks: each one's members get its own, and nothing is asked of the other."""
    second = branch.topology.namespace("second")
    branch.topology.wire(second, "eth0", branch.box, "wan2")
    second.ip("addr", "add", "10.7.0.2/24", "dev", "eth0")
    branch.box.ip("addr", "add", "10.7.0.1/24", "dev", "wan2")
    branch.netd.desire(
        {**TV, "downstream": ["lan0"]}, {**TV, "name": "radio", "upstream": "wan2", "downstream": ["lan1"]}
    )
    for name in ("tv", "radio"):
        branch.netd.ready(name=name)
    players = [netns.join(host, "eth0", ASM[False], PORT) for host in branch.hosts]
    for name, to in (("tv", ["lan0"]), ("radio", ["lan1"])):
        wait_for(lambda name=name, to=to: branch.installed(name, "*", ASM[False], is_v6=False) == to, f"{name}'s route")
    for namespace, said in ((branch.source, b"tv"), (second, b"radio")):
        with netns.sender(namespace, "eth0") as out:
            out.sendto(said, (ASM[False], PORT))
    assert [player.recv(100) for player in players] == [b"tv", b"radio"]
    players.pop().close()
    wait_for(lambda: not branch.netd.proxy(name="radio")["asked_upstream"], "the leave")
    assert branch.netd.proxy()["asked_upstream"]
    players.pop().close()


def test_a_static_route_from_a_downstream_goes_up_too(branch: Branch) -> None:
    group, host = ASM[False], "10.1.0.2"
    branch.netd.desire(TV, multicast_routes=[route(group, "lan1", source=host, interface="lan0")])
    branch.netd.ready()
    wait_for(lambda: branch.installed("tv", host, group, is_v6=False) == ["lan1", "wan"], "the route")
    assert branch.netd.proxy()["asked_upstream"] == {}


def test_a_static_route_waits_for_its_interfaces(branch: Branch) -> None:
    branch.netd.desire(multicast_routes=[route(ASM[False], "lan0", "late")])
    own = "routes from wan"
    wait_for(lambda: branch.installed(own, "*", ASM[False], is_v6=False) == ["lan0", "late"], "what can be")
    assert [each["interface"] for each in branch.netd.events("interface-missing")] == ["late"]
    assert branch.netd.proxy(name=own)["missing"] == ["late"]
    host = branch.topology.namespace("late")
    branch.topology.wire(host, "eth0", branch.box, "late")
    host.ip("addr", "add", "10.1.9.2/24", "dev", "eth0")
    wait_for(lambda: not branch.netd.proxy(name=own)["missing"], "its coming", 2)
    player = netns.join(host, "eth0", ASM[False], PORT)
    out = netns.sender(branch.source, "eth0")
    out.sendto(b"late", (ASM[False], PORT))
    assert player.recv(100) == b"late"
    # And again when it has gone in between, with another number.
    branch.box.ip("link", "del", "late")
    wait_for(lambda: branch.netd.proxy(name=own)["missing"] == ["late"], "its going", 2)
    branch.topology.wire(host, "eth0", branch.box, "late")
    host.ip("addr", "add", "10.1.9.2/24", "dev", "eth0")
    wait_for(lambda: not branch.netd.proxy(name=own)["missing"], "its return", 2)
    again = netns.join(host, "eth0", ASM[False], PORT)
    out.sendto(b"again", (ASM[False], PORT))
    assert again.recv(100) == b"again"
    for each in (player, again, out):
        each.close()


@FAMILIES
def test_a_table_of_our_own_beside_another_program(branch: Branch, is_v6: bool) -> None:
    """The other has the usual table first, as FRR's pimd would; netd is killed meanwhile, and no packet is lost."""
    family = socket.AF_INET6 if is_v6 else socket.AF_INET
    other = branch.box.call(lambda: MulticastSocket(family))
    branch.netd.desire(TV)
    wait_for(lambda: branch.netd.events("multicast-refused"), "that the usual table is taken")
    shown = branch.netd.ask("show")
    name = "ipv6" if is_v6 else "ipv4"
    # Of which nothing was said: the page told that nothing is wanted of the kernel, and the doctor that all is well.
    assert shown["refused"] == {name: "another program routes multicast already"}
    assert f"{name}: multicast is not routed: another program routes multicast already" in what_waits(shown)
    assert [each.code for each in judge_kernel(["multicast"], shown, "")] == ["multicast-refused"]
    branch.netd.desire(TV, multicast_table=8600)
    branch.netd.ready()
    assert not branch.netd.ask("show")["refused"]
    rules = ["-6"] if is_v6 else []
    wait_for(lambda: branch.box.ip(*rules, "mrule").count("lookup 8600") == 3, "the rules that lead there")
    count = Count(netns.join(branch.hosts[0], "eth0", ASM[is_v6], PORT))
    single = netns.join(branch.hosts[1], "eth0", SSM[is_v6], PORT, (SOURCE[is_v6],))
    wait_for(lambda: branch.installed("tv", "*", ASM[is_v6], is_v6=is_v6) == ["lan0"], "the route")
    wait_for(lambda: branch.installed("tv", SOURCE[is_v6], SSM[is_v6], is_v6=is_v6) == ["lan1"], "the other route")
    stream = Stream(branch.source, ASM[is_v6], 1000)
    wait_for(lambda: len(count.numbers) > 100, "packets")
    branch.netd.stop(signal.SIGKILL)
    wait_for(lambda: len(count.numbers) > 300, "packets without netd")
    branch.netd.start()
    wait_for(lambda: branch.installed("tv", SOURCE[is_v6], SSM[is_v6], is_v6=is_v6) == ["lan1"], "the routes again", 1)
    n_before = len(count.numbers)
    wait_for(lambda: len(count.numbers) > n_before + 300, "packets after it")
    stream.stop()
    assert count.stop() == list(range(stream.n_sent))
    assert branch.box.call(lambda: read_routes(is_v6=is_v6)) == []
    single.close()
    other.close()
    # Back to the usual table, which is free now: nothing is left in the other, and no rule.
    branch.netd.desire(TV)
    branch.netd.ready()
    wait_for(lambda: branch.box.ip(*rules, "mrule").count("lookup 8600") == 0, "the rules' end")
    wait_for(lambda: branch.box.call(lambda: read_routes(is_v6=is_v6, table=8600)) == [], "nothing is left")


def test_somebody_deletes_the_rule_to_our_table(branch: Branch) -> None:
    branch.netd.desire(TV, multicast_table=8600)
    branch.netd.ready()
    wait_for(lambda: branch.box.ip("mrule").count("lookup 8600") == 3, "the rules")
    branch.box.ip("mrule", "del", "iif", "lan0", "lookup", "8600")
    wait_for(lambda: branch.box.ip("mrule").count("lookup 8600") == 3, "its return", 1)


@FAMILIES
def test_interfaces_are_told_by_their_routes(branch: Branch, is_v6: bool) -> None:
    """What a netd that takes over has to know, in any table; nothing of the looking is left."""
    family = socket.AF_INET6 if is_v6 else socket.AF_INET
    for table in (None, 77):
        router = branch.box.call(lambda table=table: MulticastSocket(family, table))
        numbers = {3: branch.box.index("lan1"), 30: branch.box.index("wan")}
        for vif, index in numbers.items():
            router.add_vif(vif, index)
        assert branch.box.call(lambda router=router: read_interfaces(router)) == numbers
        assert branch.box.call(lambda table=table: read_routes(is_v6=is_v6, table=table)) == []
        router.close()


def test_a_zone_that_says_never_gets_none(branch: Branch) -> None:
    """By the interface's own address, in both families, and by the host's."""
    branch.box.ip("addr", "add", "10.1.0.9/24", "dev", "lan1")
    branch.hosts[1].ip("addr", "add", "10.1.1.66/24", "dev", "eth0")
    static = [route(ASM[False], "lan0")]
    branch.netd.desire(TV, multicast_never=["10.1.0.0/24", "10.1.1.66/32"], multicast_routes=static)
    wait_for(lambda: branch.netd.events("multicast-never"), "the event")
    assert {each["interface"] for each in branch.netd.events("multicast-never")} == {"lan0", "lan1"}
    wait_for(lambda: branch.netd.proxy()["missing"] == ["lan0", "lan1"], "neither is used")
    assert branch.netd.proxy(is_v6=True)["missing"] == ["lan0", "lan1"]
    # lan1 leaves the zone.
    branch.box.ip("addr", "del", "10.1.0.9/24", "dev", "lan1")
    wait_for(lambda: branch.netd.proxy()["missing"] == ["lan0"], "lan1 is used", 2)
    player = netns.join(branch.hosts[1], "eth0", SSM[False], PORT, (SOURCE[False],))
    wait_for(lambda: branch.installed("tv", SOURCE[False], SSM[False], is_v6=False) == ["lan1"], "a host that may")
    player.close()
    # Its kernel reports from its first address.
    branch.hosts[1].ip("addr", "del", "10.1.1.2/24", "dev", "eth0")
    branch.hosts[1].ip("addr", "add", "10.1.1.66/24", "dev", "eth0")
    player = netns.join(branch.hosts[1], "eth0", "239.9.9.9", PORT)

    def is_refused() -> bool:
        drops: dict[str, int] = branch.netd.proxy()["downstreams"]["lan1"]["drops"]
        return drops.get("host-of-zone-without-multicast", 0) > 0

    wait_for(is_refused, "the host's report is counted")
    assert ("*", "239.9.9.9") not in branch.entries("tv", is_v6=False)
    player.close()


def test_interfaces_that_changed_names_are_not_mixed_up(branch: Branch) -> None:
    """Both at once: the second's arrival took away the first's place in the kernel."""
    branch.netd.desire(TV)
    branch.netd.ready()
    box = branch.box
    box.run(
        "sh",
        "-c",
        "ip link set lan0 down; ip link set lan1 down; ip link set lan0 name x; ip link set lan1 name lan0;"
        " ip link set x name lan1; ip link set lan0 up; ip link set lan1 up",
    )
    wait_for(lambda: branch.netd.events("interface-gone"), "their going", 2)
    wait_for(lambda: not branch.netd.proxy()["missing"] and not branch.netd.proxy(is_v6=True)["missing"], "return", 2)
    for host, name in ((1, "lan0"), (0, "lan1")):
        player = netns.join(branch.hosts[host], "eth0", ASM[False], PORT)
        wait_for(
            lambda name=name: name in (branch.installed("tv", "*", ASM[False], is_v6=False) or ()), f"{name}'s route"
        )
        out = netns.sender(branch.source, "eth0")
        out.sendto(b"here", (ASM[False], PORT))
        assert player.recv(100) == b"here"
        player.close()
        out.close()


@FAMILIES
def test_an_interface_that_was_away_between_two_looks_got_nothing_any_more(branch: Branch, is_v6: bool) -> None:
    """By the same name and number, as from another namespace and back: the kernel had taken its place away."""
    branch.netd.desire(TV)
    branch.netd.ready()
    name, host, group = "lan0", branch.hosts[0], ASM[is_v6]
    elsewhere = branch.box.name
    index = branch.box.index(name)
    assert branch.netd.process is not None
    branch.netd.process.send_signal(signal.SIGSTOP)
    try:
        with netns.Topology() as topology:
            away = topology.namespace("away")
            branch.box.ip("link", "set", name, "netns", away.name)
            away.ip("link", "set", name, "netns", elsewhere)
        branch.box.ip("link", "set", name, "up")
        branch.box.ip("addr", "add", "10.1.0.1/24", "dev", name)
        branch.box.ip("addr", "add", "fd00:1:0::1/64", "dev", name, "nodad")
        assert branch.box.index(name) == index
        # The link-local address, too, is there when netd looks.
        wait_for(lambda: "fe80" in branch.box.ip("-6", "addr", "show", "dev", name, "-tentative"), "its address")
    finally:
        branch.netd.process.send_signal(signal.SIGCONT)
    with netns.join(host, "eth0", group, PORT) as player:
        wait_for(lambda: name in (branch.installed("tv", "*", group, is_v6=is_v6) or ()), "its route")
        with netns.sender(branch.source, "eth0", is_v6=is_v6) as out:
            out.sendto(b"here", (group, PORT))
        assert player.recv(100) == b"here"


def test_a_port_of_a_bridge_is_said_and_the_bridge_serves_in_its_place(branch: Branch) -> None:
    """What comes in at the port is the bridge's: joins there were heard by nobody, without a word."""
    branch.netd.desire(TV)
    branch.netd.ready()
    box = branch.box
    box.ip("link", "add", "br0", "type", "bridge")
    box.ip("link", "set", "dev", "lan0", "master", "br0")
    wait_for(lambda: branch.netd.events("interface-is-port"), "the event", 2)
    assert "port of br0" in branch.netd.events("interface-is-port")[0]["message"]
    box.ip("addr", "flush", "dev", "lan0")
    box.ip("addr", "add", "10.1.0.1/24", "dev", "br0")
    box.ip("link", "set", "br0", "up")
    branch.netd.desire({**TV, "downstream": ["br0", "lan1"]})
    branch.netd.ready()
    with netns.join(branch.hosts[0], "eth0", ASM[False], PORT) as player:
        wait_for(lambda: "br0" in (branch.installed("tv", "*", ASM[False], is_v6=False) or ()), "the bridge's route")
        with netns.sender(branch.source, "eth0") as out:
            out.sendto(b"here", (ASM[False], PORT))
        assert player.recv(100) == b"here"


def test_a_limit_that_was_raised_had_no_effect_until_an_interface_changed(branch: Branch) -> None:
    """The doctor's own command mended nothing."""
    branch.box.sysctl("net.ipv4.igmp_max_memberships", "0")
    branch.netd.desire(TV)
    wait_for(lambda: len(branch.netd.events("interface-refused")) == 3, "the refusals")
    branch.box.sysctl("net.ipv4.igmp_max_memberships", "20")
    wait_for(lambda: not branch.netd.proxy()["missing"], "all interfaces", 30)
    assert len(branch.netd.events("interface-refused")) == 3


def test_an_interface_without_an_address_got_nothing_without_a_word(branch: Branch) -> None:
    """Nobody can ask there, so another router is taken to forward: as is right, but it has to be said."""
    branch.box.ip("-4", "addr", "flush", "dev", "lan0")
    branch.netd.desire(TV)
    wait_for(lambda: branch.netd.events("interface-no-address"), "the event")
    assert [each["interface"] for each in branch.netd.events("interface-no-address")] == ["lan0"]
    branch.box.ip("addr", "add", "10.1.0.1/24", "dev", "lan0")
    wait_for(lambda: branch.netd.proxy()["downstreams"]["lan0"]["is_querier"], "our queries")


def test_an_upstream_that_comes_late_or_back_is_told_what_is_wanted(branch: Branch) -> None:
    """What was said while there was none was heard by nobody, and the router there asks in two minutes only."""
    source = branch.source
    branch.netd.desire(TV)
    branch.netd.ready()
    player = netns.join(branch.hosts[0], "eth0", SSM[False], PORT, (SOURCE[False],))
    wait_for(lambda: branch.installed("tv", SOURCE[False], SSM[False], is_v6=False) == ["lan0"], "the route")

    def heard() -> socket.socket:
        made = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800))
        made.bind(("eth0", 0x0800))
        made.settimeout(2)
        return made

    def hears_report() -> bool:
        end_s = time.monotonic() + 2
        capture = source.call(heard)
        try:
            change()
            while time.monotonic() < end_s:
                data = capture.recv(2048)
                if data[9] == 2 and data[24] == 0x22 and socket.inet_aton(SSM[False]) in data:
                    return True
        except TimeoutError:
            return False
        finally:
            capture.close()
        return False

    def change() -> None:
        branch.box.ip("addr", "add", "10.0.0.77/24", "dev", "wan")

    assert hears_report(), "another address"

    def change() -> None:  # noqa: F811
        branch.box.ip("link", "set", "wan", "down")
        wait_for(lambda: branch.netd.proxy()["missing"] == ["wan"], "its going", 2)
        branch.box.ip("link", "set", "wan", "up")

    assert hears_report(), "gone and back"
    wait_for(lambda: branch.installed("tv", SOURCE[False], SSM[False], is_v6=False) == ["lan0"], "the route again", 2)
    out = netns.sender(source, "eth0")
    out.sendto(b"back", (SSM[False], PORT))
    assert player.recv(100) == b"back"
    player.close()
    out.close()


def test_a_downstream_whose_address_changes_asks_from_the_new_one(branch: Branch) -> None:
    branch.netd.desire(TV)
    branch.netd.ready()

    def heard() -> socket.socket:
        made = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800))
        made.bind(("eth0", 0x0800))
        made.settimeout(2)
        return made

    capture = branch.hosts[0].call(heard)
    branch.box.ip("addr", "del", "10.1.0.1/24", "dev", "lan0")
    branch.box.ip("addr", "add", "10.1.0.200/24", "dev", "lan0")
    branch.hosts[0].ip("addr", "add", "10.1.0.3/24", "dev", "eth0")
    player = netns.join(branch.hosts[0], "eth0", ASM[False], PORT)
    wait_for(lambda: branch.installed("tv", "*", ASM[False], is_v6=False) == ["lan0"], "a report is still on-link", 2)
    netns.join(branch.hosts[0], "eth0", ASM[False], PORT).close()
    asked = b""
    while not (asked and asked[9] == 2 and asked[24] == 0x11 and asked[12:16] == socket.inet_aton("10.1.0.200")):
        asked = capture.recv(2048)
    capture.close()
    player.close()


def test_the_33rd_interface_is_refused_until_there_is_room(branch: Branch) -> None:
    """The kernel has 32: who is beyond is told once, and gets a place when another goes."""
    names = [f"v{each}" for each in range(34)]
    for name in names[::2]:
        other = f"v{int(name[1:]) + 1}"
        branch.box.ip("link", "add", name, "type", "veth", "peer", "name", other)
        for each in (name, other):
            branch.box.ip("link", "set", each, "up")
    many = [{"name": f"p{each}", "upstream": f"v{2 * each}", "downstream": [f"v{2 * each + 1}"]} for each in range(17)]
    branch.netd.desire(*many)

    def refused() -> list[str]:
        return [each["interface"] for each in branch.netd.events("interface-refused") if each["family"] == "ipv4"]

    wait_for(lambda: len(refused()) == 2, "two are refused")
    last = refused()
    assert len(branch.box.read("/proc/net/ip_mr_vif").splitlines()) == 33
    branch.box.ip("link", "set", "v0", "down")
    wait_for(lambda: branch.netd.proxy(name="p16")["missing"] == [last[1]], "one has the place", 2)
    wait_for(lambda: refused()[2:] == [last[1]], "and the other is told again")
