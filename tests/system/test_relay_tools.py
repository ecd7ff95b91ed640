"""Relays between tools of others: GStreamer (retransmission, FEC, jitter buffer), multicat, packets forged by scapy."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import netns
import pytest
from relay_box import Places, Receiver, RelayBox, Sender, groups, is_whole, sending
from running_box import wait_for
from test_relay_intakes import channel

from ext.relay_wire import TsMeter

REASON = netns.why_not() or ("needs nft" if shutil.which("nft") is None else None)
pytestmark = [pytest.mark.netns, pytest.mark.skipif(REASON is not None, reason=str(REASON))]


def needs(*programs: str) -> pytest.MarkDecorator:
    missing = [each for each in programs if shutil.which(each) is None]
    return pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)}")


@pytest.fixture
def places() -> Iterator[Places]:
    with netns.Topology() as topology:
        yield topology.proxy(1)


def lose(namespace: netns.Namespace, rule: str) -> None:
    namespace.run("nft", "add table ip loss")
    namespace.run("nft", "add chain ip loss in { type filter hook prerouting priority -300; }")
    namespace.run("nft", f"add rule ip loss in {rule} counter drop")


def gst(namespace: netns.Namespace, *elements: str) -> subprocess.Popen[bytes]:
    return namespace.popen("gst-launch-1.0", "-q", *" ".join(elements).split(), stderr=subprocess.PIPE)


MEDIA = "udpsrc port=7000 address=127.0.0.1 caps=video/mpegts,systemstream=true,packetsize=188 ! rtpmp2tpay pt=33 !"
RTX = 'rtprtxsend payload-type-map="application/x-rtp-pt-map,33=(uint)97" max-size-packets=2000 !'
TO_BOX = "udpsink host=10.0.0.1 sync=false async=false bind-address=10.0.0.2 port="
RECEIVER = (
    "udpsrc address=239.2.1.1 port=5004 multicast-iface=eth0 "
    "caps=application/x-rtp,media=(string)video,clock-rate=(int)90000,encoding-name=(string)MP2T,payload=(int)33 ! "
    "rtpjitterbuffer latency=100 ! rtpmp2tdepay ! filesink async=false buffer-mode=unbuffered location="
)
SCREEN = [{"group": "239.2.1.1:5004", "interface": "lan0"}]


def errors(path: Path) -> tuple[int, int]:
    """(transport packets, continuity errors) of a recording."""
    meter = TsMeter()
    data = path.read_bytes()
    meter.add(data[: len(data) // 188 * 188])
    known = meter.known()
    assert known["damaged"] == 0
    return known["packets"] or 0, known["continuity_errors"] or 0


def recorded(
    places: Places, box: RelayBox, sender: subprocess.Popen[bytes], receiver: Sequence[str], path: Path
) -> dict[str, int]:
    """What the relay counted while a channel of 6 s went from `sender` to `receiver`, which wrote `path`."""
    source, _, (screens,) = places
    screen = screens.popen(*receiver, stderr=subprocess.DEVNULL)
    with sending(sender, screen):
        wait_for(lambda: "239.2.1.1" in groups(screens, "eth0"), seconds=20)
        with sending(channel(source, 7000, 6)):
            wait_for(lambda: box.relay()["state"] == "live", seconds=20)
            known = wait_for(lambda: box.relay()["state"] == "silent" and box.relay(), seconds=30)
        found: dict[str, int] = known["counters"]
        # The tools write behind: until their files rest.
        sizes: list[int] = [-1]
        wait_for(lambda: sizes.append(path.stat().st_size if path.exists() else 0) or len(sizes) > 200)
    return found


@needs("gst-launch-1.0", "ffmpeg")
@pytest.mark.slow
def test_gstreamer_is_asked_for_what_was_lost(places: Places, tmp_path: Path) -> None:
    """RFC 4588: 1 % of everything towards us is lost, the answers too. Slow: 6 s of video, and its silence."""
    source, namespace, _ = places
    lose(namespace, "udp dport 5004 numgen random mod 100 < 1")
    hall = {
        "from": ["rtp://10.0.0.1:5004"], "sources": ["10.0.0.2"], "retransmit": {"from": "10.0.0.2:5005"},
        "reorder": "500ms", "to": SCREEN,
    }  # fmt: skip
    path = tmp_path / "screen.ts"
    with RelayBox(namespace, tmp_path, hall=hall) as box:
        sender = gst(
            source, "rtpsession name=s rtp-profile=avpf", MEDIA, RTX, "s.send_rtp_sink s.send_rtp_src !",
            f"{TO_BOX}5004", "udpsrc port=5005 ! s.recv_rtcp_sink",
        )  # fmt: skip
        counters = recorded(places, box, sender, ("gst-launch-1.0", "-q", *f"{RECEIVER}{path}".split()), path)
    assert counters["repaired"] >= 3, counters
    assert counters["asked"] >= counters["retransmitted"] >= counters["repaired"]
    assert (counters["lost"], counters["ts_continuity"]) == (0, 0), counters
    n_packets, n_errors = errors(path)
    assert n_packets > 5000
    assert n_errors == 0


@needs("gst-launch-1.0", "ffmpeg")
@pytest.mark.slow
def test_gstreamers_fec_mends_one_percent(places: Places, tmp_path: Path) -> None:
    """SMPTE 2022-1, L=8 D=5, columns and rows. Slow: 6 s of video, and its silence."""
    source, namespace, _ = places
    lose(namespace, "udp dport { 5004, 5006, 5008 } numgen random mod 100 < 1")
    hall = {"from": ["rtp://10.0.0.1:5004"], "fec": "both", "to": SCREEN}
    path = tmp_path / "screen.ts"
    with RelayBox(namespace, tmp_path, hall=hall) as box:
        sender = gst(
            source, MEDIA.replace("pt=33", "pt=33 ssrc=0"), "rtpst2022-1-fecenc name=f columns=8 rows=5 pt=96",
            f"f.src ! {TO_BOX}5004 f.fec_0 ! {TO_BOX}5006 f.fec_1 ! {TO_BOX}5008",
        )  # fmt: skip
        counters = recorded(places, box, sender, ("gst-launch-1.0", "-q", *f"{RECEIVER}{path}".split()), path)
    assert counters["repaired"] >= 3, counters
    assert (counters["lost"], counters["ts_continuity"], counters["repair_refused"]) == (0, 0, 0), counters
    assert errors(path)[1] == 0


@needs("multicat", "ffmpeg")
@pytest.mark.slow
def test_multicat_before_and_behind(places: Places, tmp_path: Path) -> None:
    source, namespace, _ = places
    path = tmp_path / "screen.ts"
    with RelayBox(namespace, tmp_path, hall={"from": ["rtp://10.0.0.1:5004"], "to": SCREEN}) as box:
        sender = source.popen("multicat", "-u", "@127.0.0.1:7000", "10.0.0.1:5004", stderr=subprocess.DEVNULL)
        receiver = ("multicat", "-U", "@239.2.1.1:5004/ifaddr=10.1.0.2", str(path))
        counters = recorded(places, box, sender, receiver, path)
    assert counters["packets"] > 800
    assert (counters["lost"], counters["ts_continuity"], counters["drop_malformed"]) == (0, 0, 0), counters
    n_packets, n_errors = errors(path)
    assert n_packets > 5000
    assert n_errors == 0


FORGED = """
import sys
from scapy.all import Ether, IP, UDP, Raw, fragment, sendp
to = {"dst": "239.1.1.1"}
good = bytes.fromhex("8021000000000000000000070000000047") + bytes(180)
mac = "01:00:5e:01:01:01"
def send(packets):
    sendp([Ether(dst=mac) / each for each in packets], iface="eth0", verbose=False)
send(IP(src="10.0.0.99", ttl=4, **to) / UDP(sport=5004, dport=5004) / Raw(good) for _ in range(50))
send(IP(src="10.0.0.2", ttl=4, **to) / UDP(sport=5004, dport=5004) / Raw(good[:n]) for n in range(1, 12))
send(IP(src="10.0.0.2", ttl=4, **to) / UDP(sport=5004, dport=5004) / Raw(b"\\x40" + good[1:]) for _ in range(50))
send(IP(src="10.0.0.2", ttl=4, **to) / UDP(sport=5004, dport=5004, chksum=1) / Raw(good) for _ in range(50))
whole = IP(src="10.0.0.2", ttl=4, **to) / UDP(sport=5004, dport=5004) / Raw(good + bytes(60_000))
send(fragment(whole, fragsize=1400))
send(fragment(whole, fragsize=1400)[:-1])
# Our own address from outside: a martian, which the kernel takes away.
send([IP(src="10.0.0.1", ttl=4, **to) / UDP(sport=5004, dport=5004) / Raw(good)])
print("done")
"""


def test_forged_packets_do_not_touch_the_stream(places: Places, tmp_path: Path) -> None:
    """Spoofed senders, cut and malformed RTP, false checksums, 60 KB in fragments, one of them missing."""
    pytest.importorskip("scapy")
    source, namespace, (screens,) = places
    hall = {"from": ["rtp://239.1.1.1:5004"], "interface": "wan", "sources": ["10.0.0.2"], "to": SCREEN}
    with (
        RelayBox(namespace, tmp_path, hall=hall) as box,
        Receiver(netns.join(screens, "eth0", "239.2.1.1", 5004)) as screen,
        Sender(source, [("239.1.1.1", 5004)], 500) as sender,
    ):
        wait_for(lambda: screen.datagrams)
        forging = source.popen(
            str(Path(__file__).resolve().parents[2] / ".venv/bin/python"), "-c", FORGED, stdout=subprocess.PIPE
        )
        said, _ = forging.communicate(timeout=60)
        assert said == b"done\n"
        wait_for(lambda: box.relay()["counters"]["drop_oversize"] == 1)
        n_sent = sender.stop()
        wait_for(lambda: len(screen.datagrams) == n_sent)
        known = box.relay()["counters"]
    assert is_whole(screen.numbers, n_sent)
    assert set(screen.sources) == {7}
    assert (known["drop_source"], known["drop_malformed"]) == (50, 61), known
    assert known["lost"] == known["restarts"] == 0
