"""Legs of MPEG-TS by plain UDP: no datagram has a number, and they are merged by their continuity counters and bytes.
Packets come out once each, in order, and nothing is guessed."""

from __future__ import annotations

import random
import struct

import pytest
from relay_packets import transport
from test_relay_align import MS, START, apart, number_of

from ext.relay_plane import RelayBench, Settings

STUFFING = transport(8191, 0) * 7


def bench(n_legs: int = 2) -> RelayBench:
    legs: list[tuple[int, str, tuple[tuple[bytes, int], ...]]] = [(-1, "media", ())] * n_legs
    return RelayBench(Settings(legs=legs, wait_ns=250 * MS, window_packets=4096))


class Channel:
    """Datagrams of a stream: mostly video, some audio and stuffing between it, as a multiplexer makes them.
    `is_short`: many end before they are full."""

    def __init__(self, source: random.Random, n: int, *, stuffing: float = 0.0, is_short: bool = False) -> None:
        counters = {0x100: 0, 0x101: 0}
        self.datagrams = []
        for i in range(n):
            if source.random() < stuffing:
                self.datagrams.append(STUFFING)
                continue
            found = b""
            for _ in range(source.choice([7, 7, 7, 7, 7, 5, 1]) if is_short else 7):
                pid = 0x101 if source.random() < 0.1 else 0x100
                found += transport(pid, counters[pid])
                counters[pid] += 1
            self.datagrams.append(found[:-4] + struct.pack("!I", i))

    def by(self, leg: int, lost: set[int], *, skew_ms: int = 0) -> list[tuple[int, int, bytes]]:
        """When, by which leg, what: a datagram each 5 ms."""
        return [(START + (5 * i + skew_ms) * MS, leg, data) for i, data in enumerate(self.datagrams) if i not in lost]


def feed(b: RelayBench, events: list[tuple[int, int, bytes]]) -> list[bytes]:
    events = sorted(events, key=lambda each: each[0])
    out: list[bytes] = []
    for when, leg, data in events:
        out += b.expire(when)
        out += b.take(leg, data, when)
    return out + b.expire(events[-1][0] + 9000 * MS)


@pytest.mark.parametrize("seed", range(12))
def test_what_one_leg_loses_comes_from_the_other(seed: int) -> None:
    """Up to 200 ms apart, either first, 2 % lost on each, never the same packet."""
    source = random.Random(seed)
    channel = Channel(source, 3000)
    fates = [source.random() if i >= 100 else 0.5 for i in range(3000)]
    first = channel.by(0, {i for i, fate in enumerate(fates) if fate < 0.02})
    second = channel.by(1, {i for i, fate in enumerate(fates) if fate > 0.98}, skew_ms=source.randrange(-200, 200))
    b = bench()
    out = [number_of(each) for each in feed(b, first + second)]
    assert out == list(range(out[0], 3000))
    known = b.known()
    assert (known["lost"], known["restarts"], known["ts_continuity"]) == (0, 0, 0)
    assert known["merged"] > 20
    assert apart(b)[:2] == [0, 0]


@pytest.mark.parametrize("skew_ms", [-200, -74, -11, -7, -1, 0, 1, 3, 7, 12, 33, 100, 200])
@pytest.mark.parametrize("seed", range(3))
def test_losses_in_stuffing_move_nothing(seed: int, skew_ms: int) -> None:
    """No counter tells of stuffing that is lost, and what is lost before it shows after it only. All else comes once,
    in order, whichever leg is ahead and by how much."""
    source = random.Random(seed)
    channel = Channel(source, 3000, stuffing=0.2)
    fates = [source.random() if i >= 100 else 0.5 for i in range(3000)]
    first = channel.by(0, {i for i, fate in enumerate(fates) if fate < 0.01})
    second = channel.by(1, {i for i, fate in enumerate(fates) if fate > 0.99}, skew_ms=skew_ms)
    b = bench()
    media = [number_of(each) for each in feed(b, first + second) if each != STUFFING]
    expected = [i for i, data in enumerate(channel.datagrams) if data != STUFFING]
    assert media == expected
    assert (b.known()["ts_continuity"], b.known()["restarts"]) == (0, 0)


@pytest.mark.parametrize("seed", range(12))
def test_short_datagrams_that_are_lost_come_in_the_order_of_their_pids(seed: int) -> None:
    """One of other PIDs than the next shows only later, and is put there: behind others, but each PID in its order."""
    source = random.Random(seed)
    channel = Channel(source, 3000, is_short=True)
    fates = [source.random() if i >= 100 else 0.5 for i in range(3000)]
    first = channel.by(0, {i for i, fate in enumerate(fates) if fate < 0.02})
    second = channel.by(1, {i for i, fate in enumerate(fates) if fate > 0.98}, skew_ms=source.randrange(-200, 200))
    b = bench()
    out = [number_of(each) for each in feed(b, first + second)]
    assert sorted(out) == list(range(out[0], 3000))
    assert (b.known()["ts_continuity"], b.known()["restarts"]) == (0, 0)


@pytest.mark.parametrize("n_lost", [3, 5, 16, 37, 80, 400])
@pytest.mark.parametrize("skew_ms", [0, 20, 180])
def test_more_than_counters_can_tell_is_lost_by_one_leg(n_lost: int, skew_ms: int) -> None:
    """Four bits of each counter: the leg's place is learned anew, and meanwhile the other leg's packets go on."""
    source = random.Random(n_lost)
    channel = Channel(source, 2000)
    b = bench()
    out = feed(b, channel.by(0, set(range(500, 500 + n_lost))) + channel.by(1, set(), skew_ms=skew_ms))
    assert [number_of(each) for each in out] == list(range(2000))
    known = b.known()
    assert (known["restarts"], known["ts_continuity"], known["lost"]) == (0, 0, 0)
    assert apart(b)[:2] == [0, 0]


@pytest.mark.parametrize("dies", [0, 1])
def test_a_leg_that_dies_is_not_missed_and_finds_its_place_again(dies: int) -> None:
    channel = Channel(random.Random(7), 3000)
    b = bench()
    out = feed(b, channel.by(dies, set(range(1000, 2000))) + channel.by(1 - dies, set(), skew_ms=100))
    assert [number_of(each) for each in out] == list(range(3000))
    assert (b.known()["lost"], b.known()["restarts"]) == (0, 0)
    assert apart(b)[:2] == [0, 0]


def test_a_loss_that_does_not_show_yet_is_made_good_behind_other_pids() -> None:
    """A worker that was late reads several of one leg, then those of the other: the second leg brings what the first
    one lost when nothing of the same PID has come after it."""
    video = [
        b"".join(transport(0x100, 7 * i + j) for j in range(7))[:-4] + struct.pack("!I", i) for i in range(60)
    ]
    table = transport(0, 1) + STUFFING[:188] * 6
    b = bench()
    out: list[bytes] = []
    for i, data in enumerate(video[:50]):
        out += b.take(0, data, START + 5 * i * MS) + b.take(1, data, START + 5 * i * MS)
    now = START + 260 * MS
    out += b.take(0, table, now)  # number 50 is lost before it
    out += b.take(1, video[50], now) + b.take(1, table, now)
    for data in video[51:]:
        now += 5 * MS
        out += b.take(0, data, now) + b.take(1, data, now)
    assert [each for each in out if each != table] == video
    assert table in out
    assert (b.known()["lost"], b.known()["ts_continuity"]) == (0, 0)


def test_one_leg_alone_is_whole_and_says_what_it_lost() -> None:
    channel = Channel(random.Random(8), 1000)
    b = bench()
    out = [number_of(each) for each in feed(b, channel.by(1, {300, 600, 601}))]
    assert out == [i for i in range(1000) if i not in {300, 600, 601}]
    assert b.known()["lost"] == 3


def test_what_the_sender_lost_before_both_legs_is_waited_for_once() -> None:
    channel = Channel(random.Random(9), 1000)
    lost = {400, 401, 700}
    b = bench()
    out = [number_of(each) for each in feed(b, channel.by(0, lost) + channel.by(1, lost, skew_ms=50))]
    assert out == [i for i in range(1000) if i not in lost]
    assert (b.known()["lost"], b.known()["restarts"]) == (3, 0)


def test_a_leg_of_another_stream_is_left_out() -> None:
    source = random.Random(10)
    one, other = Channel(source, 1000), Channel(source, 1000)
    other.datagrams = [data[:-4] + struct.pack("!I", 100_000 + i) for i, data in enumerate(other.datagrams)]
    b = bench()
    out = feed(b, one.by(0, set()) + other.by(1, set(), skew_ms=1))
    assert [number_of(each) for each in out] == list(range(1000))
    assert b.known()["drop_apart"] == 1000
    assert apart(b)[:2] == [0, 1]


def test_datagrams_that_come_twice_leave_once() -> None:
    channel = Channel(random.Random(11), 500)
    twice = [each for event in channel.by(0, set()) for each in (event, event)]
    b = bench()
    assert feed(b, twice) == channel.datagrams
    assert b.known()["duplicate"] == 500
