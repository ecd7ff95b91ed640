"""Fuzz target: a playlist or MPD. Whatever the bytes are, reading them raises nothing, ends within a second of CPU, and
gives None or a manifest whose lifetime and stale limit are within the bounds that live.py promises.

    .venv/bin/python -m pytest tests/fuzz/fuzz_manifest.py          a short run
    PYTHONPATH=. .venv/bin/python tests/fuzz/fuzz_manifest.py 600   so many seconds; prints the number of runs
"""

from __future__ import annotations

import gzip
import random
import time

from mutation import mutated, run

from accelerator.protocols import live
from accelerator.protocols.live import Kind, read_manifest

PLAYLISTS = [
    b"#EXTM3U\n#EXT-X-TARGETDURATION:6\n#EXT-X-MEDIA-SEQUENCE:1\n#EXTINF:6.0,\na.ts\n#EXT-X-ENDLIST\n",
    b'#EXTM3U\r\n#EXT-X-STREAM-INF:BANDWIDTH=1,CODECS="avc1"\r\nlow.m3u8\r\n',
    b"#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXT-X-PART-INF:PART-TARGET=0.333\n"
    b'#EXT-X-SERVER-CONTROL:CAN-BLOCK-RELOAD=YES\n#EXT-X-PLAYLIST-TYPE:EVENT\n#EXT-X-PART:DURATION=0.3,URI="p"\n',
]
MPDS = [
    b'<?xml version="1.0" encoding="utf-8"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="dynamic"'
    b' minimumUpdatePeriod="PT2S" maxSegmentDuration="PT4.5S"><Period id="1"><AdaptationSet/></Period>'
    b'<UTCTiming schemeIdUri="urn:mpeg:dash:utc:http-iso:2014" value="http://a/ /b"/></MPD>',
    b"<MPD type='static'><!-- c --><![CDATA[x]]><a:b xmlns:a='c'>&lt;&#65;</a:b></MPD>",
]
SEEDS = [*PLAYLISTS, *MPDS, *(gzip.compress(seed, mtime=0) for seed in (PLAYLISTS[0], MPDS[0]))]
WORDS = [
    b"#EXT-X-ENDLIST\n",
    b"\n#EXT-X-TARGETDURATION:",
    b"PART-TARGET=",
    b"1e999",
    b"PT999999999S",
    b"P9999D",
    b"nan",
    b"<!DOCTYPE a [<!ENTITY b 'c'>]>",
    b"<a>" * 40,
    b"&b;",
    b"<?x y?>",
    b"\xef\xbb\xbf",
    b"\xff\xfe",
    b"encoding='utf-16'",
    b" xmlns='x'",
]


def check(source: random.Random) -> None:
    """The target's invariant, for one mutation."""
    body = mutated(source, SEEDS, WORDS)
    began_s = time.process_time()
    manifest = read_manifest(body)
    assert time.process_time() - began_s < 1
    if manifest is None:
        return
    assert manifest.is_live is (manifest.kind is Kind.LIVE_PLAYLIST)
    assert 0 < manifest.target_duration_s <= live.TARGET_MAX_S
    assert 0 <= manifest.part_target_s <= live.TARGET_MAX_S
    assert len(manifest.timing_urls) <= live.TIMING_URLS_MAX
    if manifest.is_live:
        assert live.LIVE_LIFETIME_MIN_S <= live.lifetime_s(manifest.kind, manifest) <= live.LIVE_LIFETIME_MAX_S
        limit_s = live.stale_limit_s(manifest.kind, manifest)
        assert limit_s is not None
        assert limit_s <= live.TARGET_MAX_S
    else:
        assert live.lifetime_s(manifest.kind, manifest) <= live.VOD_PLAYLIST_LIFETIME_S


def test_fuzz_manifest() -> None:
    for seed in range(10_000):
        check(random.Random(seed))


if __name__ == "__main__":
    run(check)
