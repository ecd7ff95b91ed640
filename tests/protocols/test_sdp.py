"""Session descriptions: RFC 8866's own example and ffmpeg's, written and read again, refused line by line."""

from __future__ import annotations

import shutil
import subprocess
from ipaddress import ip_address
from pathlib import Path

import pytest

from accelerator.protocols import sdp
from accelerator.protocols.sdp import Connection, Description, Media, Origin, SourceFilter

RFC_8866_5 = b"""v=0
o=jdoe 3724394400 3724394405 IN IP4 198.51.100.1
s=Call to John Smith
i=SDP Offer #1
u=http://www.jdoe.example.com/home.html
e=Jane Doe <jane@jdoe.example.com>
p=+1 617 555-6011
c=IN IP4 198.51.100.1
t=0 0
m=audio 49170 RTP/AVP 0
m=audio 49180 RTP/AVP 0
m=video 51372 RTP/AVP 99
c=IN IP6 2001:db8::2
a=rtpmap:99 h263-1998/90000
"""

LEGS = Description(
    Origin("box", 1, 2, "10.0.0.1"),
    "hall, leg 1 and 2",
    None,
    (("group", "DUP a b"), ("type", "broadcast")),
    (
        Media("video", 5004, "RTP/AVP", ("33",), Connection(ip_address("239.1.1.1"), 16),
              (("rtpmap", "33 MP2T/90000"), ("source-filter", " incl IN IP4 239.1.1.1 10.1.0.1"), ("mid", "a"))),
        Media("video", 5004, "RTP/AVP", ("33",), Connection(ip_address("ff1e::7")), (("mid", "b"), ("recvonly", None))),
    ),
)  # fmt: skip


def test_the_example_of_the_rfc() -> None:
    found = sdp.read(RFC_8866_5)
    assert found.origin == Origin("jdoe", 3724394400, 3724394405, "198.51.100.1")
    assert found.name == "Call to John Smith"
    assert [media.port for media in found.media] == [49170, 49180, 51372]
    assert found.connection_of(found.media[0]) == Connection(ip_address("198.51.100.1"))
    assert found.connection_of(found.media[2]) == Connection(ip_address("2001:db8::2"))
    assert found.media[2].attributes == (("rtpmap", "99 h263-1998/90000"),)
    assert sdp.read(RFC_8866_5.replace(b"\n", b"\r\n")) == found


def test_what_is_written_is_read_again() -> None:
    assert sdp.read(sdp.write(LEGS)) == LEGS
    assert sdp.read(sdp.write(sdp.read(RFC_8866_5))) == sdp.read(RFC_8866_5)


def test_redundant_legs_and_sources() -> None:
    """RFC 7104 and RFC 4570: what a relay needs to join both legs of SMPTE 2022-7."""
    assert sdp.duplicates(LEGS) == (LEGS.media,)
    filters = sdp.source_filters(LEGS.media[0].attributes)
    assert filters == (SourceFilter(True, ip_address("239.1.1.1"), (ip_address("10.1.0.1"),)),)
    with pytest.raises(ValueError, match="source-filter"):
        sdp.source_filters((("source-filter", "incl IN IP4 *"),))


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (b"v=0", b"v=1", "v=0"),
        (b"o=jdoe", b"x", "line 2"),
        (b" 3724394405", b" +3724394405", "number"),
        (b" 3724394405", b" 37243944050000000000000", "number"),
        (b"s=Call to John Smith\n", b"", "no s="),
        (b"c=IN IP4 198.51.100.1\n", b"", "without connection"),
        (b"c=IN IP4 198.51.100.1\n", b"c=IN IP6 198.51.100.1\n", "family"),
        (b"c=IN IP4 198.51.100.1\n", b"c=IN IP4 239.1.1.1\n", "TTL"),
        (b"c=IN IP4 198.51.100.1\n", b"c=IN IP4 239.1.1.1/300\n", "number"),
        (b"c=IN IP4 198.51.100.1\n", b"c=IN IP4 239.1.1.1/9/4\n", "ranges"),
        (b"c=IN IP6 2001:db8::2", b"c=IN IP6 fe80::1%eth0", "family"),
        (b"49170", b"49170/2", "ranges"),
        (b"49170", b"70000", "number"),
        (b"m=audio 49170 RTP/AVP 0", b"m=audio 49170 RTP/AVP", "KIND"),
        (b"a=rtpmap", b"a=rtp map", "NAME"),
        (b"s=Call", b"s=C\0all", "NUL"),
        (b"s=Call", b"s=C\xffall", "UTF-8"),
        (b"i=SDP", b"s=again", "twice"),
        (b"i=SDP", b"I=SDP", "TYPE"),
        (b"m=audio 49170", b"m=audio 1 x 0\n" * 70 + b"m=audio 49170", "more than 64"),
        (b"i=SDP", b"i=" + b"x" * 9000, "longer"),
    ],
)  # fmt: skip
def test_refused_with_its_line(old: bytes, new: bytes, reason: str) -> None:
    assert old in RFC_8866_5
    with pytest.raises(ValueError, match=reason):
        sdp.read(RFC_8866_5.replace(old, new, 1))


@pytest.mark.parametrize("name", ["two\nlines", "a\rb", ""])
def test_a_value_that_no_line_can_hold_is_not_written(name: str) -> None:
    odd = Description(LEGS.origin, name or "x", None, (("a b" if not name else "note", name),), LEGS.media)
    with pytest.raises(ValueError, match=r"\w"):
        sdp.write(odd)


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs ffmpeg")
def test_ffmpegs_description_is_read(tmp_path: Path) -> None:
    file = tmp_path / "x.sdp"
    subprocess.run(
        ["ffmpeg", "-v", "error", "-f", "lavfi", "-i", "sine", "-t", "0.1", "-c:a", "aac", "-f", "rtp",
         "-sdp_file", str(file), "rtp://127.0.0.1:5004"],
        check=True, capture_output=True,
    )  # fmt: skip
    found = sdp.read(file.read_bytes())
    assert found.connection_of(found.media[0]) == Connection(ip_address("127.0.0.1"))
    assert (found.media[0].kind, found.media[0].port) == ("audio", 5004)
    assert any(name == "rtpmap" for name, _ in found.media[0].attributes)
    assert sdp.read(sdp.write(found)) == found
