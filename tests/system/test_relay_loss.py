"""Relays by policy over lossy networks: two legs, repair packets, ffmpeg before and behind."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import netns
import pytest
from relay_box import Places, RelayBox, groups, unicast
from running_box import wait_for

REASON = netns.why_not()
pytestmark = [pytest.mark.netns, pytest.mark.skipif(REASON is not None, reason=str(REASON))]


@pytest.fixture
def places() -> Iterator[tuple[netns.Namespace, netns.Namespace, list[netns.Namespace]]]:
    with netns.Topology() as topology:
        yield topology.proxy(2)


def channel(to: str, *, repair: str = "", form: str = "rtp_mpegts") -> list[str]:
    return (
        f"ffmpeg -v error -re -f lavfi -i testsrc2=s=320x240:r=25 -c:v libx264 -preset ultrafast -g 25 -b:v 1500k "
        f"-minrate 1500k -maxrate 1500k -bufsize 300k -t 5 -muxrate 2000k -f {form} {repair} {to}"
    ).split()


def lose(namespace: netns.Namespace, rules: Sequence[str]) -> None:
    namespace.run("nft", "add table ip loss")
    namespace.run("nft", "add chain ip loss in { type filter hook prerouting priority -300; }")
    for rule in rules:
        namespace.run("nft", f"add rule ip loss in {rule} counter drop")


@pytest.mark.skipif(shutil.which("ffmpeg") is None or shutil.which("nft") is None, reason="needs ffmpeg and nft")
@pytest.mark.parametrize("scheme", ["rtp", "udp"])
def test_loss_on_both_legs_is_not_seen_by_ffmpeg(scheme: str, places: Places, tmp_path: Path) -> None:
    """SMPTE 2022-7, 1 % lost on each leg: ffmpeg behind us decodes without a continuity error. `udp`: no RTP."""
    source, namespace, (screens, _) = places
    hall = {
        "from": [f"{scheme}://239.1.1.1:5004", f"{scheme}://239.1.1.2:5004"], "interface": "wan",
        "to": [{"group": "239.2.1.1:5004", "interface": "lan0", "rtp": "strip"}],
    }  # fmt: skip
    # A packet that both legs lose is lost; these two never drop the same one of the first 9,700.
    lose(namespace, [f"ip daddr 239.1.1.{leg} udp dport 5004 numgen inc mod {every} == {at}"
                     for leg, every, at in ((1, 100, 40), (2, 97, 90))])  # fmt: skip
    source.ip("route", "add", "239.0.0.0/8", "dev", "eth0")
    with RelayBox(namespace, tmp_path, hall=hall) as box:
        screen = screens.popen(
            "ffmpeg", "-v", "warning", "-t", "3", "-i", "udp://239.2.1.1:5004?localaddr=10.1.0.2&timeout=8000000",
            "-f", "null", "-", stderr=subprocess.PIPE,
        )  # fmt: skip
        wait_for(lambda: "239.2.1.1" in groups(screens, "eth0"))
        legs = [unicast(source, "127.0.0.1", 0)]
        split = legs[0].getsockname()[1]
        out = netns.sender(source, "eth0")
        legs[0].settimeout(1)
        to = f"{scheme}://127.0.0.1:{split}{'?pkt_size=1316' if scheme == 'udp' else ''}"
        command = channel(to, form="mpegts" if scheme == "udp" else "rtp_mpegts")
        sending = source.popen(*command, stderr=subprocess.PIPE)
        try:
            while sending.poll() is None:
                try:
                    data = legs[0].recv(2000)
                except TimeoutError:
                    continue
                for group in ("239.1.1.1", "239.1.1.2"):
                    out.sendto(data, (group, 5004))
        finally:
            sending.communicate(timeout=30)
            legs[0].close()
            out.close()
        _, said = screen.communicate(timeout=30)
        known = box.relay()
        counters = known["counters"]
    assert all(leg["lost"] >= 3 for leg in known["legs"]), known["legs"]
    assert counters["lost"] == counters["ts_continuity"] == 0
    assert screen.returncode == 0
    for trouble in (b"Continuity", b"corrupt", b"error", b"missed"):
        assert trouble not in said, said.decode()


@pytest.mark.skipif(shutil.which("ffmpeg") is None or shutil.which("nft") is None, reason="needs ffmpeg and nft")
def test_repair_packets_by_policy(places: Places, tmp_path: Path) -> None:
    """SMPTE 2022-1, L=8 D=5, one packet in 20 lost: repaired, all of it."""
    source, namespace, _ = places
    hall = {"from": ["rtp://239.1.1.1:5004"], "interface": "wan", "fec": "both", "to": [{"unicast": ["10.1.0.2:6000"]}]}
    lose(namespace, ["udp dport 5004 numgen inc mod 20 == 7"])
    with RelayBox(namespace, tmp_path, hall=hall) as box:
        to = "rtp://239.1.1.1:5004?localaddr=10.0.0.2&ttl=4"
        done = source.popen(*channel(to, repair="-fec prompeg=l=8:d=5"), stderr=subprocess.PIPE)
        done.communicate(timeout=30)
        known = wait_for(lambda: box.relay()["state"] == "silent" and box.relay())
    counters = known["counters"]
    assert counters["repaired"] > 30
    assert counters["repaired"] >= 0.9 * (counters["repaired"] + counters["lost"]), counters
    assert counters["repair_refused"] == counters["restarts"] == 0
