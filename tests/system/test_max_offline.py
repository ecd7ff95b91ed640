"""max_offline: what was not checked with its origin for so long is used by nobody, however fresh it says that it is."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from box import MEDIA, Box, get, scenario, sound_box, until
from hostile_origin import reply
from origin_scripts import File, noise

LIMIT_S = 2.0
DISK: dict[str, Any] = {"memory": "64MiB", "disk": {"size": "64MiB"}}
FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1")
YEAR_S = 365 * 86400


def fresh(body: bytes = b"body", **named: str) -> File:
    return File(body, **{"cache_control": "max-age=86400", **named})


async def until_checked(box: Box, origin: Any, path: str) -> None:
    """Until a hit is none any more: the box asks whether it still is what the origin has."""

    async def is_checked() -> bool:
        answer = await get(box, path)
        assert (answer.status, answer.body) == (200, b"body")
        return any(request.field(b"If-None-Match") for request in origin.requests)

    while not await is_checked():
        await asyncio.sleep(0.02)


async def until_status(box: Box, path: str, status: int) -> None:
    while (answer := await get(box, path)).status != status:
        assert answer.status in (200, 504)
        await asyncio.sleep(0.02)


@pytest.mark.parametrize("where", ["both", pytest.param("origin", marks=pytest.mark.slow), "class"])
@scenario
async def test_it_is_checked_in_time_although_it_is_fresh_for_a_day(tmp_path: Path, where: str) -> None:
    classes = {"c": {"store": "memory", **({"max_offline": "2s"} if where != "origin" else {})}}
    media = {"class": "c", **({"max_offline": "2s" if where == "origin" else "1h"} if where != "class" else {})}
    with sound_box(tmp_path, classes=classes, origins={"media": media}) as box:
        async with box.origin({b"/x": fresh()}) as origin:
            await get(box, "/x")
            assert "hit" in (await get(box, "/x")).cache
            assert len(origin.requests) == 1
            await until_checked(box, origin, "/x")
            assert len(origin.requests) == 2
            assert "hit" in (await get(box, "/x")).cache


@scenario
async def test_a_box_that_is_cut_off_stops_in_time_and_goes_on_afterwards(tmp_path: Path) -> None:
    with sound_box(tmp_path, origins={"media": {"max_offline": "2s"}}) as box:
        async with box.origin({b"/x": fresh(), b"/stale": fresh(cache_control="max-age=0, stale-if-error=86400")}):
            for path in ("/x", "/stale"):
                await get(box, path)
        for path in ("/x", "/stale"):
            assert (await get(box, path)).body == b"body"  # nothing is wrong with it yet
        for path in ("/stale", "/x"):
            await until_status(box, path, 504)
            assert (await get(box, path, {"Range": "bytes=0-1"})).status == 504
        async with box.origin({b"/x": fresh()}):
            await until_status(box, "/x", 200)


@scenario
async def test_an_origin_that_answers_5xx_has_checked_nothing(tmp_path: Path) -> None:
    with sound_box(tmp_path, origins={"media": {"max_offline": "2s"}}) as box:
        async with box.origin({b"/x": fresh(cache_control="max-age=86400, stale-if-error=86400")}) as origin:
            await get(box, "/x")
            origin.scripts[b"/x"] = reply(b"no", status=500)
            while (answer := await get(box, "/x")).status == 200:
                assert answer.body == b"body"
                await asyncio.sleep(0.02)
            assert (answer.status, answer.body) == (500, b"no")


@scenario
async def test_what_the_origin_has_withdrawn_goes_with_the_check(tmp_path: Path) -> None:
    with sound_box(tmp_path, origins={"media": {"max_offline": "2s"}}) as box:
        async with box.origin({b"/x": fresh()}) as origin:
            await get(box, "/x")
            origin.scripts[b"/x"] = reply(b"withdrawn", status=410)
            while (answer := await get(box, "/x")).status == 200:
                await asyncio.sleep(0.02)
            assert answer.status == 410
        for _ in range(2):
            assert (await get(box, "/x")).status != 200  # not even with the origin gone


@scenario
async def test_a_shorter_limit_holds_at_once(tmp_path: Path) -> None:
    with sound_box(tmp_path) as box:
        async with box.origin({b"/x": fresh()}) as origin:
            await get(box, "/x")
            await asyncio.to_thread(lambda: box.reload({"origins": {"media": {"max_offline": "1s"}}}))
            await until_checked(box, origin, "/x")


@scenario
async def test_who_reads_already_may_finish(tmp_path: Path) -> None:
    with sound_box(tmp_path, origins={"media": {"max_offline": "1s"}}) as box:
        file = fresh(noise(3_000_000))
        release = asyncio.Event()
        file.hold = (1_000_000, release)
        async with box.origin({b"/long": file, b"/x": fresh()}) as origin:
            reader = asyncio.ensure_future(get(box, "/long"))
            await until(lambda: origin.requests)
            await get(box, "/x")
            await until_checked(box, origin, "/x")  # a second has passed
            release.set()
            answer = await reader
            assert answer.is_whole
            assert answer.body == file.body


# -- over restarts, with a clock that is right and one that isn't ------------------------------------------------------


def restart(box: Box, step_s: int = 0) -> None:
    """Ends the box, and starts it with a clock that is off by so much."""
    box.signal(signal.SIGTERM)
    box.exit_code(seconds=20)
    box.addresses.clear()
    if step_s:
        os.environ.update(LD_PRELOAD=str(FAKETIME), FAKETIME=f"{step_s:+d}s", FAKETIME_DONT_FAKE_MONOTONIC="1")
    try:
        box.__enter__()
    finally:
        for name in ("LD_PRELOAD", "FAKETIME", "FAKETIME_DONT_FAKE_MONOTONIC"):
            os.environ.pop(name, None)


@scenario
async def test_the_time_goes_on_over_restarts(tmp_path: Path) -> None:
    limit = {"origins": {"media": {"max_offline": "1h"}}}
    with sound_box(tmp_path, cache=DISK, **limit) as box:
        async with box.origin({b"/x": fresh()}):
            await get(box, "/x")
            await until(lambda: box.stats()["disk_objects"] == 1)
        await asyncio.to_thread(restart, box)
        assert (await get(box, "/x")).body == b"body"  # from the disk, with the origin gone
        box.policy["origins"]["media"]["max_offline"] = f"{LIMIT_S}s"
        box.write_policy(box.policy)
        await asyncio.to_thread(restart, box)
        await until_status(box, "/x", 504)
        async with box.origin({b"/x": fresh()}) as origin:
            await until_status(box, "/x", 200)
            assert origin.requests[0].field(b"If-None-Match") == b'"v1"'


YEARS = [pytest.param(each, marks=pytest.mark.slow) for each in (YEAR_S, -YEAR_S)]


@pytest.mark.parametrize("step_s", [-600, *YEARS])
@scenario
async def test_no_step_of_the_clock_lengthens_it(tmp_path: Path, step_s: int) -> None:
    """An hour is allowed, and no minute has passed: but nobody can know, so the origin is asked. Ten minutes back would
    be ten minutes more."""
    if not FAKETIME.exists():
        pytest.skip("needs faketime")
    with sound_box(tmp_path, cache=DISK, origins={"media": {"max_offline": "1h"}}) as box:
        async with box.origin({b"/x": fresh()}):
            await get(box, "/x")
            await until(lambda: box.stats()["disk_objects"] == 1)
        await asyncio.to_thread(restart, box, step_s)
        for _ in range(3):
            assert (await get(box, "/x")).status == 504
        kinds = {event["kind"] for event in box.control("events")["events"]}
        assert ("disk-clock" in kinds) is (step_s < 0)
        async with box.origin({b"/x": fresh()}) as origin:
            await until_status(box, "/x", 200)
            assert origin.requests[0].field(b"If-None-Match") == b'"v1"'
        assert (await get(box, "/x", host=MEDIA)).body == b"body"
