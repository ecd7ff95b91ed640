"""What travels to the origin, and what tells variants apart: media's allow-list, generic's deny-list, loops."""

from __future__ import annotations

import pytest

from accelerator.protocols.fields import Field
from accelerator.protocols.origin_rules import OriginRules
from accelerator.protocols.upstream_fields import accepts_gzip, is_loop, upstream_fields, variant_values

MEDIA = OriginRules()
GENERIC = OriginRules(profile="generic")

PLAYER = [
    (b"Host", b"media.lyon.corp.example"),
    (b"User-Agent", b"Mozilla/5.0"),
    (b"Accept", b"text/html"),
    (b"Accept-Language", b"fr"),
    (b"Accept-Encoding", b"br, gzip;q=0.8"),
    (b"Authorization", b"Bearer t"),
    (b"Cookie", b"session=1"),
    (b"Origin", b"https://portal.corp.example"),
    (b"Referer", b"https://portal.corp.example/secret"),
    (b"CMCD-Session", b'sid="1"'),
    (b"If-None-Match", b'"theirs"'),
    (b"If-Modified-Since", b"Sun, 06 Nov 1994 08:49:37 GMT"),
    (b"If-Range", b'"theirs"'),
    (b"Range", b"bytes=5-"),
    (b"X-Forwarded-For", b"10.0.0.1"),
    (b"X_Forwarded_Host", b"evil"),
    (b"Forwarded", b"for=10.0.0.1"),
    (b"X-Original-URL", b"/admin"),
    (b"X-Rewrite-URL", b"/admin"),
    (b"X-HTTP-Method-Override", b"DELETE"),
    (b"Proxy-Foo", b"1"),
    (b"X-Unknown", b"kept"),
    (b"Connection", b"keep-alive, X-Hop"),
    (b"X-Hop", b"1"),
    (b"Upgrade", b"h2c"),
    (b"HTTP2-Settings", b"x"),
    (b"TE", b"trailers"),
    (b"Content-Length", b"0"),
    (b"Expect", b"100-continue"),
]


def sent(rules: OriginRules, head: list[Field] = PLAYER, **options: object) -> list[Field]:
    return upstream_fields(head, rules, host=b"origin.example", site=b"lyon", **options)  # type: ignore[arg-type]


def test_media_sends_its_allow_list_and_nothing_else() -> None:
    assert sent(MEDIA) == [
        (b"Host", b"origin.example"),
        (b"Authorization", b"Bearer t"),
        (b"Origin", b"https://portal.corp.example"),
        (b"Accept", b"*/*"),
        (b"User-Agent", b"video-accelerator"),
        (b"Accept-Encoding", b"gzip"),
        (b"Via", b"1.1 lyon"),
        (b"CDN-Loop", b"lyon"),
    ]


def test_media_forwards_what_policy_adds() -> None:
    rules = OriginRules(forward=(b"Cookie", b"user-agent", b"X-Unknown"))
    names = dict(sent(rules))
    assert (names[b"Cookie"], names[b"User-Agent"], names[b"X-Unknown"]) == (b"session=1", b"Mozilla/5.0", b"kept")


@pytest.mark.parametrize(
    "name", [b"Host", b"Range", b"If-None-Match", b"X-Forwarded-For", b"Connection", b"TE", b"Via"]
)
def test_policy_cannot_forward_what_never_travels(name: bytes) -> None:
    plain = sent(MEDIA, [*PLAYER, (b"Via", b"1.1 theirs")])
    assert sent(OriginRules(forward=(name,)), [*PLAYER, (b"Via", b"1.1 theirs")]) == plain


def test_generic_sends_all_but_its_deny_list() -> None:
    assert [name for name, _ in sent(GENERIC)] == [
        b"Host",
        b"User-Agent",
        b"Accept",
        b"Accept-Language",
        b"Authorization",
        b"Cookie",
        b"Origin",
        b"Referer",
        b"CMCD-Session",
        b"X-Unknown",
        b"Accept-Encoding",
        b"Via",
        b"CDN-Loop",
    ]


def test_9111_4_1_generic_asks_for_the_codings_that_variants_can_tell_apart() -> None:
    assert dict(sent(GENERIC, [(b"Accept-Encoding", b"br, gzip")]))[b"Accept-Encoding"] == b"gzip"
    assert b"Accept-Encoding" not in dict(sent(GENERIC, [(b"Accept-Encoding", b"br")]))
    assert dict(sent(GENERIC, [(b"Accept-Encoding", b"br")], method=b"POST"))[b"Accept-Encoding"] == b"br"


def test_9110_13_1_1_conditions_of_a_put_are_for_the_origin() -> None:
    head = [(b"If-Match", b'"a"')]
    assert (b"If-Match", b'"a"') in sent(GENERIC, head, method=b"PUT")
    assert (b"If-Match", b'"a"') not in sent(GENERIC, head)
    assert (b"If-Match", b'"a"') not in sent(MEDIA, head, method=b"PUT")


def test_9111_4_3_1_the_validators_of_the_stored_response_go_up() -> None:
    head = sent(MEDIA, validators=(b'"ours"', b"Sun, 06 Nov 1994 08:49:37 GMT"))
    assert head[6:8] == [(b"If-None-Match", b'"ours"'), (b"If-Modified-Since", b"Sun, 06 Nov 1994 08:49:37 GMT")]
    assert b"If-None-Match" not in dict(sent(MEDIA, validators=(None, None)))


@pytest.mark.parametrize(
    ("byte_ranges", "value"),
    [
        ([(0, 0)], b"bytes=0-0"),
        ([(5, None)], b"bytes=5-"),
        ([(-9, None)], b"bytes=-9"),
        ([(0, 0), (5, None), (-9, None)], b"bytes=0-0,5-,-9"),
    ],
)
def test_9110_14_1_2_ranges(byte_ranges: list[tuple[int, int | None]], value: bytes) -> None:
    head = dict(sent(MEDIA, byte_ranges=byte_ranges, if_range=b'"a"'))
    assert (head[b"Range"], head[b"If-Range"]) == (value, b'"a"')


def test_without_host_the_client_writes_it() -> None:
    assert b"Host" not in dict(upstream_fields(PLAYER, MEDIA, host=b"", site=b"lyon"))


@pytest.mark.parametrize("rules", [MEDIA, GENERIC])
def test_9110_7_6_3_and_8586_2_via_and_cdn_loop_are_appended(rules: OriginRules) -> None:
    head = [(b"Via", b"1.0 a"), (b"via", b"1.1 b (x, y)"), (b"CDN-Loop", b"cdn.example; v=1")]
    travelling = dict(sent(rules, head))
    assert travelling[b"Via"] == b"1.0 a, 1.1 b (x, y), 1.1 lyon"
    assert travelling[b"CDN-Loop"] == b"cdn.example; v=1, lyon"
    assert is_loop(sent(rules, head), b"lyon")


@pytest.mark.parametrize(
    ("head", "is_one"),
    [
        ([], False),
        ([(b"Via", b"1.1 lyon")], True),
        ([(b"via", b"1.0 a, HTTP/1.1 LYON (accelerator)")], True),
        ([(b"Via", b"1.1 lyon2, 1.1 a (lyon)")], False),
        ([(b"Via", b"lyon")], False),
        ([(b"CDN-Loop", b"a, lyon; n=1")], True),
        ([(b"CDN-Loop", b"lyon.example")], False),
    ],
)
def test_loops(head: list[Field], is_one: bool) -> None:
    assert is_loop(head, b"lyon") is is_one


@pytest.mark.parametrize(
    ("value", "is_accepted"),
    [
        (b"gzip", True),
        (b"GZIP", True),
        (b"x-gzip", False),
        (b"deflate, gzip;q=0.001, br", True),
        # the data plane's variants know gzip by its name only
        (b"*", False),
        (b"br, *;q=0.1", False),
        (b"gzip;q=0", False),
        (b"gzip ; Q=0.000", False),
        (b"*, gzip;q=0", False),
        (b"*;q=0", False),
        (b"identity", False),
        (b"br", False),
        (b"", False),
        (b"gzipped", False),
    ],
)
def test_9110_12_5_3_gzip(value: bytes, is_accepted: bool) -> None:
    assert accepts_gzip([(b"Accept-Encoding", value)]) is is_accepted


def test_9110_12_5_3_who_says_nothing_gets_no_gzip() -> None:
    assert not accepts_gzip([])


def test_9111_4_1_variants_are_told_apart_by_what_the_origin_saw() -> None:
    vary = (b"accept-encoding", b"origin", b"user-agent", b"x-absent")
    assert variant_values(PLAYER, vary, MEDIA) == (b"gzip", b"https://portal.corp.example", None, None)
    assert variant_values(PLAYER, vary, GENERIC) == (
        b"gzip",
        b"https://portal.corp.example",
        b"Mozilla/5.0",
        None,
    )


def test_9111_4_1_white_space_and_lines_are_normalised() -> None:
    one = variant_values([(b"X", b"a,  b"), (b"x", b"c")], (b"x",), GENERIC)
    assert one == variant_values([(b"X", b"a, b, c")], (b"x",), GENERIC)
    assert one != variant_values([(b"X", b"a, b, C")], (b"x",), GENERIC)


def test_a_field_that_connection_takes_away_selects_the_variant_that_lacks_it() -> None:
    head = [(b"Accept-Language", b"fr"), (b"Connection", b"Accept-Language")]
    assert b"Accept-Language" not in dict(sent(GENERIC, head))
    assert variant_values(head, (b"accept-language",), GENERIC) == (None,)
