"""A firewall on the box made of `accelctl steering matrix` and of nothing else, all else dropped: what the policy names
works through it, in both families, and each row was for something. Real daemons, real kernel, in namespaces."""

from __future__ import annotations

import csv
import io
import json
import shlex
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from ipaddress import ip_network
from pathlib import Path

import netns
import pytest
from netd_box import NetdBox, wait_for

pytestmark = [pytest.mark.netns, pytest.mark.skipif(bool(netns.why_not()), reason=netns.why_not() or "")]

BIN = Path(sys.executable).parent
POLICY = """
version: 1
site: {name: lyon}
zones: {viewers: {nets: [10.1.0.0/24, "fd00:1::/64"]}}
links: {main: {interface: wan, probe: "10.0.0.2:81"}}
listen:
  lan: {address: "10.1.0.1:8080"}
  lan6: {address: "[fd00:1::1]:8080"}
admin: {address: "10.1.0.1:8082"}
origins:
  media: {from: ["http://10.0.0.2"], hosts: [media.example], link: [main]}
  media6: {from: ["http://[fd00::2]"], hosts: [media6.example]}
workers: 1
cache: {memory: 64MiB}
steering:
  connect: ["10.0.0.2:8000"]
  proxy: {address: "10.1.0.1:8080"}
  intercept: {interfaces: [lan0], destinations: [10.0.0.0/24, "fd00::/64"]}
relays:
  hall:
    from: ["udp://10.0.0.2@239.1.1.1:5004"]
    interface: wan
    join: always
    announce: Hall
    to:
      - {group: "239.2.1.1:5004", interface: lan0, ttl: 1}
      - {unicast: ["10.1.0.2:5006"]}
udpxy: {groups: [239.3.0.0/16], interface: wan, channels: 2}
multicast:
  proxies: {tv: {upstream: wan, downstream: [lan0], groups: [239.4.0.0/16, "ff35::/32"]}}
"""
# What nobody needed here: what is for other routers, older peers, narrow paths, and a firewall before the box.
NOT_USED = ("querier", "version", "somebody has left", "the clock", "packet too big", "unreachable", "add-receiver",
            "proxy tv, from wan")  # fmt: skip
ORIGIN = """
import http.server, socket, socketserver, sys
http.server.HTTPServer.server_bind = socketserver.TCPServer.server_bind  # its own asks a resolver, which isn't there
class Handler(http.server.SimpleHTTPRequestHandler):
    def end_headers(self):
        self.send_header("Cache-Control", "max-age=60")
        super().end_headers()
class Server(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6
Server(("::", int(sys.argv[1])), Handler).serve_forever()
"""
PACKET = b"".join(bytes((0x47, 1, 0, 0x10 | n)) + bytes(184) for n in range(7))


def rules(rows: list[dict[str, str]], chain: str) -> Iterator[str]:
    """As somebody would write them who has only the table. Words are peers, wherever they are."""
    for number, row in enumerate(rows):
        if "add-receiver" in row["why"]:  # nobody is added here, and as written it lets all UDP out
            continue
        is_forwarded = row["direction"] == "out" and row["source"] != "box"
        if chain != {"in": "input", "out": "forward" if is_forwarded else "output"}[row["direction"]]:
            continue
        words = []
        for side, key in (("saddr", "source"), ("daddr", "destination")):
            try:
                net = ip_network(row[key])
            except ValueError:
                continue
            words.append(f"ip{6 if net.version == 6 else ''} {side} {net}")
        words.append({
            "tcp": f"tcp dport {row['port']}", "igmp": "meta l4proto igmp",
            "udp": "meta l4proto udp" if row["port"] == "any" else f"udp dport {row['port']}",
            "icmp": "icmp type destination-unreachable", "icmpv6": "icmpv6 type packet-too-big",
            "icmpv6 (MLD)": "icmpv6 type { 130, 131, 132, 143 }", "icmpv6 (ND)": "icmpv6 type { 133-137 }",
        }[row["protocol"]])  # fmt: skip
        yield f'{" ".join(words)} counter accept comment "row {number}"'


def firewall(rows: list[dict[str, str]]) -> str:
    chains = []
    for name in ("input", "output", "forward"):
        lines = [f"type filter hook {name} priority 0; policy drop;", "iif lo accept", "oif lo accept",
                 "ct state established,related accept", *rules(rows, name)]  # fmt: skip
        if name == "input":
            lines.remove("oif lo accept")
        if name == "output":
            lines.remove("iif lo accept")
        chains.append(f"chain {name} {{\n" + "\n".join(lines) + "\n}")
    return "table inet firewall {\n" + "\n".join(chains) + "\n}\n"


def _flow(row: dict[str, str]) -> tuple[str, ...]:
    return tuple(row[key] for key in ("source", "destination", "protocol", "port", "direction"))


class Site:
    def __init__(self, topology: netns.Topology, folder: Path) -> None:
        self.source, self.box, (self.viewer,) = topology.proxy(1)
        self.box.sysctl("net.ipv4.ip_forward", "1")
        self.box.sysctl("net.ipv6.conf.all.forwarding", "1")
        self.source.ip("-6", "route", "add", "default", "via", "fd00::1")
        (folder / "policy.yaml").write_text(POLICY)
        (folder / "www").mkdir()
        (folder / "www" / "a.ts").write_text("video")
        self.processes = [
            self.source.popen(sys.executable, "-c", ORIGIN, port, cwd=folder / "www", stderr=subprocess.DEVNULL)
            for port in ("80", "81", "8000", "9")
        ]  # fmt: skip
        command = [str(BIN / "accelctl"), "steering", "matrix", "--format", "csv", "--policy"]
        printed = subprocess.run([*command, str(folder / "policy.yaml")], capture_output=True, text=True, check=True)
        self.rows = list(csv.DictReader(io.StringIO(printed.stdout)))
        (folder / "firewall.nft").write_text(firewall(self.rows))
        self.box.run("nft", "-f", str(folder / "firewall.nft"))
        self.netd = NetdBox(self.box, folder)
        self.netd.start()
        command = [str(BIN / "acceleratord"), "--policy", str(folder / "policy.yaml"), "--state-dir", str(folder)]
        with open(folder / "box.log", "ab") as log:
            self.daemon = self.box.popen(*command, stderr=log)

    def close(self) -> None:
        for process in (self.daemon, *self.processes):
            process.kill()
            process.wait()
        self.netd.stop()
        for pid in self.netd.keepers():
            subprocess.run(["kill", "-9", str(pid)], check=False)

    def curl(self, *words: str) -> str:
        """Head and body; empty: nothing answered."""
        try:
            return self.viewer.run("curl", "-sS", "-g", "-i", "--max-time", "2", *words)
        except RuntimeError:
            return ""

    def row(self, destination: str, protocol: str, direction: str) -> int:
        return next(
            n for n, row in enumerate(self.rows)
            if (row["destination"], row["protocol"], row["direction"]) == (destination, protocol, direction)
        )  # fmt: skip

    def used(self) -> set[int]:
        """Rows that something came through, or another one that says the same."""
        said = json.loads(self.box.run("nft", "-j", "list", "table", "inet", "firewall"))["nftables"]
        found = set()
        for each in said:
            rule = each.get("rule", {})
            n = next((part["counter"]["packets"] for part in rule.get("expr", ()) if "counter" in part), 0)
            if n and rule.get("comment", "").startswith("row "):
                found.add(int(rule["comment"][4:]))
        flows = {_flow(self.rows[n]) for n in found}
        return {n for n, row in enumerate(self.rows) if _flow(row) in flows}


    def doctor(self) -> dict[str, dict[str, str]]:
        """What is in the way, by code, less what is only said."""
        command = [str(BIN / "accelctl"), "--socket", str(self.netd.state_dir / "control.sock"), "--json", "doctor"]
        asked = self.box.popen(*command, "--listen", "0.1", stdout=subprocess.PIPE)
        said = json.loads(asked.communicate(timeout=60)[0])
        found = {f"{each['code']} {each['subject']}": each for each in said["findings"] if each["level"] != "info"}
        assert said["ok"] is (asked.returncode == 0) is (not found)
        return found

    def says(self, wanted: set[str], what: str) -> None:
        """In the end: daemons that begin, or have just been disturbed, may differ for a moment."""
        found: set[str] = set()

        def look() -> bool:
            nonlocal found
            found = set(self.doctor())
            return found == wanted

        try:
            wait_for(look, what, 60)
        except AssertionError as late:
            raise AssertionError(f"{what}: {sorted(found ^ wanted)}") from late


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with netns.Topology() as topology:
        made = Site(topology, tmp_path)
        try:
            wait_for(lambda: "200 OK" in made.curl("http://10.1.0.1:8080/.well-known/accelerator/health"), "up", 60)
            yield made
        finally:
            made.close()


def arrives(heard: socket.socket) -> Callable[[], bool]:
    heard.setblocking(False)

    def is_there() -> bool:
        try:
            return bool(heard.recv(2000))
        except BlockingIOError:
            return False

    return is_there


def test_a_firewall_made_of_the_flow_matrix_lets_everything_through_that_the_policy_names(site: Site) -> None:
    host, host6 = ("-H", "Host: media.example"), ("-H", "Host: media6.example")
    wait_for(lambda: "video" in site.curl(*host, "http://10.1.0.1:8080/a.ts"), "host names", 30)
    wait_for(lambda: "video" in site.curl(*host6, "http://[fd00:1::1]:8080/a.ts"), "the same by IPv6", 30)
    wait_for(lambda: "200 OK" in site.curl("http://10.1.0.1:8082/healthz"), "the admin's", 30)
    tunnel = ("-p", "-x", "http://10.1.0.1:8080", "http://10.0.0.2:8000/a.ts")
    wait_for(lambda: "video" in site.curl(*tunnel), "CONNECT", 30)
    for target in ("http://10.0.0.2/a.ts", "http://[fd00::2]/a.ts"):
        wait_for(lambda target=target: "lyon" in site.curl(*host, target), f"interception of {target}", 30)  # type: ignore[misc]
    for listener in ("10.1.0.1", "[fd00:1::1]"):
        url = f"http://{listener}:8080/.well-known/accelerator/health"
        assert "ok" in site.source.run("curl", "-sS", "-g", "--max-time", "10", url), "a router asks"
    assert site.curl("http://10.0.0.2:9/a.ts") == "", "what the policy doesn't name is dropped"

    relayed = arrives(netns.join(site.viewer, "eth0", "239.2.1.1", 5004))
    sending = netns.sender(site.source, "eth0")
    wait_for(lambda: sending.sendto(PACKET, ("239.1.1.1", 5004)) and relayed(), "the relay's group", 30)
    asking = site.viewer.popen("curl", "-sN", "http://10.1.0.1:8080/udp/239.3.0.1:5004/", stdout=subprocess.DEVNULL)
    try:
        row = site.row("239.3.0.0/16", "udp", "in")
        wait_for(lambda: sending.sendto(PACKET, ("239.3.0.1", 5004)) and row in site.used(), "udpxy's group", 30)
    finally:
        asking.kill()
        asking.wait()
    announced = site.row("224.2.127.254", "udp", "out")
    wait_for(lambda: announced in site.used(), "the relay is announced", 30)
    for group, net in (("239.4.0.1", "239.4.0.0/16"), ("ff35::8000:1", "ff35::/32")):
        joined = netns.join(site.viewer, "eth0", group, 5004, ("fd00::2" if ":" in group else "10.0.0.2",))
        sends, proxied = netns.sender(site.source, "eth0", is_v6=":" in group), arrives(joined)
        wait_for(lambda: sends.sendto(PACKET, (group, 5004)) and proxied(), f"the proxy's {group}", 30)  # noqa: B023
        joined.close()
        queries = "queries on lan0 for multicast proxy tv"
        asked = next(n for n, row in enumerate(site.rows) if row["destination"] == net and row["why"] == queries)
        wait_for(lambda: asked in site.used(), f"whether anybody else is in {group}", 30)  # noqa: B023

    site.daemon.kill()
    wait_for(lambda: "video" in site.curl("http://10.0.0.2/a.ts"), "past a box that is dead", 30)
    wait_for(lambda: "video" in site.curl("http://[fd00::2]/a.ts"), "the same by IPv6", 30)
    useless = [row for n, row in enumerate(site.rows) if n not in site.used()]
    found = [row for row in useless if not any(word in f"{row['source']} {row['why']}" for word in NOT_USED)]
    assert not found, "\n".join(map(str, found))


def test_the_doctor_finds_nothing_behind_that_firewall_and_mends_what_is_broken_then(site: Site) -> None:
    """All its checks beside running daemons. Each fault is in one family only, and its command is run as printed."""
    sending, over = netns.sender(site.source, "eth0"), threading.Event()

    def send() -> None:
        while not over.wait(0.02):
            sending.sendto(PACKET, ("239.1.1.1", 5004))

    sender = threading.Thread(target=send)
    sender.start()
    try:
        # Once the relay has its first packets. netd's own processes were another program to it once.
        site.says(set(), "a sound box has nothing in the way")
        rule = "insert rule inet firewall"
        site.box.run("nft", f"{rule} input meta l4proto igmp drop; {rule} input icmpv6 type {{ 130, 143 }} drop;"
                     f"{rule} forward ip6 daddr ff35::/32 drop; {rule} forward ip daddr 239.4.0.0/16 drop")  # fmt: skip
        for name in ("net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"):
            site.box.sysctl(name, "0")
        site.box.ip("link", "set", "lan0", "mtu", "1280")
        faults = {
            "igmp-dropped wan", "reports-dropped lan0", "mld-dropped wan", "mld-reports-dropped lan0",
            "forward-dropped lan0", "forwarding-off lan0", "mtu lan0",
        }  # fmt: skip
        site.says(faults, "each fault is named")
        # Of two of a kind one stands for both until it is mended.
        for _ in range(2):
            for name, each in site.doctor().items():
                if name in faults:
                    site.box.run(*shlex.split(each["mend"]))
        site.says(set(), "all is mended")
    finally:
        over.set()
        sender.join()
