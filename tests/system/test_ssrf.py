"""SSRF: whatever a viewer writes, an origin answers, a policy names or a resolver says, the box connects to the
origins of its policy and to nothing else. A canary listens on each address of
the machine, and nobody may ever connect to it.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from recording_origin import RecordingOrigin
from running_box import HOST, PROJECT, Response, RunningBox, policy_for, wait_for

# Spellings of this machine, its link and its cloud's metadata service that some parser somewhere resolves.
HOSTS = [
    "127.0.0.1", "127.0.0.1.", "127.1", "127.0.1", "127.127.127.127", "127.0.0.2", "0x7f.0.0.1", "0x7f.1", "0x7f000001",
    "0X7F000001", "0x7f.0x0.0x0.0x1", "2130706433", "017700000001", "0177.0.0.1", "0177.0.0.0x1", "0177.1",
    "127.000.000.001", "00000177.0.0.1", "0x000000007f.1", "4294967297", "6425673729", "127.0.0.1%00", "127.0.0.1%20",
    "127.0.0.1%2f", "127%2e0%2e0%2e1", "%31%32%37.0.0.1", "127.0.0.1,x", "127.0.0.1;x", "127.0.0.1#x", "127.0.0.1?x",
    "127.0.0.1\\", "127.0.0.1\\@x", "①②⑦.⓪.⓪.①", "127。0。0。1", "127.0.0.1", "127｡0｡0｡1", "0.0.0.0", "0", "0x0",
    "00.00", "0.0.0.0.", "127.0.0.1.nip.io", "localhost", "LOCALHOST", "localhost.", "localhost.localdomain",
    "ip6-localhost", "ip6-loopback", "x.localhost", "loc%61lhost", "\uff4cocalhost", "ⓛocalhost", "[::1]", "[::1%lo]",
    "[::1%25lo]", "[::1%1]", "[0:0:0:0:0:0:0:1]", "[0000::0001]", "[::]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]",
    "[0:0:0:0:0:ffff:127.0.0.1]", "[::127.0.0.1]", "[::7f00:1]", "[::ffff:0:127.0.0.1]", "[64:ff9b::127.0.0.1]",
    "[64:ff9b::7f00:1]", "[64:ff9b:1::7f00:1]", "[2002:7f00:1::]", "[2001:0:7f00:1::]", "[fe80::1%25lo]", "[fe80::1]",
    "[::1", "::1", "[::1]x", "[v1.x]", "169.254.169.254", "0xa9fea9fe", "2852039166", "0251.0376.0251.0376",
    "[::ffff:a9fe:a9fe]", "[fd00:ec2::254]", "metadata.google.internal", "instance-data", "255.255.255.255",
    "224.0.0.1", "[ff02::1]", socket.gethostname() or "host",
]  # fmt: skip
# How a viewer can write an authority. %s has its port.
TARGETS = [
    "http://%s/good/a", "HTTP://%s/good/a", "https://%s/good/a", f"http://{HOST}@%s/good/a", f"http://%s@{HOST}/good/a",
    f"http://{HOST}:80@%s/good/a", "ftp://%s/good/a", "//%s/good/a", "/http://%s/good/a", "/good/a?url=http://%s/",
    "/good/../../%s/a", "@%s/good/a",
]  # fmt: skip


class Canary:
    """Listens on all addresses of the machine, at one port, and counts."""

    def __init__(self) -> None:
        self.sockets = [socket.socket(socket.AF_INET), socket.socket(socket.AF_INET6)]
        self.sockets[1].setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        self.sockets[0].bind(("0.0.0.0", 0))
        self.port = self.sockets[0].getsockname()[1]
        self.sockets[1].bind(("::", self.port))
        for each in self.sockets:
            each.listen(64)
            each.setblocking(False)

    def heard(self) -> int:
        """Connects since the last time: the kernel has made them before any client could know."""
        n = 0
        for each in self.sockets:
            with contextlib.suppress(BlockingIOError):
                while True:
                    each.accept()[0].close()
                    n += 1
        return n

    def close(self) -> None:
        for each in self.sockets:
            each.close()


@pytest.fixture(scope="module")
def canary() -> Iterator[Canary]:
    running = Canary()
    for address in ("127.0.0.1", "::1"):  # it does hear
        socket.create_connection((address, running.port)).close()
        assert running.heard() == 1
    yield running
    assert running.heard() == 0
    running.close()


@pytest.fixture(scope="module")
def origin() -> Iterator[RecordingOrigin]:
    with RecordingOrigin() as running:
        yield running


@pytest.fixture(scope="module", params=["one-host", pytest.param("any-host", marks=pytest.mark.slow)])
def box(
    request: pytest.FixtureRequest, origin: RecordingOrigin, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningBox]:
    """Two origins, media and generic; in the second box viewers may write any host."""
    policy = policy_for(origin.url)
    any_host = request.param == "any-host"
    policy["origins"]["media"]["hosts"] = ["*"] if any_host else [HOST]
    policy["origins"]["portal"] = {"from": [origin.url], "hosts": ["portal.example"], "profile": "generic"}
    with RunningBox(tmp_path_factory.mktemp("ssrf"), policy) as running:
        yield running


def ask(box: RunningBox, head: str) -> int:
    """The answer's status; 0 for a connection that just ends."""
    with contextlib.suppress(OSError):
        return Response(box.ask(head.encode("utf-8") + b"\r\nConnection: close\r\n\r\n")).status
    return 0


def test_the_list_is_long_enough() -> None:
    assert len(set(HOSTS)) >= 85
    assert len(set(HOSTS)) * (len(TARGETS) + 4) >= 1000


@pytest.mark.parametrize("host", HOSTS, ids=[host.encode("ascii", "backslashreplace").decode() for host in HOSTS])
def test_no_form_of_a_request_reaches_the_canary(
    host: str, box: RunningBox, origin: RecordingOrigin, canary: Canary
) -> None:
    n_connections = len(origin.connections)
    authority = f"{host}:{canary.port}"
    heads = [f"GET {target.replace('%s', authority)} HTTP/1.1\r\nHost: {HOST}" for target in TARGETS]
    heads += [f"GET {target.replace('%s', authority)} HTTP/1.1\r\nHost: {authority}" for target in TARGETS[:3]]
    heads += [f"GET {target.replace('%s', authority)} HTTP/1.1\r\nHost: portal.example" for target in TARGETS[:3]]
    heads += [f"CONNECT {authority} HTTP/1.1\r\nHost: {each}" for each in (authority, HOST, "portal.example")]
    heads += [f"GET /good/a HTTP/1.1\r\nHost: {each}" for each in (authority, host, f"{HOST}:@{authority}")]
    heads += [f"GET /good/a HTTP/1.1\r\nHost: {each}\r\nHost: {authority}" for each in (HOST, "portal.example")]
    # Fields by which proxies and frameworks have been sent elsewhere.
    for name in ("X-Forwarded-Host", "X-Forwarded-Server", "X-Host", "X-Original-URL", "X-Rewrite-URL", "Forwarded",
                 "Destination", "X-Forward-To", "X-Upstream", "Proxy-Host", "Location", "Referer"):  # fmt: skip
        value = f"host={authority}" if name == "Forwarded" else f"http://{authority}/"
        heads.append(f"GET /good/a HTTP/1.1\r\nHost: portal.example\r\n{name}: {value}")
    statuses = [ask(box, head) for head in heads]
    assert canary.heard() == 0
    assert not {200, 101} & set(statuses[len(TARGETS) + 6 : len(TARGETS) + 9]), "CONNECT"
    assert set(statuses) <= {0, 200, 400, 403, 404, 405, 421, 501, 502}
    # What did go up went to the one origin, as a path of its own.
    for connection in origin.connections[n_connections:]:
        for asked in connection.asked:
            assert asked.target.startswith(b"/")
            named = {name.lower(): value for name, value in asked.fields}
            assert named[b"host"] == b"127.0.0.1:%d" % origin.port


def test_nobody_follows_what_an_origin_points_to(canary: Canary, tmp_path: Path) -> None:
    """Redirects go to the viewer, links, refreshes and challenges too."""
    places = [f"http://127.0.0.1:{canary.port}/x", f"//[::1]:{canary.port}/", f"http://localhost:{canary.port}"]
    fields = "".join(
        f"{name}: {value % place}\r\n"
        for place in places
        for name, value in (
            ("Location", "%s"), ("Content-Location", "%s"), ("Refresh", "0; url=%s"), ("Link", "<%s>; rel=preload"),
            ("Alt-Svc", 'h2="%s"'), ("X-Accel-Redirect", "%s"), ("X-Sendfile", "%s"), ("X-Reproxy-URL", "%s"),
            ("SourceMap", "%s"), ("Report-To", '{"endpoints": [{"url": "%s"}]}'), ("NEL", "%s"),
        )
    )  # fmt: skip
    statuses = [200, 201, 300, 301, 302, 303, 305, 307, 308, 401]
    tail = f"X\r\nContent-Length: 1\r\nConnection: close\r\nCache-Control: max-age=60\r\n{fields}\r\nx".encode()
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(10)

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connected = server.accept()[0]
                    with connected:
                        status = connected.recv(65536).split()[1].removeprefix(b"/")
                        connected.sendall(b"HTTP/1.1 %b %b" % (status, tail))

        threading.Thread(target=serve, daemon=True).start()
        policy = policy_for(f"http://127.0.0.1:{server.getsockname()[1]}")
        policy["origins"]["portal"] = {**policy["origins"]["media"], "hosts": ["portal.example"], "profile": "generic"}
        with RunningBox(tmp_path, json.loads(json.dumps(policy))) as box:
            for host, method in ((HOST, "GET"), (HOST, "HEAD"), ("portal.example", "GET"), ("portal.example", "POST")):
                for status in statuses:
                    response = box.get(f"/{status}", "Content-Length: 0", host=host, method=method)
                    assert response.status == status
                    assert response.fields["x-sendfile"].startswith("http://127.0.0.1"), "it is the viewer's to follow"
    assert canary.heard() == 0


# -- names -------------------------------------------------------------------------------------------------------------

V4 = ["127.0.0.1", "127.1.2.3", "0.0.0.0", "0.0.0.1", "169.254.169.254", "255.255.255.255", "224.0.0.1"]
V6 = ["::1", "::", "::ffff:127.0.0.1", "::127.0.0.1", "::ffff:0:127.0.0.1", "64:ff9b::7f00:1", "64:ff9b:1::7f00:1",
      "2002:7f00:1::", "2001:0:7f00:1::", "fe80::1", "ff02::1", "::ffff:a9fe:a9fe", "64:ff9b::a9fe:a9fe"]  # fmt: skip


class Resolver:
    """A name server whose answers are in the names: a-IP, c-IP (by way of a CNAME), r-IP (harmless the first time)."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind((address, 53))
        self.n_asked: dict[tuple[bytes, int], int] = {}
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                data, peer = self.socket.recvfrom(1500)
                self.socket.sendto(self._answer(data), peer)

    def _answer(self, data: bytes) -> bytes:
        length = data[12]
        label = data[13 : 13 + length].lower()
        end = data.index(0, 12) + 5
        kind = struct.unpack("!H", data[end - 4 : end - 2])[0]
        how, _, number = label.partition(b"-")
        address = bytes.fromhex(number.decode()) if how in (b"a", b"c", b"r") else b""
        key = (label, kind)
        self.n_asked[key] = self.n_asked.get(key, 0) + 1
        if how == b"r" and self.n_asked[key] == 1:
            address = bytes([192, 0, 2, 9]) if len(address) == 4 else bytes.fromhex("20010db8" + "0" * 23 + "9")
        records = []
        if (len(address), kind) in ((4, 1), (16, 28)):
            name = b"\xc0\x0c"
            if how == b"c":
                target = b"\x05alias\x04test\x00"
                records.append(name + struct.pack("!HHIH", 5, 1, 0, len(target)) + target)
                name = target
            records.append(name + struct.pack("!HHIH", kind, 1, 0, len(address)) + address)
        header = data[:2] + struct.pack("!HHHHH", 0x8580, 1, len(records), 0, 0)
        return header + data[12:end] + b"".join(records)


class ResolvingBox(RunningBox):
    """The daemon with a resolv.conf of its own."""

    def spawn(self) -> RunningBox:
        self.work.mkdir(parents=True, exist_ok=True)
        (self.work / "resolv.conf").write_text("nameserver 127.77.0.53\noptions timeout:2 attempts:1\n")
        self.write_policy(self.policy)
        script = 'mount --bind "$1" /etc/resolv.conf && shift && exec "$@"'
        command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh",
                   str(self.work / "resolv.conf"), str(PROJECT / ".venv/bin/acceleratord"),
                   "--policy", str(self.policy_path), "--state-dir", str(self.state)]  # fmt: skip
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(command, cwd=self.work, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        return self


@pytest.mark.slow  # ten seconds: what a name resolved to is used for five
def test_no_answer_of_a_resolver_leads_to_this_machine(tmp_path: Path, canary: Canary) -> None:
    """Real look-ups by the C library: addresses, by a CNAME, rebinding, and spellings that it takes for literals."""
    if os.geteuid() or shutil.which("unshare") is None:
        pytest.skip("needs root, for a resolv.conf of its own")
    own = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with own, contextlib.suppress(OSError):
        own.connect(("192.0.2.1", 9))
        V4.append(own.getsockname()[0])
    names = [f"{how}-{ip_address(ip).packed.hex()}.test" for ip in dict.fromkeys((*V4, *V6)) for how in "ac"]
    rebinding = [
        f"r-{ip_address(ip).packed.hex()}.test" for ip in ("127.0.0.1", "169.254.169.254", "::1", "::ffff:7f00:1")
    ]
    spelled = [
        host
        for host in HOSTS
        if host.isascii() and not host.startswith("[") and host.strip("0.") and host != "127.0.0.1"
    ]
    resolver = Resolver("127.77.0.53")
    origins: dict[str, Any] = {}
    refused = 0
    from accelerator.policy import check_texts  # as `accelctl policy check` does

    for number, name in enumerate([*names, *rebinding, *spelled]):
        row = {
            "from": [f"http://{name}:{canary.port}"],
            "hosts": [f"n{number}.example"],
            "timeouts": {"connect": "200ms"},
        }
        text = json.dumps({"version": 1, "site": {"name": "a"}, "origins": {"x": row}}).encode()
        _, problems = check_texts([("p", text)])
        if any(not problem.is_warning for problem in problems):
            refused += 1
        elif not is_literal(name):
            origins[f"n{number}"] = row
    policy = policy_for("http://192.0.2.1")
    policy["origins"] = origins
    assert len(origins) >= 60
    assert refused >= 10, "spellings that no policy may have"
    with ResolvingBox(tmp_path, policy) as box:
        for row in origins.values():
            assert box.get("/x", host=row["hosts"][0]).status in (502, 503, 504), row
        # Rebinding: an answer is used for 5 s, then another one is asked for.
        again = [row["hosts"][0] for row in origins.values() if row["from"][0].startswith("http://r-")]
        assert len(again) == len(rebinding)

        def is_asked_twice() -> bool:
            for host in again:
                assert box.get("/x", host=host).status in (502, 503, 504)
            return all(max(n for (label, _), n in resolver.n_asked.items() if label == name.split(".")[0].encode()) > 1
                       for name in rebinding)  # fmt: skip

        wait_for(is_asked_twice, seconds=20, what="each rebinding name was asked for again")
        events = box.control("events")["events"]
        assert canary.heard() == 0
        assert any("loopback" in str(event) for event in events)
    assert resolver.n_asked, "the box did ask this resolver"
    resolver.socket.close()


def is_literal(host: str) -> bool:
    """A literal is the policy's own word and allowed: not what is tested here."""
    try:
        ip_address(host.strip("[]"))
    except ValueError:
        return False
    return True
