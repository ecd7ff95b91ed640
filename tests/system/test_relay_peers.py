"""Relays in namespaces: ffmpeg sends RTP into a lossy network; what comes out is held against what went in."""

from __future__ import annotations

import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import netns
import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "dataplane"))
from relay_rig import destination

from ext.relay_plane import RELAY_COUNTERS, RelayPlane, Settings
from ext.relay_wire import TsMeter, rtp_of

REASON = netns.why_not() or (shutil.which("ffmpeg") is None and "needs ffmpeg") or (
    shutil.which("nft") is None and "needs nft"
)  # fmt: skip
pytestmark = [pytest.mark.netns, pytest.mark.skipif(bool(REASON), reason=str(REASON))]

MS = 1_000_000
SECONDS = 6
CHANNEL = (
    "ffmpeg -v error -re -f lavfi -i testsrc2=s=320x240:r=25 -f lavfi -i sine -c:v libx264 -preset ultrafast -g 25 "
    f"-b:v 1500k -minrate 1500k -maxrate 1500k -bufsize 300k -c:a aac -t {SECONDS} -muxrate 2000k -f rtp_mpegts"
).split()


class Peers:
    """A source and a host with the relay's box between them; what the host received as it came."""

    def __init__(self, topology: netns.Topology) -> None:
        self.source, self.box, (self.host,) = topology.proxy()
        self.plane = RelayPlane(1)
        self.plane.start()
        self.sockets: list[socket.socket] = []
        self.received: list[bytes] = []
        self._done = threading.Event()
        self._reader: threading.Thread | None = None

    def listen(self, group: str, port: int) -> socket.socket:
        made = netns.join(self.box, "wan", group, port)
        made.setblocking(False)
        self.sockets.append(made)
        return made

    def relay(self, settings: Settings, group: str, **output: str | int) -> None:
        """Sends to a group on lan0, which the host joins and records."""
        listening = netns.join(self.host, "eth0", group, 6000)
        listening.settimeout(0.1)
        out = netns.sender(self.box, "lan0")
        self.sockets += [listening, out]

        def read() -> None:
            while not self._done.is_set():
                try:
                    self.received.append(listening.recv(65_536))
                except TimeoutError:
                    continue

        self._reader = threading.Thread(target=read)
        self._reader.start()
        self.plane.add(0, settings)
        self.plane.open_output(0, 0, out.fileno(), **output)  # type: ignore[arg-type]
        self.plane.set_receivers(0, [(0, destination((group, 6000)))])

    def lose(self, rule: str) -> None:
        self.box.run("nft", "add table ip loss")
        self.box.run("nft", "add chain ip loss in { type filter hook prerouting priority -300; }")
        for each in rule.split(";"):
            self.box.run("nft", f"add rule ip loss in {each} counter drop")

    def counters(self) -> dict[str, int]:
        return {name: int(self.plane.relays[0, column]) for column, name, _ in RELAY_COUNTERS}

    def settle(self) -> None:
        """Waits until nothing comes any more."""
        before = -1
        while before != len(self.received):
            before = len(self.received)
            time.sleep(0.5)

    def close(self) -> None:
        self._done.set()
        if self._reader is not None:
            self._reader.join()
        self.plane.close()
        for made in self.sockets:
            made.close()


@pytest.fixture
def peers() -> Iterator[Peers]:
    with netns.Topology() as topology:
        made = Peers(topology)
        try:
            yield made
        finally:
            made.close()


def continuity_errors(datagrams: list[bytes]) -> int:
    meter = TsMeter()
    for data in datagrams:
        meter.add(data)
    known = meter.known()
    assert known["damaged"] == 0
    assert known["packets"]
    return known["continuity_errors"] or 0


def test_ffmpegs_repair_packets_mend_a_lossy_network(peers: Peers) -> None:
    """SMPTE 2022-1, L=8 D=5, 7 % lost at random: at least 80 % of the lost come back."""
    legs = [
        (peers.listen("239.1.1.1", port).fileno(), "media" if port == 5004 else "fec", ())
        for port in (5004, 5006, 5008)
    ]
    settings = Settings(legs=legs, is_rtp=True, wait_ns=400 * MS, window_packets=1024)  # type: ignore[arg-type]
    peers.relay(settings, "239.2.2.2", format="strip")
    peers.lose("udp dport 5004 numgen random mod 100 < 7")
    to = ["-fec", "prompeg=l=8:d=5", "rtp://239.1.1.1:5004?localaddr=10.0.0.2&ttl=4"]
    done = peers.source.popen(*CHANNEL, *to, stderr=subprocess.PIPE)
    _, complaint = done.communicate(timeout=60)
    assert done.returncode == 0, complaint
    peers.settle()
    counters = peers.counters()
    missing = counters["repaired"] + counters["lost"]
    assert missing > 30
    assert counters["repaired"] >= 0.8 * missing, counters
    assert counters["fec_packets"] > 100
    assert counters["repair_refused"] == counters["restarts"] == counters["drop_malformed"] == 0
    assert len(peers.received) == counters["packets"]
    # One lost packet has seven transport packets, of up to three programme parts: never more errors than that.
    assert continuity_errors(peers.received) <= 7 * counters["lost"]


def test_two_lossy_legs_make_a_whole_stream(peers: Peers) -> None:
    """SMPTE 2022-7: 1 % lost on each leg, the second 100 ms behind: what comes out is what ffmpeg sent."""
    legs = [(peers.listen(group, 5004).fileno(), "media", ()) for group in ("239.1.1.1", "239.1.1.2")]
    settings = Settings(legs=legs, is_rtp=True, wait_ns=400 * MS, window_packets=1024)  # type: ignore[arg-type]
    peers.relay(settings, "239.2.2.2", format="strip")
    # The places differ for the first 4,900 packets.
    peers.lose(
        "ip daddr 239.1.1.1 udp dport 5004 numgen inc mod 100 == 40;"
        "ip daddr 239.1.1.2 udp dport 5004 numgen inc mod 97 == 90"
    )
    split = peers.source.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    split.bind(("127.0.0.1", 0))
    split.settimeout(0.01)
    out = netns.sender(peers.source, "eth0")
    peers.sockets += [split, out]
    done = peers.source.popen(*CHANNEL, f"rtp://127.0.0.1:{split.getsockname()[1]}", stderr=subprocess.PIPE)
    behind: list[tuple[float, bytes]] = []
    sent: list[bytes] = []
    try:
        while done.poll() is None or behind:
            while behind and behind[0][0] <= time.monotonic():
                out.sendto(behind.pop(0)[1], ("239.1.1.2", 5004))
            try:
                data = split.recv(65_536)
            except TimeoutError:
                continue
            if isinstance(rtp_of(data), str):  # its RTCP
                continue
            out.sendto(data, ("239.1.1.1", 5004))
            sent.append(data[12:])
            behind.append((time.monotonic() + 0.1, data))
    finally:
        done.communicate(timeout=60)
    peers.settle()
    counters = peers.counters()
    n_sent = len(sent)
    assert 700 < n_sent < 4900
    assert counters["packets"] == n_sent == len(peers.received)
    assert counters["merged"] >= n_sent // 100 - 1
    assert counters["lost"] == counters["late"] == counters["restarts"] == 0
    assert counters["ts_continuity"] == continuity_errors(peers.received) == 0
    assert counters["ts_random_access"] >= SECONDS - 1
    assert peers.received == sent


def test_a_group_over_ipv6(peers: Peers) -> None:
    incoming = netns.join(peers.box, "wan", "ff1e::77", 5004)
    incoming.setblocking(False)
    out = netns.sender(peers.box, "lan0", is_v6=True)
    listening = netns.join(peers.host, "eth0", "ff1e::78", 6000)
    source = netns.sender(peers.source, "eth0", is_v6=True)
    peers.sockets += [incoming, out, listening, source]
    peers.plane.add(0, Settings(legs=[(incoming.fileno(), "media", ())]))
    peers.plane.open_output(0, 0, out.fileno(), hold_ns=0)
    scope = peers.box.index("lan0")
    peers.plane.set_receivers(0, [(0, destination(("ff1e::78", 6000, 0, scope)))])
    packets = [struct.pack("!BBHII", 0x80, 33, i, i, 7) + b"%d" % i for i in range(100)]
    for packet in packets:
        source.sendto(packet, ("ff1e::77", 5004))
        assert listening.recv(2000) == packet
