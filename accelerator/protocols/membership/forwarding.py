"""Which multicast routes a proxy needs: ahead of the packets wherever membership tells enough, so that the first
packet of a flow finds its route, and one by one for flows that nobody foretold. Sans-IO: interfaces are names, the
kernel is elsewhere."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from accelerator.protocols.membership.proxy import Proxy

# A flow that is seen on another interface moves there, but not to and fro with each packet.
MOVE_AFTER_S = 5.0


@dataclass(frozen=True, slots=True)
class Entry:
    """A multicast route. No source: any that has no entry of its own, from `parent` only. No outputs: dropped
    quietly."""

    source: bytes | None
    group: bytes
    parent: str
    outputs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class StaticRoute:
    """What policy sends whoever asks for it. No source: any, from `parent`, which is then the proxy's upstream."""

    source: bytes | None
    group: bytes
    parent: str
    outputs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Install:
    """This entry, in place of what stood there for its source and group."""

    entry: Entry


@dataclass(frozen=True, slots=True)
class Remove:
    entry: Entry


Change = Install | Remove
Key = tuple[bytes | None, bytes]


@dataclass(slots=True)
class _Flow:
    interface: str
    moved_s: float
    is_forged: bool = False


class Forwarding:
    """One proxy's routes, and the static ones whose parents are its interfaces. At most `n_flows_max` flows that no
    membership foretold; more are left to the kernel's queue. `foreign`: sources and groups whose one route is another
    proxy's static one."""

    def __init__(
        self,
        proxy: Proxy,
        n_flows_max: int = 10_000,
        static: Iterable[StaticRoute] = (),
        foreign: frozenset[tuple[bytes, bytes]] = frozenset(),
    ) -> None:
        self._proxy = proxy
        self._n_flows_max = n_flows_max
        self._static: dict[bytes, dict[bytes | None, StaticRoute]] = {}
        for each in static:
            self._static.setdefault(each.group, {})[each.source] = each
        self._foreign = foreign
        self._entries: dict[Key, Entry] = {}
        self._sources: dict[bytes, set[bytes | None]] = {}  # of the entries, by group
        self._flows: dict[tuple[bytes, bytes], _Flow] = {}
        self._flow_sources: dict[bytes, set[bytes]] = {}
        self._changes: deque[Change] = deque()
        self.n_flows_refused = 0

    @property
    def entries(self) -> Mapping[Key, Entry]:
        """What should be installed once all changes are."""
        return self._entries

    @property
    def flows(self) -> list[tuple[bytes, bytes]]:
        """Source and group of the flows that were seen: who installs routes says when they are idle."""
        return list(self._flows)

    def seen(
        self, source: bytes, group: bytes, interface: str, now_s: float, *, is_forged: bool = False
    ) -> None:
        """Packets without a route, or on another interface than their route's, have come in. `is_forged`: elsewhere
        than on `interface`, where their sender is. A route of their own keeps those out without asking us again."""
        flow = self._flows.get((source, group))
        if flow is not None:
            if is_forged or flow.interface == interface or now_s < flow.moved_s + MOVE_AFTER_S:
                return
            flow.interface, flow.moved_s = interface, now_s
        elif len(self._flows) >= self._n_flows_max:
            self.n_flows_refused += 1
            return
        else:
            self._flows[source, group] = _Flow(interface, now_s, is_forged)
            self._flow_sources.setdefault(group, set()).add(source)
        self.refresh(group)

    def forget(self, source: bytes, group: bytes) -> None:
        """The flow is idle."""
        if self._flows.pop((source, group), None) is not None:
            self._flow_sources[group].discard(source)
            if not self._flow_sources[group]:
                del self._flow_sources[group]
            self.refresh(group)

    def refresh(self, group: bytes | None) -> None:
        """Membership, queriers or interfaces have changed: for one group, or in general."""
        if group is None:
            for each in {*self._sources, *self._flow_sources, *self._proxy.groups, *self._static}:
                self.refresh(each)
            return
        wanted = {(entry.source, group): entry for entry in self._wanted(group)}
        for source in list(self._sources.get(group, ())):
            if (source, group) not in wanted:
                self._changes.append(Remove(self._entries.pop((source, group))))
        for key, entry in wanted.items():
            if self._entries.get(key) != entry:
                self._entries[key] = entry
                self._changes.append(Install(entry))
        if wanted:
            self._sources[group] = {source for source, _ in wanted}
        else:
            self._sources.pop(group, None)

    def next_change(self) -> Change | None:
        return self._changes.popleft() if self._changes else None

    def _wanted(self, group: bytes) -> list[Entry]:
        """Who wants a static route's packets besides gets them by the same entry: the kernel has one for a flow."""
        proxy, static = self._proxy, self._static.get(group, {})
        upstream = proxy.upstream
        everywhere = static[None].outputs if None in static else ()
        any_source = _joined(proxy.decide_any(group), everywhere)
        entries = [Entry(None, group, upstream, any_source)] if any_source else []
        named = proxy.named_sources(group)
        seen = {source: self._flows[source, group].interface for source in self._flow_sources.get(group, ())}
        pinned = {source: each for source, each in static.items() if source is not None}
        for source in named | seen.keys() | pinned.keys():
            if (source, group) in self._foreign:
                continue
            fixed = pinned.get(source)
            interface = fixed.parent if fixed is not None else seen.get(source, upstream)
            outputs = proxy.decide(source, group, interface)
            if fixed is not None:
                outputs = _joined(outputs, fixed.outputs)
            if interface == upstream:
                outputs = _joined(outputs, everywhere)
                # The entry for any source says the same, or nobody has seen what nobody wants.
                is_forged = source in seen and self._flows[source, group].is_forged
                if fixed is None and any_source and outputs == any_source and not is_forged:
                    continue
                if not any_source and not outputs and source not in seen:
                    continue
            entries.append(Entry(source, group, interface, outputs))
        return entries


def _joined(outputs: tuple[str, ...], more: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(sorted({*outputs, *more})) if more else outputs
