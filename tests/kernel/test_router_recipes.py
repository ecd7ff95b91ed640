"""The recipes for a Linux router, one for each family, pasted into one: viewers' plain HTTP goes to the box while its
probe answers, and its usual way where it doesn't. Real daemons, real kernel, in namespaces."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import netns
import pytest
from netd_box import NetdBox, wait_for

pytestmark = [
    pytest.mark.netns, pytest.mark.skipif(bool(netns.why_not()), reason=netns.why_not() or ""),
    pytest.mark.slow,  # the router asks every five seconds
]  # fmt: skip

BIN = Path(sys.executable).parent
POLICY = """
version: 1
site: {name: lyon}
zones: {desks: {nets: [10.12.0.0/24, "fd12::/64"]}}
listen: {lan: {address: "10.12.1.5:8080"}, lan6: {address: "[fd12:1::5]:8080"}}
origins: {media: {from: ["http://10.0.0.2"], hosts: [media.example]}}
workers: 1
cache: {memory: 64MiB}
steering: {intercept: {interfaces: [eth0], destinations: [10.0.0.0/24, "fd00::/64"]}}
"""
# The router's five seconds, its patience, and what a loaded machine adds.
NOTICED_S = 5 + 2 + 5


class Branch:
    """A router with a viewer, a box with one arm, and an origin, each behind an interface of its own."""

    def __init__(self, topology: netns.Topology, folder: Path, *, is_v6: bool) -> None:
        self.is_v6 = is_v6
        self.router, self.viewer, self.box, self.origin = (
            topology.namespace(name) for name in ("router", "viewer", "box", "origin")
        )
        for host, name, net, net6 in (
            (self.viewer, "lan0", "10.12.0", "fd12:"), (self.box, "box0", "10.12.1", "fd12:1:"),
            (self.origin, "wan0", "10.0.0", "fd00:"),
        ):  # fmt: skip
            topology.wire(host, "eth0", self.router, name)
            self.router.ip("addr", "add", f"{net}.1/24", "dev", name)
            host.ip("addr", "add", f"{net}.{5 if host is self.box else 2}/24", "dev", "eth0")
            host.ip("route", "add", "default", "via", f"{net}.1")
            self.router.ip("addr", "add", f"{net6}:1/64", "dev", name, "nodad")
            host.ip("addr", "add", f"{net6}:{5 if host is self.box else 2}/64", "dev", "eth0", "nodad")
            host.ip("-6", "route", "add", "default", "via", f"{net6}:1")
        for each in (self.router, self.box):
            each.sysctl("net.ipv4.ip_forward", "1")
            each.sysctl("net.ipv6.conf.all.forwarding", "1")
        self.folder = folder
        (folder / "policy.yaml").write_text(POLICY)
        (folder / "www").mkdir()
        (folder / "www" / "a.ts").write_text("video")
        self.processes = [
            self.origin.popen(sys.executable, "-m", "http.server", port, "--bind", "::",
                              "--directory", str(folder / "www"), stdout=subprocess.DEVNULL,
                              stderr=subprocess.DEVNULL)
            for port in ("80", "8000")
        ]  # fmt: skip
        self.netd = NetdBox(self.box, folder)
        self.daemon: subprocess.Popen[bytes]

    def start(self) -> None:
        self.netd.start()
        self.start_daemon()
        options = ("--policy", str(self.folder / "policy.yaml"), "--interface", "lan0", "--box")
        for box in ("10.12.1.5", "fd12:1::5"):
            text = self.router.run(str(BIN / "accelctl"), "steering", "recipes", "linux", *options, box)
            self.processes.append(self.router.popen("sh", "-c", text))

    def start_daemon(self) -> None:
        command = [str(BIN / "acceleratord"), "--policy", str(self.folder / "policy.yaml")]
        with open(self.folder / "box.log", "ab") as log:
            self.daemon = self.box.popen(*command, "--state-dir", str(self.folder), stderr=log)

    def close(self) -> None:
        for process in (self.daemon, *self.processes):
            process.kill()
            process.wait()
        self.netd.stop()
        for pid in self.netd.keepers():
            subprocess.run(["kill", "-9", str(pid)], check=False)

    def ask(self, port: int = 80) -> str:
        url = f"http://{'[fd00::2]' if self.is_v6 else '10.0.0.2'}:{port}/a.ts"
        command = ["curl", "-sS", "-g", "-i", "--max-time", "1", "-H", "Host: media.example", url]
        try:
            return self.viewer.run(*command)
        except RuntimeError:
            return ""

    def is_by_box(self) -> bool:
        return "Cache-Status: lyon" in self.ask()

    def is_direct(self, port: int = 80) -> bool:
        said = self.ask(port)
        return "200 OK" in said and "Cache-Status" not in said

    def is_sent(self) -> bool:
        """Whether the router sends viewers' packets to the box."""
        return "fwmark 0x80" in self.router.ip("-6" if self.is_v6 else "-4", "rule")


@pytest.fixture(params=[False, True], ids=["ipv4", "ipv6"])
def branch(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Branch]:
    with netns.Topology() as topology:
        made = Branch(topology, tmp_path, is_v6=request.param)
        try:
            made.start()
            wait_for(made.is_by_box, "the router sends viewers to the box", 30)
            yield made
        finally:
            made.close()


def test_plain_http_goes_to_the_box_and_nothing_else(branch: Branch) -> None:
    assert branch.is_sent()
    assert branch.is_direct(8000)
    to, viewer = ("fd00::2", "fd12::2") if branch.is_v6 else ("10.0.0.2", "10.12.0.2")
    assert "box0" not in branch.router.ip("route", "get", to, "from", viewer, "iif", "lan0")


def test_a_box_that_ends_is_left_and_comes_back(branch: Branch) -> None:
    branch.daemon.kill()
    wait_for(branch.is_direct, "video plays past it", NOTICED_S)
    wait_for(lambda: not branch.is_sent(), "the router has noticed", NOTICED_S)
    assert branch.is_direct()
    branch.daemon.wait()
    branch.start_daemon()
    wait_for(branch.is_by_box, "it is used again", NOTICED_S + 15)


def test_a_box_that_is_gone_is_left(branch: Branch) -> None:
    """Its cable is out: until the router has noticed, viewers' packets go nowhere."""
    branch.box.ip("link", "set", "eth0", "down")
    wait_for(branch.is_direct, "video plays past it", NOTICED_S)


def test_a_box_that_takes_nothing_passes_on_what_the_router_sends(branch: Branch) -> None:
    """Its probe answers and its interception is off: packets must not go round and round between the two."""
    branch.netd.stop()
    wait_for(branch.is_direct, "video plays through it", 10)
    assert branch.is_sent()
