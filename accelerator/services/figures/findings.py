"""What is wrong with the box now, the worst first, from figures: codes and values, which readers put into words. Pure.

A finding: `code`, `level` ("bad": viewers see it; "warn": it may become so; "info"), `subject` and `values`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

# Below this many requests in the minute a share says nothing.
REQUESTS_MIN = 20
ERRORS_WARN = 0.01
ERRORS_BAD = 0.1
LISTED_MAX = 20
LEVELS = ("bad", "warn", "info", "ok")


@dataclass(frozen=True, slots=True)
class Minute:
    """What happened in the last minute; `connections` are open now."""

    requests: int
    own_errors: int
    broken: int
    refused_connections: int
    slow_readers: int
    memory_refused: int
    connections: int


def findings_of(
    status: Mapping[str, Any], origins: Iterable[Mapping[str, Any]], minute: Minute
) -> list[dict[str, Any]]:
    """`status` is control.box.Status; `origins` are rows with `name`, `upstreams`, `requests_minute`, `errors_minute`.
    At most 20, the worst first."""
    found = [_finding("unhealthy", "bad", reason) for reason in status["health"]["reasons"]]
    for origin in origins:
        found += _origin(origin)
    found += [_finding("relay-silent", "bad", name) for name in status.get("relays", {}).get("silent_names", ())]
    if minute.requests >= REQUESTS_MIN and minute.own_errors >= ERRORS_WARN * minute.requests:
        share = min(1.0, minute.own_errors / minute.requests)
        found.append(_finding("viewers-errors", "bad" if share >= ERRORS_BAD else "warn", "", share=round(share, 4)))
    if minute.memory_refused:
        found.append(_finding("memory-refused", "warn", "", n=minute.memory_refused))
    if minute.refused_connections:
        found.append(_finding("connections-refused", "bad", "", n=minute.refused_connections))
    found += [_finding("policy-fallback", "warn", warning) for warning in status.get("warnings", ())]
    if minute.broken:
        found.append(_finding("transfers-broken", "warn", "", n=minute.broken))
    if minute.slow_readers:
        found.append(_finding("slow-readers", "warn", "", n=minute.slow_readers))
    if status["policy"].get("judging"):
        found.append(_finding("policy-judging", "info", "", number=status["policy"].get("number")))
    if not minute.requests:
        found.append(_finding("no-requests", "info", "", connections=minute.connections))
    return sorted(found, key=lambda each: LEVELS.index(each["level"]))[:LISTED_MAX]


def level_of(findings: Iterable[Mapping[str, Any]]) -> str:
    """ "ok", "warn" or "bad": the worst."""
    levels = {each["level"] for each in findings}
    return "bad" if "bad" in levels else "warn" if "warn" in levels else "ok"


def _origin(origin: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    requests, errors = origin["requests_minute"], origin["errors_minute"]
    out = [each for each in origin["upstreams"] if each["state"] in ("open", "half-open")]
    if out:
        whole = len(out) == len(origin["upstreams"])
        yield _finding(
            "origin-down" if whole else "upstream-down", "bad" if whole else "warn", origin["name"],
            upstreams=[each["upstream"] for each in out][:5], why=out[0]["error"], n=len(origin["upstreams"]),
        )  # fmt: skip
    elif requests >= REQUESTS_MIN and errors >= ERRORS_WARN * requests:
        yield _finding("origin-errors", "warn", origin["name"], n=errors)


def _finding(code: str, level: str, subject: str, **values: Any) -> dict[str, Any]:
    return {"code": code, "level": level, "subject": subject, "values": values}
