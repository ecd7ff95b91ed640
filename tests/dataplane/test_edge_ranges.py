"""Single ranges (several: test_edge_parts.py) and conditions on stored objects (RFC 9110 sections 13, 14)."""

from __future__ import annotations

import random

import pytest
from plane_rig import Rig, pattern, wait_until

from ext.plane import FLAG_DATE_IS_STRONG

N = 20_000  # five slices of 4 KiB, the last one short
BODY = pattern(N)
SLICE = 4096
MODIFIED_S = 784111777  # Sun, 06 Nov 1994 08:49:37 GMT
DATES = ("Sun, 06 Nov 1994 08:49:37 GMT", "Sunday, 06-Nov-94 08:49:37 GMT", "Sun Nov  6 08:49:37 1994")
LATER = ("Mon, 07 Nov 1994 08:49:37 GMT", "Monday, 07-Nov-94 08:49:37 GMT", "Mon Nov  7 08:49:37 1994")
EARLIER = ("Sun, 06 Nov 1994 08:49:36 GMT", "Sunday, 06-Nov-94 08:49:36 GMT", "Sun Nov  6 08:49:36 1994")


@pytest.mark.parametrize(
    ("written", "first", "last"),
    [
        ("0-0", 0, 0), ("0-", 0, N - 1), ("5-9", 5, 9), (f"0-{N - 1}", 0, N - 1), (f"0-{N}", 0, N - 1),
        (f"{N - 1}-", N - 1, N - 1), ("-1", N - 1, N - 1), (f"-{N}", 0, N - 1), (f"-{N + 5}", 0, N - 1),
        (f"{SLICE - 1}-{SLICE}", SLICE - 1, SLICE), (f"{SLICE}-{2 * SLICE - 1}", SLICE, 2 * SLICE - 1),
        (f"{SLICE}-{2 * SLICE}", SLICE, 2 * SLICE), (f"{4 * SLICE - 1}-", 4 * SLICE - 1, N - 1),
        (f"1-{N - 2}", 1, N - 2), ("7-99999999999999999999999999", 7, N - 1), ("-99999999999999999999999", 0, N - 1),
        ("000000000000000000000003-4", 3, 4),
    ],
)  # fmt: skip
def test_a_range(rig: Rig, written: str, first: int, last: int) -> None:
    rig.store("/x", BODY, etag=b'"v"')
    viewer = rig.viewer()
    for _ in range(2):
        reply = viewer.get("/x", f"Range: bytes={written}")
        assert reply.status == 206
        assert reply["content-range"] == f"bytes {first}-{last}/{N}"
        assert reply.body == BODY[first : last + 1]
        assert reply["etag"] == '"v"'
        assert reply.line == b"HTTP/1.1 206 Partial Content"
    totals = rig.plane.totals()
    assert (totals["partial_responses"], totals["hits"]) == (2, 2)
    wait_until(lambda: rig.total("bytes_to_viewers") == 2 * (last - first + 1))


def test_ranges_at_random(rig: Rig) -> None:
    rig.store("/x", BODY)
    viewer = rig.viewer()
    chance = random.Random(1)
    for _ in range(300):
        first = chance.randrange(N)
        last = chance.randrange(first, N)
        reply = viewer.get("/x", f"Range: bytes={first}-{last}")
        assert reply.body == BODY[first : last + 1]


@pytest.mark.parametrize("written", [f"{N}-", f"{N}-{N + 9}", "-0", "99999999999999999999999999-"])
def test_an_unsatisfiable_range(rig: Rig, written: str) -> None:
    rig.store("/x", BODY)
    viewer = rig.viewer()
    reply = viewer.get("/x", f"Range: bytes={written}")
    assert (reply.status, reply.body) == (416, b"")
    assert reply["content-range"] == f"bytes */{N}"
    assert viewer.get("/x").body == BODY
    assert rig.total("status_416") == 1


@pytest.mark.parametrize(
    "field",
    ["bytes=5-4", "bytes=", "bytes=-", "bytes=a-b", "bytes=1-2,x", "items=0-5", "bytes 0-5", "bytes=1 - 2",
     "bytes=+1-2", "0-5"],
)  # fmt: skip
def test_what_is_no_single_range_gets_everything(rig: Rig, field: str) -> None:
    rig.store("/x", BODY)
    reply = rig.viewer().get("/x", f"Range: {field}")
    assert (reply.status, reply.body) == (200, BODY)


def test_two_range_fields_get_everything(rig: Rig) -> None:
    rig.store("/x", BODY)
    assert rig.viewer().get("/x", "Range: bytes=0-1", "Range: bytes=0-1").status == 200


def test_ranges_of_an_empty_body(rig: Rig) -> None:
    rig.store("/x", b"")
    viewer = rig.viewer()
    assert viewer.get("/x", "Range: bytes=0-").status == 416
    assert viewer.get("/x", "Range: bytes=-1").status == 416


def test_head_has_no_range(rig: Rig) -> None:
    rig.store("/x", BODY)
    reply = rig.viewer().get("/x", "Range: bytes=0-1", method="HEAD")
    assert (reply.status, reply["content-length"]) == (200, str(N))


def test_only_a_200_is_ranged_or_compared(rig: Rig) -> None:
    rig.store("/x", BODY, status=404, etag=b'"v"')
    viewer = rig.viewer()
    assert viewer.get("/x", "Range: bytes=0-1").status == 404
    assert viewer.get("/x", 'If-None-Match: "v"').status == 404


@pytest.mark.parametrize(
    ("stored", "field", "matches"),
    [
        ('"v"', '"v"', True), ('"v"', 'W/"v"', True), ('W/"v"', '"v"', True), ('W/"v"', 'W/"v"', True),
        ('"v"', '"a", "b,c" , W/"v"', True), ('"v"', '"a","v"', True), ('"v"', "*", True), ("", "*", True),
        ('""', '""', True), ('"v"', '"V"', False), ('"v"', '"a"', False), ('"v"', "v", False), ('"v"', '"v', False),
        ("", '"v"', False), ('"v,w"', '"v,w"', True), ('"v"', '"v,w"', False), ('"v"', "", False),
    ],
)  # fmt: skip
def test_if_none_match(rig: Rig, stored: str, field: str, matches: bool) -> None:
    rig.store("/x", BODY, etag=stored.encode(), lines=b"Cache-Control: max-age=5\r\n")
    viewer = rig.viewer()
    for method in ("GET", "HEAD"):
        reply = viewer.get("/x", f"If-None-Match: {field}", method=method)
        assert reply.status == (304 if matches else 200)
        if matches:
            assert not reply.has("content-length")
            assert not reply.has("content-type")
            assert reply.has("etag") == bool(stored)
            assert reply.has("age")
            assert reply.line == b"HTTP/1.1 304 Not Modified"
    assert viewer.get("/x").body == BODY
    assert rig.total("not_modified") == (2 if matches else 0)


def test_if_none_match_in_two_lines_and_before_the_range(rig: Rig) -> None:
    rig.store("/x", BODY, etag=b'"v"')
    viewer = rig.viewer()
    assert viewer.get("/x", 'If-None-Match: "a"', 'If-None-Match: "v"').status == 304
    assert viewer.get("/x", 'If-None-Match: "v"', "Range: bytes=0-1").status == 304
    assert viewer.get("/x", 'If-None-Match: "a"', "Range: bytes=0-1").status == 206
    assert viewer.get("/x", 'If-None-Match: "v"', f"Range: bytes={N}-").status == 304


@pytest.mark.parametrize(("dates", "matches"), [(DATES, True), (LATER, True), (EARLIER, False)])
def test_if_modified_since_in_three_forms(rig: Rig, dates: tuple[str, ...], matches: bool) -> None:
    rig.store("/x", BODY, last_modified_s=MODIFIED_S)
    viewer = rig.viewer()
    for date in dates:
        assert viewer.get("/x", f"If-Modified-Since: {date}").status == (304 if matches else 200)


@pytest.mark.parametrize(
    "date",
    ["", "0", "yesterday", "Sun, 06 Nov 1994 08:49:37",
     "Sun, 06 Foo 1994 08:49:37 GMT", "Sun, 06 Nov 1994 28:49:37 GMT"],
)  # fmt: skip
def test_if_modified_since_that_is_no_date(rig: Rig, date: str) -> None:
    rig.store("/x", BODY, last_modified_s=MODIFIED_S)
    assert rig.viewer().get("/x", f"If-Modified-Since: {date}").status == 200


def test_if_modified_since_counts_only_without_if_none_match(rig: Rig) -> None:
    rig.store("/x", BODY, last_modified_s=MODIFIED_S, etag=b'"v"')
    rig.store("/none", BODY)
    viewer = rig.viewer()
    assert viewer.get("/x", 'If-None-Match: "a"', f"If-Modified-Since: {LATER[0]}").status == 200
    assert viewer.get("/none", f"If-Modified-Since: {LATER[0]}").status == 200


@pytest.mark.parametrize(
    ("stored", "field", "is_partial"),
    [
        ('"v"', '"v"', True), ('"v"', '"w"', False), ('"v"', 'W/"v"', False), ('W/"v"', 'W/"v"', False),
        ('W/"v"', '"v"', False), ("", '"v"', False), ("", "*", False), *[("", date, True) for date in DATES],
        ("", LATER[0], False), ("", EARLIER[0], False), ("", "never", False),
    ],
)  # fmt: skip
def test_if_range(rig: Rig, stored: str, field: str, is_partial: bool) -> None:
    rig.store("/x", BODY, etag=stored.encode(), last_modified_s=MODIFIED_S, flags=FLAG_DATE_IS_STRONG)
    viewer = rig.viewer()
    reply = viewer.get("/x", "Range: bytes=10-19", f"If-Range: {field}")
    assert reply.status == (206 if is_partial else 200)
    assert reply.body == (BODY[10:20] if is_partial else BODY)
    assert viewer.get("/x", f"If-Range: {field}").body == BODY
    # A range that could not be satisfied doesn't matter when the representation is another one.
    assert viewer.get("/x", f"Range: bytes={N}-", f"If-Range: {field}").status == (416 if is_partial else 200)


@pytest.mark.rfc("9110#13.1.5", "If-Range by a date that isn't strong (no older than Date) is false")
def test_bug_if_range_went_by_a_date_that_two_versions_may_share(rig: Rig) -> None:
    rig.store("/x", BODY, last_modified_s=MODIFIED_S)
    assert rig.viewer().get("/x", "Range: bytes=10-19", f"If-Range: {DATES[0]}").status == 200
