"""`accelctl steering test LANE` where a viewer is: behind the box, which is on his way. Each reason that it may name is
provoked for real, and gone when the fault is."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import netns
import pytest
import trustme
from netd_box import NetdBox, wait_for

pytestmark = [pytest.mark.netns, pytest.mark.skipif(bool(netns.why_not()), reason=netns.why_not() or "")]

BIN = Path(sys.executable).parent
MEDIA, BOX = "media.corp.example", "box.corp.example"
POLICY = """
version: 1
site: {name: lyon}
listen:
  lan: {address: "10.1.0.1:80"}
  tls: {address: "10.1.0.1:443", tls: site}
origins: {media: {from: ["http://10.0.0.2"], hosts: [media.corp.example]}}
workers: 1
cache: {memory: 64MiB}
steering:
  hosts: [box.corp.example]
  prefix: true
  proxy: {address: "box.corp.example:80"}
  connect: ["10.0.0.2:8000", "10.0.0.2:9"]
  document: {pathways: [lyon, cdn], clone_of: cdn, host: media.corp.example}
  intercept: {interfaces: [lan0], destinations: [10.0.0.0/24]}
"""
ORIGIN = """
import http.server, socketserver, sys
http.server.HTTPServer.server_bind = socketserver.TCPServer.server_bind  # its own asks a resolver, which isn't there
class Handler(http.server.SimpleHTTPRequestHandler):
    def end_headers(self):
        if self.path.startswith("/open/"):
            self.send_header("Access-Control-Allow-Origin", "*")
        super().end_headers()
http.server.ThreadingHTTPServer(("", int(sys.argv[1])), Handler).serve_forever()
"""
# Where names lead to, for the lanes that want them at the box, and for the one that wants them where they are.
HERE = f"10.1.0.1 {MEDIA} {BOX}"
THERE = f"10.0.0.2 {MEDIA}\n10.1.0.1 {BOX}"
LOCAL = "--page=http://portal.corp.example"


class Branch:
    """A viewer, the box on his way, an origin, and both daemons."""

    def __init__(self, topology: netns.Topology, folder: Path) -> None:
        self.origin, self.box, (self.viewer,) = topology.proxy(1)
        self.box.sysctl("net.ipv4.ip_forward", "1")
        self.box.sysctl("net.ipv4.ip_unprivileged_port_start", "80")
        self.folder = folder
        for name in ("open", "shut"):
            (folder / "www" / name).mkdir(parents=True)
            (folder / "www" / name / "a.ts").write_text("video")
        self.policy = folder / "policy.yaml"
        self.policy.write_text(POLICY)
        self.ca = trustme.CA()
        self.ca.cert_pem.write_to_path(str(folder / "ca.pem"))
        (folder / "credentials").mkdir()
        self.certify(MEDIA, BOX)
        self.processes = [
            self.origin.popen(sys.executable, "-c", ORIGIN, port, cwd=folder / "www", stderr=subprocess.DEVNULL)
            for port in ("80", "8000")
        ]
        self.netd = NetdBox(self.box, folder)

    def certify(self, *hosts: str) -> None:
        made = self.ca.issue_cert(*hosts)
        made.private_key_pem.write_to_path(str(self.folder / "credentials" / "site.key"))
        (self.folder / "credentials" / "site.crt").write_bytes(b"".join(each.bytes() for each in made.cert_chain_pems))

    def start(self) -> None:
        self.netd.start()
        command = [str(BIN / "acceleratord"), "--policy", str(self.policy), "--state-dir", str(self.folder)]
        with open(self.folder / "box.log", "ab") as log:
            self.processes.append(self.box.popen(*command, stderr=log))
        wait_for(lambda: self.codes("intercept", THERE) == set(), "everything answers", 30)

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()
        self.netd.stop()
        for pid in self.netd.keepers():
            subprocess.run(["kill", "-9", str(pid)], check=False)

    def ask(self, lane: str, hosts: str, *options: str) -> dict[str, Any]:
        """What the viewer is told, whose names lead where `hosts` says."""
        (self.folder / "hosts").write_text(f"127.0.0.1 localhost\n{hosts}\n")
        (self.folder / "resolv.conf").write_text("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
        script = 'mount --bind $0/hosts /etc/hosts && mount --bind $0/resolv.conf /etc/resolv.conf && exec "$@"'
        command = [
            "unshare", "--mount", "sh", "-c", script, str(self.folder), str(BIN / "accelctl"), "--json",
            "--socket", "none", "steering", "test", lane, "--policy", str(self.policy),
            "--ca", str(self.folder / "ca.pem"), *options,
        ]  # fmt: skip
        done = self.viewer.popen(*command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        out, err = done.communicate(timeout=60)
        assert done.returncode in (0, 1), err.decode()
        said: dict[str, Any] = json.loads(out)
        assert said["ok"] is (done.returncode == 0)
        assert all(each["text"].endswith(".") and each["mend"] for each in said["findings"])
        return said

    def codes(self, lane: str, hosts: str, *options: str) -> set[str]:
        """What is in the way, less what is only said."""
        return {each["code"] for each in self.ask(lane, hosts, *options)["findings"] if each["level"] != "info"}


@pytest.fixture(scope="module")
def branch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Branch]:
    with netns.Topology() as topology:
        made = Branch(topology, tmp_path_factory.mktemp("branch"))
        try:
            made.start()
            yield made
        finally:
            made.close()


@contextmanager
def fault(where: netns.Namespace, rule: str) -> Iterator[None]:
    """A packet filter in the way. `rule`: its hook, and what it drops or refuses."""
    hook, _, what = rule.partition(": ")
    where.run("nft", f"add table ip fault; add chain ip fault f {{ type filter hook {hook} priority 0; }};"
              f" add rule ip fault f {what}")  # fmt: skip
    try:
        yield
    finally:
        where.run("nft", "delete table ip fault")


@pytest.mark.parametrize("lane", ["hosts", "prefix", "proxy", "document"])
def test_a_lane_that_works_has_nothing_in_its_way(branch: Branch, lane: str) -> None:
    said = branch.ask(lane, HERE, LOCAL, f"--url=http://{MEDIA}/open/a.ts")
    assert said["ok"], said["findings"]
    assert said["checked"]


def test_interception_works_where_names_lead_to_the_origin(branch: Branch) -> None:
    said = branch.ask("intercept", THERE, f"--url=http://{MEDIA}/open/a.ts", LOCAL)
    assert said["ok"], said["findings"]
    assert {"intercept", "media", "cors"} <= said["checked"].keys()
    said = branch.ask("intercept", THERE, "--box=10.1.0.1", LOCAL)
    assert "box" in {each["check"] for each in said["skipped"]}, "the box's address is not where viewers go"


NAMES = [
    ("hosts", f"10.1.0.1 {BOX}", {"name"}, "has no address"),
    *(
        pytest.param(lane, hosts, {"name"}, "has no address", marks=pytest.mark.slow)  # the same step of other lanes
        for lane, hosts in (
            ("prefix", f"10.1.0.1 {MEDIA}"), ("proxy", f"10.1.0.1 {MEDIA}"), ("document", f"10.1.0.1 {BOX}"),
            ("connect", f"10.1.0.1 {MEDIA}"), ("intercept", f"10.1.0.1 {BOX}"),
        )
    ),
    ("intercept", HERE, {"destination"}, "only what goes to 10.0.0.0/24 is taken"),
]


@pytest.mark.parametrize(("lane", "hosts", "codes", "text"), NAMES)
def test_names(branch: Branch, lane: str, hosts: str, codes: set[str], text: str) -> None:
    said = branch.ask(lane, hosts, LOCAL)
    found = {each["code"]: each["text"] for each in said["findings"] if each["level"] != "info"}
    assert found.keys() <= codes
    assert text in " ".join(found.values())


FILTERS = [
    ("hosts", HERE, "output: tcp dport 443 reject with tcp reset", "refused"),
    *(
        pytest.param(*row, marks=pytest.mark.slow)  # the same step of other lanes; a drop takes four seconds
        for row in (
            ("hosts", HERE, "output: tcp dport 80 drop", "something on the way drops it"),
            ("prefix", HERE, "output: tcp dport 80 reject with tcp reset", "refused"),
            ("proxy", HERE, "output: tcp dport 80 reject", "refused"),
            ("document", HERE, "output: tcp dport { 80, 443 } reject with tcp reset", "refused"),
            ("connect", HERE, "output: tcp dport 80 reject with icmp admin-prohibited", "port 80"),
        )
    ),
    ("intercept", THERE, "output: ip daddr 10.0.0.2 reject with tcp reset", "refused"),
]


@pytest.mark.parametrize(("lane", "hosts", "rule", "text"), FILTERS)
def test_firewalls(branch: Branch, lane: str, hosts: str, rule: str, text: str) -> None:
    with fault(branch.viewer, rule):
        found = {each["code"]: each for each in branch.ask(lane, hosts, LOCAL)["findings"] if each["level"] != "info"}
    assert found.keys() == {"firewall"}
    assert text in found["firewall"]["text"]
    assert "steering matrix" in found["firewall"]["mend"]


def test_certificates(branch: Branch) -> None:
    (branch.folder / "other.pem").write_bytes(trustme.CA().cert_pem.bytes())
    said = branch.ask("hosts", HERE, LOCAL, "--ca", str(branch.folder / "other.pem"))
    assert "unable to get local issuer" in said["findings"][0]["text"]
    assert said["findings"][0]["code"] == "certificate"
    text = branch.policy.read_text()
    branch.policy.write_text(text.replace(f"hosts: [{MEDIA}]", "hosts: [other.corp.example]"))
    try:
        said = branch.ask("hosts", "10.1.0.1 other.corp.example", LOCAL)
    finally:
        branch.policy.write_text(text)
    found = {each["code"]: each["text"] for each in said["findings"]}
    assert "other.corp.example" in found["certificate"], "a certificate for other names"
    assert "mismatch" in found["certificate"]


@pytest.mark.parametrize("lane", ["hosts", "prefix", "intercept"])
def test_players_may_not_read_what_has_no_cors_field(branch: Branch, lane: str) -> None:
    where = THERE if lane == "intercept" else HERE
    assert branch.codes(lane, where, LOCAL, f"--url=http://{MEDIA}/shut/a.ts") == {"cors"}
    assert branch.codes(lane, where, LOCAL, f"--url=http://{MEDIA}/open/a.ts") == set()
    assert branch.codes(lane, where, LOCAL, f"--url=http://{MEDIA}/none.ts") == {"answer"}
    assert "cors" in {each["check"] for each in branch.ask(lane, where, LOCAL)["skipped"]}


@pytest.mark.parametrize("lane", ["hosts", "prefix", "document"])
def test_a_page_over_https_may_not_load_what_is_not(branch: Branch, lane: str) -> None:
    said = branch.ask(lane, HERE, "--page=https://portal.corp.example")
    mixed = [each["subject"] for each in said["findings"] if each["code"] == "mixed-content"]
    assert mixed
    assert all(each.startswith("http://") for each in mixed)


def test_browsers_ask_for_a_permission_where_a_public_page_uses_the_local_network(branch: Branch) -> None:
    def asks(page: str, hosts: str) -> bool:
        said = branch.ask("hosts", hosts, f"--page={page}")
        return "local-network" in {each["code"] for each in said["findings"]}

    assert asks("https://portal.example", HERE)
    assert not asks("http://10.1.0.1", HERE), "the page is in the local network too"


def test_connect_says_which_target_can_not_be_reached(branch: Branch) -> None:
    said = branch.ask("connect", HERE)
    assert [(each["code"], each["subject"]) for each in said["findings"]] == [("connect", "10.0.0.2:9")]
    assert "502" in said["findings"][0]["text"]


def answers(branch: Branch, hosts: str, commands: Sequence[str], lane: str) -> set[str]:
    for command in commands:
        branch.viewer.run("nft", command)
    try:
        return branch.codes(lane, hosts, LOCAL)
    finally:
        branch.viewer.run("nft", "delete table ip fault")


@pytest.mark.parametrize(("lane", "code"), [("proxy", "pac"), ("document", "answer"), ("prefix", "name")])
def test_something_else_answers_at_the_boxs_place(branch: Branch, lane: str, code: str) -> None:
    """Port 80 leads to another web server, as it does behind a load balancer that was set up wrongly."""
    commands = ["add table ip fault", "add chain ip fault f { type nat hook output priority 0; }",
                "add rule ip fault f ip daddr 10.1.0.1 tcp dport 80 dnat to 10.0.0.2:8000"]  # fmt: skip
    assert code in answers(branch, HERE, commands, lane)


def test_nothing_takes_viewers_packets(branch: Branch) -> None:
    """As after a policy route that was never made: they reach the origin."""
    branch.netd.stop()
    try:
        assert branch.codes("intercept", THERE, LOCAL) == {"intercept"}
        said = branch.ask("hosts", THERE, LOCAL)
        assert "leads elsewhere" in next(each["text"] for each in said["findings"] if each["code"] == "name")
    finally:
        branch.netd.start()
    wait_for(lambda: branch.codes("intercept", THERE, LOCAL) == set(), "it takes them again", 20)


def test_a_lane_that_the_policy_has_not(branch: Branch) -> None:
    text = branch.policy.read_text()
    branch.policy.write_text(text.partition("steering:")[0])
    try:
        for lane in ("prefix", "proxy", "document", "connect", "intercept"):
            assert branch.codes(lane, HERE) == {"lane-off"}
    finally:
        branch.policy.write_text(text)
