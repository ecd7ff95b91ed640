"""What the daemon offers to its operators: the Protocol `Box`, and the sheet of what its answers hold. No code may
live here.

The sheets are TypedDicts, so that a plain dict serves: control.server sends them as JSON, control.display and
web.admin read them. An answer may hold more keys than its sheet; a reader takes what it knows.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from typing import NotRequired, Protocol, TypedDict


class Listener(TypedDict):
    name: str
    address: str  # with the real port, also where the policy says port 0
    accepting: bool


class PolicyState(TypedDict):
    generation: int
    digest: str
    path: str


class Worker(TypedDict):
    index: int
    connections: int
    alive: bool


class Health(TypedDict):
    ok: bool
    reasons: Sequence[str]


class UpstreamState(TypedDict):
    """One server of an origin, as its requests see it. `state`: ok, suspect (its last answer was a failure), open (not
    asked), half-open (asked by trials)."""

    origin: str
    upstream: str
    state: str
    failures: int  # of the last 20 outcomes
    trial_in_s: float
    error: str  # of the last failure


class Status(TypedDict):
    site: str
    version: str
    uptime_s: float
    listeners: Sequence[Listener]
    admin: str | None
    policy: PolicyState
    workers: Sequence[Worker]
    tunnels: NotRequired[int]  # open now
    health: Health
    upstreams: Sequence[UpstreamState]


class CacheStats(TypedDict):
    """requests = hits + misses + collapsed + passed + refused. Bytes are body bytes, objects are complete variants.

    Other whole numbers may stand beside these (named refusals, for example).
    """

    requests: int
    hits: int
    misses: int
    collapsed: int
    passed: int
    refused: int
    bytes_to_viewers: int
    bytes_from_origin: int
    objects: int
    memory_bytes: int
    memory_limit_bytes: int
    evictions: int


# "class" is a reserved word, hence the other spelling.
CacheObject = TypedDict(
    "CacheObject",
    {
        "url": str,
        "origin": str,
        "status": int,
        "size_bytes": int,
        "age_s": float,
        "ttl_s": float,  # negative: stale for so long
        "state": str,  # "filling", "fresh", "stale"
        "class": str | None,
        "kind": str,
        "hits": NotRequired[int],
        "id": NotRequired[str],  # names it in object_purge, for a while
    },
)


class CacheList(TypedDict):
    """`total` counts all that match, `objects` is the page of them that was asked for."""

    total: int
    objects: Sequence[CacheObject]


class OriginCounters(TypedDict):
    name: str
    requests: int
    hits: int
    bytes_to_viewers: int
    bytes_from_origin: int
    connections: int  # to the origin, now, without tunnels
    errors: int
    upstreams: int
    upstreams_out: int  # of them: not asked for now but for trials
    tunnels: NotRequired[int]  # open now


class Top(TypedDict):
    """One snapshot; accelctl computes rates from two. `counters` holds what CacheStats does, and `connections` (open
    now).
    """

    now_ns: int  # monotonic
    counters: Mapping[str, int]
    origins: Sequence[OriginCounters]
    listeners: Sequence[Mapping[str, object]]


class Recent(TypedDict):
    """The last ten minutes, a sample a second, the oldest first; all lists are of one length."""

    at_s: Sequence[float]
    to_viewers_bps: Sequence[float]
    from_origin_bps: Sequence[float]
    requests_per_s: Sequence[float]


class Finding(TypedDict):
    """Something to know: services.findings says which codes there are. `level`: bad, warn or info."""

    code: str
    level: str
    subject: str
    values: Mapping[str, object]


class Live(TypedDict):
    """What the dashboard shows, the same for all who ask within a second. Rates are of the last five seconds, ratios
    of the last minute; `counters` are those of Top. At most 100 origins, those in trouble and the busiest first."""

    number: int  # of the sample
    at_s: float
    level: str  # bad, warn, ok
    findings: Sequence[Finding]
    site: str
    version: str
    uptime_s: float
    policy: PolicyState
    health: Health
    listeners: Sequence[Listener]
    workers: Sequence[Worker]
    last_event: int
    counters: Mapping[str, int]
    now: Mapping[str, float | None]
    n_origins: int
    origins: Sequence[Mapping[str, object]]
    classes: Sequence[Mapping[str, object]]
    relays: Sequence[Mapping[str, object]]  # as relay_list has them


# A dict, or a coroutine where the work belongs off the loop (a listing of a million objects).
Answer = Mapping[str, object] | Awaitable[Mapping[str, object]]


class Stream(Protocol):
    """An answer of many lines: one for each value until it ends or raises ControlError. To be closed in any case."""

    def __aiter__(self) -> Stream: ...

    async def __anext__(self) -> Mapping[str, object]: ...

    def close(self) -> None: ...


# name -> (value, one line of help)
Figures = Mapping[str, tuple[float, str]]


class Box(Protocol):
    """Called on the daemon's loop. A method that refuses raises ControlError (kind, message): the operator reads
    both.
    """

    def status(self) -> Mapping[str, object]:
        """Status. Cheap: /healthz calls it each time."""
        ...

    def routes(self) -> Answer:
        """What accelerator-netd shows: desired state by service, and for each family and proxy its routes."""
        ...

    def relay_list(self) -> Mapping[str, object]:
        """{"relays": [summary of each]}: `state` idle, waiting, live or silent, rates of the last second, counters."""
        ...

    def relay_playlist(self) -> Mapping[str, object]:
        """{"m3u": the output groups as a playlist}."""
        ...

    def relay_show(self, *, name: str) -> Mapping[str, object]:
        """The summary, with `legs`, `to`, all `counters`."""
        ...

    def relay_add_receiver(self, *, name: str, receivers: str) -> Answer:
        """{"added": n, "receivers": of the relay now}. `receivers`: ADDRESS:PORT with commas between; all or none."""
        ...

    def relay_remove_receiver(self, *, name: str, receivers: str) -> Answer:
        """{"removed": n, "receivers": of the relay now}."""
        ...

    def relay_metrics(
        self,
    ) -> tuple[Mapping[str, str], Sequence[tuple[str, Mapping[str, int], Mapping[str, float]]]]:
        """What each counter means, and (name, counters, gauges) of each relay, for /metrics."""
        ...

    def cache_stats(self) -> Answer:
        """CacheStats."""
        ...

    def cache_list(
        self, *, prefix: str | None, contains: str | None, origin: str | None, class_name: str | None, sort: str,
        offset: int, limit: int,
    ) -> Answer:  # fmt: skip
        """CacheList. `sort`: url ascending; size, age, ttl descending. `contains`: in host and path, of any case."""
        ...

    def cache_purge(
        self, *, url: str | None, prefix: str | None, origin: str | None, tag: str | None = None
    ) -> Answer:
        """{"purged": n}, after no viewer can be answered with them any more. Exactly one argument is not None, or tag
        and origin."""
        ...

    def cache_erase(self, *, class_name: str | None, is_unclassed: bool | None) -> Answer:
        """{"erased": n, "segments", "sealed"}, after nothing of the class (of no class) can be read any more."""
        ...

    def object_purge(self, *, name: str) -> Answer:
        """{"purged": n, "url"} of the object that a CacheObject's `id` names, with all its variants."""
        ...

    def policy_show(self) -> Answer:
        """{"generation", "digest", "policy": as a policy writes it, defaults included}."""
        ...

    def policy_text(self, *, number: int | None) -> Answer:
        """An entry of the history with "files": [{"name", "text"}]; None: the running one."""
        ...

    def policy_compare(self, *, number: int | None, to: int | None) -> Answer:
        """{"from", "to", "changes", "effects", "needs_restart"}; `to` None: the policy that ran before it."""
        ...

    def policy_apply(self, *, files: Sequence[tuple[str, str]], folder: str, path: str, force: bool | None) -> Answer:
        """{"generation", "digest", "number" in the history, "changes", "effects"}, after it runs."""
        ...

    def policy_history(self) -> Answer:
        """{"running": number, "entries": newest first}."""
        ...

    def policy_rollback(self, *, to: int | None) -> Answer:
        """As policy_apply, with "restored": the number that runs again, and "was_good"."""
        ...

    def event_list(self, *, since: float | None, follow: bool | None) -> Mapping[str, object] | Stream:
        """{"events": the oldest first}, or with `follow` a Stream of events."""
        ...

    def events_after(self, *, number: int) -> Mapping[str, object]:
        """{"last": number of the newest, "events": those after `number`, the oldest first}."""
        ...

    def top(self) -> Mapping[str, object]:
        """Top."""
        ...

    def note_refused(self, kind: str, what: str) -> None:
        """Somebody was refused at the admin listener ("admin"): for the security log, once a cause and 10 s. `what` is
        one of few texts, such as "wrong Host" or "wrong token", and holds nothing that the other side sent."""
        ...

    def live(self) -> Mapping[str, object]:
        """Live: the same object until there are newer figures."""
        ...

    def recent(self) -> Mapping[str, object]:
        """Recent: the same object until there are newer figures."""
        ...

    def admin_token_show(self) -> Mapping[str, object]:
        """{"token", "path" of its file}."""
        ...

    def counters(self) -> Figures:
        """All that only grows, for /metrics: names without the prefix `accelerator_`."""
        ...

    def gauges(self) -> Figures:
        """All that goes up and down, for /metrics."""
        ...
