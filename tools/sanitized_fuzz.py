"""Runs fuzz targets against the modules in build/asan, each for so many seconds, and fails when one finds something, a
sanitizer reports, or a module came from elsewhere. Builds nothing: the Makefile did."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys

from sanitized_tests import OPTIONS, PROJECT, RUNTIMES, fixed_addresses, runtime

# What reads viewers' bytes in a worker: HTTP/1.1's heads, chunks and ranges, the glue of HTTP/2, TLS.
VIEWERS = ("fuzz_http_head", "fuzz_chunked_request", "fuzz_h2", "fuzz_tls")
# Runs the target as if it were called, then looks where its modules came from.
WRAPPER = """
import runpy, sys
built, target = sys.argv.pop(1), sys.argv[1]
del sys.argv[0]
sys.path.insert(0, target.rpartition("/")[0])
runpy.run_path(target, run_name="__main__")
wrong = [m.__file__ for n, m in sys.modules.items() if n.startswith("ext.") and not m.__file__.startswith(built)]
sys.exit(f"modules not from {built}: {wrong}" if wrong else 0)
"""


def main() -> int:
    parser = argparse.ArgumentParser(prog="make fuzz-asan ARGS=", description="Fuzzes sanitized modules.")
    parser.add_argument("targets", nargs="*", default=VIEWERS, help=f"of tests/fuzz (default: {' '.join(VIEWERS)})")
    parser.add_argument("--seconds", type=int, default=600, help="for each target (default 600)")
    parser.add_argument("--seed", type=int, default=0, help="the first run's; later runs count on from it")
    arguments = parser.parse_args()
    built = PROJECT / "build" / "asan"
    failed = []
    for name in arguments.targets:
        reports = built / f"reports-{name}"
        shutil.rmtree(reports, ignore_errors=True)
        reports.mkdir()
        environment = {
            **os.environ,
            **{key: f"{options}:log_path={reports}/report" for key, options in OPTIONS.items()},
            "LD_PRELOAD": " ".join(runtime(library) for library in RUNTIMES["asan"]),
            "PYTHONPATH": str(built),
            "PYTHONMALLOC": "malloc",
        }
        target = PROJECT / "tests" / "fuzz" / f"{name}.py"
        command = [*fixed_addresses(), sys.executable, "-P", "-c", WRAPPER, str(built), str(target)]
        command += [str(arguments.seconds), str(arguments.seed)]
        print(f"{name}: ", end="", flush=True)
        exit_code = subprocess.run(command, env=environment, check=False, cwd=PROJECT).returncode
        for report in sorted(reports.iterdir()):
            print(f"\n{report.name}:\n{report.read_text(errors='replace')}", file=sys.stderr)
        if exit_code or any(reports.iterdir()):
            failed.append(name)
            print(f"{name}: FAILED ({exit_code})", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
