"""A program of transport packets that know their place, a plane whose viewers read it, and the relay worker that brings
it. No test lives here."""

from __future__ import annotations

import hashlib
import struct
import time
from types import TracebackType
from typing import Any

from plane_rig import RELAY, Rig, Viewer, wait_until
from relay_rig import RelayRig

from ext.stream_plane import CHUNK, Ring

TS = 188
PMT_PID, VIDEO_PID = 0x100, 0x101
NULL = b"\x47\x1f\xff\x10".ljust(TS, b"\xff")
PAUSE_S = 2.0  # after a pause of the program the ring goes on in a new chunk: null packets up to there
GROUP = 70  # packets of a group of pictures, PAT and PMT among them: ten datagrams


def crc32_mpeg(data: bytes) -> int:
    """ISO/IEC 13818-1 annex A."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte << 24
        for _ in range(8):
            crc = (crc << 1 ^ 0x04C11DB7 if crc & 0x80000000 else crc << 1) & 0xFFFFFFFF
    return crc


def section(pid: int, continuity: int, table: bytes) -> bytes:
    """One packet with a whole section."""
    whole = table + struct.pack("!I", crc32_mpeg(table))
    return bytes([0x47, 0x40 | pid >> 8, pid & 0xFF, 0x10 | continuity & 15, 0]) + whole.ljust(183, b"\xff")


def pat(continuity: int) -> bytes:
    return section(0, continuity, b"\x00\xb0\x0d\x00\x01\xc1\x00\x00\x00\x01" + struct.pack("!H", 0xE000 | PMT_PID))


def pmt(continuity: int, kind: int = 0x1B) -> bytes:
    body = b"\x00\x01\xc1\x00\x00" + struct.pack("!HH", 0xE000 | VIDEO_PID, 0xF000)
    body += bytes([kind]) + struct.pack("!HH", 0xE000 | VIDEO_PID, 0xF000)
    return section(PMT_PID, continuity, b"\x02" + struct.pack("!H", 0xB000 | len(body) + 4) + body)


def filled(head: bytes, number: int) -> bytes:
    """The packet's number, and bytes that follow from it."""
    stamp = struct.pack("!Q", number)
    return (head + stamp + hashlib.shake_128(stamp).digest(TS))[:TS]


class Program:
    """Packet after packet: each group begins with PAT, PMT and a random access point of the video."""

    def __init__(self, *, is_marked: bool = True, kind: int = 0x1B) -> None:
        self.is_marked, self.kind = is_marked, kind
        self.n = 0

    def packet(self, number: int) -> bytes:
        group, place = divmod(number, GROUP)
        if place == 0:
            return pat(group)
        if place == 1:
            return pmt(group, self.kind)
        continuity = group * (GROUP - 2) + place - 2
        start = 0x40 if place == 2 else 0
        if place == 2 and self.is_marked:
            head = bytes([0x47, start | VIDEO_PID >> 8, VIDEO_PID & 0xFF, 0x30 | continuity & 15, 1, 0x40])
        else:
            head = bytes([0x47, start | VIDEO_PID >> 8, VIDEO_PID & 0xFF, 0x10 | continuity & 15])
        return filled(head, number)

    def datagrams(self, n: int) -> list[bytes]:
        made = [b"".join(self.packet(self.n + 7 * i + j) for j in range(7)) for i in range(n)]
        self.n += 7 * n
        return made


def numbers_of(data: bytes, *, is_marked: bool = True) -> list[int]:
    """The packets in `data`, each of which must be one of the program's, whole; tables stand for their group's."""
    program = Program(is_marked=is_marked)
    found: list[int] = []
    for at in range(0, len(data) // TS * TS, TS):
        packet = data[at : at + TS]
        assert packet[0] == 0x47, f"torn at {at}"
        pid = (packet[1] << 8 | packet[2]) & 0x1FFF
        if pid == VIDEO_PID:
            begin = 6 if packet[3] & 0x20 else 4
            (number,) = struct.unpack_from("!Q", packet, begin)
            assert packet == program.packet(number), f"a wrong byte in packet {number}"
            found.append(number)
        elif StreamRig.has_paused and packet == NULL:
            continue
        else:
            assert packet in (pat(packet[3]), pmt(packet[3])), f"a wrong byte at {at}"
    return found


class StreamRig:
    """Viewers' plane and relay plane around one ring."""

    has_paused = False  # the newest one's program stood still, as on a machine that has other work

    def __init__(
        self, *, chunks: int = 16, hold_ns: int = 0, silence_ns: int = 10**11, is_marked: bool = True, **options: Any
    ) -> None:
        self.rig = Rig(**options)
        self.ring: Ring | None = Ring(
            self.rig.plane, chunks * CHUNK, index=3, hold_ns=hold_ns, silence_ns=silence_ns
        )
        self.relays = RelayRig()
        self.incoming = self.relays.open()
        self.relays.relay([self.incoming], [])
        self.relays.plane.set_stream(0, self.ring)
        self.sender = self.relays.open()
        self.program = Program(is_marked=is_marked)
        self._fed_s = time.monotonic()
        StreamRig.has_paused = False

    def __enter__(self) -> StreamRig:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.relays.__exit__(kind, error, trace)
        if error is not None:
            self.rig.plane.close()
            return
        if self.ring is not None:
            self.ring.close()
        wait_until(lambda: self.ring is None or not self.ring.has_readers or not self.close_viewers())
        self.ring = None
        self.relays = None  # type: ignore[assignment]
        self.rig.close()
        assert self.rig.plane.memory["retired"] == 0
        assert self.rig.plane.memory["used"] == self.rig.empty["used"], "the ring's memory is not given back"

    def close_viewers(self) -> bool:
        for viewer in self.rig.viewers:
            viewer.close()
        return True

    @property
    def known(self) -> dict[str, int]:
        assert self.ring is not None
        return self.ring.known()

    def feed(self, datagrams: int = 10) -> None:
        """The program goes on by so many datagrams of seven packets; returns when readers can see them."""
        self.relays.send(self.incoming, self.program.datagrams(datagrams), sender=self.sender)

        def is_published() -> bool:
            known = self.known
            return min(known["published"] // TS, known["packets"]) + known["stalled"] >= self.program.n

        wait_until(is_published, "published")
        before_s, self._fed_s = self._fed_s, time.monotonic()
        StreamRig.has_paused |= self._fed_s - before_s > PAUSE_S

    def viewer(self, method: str = "GET", receive_bytes: int = 0) -> Viewer:
        """Who has asked, and is answered by the ring."""
        viewer = self.rig.viewer(receive_bytes)
        viewer.ask("/relay", method=method)
        self.answer()
        return viewer

    def answer(self) -> None:
        self.rig.exchange("stream").stream(self.ring)


__all__ = ["GROUP", "PMT_PID", "RELAY", "TS", "VIDEO_PID", "Program", "StreamRig", "filled", "numbers_of",
           "pat", "pmt"]  # fmt: skip
