"""Lifetime and age by clause: what the origin sent, how long it is fresh, how old it is."""

from __future__ import annotations

import pytest
from judging import BOTH, ETAG, NOW_S, cc, judge

from accelerator.protocols.cache_decide import OriginRules, Reason
from accelerator.protocols.dates import format_http_date
from accelerator.protocols.fields import Field

# -- how long ----------------------------------------------------------------------------------------------------------


def dated(expires_s: float, date_s: float | None = NOW_S) -> list[Field]:
    head = [(b"Expires", format_http_date(expires_s))]
    return head if date_s is None else [*head, (b"Date", format_http_date(date_s))]


@BOTH
@pytest.mark.parametrize(
    ("head", "lifetime_s"),
    [
        ([cc(b"max-age=60")], 60),
        ([cc(b"s-maxage=5, max-age=60")], 5),
        ([cc(b"max-age=5"), cc(b"s-maxage=60")], 60),
        ([cc(b"max-age=5"), *dated(NOW_S + 60)], 5),
        ([cc(b"max-age=60"), (b"Expires", b"0")], 60),
        ([cc(b"s-maxage=x, max-age=60")], 0),
        ([cc(b"max-age=99999999999")], 2**31),
        (dated(NOW_S + 60), 60),
        (dated(NOW_S - 1), 0),
        (dated(NOW_S + 60, None), 60),
    ],
)
def test_9111_4_2_1_s_maxage_beats_max_age_beats_expires(
    head: list[Field], lifetime_s: float, rules: OriginRules
) -> None:
    verdict = judge(*head, rules=rules)
    assert (verdict.lifetime_s, verdict.has_explicit_lifetime) == (lifetime_s, True)


@pytest.mark.parametrize("skew_s", [-86400, -60, 0, 60, 86400])
def test_9111_4_2_1_expires_is_measured_against_date_whatever_the_clocks_say(skew_s: float) -> None:
    assert judge(*dated(NOW_S + skew_s + 30, NOW_S + skew_s)).lifetime_s == 30


@pytest.mark.parametrize("value", [b"0", b"-1", b"", b"tomorrow", b"Thu, 31 Feb 2099 00:00:00 GMT"])
def test_9111_5_3_a_malformed_expires_is_already_expired(value: bytes) -> None:
    verdict = judge((b"Expires", value), path=b"/a.ts")
    assert (verdict.lifetime_s, verdict.has_explicit_lifetime) == (0.0, True)


def test_9111_4_2_1_of_two_expires_the_first() -> None:
    assert judge(*dated(NOW_S + 5), *dated(NOW_S + 60)).lifetime_s == 5


@BOTH
def test_9111_4_2_2_no_heuristic_freshness(rules: OriginRules) -> None:
    verdict = judge((b"Last-Modified", b"Sun, 06 Nov 1994 08:49:37 GMT"), rules=rules)
    assert (verdict.store, verdict.lifetime_s, verdict.reason) == (True, 0.0, Reason.VALIDATE)


def test_9213_2_2_cdn_cache_control_replaces_both() -> None:
    verdict = judge((b"CDN-Cache-Control", b"max-age=7"), cc(b"no-store"), (b"Expires", b"0"))
    assert (verdict.store, verdict.lifetime_s) == (True, 7.0)
    verdict = judge((b"CDN-Cache-Control", b"private"), cc(b"max-age=60"), *dated(NOW_S + 60))
    assert verdict.reason is Reason.PRIVATE


def test_9213_2_2_an_invalid_cdn_cache_control_is_ignored() -> None:
    assert judge((b"CDN-Cache-Control", b"max-age=7,"), cc(b"max-age=60")).lifetime_s == 60


# -- how old -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ages", "age_s"),
    [
        ([], 0),
        ([b"30"], 30),
        ([b"0"], 0),
        ([b"2147483647"], 2**31 - 1),
        ([b"2147483648"], 2**31),
        ([b"99999999999999999999"], 2**31),
        ([b"-5"], 0),
        ([b"1.5"], 0),
        ([b"abc"], 0),
        ([b""], 0),
        ([b"30, 60"], 30),
        ([b"30", b"60"], 30),
        ([b"abc", b"60"], 60),
    ],
)
def test_9111_5_1_age(ages: list[bytes], age_s: float) -> None:
    assert judge(*((b"Age", age) for age in ages)).initial_age_s == age_s


def test_9111_4_2_3_the_delay_of_the_response_is_part_of_its_age() -> None:
    verdict = judge((b"Age", b"30"), cc(b"max-age=60"), delay_s=2.5)
    assert verdict.initial_age_s == 32.5


def test_9111_4_2_3_a_clock_that_steps_back_makes_no_negative_age() -> None:
    assert judge((b"Age", b"30"), delay_s=-3600).initial_age_s == 30


def test_9111_4_2_3_an_origin_with_a_slow_clock_can_serve_live_video() -> None:
    head = [cc(b"max-age=2"), (b"Date", format_http_date(NOW_S - 3600))]
    assert judge(*head).initial_age_s == 0


def test_9111_4_2_what_arrives_stale_needs_validation() -> None:
    verdict = judge((b"Age", b"61"), cc(b"max-age=60"), ETAG)
    assert (verdict.store, verdict.reason) == (True, Reason.VALIDATE)
    assert not judge((b"Age", b"61"), cc(b"max-age=60")).store
