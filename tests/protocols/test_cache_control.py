"""Cache-Control, CDN-Cache-Control and Pragma: tables by clause."""

from __future__ import annotations

import pytest

from accelerator.protocols.cache_control import (
    RequestDirectives,
    parse,
    parse_targeted,
    request_directives,
    response_directives,
)
from accelerator.protocols.origin_rules import OriginRules

GENERIC = OriginRules(profile="generic")


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (b"max-age=60", 60),
        (b"MAX-Age=60", 60),
        (b'max-age="60"', 60),
        (b'max-age="6\\0"', 60),
        (b"a=b, max-age=60,", 60),
        (b"max-age=060", 60),
        (b"max-age=0", 0),
        (b"no-cache", None),
        (b"xmax-age=60", None),
        (b'a="b, max-age=60"', None),
    ],
)
def test_9111_5_2_directives_are_found(value: bytes, seconds: int | None) -> None:
    assert parse([value]).seconds(b"max-age") == seconds


@pytest.mark.parametrize("digits", [b"2147483648", b"2147483649", b"99999999999999999999", b"9" * 6000])
def test_9111_1_2_2_overflow_is_2_to_the_31(digits: bytes) -> None:
    assert parse([b"max-age=" + digits]).seconds(b"max-age") == 2**31


@pytest.mark.parametrize(
    "argument", [b"", b"=", b"=-1", b"=+5", b"=1.5", b"=0_5", b"=abc", b"= 60", b" = 60", b'="60', b"='60'", b"=6 0"]
)
def test_9111_4_2_1_an_invalid_number_is_stale(argument: bytes) -> None:
    assert parse([b"max-age" + argument]).seconds(b"max-age") == 0


@pytest.mark.parametrize(
    "values", [[b"max-age=60, max-age=5"], [b"max-age=60", b"max-age=5"], [b"max-age=60", b"MAX-AGE=99"]]
)
def test_9111_4_2_1_of_duplicates_the_first(values: list[bytes]) -> None:
    assert parse(values).seconds(b"max-age") == 60


@pytest.mark.parametrize(
    "value", [b"no-store", b"No-Store", b"no-store=x", b"no-store =x", b'a="b, no-store', b'no-store="', b"no-store="]
)
def test_what_forbids_is_heard_even_where_it_is_malformed(value: bytes) -> None:
    assert b"no-store" in parse([value])


@pytest.mark.parametrize(("value", "is_allowed"), [(b"public", True), (b"Public", True), (b"public =x", False)])
def test_what_permits_is_heard_only_where_it_is_well_formed(value: bytes, is_allowed: bool) -> None:
    assert parse([value]).allows(b"public") is is_allowed


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"max-age=60", {b"max-age": b"60"}),
        (b"max-age=60, no-store", {b"max-age": b"60", b"no-store": None}),
        (b"max-age=60;ext=1", {b"max-age": b"60"}),  # parameters are ignored
        (b'no-cache="Set-Cookie"', {b"no-cache": b"Set-Cookie"}),
        # RFC 9213 section 2.1: a value of the wrong type is not consumed
        (b'max-age="60"', {}),
        (b"max-age=60.0", {}),
        (b"max-age=-1", {}),
        (b"max-age", {}),
        (b"no-store=?0", {}),
        (b"no-store=1", {b"no-store": b"1"}),
        (b"max-age=5, max-age=60", {b"max-age": b"60"}),  # RFC 8941 section 3.2: the last
    ],
)
def test_9213_2_1_members(value: bytes, expected: dict[bytes, bytes | None]) -> None:
    directives = parse_targeted([value])
    assert directives is not None
    assert dict(directives) == expected


@pytest.mark.parametrize("value", [b"", b" ", b"max-age=60,", b"Max-Age=60", b"max-age=60 no-store", b"max-age=", b"&"])
def test_9213_2_2_empty_or_invalid_is_ignored(value: bytes) -> None:
    assert parse_targeted([value]) is None
    directives, expires_counts = response_directives([(b"CDN-Cache-Control", value), (b"Cache-Control", b"no-store")])
    assert b"no-store" in directives
    assert expires_counts


def test_9213_2_2_a_valid_one_replaces_cache_control_and_expires() -> None:
    head = [(b"Cache-Control", b"no-store, private"), (b"CDN-Cache-Control", b"max-age=7")]
    directives, expires_counts = response_directives(head)
    assert dict(directives) == {b"max-age": b"7"}
    assert not expires_counts


def test_9213_lines_of_a_targeted_field_are_one_dictionary() -> None:
    directives = parse_targeted([b"max-age=7", b"no-cache"])
    assert directives is not None
    assert dict(directives) == {b"max-age": b"7", b"no-cache": None}


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        ([], RequestDirectives()),
        ([(b"Cache-Control", b"no-cache")], RequestDirectives(no_cache=True)),
        ([(b"Cache-Control", b"max-age=0")], RequestDirectives(max_age_s=0)),
        ([(b"Cache-Control", b"no-store, only-if-cached")], RequestDirectives(no_store=True, only_if_cached=True)),
        ([(b"Cache-Control", b"min-fresh=9")], RequestDirectives(min_fresh_s=9)),
        ([(b"Pragma", b"no-cache")], RequestDirectives(no_cache=True)),
        # RFC 9111 section 5.4
        ([(b"Pragma", b"no-cache"), (b"Cache-Control", b"max-age=9")], RequestDirectives(max_age_s=9)),
    ],
)
def test_9111_5_2_1_request_directives_in_generic_but_never_in_media(
    head: list[tuple[bytes, bytes]], expected: RequestDirectives
) -> None:
    assert request_directives(head, GENERIC) == expected
    assert request_directives(head, OriginRules()) == RequestDirectives()


@pytest.mark.parametrize(
    ("directives", "is_accepted"),
    [
        (RequestDirectives(), True),
        (RequestDirectives(no_cache=True), False),
        (RequestDirectives(max_age_s=30), True),
        (RequestDirectives(max_age_s=29), False),
        (RequestDirectives(min_fresh_s=30), True),
        (RequestDirectives(min_fresh_s=31), False),
    ],
)
def test_9111_5_2_1_a_response_30_s_old_of_60(directives: RequestDirectives, is_accepted: bool) -> None:
    assert directives.accepts(age_s=30, lifetime_s=60) is is_accepted
