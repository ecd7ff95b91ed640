"""Viewers come to the real daemon by each lane: own pages, URL prefix, explicit proxy, CONNECT; and their commands."""

from __future__ import annotations

import csv
import io
import json
import socket
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from running_box import HOST, PROJECT, RunningBox, policy_for

PLAYLIST = (
    b"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXT-X-PLAYLIST-TYPE:VOD\n#EXTINF:2,\n1.ts\n#EXTINF:2,\n/vod/2.ts\n"
    b"#EXTINF:2,\nhttp://video.example/vod/3.ts?t=1\n#EXTINF:2,\nhttp://other.example/4.ts\n#EXT-X-ENDLIST\n"
)
FILES = {
    "/vod/a.m3u8": ("application/vnd.apple.mpegurl", "max-age=60", PLAYLIST),
    "/vod/none.m3u8": ("application/vnd.apple.mpegurl", "no-store", PLAYLIST),
    "/vod/1.ts": ("video/mp2t", "max-age=60", b"x" * 100_000),
    "/proxy.pac": ("text/plain", "max-age=60", b"the origin's own"),
}


class Origin:
    """Counts what it is asked for."""

    def __init__(self) -> None:
        asked = self.asked = list[str]()
        self.heads = heads = list[str]()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                asked.append(self.path)
                heads.append(str(self.headers))
                kind, control, body = FILES.get(self.path.partition("?")[0], ("text/plain", "no-store", b""))
                self.send_response(200 if body else 404)
                for name, value in (("Content-Type", kind), ("Cache-Control", control), ("ETag", '"v1"')):
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

            def do_HEAD(self) -> None:
                self.do_GET()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self._thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))

    def __enter__(self) -> Origin:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self._thread.join()
        self.server.server_close()


@pytest.fixture(scope="module")
def origin() -> Iterator[Origin]:
    with Origin() as running:
        yield running


@pytest.fixture(scope="module")
def echo() -> Iterator[int]:
    """The port of a server that sends back what it gets."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(60)

        def serve() -> None:
            while True:
                try:
                    taken, _ = listening.accept()
                except OSError:
                    return
                with taken:
                    while data := taken.recv(65536):
                        taken.sendall(data)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listening.getsockname()[1]
        listening.shutdown(socket.SHUT_RDWR)
        thread.join()


STEERING: dict[str, Any] = {
    "hosts": ["box.example"],
    "prefix": True,
    "proxy": {"address": "box.example:8080"},
    "document": {"pathways": ["lyon", "cdn"], "clone_of": "cdn", "host": HOST},
}


@pytest.fixture(scope="module")
def box(origin: Origin, echo: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningBox]:
    policy = policy_for(origin.url, steering={**STEERING, "connect": [f"127.0.0.1:{echo}"]})
    policy["origins"]["other"] = {"from": [origin.url], "hosts": ["sub.example"], "paths": ["/only"]}
    with RunningBox(tmp_path_factory.mktemp("box"), policy) as running:
        yield running
        figures = running.stats()
        parts = ("hits", "misses", "collapsed", "passed", "refused")
        assert figures["requests"] == sum(figures[name] for name in parts)


def ask(box: RunningBox, target: str, *options: str, host: str = "box.example") -> tuple[int, dict[str, str], bytes]:
    address, port = box.address()
    url = target if target.startswith("http") else f"http://{address}:{port}{target}"
    command = ["curl", "-sS", "--max-time", "20", "-i", "-H", f"Host: {host}", *options, url]
    out = subprocess.run(command, capture_output=True, check=True).stdout
    head, _, body = out.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    return int(lines[0].split()[1]), {k.lower(): v for k, _, v in (line.partition(": ") for line in lines[1:])}, body


def test_the_pac_is_served_under_both_its_names(box: RunningBox) -> None:
    before, objects = box.stats(), box.stats()["objects"]
    for path in ("/proxy.pac", "/wpad.dat", "/proxy.pac?x=1"):
        status, fields, body = ask(box, path)
        assert (status, fields["content-type"]) == (200, "application/x-ns-proxy-autoconfig")
        assert b"FindProxyForURL" in body
        assert b'"video.example": 1' in body
    assert box.grown(before)["own_pages"] == 3
    assert box.stats()["objects"] == objects


def test_an_origins_own_pac_is_its_own_through_the_proxy(box: RunningBox) -> None:
    address, port = box.address()
    out = subprocess.run(
        ["curl", "-sS", "-x", f"http://{address}:{port}", f"http://{HOST}/proxy.pac"], capture_output=True, check=True
    ).stdout
    assert out == b"the origin's own"


def test_the_steering_document_is_what_the_command_prints(box: RunningBox) -> None:
    status, fields, body = ask(box, "/.well-known/accelerator/steering?_HLS_pathway=cdn&_HLS_throughput=9")
    assert (status, fields["access-control-allow-origin"]) == (200, "*")
    assert json.loads(body) == {
        "VERSION": 1,
        "TTL": 60,
        "PATHWAY-PRIORITY": ["lyon", "cdn"],
        "PATHWAY-CLONES": [{"BASE-ID": "cdn", "ID": "lyon", "URI-REPLACEMENT": {"HOST": HOST}}],
    }
    assert accelctl(box, "steering", "document").encode() == body
    assert accelctl(box, "steering", "pac").encode() == ask(box, "/proxy.pac")[2]


def test_a_first_document_lets_players_begin_elsewhere_and_sends_them_to_the_other(box: RunningBox) -> None:
    """hls.js stood still at its start where it was sent to the box at once: decision 0282."""
    whole = json.loads(accelctl(box, "steering", "document"))
    path = "/.well-known/accelerator/steering"
    status, fields, body = ask(box, f"{path}/first?_HLS_pathway=cdn")
    assert (status, fields["access-control-allow-origin"]) == (200, "*")
    assert json.loads(body) == whole | {"TTL": 5, "RELOAD-URI": path, "PATHWAY-PRIORITY": ["cdn", "lyon"]}
    printed = json.loads(accelctl(box, "steering", "document", "--first", "lyon.json"))
    assert printed == json.loads(body) | {"RELOAD-URI": "lyon.json"}
    assert ask(box, f"{path}/firs")[0] == ask(box, f"{path}/first/x")[0] == 404


def test_a_prefix_is_the_origins_path_and_its_objects_are_shared(box: RunningBox, origin: Origin) -> None:
    n = len(origin.asked)
    assert ask(box, "/media/vod/1.ts?by=prefix")[2] == FILES["/vod/1.ts"][2]
    assert origin.asked[n:] == ["/vod/1.ts?by=prefix"]
    status, fields, _ = ask(box, "/vod/1.ts?by=prefix", host=HOST)
    assert (status, "hit" in fields["cache-status"]) == (200, True)
    status, fields, body = ask(box, "/media/vod/1.ts?by=prefix", "-r", "10-19")
    assert (status, len(body), fields["content-range"]) == (206, 10, "bytes 10-19/100000")
    assert len(origin.asked) == n + 1
    assert "box.example" not in origin.heads[-1]


@pytest.mark.parametrize(
    ("target", "status"), [("/media", 404), ("/nobody/a", 404), ("/other/vod/1.ts", 404), ("/mediax/vod/1.ts", 404)]
)
def test_what_is_no_prefix_is_nothing(box: RunningBox, target: str, status: int) -> None:
    assert ask(box, target)[0] == status


def test_unknown_hosts_stay_unknown(box: RunningBox) -> None:
    assert ask(box, "/media/vod/1.ts", host="nobody.example")[0] == 421


def test_a_playlist_by_prefix_is_written_anew_and_never_stored(box: RunningBox, origin: Origin) -> None:
    n, objects = len(origin.asked), box.stats()["objects"]
    for _ in range(3):
        status, fields, body = ask(box, "/media/vod/a.m3u8", "-H", "Accept-Encoding: gzip", "-r", "0-9")
        assert status == 200
        assert body == PLAYLIST.replace(b"\n/vod/2.ts", b"\n/media/vod/2.ts").replace(
            b"http://video.example/vod", b"/media/vod"
        )
        assert int(fields["content-length"]) == len(body)
        assert "etag" not in fields
    assert ask(box, "/vod/a.m3u8", host=HOST)[2] == PLAYLIST, "others get the origin's own"
    assert origin.asked[n:] == ["/vod/a.m3u8"]
    assert box.stats()["objects"] == objects + 1
    assert ask(box, "/media/vod/a.m3u8", "-I")[1]["content-length"] == str(len(body))
    box.accelctl("cache", "purge", f"http://{HOST}/vod/a.m3u8")
    assert ask(box, "/media/vod/a.m3u8")[2] == body
    assert origin.asked[n:] == ["/vod/a.m3u8"] * 2


def test_a_playlist_that_may_not_be_stored_is_written_anew_each_time(box: RunningBox, origin: Origin) -> None:
    n = len(origin.asked)
    for _ in range(2):
        assert b"/media/vod/2.ts" in ask(box, "/media/vod/none.m3u8")[2]
    assert len(origin.asked) == n + 2
    assert ask(box, "/media/vod/missing.m3u8")[0] == 404


def connect(box: RunningBox, authority: str) -> tuple[socket.socket, bytes]:
    made = socket.create_connection(box.address(), timeout=10)
    made.sendall(f"CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\nearly ".encode())
    head = b""
    while b"\r\n\r\n" not in head:
        data = made.recv(65536)
        assert data, head
        head += data
    return made, head


def test_connect_passes_bytes_on_where_policy_allows_it(box: RunningBox, echo: int) -> None:
    made, head = connect(box, f"127.0.0.1:{echo}")
    with made:
        assert head.startswith(b"HTTP/1.1 200 ")
        made.sendall(b"and late")
        got = head.partition(b"\r\n\r\n")[2]
        while len(got) < 14:
            got += made.recv(100)
        assert got == b"early and late"


@pytest.mark.parametrize("authority", ["127.0.0.1:1", "elsewhere.example:443", "127.0.0.1:80800"])
def test_connect_to_anything_else_is_refused(box: RunningBox, authority: str) -> None:
    made, head = connect(box, authority)
    made.close()
    assert head.split()[1] in (b"501", b"400")


@pytest.mark.parametrize(
    "head",
    [
        b"CONNECT a.example HTTP/1.1\r\nHost: a.example\r\n\r\n",
        b"CONNECT a.example:443 HTTP/1.1\r\nHost: b.example:443\r\n\r\n",
        b"CONNECT a.example:443 HTTP/1.1\r\nHost: a.example:443\r\nContent-Length: 5\r\n\r\n",
        b"CONNECT a.example:443 HTTP/1.1\r\nHost: a.example:443\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"CONNECT http://a.example:443/ HTTP/1.1\r\nHost: a.example\r\n\r\n",
        b"CONNECT a.example:443 HTTP/1.1\r\n\r\n",
        b"CONNECT  HTTP/1.1\r\n\r\n",
    ],
)
def test_a_connect_that_can_be_read_in_two_ways_is_refused(box: RunningBox, head: bytes) -> None:
    with socket.create_connection(box.address(), timeout=10) as made:
        made.sendall(head)
        assert made.recv(65536).startswith(b"HTTP/1.1 400 ")


def accelctl(box: RunningBox, *words: str, code: int = 0) -> str:
    command = [str(PROJECT / ".venv/bin/accelctl"), "--socket", str(box.state / "control.sock"), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == code, (done.stdout, done.stderr)
    return done.stdout


def test_each_lane_is_tried_from_a_viewers_point_of_view(box: RunningBox, tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    _, port = box.address()
    text = box.policy_path.read_text().replace("127.0.0.1:0", f"127.0.0.1:{port}", 1)
    policy.write_text(text.replace("box.example:8080", f"127.0.0.1:{port}"))
    for lane in ("hosts", "prefix", "proxy", "document", "connect"):
        said = json.loads(accelctl(
            box, "--json", "steering", "test", lane, "--policy", str(policy), "--box", "127.0.0.1",
            "--page", "http://portal.example",
        ))  # fmt: skip
        assert said["ok"], (lane, said)
        assert said["checked"]
    said = json.loads(accelctl(
        box, "--json", "steering", "test", "hosts", "--policy", str(policy), "--box", "127.0.0.1", code=1
    ))  # fmt: skip
    assert "mixed-content" in {each["code"] for each in said["findings"]}
    said = json.loads(accelctl(box, "--json", "steering", "test", "hosts", "--policy", str(policy), code=1))
    assert "name" in {each["code"] for each in said["findings"]}, "the name has no address here"
    text = policy.read_text().replace(f"127.0.0.1:{port}", "127.0.0.1:1")
    policy.write_text(text)
    said = json.loads(accelctl(
        box, "--json", "steering", "test", "hosts", "--policy", str(policy), "--box", "127.0.0.1", code=1
    ))  # fmt: skip
    assert {"firewall"} == {each["code"] for each in said["findings"]}


def test_the_flow_matrix_in_three_forms(box: RunningBox) -> None:
    example = str(PROJECT / "config/examples/conference-room.yaml")
    rows = json.loads(accelctl(box, "--json", "steering", "matrix", "--policy", example))["flows"]
    assert {"source", "destination", "protocol", "port", "direction", "why"} == rows[0].keys()
    assert {"igmp", "udp", "tcp"} <= {row["protocol"] for row in rows}
    text = accelctl(box, "steering", "matrix", "--policy", example, "--format", "csv")
    assert list(csv.DictReader(io.StringIO(text))) == rows
    text = accelctl(box, "steering", "matrix", "--policy", example)
    assert len(text.splitlines()) == len(rows) + 1


@pytest.mark.parametrize("router", ["cisco-ios-xe", "fortigate", "juniper", "linux", "mikrotik"])
def test_recipes_have_the_box_its_probe_and_its_viewers(box: RunningBox, router: str) -> None:
    example = str(PROJECT / "config/examples/two-origins-zones.yaml")
    text = accelctl(box, "steering", "recipes", router, "--policy", example, "--box", "10.12.0.5")
    assert "/.well-known/accelerator/health" in text
    assert text.count("10.12.0.5") >= 3


@pytest.mark.parametrize("router", ["cisco-ios-xe", "fortigate", "juniper", "linux", "mikrotik"])
def test_recipes_send_only_what_the_box_takes(box: RunningBox, router: str) -> None:
    example = str(PROJECT / "config/examples/one-arm-intercept.yaml")
    text = accelctl(box, "steering", "recipes", router, "--policy", example)
    assert "10.0.0.0" in text, "the destinations of interception"
    assert "10.12.4.5" in text


def test_the_recipe_for_linux_is_taken_by_the_shell_and_by_nft(box: RunningBox, tmp_path: Path) -> None:
    example = str(PROJECT / "config/examples/one-arm-intercept.yaml")
    text = accelctl(
        box, "steering", "recipes", "linux", "--policy", example, "--box", "10.12.0.5", "--interface", "eth0"
    )
    subprocess.run(["sh", "-n"], input=text, text=True, check=True)
    rules = text.partition("<<'RULES'\n")[2].partition("RULES\n")[0]
    check = ["unshare", "--net", "nft", "--check", "-f", "-"]
    done = subprocess.run(check, input=rules, capture_output=True, text=True, check=False)
    if "Operation not permitted" in done.stderr:
        pytest.skip("nft needs root")
    assert done.returncode == 0, done.stderr


def test_recipes_are_of_one_family_and_never_for_everybody_instead(tmp_path: Path) -> None:
    """A policy with networks of the other family only would have sent everybody's HTTP, to anywhere."""
    policy = tmp_path / "policy.yaml"
    policy.write_text("""
version: 1
site: {name: lyon}
zones: {desks: {nets: [NETS]}}
listen: {lan: {address: "10.12.1.5:80"}, lan6: {address: "[fd12:1::5]:8080"}}
origins: {media: {from: ["http://10.0.0.2"], hosts: [media.example]}}
steering: {intercept: {interfaces: [eth0], destinations: [10.0.0.0/24, "fd00::/64"]}}
""".replace("NETS", "10.12.0.0/24"))

    def ask(*words: str) -> subprocess.CompletedProcess[str]:
        command = [str(PROJECT / ".venv/bin/accelctl"), "steering", "recipes", *words, "--policy", str(policy)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    assert "10.12.0.0/24" in ask("linux").stdout
    refused = ask("linux", "--box", "fd12:1::5")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "zones has no IPv6 network" in refused.stderr
    policy.write_text(policy.read_text().replace("10.12.0.0/24", '"fd12::/64"'))
    assert "zones has no IPv4 network" in ask("linux").stderr
    made = ask("linux", "--box", "fd12:1::5").stdout
    assert "http://[fd12:1::5]:8080/" in made
    assert "ip6 saddr { fd12::/64 } ip6 daddr { fd00::/64 } tcp dport 80" in made
    assert "10." not in made
    policy.write_text(policy.read_text().replace('"fd12::/64"', '10.12.0.0/24, "fd12::/64"'))
    for router in ("cisco-ios-xe", "fortigate", "juniper", "mikrotik"):
        refused = ask(router, "--box", "fd12:1::5")
        assert refused.stderr.count("\n") == 1
        assert "is for IPv4" in refused.stderr
    assert "--interface is the name" in ask("linux", "--interface", "lan0; reboot").stderr
