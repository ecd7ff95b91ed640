"""The table of clauses that `make test` ends with: tests say by `@pytest.mark.rfc(clause, what)` which rule they hold
us to. Hooks for conftest.py, no test."""

from __future__ import annotations

import re

import pytest

_CLAIMS: dict[str, list[tuple[str, str]]] = {}
_OUTCOMES: dict[tuple[str, str], list[str]] = {}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        claims = [(mark.args[0], mark.args[1]) for mark in item.iter_markers("rfc")]
        if claims:
            _CLAIMS[item.nodeid] = claims


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" or report.outcome != "passed":
        for claim in _CLAIMS.get(report.nodeid, ()):
            _OUTCOMES.setdefault(claim, []).append(report.outcome)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """One line for each clause: how many tests hold it, and whether all passed."""
    if not _OUTCOMES:
        return
    terminalreporter.section("RFC clauses")
    for (clause, what), outcomes in sorted(_OUTCOMES.items(), key=lambda item: _order(item[0])):
        n_failed = sum(outcome == "failed" for outcome in outcomes)
        ran = sum(outcome == "passed" for outcome in outcomes)
        verdict = "FAIL" if n_failed else "pass" if ran else "skip"
        terminalreporter.write_line(f"{verdict}  {clause:<18} {what} ({len(outcomes)})")
    n_claims = len(_OUTCOMES)
    n_passed = sum(all(outcome == "passed" for outcome in outcomes) for outcomes in _OUTCOMES.values())
    terminalreporter.write_line(f"{n_passed} of {n_claims} hold")


def _order(claim: tuple[str, str]) -> tuple[list[int], str]:
    return [int(number) for number in re.findall(r"[0-9]+", claim[0])], claim[1]
