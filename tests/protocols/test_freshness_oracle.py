"""Freshness beside an oracle: RFC 9111 section 4.2 written once more, from the text, on what the test meant and not on
how it was spelled. The box's way is the whole one: fields to verdict, verdict to the numbers that a worker compares."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain

from hypothesis import given, settings
from hypothesis import strategies as st

from accelerator.protocols.cache_decide import OriginRules, decide, is_fresh_on_arrival
from accelerator.protocols.fields import Field
from accelerator.services.objects.heads import compose
from ext.directives import refuses, takes_stale

NS = 10**9
NOW_S = 1_700_000_000  # when the response came
LARGEST_S = 2**31
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]


def spelled_date(second: int, form: str) -> str:
    """One of the three forms of RFC 9110 section 5.6.7."""
    at = datetime.fromtimestamp(second, UTC)
    day, month, clock = DAYS[at.weekday()], MONTHS[at.month - 1], f"{at.hour:02}:{at.minute:02}:{at.second:02}"
    return {
        "imf": f"{day[:3]}, {at.day:02} {month} {at.year} {clock} GMT",
        "rfc850": f"{day}, {at.day:02}-{month}-{at.year % 100:02} {clock} GMT",
        "asctime": f"{day[:3]} {month} {at.day:2} {clock} {at.year}",
    }[form]


@dataclass(frozen=True)
class Meant:
    """A field as it was meant and as it is spelled. `value` None: it means nothing that is valid."""

    value: int | None
    text: str


SECONDS = st.one_of(st.integers(0, 200), st.sampled_from([2**31 - 1, 2**31, 2**31 + 1, 2**63, 10**30]))
VALID = st.builds(
    lambda value, form: Meant(value, form.format(value)), SECONDS, st.sampled_from(["{}", "0{}", '"{}"', "000{}"])
)
INVALID = st.sampled_from(["", "x", "-1", "+5", "1.5", "5s", "0x5", "'5'", '"', '"5', " 5", "5 5", "\uff15"]).map(
    lambda text: Meant(None, text)
)
ARGUMENT = st.one_of(VALID, INVALID)
DIRECTIVE = st.tuples(st.sampled_from(["max-age", "s-maxage"]), ARGUMENT)
NOISE = st.sampled_from(
    ["x", "y=1", 'z="max-age=5, s-maxage=6"', "public", "max-agex=5", "", "no-transform", 'q="a\\"b"']
)
FORMS = st.sampled_from(["imf", "rfc850", "asctime"])
DATE = st.builds(
    lambda delta, form: Meant(NOW_S + delta, spelled_date(NOW_S + delta, form)), st.integers(-300, 300), FORMS
)
NO_DATE = st.sampled_from(
    ["0", "-1", "", "soon", "Thu, 01 Jan 1970 00:00:00 +0000", "Fri, 32 Jan 2027 00:00:00 GMT"]
).map(lambda text: Meant(None, text))
AGE = st.one_of(SECONDS.map(lambda value: Meant(value, f"{value}")), INVALID.filter(lambda meant: meant.text != " 5"))


def in_any_case(text: str, upper: bool) -> str:
    return text.upper() if upper else text


@st.composite
def responses(draw: st.DrawFn) -> tuple[list[Field], list[tuple[str, Meant]], Meant | None, Meant | None, Meant | None]:
    """Fields; the directives, Expires, Date and Age that they mean, in order."""
    directives = draw(st.lists(DIRECTIVE, max_size=4))
    # A quote that nobody closes ends the list's grammar: what follows is read by a rule of ours, not of the RFC.
    directives = [each for each in directives if each[1].text.count('"') % 2 == 0]
    members = [f"{name}={meant.text}" for name, meant in directives]
    spaced = list(chain.from_iterable((draw(NOISE), in_any_case(member, draw(st.booleans()))) for member in members))
    cut = draw(st.integers(0, len(spaced)))
    fields: list[Field] = []
    for part in (spaced[:cut], spaced[cut:]):
        if part:
            fields.append((b"Cache-Control", draw(st.sampled_from([", ", ",", " , ,"])).join(part).encode("utf-8")))
    expires, date = draw(st.none() | DATE | NO_DATE), draw(st.none() | DATE)
    age = draw(st.none() | AGE)
    for name, meant in ((b"Expires", expires), (b"Date", date), (b"Age", age)):
        if meant is not None:
            fields.append((name, meant.text.strip().encode("utf-8")))
    return fields, directives, expires, date, age


def oracle(
    directives: list[tuple[str, Meant]], expires: Meant | None, date: Meant | None, age: Meant | None, delay_s: int
) -> tuple[int | None, int]:
    """freshness_lifetime (section 4.2.1; None: none is given) and corrected_age_value (section 4.2.3)."""
    lifetime: int | None = None
    for wanted in ("s-maxage", "max-age"):
        arguments = [meant for name, meant in directives if name == wanted]
        if arguments:
            # "either the first occurrence should be used or the response should be considered stale"; and what is
            # invalid should be considered stale
            lifetime = 0 if arguments[0].value is None else min(arguments[0].value, LARGEST_S)
            break
    else:
        if expires is not None:
            # "especially including the value 0": in the past
            origin_s = NOW_S if date is None or date.value is None else date.value
            lifetime = 0 if expires.value is None else max(0, expires.value - origin_s)
    # "If a field value is invalid (non-integer), a cache SHOULD ignore the field"
    age_value = 0 if age is None or age.value is None else min(age.value, LARGEST_S)
    return lifetime, min(age_value + delay_s, LARGEST_S)


@settings(max_examples=600, deadline=None)
@given(responses(), st.integers(0, 90), st.integers(0, 400), st.sampled_from(["media", "generic"]))
def test_the_box_is_fresh_when_the_text_says_so(
    response: tuple[list[Field], list[tuple[str, Meant]], Meant | None, Meant | None, Meant | None],
    delay_s: int,
    resident_s: int,
    profile: str,
) -> None:
    fields, directives, expires, date, age = response
    lifetime, age_s = oracle(directives, expires, date, age, delay_s)
    rules = OriginRules(profile="media" if profile == "media" else "generic")
    verdict = decide(
        [], b"GET", b"/page", rules, 200, fields, request_wall_s=float(NOW_S - delay_s), response_wall_s=float(NOW_S)
    )
    assert verdict.has_explicit_lifetime is (lifetime is not None), fields
    assert verdict.initial_age_s == age_s, fields
    assert verdict.lifetime_s == (lifetime or 0), fields
    assert is_fresh_on_arrival(verdict) is ((lifetime or 0) > age_s)
    head = compose(200, fields, verdict, request_ns=10**18 - delay_s * NS, response_ns=10**18, has_age=age is not None)
    now_ns = 10**18 + resident_s * NS
    current_age_s = age_s + resident_s  # section 4.2.3: corrected_initial_age + resident_time
    assert (now_ns - head.born_ns) // NS == current_age_s
    assert (now_ns < head.fresh_until_ns) is ((lifetime or 0) > current_age_s), fields


@settings(max_examples=600, deadline=None)
@given(
    st.none() | st.integers(0, 100), st.none() | st.integers(0, 100), st.none() | st.integers(0, 100) | st.just(-1),
    st.integers(0, 200), st.integers(-100, 100),
)  # fmt: skip
def test_what_a_viewer_accepts_is_what_the_text_says(
    max_age: int | None, min_fresh: int | None, max_stale: int | None, age_s: int, left_s: int
) -> None:
    """Section 5.2.1.1 to 5.2.1.3. max-age=0 is "validate", so it also refuses what has come this second."""
    said = [f"max-age={max_age}"] * (max_age is not None) + [f"min-fresh={min_fresh}"] * (min_fresh is not None)
    said += ["max-stale" if max_stale == -1 else f"max-stale={max_stale}"] * (max_stale is not None)
    head = f"GET / HTTP/1.1\r\nHost: a\r\nCache-Control: {', '.join(said)}\r\n\r\n".encode()
    is_unwanted = (max_age is not None and (age_s > max_age or max_age == 0)) or bool(min_fresh and left_s < min_fresh)
    assert refuses(head, age_s * NS, left_s * NS) is is_unwanted
    takes = max_stale is not None and (max_stale == -1 or -left_s <= max_stale)
    assert takes_stale(head, -left_s * NS) is takes
