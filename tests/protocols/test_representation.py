"""ETag, Content-Range, Vary and stored fields by clause."""

from __future__ import annotations

import pytest
from judging import AUTHORIZATION, BOTH, COOKIE, ETAG, GENERIC, MEDIA, NOW_S, cc, judge

from accelerator.errors import OriginError
from accelerator.protocols.cache_decide import (
    ContentRange,
    OriginRules,
    Reason,
    Verdict,
    has_validator,
)
from accelerator.protocols.fields import Field
from accelerator.protocols.representation import parse_content_range, stored_fields

# -- variants ----------------------------------------------------------------------------------------------------------


def test_9111_4_1_vary_is_one_sorted_list() -> None:
    verdict = judge((b"Vary", b"X-B, origin,,"), (b"vary", b"Accept-Encoding, x-b"), rules=GENERIC)
    assert verdict.vary == (b"accept-encoding", b"origin", b"x-b")


CORS = (b"Access-Control-Allow-Origin", b"*")


@pytest.mark.parametrize(
    ("head", "vary"),
    [
        ([CORS], ()),
        ([CORS, (b"Vary", b"User-Agent, Accept-Language, Cookie, Accept")], ()),
        ([CORS, (b"Vary", b"Origin, User-Agent")], (b"origin",)),
        ([], (b"origin",)),
        ([(b"Access-Control-Allow-Origin", b"https://portal.example")], (b"origin",)),
        ([CORS, (b"Content-Encoding", b"gzip")], (b"accept-encoding",)),
        ([CORS, (b"Content-Encoding", b"identity")], ()),
    ],
)
def test_media_varies_by_what_travels_and_by_what_origins_forget(head: list[Field], vary: tuple[bytes, ...]) -> None:
    assert judge(*head).vary == vary


@BOTH
@pytest.mark.parametrize("status", [404, 500, 503])
def test_errors_do_not_vary_by_origin_so_that_those_who_wait_can_share_them(status: int, rules: OriginRules) -> None:
    assert judge(status=status, rules=rules).vary == ()


def test_generic_varies_by_what_travels_and_by_the_coding() -> None:
    verdict = judge((b"Vary", b"X-Forwarded-Host, Range, Host, Cookie"), (b"Content-Encoding", b"gzip"), rules=GENERIC)
    assert verdict.vary == (b"accept-encoding", b"cookie", b"host")


@pytest.mark.parametrize(
    ("request_head", "rules", "is_stored"),
    [
        ([(b"Origin", b"https://portal"), (b"Connection", b"Origin")], MEDIA, False),
        ([(b"Connection", b"Origin")], MEDIA, True),
        ([(b"Origin", b"https://portal"), (b"Connection", b"X")], MEDIA, True),
        ([(b"Accept-Language", b"fr"), (b"Connection", b"accept-language")], GENERIC, False),
        ([(b"Accept-Language", b"fr"), (b"Connection", b"accept-language")], MEDIA, True),
    ],
)
def test_an_answer_is_not_stored_for_a_field_that_connection_hid_from_the_origin(
    request_head: list[Field], rules: OriginRules, is_stored: bool
) -> None:
    verdict = judge((b"Vary", b"Accept-Language"), cc(b"max-age=60"), request=request_head, rules=rules)
    assert (verdict.store, verdict.share_waiting) == (is_stored, is_stored)
    assert verdict.not_shareable_for_s == 0


def test_media_varies_by_a_field_that_policy_forwards() -> None:
    verdict = judge(CORS, (b"Vary", b"Cookie, User-Agent"), rules=OriginRules(forward=(b"cookie",)))
    assert verdict.vary == (b"cookie",)


# -- validators --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "etag", "is_strong"),
    [
        ([b'"a"'], b'"a"', True),
        ([b'W/"a"'], b'W/"a"', False),
        ([b'""'], b'""', True),
        ([b'"a\\"'], b'"a\\"', True),
        ([b'w/"a"'], None, False),
        ([b"a"], None, False),
        ([b'"a'], None, False),
        ([b'"a b"'], None, False),
        ([b'"a", "b"'], None, False),
        ([b'"a"', b'"b"'], None, False),
        ([b'"a"', b'"a"'], b'"a"', True),
        ([], None, False),
    ],
)
def test_9110_8_8_3_etag(values: list[bytes], etag: bytes | None, is_strong: bool) -> None:
    verdict = judge(*((b"ETag", value) for value in values))
    assert (verdict.etag, verdict.etag_is_strong, has_validator(verdict)) == (etag, is_strong, etag is not None)


def test_9110_8_8_2_a_malformed_last_modified_is_no_validator() -> None:
    assert not has_validator(judge((b"Last-Modified", b"yesterday")))
    assert judge((b"Last-Modified", b"Sun, 06 Nov 1994 08:49:37 GMT")).last_modified_s == 784111777


# -- partial content ---------------------------------------------------------------------------------------------------


def partial(*head: Field, value: bytes = b"bytes 0-9/100", rules: OriginRules = MEDIA) -> Verdict:
    return judge((b"Content-Range", value), *head, status=206, rules=rules)


@BOTH
def test_9111_3_4_slices_are_kept_under_a_strong_etag_only(rules: OriginRules) -> None:
    verdict = partial(ETAG, cc(b"max-age=60"), rules=rules)
    assert (verdict.store, verdict.shareable, verdict.reason, verdict.lifetime_s) == (False, True, "partial", 60.0)
    assert verdict.partial == ContentRange(0, 9, 100)
    weak = partial((b"ETag", b'W/"a"'), cc(b"max-age=60"), rules=rules)
    dated_only = partial((b"Last-Modified", b"Sun, 06 Nov 1994 08:49:37 GMT"), cc(b"max-age=60"), rules=rules)
    unknown_length = partial(ETAG, cc(b"max-age=60"), value=b"bytes 0-9/*", rules=rules)
    for refused in (weak, dated_only, unknown_length):
        assert (refused.store, refused.shareable, refused.reason) == (False, False, Reason.PARTIAL_WEAK)


@pytest.mark.parametrize(
    ("value", "request_head", "is_shared"),
    [
        (b"max-age=60", [], True),
        (b"no-cache", [], True),
        (b"max-age=60", [COOKIE], True),
        (b"no-cache", [COOKIE], False),
        (b"no-cache, s-maxage=60", [AUTHORIZATION], False),
    ],
)
def test_9111_4_slices_serve_those_who_waited_like_a_whole(
    value: bytes, request_head: list[Field], is_shared: bool
) -> None:
    head = [(b"Content-Range", b"bytes 0-9/100"), ETAG, cc(value)]
    verdict = judge(*head, status=206, request=request_head, rules=GENERIC)
    assert (verdict.shareable, verdict.share_waiting) == (True, is_shared)


def test_9111_3_the_prohibitions_hold_for_slices() -> None:
    assert partial(ETAG, cc(b"no-store")).reason is Reason.NO_STORE


def test_9110_15_3_7_2_multipart_carries_its_ranges_inside() -> None:
    verdict = judge((b"Content-Type", b"multipart/byteranges; boundary=x"), ETAG, status=206)
    assert (verdict.partial, verdict.reason) == (None, Reason.PARTIAL_WEAK)


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"0-9/100",
        b"bytes=0-9/100",
        b"items 0-9/100",
        b"bytes 9-0/100",
        b"bytes 0-100/100",
        b"bytes 0-9/9",
        b"bytes -9/100",
        b"bytes 0-/100",
        b"bytes +0-9/100",
        b"bytes 0-9 /100",
        b"bytes  0-9/100",
        b"bytes 0-9/1_00",
        b"bytes */100",
        b"bytes 0-9/9999999999999999999",
        b"bytes 0-9/100, bytes 10-19/100",
    ],
)
def test_9110_14_4_a_content_range_that_cannot_be_is_a_broken_response(value: bytes) -> None:
    with pytest.raises(OriginError) as raised:
        partial(ETAG, value=value)
    assert (raised.value.kind, raised.value.status) == ("content-range", 502)


@pytest.mark.parametrize(
    "head",
    [
        [],
        [(b"Content-Range", b"bytes 0-9/100")] * 2,
        [(b"Content-Range", b"bytes 0-9/100"), (b"Content-Length", b"11")],
    ],
)
def test_9110_14_4_a_206_that_does_not_fit_its_range_is_a_broken_response(head: list[Field]) -> None:
    with pytest.raises(OriginError):
        judge(*head, ETAG, status=206)


def test_9110_14_4_content_range_on_other_statuses_is_ignored() -> None:
    assert judge((b"Content-Range", b"nonsense"), cc(b"max-age=60")).store
    assert parse_content_range(b"Bytes 5-5/6") == ContentRange(5, 5, 6)


# -- stored fields -----------------------------------------------------------------------------------------------------


def test_9111_3_1_stored_fields() -> None:
    head = [
        (b"Date", b"Sun, 06 Nov 1994 08:49:37 GMT"),
        (b"Content-Type", b"video/mp4"),
        (b"Content-Length", b"5"),
        (b"Transfer-Encoding", b"chunked"),
        (b"Connection", b"X-Hop"),
        (b"X-Hop", b"1"),
        (b"Age", b"30"),
        (b"X-Unknown", b"1"),
        (b"X-Unknown", b"2"),
        (b"Set-Cookie", b"a=b"),
    ]
    kept = [head[0], head[1], head[7], head[8]]
    assert stored_fields(head, response_wall_s=NOW_S) == kept
    assert stored_fields(head, response_wall_s=NOW_S, shared=False) == [*kept, head[9]]


def test_9110_6_6_1_a_date_is_added_where_there_is_none() -> None:
    assert stored_fields([], response_wall_s=784111777.9) == [(b"Date", b"Sun, 06 Nov 1994 08:49:37 GMT")]
