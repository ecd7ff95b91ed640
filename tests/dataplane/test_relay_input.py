"""The relay's window: whatever is lost, late, doubled or out of order, packets come out in order and once each."""

from __future__ import annotations

import random
import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from relay_packets import SSRC, matrix, repair, rtp, stream

from ext.relay_plane import RelayBench, Settings, allows

MS = 1_000_000
START = 5_000_000_000


def bench(n_legs: int = 1, fec: bool = False, **options: Any) -> RelayBench:
    legs: list[tuple[int, str, tuple[tuple[bytes, int], ...]]] = [(-1, "media", ())] * n_legs
    legs += [(-1, "fec", ())] * (2 if fec else 0)
    return RelayBench(Settings(legs=legs, is_rtp=options.pop("is_rtp", True), **options))


def packet(i: int, **options: Any) -> bytes:
    return rtp(i, struct.pack("!I", i) + b"p" * (i % 7), **options)


def numbers(packets: list[bytes]) -> list[int]:
    return [struct.unpack("!I", found[12:16])[0] for found in packets]


def test_in_order_packets_leave_at_once() -> None:
    b = bench(wait_ns=100 * MS)
    for i in range(70_000):  # the sequence wraps
        assert b.take(0, packet(65_000 + i), START + i * MS) == [packet(65_000 + i)]
    known = b.known()
    assert known["packets"] == 70_000
    assert known["lost"] == known["reordered"] == known["restarts"] == 0


def test_a_hole_waits_and_is_given_up_after_its_time() -> None:
    b = bench(wait_ns=20 * MS)
    b.take(0, packet(1), START)
    assert b.take(0, packet(3), START + MS) == []
    assert b.take(0, packet(4), START + 2 * MS) == []
    assert b.expire(START + 20 * MS) == []
    assert numbers(b.expire(START + 21 * MS)) == [3, 4]
    assert b.take(0, packet(2), START + 22 * MS) == []
    known = b.known()
    assert (known["lost"], known["late"]) == (1, 1)


def test_each_hole_has_a_time_of_its_own() -> None:
    b = bench(wait_ns=20 * MS)
    b.take(0, packet(1), START)
    b.take(0, packet(3), START + MS)
    b.take(0, packet(5), START + 10 * MS)
    assert numbers(b.expire(START + 21 * MS)) == [3]
    assert numbers(b.expire(START + 30 * MS)) == [5]


def test_without_a_window_nothing_waits() -> None:
    b = bench(wait_ns=0)
    assert numbers(b.take(0, packet(1), START)) == [1]
    assert numbers(b.take(0, packet(3), START)) == [3]
    assert b.take(0, packet(2), START) == []


@st.composite
def arrivals(draw: st.DrawFn) -> tuple[list[tuple[int, int]], int]:
    """(arrival time in ms, number), in order of arrival: each packet lost, doubled and delayed as drawn."""
    n = draw(st.integers(1, 150))
    first = draw(st.sampled_from([0, 1, 65_400, 65_535]))
    found = []
    for i in range(n):
        fate = draw(st.integers(0, 9))
        copies = 0 if fate == 0 else 2 if fate == 1 else 1
        for _ in range(copies):
            found.append((2 * i + draw(st.integers(0, 40) if fate < 5 else st.just(0)), first + i))
    return sorted(found, key=lambda item: item[0]), first


@given(arrivals(), st.sampled_from([0, 10, 50]))
@settings(max_examples=200, deadline=None)
def test_any_pattern_gives_in_order_and_unique(drawn: tuple[list[tuple[int, int]], int], wait_ms: int) -> None:
    events, _ = drawn
    b = bench(wait_ns=wait_ms * MS)
    out: list[int] = []
    for at, number in events:
        out += numbers(b.expire(START + at * MS))
        out += numbers(b.take(0, packet(number), START + at * MS))
    out += numbers(b.expire(START + 1000 * MS))
    assert out == sorted(set(out))
    came = {number for _, number in events}
    assert set(out) <= came
    if events:
        head = events[0][1]
        if wait_ms == 50:  # longer than any delay: all that came, but what is before the very first
            assert set(out) == {number for number in came if number >= head}
    known = b.known()
    assert known["packets"] == len(out)
    assert known["packets"] + known["duplicate"] + known["late"] == len(events)
    if out:
        assert known["lost"] == out[-1] - out[0] + 1 - len(out)


@pytest.mark.parametrize("seed", range(20))
def test_two_legs_up_to_200_ms_apart(seed: int) -> None:
    """SMPTE 2022-7: what either leg brings is there, once and in order."""
    source = random.Random(seed)
    apart_ms = source.choice([0, 1, 50, 199, 200])
    n = 3000
    lost = [{i for i in range(n) if source.random() < 0.05} for _ in range(2)]
    events = sorted(
        (i + leg * apart_ms + source.random(), leg, i) for leg in range(2) for i in range(n) if i not in lost[leg]
    )
    b = bench(2, wait_ns=210 * MS, window_packets=1024)
    out: list[int] = []
    for at, leg, i in events:
        now = START + int(at * MS)
        out += numbers(b.expire(now))
        out += numbers(b.take(leg, packet(65_000 + i), now))
    out += numbers(b.expire(START + 10_000 * MS))
    first = min(events)[2] + 65_000
    assert out == [65_000 + i for i in range(n) if not (i in lost[0] and i in lost[1]) and 65_000 + i >= first]
    assert b.known()["restarts"] == 0
    assert b.known()["late"] == sum(i + 65_000 < first for _, _, i in events)
    assert b.known()["duplicate"] > 0


def test_one_leg_goes_silent_and_comes_back() -> None:
    b = bench(2, wait_ns=50 * MS)
    out: list[int] = []
    for i in range(600):
        now = START + i * MS
        if not 100 <= i < 300:
            out += numbers(b.take(0, packet(i), now))
        if i >= 20:
            out += numbers(b.take(1, packet(i - 20), now))
        out += numbers(b.expire(now))
    assert out == list(range(600))


def test_backup_takes_over_after_silence_and_gives_back() -> None:
    b = bench(2, mode="backup", failover_ns=500 * MS)
    out: list[tuple[int, int]] = []
    for i in range(5000):
        now = START + i * MS
        if not 1000 <= i < 2000:
            out += [(i, n) for n in numbers(b.take(0, packet(i), now))]
        out += [(i, n) for n in numbers(b.take(1, packet(50_000 + i, ssrc=9), now))]
    switched = [at for (at, n), (_, before) in zip(out[1:], out, strict=False) if (n >= 50_000) != (before >= 50_000)]
    assert len(switched) == 2
    assert 1499 <= switched[0] <= 1501
    assert 3999 <= switched[1] <= 4001
    assert b.known()["switches"] == 2
    assert b.known()["lost"] == 0


def test_a_source_that_begins_anew_is_followed() -> None:
    for new in ({"ssrc": 99}, {}):
        b = bench(wait_ns=20 * MS)
        for i in range(100):
            b.take(0, packet(i), START + i * MS)
        out: list[int] = []
        for i in range(50):
            out += numbers(b.take(0, packet(30_000 + i, **new), START + (100 + i) * MS))
        assert out == list(range(30_001, 30_050))  # RFC 3550 A.1: the second one in line is believed
        assert b.known()["restarts"] == 1


def test_a_stranger_on_the_port_changes_nothing() -> None:
    b = bench(wait_ns=20 * MS)
    out: list[int] = []
    source = random.Random(1)
    for i in range(1000):
        out += numbers(b.take(0, packet(i), START + i * MS))
        stranger = packet(source.randrange(65_536), ssrc=source.randrange(1, 1000))
        assert b.take(0, stranger, START + i * MS) == []
    assert out == list(range(1000))
    assert b.known()["drop_ssrc"] == 1000


def test_a_lower_sequence_of_the_same_source_is_followed_after_a_while() -> None:
    b = bench(wait_ns=20 * MS)
    for i in range(1000, 1200):
        b.take(0, packet(i), START + i * MS)
    out: list[int] = []
    for i in range(1150, 1300):
        out += numbers(b.take(0, packet(i, timestamp=i), START + (i + 50) * MS))
    assert out == list(range(out[0], 1300))
    assert out[0] <= 1190


def test_copies_from_the_other_leg_after_a_pause_are_no_new_stream() -> None:
    b = bench(2, wait_ns=20 * MS)
    for i in range(100):
        b.take(0, packet(i), START + i * MS)
    later = START + 1000 * MS
    assert [b.take(1, packet(i), later) for i in range(100)] == [[]] * 100
    assert numbers(b.take(0, packet(100), later)) == [100]
    assert (b.known()["duplicate"], b.known()["restarts"]) == (100, 0)


def test_silence_makes_a_new_stream() -> None:
    b = bench(is_rtp=False)
    assert b.take(0, packet(7), START) == [packet(7)]
    later = START + 3000 * MS
    body = stream(1)[0][12:]
    assert b.take(0, body, later) == [body]
    assert b.known()["restarts"] == 1


def test_a_gap_below_three_thousand_is_loss_not_a_jump() -> None:
    b = bench(wait_ns=20 * MS, window_packets=64)
    b.take(0, packet(1), START)
    assert numbers(b.take(0, packet(2001), START + MS)) == [2001]
    assert b.known()["lost"] == 1999
    assert b.take(0, packet(6000), START + MS) == []
    assert b.known()["drop_jump"] == 1


def test_what_is_dropped_has_a_name() -> None:
    b = bench(payload_type=33)
    for data, name in (
        (b"", "drop_malformed"),
        (b"\x80" * 11, "drop_malformed"),
        (b"\x80\xc8" + bytes(26), "drop_rtcp"),
        (packet(1, kind=96), "drop_type"),
        (rtp(1, bytes(60_000)), "drop_oversize"),
    ):
        before = b.known()[name]
        assert b.take(0, data, START) == []
        assert b.known()[name] == before + 1
    b = bench(is_rtp=False)
    b.take(0, stream(1)[0][12:], START)
    assert b.take(0, b"something else", START) == []
    assert b.known()["drop_format"] == 1


def test_plain_datagrams_pass_as_they_come() -> None:
    b = bench(is_rtp=False)
    for i in range(300):
        assert b.take(0, b"any %d" % i, START + i) == [b"any %d" % i]
    assert b.known()["format"] == 3


def test_loss_and_jitter_of_a_leg() -> None:
    """RFC 3550 A.3 and A.8: packets alternately 0 and 4 ms late at a steady clock have a jitter that tends to 4 ms."""
    b = bench(wait_ns=0)
    for i in range(2000):
        if i % 10 != 3:
            b.take(0, packet(i, timestamp=i * 900), START + i * 10 * MS + (4 * MS if i % 2 else 0))
    assert b.known()["lost"] == 200
    assert int(b.legs[0, 3]) == 200
    assert 3 * MS < b.known()["jitter_ns"] < 5 * MS


@pytest.mark.parametrize(
    ("kind", "clock_hz"), [(0, 8000), (6, 16000), (10, 44100), (14, 90000), (33, 90000), (97, 90000)]
)
def test_a_steady_stream_has_no_jitter_whatever_its_clock_is(kind: int, clock_hz: int) -> None:
    """Of G.711, whose clock has 8,000 Hz, 18 ms were shown (RFC 3551 section 6)."""
    b = bench(wait_ns=0)
    for i in range(200):
        b.take(0, packet(i, kind=kind, timestamp=i * clock_hz // 50), START + i * 20 * MS)
    assert b.known()["jitter_ns"] < MS // 2
    assert b.known()["payload_type"] == kind


def feed(b: RelayBench, packets: list[bytes], kept: set[int], columns: int, rows: int) -> list[bytes]:
    out: list[bytes] = []
    size = columns * rows
    now = START
    for block in range(0, len(packets) - size + 1, size):
        by_column, by_row = matrix(packets[block : block + size], columns, rows, block)
        for i in range(size):
            now += MS
            if block + i in kept:
                out += b.take(0, packets[block + i], now)
            if i % columns == columns - 1 and rows > 1:
                out += b.take(2, by_row[i // columns], now)
        for repair_packet in by_column:
            out += b.take(1, repair_packet, now)
    out += b.take(0, packets[-1], now + MS)
    return out + b.expire(now + 5000 * MS)


@given(st.integers(0, 39), st.integers(0, 39))
@settings(max_examples=100, deadline=None)
def test_repair_gives_back_what_theory_says(a: int, c: int) -> None:
    """Two losses in a matrix of 8 x 5 never stop rows and columns together: each packet comes back, byte for byte."""
    packets = stream(121)
    kept = set(range(121)) - {40 + a, 40 + c}
    b = bench(fec=True, wait_ns=500 * MS, window_packets=1024)
    assert feed(b, packets, kept, 8, 5) == packets
    assert b.known()["repaired"] == len({a, c})
    assert b.known()["lost"] == 0
    assert b.known()["ts_damaged"] == 0


def test_four_losses_in_a_rectangle_are_beyond_repair() -> None:
    packets = stream(121)
    lost = {40, 43, 56, 59}
    b = bench(fec=True, wait_ns=500 * MS, window_packets=1024)
    out = feed(b, packets, set(range(121)) - lost, 8, 5)
    assert out == [p for i, p in enumerate(packets) if i not in lost]
    assert (b.known()["repaired"], b.known()["lost"]) == (0, 4)


def decodable(lost: set[int], columns: int, rows: int) -> set[int]:
    """What XOR over rows and columns gives back, by definition."""
    left = set(lost)
    moved = True
    while moved:
        moved = False
        lines = [{c + columns * r for r in range(rows)} for c in range(columns)]
        lines += [{c + columns * r for c in range(columns)} for r in range(rows)]
        for line in lines:
            if len(line & left) == 1:
                left -= line
                moved = True
    return lost - left


@pytest.mark.parametrize("seed", range(30))
def test_random_loss_against_the_definition(seed: int) -> None:
    source = random.Random(seed)
    packets = stream(401)
    lost = {i for i in range(40, 400) if source.random() < 0.15}
    expected = set()
    for block in range(40, 400, 40):
        expected |= {block + i for i in decodable({i - block for i in lost if block <= i < block + 40}, 8, 5)}
    b = bench(fec=True, wait_ns=500 * MS, window_packets=1024)
    out = feed(b, packets, set(range(401)) - lost, 8, 5)
    assert out == [p for i, p in enumerate(packets) if i not in lost or i in expected]
    assert b.known()["repaired"] == len(expected)


def test_repair_that_came_before_the_packets_around_it_is_used_when_they_come() -> None:
    packets = stream(10)
    b = bench(fec=True, wait_ns=500 * MS, window_packets=1024)
    row = repair(packets[0:8], 0, 1, row=True)
    out = [packet for i in range(7) for packet in b.take(0, packets[i], START + i * MS)]
    assert b.take(2, row, START + 7 * MS) == []  # number 7 may still come
    assert out + b.take(0, packets[8], START + 8 * MS) == packets[:9]
    assert b.known()["repaired"] == 1


@pytest.mark.parametrize("seed", range(30))
def test_repair_in_any_order_gives_what_the_definition_says(seed: int) -> None:
    """Media and repair of a matrix in any order: which is there first doesn't matter once all are."""
    source = random.Random(seed)
    packets = stream(401)
    lost = {i for i in range(40, 400) if source.random() < 0.2}
    b = bench(fec=True, wait_ns=5000 * MS, window_packets=1024)
    expected: set[int] = set()
    now = START
    out = [found for i in range(40) for found in b.take(0, packets[i], START)]
    for block in range(40, 400, 40):
        expected |= {block + i for i in decodable({i - block for i in lost if block <= i < block + 40}, 8, 5)}
        by_column, by_row = matrix(packets[block : block + 40], 8, 5, block)
        coming = [(0, packets[block + i]) for i in range(40) if block + i not in lost]
        coming += [(1, each) for each in by_column] + [(2, each) for each in by_row]
        source.shuffle(coming)
        for leg, each in coming:
            now += MS
            out += b.take(leg, each, now)
    out += b.take(0, packets[400], now)
    out += b.expire(now + 9000 * MS)
    assert out == [found for i, found in enumerate(packets) if i not in lost or i in expected]
    assert b.known()["lost"] == len(lost - expected)


def test_repair_that_lies_gives_nothing_else_out() -> None:
    packets = stream(60)
    honest = repair(packets[10:50:8], 10, 8)
    for at in (14, 16, 28, 28 + 188):  # length, type, payload
        lie = bytearray(honest)
        lie[at] ^= 0x21
        b = bench(fec=True, wait_ns=50 * MS, window_packets=1024)
        out: list[bytes] = []
        for i in range(60):
            if i != 18:
                out += b.take(0, packets[i], START + i * MS)
        out += b.take(1, bytes(lie), START + 60 * MS)
        out += b.expire(START + 500 * MS)
        assert out == [p for i, p in enumerate(packets) if i != 18]
        assert (b.known()["repair_refused"], b.known()["lost"]) == (1, 1)
    b = bench(fec=True)
    assert b.take(1, b"\x80" * 20, START) == []
    assert b.known()["drop_fec_malformed"] == 1


def test_repair_of_no_stream_here_is_refused() -> None:
    """Before there is a stream, far from where it is, or over more than the window holds."""
    packets = stream(60)
    fitting = repair(packets[0:40:8], 0, 8)
    b = bench(fec=True, window_packets=128)
    assert b.take(1, fitting, START) == []
    b.take(0, packets[0], START)
    b.take(1, repair(packets[0:40:8], 30_000, 8), START)
    b.take(1, repair(packets[0:50:10], 0, 40), START)
    assert (b.known()["drop_fec_refused"], b.known()["fec_packets"]) == (3, 0)
    b.take(1, fitting, START)
    assert b.known()["fec_packets"] == 1


def test_allowed_sources() -> None:
    v4 = b"\0" * 10 + b"\xff\xff"
    listed = ((v4 + bytes([10, 1, 2, 0]), 96 + 24), (bytes([0xFD]) + bytes(15), 8), (v4 + bytes([10, 9, 9, 8]), 126))
    s = Settings(legs=[(-1, "media", listed)])
    for text, allowed in (
        ([10, 1, 2, 77], True),
        ([10, 1, 3, 1], False),
        ([10, 9, 9, 10], True),
        ([10, 9, 9, 12], False),
    ):
        assert allows(s, 0, v4 + bytes(text)) is allowed
    assert allows(s, 0, bytes([0xFD]) + bytes(range(15)))
    assert not allows(s, 0, bytes([0xFE]) + bytes(15))
    assert allows(Settings(legs=[(-1, "media", ())]), 0, bytes(16))


def test_the_ssrc_of_both_legs_changes() -> None:
    """The second leg meets a stream that the first one has begun already: it must not stay outside."""
    b = bench(2, wait_ns=20 * MS)
    out: list[int] = []
    for i in range(1000):
        now = START + i * MS
        ssrc = SSRC if i < 300 else 77
        for leg in range(2):
            if not (leg == 0 and i % 7 == 0 and i > 600):
                out += numbers(b.take(leg, packet(i, ssrc=ssrc), now))
        out += numbers(b.expire(now))
    assert out == sorted(set(out))
    assert set(range(600, 1000)) <= set(out)


def test_a_sender_gone_wild_is_held_to_the_relays_bitrate() -> None:
    """1 Mbit/s allowed, 4 sent for 10 s: what passes is the rate and one burst; of 0.9 nothing is lost."""
    wild = bench(cap_bytes_s=125_000)
    n_sent = 10 * 4_000_000 // 8 // 1000
    for number in range(n_sent):
        wild.take(0, rtp(number, bytes(988)), number * 2 * MS + MS)
    known = wild.known()
    passed = known["datagrams"] - known["drop_rate"]
    assert 1250 <= passed <= 1250 + 35
    calm = bench(cap_bytes_s=125_000)
    for number in range(1000):
        calm.take(0, rtp(number, bytes(988)), number * 9 * MS + MS)
    assert calm.known()["drop_rate"] == 0
    assert calm.known()["packets"] == 1000


FIRST, SECOND = bytes(15) + b"\x01", bytes(15) + b"\x02"


@pytest.mark.parametrize("form", ["ts", "opaque"])
def test_a_second_sender_waits_until_the_first_has_ended(form: str) -> None:
    """Without numbers two senders' packets would be mixed; what another box sends back to us would go in a circle."""
    body = stream(1)[0][12:] if form == "ts" else b"text"
    b = bench(is_rtp=False, failover_ns=500 * MS)
    for i in range(100):
        assert b.take(0, body, START + i * MS, FIRST) == [body]
        assert b.take(0, body, START + i * MS, SECOND) == []
    assert b.known()["drop_sender"] == 100
    assert b.take(0, body, START + 99 * MS + 499 * MS, SECOND) == []
    assert b.take(0, body, START + 99 * MS + 500 * MS, SECOND) == [body]
    assert b.take(0, body, START + 99 * MS + 501 * MS, FIRST) == []


@pytest.mark.rfc("RFC 3550 8.2", "another transport address than the present source's is no source while that sends")
def test_another_senders_stream_waits_but_the_same_stream_of_two_senders_is_one() -> None:
    b = bench(wait_ns=20 * MS, failover_ns=500 * MS)
    out = []
    for i in range(100):
        out += b.take(0, packet(i), START + i * MS, FIRST)
        out += b.take(0, packet(i), START + i * MS, SECOND)
        assert b.take(0, packet(5000 + i, ssrc=9), START + i * MS, SECOND) == []
    assert numbers(out) == list(range(100))
    known = b.known()
    assert (known["duplicate"], known["drop_sender"], known["restarts"]) == (100, 100, 0)
    # The first ends: two of the other one's in line begin its stream.
    later = START + 2000 * MS
    assert b.take(0, packet(7000, ssrc=9), later, SECOND) == []
    assert numbers(b.take(0, packet(7001, ssrc=9), later + MS, SECOND)) == [7001]
    # One sender may begin anew at once.
    b.take(0, packet(1, ssrc=10), later + 2 * MS, SECOND)
    assert numbers(b.take(0, packet(2, ssrc=10), later + 3 * MS, SECOND)) == [2]


def test_a_clock_that_jumps_changes_nothing_but_the_time() -> None:
    """RTP time stamps of an encoder whose clock was set: forward, back, over the wrap. Packets go on as they come."""
    b = bench(wait_ns=20 * MS)
    out = []
    for i in range(400):
        offset = (0, 1 << 31, (1 << 32) - 5000, 90_000 * 3600)[i // 100]
        out += b.take(0, packet(i, timestamp=(i * 90 + offset) & 0xFFFFFFFF), START + i * MS)
    assert numbers(out) == list(range(400))
    known = b.known()
    assert (known["lost"], known["restarts"], known["drop_jump"]) == (0, 0, 0)
    assert known["jitter_ns"] < 1000 * MS
