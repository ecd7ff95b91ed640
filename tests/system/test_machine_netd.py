"""accelerator-netd's unit under a real systemd, with a network to change: what it may do is enough for what it does.
Slow: boots a machine (machine.py) in a network namespace between a source and a host."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import netns
import pytest
from machine import Machine, skip_unless_possible
from running_box import wait_for
from streams import ASM, PORT, SOURCE, SSM, Count, Stream

pytestmark = [pytest.mark.slow, pytest.mark.netns, pytest.mark.timeout(600)]

NETD = "accelerator-netd.service"
NET_ADMIN_AND_RAW = 1 << 12 | 1 << 13
POLICY = """
version: 1
site: {name: lyon}
listen: {lan: {address: "127.0.0.1:8080"}}
origins: {media: {from: ["http://127.0.0.1:9"], hosts: ["*"]}}
workers: 1
links: {main: {interface: wan, down: 100Mbit/s, up: 20Mbit/s, shape: {egress: true, ingress: true}}}
marks: {meetings: {nets: [10.9.0.0/24], protocol: udp, dscp: EF}}
steering: {intercept: {interfaces: [lan0], destinations: [10.0.0.0/24]}}
multicast: {proxies: {tv: {upstream: wan, downstream: [lan0], groups: [224.0.0.0/4, "ff00::/8"]}}}
"""


@dataclass
class Site:
    machine: Machine
    source: netns.Namespace
    box: netns.Namespace  # the machine's network, as seen from outside
    host: netns.Namespace

    def routes(self) -> dict[str, Any]:
        return json.loads(self.machine.run("accelctl", "--json", "routes").stdout)  # type: ignore[no-any-return]

    def pids(self, module: str) -> list[int]:
        found = self.machine.run("pgrep", "--full", f"accelerator.kernel.{module}", check=False).stdout
        return [int(line) for line in found.split()]

    def main_pid(self) -> int:
        return int(self.machine.property("MainPID", NETD))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    skip_unless_possible()
    if why := netns.why_not():
        pytest.skip(why)
    with netns.Topology() as topology:
        source, box, (host,) = topology.proxy(1)
        with Machine(tmp_path_factory.mktemp("machine"), box.name) as machine:
            machine.run("systemd-sysusers")
            machine.run("systemd-tmpfiles", "--create")
            machine.write("/etc/accelerator/policy.d/10-site.yaml", POLICY)
            machine.run("systemctl", "daemon-reload")
            machine.run("systemctl", "enable", "--now", NETD, "acceleratord.service")
            found = Site(machine, source, box, host)
            wait_for(lambda: found.pids("multicast_process"), seconds=30, what="what policy wants of multicast")
            yield found


@pytest.mark.parametrize("is_v6", [False, True], ids=["ipv4", "ipv6"])
def test_hosts_have_their_channels(site: Site, is_v6: bool) -> None:
    count = Count(netns.join(site.host, "eth0", ASM[is_v6], PORT))
    single = Count(netns.join(site.host, "eth0", SSM[is_v6], PORT, (SOURCE[is_v6],)))
    streams = [Stream(site.source, group[is_v6], 200) for group in (ASM, SSM)]
    try:
        wait_for(lambda: min(len(each.numbers) for each in (count, single)) > 200, seconds=30, what="packets")
    finally:
        for stream in streams:
            stream.stop()
        count.stop()
        single.stop()


def test_the_kernel_is_as_policy_wants_it(site: Site) -> None:
    """Its tables, queues and rules: nft and pyroute2 work within the unit's bounds."""
    done = ("accelctl", "routes", "--dry-run")
    wait_for(lambda: "nothing is left to do" in site.machine.run(*done).stdout, seconds=30, what="all of it is there")
    ruleset = site.box.run("nft", "list", "ruleset")
    assert "tproxy" in ruleset
    assert "dscp set ef" in ruleset
    assert "htb" in site.box.run("tc", "qdisc", "show", "dev", "wan")
    assert "ingress" in site.box.run("tc", "qdisc", "show", "dev", "wan")
    assert "fwmark" in site.box.run("ip", "rule")


def test_each_of_its_processes_has_two_capabilities(site: Site) -> None:
    pids = [site.main_pid(), *site.pids("multicast_process"), *site.pids("keeper")]
    assert len(pids) == 3
    for pid in pids:
        lines = site.machine.run("cat", f"/proc/{pid}/status").stdout.splitlines()
        status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
        for name in ("CapPrm", "CapEff", "CapBnd"):
            assert int(status[name], 16) & ~NET_ADMIN_AND_RAW == 0, (pid, name)
        assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
        assert "0" not in status["Uid"].split()


@pytest.mark.parametrize("victim", ["multicast_process", "netd", "restart"])
def test_no_packet_is_lost_when_one_of_them_ends(site: Site, victim: str) -> None:
    count = Count(netns.join(site.host, "eth0", ASM[False], PORT))
    stream = Stream(site.source, ASM[False], 500)
    try:
        wait_for(lambda: len(count.numbers) > 100, seconds=30, what="packets")
        first, before = count.numbers[0], site.main_pid()
        if victim == "restart":
            site.machine.run("systemctl", "restart", NETD)
        else:
            pids = site.pids(victim) if victim != "netd" else [before]
            site.machine.run("kill", "-KILL", *map(str, pids))
            wait_for(lambda: site.pids("multicast_process") not in ([], pids), seconds=30, what="another one")
        n_seen = len(count.numbers)
        wait_for(lambda: len(count.numbers) > n_seen + 1000, seconds=30, what="packets after it")
        assert (site.main_pid() == before) == (victim == "multicast_process")
    finally:
        stream.stop()
        numbers = count.stop()
    assert numbers == list(range(first, stream.n_sent))
    wait_for(lambda: site.routes()["multicast"], seconds=30, what="it is asked again")


def test_it_is_taken_out_whole(site: Site) -> None:
    site.machine.run("systemctl", "stop", "acceleratord.service", NETD)
    site.machine.run("accelerator-netd", "--state-dir", "/var/lib/accelerator", "--remove")
    assert len(site.machine.run("cat", "/proc/net/ip_mr_vif").stdout.splitlines()) == 1
    assert site.box.run("nft", "list", "ruleset") == ""
    assert "htb" not in site.box.run("tc", "qdisc", "show", "dev", "wan")
    assert "fwmark" not in site.box.run("ip", "rule")
    assert site.pids("keeper") == []
