"""The host side of membership on one link: what the proxy asks of its upstream (RFC 9776 sections 5 and 7.2, RFC 9777
sections 6 and 8.2). Our own, since a kernel's socket holds 20 groups of 10 sources. Sans-IO."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from accelerator.protocols.membership.deadlines import Deadlines
from accelerator.protocols.membership.filters import NOTHING, Filter
from accelerator.protocols.membership.messages import (
    Drop,
    Heard,
    Kind,
    Leave,
    Message,
    Query,
    Record,
    Report,
)
from accelerator.protocols.membership.settings import RESPONSE_MAX_S, HostSettings

_NO_SOURCES: frozenset[bytes] = frozenset()
ASKED_MAX = 512


@dataclass(frozen=True, slots=True)
class VersionChanged:
    """An older querier made us speak its version, or the last of its kind is gone. Below 3 no source filter goes up."""

    version: int


@dataclass(slots=True)
class _Change:
    """What of a group has still to be told: so many times its mode, and these sources so many times each."""

    n_mode: int = 0
    n_sources: dict[bytes, int] = field(default_factory=dict)


class HostSide:
    """One link, one family. `fraction` gives the randomness of delays: numbers in [0, 1)."""

    def __init__(self, settings: HostSettings, fraction: Callable[[], float]) -> None:
        self.drops: Counter[Drop] = Counter()
        self._settings = settings
        self._fraction = fraction
        self._robustness = settings.robustness
        self._filters: dict[bytes, Filter] = {}
        self._changes: dict[bytes, _Change] = {}
        self._change_times = Deadlines()
        self._general_s: float | None = None
        self._asked: dict[bytes, frozenset[bytes]] = {}  # no sources: for the group itself
        self._answer_times = Deadlines()
        self._v1_until_s = self._v2_until_s = 0.0
        self._version = 3
        self._messages: deque[Message] = deque()
        self._events: deque[VersionChanged] = deque()

    @property
    def filters(self) -> Mapping[bytes, Filter]:
        """What is asked for now."""
        return self._filters

    @property
    def version(self) -> int:
        """What is spoken since the last call that took a time."""
        return self._version

    def set_filter(self, group: bytes, wanted: Filter, now_s: float) -> None:
        """Asks for other sources of a group than before: NOTHING leaves it."""
        before = self._filters.get(group, NOTHING)
        if wanted == before:
            return
        self._update_version(now_s)
        if wanted == NOTHING:
            del self._filters[group]
            self._answer_times.set(group, None)
            self._asked.pop(group, None)
        else:
            self._filters[group] = wanted
        if self._version < 3:
            self._change_old(group, before, wanted, now_s)
            return
        change = self._changes.setdefault(group, _Change())
        if before.is_exclude != wanted.is_exclude:
            # A mode change tells the whole list.
            change.n_mode = self._robustness
            change.n_sources.clear()
        else:
            for source in before.sources ^ wanted.sources:
                change.n_sources[source] = self._robustness
        self._change_times.set(group, now_s)

    def announce(self, now_s: float) -> None:
        """Says all that is asked for without being asked, as after a start: the link is another one than before."""
        for group, wanted in self._filters.items():
            self._changes[group] = _Change(n_mode=self._robustness)
            if self._version == 3 and not wanted.is_exclude:
                self._changes[group] = _Change(n_sources=dict.fromkeys(wanted.sources, self._robustness))
            self._change_times.set(group, now_s)

    def receive(self, heard: Heard | Drop, now_s: float) -> None:
        """One packet, or why it was none. Off-link senders are the caller's to drop."""
        if isinstance(heard, Drop):
            self.drops[heard] += 1
            return
        self._update_version(now_s)
        message = heard.message
        if isinstance(message, Query):
            self._receive_query(message, now_s)
        elif isinstance(message, Report) and message.version < 3 and self._version < 3:
            # RFC 2236 section 3: another's report spares ours. In version 3 nobody is spared.
            for record in message.records:
                self._answer_times.set(record.group, None)

    def next_event(self) -> VersionChanged | None:
        return self._events.popleft() if self._events else None

    def to_send(self, now_s: float) -> list[Message]:
        """The reports and leaves that are due, one report for all groups; the writer splits it."""
        self.on_timer(now_s)
        messages = list(self._messages)
        self._messages.clear()
        return messages

    def next_timer(self) -> float | None:
        times = (self._change_times.next(), self._answer_times.next(), self._general_s, self._version_timer())
        return min((at_s for at_s in times if at_s is not None), default=None)

    def on_timer(self, now_s: float) -> None:
        self._update_version(now_s)
        changed = [record for group in self._change_times.pop_due(now_s) for record in self._changed(group, now_s)]
        self._report(changed)
        answers: list[Record] = []
        if self._general_s is not None and self._general_s <= now_s:
            self._general_s = None
            answers += [self._state(group) for group in self._filters]
        for group in self._answer_times.pop_due(now_s):
            answers += self._answer(group)
        self._report(answers)

    def _report(self, records: list[Record]) -> None:
        if not records:
            return
        if self._version == 3:
            self._messages.append(Report(3, tuple(records)))
        else:
            self._messages.extend(Report(self._version, (Record(Kind.IS_EXCLUDE, each.group),)) for each in records)

    def _state(self, group: bytes) -> Record:
        wanted = self._filters[group]
        return Record(Kind.IS_EXCLUDE if wanted.is_exclude else Kind.IS_INCLUDE, group, wanted.sources)

    def _changed(self, group: bytes, now_s: float) -> Iterator[Record]:
        """The records of a change (RFC 9776 section 5.1), and when they are told again."""
        change = self._changes[group]
        wanted = self._filters.get(group, NOTHING)
        if change.n_mode:
            change.n_mode -= 1
            yield Record(Kind.TO_EXCLUDE if wanted.is_exclude else Kind.TO_INCLUDE, group, wanted.sources)
        else:
            told = frozenset(change.n_sources)
            listed, unlisted = told & wanted.sources, told - wanted.sources
            allowed, blocked = (unlisted, listed) if wanted.is_exclude else (listed, unlisted)
            if allowed:
                yield Record(Kind.ALLOW, group, allowed)
            if blocked:
                yield Record(Kind.BLOCK, group, blocked)
        change.n_sources = {source: n - 1 for source, n in change.n_sources.items() if n > 1}
        if change.n_mode or change.n_sources:
            longest_s = self._settings.unsolicited_interval_s
            if self._version < 3:
                longest_s = self._settings.unsolicited_interval_v2_s
            self._change_times.set(group, now_s + self._fraction() * longest_s)
        else:
            del self._changes[group]

    def _change_old(self, group: bytes, before: Filter, wanted: Filter, now_s: float) -> None:
        """Versions 1 and 2 know members and no members only (RFC 2236 section 3)."""
        if before == NOTHING:
            self._changes[group] = _Change(n_mode=self._robustness)
            self._change_times.set(group, now_s)
        elif wanted == NOTHING:
            self._changes.pop(group, None)
            self._change_times.set(group, None)
            if self._version == 2:
                self._messages.append(Leave(group))

    def _receive_query(self, query: Query, now_s: float) -> None:
        if query.max_response_s > RESPONSE_MAX_S:
            self.drops[Drop.RESPONSE_TIME] += 1
        if query.version == 3:
            self._robustness = query.robustness or self._settings.robustness
        elif query.version >= self._settings.version_min:
            until_s = now_s + self._settings.older_querier_s
            if query.version == 1:
                self._v1_until_s = until_s
            else:
                self._v2_until_s = until_s
            self._update_version(now_s)
        if query.group is None:
            self._plan_general(query, now_s)
        elif query.group in self._filters:
            self._plan_answer(query.group, query.sources, self._delayed(query, now_s))

    def _plan_general(self, query: Query, now_s: float) -> None:
        """RFC 9776 section 5.2, rules 1 and 2. Older versions answer for each group at a time of its own, so that one
        host's report can spare another's."""
        if self._version < 3:
            for group in self._filters:
                self._plan_answer(group, _NO_SOURCES, self._delayed(query, now_s))
            return
        at_s = self._delayed(query, now_s)
        if self._general_s is None or at_s < self._general_s:
            self._general_s = at_s

    def _plan_answer(self, group: bytes, sources: frozenset[bytes], at_s: float) -> None:
        """RFC 9776 section 5.2, rules 1 and 3 to 5."""
        if self._general_s is not None and self._general_s <= at_s:
            return
        pending_s = self._answer_times.get(group)
        if pending_s is not None:
            at_s = min(at_s, pending_s)
            asked = self._asked[group]
            sources = asked | sources if asked and sources else _NO_SOURCES
        # Who asks for ever more sources is told the whole filter, which answers for any of them.
        self._asked[group] = sources if len(sources) <= ASKED_MAX else _NO_SOURCES
        self._answer_times.set(group, at_s)

    def _answer(self, group: bytes) -> Iterator[Record]:
        asked = self._asked.pop(group)
        wanted = self._filters[group]
        if not asked or self._version < 3:
            yield self._state(group)
            return
        heard = frozenset(source for source in asked if wanted.accepts(source))
        if heard:
            yield Record(Kind.IS_INCLUDE, group, heard)

    def _delayed(self, query: Query, now_s: float) -> float:
        return now_s + self._fraction() * min(query.max_response_s, RESPONSE_MAX_S)

    def _version_timer(self) -> float | None:
        if self._version == 3:
            return None
        return self._v1_until_s if self._version == 1 else self._v2_until_s

    def _update_version(self, now_s: float) -> None:
        """RFC 9776 section 7.2.1: a change of version ends all that is pending."""
        version = 1 if now_s < self._v1_until_s else 2 if now_s < self._v2_until_s else 3
        if version == self._version:
            return
        self._version = version
        self._changes.clear()
        self._change_times.clear()
        self._asked.clear()
        self._answer_times.clear()
        self._general_s = None
        if version == 3:
            # Nobody asks for filters that were never told: tell them, as after a start.
            self.announce(now_s)
        self._events.append(VersionChanged(version))
