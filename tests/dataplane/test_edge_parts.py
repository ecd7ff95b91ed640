"""Several ranges in one answer (RFC 9110 sections 14.2, 14.6, 15.3.7.2), checked with the standard MIME parser."""

from __future__ import annotations

import email
import email.policy
import random

import pytest
from plane_rig import Reply, Rig, pattern, wait_until

from ext.request import ranges_of

N = 20_000  # five slices of 4 KiB, the last one short
BODY = pattern(N)
SLICE = 4096


def parts_of(reply: Reply) -> list[tuple[str, bytes]]:
    """(Content-Range, body) of each part."""
    assert reply.status == 206
    assert reply["content-type"].startswith("multipart/byteranges; boundary=")
    assert not reply.has("content-range")  # RFC 9110 section 15.3.7.2: MUST NOT
    head = b"Content-Type: " + reply["content-type"].encode() + b"\r\n\r\n"
    message = email.message_from_bytes(head + reply.body, policy=email.policy.HTTP.clone(refold_source="none"))
    assert message.is_multipart()
    assert not message.defects
    assert not message.preamble
    assert not message.epilogue
    found = []
    for part in message.get_payload():
        assert part["Content-Type"] == "text/plain"
        # The parser takes bytes for text in the message's own coding and would put line ends right.
        found.append((part["Content-Range"], b""))
    boundary = b"--" + reply["content-type"].partition("boundary=")[2].encode()
    pieces = reply.body.split(boundary)
    assert pieces[0] == b""
    assert pieces[-1] == b"--\r\n"
    bodies = [piece.partition(b"\r\n\r\n")[2].removesuffix(b"\r\n") for piece in pieces[1:-1]]
    return [(name, body) for (name, _), body in zip(found, bodies, strict=True)]


def expected(*ranges: tuple[int, int]) -> list[tuple[str, bytes]]:
    return [(f"bytes {first}-{last}/{N}", BODY[first : last + 1]) for first, last in ranges]


@pytest.mark.rfc("9110#15.3.7.2", "several ranges are one multipart/byteranges, in the order asked for")
@pytest.mark.parametrize(
    ("written", "ranges"),
    [
        ("0-0,-1", [(0, 0), (N - 1, N - 1)]),
        ("5-9, 100-199 ,\t3000-3000", [(5, 9), (100, 199), (3000, 3000)]),
        ("19000-,0-9", [(19000, N - 1), (0, 9)]),
        ("100-199,0-49,90-150", [(90, 199), (0, 49)]),  # coalesced in the first one's place
        ("0-9,50-59,100-109,5-104", None),  # one range in the end: no multipart
        ("0-1,2-3", None),
        ("4000-5000,8000-9000,12000-13000,16000-17000", [(4000, 5000), (8000, 9000), (12000, 13000), (16000, 17000)]),
        ("1-2,30000-40000,7-8", [(1, 2), (7, 8)]),  # what isn't there is left out
        ("1-2,,4-5,", [(1, 2), (4, 5)]),
        (",".join(f"{i * 100}-{i * 100 + 9}" for i in range(8)), [(i * 100, i * 100 + 9) for i in range(8)]),
    ],
)
def test_several_ranges(rig: Rig, written: str, ranges: list[tuple[int, int]] | None) -> None:
    rig.store("/x", BODY, etag=b'"v"', lines=b"X-After: 1\r\n")
    viewer = rig.viewer()
    for _ in range(2):
        reply = viewer.get("/x", f"Range: bytes={written}")
        assert reply["etag"] == '"v"'
        assert reply["x-after"] == "1"
        if ranges is None:
            first, last = ranges_of(b"bytes=" + written.encode(), N)[0]
            assert reply["content-range"] == f"bytes {first}-{last}/{N}"
            assert reply.body == BODY[first : last + 1]
        else:
            assert parts_of(reply) == expected(*ranges)
    assert (rig.total("partial_responses"), rig.total("hits")) == (2, 2)
    wait_until(lambda: rig.total("bytes_to_viewers") == 2 * len(reply.body))
    assert viewer.get("/x").body == BODY


@pytest.mark.rfc("9110#14.2", "more than eight ranges after coalescing: the field is ignored")
@pytest.mark.parametrize(
    "written",
    [
        ",".join(f"{i * 100}-{i * 100 + 9}" for i in range(9)),
        ",".join(f"{i * 100}-{i * 100 + 9}" for i in range(1000)),
        ",".join(["0-"] * 129),
        "0-1,5-4", "0-1,a-b", "0-1;2-3", "0-1,2", ",", ", ,", "0-1,-", "0-1 2-3",
    ],
)  # fmt: skip
def test_a_field_that_is_ignored(rig: Rig, written: str) -> None:
    rig.store("/x", BODY)
    reply = rig.viewer().get("/x", f"Range: bytes={written}")
    assert (reply.status, reply.body) == (200, BODY)


def test_many_ranges_that_are_one_in_the_end(rig: Rig) -> None:
    rig.store("/x", BODY)
    written = ",".join(f"{i * 10}-{i * 10 + 9}" for i in reversed(range(128)))
    reply = rig.viewer().get("/x", f"Range: bytes={written}")
    assert (reply.status, reply["content-range"]) == (206, f"bytes 0-1279/{N}")


@pytest.mark.rfc("9110#15.5.17", "none of several ranges is there: 416")
def test_none_of_several_ranges_is_there(rig: Rig) -> None:
    rig.store("/x", BODY)
    reply = rig.viewer().get("/x", f"Range: bytes={N}-,-0,{N + 5}-{N + 6}")
    assert (reply.status, reply["content-range"]) == (416, f"bytes */{N}")


def test_a_condition_decides_over_several_ranges_too(rig: Rig) -> None:
    rig.store("/x", BODY, etag=b'"v"')
    viewer = rig.viewer()
    assert viewer.get("/x", "Range: bytes=0-1,4-5", 'If-Range: "w"').body == BODY
    assert len(parts_of(viewer.get("/x", "Range: bytes=0-1,4-5", 'If-Range: "v"'))) == 2
    assert viewer.get("/x", "Range: bytes=0-1,4-5", 'If-None-Match: "v"').status == 304
    assert viewer.get("/x", "Range: bytes=0-1,4-5", method="HEAD")["content-length"] == str(N)


def test_boundaries_differ_and_a_body_without_type_has_parts_without(rig: Rig) -> None:
    rig.store("/x", BODY)
    viewer = rig.viewer()
    types = {viewer.get("/x", "Range: bytes=0-1,4-5")["content-type"] for _ in range(20)}
    assert len(types) == 20
    long = b"X-Long: " + b"a" * 100 + b"\r\n"
    rig.store("/y", BODY, lines=long * 20)
    assert parts_of(viewer.get("/y", "Range: bytes=0-1,4-5")) == expected((0, 1), (4, 5))


@pytest.mark.parametrize("receive_bytes", [0, 4096])
def test_parts_for_pipelining_and_slow_viewers(rig: Rig, receive_bytes: int) -> None:
    rig.store("/x", BODY)
    viewer = rig.viewer(receive_bytes)
    chance = random.Random(7)
    asked = []
    for _ in range(30):
        marks = sorted(chance.sample(range(N), 8))
        ranges = list(zip(marks[::2], marks[1::2], strict=True))
        ranges = [pair for i, pair in enumerate(ranges) if i == 0 or pair[0] > ranges[i - 1][1] + 1]
        chance.shuffle(ranges)
        asked.append(ranges)
        viewer.ask("/x", "Range: bytes=" + ",".join(f"{first}-{last}" for first, last in ranges))
        viewer.ask("/x", "Range: bytes=3-4")
    for ranges in asked:
        reply = viewer.reply()
        if len(ranges) > 1:
            assert parts_of(reply) == expected(*ranges)
        assert viewer.reply().body == BODY[3:5]


def test_parts_of_a_body_that_is_filling_are_asked_for_one_after_the_other(rig: Rig) -> None:
    stored = rig.begin("/x", N, etag=b'"v"', strong=True)
    stored.end_fill()
    viewer = rig.viewer()
    ranges = (10, 4000), (3 * SLICE, 4 * SLICE - 10), (N - 3000, N - 1)
    viewer.ask("/x", "Range: bytes=" + ",".join(f"{first}-{last}" for first, last in ranges))
    for place, last in ranges:
        want = rig.exchange("want")
        while want.offset != place:  # the end of a fill makes readers ask again
            want.done()
            want = rig.exchange("want")
        assert want.range_last == last
        want.done()
        rig.refill(stored, BODY, place)
    assert parts_of(viewer.reply()) == expected(*ranges)


@pytest.mark.rfc("9110#17.15", "a few bytes far apart don't fetch a slice each")
def test_ranges_far_apart_of_what_is_not_there_are_asked_for_alone(rig: Rig) -> None:
    stored = rig.begin("/x", N, etag=b'"v"', strong=True)
    rig.append(stored, 0, BODY[:SLICE])
    stored.end_fill()
    viewer = rig.viewer()
    written = f"Range: bytes=0-9,{SLICE}-{SLICE},{2 * SLICE}-{2 * SLICE},{3 * SLICE}-{3 * SLICE}"
    viewer.ask("/x", written, 'If-None-Match: "other"')
    rig.exchange("alone").error(504)
    assert viewer.reply().status == 504
    assert viewer.get("/x", written, 'If-None-Match: "v"').status == 304
    near = f"{SLICE}-{2 * SLICE - 1},{2 * SLICE + 5}-{2 * SLICE + 5},{2 * SLICE + 9}-{2 * SLICE + 9}"
    viewer.ask("/x", f"Range: bytes=0-9,{near}")
    rig.exchange("want").done()
    stored.mark_by_slices()
    other = rig.viewer()
    other.ask("/x", f"Range: bytes=0-9,{3 * SLICE}-{3 * SLICE},{4 * SLICE}-{4 * SLICE},{5 * SLICE}-")
    rig.exchange("want").done()


def test_a_viewer_who_leaves_between_two_parts_leaves_nothing_behind(rig: Rig) -> None:
    stored = rig.begin("/x", N, etag=b'"v"', strong=True)
    rig.append(stored, 0, BODY[:SLICE])
    viewer = rig.viewer()
    viewer.ask("/x", f"Range: bytes=0-9,{2 * SLICE}-{2 * SLICE + 9}")
    assert viewer.head().status == 206
    rig.exchange("want").done()
    viewer.reset()
    wait_until(lambda: rig.plane.n_connections == 0)
    stored.end_fill()


def test_a_miss_names_the_first_range(rig: Rig) -> None:
    viewer = rig.viewer()
    viewer.ask("/x", "Range: bytes=5000-5009,1-2")
    asked = rig.exchange("miss")
    assert (asked.range_first, asked.range_last) == (5000, 5009)
    asked.error(504)
    viewer.ask("/x", "Range: bytes=5000-5009,2-1")
    assert viewer.reply().status == 504
    asked = rig.exchange("miss")
    assert (asked.range_first, asked.range_last) == (-1, -1)
    asked.error(504)
