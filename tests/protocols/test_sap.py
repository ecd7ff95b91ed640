"""Session announcements: written and read again, refused by name, sent as often as RFC 2974 allows."""

from __future__ import annotations

import shutil
import socket
import subprocess
from ipaddress import ip_address

import pytest

from accelerator.protocols import sap, sdp
from accelerator.protocols.sap import Announcement

PAYLOAD = b"v=0\r\no=- 1 1 IN IP4 10.0.0.1\r\ns=x\r\n"


@pytest.mark.parametrize("address", ["10.0.0.1", "2001:db8::1"])
@pytest.mark.parametrize("is_deletion", [False, True])
def test_written_and_read_again(address: str, is_deletion: bool) -> None:
    made = Announcement(ip_address(address), sap.hash_of(PAYLOAD), PAYLOAD, is_deletion)
    assert sap.read(sap.write(made)) == made


def test_a_datagram_made_by_hand() -> None:
    """RFC 2974 section 3: version 1, IPv4, two words of authentication, and no payload type before SDP."""
    data = b"\x20\x02\x12\x34" + bytes([10, 0, 0, 1]) + b"AUTHDATA" + PAYLOAD
    assert sap.read(data) == Announcement(ip_address("10.0.0.1"), 0x1234, PAYLOAD)
    typed = data.replace(PAYLOAD, b"Application/SDP\0" + PAYLOAD)
    assert sap.read(typed) == sap.read(data)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "short"),
        (b"\x20\x00\x00", "short"),
        (b"\x20\x00\x00\x01\x0a\x00\x00", "short"),
        (b"\x30\x00\x00\x01" + bytes(15), "short"),
        (b"\x20\x03\x00\x01" + bytes(12), "short"),
        (b"\x40\x00\x00\x01" + bytes(4) + PAYLOAD, "version"),
        (b"\x22\x00\x00\x01" + bytes(4) + PAYLOAD, "encrypted"),
        (b"\x21\x00\x00\x01" + bytes(4) + PAYLOAD, "compressed"),
        (b"\x20\x00\x00\x01" + bytes(4), "payload type"),
        (b"\x20\x00\x00\x01" + bytes(4) + b"\0" + PAYLOAD, "payload type"),
        (b"\x20\x00\x00\x01" + bytes(4) + b"x" * 65 + b"\0" + PAYLOAD, "payload type"),
        (b"\x20\x00\x00\x01" + bytes(4) + b"a b\0" + PAYLOAD, "payload type"),
    ],
)
def test_refused(data: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        sap.read(data)


@pytest.mark.parametrize("payload_type", ["", "Application/SDP", "a b", "x" * 65, "a\0b"])
def test_a_payload_type_that_can_not_be_read_is_not_written(payload_type: str) -> None:
    with pytest.raises(ValueError, match="payload type"):
        sap.write(Announcement(ip_address("10.0.0.1"), 1, b"text", payload_type=payload_type))


def test_the_hash_changes_with_the_payload() -> None:
    hashes = {sap.hash_of(PAYLOAD + b"%d" % i) for i in range(1000)}
    assert len(hashes) > 950
    assert 0 not in hashes


def test_how_often() -> None:
    """Section 3.1: 4,000 bit/s for all, never below 300 s, spread by a third to either side."""
    assert sap.interval_s(1, 500, 0.5) == pytest.approx(300)
    assert sap.interval_s(1, 500, 0.0) == pytest.approx(200)
    assert sap.interval_s(1, 500, 1.0) == pytest.approx(400)
    assert sap.interval_s(1000, 500, 0.5) == pytest.approx(1000)
    assert not sap.is_gone(3599, 300)
    assert sap.is_gone(3601, 300)
    assert not sap.is_gone(9000, 1000)


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs ffmpeg")
def test_ffmpegs_announcement_is_read() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listening:
        listening.bind(("127.0.0.1", 0))
        listening.settimeout(30)
        port = listening.getsockname()[1]
        subprocess.run(
            ["ffmpeg", "-v", "error", "-f", "lavfi", "-i", "sine", "-t", "0.1", "-c:a", "aac", "-f", "sap",
             f"sap://127.0.0.1:5004?announce_addr=127.0.0.1&announce_port={port}&same_port=1"],
            check=True, capture_output=True,
        )  # fmt: skip
        first = sap.read(listening.recv(65_536))
        last = sap.read(listening.recv(65_536))
    assert not first.is_deletion
    assert first.payload_type == sap.SDP
    assert sdp.read(first.payload).media[0].port == 5004
    assert last.hash_ == first.hash_
