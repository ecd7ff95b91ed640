"""Many viewers, one upstream request: collapse, read-while-write, and what becomes of waiters that can't share."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest
from box import GENERIC, NARROW, Answer, Box, Viewer, get, heard, scenario, sound_box, until
from hostile_origin import Peer, Request, in_turn, reply
from origin_scripts import File, by_request, cached, fields, gated, noise


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    with sound_box(tmp_path_factory.mktemp("collapse"), cache={"memory": "128MiB"}) as running:
        yield running


async def crowd(box: Box, n: int) -> list[Viewer]:
    return list(await asyncio.gather(*(Viewer.connect(box) for _ in range(n))))


class Crew:
    """A gate that origin requests wait at, with how many are there now and were at most."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.n_now = self.n_most = self.n_all = 0

    async def __call__(self, peer: Peer, request: Request) -> bool:
        self.n_now += 1
        self.n_all += 1
        self.n_most = max(self.n_most, self.n_now)
        await self.gate.wait()
        await asyncio.sleep(0)
        self.n_now -= 1
        return True


@pytest.mark.rfc("9111#4", "a response answers the requests that wait for it")
@scenario
async def test_500_viewers_cost_one_request_and_read_while_it_is_written(box: Box) -> None:
    file = File(noise(256 << 10), cache_control="max-age=60")
    release = asyncio.Event()
    file.hold = (64 << 10, release)
    first_bytes: list[float] = []

    async def watch(viewer: Viewer) -> Answer:
        await viewer.head()
        await viewer.more()
        first_bytes.append(time.perf_counter())
        assert await viewer.bytes_of_body(64 << 10) == file.body[: 64 << 10]
        watching.append(viewer)
        return await viewer.answer()

    watching: list[Viewer] = []
    async with box.origin({b"/crowd.m4s": file}) as origin, box.growth() as growth:
        viewers = await crowd(box, 500)
        for viewer in viewers:
            viewer.ask("/crowd.m4s")
        answers = [asyncio.ensure_future(watch(viewer)) for viewer in viewers]
        await until(lambda: len(watching) == 500, "all have what there is")
        assert not release.is_set()
        release.set()
        for answer in asyncio.as_completed(answers):
            got = await answer
            assert got.is_whole
            assert got.body == file.body
        for viewer in viewers:
            viewer.close()
    print(f"\nslowest of 500 first body bytes: {1000 * (max(first_bytes) - min(first_bytes)):.1f} ms after the first")
    assert len(origin.requests) == 1
    assert growth["misses"] == 1
    assert growth["collapsed"] + growth["hits"] == 499
    assert growth["bytes_from_origin"] == len(file.body)


@scenario
async def test_requests_that_cross_the_answer_start_no_second_fetch(box: Box) -> None:
    """A worker's question that was on its way when a small answer came, whole, led to a second fetch."""
    for turn in range(20):
        path = f"/crossing-{turn}"
        async with box.origin({path.encode(): cached(b"small")}) as origin:
            viewers = await crowd(box, 30)
            for i, viewer in enumerate(viewers):
                viewer.ask(path)
                if i % 3 == 0:
                    await asyncio.sleep(0)
            for viewer in viewers:
                assert (await viewer.answer()).body == b"small"
                viewer.close()
        assert len(origin.requests) == 1


@scenario
async def test_a_no_cache_playlist_costs_one_request_at_a_time(box: Box) -> None:
    crew = Crew()
    file = File(b"#EXTM3U\n#EXT-X-TARGETDURATION:2\n", etag='"1"', cache_control="no-cache")

    async def script(peer: Peer, request: Request) -> bool:
        await crew(peer, request)
        return await file(peer, request)

    async with box.origin({b"/live.m3u8": script}):
        crew.gate.set()
        await get(box, "/live.m3u8")
        crew.gate.clear()
        first = asyncio.ensure_future(get(box, "/live.m3u8"))
        await until(lambda: crew.n_now == 1, "the first validation is under way")
        later = [asyncio.ensure_future(get(box, "/live.m3u8")) for _ in range(100)]
        await heard(box)
        file.body, file.etag = file.body + b"#EXTINF:2,\nnew.m4s\n", '"2"'
        second_gate = asyncio.Event()
        released, crew.gate = crew.gate, second_gate
        released.set()
        assert (await first).body == file.body
        await until(lambda: crew.n_now == 1, "the next validation is under way")
        assert not any(future.done() for future in later)
        newest = asyncio.ensure_future(get(box, "/live.m3u8"))
        file.body, file.etag = file.body + b"#EXTINF:2,\nnewer.m4s\n", '"3"'
        third_gate = asyncio.Event()
        crew.gate = third_gate
        second_gate.set()
        answers = [await future for future in later]
        third_gate.set()
        last = await newest
    assert {answer.body for answer in answers} == {file.body}
    assert last.body == file.body
    assert crew.n_most == 1
    assert crew.n_all in (3, 4)  # the fill, two validations, and one more if `newest` came after the second began


@scenario
async def test_bug_no_cache_without_validator_went_upstream_for_each_viewer(box: Box) -> None:
    """500 viewers of a playlist that can't be validated made 500 requests, 64 at once."""
    crew = Crew()
    playlist = b"#EXTM3U\n#EXT-X-TARGETDURATION:2\n"
    file = File(playlist, etag=None, cache_control="no-cache", content_type="application/vnd.apple.mpegurl")

    async def script(peer: Peer, request: Request) -> bool:
        await crew(peer, request)
        return await file(peer, request)

    async with box.origin({b"/bare.m3u8": script}):
        viewers = [asyncio.ensure_future(get(box, "/bare.m3u8")) for _ in range(200)]
        await until(lambda: crew.n_now == 1, "the first request is under way")
        await heard(box)
        crew.gate.set()
        answers = [await viewer for viewer in viewers]
    assert {answer.body for answer in answers} == {playlist}
    assert crew.n_most == 1
    assert crew.n_all in (1, 2)  # who came after the first was sent waits for the next


@scenario
async def test_others_go_on_when_the_leader_resets_before_the_head(box: Box) -> None:
    gate = asyncio.Event()
    async with box.origin({b"/leader-gone": gated(gate, cached(b"body"))}) as origin:
        leader = await Viewer.connect(box)
        leader.ask("/leader-gone")
        await until(lambda: origin.requests)
        others = [asyncio.ensure_future(get(box, "/leader-gone")) for _ in range(20)]
        await heard(box)
        leader.reset()
        gate.set()
        assert {(await other).body for other in others} == {b"body"}
    assert len(origin.requests) == 1


@scenario
async def test_others_go_on_when_the_leader_resets_in_the_body(box: Box) -> None:
    file = File(noise(600_000), etag=None, cache_control="max-age=60")
    release = asyncio.Event()
    file.hold = (100_000, release)
    async with box.origin({b"/leader-gone-2": file}) as origin:
        leader, other = await crowd(box, 2)
        for viewer in (leader, other):
            viewer.ask("/leader-gone-2")
            await viewer.head()
            await viewer.bytes_of_body(100_000)
        leader.reset()
        release.set()
        answer = await other.answer()
        other.close()
    assert answer.is_whole
    assert answer.body == file.body
    assert len(origin.requests) == 1


@pytest.mark.parametrize("when", ["before-the-head", "in-the-body"])
@scenario
async def test_a_small_fill_is_completed_when_its_last_viewer_has_gone(box: Box, when: str) -> None:
    file = File(noise(3 << 20), etag=None, cache_control="max-age=60")
    path = f"/nobody-{when}"
    gate = asyncio.Event()
    file.hold = (1 << 20, gate)
    script = gated(gate, file) if when == "before-the-head" else file
    async with box.origin({path.encode(): script}) as origin:
        leader = await Viewer.connect(box)
        leader.ask(path)
        if when == "in-the-body":
            await leader.head()
        await until(lambda: origin.requests)
        before = box.stats()["objects"]
        leader.reset()
        gate.set()
        await until(lambda: box.stats()["objects"] > before, "it is stored whole")
        answer = await get(box, path)
    assert answer.body == file.body
    assert "hit" in answer.cache
    assert len(origin.requests) == 1


@scenario
async def test_a_large_fill_stops_and_what_is_there_is_used_later(box: Box) -> None:
    """It was paused instead and kept its upstream connection, and its key, for ever."""
    file = File(noise(60 << 20), cache_control="max-age=60")
    async with box.origin({b"/large.mp4": file}) as origin:
        leader = await Viewer.connect(box)
        leader.ask("/large.mp4")
        await leader.head()
        await leader.bytes_of_body(3 << 20)
        leader.reset()
        await until(lambda: not origin.peers, "the upstream connection is closed")
        assert file.n_bytes < 30 << 20
        before = box.stats()["bytes_from_origin"]
        part = await get(box, "/large.mp4", {"Range": "bytes=1000-2000000"})
        assert part.body == file.body[1000:2000001]
        assert box.stats()["bytes_from_origin"] == before
        whole = await get(box, "/large.mp4")
    assert whole.body == file.body
    begins = [request.field(b"Range") for request in file.asked]
    assert begins[0] is None
    assert begins[1] is not None
    assert int(begins[1].removeprefix(b"bytes=").partition(b"-")[0]) >= 3 << 20


@scenario
async def test_a_large_fill_that_nobody_came_for_lets_its_connection_go(box: Box) -> None:
    gate = asyncio.Event()
    file = File(noise(40 << 20), etag=None, cache_control="max-age=60")
    async with box.origin({b"/unwanted.mp4": gated(gate, file)}) as origin:
        leader = await Viewer.connect(box)
        leader.ask("/unwanted.mp4")
        await until(lambda: origin.requests)
        leader.reset()
        gate.set()
        await until(lambda: not origin.peers, "the upstream connection is closed")
        assert file.n_bytes < 38 << 20
        assert (await get(box, "/unwanted.mp4")).body == file.body


@scenario
async def test_an_answer_for_one_viewer_whose_viewer_has_gone_lets_its_connection_go(box: Box) -> None:
    """Nobody ever read it, so nobody ever told its fill that it could end."""
    gate = asyncio.Event()
    file = File(noise(8 << 20), cache_control="private")
    async with box.origin({b"/not-for-me": gated(gate, file)}) as origin:
        viewer = await Viewer.connect(box)
        viewer.ask("/not-for-me")
        await until(lambda: origin.requests)
        viewer.reset()
        gate.set()
        await until(lambda: not origin.peers, "the upstream connection is closed")


@scenario
async def test_an_endless_body_ends_with_its_last_viewer(box: Box) -> None:
    async def endless(peer: Peer, request: Request) -> bool:
        await peer.send(b"HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\n\r\n")
        with suppress(ConnectionError):
            while True:
                await peer.send(b"x" * 65536)
        return False

    async with box.origin({b"/endless.ts": endless}) as origin:
        viewer = await Viewer.connect(box)
        viewer.ask("/endless.ts")
        await viewer.head()
        before = box.stats()
        await viewer.bytes_of_body(200 << 20)  # more than memory
        assert box.stats()["memory_bytes"] <= box.stats()["memory_limit_bytes"]
        assert set(viewer.answer_.body) == {120} if viewer.answer_ else False
        viewer.reset()
        await until(lambda: not origin.peers, "the upstream connection is closed")
    assert box.stats()["objects"] <= before["objects"]


@pytest.mark.rfc("9111#4", "waiting requests MUST NOT get what is not for them")
@scenario
async def test_waiters_of_a_private_answer_get_their_own_a_few_at_a_time(box: Box) -> None:
    crew = Crew()

    async def script(peer: Peer, request: Request) -> bool:
        await crew(peer, request)
        return await reply(b"for %d" % crew.n_all, fields=fields(cache_control="private"))(peer, request)

    async with box.origin({b"/mine": script}):
        futures = [asyncio.ensure_future(get(box, "/mine", host=NARROW)) for _ in range(200)]
        await until(lambda: crew.n_now == 1, "the leader's request")
        await heard(box)
        gate, crew.gate = crew.gate, asyncio.Event()
        gate.set()
        await until(lambda: crew.n_now == 4, "as many at once as the origin may have")
        crew.gate.set()
        answers = [await future for future in futures]
        assert crew.n_all == 200
        assert crew.n_most == 4
        assert {answer.status for answer in answers} == {200}
        assert all(answer.body.startswith(b"for ") for answer in answers)
        # From now on nobody queues behind a private answer.
        crew.gate = asyncio.Event()
        more = [asyncio.ensure_future(get(box, "/mine", host=NARROW)) for _ in range(3)]
        await until(lambda: crew.n_now == 3, "three at once")
        crew.gate.set()
        assert {(await future).status for future in more} == {200}


@scenario
async def test_waiters_of_an_answer_to_credentials_collapse_among_themselves(box: Box) -> None:
    """They all asked alone: one viewer with Authorization on a live playlist made 6,000 requests."""
    gate = asyncio.Event()
    script = by_request(lambda r: gated(gate, cached(b"his" if r.field(b"Authorization") else b"everybody's")))
    async with box.origin({b"/led-by-one": script}) as origin:
        leader = asyncio.ensure_future(get(box, "/led-by-one", {"Authorization": "Bearer x"}))
        await until(lambda: origin.requests)
        others = [asyncio.ensure_future(get(box, "/led-by-one")) for _ in range(50)]
        await heard(box)
        gate.set()
        assert (await leader).body == b"his"
        assert {(await other).body for other in others} == {b"everybody's"}
    assert len(origin.requests) == 2


@pytest.mark.parametrize("status", [404, 410, 500, 503])
@scenario
async def test_an_error_answers_all_who_wait_and_is_forgotten(box: Box, status: int) -> None:
    gate = asyncio.Event()
    path = f"/error-{status}"
    script = in_turn(gated(gate, reply(b"sorry", status=status)), cached(b"fine"))
    async with box.origin({path.encode(): script}) as origin:
        futures = [asyncio.ensure_future(get(box, path)) for _ in range(50)]
        await until(lambda: origin.requests)
        await heard(box)
        gate.set()
        answers = [await future for future in futures]
        assert {(answer.status, answer.body) for answer in answers} == {(status, b"sorry")}
        assert len(origin.requests) == 1
        assert (await get(box, path)).body == b"fine"


@scenario
async def test_waiters_of_an_error_that_is_not_theirs_do_not_storm_an_origin_in_trouble(box: Box) -> None:
    """What they should get instead of requests of their own reached other workers' viewers only."""
    gate = asyncio.Event()
    sorry = reply(b"sorry", status=503, fields=fields(set_cookie="a=b"))
    async with box.origin({b"/in-trouble": gated(gate, sorry)}) as origin:
        futures = [asyncio.ensure_future(get(box, "/in-trouble")) for _ in range(50)]
        await until(lambda: origin.requests)
        await heard(box)
        gate.set()
        answers = [await future for future in futures]
    assert {answer.status for answer in answers} == {503}
    assert sum(answer.body == b"sorry" for answer in answers) == 1
    assert len(origin.requests) == 1


@scenario
async def test_one_404_at_the_live_edge_answers_everybody_for_a_moment(box: Box) -> None:
    early = reply(b"too early", status=404)
    async with box.origin({b"/next.m4s": in_turn(early, cached(b"segment"))}) as origin:
        first = await get(box, "/next.m4s")
        began = time.monotonic()
        second = await get(box, "/next.m4s")
        assert [first.status, second.status, len(origin.requests)] == [404, 404, 1]

        async def found() -> bool:
            return (await get(box, "/next.m4s")).status == 200

        while not await found():
            await asyncio.sleep(0.01)
        assert time.monotonic() - began < 0.6
    assert len(origin.requests) == 2


@scenario
async def test_one_background_refresh_while_stale_is_served(box: Box) -> None:
    crew = Crew()
    crew.gate.set()
    file = File(b"old", etag='"1"', cache_control="max-age=0, stale-while-revalidate=60")

    async def script(peer: Peer, request: Request) -> bool:
        await crew(peer, request)
        return await file(peer, request)

    async with box.origin({b"/swr": script}):
        await get(box, "/swr", host=GENERIC)
        crew.gate.clear()
        file.body, file.etag, file.fields = b"new", '"2"', fields(cache_control="max-age=60")
        answers = await asyncio.gather(*(get(box, "/swr", host=GENERIC) for _ in range(50)))
        assert {answer.body for answer in answers} == {b"old"}
        assert all("hit" in answer.cache and int(answer.cache["ttl"]) <= 0 for answer in answers)
        await until(lambda: crew.n_now == 1, "the refresh")
        crew.gate.set()

        async def is_new() -> bool:
            return (await get(box, "/swr", host=GENERIC)).body == b"new"

        while not await is_new():
            await asyncio.sleep(0.005)
    assert crew.n_all == 2
    assert crew.n_most == 1


@scenario
async def test_who_waits_for_another_variant_gets_no_stale_of_this_one(box: Box) -> None:
    """Permitted stale went to all waiters of the key, whatever variant they had asked for."""
    gate = asyncio.Event()
    named = fields(cache_control="max-age=0, stale-if-error=60", vary="Accept-Language", etag='"1"')
    sorry = reply(b"", status=503)

    async def script(peer: Peer, request: Request) -> bool:
        if len(origin.requests) == 1:
            return await reply(b"bonjour", fields=named)(peer, request)
        if request.field(b"Accept-Language") == b"fr":
            return await gated(gate, sorry)(peer, request)
        return await reply(b"hallo", fields=named)(peer, request)

    async with box.origin({b"/stale-variant": script}) as origin:
        await get(box, "/stale-variant", {"Accept-Language": "fr"}, host=GENERIC)
        french = asyncio.ensure_future(get(box, "/stale-variant", {"Accept-Language": "fr"}, host=GENERIC))
        await until(lambda: len(origin.requests) == 2)
        german = asyncio.ensure_future(get(box, "/stale-variant", {"Accept-Language": "de"}, host=GENERIC))
        await heard(box)
        gate.set()
        assert (await french).body == b"bonjour"
        assert (await german).body == b"hallo"
