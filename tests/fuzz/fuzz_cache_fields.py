"""Fuzz target: the fields that caching reads. Whatever their values are, a verdict comes out (or a 206 is refused as
content-range), what is forbidden is never shareable, and every number in the verdict is within its bounds.

    .venv/bin/python -m pytest tests/fuzz/fuzz_cache_fields.py          a short run
    PYTHONPATH=. .venv/bin/python tests/fuzz/fuzz_cache_fields.py 600   so many seconds; prints the number of runs
"""

from __future__ import annotations

import random

from mutation import mutated, run

from accelerator.errors import OriginError
from accelerator.protocols.cache_control import request_directives
from accelerator.protocols.cache_decide import OriginRules, decide, may_answer_waiting, stored_fields
from accelerator.protocols.cache_tags import TAG_BYTES_MAX, TAGS_MAX, tags_of, without_tags
from accelerator.protocols.cache_validate import decide_304, matches_304, may_serve_stale
from accelerator.protocols.fields import Field, has
from accelerator.protocols.upstream_fields import is_loop, upstream_fields, variant_values

SEEDS = {
    b"Cache-Control": [
        b"max-age=60, public",
        b'private="a, b", s-maxage="5"',
        b"no-cache,no-store",
        b"must-revalidate",
    ],
    b"CDN-Cache-Control": [b"max-age=60;a=1, no-store", b'no-cache="a", stale-if-error=5', b"(a 1.5);b, c=:aa=:"],
    b"Expires": [b"Sun, 06 Nov 1994 08:49:37 GMT", b"0", b"Sunday, 06-Nov-94 08:49:37 GMT"],
    b"Date": [b"Sun Nov  6 08:49:37 1994", b"Tue, 14 Nov 2023 22:13:20 GMT"],
    b"Age": [b"0", b"30, 5", b"2147483648"],
    b"Vary": [b"Accept-Encoding, Origin", b"*", b"Cookie"],
    b"ETag": [b'"a"', b'W/"a"'],
    b"Last-Modified": [b"Sun, 06 Nov 1994 08:49:37 GMT"],
    b"Content-Range": [b"bytes 0-9/100", b"bytes 0-0/*"],
    b"Content-Type": [b"application/vnd.apple.mpegurl", b"video/mp4; a=b", b"multipart/byteranges"],
    b"Content-Encoding": [b"gzip", b"identity"],
    b"Connection": [b"close, X-Hop", b"Cache-Control"],
    b"Set-Cookie": [b"a=b"],
    b"Cache-Tag": [b"a, b c,,", b"x" * 1025, b",".join(b"%d" % n for n in range(257))],
    b"Surrogate-Key": [b"a b  C", b"\t"],
    b"Access-Control-Allow-Origin": [b"*"],
}
REQUEST_SEEDS = {
    b"Accept-Encoding": [b"gzip;q=0.5, *;q=0", b"br"],
    b"Authorization": [b"Bearer x"],
    b"Cookie": [b"a=b"],
    b"Cache-Control": [b"no-cache, max-age=0, min-fresh=5", b"no-store"],
    b"Pragma": [b"no-cache"],
    b"Via": [b"1.1 a (b), 1.0 c", b"lyon"],
    b"CDN-Loop": [b"a; b=c, d"],
    b"Connection": [b"Accept-Encoding, Authorization"],
}
WORDS = [b"no-store", b"private", b"max-age=", b"99999999999999999999", b"*", b'="', b" GMT", b"W/", b"bytes ", b"/*"]
STATUSES = [200, 203, 204, 206, 301, 304, 400, 404, 410, 429, 500, 503, 599, 299]
PATHS = [b"/", b"/a.ts", b"/a.m3u8?b", b"/init.mp4", b"/a.key", b"/.", b""]
RULES = [
    OriginRules(),
    OriginRules(profile="generic"),
    OriginRules(override_private=True, forward=(b"Cookie", b"x\xff", b"")),
]


def head(source: random.Random, seeds: dict[bytes, list[bytes]]) -> list[Field]:
    """Up to six fields as the head parser lets them through: no CR, LF or NUL, no OWS around the value."""
    chosen = source.choices(list(seeds), k=source.randrange(7))
    values = (mutated(source, seeds[name], WORDS, most=2) for name in chosen)
    odd = b"\r\n\x00"
    return [
        (name.upper() if source.randrange(2) else name, value.translate(None, odd).strip(b" \t"))
        for name, value in zip(chosen, values, strict=True)
    ]


def check(source: random.Random) -> None:
    """The target's invariant, for one exchange."""
    request, response = head(source, REQUEST_SEEDS), head(source, SEEDS)
    rules, path, status = source.choice(RULES), source.choice(PATHS), source.choice(STATUSES)
    try:
        verdict = decide(
            request,
            b"GET",
            path,
            rules,
            status,
            response,
            request_wall_s=1.7e9,
            response_wall_s=1.7e9 + source.random(),
        )
    except OriginError as error:
        if (error.kind, status) == ("content-range", 206):
            return
        raise
    try:
        tags = tags_of(response) or ()
        assert len(tags) == len(set(tags)) <= TAGS_MAX
        assert all(0 < len(tag) <= TAG_BYTES_MAX and tag == tag.lower().strip(b" \t") for tag in tags)
        assert tags_of(without_tags(response)) is None
    except OriginError:
        pass
    assert not verdict.store or verdict.shareable
    assert not (has(response, b"set-cookie") and verdict.shareable)
    assert 0 <= verdict.initial_age_s <= 2**31
    assert 0 <= verdict.lifetime_s <= 2**31
    assert 0 <= verdict.stale_while_revalidate_s <= 2**31
    assert 0 <= verdict.stale_if_error_s <= 2**31
    assert list(verdict.vary) == sorted({name.lower() for name in verdict.vary})
    for failure in ("revalidating", "disconnected", "5xx"):
        assert not (verdict.forbids_stale and may_serve_stale(verdict, staleness_s=0, failure=failure))
    assert not (verdict.must_validate and not verdict.forbids_stale)
    may_answer_waiting(verdict, request, rules)
    request_directives(request, rules)
    sent = upstream_fields(request, rules, host=b"o", site=b"lyon")
    assert is_loop(sent, b"lyon")
    assert not {b"range", b"if-none-match", b"connection"} & {name.lower() for name, _ in sent}
    assert len(variant_values(request, verdict.vary, rules)) == len(verdict.vary)
    stored = stored_fields(response, response_wall_s=1.7e9)
    assert not has(stored, b"set-cookie")
    assert has(stored, b"date")
    assert not has(stored, b"connection")
    fresh = head(source, SEEDS)
    matches_304(verdict.etag, None, fresh)
    after = decide_304(request, path, rules, 200, stored, fresh, request_wall_s=1.7e9, response_wall_s=1.7e9)
    assert not has(after.fields, b"set-cookie")


def test_fuzz_cache_fields() -> None:
    for seed in range(5000):
        check(random.Random(seed))


if __name__ == "__main__":
    run(check)
