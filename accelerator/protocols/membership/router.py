"""The router side of membership on one downstream link: which groups and sources its hosts want (RFC 9776 section 6,
RFC 9777 section 7). Sans-IO: packets are read and written by igmp.py or mld.py, one of the two per machine."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass

from accelerator.protocols.membership.deadlines import Deadlines
from accelerator.protocols.membership.filters import NOTHING, Filter
from accelerator.protocols.membership.group import Group
from accelerator.protocols.membership.messages import (
    Drop,
    Heard,
    Kind,
    Leave,
    Prefix,
    Query,
    Record,
    Report,
    is_forwardable,
    is_within,
)
from accelerator.protocols.membership.querier import Querier
from accelerator.protocols.membership.settings import ROBUSTNESS_MAX, RouterSettings

_NO_SOURCES: frozenset[bytes] = frozenset()


@dataclass(frozen=True, slots=True)
class GroupChanged:
    """What the link wants of a group is another filter now."""

    group: bytes
    filter: Filter


@dataclass(frozen=True, slots=True)
class QuerierChanged:
    """Someone else is querier now; None: we are, or nobody."""

    querier: bytes | None


@dataclass(frozen=True, slots=True)
class Refused:
    """What a host sends is left aside for a reason that the administrator should know; seldom told."""

    why: Drop
    sender: bytes


Event = GroupChanged | QuerierChanged | Refused
# Of each reason: a host that floods gives one with each packet.
REFUSED_AGAIN_S = 600.0


class RouterSide:
    """One link, one family. `address` is ours there (MLD: the link-local one), `nets` what is on-link: empty for MLD,
    whose senders are link-local. `drops` counts what was left aside, `n_reports` the reports and leaves of
    hosts here."""

    def __init__(self, settings: RouterSettings, address: bytes | None, nets: tuple[Prefix, ...], now_s: float) -> None:
        self.settings = settings
        self.drops: Counter[Drop] = Counter()
        self.n_reports = 0
        self._address = address
        self._nets = nets
        self._querier = Querier(settings.querier, settings.timing, address, now_s)
        self._groups: dict[bytes, Group] = {}
        self._n_sources = 0
        # Who asked first for how many groups. Each group counts once, so that forged senders are bounded by the link's
        # limit.
        self._owned: Counter[bytes] = Counter()
        self._refused_s: dict[Drop, float] = {}
        self._deadlines = Deadlines()
        self._events: deque[Event] = deque()
        self._queries: deque[Query] = deque()

    @property
    def is_querier(self) -> bool:
        return self._querier.is_querier

    @property
    def may_forward(self) -> bool:
        return self._querier.may_forward

    @property
    def other_querier(self) -> bytes | None:
        return self._querier.other

    @property
    def groups(self) -> Mapping[bytes, Group]:
        """For those who show them."""
        return self._groups

    def filter(self, group: bytes) -> Filter:
        found = self._groups.get(group)
        return NOTHING if found is None else found.filter()

    def accepts(self, source: bytes, group: bytes) -> bool:
        """Whether the link wants the source's packets to the group, and may have them."""
        return self.filter(group).accepts(source) and self.settings.admission.allows_source(source)

    def set_address(self, address: bytes | None, nets: tuple[Prefix, ...], now_s: float) -> None:
        """The interface's addresses have changed."""
        self._address, self._nets = address, nets
        with_querier = self._querier.is_querier
        self._querier.set_address(address, now_s)
        if with_querier and not self._querier.is_querier:
            self._stop_asking()

    def receive(self, heard: Heard | Drop, now_s: float) -> None:
        """One packet, or why it was none."""
        if isinstance(heard, Drop):
            self.drops[heard] += 1
            return
        if heard.sender == self._address:
            return
        is_unknown = not any(heard.sender)
        if not is_unknown and self._nets and not is_within(heard.sender, self._nets):
            self.drops[Drop.OFF_LINK] += 1
            return
        refused = self.settings.admission.hosts_refused
        if refused and not isinstance(heard.message, Query) and is_within(heard.sender, refused):
            self.drops[Drop.HOST_REFUSED] += 1
            return
        if not isinstance(heard.message, Query):
            self.n_reports += 1
        match heard.message:
            case Query() as query:
                if is_unknown:
                    self.drops[Drop.SENDER_UNKNOWN] += 1
                else:
                    self._receive_query(heard.sender, query, now_s)
            case Report(version=3, records=records):
                for record in records:
                    self._receive_record(record, 3, now_s, heard.sender)
            case Report(version=version, records=records):
                for record in records:
                    self._receive_record(record, version, now_s, heard.sender)
            case Leave(group=group):
                self._receive_record(Record(Kind.TO_INCLUDE, group), 2, now_s, heard.sender)

    def assume(self, record: Record, now_s: float) -> None:
        """A record that nobody has sent us: what hosts wanted when we were last told."""
        self._receive_record(record, 3, now_s, None)

    def next_event(self) -> Event | None:
        return self._events.popleft() if self._events else None

    def to_send(self, now_s: float) -> list[Query]:
        """The queries that are due."""
        self.on_timer(now_s)
        queries = list(self._queries)
        self._queries.clear()
        return queries

    def next_timer(self) -> float | None:
        times = [at_s for at_s in (self._deadlines.next(), self._querier.next_timer()) if at_s is not None]
        return min(times, default=None)

    def on_timer(self, now_s: float) -> None:
        """What is heard at the same moment counts first: call receive() before it for all that has arrived."""
        had_other = self._querier.other
        general = self._querier.on_timer(now_s)
        if general is not None:
            self._queries.append(general)
        if had_other != self._querier.other:
            self._events.append(QuerierChanged(self._querier.other))
        for address in self._deadlines.pop_due(now_s):
            group = self._groups[address]
            before = group.filter()
            self._queries.extend(group.on_timer(now_s, self._querier.timing))
            self._settle(group, before)

    def _refuse(self, why: Drop, sender: bytes, now_s: float) -> None:
        self.drops[why] += 1
        told_s = self._refused_s.get(why)
        if told_s is None or now_s >= told_s + REFUSED_AGAIN_S:
            self._refused_s[why] = now_s
            self._events.append(Refused(why, sender))

    def _receive_query(self, sender: bytes, query: Query, now_s: float) -> None:
        # One forged query would silence a link for hours: nobody asks, and switches end what nobody reports.
        if self._querier.present_s(query) > max(self.settings.other_present_max_s, self._querier.own_present_s):
            self._refuse(Drop.QUERY_ABSURD, sender, now_s)
            return
        was_querier, had_other = self._querier.is_querier, self._querier.other
        self._querier.heard(sender, query, now_s)
        if had_other != self._querier.other:
            self._events.append(QuerierChanged(self._querier.other))
        if was_querier and not self._querier.is_querier:
            self._stop_asking()
        group = self._groups.get(query.group) if query.group is not None else None
        if group is None or query.suppress or self._querier.is_querier:
            return
        # The time that its querier gives: the response time that it tells, as often as it asks.
        timing = self._querier.timing
        time_s = max(timing.last_member_time_s, query.max_response_s * min(timing.robustness, ROBUSTNESS_MAX))
        group.lower(query.sources, now_s + time_s + timing.late_s)
        self._deadlines.set(group.address, group.next_timer())

    def _receive_record(self, record: Record, version: int, now_s: float, sender: bytes | None) -> None:
        """`sender` None: it is not known any more."""
        wanted = self._admitted(record, version)
        if isinstance(wanted, Drop):
            self.drops[wanted] += 1
            return
        group = self._groups.get(record.group)
        kind = wanted.kind
        if group is None:
            if kind in (Kind.TO_INCLUDE, Kind.BLOCK, Kind.IS_INCLUDE, Kind.ALLOW) and not (
                wanted.sources and kind is not Kind.BLOCK
            ):
                return
            if sender is not None and (why := self._why_no_group(sender)) is not None:
                self._refuse(why, sender, now_s)
                return
            group = Group(record.group)
        elif len(group.requested.keys() | group.excluded | wanted.sources) > self.settings.admission.n_sources_max:
            self.drops[Drop.SOURCE_LIMIT] += 1
            return
        new = wanted.sources - group.requested.keys() - group.excluded
        if new and self._n_sources + len(new) > self.settings.admission.n_sources_all_max:
            self.drops[Drop.SOURCE_LIMIT] += 1
            return
        sources = wanted.sources
        timing = self._querier.timing
        is_join = version < 3 and kind is Kind.IS_EXCLUDE
        if is_join:
            until_s = now_s + timing.older_version_s + timing.late_s
            if version == 1:
                group.v1_until_s = until_s
            else:
                group.v2_until_s = until_s
        # RFC 9776 section 7.3.2: what older hosts beside it can't say or hear isn't done to them.
        mode = group.version(now_s)
        if (mode < 3 and kind is Kind.BLOCK) or (mode == 1 and kind is Kind.TO_INCLUDE):
            self.drops[Drop.OLDER_VERSION] += 1
            return
        if mode < 3 and kind is Kind.TO_EXCLUDE:
            sources = _NO_SOURCES
        self._groups[record.group] = group
        before = group.filter() if not group.is_empty else NOTHING
        if self.settings.has_fast_leave and kind in (Kind.TO_INCLUDE, Kind.BLOCK):
            group.leave_at_once(kind, sources, now_s, timing)
            for _ in group.on_timer(now_s, timing):
                pass
        else:
            group.receive(kind, sources, now_s, timing, self._querier.is_querier)
        if sender is not None:
            self._own(group, sender, is_leaving=kind is Kind.TO_INCLUDE and not sources)
        self._settle(group, before)

    def _why_no_group(self, sender: bytes) -> Drop | None:
        """Why the sender may not have the link take up another group."""
        admission = self.settings.admission
        if len(self._groups) >= admission.n_groups_max:
            return Drop.GROUP_LIMIT
        return Drop.GROUP_LIMIT_HOST if self._owned[sender] >= admission.n_groups_host_max else None

    def _own(self, group: Group, sender: bytes, *, is_leaving: bool) -> None:
        """A group counts among those of who asked for it first, until he leaves; then of who says next that he wants
        it."""
        if is_leaving and group.owner == sender:
            self._disown(group)
        elif not is_leaving and group.owner is None:
            group.owner = sender
            self._owned[sender] += 1

    def _disown(self, group: Group) -> None:
        if group.owner is None:
            return
        self._owned[group.owner] -= 1
        if not self._owned[group.owner]:
            del self._owned[group.owner]
        group.owner = None

    def _admitted(self, record: Record, version: int) -> Record | Drop:
        """The record, less the sources that nobody here may have."""
        admission = self.settings.admission
        is_exclude = record.kind in (Kind.IS_EXCLUDE, Kind.TO_EXCLUDE)
        if not is_forwardable(record.group):
            return Drop.LINK_SCOPE
        if not admission.allows_group(record.group):
            return Drop.GROUP_NOT_ALLOWED
        if (is_exclude or version < 3) and admission.is_ssm(record.group):
            return Drop.ANY_SOURCE_OF_SSM
        if len(record.sources) > admission.n_sources_max:
            return Drop.SOURCE_LIMIT
        if is_exclude or record.kind is Kind.BLOCK or admission.sources is None:
            return record
        allowed = frozenset(filter(admission.allows_source, record.sources))
        self.drops[Drop.SOURCE_NOT_ALLOWED] += len(record.sources) - len(allowed)
        return Record(record.kind, record.group, allowed)

    def _settle(self, group: Group, before: Filter) -> None:
        """After a change: the group's next deadline, the event, and its end if nobody wants it."""
        n_sources = 0 if group.is_empty else len(group.requested) + len(group.excluded)
        self._n_sources += n_sources - group.n_sources_counted
        group.n_sources_counted = n_sources
        if group.is_empty:
            del self._groups[group.address]
            self._disown(group)
            self._deadlines.set(group.address, None)
            after = NOTHING
        else:
            self._deadlines.set(group.address, group.next_timer())
            after = group.filter()
        if after != before:
            self._events.append(GroupChanged(group.address, after))

    def _stop_asking(self) -> None:
        self._queries.clear()
        for group in self._groups.values():
            group.stop_asking()
