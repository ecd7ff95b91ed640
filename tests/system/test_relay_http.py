"""Relays over HTTP in a running box: ffmpeg sends into a namespace; curl, ffmpeg and plain sockets read, by HTTP/1.1,
TLS and HTTP/2, from three zones. One sender and one box serve all tests here but those that change the box."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import netns
import pytest
from relay_box import groups, policy_of
from running_box import RunningBox, wait_for
from test_tls_listeners import Certified
from test_upgrade import UpgradedBox

sys.path.append(str(Path(__file__).resolve().parents[1] / "dataplane"))
from ext.relay_wire import TsMeter, ts_of

REASON = netns.why_not() or next((f"needs {name}" for name in ("ffmpeg", "curl") if shutil.which(name) is None), "")
pytestmark = [pytest.mark.netns, pytest.mark.skipif(bool(REASON), reason=str(REASON))]

TS = 188
PATHS = ("/relay", "/udp", "/rtp", "/elsewhere")
BOX = "10.1.0.1"
# The same program to three places: a group that the policy names, one by its source, and one that only udpxy brings.
TARGETS = (
    r"[f=rtp_mpegts]rtp\://239.1.1.1\:5004?ttl=4&localaddr=10.0.0.2|"
    r"[f=mpegts]udp\://239.1.1.2\:1234?ttl=4&localaddr=10.0.0.2&pkt_size=1316|"
    r"[f=mpegts]udp\://239.9.1.1\:1234?ttl=4&localaddr=10.0.0.2&pkt_size=1316"
)
CHANNEL = (
    "ffmpeg -v error -re -f lavfi -i testsrc2=s=320x240:r=25 -f lavfi -i sine -map 0 -map 1 -c:v libx264 "
    f"-preset ultrafast -tune zerolatency -g 25 -b:v 800k -c:a aac -f tee {TARGETS}"
).split()


def policy(**more: Any) -> dict[str, Any]:
    return policy_of(
        zones={
            "screens": {"nets": ["10.1.0.0/24"]}, "desks": {"nets": ["10.1.1.0/24"]}, "own": {"nets": ["127.0.0.0/8"]},
        },
        listen={
            "lan": {"address": "0.0.0.0:8080", "http2": "cleartext"},
            "lan-tls": {"address": "0.0.0.0:8443", "tls": "site"},
        },
        logs={"access": {"enabled": True}},
        origins={"media": {"from": ["http://10.0.0.2:9"], "hosts": ["video.example"]}},
        relays={
            "hall": {
                "from": ["rtp://10.0.0.2@239.1.1.1:5004"], "interface": "wan", "linger": "0s",
                "to": [{"http": "/relay/hall.ts", "zones": ["screens", "own"]}],
            },
            "news": {
                "from": ["udp://239.1.1.2:1234"], "interface": "wan", "linger": "0s",
                "to": [{"http": "/relay/news.ts", "window": "1MiB"}],
            },
            "quiet": {
                "from": ["udp://239.1.1.3:1234"], "interface": "wan", "linger": "0s",
                "to": [{"http": "/relay/quiet.ts"}],
            },
        },
        udpxy={"groups": ["239.9.1.0/24"], "interface": "wan", "channels": 1, "linger": "0s", "zones": ["screens"]},
        **more,
    )  # fmt: skip


class Site:
    """The sender, the box and two links of viewers."""

    def __init__(self, topology: netns.Topology, work: Path) -> None:
        self.source, self.namespace, (self.screens, self.desks) = topology.proxy(2)
        self.certified = Certified(work / "state" / "credentials")
        self.certified.put("site", BOX)
        self.box = RunningBox(work, policy())
        self.box.prefix = ["ip", "netns", "exec", self.namespace.name]

    def connect(self, target: str, *, method: str = "GET", receive_bytes: int = 0) -> socket.socket:
        def opened() -> socket.socket:
            made = socket.socket()
            if receive_bytes:
                made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
            made.settimeout(15)
            made.connect((BOX, 8080))
            made.sendall(f"{method} {target} HTTP/1.1\r\nHost: {BOX}:8080\r\n\r\n".encode())
            return made

        return self.screens.call(opened)

    def curl(self, viewer: netns.Namespace, *words: str, url: str = f"http://{BOX}:8080") -> tuple[int, bytes]:
        """Status and body; of an endless one what came until --max-time."""
        options = ["curl", "-sS", "-o", "-", "-w", "%{stderr}%{http_code}"]
        options += [url + each if each.startswith(PATHS) else each for each in words]
        done = subprocess.run(
            ["ip", "netns", "exec", viewer.name, *options],
            capture_output=True, timeout=30, check=False,
        )  # fmt: skip
        return int(done.stderr[-3:]), done.stdout or done.stderr

    def relay(self, name: str) -> dict[str, Any]:
        return self.box.control("relay show", name=name)

    def breaks(self, name: str) -> int:
        """Packets out of continuity as they came to the box: a loaded machine's network loses some."""
        found: int = self.relay(name)["counters"]["ts_continuity"]
        return found

    def is_joined(self, group: str) -> bool:
        return group in groups(self.namespace, "wan")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with netns.Topology() as topology:
        made = Site(topology, tmp_path_factory.mktemp("relay-http"))
        with made.box:
            sender = made.source.popen(*CHANNEL)
            try:
                yield made
            finally:
                sender.kill()
                sender.wait()


def read_some(connected: socket.socket, n: int) -> tuple[bytes, bytes]:
    """The head, and at least `n` bytes of body."""
    data = b""
    while b"\r\n\r\n" not in data:
        more = connected.recv(65_536)
        assert more, data
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    while len(body) < n:
        more = connected.recv(65_536)
        assert more, f"ended after {len(body)} bytes"
        body += more
    return head, body


def known_of(data: bytes) -> dict[str, Any]:
    """What a transport stream says of itself; whole packets are looked at, as it is cut where the reader left."""
    meter = TsMeter()
    meter.add(data[: len(data) // TS * TS])
    return meter.known()


def is_clean(data: bytes, breaks: int) -> bool:
    """No packet is torn, and none is missing that came to the box: `breaks` were seen there."""
    known = known_of(data)
    return known["damaged"] == 0 and known["continuity_errors"] <= breaks


def begins_at_a_key_frame(data: bytes) -> bool:
    """PAT, PMT, and the video's random access point."""
    known = known_of(data)
    pids = [(data[at + 1] << 8 | data[at + 2]) & 0x1FFF for at in range(0, 3 * TS, TS)]
    is_random_access = bool(data[2 * TS + 3] & 0x20 and data[2 * TS + 5] & 0x40)
    return pids == [0, known["pmt_pid"], known["video_pid"]] and is_random_access


def test_a_viewer_begins_at_a_key_frame_and_misses_nothing(site: Site) -> None:
    before, breaks = site.box.stats(), site.breaks("hall")
    with site.connect("/relay/hall.ts") as viewer:
        head, body = read_some(viewer, 150_000)
        assert head.startswith(b"HTTP/1.1 200 OK\r\n")
        assert b"Content-Type: video/mp2t" in head
        assert b"Cache-Status: test; fwd=bypass" in head
        assert b"Connection: close" in head
        assert b"Content-Length" not in head
        assert begins_at_a_key_frame(body)
        assert is_clean(body, site.breaks("hall") - breaks)
        row = wait_for(lambda: (found := site.relay("hall"))["viewers"] == 1 and found)
        assert row["to"][0]["bytes"] >= len(body)
    wait_for(lambda: site.relay("hall")["viewers"] == 0)
    grown = site.box.grown(before)
    assert (grown["requests"], grown["passed"], grown["relay_readers"]) == (1, 1, 1)
    line = wait_for(lambda: next(iter((site.box.state / "logs").glob("access*.log")), None))
    wait_for(lambda: '"/relay/hall.ts"' in line.read_text(), what="the access log's line at the end")


def test_ffmpeg_decodes_it_without_an_error(site: Site) -> None:
    for _ in range(4):
        breaks = site.breaks("hall")
        done = subprocess.run(
            ["ip", "netns", "exec", site.screens.name, "ffmpeg", "-v", "warning", "-xerror", "-i",
             f"http://{BOX}:8080/relay/hall.ts", "-t", "2", "-f", "null", "-"],
            capture_output=True, text=True, timeout=30, check=False,
        )  # fmt: skip
        if site.breaks("hall") == breaks:
            break
    assert (done.returncode, done.stderr) == (0, "")


def test_a_group_is_joined_for_a_get_and_left_after_it(site: Site) -> None:
    assert not site.is_joined("239.1.1.2")
    with site.connect("/relay/news.ts") as viewer:
        read_some(viewer, 20_000)
        assert site.is_joined("239.1.1.2")
    wait_for(lambda: not site.is_joined("239.1.1.2"), what="left when the last viewer has gone")


def test_heads_and_probes_join_nothing(site: Site) -> None:
    for path in ("/relay/quiet.ts", "/relay/hall.ts", "/udp/239.9.1.7:1234/"):
        status, body = site.curl(site.screens, "-I", path)
        assert (status, body.count(b"video/mp2t")) == (200, 1), path
    assert site.curl(site.screens, "-X", "OPTIONS", "/relay/quiet.ts")[0] == 204
    assert site.curl(site.screens, "--data", "x", "/relay/quiet.ts")[0] == 405
    assert not site.is_joined("239.1.1.3")
    assert not site.is_joined("239.9.1.7")


def test_three_zones_get_what_is_theirs(site: Site) -> None:
    before = site.box.stats()
    assert site.curl(site.desks, "/relay/hall.ts") == (403, b"403 Forbidden\n")
    assert site.curl(site.desks, "/udp/239.9.1.1:1234/")[0] == 403
    assert site.box.grown(before)["refused_zone"] == 2
    assert site.curl(site.desks, "--max-time", "1", "/relay/news.ts")[0] == 200
    assert site.curl(site.namespace, "--max-time", "1", "/relay/hall.ts", url="http://127.0.0.1:8080")[0] == 200
    assert site.curl(site.namespace, "/udp/239.9.1.1:1234/", url="http://127.0.0.1:8080")[0] == 403


def test_http2_and_tls(site: Site, tmp_path: Path) -> None:
    ca = tmp_path / "ca.pem"
    site.certified.ca.cert_pem.write_to_path(str(ca))
    over_tls = f"https://{BOX}:8443"
    for options, url in (
        (("--http2-prior-knowledge",), f"http://{BOX}:8080"),
        (("--cacert", str(ca), "--http1.1"), over_tls),
        (("--cacert", str(ca), "--http2"), over_tls),
    ):
        breaks = site.breaks("hall")
        status, body = site.curl(site.screens, *options, "--max-time", "2", "/relay/hall.ts", url=url)
        assert status == 200, (options, body)
        assert len(body) > 50_000, options
        assert begins_at_a_key_frame(body), options
        assert is_clean(body, site.breaks("hall") - breaks), options


def test_a_path_below_is_none_of_ours_and_unknown_hosts_stay_unknown(site: Site) -> None:
    assert site.curl(site.screens, "/relay/hall.ts/more")[0] == 404
    assert site.curl(site.screens, "/relay/hall.ts?token=x", "-I")[0] == 200
    assert site.curl(site.screens, "/elsewhere")[0] == 421
    assert site.curl(site.screens, "-H", "Host: video.example", "-I", "/relay/hall.ts")[0] == 200


def test_udpxy_brings_listed_groups_and_no_other(site: Site) -> None:
    with site.connect("/udp/239.9.1.1:1234/") as viewer:
        head, body = read_some(viewer, 50_000)
        assert head.startswith(b"HTTP/1.1 200 OK")
        assert begins_at_a_key_frame(body)
        assert site.is_joined("239.9.1.1")
        # The one channel that the policy allows is taken; the same one serves others.
        assert site.curl(site.screens, "/udp/239.9.1.2:1234/")[0] == 503
        assert site.curl(site.screens, "--max-time", "1", "/udp/239.9.1.1:1234")[0] == 200
        assert [row["name"] for row in site.box.control("relay ls")["relays"]][-1] == "udp/239.9.1.1:1234"
    wait_for(lambda: len(site.box.control("relay ls")["relays"]) == 3, what="the channel has ended")
    wait_for(lambda: not site.is_joined("239.9.1.1"))
    for path, status in (
        ("/udp/239.1.1.2:1234/", 403),  # a group of the LAN's that isn't listed
        ("/udp/10.0.0.2:1234/", 403),
        ("/udp/239.9.1.1/", 404),
        ("/udp/239.9.1.1:99999/", 404),
        ("/rtp/../etc/passwd", 404),
        ("/udp", 404),
    ):
        assert site.curl(site.screens, "--path-as-is", path)[0] == status, path


def test_readers_of_an_unchanged_relay_go_on_over_a_reload(site: Site) -> None:
    with site.connect("/relay/hall.ts") as viewer, site.connect("/relay/news.ts") as other:
        _, body = read_some(viewer, 50_000)
        read_some(other, 50_000)
        before, breaks = site.box.policy, site.breaks("hall")
        changed = policy()
        changed["relays"]["news"]["to"] = [{"http": "/relay/other.ts"}]
        assert "policy taken over" in site.box.reload(policy=changed)
        try:
            end = time.monotonic() + 15
            while other.recv(1 << 20):
                assert time.monotonic() < end, "its path is gone, and so are its readers"
            while len(body) < 300_000:
                more = viewer.recv(1 << 20)
                assert more
                body += more
            assert is_clean(body, site.breaks("hall") - breaks)
        finally:
            site.box.reload(policy=before)


def test_a_viewer_out_of_its_zone_by_a_reload_reads_no_more(site: Site) -> None:
    with site.connect("/relay/hall.ts") as viewer:
        read_some(viewer, 20_000)
        before = site.box.policy
        changed = policy()
        changed["relays"]["hall"]["to"][0]["zones"] = ["own"]
        site.box.reload(policy=changed)
        try:
            while viewer.recv(1 << 20):
                pass
        finally:
            site.box.reload(policy=before)


@pytest.mark.slow
def test_a_relay_without_signal_is_answered_504(site: Site) -> None:
    begun = time.monotonic()
    assert site.curl(site.screens, "/relay/quiet.ts")[0] == 504
    assert 8 < time.monotonic() - begun < 20
    wait_for(lambda: not site.is_joined("239.1.1.3"))


def test_what_operators_see(site: Site) -> None:
    with site.connect("/relay/hall.ts") as viewer:
        read_some(viewer, 10_000)
        page = site.box.accelctl("relay", "show", "hall").stdout
        assert "/relay/hall.ts" in page
        assert "1 over HTTP" in page
        m3u = site.box.accelctl("relay", "playlist").stdout
        assert "http://THIS-BOX:8080/relay/hall.ts" in m3u
        assert "https://THIS-BOX:8443/relay/news.ts" in m3u


def test_a_drain_ends_readers_between_two_packets(site: Site) -> None:
    """The last test: the box ends here."""
    with site.connect("/relay/hall.ts") as viewer:
        _, body = read_some(viewer, 20_000)
        site.box.signal(signal.SIGTERM)
        while more := viewer.recv(1 << 20):
            body += more
        assert len(body) % TS == 0
        assert known_of(body)["damaged"] == 0
    assert site.box.exit_code(seconds=10) == 0


def clocks(data: bytes) -> list[int]:
    """The clock references of a transport stream, at 27 MHz."""
    found = (ts_of(data[at : at + TS]) for at in range(0, len(data) // TS * TS, TS))
    return [each["pcr"] for each in found if isinstance(each, dict) and each["has_pcr"]]


def test_an_upgrade_ends_readers_cleanly_and_they_go_on_at_the_next_key_frame(tmp_path: Path) -> None:
    """A player that asks again misses what is between the old process' end and the next key frame: here 1 s of pictures
    at most, and the moment of the hand-over."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    relays = {"hall": {"from": [f"udp://127.0.0.1:{port}"], "to": [{"http": "/relay/hall.ts"}]}}
    box = UpgradedBox(tmp_path, policy_of(relays=relays))
    box.former = []
    picture = "ffmpeg -v error -re -f lavfi -i testsrc2=s=320x240:r=25 -c:v libx264 -preset ultrafast -tune zerolatency"
    sender = f"{picture} -g 25 -f mpegts -pcr_period 40 udp://127.0.0.1:{port}?pkt_size=1316".split()

    def ask() -> socket.socket:
        made = socket.create_connection(box.address(), timeout=15)
        made.sendall(b"GET /relay/hall.ts HTTP/1.1\r\nHost: box\r\n\r\n")
        return made

    with box, subprocess.Popen(sender) as channel:
        try:
            with ask() as viewer:
                _, before = read_some(viewer, 50_000)
                box.upgrade()
                while more := viewer.recv(1 << 20):
                    before += more
            with ask() as viewer:
                head, after = read_some(viewer, 50_000)
        finally:
            channel.kill()
    assert head.startswith(b"HTTP/1.1 200 ")
    assert len(before) % TS == 0
    assert is_clean(before, 0), "the end is between two packets, and nothing was missed until then"
    assert is_clean(after, 0)
    assert begins_at_a_key_frame(after)
    assert -2.0 < (clocks(after)[0] - clocks(before)[-1]) / 27e6 < 2.0
