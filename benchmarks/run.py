"""`make bench`: every benchmark in turn, after the conditions that they were taken under. Knows no figure itself.

Run: .venv/bin/python benchmarks/run.py [NAME…]     (hits, collapse, idle_memory, bench_policy, …; without: all)
"""

from __future__ import annotations

import subprocess
import sys
import time

import measure

# The questions of the product first, then what its parts cost.
QUESTIONS = (
    "hits", "tls", "http2", "disk_serve", "viewers", "collapse", "idle_memory", "relay_fanout", "relay_delay",
    "relay_load", "relay_beside_edge", "relay_http", "relay_repair", "relay_fec", "eviction",
    "loops", "wan_budget", "reconcile", "repairs", "kernel_table", "multicast_peers",
)  # fmt: skip
# What takes longer than `make bench` should is run in its short form.
ARGUMENTS = {"eviction": ["--short"], "relay_repair": ["3"], "kernel_table": ["--short"]}


def names() -> list[str]:
    folder = measure.ROOT / "benchmarks"
    return [*QUESTIONS, *sorted(path.stem for path in folder.glob("bench_*.py"))]


def main() -> int:
    known = names()
    chosen = sys.argv[1:] or known
    if unknown := [name for name in chosen if name not in known]:
        print(f"no such benchmark: {', '.join(unknown)}; there are {', '.join(known)}", file=sys.stderr)
        return 2
    failed = []
    begin_s = time.monotonic()
    for name, value in measure.conditions():
        print(f"{name:<14}{value}")
    for name in chosen:
        print(f"\n=== {name} {'=' * (100 - len(name))}", flush=True)
        # A process each: one's open files, memory and faults are not the next one's.
        command = [sys.executable, str(measure.ROOT / "benchmarks" / f"{name}.py"), *ARGUMENTS.get(name, [])]
        if subprocess.run(command, cwd=measure.ROOT, check=False).returncode != 0:
            failed.append(name)
            print(f"{name}: failed", flush=True)
    print(f"\n{len(chosen)} benchmarks in {time.monotonic() - begin_s:.0f} s; failed: {', '.join(failed) or 'none'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
