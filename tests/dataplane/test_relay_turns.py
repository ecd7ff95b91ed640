"""Trains that are sent in parts: who waits for whom, what changes meanwhile, and sockets that take nothing."""

from __future__ import annotations

import shutil
import socket
import struct
from collections import Counter
from collections.abc import Iterator
from typing import Any

import netns
import pytest
from relay_packets import rtp, stream
from relay_rig import RelayRig, destination

MS = 1_000_000
MANY = 4000  # receivers: a train of 16 to them takes some 100 ms here, packet by packet
TRAIN = 16
SLOW = "dev lan0 root tbf rate 2mbit burst 100000 limit 10000000"


def nobody(rig: RelayRig) -> bytes:
    """A destination where nobody reads, and little is kept."""
    made = rig.open()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 0)
    return destination(made.getsockname())


class Begun:
    """A relay in slot 0 whose first train is under way to many, and to `last` at the end of the list."""

    def __init__(self, rig: RelayRig, last: socket.socket, **options: Any) -> None:
        self._rig = rig
        self._incoming, self._source = rig.open(), rig.open()
        rig.relay([self._incoming], [last], segments=False, hold_ns=50 * MS, **options)
        rig.plane.set_receivers(0, [(0, nobody(rig) * MANY + destination(last.getsockname()))])
        self.send(stream(TRAIN))
        rig.wait(lambda: rig.output()["packets"] > 0)

    def send(self, packets: list[bytes]) -> None:
        for packet in packets:
            self._source.sendto(packet, self._incoming.getsockname())

    @property
    def is_under_way(self) -> bool:
        return 0 < self._rig.output()["packets"] < TRAIN * (MANY + 1)


def test_a_train_to_thousands_does_not_hold_up_the_other_relays() -> None:
    packets = stream(8)
    with RelayRig() as rig:
        other, quick = rig.open(), rig.receiver()
        rig.relay([other], [quick], slot=1)
        train = Begun(rig, rig.receiver())
        rig.send(other, packets, slot=1)
        rig.wait(lambda: len(rig.received[quick]) == 8)
        assert train.is_under_way
        assert rig.received[quick] == packets
        rig.wait(lambda: rig.output()["packets"] == TRAIN * (MANY + 1))


def test_receivers_that_change_during_a_train_leave_it_whole_and_get_the_next() -> None:
    packets = stream(2 * TRAIN)
    with RelayRig() as rig:
        old, new = rig.receiver(), rig.receiver()
        train = Begun(rig, old)
        rig.plane.set_receivers(0, [(0, destination(new.getsockname()))])
        train.send(packets[TRAIN:])
        assert train.is_under_way
        rig.wait(lambda: len(rig.received[new]) == TRAIN)
        rig.wait(lambda: len(rig.received[old]) == TRAIN)
        assert rig.received[old] == packets[:TRAIN]
        assert rig.received[new] == packets[TRAIN:]
        assert rig.output()["packets"] == TRAIN * (MANY + 1) + TRAIN
        # The old table is given back, although its train was begun when it was replaced.
        rig.wait(lambda: rig.plane.collect() == 0)


def test_a_relay_is_taken_away_during_a_train() -> None:
    with RelayRig() as rig:
        train = Begun(rig, rig.receiver())
        rig.plane.remove(0)
        assert train.is_under_way
        rig.wait(lambda: rig.plane.collect() == 0)


@pytest.mark.parametrize("segments", [True, False])
def test_headers_of_our_own_are_the_same_in_each_part_of_a_train(segments: bool) -> None:
    packets = stream(3 * TRAIN)
    each = 300  # more than a part, in messages or in packets
    with RelayRig() as rig:
        incoming, receiver = rig.open(), rig.receiver()
        rig.relay(
            [incoming], [receiver] * each, segments=segments, hold_ns=20 * MS, format="stamp", ssrc=9, sequence=65_530
        )
        for at in range(0, len(packets), TRAIN):
            rig.send(incoming, packets[at : at + TRAIN])
            rig.wait(lambda at=at: len(rig.received[receiver]) == each * (at + TRAIN))  # type: ignore[misc]
        expected = [(65_530 + i) & 0xFFFF for i in range(len(packets))]
        found = Counter(rig.received[receiver])
        assert set(found.values()) == {each}
        sequences = [struct.unpack_from("!H", packet, 2)[0] for packet in found]
        assert sequences == expected
        assert [packet[12:] for packet in found] == [packet[12:] for packet in packets]


def test_what_overruns_a_train_under_way_is_dropped_by_name_and_none_is_torn() -> None:
    """The window is smaller than what comes while many wait for the train: what is left of it is taken out."""
    packets = stream(TRAIN + 400)
    with RelayRig() as rig:
        last = rig.receiver()
        train = Begun(rig, last, window_packets=64)
        for at in range(TRAIN, len(packets), 8):
            train.send(packets[at : at + 8])
            rig.wait(lambda at=at: rig.counters()["datagrams"] == at + 8)  # type: ignore[misc]
        total = len(packets) * (MANY + 1)

        def settled() -> int:
            output = rig.output()
            return sum(output[name] for name in ("packets", "drop_full", "drop_refused", "drop_size", "drop_backlog"))

        rig.wait(lambda: settled() == total)
        assert rig.output()["drop_backlog"] > 0
        found = rig.received[last]
        assert found == [packet for packet in packets if packet in set(found)]


def test_late_trains_are_counted_by_how_late() -> None:
    with RelayRig() as rig:
        incoming, receiver = rig.open(), rig.receiver()
        rig.relay([incoming], [receiver])
        rig.send(incoming, [rtp(i, b"x" * (i + 1)) for i in range(20)])
        rig.wait(lambda: len(rig.received[receiver]) == 20)
        counted = rig.plane.late()
        assert len(counted) == 1
        rig.wait(lambda: sum(rig.plane.late()[0]) == 20)


def test_a_worker_that_is_short_of_time_says_so_and_loses_nothing() -> None:
    """A train that lasts longer than the time over which the worker looks."""
    packets = stream(64 * TRAIN)
    with RelayRig() as rig:
        incoming, source, last = rig.open(), rig.open(), rig.receiver()
        rig.relay([incoming], [last], hold_ns=5 * MS, segments=False)
        rig.plane.set_receivers(0, [(0, nobody(rig) * 3 * MANY + destination(last.getsockname()))])
        sent = 0
        while rig.plane.pressed()[0][0] == 0:
            assert sent < len(packets)
            rig.send(incoming, packets[sent : sent + TRAIN], sender=source)
            sent += TRAIN
            rig.wait(lambda sent=sent: rig.output()["packets"] == sent * (3 * MANY + 1))  # type: ignore[misc]
        rig.wait(lambda: len(rig.received[last]) == sent)
        assert rig.received[last] == packets[:sent]


def test_what_leaves_early_leaves_once_and_in_line() -> None:
    """As the worker does when trains of many relays become due together: no hold of an hour is waited for."""
    packets = stream(500)
    with RelayRig() as rig:
        rig.plane.set_early(True)
        inputs = [rig.open() for _ in range(3)]
        receivers = [rig.receiver() for _ in inputs]
        for slot, (incoming, receiver) in enumerate(zip(inputs, receivers, strict=True)):
            rig.relay([incoming], [receiver], slot, hold_ns=3_600_000 * MS)
        for at in range(0, len(packets), 5):
            for slot, incoming in enumerate(inputs):
                rig.send(incoming, packets[at : at + 5], slot)
        rig.wait(lambda: all(len(rig.received[receiver]) == len(packets) for receiver in receivers))
        assert [rig.received[receiver] for receiver in receivers] == [packets] * 3
        assert rig.plane.pressed()[0][1] > 0


# --- a link that is too slow ------------------------------------------------------------------------------------------


@pytest.fixture
def slow_link() -> Iterator[tuple[netns.Namespace, netns.Namespace]]:
    if why := netns.why_not() or (None if shutil.which("tc") else "needs tc"):
        pytest.skip(why)
    with netns.Topology() as topology:
        _, box, (host,) = topology.proxy()
        # Its queue holds what the socket may have under way, so that the socket is what is full.
        box.run("tc", "qdisc", "add", *SLOW.split())
        yield box, host


@pytest.mark.netns
def test_a_socket_that_stays_full_loses_by_name_and_the_others_nothing(
    slow_link: tuple[netns.Namespace, netns.Namespace],
) -> None:
    box, host = slow_link
    packets = stream(400)
    with RelayRig() as rig:
        slow = box.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16_384)
        at_host = host.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        at_host.bind(("10.1.0.2", 7000))
        at_host.setblocking(False)
        rig.sockets += [slow, at_host]
        rig.received[at_host] = []
        incoming, quick = rig.open(), rig.receiver()
        out = rig.relay([incoming], [quick])
        rig.plane.open_output(0, 1, slow.fileno(), hold_ns=0)
        rig.plane.set_receivers(0, [(0, destination(quick.getsockname())), (1, destination(("10.1.0.2", 7000)) * 20)])
        assert out.fileno() != slow.fileno()
        rig.send(incoming, packets)
        rig.wait(lambda: len(rig.received[quick]) == 400)
        assert rig.received[quick] == packets
        rig.wait(
            lambda: sum(rig.output(index=1)[name] for name in ("packets", "drop_full", "drop_backlog")) == 400 * 20
        )
        output = rig.output(index=1)
        assert output["drop_full"] > 1000
        assert output["packets"] > 0
        # The link goes on carrying what was sent, and only that.
        box.run("tc", "qdisc", "change", *SLOW.replace("2mbit", "1gbit").split())
        rig.wait(lambda: len(rig.received[at_host]) == output["packets"])
        assert set(rig.received[at_host]) <= set(packets)
        sent = rig.output(index=1)["packets"]
        rig.send(incoming, stream(401)[400:])
        rig.wait(lambda: rig.output(index=1)["packets"] == sent + 20)
