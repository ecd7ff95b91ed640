"""Fuzz target: session announcements (SAP) and descriptions (SDP). Any bytes are read or refused by ValueError; what is
read and written again reads the same.

    .venv/bin/python -m pytest tests/fuzz/fuzz_session.py          a short run
    PYTHONPATH=. .venv/bin/python tests/fuzz/fuzz_session.py 600   so many seconds; prints the number of runs
"""

from __future__ import annotations

import contextlib
import random

from mutation import mutated, run

from accelerator.protocols import sap, sdp

DESCRIPTIONS = [
    b"v=0\r\no=- 1 2 IN IP4 10.0.0.1\r\ns=hall\r\nc=IN IP4 239.1.1.1/16\r\nt=0 0\r\nm=video 5004 RTP/AVP 33\r\n"
    b"a=rtpmap:33 MP2T/90000\r\na=source-filter: incl IN IP4 239.1.1.1 10.1.0.1\r\n",
    b"v=0\no=box 3724394400 7 IN IP6 2001:db8::1\ns=legs\nt=0 0\na=group:DUP a b\nm=video 5004 RTP/AVP 33\n"
    b"c=IN IP6 ff1e::7\na=mid:a\nm=video 5004 RTP/AVP 33\nc=IN IP4 239.1.1.1/1\na=mid:b\na=recvonly\n",
]
ANNOUNCEMENTS = [
    b"\x20\x00\x12\x34\x0a\x00\x00\x01application/sdp\x00" + DESCRIPTIONS[0],
    b"\x34\x01\x00\x01" + bytes(16) + b"AUTH" + DESCRIPTIONS[1],
]
WORDS = [
    b"\r\n",
    b"\nm=audio 1 x 0\n",
    b"/16",
    b" IN IP6 ::1",
    b"a=group:DUP a a",
    b"\xff",
    b"99999999999999999999",
    b"%eth0",
]


def check_written(found: sap.Announcement) -> None:
    try:
        again = sap.read(sap.write(found))
    except ValueError as fault:
        raise AssertionError(f"read, but not written: {found}") from fault
    assert again == found


def check(source: random.Random) -> None:
    """The target's invariants, for one mutation."""
    with contextlib.suppress(ValueError):
        check_written(sap.read(mutated(source, ANNOUNCEMENTS, WORDS)))
    try:
        description = sdp.read(mutated(source, DESCRIPTIONS, WORDS))
    except ValueError:
        return
    assert sdp.read(sdp.write(description)) == description
    for legs in sdp.duplicates(description):
        assert len(legs) > 1
    for media in description.media:
        try:
            sdp.source_filters(media.attributes)
        except ValueError:
            continue


def test_fuzz_session() -> None:
    for seed in range(5000):
        check(random.Random(seed))


if __name__ == "__main__":
    run(check)
