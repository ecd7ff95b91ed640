"""Ranges through the running box: stored, filling, absent; what a seek costs; origins that can't do ranges."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from box import Box, Viewer, get, scenario, sound_box, until
from hostile_origin import Peer, Request, in_turn, raw, reply
from origin_scripts import File, cached, fields, noise

MIB = 1 << 20


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    with sound_box(tmp_path_factory.mktemp("ranges"), cache={"memory": "512MiB"}) as running:
        yield running


RANGES = [
    "0-", "0-1", "0-0", "1000-1999", "1048575-1048576", "2097152-", "-1", "-5000", "-99999999", "3000000-99999999",
]  # fmt: skip


def slice_of(body: bytes, text: str) -> tuple[int, int]:
    first, _, last = text.partition("-")
    if not first:
        return max(0, len(body) - int(last)), len(body) - 1
    return int(first), min(int(last or len(body)), len(body) - 1)


@pytest.mark.rfc("9110#14.2", "a range of what is stored is answered from it")
@pytest.mark.parametrize("is_stored", [True, False])
@scenario
async def test_ranges_of_what_is_stored_and_of_what_is_not(box: Box, is_stored: bool) -> None:
    for text in RANGES:
        file = File(noise(4 * MIB - 100, text), cache_control="max-age=60")
        path = f"/r-{is_stored}-{text}"
        async with box.origin({path.encode(): file}):
            if is_stored:
                await get(box, path)
            first, last = slice_of(file.body, text)
            for _ in range(2):
                answer = await get(box, path, {"Range": f"bytes={text}"})
                assert answer.status == 206, (text, answer)
                assert answer["Content-Range"] == f"bytes {first}-{last}/{len(file.body)}"
                assert answer.body == file.body[first : last + 1]
                assert answer.is_whole
            assert "hit" in answer.cache, (text, answer)
            assert (await get(box, path)).body == file.body


@pytest.mark.rfc("9110#15.5.17", "a range behind the end is 416 with the length")
@pytest.mark.parametrize("is_stored", [True, False])
@scenario
async def test_a_range_behind_the_end_is_416(box: Box, is_stored: bool) -> None:
    file = File(noise(5000), cache_control="max-age=60")
    path = f"/behind-{is_stored}"
    async with box.origin({path.encode(): file}):
        if is_stored:
            await get(box, path)
        for text in ("5000-", "9999999-", "5000-6000"):
            answer = await get(box, path, {"Range": f"bytes={text}"})
            assert answer.status == 416
            assert answer["Content-Range"] == "bytes */5000"
        assert (await get(box, path)).body == file.body


@pytest.mark.rfc("9110#13.1.5", "If-Range compares strongly")
@scenario
async def test_if_range_decides_by_strong_comparison(box: Box) -> None:
    file = File(noise(5000), cache_control="max-age=60")
    async with box.origin({b"/if-range": file}):
        await get(box, "/if-range")
        for condition, status in (('"v1"', 206), ('"v2"', 200), ('W/"v1"', 200)):
            named = {"Range": "bytes=10-19", "If-Range": condition}
            assert (await get(box, "/if-range", named)).status == status


@scenario
async def test_a_range_of_a_body_that_is_filling_waits_for_it_or_asks_for_itself(box: Box) -> None:
    file = File(noise(8 * MIB), cache_control="max-age=60")
    release = asyncio.Event()
    file.hold = (MIB // 2, release)
    async with box.origin({b"/filling": file}):
        leader = await Viewer.connect(box)
        leader.ask("/filling")
        await leader.head()
        far = await get(box, "/filling", {"Range": "bytes=7000000-7000999"})
        assert far.body == file.body[7_000_000:7_001_000]
        near = asyncio.ensure_future(get(box, "/filling", {"Range": "bytes=600000-700000"}))
        release.set()
        assert (await near).body == file.body[600_000:700_001]
        assert (await leader.answer()).body == file.body
        leader.close()
        assert (await get(box, "/filling")).body == file.body


@pytest.mark.rfc("9111#3.3", "an incomplete response is kept as such and completed by ranges")
@scenario
async def test_a_seek_costs_what_is_asked_for_and_two_slices(box: Box) -> None:
    """A want had no end: a seek of one byte could fetch all of the rest."""
    file = File(noise(60 * MIB), cache_control="max-age=600")
    async with box.origin({b"/seek.mp4": file}):
        places = (50 * MIB + 7, 1), (0, 2), (10 * MIB - 1, 2), (30 * MIB, 3 * MIB), (59 * MIB + 5, 1000), (20 * MIB, 1)
        for first, n in places:
            before = box.stats()["bytes_from_origin"]
            for _ in range(2):
                answer = await get(box, "/seek.mp4", {"Range": f"bytes={first}-{first + n - 1}"})
                assert answer.status == 206
                assert answer.body == file.body[first : first + n]
            assert box.stats()["bytes_from_origin"] - before <= n + 2 * MIB, (first, n)
        before = box.stats()["bytes_from_origin"]
        assert (await get(box, "/seek.mp4", {"Range": "bytes=-1000"})).body == file.body[-1000:]
        assert box.stats()["bytes_from_origin"] - before <= 1000 + 2 * MIB
        viewer = await Viewer.connect(box)
        viewer.ask("/seek.mp4", {"Range": f"bytes={40 * MIB + 3}-"})
        await viewer.head()
        assert await viewer.bytes_of_body(100_000) == file.body[40 * MIB + 3 :][: len(viewer.answer_.received)]  # type: ignore[union-attr]
        viewer.reset()


@scenario
async def test_a_range_led_validation_that_finds_new_content_fetches_the_range_only(box: Box) -> None:
    file = File(noise(60 * MIB), cache_control="max-age=0")
    async with box.origin({b"/renewed.mp4": file}) as origin:
        named = {"Range": f"bytes={50 * MIB}-{50 * MIB + 99}"}
        await get(box, "/renewed.mp4", named)
        file.body, file.etag = noise(60 * MIB, "new"), '"v2"'
        answer = await get(box, "/renewed.mp4", named)
        assert answer.body == file.body[50 * MIB : 50 * MIB + 100]
        await until(lambda: all(not peer.writer.transport.get_write_buffer_size() for peer in origin.peers))
    assert file.n_bytes < 20 * MIB


@pytest.mark.rfc("9111#3.4", "MUST NOT combine parts without a strong validator")
@pytest.mark.parametrize("etag", ['W/"v1"', None], ids=["weak", "none"])
@scenario
async def test_parts_without_a_strong_validator_pass_exactly(box: Box, etag: str | None) -> None:
    file = File(noise(3 * MIB), etag=etag, cache_control="max-age=60")
    path = f"/weak-{etag is None}"
    async with box.origin({path.encode(): file}):
        for text in ("5-10", "1048570-1048580", "-7", "2000000-"):
            first, last = slice_of(file.body, text)
            answer = await get(box, path, {"Range": f"bytes={text}"})
            assert answer.status == 206
            assert answer["Content-Range"] == f"bytes {first}-{last}/{len(file.body)}"
            assert answer.body == file.body[first : last + 1]
        # Only the first one had to find out.
        assert len(file.asked) == 5
        assert (await get(box, path)).body == file.body
        before = len(file.asked)
        assert "hit" in (await get(box, path, {"Range": "bytes=5-10"})).cache
        assert len(file.asked) == before


@scenario
async def test_a_seek_into_a_weak_body_that_is_filling_breaks_nobody(box: Box) -> None:
    """It failed the object: all its readers' transfers broke, because one of them looked ahead."""
    file = File(noise(40 * MIB), etag='W/"v1"', cache_control="max-age=60")
    release = asyncio.Event()
    file.hold = (MIB, release)
    async with box.origin({b"/weak-seek.mp4": file}):
        leader = await Viewer.connect(box)
        leader.ask("/weak-seek.mp4")
        await leader.head()
        ahead = asyncio.ensure_future(get(box, "/weak-seek.mp4", {"Range": f"bytes={35 * MIB}-{35 * MIB + 9}"}))
        await asyncio.sleep(0.05)
        release.set()
        assert (await ahead).body == file.body[35 * MIB : 35 * MIB + 10]
        answer = await leader.answer()
        leader.close()
    assert answer.is_whole
    assert answer.body == file.body


@scenario
async def test_an_origin_without_ranges_serves_seeks_all_the_same(box: Box) -> None:
    file = File(noise(6 * MIB), cache_control="max-age=60")
    file.has_ranges = False
    async with box.origin({b"/rangeless": file}):
        for first in (5 * MIB + 3, 100, 3 * MIB):
            answer = await get(box, "/rangeless", {"Range": f"bytes={first}-{first + 99}"})
            assert answer.body == file.body[first : first + 100]
        assert (await get(box, "/rangeless")).body == file.body
        assert len(file.asked) == 1


@scenario
async def test_an_origin_that_gives_ranges_up_is_read_through_to_the_place(box: Box) -> None:
    """It was taken for changed content: each seek broke the object for everyone."""
    file = File(noise(30 * MIB), cache_control="max-age=60")
    async with box.origin({b"/gave-up": file}):
        assert (await get(box, "/gave-up", {"Range": "bytes=0-9"})).body == file.body[:10]
        file.has_ranges = False
        answer = await get(box, "/gave-up", {"Range": f"bytes={20 * MIB}-{20 * MIB + 99}"})
        assert answer.body == file.body[20 * MIB : 20 * MIB + 100]
        assert (await get(box, "/gave-up")).body == file.body


@scenario
async def test_an_origin_that_sends_less_than_was_asked_for_is_asked_on(box: Box) -> None:
    body = noise(3 * MIB)

    async def stingy(peer: Peer, request: Request) -> bool:
        asked = (request.field(b"Range") or b"bytes=0-").removeprefix(b"bytes=")
        first = int(asked.partition(b"-")[0])
        last = min(first + 399_999, len(body) - 1)
        named = fields(cache_control="max-age=60", etag='"v"', content_range=f"bytes {first}-{last}/{len(body)}")
        return await reply(body[first : last + 1], status=206, fields=named)(peer, request)

    async with box.origin({b"/stingy": stingy}):
        answer = await get(box, "/stingy", {"Range": "bytes=10-2999999"})
    assert answer.body == body[10:3_000_000]


LIES = {
    "empty": (b"bytes 0-1048575/3145728", b"0\r\n\r\n"),
    "short": (b"bytes 0-1048575/3145728", b"5\r\nhello\r\n0\r\n\r\n"),
    "long": (b"bytes 0-4/3145728", b"7\r\nhello!!\r\n0\r\n\r\n"),
}


@pytest.mark.parametrize("lie", LIES)
@scenario
async def test_a_part_that_is_not_what_it_says_is_broken_and_not_asked_for_again_and_again(box: Box, lie: str) -> None:
    """Where an origin sent parts without a byte, the box asked it for the same slice without end."""
    content_range, body = LIES[lie]
    head = b'HTTP/1.1 206 Partial Content\r\nETag: "v"\r\nCache-Control: max-age=60\r\nContent-Range: %b\r\n'
    script = raw(head % content_range + b"Transfer-Encoding: chunked\r\n\r\n" + body, "keep")
    async with box.origin({f"/lie-{lie}".encode(): script}) as origin:
        answer = await get(box, f"/lie-{lie}", {"Range": "bytes=0-1000000"})
        assert not answer.is_whole
        assert len(origin.requests) <= 3


@pytest.mark.parametrize("content_range", ["bytes 0-5/3", "bytes 5-1/10", "nonsense", "bytes 0-99/*", ""])
@scenario
async def test_a_bad_content_range_is_a_bad_answer(box: Box, content_range: str) -> None:
    path = f"/bad-content-range-{len(content_range)}"
    named = fields(etag='"v"', cache_control="max-age=60", content_range=content_range)
    script = reply(b"hello", status=206, fields=named if content_range else named[:2])
    async with box.origin({path.encode(): script}):
        assert (await get(box, path, {"Range": "bytes=0-4"})).status in (502, 206)
        assert not [row for row in box.control("cache ls")["objects"] if row["url"].endswith(path)]


@pytest.mark.rfc("9110#15.3.7", "a 206 that nobody asked for is no answer")
@scenario
async def test_a_part_that_nobody_asked_for_is_a_bad_answer(box: Box) -> None:
    named = fields(etag='"v"', cache_control="max-age=60", content_range="bytes 0-4/10")
    async with box.origin({b"/unasked-206": in_turn(reply(b"hello", status=206, fields=named), cached(b"helloworld"))}):
        assert (await get(box, "/unasked-206")).status == 502
        assert (await get(box, "/unasked-206")).body == b"helloworld"
