"""The clauses of RFC 9111 sections 3 and 4, and of RFC 5861, that test_rfc9111.py leaves: storing, choosing, request
directives, validation, invalidation, stale, through the running box.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path

import pytest
from box import GENERIC, MEDIA, Box, Viewer, get, heard, scenario, sound_box, until
from clauses import BOTH, ETAG, lines, rfc, twice
from hostile_origin import Peer, Request, Script, in_turn, raw, reply
from origin_scripts import File, by_request, fields

OLD, NEW = formatdate(1e9, usegmt=True), formatdate(2e9, usegmt=True)


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    with sound_box(tmp_path_factory.mktemp("letter")) as running:
        yield running


# -- what is stored (section 3) ----------------------------------------------------------------------------------------


@rfc("9111#3", "MUST NOT store interim responses; the final one is stored, without their fields")
@rfc("9110#15.2", "MUST forward interim responses, and MUST NOT send them to HTTP/1.0")
@pytest.mark.parametrize("host", BOTH)
@pytest.mark.parametrize("version", ["1.1", "1.0"])
@scenario
async def test_interim_responses(box: Box, host: str, version: str) -> None:
    interim = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\nCache-Control: max-age=60\r\nX-Interim: 1\r\n\r\n"
    final = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nCache-Control: max-age=60\r\n\r\nbody"
    path = f"/interim-{host}-{version}"
    async with box.origin({path.encode(): raw(b"HTTP/1.1 102 Processing\r\n\r\n" + interim + final, "keep")}) as origin:
        viewer = await Viewer.connect(box)
        viewer.ask(path, {}, host=host, version=version)
        heads = []
        while not heads or not heads[-1].startswith(b"HTTP/1.1 2"):
            heads.append(await viewer.reader.readuntil(b"\r\n\r\n"))
        assert await viewer.reader.readexactly(4) == b"body"
        viewer.close()
        second = await get(box, path, host=host)
    assert [head[9:12] for head in heads] == ([b"102", b"103", b"200"] if version == "1.1" else [b"200"])
    assert b"X-Interim" not in heads[-1]
    assert "hit" in second.cache
    assert second.body == b"body"
    assert "X-Interim" not in second
    assert "Link" not in second
    assert len(origin.requests) == 1


def test_bug_interim_responses_went_to_who_waited_on_another_worker(tmp_path: Path) -> None:
    """What a 103 says to the leader is his: the final response may be private, and was to all who waited for it."""

    async def script(peer: Peer, request: Request) -> bool:
        viewer = request.field(b"X-Viewer") or b""
        await gate.wait()
        await peer.send(b"HTTP/1.1 103 Early Hints\r\nX-For: %b\r\n\r\n" % viewer)
        return await reply(viewer, fields=fields(cache_control="private"))(peer, request)

    async def listen(viewer: Viewer, name: str) -> list[bytes]:
        heads: list[bytes] = []
        while not heads or not heads[-1].startswith(b"HTTP/1.1 200"):
            heads.append(await viewer.reader.readuntil(b"\r\n\r\n"))
        length = len(name)
        assert await viewer.reader.readexactly(length) == name.encode()
        viewer.close()
        return [head for head in heads if b" 103 " in head]

    @scenario
    async def run(box: Box) -> None:
        nonlocal gate
        gate = asyncio.Event()
        async with box.origin({b"/hints": script}) as origin:
            viewers: dict[str, Viewer] = {}
            while box.stats()["exchanges"] < 2:  # whose connections are accepted is the workers' race
                for viewer in await asyncio.gather(*(Viewer.connect(box) for _ in range(32))):
                    name = f"v{len(viewers)}"
                    viewers[name] = viewer
                    viewer.ask("/hints", {"X-Viewer": name}, host=GENERIC)
                await heard(box)
            answers = [asyncio.ensure_future(listen(viewer, name)) for name, viewer in viewers.items()]
            await until(lambda: origin.requests)
            gate.set()
            for name, heads in zip(viewers, await asyncio.gather(*answers), strict=True):
                assert all(f"X-For: {name}\r\n".encode() in head for head in heads), (name, heads)

    gate = asyncio.Event()
    with sound_box(tmp_path, workers=2) as box:
        run(box)


@rfc("9111#3.1", "trailer fields never become fields of the stored head")
@scenario
async def test_trailers_are_not_merged(box: Box) -> None:
    body = b"4\r\nbody\r\n0\r\nCache-Control: max-age=60\r\nX-Trailer: 1\r\nContent-Length: 9\r\n\r\n"
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nCache-Control: max-age=60\r\nTrailer: X-Trailer\r\n\r\n"
    async with box.origin({b"/trailers": raw(head + body, "keep")}):
        for _ in range(2):
            answer = await get(box, "/trailers", host=GENERIC)
            assert (answer.status, answer.body) == (200, b"body")
            assert "X-Trailer" not in answer
            assert "Trailer" not in answer


@rfc("9111#3.3", "MUST NOT store a response that broke off as complete: length, chunks, reset")
@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\nCache-Control: max-age=60\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nCache-Control: max-age=60\r\n\r\n5\r\nabc",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nCache-Control: max-age=60\r\n\r\n3\r\nabc\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nCache-Control: max-age=60\r\n\r\n3\r\nabc\r\nx\r\n",
    ],
    ids=["length", "in-chunk", "between-chunks", "bad-chunk"],
)
@pytest.mark.parametrize("host", ["spare-0." + MEDIA, "spare-0." + GENERIC], ids=BOTH)
@scenario
async def test_what_broke_off_is_not_whole(box: Box, host: str, data: bytes, request: pytest.FixtureRequest) -> None:
    """On origins of their own: when the parts' outcomes came late, the breaker was open for the tests after it."""
    path = f"/broken-{request.node.callspec.id}".replace(".", "-")
    async with box.origin({path.encode(): raw(data)}):
        first = await get(box, path, host=host)
    assert not (first.status == 200 and first.is_whole)
    async with box.origin({path.encode(): reply(b"whole", fields=fields(cache_control="max-age=60"))}):
        assert (await get(box, path, host=host)).body == b"whole"


@rfc("9111#3.5", "a stored answer to nobody in particular may answer a request with Authorization")
@pytest.mark.parametrize("host", BOTH)
@scenario
async def test_authorization_is_answered_from_the_store(box: Box, host: str) -> None:
    _, two, requests = await twice(
        box, f"/auth-later-{host}", host, "Cache-Control: max-age=60", second={"Authorization": "Bearer x"}
    )
    assert len(requests) == 1
    assert "hit" in two.cache


@rfc("9111#3", "MUST NOT store answers to methods other than GET")
@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND", "BREW"])
@scenario
async def test_other_methods_are_not_stored(box: Box, method: str) -> None:
    path = f"/method-{method}"
    async with box.origin(
        {path.encode(): by_request(lambda r: reply(r.method, fields=fields(cache_control="max-age=60")))}
    ):
        assert (await get(box, path, {"Content-Length": "0"}, host=GENERIC, method=method)).body == method.encode()
        answer = await get(box, path, host=GENERIC)
        assert (answer.body, answer.cache["fwd"]) == (b"GET", "uri-miss")
        answer = await get(box, path, {"Content-Length": "0"}, host=GENERIC, method=method)
        assert (answer.body, answer.cache["fwd"]) == (method.encode(), "method")
        assert "stored" not in answer.cache


@rfc("9111#4", "MUST write unsafe methods through to the origin, whatever is stored")
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "BREW"])
@scenario
async def test_unsafe_methods_are_written_through(box: Box, method: str) -> None:
    path = f"/through-{method}"
    async with box.origin({path.encode(): reply(b"", status=403, fields=fields(cache_control="max-age=60"))}) as origin:
        await get(box, path, host=GENERIC)
        for _ in range(2):
            assert (await get(box, path, {"Content-Length": "0"}, host=GENERIC, method=method)).status == 403
    assert [request.method for request in origin.requests] == [b"GET", method.encode(), method.encode()]


@rfc("9111#4.4", "a failed unsafe request invalidates nothing; each kind that succeeds does, whatever its status")
@pytest.mark.parametrize(("status", "is_kept"), [(200, False), (204, False), (302, False), (404, True), (500, True)])
@pytest.mark.parametrize("method", ["POST", "BREW"])
@scenario
async def test_invalidation_by_status(box: Box, method: str, status: int, is_kept: bool) -> None:
    path = f"/invalidate-{method}-{status}"

    def choose(request: Request) -> Script:
        if request.method == b"GET":
            return reply(b"got", fields=fields(cache_control="max-age=60"))
        return reply(b"", status=status)

    async with box.origin({path.encode(): by_request(choose)}):
        await get(box, path, host=GENERIC)
        await get(box, path, {"Content-Length": "0"}, host=GENERIC, method=method)
        assert ("hit" in (await get(box, path, host=GENERIC)).cache) is is_kept


@rfc(
    "9111#4.4",
    "MUST NOT invalidate what Location names in another origin; with its own port it is ours",
)
@pytest.mark.parametrize(
    ("reference", "is_kept"),
    [
        (f"http://{GENERIC}/other", False), (f"https://{GENERIC}/other", False), (f"http://{GENERIC}:80/other", False),
        ("/other", False), ("other", False), (f"//{GENERIC}/other", False), (f"http://{MEDIA}/other", True),
        ("http://evil.example/other", True), (f"http://{GENERIC}:81/other", True), ("http://[", True),
        (f"ftp://{GENERIC}/other", True), (f"http://user@{GENERIC}/other", True),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["Location", "Content-Location"])
@scenario
async def test_invalidation_by_reference(box: Box, name: str, reference: str, is_kept: bool) -> None:
    scripts = {
        b"/other": reply(b"other", fields=fields(cache_control="max-age=60")),
        b"/doer": reply(b"", status=201, fields=((name.encode(), reference.encode()),)),
    }
    async with box.origin(scripts):
        await get(box, "/other", host=GENERIC)
        assert (await get(box, "/doer", {"Content-Length": "0"}, host=GENERIC, method="POST")).status == 201
        assert ("hit" in (await get(box, "/other", host=GENERIC)).cache) is is_kept


# -- choosing (section 4) ----------------------------------------------------------------------------------------------


@rfc("9111#4.1", "of several that match, the newest is used, also where the older one doesn't vary")
@scenario
async def test_the_newest_variant_is_used(box: Box) -> None:
    count = iter(range(1, 9))

    def choose(request: Request) -> Script:
        number = next(count)
        vary = "X-A" if number > 1 else "X-B"
        return reply(b"%d" % number, fields=fields(cache_control="max-age=60", vary=vary))

    async with box.origin({b"/newest": by_request(choose)}):
        assert (await get(box, "/newest", {"X-A": "1"}, host=GENERIC)).body == b"1"
        assert (await get(box, "/newest", {"X-A": "1", "Cache-Control": "no-cache"}, host=GENERIC)).body == b"2"
        assert (await get(box, "/newest", {"X-A": "1"}, host=GENERIC)).body == b"2"
        assert (await get(box, "/newest", {"X-A": "2"}, host=GENERIC)).body == b"3"


@rfc("9111#4.1", "an absent field matches only an absent one; values are compared with case; white space is not")
@pytest.mark.parametrize(
    ("first", "second", "is_reused"),
    [
        ({"X-A": ""}, {}, False), ({}, {"X-A": ""}, False), ({}, {}, True), ({"X-A": "a"}, {"X-A": "A"}, False),
        ({"X-A": "a b"}, {"X-A": "a   b"}, True), ({"X-A": "a b"}, {"X-A": "a\tb"}, True),
        ({"X-A": "ab"}, {"X-A": "a\tb"}, False), ({"X-A": "ab"}, {"X-A": "a b"}, False),
        ({"X-A": "1"}, {"x-a": "1"}, True), ({"X-A": "1", "X-B": "2"}, {"X-A": "12", "X-B": ""}, False),
        ({"X-A": "1"}, {"X-A": "1", "X-C": "3"}, True), ({"X-A": "1"}, {"X-B": "1"}, False),
    ],
)  # fmt: skip
@scenario
async def test_how_values_are_compared(
    box: Box, first: dict[str, str], second: dict[str, str], is_reused: bool
) -> None:
    path = f"/compared-{abs(hash((tuple(first.items()), tuple(second.items()))))}"
    response = "Cache-Control: max-age=60 | Vary: X-A, x-b"
    _, two, requests = await twice(box, path, GENERIC, response, first=first, second=second)
    assert (len(requests) == 1) is is_reused
    if not is_reused:
        assert two.cache["fwd"] == "vary-miss"


@rfc(
    "9111#5.2.1.2",
    "max-stale takes what is stale by so much, without an argument by any, where nothing forbids",
)
@pytest.mark.parametrize(
    ("response", "sent", "is_reused"),
    [
        ("max-age=10 | Age: 20", "max-stale=60", True), ("max-age=10 | Age: 20", "max-stale", True),
        ("max-age=10 | Age: 20", 'max-stale="60"', True), ("max-age=10 | Age: 20", "max-stale=5", False),
        ("max-age=10 | Age: 20", "max-stale=x", False), ("max-age=10 | Age: 20", "max-stale =60", False),
        ("max-age=10 | Age: 20", "max-stale=5, max-stale=60", False), ("max-age=10 | Age: 20", "max-age=60", False),
        ("max-age=10 | Age: 20", "max-stale, no-cache", False),
        ("max-age=10 | Age: 20", "max-stale, max-age=15", False),
        ("max-age=10 | Age: 20", "max-stale, max-age=60", True),
        ("max-age=10 | Age: 20", "max-stale, min-fresh=1", False),
        ("max-age=10 | Age: 20", "max-stale, only-if-cached", True),
        ("max-age=10, must-revalidate | Age: 20", "max-stale", False),
        ("max-age=10, proxy-revalidate | Age: 20", "max-stale", False),
        ("s-maxage=10 | Age: 20", "max-stale", False), ("max-age=10, no-cache | Age: 20", "max-stale", False),
        ('max-age=10 | Age: 20 | ETag: "v"', "max-stale", True),
    ],
)  # fmt: skip
@scenario
async def test_max_stale(box: Box, response: str, sent: str, is_reused: bool) -> None:
    path = f"/max-stale-{abs(hash((response, sent)))}"
    _, two, requests = await twice(box, path, GENERIC, f"Cache-Control: {response}", second={"Cache-Control": sent})
    assert (len(requests) == 1) is is_reused, two
    if is_reused:
        assert int(two.cache["ttl"]) < 0
        assert two.age >= 20


@rfc("9111#5.2.1.2", "profile media ignores max-stale as it does the others")
@scenario
async def test_media_ignores_max_stale(box: Box) -> None:
    response = 'Cache-Control: max-age=10 | Age: 20 | ETag: "v"'
    _, _, requests = await twice(box, "/max-stale", MEDIA, response, second={"Cache-Control": "max-stale"})
    assert len(requests) == 2


@rfc("9111#5.2.1.7", "only-if-cached with what is stale: 504, and the origin isn't asked")
@scenario
async def test_only_if_cached_of_what_is_stale(box: Box) -> None:
    response, sent = 'Cache-Control: max-age=0 | ETag: "v"', {"Cache-Control": "only-if-cached"}
    _, two, requests = await twice(box, "/only-stale", GENERIC, response, second=sent)
    assert (two.status, len(requests)) == (504, 1)


@rfc("9111#5.2.2.6", "MUST NOT transform: body, Content-Encoding and Content-Type as they came")
@pytest.mark.parametrize("host", BOTH)
@scenario
async def test_nothing_is_transformed(box: Box, host: str) -> None:
    body = bytes(range(256))
    response = fields(
        cache_control="max-age=60, no-transform", content_type="x/Y; q=1", content_encoding="gzip", x_trail="a \t b"
    )
    async with box.origin({f"/as-it-is-{host}".encode(): reply(body, fields=response)}):
        for _ in range(2):
            answer = await get(box, f"/as-it-is-{host}", {"Accept-Encoding": "gzip"}, host=host)
            assert answer.body == body
            assert (answer["Content-Type"], answer["Content-Encoding"]) == ("x/Y; q=1", "gzip")
            assert answer["X-Trail"] == "a \t b"


# -- validation (section 4.3) ------------------------------------------------------------------------------------------


@rfc("9111#4.3.1", "a weak tag and a date are sent as they are stored; without a validator nothing is")
@pytest.mark.parametrize(
    ("validators", "tag", "date"),
    [('ETag: W/"v"', b'W/"v"', None), (f"Last-Modified: {OLD}", None, OLD.encode()), ("X: y", None, None),
     ("ETag: v", None, None), ('ETag: "a" | ETag: "b"', None, None)],
)  # fmt: skip
@pytest.mark.parametrize("host", BOTH)
@scenario
async def test_which_validators_are_sent(
    box: Box, host: str, validators: str, tag: bytes | None, date: bytes | None
) -> None:
    path = f"/sent-{abs(hash((host, validators)))}"
    _, two, requests = await twice(box, path, host, f"Cache-Control: max-age=0 | {validators}")
    assert len(requests) == 2
    assert (requests[1].field(b"If-None-Match"), requests[1].field(b"If-Modified-Since")) == (tag, date)
    assert two.body == (b"1" if tag or date else b"2")


@rfc("9111#4.3.1", "the viewer's conditions never go to the origin as our own")
@pytest.mark.parametrize("host", BOTH)
@scenario
async def test_the_viewers_conditions_stay_here(box: Box, host: str) -> None:
    sent = {"If-None-Match": '"viewer"', "If-Modified-Since": NEW, "If-Match": '"x"', "If-Unmodified-Since": OLD,
            "If-Range": '"v"'}  # fmt: skip
    response = 'Cache-Control: max-age=0 | ETag: "v"'
    one, two, requests = await twice(box, f"/own-{host}", host, response, first=sent, second=sent)
    assert (one.status, two.status) == (200, 200)
    assert requests[0].field(b"If-None-Match") is None
    assert requests[1].field(b"If-None-Match") == b'"v"'
    for request in requests:
        assert not any(request.field(name) for name in (b"If-Match", b"If-Unmodified-Since", b"If-Range"))
        assert request.field(b"If-Modified-Since") is None


@rfc("9111#4.3.3", "a condition of the viewer's is answered after validation: 304 for what he has, 200 for what is new")
@pytest.mark.parametrize("host", BOTH)
@scenario
async def test_a_viewers_condition_on_what_is_validated(box: Box, host: str) -> None:
    path = f"/his-{host}"
    file = File(b"body", etag='"v"', cache_control="max-age=0")
    async with box.origin({path.encode(): file}):
        await get(box, path, host=host)
        assert (await get(box, path, {"If-None-Match": '"v"'}, host=host)).status == 304
        file.body, file.etag = b"new", '"w"'
        answer = await get(box, path, {"If-None-Match": '"v"'}, host=host)
        assert (answer.status, answer.body, answer["ETag"]) == (200, b"new", '"w"')
        assert (await get(box, path, {"If-None-Match": '"w"'}, host=host)).status == 304


@rfc("9111#4.3.4", "a 304 freshens by its own Cache-Control, Expires, Date and Age; they reach the viewer")
@pytest.mark.parametrize("host", BOTH)
@scenario
async def test_a_304_brings_its_own_freshness(box: Box, host: str) -> None:
    path = f"/freshness-{host}"
    first = reply(b"body", fields=(*lines(f"Cache-Control: max-age=60 | Age: 70 | Date: {OLD} | Expires: {OLD}"), ETAG))
    fresh = b'ETag: "v"\r\nCache-Control: max-age=90\r\nAge: 5\r\n'
    again = b"HTTP/1.1 304 Not Modified\r\n%bDate: %b\r\nExpires: %b\r\n\r\n" % (fresh, NEW.encode(), NEW.encode())
    async with box.origin({path.encode(): in_turn(first, raw(again, "keep"))}) as origin:
        await get(box, path, host=host)
        await get(box, path, host=host)
        answer = await get(box, path, host=host)
    assert len(origin.requests) == 2
    assert (answer["Date"], answer["Expires"], answer["Cache-Control"]) == (NEW, NEW, "max-age=90")
    assert 5 <= answer.age <= 15
    assert 70 <= int(answer.cache["ttl"]) <= 85


@rfc("9111#3.2", "what a 304 doesn't name stays; what forbids comes into force with it")
@pytest.mark.parametrize("host", BOTH)
@scenario
async def test_a_304_that_forbids(box: Box, host: str) -> None:
    path = f"/forbids-{host}"
    first = reply(b"body", fields=(*lines("Cache-Control: max-age=0"), ETAG))
    again = raw(b'HTTP/1.1 304 Not Modified\r\nETag: "v"\r\nCache-Control: no-store, max-age=60\r\n\r\n', "keep")
    last = reply(b"last", fields=lines("Cache-Control: max-age=60"))
    async with box.origin({path.encode(): in_turn(first, again, last)}) as origin:
        bodies = [(await get(box, path, host=host)).body for _ in range(3)]
    assert bodies == [b"body", b"body", b"last"]
    assert origin.requests[2].field(b"If-None-Match") is None


@rfc("9111#4.3.5", "a HEAD's answer makes other variants neither fresh nor stale, and is itself not stored")
@scenario
async def test_a_heads_answer_is_about_its_variant(box: Box) -> None:
    def choose(request: Request) -> Script:
        value = request.field(b"X-A") or b"-"
        return reply(value, fields=fields(cache_control="max-age=60", vary="X-A", etag=f'"{value.decode()}"'))

    async with box.origin({b"/head-variants": by_request(choose)}) as origin:
        for value in ("a", "b"):
            await get(box, "/head-variants", {"X-A": value}, host=GENERIC)
        answer = await get(box, "/head-variants", {"X-A": "c"}, host=GENERIC, method="HEAD")
        assert (answer.status, "stored" in answer.cache) == (200, False)
        for value in ("a", "b"):
            again = await get(box, "/head-variants", {"X-A": value}, host=GENERIC)
            assert "hit" in again.cache
            assert again.body == value.encode()
        assert (await get(box, "/head-variants", {"X-A": "c"}, host=GENERIC)).body == b"c"
    assert len(origin.requests) == 4


# -- stale (section 4.2.4, RFC 5861) -----------------------------------------------------------------------------------


@rfc("5861#4", "stale-if-error ends with its window")
@pytest.mark.parametrize("host", BOTH)
@scenario
async def test_stale_if_error_ends(box: Box, host: str) -> None:
    path = f"/window-{host}"
    stored = reply(b"old", fields=(*lines("Cache-Control: max-age=1, stale-if-error=5 | Age: 10"), ETAG))
    async with box.origin({path.encode(): in_turn(stored, reply(b"error", status=503))}):
        await get(box, path, host=host)
        answer = await get(box, path, host=host)
    assert (answer.status, answer.body == b"old") == (503, False)


@rfc("5861#3", "of 50 viewers in the window one refresh goes to the origin, and nobody waits for it")
@pytest.mark.parametrize("host", BOTH)
@scenario
async def test_one_refresh_for_all(box: Box, host: str) -> None:
    path, gate = f"/one-refresh-{host}", asyncio.Event()
    count = iter(range(1, 99))

    async def script(peer: Peer, request: Request) -> bool:
        number = next(count)
        if number > 1:
            await gate.wait()
        control = "max-age=0, stale-while-revalidate=60" if number == 1 else "max-age=60"
        return await reply(b"%d" % number, fields=fields(cache_control=control))(peer, request)

    async with box.origin({path.encode(): script}) as origin:
        await get(box, path, host=host)
        answers = await asyncio.gather(*(get(box, path, host=host) for _ in range(50)))
        assert {answer.body for answer in answers} == {b"1"}
        assert all("hit" in answer.cache and int(answer.cache["ttl"]) <= 0 for answer in answers)
        await until(lambda: len(origin.requests) == 2)
        gate.set()
        while (await get(box, path, host=host)).body != b"2":
            await asyncio.sleep(0.005)
    assert len(origin.requests) == 2


@rfc("9111#4.2.4", "stale where allowed: the origin closes, resets, refuses, answers 5xx or nonsense")
@pytest.mark.parametrize("failure", ["close", "reset", "nonsense", "500", "502", "503", "504"])
@scenario
async def test_stale_however_the_origin_fails(box: Box, failure: str) -> None:
    for number, host in enumerate((f"spare-3.{MEDIA}", f"spare-3.{GENERIC}")):
        path = f"/fails-{number}-{failure}"
        stored = reply(b"old", fields=(*lines("Cache-Control: max-age=0, stale-if-error=60"), ETAG))
        broken = raw(b"nonsense\r\n\r\n") if failure == "nonsense" else raw(b"", failure)
        error = reply(b"error", status=int(failure)) if failure.isdigit() else broken
        async with box.origin({path.encode(): in_turn(stored, error)}):
            await get(box, path, host=host)
            answer = await get(box, path, host=host)
        assert (answer.status, answer.body) == (200, b"old")
        assert "Age" in answer
