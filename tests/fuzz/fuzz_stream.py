"""Fuzz target: the ring of a relay that is read over HTTP. Whatever transport packets come in, and at whatever pace a
reader takes them, he gets whole packets that were written, each once and in order. He begins, and goes on after a skip,
behind tables that stood before and with a packet where a decoder can begin.

    .venv/bin/python -m pytest tests/fuzz/fuzz_stream.py         a short run
    PYTHONPATH=. .venv/bin/python tests/fuzz/fuzz_stream.py 600  so many seconds; prints the number of runs
"""

from __future__ import annotations

import contextlib
import random
import select
import struct
import sys
from pathlib import Path

from mutation import run

from ext.relay_plane import RelayBench, Settings
from ext.relay_wire import ts_of
from ext.stream_plane import CHUNK, CHUNKS_MIN, Ring

sys.path.append(str(Path(__file__).resolve().parents[1] / "dataplane"))
from plane_rig import Rig, Viewer, wait_until
from relay_packets import rtp
from stream_rig import PMT_PID, TS, Program

MS = 10**6
TABLES_MAX = 12  # packets of PAT and PMT before an entry: TABLE_BYTES each, ext/stream.pxd
NULL = b"\x47\x1f\xff\x10" + b"\xff" * 184  # what fills a chunk after a pause
KINDS = (0x1B, 0x24, 0x02)
# What makes a key frame, or looks like one, in the middle of a packet.
STARTS = (b"\0\0\1\x65", b"\0\0\1\x67", b"\0\0\1\x26", b"\0\0\1\xb3", b"\0\0\1\0\0\1", b"\0\0\0\1")


class Writer:
    """Packets with a number in their last four bytes, so that each is known again; all before that is fair game."""

    def __init__(self, source: random.Random) -> None:
        self._source = source
        self._program = Program(is_marked=source.random() < 0.7, kind=source.choice(KINDS))
        self._sequence = source.randrange(65_536)
        self.written: list[bytes] = []  # what the ring must have taken, in order
        self.n = 0

    def _packet(self) -> bytes:
        source = self._source
        packet = bytearray(self._program.packet(self.n))
        if source.random() < 0.05:
            at = source.randrange(1, 12)
            packet[at] = source.randrange(256)
        if source.random() < 0.03:
            at = source.randrange(4, 180)
            packet[at : at + 6] = source.choice(STARTS).ljust(6, b"\0")
        if source.random() < 0.01:  # tables of many packets, that never end, or end at once
            packet[:4] = bytes([0x47, source.choice([0, 0x40]) | source.choice([0, PMT_PID >> 8]), 0, 0x10])
            packet[4:8] = source.randbytes(4)
        if source.random() < 0.003:
            packet[0] = source.randrange(256)
        packet[-4:] = struct.pack("!I", self.n)
        self.n += 1
        return bytes(packet)

    def datagram(self) -> bytes:
        source = self._source
        packets = [self._packet() for _ in range(source.choice([7, 7, 7, 1, 3]))]
        body = b"".join(packets)
        if source.random() < 0.01:
            body = body[: source.randrange(len(body))]  # cut: no transport packets, as a whole
        self._sequence = (self._sequence + 1) % 65_536
        if len(body) % TS == 0 and body[:1] == b"\x47":
            self.written += [packet for packet in packets[: len(body) // TS] if packet[0] == 0x47]
        return rtp(self._sequence, body)


class Reader:
    """One viewer who takes what he likes when he likes."""

    def __init__(self, source: random.Random, viewer: Viewer) -> None:
        self._source = source
        self._viewer = viewer
        self._appetite = source.choice([0.02, 0.3, 1.0])
        assert viewer.head().status == 200
        self.body = bytearray(viewer.data)
        viewer.data.clear()
        viewer.socket.setblocking(False)
        self.is_over = False

    def take(self) -> None:
        if self.is_over or self._source.random() > self._appetite:
            return
        with contextlib.suppress(BlockingIOError):
            piece = self._viewer.socket.recv(self._source.choice([1, 100, 5000, 1 << 20]))
            self.body += piece
            self.is_over = not piece

    def finish(self) -> None:
        while not self.is_over:
            if select.select([self._viewer.socket], [], [], 20)[0]:
                piece = self._viewer.socket.recv(1 << 20)
                self.body += piece
                self.is_over = not piece


def may_begin(packet: bytes) -> bool:
    """Marked, or a start code that may be a key frame's, or a PAT where a sender marks none."""
    found = ts_of(packet)
    if not isinstance(found, dict):
        return False
    pid = (packet[1] << 8 | packet[2]) & 0x1FFF
    if pid == 0 or found["is_random_access"]:
        return True
    return b"\0\0\1" in packet[found["payload"] :] and bool(packet[1] & 0x40)


def check_body(body: bytes, written: list[bytes], has_holes: bool) -> int:
    """Of how many runs it is. AssertionError: a byte that nobody wrote, or an order in which nobody did."""
    place = {packet: at for at, packet in enumerate(written)}
    assert len(place) == len(written)
    assert len(body) % TS == 0, "torn at the end"
    packets = [bytes(body[at : at + TS]) for at in range(0, len(body), TS)]
    assert all(packet in place or packet == NULL for packet in packets), "a packet that nobody wrote, or torn"
    numbers = [place[packet] for packet in packets if packet != NULL]
    if has_holes:  # what a worker's pass kept from being written
        return 0
    expected, runs, at = 0, 0, 0
    while at < len(numbers):
        begin = at
        while at < len(numbers) and not (
            may_begin(written[numbers[at]]) and (at + 1 == len(numbers) or numbers[at + 1] == numbers[at] + 1)
        ):
            at += 1
        assert at - begin <= TABLES_MAX, f"run {runs} begins with no tables and no place to begin"
        if at == len(numbers):
            break  # it ended between tables and entry
        assert numbers[at] >= expected, f"packet {numbers[at]} once more"
        assert all(number < numbers[at] for number in numbers[begin:at]), "tables of later"
        runs += 1
        while at + 1 < len(numbers) and numbers[at + 1] == numbers[at] + 1:
            at += 1
        expected = numbers[at] + 1
        at += 1
    return runs


def check(source: random.Random) -> None:
    """The target's invariants, for one seed."""
    rig = Rig(workers=2, send_bytes=source.choice([0, 4096]))
    holder = [Ring(rig.plane, CHUNKS_MIN * CHUNK, index=source.randrange(70), hold_ns=20 * MS, silence_ns=10**12)]
    bench = RelayBench(Settings(legs=[(-1, "media", ())], is_rtp=True))
    bench.set_stream(holder[0])
    writer = Writer(source)
    readers: list[Reader] = []
    now = 10**10
    n_datagrams = source.choice([50, 400, 900])
    for at in range(n_datagrams):
        bench.take(0, writer.datagram(), now)
        now += 5 * MS if source.random() > 0.002 else 3000 * MS
        if source.random() < 0.3:
            bench.publish(now)
        if len(readers) < 6 and source.random() < 12 / n_datagrams:
            viewer = rig.viewer(receive_bytes=source.choice([0, 4096]))
            viewer.ask("/relay")
            rig.exchange("stream").stream(holder[0])
            readers.append(Reader(source, viewer))
        if at % 4 == 0:
            for reader in readers:
                reader.take()
    bench.publish(now + 10**9)
    holder[0].close()
    for reader in readers:
        reader.finish()
    known = holder[0].known()
    assert known["packets"] + known["stalled"] == len(writer.written)
    runs = [check_body(bytes(reader.body), writer.written, known["stalled"] > 0) for reader in readers]
    # Tables may look like a run of their own.
    assert known["skips"] or all(n <= 2 for n in runs), f"{runs} runs without a skip"
    wait_until(lambda: not holder[0].has_readers or not [viewer.close() for viewer in rig.viewers])
    bench.set_stream(None)
    holder.clear()
    rig.close()


def test_fuzz_stream() -> None:
    for seed in range(12):
        check(random.Random(seed))


if __name__ == "__main__":
    run(check)
