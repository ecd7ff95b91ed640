"""Judges a freshly applied policy by what becomes of requests: is it good, does it hurt, or is the WAN down? Sans-IO.

    APPLIED --errors rose, and the policy is why--> HURTS      --5 minutes of real traffic went well--> GOOD

Counters come once a second with `now_s` of any monotonic clock. A rise is only believed where the two periods' ranges
of confidence are apart, so that quiet minutes decide nothing. What the policy didn't change, it can't have broken:

- an origin that the policy left alone is never a reason; where such ones, well before, fail too, the WAN is the reason;
- viewers can cause refusals at will (hosts that nobody has), so those count only where good answers became fewer too;
- what did well for a minute under the new policy and fails then, fails for another reason.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from math import sqrt

# A policy is good after this much real traffic. Longer than a live playlist's and most segments' lifetimes, so that the
# origins were asked anew; shorter than an administrator stays at the desk after a change.
GOOD_AFTER_S = 300.0
GOOD_REQUESTS = 100
GOOD_ERRORS_MAX = 0.05
# How much of the time before is compared with. Shorter spans of it show what was failing already.
BEFORE_S = 300.0
RECENT_SPANS_S = (5.0, 30.0)
RECENT_MIN = 10
LEVEL_SPAN_S = 60.0
# The fewest requests that say anything: as many as the circuit breaker of an upstream looks at.
EVIDENCE_MIN = 20
CONTROL_MIN = 10
# What the untouched origins' requests say is waited for so long, if there were any before.
CONTROL_WAIT_S = 20.0
CLEARED_AFTER_S = 60.0
CLEARED_MIN = 50
# Both periods' shares at three standard errors, and so much apart: checked every second, chance alone must not do it.
Z = 3.0
MARGIN = 0.05
REFUSED_MARGIN = 0.25
FAILING = 0.5
# Good answers a second, as a share of those before.
FELL_A_LITTLE = 0.9
FELL_BY_HALF = 0.5
LEVEL_AFTER_S = 5.0


@dataclass(frozen=True, slots=True)
class OriginCounts:
    """Since the start. `requests`: of viewers; `answered` upstream requests, of which `refused` with 4xx and 5xx;
    `failed` ones had no usable answer."""

    requests: int = 0
    answered: int = 0
    refused: int = 0
    failed: int = 0


@dataclass(frozen=True, slots=True)
class Counts:
    """Since the start. `routing`: own refusals that a policy's hosts, paths, zones and profiles decide; `upstream`: own
    502, 503, 504; `cut`: connections refused or ended by a limit; `connections`: accepted."""

    requests: int = 0
    routing: int = 0
    upstream: int = 0
    connections: int = 0
    cut: int = 0
    origins: Mapping[str, OriginCounts] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Changed:
    """What a policy changed: the names of origins that are new or otherwise, and whether limits did."""

    origins: frozenset[str] = frozenset()
    has_limits: bool = False


class Outcome(Enum):
    GOOD = "good"
    HURTS = "hurts"


@dataclass(frozen=True, slots=True)
class Judgement:
    outcome: Outcome
    reason: str


@dataclass(slots=True)
class _Sums:
    """What happened in a span of time."""

    seconds: float = 0.0
    requests: int = 0
    routing: int = 0
    upstream: int = 0
    connections: int = 0
    cut: int = 0
    origins: dict[str, list[int]] = field(default_factory=dict)

    def add(self, other: _Sums) -> None:
        self.seconds += other.seconds
        self.requests += other.requests
        self.routing += other.routing
        self.upstream += other.upstream
        self.connections += other.connections
        self.cut += other.cut
        for name, row in other.origins.items():
            mine = self.origins.setdefault(name, [0, 0, 0, 0])
            for column, value in enumerate(row):
                mine[column] += value

    @property
    def errors(self) -> int:
        return self.routing + self.upstream

    @property
    def good_per_s(self) -> float:
        return max(0, self.requests - self.errors) / self.seconds if self.seconds else 0.0

    def origin(self, name: str) -> OriginCounts:
        return OriginCounts(*self.origins.get(name, (0, 0, 0, 0)))


@dataclass(frozen=True, slots=True)
class _Tally:
    bad: int
    n: int

    @property
    def share(self) -> float:
        return min(self.bad, self.n) / self.n if self.n else 0.0

    def bounds(self) -> tuple[float, float]:
        """Wilson's interval of the share: (0, 1) of nothing."""
        if not self.n:
            return 0.0, 1.0
        weight = Z * Z / self.n
        centre = (self.share + weight / 2) / (1 + weight)
        half = Z / (1 + weight) * sqrt(self.share * (1 - self.share) / self.n + weight / (4 * self.n))
        return max(0.0, centre - half), min(1.0, centre + half)


class Probation:
    """One box's. `observe` each second, `applied` when another policy was published; a later one ends the former's."""

    def __init__(self) -> None:
        self._past: deque[_Sums] = deque()
        self._past_s = 0.0
        self._last: Counts | None = None
        self._last_s = 0.0
        self._changed = Changed()
        self._before: tuple[_Sums, ...] = ()
        self._level = _Sums()
        self._after = _Sums()
        self._applied_s: float | None = None
        self._evidence_since_s: dict[str, float] = {}
        self._cleared: set[str] = set()
        self.hold = ""

    @property
    def is_judging(self) -> bool:
        return self._applied_s is not None

    @property
    def does_well(self) -> bool:
        """Whether the running policy has shown enough to be returned to, although it is not good yet."""
        after = self._after
        return after.requests >= EVIDENCE_MIN and not self.hold and self._errors(after) <= self._errors_allowed()

    def applied(self, changed: Changed, counts: Counts, now_s: float) -> None:
        """A policy was published that changed this; `counts` are those of now."""
        self.observe(counts, now_s)
        spans = [self._span(BEFORE_S), *(self._span(seconds) for seconds in RECENT_SPANS_S)]
        self._before = tuple(spans)
        self._level = self._span(LEVEL_SPAN_S)
        self._after = _Sums()
        self._applied_s = now_s
        self._changed = changed
        self._evidence_since_s = {}
        self._cleared = set()
        self.hold = ""

    def end(self) -> None:
        """The running policy needs no judgement (any more)."""
        self._applied_s = None
        self.hold = ""

    def observe(self, counts: Counts, now_s: float) -> Judgement | None:
        """The judgement, when there is one; it ends the probation."""
        if self._last is None:
            self._last, self._last_s = counts, now_s
            return None
        since = _since(self._last, counts, max(0.0, now_s - self._last_s))
        self._last, self._last_s = counts, now_s
        self._remember(since)
        if self._applied_s is None:
            return None
        self._after.add(since)
        judgement = self._judge(now_s)
        if judgement is not None:
            self.end()
        return judgement

    # -- what was ------------------------------------------------------------------------------------------------------

    def _remember(self, since: _Sums) -> None:
        self._past.append(since)
        self._past_s += since.seconds
        while len(self._past) > 1 and self._past_s - self._past[0].seconds >= BEFORE_S:
            self._past_s -= self._past.popleft().seconds

    def _span(self, seconds: float) -> _Sums:
        total = _Sums()
        for sums in reversed(self._past):
            if total.seconds >= seconds:
                break
            total.add(sums)
        return total

    def _errors(self, sums: _Sums) -> float:
        return _Tally(sums.errors, sums.requests).share

    def _errors_allowed(self) -> float:
        return GOOD_ERRORS_MAX + (self._errors(self._before[0]) if self._before else 0.0)

    # -- what is -------------------------------------------------------------------------------------------------------

    def _judge(self, now_s: float) -> Judgement | None:
        self.hold = ""
        for reason in (self._origins(now_s), self._new_origins(now_s), self._routing(now_s), self._limits(now_s)):
            if reason:
                return Judgement(Outcome.HURTS, reason)
        assert self._applied_s is not None
        if now_s - self._applied_s < GOOD_AFTER_S or self.hold:
            return None
        latest = self._span(GOOD_AFTER_S)
        if min(latest.requests, self._after.requests) < GOOD_REQUESTS or self._errors(latest) > self._errors_allowed():
            return None
        share = _percent(self._errors(latest))
        return Judgement(Outcome.GOOD, f"{latest.requests} requests in {GOOD_AFTER_S:.0f} s, {share} of them errors")

    def _origins(self, now_s: float) -> str:
        """Why a changed origin speaks against the policy."""
        for name in sorted(self._changed.origins):
            before = [span.origin(name) for span in self._before]
            now = self._after.origin(name)
            asked = now.answered + now.failed
            failed = [_failures(row) for row in before]
            after = _Tally(now.failed, asked)
            if self._has_risen(f"origin {name}", failed, after, now_s):
                if self._may_be_wan(f"origin {name}", after.share, now_s):
                    continue
                return (
                    f"origin '{name}': {_percent(after.share)} of {asked} requests to it fail, before "
                    f"{_percent(failed[0].share)}"
                )
            refused = [_Tally(row.refused, row.answered) for row in before]
            after = _Tally(now.refused, now.answered)
            if self._has_risen(f"answers of {name}", refused, after, now_s, REFUSED_MARGIN) and self._fell(
                self._good_of(self._level, name), self._good_of(self._after, name), FELL_BY_HALF
            ):
                return (
                    f"origin '{name}': {_percent(after.share)} of {now.answered} answers are 4xx or 5xx, before "
                    f"{_percent(refused[0].share)}"
                )
        return ""

    def _new_origins(self, now_s: float) -> str:
        """An origin that is new has no time before: it speaks against the policy when the box's errors rose by it."""
        before = [_Tally(span.upstream, span.requests) for span in self._before]
        after = _Tally(self._after.upstream, self._after.requests)
        if not self._has_risen("upstream", before, after, now_s):
            return ""
        for name in sorted(self._changed.origins):
            was, now = self._before[0].origin(name), self._after.origin(name)
            share = _Tally(now.failed, now.answered + now.failed)
            if not (was.answered or was.failed) and share.n >= EVIDENCE_MIN and share.share >= FAILING:
                if self._may_be_wan("upstream", share.share, now_s):
                    continue
                return f"new origin '{name}': {_percent(share.share)} of {share.n} requests to it fail"
        return ""

    def _routing(self, now_s: float) -> str:
        before = [_Tally(span.routing, span.requests) for span in self._before]
        after = _Tally(self._after.routing, self._after.requests)
        if self._has_risen("routing", before, after, now_s) and self._fell(
            self._level.good_per_s, self._after.good_per_s, FELL_A_LITTLE
        ):
            return (
                f"{_percent(after.share)} of {after.n} requests are refused for their host, path, zone or method, "
                f"before {_percent(before[0].share)}"
            )
        return ""

    def _limits(self, now_s: float) -> str:
        if not self._changed.has_limits:
            return ""
        before = [_Tally(span.cut, span.connections + span.cut) for span in self._before]
        after = _Tally(self._after.cut, self._after.connections + self._after.cut)
        if self._has_risen("limits", before, after, now_s) and self._fell(
            self._level.good_per_s, self._after.good_per_s, FELL_A_LITTLE
        ):
            return (
                f"{_percent(after.share)} of {after.n} connections are cut by a limit, before "
                f"{_percent(before[0].share)}"
            )
        return ""

    def _has_risen(
        self, scope: str, before: list[_Tally], after: _Tally, now_s: float, margin: float = MARGIN
    ) -> bool:
        if not after.n or scope in self._cleared:
            return False
        since_s = self._evidence_since_s.setdefault(scope, now_s)
        # Who was failing just before the policy came is not failing because of it.
        worst = max((tally.share for tally in before if tally.n >= RECENT_MIN), default=0.0)
        if worst >= FAILING:
            return False
        usual = max(before[0].bounds()[1], worst) + margin
        if after.n >= EVIDENCE_MIN and after.bounds()[0] > usual:
            return True
        if now_s - since_s >= CLEARED_AFTER_S and after.n >= CLEARED_MIN and after.share <= worst + margin:
            self._cleared.add(scope)
        return False

    def _fell(self, before_per_s: float, after_per_s: float, factor: float) -> bool:
        return self._after.seconds >= LEVEL_AFTER_S and after_per_s < factor * before_per_s

    def _may_be_wan(self, scope: str, share: float, now_s: float) -> bool:
        """Whether origins that the policy left alone, and that did well before, fail like this one, or may yet."""
        bad = n = n_before = 0
        for was, row in self._controls():
            bad += row.failed
            n += row.answered + row.failed
            n_before += was.answered + was.failed
        if n >= CONTROL_MIN:
            if bad / n < share / 2:
                return False
            self.hold = f"origins that the policy left alone fail too ({bad} of {n} requests): the WAN may be down"
            return True
        if n_before >= CONTROL_MIN and now_s - self._evidence_since_s[scope] < CONTROL_WAIT_S:
            self.hold = "what the origins that the policy left alone do is waited for"
            return True
        return False

    def _controls(self) -> Iterator[tuple[OriginCounts, OriginCounts]]:
        """(before, now) of each."""
        for name in {**self._before[0].origins, **self._after.origins}:
            was = self._before[0].origin(name)
            did_well = _Tally(was.failed, was.answered + was.failed).share < FAILING
            if name not in self._changed.origins and did_well:
                yield was, self._after.origin(name)

    @staticmethod
    def _good_of(sums: _Sums, name: str) -> float:
        row = sums.origin(name)
        return (row.answered - row.refused) / sums.seconds if sums.seconds else 0.0


def _failures(row: OriginCounts) -> _Tally:
    """Where the store answered nearly all, viewers did well without the origin: their requests are the evidence."""
    asked = row.answered + row.failed
    return _Tally(row.failed, asked if asked >= RECENT_MIN else max(asked, row.requests))


def _since(last: Counts, counts: Counts, seconds: float) -> _Sums:
    origins = {}
    for name, row in counts.origins.items():
        old = last.origins.get(name, OriginCounts())
        grown = [
            _grown(old.requests, row.requests), _grown(old.answered, row.answered),
            _grown(old.refused, row.refused), _grown(old.failed, row.failed),
        ]  # fmt: skip
        if any(grown):
            origins[name] = grown
    return _Sums(
        seconds,
        _grown(last.requests, counts.requests),
        _grown(last.routing, counts.routing),
        _grown(last.upstream, counts.upstream),
        _grown(last.connections, counts.connections),
        _grown(last.cut, counts.cut),
        origins,
    )


def _grown(then: int, now: int) -> int:
    """An origin that went and came back counts from 0 again."""
    return now - then if now >= then else now


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
