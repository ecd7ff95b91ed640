"""Readers of RTP, MPEG-TS and SMPTE 2022-1: fields against packets made by hand, and what they refuse, by name."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from relay_packets import matrix, pcr, repair, rtp, stream, transport

from ext.relay_wire import TsMeter, fec_of, format_of, rtp_of, ts_of


def test_rtp_fields() -> None:
    found = rtp_of(rtp(0xFFFE, b"x" * 20, ssrc=7, kind=96, timestamp=9))
    assert found == {
        "sequence": 0xFFFE, "ssrc": 7, "payload_type": 96, "timestamp": 9, "marker": 0,
        "header_bytes": 12, "payload_bytes": 20,
    }  # fmt: skip


def test_rtp_sources_extension_and_padding_are_not_payload() -> None:
    plain = rtp(1, b"")
    head = bytes([0x80 | 0x30 | 2]) + plain[1:] + b"c" * 8 + b"\xbe\xde\x00\x01" + b"e" * 4
    found = rtp_of(head + b"payload" + b"\x00\x00\x03")
    assert isinstance(found, dict)
    assert (found["header_bytes"], found["payload_bytes"]) == (28, 7)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "short"),
        (rtp(1, b"")[:11], "short"),
        (b"\x40" + rtp(1, b"")[1:], "version"),
        (b"\x00" * 200, "version"),
        (b"\x80\xc8" + b"\x00" * 26, "rtcp"),
        (b"\x8f" + rtp(1, b"x" * 59)[1:], "header"),
        (b"\x90" + rtp(1, b"\x00\x00\x00")[1:], "header"),
        (b"\x90" + rtp(1, b"\x00\x00\x00\x02abcd")[1:], "header"),
        (b"\xa0" + rtp(1, b"ab\x00")[1:], "padding"),
        (b"\xa0" + rtp(1, b"ab\x04")[1:], "padding"),
        (b"\xa0" + rtp(1, b"")[1:], "padding"),
    ],
)
def test_rtp_refused(data: bytes, reason: str) -> None:
    # An empty packet's last header byte is its SSRC's: it must not be taken for a padding count.
    assert rtp_of(data) == reason


def test_ts_fields() -> None:
    found = ts_of(transport(0x1FE, 9, adaptation=b"\xd0" + pcr(27_000_000 * 3600 + 299)[1:]))
    assert isinstance(found, dict)
    assert found["pid"] == 0x1FE
    assert found["continuity"] == 9
    assert found["is_discontinuous"] == found["is_random_access"] == 1
    assert found["pcr"] == 27_000_000 * 3600 + 299
    assert found["payload"] == 12


@pytest.mark.parametrize(
    ("packet", "reason"),
    [
        (b"\x46" + b"\x00" * 187, "sync"),
        (b"\x47\x01\x00\x30\xb7" + b"\x00" * 183, "adaptation"),
        (b"\x47\x01\x00\x20\xb8" + b"\x00" * 183, "adaptation"),
        (b"\x47\x01\x00\x30\x06\x10" + b"\x00" * 182, "adaptation"),
    ],
)
def test_ts_refused(packet: bytes, reason: str) -> None:
    assert ts_of(packet) == reason


def test_a_datagram_says_what_it_carries() -> None:
    packets = stream(1)[0]
    assert format_of(packets) == "rtp"
    assert format_of(packets[12:]) == "ts"
    assert format_of(packets[12:-1]) == "opaque"
    assert format_of(b"\x47" * 187) == "opaque"
    assert format_of(b"hello") == "opaque"


def continuity_errors(*packets: bytes) -> int:
    meter = TsMeter()
    for packet in packets:
        meter.add(packet)
    found = meter.known()["continuity_errors"]
    assert found is not None
    return found


def test_continuity_counter() -> None:
    """ISO/IEC 13818-1 2.4.3.3."""
    p = transport
    assert continuity_errors(*(p(5, i) for i in range(40))) == 0
    assert continuity_errors(p(5, 0), p(5, 2)) == 1
    assert continuity_errors(p(5, 0), p(6, 9), p(5, 1)) == 0
    assert continuity_errors(p(5, 0), p(5, 0), p(5, 1)) == 0
    assert continuity_errors(p(5, 0), p(5, 0), p(5, 0)) == 1
    assert continuity_errors(p(5, 0), p(5, 7, adaptation=b"\x80"), p(5, 8)) == 0
    assert continuity_errors(p(5, 0), p(5, 0, adaptation=b"\x00", payload=False), p(5, 1)) == 0
    assert continuity_errors(p(5, 0), p(5, 1, adaptation=b"\x00", payload=False)) == 1
    assert continuity_errors(p(0x1FFF, 0), p(0x1FFF, 9)) == 0


def test_a_clock_reference_that_jumps_is_counted_unless_announced() -> None:
    meter = TsMeter()
    for i, ticks in enumerate((0, 2_700_000, 2_700_000 + 28_000_000)):
        meter.add(transport(5, i, adaptation=pcr(ticks)))
    assert meter.known()["pcr_jumps"] == 1
    meter.add(transport(5, 3, adaptation=b"\x90" + pcr(5)[1:]))
    assert meter.known()["pcr_jumps"] == 1
    wrap = (1 << 33) * 300
    meter.add(transport(5, 4, adaptation=b"\x90" + pcr(wrap - 300)[1:]))
    meter.add(transport(5, 5, adaptation=pcr(300_000)))
    assert meter.known()["pcr_jumps"] == 1


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs ffmpeg")
def test_video_pid_rate_and_random_access_of_a_real_stream() -> None:
    made = subprocess.run(
        ["ffmpeg", "-v", "error", "-f", "lavfi", "-i", "testsrc2=s=160x120:r=25", "-f", "lavfi", "-i", "sine",
         "-t", "3", "-c:v", "libx264", "-preset", "ultrafast", "-g", "25", "-c:a", "aac", "-mpegts_start_pid", "0x321",
         "-muxrate", "1000000", "-f", "mpegts", "-"],
        capture_output=True, check=True,
    ).stdout  # fmt: skip
    meter = TsMeter()
    for at in range(0, len(made), 1316):
        meter.add(made[at : at + 1316])
    known = meter.known()
    assert known["packets"] == len(made) // 188
    assert known["damaged"] == known["continuity_errors"] == known["pcr_jumps"] == 0
    assert known["video_pid"] == known["pcr_pid"] == 0x321
    assert known["video_type"] == 0x1B
    assert known["random_access"] == 3
    assert known["rate_bps"] == pytest.approx(1_000_000, rel=0.02)


def test_repair_packet_fields() -> None:
    columns, rows = matrix(stream(40), 8, 5)
    column = fec_of(columns[3])
    assert isinstance(column, dict)
    assert (column["base"], column["offset"], column["count"], column["is_row"]) == (3, 8, 5, 0)
    assert (column["payload"], column["payload_bytes"]) == (28, 1316)
    row = fec_of(rows[2])
    assert isinstance(row, dict)
    assert (row["base"], row["offset"], row["count"], row["is_row"]) == (16, 1, 8, 1)


@pytest.mark.parametrize(
    ("change", "reason"),
    [({13: 0}, "fec shape"), ({13: 41}, "fec shape"), ({14: 0}, "fec shape"), ({14: 41}, "fec shape"),
     ({12: 0x08}, "fec shape"), ({12: 0x40, 13: 2}, "fec shape")],
)  # fmt: skip
def test_repair_packets_refused(change: dict[int, int], reason: str) -> None:
    packet = bytearray(repair(stream(4), 0, 1))
    for at, value in change.items():
        packet[12 + at] = value
    assert fec_of(bytes(packet)) == reason
    assert fec_of(bytes(packet[:27])) == "short"
