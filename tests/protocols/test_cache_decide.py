"""Storing by clause: most cases are one row, what the origin sent and what may be done with it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from judging import AUTHORIZATION, BOTH, COOKIE, ETAG, GENERIC, MEDIA, cc, judge

from accelerator.protocols.cache_decide import (
    NOT_FOUND,
    NOT_SHAREABLE_S,
    PROVOKED_STATUSES,
    OriginRules,
    Reason,
    invalidates,
    may_answer_waiting,
    with_manifest,
)
from accelerator.protocols.fields import Field
from accelerator.protocols.live import Kind, read_manifest

# -- who may have it ---------------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize(
    ("head", "reason"),
    [
        ([cc(b"no-store")], Reason.NO_STORE),
        ([cc(b"NO-STORE")], Reason.NO_STORE),
        ([cc(b"max-age=60"), cc(b"no-store")], Reason.NO_STORE),
        ([cc(b'x="y, no-store')], Reason.NO_STORE),
        ([cc(b"private")], Reason.PRIVATE),
        ([cc(b"public, private, max-age=60")], Reason.PRIVATE),
        ([cc(b'private="Set-Cookie", max-age=60')], Reason.PRIVATE),
        ([cc(b"max-age=60"), (b"Set-Cookie", b"a=b")], Reason.SET_COOKIE),
        ([cc(b"max-age=60"), (b"Vary", b"*")], Reason.VARY_STAR),
        ([cc(b"max-age=60"), (b"Vary", b"Origin, ,"), (b"vary", b" *")], Reason.VARY_STAR),
        ([cc(b"max-age=60"), (b"Vary", b"Accept; x")], Reason.VARY_STAR),
    ],
)
def test_9111_3_what_a_shared_cache_must_not_reuse(head: list[Field], reason: Reason, rules: OriginRules) -> None:
    verdict = judge(*head, ETAG, rules=rules)
    assert (verdict.store, verdict.shareable, verdict.share_waiting, verdict.reason) == (False, False, False, reason)
    assert verdict.not_shareable_for_s == NOT_SHAREABLE_S


@BOTH
@pytest.mark.parametrize("value", [b"no-cache", b"no-cache, max-age=60", b'no-cache="Set-Cookie", max-age=60'])
def test_9111_5_2_2_4_no_cache_is_stored_and_validated(value: bytes, rules: OriginRules) -> None:
    verdict = judge(cc(value), ETAG, rules=rules)
    assert (verdict.store, verdict.must_validate, verdict.forbids_stale) == (True, True, True)


@BOTH
def test_no_cache_without_a_validator_is_no_use_in_the_store_but_answers_those_who_waited(rules: OriginRules) -> None:
    verdict = judge(cc(b"no-cache"), rules=rules)
    assert (verdict.store, verdict.shareable, verdict.share_waiting) == (False, False, True)
    assert verdict.not_shareable_for_s == 0


@BOTH
@pytest.mark.parametrize("word", [b"must-revalidate", b"proxy-revalidate", b"s-maxage=60", b"no-cache"])
def test_9111_4_2_4_words_that_forbid_stale(word: bytes, rules: OriginRules) -> None:
    assert judge(cc(b"max-age=60, " + word), rules=rules).forbids_stale
    assert not judge(cc(b"max-age=60"), rules=rules).forbids_stale


@BOTH
@pytest.mark.parametrize(
    ("status", "value", "reason"),
    [
        (200, b"must-understand, no-store, max-age=60", Reason.EXPLICIT),
        (200, b"no-store, max-age=60", Reason.NO_STORE),
        (299, b"must-understand, no-store, max-age=60", Reason.MUST_UNDERSTAND),
        (299, b"must-understand, max-age=60", Reason.MUST_UNDERSTAND),
    ],
)
def test_9111_5_2_2_3_must_understand(status: int, value: bytes, reason: Reason, rules: OriginRules) -> None:
    assert judge(cc(value), status=status, rules=rules).reason is reason


@BOTH
@pytest.mark.parametrize(
    ("value", "is_shared"),
    [
        (b"max-age=60", False),
        (b"max-age=60, public", True),
        (b"max-age=60, must-revalidate", True),
        (b"s-maxage=60", True),
        (b"max-age=60, proxy-revalidate", False),
        (b"max-age=60, private", False),
        (b"max-age=60, public =x", False),
    ],
)
def test_9111_3_5_authorization(value: bytes, is_shared: bool, rules: OriginRules) -> None:
    verdict = judge(cc(value), request=[AUTHORIZATION], rules=rules)
    assert (verdict.store, verdict.shareable, verdict.share_waiting) == (is_shared, is_shared, is_shared)


def test_an_answer_to_one_request_s_authorization_does_not_stop_collapsing_for_all() -> None:
    assert judge(cc(b"max-age=60"), request=[AUTHORIZATION]).not_shareable_for_s == 0


def test_a_cookie_that_does_not_travel_says_nothing() -> None:
    assert judge(request=[COOKIE], path=b"/a.ts").reason is Reason.DEFAULT


@pytest.mark.parametrize(
    ("head", "is_stored"),
    [([], False), ([ETAG], False), ([cc(b"max-age=60")], True), ([cc(b"public"), ETAG], True)],
)
@pytest.mark.parametrize("rules", [OriginRules(forward=(b"Cookie",)), GENERIC], ids=["media", "generic"])
def test_an_answer_to_a_cookie_needs_the_origin_s_word(head: list[Field], is_stored: bool, rules: OriginRules) -> None:
    verdict = judge(*head, request=[COOKIE], path=b"/a.ts", rules=rules)
    assert verdict.store is is_stored
    if not is_stored:
        assert (verdict.reason, verdict.share_waiting) == (Reason.NO_LIFETIME, False)
        assert verdict.not_shareable_for_s == NOT_SHAREABLE_S


def test_9111_5_2_1_5_a_request_s_no_store_counts_in_generic_only() -> None:
    assert judge(cc(b"max-age=60"), request=[cc(b"no-store")], rules=GENERIC).reason is Reason.REQUEST_NO_STORE
    assert judge(cc(b"max-age=60"), request=[cc(b"no-store, no-cache, max-age=0")]).store


@BOTH
@pytest.mark.parametrize("method", [b"HEAD", b"POST", b"get", b"PURGE"])
def test_9111_3_only_get_is_stored(method: bytes, rules: OriginRules) -> None:
    verdict = judge(cc(b"max-age=60"), method=method, rules=rules)
    assert (verdict.store, verdict.shareable, verdict.share_waiting, verdict.reason) == (False, False, False, "method")


def test_dash_utc_timing_is_never_stored_nor_shared() -> None:
    verdict = judge(cc(b"max-age=60"), is_timing=True)
    assert (verdict.store, verdict.share_waiting, verdict.reason) == (False, False, Reason.TIMING)


# -- by status ---------------------------------------------------------------------------------------------------------


ODD = [
    (b"X-Long", b"a" * 3000),
    (b"X-Meta", b"\x08"),
    (b"X-High", b"\xff"),
    (b"Range", b"bytes=9-"),
    (b"Expect", b"x"),
]


@BOTH
@pytest.mark.parametrize("odd", ODD, ids=[name.decode() for name, _ in ODD])
@pytest.mark.parametrize("status", sorted(PROVOKED_STATUSES))
def test_provoked_errors_are_never_stored_nor_shared(status: int, odd: Field, rules: OriginRules) -> None:
    verdict = judge(cc(b"public, max-age=60"), ETAG, status=status, rules=rules, request=[odd])
    assert (verdict.store, verdict.shareable, verdict.share_waiting) == (False, False, False)
    assert verdict.not_shareable_for_s == 0


@BOTH
@pytest.mark.parametrize("status", sorted(PROVOKED_STATUSES))
@pytest.mark.parametrize("value", [b"max-age=60", b"public"])
def test_9111_3_an_error_that_nothing_odd_provoked_is_stored_in_generic_where_it_says_how_long(
    status: int, value: bytes, rules: OriginRules
) -> None:
    verdict = judge(cc(value), ETAG, status=status, rules=rules, request=[(b"Accept", b"*/*")])
    assert verdict.store is (rules.profile == "generic" and value == b"max-age=60")


@BOTH
@pytest.mark.parametrize("status", sorted(PROVOKED_STATUSES))
def test_a_provoked_error_without_a_lifetime_is_nobody_elses(status: int, rules: OriginRules) -> None:
    verdict = judge(cc(b"public"), ETAG, status=status, rules=rules)
    assert (verdict.store, verdict.shareable, verdict.share_waiting) == (False, False, False)
    assert verdict.not_shareable_for_s == 0


def test_cpdos_and_answers_to_this_request_s_own_fields_are_the_provoked() -> None:
    cpdos = {400, 405, 413, 414, 431, 501}
    own_fields = {406, 408, 411, 412, 415, 416, 417, 421, 426, 428}
    assert cpdos | own_fields == PROVOKED_STATUSES


@BOTH
@pytest.mark.parametrize("status", [400, 404, 410, 503])
def test_a_refusal_of_an_error_is_not_remembered(status: int, rules: OriginRules) -> None:
    assert judge(cc(b"no-store"), status=status, rules=rules).not_shareable_for_s == 0
    assert judge(cc(b"no-store"), status=399, rules=rules).not_shareable_for_s == NOT_SHAREABLE_S


@BOTH
def test_a_304_is_never_a_response_of_its_own(rules: OriginRules) -> None:
    assert not judge(cc(b"max-age=60"), ETAG, status=304, rules=rules).store


@pytest.mark.parametrize("status", [404, 410, 300, 301, 302, 303, 307, 308])
@pytest.mark.parametrize(("value", "lifetime_s"), [(b"max-age=5", 5), (b"max-age=3600", 10), (b"s-maxage=9", 9)])
def test_media_keeps_404_410_and_redirects_below_the_ceiling(status: int, value: bytes, lifetime_s: float) -> None:
    verdict = judge(cc(value), status=status)
    assert (verdict.store, verdict.lifetime_s, verdict.stale_disconnected_s) == (True, lifetime_s, 0)
    assert judge(cc(value), status=status, rules=GENERIC).lifetime_s >= lifetime_s


@BOTH
@pytest.mark.parametrize("status", sorted(NOT_FOUND))
@pytest.mark.parametrize("head", [[], [cc(b"max-age=0")], [cc(b"no-cache")]])
def test_a_404_without_lifetime_answers_those_who_waited(status: int, head: list[Field], rules: OriginRules) -> None:
    verdict = judge(*head, ETAG, status=status, rules=rules, path=b"/a.ts")
    assert (verdict.store, verdict.shareable, verdict.share_waiting) == (False, False, True)
    assert verdict.not_shareable_for_s == 0


@BOTH
def test_a_redirect_without_lifetime_answers_nobody_else(rules: OriginRules) -> None:
    verdict = judge((b"Location", b"/?token=1"), status=302, rules=rules)
    assert (verdict.share_waiting, verdict.not_shareable_for_s) == (False, NOT_SHAREABLE_S)


@BOTH
@pytest.mark.parametrize("status", [500, 502, 503, 504, 599])
def test_5xx_are_shared_by_those_who_waited(status: int, rules: OriginRules) -> None:
    verdict = judge(status=status, rules=rules)
    assert (verdict.store, verdict.share_waiting, verdict.reason) == (False, True, Reason.SERVER_ERROR)
    assert judge(status=status, request=[AUTHORIZATION], rules=rules).share_waiting is False


def test_5xx_are_stored_in_generic_only_and_with_explicit_lifetime() -> None:
    assert judge(cc(b"max-age=60"), status=503, rules=GENERIC).store
    assert not judge(cc(b"max-age=60"), status=503).store


@pytest.mark.parametrize(
    ("status", "head", "waiting_status"),
    [
        (503, [cc(b"no-store")], 503),
        (500, [(b"Set-Cookie", b"lb=1")], 502),
        (504, [cc(b"private")], 502),
        (503, [], 503),
        (429, [], 503),
        (404, [cc(b"no-store")], 0),
        (403, [], 0),
        (200, [cc(b"no-store")], 0),
    ],
)
def test_an_origin_in_trouble_is_not_asked_by_each_who_waited(
    status: int, head: list[Field], waiting_status: int
) -> None:
    assert judge(*head, status=status).waiting_status == waiting_status
    assert judge(*head, status=status, rules=GENERIC).waiting_status == 0


@pytest.mark.parametrize("status", [401, 403, 429, 451, 299])
def test_9111_3_other_statuses_are_stored_with_explicit_lifetime_in_generic_only(status: int) -> None:
    assert judge(cc(b"max-age=60"), status=status, rules=GENERIC).store
    assert not judge(ETAG, status=status, rules=GENERIC).store
    verdict = judge(cc(b"max-age=60"), status=status)
    assert (verdict.store, verdict.share_waiting, verdict.not_shareable_for_s) == (False, False, 0)


# -- without a lifetime ------------------------------------------------------------------------------------------------


@BOTH
def test_9110_15_1_without_lifetime_but_with_validator_it_is_validated_each_time(rules: OriginRules) -> None:
    verdict = judge(ETAG, rules=rules)
    assert (verdict.store, verdict.lifetime_s, verdict.reason) == (True, 0.0, Reason.VALIDATE)
    assert not judge(ETAG, status=204, rules=rules).store


def test_without_lifetime_and_validator_only_media_shares_with_those_who_waited() -> None:
    verdict = judge()
    assert (verdict.store, verdict.share_waiting, verdict.not_shareable_for_s) == (False, True, 0)
    verdict = judge(rules=GENERIC)
    assert (verdict.store, verdict.share_waiting, verdict.reason) == (False, False, Reason.NO_LIFETIME)
    assert verdict.not_shareable_for_s == NOT_SHAREABLE_S


@pytest.mark.parametrize("value", [b"max-age=0, stale-while-revalidate=1", b"max-age=0, stale-if-error=1"])
def test_5861_a_stale_window_of_one_second_is_worth_storing(value: bytes) -> None:
    assert judge(cc(value), rules=GENERIC).store
    assert not judge(cc(value.replace(b"=1", b"=0")), rules=GENERIC).store


@pytest.mark.parametrize(
    ("path", "lifetime_s", "kind"),
    [(b"/a.m3u8", 1.0, Kind.PLAYLIST), (b"/a.ts", 60.0, Kind.SEGMENT), (b"/init.mp4", 60.0, Kind.INIT)],
)
def test_media_gives_playlists_and_segments_a_lifetime_and_generic_does_not(
    path: bytes, lifetime_s: float, kind: Kind
) -> None:
    verdict = judge(path=path)
    assert (verdict.store, verdict.lifetime_s, verdict.reason, verdict.kind) == (True, lifetime_s, "default", kind)
    assert not judge(path=path, rules=GENERIC).store
    assert judge(cc(b"max-age=7"), path=path).lifetime_s == 7


def test_a_default_lifetime_counts_from_the_response_or_a_blocking_playlist_would_be_born_stale() -> None:
    verdict = judge(path=b"/a.m3u8", delay_s=4.0)
    assert verdict.lifetime_s - verdict.initial_age_s == 1.0
    manifest = read_manifest(b"#EXTM3U\n#EXT-X-TARGETDURATION:4\n")
    known = with_manifest(verdict, manifest, MEDIA)
    assert known.lifetime_s - known.initial_age_s == 2.0


def test_a_key_is_never_shared_without_the_origin_s_word() -> None:
    verdict = judge(path=b"/a.key")
    assert (verdict.kind, verdict.store, verdict.share_waiting) == (Kind.KEY, False, False)
    assert verdict.not_shareable_for_s == NOT_SHAREABLE_S
    assert judge(cc(b"max-age=60"), path=b"/a.key").store


@pytest.mark.parametrize("path", [b"/account/x.m3u8", b"/account/x.ts", b"/account/x.mp4"])
def test_cache_deception_a_page_under_a_segment_s_name_gets_no_lifetime(path: bytes) -> None:
    verdict = judge((b"Content-Type", b"text/html"), path=path)
    assert (verdict.kind, verdict.store, verdict.lifetime_s) == (Kind.OTHER, False, 0.0)


def test_the_manifest_settles_kind_lifetime_and_stale_limit() -> None:
    verdict = judge(path=b"/a.m3u8")
    assert verdict.stale_limit_s == 2.0
    live = with_manifest(verdict, read_manifest(b"#EXTM3U\n#EXT-X-TARGETDURATION:4\n"), MEDIA)
    assert (live.kind, live.lifetime_s, live.stale_limit_s) == (Kind.LIVE_PLAYLIST, 2.0, 4.0)
    vod = with_manifest(verdict, read_manifest(b"#EXTM3U\n#EXT-X-ENDLIST\n"), MEDIA)
    assert (vod.kind, vod.lifetime_s, vod.stale_limit_s) == (Kind.VOD_PLAYLIST, 60.0, 2**31)
    assert with_manifest(verdict, None, MEDIA) == verdict
    explicit = judge(cc(b"max-age=9"), path=b"/a.m3u8")
    assert with_manifest(explicit, read_manifest(b"#EXTM3U\n"), MEDIA).lifetime_s == 9.0


# -- override_private --------------------------------------------------------------------------------------------------

OVERRIDE = OriginRules(override_private=True)


@pytest.mark.parametrize("path", [b"/a.m3u8", b"/a.mpd", b"/a.ts", b"/init.mp4"])
@pytest.mark.parametrize("value", [b"no-store", b"private", b"private, no-store, no-cache, max-age=0", b"no-store=x"])
def test_override_private_gives_media_its_default_lifetime(path: bytes, value: bytes) -> None:
    verdict = judge(cc(value), (b"Expires", b"0"), path=path, rules=OVERRIDE)
    assert (verdict.store, verdict.reason, verdict.must_validate) == (True, Reason.DEFAULT, False)
    assert not judge(cc(value), path=path).store


@pytest.mark.parametrize("value", [b"private, s-maxage=0", b"private, s-maxage=0, max-age=0", b"private, max-age=x"])
def test_override_private_drops_lifetimes_of_zero(value: bytes) -> None:
    assert judge(cc(value), path=b"/a.ts", rules=OVERRIDE).lifetime_s == 60.0


def test_override_private_keeps_a_positive_lifetime_and_the_stale_prohibitions() -> None:
    verdict = judge(cc(b"private, max-age=7, must-revalidate"), path=b"/a.ts", rules=OVERRIDE)
    assert (verdict.lifetime_s, verdict.forbids_stale) == (7.0, True)


@pytest.mark.parametrize(
    ("head", "request_head", "path"),
    [
        ([cc(b"private"), (b"Set-Cookie", b"a=b")], [], b"/a.ts"),
        ([cc(b"private")], [AUTHORIZATION], b"/a.ts"),
        ([cc(b"private")], [], b"/page"),
        ([cc(b"private")], [], b"/a.key"),
        ([cc(b"private"), (b"Content-Type", b"text/html")], [], b"/a.ts"),
    ],
)
def test_override_private_never_touches_sessions_keys_or_pages(
    head: list[Field], request_head: list[Field], path: bytes
) -> None:
    assert not judge(*head, path=path, request=request_head, rules=OVERRIDE).store
    assert not judge(*head, path=path, request=request_head, rules=OVERRIDE).share_waiting


def test_override_private_is_nothing_to_generic() -> None:
    rules = OriginRules(profile="generic", override_private=True)
    assert judge(cc(b"private"), path=b"/a.ts", rules=rules).reason is Reason.PRIVATE


# -- those who waited --------------------------------------------------------------------------------------------------


def test_9111_4_a_fresh_answer_serves_all_who_waited() -> None:
    verdict = judge(cc(b"max-age=60"), rules=GENERIC)
    assert may_answer_waiting(verdict, [COOKIE], GENERIC)
    assert may_answer_waiting(verdict, [AUTHORIZATION], GENERIC)


@pytest.mark.parametrize("status", [200, 404, 503])
def test_an_answer_that_is_not_fresh_serves_no_one_who_has_credentials(status: int) -> None:
    verdict = judge(cc(b"no-cache"), ETAG, status=status, rules=GENERIC)
    assert may_answer_waiting(verdict, [], GENERIC)
    assert not may_answer_waiting(verdict, [COOKIE], GENERIC)
    assert not may_answer_waiting(verdict, [AUTHORIZATION], GENERIC)
    assert may_answer_waiting(verdict, [COOKIE], MEDIA)  # where the cookie does not travel


@pytest.mark.parametrize(
    ("method", "status", "expected"),
    [
        (b"POST", 200, True),
        (b"PUT", 204, True),
        (b"DELETE", 302, True),
        (b"UNKNOWN", 200, True),
        (b"POST", 399, True),
        (b"POST", 199, False),
        (b"POST", 400, False),
        (b"POST", 500, False),
        (b"GET", 200, False),
        (b"HEAD", 200, False),
        (b"OPTIONS", 200, False),
    ],
)
def test_9111_4_4_invalidation(method: bytes, status: int, expected: bool) -> None:
    assert invalidates(method, status) is expected


# -- for every response ------------------------------------------------------------------------------------------------

NAMES = [b"Cache-Control", b"CDN-Cache-Control", b"Expires", b"Age", b"Date", b"Vary", b"ETag", b"Set-Cookie"]
VALUES = [b"no-store", b"private", b"max-age=60", b"no-cache", b"public, s-maxage=9", b"*", b'"a"', b"5", b'\xff,="']


@given(
    st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(VALUES)), max_size=6),
    st.lists(st.sampled_from([AUTHORIZATION, COOKIE, cc(b"no-store")]), max_size=2),
    st.sampled_from([200, 204, 301, 304, 400, 404, 410, 500, 503, 299]),
    st.sampled_from([MEDIA, GENERIC, OVERRIDE, OriginRules(forward=(b"Cookie",))]),
    st.sampled_from([b"/page", b"/a.ts", b"/a.m3u8", b"/a.key"]),
)
def test_no_response_breaks_what_holds_for_all(
    head: list[Field], request_head: list[Field], status: int, rules: OriginRules, path: bytes
) -> None:
    verdict = judge(*head, request=request_head, status=status, rules=rules, path=path)
    assert not verdict.store or verdict.shareable
    assert 0 <= verdict.initial_age_s <= 2**31
    assert verdict.lifetime_s >= 0
    assert not (verdict.not_shareable_for_s and (verdict.shareable or verdict.share_waiting))
    if any(name == b"Set-Cookie" for name, _ in head):
        assert not verdict.shareable
    if AUTHORIZATION in request_head and b"public, s-maxage=9" not in [value for _, value in head]:
        assert not verdict.shareable
        assert not verdict.share_waiting
    is_targeted = any(name == b"CDN-Cache-Control" for name, _ in head)
    if cc(b"no-store") in head and rules is not OVERRIDE and not is_targeted:
        assert not verdict.shareable
        assert not verdict.share_waiting
