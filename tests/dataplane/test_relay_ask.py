"""Missing packets are asked for again and put back: what is asked, when, and what is never taken."""

from __future__ import annotations

import random
import socket
import struct
import threading
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from relay_packets import SSRC, rtp, transport
from relay_rig import RelayRig, destination

from ext.relay_plane import RelayBench, Settings

MS = 1_000_000
START = 5_000_000_000
ASKING: dict[str, Any] = {
    "ask_to": destination(("127.0.0.1", 5005)), "ask_ssrc": 0xA5A5A5A5, "ask_name": b"0123456789abcdef", "rtx_type": 97,
}  # fmt: skip


def bench(**options: Any) -> RelayBench:
    legs: list[tuple[int, str, tuple[tuple[bytes, int], ...]]] = [(-1, "media", ()), (-1, "rtx", ())]
    return RelayBench(Settings(legs=legs, is_rtp=True, **{"wait_ns": 250 * MS, **ASKING, **options}))


def body(i: int) -> bytes:
    return transport(0x100, i)[:-4] + struct.pack("!I", i)


def packet(i: int) -> bytes:
    return rtp(i, body(i))


def again(i: int, payload: bytes | None = None, *, kind: int = 97) -> bytes:
    """RFC 4588 section 4: the number it had before its payload, everything else of a stream of its own."""
    osn = struct.pack("!H", i & 0xFFFF)
    return rtp(i * 7, osn + (body(i) if payload is None else payload), ssrc=99, kind=kind, timestamp=i * 900)


def asked(data: bytes) -> list[int]:
    """The numbers of a compound packet's NACK, its form checked by RFC 3550 and RFC 4585."""
    assert struct.unpack_from("!BBHI", data) == (0x80, 201, 1, 0xA5A5A5A5)
    assert struct.unpack_from("!BBHIBB16sH", data, 8) == (0x81, 202, 6, 0xA5A5A5A5, 1, 16, b"0123456789abcdef", 0)
    flags, kind, words, sender, media = struct.unpack_from("!BBHII", data, 36)
    assert (flags, kind, sender, media) == (0x81, 205, 0xA5A5A5A5, SSRC)
    assert len(data) == 36 + 4 * (words + 1)
    found = []
    for first, bits in struct.iter_unpack("!HH", data[48:]):
        found += [first] + [(first + 1 + bit) & 0xFFFF for bit in range(16) if bits >> bit & 1]
    return found


@pytest.mark.rfc("RFC 4585 6.2.1", "a generic NACK names each missing packet once")
def test_what_is_missing_is_asked_for_after_a_moment() -> None:
    b = bench()
    for i in (10, 11, 13, 31, 33):
        b.take(0, packet(i), START)
    assert b.ask(START + 4 * MS) == b""
    assert asked(b.ask(START + 5 * MS)) == [12, *range(14, 31), 32]
    assert b.ask(START + 44 * MS) == b"", "not again before an answer can be here"
    assert asked(b.ask(START + 45 * MS)) == [12, *range(14, 31), 32]
    assert b.known()["asked"] == 38


def test_what_comes_late_is_not_asked_for() -> None:
    b = bench()
    for i in (10, 12, 11):
        b.take(0, packet(i), START)
    assert b.ask(START + 100 * MS) == b""
    assert b.known()["asked"] == 0


def test_four_times_at_most() -> None:
    b = bench(wait_ns=10_000 * MS)
    b.take(0, packet(10), START)
    b.take(0, packet(12), START)
    times = [ms for ms in range(0, 5000, 5) if b.ask(START + ms * MS)]
    assert times == [5, 45, 85, 125]


@pytest.mark.rfc("RFC 4588 4", "a retransmission gives back the packet with its own header and number")
@pytest.mark.parametrize("leg", [0, 1], ids=["beside the media", "to the port that asked"])
def test_an_answer_is_the_packet_that_was_lost(leg: int) -> None:
    b = bench()
    for i in (65_534, 65_536):  # the sequence wraps
        assert len(b.take(0, packet(i), START)) == (i == 65_534)
    assert asked(b.ask(START + 5 * MS)) == [65_535]
    assert b.take(leg, again(65_535), START + 25 * MS) == [packet(65_535), packet(65_536)]
    known = b.known()
    assert (known["repaired"], known["retransmitted"], known["lost"], known["drop_retransmitted"]) == (1, 1, 0, 0)


def test_asked_again_after_one_and_a_half_round_trips() -> None:
    b = bench()
    b.take(0, packet(10), START)
    b.take(0, packet(12), START)
    assert b.ask(START + 5 * MS)
    b.take(1, again(11), START + 105 * MS)
    b.take(0, packet(14), START + 110 * MS)
    assert asked(b.ask(START + 115 * MS)) == [13]
    assert b.ask(START + 264 * MS) == b""
    assert asked(b.ask(START + 265 * MS)) == [13]


@pytest.mark.parametrize(
    ("data", "counter"),
    [
        (again(12), "drop_retransmitted"),  # there already
        (again(99), "drop_retransmitted"),  # newer than all
        (again(3), "drop_retransmitted"),  # gone
        (rtp(1, b"", kind=97), "drop_retransmitted"),
        (rtp(1, b"\0\x0b", kind=97), "drop_retransmitted"),
        (rtp(1, b"\0", kind=97), "drop_retransmitted"),
        (again(11, b"no transport packets"), "repair_refused"),
        (again(11, kind=96), "drop_type"),
        (b"\x80\xc8\0\x01\0\0\0\0" + bytes(20), "drop_rtcp"),
        (b"\x80", "drop_malformed"),
    ],
)
def test_what_is_no_answer_changes_nothing(data: bytes, counter: str) -> None:
    b = bench()
    for i in (10, 12):
        b.take(0, packet(i), START)
    assert b.ask(START + 5 * MS)
    assert b.take(1, data, START + 6 * MS) == []
    assert b.known()[counter] == 1
    assert b.take(1, again(11), START + 7 * MS) == [packet(11), packet(12)]
    assert b.take(1, again(11), START + 8 * MS) == []


def test_an_answer_to_what_was_not_asked_is_refused() -> None:
    """Whoever could send one unasked would have a way into the stream."""
    b = bench()
    for i in (10, 12):
        b.take(0, packet(i), START)
    assert b.take(1, again(11), START + MS) == []
    assert b.known()["drop_retransmitted"] == 1


@pytest.mark.rfc("RFC 4588 4", "padding of a retransmission is not part of the packet")
def test_padding_and_csrc_of_an_answer() -> None:
    b = bench()
    for i in (10, 12):
        b.take(0, packet(i), START)
    assert b.ask(START + 5 * MS)
    data = again(11)
    padded = bytes([data[0] | 0x21]) + data[1:12] + b"CSRC" + data[12:] + b"\0\0\0\x04"
    out = b.take(1, padded, START + 6 * MS)
    expected = packet(11)
    assert out[0] == bytes([expected[0] | 1]) + expected[1:12] + b"CSRC" + expected[12:]


@given(st.lists(st.sampled_from(["ok", "lost", "late"]), min_size=3, max_size=400), st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_whatever_is_lost_comes_back_in_order_and_once(fates: list[str], seed: int) -> None:
    """Every request is answered after 20 ms; one in three answers is lost on its way."""
    source = random.Random(seed)
    b = bench(window_packets=1024)
    out, answers, late = [], [], []
    fates = ["ok", *fates, "ok"]
    for i in range(len(fates) + 300):
        now = START + i * 2 * MS
        if i < len(fates):
            if fates[i] == "ok":
                out += b.take(0, packet(i), now)
            elif fates[i] == "late":
                late.append((now + 3 * MS, i))
        for when, number in [each for each in late if each[0] <= now]:
            late.remove((when, number))
            out += b.take(0, packet(number), now)
        for when, number in [each for each in answers if each[0] <= now]:
            answers.remove((when, number))
            if source.random() > 0.33:
                out += b.take(1, again(number), now)
        if data := b.ask(now):
            answers += [(now + 20 * MS, number) for number in asked(data)]
        out += b.expire(now)
    known = b.known()
    numbers = [struct.unpack_from("!H", each, 2)[0] for each in out]
    assert out == [packet(number) for number in numbers]
    assert numbers == sorted(set(numbers))
    assert len(numbers) + known["lost"] == len(fates)


def test_a_worker_asks_and_takes_the_answers() -> None:
    """Over sockets: a sender that loses one packet in ten, and answers."""
    with RelayRig() as rig:
        media, asking, server, screen = rig.open(), rig.open(), rig.open(), rig.receiver()
        server.setblocking(True)
        server.settimeout(0.1)
        relay = Settings(
            legs=[(media.fileno(), "media", ()), (asking.fileno(), "rtx", ())], is_rtp=True, wait_ns=2000 * MS,
            window_packets=1024, **{**ASKING, "ask_to": destination(server.getsockname())},
        )  # fmt: skip
        rig.plane.add(0, relay)
        out = rig.open()
        rig.plane.open_output(0, 0, out.fileno(), hold_ns=0)
        rig.plane.set_receivers(0, [(0, destination(screen.getsockname()))])
        done = threading.Event()

        def answer() -> None:
            while not done.is_set():
                try:
                    data, whom = server.recvfrom(2000)
                except TimeoutError:
                    continue
                for number in asked(data):
                    server.sendto(again(number), whom)

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as source:
                for i in range(300):
                    if i % 10 != 5:
                        source.sendto(packet(i), media.getsockname())
            rig.wait(lambda: len(rig.received[screen]) == 300)
        finally:
            done.set()
            thread.join()
        assert rig.received[screen] == [packet(i) for i in range(300)]
