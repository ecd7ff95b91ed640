"""Unicast routes, rules and packet rules: netd and a real kernel in a namespace, and others who meddle."""

from __future__ import annotations

import errno
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import netns
import pytest
from netd_box import NetdBox, wait_for

from accelerator.kernel.netlink import Netlink
from accelerator.kernel.reconcile import FIGHT_ROUNDS
from accelerator.kernel.state import encode
from accelerator.kernel.wire import INET, RouteRow, route_message, routes_request
from accelerator.policy import check_texts, compile_policy
from accelerator.services.netd.wishes import desired

pytestmark = pytest.mark.skipif(netns.why_not() is not None, reason=str(netns.why_not()))
TABLE = 86_001
ROUTES = [
    {"table": TABLE, "destination": "0.0.0.0/0", "gateway": "10.0.0.2", "interface": "wan"},
    {"table": TABLE, "destination": "192.0.2.0/24", "gateway": "10.0.0.2", "interface": "wan", "metric": 7},
    {"table": TABLE, "destination": "2001:db8::/32", "gateway": "fd00::2", "interface": "wan"},
    {"table": 86_002, "destination": "0.0.0.0/0", "interface": "lo", "kind": "local"},
    {"table": 86_002, "destination": "::/0", "kind": "unreachable"},
]
RULES = [
    {"priority": 8600, "table": TABLE, "interface_out": "wan"},
    {"priority": 8601, "table": 86_002, "mark": 0x56, "mask": 0xFF},
    {"priority": 8600, "table": TABLE, "family": 6, "destination": "2001:db8::/32"},
]
PACKET_RULES = [
    {"hook": "postrouting", "destination": ["10.9.0.0/24", "2001:db8::/32"], "protocol": "udp", "ports": [3478],
     "dscp": 46},
    {"hook": "prerouting", "protocol": "tcp", "ports": [80], "destination_not": ["10.0.0.1/32"], "interface_in": "lan0",
     "tproxy": "127.0.0.1:8088", "mark": 0x56, "verdict": "accept"},
]  # fmt: skip


class Box(NetdBox):
    def want(self, *, service: str = "test", **state: Any) -> None:
        self._generation += 1
        self.ask("desire", service=service, generation=self._generation, state=state)

    def kernel(self) -> dict[str, Any]:
        shown: dict[str, Any] = self.ask("show")["kernel"]
        return shown

    def is_right(self) -> bool:
        shown = self.kernel()
        return shown["n_steps"] == 0 and not shown["problem"]

    def settled(self, seconds: float = 1.0) -> None:
        """Within a second: what somebody has taken out is back."""
        wait_for(self.is_right, "the kernel is as wanted", seconds)

    def events(self) -> list[str]:
        return [each["kind"] for each in self.ask("show")["events"]]

    def ip(self, *words: str) -> list[str]:
        return self.namespace.ip(*words).splitlines()

    def of_others(self) -> list[object]:
        table = self.namespace.run("nft", "list", "table", "inet", "mine")
        return [self.ip("rule", "show"), self.ip("route", "show"), table]

    def table(self, number: int = TABLE) -> list[str]:
        """IPv4 routes; a table without any isn't there at all."""
        try:
            return self.ip("route", "show", "table", str(number))
        except RuntimeError as error:
            if "table does not exist" not in str(error):
                raise
            return []


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    with netns.Topology() as topology:
        _, namespace, _ = topology.proxy()
        with Box(namespace, tmp_path) as running:
            yield running


def test_what_is_wanted_is_there_and_marked_as_ours(box: Box) -> None:
    box.want(routes=ROUTES, rules=RULES, packet_rules=PACKET_RULES)
    box.settled(3)
    table = box.table()
    assert any("default via 10.0.0.2 dev wan proto 86" in line for line in table)
    assert any("192.0.2.0/24" in line and "metric 7" in line for line in table)
    assert any("2001:db8::/32" in line for line in box.ip("-6", "route", "show", "table", str(TABLE)))
    assert any("local default dev lo" in line for line in box.table(86_002))
    rules = box.ip("rule", "show")
    assert any(line.startswith("8600:") and "oif wan" in line and f"lookup {TABLE}" in line for line in rules)
    assert any(line.startswith("8601:") and "fwmark 0x56/0xff" in line for line in rules)
    listed = box.namespace.run("nft", "list", "table", "inet", "accelerator")
    assert "ip daddr 10.9.0.0/24" in listed
    assert "dscp set ef" in listed
    assert "tproxy ip to 127.0.0.1:8088" in listed


def test_nothing_is_done_twice(box: Box) -> None:
    """A pass over a state that is right changes nothing: a monitor hears nothing."""
    box.want(routes=ROUTES, rules=RULES, packet_rules=PACKET_RULES)
    box.settled(3)
    before = box.kernel()["repairs"]
    monitor = box.namespace.popen("ip", "-ts", "monitor", "route", "rule", stdout=(box.state_dir / "heard").open("wb"))

    def hears(change: str, network: str) -> bool:
        box.namespace.ip("route", change, network, "dev", "wan")
        return network.partition("/")[0].encode() in (box.state_dir / "heard").read_bytes()

    try:
        # It hears only what comes after it has begun to listen.
        wait_for(lambda: hears("add", "203.0.113.0/24") or hears("del", "203.0.113.0/24"), "the monitor listens")
        for _ in range(3):
            box.want(routes=ROUTES, rules=RULES, packet_rules=PACKET_RULES)
        box.namespace.ip("route", "add", "198.51.100.0/24", "dev", "wan")  # a foreign one wakes it, and ends the wait
        wait_for(lambda: b"198.51.100" in (box.state_dir / "heard").read_bytes(), "the monitor hears")
        box.settled()
    finally:
        monitor.kill()
        monitor.wait()
    heard = (box.state_dir / "heard").read_text()
    assert "86001" not in heard, heard
    assert box.kernel()["repairs"] == before


def test_what_somebody_takes_out_is_back_within_a_second(box: Box) -> None:
    box.want(routes=ROUTES, rules=RULES, packet_rules=PACKET_RULES)
    box.settled(3)
    for meddling in (
        ("ip", "route", "flush", "table", str(TABLE)),
        ("ip", "rule", "del", "pref", "8601"),
        ("nft", "flush", "ruleset"),
        ("nft", "flush", "chain", "inet", "accelerator", "prerouting"),
    ):
        box.namespace.run(*meddling)
        assert not box.is_right() or "kernel-repaired" in box.events()
        box.settled()
    assert box.events().count("kernel-repaired") >= 4


def test_what_others_own_is_never_touched(box: Box) -> None:
    box.namespace.run("nft", "add table inet mine; add chain inet mine c; add rule inet mine c counter")
    box.namespace.ip("rule", "add", "pref", "8650", "table", "main")
    box.namespace.ip("route", "add", "203.0.113.0/24", "dev", "wan", "proto", "static")
    before = box.of_others()
    box.want(routes=ROUTES, rules=RULES, packet_rules=PACKET_RULES)
    box.settled(3)
    box.want()
    box.settled(3)
    assert box.of_others() == before
    assert box.ip("route", "show", "table", "all", "proto", "86") == []
    assert "accelerator" not in box.namespace.run("nft", "list", "ruleset")


def test_the_systems_tables_cannot_be_named(box: Box) -> None:
    for table in (254, 255, 253, 0, 100):
        with pytest.raises(RuntimeError, match="never touched"):
            box.want(routes=[{"table": table, "destination": "0.0.0.0/0", "interface": "wan"}])
        with pytest.raises(RuntimeError, match="never touched"):
            box.want(rules=[{"priority": 8600, "table": table}])


def test_a_table_that_somebody_uses_is_left_to_him_with_an_event(box: Box) -> None:
    box.namespace.ip("route", "add", "198.51.100.0/24", "dev", "wan", "table", str(TABLE), "proto", "static")
    box.want(routes=ROUTES[:2])
    wait_for(lambda: "table-taken" in box.events(), "an event")
    assert box.kernel()["taken_tables"] == [TABLE]
    assert len(box.table()) == 1
    box.namespace.ip("route", "flush", "table", str(TABLE))
    box.settled()
    assert len(box.table()) == 2


def test_a_route_waits_for_its_interface_and_comes_with_it(box: Box) -> None:
    box.want(routes=[{"table": TABLE, "destination": "192.0.2.0/24", "interface": "tun9"}])
    wait_for(lambda: "interface-missing" in box.events(), "an event")
    assert box.kernel()["waiting_for"] == ["tun9"]
    box.namespace.ip("link", "add", "tun9", "type", "veth", "peer", "name", "far9")
    box.namespace.ip("link", "set", "far9", "up")
    box.namespace.ip("link", "set", "tun9", "up")
    wait_for(lambda: box.table(), "the route", 2)
    box.namespace.ip("link", "set", "tun9", "down")
    wait_for(lambda: box.kernel()["waiting_for"] == ["tun9"], "it waits again", 2)
    box.namespace.ip("link", "set", "tun9", "up")
    wait_for(lambda: box.table(), "the route", 2)
    assert "kernel-repaired" not in box.events(), "the kernel took it out, nobody else"


def test_a_fight_ends_in_an_event_and_a_stop(box: Box) -> None:
    box.want(routes=ROUTES[:2], rules=RULES[:1])
    box.settled(3)
    for _ in range(FIGHT_ROUNDS):
        box.namespace.ip("route", "flush", "table", str(TABLE))
        wait_for(lambda: box.table(), "the routes are back", 2)
    wait_for(lambda: "kernel-fight" in box.events(), "an event")
    box.namespace.ip("route", "flush", "table", str(TABLE))
    box.namespace.ip("rule", "del", "pref", "8600")
    wait_for(lambda: any(line.startswith("8600:") for line in box.ip("rule", "show")), "rules are no part of it", 2)
    assert box.table() == []
    assert box.kernel()["stopped"] == [f"table {TABLE}"]
    box.want(routes=ROUTES[:1], rules=RULES[:1])  # whoever changes what is wanted wants it tried again
    box.settled(2)
    assert len(box.table()) == 1


def test_killed_it_leaves_all_in_place_and_the_next_one_mends_within_a_second(box: Box) -> None:
    box.want(routes=ROUTES, rules=RULES, packet_rules=PACKET_RULES)
    box.settled(3)
    box.stop(signal.SIGKILL)
    assert len(box.table()) == 2
    box.namespace.ip("rule", "del", "pref", "8601")
    box.namespace.ip("route", "add", "198.51.100.0/24", "dev", "wan", "table", str(TABLE), "proto", "86")
    box.start()
    box.settled()
    assert len(box.table()) == 2, "what is not wanted and ours is gone"


def test_two_services_have_their_own_and_cannot_contradict_each_other(box: Box) -> None:
    box.want(routes=ROUTES[:1])
    box.want(service="steer", routes=ROUTES[1:2])
    box.settled(3)
    assert len(box.table()) == 2
    with pytest.raises(RuntimeError, match="two routes to 192"):
        box.want(routes=[{**ROUTES[1], "gateway": "10.0.0.9"}])
    box.want()
    box.settled()
    assert len(box.table()) == 1


NONSENSE: list[dict[str, Any]] = [
    {"routes": [{"table": TABLE, "destination": "10.0.0.1/24", "interface": "wan"}]},
    {"routes": [{"table": TABLE, "destination": "10.0.0.0/24", "interface": "wan", "gateway": "fe80::1"}]},
    {"routes": [{"table": TABLE, "destination": "10.0.0.0/24"}]},
    {"routes": [{"table": TABLE, "destination": "10.0.0.0/24", "interface": "a/b"}]},
    {"routes": [{"table": TABLE, "destination": "10.0.0.0/24", "interface": "wan", "shell": "; reboot"}]},
    {"rules": [{"priority": 100, "table": TABLE}]},
    {"rules": [{"priority": 8600, "table": TABLE, "mark": 256, "mask": 255}]},
    {"routes": ROUTES, "rules": [{"priority": 8600, "table": TABLE}]},
    {"routes": ROUTES, "rules": [{"priority": 8600, "table": TABLE, "interface_in": "lan0"}]},
    {"routes": ROUTES, "rules": [{"priority": 8600, "table": TABLE, "destination": "128.0.0.0/1"}]},
    {"routes": ROUTES, "rules": [{"priority": 8600, "table": 86_002, "family": 6}]},
    {"intercept": {"interfaces": ["lan0"], "destinations": ["10.0.0.0/7"], "ports": [80], "port": 8080}},
    {"intercept": {"interfaces": ["lan0"], "destinations": ["2000::/3"], "ports": [22], "port": 8080}},
    {"packet_rules": [{"hook": "ingress"}]},
    {"packet_rules": [{"hook": "input", "ports": [80]}]},
    {"packet_rules": [{"hook": "input", "protocol": "tcp", "tproxy": "127.0.0.1:80"}]},
    {"packet_rules": [{"hook": "prerouting", "protocol": "tcp", "tproxy": "127.0.0.1:80; flush ruleset"}]},
    {"packet_rules": [{"hook": "output", "priority": "1:10 accept"}]},
    {"packet_rules": [{"hook": "output", "dscp": 64}]},
    {"packet_rules": [{"hook": "output", "destination": ["10.0.0.0/8 } flush ruleset"]}]},
]  # fmt: skip


def test_nonsense_is_refused_whole(box: Box) -> None:
    for state in NONSENSE:
        with pytest.raises(RuntimeError, match=r"."):
            box.want(**state)
    assert box.kernel()["wanted"] == {"routes": 0, "rules": 0, "packet_rules": 0, "queues": 0}


def test_two_services_together_had_the_default_route(box: Box) -> None:
    """Each alone is harmless: one has the route, the other the rule that leads everything there."""
    box.want(routes=ROUTES[:1])
    with pytest.raises(RuntimeError, match="it would lead all packets to"):
        box.want(service="other", rules=[{"priority": 8600, "table": TABLE}])
    box.want(service="other", rules=[{"priority": 8600, "table": TABLE, "destination": "192.0.2.0/24"}])


def test_an_interfaces_name_cannot_end_nfts_text(box: Box) -> None:
    name = 'x"accept;#'
    box.want(packet_rules=[{"hook": "input", "interface_in": name, "dscp_is": 46}])
    box.settled(3)
    assert "iifname" in box.namespace.run("nft", "list", "table", "inet", "accelerator")


def test_a_meetings_packets_are_marked_on_their_way_both_ways(tmp_path: Path) -> None:
    """What policy's marks become, in a box that forwards."""
    text = b"version: 1\nsite: {name: t}\nmarks: {meetings: {nets: [10.0.0.0/24], ports: [3478]}}\n"
    policy, problems = check_texts([("p", text)])
    assert policy is not None, problems
    state = encode(desired(compile_policy(policy)))
    with netns.Topology() as topology:
        source, namespace, hosts = topology.proxy()
        namespace.sysctl("net.ipv4.ip_forward", "1")
        with Box(namespace, tmp_path) as box:
            box.want(**state)
            box.settled(3)
            assert dscp_of_one(hosts[0], "10.1.0.2", source, ("10.0.0.2", 3478)) == 46
            assert dscp_of_one(hosts[0], "10.1.0.2", source, ("10.0.0.2", 3479)) == 0
            assert dscp_of_one(source, "10.0.0.2", hosts[0], ("10.1.0.2", 4000), source_port=3478) == 46


def dscp_of_one(
    sender: netns.Namespace, address: str, receiver: netns.Namespace, to: tuple[str, int], source_port: int = 0
) -> int:
    """The mark with which one datagram comes."""

    def opened(host: str, port: int) -> socket.socket:
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.bind((host, port))
        made.setsockopt(socket.IPPROTO_IP, socket.IP_RECVTOS, 1)
        made.settimeout(5)
        return made

    with receiver.call(lambda: opened(*to)) as there, sender.call(lambda: opened(address, source_port)) as here:
        here.sendto(b"x", to)
        _, ancillary, _, _ = there.recvmsg(100, 100)
    return next(value[0] for _, kind, value in ancillary if kind == socket.IP_TOS) >> 2


def test_answers_that_were_lost_were_taken_for_those_of_what_came_next(box: Box) -> None:
    """ENOBUFS in the middle of a batch: what the kernel refused from then on counted as done."""
    rows = [RouteRow(INET, 86_001, bytes([10, 9, each, 0]), 24, 0, "blackhole") for each in range(200)]
    wrong = RouteRow(INET, 86_001, bytes(4), 0, 0, "unicast", interface=99_999)

    def asked() -> list[int]:
        netlink = Netlink()
        try:
            netlink._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
            with pytest.raises(OSError, match="buffer"):
                list(netlink.send(route_message(each, is_added=True) for each in rows))
            assert len(list(netlink.dump(routes_request(INET, table=86_001)))) == 200
            return list(netlink.send([route_message(wrong, is_added=True)]))
        finally:
            netlink.close()

    assert box.namespace.call(asked) == [errno.ENODEV]
