"""The tables that `make test` ends with: tests say which rule or promise they hold us to, by `@pytest.mark.rfc(clause,
what)` and by `@pytest.mark.fault(row, ...)`, rows of the table in docs/faults.md. Hooks for conftest.py, no test."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

Claim = tuple[str, str]
_FAULTS = Path(__file__).resolve().parent.parent / "docs" / "faults.md"


def fault_rows() -> dict[str, str]:
    """Number and fault of each row of docs/faults.md."""
    rows = re.findall(r"^\| ([0-9]+) \| ([^|]+) \|", _FAULTS.read_text(), re.MULTILINE)
    return {number: fault.strip() for number, fault in rows}


class ClaimTable:
    """Claims by test, and what became of the tests. `claims_of(mark)`: what one marker claims."""

    def __init__(self, marker: str, title: str, claims_of: Callable[[pytest.Mark], Iterable[Claim]]) -> None:
        self.marker, self.title, self.claims_of = marker, title, claims_of
        self.outcomes: dict[Claim, list[str]] = {}

    def collect(self, item: pytest.Item) -> None:
        """Hangs the claims on the test, whose report carries them: the process that shows the table need not be the one
        that ran the test (pytest-xdist)."""
        for mark in item.iter_markers(self.marker):
            item.user_properties.extend((self.marker, claim) for claim in self.claims_of(mark))

    def take(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            for name, claim in report.user_properties:
                if name == self.marker:
                    self.outcomes.setdefault(_claim(claim), []).append(report.outcome)

    def show(self, reporter: Any) -> None:
        """One line for each claim: how many tests hold it, and whether all passed."""
        if not self.outcomes:
            return
        reporter.section(self.title)
        for (number, what), outcomes in sorted(self.outcomes.items(), key=lambda item: _order(item[0])):
            n_failed = sum(outcome == "failed" for outcome in outcomes)
            ran = sum(outcome == "passed" for outcome in outcomes)
            verdict = "FAIL" if n_failed else "pass" if ran else "skip"
            reporter.write_line(f"{verdict}  {number:<18} {what} ({len(outcomes)})")
        n_passed = sum(all(outcome == "passed" for outcome in outcomes) for outcomes in self.outcomes.values())
        reporter.write_line(f"{n_passed} of {len(self.outcomes)} hold")


def _faults_of(mark: pytest.Mark) -> Iterable[Claim]:
    rows = fault_rows()
    return [(f"row {row}", rows[str(row)]) for row in mark.args]


TABLES = (
    ClaimTable("rfc", "RFC clauses", lambda mark: [(mark.args[0], mark.args[1])]),
    ClaimTable("fault", "Faults (docs/faults.md)", _faults_of),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for table in TABLES:
            table.collect(item)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    for table in TABLES:
        table.take(report)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for table in TABLES:
        table.show(terminalreporter)


def _claim(carried: object) -> Claim:
    """A claim as a report carries it: what went through another process has become a list."""
    assert isinstance(carried, list | tuple)
    number, what = carried
    return str(number), str(what)


def _order(claim: Claim) -> tuple[list[int], str]:
    return [int(number) for number in re.findall(r"[0-9]+", claim[0])], claim[1]
