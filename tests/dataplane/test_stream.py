"""Streams: a relay's packets in a ring, and viewers who read it over sockets. Each packet that a viewer gets is held
against the one that was sent, by its number."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import threading
import time

import pytest
from h2_rig import CLEARTEXT, H2Viewer
from plane_rig import Rig, wait_until
from relay_packets import rtp
from stream_rig import GROUP, TS, Program, StreamRig, numbers_of, pat, pmt
from tls_rig import authority, certificate, server

from ext.relay_plane import RelayBench, Settings
from ext.stream_plane import CHUNK, CHUNKS_MIN, Ring

SECONDS = float(os.environ.get("TORTURE_S", "4"))
SEED = int(os.environ.get("TORTURE_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 32)
NS = 10**9


def follows(numbers: list[int]) -> bool:
    """Without a hole but for tables, which carry no number: two at the beginning of each group."""
    expected = [n for n in range(numbers[0], numbers[-1] + 1) if n % GROUP > 1]
    return numbers == expected


# --- where a reader begins --------------------------------------------------------------------------------------------


def test_a_reader_begins_at_the_newest_random_access_point_with_its_tables() -> None:
    with StreamRig() as streams:
        streams.feed(2 * CHUNK // (7 * TS) + 25)
        viewer = streams.viewer()
        reply = viewer.head()
        assert reply.status == 200
        assert reply["content-type"] == "video/mp2t"
        assert reply["connection"] == "close"
        assert not reply.has("content-length")
        assert not reply.is_chunked
        body = viewer.until(50 * TS)
        numbers = numbers_of(body)
        # One entry a chunk: the first of the newest that has one.
        newest = streams.program.n * TS // CHUNK * CHUNK // TS
        assert numbers[0] % GROUP == 2
        assert newest <= numbers[0] < newest + GROUP
        group = numbers[0] // GROUP
        assert body[: 2 * TS] == pat(group) + pmt(group)
        assert follows(numbers)


def test_readers_get_everything_in_order() -> None:
    with StreamRig(workers=2) as streams:
        streams.feed()
        viewers = [streams.viewer() for _ in range(20)]
        for _ in range(30):
            streams.feed(20)
        assert streams.ring is not None
        wait_until(lambda: streams.known["readers"] == 20)
        streams.ring.close()
        for viewer in viewers:
            assert viewer.head().status == 200
            numbers = numbers_of(viewer.rest())
            assert numbers[0] == 2
            assert follows(numbers)
            assert numbers[-1] == streams.program.n - 1
        wait_until(lambda: not streams.known["readers"])
        assert streams.rig.total("relay_readers") == streams.rig.total("passed") == 20
        assert streams.rig.total("bytes_to_viewers") == streams.known["bytes"]
        assert streams.known["skips"] == 0


def test_a_head_takes_no_part() -> None:
    with StreamRig() as streams:
        streams.feed()
        viewer = streams.rig.viewer()
        viewer.ask("/relay", method="HEAD")
        streams.rig.exchange("stream").stream(None)
        assert viewer.reply("HEAD").status == 200
        assert streams.known["readers"] == 0
        viewer.ask("/relay")  # the connection goes on
        streams.answer()
        assert viewer.head().status == 200
        assert numbers_of(viewer.until(10 * TS))[0] == 2


def test_what_is_no_get_or_from_another_zone_asks_nothing() -> None:
    with StreamRig() as streams:
        viewer = streams.rig.viewer()
        assert viewer.get("/relay", method="OPTIONS").status == 204
        assert viewer.get("/relay", method="POST").status == 405
    with StreamRig(relay_zone_mask=2) as streams:
        viewer = streams.rig.viewer()
        assert viewer.get("/relay").status == 403
        assert streams.rig.total("refused_zone") == 1
        assert streams.rig.no_exchange()


def test_an_asker_who_leaves_before_the_answer_keeps_nothing() -> None:
    with StreamRig() as streams:
        streams.feed()
        viewer = streams.rig.viewer()
        viewer.ask("/relay")
        exchange = streams.rig.exchange("stream")
        viewer.close()
        wait_until(lambda: streams.rig.no_exchange() and streams.rig.cancelled, "the worker says that he has left")
        exchange.stream(streams.ring)
        assert streams.ring is not None
        wait_until(lambda: not streams.ring.has_readers)  # type: ignore[union-attr]


# --- slow readers -----------------------------------------------------------------------------------------------------


def test_a_slow_reader_skips_to_an_entry_and_never_gets_a_torn_packet() -> None:
    with StreamRig(chunks=CHUNKS_MIN, send_bytes=4096) as streams:
        streams.feed()
        slow = streams.viewer(receive_bytes=4096)
        body = slow.head() and slow.until(TS)
        while streams.known["skips"] < 2:
            streams.feed(40)
            with contextlib.suppress(BlockingIOError):  # it takes a little, far too little
                slow.data += slow.socket.recv(3000, socket.MSG_DONTWAIT)
        assert streams.ring is not None
        streams.ring.close()
        body += slow.rest()
        numbers = numbers_of(body)
        breaks = [at for at in range(1, len(numbers)) if not follows(numbers[at - 1 : at + 1])]
        assert 1 <= len(breaks) <= streams.known["skips"]
        assert all(numbers[at] % GROUP == 2 for at in breaks), "on with a random access point"
        assert len(body) % TS == 0
        assert streams.rig.total("relay_skips") == streams.known["skips"]


@pytest.mark.parametrize("tls", [False, True])
def test_http2_readers_get_whole_packets_and_skip_too(tls: bool) -> None:
    options = {"tls": server(certificate()), "http2": 1} if tls else {"http2": CLEARTEXT}
    with StreamRig(chunks=CHUNKS_MIN, **options) as streams:
        if tls:
            streams.rig.context = authority().context()
        streams.feed()
        viewer = H2Viewer(streams.rig, takes=False, window=20_000)
        stream = viewer.request("/relay")
        streams.answer()
        for _ in range(40):  # twice the window, while the viewer's own is shut
            streams.feed(40)
        viewer.takes = True
        viewer.h2.increment_flow_control_window(1 << 20)
        viewer.h2.increment_flow_control_window(1 << 20, stream)
        viewer.flush()
        while len(viewer.answers[stream].body) < 300_000:
            streams.feed(40)
            while not viewer.is_silent():
                assert viewer.step()
        assert streams.ring is not None
        streams.ring.close()
        body = viewer.until_over(stream)[0].body
        assert len(body) % TS == 0
        numbers = numbers_of(body)
        breaks = sum(not follows(numbers[at - 1 : at + 1]) for at in range(1, len(numbers)))
        assert 1 <= breaks <= streams.known["skips"]


def test_a_slow_reader_over_tls() -> None:
    with StreamRig(chunks=CHUNKS_MIN, send_bytes=4096, tls=server(certificate())) as streams:
        streams.rig.context = authority().context()
        streams.feed()
        slow = streams.viewer(receive_bytes=4096)
        body = slow.head() and slow.until(TS)
        while streams.known["skips"] < 2:
            streams.feed(40)
            body += slow.until(TS)
        streams.feed(40)
        assert streams.ring is not None
        streams.ring.close()
        body += slow.rest()
        numbers = numbers_of(body)
        assert numbers[-1] == streams.program.n - 1, "what was encrypted before the end comes before it"
        breaks = [at for at in range(1, len(numbers)) if not follows(numbers[at - 1 : at + 1])]
        assert 1 <= len(breaks) <= streams.known["skips"]
        assert len(body) % TS == 0


# --- ends -------------------------------------------------------------------------------------------------------------


def test_silence_ends_a_reader_only_after_its_time() -> None:
    with StreamRig(silence_ns=NS, send_window_ns=NS // 2) as streams:
        streams.feed()
        viewer = streams.viewer()
        assert viewer.head().status == 200
        begun = time.monotonic()
        body = viewer.rest()
        assert time.monotonic() - begun > 0.9
        assert follows(numbers_of(body))
        assert streams.rig.total("relay_silent") == 1


def test_a_drain_ends_readers_between_packets() -> None:
    with StreamRig() as streams:
        streams.feed()
        viewer = streams.viewer()
        assert viewer.head().status == 200
        numbers_of(viewer.until(10 * TS))
        streams.rig.plane.drain()
        assert len(viewer.rest()) % TS == 0


def test_who_may_no_longer_is_let_go() -> None:
    with StreamRig() as streams:
        streams.feed()
        viewer = streams.viewer()
        assert viewer.head().status == 200
        numbers_of(viewer.until(10 * TS))
        streams.rig.relay_zone_mask = 2
        streams.rig.publish()
        streams.feed()
        streams.feed()
        assert len(viewer.rest()) % TS == 0


# --- the ring ---------------------------------------------------------------------------------------------------------


class Bench:
    """A relay and a ring without sockets or time."""

    def __init__(self, hold_ns: int = 0) -> None:
        self.rig = Rig()
        self.ring = Ring(self.rig.plane, CHUNKS_MIN * CHUNK, index=0, hold_ns=hold_ns, silence_ns=NS)
        self.relay = RelayBench(Settings(legs=[(-1, "media", ())]))
        self.relay.set_stream(self.ring)
        self.now = 10 * NS

    def take(self, *datagrams: bytes, step_ns: int = 1000) -> dict[str, int]:
        for datagram in datagrams:
            self.now += step_ns
            self.relay.take(0, datagram, self.now)
            self.relay.publish(self.now)
        return self.ring.known()

    def close(self) -> None:
        self.relay = self.ring = None  # type: ignore[assignment]
        self.rig.close()


def test_rtp_is_stripped_and_what_is_no_transport_stream_is_counted() -> None:
    bench = Bench()
    program = Program()
    for i, each in enumerate(program.datagrams(10)):
        bench.take(rtp(i, each))
    assert bench.ring.known()["packets"] == 70
    assert bench.ring.has_entry
    bench.take(rtp(10, b"no transport stream"), rtp(11, b"\x47" + bytes(187)), rtp(12, bytes(188)))
    known = bench.ring.known()
    assert (known["packets"], known["refused"]) == (71, 2)
    bench.close()


def test_readers_are_told_in_steps() -> None:
    bench = Bench(hold_ns=20_000_000)
    program = Program()
    bench.take(*program.datagrams(1))
    assert bench.take(*program.datagrams(9))["published"] == 0
    bench.now += 20_000_000
    bench.relay.publish(bench.now)
    assert bench.ring.known()["published"] == 70 * TS
    many = bench.take(*program.datagrams(250))["published"]
    assert many >= 262_144, "so much at once, whatever the time"
    bench.close()


def test_a_key_frame_is_found_by_what_is_in_it() -> None:
    """Encoders that never set random_access_indicator."""
    for kind, start in ((0x1B, b"\x67"), (0x1B, b"\x65"), (0x24, b"\x40"), (0x24, b"\x26"), (0x02, b"\xb3")):
        bench = Bench()
        key = bytes([0x47, 0x41, 0x01, 0x10]) + b"\x00\x00\x01\xe0\x00\x00\x80\x80\x05" + b"\x21\x00\x01\x00\x01"
        key = (key + b"\x00\x00\x00\x01" + start).ljust(TS, b"\x11")
        other = (bytes([0x47, 0x41, 0x01, 0x11]) + b"\x00\x00\x01\xe0" + b"\x00\x00\x00\x01\x02").ljust(TS, b"\x11")
        bench.take(pat(0) + pmt(0, kind) + other)
        assert not bench.ring.has_entry
        bench.take(key)
        assert bench.ring.has_entry, (kind, start)
        bench.close()


def test_without_any_key_frame_a_reader_begins_at_a_pat_in_the_end() -> None:
    bench = Bench()
    program = Program(is_marked=False)
    bench.take(*program.datagrams(20), step_ns=1_000_000)
    assert not bench.ring.has_entry
    bench.now += 1_500_000_000
    bench.take(*program.datagrams(40), step_ns=30_000_000)
    assert bench.ring.has_entry
    bench.close()


def test_after_a_pause_nobody_begins_with_what_was_before_it() -> None:
    bench = Bench()
    program = Program()
    bench.take(*program.datagrams(11))
    assert bench.ring.has_entry
    bench.now += 3 * NS
    bench.take(*program.datagrams(1))
    assert not bench.ring.has_entry
    bench.take(*program.datagrams(20))
    assert bench.ring.has_entry
    bench.close()


def test_the_window_slides_by_whole_chunks_and_its_memory_is_counted() -> None:
    bench = Bench()
    program = Program()
    assert bench.rig.plane.memory["used"] - bench.rig.empty["used"] >= CHUNKS_MIN * CHUNK
    known = bench.take(*program.datagrams(1000))
    assert known["oldest"] % CHUNK == 0
    assert known["published"] == 7000 * TS
    assert known["published"] - known["oldest"] <= (CHUNKS_MIN - CHUNKS_MIN // 4) * CHUNK
    assert known["published"] - known["oldest"] > (CHUNKS_MIN - CHUNKS_MIN // 4 - 2) * CHUNK
    assert known["stalled"] == 0
    bench.close()


def test_a_ring_that_memory_has_no_room_for() -> None:
    rig = Rig(memory=1 << 20)
    with pytest.raises(MemoryError):
        Ring(rig.plane, 4 << 20, index=0, hold_ns=0, silence_ns=1)
    for wrong in (CHUNK, 1 << 40):
        with pytest.raises(ValueError, match="chunks"):
            Ring(rig.plane, wrong, index=0, hold_ns=0, silence_ns=1)
    rig.close()


# --- all at once ------------------------------------------------------------------------------------------------------


def test_torture() -> None:
    """A window of half a megabyte that is written over all the time, and readers of all manners: nobody gets a byte
    that isn't the program's, or half a packet. TORTURE_S and TORTURE_SEED as in test_torture.py."""
    print(f"seed {SEED}")
    chance = random.Random(SEED)
    n_skips = n_bytes = 0
    with StreamRig(workers=2, chunks=CHUNKS_MIN, hold_ns=300_000, send_bytes=8192) as streams:
        streams.feed()
        stop, errors = threading.Event(), []

        def read(seed: int) -> None:
            own = random.Random(seed)
            try:
                while not stop.is_set():
                    viewer = streams.rig.viewer(own.choice([0, 4096]))
                    viewer.ask("/relay")
                    assert viewer.head().status == 200
                    body = b""
                    for _ in range(own.randrange(1, 60)):
                        body += viewer.until(own.randrange(1, 40_000))
                        if own.random() < 0.3:
                            time.sleep(own.random() * 0.05)
                        if stop.is_set():
                            break
                    numbers_of(body)
                    viewer.close()
            except BaseException as error:
                if not stop.is_set():
                    errors.append(error)

        readers = [threading.Thread(target=read, args=(chance.random(),)) for _ in range(6)]
        for each in readers:
            each.start()
        end_s = time.monotonic() + SECONDS
        while time.monotonic() < end_s and not errors:
            streams.feed(chance.randrange(1, 60))
            streams.rig.take()
            while streams.rig.exchanges:
                streams.rig.exchanges.pop().stream(streams.ring)
            if chance.random() < 0.02:
                streams.rig.publish()
        stop.set()
        assert streams.ring is not None
        end_s = time.monotonic() + 20
        while any(each.is_alive() for each in readers) and time.monotonic() < end_s:
            streams.feed(10)
            streams.rig.take()
            while streams.rig.exchanges:
                streams.rig.exchanges.pop().stream(streams.ring)
        for each in readers:
            each.join(1)
        n_skips, n_bytes = streams.known["skips"], streams.known["bytes"]
        if errors:
            raise errors[0]
    print(f"{n_bytes} bytes, {n_skips} skips")
    assert n_bytes
