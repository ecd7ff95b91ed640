"""Conversations with an origin: store, validate by 304, serve stale. Each test names the clause that settles it."""

from __future__ import annotations

from typing import Literal

import pytest
from judging import AUTHORIZATION, BOTH, ETAG, GENERIC, MEDIA, NOW_S, cc, judge

from accelerator.protocols.cache_decide import OriginRules, Reason, stored_fields, with_manifest
from accelerator.protocols.cache_validate import Validated, decide_304, matches_304, may_serve_stale, merge_304
from accelerator.protocols.fields import Field, get_all
from accelerator.protocols.live import read_manifest
from accelerator.protocols.upstream_fields import upstream_fields

DATE = b"Sun, 06 Nov 1994 08:49:37 GMT"
LATER = b"Sun, 06 Nov 1994 08:50:37 GMT"


# -- is the 304 about what we have? ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("etag", "last_modified", "head", "is_match"),
    [
        (b'"a"', None, [(b"ETag", b'"a"')], True),
        (b'"a"', None, [(b"ETag", b'"b"')], False),
        (b'"a"', DATE, [(b"ETag", b'"b"'), (b"Last-Modified", DATE)], False),
        (b'"a"', DATE, [(b"ETag", b'"a"'), (b"Last-Modified", LATER)], True),
        (b'W/"a"', None, [(b"ETag", b'W/"a"')], True),
        (b'W/"a"', None, [(b"ETag", b'W/"b"')], False),
        (b'"a"', None, [(b"ETag", b'W/"a"')], True),
        (b'W/"a"', None, [(b"ETag", b'"a"')], True),  # nginx, of what it compresses
        (b'"a"', None, [(b"ETag", b"a")], False),
        (None, DATE, [(b"ETag", b'"a"'), (b"Last-Modified", DATE)], False),
        (None, DATE, [(b"Last-Modified", DATE)], True),
        (None, DATE, [(b"Last-Modified", b"Sunday, 06-Nov-94 08:49:37 GMT")], True),
        (None, DATE, [(b"Last-Modified", LATER)], False),
        (b'"a"', DATE, [(b"Last-Modified", LATER)], False),
        (b'"a"', None, [(b"Last-Modified", LATER)], True),
        (None, None, [(b"Last-Modified", LATER)], False),
        (None, DATE, [(b"Last-Modified", b"x")], False),
        (b'"a"', DATE, [], True),
        (None, None, [], True),
    ],
)
def test_9111_4_3_4_a_304_updates_what_its_validator_names(
    etag: bytes | None, last_modified: bytes | None, head: list[Field], is_match: bool
) -> None:
    assert matches_304(etag, last_modified, head) is is_match


# -- what it changes ---------------------------------------------------------------------------------------------------


def test_9111_3_2_each_field_replaces_all_lines_of_its_name() -> None:
    stored = [(b"Date", DATE), (b"X-Test", b"1"), (b"x-test", b"2"), (b"X-Kept", b"3"), (b"ETag", b'"a"')]
    fresh = [(b"date", LATER), (b"X-TEST", b"4"), (b"X-New", b"5"), (b"ETag", b'"a"')]
    assert merge_304(stored, fresh, response_wall_s=NOW_S) == [(b"X-Kept", b"3"), *fresh]


@pytest.mark.parametrize(
    "name",
    [
        b"Content-Length",
        b"Content-Encoding",
        b"Content-Type",
        b"Content-Range",
        b"Transfer-Encoding",
        b"Connection",
        b"Keep-Alive",
        b"Proxy-Authenticate",
        b"Set-Cookie",
        b"Age",
    ],
)
def test_9111_3_2_what_describes_the_body_or_the_connection_stays(name: bytes) -> None:
    stored = [(b"Content-Type", b"video/mp4"), (b"Date", DATE)]
    assert merge_304(stored, [(name, b"x"), (b"Date", LATER)], response_wall_s=NOW_S) == [stored[0], (b"Date", LATER)]


def test_9111_3_2_a_field_that_connection_names_is_not_taken() -> None:
    fresh = [(b"Connection", b"X-Hop"), (b"X-Hop", b"1"), (b"Date", LATER)]
    assert merge_304([], fresh, response_wall_s=NOW_S) == [(b"Date", LATER)]


def test_9110_6_6_1_a_304_without_date_does_not_leave_the_old_one() -> None:
    assert merge_304([(b"Date", LATER)], [], response_wall_s=784111777) == [(b"Date", DATE)]


def test_a_304_makes_no_weak_tag_strong() -> None:
    assert get_all(merge_304([(b"ETag", b'W/"a"')], [(b"ETag", b'"a"')], response_wall_s=NOW_S), b"etag") == [b'W/"a"']
    assert get_all(merge_304([(b"ETag", b'"a"')], [(b"ETag", b'W/"a"')], response_wall_s=NOW_S), b"etag") == [b'W/"a"']


def validate(
    stored_head: list[Field],
    *fresh: Field,
    rules: OriginRules = MEDIA,
    request: list[Field] | None = None,
    path: bytes = b"/page",
) -> Validated:
    stored = stored_fields(stored_head, response_wall_s=NOW_S - 100)
    return decide_304(request or [], path, rules, 200, stored, fresh, request_wall_s=NOW_S - 1, response_wall_s=NOW_S)


@BOTH
def test_9111_4_3_4_the_304_brings_a_new_lifetime_and_age(rules: OriginRules) -> None:
    after = validate([cc(b"max-age=60"), ETAG], cc(b"max-age=5"), (b"Age", b"3"), ETAG, rules=rules)
    assert (after.verdict.store, after.verdict.lifetime_s, after.verdict.initial_age_s) == (True, 5.0, 4.0)
    assert (b"Cache-Control", b"max-age=5") in after.fields
    assert not get_all(after.fields, b"age")


@BOTH
def test_9111_4_3_4_a_304_that_says_nothing_of_freshness_renews_the_stored_lifetime(rules: OriginRules) -> None:
    head = [cc(b"max-age=60"), ETAG, (b"Age", b"50"), (b"Date", DATE)]
    after = validate(head, ETAG, rules=rules)
    assert (after.verdict.lifetime_s, after.verdict.initial_age_s, after.verdict.etag) == (60.0, 1.0, b'"a"')


@BOTH
@pytest.mark.parametrize(("word", "reason"), [(b"private", Reason.PRIVATE), (b"no-store", Reason.NO_STORE)])
def test_9111_3_a_304_can_take_an_object_away(word: bytes, reason: Reason, rules: OriginRules) -> None:
    after = validate([cc(b"max-age=60"), ETAG], cc(word), rules=rules)
    assert (after.verdict.store, after.verdict.shareable, after.verdict.reason) == (False, False, reason)


@BOTH
def test_a_cookie_in_a_304_does_not_get_into_the_object(rules: OriginRules) -> None:
    after = validate([cc(b"max-age=60"), ETAG], (b"Set-Cookie", b"a=b"), ETAG, rules=rules)
    assert after.verdict.store
    assert not get_all(after.fields, b"set-cookie")


def test_a_live_playlist_is_validated_and_stays_what_it_is() -> None:
    playlist = read_manifest(b"#EXTM3U\n#EXT-X-TARGETDURATION:4\n")
    first = with_manifest(judge(ETAG, path=b"/a.m3u8"), playlist, MEDIA)
    assert (first.lifetime_s, first.stale_limit_s) == (2.0, 4.0)
    asked = upstream_fields([], MEDIA, host=b"o", site=b"lyon", validators=(first.etag, None))
    assert (b"If-None-Match", b'"a"') in asked
    after = validate([ETAG, (b"Content-Type", b"application/vnd.apple.mpegurl")], ETAG, path=b"/a.m3u8")
    second = with_manifest(after.verdict, playlist, MEDIA)
    assert (second.lifetime_s - second.initial_age_s, second.stale_limit_s, second.store) == (2.0, 4.0, True)


def test_9111_3_5_holds_for_the_validating_request_too() -> None:
    after = validate([cc(b"max-age=60"), ETAG], ETAG, request=[AUTHORIZATION])
    assert after.verdict.reason is Reason.AUTHORIZATION


# -- stale -------------------------------------------------------------------------------------------------------------

Failure = Literal["revalidating", "disconnected", "5xx"]
FAILURES: tuple[Failure, ...] = ("revalidating", "disconnected", "5xx")


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("word", [b"must-revalidate", b"proxy-revalidate", b"s-maxage=60", b"no-cache"])
@BOTH
def test_9111_4_2_4_a_prohibition_beats_every_permission(word: bytes, failure: Failure, rules: OriginRules) -> None:
    generous = b"max-age=60, stale-while-revalidate=99, stale-if-error=99, " + word
    verdict = judge(cc(generous), ETAG, rules=rules)
    assert not may_serve_stale(verdict, staleness_s=1, failure=failure)


@pytest.mark.parametrize(
    ("failure", "value", "longest_s"),
    [
        ("revalidating", b"max-age=60", None),
        ("revalidating", b"max-age=60, stale-if-error=30", None),
        ("revalidating", b"max-age=60, stale-while-revalidate=30", 30),
        ("5xx", b"max-age=60", None),
        ("5xx", b"max-age=60, stale-while-revalidate=30", None),
        ("5xx", b"max-age=60, stale-if-error=30", 30),
        ("disconnected", b"max-age=60", None),
        ("disconnected", b"max-age=60, stale-if-error=30", 30),
        ("disconnected", b"max-age=60, stale-if-error=x", None),
    ],
)
def test_5861_3_and_4_stale_windows_in_generic(failure: Failure, value: bytes, longest_s: int | None) -> None:
    verdict = judge(cc(value), rules=GENERIC)
    if longest_s is None:
        assert not may_serve_stale(verdict, staleness_s=0.1, failure=failure)
    else:
        assert may_serve_stale(verdict, staleness_s=longest_s, failure=failure)
        assert not may_serve_stale(verdict, staleness_s=longest_s + 0.1, failure=failure)


def test_9111_4_2_4_media_plays_on_while_the_wan_is_cut() -> None:
    segment = judge(cc(b"max-age=60"), path=b"/a.ts")
    assert may_serve_stale(segment, staleness_s=86400, failure="disconnected")
    assert not may_serve_stale(segment, staleness_s=1, failure="5xx")
    assert not may_serve_stale(segment, staleness_s=1, failure="revalidating")


@pytest.mark.parametrize("failure", FAILURES)
def test_a_live_playlist_is_never_stale_beyond_one_target_duration(failure: Failure) -> None:
    value = cc(b"max-age=1, stale-while-revalidate=3600, stale-if-error=3600")
    playlist = read_manifest(b"#EXTM3U\n#EXT-X-TARGETDURATION:4\n")
    verdict = with_manifest(judge(value, path=b"/a.m3u8"), playlist, MEDIA)
    assert may_serve_stale(verdict, staleness_s=4.0, failure=failure)
    assert not may_serve_stale(verdict, staleness_s=4.1, failure=failure)


def test_a_playlist_that_nobody_could_read_counts_as_live() -> None:
    verdict = with_manifest(judge(path=b"/a.m3u8"), None, MEDIA)
    assert not may_serve_stale(verdict, staleness_s=2.1, failure="disconnected")


def test_a_vod_playlist_plays_on() -> None:
    playlist = read_manifest(b"#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXT-X-ENDLIST\n")
    verdict = with_manifest(judge(path=b"/a.m3u8"), playlist, MEDIA)
    assert may_serve_stale(verdict, staleness_s=86400, failure="disconnected")


def test_an_error_is_not_played_on() -> None:
    verdict = judge(cc(b"max-age=5"), status=404)
    assert not may_serve_stale(verdict, staleness_s=1, failure="disconnected")


def test_an_expired_segment_is_kept_for_the_cut_of_the_wan() -> None:
    verdict = judge(cc(b"max-age=0"), path=b"/a.ts")
    assert (verdict.store, verdict.reason) == (True, Reason.VALIDATE)
    assert may_serve_stale(verdict, staleness_s=10, failure="disconnected")
    assert not judge(cc(b"max-age=0, must-revalidate"), path=b"/a.ts").store
