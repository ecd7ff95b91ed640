"""A circuit breaker of one upstream: whether it may be asked now, from what became of earlier requests. Sans-IO.

    CLOSED --5 connect failures in a row, or 10 failures among the last 20 outcomes--> OPEN
    OPEN --1 s, doubling up to 4 s--> HALF_OPEN: at most 2 trials at once
    HALF_OPEN --a trial answered--> CLOSED;  --a trial failed--> OPEN

Which answers are failures is the caller's choice. `now_s` is any monotonic clock.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import Enum

WINDOW = 20
FAILURES_MAX = WINDOW // 2
CONNECT_FAILURES_MAX = 5
OPEN_S = 1.0
# Two requests each 4 s harm no origin, and a WAN that is back is used within 5 s (docs/faults.md, row 26).
OPEN_MAX_S = 4.0
TRIALS_MAX = 2


class State(Enum):
    """SUSPECT is CLOSED with a failure as its last outcome: asked as ever."""

    OK = "ok"
    SUSPECT = "suspect"
    OPEN = "open"
    HALF_OPEN = "half-open"


@dataclass(eq=False, slots=True)
class Permit:
    """Leave to ask once. Ends with connect_failed, failed or released; what it tells later is ignored."""

    epoch: int
    is_trial: bool
    is_answered: bool = False
    is_over: bool = False


class Breaker:
    """One upstream's. Every permit must be ended, or its trial is lost until the next change of state."""

    def __init__(self) -> None:
        # What requests of an earlier epoch report is about an earlier state of the upstream.
        self._epoch = 0
        self._is_closed = True
        self._outcomes: deque[bool] = deque(maxlen=WINDOW)  # True: a failure
        self._connect_failures = 0
        self._trials = 0
        self._open_s = OPEN_S
        self._trial_at_s = 0.0

    def state(self, now_s: float) -> State:
        if not self._is_closed:
            return State.OPEN if now_s < self._trial_at_s else State.HALF_OPEN
        return State.SUSPECT if self._outcomes and self._outcomes[-1] else State.OK

    @property
    def is_closed(self) -> bool:
        return self._is_closed

    @property
    def n_failures(self) -> int:
        """Failures among the last 20 outcomes."""
        return sum(self._outcomes)

    def trial_in_s(self, now_s: float) -> float:
        """Seconds until it may be tried again; 0 when that is now or it is closed."""
        return 0.0 if self._is_closed else max(0.0, self._trial_at_s - now_s)

    def may_ask(self, now_s: float) -> bool:
        """Whether admit() would give a permit."""
        return self._is_closed or (now_s >= self._trial_at_s and self._trials < TRIALS_MAX)

    def admit(self, now_s: float) -> Permit | None:
        """A permit to ask the upstream once; None: not now."""
        if not self.may_ask(now_s):
            return None
        self._trials += not self._is_closed
        return Permit(self._epoch, is_trial=not self._is_closed)

    def answered(self, permit: Permit) -> None:
        """A response head that is no failure came: that ends a trial, whatever becomes of the body."""
        if permit.epoch != self._epoch or permit.is_over or permit.is_answered:
            return
        permit.is_answered = True
        self._connect_failures = 0
        if permit.is_trial:
            self._next_epoch(is_closed=True)
            self._open_s = OPEN_S
            permit.epoch = self._epoch
            permit.is_trial = False
        self._outcomes.append(False)

    def released(self, permit: Permit) -> None:
        """Nothing more will be known: the response is whole, or the request was given up."""
        self._end(permit)

    def failed(self, permit: Permit, now_s: float) -> None:
        """The request failed once connected. After answered() that is one more outcome: if every body breaks off,
        half of the outcomes are failures, and that opens the breaker too."""
        if self._end(permit):
            self._connect_failures = 0
            self._count_failure(now_s)

    def connect_failed(self, permit: Permit, now_s: float) -> None:
        if self._end(permit):
            self._connect_failures += 1
            self._count_failure(now_s)

    def _end(self, permit: Permit) -> bool:
        """Whether what the permit tells still counts."""
        if permit.is_over:
            return False
        permit.is_over = True
        if permit.epoch != self._epoch:
            return False
        self._trials -= permit.is_trial
        return True

    def _count_failure(self, now_s: float) -> None:
        if not self._is_closed:
            self._open_s = min(2 * self._open_s, OPEN_MAX_S)
            self._open(now_s)
            return
        self._outcomes.append(True)
        if self._connect_failures >= CONNECT_FAILURES_MAX or self.n_failures >= FAILURES_MAX:
            self._open(now_s)

    def _open(self, now_s: float) -> None:
        self._next_epoch(is_closed=False)
        self._trial_at_s = now_s + self._open_s

    def _next_epoch(self, *, is_closed: bool) -> None:
        self._epoch += 1
        self._is_closed = is_closed
        self._trials = self._connect_failures = 0
        self._outcomes.clear()
