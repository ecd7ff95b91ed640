"""RFC 9111 clause by clause, through the running box, in both profiles: what is stored, reused, validated, updated.

Each test says by its mark which clause it holds us to; `make test` prints the table. Rules that other files test at
length (ranges, collapsing, variants) carry their mark there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from email.utils import formatdate
from typing import Any

import pytest
from box import GENERIC, MEDIA, REFUSING, Box, get, scenario, sound_box
from clauses import BOTH, ETAG, lines, rfc, twice
from hostile_origin import Request, in_turn, raw, reply
from origin_scripts import File, by_request


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    with sound_box(tmp_path_factory.mktemp("rfc9111")) as running:
        yield running


# (clause, what, profiles, fields of the response, reused without asking)
FUTURE, PAST = formatdate(2e9, usegmt=True), formatdate(1e9, usegmt=True)
NOW = "Date: " + formatdate(usegmt=True)
REUSE: list[tuple[str, str, tuple[str, ...], str, bool]] = [
    ("9111#3", "MUST NOT store without explicit freshness or validator in generic", (GENERIC,), "X: y", False),
    ("9111#3", "stores with max-age", BOTH, "Cache-Control: max-age=60", True),
    ("9111#3", "stores with Expires", BOTH, f"Expires: {FUTURE}", True),
    ("9111#4.2.1", "s-maxage before max-age before Expires", BOTH,
     f"Cache-Control: max-age=60, s-maxage=0 | {NOW}", False),
    ("9111#4.2.1", "max-age before Expires", BOTH, f"Cache-Control: max-age=60 | Expires: {PAST}", True),
    ("9111#4.2.1", "of a directive twice, the first counts", BOTH, "Cache-Control: max-age=60, max-age=0", True),
    ("9111#4.2.1", "of a directive in two lines, the first counts", BOTH,
     "Cache-Control: max-age=0 | Cache-Control: max-age=60", False),
    ("9111#4.2.1", "invalid freshness is stale", BOTH, "Cache-Control: max-age=abc", False),
    ("9111#4.2.1", "negative max-age is stale", BOTH, "Cache-Control: max-age=-1", False),
    ("9111#4.2.1", "fractional max-age is stale", BOTH, "Cache-Control: max-age=1.5", False),
    ("9111#1.2.2", "delta-seconds beyond 2^31 count as that", BOTH,
     "Cache-Control: max-age=99999999999999999999", True),
    ("9111#5.2", "quoted argument counts as token", BOTH, 'Cache-Control: max-age="60"', True),
    ("9111#5.2", "names in any case", BOTH, "Cache-Control: MAX-AGE=60", True),
    ("9111#5.2", "white space and empty members", BOTH, "Cache-Control: , max-age=60 ,, ", True),
    ("9111#5.2", "a comma in a quoted string separates nothing", BOTH,
     'Cache-Control: x="a, no-store", max-age=60', True),
    ("9111#5.2", "a quote that never closes hides nothing", BOTH, 'Cache-Control: max-age=60, x="a, no-store', False),
    ("9111#5.2", "a space before = makes no argument", BOTH, "Cache-Control: max-age =60", False),
    ("9111#5.2.3", "MUST ignore unknown directives", BOTH, "Cache-Control: max-age=60, unknown, other=1", True),
    ("9111#5.3", "invalid Expires (0) is expired", BOTH, "Expires: 0", False),
    ("9111#5.3", "malformed Expires is expired", BOTH, "Expires: soon", False),
    ("9111#5.3", "repeated Expires: the first", BOTH, f"Expires: {PAST} | Expires: {FUTURE}", False),
    ("9111#5.3", "Expires as RFC 850 and asctime dates", BOTH, "Expires: Wed May 18 03:33:20 2033", True),
    ("9111#5.1", "Age absent", BOTH, "Cache-Control: max-age=60", True),
    ("9111#5.1", "Age beyond the lifetime is stale", BOTH, "Cache-Control: max-age=60 | Age: 61", False),
    ("9111#5.1", "Age huge is stale", BOTH, "Cache-Control: max-age=60 | Age: 99999999999999999999", False),
    ("9111#5.1", "fractional Age is ignored", BOTH, "Cache-Control: max-age=60 | Age: 70.5", True),
    ("9111#5.1", "negative Age is ignored", BOTH, "Cache-Control: max-age=60 | Age: -70", True),
    ("9111#5.1", "repeated Age: the first", BOTH, "Cache-Control: max-age=60 | Age: 0 | Age: 70", True),
    ("9111#5.1", "Age a list: its first member", BOTH, "Cache-Control: max-age=60 | Age: 70, 0", False),
    ("9111#5.2.2.4", "no-cache MUST NOT be used without validation", BOTH,
     'Cache-Control: no-cache, max-age=60 | ETag: "v"', False),
    ("9111#5.2.2.4", 'no-cache="field" as unqualified', BOTH,
     'Cache-Control: no-cache="x", max-age=60 | ETag: "v"', False),
    ("9111#5.2.2.5", "no-store MUST NOT be stored", BOTH, "Cache-Control: no-store, max-age=60", False),
    ("9111#5.2.2.7", "private MUST NOT be stored by a shared cache", BOTH, "Cache-Control: private, max-age=60", False),
    ("9111#5.2.2.7", 'private="field" as unqualified', BOTH, 'Cache-Control: private="x", max-age=60', False),
    ("9111#5.2.2.3", "must-understand overrides no-store for a known status", BOTH,
     "Cache-Control: must-understand, no-store, max-age=60", True),
    ("9111#5.2.2.10", "s-maxage overrides max-age", BOTH, "Cache-Control: max-age=0, s-maxage=60", True),
    ("9111#4.1", "Vary: * never matches", BOTH, "Cache-Control: max-age=60 | Vary: *", False),
    ("9111#4.1", "* in a list of Vary never matches", BOTH, "Cache-Control: max-age=60 | Vary: Accept, *", False),
    ("9111#4.1", "* in a second line of Vary never matches", BOTH,
     "Cache-Control: max-age=60 | Vary: Accept | Vary: *", False),
    ("9111#7.3", "Set-Cookie is not shared", BOTH, "Cache-Control: max-age=60 | Set-Cookie: a=b", False),
    ("9213#3.1", "CDN-Cache-Control before Cache-Control", BOTH,
     "Cache-Control: no-store | CDN-Cache-Control: max-age=60", True),
    ("9213#2.1", "CDN-Cache-Control may forbid", BOTH,
     "Cache-Control: max-age=60 | CDN-Cache-Control: no-store", False),
    ("9213#2.1", "CDN-Cache-Control before Expires", BOTH, f"Expires: {FUTURE} | CDN-Cache-Control: max-age=0", False),
    ("9213#2.2", "invalid CDN-Cache-Control is ignored", BOTH,
     "Cache-Control: max-age=60 | CDN-Cache-Control: &&", True),
    ("9213#2.2", "empty CDN-Cache-Control is ignored", BOTH, "Cache-Control: no-store | CDN-Cache-Control:", False),
    ("8246#2", "immutable changes nothing for a shared cache that is fresh", BOTH,
     "Cache-Control: max-age=60, immutable", True),
    ("8246#2", "immutable makes nothing fresh", BOTH, 'Cache-Control: max-age=0, immutable | ETag: "v"', False),
]  # fmt: skip
ROWS = [
    pytest.param(n, host, *row[3:], id=f"{row[1]}-{host.partition('.')[0]}", marks=rfc(row[0], row[1]))
    for n, row in enumerate(REUSE)
    for host in row[2]
]


@pytest.mark.parametrize(("n", "host", "response", "is_reused"), ROWS)
@scenario
async def test_reuse(box: Box, n: int, host: str, response: str, is_reused: bool) -> None:
    _, two, requests = await twice(box, f"/reuse-{n}-{host}", host, response)
    assert (len(requests) == 1) is is_reused, two
    assert ("hit" in two.cache) is is_reused


STATUSES = [200, 203, 204, 299, 300, 301, 302, 303, 307, 308, 404, 410, 420, 499, 500, 502, 503, 504, 599, 999]


@rfc("9111#3", "any final status with explicit freshness is stored in generic, provoked ones are not")
@pytest.mark.parametrize("status", STATUSES)
@scenario
async def test_final_statuses_with_explicit_freshness(box: Box, status: int) -> None:
    one, two, requests = await twice(box, f"/status-{status}", GENERIC, "Cache-Control: max-age=60", status)
    assert [one.status, two.status] == [status, status]
    assert len(requests) == 1, "stored"


@rfc("9110#15", "an unknown status is passed through as it is")
@pytest.mark.parametrize("host", BOTH)
@scenario
async def test_an_odd_status_is_passed_through(box: Box, host: str) -> None:
    one, _, _ = await twice(box, f"/odd-{host}", host, "X: y", 999)
    assert (one.status, one.body) == (999, b"1")


@rfc("9111#5.2.2.3", "must-understand: an unknown status MUST NOT be stored")
@scenario
async def test_must_understand_of_an_unknown_status(box: Box) -> None:
    _, _, requests = await twice(box, "/understand", GENERIC, "Cache-Control: must-understand, max-age=60", 299)
    assert len(requests) == 2


@rfc("9111#3.5", "an answer to Authorization is shared only with public, must-revalidate or s-maxage")
@pytest.mark.parametrize("host", BOTH)
@pytest.mark.parametrize(
    ("directive", "is_reused"),
    [("max-age=60", False), ("max-age=60, public", True), ("max-age=60, must-revalidate", True), ("s-maxage=60", True)],
)
@scenario
async def test_authorization(box: Box, host: str, directive: str, is_reused: bool) -> None:
    path = f"/auth-{host}-{directive.replace(', ', '-')}"
    sent = {"Authorization": "Bearer x"}
    _, _, requests = await twice(box, path, host, f"Cache-Control: {directive}", first=sent, second={})
    assert (len(requests) == 1) is is_reused


# -- request directives (RFC 9111 section 5.2.1): generic only, which takes viewers at their word ----------------------

ASKED: list[tuple[str, str, str, dict[str, str], bool]] = [
    ("9111#5.2.1.4", "no-cache validates", "max-age=60", {"Cache-Control": "no-cache"}, False),
    ("9111#5.4", "Pragma: no-cache counts without Cache-Control", "max-age=60", {"Pragma": "no-cache"}, False),
    ("9111#5.4", "Pragma doesn't count beside Cache-Control", "max-age=60",
     {"Pragma": "no-cache", "Cache-Control": "max-age=60"}, True),
    ("9111#5.2.1.1", "max-age=0 validates", "max-age=60", {"Cache-Control": "max-age=0"}, False),
    ("9111#5.2.1.1", "max-age beyond the age is content", "max-age=60", {"Cache-Control": "max-age=30"}, True),
    ("9111#5.2.1.1", "max-age below the age validates", "max-age=60 | Age: 40", {"Cache-Control": "max-age=30"}, False),
    ("9111#5.2.1.1", "invalid max-age is 0", "max-age=60", {"Cache-Control": "max-age=x"}, False),
    ("9111#5.2.1.3", "min-fresh beyond what is left validates", "max-age=60", {"Cache-Control": "min-fresh=61"}, False),
    ("9111#5.2.1.3", "min-fresh within what is left is content", "max-age=60", {"Cache-Control": "min-fresh=10"}, True),
    ("9111#5.2.1.5", "no-store may be answered from the store", "max-age=60", {"Cache-Control": "no-store"}, True),
    ("9111#5.2.1.7", "only-if-cached is answered from the store", "max-age=60",
     {"Cache-Control": "only-if-cached"}, True),
    ("9111#5.2.1.2", "max-stale is no duty: a fresh one answers", "max-age=60", {"Cache-Control": "max-stale"}, True),
    ("9111#5.2.3", "unknown request directives are ignored", "max-age=60", {"Cache-Control": "x, no-cachex"}, True),
    ("9111#5.2", "directives in quotes are none", "max-age=60", {"Cache-Control": 'x="no-cache, "'}, True),
]  # fmt: skip


@pytest.mark.parametrize(
    ("n", "response", "sent", "is_reused"),
    [pytest.param(n, *row[2:], id=row[1], marks=rfc(row[0], row[1])) for n, row in enumerate(ASKED)],
)
@pytest.mark.parametrize("etag", ["", ' | ETag: "v"'], ids=["plain", "etag"])
@scenario
async def test_request_directives(
    box: Box, n: int, response: str, sent: dict[str, str], is_reused: bool, etag: str
) -> None:
    path = f"/asked-{n}-{bool(etag)}"
    _, two, requests = await twice(box, path, GENERIC, f"Cache-Control: {response}{etag}", second=sent)
    assert (len(requests) == 1) is is_reused, two
    if not is_reused:
        assert two.cache["fwd"] == "request"
        assert requests[1].field(b"If-None-Match") == (b'"v"' if etag else None)
        assert two.body == (b"1" if etag else b"2")


@rfc("9111#5.2.1.4", "profile media ignores viewers' no-cache: a reload key is no storm at the origin")
@scenario
async def test_media_ignores_request_directives(box: Box) -> None:
    _, two, requests = await twice(
        box, "/reload", MEDIA, "Cache-Control: max-age=60", second={"Cache-Control": "no-cache", "Pragma": "no-cache"}
    )
    assert len(requests) == 1
    assert "hit" in two.cache


@rfc("9111#5.2.1.5", "a request's no-store MUST NOT be stored")
@scenario
async def test_a_requests_no_store(box: Box) -> None:
    sent = {"Cache-Control": "no-store"}
    _, _, requests = await twice(box, "/no-store", GENERIC, "Cache-Control: max-age=60", first=sent)
    assert len(requests) == 2


@rfc("9111#5.2.1.7", "only-if-cached without a stored response: 504")
@scenario
async def test_only_if_cached(box: Box) -> None:
    async with box.origin({}) as origin:
        answer = await get(box, "/only", {"Cache-Control": "only-if-cached"}, host=GENERIC)
    assert answer.status == 504
    assert origin.requests == []


# -- what is stored and sent of a head ---------------------------------------------------------------------------------


@rfc("9111#3.1", "MUST store every field, known or not, but hop-by-hop ones and those that Connection names")
@pytest.mark.parametrize("host", BOTH)
@scenario
async def test_fields_that_are_stored(box: Box, host: str) -> None:
    hop = "Keep-Alive: timeout=5 | Proxy-Connection: x | Trailer: X-T | Upgrade: h2c | Connection: X-Hop | X-Hop: 1"
    own = "Proxy-Authenticate: Basic | Proxy-Authentication-Info: x"
    response = f"Cache-Control: max-age=60 | X-Any: 1 | X-Any: 2 | Content-Language: fr | {hop} | {own}"
    one, two, requests = await twice(box, f"/kept-{host}", host, response)
    assert len(requests) == 1
    for answer in (one, two):
        assert answer["X-Any"] == "1, 2"
        assert answer["Content-Language"] == "fr"
        for name in ("Keep-Alive", "Proxy-Connection", "Trailer", "Upgrade", "Connection", "X-Hop"):
            assert name not in answer, name
        for name in ("Proxy-Authenticate", "Proxy-Authentication-Info"):
            assert name not in answer, name


@rfc("9110#7.6.1", "MUST NOT forward hop-by-hop fields of a request, nor those that Connection names")
@scenario
async def test_hop_by_hop_fields_go_no_further(box: Box) -> None:
    sent = {"Connection": "X-Mine, keep-alive", "X-Mine": "1", "Keep-Alive": "5", "TE": "trailers", "Proxy-X": "1"}
    sent["X-End"] = "1"
    _, _, requests = await twice(box, "/hop", GENERIC, "X: y", first=sent)
    for name in (b"X-Mine", b"Keep-Alive", b"TE", b"Proxy-X"):
        assert requests[0].field(name) is None
    assert requests[0].field(b"X-End") == b"1"


@rfc("9110#6.6.1", "Date is the origin's, untouched; without one it is ours")
@pytest.mark.parametrize("date", [formatdate(1_500_000_000, usegmt=True), ""])
@scenario
async def test_date(box: Box, date: str) -> None:
    response = "Cache-Control: max-age=60" + (f" | Date: {date}" if date else "")
    one, two, _ = await twice(box, f"/date-{bool(date)}", MEDIA, response)
    assert one["Date"] == two["Date"]
    assert one["Date"] == (date or one["Date"])
    assert one["Date"].endswith("GMT")


@rfc("9111#4", "MUST send Age with what is reused without validation; the time in our hands is added")
@scenario
async def test_age_is_generated(box: Box) -> None:
    one, two, _ = await twice(box, "/age", MEDIA, "Cache-Control: max-age=60 | Age: 7")
    assert 7 <= two.age <= 17
    assert one["Age"] in ("7", "8", "")


@rfc("9111#5.1", "of several Age lines one is sent on")
@scenario
async def test_one_age_is_sent(box: Box) -> None:
    _, two, _ = await twice(box, "/ages", MEDIA, "Cache-Control: max-age=60 | Age: 3 | Age: 9")
    assert [value for name, value in two.fields if name == "Age"] in (["3"], ["4"], ["5"])


@rfc("9111#5.2", "directives are passed on in requests and responses, known or not")
@scenario
async def test_directives_are_passed_on(box: Box) -> None:
    response = "Cache-Control: max-age=60, x-other=1 | CDN-Cache-Control: max-age=60"
    sent = {"Cache-Control": "max-stale=5, x-mine"}
    one, two, requests = await twice(box, "/pass-on", GENERIC, response, first=sent)
    for answer in (one, two):
        assert (answer["Cache-Control"], answer["CDN-Cache-Control"]) == ("max-age=60, x-other=1", "max-age=60")
    assert requests[0].field(b"Cache-Control") == b"max-stale=5, x-mine"


@rfc("9111#4.3.2", "MUST NOT evaluate conditions that are for the origin (If-Match, If-Unmodified-Since)")
@pytest.mark.parametrize("sent", [{"If-Match": '"other"'}, {"If-Unmodified-Since": PAST}], ids=["tag", "date"])
@scenario
async def test_conditions_for_the_origin(box: Box, sent: dict[str, str]) -> None:
    path = f"/for-the-origin-{len(next(iter(sent)))}"
    response = f'Cache-Control: max-age=60 | ETag: "v" | Last-Modified: {FUTURE}'
    _, two, requests = await twice(box, path, GENERIC, response, second=sent)
    assert (two.status, two.body, len(requests)) == (200, b"1", 1)


@rfc("9111#4", "MUST NOT reuse for another target: the query is part of it, spellings are not normalised")
@pytest.mark.parametrize("other", ["/target?a=2", "/target?", "/target?A=1", "/t%61rget?a=1"])
@scenario
async def test_another_target(box: Box, other: str) -> None:
    def choose(request: Request) -> Any:
        return reply(request.target, fields=lines("Cache-Control: max-age=60"))

    paths = (b"/target", b"/t%61rget")
    async with box.origin({path: by_request(choose) for path in paths}):
        for target in ("/target?a=1", other, "/target?a=1"):
            assert (await get(box, target, host=GENERIC)).body == target.encode()


# -- Vary --------------------------------------------------------------------------------------------------------------


@rfc("9111#4.1", "Vary with several fields: all of them MUST match, white space normalised")
@pytest.mark.parametrize(
    ("second", "is_reused"),
    [
        ({"Accept": "a, b", "Accept-Language": "fr"}, True),
        ({"Accept": "a,  b", "Accept-Language": "fr"}, True),
        ({"Accept": "a, b", "Accept-Language": "en"}, False),
        ({"Accept": "a, b"}, False),
        ({}, False),
    ],
)
@scenario
async def test_vary(box: Box, second: dict[str, str], is_reused: bool) -> None:
    path = f"/vary-{len(second)}-{is_reused}-{'-'.join(second.values()).replace(' ', '_').replace(',', '.')}"
    first = {"Accept": "a, b", "Accept-Language": "fr"}
    response = "Cache-Control: max-age=60 | Vary: Accept, Accept-Language"
    _, _, requests = await twice(box, path, GENERIC, response, first=first, second=second)
    assert (len(requests) == 1) is is_reused


# -- validation and updates --------------------------------------------------------------------------------------------


@rfc("9111#4.3.1", "If-None-Match with the stored tag MUST be sent, If-Modified-Since SHOULD")
@pytest.mark.parametrize("host", BOTH)
@scenario
async def test_validators_are_sent(box: Box, host: str) -> None:
    response = f'Cache-Control: max-age=0 | ETag: "v" | Last-Modified: {PAST}'
    _, two, requests = await twice(box, f"/validate-{host}", host, response)
    assert requests[1].field(b"If-None-Match") == b'"v"'
    assert requests[1].field(b"If-Modified-Since") == PAST.encode()
    assert (two.status, two.body) == (200, b"1")


@rfc("9111#3.2", "a 304 updates stored fields, never Content-Length, Content-Encoding, Content-Type, Content-Range")
@pytest.mark.parametrize("host", BOTH)
@scenario
async def test_a_304_updates_what_it_may(box: Box, host: str) -> None:
    first = reply(b"body", fields=(*lines("Cache-Control: max-age=0 | Content-Type: text/a | X-V: 1 | X-Old: 1"), ETAG))
    update = (
        b'HTTP/1.1 304 Not Modified\r\nETag: "v"\r\nX-V: 2\r\nX-V: 3\r\nCache-Control: max-age=60\r\n'
        b"Content-Length: 99\r\nContent-Encoding: br\r\nContent-Type: text/b\r\nContent-Range: bytes 0-1/2\r\n"
        b"Connection: X-Hop\r\nX-Hop: 1\r\n\r\n"
    )
    path = f"/update-{host}"
    async with box.origin({path.encode(): in_turn(first, raw(update, "keep"))}) as origin:
        await get(box, path, host=host)
        for _ in range(2):
            answer = await get(box, path, host=host)
            assert (answer.status, answer.body) == (200, b"body")
            assert (answer["X-V"], answer["X-Old"]) == ("2, 3", "1")
            assert (answer["Content-Length"], answer["Content-Type"]) == ("4", "text/a")
            assert not {"Content-Encoding", "Content-Range", "X-Hop"} & {name for name, _ in answer.fields}
    assert len(origin.requests) == 2, "fresh again"


@rfc("9111#4.3.3", "a full answer to a validation replaces what is stored, a 5xx may be answered by it")
@scenario
async def test_answers_to_a_validation(box: Box) -> None:
    stored = reply(b"old", fields=(*lines("Cache-Control: max-age=0, stale-if-error=60"), ETAG))
    new = reply(b"new", fields=lines('Cache-Control: max-age=60 | ETag: "w"'))
    async with box.origin({b"/replace": in_turn(stored, reply(status=503), new)}):
        bodies = [(await get(box, "/replace", host=GENERIC)).body for _ in range(4)]
    assert bodies == [b"old", b"old", b"new", b"new"]


@rfc("9111#4.3.5", "a HEAD's 200 freshens the stored GET that it describes")
@scenario
async def test_head_freshens_get(box: Box) -> None:
    file = File(b"body", etag='"v"', cache_control="max-age=0", x_v="1")
    async with box.origin({b"/head": file}) as origin:
        await get(box, "/head", host=GENERIC)
        file.fields = lines("Cache-Control: max-age=60 | X-V: 2")
        assert (await get(box, "/head", host=GENERIC, method="HEAD")).status == 200
        answer = await get(box, "/head", host=GENERIC)
    assert "hit" in answer.cache
    assert (answer.body, answer["X-V"], answer["Content-Length"]) == (b"body", "2", "4")
    assert [request.method for request in origin.requests] == [b"GET", b"HEAD"]


@rfc("9111#4.3.5", "a HEAD that describes another representation makes the stored GET stale")
@pytest.mark.parametrize("what", ["etag", "length", "last-modified"])
@scenario
async def test_head_of_something_else(box: Box, what: str) -> None:
    path = f"/other-{what}"
    file = File(b"body", etag='"v"', cache_control="max-age=0", last_modified=PAST)
    async with box.origin({path.encode(): file}) as origin:
        await get(box, path, host=GENERIC)
        file.fields = lines(f"Cache-Control: max-age=60 | Last-Modified: {FUTURE if what == 'last-modified' else PAST}")
        file.body = b"longer" if what == "length" else b"BODY"
        file.etag = '"w"' if what == "etag" else '"v"'
        await get(box, path, host=GENERIC, method="HEAD")
        answer = await get(box, path, host=GENERIC)
    assert answer.body == file.body
    assert origin.requests[-1].field(b"If-None-Match") is None


# -- stale -------------------------------------------------------------------------------------------------------------


@rfc("9111#4.2.4", "MUST NOT serve stale where a directive forbids it, whatever permits it")
@pytest.mark.parametrize("host", BOTH)
@pytest.mark.parametrize("directive", ["must-revalidate", "proxy-revalidate", "no-cache", "s-maxage=0"])
@scenario
async def test_stale_is_forbidden(box: Box, host: str, directive: str) -> None:
    path = f"/forbidden-{host}-{directive}"
    stored = f"Cache-Control: max-age=0, {directive}, stale-if-error=60, stale-while-revalidate=60"
    script = in_turn(reply(b"old", fields=(*lines(stored), ETAG)), reply(b"error", status=503))
    async with box.origin({path.encode(): script}):
        await get(box, path, host=host)
        answer = await get(box, path, host=host)
    assert answer.body != b"old"


@rfc("9111#5.2.2.2", "must-revalidate and no way to the origin: 504")
@pytest.mark.parametrize("host", BOTH)
@scenario
async def test_must_revalidate_when_disconnected(box: Box, host: str) -> None:
    path = f"/disconnected-{host}"
    stored = reply(b"old", fields=(*lines("Cache-Control: max-age=0, must-revalidate"), ETAG))
    async with box.origin({path.encode(): stored}):
        await get(box, path, host=host)
    assert (await get(box, path, host=host)).status == 504


@rfc("5861#4", "stale-if-error: stale for 500, 502, 503, 504 and when disconnected")
@pytest.mark.parametrize("failure", [500, 502, 503, 504, 0])
@pytest.mark.parametrize("host", [f"spare-1.{MEDIA}", f"spare-1.{GENERIC}"])
@scenario
async def test_stale_if_error(box: Box, host: str, failure: int) -> None:
    path = f"/if-error-{host}-{failure}"
    stored = reply(b"old", fields=(*lines("Cache-Control: max-age=0, stale-if-error=60"), ETAG))
    script = in_turn(stored, reply(b"error", status=failure) if failure else raw(b"", "reset"))
    async with box.origin({path.encode(): script}):
        await get(box, path, host=host)
        answer = await get(box, path, host=host)
    assert (answer.status, answer.body) == (200, b"old")


@rfc("5861#4", "stale-if-error does not cover a 404")
@scenario
async def test_stale_if_error_is_for_errors(box: Box) -> None:
    stored = reply(b"old", fields=(*lines("Cache-Control: max-age=0, stale-if-error=60"), ETAG))
    async with box.origin({b"/gone": in_turn(stored, reply(b"gone", status=404))}):
        await get(box, "/gone", host=GENERIC)
        assert (await get(box, "/gone", host=GENERIC)).status == 404


@rfc("5861#3", "stale-while-revalidate: stale at once, one validation behind it")
@pytest.mark.parametrize("host", BOTH)
@scenario
async def test_stale_while_revalidate(box: Box, host: str) -> None:
    path = f"/while-{host}"
    file = File(b"old", etag='"v"', cache_control="max-age=0, stale-while-revalidate=60")
    async with box.origin({path.encode(): file}) as origin:
        await get(box, path, host=host)
        file.body, file.etag, file.fields = b"new", '"w"', lines("Cache-Control: max-age=60")
        answer = await get(box, path, host=host)
        assert answer.body == b"old"
        while (await get(box, path, host=host)).body != b"new":
            await asyncio.sleep(0.005)
    assert len(origin.requests) == 2


@rfc("9111#4.2.4", "generic serves no stale when disconnected unless the response permits it")
@rfc("9111#4", "a response that needs validation and can't have it is 504")
@scenario
async def test_generic_when_disconnected(box: Box) -> None:
    host = f"spare-2.{GENERIC}"
    async with box.origin({b"/gone": reply(b"old", fields=(*lines("Cache-Control: max-age=0"), ETAG))}):
        await get(box, "/gone", host=host)
    assert (await get(box, "/gone", host=host)).status == 504


@rfc("9110#15.6.3", "no way to the origin and nothing stored: 502 of our own, no-store")
@scenario
async def test_our_own_errors_are_not_stored(box: Box) -> None:
    answer = await get(box, "/x", host=REFUSING)
    assert answer.status in (502, 503)
    assert answer["Cache-Control"] == "no-store"


# -- If-Range, conditions ----------------------------------------------------------------------------------------------


@rfc("9110#13.1.5", "If-Range: a strong tag or the exact date selects the part, anything else the whole")
@pytest.mark.parametrize(
    ("etag", "condition", "status"),
    [
        ('"v"', '"v"', 206), ('"v"', '"w"', 200), ('"v"', 'W/"v"', 200), ('W/"v"', 'W/"v"', 200),
        ('"v"', PAST, 206), ('"v"', FUTURE, 200), ('"v"', "soon", 200),
    ],
)  # fmt: skip
@scenario
async def test_if_range(box: Box, etag: str, condition: str, status: int) -> None:
    path = f"/if-range-{abs(hash((etag, condition)))}"
    response = f"Cache-Control: max-age=60 | ETag: {etag} | Last-Modified: {PAST} | Date: {formatdate(usegmt=True)}"
    async with box.origin({path.encode(): reply(b"0123456789", fields=lines(response))}):
        await get(box, path)
        answer = await get(box, path, {"Range": "bytes=2-4", "If-Range": condition})
    assert (answer.status, answer.body) == (status, b"234" if status == 206 else b"0123456789")


@rfc("9110#13.2.2", "If-None-Match before If-Modified-Since; 304 for a match on what is stored")
@pytest.mark.parametrize("host", BOTH)
@scenario
async def test_conditions_on_what_is_stored(box: Box, host: str) -> None:
    path = f"/conditions-{host}"
    response = f'Cache-Control: max-age=60 | ETag: "v" | Last-Modified: {PAST}'
    async with box.origin({path.encode(): reply(b"body", fields=lines(response))}):
        await get(box, path, host=host)
        for sent, status in (
            ({"If-None-Match": '"v"'}, 304),
            ({"If-None-Match": '"x", W/"v"'}, 304),
            ({"If-None-Match": "*"}, 304),
            ({"If-None-Match": '"x"', "If-Modified-Since": FUTURE}, 200),
            ({"If-Modified-Since": PAST}, 304),
            ({"If-Modified-Since": "soon"}, 200),
        ):
            answer = await get(box, path, sent, host=host)
            assert answer.status == status, sent
