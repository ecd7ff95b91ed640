"""Storing, reuse, validation and variants (RFC 9111) through the running box, as viewers and origins see them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from email.utils import formatdate

import pytest
from box import BY_VIEWER, GENERIC, MEDIA, OVERRIDE, Box, Viewer, get, scenario, sound_box, until
from hostile_origin import Request, Script, in_turn, raw, reply
from origin_scripts import File, by_request, cached, fields, gated, noise


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    with sound_box(tmp_path_factory.mktemp("storing")) as running:
        yield running


@scenario
async def test_a_stored_answer_is_reused_with_age_and_the_origins_date(box: Box) -> None:
    date = formatdate(1_600_000_000, usegmt=True)
    named = fields(cache_control="max-age=100", date=date, x_unknown="kept", connection="x-gone", x_gone="dropped")
    async with box.origin({b"/reuse": reply(b"body", fields=(*named, (b"Age", b"7")))}) as origin:
        first, second = await get(box, "/reuse"), await get(box, "/reuse")
    assert [first.body, second.body, len(origin.requests)] == [b"body", b"body", 1]
    assert first.cache == {"fwd": "uri-miss", "fwd-status": "200", "stored": ""}
    assert second["Date"] == first["Date"] == date
    assert 7 <= second.age < 20
    assert set(second.cache) == {"hit", "ttl"}
    assert 70 < int(second.cache["ttl"]) < 94
    assert second["X-Unknown"] == "kept"
    assert "X-Gone" not in second
    assert "Connection" not in second


@pytest.mark.rfc("9111#4.2.3", "Age advances with the time in our hands")
@scenario
async def test_age_of_a_stored_answer_advances(box: Box) -> None:
    async with box.origin({b"/ages": cached(b"body", 100)}):
        await get(box, "/ages")
        ages: list[int] = []

        async def has_aged() -> bool:
            ages.append((await get(box, "/ages")).age)
            return ages[-1] >= 1

        while not await has_aged():
            await asyncio.sleep(0.02)
    assert ages[0] == 0


@scenario
async def test_an_expired_answer_is_validated_and_the_304_renews_it(box: Box) -> None:
    file = File(
        b"body", etag='"v1"', cache_control="max-age=0", x_version="1", last_modified=formatdate(1e9, usegmt=True)
    )
    async with box.origin({b"/expires": file}) as origin:
        await get(box, "/expires")
        file.fields = fields(cache_control="max-age=60", x_version="2")
        second = await get(box, "/expires")
        third = await get(box, "/expires")
    assert origin.requests[1].field(b"If-None-Match") == b'"v1"'
    assert origin.requests[1].field(b"If-Modified-Since") == formatdate(1e9, usegmt=True).encode()
    assert len(origin.requests) == 2
    assert second.cache == {"fwd": "stale", "fwd-status": "304", "stored": ""}
    assert [second.body, second["X-Version"], third["X-Version"]] == [b"body", "2", "2"]
    assert second["Content-Length"] == third["Content-Length"] == "4"
    assert "hit" in third.cache


@scenario
async def test_a_full_answer_to_a_validation_replaces_what_is_stored(box: Box) -> None:
    file = File(b"old", etag='"old"', cache_control="max-age=0")
    async with box.origin({b"/replaced": file}):
        assert (await get(box, "/replaced")).body == b"old"
        file.body, file.etag, file.fields = b"newer", '"new"', fields(cache_control="max-age=60")
        second, third = await get(box, "/replaced"), await get(box, "/replaced")
    assert [second.body, third.body] == [b"newer", b"newer"]
    assert second.cache == {"fwd": "stale", "fwd-status": "200", "stored": ""}


@pytest.mark.rfc("9111#4.3.4", "a 304 about another representation updates nothing")
@scenario
async def test_a_304_about_something_else_makes_the_box_ask_without_conditions(box: Box) -> None:
    odd = raw(b'HTTP/1.1 304 Not Modified\r\nETag: "other"\r\n\r\n', "keep")
    full = reply(b"fresh", fields=(*fields(cache_control="max-age=60"), (b"ETag", b'"w"')))
    first = reply(b"old", fields=(*fields(cache_control="max-age=0"), (b"ETag", b'"v"')))
    async with box.origin({b"/odd-304": in_turn(first, odd, full)}) as origin:
        await get(box, "/odd-304")
        second = await get(box, "/odd-304")
    assert second.body == b"fresh"
    assert origin.requests[2].field(b"If-None-Match") is None


@scenario
async def test_a_304_that_nobody_asked_for_is_a_bad_answer(box: Box) -> None:
    async with box.origin({b"/sudden-304": raw(b"HTTP/1.1 304 Not Modified\r\n\r\n", "keep")}):
        assert (await get(box, "/sudden-304")).status == 502


@scenario
async def test_viewers_conditions_are_answered_from_the_store(box: Box) -> None:
    modified = formatdate(1e9, usegmt=True)
    file = File(b"body", etag='"v1"', cache_control="max-age=60", last_modified=modified, content_language="fr")
    async with box.origin({b"/conditions": file}) as origin:
        await get(box, "/conditions")
        for condition in ({"If-None-Match": '"x", W/"v1"'}, {"If-Modified-Since": modified}):
            answer = await get(box, "/conditions", condition)
            assert answer.status == 304
            assert answer.body == b""
            assert answer["ETag"] == '"v1"'
            assert "Content-Length" not in answer
            assert "Content-Language" not in answer
        assert (await get(box, "/conditions", {"If-None-Match": '"x"', "If-Modified-Since": modified})).status == 200
    assert len(origin.requests) == 1


@scenario
async def test_a_viewers_conditions_never_reach_the_origin(box: Box) -> None:
    file = File(b"body", cache_control="max-age=60")
    async with box.origin({b"/no-conditions": file}) as origin:
        answer = await get(box, "/no-conditions", {"If-None-Match": '"v1"', "If-Range": '"v1"'})
    assert answer.status == 304
    assert origin.requests[0].field(b"If-None-Match") is None


def by_field(name: bytes, answers: dict[bytes | None, bytes], **named: str) -> Script:
    """Answers by a request field, and says so in Vary."""

    def choose(request: Request) -> Script:
        return reply(answers[request.field(name)], fields=(*fields(**named), (b"Vary", name)))

    return by_request(choose)


@pytest.mark.rfc("9111#4.1", "variants are stored side by side")
@scenario
async def test_variants_live_side_by_side(box: Box) -> None:
    answers = {b"fr": b"bonjour", b"de": b"hallo", None: b"hello"}
    script = by_field(b"Accept-Language", answers, cache_control="max-age=60")
    async with box.origin({b"/languages": script}) as origin:
        for again in (False, True):
            for language, body in answers.items():
                named = {} if language is None else {"Accept-Language": language.decode()}
                answer = await get(box, "/languages", named, host=GENERIC)
                assert answer.body == body
                assert ("hit" in answer.cache) == again
                if not again:
                    first = language == b"fr"
                    assert answer.cache["fwd"] == ("uri-miss" if first else "vary-miss")
    assert len(origin.requests) == 3


@scenario
async def test_waiters_of_another_variant_get_their_own_at_head_time(box: Box) -> None:
    answers = {b"fr": b"bonjour", b"de": b"hallo"}
    gate = asyncio.Event()
    script = gated(gate, by_field(b"Accept-Language", answers, cache_control="max-age=60"))
    async with box.origin({b"/rematch": script}) as origin:
        asked = [
            (language, asyncio.ensure_future(get(box, "/rematch", {"Accept-Language": language}, host=GENERIC)))
            for language in ("fr", "de") * 10
        ]
        await until(lambda: origin.requests)
        gate.set()
        for language, future in asked:
            assert (await future).body == answers[language.encode()]
    assert len(origin.requests) == 2


@scenario
async def test_a_second_variant_is_stored_while_the_first_one_still_fills(box: Box) -> None:
    """A flight that had been answered stayed joinable until its body's end: whoever wanted another variant was sent
    back to look four times, then went alone, and nothing of his was stored."""
    hold = asyncio.Event()
    slow = File(noise(200_000), etag=None, cache_control="max-age=60", vary="Accept-Language")
    slow.hold = (1000, hold)
    quick = reply(b"hallo", fields=fields(cache_control="max-age=60", vary="Accept-Language"))
    script = by_request(lambda request: slow if request.field(b"Accept-Language") == b"fr" else quick)
    async with box.origin({b"/second-variant": script}) as origin:
        viewer = await Viewer.connect(box)
        viewer.ask("/second-variant", {"Accept-Language": "fr"}, host=GENERIC)
        await viewer.head()
        first = await get(box, "/second-variant", {"Accept-Language": "de"}, host=GENERIC)
        second = await get(box, "/second-variant", {"Accept-Language": "de"}, host=GENERIC)
        hold.set()
        assert (await viewer.answer()).is_whole
        viewer.close()
    assert [first.body, second.body] == [b"hallo", b"hallo"]
    assert "stored" in first.cache
    assert "hit" in second.cache
    assert len(origin.requests) == 2


@scenario
async def test_when_vary_changes_old_variants_are_not_matched(box: Box) -> None:
    first = reply(b"one", fields=fields(cache_control="max-age=60", vary="Accept-Language"))
    second = reply(b"two", fields=fields(cache_control="max-age=60", vary="X-Device"))
    async with box.origin({b"/vary-changes": in_turn(first, second)}) as origin:
        await get(box, "/vary-changes", {"Accept-Language": "fr", "X-Device": "tv"}, host=GENERIC)
        answer = await get(box, "/vary-changes", {"Accept-Language": "de", "X-Device": "tv"}, host=GENERIC)
        assert answer.body == b"two"
        again = await get(box, "/vary-changes", {"Accept-Language": "fr", "X-Device": "tv"}, host=GENERIC)
    assert again.body == b"two"
    assert len(origin.requests) == 2


@pytest.mark.rfc("9111#4.1", "a coding goes only to who named it")
@scenario
async def test_a_coding_that_a_viewer_did_not_name_is_never_his(box: Box) -> None:
    """What goes up must be what variants are told apart by: a body in br once went to who had asked for none."""

    def choose(request: Request) -> Script:
        coding = (request.field(b"Accept-Encoding") or b"identity").split(b",")[0]
        named = (*fields(cache_control="max-age=60", vary="Accept-Encoding"), (b"Content-Encoding", coding))
        return reply(b"in " + coding, fields=named if coding != b"identity" else named[:2])

    async with box.origin({b"/codings": by_request(choose)}):
        wanted = {"br": b"identity", "": b"identity", "gzip": b"gzip", "br, gzip": b"gzip", "gzip;q=0, *": b"identity"}
        for coding, body in wanted.items():
            named = {"Accept-Encoding": coding} if coding else {}
            assert (await get(box, "/codings", named, host=GENERIC)).body == b"in " + body


@pytest.mark.rfc("9111#4.1", "a field that Connection names selects no variant")
@scenario
async def test_a_field_that_connection_took_away_selects_no_variant(box: Box) -> None:
    """`Connection: Origin` kept Origin from the origin, but the answer was stored as the one to that Origin: a page's
    players then got no Access-Control-Allow-Origin."""

    def choose(request: Request) -> Script:
        asked = request.field(b"Origin")
        allowed = ((b"Access-Control-Allow-Origin", asked),) if asked else ()
        return reply(b"segment", fields=(*fields(cache_control="max-age=60", vary="Origin"), *allowed))

    page = "https://portal.example"
    async with box.origin({b"/cors.m4s": by_request(choose)}):
        await get(box, "/cors.m4s", {"Origin": page, "Connection": "Origin"})
        answer = await get(box, "/cors.m4s", {"Origin": page})
    assert answer["Access-Control-Allow-Origin"] == page


@pytest.mark.parametrize("host", [MEDIA, GENERIC])
@pytest.mark.parametrize(
    "named",
    [
        {"cache_control": "max-age=60", "set_cookie": "session=1"},
        {"cache_control": "private, max-age=60"},
        {"cache_control": "no-store"},
        {"cache_control": "max-age=60", "vary": "*"},
    ],
    ids=["set-cookie", "private", "no-store", "vary-star"],
)
@scenario
async def test_what_is_not_for_all_is_not_stored(box: Box, host: str, named: dict[str, str]) -> None:
    path = f"/private-{host}-{'-'.join(named)}-{named['cache_control'][:3]}"
    async with box.origin({path.encode(): in_turn(*(reply(b"%d" % i, fields=fields(**named)) for i in range(3)))}):
        answers = [await get(box, path, host=host) for _ in range(3)]
    assert [answer.body for answer in answers] == [b"0", b"1", b"2"]
    assert all("stored" not in answer.cache and "hit" not in answer.cache for answer in answers)
    assert all("Age" not in answer for answer in answers)
    assert [answer["Set-Cookie"] for answer in answers] == [named.get("set_cookie", "")] * 3


@scenario
async def test_override_private_stores_playlists_and_segments_only(box: Box) -> None:
    private = fields(cache_control="private, no-store")
    async with box.origin({b"/o.m4s": reply(b"segment", fields=private), b"/o.html": reply(b"page", fields=private)}):
        for path, stores in (("/o.m4s", True), ("/o.html", False)):
            await get(box, path, host=OVERRIDE)
            assert ("hit" in (await get(box, path, host=OVERRIDE)).cache) == stores


@pytest.mark.parametrize(
    ("cache_control", "stores"),
    [("max-age=60", False), ("public, max-age=60", True), ("s-maxage=60", True), ("max-age=60, must-revalidate", True)],
)
@scenario
async def test_an_answer_to_authorization_is_shared_only_where_it_says_so(
    box: Box, cache_control: str, stores: bool
) -> None:
    path = "/authorized-" + cache_control.replace(", ", "-").replace("=", "")
    script = in_turn(*(reply(b"%d" % i, fields=fields(cache_control=cache_control)) for i in range(3)))
    async with box.origin({path.encode(): script}) as origin:
        first = await get(box, path, {"Authorization": "Bearer a"})
        second = await get(box, path, {"Authorization": "Bearer b"})
    assert first.body == b"0"
    assert second.body == (b"0" if stores else b"1")
    assert origin.requests[0].field(b"Authorization") == b"Bearer a"


@scenario
async def test_a_viewer_with_credentials_does_not_throw_out_what_is_stored(box: Box) -> None:
    """A 304 to a request with Authorization detached the object: one stranger's header emptied a key for everyone."""
    file = File(b"body", cache_control="max-age=0")
    async with box.origin({b"/kept": file}):
        await get(box, "/kept")
        assert (await get(box, "/kept", {"Authorization": "x"})).body == b"body"
        answer = await get(box, "/kept")
    assert answer.cache["fwd"] == "stale"
    assert answer.cache["fwd-status"] == "304"


@pytest.mark.rfc("9111#4.3.3", "404 and private to a validation end what is stored")
@scenario
async def test_the_origin_took_it_back(box: Box) -> None:
    """404 or private to a validation: what was stored could come back when the origin was gone."""
    for path, gone in (
        ("/back-404", reply(b"", status=404)),
        ("/back-private", reply(b"", fields=fields(cache_control="private"))),
    ):
        stored = reply(b"secret", fields=(*fields(cache_control="max-age=0"), (b"ETag", b'"v"')))
        async with box.origin({path.encode(): in_turn(stored, gone)}):
            await get(box, path)
            await get(box, path)
        answer = await get(box, path)
        assert answer.status in (502, 503, 504), answer


@scenario
async def test_media_sends_an_allow_list_and_generic_all_but_a_deny_list(box: Box) -> None:
    sent = {
        "Accept-Language": "fr", "User-Agent": "player", "Cookie": "a=b", "X-Custom": "x", "Origin": "https://p.example",
        "Authorization": "Bearer t", "X-Forwarded-For": "1.2.3.4", "X-Forwarded-Host": "evil", "Forwarded": "for=x",
        "X-Original-URL": "/admin", "X-Rewrite-URL": "/admin", "X-HTTP-Method-Override": "DELETE", "Proxy-Foo": "x",
        "TE": "trailers", "Connection": "X-Mine", "X-Mine": "x", "Accept-Encoding": "br, gzip", "X-Tenant": "t",
    }  # fmt: skip
    async with box.origin({b"/fields": reply(b"ok"), b"/fields-2": reply(b"ok"), b"/fields-3": reply(b"ok")}) as origin:
        await get(box, "/fields", sent)
        await get(box, "/fields-2", sent, host=GENERIC)
        await get(box, "/fields-3", sent, host=BY_VIEWER)
    media, generic, by_viewer = (
        {line.split(b":")[0].lower() for line in r.raw.split(b"\r\n")[1:] if line} for r in origin.requests
    )
    assert media == {
        b"host",
        b"accept",
        b"user-agent",
        b"origin",
        b"authorization",
        b"accept-encoding",
        b"via",
        b"cdn-loop",
    }
    assert origin.requests[0].field(b"Accept-Encoding") == b"gzip"
    assert by_viewer == media | {b"x-tenant"}
    assert generic == {
        b"host", b"accept-language", b"user-agent", b"cookie", b"x-custom", b"origin", b"authorization",
        b"accept-encoding", b"x-tenant", b"via", b"cdn-loop",
    }  # fmt: skip
    assert origin.requests[0].field(b"Host") == b"127.0.0.1:%d" % origin.port
    assert origin.requests[2].field(b"Host") == BY_VIEWER.encode()
    assert origin.requests[1].field(b"Via") == b"1.1 test"
    assert origin.requests[1].field(b"CDN-Loop") == b"test"


@pytest.mark.parametrize(
    "named", [{"Via": "1.1 other, 1.1 test"}, {"CDN-Loop": "other, TEST"}], ids=["via", "cdn-loop"]
)
@scenario
async def test_a_loop_is_refused_and_only_for_who_came_round(box: Box, named: dict[str, str]) -> None:
    """Those who had joined a looping request got its 502: any viewer could break a live playlist for all."""
    path = f"/loop-{len(named)}-{next(iter(named))}"
    async with box.origin({path.encode(): cached(b"body")}) as origin:
        answers = await asyncio.gather(*(get(box, path, named if i == 0 else {}) for i in range(40)))
        assert (await get(box, path + "x", named)).status == 502
    assert [answer.status for answer in answers[1:]] == [200] * 39
    assert len(origin.requests) == 1


@pytest.mark.parametrize(
    "target",
    [
        "/a//b///c", "/a%2fb%2Fc", "/a;x=1;y=2", "/a?", "/a?&", "/a?b=%zz", "/a?x=1&x=2&a=0", "/a/../b/./c",
        "/a?q=~!*'()@,/?:", "/%c3%a9?%20", "/a?CMCDX=1", "/a|b^c`{d}", "//a",
    ],
)  # fmt: skip
@scenario
async def test_the_target_goes_up_as_it_came(box: Box, target: str) -> None:
    async with box.origin({target.encode().partition(b"?")[0]: cached(b"body")}) as origin:
        assert (await get(box, target)).status == 200
        assert "hit" in (await get(box, target)).cache
    assert origin.targets() == [target.encode()]


@scenario
async def test_cmcd_goes_up_but_is_no_part_of_the_key(box: Box) -> None:
    async with box.origin({b"/cmcd.m4s": cached(b"body")}) as origin:
        await get(box, "/cmcd.m4s?a=1&CMCD=sid%3D1&b=2")
        second = await get(box, "/cmcd.m4s?a=1&CMCD=sid%3D2&b=2")
        third = await get(box, "/cmcd.m4s?a=1&b=2")
    assert "hit" in second.cache
    assert "hit" in third.cache
    assert origin.targets() == [b"/cmcd.m4s?a=1&CMCD=sid%3D1&b=2"]


@pytest.mark.rfc("9111#4", "a stored GET answers HEAD")
@scenario
async def test_head_on_a_miss_is_asked_and_on_what_is_stored_is_not(box: Box) -> None:
    file = File(b"body", cache_control="max-age=60")
    async with box.origin({b"/head": file}) as origin:
        missed = await get(box, "/head", method="HEAD")
        await get(box, "/head")
        stored = await get(box, "/head", method="HEAD")
    assert [request.method for request in origin.requests] == [b"HEAD", b"GET"]
    assert [missed.status, missed.body, missed["Content-Length"]] == [200, b"", "4"]
    assert [stored.status, stored.body, stored["Content-Length"]] == [200, b"", "4"]
    assert "hit" in stored.cache


@scenario
async def test_only_if_cached_is_answered_504_to_him_alone(box: Box) -> None:
    async with box.origin({b"/only-if": cached(b"body")}):
        named = {"Cache-Control": "only-if-cached"}
        answers = await asyncio.gather(
            *(get(box, "/only-if", named if i == 0 else {}, host=GENERIC) for i in range(20))
        )
        assert (await get(box, "/only-if-2", named, host=GENERIC)).status == 504
    assert {answer.status for answer in answers[1:]} == {200}


@scenario
async def test_an_answer_without_a_lifetime_is_kept_only_to_be_validated(box: Box) -> None:
    file = File(b"body", etag='"v"')
    plain = reply(b"plain")
    async with box.origin({b"/to-validate": file, b"/plain": plain}) as origin:
        await get(box, "/to-validate", host=GENERIC)
        second = await get(box, "/to-validate", host=GENERIC)
        await get(box, "/plain", host=GENERIC)
        await get(box, "/plain", host=GENERIC)
    assert second.cache["fwd-status"] == "304"
    assert [request.target for request in origin.requests].count(b"/plain") == 2


@scenario
async def test_keep_alive_and_http_1_0_viewers(box: Box) -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nCache-Control: max-age=60\r\n\r\n"
    chunks = raw(head + b"2\r\nbo\r\n2\r\ndy\r\n0\r\n\r\n", "keep")
    async with box.origin({b"/whole": cached(b"body"), b"/chunks": chunks}):
        for path in ("/whole", "/chunks", "/chunks"):
            answer = await get(box, path, version="1.0")
            assert [answer.status, answer.body, answer.is_whole] == [200, b"body", True]
        viewer = await Viewer.connect(box)
        for path in ("/whole", "/chunks", "/whole"):
            viewer.ask(path)
            assert (await viewer.answer()).body == b"body"
        viewer.close()
