"""What would another kind of loop bring? Bare loops by epoll, by io_uring, and one that polls before it sleeps; then
our data plane with other send buffers and TCP_NOTSENT_LOWAT. The choices are docs/decisions/0003 and 0195.

CPU per request under wrk, and the first byte's time at a pace that leaves the server idle in between (paced.c).
Run: .venv/bin/python benchmarks/loops.py [--rounds N] [--seconds S]
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
from collections.abc import Callable

import hits
import measure
import servers
import viewers
from measure import Run, median
from origin import body_of

ROUNDS = 5
SECONDS = 1
SPIN_US = 50
# So slow that a core is mostly idle and each request meets a server that sleeps.
PACED = viewers.Case("2,000 requests/s", 200, 100, ("/",))
KIB = 1024
BUFFERS = {"256 KiB (ours)": 256 * KIB, "128 KiB": 128 * KIB, "512 KiB": 512 * KIB, "1 MiB": 1024 * KIB, "kernel's": 0}
LOWATS = {"off (ours)": 0, "64 KiB": 64 * KIB, "128 KiB": 128 * KIB}


def show(title: str, found: dict[str, list[Run | measure.Failure]]) -> None:
    print(f"\n{title}")
    rows = []
    for name, runs in found.items():
        whole = [run for run in runs if isinstance(run, Run)]
        rows.append(hits.row(name, whole, "") if len(whole) == len(runs) else [name, "failed"])
    measure.table(hits.COLUMNS, rows)


def paced(server: servers.Server, seconds: int) -> str:
    """First bytes and the server's CPU at a slow pace."""
    found = viewers.run(PACED, server, seconds, 0)
    if isinstance(found, str):
        return f"  {server.name:<24}failed: {found}"
    p50_ms, p99_ms, most_ms = found.first_ms
    return (
        f"  {server.name:<24}first byte p50 {p50_ms:.3f} ms, p99 {p99_ms:.3f}, most {most_ms:.3f}; "
        f"{found.cpu_us:.1f} µs of CPU per request"
    )


def main(rounds: int = ROUNDS, seconds: int = SECONDS) -> None:
    if absent := measure.missing("wrk", "taskset", "gcc"):
        print(f"loops: not measured, not installed: {absent}")
        return
    measure.allow_many_files(65536)
    print(f"{rounds} windows of {seconds} s each, the servers in turn; medians")
    for case in hits.CASES:
        body_bytes = len(body_of(case.path))
        with contextlib.ExitStack() as stack:
            peers = [
                stack.enter_context(servers.bare_loop(body_bytes, "epoll in C")),
                stack.enter_context(servers.bare_loop(body_bytes, f"epoll, polls {SPIN_US} µs", SPIN_US)),
            ]
            try:
                peers.append(stack.enter_context(servers.bare_uring(body_bytes)))
            except (RuntimeError, subprocess.CalledProcessError) as problem:
                print(f"io_uring: not measured: {problem}")
            show(f"bare loops: {case.title}", hits.measured(case, peers, rounds, seconds))
            if body_bytes < KIB * KIB:
                print(f"at {PACED.title}:")
                for peer in peers:
                    print(paced(peer, 3 * seconds))
    case = hits.CASES[1]
    make: Callable[..., contextlib.AbstractContextManager[servers.Server]] = servers.plane
    for title, key, values in (
        ("send buffer", "SEND_BUFFER_BYTES", BUFFERS), ("TCP_NOTSENT_LOWAT", "NOTSENT_LOWAT_BYTES", LOWATS),
    ):  # fmt: skip
        with contextlib.ExitStack() as stack:
            peers = [stack.enter_context(make([case.path], name, **{key: value})) for name, value in values.items()]
            found = hits.measured(case, peers, rounds, seconds)
            show(f"our data plane, {title}: {case.title}", found)
            whole = {name: median(run.cpu_us for run in runs if isinstance(run, Run)) for name, runs in found.items()}
            ours, *others = whole
            print("  of ours: " + ", ".join(f"{name} {whole[name] / whole[ours]:.2f}" for name in others))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--seconds", type=int, default=SECONDS)
    arguments = parser.parse_args()
    main(arguments.rounds, arguments.seconds)
