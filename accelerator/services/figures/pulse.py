"""The last ten minutes of the box, a sample a second, and the live figures made of them. Decides nothing.

Whoever asks gets the same snapshot until the next sample: a hundred open dashboards cost what one costs.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from accelerator import clock
from accelerator.services.figures.findings import Minute, findings_of, level_of
from accelerator.services.logs.events import clean

if TYPE_CHECKING:
    from accelerator.dataplane import DataPlane
    from accelerator.io.health import UpstreamHealth
    from accelerator.services.fetch.inventory import Inventory
    from accelerator.services.fetch.tunnels import Tunnels
    from accelerator.services.logs.events import Events
    from accelerator.services.origins.origins import Origin, Origins

SAMPLES_MAX = 601
# Segments come in bursts: over one second the rate of a calm webcast jumps between nothing and twice the truth.
RATE_SAMPLES = 5
MINUTE_SAMPLES = 60
# Of each origin a snapshot in so many samples: 4,096 origins a second for a minute would take 50 MB.
ORIGINS_EACH = 5
ORIGINS_SHOWN_MAX = 100
# A step of the walk that counts objects takes at most a few milliseconds, whatever is stored.
TALLY_BUCKETS = 16_384
NS = 1_000_000_000

_OWN_ERRORS = ("status_502", "status_503", "status_504")
_CAPS = ("refused_connections_all", "refused_connections_address", "refused_connections_overload")


class Sample(NamedTuple):
    """Counters since the start, at one time; bytes are body bytes."""

    now_ns: int
    at_s: float
    requests: int
    hits: int
    collapsed: int
    refused: int
    to_viewers: int
    from_origin: int
    own_errors: int
    broken: int
    refused_connections: int
    slow_readers: int
    memory_refused: int


class OriginSample(NamedTuple):
    requests: int = 0
    hits: int = 0
    to_viewers: int = 0
    from_origin: int = 0
    errors: int = 0


class Told(Protocol):
    """What the box says of itself at this moment (answers.py), of which a snapshot is made."""

    def status(self) -> dict[str, Any]: ...
    def top(self) -> dict[str, Any]: ...
    def relay_list(self) -> dict[str, Any]: ...


class Pulse:
    """Of one running appliance; `tick` is called each second."""

    def __init__(
        self, told: Told, dataplane: DataPlane, origins: Origins, inventory: Inventory, tunnels: Tunnels, events: Events
    ) -> None:
        self._told = told
        self._plane = dataplane.plane
        self._origins = origins
        self._inventory = inventory
        self._tunnels = tunnels
        self._events = events
        self._samples: deque[Sample] = deque(maxlen=SAMPLES_MAX)
        n_snapshots = MINUTE_SAMPLES // ORIGINS_EACH + 1
        self._of_origins: deque[tuple[int, dict[int, OriginSample]]] = deque(maxlen=n_snapshots)
        self._n_ticks = 0
        self._live: dict[str, Any] | None = None
        self._recent: dict[str, Any] | None = None
        self._stored: dict[int, tuple[int, int]] = {}
        self._sums = np.zeros((0, 2), dtype=np.uint64)
        self._next_bucket = self._n_buckets = 0

    def tick(self) -> None:
        totals = self._plane.totals()
        if not self._samples:  # what was answered before the first look counts too
            begun_ns = clock.monotonic_ns() - NS
            self._samples.append(Sample(begun_ns, clock.wall_s() - 1, *([0] * (len(Sample._fields) - 2))))
            self._of_origins.append((begun_ns, {}))
        self._samples.append(
            Sample(
                clock.monotonic_ns(), clock.wall_s(), totals["requests"], totals["hits"], totals["collapsed"],
                totals["refused"], totals["bytes_to_viewers"], totals["bytes_from_origin"],
                sum(totals[name] for name in _OWN_ERRORS), totals["broken_transfers"],
                sum(totals[name] for name in _CAPS), totals["closed_slow_reader"], totals["memory_refused"],
            )
        )  # fmt: skip
        if self._n_ticks % ORIGINS_EACH == 0:
            self._of_origins.append((self._samples[-1].now_ns, self._origin_samples()))
        self._n_ticks += 1
        self._live = self._recent = None
        self._tally()

    def recent(self) -> dict[str, Any]:
        """control.box.Recent."""
        if self._recent is None:
            pairs = list(zip(self._samples, list(self._samples)[1:], strict=False))
            self._recent = {
                "at_s": [round(new.at_s, 1) for _, new in pairs],
                "to_viewers_bps": [_rate(8 * (new.to_viewers - old.to_viewers), old, new) for old, new in pairs],
                "from_origin_bps": [_rate(8 * (new.from_origin - old.from_origin), old, new) for old, new in pairs],
                "requests_per_s": [_rate(new.requests - old.requests, old, new) for old, new in pairs],
            }
        return self._recent

    def live(self) -> dict[str, Any]:
        """control.box.Live: the same dict until the next tick."""
        if self._live is None:
            if not self._samples:
                self.tick()
            self._live = self._make_live()
        return self._live

    def _make_live(self) -> dict[str, Any]:
        now = self._samples[-1]
        old = self._samples[max(0, len(self._samples) - 1 - RATE_SAMPLES)]
        minute_ago = self._samples[max(0, len(self._samples) - 1 - MINUTE_SAMPLES)]
        status, top = self._told.status(), self._told.top()
        origins = self._origin_rows(status)
        requests = now.requests - minute_ago.requests
        minute = Minute(
            requests, now.own_errors - minute_ago.own_errors, now.broken - minute_ago.broken,
            now.refused_connections - minute_ago.refused_connections, now.slow_readers - minute_ago.slow_readers,
            now.memory_refused - minute_ago.memory_refused, top["counters"]["connections"],
        )  # fmt: skip
        findings = findings_of(status, origins, minute)
        shown = sorted(origins, key=lambda row: (row["level"] == "ok", -row["requests_per_s"], row["name"]))
        return {
            "number": self._n_ticks,
            "at_s": round(now.at_s, 3),
            "level": level_of(findings),
            "findings": findings,
            **{key: status[key] for key in ("site", "version", "uptime_s", "policy", "health", "listeners", "workers")},
            "last_event": self._events.n_told,
            "counters": {**top["counters"], "tunnels": self._tunnels.n_open_all},
            "now": {
                "requests_per_s": _rate(now.requests - old.requests, old, now),
                "refused_per_s": _rate(now.refused - old.refused, old, now),
                "to_viewers_bps": _rate(8 * (now.to_viewers - old.to_viewers), old, now),
                "from_origin_bps": _rate(8 * (now.from_origin - old.from_origin), old, now),
                "hit_ratio": _share(now.hits - minute_ago.hits, requests),
                "collapsed_ratio": _share(now.collapsed - minute_ago.collapsed, requests),
            },
            "n_origins": len(origins),
            "origins": shown[:ORIGINS_SHOWN_MAX],
            "classes": self._class_rows(origins),
            "relays": self._told.relay_list()["relays"],
        }

    # -- origins and classes -------------------------------------------------------------------------------------------

    def _origin_samples(self) -> dict[int, OriginSample]:
        by_id = self._origins.by_id
        viewers = self._plane.origin_totals(list(by_id))
        return {
            origin_id: OriginSample(*viewers[origin_id], origin.bytes_from_origin, origin.errors)
            for origin_id, origin in by_id.items()
        }

    def _origin_rows(self, status: dict[str, Any]) -> list[dict[str, Any]]:
        now_ns, samples = clock.monotonic_ns(), self._origin_samples()
        upstreams = upstreams_by_origin(status["upstreams"])
        # The newest snapshot may have been taken just now: the one before is five to ten seconds old.
        rate_ns, rate_old = self._of_origins[-2] if len(self._of_origins) > 1 else self._of_origins[0]
        _, minute_old = self._of_origins[0]
        seconds = max((now_ns - rate_ns) / NS, 0.1)
        rows = []
        for origin_id, origin in self._origins.by_id.items():
            new = samples[origin_id]
            old, first = rate_old.get(origin_id, OriginSample()), minute_old.get(origin_id, OriginSample())
            n_objects, stored_bytes = self._stored.get(origin_id, (0, 0))
            of_origin = upstreams.get(origin.name, [])
            rows.append(
                {
                    "name": origin.name,
                    "class": self._class_name(origin),
                    "level": _origin_level([each["state"] for each in of_origin]),
                    "requests": new.requests,
                    "hits": new.hits,
                    "bytes_to_viewers": new.to_viewers,
                    "bytes_from_origin": new.from_origin,
                    "requests_per_s": round((new.requests - old.requests) / seconds, 2),
                    "to_viewers_bps": round(8 * (new.to_viewers - old.to_viewers) / seconds),
                    "from_origin_bps": round(8 * (new.from_origin - old.from_origin) / seconds),
                    "hit_ratio": _share(new.hits - first.hits, new.requests - first.requests),
                    "requests_minute": new.requests - first.requests,
                    "errors_minute": new.errors - first.errors,
                    "connections": origin.client.n_connections,
                    "tunnels": self._tunnels.n_open(origin_id),
                    "objects": n_objects,
                    "stored_bytes": stored_bytes,
                    "upstreams": of_origin,
                }
            )
        return rows

    def _class_name(self, origin: Origin) -> str | None:
        names = self._inventory.class_names
        return names[origin.class_index - 1] if 0 < origin.class_index <= len(names) else None

    def _class_rows(self, origins: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """In the policy's order, last those without one. An origin belongs to one class, so its figures do too."""
        summed = (
            "requests", "hits", "bytes_to_viewers", "bytes_from_origin", "requests_per_s", "to_viewers_bps",
            "from_origin_bps", "objects", "stored_bytes",
        )  # fmt: skip
        rows: dict[str | None, dict[str, Any]] = {
            name: {"name": name, **dict.fromkeys(summed, 0)} for name in [*self._inventory.class_names, None]
        }
        for origin in origins:
            row = rows[origin["class"]]
            for key in summed:
                row[key] = round(row[key] + origin[key], 2)
        if all(origin["class"] is not None for origin in origins):
            del rows[None]
        return list(rows.values())

    def _tally(self) -> None:
        """One step of the walk through the table that counts objects by origin; its result is taken over at the end."""
        n_rows = max(self._origins.by_id, default=0) + 1
        if self._next_bucket == 0 or len(self._sums) < n_rows:
            self._next_bucket, self._sums = 0, np.zeros((n_rows, 2), dtype=np.uint64)
        end, n_buckets = self._plane.tally(self._next_bucket, TALLY_BUCKETS, self._sums)
        if self._next_bucket and n_buckets != self._n_buckets:
            end = n_buckets = self._next_bucket = 0
        elif end >= n_buckets:
            self._stored = {row: (int(n), int(size)) for row, (n, size) in enumerate(self._sums)}
            end = 0
        self._next_bucket, self._n_buckets = end, n_buckets


def upstream_row(origin: str, health: UpstreamHealth) -> dict[str, Any]:
    """control.box.UpstreamState."""
    return {
        "origin": origin,
        "upstream": str(health.upstream),
        "state": health.state,
        "failures": health.n_failures,
        "trial_in_s": round(health.trial_in_s, 1),
        "error": clean(health.error),
    }


def upstreams_by_origin(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(row["origin"], []).append(row)
    return found


def _origin_level(states: list[str]) -> str:
    """Of what its upstreams can do: "bad" where none is asked, "warn" where one isn't."""
    usable = [state in ("ok", "suspect") for state in states]
    return "ok" if all(usable) else "warn" if any(usable) else "bad"


def _rate(grown: int, old: Sample, new: Sample) -> float:
    return round(grown / max((new.now_ns - old.now_ns) / NS, 0.1), 1)


def _share(part: int, whole: int) -> float | None:
    return round(min(1.0, max(0, part) / whole), 4) if whole > 0 else None
