"""Legs of SRT or RIST: each numbers its packets for itself, and they are merged by what they carry. Packets come out
once each, in order, and nothing is guessed."""

from __future__ import annotations

import random
import struct

import pytest
from relay_packets import rtp, transport

from ext.relay_plane import LEG_COLUMNS, RelayBench, Settings

MS = 1_000_000
START = 5_000_000_000
WAIT = 250 * MS
STUFFING = transport(8191, 0) * 7


def bench(n_legs: int = 2, mode: str = "merge") -> RelayBench:
    legs: list[tuple[int, str, tuple[tuple[bytes, int], ...]]] = [(-1, "media", ())] * n_legs
    return RelayBench(
        Settings(legs=legs, mode=mode, is_rtp=True, is_wrapped=True, wait_ns=WAIT, window_packets=4096)
    )


def payload(i: int) -> bytes:
    """What the senders were given: the i-th datagram."""
    return b"".join(transport(0x100, 7 * i + j) for j in range(7))[:-4] + struct.pack("!I", i)


def number_of(packet: bytes) -> int:
    found: int = struct.unpack("!I", packet[-4:])[0]
    return found


class Connection:
    """As an intake gives it: numbers and source of its own."""

    def __init__(self, leg: int, source: random.Random) -> None:
        self.leg = leg
        self._first = source.randrange(65_536)
        self._ssrc = source.randrange(1 << 32)
        self.n_missing = 0  # of what its sender was given: lost before it was numbered

    def packet(self, i: int, what: bytes | None = None) -> bytes:
        number = self._first + i - self.n_missing
        return rtp(number, payload(i) if what is None else what, ssrc=self._ssrc, timestamp=number * 7)


def apart(b: RelayBench) -> list[int]:
    b.known()
    column = next(column for column, name in LEG_COLUMNS if name == "apart")
    return [int(row[column]) for row in b.legs]


def feed(b: RelayBench, events: list[tuple[int, int, bytes]], end: int) -> list[int]:
    """`events`: (when, leg, datagram)."""
    out = []
    for when, leg, data in sorted(events, key=lambda each: each[0]):
        out += b.expire(when)
        out += b.take(leg, data, when)
    return [number_of(each) for each in out + b.expire(end)]


@pytest.mark.parametrize("seed", range(12))
def test_what_one_leg_loses_comes_from_the_other(seed: int) -> None:
    """Up to 200 ms apart, either first, 5 % lost on each, but never the same packet."""
    source = random.Random(seed)
    first, second = Connection(0, source), Connection(1, source)
    skew = source.randrange(-200, 200)
    events = []
    for i in range(3000):
        fate = source.random()
        if fate > 0.05 or i < 500:
            events.append((START + i * MS, 0, first.packet(i)))
        if fate < 0.95 or i < 500:
            events.append((START + (i + skew) * MS, 1, second.packet(i)))
    b = bench()
    out = feed(b, events, START + 10_000 * MS)
    assert out == list(range(out[0], 3000))
    known = b.known()
    assert (known["lost"], known["restarts"], known["ts_continuity"]) == (0, 0, 0)
    assert known["merged"] > 50
    assert known["drop_apart"] < 300
    assert apart(b)[:2] == [0, 0]


@pytest.mark.parametrize("seed", range(12))
def test_a_leg_that_dies_is_not_missed_and_finds_its_place_again(seed: int) -> None:
    source = random.Random(seed)
    first, second, again = Connection(0, source), Connection(1, source), Connection(0, source)
    skew = source.randrange(0, 200)
    events = [(START + i * MS, 0, first.packet(i)) for i in range(1000)]
    events += [(START + (i + skew) * MS, 1, second.packet(i)) for i in range(4000)]
    events += [(START + i * MS, 0, again.packet(i)) for i in range(2000, 6000)]
    b = bench()
    out = feed(b, events, START + 10_000 * MS)
    assert out == list(range(6000))
    known = b.known()
    assert (known["lost"], known["restarts"], known["late"]) == (0, 0, 0)


def test_rtp_of_the_sender_is_merged_by_its_own_numbers() -> None:
    """Nothing has to be learned: the first packet of the second leg has its place."""
    source = random.Random(1)
    first, second = Connection(0, source), Connection(1, source)
    media = [rtp(65_500 + i, payload(i)) for i in range(200)]
    events = [(START + i * MS, 0, first.packet(i, media[i])) for i in range(0, 200, 2)]
    events += [(START + i * MS + 1, 1, second.packet(i, media[i])) for i in range(1, 200, 2)]
    b = bench()
    found = []
    for when, leg, data in sorted(events):
        found += b.take(leg, data, when)
    assert found == media, "with the header that the sender made"
    known = b.known()
    assert (known["lost"], known["drop_apart"], known["format"]) == (0, 0, 1)


def test_a_leg_of_other_packets_is_left_out_until_it_is_alone() -> None:
    source = random.Random(2)
    first, other = Connection(0, source), Connection(1, source)
    events = [(START + i * MS, 0, first.packet(i)) for i in range(500)]
    events += [(START + i * MS + 1, 1, other.packet(i, payload(100_000 + i))) for i in range(2000)]
    b = bench()
    out = feed(b, [each for each in events if each[0] < START + 500 * MS], START + 500 * MS)
    assert out == list(range(500))
    assert b.known()["drop_apart"] == 500
    assert apart(b)[:2] == [0, 1]
    out = feed(b, [each for each in events if each[0] >= START + 500 * MS], START + 3000 * MS)
    assert out == list(range(out[0], 102_000))
    assert 100_990 < out[0] < 101_010, "after half a second of silence it takes over"
    assert b.known()["restarts"] == 1
    assert apart(b)[:2] == [1, 0]


@pytest.mark.parametrize("skew_ms", [30, -30])
def test_a_sender_that_lost_a_packet_before_it_numbered_it_is_put_right(skew_ms: int) -> None:
    """Its numbers don't jump, what they stand for does. At most the packets of that moment are lost, none is wrong."""
    source = random.Random(3)
    first, second = Connection(0, source), Connection(1, source)
    events = []
    for i in range(3000):
        events.append((START + i * MS, 0, first.packet(i)))
        if i == 1000:
            second.n_missing = 1
        else:
            events.append((START + (i + skew_ms) * MS, 1, second.packet(i)))
    b = bench()
    out = feed(b, events, START + 10_000 * MS)
    assert out == sorted(set(out))
    assert set(range(3000)) - set(out) <= {1000}
    assert b.known()["restarts"] == 0
    assert apart(b)[:2] == [0, 0]


def test_stuffing_says_nothing_of_places() -> None:
    """Transport packets without content are the same everywhere."""
    source = random.Random(4)
    first, second = Connection(0, source), Connection(1, source)
    b = bench()
    for i in range(100):
        b.take(0, first.packet(i, STUFFING), START + i * MS)
        b.take(1, second.packet(i, STUFFING), START + i * MS + 1)
    assert apart(b)[:2] == [0, 1]
    assert b.known()["packets"] == 100


def test_backups_need_no_place() -> None:
    source = random.Random(5)
    first, second = Connection(0, source), Connection(1, source)
    events = [(START + i * MS, 0, first.packet(i)) for i in range(100)]
    events += [(START + i * MS + 1, 1, second.packet(i)) for i in range(2000)]
    b = bench(mode="backup")
    out = feed(b, events, START + 3000 * MS)
    assert out[:100] == list(range(100))
    assert out[100:] == list(range(out[100], 2000))
    known = b.known()
    assert (known["switches"], known["drop_apart"], known["format"]) == (1, 0, 2)


def test_what_is_neither_leaves_as_it_came() -> None:
    b = bench(1)
    found = b.take(0, Connection(0, random.Random(6)).packet(0, b"text"), START)
    assert found == [b"text"]
    assert b.known()["format"] == 3
