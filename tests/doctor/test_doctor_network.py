"""Faults of the network, provoked for real in a namespace: the doctor names each, and is quiet once it is mended by the
command that it gave."""

from __future__ import annotations

import shlex
import socket
import subprocess
import sys
import threading
from typing import Any

import netns
import pytest
from conftest import Doctor

pytestmark = [pytest.mark.netns, pytest.mark.skipif(bool(netns.why_not()), reason=netns.why_not() or "")]

RELAY = (
    'relays: {hall: {from: ["rtp://10.9.0.1@239.1.1.1:5004"], interface: wan, to: [{unicast: ["10.1.0.2:5004"]}]}}\n'
)
PROXY = "multicast: {proxies: {tv: {upstream: wan, downstream: [lan]}}}\n"


def link(box: netns.Namespace, name: str, address: str) -> None:
    box.ip("link", "add", name, "type", "veth", "peer", "name", f"{name}p")
    box.ip("link", "set", name, "up")
    box.ip("link", "set", f"{name}p", "up")
    box.ip("addr", "add", address, "dev", name)


def mend(box: netns.Namespace, finding: dict[str, Any]) -> None:
    """By the command that the doctor gave."""
    box.run(*shlex.split(finding["mend"]))


def test_a_sound_box_has_nothing_in_the_way(box: netns.Namespace, doctor: Doctor) -> None:
    link(box, "wan", "10.0.0.1/24")
    link(box, "lan", "10.1.0.1/24")
    box.ip("route", "add", "default", "via", "10.0.0.2")
    said = doctor(RELAY + PROXY)
    assert said["ok"], said["findings"]
    checked = {"kernel", "interfaces", "rp-filter", "group-limits", "mtu", "offloads", "firewall"}
    assert checked <= said["checked"].keys()


def test_a_strict_reverse_path_filter_drops_a_source_that_is_routed_elsewhere(
    box: netns.Namespace, doctor: Doctor
) -> None:
    link(box, "wan", "10.0.0.1/24")
    link(box, "other", "10.2.0.1/24")
    box.ip("route", "add", "default", "via", "10.2.0.2")
    box.sysctl("net.ipv4.conf.wan.rp_filter", "1")
    found = doctor(RELAY)["found"]["rp-filter"]
    assert found["subject"] == "wan"
    assert "10.9.0.1" in found["text"]
    assert "other" in found["text"]
    mend(box, found)
    assert "rp-filter" not in doctor(RELAY)["found"]


def test_a_firewall_that_drops_igmp_queries_stops_the_stream_in_120_s(box: netns.Namespace, doctor: Doctor) -> None:
    link(box, "wan", "10.0.0.1/24")
    box.run("nft", "add table inet filter;"
            " add chain inet filter input { type filter hook input priority 0; policy drop; };"
            " add rule inet filter input ct state established,related accept;"
            " add rule inet filter input udp dport 5004 accept;"
            " add rule inet filter input tcp dport { 22, 8080 } accept")  # fmt: skip
    found = doctor(RELAY)["found"]
    assert "the stream will stop in about 120 s" in found["igmp-dropped"]["text"]
    assert "inet filter, chain input" in found["igmp-dropped"]["text"]
    assert "stream-dropped" not in found
    mend(box, found["igmp-dropped"])
    assert "igmp-dropped" not in doctor(RELAY)["found"]


def test_a_firewall_that_drops_the_stream_is_named_too(box: netns.Namespace, doctor: Doctor) -> None:
    link(box, "wan", "10.0.0.1/24")
    box.run("nft", "add table ip f; add chain ip f in { type filter hook input priority 0; };"
            " add rule ip f in ip daddr 239.0.0.0/8 udp dport != 5006 drop")  # fmt: skip
    found = doctor(RELAY)["found"]
    assert found["stream-dropped"]["subject"] == "239.1.1.1"
    assert "igmp-dropped" not in found
    mend(box, found["stream-dropped"])
    assert "stream-dropped" not in doctor(RELAY)["found"]


def test_a_firewall_that_forwards_nothing_stopped_a_proxys_streams_and_nobody_said_so(
    box: netns.Namespace, doctor: Doctor
) -> None:
    """As Docker leaves it, for one. Reports that are dropped at a downstream are not queries."""
    link(box, "wan", "10.0.0.1/24")
    link(box, "lan", "10.1.0.1/24")
    assert "forward-dropped" not in doctor(PROXY)["found"]
    box.run("nft", "add table ip f; add chain ip f fw { type filter hook forward priority 0; policy drop; };"
            " add rule ip f fw oifname docker0 accept; add rule ip f fw ct state established,related accept;"
            " add chain ip f in { type filter hook input priority 0; policy drop; }")  # fmt: skip
    found = doctor(PROXY)["found"]
    assert found["forward-dropped"]["subject"] == "lan"
    assert found["reports-dropped"]["subject"] == "lan"
    assert found["igmp-dropped"]["subject"] == "wan"
    for code in ("forward-dropped", "reports-dropped"):
        mend(box, found[code])
    assert not {"forward-dropped", "reports-dropped", "igmp-dropped"} & doctor(PROXY)["found"].keys()
    # What is let through by its port, which nobody knows, is no finding; nor what is meant by other groups.
    box.run("nft", "flush chain ip f fw; add rule ip f fw udp dport 5004 accept")
    assert "forward-dropped" not in doctor(PROXY)["found"]
    box.run("nft", "flush chain ip f fw; add rule ip f fw ip daddr 239.1.0.0/16 accept")
    only = PROXY.replace("[lan]", "[lan], groups: [%s]")
    assert "forward-dropped" not in doctor(only % "239.1.0.0/16")["found"]
    assert "239.2.0.0/16" in doctor(only % "239.2.0.0/16")["found"]["forward-dropped"]["text"]


def test_a_firewall_that_drops_viewers(box: netns.Namespace, doctor: Doctor) -> None:
    policy = 'listen: {lan: {address: "10.0.0.1:8080"}}\n'
    with netns.Topology() as topology:
        topology.wire(topology.namespace("switch"), "eth0", box, "lan")
        box.ip("addr", "add", "10.0.0.1/24", "dev", "lan")
        box.run("nft", "add table inet f; add chain inet f in { type filter hook input priority 0; policy drop; }")
        found = doctor(policy)["found"]["viewers-dropped"]
        assert found["subject"] == "listen.lan"
        mend(box, found)
        assert "viewers-dropped" not in doctor(policy)["found"]


def test_rules_that_depend_on_what_nobody_knows_are_no_finding(box: netns.Namespace, doctor: Doctor) -> None:
    link(box, "wan", "10.0.0.1/24")
    box.run("nft", "add table inet f; add chain inet f in { type filter hook input priority 0; policy accept; };"
            " add rule inet f in meta mark 7 drop; add rule inet f in limit rate over 9/second drop")  # fmt: skip
    assert doctor(RELAY)["ok"]


def test_a_snooping_bridge_without_a_querier(box: netns.Namespace, doctor: Doctor) -> None:
    box.ip("link", "add", "br0", "type", "bridge", "mcast_snooping", "1", "mcast_querier", "0")
    box.ip("link", "set", "br0", "up")
    found = doctor()["found"]["snooping-no-querier"]
    assert found["subject"] == "br0"
    mend(box, found)
    assert "snooping-no-querier" not in doctor()["found"]


def test_groups_cannot_be_joined_where_the_kernels_limit_is_nothing(box: netns.Namespace, doctor: Doctor) -> None:
    link(box, "wan", "10.0.0.1/24")
    box.sysctl("net.ipv4.igmp_max_memberships", "0")
    box.sysctl("net.ipv4.igmp_max_msf", "0")
    found = doctor(RELAY)["found"]
    for code in ("group-limit", "source-limit"):
        mend(box, found[code])
    assert not {"group-limit", "source-limit"} & doctor(RELAY)["found"].keys()


def test_a_smaller_mtu_behind_a_proxy_loses_large_packets(box: netns.Namespace, doctor: Doctor) -> None:
    link(box, "wan", "10.0.0.1/24")
    link(box, "lan", "10.1.0.1/24")
    box.ip("link", "set", "lan", "mtu", "1280")
    found = doctor(PROXY)["found"]["mtu"]
    assert "1280" in found["text"]
    mend(box, found)
    assert "mtu" not in doctor(PROXY)["found"]


def test_a_port_of_a_bridge_was_named_and_nothing_came_without_a_word(box: netns.Namespace, doctor: Doctor) -> None:
    link(box, "wan", "10.0.0.1/24")
    link(box, "lan", "10.1.0.1/24")
    box.ip("link", "add", "br0", "type", "bridge", "mcast_querier", "1")
    box.ip("link", "set", "br0", "up")
    box.ip("link", "set", "dev", "lan", "master", "br0")
    found = doctor(PROXY)["found"]["interface-is-port"]
    assert "port of br0" in found["text"]
    box.ip("addr", "add", "10.1.0.1/24", "dev", "br0")
    assert "interface-is-port" not in doctor(PROXY.replace("[lan]", "[br0]"))["found"]


def test_interception_on_a_box_that_does_not_forward(box: netns.Namespace, doctor: Doctor) -> None:
    link(box, "lan", "10.1.0.1/24")
    policy = "steering: {intercept: {interfaces: [lan], destinations: [10.0.0.0/24]}}\n"
    mend(box, doctor(policy)["found"]["forwarding-off"])
    assert "forwarding-off" not in doctor(policy)["found"]


def test_an_interface_that_is_missing_or_down(box: netns.Namespace, doctor: Doctor) -> None:
    link(box, "wan", "10.0.0.1/24")
    box.ip("link", "set", "wan", "down")
    found = doctor(PROXY)["found"]
    assert found["interface-missing"]["subject"] == "lan"
    mend(box, found["interface-down"])
    assert "interface-down" not in doctor(PROXY)["found"]


def test_receive_offload_that_is_off_is_said_and_no_problem(box: netns.Namespace, doctor: Doctor) -> None:
    link(box, "wan", "10.0.0.1/24")
    box.run("ethtool", "-K", "wan", "gro", "off")
    said = doctor(RELAY)
    assert said["found"]["offload-gro"]["level"] == "info"
    assert said["ok"]


def test_another_program_that_routes_multicast_is_named(box: netns.Namespace, doctor: Doctor) -> None:
    link(box, "wan", "10.0.0.1/24")
    link(box, "lan", "10.1.0.1/24")
    rival = box.popen(sys.executable, "-c", (
        "import socket, sys\n"
        "s = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_IGMP)\n"
        "s.setsockopt(0, 200, b'\\1\\0\\0\\0')\n"  # MRT_INIT
        "print('routing', flush=True)\nsys.stdin.read()"
    ), stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip
    try:
        assert rival.stdout is not None
        assert rival.stdout.readline() == b"routing\n"
        found = doctor(PROXY)["found"]["mroute-daemon"]
        assert str(rival.pid) in found["text"]
    finally:
        rival.communicate()
    assert "mroute-daemon" not in doctor(PROXY)["found"]


@pytest.fixture
def sender(box: netns.Namespace) -> Any:
    """A host on the box's `wan`, and a function that sends from it until the test ends."""
    with netns.Topology() as topology:
        host = topology.namespace("sender")
        topology.wire(host, "eth0", box, "wan")
        host.ip("addr", "add", "10.0.0.2/24", "dev", "eth0")
        host.ip("addr", "add", "10.0.0.3/24", "dev", "eth0")
        box.ip("addr", "add", "10.0.0.1/24", "dev", "wan")
        link(box, "lan", "10.1.0.1/24")
        over = threading.Event()
        threads = []

        def send(kind: int, protocol: int, payload: bytes, to: tuple[str, int], ttl: int, source: str) -> None:
            def open_one() -> socket.socket:
                made = socket.socket(socket.AF_INET, kind, protocol)
                made.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, ttl)
                made.bind((source, 0))
                made.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(source))
                return made

            made = host.call(open_one)

            def repeat() -> None:
                with made:
                    while not over.wait(0.05):
                        made.sendto(payload, to)

            threads.append(threading.Thread(target=repeat))
            threads[-1].start()

        yield send
        over.set()
        for thread in threads:
            thread.join()


QUERY = bytes.fromhex("1164ee9b00000000")


def test_a_stream_with_ttl_1_never_passes_a_proxy(box: netns.Namespace, doctor: Doctor, sender: Any) -> None:
    box.ip("link", "set", "wan", "allmulticast", "on")  # as the kernel does with a proxy's interface
    sender(socket.SOCK_DGRAM, 0, b"x" * 1316, ("239.1.1.1", 5004), 1, "10.0.0.2")
    sender(socket.SOCK_DGRAM, 0, b"x" * 1316, ("239.1.1.2", 5004), 8, "10.0.0.2")
    sender(socket.SOCK_DGRAM, 0, b"x", ("224.0.0.251", 5353), 1, "10.0.0.2")
    said = doctor(PROXY, listen=1)
    expiring = [each for each in said["findings"] if each["code"] == "ttl-1"]
    assert [each["subject"] for each in expiring] == ["239.1.1.1"]
    assert "10.0.0.2" in expiring[0]["text"]


def test_two_queriers_on_one_link(box: netns.Namespace, doctor: Doctor, sender: Any) -> None:
    for source in ("10.0.0.2", "10.0.0.3"):
        sender(socket.SOCK_RAW, socket.IPPROTO_IGMP, QUERY, ("224.0.0.1", 0), 1, source)
    found = doctor(PROXY, listen=1)["found"]["two-queriers"]
    assert "10.0.0.2" in found["text"]
    assert "10.0.0.3" in found["text"]


def test_without_rights_the_doctor_says_what_it_could_not_look_at(box: netns.Namespace, doctor: Doctor) -> None:
    link(box, "wan", "10.0.0.1/24")
    without = ("setpriv", "--bounding-set=-all", "--inh-caps=-all", "--")
    said = doctor(RELAY, listen=0.1, before=without)
    assert {"firewall", "listening"} <= {each["check"] for each in said["skipped"]}
