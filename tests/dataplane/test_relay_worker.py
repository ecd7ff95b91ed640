"""The relay worker on real sockets: what goes in comes out at every receiver, in every form, while receivers change."""

from __future__ import annotations

import random
import socket
import struct
import threading
import time

import pytest
from relay_packets import rtp, stream
from relay_rig import UDP_SEGMENT, RelayRig, destination, udp

from ext.relay_plane import OUTPUTS, RelayPlane, Settings

MS = 1_000_000
SO_NO_CHECK = 11
IP_MULTICAST_ALL = 49
IP_ADD_SOURCE_MEMBERSHIP = 39


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("hold_ns", [0, 5 * MS])
@pytest.mark.parametrize("segments", [True, False])
def test_every_receiver_gets_every_packet_in_order(address: str, hold_ns: int, segments: bool) -> None:
    with RelayRig() as rig:
        incoming = rig.open(address)
        receivers = [rig.receiver(address) for _ in range(5)]
        rig.relay([incoming], receivers, hold_ns=hold_ns, segments=segments)
        packets = stream(500, first=65_400)
        rig.send(incoming, packets)
        rig.wait(lambda: all(len(found) >= 500 for found in rig.received.values()))
        assert all(found == packets for found in rig.received.values())
        output = rig.output()
        assert output["packets"] == 2500
        assert output["bytes"] == sum(map(len, packets)) * 5
        assert output["receivers"] == 5
        assert not any(value for name, value in output.items() if name.startswith("drop"))
        if hold_ns and segments:
            assert output["trains"] > 0
            assert output["calls"] < 500


def test_uneven_packets_are_not_cut_as_if_they_were_even() -> None:
    source = random.Random(3)
    packets = [rtp(i, source.randbytes(source.choice([1, 7, 100, 1000, 1316]))) for i in range(2000)]
    with RelayRig() as rig:
        incoming, receiver = rig.open(), rig.receiver()
        rig.relay([incoming], [receiver, rig.receiver()], hold_ns=2 * MS)
        rig.send(incoming, packets)
        rig.wait(lambda: all(len(found) >= 2000 for found in rig.received.values()))
        assert all(found == packets for found in rig.received.values())


@pytest.mark.parametrize("segments", [True, False])
def test_rtp_is_kept_stripped_or_stamped_by_output(segments: bool) -> None:
    packets = stream(200, first=500)
    with RelayRig() as rig:
        incoming = rig.open()
        kept, stripped, stamped = (rig.receiver() for _ in range(3))
        out = rig.relay([incoming], [kept], hold_ns=2 * MS, segments=segments)
        rig.plane.open_output(0, 1, out.fileno(), format="strip", hold_ns=2 * MS, segments=segments)
        rig.plane.open_output(
            0, 2, out.fileno(), format="stamp", hold_ns=0, ssrc=77, sequence=65_530, segments=segments
        )
        rig.plane.set_receivers(0, [(i, destination(r.getsockname())) for i, r in enumerate((kept, stripped, stamped))])
        rig.send(incoming, packets)
        rig.wait(lambda: all(len(found) >= 200 for found in rig.received.values()))
        assert rig.received[kept] == packets
        assert rig.received[stripped] == [packet[12:] for packet in packets]
        for i, packet in enumerate(rig.received[stamped]):
            head = struct.unpack("!BBHII", packet[:12])
            assert head == (0x80, 33, (65_530 + i) & 0xFFFF, (500 + i) * 900, 77)
            assert packet[12:] == packets[i][12:]


def test_plain_transport_stream_leaves_as_rtp() -> None:
    packets = [packet[12:] for packet in stream(100)]
    with RelayRig() as rig:
        incoming, receiver = rig.open(), rig.receiver()
        rig.relay([incoming], [receiver], format="stamp", ssrc=5)
        rig.send(incoming, packets)
        rig.wait(lambda: len(rig.received[receiver]) >= 100)
        assert [packet[12:] for packet in rig.received[receiver]] == packets
        assert {packet[:2] for packet in rig.received[receiver]} == {b"\x80\x21"}


def test_segmentation_refused_by_the_kernel_falls_back_for_good() -> None:
    """A socket that sends no checksums can't have its datagrams cut: the kernel refuses each train with an error."""
    packets = stream(300)
    with RelayRig() as rig:
        incoming = rig.open()
        out = rig.open()
        out.setsockopt(socket.SOL_SOCKET, SO_NO_CHECK, 1)
        receivers = [rig.receiver() for _ in range(3)]
        rig.relay([incoming], receivers, output=out, hold_ns=5 * MS)
        rig.send(incoming, packets)
        rig.wait(lambda: all(len(found) >= 300 for found in rig.received.values()))
        assert all(found == packets for found in rig.received.values())
        assert rig.output()["segments"] == 2
        assert rig.output()["trains"] == 0
        assert rig.output()["drop_refused"] == rig.output()["drop_size"] == 0


def test_joined_datagrams_are_taken_apart() -> None:
    """UDP GRO: what one sender sent as a train arrives as one buffer."""
    packets = stream(320)
    with RelayRig() as rig:
        incoming, receiver = rig.open(gro=True), rig.receiver()
        rig.relay([incoming], [receiver])
        source = rig.open()
        for at in range(0, 320, 32):
            control = [(socket.SOL_UDP, UDP_SEGMENT, struct.pack("=H", len(packets[0])))]
            source.sendmsg([b"".join(packets[at : at + 32])], control, 0, incoming.getsockname())
            rig.wait(lambda at=at: rig.counters()["datagrams"] >= at + 32)  # type: ignore[misc]
        rig.wait(lambda: len(rig.received[receiver]) >= 320)
        assert rig.received[receiver] == packets


def test_hold_gathers_a_train_and_lets_a_lone_packet_go() -> None:
    with RelayRig() as rig:
        incoming, receiver = rig.open(), rig.receiver()
        rig.relay([incoming], [receiver], hold_ns=30 * MS)
        begun_s = time.monotonic()
        rig.send(incoming, stream(1))
        rig.wait(lambda: len(rig.received[receiver]) == 1)
        assert time.monotonic() - begun_s >= 0.03
        rig.send(incoming, stream(17)[1:])
        rig.wait(lambda: len(rig.received[receiver]) == 17)
        assert rig.output()["calls"] <= 4


def test_a_paced_output_spreads_a_burst() -> None:
    packets = stream(64)
    with RelayRig() as rig:
        incoming, receiver = rig.open(gro=True), rig.receiver()
        rate = 2_000_000  # bytes a second: 64 packets take 42 ms
        rig.relay([incoming], [receiver], pace_bytes_s=rate, train_packets=4, window_packets=1024)
        begun_s = time.monotonic()
        rig.send(incoming, packets)
        rig.wait(lambda: len(rig.received[receiver]) == 64)
        took_s = time.monotonic() - begun_s
        assert took_s >= (64 - 8) * len(packets[0]) / rate
        assert rig.received[receiver] == packets
        assert rig.output()["drop_backlog"] == 0


def test_an_output_that_is_paced_as_measured_spreads_a_burst() -> None:
    """Nothing waits before the rate is known; then a burst takes as long as that says, some 90 ms, and comes whole."""
    packets = stream(1400)
    with RelayRig() as rig:
        incoming, receiver = rig.open(gro=True), rig.receiver()
        rig.relay([incoming], [receiver], is_pace_measured=True, window_packets=1024)
        rig.send(incoming, packets[:20])
        rig.wait(lambda: len(rig.received[receiver]) == 20)
        begun_s, n = time.monotonic(), 20
        while n < 1200:  # for 0.6 s: 2.6 MB/s
            if n - 20 < (time.monotonic() - begun_s) * 2000:
                rig.send(incoming, packets[n : n + 20])
                n += 20
            rig.drain()
        rig.wait(lambda: len(rig.received[receiver]) == 1200)
        begun_s = time.monotonic()
        rig.send(incoming, packets[1200:])
        rig.wait(lambda: len(rig.received[receiver]) == 1400)
        assert time.monotonic() - begun_s > 0.04
        assert rig.received[receiver] == packets
        assert rig.output()["drop_backlog"] == 0


def test_what_a_paced_output_can_not_send_is_dropped_by_name() -> None:
    packets = stream(2000)
    with RelayRig() as rig:
        incoming, slow, quick = rig.open(), rig.receiver(), rig.receiver()
        out = rig.relay([incoming], [slow], pace_bytes_s=20_000, window_packets=256)
        rig.plane.open_output(0, 1, out.fileno(), hold_ns=0)
        rig.plane.set_receivers(0, [(0, destination(slow.getsockname())), (1, destination(quick.getsockname()))])
        rig.send(incoming, packets)
        rig.wait(lambda: len(rig.received[quick]) == 2000)
        assert rig.received[quick] == packets
        assert rig.output()["drop_backlog"] > 1000
        assert rig.output(index=1)["drop_backlog"] == 0


def group_socket(rig: RelayRig, group: str, source: str | None = None) -> socket.socket:
    made = rig.open(group)
    made.setsockopt(socket.IPPROTO_IP, IP_MULTICAST_ALL, 0)
    if source is None:
        made.setsockopt(
            socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, socket.inet_aton(group) + socket.inet_aton("127.0.0.1")
        )
    else:
        members = socket.inet_aton(group) + socket.inet_aton("127.0.0.1") + socket.inet_aton(source)
        made.setsockopt(socket.IPPROTO_IP, IP_ADD_SOURCE_MEMBERSHIP, members)
    return made


def multicast_sender(rig: RelayRig, address: str) -> socket.socket:
    made = rig.open(address)
    made.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1"))
    return made


def test_group_in_and_group_out() -> None:
    packets = stream(100)
    with RelayRig() as rig:
        incoming = group_socket(rig, "239.255.77.1")
        listening = group_socket(rig, "239.255.77.2")
        rig.received[listening] = []
        rig.relay([incoming], [listening], output=multicast_sender(rig, "127.0.0.1"))
        rig.send(incoming, packets, sender=multicast_sender(rig, "127.0.0.1"))
        rig.wait(lambda: len(rig.received[listening]) == 100)
        assert rig.received[listening] == packets


def test_only_the_joined_source_is_heard() -> None:
    """A source-specific join (RFC 4607): the kernel passes this source's packets to the relay and no other's."""
    packets = stream(50)
    with RelayRig() as rig:
        incoming, receiver = group_socket(rig, "232.77.1.1", source="127.0.0.9"), rig.receiver()
        rig.relay([incoming], [receiver])
        stranger = multicast_sender(rig, "127.0.0.8")
        for packet in packets:
            stranger.sendto(packet[:-1] + b"?", incoming.getsockname())
        rig.send(incoming, packets, sender=multicast_sender(rig, "127.0.0.9"))
        rig.wait(lambda: len(rig.received[receiver]) == 50)
        assert rig.received[receiver] == packets
        assert rig.counters()["datagrams"] == 50


def test_senders_that_are_not_listed_and_our_own_outputs_are_not_relayed() -> None:
    v4 = bytes(10) + b"\xff\xff"
    packets = stream(20)
    with RelayRig() as rig:
        incoming, receiver = rig.open(), rig.receiver()
        rig.relay([incoming], [receiver], sources=((v4 + bytes([127, 0, 0, 0]), 125),))
        rig.send(incoming, packets, sender=rig.open("127.0.0.3"))
        listed, stranger, own = rig.counters(), rig.open("127.0.0.12"), rig.open("127.0.0.4")
        assert listed["packets"] == 20
        rig.plane.set_own([(v4 + bytes([127, 0, 0, 4]), own.getsockname()[1]), (bytes(16), 1)])
        for packet in stream(30)[20:]:
            stranger.sendto(packet, incoming.getsockname())
            own.sendto(packet, incoming.getsockname())
        rig.wait(lambda: rig.counters()["drop_source"] == 10 and rig.counters()["drop_own"] == 10)
        assert rig.counters()["packets"] == 20
        assert len(rig.received[receiver]) == 20


def test_an_input_that_is_held_to_a_link_takes_what_came_by_it_to_its_group_alone() -> None:
    packets, loopback = stream(40), socket.if_nametoindex("lo")
    with RelayRig() as rig:
        incoming, receiver, source = rig.open("::1", gro=True), rig.receiver("::1"), rig.open("::1")
        incoming.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        rig.relay([incoming], [receiver], groups=[socket.inet_pton(socket.AF_INET6, "::1")])
        with pytest.raises(ValueError, match="held to an interface"):
            rig.plane.set_link(0, 1, loopback)

        def send(number: int) -> None:
            for packet in packets[10 * number : 10 * number + 10]:
                source.sendto(packet, incoming.getsockname())

        send(0)
        rig.wait(lambda: rig.counters()["drop_link"] == 10)
        rig.plane.set_link(0, 0, loopback)
        send(1)
        rig.wait(lambda: len(rig.received[receiver]) == 10)
        rig.plane.set_link(0, 0, loopback + 1)
        send(2)
        rig.wait(lambda: rig.counters()["drop_link"] == 20)
        assert rig.received[receiver] == packets[10:20]
    with RelayRig() as rig:
        incoming = rig.open("::1")
        incoming.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        rig.relay([incoming], [rig.receiver("::1")], groups=[socket.inet_pton(socket.AF_INET6, "ff15::1")])
        rig.plane.set_link(0, 0, loopback)
        rig.open("::1").sendto(packets[0], incoming.getsockname())
        rig.wait(lambda: rig.counters()["drop_link"] == 1)
    with pytest.raises(ValueError, match="16 bytes"):
        Settings(legs=[(-1, "media", ())], groups=[b"short"])


def test_two_legs_on_two_sockets_are_merged() -> None:
    packets = stream(300)
    with RelayRig() as rig:
        legs, receiver = [rig.open(), rig.open()], rig.receiver()
        rig.relay(legs, [receiver], is_rtp=True, wait_ns=2000 * MS, window_packets=1024)
        for at in range(0, 300, 20):
            rig.send(legs[0], [p for i, p in enumerate(packets[at : at + 20]) if (at + i) % 7 or at + i == 0])
            rig.send(legs[1], [p for i, p in enumerate(packets[at : at + 20]) if (at + i) % 5])
        rig.wait(lambda: len(rig.received[receiver]) >= 291)
        assert rig.counters()["merged"] > 30
        found = rig.received[receiver]
        assert found == packets[: len(found)] or [p for p in packets if p in set(found)] == found


def test_receivers_come_and_go_a_thousand_times_and_the_others_lose_nothing() -> None:
    """Trains at the rate that this machine takes; two receivers stay, and every packet reaches them once."""
    with RelayRig() as rig:
        incoming = rig.open(gro=True)
        stays = [udp(gro=True), udp(gro=True)]
        comes = [rig.receiver() for _ in range(8)]
        rig.sockets += stays
        rig.relay([incoming], stays, window_packets=4096)
        size, trains = 200, 800
        found: list[list[int]] = [[], []]
        done = threading.Event()

        def read(index: int) -> None:
            made = stays[index]
            while True:
                try:
                    data = made.recv(65_536)
                except BlockingIOError:
                    if done.is_set():
                        return
                    time.sleep(0.0002)
                    continue
                assert len(data) % size == 0
                found[index] += [struct.unpack("!I", data[at + 12 : at + 16])[0] for at in range(0, len(data), size)]

        readers = [threading.Thread(target=read, args=(i,)) for i in range(2)]
        changes = 0
        for reader in readers:
            reader.start()

        def change() -> None:
            nonlocal changes
            source = random.Random(9)
            fixed = [destination(made.getsockname()) for made in stays]
            others = [destination(made.getsockname()) for made in comes]
            while changes < 1000 or not sent.is_set():
                chosen = fixed + source.sample(others, source.randrange(len(others) + 1))
                source.shuffle(chosen)
                rig.plane.set_receivers(0, [(0, b"".join(chosen))])
                changes += 1
                time.sleep(0.0001)

        sent = threading.Event()
        changer = threading.Thread(target=change)
        changer.start()
        source = rig.open()
        control = [(socket.SOL_UDP, UDP_SEGMENT, struct.pack("=H", size))]
        for train in range(trains):
            body = b"".join(
                rtp(n, struct.pack("!I", n).ljust(size - 12, b".")) for n in range(train * 32, train * 32 + 32)
            )
            source.sendmsg([body], control, 0, incoming.getsockname())
            if train % 4 == 3:
                rig.wait(lambda train=train: rig.counters()["datagrams"] >= (train + 1) * 32)  # type: ignore[misc]
                rig.wait(lambda train=train: all(len(f) >= (train - 8) * 32 for f in found))  # type: ignore[misc]
        sent.set()
        changer.join()
        rig.wait(lambda: all(len(f) >= trains * 32 for f in found))
        done.set()
        for reader in readers:
            reader.join()
        assert changes >= 1000
        assert found == [list(range(trains * 32))] * 2


def test_relays_come_and_go_under_load() -> None:
    with RelayRig(workers=2) as rig:
        steady, receiver = rig.open(), rig.receiver()
        rig.relay([steady], [receiver])
        source = rig.open()
        sent = 0
        for i in range(200):
            slot = 1 + i % 5
            if i >= 5:
                rig.plane.remove(slot)
            incoming = udp()
            settings = Settings(legs=[(incoming.fileno(), "media", ())])
            rig.plane.add(slot, settings, [incoming])
            rig.plane.open_output(slot, 0, source.fileno(), hold_ns=MS)
            rig.plane.set_receivers(slot, [(0, destination(receiver.getsockname()))])
            for _ in range(5):
                source.sendto(b"other", incoming.getsockname())
                source.sendto(rtp(sent, b"steady"), steady.getsockname())
                sent += 1
            rig.drain()
        rig.wait(lambda: rig.counters()["datagrams"] == sent)
        rig.wait(lambda: sum(p != b"other" for p in rig.received[receiver]) == sent)
        rig.wait(lambda: rig.plane.collect() == 0)


def test_an_idle_worker_sleeps() -> None:
    with RelayRig() as rig:
        incoming, receiver = rig.open(), rig.receiver()
        rig.relay([incoming], [receiver], hold_ns=5 * MS)
        rig.send(incoming, stream(1))
        rig.wait(lambda: len(rig.received[receiver]) == 1)
        passes = int(rig.plane.worker_rows[0, 0])
        begun_s = time.monotonic()
        while time.monotonic() - begun_s < 2:
            time.sleep(0.1)
        assert int(rig.plane.worker_rows[0, 0]) - passes <= 10


def test_a_receiver_that_can_not_be_reached_costs_the_others_nothing() -> None:
    packets = stream(50)
    with RelayRig() as rig:
        incoming, receiver = rig.open(), rig.receiver()
        rig.relay([incoming], [receiver])
        nowhere = destination(("240.0.0.1", 9))
        rig.plane.set_receivers(0, [(0, nowhere + destination(receiver.getsockname()) + nowhere)])
        rig.send(incoming, packets)
        rig.wait(lambda: len(rig.received[receiver]) == 50)
        assert rig.received[receiver] == packets
        assert rig.output()["drop_refused"] == 100


def test_wrong_use_is_refused() -> None:
    plane = RelayPlane(1)
    with udp() as made:
        settings = Settings(legs=[(made.fileno(), "media", ())])
        plane.add(3, settings)
        with pytest.raises(ValueError, match="taken"):
            plane.add(3, Settings(legs=[(made.fileno(), "media", ())]))
        with pytest.raises(ValueError, match="not opened"):
            plane.set_receivers(3, [(0, b"")])
        with pytest.raises(ValueError, match="rows"):
            plane.set_receivers(3, [(0, b"x")])
        with pytest.raises(ValueError, match="range"):
            plane.open_output(3, OUTPUTS, made.fileno())
        plane.remove(3)
        with pytest.raises(ValueError, match="one relay"):
            plane.add(4, settings)
    for wrong in ({"window_packets": 100}, {"slot_bytes": 70_000}, {"wait_ns": -1}, {"mode": "x"}, {"legs": []}):
        with pytest.raises(ValueError, match=r"\w"):
            Settings(**{"legs": [(-1, "media", ())], **wrong})  # type: ignore[arg-type]


def test_what_comes_before_a_relay_receives_waits_in_its_socket() -> None:
    """A relay that replaces another is given its outputs first: no packet finds it without."""
    with RelayRig() as rig:
        incoming, receiver, sender = rig.open(), rig.receiver(), rig.open()
        rig.plane.add(0, Settings(legs=[(incoming.fileno(), "media", ())]), receives=False)
        for number in range(50):
            sender.sendto(rtp(number, b"x"), incoming.getsockname())
        rig.plane.open_output(0, 0, sender.fileno(), hold_ns=0)
        rig.plane.set_receivers(0, [(0, destination(receiver.getsockname()))])
        assert rig.counters()["datagrams"] == 0
        rig.plane.receive(0)
        rig.wait(lambda: len(rig.received[receiver]) == 50)
        assert rig.received[receiver] == [rtp(number, b"x") for number in range(50)]
        rig.plane.remove(0)
