"""The judge of fresh policies: a table of stories a second at a time, and what must hold of any story."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accelerator.protocols.probation import Changed, Counts, Judgement, OriginCounts, Outcome, Probation

MEDIA = Changed(frozenset({"media"}))


@dataclass(frozen=True)
class Second:
    """What happens in each of some seconds. Origins: (viewers' requests, answered, refused, failed)."""

    requests: int = 0
    routing: int = 0
    upstream: int = 0
    connections: int = 0
    cut: int = 0
    origins: dict[str, tuple[int, int, int, int]] = field(default_factory=dict)


class Story:
    """Plays seconds to a judge."""

    def __init__(self) -> None:
        self.probation = Probation()
        self.now_s = 1000.0
        self._sums = [0] * 5
        self._origins: dict[str, list[int]] = {}
        self.judgement: Judgement | None = None
        self.probation.observe(self.counts, self.now_s)

    @property
    def counts(self) -> Counts:
        return Counts(*self._sums, {name: OriginCounts(*row) for name, row in self._origins.items()})

    def play(self, second: Second, seconds: int) -> float | None:
        """The second (from 1) in which a judgement fell, if one did."""
        for n in range(1, seconds + 1):
            values = (second.requests, second.routing, second.upstream, second.connections, second.cut)
            self._sums = [total + value for total, value in zip(self._sums, values, strict=True)]
            for name, row in second.origins.items():
                known = self._origins.setdefault(name, [0, 0, 0, 0])
                self._origins[name] = [total + value for total, value in zip(known, row, strict=True)]
            self.now_s += 1
            judgement = self.probation.observe(self.counts, self.now_s)
            if judgement is not None:
                self.judgement = judgement
                return n
        return None

    def apply(self, changed: Changed) -> None:
        self.probation.applied(changed, self.counts, self.now_s)


def well(rate: int = 50, *names: str) -> Second:
    """Half of the requests are hits."""
    return Second(requests=rate, connections=5, origins=dict.fromkeys(names or ("media",), (rate, rate // 2, 0, 0)))


def dead(rate: int, *names: str, others: Iterable[str] = ()) -> Second:
    """The named origins don't answer; stored content goes on."""
    origins = dict.fromkeys(names, (rate, 0, 0, rate // 2))
    origins.update(dict.fromkeys(others, (rate, rate // 2, 0, 0)))
    return Second(requests=rate, upstream=rate // 2, connections=5, origins=origins)


# before (seconds, what), what the policy changed, after (seconds, what), judgement, within how many seconds
STORIES: dict[str, tuple[list[tuple[int, Second]], Changed, list[tuple[int, Second]], Outcome | None, int]] = {
    "dead origin": ([(60, well())], MEDIA, [(60, dead(50, "media"))], Outcome.HURTS, 10),
    "dead origin, few requests": ([(120, well(4))], MEDIA, [(60, dead(4, "media"))], Outcome.HURTS, 60),
    "dead origin, all from the store before": (
        [(120, Second(requests=50, origins={"media": (50, 0, 0, 0)}))], MEDIA, [(60, dead(50, "media"))],
        Outcome.HURTS, 10,
    ),
    "half of the requests to it fail": (
        [(60, well())], MEDIA, [(60, Second(requests=50, upstream=5, origins={"media": (50, 15, 0, 10)}))],
        Outcome.HURTS, 30,
    ),
    "stale answers hide it from viewers": (
        [(60, well())], MEDIA, [(60, Second(requests=50, origins={"media": (50, 0, 0, 25)}))], Outcome.HURTS, 10,
    ),
    "another origin goes on": (
        [(60, well(50, "media", "spare"))], MEDIA, [(60, dead(50, "media", others=["spare"]))], Outcome.HURTS, 10,
    ),
    "the WAN is down": ([(60, well(50, "media", "spare"))], MEDIA, [(250, dead(50, "media", "spare"))], None, 0),
    "the WAN is down, the changed origin is asked first": (
        [(60, well(50, "media", "spare"))], MEDIA,
        [(5, dead(50, "media")), (200, dead(50, "media", "spare"))], None, 0,
    ),
    "the WAN comes back, the changed origin does not": (
        [(60, well(50, "media", "spare"))], MEDIA,
        [(20, dead(50, "media", "spare")), (120, dead(50, "media", others=["spare"]))], Outcome.HURTS, 140,
    ),
    "an origin that was left alone dies": (
        [(60, well(50, "media", "spare"))], MEDIA, [(250, dead(50, "spare", others=["media"]))], None, 0,
    ),
    "it was dead before": ([(60, dead(50, "media"))], MEDIA, [(250, dead(50, "media"))], None, 0),
    "it died just before": (
        [(100, well()), (4, dead(50, "media"))], MEDIA, [(250, dead(50, "media"))], None, 0,
    ),
    "it is repaired": ([(60, dead(50, "media"))], MEDIA, [(299, well())], None, 0),
    "a control that was always dead says nothing": (
        [(60, dead(50, "spare", others=["media"]))], MEDIA, [(60, dead(50, "media", "spare"))], Outcome.HURTS, 10,
    ),
    "two minutes well, then the WAN dies": (
        [(60, well())], MEDIA, [(120, well()), (100, dead(50, "media"))], None, 0,
    ),
    "night: nothing before": ([(60, Second())], MEDIA, [(250, dead(50, "media"))], None, 0),
    "night: a handful after": ([(60, well())], MEDIA, [(1, dead(16, "media")), (250, Second())], None, 0),
    "a new origin that nobody had is dead": (
        [(60, well())], Changed(frozenset({"new"})),
        [(250, Second(requests=52, upstream=2, origins={"media": (50, 25, 0, 0), "new": (2, 0, 0, 2)}))], None, 0,
    ),
    "the only origin under a new name is dead": (
        [(60, well())], Changed(frozenset({"media", "renamed"})), [(60, dead(50, "renamed"))], Outcome.HURTS, 10,
    ),
    "another host: all is 421": (
        [(60, well())], MEDIA, [(60, Second(requests=50, routing=50))], Outcome.HURTS, 10,
    ),
    "a third of the hosts is gone": (
        [(60, well())], MEDIA, [(60, Second(requests=50, routing=16, origins={"media": (34, 17, 0, 0)}))],
        Outcome.HURTS, 20,
    ),
    "a scanner asks for hosts that nobody has": (
        [(60, well())], MEDIA, [(250, Second(requests=150, routing=100, origins={"media": (50, 25, 0, 0)}))], None, 0,
    ),
    "wrong Host upstream: all answers are 404": (
        [(60, well())], MEDIA, [(60, Second(requests=50, origins={"media": (50, 25, 25, 0)}))], Outcome.HURTS, 10,
    ),
    "viewers ask for what is not there": (
        [(60, well())], MEDIA, [(250, Second(requests=150, origins={"media": (150, 125, 100, 0)}))], None, 0,
    ),
    "a cap that is too low": (
        [(60, well())], Changed(has_limits=True), [(60, Second(requests=20, connections=5, cut=10))],
        Outcome.HURTS, 20,
    ),
    "slow readers, limits untouched": (
        [(60, well())], MEDIA, [(250, Second(requests=20, connections=5, cut=10))], None, 0,
    ),
    "well for five minutes": ([(60, well())], MEDIA, [(310, well())], Outcome.GOOD, 301),
    "well from the start": ([(1, Second())], MEDIA, [(310, well())], Outcome.GOOD, 301),
    "too quiet to be good": ([(60, well())], MEDIA, [(900, Second())], None, 0),
    "quiet, then a webcast": ([(60, well())], MEDIA, [(900, Second()), (10, well())], Outcome.GOOD, 910),
    "errors all the time": (
        [(60, well())], Changed(), [(900, Second(requests=50, upstream=10, origins={"media": (50, 15, 0, 10)}))],
        None, 0,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", STORIES)
def test_story(name: str) -> None:
    before, changed, after, outcome, within_s = STORIES[name]
    story = Story()
    for seconds, second in before:
        assert story.play(second, seconds) is None
    story.apply(changed)
    played = 0
    for seconds, second in after:
        fell = story.play(second, seconds)
        played += fell if fell is not None else seconds
        if fell is not None:
            break
    assert (story.judgement.outcome if story.judgement else None) is outcome, story.judgement
    if outcome is not None:
        assert played <= within_s
        assert story.judgement is not None
        assert story.judgement.reason
        assert not story.probation.is_judging


def test_says_why_it_holds_back() -> None:
    story = Story()
    story.play(well(50, "media", "spare"), 60)
    story.apply(MEDIA)
    story.play(dead(50, "media", "spare"), 30)
    assert "the WAN may be down" in story.probation.hold
    assert not story.probation.does_well


def test_a_policy_that_did_well_can_be_returned_to() -> None:
    story = Story()
    story.play(well(), 60)
    story.apply(MEDIA)
    assert not story.probation.does_well
    story.play(well(), 5)
    assert story.probation.does_well


def test_a_later_policy_ends_the_judgement_of_the_earlier() -> None:
    story = Story()
    story.play(well(), 60)
    story.apply(MEDIA)
    story.play(dead(4, "media"), 3)
    story.apply(Changed(frozenset({"spare"})))
    assert story.play(dead(50, "media"), 100) is None


def test_an_origin_that_went_and_came_back_counts_from_nothing() -> None:
    story = Story()
    story.play(well(), 60)
    story.apply(MEDIA)
    story._origins["media"] = [0, 0, 0, 0]
    assert story.play(well(), 100) is None


seconds = st.builds(
    lambda requests, routing, upstream, rows: Second(
        requests=requests + routing + upstream, routing=routing, upstream=upstream, connections=requests, origins=rows
    ),
    st.integers(0, 200), st.integers(0, 200), st.integers(0, 200),
    st.dictionaries(
        st.sampled_from(["media", "spare"]),
        st.tuples(*[st.integers(0, 100)] * 4).map(lambda row: (row[0], row[1] + row[2], row[2], row[3])),
    ),
)  # fmt: skip
stories = st.lists(st.tuples(seconds, st.integers(1, 40)), max_size=6)


@settings(max_examples=150, deadline=None)
@given(stories, stories)
def test_a_policy_that_changes_no_origin_is_never_blamed_for_one(
    before: list[tuple[Second, int]], after: list[tuple[Second, int]]
) -> None:
    story = Story()
    for second, n in before:
        story.play(second, n)
    story.apply(Changed())
    for second, n in after:
        if story.play(Second(requests=second.requests, upstream=second.upstream, origins=second.origins), n):
            break
    assert story.judgement is None or story.judgement.outcome is Outcome.GOOD


@settings(max_examples=150, deadline=None)
@given(stories, st.lists(st.tuples(seconds, st.integers(1, 40)), max_size=3))
def test_fewer_than_twenty_requests_decide_nothing(
    before: list[tuple[Second, int]], after: list[tuple[Second, int]]
) -> None:
    story = Story()
    for second, n in before:
        story.play(second, n)
    story.apply(Changed(frozenset({"media", "spare"}), has_limits=True))
    n_left = 19
    for second, n in after:
        for _ in range(n):
            load = second.requests + second.connections + second.cut + sum(map(sum, second.origins.values()))
            if load > n_left:
                second = Second()
            n_left -= min(load, n_left)
            assert story.play(second, 1) is None


@settings(max_examples=100, deadline=None)
@given(seconds, st.integers(60, 200))
def test_what_goes_on_as_before_is_not_blamed(second: Second, n: int) -> None:
    story = Story()
    story.play(second, n)
    story.apply(Changed(frozenset({"media", "spare"}), has_limits=True))
    story.play(second, 250)
    assert story.judgement is None
