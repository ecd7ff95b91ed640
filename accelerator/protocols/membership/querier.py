"""Who asks on a link: querier election and general queries (RFC 9776 sections 6.6.2, 8.6 and 8.7; RFC 9777 section
7.6.2). Sans-IO. Groups are in router.py."""

from __future__ import annotations

from dataclasses import replace

from accelerator.protocols.membership.messages import Query
from accelerator.protocols.membership.settings import INTERVAL_MAX_S, ROBUSTNESS_MAX, QuerierMode, Timing


class Querier:
    """One interface's. `address` is ours there, None while it has none: then nothing is asked."""

    def __init__(self, mode: QuerierMode, timing: Timing, address: bytes | None, now_s: float) -> None:
        self._mode = mode
        self._own_timing = timing
        self._address = address
        self._other: bytes | None = None
        self._other_until_s = 0.0
        self._next_query_s: float | None = None
        self._n_startup = 0
        self.timing = timing
        self._start(now_s)

    @property
    def is_querier(self) -> bool:
        return self._next_query_s is not None

    @property
    def may_forward(self) -> bool:
        """RFC 4605 section 3: of several routers on a link the querier forwards, or viewers would get everything
        twice."""
        return self.is_querier or self._mode is QuerierMode.NEVER

    @property
    def other(self) -> bytes | None:
        """The querier, where it isn't us."""
        return self._other

    def set_address(self, address: bytes | None, now_s: float) -> None:
        if address == self._address:
            return
        self._address = address
        if address is None:
            self._next_query_s = None
        elif self._other is None:
            self._start(now_s)

    def present_s(self, query: Query) -> float:
        """For how long after this query its sender would be taken for the querier (RFC 9776 section 8.5)."""
        return self._adopted(query).other_querier_s

    @property
    def own_present_s(self) -> float:
        """The same of our own queries."""
        return self._own_timing.other_querier_s

    def heard(self, sender: bytes, query: Query, now_s: float) -> None:
        """Another router's query."""
        if self._mode is QuerierMode.ALWAYS:
            return
        # The lower address wins. One that asks while we are silent keeps the office, whatever its address: taking it
        # away gains nothing, and a switch that is querier and no router would lose what it learns from the answers.
        if self.is_querier and self._address is not None and sender > self._address:
            return
        self._other, self._next_query_s = sender, None
        self.timing = self._adopted(query)
        self._other_until_s = now_s + self.timing.other_querier_s + self._own_timing.late_s

    def _adopted(self, query: Query) -> Timing:
        """RFC 9776 sections 4.1.6 and 4.1.7: who doesn't ask takes the querier's times."""
        own = self._own_timing
        return replace(
            own,
            robustness=min(query.robustness, ROBUSTNESS_MAX) or own.robustness,
            interval_s=min(query.interval_s, INTERVAL_MAX_S) or own.interval_s,
        )

    def next_timer(self) -> float | None:
        return self._next_query_s if self._other is None else self._other_until_s

    def on_timer(self, now_s: float) -> Query | None:
        """The general query that is due."""
        if self._other is not None and now_s >= self._other_until_s:
            self._other = None
            self._start(now_s)
        if self._next_query_s is None or now_s < self._next_query_s:
            return None
        timing = self.timing
        self._n_startup = max(0, self._n_startup - 1)
        self._next_query_s = now_s + (timing.startup_interval_s if self._n_startup else timing.interval_s)
        return Query(3, timing.response_s, robustness=timing.robustness, interval_s=timing.interval_s)

    def _start(self, now_s: float) -> None:
        self.timing = self._own_timing
        if self._mode is not QuerierMode.NEVER and self._address is not None:
            self._n_startup = self.timing.robustness
            self._next_query_s = now_s
