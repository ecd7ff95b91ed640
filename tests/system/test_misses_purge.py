"""Purges, reloads and the end of the daemon while fetches are under way."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from box import GENERIC, MEDIA, TWIN, Box, Viewer, get, heard, scenario, sound_box, until
from hostile_origin import in_turn, reply
from origin_scripts import File, cached, fields, gated, noise


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    with sound_box(tmp_path_factory.mktemp("purge")) as running:
        yield running


def purge(box: Box, **what: str) -> int:
    return int(box.control("cache purge", **what)["purged"])


@scenario
async def test_url_prefix_and_origin(box: Box) -> None:
    paths = ["/p/a", "/p/b?x=1", "/q/c"]
    async with box.origin({path.partition("?")[0].encode(): cached(b"body") for path in paths}):
        for host in (MEDIA, GENERIC):
            for path in paths:
                await get(box, path, host=host)
        assert purge(box, url=f"http://{MEDIA}/p/a?CMCD=x") == 1
        assert purge(box, url=f"http://{MEDIA}/p/a") == 0
        assert "hit" not in (await get(box, "/p/a")).cache
        assert purge(box, prefix=f"http://{MEDIA}/p/") == 2
        assert "hit" in (await get(box, "/q/c")).cache
        assert purge(box, origin="generic") == 3
        assert "hit" in (await get(box, "/q/c")).cache
        assert purge(box, origin="media") == 1


@scenario
async def test_all_variants_go(box: Box) -> None:
    script = reply(b"body", fields=fields(cache_control="max-age=60", vary="Accept-Language"))
    async with box.origin({b"/variants": script}):
        for language in ("fr", "de", "en"):
            await get(box, "/variants", {"Accept-Language": language}, host=GENERIC)
        assert purge(box, url=f"http://{GENERIC}/variants") == 3


@scenario
async def test_a_purge_during_a_fill_lets_its_readers_finish_and_keeps_nothing(box: Box) -> None:
    file = File(noise(2_000_000), cache_control="max-age=60")
    release = asyncio.Event()
    file.hold = (500_000, release)
    async with box.origin({b"/filling": file}):
        viewer = await Viewer.connect(box)
        viewer.ask("/filling")
        await viewer.head()
        purge(box, url=f"http://{MEDIA}/filling")
        release.set()
        old, file.body, file.etag = file.body, noise(2_000_000, "new"), '"v2"'
        later = await get(box, "/filling")
        first = await viewer.answer()
        viewer.close()
        assert first.is_whole
        assert first.body == old or first.body == file.body
        assert later.body == file.body
        assert (await get(box, "/filling")).body == file.body


@scenario
async def test_a_purge_during_a_resumed_fill_keeps_nothing(box: Box) -> None:
    file = File(noise(2_000_000), cache_control="max-age=60")
    file.cut_at, file.cuts, file.how = 700_000, 1, "close"
    async with box.origin({b"/resumed": file}) as origin:
        viewer = await Viewer.connect(box)
        viewer.ask("/resumed")
        await viewer.head()
        purge(box, origin="media")
        assert (await viewer.answer()).body == file.body
        viewer.close()
        before = len(origin.requests)
        assert "hit" not in (await get(box, "/resumed")).cache
        assert len(origin.requests) == before + 1


@pytest.mark.parametrize("how", ["url", "prefix", "origin"])
@scenario
async def test_a_purge_before_the_head_keeps_the_old_answer_from_who_asks_later(box: Box, how: str) -> None:
    """Who asked after the purge joined the flight from before it, and got what had just been purged."""
    path = f"/early-{how}"
    gate = asyncio.Event()
    script = in_turn(gated(gate, cached(b"old")), cached(b"new"))
    async with box.origin({path.encode(): script}) as origin:
        before = asyncio.ensure_future(get(box, path))
        await until(lambda: origin.requests)
        purge(box, **{how: "media" if how == "origin" else f"http://{MEDIA}{path}"})
        after = [asyncio.ensure_future(get(box, path)) for _ in range(10)]
        await heard(box)
        gate.set()
        assert (await before).body == b"old"
        assert {(await future).body for future in after} == {b"new"}
        assert (await get(box, path)).body == b"new"


@scenario
async def test_a_purge_during_a_validation_keeps_nothing(box: Box) -> None:
    gate = asyncio.Event()
    file = File(b"body", cache_control="max-age=0")
    async with box.origin({b"/validated": file}) as origin:
        await get(box, "/validated")
        origin.scripts[b"/validated"] = gated(gate, file)
        viewer = asyncio.ensure_future(get(box, "/validated"))
        await until(lambda: len(origin.requests) == 2)
        purge(box, url=f"http://{MEDIA}/validated")
        gate.set()
        assert (await viewer).body == b"body"
        await get(box, "/validated")
        assert origin.requests[2].field(b"If-None-Match") is None


@scenario
async def test_a_reload_while_fetches_are_under_way_harms_none(tmp_path: Path) -> None:
    with sound_box(tmp_path) as box:
        gate = asyncio.Event()
        file = File(noise(3_000_000), cache_control="max-age=60")
        release = asyncio.Event()
        file.hold = (1_000_000, release)
        async with box.origin({b"/reading": file, b"/waiting": gated(gate, cached(b"body"))}) as origin:
            reader = await Viewer.connect(box)
            reader.ask("/reading")
            await reader.head()
            waiting = [asyncio.ensure_future(get(box, "/waiting")) for _ in range(10)]
            await until(lambda: len(origin.requests) == 2)
            for turn in range(3):
                box.reload({"origins": {"media": {"connections": 30 + turn, "class": None}}})
            box.reload({"origins": {"media": {"from": [f"http://127.0.0.1:{port}" for port in box.ports]}}})
            release.set()
            gate.set()
            assert {(await future).body for future in waiting} == {b"body"}
            answer = await reader.answer()
            reader.close()
            assert answer.is_whole
            assert answer.body == file.body


@scenario
async def test_an_origin_that_is_taken_out_leaves_nobody_waiting(tmp_path: Path) -> None:
    """A reader at an absent slice of an origin that was gone waited for ever."""
    with sound_box(tmp_path) as box:
        gate = asyncio.Event()
        file = File(noise(8 << 20), cache_control="max-age=60")
        async with box.origin({b"/gone.mp4": file, b"/wait": gated(gate, cached(b"body"))}) as origin:
            await get(box, "/gone.mp4", {"Range": "bytes=0-1048575"}, host=TWIN)
            reader = await Viewer.connect(box, receive_buffer=16384)
            reader.ask("/gone.mp4", host=TWIN)
            await reader.head()  # it is in the first slice, the others are not there
            waiting = asyncio.ensure_future(get(box, "/wait", host=TWIN))
            await until(lambda: len(origin.requests) == 2)
            policy = dict(box.policy, origins={k: v for k, v in box.policy["origins"].items() if k != "twin"})
            box.reload(policy=policy)
            answer = await reader.answer()
            reader.close()
            assert not answer.is_whole
            assert file.body.startswith(answer.body)
            gate.set()
            assert (await waiting).status in (200, 421, 502, 503)
            assert (await get(box, "/gone.mp4", host=TWIN)).status == 421


@scenario
async def test_sigterm_lets_slow_answers_finish(tmp_path: Path) -> None:
    with Box(tmp_path) as box:
        file = File(noise(3_000_000), cache_control="max-age=60")
        private = File(noise(3_000_000), cache_control="private")
        release = asyncio.Event()
        file.hold = private.hold = (1_000_000, release)
        gate = asyncio.Event()
        scripts = {b"/shared": file, b"/private": private, b"/waiting": gated(gate, cached(b"late"))}
        async with box.origin(scripts) as origin:
            viewers = [await Viewer.connect(box) for _ in range(4)]
            for viewer, path in zip(viewers, ("/shared", "/private", "/waiting"), strict=False):
                viewer.ask(path)
            for viewer in viewers[:2]:
                await viewer.head()
            await until(lambda: len(origin.requests) == 3)
            box.signal(signal.SIGTERM)
            await until(lambda: "draining" in box.output)
            assert await viewers[3].reader.read() == b""  # an idle one is closed
            release.set()
            gate.set()
            answers = [await viewer.answer() for viewer in viewers[:3]]
            assert [answer.is_whole for answer in answers] == [True] * 3
            assert [answer.body for answer in answers] == [file.body, private.body, b"late"]
            assert await asyncio.to_thread(box.exit_code) == 0
        for fault in ("Traceback", "exception"):
            assert fault not in box.output, box.output


@scenario
async def test_the_end_with_fetches_under_way_is_an_end(tmp_path: Path) -> None:
    with Box(tmp_path, limits={"drain": "200ms"}) as box:
        file = File(noise(30 << 20), cache_control="max-age=60")
        file.hold = (1_000_000, asyncio.Event())
        gate = asyncio.Event()
        async with box.origin({b"/held": file, b"/never": gated(gate, cached(b"x"))}) as origin:
            viewer = await Viewer.connect(box)
            viewer.ask("/held")
            await viewer.head()
            never = asyncio.ensure_future(get(box, "/never"))
            await until(lambda: len(origin.requests) == 2)
            box.signal(signal.SIGTERM)
            assert not (await viewer.answer()).is_whole
            assert not (await never).is_whole or (await never).status >= 500
            assert await asyncio.to_thread(box.exit_code) == 0
        for fault in ("Traceback", "exception"):
            assert fault not in box.output, box.output
