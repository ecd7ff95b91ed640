"""Origins that break off, hang, are away or come back changed: what viewers get, and that nothing partial is kept."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from box import (
    BY_VIEWER,
    GENERIC,
    MEDIA,
    NARROW,
    OVERRIDE,
    QUICK,
    REFUSING,
    TWIN,
    Box,
    Viewer,
    get,
    scenario,
    sound_box,
    until,
)
from hostile_origin import Peer, Request, chunked, die_on_reuse, in_turn, raw, reply
from origin_scripts import File, cached, fields, noise


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    with sound_box(tmp_path_factory.mktemp("broken")) as running:
        yield running


def cut(n: int = 1, *, etag: str | None = '"v1"', how: str = "reset", size: int = 900_000) -> File:
    """A file whose first `n` transfers end after 300,000 bytes."""
    file = File(noise(size), etag=etag, cache_control="max-age=60")
    file.cut_at, file.cuts, file.how = 300_000, n, how
    return file


@pytest.mark.fault(20)
@pytest.mark.parametrize("how", ["reset", "close"])
@scenario
async def test_a_broken_fill_goes_on_by_range_and_if_range(box: Box, how: str) -> None:
    file = cut(how=how)
    path = f"/resumed-{how}"
    async with box.origin({path.encode(): file}):
        answer, again = await get(box, path), await get(box, path)
    assert answer.is_whole
    assert answer.body == again.body == file.body
    assert "hit" in again.cache
    assert file.asked[0].field(b"Range") is None
    first, _, last = (file.asked[1].field(b"Range") or b"").removeprefix(b"bytes=").partition(b"-")
    assert last == b"899999"
    # A reset throws away what the box has not read yet.
    assert int(first) == 300_000 or (how == "reset" and 0 <= int(first) < 300_000)
    assert file.asked[1].field(b"If-Range") == b'"v1"'


@scenario
async def test_a_broken_fill_goes_on_at_the_other_upstream_first(box: Box) -> None:
    first, second = cut(9), File(noise(900_000), cache_control="max-age=60")
    async with box.origin({b"/other-upstream": first}, {b"/other-upstream": second}):
        answer = await get(box, "/other-upstream", host=TWIN)
    assert answer.is_whole
    assert answer.body == second.body
    assert [len(first.asked), len(second.asked)] == [1, 1]
    assert (second.asked[0].field(b"Range") or b"").endswith(b"-899999")


@pytest.mark.fault(20)
@pytest.mark.rfc("9111#3.3", "nothing incomplete is stored as complete")
@scenario
async def test_a_fill_is_resumed_once_and_then_broken_and_nothing_stays(box: Box) -> None:
    file = cut(2)
    file.cut_at = 200_000
    async with box.origin({b"/twice": file}):
        answer = await get(box, "/twice")
        assert not answer.is_whole
        assert answer.body == file.body[: len(answer.body)]
        assert len(file.asked) == 2
        again = await get(box, "/twice")
    assert again.body == file.body
    assert "hit" not in again.cache


@pytest.mark.fault(20)
@pytest.mark.parametrize("etag", [None, 'W/"v1"', "not-an-etag"], ids=["none", "weak", "malformed"])
@scenario
async def test_without_a_strong_validator_a_broken_transfer_is_a_broken_transfer(box: Box, etag: str | None) -> None:
    file = cut(1, etag=etag)
    path = f"/no-validator-{etag is None}-{len(etag or '')}"
    async with box.origin({path.encode(): file}):
        release = asyncio.Event()
        file.hold = (100_000, release)
        viewers = [await Viewer.connect(box) for _ in range(5)]
        for viewer in viewers:
            viewer.ask(path)
            await viewer.head()
        release.set()
        answers = [await viewer.answer() for viewer in viewers]
        assert not any(answer.is_whole for answer in answers)
        assert all(file.body.startswith(answer.body) for answer in answers)
        assert len(file.asked) == 1
        again = await get(box, path)
    assert again.body == file.body
    assert "hit" not in again.cache


@pytest.mark.rfc("9111#3.4", "MUST NOT combine parts of two representations")
@scenario
async def test_content_that_changed_meanwhile_is_never_joined_to_the_old(box: Box) -> None:
    file = cut()
    old = file.body
    async with box.origin({b"/changed": file}):
        viewer = await Viewer.connect(box)
        viewer.ask("/changed")
        await viewer.head()
        file.body, file.etag = noise(900_000, "new"), '"v2"'
        answer = await viewer.answer()
        assert not answer.is_whole
        assert old.startswith(answer.body)
        again = await get(box, "/changed")
    assert again.body == file.body


@scenario
async def test_an_origin_without_ranges_sends_the_same_representation_once_more(box: Box) -> None:
    file = cut()
    file.has_ranges = False
    async with box.origin({b"/no-ranges": file}):
        answer, again = await get(box, "/no-ranges"), await get(box, "/no-ranges")
    assert answer.is_whole
    assert answer.body == again.body == file.body
    assert "hit" in again.cache


@pytest.mark.fault(20, 21)
@pytest.mark.rfc("9111#3.3", "MUST NOT pass an incomplete response off as complete")
@pytest.mark.parametrize(
    "answer",
    [
        chunked(b"hello", end=b""),
        chunked(b"hello", end=b"5\r\nlo"),
        chunked(b"hello", end=b"zz\r\n"),
        b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhello",
    ],
    ids=["no-last-chunk", "within-a-chunk", "bad-chunk", "short"],
)
@scenario
async def test_a_truncated_body_never_ends_cleanly(box: Box, answer: bytes) -> None:
    answer = answer.replace(b"200 OK\r\n", b"200 OK\r\nCache-Control: max-age=60\r\n")
    path = f"/truncated-{len(answer)}"
    async with box.origin({path.encode(): in_turn(raw(answer), cached(b"whole"))}):
        for version in ("1.1", "1.1"):
            got = await get(box, path, version=version)
            if got.body == b"whole":
                break
            assert not got.is_whole
        assert (await get(box, path)).body == b"whole"


@scenario
async def test_a_body_that_ends_by_reset_is_broken_and_by_close_is_whole(box: Box) -> None:
    head = b"HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\n\r\n"
    async with box.origin({b"/by-reset": raw(head + b"hello", "reset"), b"/by-close": raw(head + b"hello", "close")}):
        broken, whole = await get(box, "/by-reset"), await get(box, "/by-close")
        assert (await get(box, "/by-close")).cache.keys() >= {"hit"}
    assert not broken.is_whole
    assert whole.is_whole
    assert whole.body == b"hello"


@scenario
async def test_the_next_upstream_is_asked_when_the_first_is_away(box: Box) -> None:
    async with box.origin({}, {b"/second": cached(b"from the second")}) as origin:
        await origin.stop_listening()
        assert (await get(box, "/second", host=TWIN)).body == b"from the second"


@scenario
async def test_a_reused_connection_that_died_is_tried_again_once_and_never_twice(box: Box) -> None:
    ok = reply(b"ok")
    async with box.origin({b"/dies": die_on_reuse(ok)}) as origin:
        for _ in range(3):
            assert (await get(box, "/dies", host=BY_VIEWER)).body == b"ok"
        assert len(origin.requests) == 5

    async def first_only(peer: Peer, request: Request) -> bool:
        return await ok(peer, request) if len(origin.requests) == 1 else False

    async with box.origin({b"/dies-always": first_only}) as origin:
        await get(box, "/dies-always", host=BY_VIEWER)
        assert (await get(box, "/dies-always", host=BY_VIEWER)).status == 502
        assert len(origin.requests) == 3


@pytest.mark.fault(19)
@scenario
async def test_a_silent_origin_is_504(box: Box) -> None:
    async with box.origin({b"/silence": raw(b"", "hang"), b"/half-head": raw(b"HTTP/1.1 200 OK\r\nX: ", "hang")}):
        answers = await asyncio.gather(*(get(box, path, host=QUICK) for path in ("/silence", "/half-head")))
    assert [answer.status for answer in answers] == [504, 504]
    assert all(answer["Cache-Control"] == "no-store" and "test" in answer["Cache-Status"] for answer in answers)


@pytest.mark.fault(23)
@scenario
async def test_a_body_that_stalls_or_drips_releases_its_waiters(box: Box) -> None:
    """One byte each 50 ms is always a byte within the time-out: it held its readers, and its key, for ever."""

    async def drip(peer: Peer, request: Request) -> bool:
        await peer.send(b"HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nContent-Length: 50000\r\n\r\n")
        while not peer.writer.is_closing():
            await peer.send(b"x")
            await asyncio.sleep(0.05)
        return False

    stall = raw(b"HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nContent-Length: 50\r\n\r\nhello", "hang")
    async with box.origin({b"/stall": stall, b"/drip": drip, b"/fine": cached(b"fine")}):
        asked = [asyncio.ensure_future(get(box, path, host=QUICK)) for path in ("/stall", "/drip") for _ in range(20)]
        assert (await get(box, "/fine", host=QUICK)).body == b"fine"
        answers = [await future for future in asked]
    assert not any(answer.is_whole for answer in answers)


@pytest.mark.fault(18)
@scenario
async def test_a_refused_connection_is_502(box: Box) -> None:
    answer = await get(box, "/", host=REFUSING)
    assert answer.status == 502
    assert answer["Cache-Control"] == "no-store"


@pytest.mark.fault(18)
@pytest.mark.rfc("9111#4.2.4", "stale where allowed when disconnected")
@pytest.mark.parametrize(
    ("cache_control", "host", "status"),
    [
        ("max-age=0", "spare-0." + MEDIA, 200),
        ("max-age=0, must-revalidate", "spare-1." + MEDIA, 504),
        ("max-age=0, proxy-revalidate", "spare-2." + MEDIA, 504),
        ("s-maxage=0", "spare-3." + MEDIA, 504),
        ("no-cache", "spare-4." + MEDIA, 504),
        ("max-age=0", "spare-5." + GENERIC, 504),
        ("max-age=0, stale-if-error=60", "spare-6." + GENERIC, 200),
        ("max-age=0, stale-if-error=60, must-revalidate", "spare-7." + GENERIC, 504),
    ],
)
@scenario
async def test_with_the_origin_away_stale_is_served_where_that_is_allowed(
    box: Box, cache_control: str, host: str, status: int
) -> None:
    path = f"/away-{host}-{cache_control}.m4s".replace(", ", "-")
    async with box.origin({path.encode(): reply(b"segment", fields=fields(cache_control=cache_control, etag='"v"'))}):
        assert (await get(box, path, host=host)).body == b"segment"
    for _ in range(8):  # some of them when the breaker has opened: nothing changes for viewers
        answer = await get(box, path, host=host)
        assert answer.status == status
        assert status == 504 or (answer.body == b"segment" and "hit" in answer.cache)


@pytest.mark.fault(22)
@pytest.mark.rfc("9111#4.3.3", "a 5xx to a validation: stale only where allowed")
@pytest.mark.parametrize(("host", "status"), [(OVERRIDE, 200), (GENERIC, 503)])
@scenario
async def test_a_5xx_to_a_validation_is_stale_only_where_the_answer_allows_it(box: Box, host: str, status: int) -> None:
    path = f"/5xx-{host}.m4s"
    allowed = "max-age=0, stale-if-error=60" if status == 200 else "max-age=0"
    ok = reply(b"segment", fields=fields(cache_control=allowed, etag='"v"'))
    async with box.origin({path.encode(): in_turn(ok, reply(b"sorry", status=503))}) as origin:
        await get(box, path, host=host)
        for turn in range(3):
            # The flight that had answered with stale was never over: from the second time on the key was stuck.
            assert (await get(box, path, host=host)).status == status
            assert len(origin.requests) == turn + 2


@scenario
async def test_a_key_is_not_stuck_behind_what_its_origin_broke(box: Box) -> None:
    """Whatever ends a flight, the next request for the key gets a flight of its own, at once and joinable."""
    ends = in_turn(
        raw(b"", "close"), raw(b"", "reset"), raw(b"nonsense\r\n\r\n"), raw(b"HTTP/1.1 200 OK\r\nContent-Le"),
        raw(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhi"), cached(b"fine"),
    )  # fmt: skip
    async with box.origin({b"/not-stuck": ends}) as origin:
        for _ in range(5):
            await get(box, "/not-stuck", host=NARROW)
        answers = await asyncio.gather(*(get(box, "/not-stuck", host=NARROW) for _ in range(20)))
        assert {answer.body for answer in answers} == {b"fine"}
        assert len(origin.requests) == 6


@scenario
async def test_flights_are_over_when_nothing_is_under_way(box: Box) -> None:
    def flights() -> float:
        return box.metrics()["accelerator_flights"]

    await until(lambda: flights() == 0, "no flight is left over from all the tests above")
