"""acceleratord tells netd what policy wants, whoever starts first, again when policy or netd is another."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import netns
import pytest
from netd_box import NetdBox, wait_for

from accelerator.policy import check_texts
from accelerator.services.links.forwarded import ADDRESSES_ALL_MAX, Wanted, may_be_steered, routes_of

pytestmark = [pytest.mark.netns, pytest.mark.skipif(bool(netns.why_not()), reason=netns.why_not() or "")]

POLICY = """
version: 1
site: {name: lyon}
listen: {lan: {address: "127.0.0.1:8080"}}
origins: {media: {from: ["http://127.0.0.1:9"], hosts: ["*"]}}
workers: 1
"""
PROXY = "multicast: {proxies: {tv: {upstream: wan, downstream: [LAN], groups: [239.0.0.0/8]}}}\n"


@pytest.fixture
def branch() -> Iterator[tuple[netns.Namespace, list[netns.Namespace]]]:
    with netns.Topology() as topology:
        _, box, hosts = topology.proxy(2)
        yield box, hosts


class Acceleratord:
    def __init__(self, box: netns.Namespace, folder: Path) -> None:
        self.box, self.folder = box, folder
        self.policy = folder / "policy.yaml"

    def __enter__(self) -> Acceleratord:
        program = str(Path(sys.executable).parent / "acceleratord")
        command = [program, "--policy", str(self.policy), "--state-dir", str(self.folder)]
        with open(self.folder / "box.log", "ab") as log:
            self.process: subprocess.Popen[bytes] = self.box.popen(*command, stderr=log)
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(30)

    def routes(self) -> str:
        """`accelctl routes` as an operator reads it."""
        program = str(Path(sys.executable).parent / "accelctl")
        command = [program, "routes", "--socket", str(self.folder / "control.sock")]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    def events(self) -> list[str]:
        assert self.process.poll() is None, (self.folder / "box.log").read_text()
        command = [str(Path(sys.executable).parent / "accelctl"), "--json", "events"]
        command[1:1] = ["--socket", str(self.folder / "control.sock")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return [line for line in done.stdout.splitlines() if line] if done.returncode == 0 else []


def said(netd: NetdBox) -> dict[str, Any]:
    service: dict[str, Any] = netd.ask("show")["services"].get("policy", {})
    return service


def downstream(netd: NetdBox) -> list[str] | None:
    proxies = said(netd).get("state", {}).get("multicast", [])
    return proxies[0]["downstream"] if proxies else None


Branch = tuple[netns.Namespace, list[netns.Namespace]]


def test_policy_reaches_the_kernel(branch: Branch, tmp_path: Path) -> None:
    box, hosts = branch
    netd = NetdBox(box, tmp_path)
    daemon = Acceleratord(box, tmp_path)
    daemon.policy.write_text(POLICY + PROXY.replace("LAN", "lan0"))
    with daemon:
        wait_for(lambda: any("netd-waiting" in line for line in daemon.events()), "it says that netd is missing", 20)
        with netd:
            wait_for(lambda: downstream(netd) == ["lan0"], "what policy wants", 20)
            netd.ready()
            assert netd.proxy()["upstream"] == "wan"
            wait_for(lambda: any("interface-used" in line for line in daemon.events()), "netd's events")
            player = netns.join(hosts[0], "eth0", "239.1.2.3", 5004)
            wait_for(lambda: "239.1.2.3" in daemon.routes(), "the route by accelctl")
            assert "there" in daemon.routes()
            player.close()
            # Another policy.
            daemon.policy.write_text(POLICY + PROXY.replace("LAN", "lan1"))
            daemon.process.send_signal(signal.SIGHUP)
            wait_for(lambda: downstream(netd) == ["lan1"], "the other policy", 20)
            generation = said(netd)["generation"]
            # Another netd: it goes on at once, and is told again.
            netd.stop(signal.SIGKILL)
            netd.start()
            assert downstream(netd) == ["lan1"]
            wait_for(lambda: said(netd)["generation"] > generation, "it is told again", 20)
            # No multicast any more.
            daemon.policy.write_text(POLICY)
            daemon.process.send_signal(signal.SIGHUP)
            wait_for(lambda: downstream(netd) is None, "no multicast", 20)
            # The keeper lets go when it comes to it.
            wait_for(lambda: len(box.read("/proc/net/ip_mr_vif").splitlines()) == 1, "nothing is left")


def test_a_box_without_multicast_asks_nothing_of_netd(branch: Branch, tmp_path: Path) -> None:
    box, _ = branch
    daemon = Acceleratord(box, tmp_path)
    daemon.policy.write_text(POLICY)
    with NetdBox(box, tmp_path) as netd, daemon:
        wait_for(daemon.events, "it runs", 20)
        assert said(netd) == {}
        assert not any("netd" in json.dumps(line) for line in daemon.events())


def test_an_acceleratord_that_drained_told_a_new_netd_its_old_policy(branch: Branch, tmp_path: Path) -> None:
    """Beside the one that had taken over, and netd stayed with what was said last."""
    box, _ = branch
    daemon = Acceleratord(box, tmp_path)
    daemon.policy.write_text(POLICY + PROXY.replace("LAN", "lan0") + "limits: {drain: 5s}\n")
    origin = box.call(lambda: socket.create_server(("127.0.0.1", 9)))
    origin.settimeout(10)

    def viewer() -> socket.socket | None:
        try:
            return box.call(lambda: socket.create_connection(("127.0.0.1", 8080)))
        except OSError:
            return None

    with NetdBox(box, tmp_path) as netd, daemon:
        wait_for(lambda: downstream(netd) == ["lan0"], "what policy wants", 20)
        watching = wait_for(viewer, "the box serves")
        watching.sendall(b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n")
        waiting = origin.accept()[0]
        daemon.process.terminate()
        wait_for(lambda: "draining" in (tmp_path / "box.log").read_text(), "it drains")
        netd.stop(signal.SIGKILL)
        netd.start()
        netd.ask("desire", service="policy", generation=1000, state={})  # as the one that has taken over
        daemon.process.wait(30)
        assert said(netd)["generation"] == 1000
    for each in (watching, waiting, origin):
        each.close()


STEERED = """
links:
  backup: {interface: lan1, gateway: 10.1.1.2}
  main: {interface: wan, gateway: 10.0.0.2}
origins:
  film:
    {from: ["http://film.example"], hosts: [film.example], resolve: [10.77.0.1], link: [backup, main], link_for: all}
"""


def test_viewers_own_traffic_to_an_origin_goes_by_its_link_and_follows_it(tmp_path: Path) -> None:
    """Inline, two ways out; both lead to who has the server's address. When the first interface fails it goes by the
    next, and back. The system's default route is never touched."""
    with netns.Topology() as topology:
        first, box, (viewer, second) = topology.proxy(2)
        steered_by_policy(tmp_path, box, viewer, {"main": first, "backup": second})


def test_viewers_own_traffic_follows_a_link_whose_probe_fails(tmp_path: Path) -> None:
    """The way beyond the next router is dead, and the interface doesn't know: three probes say so, one in a second. It
    goes back once they have been answered for five seconds: the test takes that long."""
    with netns.Topology() as topology, contextlib.ExitStack() as stack:
        first, box, (viewer, second) = topology.proxy(2)
        box.sysctl("net.ipv4.ip_forward", "1")
        sinks = {}
        for name, each in (("main", first), ("backup", second)):
            each.ip("addr", "add", "10.77.0.1/32", "dev", "lo")
            sinks[name] = stack.enter_context(each.call(lambda: listening("10.77.0.1")))
        second.ip("addr", "add", "10.88.0.1/32", "dev", "lo")
        stack.enter_context(second.call(lambda: socket.create_server(("10.88.0.1", 53), backlog=100)))
        box.ip("route", "add", "default", "via", "10.0.0.2")
        out = stack.enter_context(viewer.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)))

        def came_by() -> set[str]:
            return ways_taken(out, sinks)

        daemon = Acceleratord(box, tmp_path)
        probed = STEERED.replace("gateway: 10.1.1.2", 'gateway: 10.1.1.2, probe: "10.88.0.1:53"')
        daemon.policy.write_text(POLICY.split("origins:")[0] + "workers: 1\n" + probed)
        stack.enter_context(NetdBox(box, tmp_path))
        stack.enter_context(daemon)
        wait_for(lambda: came_by() == {"backup"}, "by the origin's link", 20)
        second.run(
            "nft", "add table inet cut; add chain inet cut in { type filter hook input priority 0; policy drop; }"
        )
        wait_for(lambda: came_by() == {"main"}, "by the next link", 20)
        assert "state UP" in box.ip("link", "show", "lan1"), "nobody but the probe knows"
        second.run("nft", "delete", "table", "inet", "cut")
        wait_for(lambda: came_by() == {"backup"}, "by the first one again", 30)


def ways_taken(out: socket.socket, sinks: dict[str, socket.socket]) -> set[str]:
    """By which ways three packets to the server come."""
    for sink in sinks.values():
        drained(sink)
    for _ in range(3):
        out.sendto(b"x", ("10.77.0.1", 5004))
    return {name for name, sink in sinks.items() if drained(sink)}


def steered_by_policy(
    folder: Path, box: netns.Namespace, viewer: netns.Namespace, ways: dict[str, netns.Namespace]
) -> None:
    box.sysctl("net.ipv4.ip_forward", "1")
    for each in ways.values():
        each.ip("addr", "add", "10.77.0.1/32", "dev", "lo")
    box.ip("route", "add", "default", "via", "10.0.0.2")
    before = box.ip("route", "show", "table", "main")
    sinks = {name: each.call(lambda: listening("10.77.0.1")) for name, each in ways.items()}
    out = viewer.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))

    def came_by() -> set[str]:
        return ways_taken(out, sinks)

    daemon = Acceleratord(box, folder)
    daemon.policy.write_text(POLICY.split("origins:")[0] + "workers: 1\n" + STEERED)
    with NetdBox(box, folder) as netd, daemon, out:
        wait_for(lambda: came_by() == {"backup"}, "by the origin's link", 20)
        rows = [row for row in said(netd)["state"]["routes"] if row["table"] >= 86_030]
        assert [row["destination"] for row in rows] == ["10.77.0.1/32"]
        box.ip("link", "set", "lan1", "down")
        wait_for(lambda: came_by() == {"main"}, "by the next link", 20)
        box.ip("link", "set", "lan1", "up")
        wait_for(lambda: came_by() == {"backup"}, "by the first one again", 30)
        assert sorted(box.ip("route", "show", "table", "main").split()) == sorted(before.split())
        daemon.policy.write_text(daemon.policy.read_text().replace(", link_for: all", ""))
        daemon.process.send_signal(signal.SIGHUP)
        wait_for(lambda: came_by() == {"main"}, "as the system's routes say", 20)
    for sink in sinks.values():
        sink.close()


def test_what_may_be_steered_is_bounded_and_never_the_default_route() -> None:
    policy, problems = check_texts([("p", (POLICY.split("origins:")[0] + STEERED).encode())])
    assert policy is not None, problems
    seen = {"film": {f"10.77.{n >> 8}.{n & 255}": 0.0 for n in range(2000)} | {"10.1.1.2": 0.0, "2001:db8::1": 0.0}}
    wanted = routes_of(policy, seen, lambda name: "backup")
    assert len(wanted.routes) == ADDRESSES_ALL_MAX
    assert all(route.destination.endswith("/32") and route.table == 86_030 for route in wanted.routes)
    assert not any(route.destination == "10.1.1.2/32" for route in wanted.routes), "the gateway itself"
    assert [(rule.priority, rule.table) for rule in wanted.rules] == [(8630, 86_030)]
    assert routes_of(policy, seen, lambda name: "") == Wanted()
    for address in ("0.0.0.0", "127.0.0.1", "::", "::1", "169.254.1.1", "fe80::1", "224.0.0.1", "ff02::1"):
        assert not may_be_steered(address)


def listening(address: str) -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.bind((address, 5004))
    made.settimeout(0.1)
    return made


def drained(sink: socket.socket) -> int:
    n = 0
    while True:
        try:
            sink.recv(100)
        except TimeoutError:
            return n
        n += 1
