"""What senders, links and time did to relays, or could: each test is named after what happened."""

from __future__ import annotations

import socket
import struct
import threading
import time

import netns
import pytest
from relay_packets import rtp, transport
from relay_rig import UDP_SEGMENT, RelayRig, destination, udp
from test_relay_input import MS, START, bench, numbers, packet

from ext.relay_plane import DESTINATION_BYTES

PACKETS_OF_50_DAYS = 1 << 32
TRAINS_OF_188 = [(socket.SOL_UDP, UDP_SEGMENT, struct.pack("=H", 188))]
YEAR_NS = 365 * 86_400 * 10**9


@pytest.mark.rfc("RFC 3550 A.3", "what a leg lost, also while it was away for long")
def test_a_leg_that_was_away_for_5_000_packets_lost_them() -> None:
    b = bench(2, window_packets=1024, wait_ns=100 * MS)
    for i in range(6500):
        b.take(0, packet(i), START + i * MS)
        if i < 500 or i > 5500:
            b.take(1, packet(i), START + i * MS)
        if i == 6000:  # and later single ones again
            b.take(0, packet(i), START + i * MS)
    assert int(b.legs[1, 3]) == 5001
    assert int(b.legs[0, 3]) == 0


def test_a_leg_s_loss_is_still_counted_after_four_thousand_million_packets() -> None:
    """32 bits of extended sequence are 50 days of a 10 Mbit/s channel; from then on nothing was counted as lost."""
    b = bench(window_packets=64)
    at, n = 0, 0
    while at < PACKETS_OF_50_DAYS + 100_000:
        at += 2999  # what is still in line
        n += 1
        b.take(0, packet(at % 65_536), START + n)
    lost = int(b.legs[0, 3])
    assert lost == at - 2999 - (n - 1)
    b.take(0, packet((at + 2) % 65_536), START + n + 1)
    assert int(b.legs[0, 3]) == lost + 1


def test_after_four_years_the_clock_of_what_has_no_time_goes_on() -> None:
    """Nanoseconds times 90,000 had left 63 bits after 3.2: time stamps jumped there, and UBSan says so here."""
    b = bench()
    for i in range(100):
        now = 4 * YEAR_NS + i * 10 * MS
        b.take(0, packet(i, timestamp=(now // 1000 * 9 // 100) % 2**32), now)
    assert b.known()["jitter_ns"] < MS
    b = bench(is_rtp=False)
    assert b.take(0, transport(5, 0), 4 * YEAR_NS) == [transport(5, 0)]


def test_rtcp_that_comes_first_does_not_make_a_stream_opaque_for_good() -> None:
    b = bench(is_rtp=False)
    b.take(0, b"\x80\xc8" + bytes(26), START)
    assert b.known()["format"] == 3
    for i in range(20):
        assert numbers(b.take(0, packet(i), START + i * MS)) == [i]
    assert b.known()["format"] == 1
    assert b.take(0, packet(19), START + 20 * MS) == []  # it has numbers again
    t = bench(is_rtp=False)
    t.take(0, b"noise", START)
    for i in range(20):
        assert t.take(0, transport(5, i % 16), START + i * MS) == [transport(5, i % 16)]
    assert t.known()["format"] == 2


def test_what_looks_like_rtp_now_and_then_stays_opaque() -> None:
    b = bench(is_rtp=False)
    b.take(0, b"noise", START)
    for i in range(200):
        b.take(0, packet(i), START + i * MS)
        if i % 7 == 6:
            b.take(0, b"noise", START + i * MS)
    assert b.known()["format"] == 3
    assert b.known()["packets"] == 200 + 200 // 7 + 1


@pytest.mark.parametrize("noise", [b"\x80\xc8" + bytes(26), b"noise", rtp(7, b"p", kind=96)])
def test_noise_on_a_dead_input_does_not_keep_its_backup_away(noise: bytes) -> None:
    b = bench(2, mode="backup", failover_ns=500 * MS, payload_type=33)
    for i in range(100):
        b.take(0, packet(i), START + i * 10 * MS)
        b.take(1, packet(i), START + i * 10 * MS)
    found = []
    for i in range(100, 300):
        b.take(0, noise, START + i * 10 * MS)
        found += numbers(b.take(1, packet(i), START + i * 10 * MS))
    assert found == list(range(149, 300))
    assert b.known()["switches"] == 1


@pytest.mark.parametrize("noise", [b"\x80\xc8" + bytes(26), b"noise", rtp(7, b"p", kind=96)])
def test_noise_on_a_backup_does_not_bring_it_up(noise: bytes) -> None:
    b = bench(2, mode="backup", failover_ns=500 * MS, payload_type=33)
    b.take(0, packet(0), START)
    for i in range(60):
        b.take(1, noise, START + i * 10 * MS)
    assert numbers(b.take(0, packet(1), START + 600 * MS)) == [1]
    assert b.known()["switches"] == 0
    assert b.known()["drop_standby"] == 60


def test_a_sender_far_above_what_can_be_sent_holds_no_change_back() -> None:
    """Passes of ten seconds and more: who was taken away went on getting all, and no slot came free."""
    with RelayRig() as rig:
        everyone = destination(rig.open().getsockname()) * 4000
        inputs = [rig.open(gro=True) for _ in range(2)]
        for slot, incoming in enumerate(inputs):
            rig.relay([incoming], [], slot=slot, window_packets=1024, hold_ns=5 * MS)
            rig.plane.set_receivers(slot, [(0, everyone)])
        done = threading.Event()

        def flood() -> None:
            with udp() as sender:
                body = bytes(16 * 188).replace(bytes(188), b"\x47" + bytes(187))
                while not done.wait(0.0005):
                    for incoming in inputs:
                        sender.sendmsg([body * 2], TRAINS_OF_188, 0, incoming.getsockname())

        flooding = threading.Thread(target=flood)
        flooding.start()
        try:
            rig.wait(lambda: rig.output()["drop_backlog"] > 0)
            for n in (3000, 2000):
                rig.plane.set_receivers(1, [(0, everyone[: n * DESTINATION_BYTES])])
                begun_s = time.monotonic()
                rig.wait(lambda: rig.plane.collect() == 0)
                assert time.monotonic() - begun_s < 3
            rig.plane.remove(0)
            begun_s = time.monotonic()
            rig.wait(lambda: rig.plane.collect() == 0)
            assert time.monotonic() - begun_s < 3
        finally:
            done.set()
            flooding.join()


@pytest.mark.skipif(bool(netns.why_not()), reason=str(netns.why_not()))
@pytest.mark.parametrize("size", [1316, 1480])
def test_a_packet_above_the_mtu_or_one_receiver_behind_a_narrow_link_takes_trains_from_nobody_else(size: int) -> None:
    """One pair of 1,480 bytes, or one receiver whose path takes 600, had turned segmentation off for good."""
    with RelayRig() as rig, netns.Topology() as topology:
        box, wide, narrow = (topology.namespace(name) for name in ("box", "wide", "narrow"))
        for other, name, number in ((wide, "wide", 1), (narrow, "narrow", 2)):
            topology.wire(box, name, other, "eth0")
            box.ip("addr", "add", f"10.9.{number}.1/24", "dev", name)
            other.ip("addr", "add", f"10.9.{number}.2/24", "dev", "eth0")
            for each, link in ((box, name), (other, "eth0")):
                each.ip("link", "set", link, "up")
        box.ip("link", "set", "narrow", "mtu", "600")
        receivers = [narrow.call(lambda: udp("10.9.2.2")), wide.call(lambda: udp("10.9.1.2"))]
        out = box.call(lambda: udp("0.0.0.0"))
        rig.sockets += [*receivers, out]
        rig.received = {made: [] for made in receivers}
        chosen = receivers if size == 1316 else receivers[1:]
        incoming = rig.open(gro=True)
        rig.relay([incoming], chosen, output=out, hold_ns=5 * MS, window_packets=1024)
        packets = [packet(i)[:16] + bytes(size - 16) for i in range(32)]
        packets += [packet(i)[:16] + bytes(1300) for i in range(32, 232)]
        for at in range(0, len(packets), 8):
            rig.send(incoming, packets[at : at + 8])
            rig.wait(lambda at=at: all(len(rig.received[made]) >= at + 8 for made in chosen))  # type: ignore[misc]
        assert all(rig.received[made] == packets for made in chosen)
        assert rig.output()["segments"] == 1
        assert rig.output()["trains"] > 10
