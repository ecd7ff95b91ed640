"""What the doctor says: findings, and the checks that it could not make. No judgement may live here."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

LEVELS = ("bad", "warn", "info")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong. `level`: bad (video stops or will stop), warn (it may), info (no problem).
    `text` is one sentence; `mend` the command, or the line of policy, that mends it."""

    code: str
    level: str
    subject: str
    text: str
    mend: str = ""


@dataclass(frozen=True, slots=True)
class Skipped:
    """A check that could not be made, why, and what would let it."""

    check: str
    why: str


@dataclass(slots=True)
class Report:
    """Everything at once, the worst first. `checked` counts what was looked at, by check."""

    findings: list[Finding] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    checked: dict[str, int] = field(default_factory=dict)

    def add(self, check: str, n: int, findings: Iterable[Finding]) -> None:
        """A check was made on `n` things."""
        if n:
            self.checked[check] = self.checked.get(check, 0) + n
        self.findings += findings

    def skip(self, check: str, why: str) -> None:
        self.skipped.append(Skipped(check, why))

    @property
    def is_ok(self) -> bool:
        """Whether nothing is wrong: info is no problem, and neither is a check that could not be made."""
        return all(each.level == "info" for each in self.findings)

    def as_dict(self) -> dict[str, Any]:
        ordered = sorted(self.findings, key=lambda each: (LEVELS.index(each.level), each.code, each.subject))
        return {
            "ok": self.is_ok,
            "findings": [asdict(each) for each in ordered],
            "skipped": [asdict(each) for each in self.skipped],
            "checked": dict(sorted(self.checked.items())),
        }
