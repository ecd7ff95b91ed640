"""The live edge through the running box: lifetimes by what a resource is, the bound on stale playlists, timing URLs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest
from box import GENERIC, MEDIA, Box, get, scenario, sound_box
from hostile_origin import reply
from origin_scripts import File, cached, fields

LIVE = b"#EXTM3U\n#EXT-X-VERSION:6\n#EXT-X-TARGETDURATION:1\n#EXT-X-MEDIA-SEQUENCE:1\n#EXTINF:1,\na.m4s\n"
VOD = LIVE + b"#EXT-X-ENDLIST\n"
MULTIVARIANT = b"#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\na.m3u8\n"
MPD = (
    b'<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="dynamic" minimumUpdatePeriod="PT1S" '
    b'maxSegmentDuration="PT1S">%b<Period id="1"/></MPD>'
)


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    with sound_box(tmp_path_factory.mktemp("live")) as running:
        yield running


def ttl_s(box: Box, path: str) -> float:
    """What the box still gives an object, more exactly than Cache-Status."""
    (row,) = (row for row in box.control("cache ls")["objects"] if row["url"].endswith(path))
    return float(row["ttl_s"])


@pytest.mark.parametrize(
    ("path", "body", "least_s", "most_s"),
    [
        ("/live.m3u8", LIVE, 0.2, 0.5),
        ("/live.mpd", MPD % b"", 0.2, 0.5),
        ("/vod.m3u8", VOD, 50, 60),
        ("/main.m3u8", MULTIVARIANT, 4, 5),
        ("/a.m4s", b"segment", 50, 60),
        ("/a.ts", b"segment", 50, 60),
        ("/garbage.m3u8", b"nonsense", 0.5, 1.0),
    ],
)
@scenario
async def test_lifetimes_without_headers(box: Box, path: str, body: bytes, least_s: float, most_s: float) -> None:
    async with box.origin({path.encode(): reply(body)}):
        await get(box, path)
        assert least_s < ttl_s(box, path) <= most_s


@scenario
async def test_generic_guesses_nothing(box: Box) -> None:
    async with box.origin({b"/guess.m3u8": reply(LIVE)}) as origin:
        for _ in range(3):
            assert "hit" not in (await get(box, "/guess.m3u8", host=GENERIC)).cache
        assert len(origin.requests) == 3


@scenario
async def test_a_live_playlist_without_validator_is_fetched_anew_when_it_is_over(box: Box) -> None:
    file = File(LIVE, etag=None)
    async with box.origin({b"/anew.m3u8": file}):
        await get(box, "/anew.m3u8")
        file.body = LIVE + b"#EXTINF:1,\nb.m4s\n"
        began = time.monotonic()
        while (await get(box, "/anew.m3u8")).body != file.body:
            assert time.monotonic() - began < 2
            await asyncio.sleep(0.01)
        assert 0.2 < time.monotonic() - began < 1.5


@pytest.mark.fault(26)
@scenario
async def test_a_live_playlist_is_stale_for_one_target_duration_and_then_504(box: Box) -> None:
    host = "spare-0." + MEDIA
    async with box.origin({b"/frozen.m3u8": reply(LIVE), b"/frozen.m4s": cached(b"segment", 0, etag='"v"')}):
        await get(box, "/frozen.m3u8", host=host)
        await get(box, "/frozen.m4s", host=host)
    stored = time.monotonic()  # its lifetime is 0.5 s, a target duration 1 s: 1.5 s from here
    seen: list[tuple[float, int]] = []
    while time.monotonic() < stored + 2:
        answer = await get(box, "/frozen.m3u8", host=host)
        seen.append((time.monotonic() - stored, answer.status))
        assert answer.status == 504 or answer.body == LIVE
        await asyncio.sleep(0.02)
    last_good = max(at for at, status in seen if status == 200)
    first_bad = min(at for at, status in seen if status == 504)
    assert 1.3 < last_good < 1.6
    assert 1.4 < first_bad < 1.7
    assert (await get(box, "/frozen.m4s", host=host)).body == b"segment"


@scenario
async def test_the_time_is_never_stored_once_a_manifest_has_named_it(box: Box) -> None:
    timing = (
        b'<UTCTiming schemeIdUri="urn:mpeg:dash:utc:http-iso:2014" value="/time?utc http://[ ../clock/now.txt"/>'
        b'<UTCTiming schemeIdUri="urn:mpeg:dash:utc:http-head:2014" value="http://elsewhere.example/abs"/>'
    )
    clock = cached(b"2026-01-01T00:00:00Z")
    async with box.origin(
        {b"/dash/live.mpd": reply(MPD % timing), b"/time": clock, b"/clock/now.txt": clock}
    ) as origin:
        await get(box, "/time?utc")
        assert "hit" in (await get(box, "/time?utc")).cache  # nothing tells yet
        assert (await get(box, "/dash/live.mpd")).status == 200
        for _ in range(100):  # its last byte reaches a viewer a moment before the box has read it
            if "hit" not in (await get(box, "/time?utc")).cache:
                break
        for path in ("/time?utc", "/clock/now.txt"):
            before = len(origin.requests)
            for _ in range(3):
                answer = await get(box, path)
                assert answer.status == 200
                assert "hit" not in answer.cache
            assert len(origin.requests) == before + 3


@scenario
async def test_the_kind_of_what_is_stored_is_shown(box: Box) -> None:
    async with box.origin({b"/kind.m4s": cached(b"x"), b"/kind-init.mp4": cached(b"x"), b"/kind.m3u8": cached(VOD)}):
        for path in ("/kind.m4s", "/kind-init.mp4", "/kind.m3u8"):
            await get(box, path)
    kinds = {row["url"].rpartition("/")[2]: row["kind"] for row in box.control("cache ls")["objects"]}
    assert kinds["kind.m4s"] == "segment"
    assert kinds["kind-init.mp4"] == "init"
    assert kinds["kind.m3u8"].endswith("playlist")


@scenario
async def test_a_404_at_the_edge_with_a_lifetime_is_held_below_the_ceiling(box: Box) -> None:
    missing = reply(b"", status=404, fields=fields(cache_control="max-age=3600"))
    async with box.origin({b"/gone.m4s": missing}):
        await get(box, "/gone.m4s")
        assert 5 < ttl_s(box, "/gone.m4s") <= 10


@scenario
async def test_what_was_only_listed_for_who_waited_is_not_served_when_the_origin_is_away(box: Box) -> None:
    host = "spare-1." + MEDIA
    async with box.origin({b"/page": reply(b"a page without a word on caching")}):
        assert (await get(box, "/page", host=host)).status == 200
    assert (await get(box, "/page", host=host)).status >= 500
