"""Two WAN links: an origin's fetches by the first that works, over routes that netd keeps, under that link's budget.

    origin 10.50.0.1 (lo)   eth0 10.9.0.1 --- 10.9.0.2 main    box (no default route)
                            eth1 10.9.1.1 --- 10.9.1.2 backup
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import netns
import pytest
from running_box import HOST, RunningBox, policy_for, wait_for

from accelerator.io.pacing import Lane

pytestmark = pytest.mark.skipif(netns.why_not() is not None, reason=str(netns.why_not()))
NETD = Path(sys.executable).parent / "accelerator-netd"
LINKS = {
    "main": {"interface": "main", "gateway": "10.9.0.1", "probe": "10.50.0.1:8000", "video": "20Mbit/s"},
    "backup": {"interface": "backup", "gateway": "10.9.1.1", "video": "10Mbit/s"},
}


@dataclass
class Site:
    origin: netns.Namespace
    here: netns.Namespace
    box: RunningBox

    def fetch(self, target: str) -> bytes:
        return self.here.call(lambda: self.box.get(target, host=HOST)).body

    def row(self, link: str) -> dict[str, Any]:
        return next(each for each in self.box.status()["links"] if each["name"] == link)

    def events(self) -> list[str]:
        return [f"{each['kind']} {each['what']}" for each in self.box.control("events")["events"]]

    def main_drops(self) -> None:
        """The link is dead, and its interface doesn't know."""
        rules = "add table inet cut; add chain inet cut in { type filter hook input priority 0; }; "
        self.origin.run("nft", rules + 'add rule inet cut in iifname "eth0" drop')

    def main_works(self) -> None:
        self.origin.run("nft", "delete", "table", "inet", "cut")


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with contextlib.ExitStack() as stack:
        topology = stack.enter_context(netns.Topology())
        origin, here = topology.namespace("origin"), topology.namespace("box")
        for number, name in enumerate(("main", "backup")):
            topology.wire(origin, f"eth{number}", here, name)
            origin.ip("addr", "add", f"10.9.{number}.1/24", "dev", f"eth{number}")
            here.ip("addr", "add", f"10.9.{number}.2/24", "dev", name)
        origin.ip("addr", "add", "10.50.0.1/32", "dev", "lo")
        server = origin.popen(
            sys.executable, str(Path(__file__).with_name("wan_origin.py")), "10.50.0.1", "8000", stdout=subprocess.PIPE
        )
        stack.callback(server.wait)
        stack.callback(server.kill)
        assert server.stdout is not None
        assert server.stdout.readline() == b"serving\n"
        policy = policy_for("http://10.50.0.1:8000", links=LINKS, origins={"media": {"link": ["main", "backup"]}})
        box = RunningBox(tmp_path, policy)
        box.prefix = ["ip", "netns", "exec", here.name]
        box.state.mkdir()
        netd = here.popen(str(NETD), "--state-dir", str(box.state), stderr=subprocess.DEVNULL)
        stack.callback(netd.wait)
        stack.callback(netd.kill)
        stack.enter_context(box)
        made = Site(origin, here, box)
        wait_for(lambda: "86010" in here.ip("rule", "show"), what="netd has the links' rules")
        yield made


def test_an_origin_goes_by_its_link_and_by_the_next_one_when_that_is_dead(site: Site) -> None:
    assert "default" not in site.here.ip("route", "show"), "what the system has is left as it is"
    assert site.fetch("/1000/a")[:3] == b"\x00\x01\x02"
    assert site.row("main")["origins"] == ["media"]
    # In the midst of a transfer, at 20 Mbit/s of 6 s.
    bodies: list[bytes] = []
    viewer = threading.Thread(target=lambda: bodies.append(site.fetch("/6000000/b")))
    viewer.start()
    wait_for(lambda: site.row("main")["classes"][-1]["bytes"] > 500_000, what="the fill is under way")
    site.main_drops()
    wait_for(lambda: site.row("backup")["origins"] == ["media"], seconds=6, what="three probes fail")
    assert not site.row("main")["up"]
    viewer.join(20)
    assert bodies == [bytes(range(256)) * (6_000_000 // 256) + bytes(range(6_000_000 % 256))]
    assert site.row("backup")["classes"][-1]["bytes"] > 1_000_000, "under the budget of the link in use"
    assert any(each.startswith("link-down link main is down: media by backup") for each in site.events())
    site.main_works()
    wait_for(lambda: site.row("main")["origins"] == ["media"], seconds=10, what="it has been well for 5 s")
    assert site.fetch("/1000/c")[:3] == b"\x00\x01\x02"
    assert any(each.startswith("link-up") for each in site.events())


def test_an_interface_without_carrier_is_left_at_once(site: Site) -> None:
    site.origin.ip("link", "set", "eth0", "down")
    wait_for(lambda: site.row("backup")["origins"] == ["media"], seconds=3, what="the next look")
    assert site.fetch("/1000/d")[:3] == b"\x00\x01\x02"
    assert site.row("main")["why"] == "main is down"
    done = site.box.accelctl("routes", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert site.box.accelctl("status").stdout.count("main is down") == 1


def test_what_goes_to_origins_has_its_classs_mark() -> None:
    for family, option in (
        (socket.AF_INET, (socket.IPPROTO_IP, socket.IP_TOS)),
        (socket.AF_INET6, (socket.IPPROTO_IPV6, socket.IPV6_TCLASS)),
    ):
        with socket.socket(family, socket.SOCK_STREAM) as sock:
            Lane(dscp=26).prepare(sock)
            assert sock.getsockopt(*option) == 26 << 2
