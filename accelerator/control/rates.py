"""Rates from two snapshots of the daemon's counters (control.box.Top). Pure: values in, values out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict


class OriginRates(TypedDict):
    name: str
    requests_per_s: float
    hit_ratio: float | None
    to_viewers_bps: float
    from_origin_bps: float
    connections: int
    errors_per_s: float
    upstreams: int
    upstreams_out: int  # of them: not asked for now but for trials
    tunnels: int


class Sample(TypedDict):
    """What `accelctl top --json` prints. `hit_ratio` is None where nothing was asked for; `_bps` are bits each
    second.
    """

    interval_s: float
    requests_per_s: float
    misses_per_s: float
    collapsed_per_s: float
    refused_per_s: float
    hit_ratio: float | None
    to_viewers_bps: float
    from_origin_bps: float
    connections: int
    objects: int
    memory_bytes: int
    memory_limit_bytes: int
    n_origins: int  # that match, of which `origins` may be a page
    origins: list[OriginRates]
    listeners: list[dict[str, Any]]


def rates(before: Mapping[str, Any], after: Mapping[str, Any]) -> Sample:
    """The rates between two snapshots of one daemon.

    Counters that went back (the daemon started anew in between) count from 0; an origin that was not there before too.
    """
    interval_s = (after["now_ns"] - before["now_ns"]) / 1e9
    seconds = interval_s if interval_s > 0 else float("inf")
    old, new = before["counters"], after["counters"]
    old_origins = {origin["name"]: origin for origin in before["origins"]}
    return {
        "interval_s": round(interval_s, 6),
        "requests_per_s": _grown(old, new, "requests") / seconds,
        "misses_per_s": _grown(old, new, "misses") / seconds,
        "collapsed_per_s": _grown(old, new, "collapsed") / seconds,
        "refused_per_s": _grown(old, new, "refused") / seconds,
        "hit_ratio": _ratio(old, new),
        "to_viewers_bps": 8 * _grown(old, new, "bytes_to_viewers") / seconds,
        "from_origin_bps": 8 * _grown(old, new, "bytes_from_origin") / seconds,
        "connections": new.get("connections", 0),
        "objects": new.get("objects", 0),
        "memory_bytes": new.get("memory_bytes", 0),
        "memory_limit_bytes": new.get("memory_limit_bytes", 0),
        "n_origins": len(after["origins"]),
        "origins": [_origin(old_origins.get(origin["name"], {}), origin, seconds) for origin in after["origins"]],
        "listeners": list(after["listeners"]),
    }


def paged(sample: Sample, *, sort: str, contains: str | None, limit: int) -> Sample:
    """The sample with a page of its origins: those with `contains` in their names, the first `limit` by `sort` (one of
    commands.TOP_SORTS; `name` ascending, figures descending)."""
    found = [each for each in sample["origins"] if contains is None or contains.lower() in each["name"].lower()]
    if sort == "name":
        found.sort(key=lambda each: each["name"])
    else:
        column = {"traffic": "to_viewers_bps", "requests": "requests_per_s", "errors": "errors_per_s"}[sort]
        found.sort(key=lambda each: -each[column])  # type: ignore[literal-required]  # ties as in the policy
    return {**sample, "n_origins": len(found), "origins": found[:limit]}


def _origin(old: Mapping[str, Any], new: Mapping[str, Any], seconds: float) -> OriginRates:
    return {
        "name": new["name"],
        "requests_per_s": _grown(old, new, "requests") / seconds,
        "hit_ratio": _ratio(old, new),
        "to_viewers_bps": 8 * _grown(old, new, "bytes_to_viewers") / seconds,
        "from_origin_bps": 8 * _grown(old, new, "bytes_from_origin") / seconds,
        "connections": new.get("connections", 0),
        "errors_per_s": _grown(old, new, "errors") / seconds,
        "upstreams": new.get("upstreams", 0),
        "upstreams_out": new.get("upstreams_out", 0),
        "tunnels": new.get("tunnels", 0),
    }


def _grown(old: Mapping[str, Any], new: Mapping[str, Any], name: str) -> float:
    now, then = new.get(name, 0), old.get(name, 0)
    return float(now - then if now >= then else now)


def _ratio(old: Mapping[str, Any], new: Mapping[str, Any]) -> float | None:
    requests = _grown(old, new, "requests")
    return min(1.0, _grown(old, new, "hits") / requests) if requests else None
