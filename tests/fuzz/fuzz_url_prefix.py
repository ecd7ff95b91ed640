"""Fuzz target: manifests that origins send, written anew below a prefix. Lines and tags stay as many as they were, and
a manifest without a known host or a leading slash stays as it is.

    .venv/bin/python -m pytest tests/fuzz/fuzz_url_prefix.py          a short run
    PYTHONPATH=. .venv/bin/python tests/fuzz/fuzz_url_prefix.py 600   so many seconds; prints the number of runs
"""

from __future__ import annotations

import random

from mutation import mutated, run

from accelerator.protocols.url_prefix import DASH, HLS, Places, kind_of, rewrite

PLACES = Places({b"media.example": ((b"/", b"media"),)}, ((b".cdn.example", ((b"/live", b"cdn"),)),))
SEEDS = [
    b'#EXTM3U\n#EXT-X-KEY:METHOD=AES-128,URI="https://media.example/k"\n#EXTINF:2,\nhttps://media.example/1.ts\n',
    b'#EXTM3U\r\n#EXT-X-MAP:URI="/init.mp4",BYTERANGE="1@2"\r\n#EXTINF:2,\r\n//eu.cdn.example/live/2.ts\r\n',
    b"<MPD><BaseURL>https://media.example/a/</BaseURL><SegmentTemplate media='/x' initialization=\"y\"/></MPD>",
]
WORDS = [b'URI="', b"https://", b"media.example", b"<BaseURL>", b"</BaseURL>", b"media=", b"\n", b'"', b"/", b"//"]


def check(source: random.Random) -> None:
    """The target's invariant, for one mutation."""
    body = mutated(source, SEEDS, WORDS)
    kind_of(b"application/xml", body)
    hls = rewrite(HLS, body, b"media", PLACES)
    assert hls.count(b"\n") == body.count(b"\n")
    assert hls.count(b'"') == body.count(b'"')
    dash = rewrite(DASH, body, b"media", PLACES)
    assert (dash.count(b"<"), dash.count(b">")) == (body.count(b"<"), body.count(b">"))
    assert rewrite(DASH, dash.replace(b"/", b"."), b"media", PLACES) == dash.replace(b"/", b".")


def test_fuzz_url_prefix() -> None:
    for seed in range(3000):
        check(random.Random(seed))


if __name__ == "__main__":
    run(check)
