"""Runs tests/dataplane against the modules in build/asan or build/tsan, and fails when any other module was
tested instead (tests/conftest.py looks, at the end of the run). Builds nothing: the Makefile did."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
# First runtime first: ASan refuses to run unless it is the first library loaded.
RUNTIMES = {"asan": ("libasan.so", "libubsan.so"), "tsan": ("libtsan.so",)}
OPTIONS = {
    # The interpreter never frees what it allocates at start: leak reports would be about Python, not about us.
    "ASAN_OPTIONS": "detect_leaks=0:exitcode=66:strict_string_checks=1:detect_stack_use_after_return=1",
    "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1:exitcode=66",
    "TSAN_OPTIONS": "halt_on_error=1:exitcode=66:second_deadlock_stack=1:history_size=4",
}


def runtime(library: str) -> str:
    """Full path of gcc's sanitizer run-time library. Raises SystemExit when gcc does not have it."""
    query = ["gcc", f"-print-file-name={library}"]
    path = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
    if not Path(path).is_absolute():
        raise SystemExit(f"gcc has no {library}")
    return os.path.realpath(path)


def fixed_addresses() -> list[str]:
    """The prefix that turns address randomization off, where the kernel lets us: gcc 12's TSan cannot place its shadow
    memory when vm.mmap_rnd_bits is above 28, which is the default of newer kernels."""
    setarch = shutil.which("setarch")
    if setarch and subprocess.run([setarch, "-R", "true"], capture_output=True, check=False).returncode == 0:
        return [setarch, "-R"]
    return []


def main(arguments: list[str]) -> int:
    kind, *pytest_arguments = arguments
    built = PROJECT / "build" / kind
    # Into files, because a program that a test started has a stderr of its own. gcc 12's UBSan writes to stderr
    # whatever log_path says, hence --capture=sys below: pytest would swallow it when the process ends.
    reports = Path(tempfile.mkdtemp(prefix="reports-", dir=built))  # its own: `make qualify` runs two at once
    environment = {
        **os.environ,
        **{name: f"{options}:log_path={reports}/report" for name, options in OPTIONS.items()},
        "LD_PRELOAD": " ".join(runtime(library) for library in RUNTIMES[kind]),
        "PYTHONPATH": str(built),
        "PYTHONSAFEPATH": "1",
        "PYTHONMALLOC": "malloc",
        "ACCELERATOR_EXT_MUST_BE_IN": str(built),
    }
    pytest = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--capture=sys", "-m", "not slow"]
    command = [*fixed_addresses(), *pytest, *(pytest_arguments or ["tests/dataplane"])]
    exit_code = subprocess.run(command, env=environment, check=False, cwd=PROJECT).returncode
    found = sorted(reports.iterdir())
    for report in found:
        print(f"\n{report.name}:\n{report.read_text(errors='replace')}", file=sys.stderr)
    if not found:
        reports.rmdir()
    return exit_code or (1 if found else 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
