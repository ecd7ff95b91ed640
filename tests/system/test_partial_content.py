"""Parts that are stored, combined and asked for (RFC 9110 sections 13.1.5, 14, 15.3.7; RFC 9111 section 3.4), from
origins that do it rightly, that can't, and that lie. Single ranges of sound origins: test_misses_ranges.py."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from box import GENERIC, Box, Viewer, get, heard, scenario, sound_box
from hostile_origin import Peer, Request, Script, in_turn, reply
from origin_scripts import File, by_request, fields, gated, noise

MIB = 1 << 20
DATE, LATER = "Sun, 06 Nov 1994 08:49:37 GMT", "Mon, 07 Nov 1994 08:49:37 GMT"


@pytest.fixture(scope="module", params=["memory", "disk"])
def box(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    cache = {"memory": "256MiB", **({"disk": {"size": "1GiB"}} if request.param == "disk" else {})}
    with sound_box(tmp_path_factory.mktemp(f"parts-{request.param}"), cache=cache) as running:
        yield running


def part(body: bytes, first: int, last: int, total: str = "", **named: str) -> Script:
    """A 206 with these bytes; `total` as it is written, the body's own without."""
    shown = fields(content_range=f"bytes {first}-{last}/{total or len(body)}", **named)
    return reply(body[first : last + 1], status=206, fields=shown)


def bytes_of(request: Request) -> tuple[int, int | None] | None:
    value = request.field(b"Range")
    if value is None:
        return None
    first, _, last = value.removeprefix(b"bytes=").partition(b"-")
    return int(first), int(last) if last else None


def several(answer_body: bytes, content_type: str) -> list[tuple[str, bytes]]:
    """(Content-Range, body) of each part of a multipart/byteranges."""
    boundary = b"--" + content_type.partition("boundary=")[2].encode()
    pieces = answer_body.split(boundary)
    assert pieces[0] == b""
    assert pieces[-1] == b"--\r\n"
    found = []
    for piece in pieces[1:-1]:
        head, _, body = piece.partition(b"\r\n\r\n")
        named = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:])
        found.append((named[b"Content-Range"].decode(), body.removesuffix(b"\r\n")))
    return found


# -- several ranges ----------------------------------------------------------------------------------------------------


@pytest.mark.rfc("9110#14.2", "several ranges of what is not stored fetch what they touch, and no more")
@scenario
async def test_several_ranges_of_what_is_not_stored(box: Box) -> None:
    """They were taken for a request of the whole."""
    file = File(noise(60 * MIB), cache_control="max-age=600", content_type="video/mp4")
    ranges = (30 * MIB + 5, 30 * MIB + 9), (10, 20), (59 * MIB, 59 * MIB + 99)
    written = ",".join(f"{first}-{last}" for first, last in ranges)
    async with box.origin({b"/several.mp4": file}), box.growth() as growth:
        for _ in range(2):
            answer = await get(box, "/several.mp4", {"Range": f"bytes={written}"})
            assert (answer.status, answer.is_whole) == (206, True)
            wanted = [(f"bytes {a}-{b}/{60 * MIB}", file.body[a : b + 1]) for a, b in ranges]
            assert several(answer.body, answer["Content-Type"]) == wanted
        assert "hit" in answer.cache
    assert growth["bytes_from_origin"] <= 3 * MIB
    assert growth["requests"] == 2


@pytest.mark.parametrize("etag", ['W/"v1"', None], ids=["weak", "none"])
@scenario
async def test_several_ranges_where_parts_do_not_combine_come_from_the_whole(box: Box, etag: str | None) -> None:
    file = File(noise(3 * MIB), etag=etag, cache_control="max-age=600")
    path = f"/several-{etag is None}"
    async with box.origin({path.encode(): file}):
        for _ in range(2):
            answer = await get(box, path, {"Range": "bytes=0-9,2000000-2000009"})
            parts = several(answer.body, answer["Content-Type"])
            assert [body for _, body in parts] == [file.body[:10], file.body[2_000_000:2_000_010]]
    assert len(file.asked) == 2


@scenario
async def test_several_ranges_of_a_private_answer_are_ignored(box: Box) -> None:
    file = File(noise(5000), cache_control="private")
    async with box.origin({b"/several-private": file}):
        for _ in range(2):
            answer = await get(box, "/several-private", {"Range": "bytes=0-9,100-109"}, host=GENERIC)
            assert (answer.status, answer.body) == (200, file.body)


@pytest.mark.rfc("9110#14.2", "methods other than GET ignore Range")
@scenario
async def test_range_means_nothing_to_other_methods(box: Box) -> None:
    file = File(noise(5000), cache_control="max-age=60")
    async with box.origin({b"/head": file}):
        for _ in range(2):
            answer = await get(box, "/head", {"Range": "bytes=0-9"}, method="HEAD")
            assert (answer.status, answer["Content-Length"]) == (200, "5000")
            assert "Content-Range" not in answer
            await get(box, "/head")
    assert all(request.field(b"Range") is None for request in file.asked)


# -- conditions --------------------------------------------------------------------------------------------------------


@pytest.mark.rfc("9110#13.1.5", "If-Range that we can't compare goes to the origin with the range")
@pytest.mark.parametrize(
    ("etag", "old", "new"), [('W/"v1"', 'W/"v1"', 'W/"v1"'), (None, DATE, LATER)], ids=["weak", "date"]
)
@scenario
async def test_if_range_where_parts_do_not_combine(box: Box, etag: str | None, old: str, new: str) -> None:
    """It was dropped: a viewer who resumed got a part of the new content to add to what he had of the old one."""
    body = noise(3 * MIB, "now")

    async def origin(peer: Peer, request: Request) -> bool:
        named = fields(last_modified=LATER, cache_control="max-age=60", **({"etag": etag} if etag else {}))
        condition = request.field(b"If-Range")
        asked = bytes_of(request)
        # A weak tag never matches (RFC 9110 section 13.1.5), a date only exactly.
        if asked is None or (condition is not None and condition != LATER.encode()):
            return await reply(body, fields=named)(peer, request)
        first, last = asked[0], min(asked[1] or len(body) - 1, len(body) - 1)
        shown = (*named, *fields(content_range=f"bytes {first}-{last}/{len(body)}"))
        return await reply(body[first : last + 1], status=206, fields=shown)(peer, request)

    path = f"/resumed-{etag is None}"
    async with box.origin({path.encode(): origin}):
        answer = await get(box, path, {"Range": "bytes=2000000-2000009"})
        assert (answer.status, answer.body) == (206, body[2_000_000:2_000_010])
        answer = await get(box, path, {"Range": "bytes=2000000-2000009", "If-Range": old})
        assert (answer.status, answer.body) == (200, body)
        answer = await get(box, path, {"Range": "bytes=2000000-2000009", "If-Range": new})
        if etag is None:
            assert (answer.status, answer.body) == (206, body[2_000_000:2_000_010])
        else:
            assert (answer.status, answer.body) == (200, body)


@pytest.mark.parametrize("asked", ["-10", f"0-{MIB - 1}"])
@scenario
async def test_if_range_of_what_may_not_be_kept(box: Box, asked: str) -> None:
    """Found by the soak: a range that goes up as it came was answered without a look at the viewer's condition."""
    file = File(noise(3 * MIB), cache_control="no-store")
    path = f"/unkept-{len(asked)}"
    async with box.origin({path.encode(): file}):
        answer = await get(box, path, {"Range": f"bytes={asked}", "If-Range": '"v0"'})
        assert (answer.status, answer.body) == (200, file.body)
        answer = await get(box, path, {"Range": f"bytes={asked}", "If-Range": '"v1"'})
        assert answer.status == 206


@pytest.mark.parametrize("condition", ['W/"v1"', DATE])
@scenario
async def test_an_origin_that_does_not_look_at_if_range_is_no_source_of_a_mixture(box: Box, condition: str) -> None:
    """Found by the soak: the viewer was given the part of other content."""
    body, path = noise(3 * MIB), f"/careless-{len(condition)}"

    async def careless(peer: Peer, request: Request) -> bool:
        first, last = bytes_of(request) or (0, 9)
        script = part(body, first, last or 3 * MIB - 1, etag='W/"v2"', last_modified=LATER, cache_control="max-age=9")
        return await script(peer, request)

    async with box.origin({path.encode(): careless}):
        assert (await get(box, path, {"Range": "bytes=20-29"})).body == body[20:30]
        answer = await get(box, path, {"Range": "bytes=2000000-2000009", "If-Range": condition})
        assert answer.status == 502


@pytest.mark.rfc("9111#4.3.1", "a validation for a range names the range too")
@scenario
async def test_a_validation_of_a_part_costs_the_part(box: Box) -> None:
    file = File(noise(60 * MIB), cache_control="max-age=0")
    named = {"Range": f"bytes={50 * MIB}-{50 * MIB + 99}"}
    async with box.origin({b"/renewed.mp4": file}):
        await get(box, "/renewed.mp4", named)
        before = file.n_bytes
        assert (await get(box, "/renewed.mp4", named)).body == file.body[50 * MIB : 50 * MIB + 100]
        assert file.n_bytes == before
        assert file.asked[-1].field(b"If-None-Match") == b'"v1"'
        file.body, file.etag = noise(60 * MIB, "new"), '"v2"'
        answer = await get(box, "/renewed.mp4", named)
        assert (answer.status, answer.body) == (206, file.body[50 * MIB : 50 * MIB + 100])
        assert file.n_bytes - before <= 100 + 2 * MIB
        assert (await get(box, "/renewed.mp4", {"Range": "bytes=0-9"})).body == file.body[:10]


@scenario
async def test_an_origin_that_looks_at_range_before_the_condition_confirms_all_the_same(box: Box) -> None:
    body = noise(3 * MIB)
    named = {"cache_control": "max-age=0", "etag": '"v1"'}
    script = by_request(lambda request: part(body, (bytes_of(request) or (0, 0))[0], 2 * MIB - 1, **named))
    async with box.origin({b"/range-first": script}) as origin:
        for _ in range(3):
            answer = await get(box, "/range-first", {"Range": f"bytes={MIB}-{MIB + 9}"})
            assert (answer.status, answer.body) == (206, body[MIB : MIB + 10])
        assert (await get(box, "/range-first", {"Range": f"bytes={MIB + 20}-{MIB + 29}"})).status == 206
        assert len(origin.requests) == 4


# -- 416 ---------------------------------------------------------------------------------------------------------------


@pytest.mark.rfc("9110#15.5.17", "no byte asked for: 416 with the length, for one slice")
@scenario
async def test_a_suffix_of_nothing_costs_one_slice(box: Box) -> None:
    """It was asked for as the whole: 16 MiB of origin for an answer without a byte."""
    file = File(noise(30 * MIB), cache_control="max-age=60")
    async with box.origin({b"/nothing.mp4": file}), box.growth() as growth:
        answer = await get(box, "/nothing.mp4", {"Range": "bytes=-0"})
        assert (answer.status, answer["Content-Range"]) == (416, f"bytes */{30 * MIB}")
    assert growth["bytes_from_origin"] <= MIB


@scenario
async def test_a_416_is_the_answer_to_one_range_not_to_all_who_wait(box: Box) -> None:
    file = File(noise(5000), cache_control="max-age=60")
    gate = asyncio.Event()
    async with box.origin({b"/waiting": gated(gate, file)}):
        behind = asyncio.ensure_future(get(box, "/waiting", {"Range": f"bytes={2 * MIB}-"}))
        await heard(box)
        inside = asyncio.ensure_future(get(box, "/waiting", {"Range": "bytes=5-9"}))
        whole = asyncio.ensure_future(get(box, "/waiting"))
        await heard(box)
        gate.set()
        answer = await behind
        assert (answer.status, answer["Content-Range"]) == (416, "bytes */5000")
        assert (await inside).body == file.body[5:10]
        assert (await whole).body == file.body


@pytest.mark.parametrize("host", ["media.example", GENERIC])
@scenario
async def test_a_416_with_a_lifetime_is_not_what_the_next_one_gets(box: Box, host: str) -> None:
    file = File(noise(5000), cache_control="max-age=600")
    path = f"/poison-{host}"
    async with box.origin({path.encode(): file}):
        assert (await get(box, path, {"Range": f"bytes={2 * MIB}-"}, host=host)).status == 416
        assert (await get(box, path, host=host)).body == file.body


# -- combining ---------------------------------------------------------------------------------------------------------


@pytest.mark.rfc("9111#3.4", "a combined part updates the stored header fields")
@scenario
async def test_a_part_brings_the_stored_head_up_to_date(box: Box) -> None:
    file = File(noise(8 * MIB), cache_control="max-age=600", x_edition="1")
    async with box.origin({b"/updated.mp4": file}):
        await get(box, "/updated.mp4", {"Range": "bytes=0-9"})
        file.fields = fields(cache_control="max-age=900", x_edition="2")
        answer = await get(box, "/updated.mp4", {"Range": f"bytes={5 * MIB}-{5 * MIB + 9}"})
        assert answer.body == file.body[5 * MIB : 5 * MIB + 10]
        answer = await get(box, "/updated.mp4", {"Range": "bytes=0-9"})
        assert "hit" in answer.cache
        assert (answer["X-Edition"], answer["Cache-Control"]) == ("2", "max-age=900")
        assert answer.body == file.body[:10]
        assert "Content-Length" in answer


@pytest.mark.rfc("9111#3", "what an origin takes back with a later part is not kept")
@scenario
async def test_a_part_that_may_not_be_stored_ends_what_is_stored(box: Box) -> None:
    file = File(noise(8 * MIB), cache_control="max-age=600")
    async with box.origin({b"/taken-back.mp4": file}):
        await get(box, "/taken-back.mp4", {"Range": "bytes=0-9"})
        file.fields = fields(cache_control="no-store")
        answer = await get(box, "/taken-back.mp4", {"Range": f"bytes={5 * MIB}-{5 * MIB + 9}"})
        assert answer.body == file.body[5 * MIB : 5 * MIB + 10]
        n_asked = len(file.asked)
        assert (await get(box, "/taken-back.mp4", {"Range": "bytes=0-9"})).body == file.body[:10]
        assert len(file.asked) > n_asked


@pytest.mark.rfc("9111#3.4", "parts that make up the whole answer for the whole")
@scenario
async def test_the_whole_is_made_of_its_parts_and_what_is_missing(box: Box) -> None:
    file = File(noise(6 * MIB + 77), cache_control="max-age=600")
    async with box.origin({b"/union.mp4": file}):
        for first, last in ((4 * MIB, 6 * MIB + 76), (0, 2 * MIB - 1)):
            await get(box, "/union.mp4", {"Range": f"bytes={first}-{last}"})
        assert file.n_bytes <= 4 * MIB + 77 + 2 * MIB
        answer = await get(box, "/union.mp4")
        assert (answer.status, answer.body) == (200, file.body)
        assert file.n_bytes == 6 * MIB + 77
        answer = await get(box, "/union.mp4", {"Range": "bytes=1000000-5000000"})
        assert "hit" in answer.cache
        assert answer.body == file.body[1_000_000:5_000_001]
        assert file.n_bytes == 6 * MIB + 77


@pytest.mark.rfc("9110#15.3.7.3", "a new validator is a new representation: never combined")
@scenario
async def test_a_validator_that_changes_in_the_middle_breaks_the_transfer_and_mixes_nothing(box: Box) -> None:
    file = File(noise(8 * MIB, "old"), cache_control="max-age=600")
    old = file.body
    async with box.origin({b"/changing.mp4": file}):
        await get(box, "/changing.mp4", {"Range": "bytes=0-9"})
        file.body, file.etag = noise(8 * MIB, "new"), '"v2"'
        answer = await get(box, "/changing.mp4")
        assert not answer.is_whole
        assert answer.body == old[: len(answer.body)]
        for text, wanted in (("bytes=0-9", file.body[:10]), ("bytes=5000000-5000009", file.body[5000000:5000010])):
            answer = await get(box, "/changing.mp4", {"Range": text})
            assert (answer.status, answer["ETag"], answer.body) == (206, '"v2"', wanted)
        assert (await get(box, "/changing.mp4")).body == file.body


# -- origins that lie --------------------------------------------------------------------------------------------------

STRONG = {"cache_control": "max-age=600", "etag": '"v1"'}
BODY = noise(3 * MIB, "lies")


@pytest.mark.rfc("9110#14.4", "a Content-Range that does not fit what was asked for is a broken response")
@pytest.mark.parametrize("etag", ['"v1"', 'W/"v1"'], ids=["strong", "weak"])
@pytest.mark.parametrize(
    ("asked", "first", "last"),
    [("2000000-2000009", 0, 9), ("0-9", 1, 9), ("0-9", 0, MIB), ("-10", 100, 109), ("-10", 0, 3 * MIB - 1)],
)
@scenario
async def test_another_range_than_the_one_asked_for(box: Box, asked: str, first: int, last: int, etag: str) -> None:
    path = f"/other-{asked}-{first}-{last}-{len(etag)}"
    script = part(BODY, first, last, cache_control="max-age=600", etag=etag)
    async with box.origin({path.encode(): script}) as origin:
        answer = await get(box, path, {"Range": f"bytes={asked}"})
        assert answer.status == 502, answer
        assert len(origin.requests) <= 2
        assert not [row for row in box.control("cache ls")["objects"] if row["url"].endswith(path)]


@pytest.mark.rfc("9110#14.4", "a later part of another place or total is a broken response")
@pytest.mark.parametrize(
    ("first", "last", "total", "etag", "is_good"),
    [
        (2 * MIB, 3 * MIB - 1, "*", '"v1"', True),
        (2 * MIB, 3 * MIB - 1, str(4 * MIB), '"v1"', False),
        (2 * MIB, 3 * MIB - 1, "", '"v2"', False),
        (2 * MIB, 3 * MIB - 1, "", 'W/"v1"', False),
        (2 * MIB + 1, 3 * MIB - 1, "", '"v1"', False),
        (0, MIB - 1, "", '"v1"', False),
    ],
)
@scenario
async def test_a_later_part_that_does_not_fit(
    box: Box, first: int, last: int, total: str, etag: str, is_good: bool
) -> None:
    path = f"/later-{first}-{total}-{etag}".replace('"', "")
    scripts = in_turn(part(BODY, 0, MIB - 1, **STRONG), part(BODY, first, last, total, **{**STRONG, "etag": etag}))
    async with box.origin({path.encode(): scripts}):
        assert (await get(box, path, {"Range": "bytes=0-9"})).body == BODY[:10]
        answer = await get(box, path, {"Range": f"bytes={2 * MIB}-{2 * MIB + 9}"})
        assert answer.is_whole == is_good
        assert answer.body == (BODY[2 * MIB : 2 * MIB + 10] if is_good else b"")


@scenario
async def test_an_origin_that_sends_all_where_a_later_part_was_asked_for(box: Box) -> None:
    whole = reply(BODY, fields=fields(**STRONG))
    async with box.origin({b"/later-200": in_turn(part(BODY, 0, MIB - 1, **STRONG), whole)}):
        assert (await get(box, "/later-200", {"Range": "bytes=0-9"})).body == BODY[:10]
        answer = await get(box, "/later-200", {"Range": f"bytes={2 * MIB}-{2 * MIB + 9}"})
        assert answer.body == BODY[2 * MIB : 2 * MIB + 10]


@scenario
async def test_a_slow_reader_of_a_part_gets_it_from_the_origin_that_broke_off(box: Box) -> None:
    file = File(noise(8 * MIB), cache_control="max-age=600")
    file.cut_at, file.cuts = 700_000, 1
    async with box.origin({b"/cut-part.mp4": file}):
        viewer = await Viewer.connect(box, receive_buffer=65536)
        viewer.ask("/cut-part.mp4", {"Range": f"bytes={2 * MIB}-{4 * MIB + 99}"})
        answer = await viewer.answer()
        viewer.close()
        assert answer.is_whole
        assert answer.body == file.body[2 * MIB : 4 * MIB + 100]
        assert file.asked[-1].field(b"If-Range") == b'"v1"'
