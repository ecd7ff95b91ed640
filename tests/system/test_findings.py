"""What the box says is wrong with it, from figures: each finding, its level, and what is no finding."""

from __future__ import annotations

from typing import Any

import pytest

from accelerator.services.figures.findings import Minute, findings_of, level_of

QUIET = {
    "requests": 100, "own_errors": 0, "broken": 0, "refused_connections": 0, "slow_readers": 0, "memory_refused": 0,
    "connections": 5,
}  # fmt: skip
WELL: dict[str, Any] = {"health": {"ok": True, "reasons": []}, "warnings": [], "policy": {}}


def origin_row(*states: str, requests: int = 100, errors: int = 0) -> dict[str, Any]:
    upstreams = [{"upstream": f"http://u{i}", "state": state, "error": "why"} for i, state in enumerate(states)]
    return {"name": "media", "upstreams": upstreams, "requests_minute": requests, "errors_minute": errors}


@pytest.mark.parametrize(
    ("status", "origin", "minute", "codes", "level"),
    [
        ({}, origin_row("ok", "suspect"), {}, [], "ok"),
        ({}, origin_row("open"), {}, ["origin-down"], "bad"),
        ({}, origin_row("half-open", "open"), {}, ["origin-down"], "bad"),
        ({}, origin_row("ok", "open"), {}, ["upstream-down"], "warn"),
        ({}, origin_row("ok", errors=2), {}, ["origin-errors"], "warn"),
        ({}, origin_row("ok", requests=3, errors=3), {}, [], "ok"),
        ({}, origin_row("ok"), {"own_errors": 1}, ["viewers-errors"], "warn"),
        ({}, origin_row("ok"), {"own_errors": 30, "broken": 1}, ["viewers-errors", "transfers-broken"], "bad"),
        ({}, origin_row("ok"), {"memory_refused": 1}, ["memory-refused"], "warn"),
        ({}, origin_row("ok"), {"refused_connections": 1}, ["connections-refused"], "bad"),
        ({}, origin_row("ok"), {"slow_readers": 1}, ["slow-readers"], "warn"),
        ({}, origin_row("ok"), {"requests": 0}, ["no-requests"], "ok"),
        ({"policy": {"judging": True, "number": 3}}, origin_row("ok"), {}, ["policy-judging"], "ok"),
        ({"warnings": ["withdrawn"]}, origin_row("ok"), {}, ["policy-fallback"], "warn"),
        ({"health": {"reasons": ["draining"]}}, origin_row("ok", "open"), {}, ["unhealthy", "upstream-down"], "bad"),
    ],
)  # fmt: skip
def test_findings(status: Any, origin: Any, minute: Any, codes: list[str], level: str) -> None:
    findings = findings_of({**WELL, **status}, [origin], Minute(**{**QUIET, **minute}))
    assert [each["code"] for each in findings] == codes
    assert level_of(findings) == level
