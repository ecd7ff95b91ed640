"""How much CPU time does a segment from the disk cost, beside nginx? 1 MB segments, several times what our memory
holds.

Each server has the same 400 segments on its disk, and is asked for them in one shuffled order over and over, so that
our memory (64 MiB) never has the next one. nginx serves files by sendfile, the same from its proxy_cache, and files
read and written. On a machine with memory to spare both disks are the kernel's page cache: what is measured is the
servers' work. Run: .venv/bin/python benchmarks/disk_serve.py [--rounds N] [--seconds S] [--segments N]
"""

from __future__ import annotations

import argparse
import contextlib
import random
import tempfile
import time
from pathlib import Path

import measure
import servers
from measure import Failure, Run, median
from origin import body_of

OURS = "accelerator"
CONNECTIONS = 20
COLUMNS = ("server", "CPU µs/request", "with load", "requests/s", "server CPU", "load CPU", "others", "each")


def script(paths: list[str], folder: str) -> str:
    """What wrk runs: each path in turn."""
    order = list(paths)
    random.Random(1).shuffle(order)
    file = Path(folder, "paths.lua")
    names = ",".join(f'"{path}"' for path in order)
    file.write_text(
        f"local p = {{{names}}}\nlocal i = 0\n"
        'function request()\n  i = i % #p + 1\n  return wrk.format("GET", p[i])\nend\n'
    )
    return str(file)


def fill(server: servers.Server, paths: list[str]) -> None:
    """Every segment once, and right."""
    for path in paths:
        status, _, body, _ = measure.get(server.port, path)
        if status != 200 or body != body_of(path):
            raise ValueError(f"{server.name}: {path}: status {status} or other bytes")
        time.sleep(0.005)  # what comes faster than our disk writes might be evicted first


def row(name: str, runs: list[Run | Failure]) -> list[str]:
    whole = [run for run in runs if isinstance(run, Run)]
    failures = [run.why for run in runs if isinstance(run, Failure)]
    if failures or not whole:
        return [name, f"failed: {failures[0] if failures else 'no run'}"]
    return [
        name,
        f"{median(run.cpu_us for run in whole):.0f}",
        f"{median(run.both_cpu_us for run in whole):.0f}",
        f"{median(run.rate for run in whole):,.0f}",
        f"{median(run.server_share for run in whole):.0%}",
        f"{median(run.load_share for run in whole):.0%}",
        f"{median(run.others_share for run in whole):.0%}",
        measure.spread([run.cpu_us for run in whole]),
    ]


def main(rounds: int, seconds: int, n_segments: int) -> None:
    if absent := measure.missing("wrk", "nginx", "taskset"):
        print(f"disk_serve: not measured, not installed: {absent}")
        return
    paths = [f"/{number:04d}/segment-1048576.m4s" for number in range(n_segments)]
    files = {path: body_of(path) for path in paths}
    print(f"{rounds} windows of {seconds} s each, {CONNECTIONS} connections, {n_segments} segments of 1 MiB; medians")
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-disk-"))
        origin = stack.enter_context(servers.origin())
        peers = [
            stack.enter_context(servers.box(origin.port, "64MiB", disk="4GiB")),
            stack.enter_context(servers.nginx_files(files, True)),
            stack.enter_context(servers.nginx_files(files, False)),
            stack.enter_context(servers.nginx_cache(origin.port)),
        ]
        for peer in peers:
            fill(peer, paths)
        lua = script(paths, folder)
        asked = sum(servers.times_asked(origin, path) for path in paths)
        found: dict[str, list[Run | Failure]] = {peer.name: [] for peer in peers}
        for turn in range(rounds + 1):
            for peer in peers:
                run = measure.wrk(peer.url("/"), CONNECTIONS, seconds if turn else 1, peer.pids, script=lua)
                if turn:
                    found[peer.name].append(run)
        asked_after = sum(servers.times_asked(origin, path) for path in paths)
    measure.table(COLUMNS, [row(name, runs) for name, runs in found.items()])
    print(f"  origin asked {asked_after - asked} times in the windows (0: everything came from a disk)")
    cost = {
        name: (median(r.cpu_us for r in whole), median(r.both_cpu_us for r in whole))
        for name, runs in found.items()
        if (whole := [run for run in runs if isinstance(run, Run)]) and len(whole) == len(runs)
    }
    if OURS not in cost or len(cost) < 2:
        print("  ratio: none, as a side failed")
        return
    for what, at, target in (("server CPU per request", 0, 1.0), ("with the load's CPU", 1, 0.0)):
        peer = min((name for name in cost if name != OURS), key=lambda name: cost[name][at])
        ratio = cost[OURS][at] / cost[peer][at]
        answer = f": {measure.reached(ratio <= target)} (at most nginx's)" if target else ""
        print(f"  {what}, ours / {peer}: {ratio:.2f}{answer}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=2)
    parser.add_argument("--segments", type=int, default=400)
    arguments = parser.parse_args()
    main(arguments.rounds, arguments.seconds, arguments.segments)
