"""Kinds by type and path, manifests from good and bad bytes, default lifetimes."""

from __future__ import annotations

import gzip
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accelerator.protocols import live
from accelerator.protocols.live import Kind, Manifest, read_manifest, recognise


@pytest.mark.parametrize(
    ("path", "content_type", "kind"),
    [
        (b"/a", b"application/vnd.apple.mpegurl", Kind.PLAYLIST),
        (b"/a", b"Application/X-MPEGURL; charset=utf-8", Kind.PLAYLIST),
        (b"/a", b"audio/mpegurl", Kind.PLAYLIST),
        (b"/a", b"audio/x-mpegurl", Kind.PLAYLIST),
        (b"/a", b"application/dash+xml", Kind.PLAYLIST),
        (b"/a.m3u8?x=/b.ts", b"", Kind.PLAYLIST),
        (b"/a.M3U8", b"text/plain", Kind.PLAYLIST),
        (b"/a.mpd", b"text/xml", Kind.PLAYLIST),
        (b"/a.mpd", b"application/octet-stream", Kind.PLAYLIST),
        (b"/a", b"video/mp2t", Kind.SEGMENT),
        (b"/a", b"video/iso.segment", Kind.SEGMENT),
        (b"/a", b"audio/mp4", Kind.SEGMENT),
        (b"/a", b"application/mp4", Kind.SEGMENT),
        (b"/a", b"text/vtt; charset=utf-8", Kind.SEGMENT),
        (b"/a.m4s", b"", Kind.SEGMENT),
        (b"/a.ts", b"binary/octet-stream", Kind.SEGMENT),
        (b"/a.cmfv", b"application/octet-stream", Kind.SEGMENT),
        (b"/init.mp4", b"video/mp4", Kind.INIT),
        (b"/video_init.mp4", b"video/mp4", Kind.INIT),
        (b"/init-stream0.m4s", b"", Kind.INIT),
        (b"/a.key", b"application/octet-stream", Kind.KEY),
        (b"/a", b"", Kind.OTHER),
        (b"/m3u8", b"", Kind.OTHER),
        (b"/a.ts/b", b"", Kind.OTHER),
        (b"/a.json", b"", Kind.OTHER),
        (b"", b"", Kind.OTHER),
        (b"/a?x=b.m3u8", b"", Kind.OTHER),
        # cache deception: the type wins
        (b"/account/x.m3u8", b"text/html", Kind.OTHER),
        (b"/account/x.ts", b"text/html; charset=utf-8", Kind.OTHER),
        (b"/account/x.mp4", b"application/json", Kind.OTHER),
        (b"/account/x.ts", b"text/plain", Kind.OTHER),
        (b"/account/x.m4s", b"application/xml", Kind.OTHER),
        (b"/a.html", b"video/mp4", Kind.SEGMENT),
        (b"/a.m3u8", b"video/mp4", Kind.SEGMENT),
    ],
)
def test_recognise(path: bytes, content_type: bytes, kind: Kind) -> None:
    assert recognise(path, content_type) is kind


LIVE = b"#EXTM3U\n#EXT-X-VERSION:7\n#EXT-X-TARGETDURATION:6\n#EXT-X-MEDIA-SEQUENCE:9\n#EXTINF:6.0,\na.m4s\n"
LOW_LATENCY = (
    b"#EXTM3U\n#EXT-X-TARGETDURATION:4\n"
    b"#EXT-X-SERVER-CONTROL:CAN-BLOCK-RELOAD=YES,PART-HOLD-BACK=1.0\n#EXT-X-PART-INF:PART-TARGET=0.333\n#EXTINF:4,\na\n"
)


@pytest.mark.parametrize(
    ("body", "manifest"),
    [
        (LIVE, Manifest(Kind.LIVE_PLAYLIST, True, 6.0)),
        (LIVE.replace(b"\n", b"\r\n"), Manifest(Kind.LIVE_PLAYLIST, True, 6.0)),
        (b"\xef\xbb\xbf" + LIVE, Manifest(Kind.LIVE_PLAYLIST, True, 6.0)),
        (gzip.compress(LIVE, mtime=0), Manifest(Kind.LIVE_PLAYLIST, True, 6.0)),
        (LIVE + b"#EXT-X-ENDLIST\n", Manifest(Kind.VOD_PLAYLIST, False, 6.0)),
        (LIVE + b"#EXT-X-ENDLIST", Manifest(Kind.VOD_PLAYLIST, False, 6.0)),
        (LIVE + b"#EXT-X-ENDLIST \r\n", Manifest(Kind.VOD_PLAYLIST, False, 6.0)),
        (LIVE + b"#EXT-X-PLAYLIST-TYPE:VOD\n", Manifest(Kind.VOD_PLAYLIST, False, 6.0)),
        (LIVE + b"#EXT-X-PLAYLIST-TYPE:EVENT\n", Manifest(Kind.LIVE_PLAYLIST, True, 6.0)),
        (LIVE + b"#EXT-X-ENDLIST-NOT\n #EXT-X-ENDLIST\n", Manifest(Kind.LIVE_PLAYLIST, True, 6.0)),
        (LOW_LATENCY, Manifest(Kind.LIVE_PLAYLIST, True, 4.0, part_target_s=0.333, can_block_reload=True)),
        (
            b"#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\nlow.m3u8\n",
            Manifest(Kind.MULTIVARIANT, False, live.UNKNOWN_TARGET_S),
        ),
        (
            b'#EXTM3U\n#EXT-X-I-FRAME-STREAM-INF:BANDWIDTH=1,URI="a"\n',
            Manifest(Kind.MULTIVARIANT, False, live.UNKNOWN_TARGET_S),
        ),
        (b"#EXTM3U", Manifest(Kind.LIVE_PLAYLIST, True, live.UNKNOWN_TARGET_S)),
        # no number, or one that would let a playlist widen its own rights
        (b"#EXTM3U\n#EXT-X-TARGETDURATION:+6\n", Manifest(Kind.LIVE_PLAYLIST, True, live.UNKNOWN_TARGET_S)),
        (b"#EXTM3U\n#EXT-X-TARGETDURATION:0\n", Manifest(Kind.LIVE_PLAYLIST, True, live.UNKNOWN_TARGET_S)),
        (b"#EXTM3U\n#EXT-X-TARGETDURATION:86400\n", Manifest(Kind.LIVE_PLAYLIST, True, live.TARGET_MAX_S)),
        (b"#EXTM3U\n#EXT-X-TARGETDURATION:1e9\n", Manifest(Kind.LIVE_PLAYLIST, True, live.UNKNOWN_TARGET_S)),
    ],
)
def test_8216_4_3_hls(body: bytes, manifest: Manifest) -> None:
    assert read_manifest(body) == manifest


DYNAMIC = (
    b'<?xml version="1.0"?>\n<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="dynamic" minimumUpdatePeriod="PT%bS"'
    b' maxSegmentDuration="PT4S"><UTCTiming schemeIdUri="urn:mpeg:dash:utc:http-xsdate:2014"'
    b' value="https://time.example/a  /b?c=1"/><Period/></MPD>'
)


def test_dash_dynamic() -> None:
    assert read_manifest(DYNAMIC % b"2.5") == Manifest(
        Kind.LIVE_PLAYLIST, True, 4.0, update_period_s=2.5, timing_urls=(b"https://time.example/a", b"/b?c=1")
    )


@pytest.mark.parametrize(
    ("body", "manifest"),
    [
        (b'<MPD type="static"/>', Manifest(Kind.VOD_PLAYLIST, False, 2.0)),
        (b"<MPD/>", Manifest(Kind.VOD_PLAYLIST, False, 2.0)),
        (b'\n<d:MPD xmlns:d="x" type="static"/>', Manifest(Kind.VOD_PLAYLIST, False, 2.0)),
        (
            b'<MPD type="dynamic" minimumUpdatePeriod="P1DT1H1M1.5S"/>',
            Manifest(Kind.LIVE_PLAYLIST, True, 2.0, update_period_s=90061.5),
        ),
        (
            b'<MPD type="dynamic" minimumUpdatePeriod="-PT2S"/>',
            Manifest(Kind.LIVE_PLAYLIST, True, 2.0, update_period_s=2.0),
        ),
        (
            b'<MPD type="dynamic" minimumUpdatePeriod="PT"/>',
            Manifest(Kind.LIVE_PLAYLIST, True, 2.0, update_period_s=2.0),
        ),
        (
            b'<MPD type="dynamic" minimumUpdatePeriod="PT0S"/>',
            Manifest(Kind.LIVE_PLAYLIST, True, 2.0, update_period_s=0.0),
        ),
        # timing that is not fetched over http is no URL
        (
            b'<MPD><UTCTiming schemeIdUri="urn:mpeg:dash:utc:direct:2014" value="2024"/></MPD>',
            Manifest(Kind.VOD_PLAYLIST, False, 2.0),
        ),
    ],
)
def test_dash(body: bytes, manifest: Manifest) -> None:
    assert read_manifest(body) == manifest


BOMB = b"<!DOCTYPE a [" + b"".join(b'<!ENTITY x%d "%b">' % (i, b"&x%d;" % (i - 1) * 9) for i in range(1, 20)) + b"]>"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<",
        b"<html></html>",
        b"#EXTM3U8\n",
        b"#EXTINF:6\n",
        b"{}",
        b"\x1f\x8b",
        gzip.compress(LIVE, mtime=0)[:-1],
        gzip.compress(b"\0" * 3_000_000, mtime=0),
        LIVE + b"#" * live.MANIFEST_SIZE_MAX,
        BOMB + b"<MPD>&x19;</MPD>",
        b'<!DOCTYPE MPD SYSTEM "http://10.0.0.1/"><MPD/>',
        b"<!DOCTYPE MPD><MPD/>",
        b"<MPD>&undefined;</MPD>",
        b"<MPD>" * 33 + b"</MPD>" * 33,
        b"<MPD>" * 100_000,
        b"<MPD>" + b"<a/>" * 50_000 + b"</MPD>",
        b"<MPD></mpd>",
        b'<?xml version="1.0" encoding="x-none"?><MPD/>',
        b"<MPD " + b"".join(b'a%d="" ' % i for i in range(150_000)),
    ],
)
def test_bombs_and_garbage_are_no_manifest(body: bytes) -> None:
    began = time.process_time()
    assert read_manifest(body) is None
    assert time.process_time() - began < 1.0


@pytest.mark.parametrize(
    ("longest", "one_more"),
    [
        (LIVE + b"#" * (live.MANIFEST_SIZE_MAX - len(LIVE)), b"#"),
        (b"<MPD>" * live.XML_DEPTH_MAX + b"</MPD>" * live.XML_DEPTH_MAX, None),
        (b"<MPD>" + b"<a/>" * (live.XML_ELEMENTS_MAX - 1) + b"</MPD>", None),
    ],
)
def test_the_largest_manifests_are_read(longest: bytes, one_more: bytes | None) -> None:
    assert read_manifest(longest) is not None
    assert read_manifest(gzip.compress(longest, 1)) is not None
    if one_more is not None:
        assert read_manifest(longest + one_more) is None
        assert read_manifest(gzip.compress(longest + one_more, 1)) is None


def test_timing_urls_are_bounded() -> None:
    manifest = read_manifest(DYNAMIC.replace(b"/b?c=1", b" x" * 5000) % b"1")
    assert manifest is not None
    assert len(manifest.timing_urls) == live.TIMING_URLS_MAX


@given(st.binary(max_size=200), st.sampled_from([b"#EXTM3U\n", b"<MPD>", b"\x1f\x8b\x08", b""]))
def test_nothing_makes_reading_raise(body: bytes, prefix: bytes) -> None:
    read_manifest(prefix + body)


@pytest.mark.parametrize(
    ("body", "lifetime_s", "limit_s"),
    [
        (LIVE, 3.0, 6.0),
        (LIVE + b"#EXT-X-ENDLIST\n", 60.0, None),
        (LOW_LATENCY, 0.333 / 2, 4.0),
        (b"#EXTM3U\n#EXT-X-TARGETDURATION:30\n", 5.0, 30.0),
        (b"#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\na\n", 5.0, None),
        (DYNAMIC % b"1", 0.5, 4.0),
        (DYNAMIC % b"60", 1.0, 4.0),
        (DYNAMIC % b"0", 0.1, 4.0),
        (b"<MPD/>", 60.0, None),
        (b"garbage", 1.0, live.UNKNOWN_TARGET_S),
    ],
)
def test_lifetime_and_stale_limit_of_playlists(body: bytes, lifetime_s: float, limit_s: float | None) -> None:
    manifest = read_manifest(body)
    kind = manifest.kind if manifest else Kind.PLAYLIST
    assert live.lifetime_s(kind, manifest) == lifetime_s
    assert live.stale_limit_s(kind, manifest) == limit_s


def test_rfc8216bis_b_1_a_blocking_reload_keeps_for_six_targets_where_the_playlist_can_block() -> None:
    manifest = read_manifest(LOW_LATENCY)
    assert live.lifetime_s(Kind.LIVE_PLAYLIST, manifest, is_blocking=True) == 24.0
    assert live.lifetime_s(Kind.LIVE_PLAYLIST, read_manifest(LIVE), is_blocking=True) == 3.0


def test_segments_live_longer_where_a_vod_playlist_lists_them_and_keys_and_pages_not_at_all() -> None:
    vod = read_manifest(LIVE + b"#EXT-X-ENDLIST\n")
    assert live.lifetime_s(Kind.SEGMENT) == 60.0
    assert live.lifetime_s(Kind.INIT, read_manifest(LIVE)) == 60.0
    assert live.lifetime_s(Kind.SEGMENT, vod) == 3600.0
    assert live.lifetime_s(Kind.KEY, vod) == 0.0
    assert live.lifetime_s(Kind.OTHER, vod) == 0.0
