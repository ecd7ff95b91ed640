"""Runs everything that a release must pass, one step after the other, and ends with a summary. A step is a command;
what it checks lives with the command, not here. Logs of the steps: build/qualify/."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
LOGS = PROJECT / "build" / "qualify"


@dataclass(frozen=True)
class Step:
    name: str
    command: tuple[str, ...]


@dataclass(frozen=True)
class Outcome:
    step: Step
    exit_code: int
    took_s: float
    last_line: str


def steps(fuzz_s: int) -> Iterator[Step]:
    """Each fuzz target takes the seconds that it may run as its only argument, and exits 0 when nothing was found."""
    yield Step("lint", ("make", "lint"))
    yield Step("test", ("make", "test"))
    yield Step("test-asan", ("make", "test-asan"))
    yield Step("test-tsan", ("make", "test-tsan"))
    yield Step("slow tests", (sys.executable, "-m", "pytest", "-m", "slow"))
    for target in sorted((PROJECT / "tests" / "fuzz").glob("fuzz_*.py")):
        yield Step(target.stem, (sys.executable, str(target), str(fuzz_s)))


def run(step: Step) -> Outcome:
    log = LOGS / f"{step.name.replace(' ', '-')}.log"
    began = time.monotonic()
    with log.open("wb") as output:
        exit_code = subprocess.run(
            step.command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, cwd=PROJECT, check=False
        ).returncode
    lines = [line.strip(" =") for line in log.read_text(errors="replace").splitlines()]
    lines = [line for line in lines if line and not line.startswith("make")]  # make's own say only that it failed
    if exit_code == 5 and step.name == "slow tests":
        exit_code = 0  # pytest's word for: none is marked slow
    return Outcome(step, exit_code, time.monotonic() - began, lines[-1] if lines else "")


def main() -> int:
    parser = argparse.ArgumentParser(prog="make qualify", description="Runs every check; the summary comes last.")
    parser.add_argument("--fuzz-seconds", type=int, default=60, help="how long each fuzz target runs (default 60)")
    parser.add_argument("--only", action="append", default=[], metavar="STEP", help="only this step (may be repeated)")
    arguments = parser.parse_args()
    LOGS.mkdir(parents=True, exist_ok=True)
    outcomes = []
    for step in steps(arguments.fuzz_seconds):
        if arguments.only and step.name not in arguments.only:
            continue
        print(f"{step.name} ...", flush=True)
        outcomes.append(run(step))
    print(f"\n{'step':<24}{'result':<10}{'took':>8}  last line")
    for outcome in outcomes:
        result = "ok" if outcome.exit_code == 0 else f"FAILED {outcome.exit_code}"
        print(f"{outcome.step.name:<24}{result:<10}{outcome.took_s:>7.0f}s  {outcome.last_line[:90]}")
    n_failed = sum(outcome.exit_code != 0 for outcome in outcomes)
    if n_failed:
        print(f"\nlogs: {LOGS.relative_to(PROJECT)}/")
    print(f"\n{len(outcomes) - n_failed} passed, {n_failed} failed")
    return 1 if n_failed or not outcomes else 0


if __name__ == "__main__":
    sys.exit(main())
