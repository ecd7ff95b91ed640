"""Datagrams for relay tests: RTP, transport packets, SMPTE 2022-1 repair, made by their texts, not by our code."""

from __future__ import annotations

import struct
from collections.abc import Sequence

SSRC = 0x1234_5678


def rtp(sequence: int, payload: bytes, *, ssrc: int = SSRC, kind: int = 33, timestamp: int | None = None) -> bytes:
    """RFC 3550 section 5.1."""
    time = (sequence * 900 if timestamp is None else timestamp) & 0xFFFFFFFF
    return struct.pack("!BBHII", 0x80, kind, sequence & 0xFFFF, time, ssrc) + payload


def transport(pid: int, continuity: int, *, adaptation: bytes | None = None, payload: bool = True) -> bytes:
    """One packet of 188 bytes; `adaptation` is what follows adaptation_field_length."""
    control = (2 if adaptation is not None else 0) | (1 if payload else 0)
    head = bytes([0x47, pid >> 8, pid & 0xFF, control << 4 | continuity & 15])
    if adaptation is not None:
        if not payload:
            adaptation = adaptation.ljust(183, b"\xff")
        head += bytes([len(adaptation)]) + adaptation
    return head.ljust(188, bytes([sum(head) & 0xFF]))


def pcr(ticks: int) -> bytes:
    """An adaptation field's flags and clock reference, in units of 27 MHz."""
    base, extension = divmod(ticks, 300)
    return b"\x10" + struct.pack("!IH", base >> 1 & 0xFFFFFFFF, (base & 1) << 15 | 0x7E00 | extension)


def stream(n: int, *, first: int = 0, kind: int = 33) -> list[bytes]:
    """`n` RTP packets of seven transport packets each."""
    found = []
    for i in range(n):
        body = b"".join(transport(0x100, 7 * i + j) for j in range(7))
        found.append(rtp(first + i, body[:-4] + struct.pack("!I", i), kind=kind))
    return found


def repair(packets: Sequence[bytes], base: int, offset: int, *, row: bool = False, sequence: int = 0) -> bytes:
    """The SMPTE 2022-1 packet over `packets`, whose numbers are base, base + offset, ..."""
    size = max(len(packet) for packet in packets) - 12
    body = length = kind = time = 0
    for packet in packets:
        length ^= len(packet) - 12
        kind ^= packet[1] & 0x7F
        time ^= struct.unpack("!I", packet[4:8])[0]
        body ^= int.from_bytes(packet[12:].ljust(size, b"\0"), "big")
    header = struct.pack(
        "!HHBBHIBBBB", base & 0xFFFF, length, 0x80 | kind, 0, 0, time, 0x40 if row else 0, offset, len(packets), 0
    )
    return rtp(sequence, header + body.to_bytes(size, "big"), ssrc=0, kind=96)


def matrix(packets: Sequence[bytes], columns: int, rows: int, first: int = 0) -> tuple[list[bytes], list[bytes]]:
    """Column and row repair of one matrix of columns x rows packets, the first of them numbered `first`."""
    by_column = [repair(packets[c::columns], first + c, columns, sequence=c) for c in range(columns)]
    by_row = [
        repair(packets[r * columns : (r + 1) * columns], first + r * columns, 1, row=True, sequence=r)
        for r in range(rows)
    ]
    return by_column, by_row
