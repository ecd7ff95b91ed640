"""What a cache has to keep of RFC 9110 (conditions, ranges, HEAD, 304, hop-by-hop fields), and what it says of itself
(RFC 9211, 9213), through the running box.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from email.utils import formatdate

import pytest
from box import GENERIC, MEDIA, REFUSING, Box, Viewer, get, scenario, sound_box, until
from clauses import BOTH, ETAG, lines, rfc, twice
from hostile_origin import pieces, reply
from origin_scripts import File, by_request, fields

from accelerator.protocols.structured_fields import parse_dictionary

OLD, NEW = formatdate(1e9, usegmt=True), formatdate(2e9, usegmt=True)


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    with sound_box(tmp_path_factory.mktemp("semantics")) as running:
        yield running


# -- Cache-Status (RFC 9211) -------------------------------------------------------------------------------------------


@rfc("9211#2", "a valid list whose last member is ours, with what came from upstream before it")
@pytest.mark.parametrize("host", BOTH)
@scenario
async def test_cache_status_members(box: Box, host: str) -> None:
    path = f"/status-{host}"
    response = "Cache-Control: max-age=60 | Cache-Status: Origin-Shield; hit; ttl=9 | Cache-Status: Other; fwd=miss"
    one, two, _ = await twice(box, path, host, response)
    for answer in (one, two):
        members = answer["Cache-Status"].split(", ")
        assert members[:2] == ["Origin-Shield; hit; ttl=9", "Other; fwd=miss"]
        assert members[2].startswith("test; ")
        # A member of a list is written as one of a dictionary whose keys are lower case.
        assert parse_dictionary(members[2].encode()) is not None
    assert (one.cache["fwd"], one.cache["stored"], one.cache["fwd-status"]) == ("uri-miss", "", "200")
    assert two.cache.keys() == {"hit", "ttl"}
    assert 50 <= int(two.cache["ttl"]) <= 60


@rfc("9211#2.2", "fwd says why: uri-miss, vary-miss, stale, request, method, bypass")
@rfc("9211#2.5", "stored only where it is; collapsed where another's request was joined")
@scenario
async def test_cache_status_reasons(box: Box) -> None:
    async def cache(path: str, sent: dict[str, str] | None = None, method: str = "GET") -> dict[str, str]:
        return (await get(box, path, sent or {}, host=GENERIC, method=method)).cache

    scripts = {
        b"/r/fresh": reply(b"x", fields=fields(cache_control="max-age=60", vary="X-A")),
        b"/r/stale": reply(b"x", fields=fields(cache_control="max-age=0", etag='"v"')),
        b"/r/never": reply(b"x", fields=fields(cache_control="no-store")),
    }
    async with box.origin(scripts):
        assert (await cache("/r/fresh"))["fwd"] == "uri-miss"
        assert (await cache("/r/fresh", {"X-A": "1"}))["fwd"] == "vary-miss"
        assert (await cache("/r/fresh", {"Cache-Control": "no-cache"}))["fwd"] == "request"
        await cache("/r/stale")
        assert (await cache("/r/stale"))["fwd"] == "stale"
        assert (await cache("/r/fresh", {"Content-Length": "0"}, "POST"))["fwd"] == "method"
        never = await cache("/r/never")
        assert (never["fwd"], "stored" in never) == ("uri-miss", False)
    held = pieces(
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nCache-Control: max-age=60\r\n\r\n", b"x", gate="held", then="keep"
    )
    async with box.origin({b"/r/held": held}) as origin:
        first = asyncio.ensure_future(get(box, "/r/held", host=GENERIC))
        await until(lambda: origin.requests)
        second = asyncio.ensure_future(get(box, "/r/held", host=GENERIC))
        third = asyncio.ensure_future(get(box, "/r/held", host=GENERIC))
        await asyncio.wait([second, third], timeout=0.1)
        origin.gate("held").set()
        answers = [await each for each in (first, second, third)]
    assert "collapsed" not in answers[0].cache
    assert all("collapsed" in answer.cache for answer in answers[1:])
    assert len(origin.requests) == 1


@rfc("9211#2", "our own errors carry it too")
@scenario
async def test_cache_status_of_our_own_errors(box: Box) -> None:
    for target, sent, host in (("/x", {}, "unknown.example"), ("/x", {}, REFUSING)):
        answer = await get(box, target, sent, host=host)
        assert answer.status >= 400
        assert answer["Cache-Status"].startswith("test")


@rfc("9213#2", "CDN-Cache-Control is passed downstream, untouched, also with a 304")
@pytest.mark.parametrize("value", ["max-age=60", "max-age=60, x;y=1", "&&"])
@scenario
async def test_the_targeted_field_is_passed_on(box: Box, value: str) -> None:
    path = f"/targeted-{abs(hash(value))}"
    response = f'Cache-Control: max-age=60 | CDN-Cache-Control: {value} | ETag: "v"'
    one, two, _ = await twice(box, path, GENERIC, response, second={"If-None-Match": '"v"'})
    assert (two.status, one["CDN-Cache-Control"], two["CDN-Cache-Control"]) == (304, value, value)


# -- RFC 9110 ----------------------------------------------------------------------------------------------------------


@rfc("9110#15.4.5", "a 304 MUST have Content-Location, Date, ETag, Vary, Cache-Control and Expires, and no body")
@pytest.mark.parametrize("host", BOTH)
@scenario
async def test_the_fields_of_a_304(box: Box, host: str) -> None:
    named = {"Content-Location": "/there", "Date": OLD, "ETag": '"v"', "Vary": "X-A", "Expires": NEW,
             "Cache-Control": "max-age=60"}  # fmt: skip
    response = " | ".join(f"{name}: {value}" for name, value in named.items())
    path = f"/304-{host}"
    _, two, _ = await twice(box, path, host, response + " | Content-Type: a/b", second={"If-None-Match": '"v"'})
    assert (two.status, two.body) == (304, b"")
    for name, value in named.items():
        assert two[name] == value
    for name in ("Content-Length", "Content-Type", "Content-Encoding", "Transfer-Encoding"):
        assert name not in two


CONDITIONS: list[tuple[str, str, dict[str, str], int]] = [
    ("9110#13.1.2", "If-None-Match compares weakly", {"If-None-Match": 'W/"v"'}, 304),
    ("9110#13.1.2", "any member of If-None-Match", {"If-None-Match": '"a","b" , "v"'}, 304),
    ("9110#13.1.2", "a comma inside a tag separates nothing", {"If-None-Match": '"a,", "v"'}, 304),
    ("9110#13.1.2", "tags are opaque: case counts", {"If-None-Match": '"V"'}, 200),
    ("9110#13.1.2", "a tag without quotes is none", {"If-None-Match": "v"}, 200),
    ("9110#13.1.2", "part of a tag is another one", {"If-None-Match": '"v2", "xv"'}, 200),
    ("9110#13.1.3", "If-Modified-Since as late as Last-Modified", {"If-Modified-Since": OLD}, 304),
    ("9110#13.1.3", "If-Modified-Since later", {"If-Modified-Since": formatdate(1e9 + 99, usegmt=True)}, 304),
    ("9110#13.1.3", "If-Modified-Since before", {"If-Modified-Since": formatdate(1e9 - 1, usegmt=True)}, 200),
    ("9110#13.1.3", "an invalid date MUST be ignored", {"If-Modified-Since": "Sun, 99 Foo 2001 01:46:40 GMT"}, 200),
    ("9110#13.1.3", "ignored beside If-None-Match", {"If-Modified-Since": OLD, "If-None-Match": '"x"'}, 200),
    ("9110#13.1.3", "an asctime date", {"If-Modified-Since": "Sun Sep  9 01:46:40 2001"}, 304),
    ("9110#13.1.3", "an RFC 850 date", {"If-Modified-Since": "Sunday, 09-Sep-01 01:46:40 GMT"}, 304),
    ("9110#13.1.5", "If-Range without Range is ignored", {"If-Range": '"v"'}, 200),
    ("9110#13.1.5", "If-Range that matches", {"If-Range": '"v"', "Range": "bytes=1-2"}, 206),
    ("9110#13.1.5", "If-Range that doesn't", {"If-Range": '"x"', "Range": "bytes=1-2"}, 200),
    ("9110#13.1.5", "If-Range never compares weakly", {"If-Range": 'W/"v"', "Range": "bytes=1-2"}, 200),
    ("9110#13.2.2", "If-None-Match before Range", {"If-None-Match": '"v"', "Range": "bytes=1-2"}, 304),
    ("9110#13.2.2", "a Range where If-None-Match is false", {"If-None-Match": '"x"', "Range": "bytes=1-2"}, 206),
    ("9110#14.2", "an unknown unit MUST be ignored", {"Range": "lines=1-2"}, 200),
    ("9110#14.2", "a malformed Range is ignored", {"Range": "bytes=2-1"}, 200),
    ("9110#14.2", "a Range without numbers is ignored", {"Range": "bytes=-"}, 200),
    ("9110#14.2", "a Range with letters is ignored", {"Range": "bytes=a-b"}, 200),
    ("9110#14.2", "the unit in any case", {"Range": "Bytes=1-2"}, 206),
    ("9110#14.1.2", "an open range", {"Range": "bytes=1-"}, 206),
    ("9110#14.1.2", "a suffix range", {"Range": "bytes=-2"}, 206),
    ("9110#14.1.2", "a suffix longer than all is all", {"Range": "bytes=-99"}, 206),
    ("9110#14.1.2", "an end behind the end is the end", {"Range": "bytes=1-99999999999999999999"}, 206),
    ("9110#15.5.17", "a start behind the end", {"Range": "bytes=4-"}, 416),
    ("9110#15.5.17", "a suffix of nothing", {"Range": "bytes=-0"}, 416),
]  # fmt: skip


@pytest.mark.parametrize(
    ("sent", "status"), [pytest.param(*row[2:], id=row[1], marks=rfc(row[0], row[1])) for row in CONDITIONS]
)
@pytest.mark.parametrize("host", BOTH)
@scenario
async def test_conditions_and_ranges_of_what_is_stored(box: Box, host: str, sent: dict[str, str], status: int) -> None:
    response = reply(b"body", fields=(*lines(f"Cache-Control: max-age=600 | Last-Modified: {OLD} | X-Kept: 1"), ETAG))
    async with box.origin({b"/conditions": response}):
        await get(box, "/conditions", host=host)
    answer = await get(box, "/conditions", sent, host=host)
    assert answer.status == status
    if status == 206:
        first, _, last = answer["Content-Range"].removeprefix("bytes ").removesuffix("/4").partition("-")
        assert answer.body == b"body"[int(first) : int(last) + 1]
        assert (answer["Content-Length"], answer["X-Kept"], answer["ETag"]) == (str(len(answer.body)), "1", '"v"')
    elif status == 416:
        assert answer["Content-Range"] == "bytes */4"
    elif status == 200:
        assert answer.body == b"body"
        assert "Content-Range" not in answer


@rfc("9110#13.1.5", "If-Range by a date in the same second as Date is false: two versions may share it")
@pytest.mark.parametrize(("date", "status"), [(OLD, 200), (formatdate(1e9 + 1, usegmt=True), 206)])
@scenario
async def test_if_range_by_a_date_that_is_not_strong(box: Box, date: str, status: int) -> None:
    response = f"Cache-Control: max-age=60 | Last-Modified: {OLD} | Date: {date}"
    sent = {"Range": "bytes=0-0", "If-Range": OLD}
    _, two, requests = await twice(box, f"/strong-{status}", GENERIC, response, second=sent)
    assert (two.status, two.body, len(requests)) == (status, b"1", 1)


@rfc("9110#14.2", "Range with any method but GET MUST be ignored")
@rfc("9110#9.3.2", "HEAD answers with GET's fields and no body")
@pytest.mark.parametrize("host", BOTH)
@scenario
async def test_head_from_the_store(box: Box, host: str) -> None:
    path = f"/head-{host}"
    async with box.origin(
        {path.encode(): reply(b"body", fields=(*lines("Cache-Control: max-age=60"), ETAG))}
    ) as origin:
        whole = await get(box, path, host=host)
        head = await get(box, path, {"Range": "bytes=0-1"}, host=host, method="HEAD")
        assert (await get(box, path, {"If-None-Match": '"v"'}, host=host, method="HEAD")).status == 304
    assert (head.status, head.body, head["Content-Length"], head["ETag"]) == (200, b"", "4", whole["ETag"])
    assert "hit" in head.cache
    assert len(origin.requests) == 1


@rfc("9110#14.1.1", "positions have no largest value: a number of any length is one")
@pytest.mark.parametrize("value", ["0-1, 5-{}", "0-1, {}-", "0-1, 4-5, -{}", "5-{}", "-{}"])
@scenario
async def test_bug_a_range_of_5000_digits_was_a_fault_of_ours(box: Box, value: str) -> None:
    async with box.origin({b"/digits": File(b"0123456789", cache_control="max-age=60")}):
        for host in BOTH:
            for number, digits in enumerate((18, 19, 20, 4301, 6000)):
                for target in (f"/digits?{len(value)}-{number}", "/digits"):
                    answer = await get(box, target, {"Range": f"bytes={value.format('9' * digits)}"}, host=host)
                    assert answer.status == 206, (digits, answer)


@rfc("9110#9.3.1", "a GET with a body is neither answered from the store nor stored (its body may mean anything)")
@scenario
async def test_a_get_with_a_body(box: Box) -> None:
    count = iter(range(1, 9))
    script = by_request(lambda request: reply(b"%d" % next(count), fields=fields(cache_control="max-age=60")))
    async with box.origin({b"/fat": script}) as origin:
        assert (await get(box, "/fat", host=GENERIC)).body == b"1"
        viewer = await Viewer.connect(box)
        viewer.ask("/fat", {"Content-Length": "4"}, host=GENERIC)
        viewer.writer.write(b"evil")
        fat = await viewer.answer()
        assert (fat.body, fat.cache["fwd"], "stored" in fat.cache) == (b"2", "bypass", False)
        assert (await get(box, "/fat", host=GENERIC)).body == b"1"
        viewer = await Viewer.connect(box)
        viewer.ask("/fat", {"Content-Length": "4"}, host=MEDIA)
        viewer.writer.write(b"evil")
        assert (await viewer.answer()).status == 413
    assert len(origin.requests) == 2


@rfc("9110#7.6.2", "OPTIONS with Max-Forwards: 0 MUST NOT be forwarded, and is answered; more is sent less one")
@scenario
async def test_max_forwards(box: Box) -> None:
    async with box.origin({b"/hops": reply(b"", fields=fields(allow="X"))}) as origin:
        for value in ("0", "00"):
            answer = await get(box, "/hops", {"Max-Forwards": value}, host=GENERIC, method="OPTIONS")
            assert (answer.status, answer["Allow"] != "X") == (204, True)
        assert origin.requests == []
        for value, sent in (("1", b"0"), ("10", b"9"), ("x", None), ("-1", None)):
            answer = await get(box, "/hops", {"Max-Forwards": value}, host=GENERIC, method="OPTIONS")
            assert (answer.status, answer["Allow"]) == (200, "X")
            assert origin.requests[-1].field(b"Max-Forwards") == sent
        await get(box, "/hops", {"Max-Forwards": "0"}, host=GENERIC)
        assert origin.requests[-1].field(b"Max-Forwards") is None, "means nothing with other methods"


@rfc("9110#7.6.1", "what Connection names in a response is neither stored nor forwarded, in any case and any line")
@pytest.mark.parametrize("host", BOTH)
@scenario
async def test_connection_of_a_response(box: Box, host: str) -> None:
    named = "Connection: X-One, x-two | Connection: ,X-THREE | X-One: 1 | X-Two: 2 | X-Three: 3 | X-Four: 4"
    one, two, requests = await twice(box, f"/named-{host}", host, f"Cache-Control: max-age=60 | {named}")
    assert len(requests) == 1
    for answer in (one, two):
        assert [name for name in ("X-One", "X-Two", "X-Three") if name in answer] == []
        assert answer["X-Four"] == "4"


@rfc("9110#7.6.1", "Connection can't take away what is for every recipient: a private stays one")
@pytest.mark.parametrize("name", ["Cache-Control", "Vary", "Set-Cookie", "Age", "Content-Length"])
@scenario
async def test_connection_hides_nothing_that_forbids(box: Box, name: str) -> None:
    hidden = {"Cache-Control": "private", "Vary": "*", "Set-Cookie": "a=b", "Age": "99", "Content-Length": "1"}[name]
    response = f"Expires: {formatdate(time.time() + 60, usegmt=True)} | Connection: {name}"
    if name != "Content-Length":
        response += f" | {name}: {hidden}"
    one, two, requests = await twice(box, f"/hidden-{name}", GENERIC, response)
    assert one.body == b"1"
    assert (len(requests) == 2) is (name != "Content-Length"), two


@rfc("9110#15", "what a status means for caching goes by its class where it is unknown; its body and fields pass")
@pytest.mark.parametrize("status", [299, 399, 499, 599, 600, 999])
@pytest.mark.parametrize("host", BOTH)
@scenario
async def test_unknown_statuses_pass(box: Box, host: str, status: int) -> None:
    one, two, requests = await twice(box, f"/unknown-{host}-{status}", host, "X-Own: 1", status)
    assert ((one.status, one.body), (two.status, two.body)) == ((status, b"1"), (status, b"2"))
    assert one["X-Own"] == "1"
    assert len(requests) == 2
