"""Age and explicit lifetime of a response (RFC 9111 sections 4.2.1, 4.2.3): arithmetic, no heuristics, no decision."""

from __future__ import annotations

from collections.abc import Sequence

from accelerator.protocols.cache_control import DELTA_SECONDS_MAX, Directives
from accelerator.protocols.dates import parse_http_date
from accelerator.protocols.fields import Fields, get_all, get_first, parse_digits


def initial_age_s(response_fields: Fields, request_wall_s: float, response_wall_s: float) -> float:
    """corrected_age_value (RFC 9111 section 4.2.3).

    Not the maximum with apparent_age: the RFC wants that only where caches that send no Age are on the way, and it
    would make an origin whose clock is a minute slow unable to serve live video.
    """
    response_delay_s = max(0.0, response_wall_s - request_wall_s)
    return min(_age_value_s(get_all(response_fields, b"age")) + response_delay_s, float(DELTA_SECONDS_MAX))


def _age_value_s(values: Sequence[bytes]) -> int:
    # RFC 9111 section 5.1: of several the first, of a list the first member; what is no number is ignored
    for value in values:
        seconds = parse_digits(value.partition(b",")[0].strip(b" \t"), DELTA_SECONDS_MAX)
        if seconds is not None:
            return seconds
    return 0


def explicit_lifetime_s(
    directives: Directives, expires_counts: bool, response_fields: Fields, response_wall_s: float
) -> float | None:
    """freshness_lifetime (RFC 9111 section 4.2.1), without heuristics; None: not given."""
    for name in (b"s-maxage", b"max-age"):
        seconds = directives.seconds(name)
        if seconds is not None:
            return float(seconds)
    expires = get_first(response_fields, b"expires") if expires_counts else None
    if expires is None:
        return None
    expires_s = parse_http_date(expires, response_wall_s)
    if expires_s is None:  # RFC 9111 section 5.3: invalid, `0` above all, means already expired
        return 0.0
    # Against the origin's own Date: immune to the difference of our clocks
    date = get_first(response_fields, b"date")
    date_s = None if date is None else parse_http_date(date, response_wall_s)
    return float(max(0, min(expires_s - (response_wall_s if date_s is None else date_s), DELTA_SECONDS_MAX)))
