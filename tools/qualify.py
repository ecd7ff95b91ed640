"""Runs everything that a release must pass, in two lanes, and ends with a summary. In front what measures time: the
tests, then the slow ones. Behind it, with what these leave idle: lint, the sanitizers, the fuzz targets. A step is a
command; what it checks lives with the command, not here. No step is tried twice. Logs of the steps: build/qualify/."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
LOGS = PROJECT / "build" / "qualify"
# The kernel shares processors out by sessions first (autogroup), so `nice` alone would not put a lane behind the other.
BEHIND = ("bash", "-c", '{ echo 19 > /proc/self/autogroup; } 2>/dev/null; exec nice -n 19 "$@"', "behind")


@dataclass(frozen=True)
class Step:
    name: str
    command: tuple[str, ...]
    is_behind: bool = True


@dataclass(frozen=True)
class Outcome:
    step: Step
    exit_code: int
    took_s: float
    cpu_s: float  # of what it ran, as far as that ended before it
    last_line: str

    @property
    def verdict(self) -> str:
        return "ok" if self.exit_code == 0 else f"FAILED {self.exit_code}"


def steps(fuzz_s: int) -> Iterator[Step]:
    """Each fuzz target takes the seconds that it may run as its only argument, and exits 0 when nothing was found."""
    yield Step("test", ("make", "test"), is_behind=False)
    # Behind `make test`, in its lane: it plants faults in sanitized modules, which are built by then.
    yield Step("slow tests", (sys.executable, "-m", "pytest", "-m", "slow", "--durations=15"), is_behind=False)
    yield Step("lint", ("make", "lint"))
    yield Step("test-asan", ("make", "test-asan"))
    yield Step("test-tsan", ("make", "test-tsan"))
    for target in sorted((PROJECT / "tests" / "fuzz").glob("fuzz_*.py")):
        yield Step(target.stem, (sys.executable, str(target), str(fuzz_s)))


class Qualification:
    """What has run, and what runs now in each lane."""

    def __init__(self) -> None:
        self.began_s = time.monotonic()
        self.outcomes: list[Outcome] = []
        self._running: set[int] = set()
        self._lock = threading.Lock()
        self._is_stopped = False

    def lane(self, chosen: list[Step]) -> None:
        for step in chosen:
            outcome = self._run(step)
            if outcome is None:
                return
            with self._lock:
                self.outcomes.append(outcome)
                at_s = time.monotonic() - self.began_s
                print(f"{at_s / 60:>5.1f} min  {step.name}: {outcome.verdict}, {outcome.last_line[:90]}", flush=True)

    def _run(self, step: Step) -> Outcome | None:
        """None: it was not begun any more."""
        log = LOGS / f"{step.name.replace(' ', '-')}.log"
        began_s = time.monotonic()
        command = (*BEHIND, *step.command) if step.is_behind else step.command
        with log.open("wb") as output:
            with self._lock:
                if self._is_stopped:
                    return None
                process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, cwd=PROJECT,
                    start_new_session=True,
                )  # fmt: skip
                self._running.add(process.pid)
            _, status, usage = os.wait4(process.pid, 0)
            with self._lock:
                self._running.discard(process.pid)
            process.returncode = os.waitstatus_to_exitcode(status)
        lines = [line.strip(" =") for line in log.read_text(errors="replace").splitlines()]
        lines = [line for line in lines if line and not line.startswith("make")]  # make's own say only that it failed
        took_s, cpu_s = time.monotonic() - began_s, usage.ru_utime + usage.ru_stime
        return Outcome(step, process.returncode, took_s, cpu_s, lines[-1] if lines else "")

    def stop(self) -> None:
        """The steps have sessions of their own, which an interrupt at the terminal does not reach."""
        with self._lock:
            self._is_stopped = True
            for pid in self._running:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGTERM)


def main() -> int:
    parser = argparse.ArgumentParser(prog="make qualify", description="Runs every check; the summary comes last.")
    parser.add_argument("--fuzz-seconds", type=int, default=60, help="how long each fuzz target runs (default 60)")
    parser.add_argument("--only", action="append", default=[], metavar="STEP", help="only this step (may be repeated)")
    parser.add_argument("--one-lane", action="store_true", help="one step after the other: longer, and undisturbed")
    arguments = parser.parse_args()
    every = list(steps(arguments.fuzz_seconds))
    if unknown := set(arguments.only) - {step.name for step in every}:
        parser.error(f"no such step: {', '.join(sorted(unknown))}; there are {', '.join(step.name for step in every)}")
    chosen = [step for step in every if not arguments.only or step.name in arguments.only]
    lanes = [[step for step in chosen if step.is_behind == is_behind] for is_behind in (False, True)]
    if arguments.one_lane:
        lanes = [chosen]
    LOGS.mkdir(parents=True, exist_ok=True)
    print(f"{len(chosen)} steps; logs: {LOGS.relative_to(PROJECT)}/", flush=True)
    qualification = Qualification()
    threads = [threading.Thread(target=qualification.lane, args=(lane,)) for lane in lanes]
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    except KeyboardInterrupt:
        qualification.stop()
        for thread in threads:
            thread.join()
        print("interrupted")
        return 130
    outcomes = sorted(qualification.outcomes, key=lambda outcome: every.index(outcome.step))
    print(f"\n{'step':<28}{'result':<10}{'took':>8}{'CPU':>8}  last line")
    for outcome in outcomes:
        name, verdict = outcome.step.name, outcome.verdict
        print(f"{name:<28}{verdict:<10}{outcome.took_s:>7.0f}s{outcome.cpu_s:>7.0f}s  {outcome.last_line[:90]}")
    n_failed = sum(outcome.exit_code != 0 for outcome in outcomes)
    whole_s = time.monotonic() - qualification.began_s
    print(f"\n{len(outcomes) - n_failed} passed, {n_failed} failed in {whole_s / 60:.0f} minutes")
    return 1 if n_failed or not outcomes else 0


if __name__ == "__main__":
    sys.exit(main())
