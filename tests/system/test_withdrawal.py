"""Purges by URL, prefix, origin and tag win over what is under way, in memory and on the disk, and outlive kill -9."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from box import MEDIA, NARROW, Box, Viewer, get, heard, scenario, sound_box, until
from hostile_origin import in_turn, reply
from origin_scripts import File, cached, fields, gated, noise
from running_box import wait_for

HOWS = ["url", "prefix", "origin", "tag", "tag of origin"]
DISK: dict[str, Any] = {"memory": "64MiB", "disk": {"size": "128MiB"}}


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    with sound_box(tmp_path_factory.mktemp("withdrawal"), cache=DISK) as running:
        yield running


def purge(box: Box, how: str, path: str, host: str = MEDIA) -> int:
    what = {
        "url": {"url": f"http://{host}{path}"}, "prefix": {"prefix": f"http://{host}{path[:-1]}"},
        "origin": {"origin": host.partition(".")[0]}, "tag": {"tag": tag_of(path)},
        "tag of origin": {"tag": tag_of(path), "origin": "media"},
    }[how]  # fmt: skip
    return int(box.control("cache purge", **what)["purged"])


def tag_of(path: str) -> str:
    return f"title {path[1:]}"


def tagged(body: bytes, path: str, **named: str) -> File:
    named = {"cache_control": "max-age=600", **named}
    return File(body, cache_tag=f"everything, {tag_of(path).upper()} ,,", **named)


def is_written(box: Box, n_objects: int) -> bool:
    return bool(box.stats()["disk_objects"] >= n_objects and not box.stats()["disk_queued_bytes"])


async def on_disk(box: Box, n_more: int, before: int) -> None:
    await until(lambda: is_written(box, before + n_more), "it is on the disk")


def restarted(box: Box, number: signal.Signals) -> Box:
    """The same box anew, its origins on the same ports."""
    box.signal(number)
    box.exit_code(seconds=20)
    box.addresses.clear()
    box.__enter__()
    return box


# -- what a tag is -----------------------------------------------------------------------------------------------------


@scenario
async def test_tags_of_both_fields_find_their_objects_and_reach_no_viewer(box: Box) -> None:
    lists = {
        "/t/1": {"cache_tag": "News, Sport"}, "/t/2": {"surrogate_key": "news  weather"},
        "/t/3": {"cache_tag": "sport"},
        "/t/4": {},
    }  # fmt: skip
    scripts = {path.encode(): cached(b"body", **named) for path, named in lists.items()}
    async with box.origin(scripts):
        for path in lists:
            for _ in range(2):
                answer = await get(box, path)
                assert "Cache-Tag" not in answer
                assert "Surrogate-Key" not in answer
        assert box.control("cache purge", tag="nothing has it")["purged"] == 0
        assert box.control("cache purge", tag="NEWS")["purged"] == 2
        assert [("hit" in (await get(box, path)).cache) for path in lists] == [False, False, True, True]
        assert box.control("cache purge", tag="sport", origin="generic")["purged"] == 0
        assert box.control("cache purge", tag=" sport ", origin="media")["purged"] == 2
        with pytest.raises(RuntimeError, match="no origin"):
            box.control("cache purge", tag="sport", origin="none")
        with pytest.raises(RuntimeError, match="exactly one"):
            box.control("cache purge", tag="sport", prefix=f"http://{MEDIA}/")


@scenario
async def test_tags_go_on_to_another_cache_where_policy_says_so(tmp_path: Path) -> None:
    with sound_box(tmp_path, origins={"media": {"forward_tags": True}}) as box:
        async with box.origin({b"/x": cached(b"body", cache_tag="a, b", surrogate_key="c")}):
            for _ in range(2):
                answer = await get(box, "/x")
                assert (answer["Cache-Tag"], answer["Surrogate-Key"]) == ("a, b", "c")


@pytest.mark.parametrize("value", [", ".join(f"t{n}" for n in range(257)), "x" * 1025])
@scenario
async def test_what_has_too_many_tags_is_passed_and_never_stored(box: Box, value: str) -> None:
    """A purge by one of those that were dropped would have missed it."""
    path = f"/many/{len(value)}"
    async with box.origin({path.encode(): cached(b"body", cache_tag=value)}) as origin:
        for _ in range(3):
            answer = await get(box, path)
            assert (answer.status, answer.body) == (200, b"body")
            assert "hit" not in answer.cache
        assert len(origin.requests) == 3
        assert any("tags" in event["what"] for event in box.control("events")["events"])


@scenario
async def test_a_304_brings_other_tags(box: Box) -> None:
    path = "/retagged"
    file = File(b"body", cache_control="max-age=0", cache_tag="before")
    async with box.origin({path.encode(): file}):
        await get(box, path)
        file.fields = fields(cache_control="max-age=600", cache_tag="after")
        await get(box, path)
        assert box.control("cache purge", tag="before")["purged"] == 0
        assert "hit" in (await get(box, path)).cache
        assert box.control("cache purge", tag="after")["purged"] == 1


@scenario
async def test_a_post_answers_without_tags_too(box: Box) -> None:
    async with box.origin({b"/post": reply(b"done", fields=fields(cache_tag="internal"))}):
        answer = await get(box, "/post", {"Content-Length": "0"}, method="POST", host="generic.example")
        assert (answer.status, answer.body) == (200, b"done")
        assert "Cache-Tag" not in answer


# -- under way ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", HOWS)
@scenario
async def test_before_the_head_came(box: Box, how: str) -> None:
    """Nobody knew the tags of what was being asked for."""
    path = f"/head-{HOWS.index(how)}"
    gate = asyncio.Event()
    async with box.origin({path.encode(): in_turn(gated(gate, tagged(b"old", path)), tagged(b"new", path))}) as origin:
        before = asyncio.ensure_future(get(box, path))
        await until(lambda: origin.requests)
        purge(box, how, path)
        after = [asyncio.ensure_future(get(box, path)) for _ in range(5)]
        await heard(box)
        gate.set()
        assert (await before).body == b"old"
        assert {(await each).body for each in after} == {b"new"}
        assert (await get(box, path)).body == b"new"


@pytest.mark.parametrize("how", HOWS)
@scenario
async def test_while_its_body_came(box: Box, how: str) -> None:
    path = f"/body-{HOWS.index(how)}"
    file = tagged(noise(3_500_000, how), path)
    release = asyncio.Event()
    file.hold = (2_500_000, release)
    known = box.stats()["disk_objects"]
    async with box.origin({path.encode(): file}):
        viewer = await Viewer.connect(box)
        viewer.ask(path)
        await viewer.head()
        await viewer.bytes_of_body(2_400_000)
        await until(lambda: box.stats()["disk_objects"] > known, "its first slices are on the disk")
        assert purge(box, how, path) >= 1
        old, file.body, file.etag = file.body, noise(3_500_000, how + "new"), '"v2"'
        file.hold = None
        assert (await get(box, path)).body == file.body
        release.set()
        first = await viewer.answer()
        viewer.close()
        assert first.is_whole
        assert first.body == old  # who was reading may finish
        again = await get(box, path)
        assert again.body == file.body
        assert "hit" in again.cache


@pytest.mark.parametrize("how", HOWS)
@scenario
async def test_while_it_was_validated(box: Box, how: str) -> None:
    path = f"/validated-{HOWS.index(how)}"
    gate = asyncio.Event()
    file = tagged(b"old", path, cache_control="max-age=0")
    async with box.origin({path.encode(): file}) as origin:
        await get(box, path)
        origin.scripts[path.encode()] = in_turn(gated(gate, file), tagged(b"new", path))
        before = asyncio.ensure_future(get(box, path))
        await until(lambda: len(origin.requests) == 2)
        assert purge(box, how, path) >= 1
        after = asyncio.ensure_future(get(box, path))
        await heard(box)
        gate.set()
        assert (await before).body == b"old"
        assert (await after).body == b"new"
        assert origin.requests[2].field(b"If-None-Match") is None
        assert (await get(box, path)).body == b"new"


@pytest.mark.parametrize("how", HOWS)
@scenario
async def test_while_it_was_refreshed_behind_its_viewers(box: Box, how: str) -> None:
    path = f"/refreshed-{HOWS.index(how)}"
    gate = asyncio.Event()
    file = tagged(b"old", path, cache_control="max-age=1, stale-while-revalidate=60")
    file.fields += fields(age="1")
    async with box.origin({path.encode(): file}) as origin:
        await get(box, path)
        refreshed = tagged(b"refreshed", path)
        refreshed.etag = '"v2"'
        origin.scripts[path.encode()] = in_turn(gated(gate, refreshed), tagged(b"new", path))
        assert (await get(box, path)).body == b"old"
        await until(lambda: len(origin.requests) == 2)
        purge(box, how, path)
        gate.set()
        assert (await get(box, path)).body == b"new"
        assert (await get(box, path)).body == b"new"


@pytest.mark.parametrize("how", HOWS)
@scenario
async def test_an_error_from_before_is_not_shared_after(box: Box, how: str) -> None:
    """A 404 that was fetched before the purge answered all who waited, also those who asked after it."""
    path = f"/error-{HOWS.index(how)}"
    gate = asyncio.Event()
    missing = reply(b"gone", status=404, fields=fields(cache_tag=tag_of(path)))
    async with box.origin({path.encode(): in_turn(gated(gate, missing), tagged(b"new", path))}) as origin:
        before = asyncio.ensure_future(get(box, path))
        await until(lambda: origin.requests)
        purge(box, how, path)
        after = asyncio.ensure_future(get(box, path))
        await heard(box)
        gate.set()
        assert (await before).status == 404
        assert (await after).body == b"new"


# -- on the disk -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def slow(box: Box, call: str, delay_ms: int) -> Iterator[None]:
    """Each such call of the box takes so long."""
    if shutil.which("strace") is None:
        pytest.skip("needs strace")
    command = ["strace", "-f", "-o", str(box.work / "strace"), "-p", str(box.process.pid), "-e", f"trace={call}"]
    tracing = subprocess.Popen(
        [*command, "-e", f"inject={call}:delay_enter={delay_ms * 1000}"], stderr=subprocess.PIPE, text=True
    )
    try:
        assert tracing.stderr is not None
        if "attached" not in (line := tracing.stderr.readline()):
            pytest.skip(f"strace can't attach: {line}")
        yield
    finally:
        tracing.send_signal(signal.SIGINT)
        tracing.wait(20)


# Each way of purging has objects of its own; that of a whole origin has its own origin too.
PLACES = {how: (NARROW if how == "origin" else MEDIA, f"/way-{n}/x") for n, how in enumerate(HOWS)}
ALL_PLACES = [*PLACES.items(), ("none", (MEDIA, "/other/x"))]


def contents(body: bytes) -> dict[bytes, File]:
    files = {}
    for _, (_, path) in ALL_PLACES:
        files[path.encode()] = tagged(body * 1000 + path.encode(), path)
        files[path.encode()].etag = f'"{body.decode()}"'
    return files


async def fetch_all(box: Box, body: bytes) -> None:
    for _, (host, path) in ALL_PLACES:
        assert (await get(box, path, host=host)).body == body * 1000 + path.encode()


async def purge_at(box: Box, how: str) -> int:
    host, path = PLACES[how]
    return await asyncio.to_thread(purge, box, how, path, host)


@functools.partial(scenario, seconds=90)
async def test_while_it_was_read_from_the_disk(tmp_path: Path) -> None:
    with sound_box(tmp_path, cache=DISK) as box:
        async with box.origin(contents(b"old")) as origin:
            await fetch_all(box, b"old")
            await on_disk(box, len(ALL_PLACES), 0)
            await asyncio.to_thread(restarted, box, signal.SIGTERM)
            origin.scripts.update(contents(b"new"))
            with slow(box, "preadv", 300):
                for how, (host, path) in PLACES.items():
                    known = box.stats()["exchanges"]
                    before = asyncio.ensure_future(get(box, path, host=host))
                    await until(lambda known=known: box.stats()["exchanges"] > known)  # type: ignore[misc]
                    assert await purge_at(box, how) == 1, how
                    after = asyncio.ensure_future(get(box, path, host=host))
                    assert (await before).body[:3] in (b"old", b"new")
                    assert (await after).body[:3] == b"new", how
            await fetch_some(box, PLACES, b"new")
            assert (await get(box, "/other/x")).body[:3] == b"old"


async def fetch_some(box: Box, places: Mapping[str, tuple[str, str]], body: bytes) -> None:
    for how, (host, path) in places.items():
        assert (await get(box, path, host=host)).body == body * 1000 + path.encode(), how


@functools.partial(scenario, seconds=90)
async def test_while_it_waited_to_be_written(tmp_path: Path) -> None:
    """What was queued for the disk was in no index yet. Then kill -9: it must not be found in the log either."""
    with sound_box(tmp_path, cache=DISK) as box:
        async with box.origin(contents(b"old")) as origin:
            with slow(box, "pwrite64", 100):
                for how, (host, path) in PLACES.items():
                    assert (await get(box, path, host=host)).body[:3] == b"old"
                    await purge_at(box, how)
            await asyncio.to_thread(restarted, box, signal.SIGKILL)
            assert box.stats()["disk_objects"] == 0
            origin.scripts.update(contents(b"new"))
            await fetch_some(box, PLACES, b"new")


@functools.partial(scenario, seconds=90)
async def test_kill_right_after_they_returned(tmp_path: Path) -> None:
    """Once what only the disk knows, once what memory knows too."""
    with sound_box(tmp_path, cache=DISK) as box:
        async with box.origin(contents(b"old")) as origin:
            for body, following in ((b"old", b"new"), (b"new", b"newer")):
                await fetch_all(box, body)
                await on_disk(box, len(ALL_PLACES), 0)
                if body == b"old":
                    await asyncio.to_thread(restarted, box, signal.SIGKILL)
                for how in PLACES:
                    assert await purge_at(box, how) == 1, how
                await asyncio.to_thread(restarted, box, signal.SIGKILL)
                assert box.stats()["disk_objects"] == 1
                n_asked = len(origin.requests)
                assert (await get(box, "/other/x")).body == body * 1000 + b"/other/x"
                assert len(origin.requests) == n_asked
                origin.scripts.update(contents(following))
                origin.scripts[b"/other/x"] = contents(b"old")[b"/other/x"]
                await fetch_some(box, PLACES, following)
                if following == b"new":
                    origin.scripts[b"/other/x"] = contents(following)[b"/other/x"]
                    assert await asyncio.to_thread(purge, box, "url", "/other/x") == 1


@scenario
async def test_tags_are_known_after_a_start_without_checkpoint(tmp_path: Path) -> None:
    """The log's headers don't have them; the heads that were found are asked."""
    with sound_box(tmp_path, cache=DISK) as box:
        scripts = {
            f"/t/{n}".encode(): File(b"x", cache_control="max-age=600", cache_tag=f"t{n % 3}") for n in range(60)
        }
        async with box.origin(scripts):
            for n in range(60):
                await get(box, f"/t/{n}")
            await on_disk(box, 60, 0)
            box.signal(signal.SIGKILL)
            box.exit_code()
            (box.state / "cache" / "checkpoint").unlink(missing_ok=True)
            box.addresses.clear()
            await asyncio.to_thread(box.__enter__)
            await until(lambda: box.stats()["disk_objects"] == 60)
            assert await asyncio.to_thread(lambda: box.control("cache purge", tag="T1")) == {"purged": 20}
            assert box.stats()["disk_objects"] == 40


@scenario
async def test_an_origin_that_has_left_the_policy_can_be_purged(tmp_path: Path) -> None:
    """What it had left on the disk came back with it."""
    with sound_box(tmp_path, cache=DISK) as box:
        async with box.origin({b"/x": File(b"body", cache_control="max-age=600")}) as origin:
            await get(box, "/x")
            await on_disk(box, 1, 0)
            whole = dict(box.policy)
            without = {name: row for name, row in whole["origins"].items() if name != "media"}
            await asyncio.to_thread(lambda: box.reload(policy={**whole, "origins": without}))
            assert await asyncio.to_thread(lambda: box.control("cache purge", origin="media")) == {"purged": 1}
            with pytest.raises(RuntimeError, match="no origin"):
                box.control("cache purge", origin="media")
            await asyncio.to_thread(lambda: box.reload(policy=whole))
            await get(box, "/x")
            assert len(origin.requests) == 2


@scenario
async def test_what_a_class_had_on_the_disk_is_purged_although_it_is_kept_in_memory_now(tmp_path: Path) -> None:
    classes = {"c": {"store": "disk"}}
    with sound_box(tmp_path, cache=DISK, classes=classes, origins={"media": {"class": "c"}}) as box:
        async with box.origin({b"/x": File(b"body", cache_control="max-age=600")}) as origin:
            await get(box, "/x")
            await on_disk(box, 1, 0)
            await asyncio.to_thread(lambda: box.reload({"classes": {"c": {"store": "memory"}}}))
            assert await asyncio.to_thread(lambda: purge(box, "url", "/x")) == 1
            await asyncio.to_thread(lambda: box.reload({"classes": {"c": {"store": "disk"}}}))
            await get(box, "/x")
            assert len(origin.requests) == 2


def test_accelctl_purges_by_tag(box: Box) -> None:
    done = box.accelctl("cache", "purge", "--tag", "nobody's", "--origin", "media")
    assert (done.returncode, done.stdout.strip()) == (0, "0 objects purged")
    done = box.accelctl("--json", "cache", "purge", "--tag", "nobody's")
    assert (done.returncode, done.stdout.strip()) == (0, '{"purged":0}')
    assert box.accelctl("cache", "purge", "--tag", "a", "--prefix", f"http://{MEDIA}/").returncode == 2
    wait_for(lambda: "tag nobody" in box.output, what="it is audited")
