"""One group on one downstream link: filter mode, source timers, and the queries that ask for last members (RFC 9776
sections 6.2 to 6.6, RFC 9777 sections 7.2 to 7.6). Sans-IO; who may ask for what is router.py's."""

from __future__ import annotations

from collections.abc import Iterator, Set

from accelerator.protocols.membership.filters import Filter
from accelerator.protocols.membership.messages import Kind, Query
from accelerator.protocols.membership.settings import Timing

_INFINITY = float("inf")


class Group:
    """INCLUDE(A) is `requested`; EXCLUDE(X,Y) is `requested` and `excluded` (RFC 9776 section 6.2.3)."""

    __slots__ = (
        "_ask_at_s",
        "_ask_sources",
        "_ask_sources_at_s",
        "_n_asks",
        "address",
        "excluded",
        "expires_s",
        "is_exclude",
        "n_sources_counted",
        "owner",
        "requested",
        "v1_until_s",
        "v2_until_s",
    )

    def __init__(self, address: bytes) -> None:
        self.address = address
        self.is_exclude = False
        self.expires_s = 0.0  # the group timer, of EXCLUDE mode only
        self.n_sources_counted = 0  # by the link, for its limit
        self.owner: bytes | None = None  # whose groups it counts among, for the limit of each host
        self.requested: dict[bytes, float] = {}
        self.excluded: set[bytes] = set()
        self.v1_until_s = self.v2_until_s = 0.0
        self._n_asks = 0
        self._ask_at_s = _INFINITY
        self._ask_sources: dict[bytes, int] = {}
        self._ask_sources_at_s = _INFINITY

    @property
    def is_empty(self) -> bool:
        return not self.is_exclude and not self.requested

    def filter(self) -> Filter:
        """What has to be forwarded."""
        return Filter(True, frozenset(self.excluded)) if self.is_exclude else Filter(False, frozenset(self.requested))

    def version(self, now_s: float) -> int:
        """The group's compatibility mode (RFC 9776 section 7.3.2)."""
        return 1 if now_s < self.v1_until_s else 2 if now_s < self.v2_until_s else 3

    def next_timer(self) -> float:
        """When on_timer() is due, at the latest: infinity if never."""
        first = min(self._ask_at_s, self._ask_sources_at_s)
        if self.is_exclude:
            first = min(first, self.expires_s)
        return min(first, min(self.requested.values())) if self.requested else first

    def receive(self, kind: Kind, sources: Set[bytes], now_s: float, timing: Timing, asks: bool) -> None:
        """One record, after RFC 9776 sections 6.4.1 and 6.4.2. `asks`: we are querier, so that what may have lost its
        last member is asked for; else the querier does that, and timers follow its queries."""
        until_s = now_s + timing.membership_s
        # The tables' A is what a querier has to ask for, computed from the state before.
        asked: Set[bytes] = frozenset()
        is_group_asked = False
        match kind, self.is_exclude:
            case (Kind.IS_INCLUDE | Kind.ALLOW, _):
                self._request(sources, until_s)
            case (Kind.TO_INCLUDE, False):
                asked = self.requested.keys() - sources
                self._request(sources, until_s)
            case (Kind.TO_INCLUDE, True):
                asked = self.requested.keys() - sources
                is_group_asked = True
                self._request(sources, until_s)
            case (Kind.BLOCK, False):
                asked = self.requested.keys() & sources
            case (Kind.BLOCK, True):
                asked = sources - self.excluded
                for source in asked - self.requested.keys():
                    self.requested[source] = self.expires_s
            case (Kind.IS_EXCLUDE | Kind.TO_EXCLUDE, False):
                self.requested = {source: at for source, at in self.requested.items() if source in sources}
                self.excluded = set(sources - self.requested.keys())
                asked = set(self.requested) if kind is Kind.TO_EXCLUDE else frozenset()
                self.is_exclude, self.expires_s = True, until_s
            case (Kind.IS_EXCLUDE | Kind.TO_EXCLUDE, True):
                new_s = until_s if kind is Kind.IS_EXCLUDE else self.expires_s
                requested = sources - self.excluded
                self.requested = {source: self.requested.get(source, new_s) for source in requested}
                self.excluded &= sources
                asked = requested if kind is Kind.TO_EXCLUDE else frozenset()
                self.expires_s = until_s
        # Whoever wants a source again ends the asking for it; lowered timers were raised with that.
        for source in [source for source in self._ask_sources if source not in self.requested]:
            del self._ask_sources[source]
        if asks:
            if asked:
                self._ask_for_sources(asked, now_s, timing)
            if is_group_asked:
                self.expires_s = min(self.expires_s, now_s + timing.last_member_time_s + timing.late_s)
                self._n_asks, self._ask_at_s = timing.n_last_member_queries, now_s

    def leave_at_once(self, kind: Kind, sources: Set[bytes], now_s: float, timing: Timing) -> None:
        """A record, when nobody else can be listening: what it doesn't want ends now (fast leave)."""
        self.receive(kind, sources, now_s, timing, asks=False)
        if kind is Kind.TO_INCLUDE:
            for source in self.requested.keys() - sources:
                self.requested[source] = now_s
            self.expires_s = now_s
        elif kind is Kind.BLOCK:
            for source in self.requested.keys() & sources:
                self.requested[source] = now_s

    def lower(self, sources: Set[bytes], until_s: float) -> None:
        """The querier asked, without the S flag, for these sources, or for the group if there are none (RFC 9776
        section 6.6.1)."""
        if not sources:
            self.expires_s = min(self.expires_s, until_s)
        for source in self.requested.keys() & sources:
            self.requested[source] = min(self.requested[source], until_s)

    def stop_asking(self) -> None:
        """We are querier no longer."""
        self._n_asks, self._ask_at_s = 0, _INFINITY
        self._ask_sources.clear()
        self._ask_sources_at_s = _INFINITY

    def on_timer(self, now_s: float, timing: Timing) -> Iterator[Query]:
        """Lets expire what has (RFC 9776 sections 6.3 and 6.5), and gives the queries that are due."""
        over = [source for source, at_s in self.requested.items() if at_s <= now_s]
        for source in over:
            del self.requested[source]
            self._ask_sources.pop(source, None)
        if self.is_exclude:
            self.excluded.update(over)
            if self.expires_s <= now_s:
                self.is_exclude = False
                self.excluded.clear()
                self._n_asks, self._ask_at_s = 0, _INFINITY
        is_group_asked = self._ask_at_s <= now_s
        if is_group_asked:
            yield from self._group_query(now_s, timing)
        if self._ask_sources_at_s <= now_s:
            yield from self._source_queries(now_s, timing, is_group_asked)

    def _request(self, sources: Set[bytes], until_s: float) -> None:
        self.excluded -= sources
        for source in sources:
            self.requested[source] = until_s

    def _ask_for_sources(self, sources: Set[bytes], now_s: float, timing: Timing) -> None:
        until_s = now_s + timing.last_member_time_s + timing.late_s
        for source in sources:
            if self.requested[source] > until_s:
                self.requested[source] = until_s
            self._ask_sources[source] = timing.n_last_member_queries
        self._ask_sources_at_s = now_s

    def _group_query(self, now_s: float, timing: Timing) -> Iterator[Query]:
        self._n_asks -= 1
        self._ask_at_s = now_s + timing.last_member_interval_s if self._n_asks else _INFINITY
        yield self._query(timing, frozenset(), suppress=self.expires_s > self._lowered_s(now_s, timing))

    def _source_queries(self, now_s: float, timing: Timing, is_group_asked: bool) -> Iterator[Query]:
        """Two queries: with the S flag for sources that someone has reported since (RFC 9776 section 6.6.3.2), unless
        the group itself is asked for."""
        lowered_s = self._lowered_s(now_s, timing)
        alive = frozenset(source for source in self._ask_sources if self.requested[source] > lowered_s)
        doubtful = frozenset(self._ask_sources) - alive
        for source in list(self._ask_sources):
            self._ask_sources[source] -= 1
            if not self._ask_sources[source]:
                del self._ask_sources[source]
        self._ask_sources_at_s = now_s + timing.last_member_interval_s if self._ask_sources else _INFINITY
        if alive and not is_group_asked:
            yield self._query(timing, alive, suppress=True)
        if doubtful:
            yield self._query(timing, doubtful, suppress=False)

    @staticmethod
    def _lowered_s(now_s: float, timing: Timing) -> float:
        """No timer that was lowered for the asking that is under way ends later."""
        return now_s + timing.last_member_time_s + timing.late_s

    def _query(self, timing: Timing, sources: frozenset[bytes], suppress: bool) -> Query:
        return Query(
            3,
            timing.last_member_interval_s,
            self.address,
            sources,
            suppress,
            robustness=timing.robustness,
            interval_s=timing.interval_s,
        )
