"""The examples of docs/relays.md as they stand, from the encoder to the screen: a conference room and a signage wall.
Slow: players look at each output for two seconds."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import netns
import pytest
import yaml
from relay_box import Receiver, RelayBox, groups, sending, unicast
from running_box import PROJECT, wait_for

sys.path.append(str(Path(__file__).resolve().parents[1] / "dataplane"))
from ext.relay_wire import TsMeter

REASON = netns.why_not() or next((f"needs {name}" for name in ("ffmpeg", "curl") if shutil.which(name) is None), "")
pytestmark = [pytest.mark.netns, pytest.mark.slow, pytest.mark.skipif(bool(REASON), reason=str(REASON))]

PICTURE = (
    "ffmpeg -v error -re -f lavfi -i testsrc2=s=320x240:r=25 -c:v libx264 -preset ultrafast -tune zerolatency -g 25 "
    "-b:v 800k"
)
AF41, TTL = 34, 1


def host(topology: netns.Topology, box: netns.Namespace, name: str, net: str, own: str, *hosts: str) -> netns.Namespace:
    """On a link of the box's: `own` is the box's address there, the first of `hosts` its own."""
    made = topology.namespace(name)
    topology.wire(made, "eth0", box, name)
    box.ip("addr", "add", f"{own}/{net}", "dev", name)
    for address in hosts:
        made.ip("addr", "add", f"{address}/{net}", "dev", "eth0")
    made.ip("route", "add", "default", "via", own)
    return made


def example(box: netns.Namespace, work: Path, name: str) -> RelayBox:
    made = RelayBox(box, work)
    made.policy = yaml.safe_load((PROJECT / "config" / "examples" / f"{name}.yaml").read_text())
    return made


@contextmanager
def twice(source: netns.Namespace, port: int, address: str, to: tuple[str, str]) -> Iterator[None]:
    """The encoder: each of its packets to two groups."""
    heard, out = unicast(source, "127.0.0.1", port), netns.sender(source, "eth0")
    out.bind((address, 0))
    heard.settimeout(0.05)
    stop = threading.Event()

    def run() -> None:
        while not stop.is_set():
            try:
                data = heard.recv(2000)
            except TimeoutError:
                continue
            for group in to:
                out.sendto(data, (group, 5004))

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        heard.close()
        out.close()


def marks(namespace: netns.Namespace, group: str) -> tuple[int, int]:
    """(DSCP, TTL) of a packet to `group`, off the wire."""
    wire = namespace.call(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800)))
    with wire:
        wire.settimeout(10)
        while True:
            data = wire.recv(2000)
            if data[16:20] == socket.inet_aton(group) and data[9] == socket.IPPROTO_UDP:
                return data[1] >> 2, data[8]


def decoded(namespace: netns.Namespace, url: str) -> str:
    """What ffmpeg complains of while it decodes two seconds."""
    command = ["ffmpeg", "-v", "warning", "-t", "2", "-i", url, "-f", "null", "-"]
    command = ["ip", "netns", "exec", namespace.name, *command]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_the_conference_room(tmp_path: Path) -> None:
    with netns.Topology() as topology:
        box = topology.namespace("box")
        headquarters = host(topology, box, "eth0", "24", "10.1.0.254", "10.1.0.1")
        room = host(topology, box, "vlan30", "24", "10.12.30.1", "10.12.30.20")
        wifi = host(topology, box, "wlan8", "22", "10.12.8.1", "10.12.8.41")
        running = example(box, tmp_path, "conference-room")
        with (
            running, twice(headquarters, 7000, "10.1.0.1", ("239.10.1.1", "239.10.1.2")),
            sending(headquarters.popen(*PICTURE.split(), "-f", "rtp_mpegts", "rtp://127.0.0.1:7000")),
            Receiver(unicast(room, "10.12.30.20", 5004)) as set_top_box,
            Receiver(unicast(wifi, "10.12.8.41", 5004)) as tablet,
        ):  # fmt: skip
            wait_for(lambda: running.relay()["state"] == "live")
            assert marks(room, "239.20.1.1") == (AF41, TTL)
            assert "missed" not in decoded(room, "rtp://239.20.1.1:5004"), "as docs/relays.md writes it"
            assert set_top_box.datagrams
            assert all(each[0] == 0x47 for each in set_top_box.datagrams), "no RTP for it"
            assert not tablet.datagrams
            assert running.accelctl("relay", "add-receiver", "hall", "10.12.8.41:5004").returncode == 0
            wait_for(lambda: len(tablet.datagrams) > 50)
            assert running.accelctl("relay", "remove-receiver", "hall", "10.12.8.41:5004").returncode == 0
            wait_for(lambda: running.relay()["subscribed"] == 0)
            for viewer, gateway in ((room, "10.12.30.1"), (wifi, "10.12.8.1")):
                assert "Continuity" not in decoded(viewer, f"http://{gateway}:8080/relay/hall.ts")
            refused = headquarters.run(
                "curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "http://10.1.0.254:8080/relay/hall.ts"
            )
            assert refused == "403", "headquarters is in no zone of that output"
            legs = running.relay()["legs"]
            assert all(leg["joined"] and leg["first"] for leg in legs[:1])
            # One network fails: nobody sees it.
            before = running.relay()["counters"]
            box.run("nft", "add table ip cut")
            box.run("nft", "add chain ip cut in { type filter hook prerouting priority -300; }")
            box.run("nft", "add rule ip cut in ip daddr 239.10.1.1 drop")
            assert "missed" not in decoded(room, "rtp://239.20.1.1:5004")
            after = running.relay()["counters"]
            assert (after["lost"], after["ts_continuity"]) == (before["lost"], before["ts_continuity"])


def test_the_signage_wall(tmp_path: Path) -> None:
    with netns.Topology() as topology:
        box = topology.namespace("box")
        source = host(topology, box, "eth0", "24", "10.1.0.254", "10.1.0.7")
        wall = host(topology, box, "vlan40", "24", "10.40.0.1", "10.40.0.2")
        running = example(box, tmp_path, "signage-wall")
        options = "localaddr=10.1.0.7&ttl=4"
        first = f"{PICTURE} -f rtp_mpegts -fec prompeg=l=8:d=5 rtp://239.10.2.1:5004?{options}"
        second = f"{PICTURE} -f rtp_mpegts rtp://239.10.2.9:5004?{options}"
        news = f"{PICTURE} -f mpegts udp://232.10.2.2:1234?{options}&pkt_size=1316"
        encoder = source.popen(*first.split())
        with running, sending(encoder, source.popen(*second.split()), source.popen(*news.split())):
            for group in ("239.10.2.1", "239.10.2.9", "232.10.2.2"):
                wait_for(lambda group=group: group in groups(box, "eth0"))  # type: ignore[misc]
            wait_for(lambda: running.relay("wall")["counters"]["fec_packets"] > 0)
            assert "missed" not in decoded(wall, "rtp://239.20.2.1:5004")
            assert "Continuity" not in decoded(wall, "http://10.40.0.1:8080/relay/news.ts")
            with Receiver(netns.join(wall, "eth0", "239.20.2.2", 1234)) as screen:
                wait_for(lambda: len(screen.datagrams) > 50)
                meter = TsMeter()
                meter.add(b"".join(screen.datagrams))
                assert meter.known()["continuity_errors"] == 0
            encoder.kill()
            wait_for(lambda: running.events("relay-switched"))
            n = running.relay("wall")["counters"]["packets"]
            wait_for(lambda: running.relay("wall")["counters"]["packets"] > n + 50)
