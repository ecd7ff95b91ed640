"""Bodies larger than memory, and many of them: whole and exact for slow and fast readers, never above the limit."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress

import pytest
from box import GENERIC, Box, Viewer, get, scenario, sound_box, until
from hostile_origin import Peer, Request
from origin_scripts import PIECE_BYTES, File, noise

MIB = 1 << 20
SIZE = 60 * MIB
BODY = noise(SIZE, "large")


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    with sound_box(tmp_path_factory.mktemp("memory"), cache={"memory": "16MiB"}) as running:
        yield running


@asynccontextmanager
async def below_the_limit(box: Box) -> AsyncIterator[None]:
    """Looks at the memory the whole time."""
    most = 0

    async def look() -> None:
        nonlocal most
        while True:
            stats = await asyncio.to_thread(box.stats)
            most = max(most, stats["memory_bytes"] - stats["memory_limit_bytes"])
            await asyncio.sleep(0.005)

    looking = asyncio.ensure_future(look())
    try:
        yield
    finally:
        looking.cancel()
        with suppress(asyncio.CancelledError):
            await looking
    assert most <= 0


async def read(box: Box, target: str, *, rate_bps: float = 0.0, first: int = 0, host: str = GENERIC) -> None:
    """Reads to the end, at most so fast, and compares as it goes."""
    loop = asyncio.get_running_loop()
    viewer = await Viewer.connect(box, receive_buffer=65536 if rate_bps else None)
    viewer.ask(target, {"Range": f"bytes={first}-"} if first else {}, host=host)
    answer = await viewer.head()
    assert answer.status == (206 if first else 200)
    began, place = loop.time(), first
    while data := await viewer.more():
        assert data == BODY[place : place + len(data)], f"a wrong byte after {place}"
        place += len(data)
        answer.received.clear()
        if rate_bps:
            await asyncio.sleep(max(0.0, began + (place - first) / rate_bps - loop.time()))
    viewer.close()
    assert answer.is_whole, (target, place)
    assert place == SIZE


@scenario
async def test_a_body_larger_than_memory_for_slow_and_fast_readers_at_once(box: Box) -> None:
    file = File(BODY, cache_control="max-age=600")
    async with box.origin({b"/larger.mp4": file}), below_the_limit(box), box.growth() as growth:
        slow = [read(box, "/larger.mp4", rate_bps=rate) for rate in (15e6, 30e6)]
        later = [read(box, "/larger.mp4", first=first) for first in (20 * MIB + 5, 45 * MIB)]
        await asyncio.gather(*slow, *later, *(read(box, "/larger.mp4") for _ in range(3)))
    n = growth["bytes_from_origin"] / SIZE
    print(
        f"\n60 MiB to 7 readers with 16 MiB of memory: {n:.1f} bodies, {growth['upstream_requests']} requests upstream"
    )
    assert n < 7  # what it would cost without a cache


@pytest.mark.parametrize("etag", ['W/"v1"', None], ids=["weak", "none"])
@scenario
async def test_a_larger_body_that_can_not_be_asked_for_in_parts_passes(box: Box, etag: str | None) -> None:
    """It was stored, filled memory, could not be evicted under its readers, and stood still for ever."""
    file = File(BODY, etag=etag, cache_control="max-age=600")
    path = f"/passes-{etag is None}"
    async with box.origin({path.encode(): file}), below_the_limit(box):
        await asyncio.gather(read(box, path, rate_bps=40e6), *(read(box, path) for _ in range(2)))
    assert len(file.asked) == 3


@scenario
async def test_a_larger_body_of_unknown_length_reaches_its_reader(box: Box) -> None:
    async def chunks(peer: Peer, request: Request) -> bool:
        await peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nCache-Control: max-age=60\r\n\r\n")
        for place in range(0, SIZE, PIECE_BYTES):
            piece = BODY[place : place + PIECE_BYTES]
            await peer.send(b"%x\r\n%b\r\n" % (len(piece), piece))
        await peer.send(b"0\r\n\r\n")
        return True

    async with box.origin({b"/unknown-length": chunks}), below_the_limit(box):
        await read(box, "/unknown-length", rate_bps=100e6)
        await read(box, "/unknown-length")


@scenario
async def test_a_fill_whose_reader_left_does_not_go_on_for_the_others(box: Box) -> None:
    """Who looked into a film and left had all the rest fetched, while somebody else was elsewhere in it."""
    file = File(BODY, cache_control="max-age=600")
    async with box.origin({b"/looked-into.mp4": file}), below_the_limit(box):
        before = box.stats()["bytes_from_origin"]
        stays = await Viewer.connect(box, receive_buffer=65536)
        stays.ask("/looked-into.mp4", {"Range": "bytes=0-"})
        await stays.head()
        leaves = await Viewer.connect(box, receive_buffer=65536)
        leaves.ask("/looked-into.mp4", {"Range": f"bytes={20 * MIB}-"})
        await leaves.head()
        assert await leaves.bytes_of_body(100_000)
        leaves.reset()
        seen = [-1, -2]
        while len(set(seen[-40:])) > 1:  # for two seconds no byte more
            await asyncio.sleep(0.05)
            seen.append(box.stats()["bytes_from_origin"])
        assert seen[-1] - before <= 8 * MIB  # both windows, and what was read
        stays.reset()


@scenario
async def test_readers_who_come_and_go_in_more_bodies_than_fit(box: Box) -> None:
    bodies = [File(noise(3 * MIB + 17, f"many-{i}"), cache_control="max-age=600") for i in range(20)]
    scripts = {f"/many-{i}".encode(): file for i, file in enumerate(bodies)}
    dice = random.Random(5)

    async def wander() -> None:
        for _ in range(25):
            i = dice.randrange(len(bodies))
            body = bodies[i].body
            first = dice.randrange(len(body))
            last = min(len(body) - 1, first + dice.choice((0, 100, MIB, 4 * MIB)))
            answer = await get(box, f"/many-{i}", {"Range": f"bytes={first}-{last}"})
            assert answer.status in (206, 503), answer
            if answer.status == 206:
                assert answer.is_whole
                assert answer.body == body[first : last + 1]

    async with box.origin(scripts), below_the_limit(box):
        await asyncio.gather(*(wander() for _ in range(8)))
        assert box.stats()["evictions"] > 0


@scenario
async def test_slow_readers_of_many_bodies_leave_memory_for_others(box: Box) -> None:
    """All memory in use by bodies that nobody reads on with: the next viewer is served all the same."""
    files = {f"/stuck-{i}".encode(): File(noise(8 * MIB, f"s{i}"), cache_control="max-age=60") for i in range(6)}
    small = File(b"small", cache_control="max-age=60")
    async with box.origin({**files, b"/small": small}), below_the_limit(box):
        stuck = []
        for path in files:
            viewer = await Viewer.connect(box, receive_buffer=8192)
            viewer.ask(path.decode())
            await viewer.head()
            stuck.append(viewer)
        for turn in range(5):
            answer = await get(box, f"/small?{turn}")
            assert answer.body == b"small"
        for viewer, file in zip(stuck, files.values(), strict=True):
            got = await viewer.answer()
            assert got.is_whole
            assert got.body == file.body
            viewer.close()
        await until(lambda: box.stats()["memory_bytes"] <= box.stats()["memory_limit_bytes"])
