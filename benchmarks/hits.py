"""How much CPU time does a hit cost, beside nginx? A 2.7 KB playlist and a 1 MB segment from memory, keep-alive.

Windows of wrk on our daemon and three nginx (files by sendfile, files read, proxy_cache), in turn; the cheapest nginx
is the peer.
Run: .venv/bin/python benchmarks/hits.py [--rounds N] [--seconds S] [--plane: the data plane without the daemon]
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
from dataclasses import dataclass

import measure
import servers
from measure import Failure, Run, median, spread
from origin import body_of


@dataclass(frozen=True)
class Case:
    """One object under one number of connections. `target`: ours by nginx's, CPU time per request."""

    title: str
    path: str
    connections: int
    target: float


CASES = (
    Case("2.7 KB playlist, 100 connections", "/vod-2700.m3u8", 100, 1 / 1.2),
    Case("1 MB segment, 50 connections", "/segment-1048576.m4s", 50, 1 / 1.5),
)
ROUNDS = 5
SECONDS = 3
WARM_UP_S = 1


def heads(case: Case, peers: list[servers.Server]) -> list[str]:
    """Bytes of each response head; "failed: …" where a server doesn't send the right bytes."""
    wanted = hashlib.sha256(body_of(case.path)).digest()
    found = []
    for peer in peers:
        try:
            measure.get(peer.port, case.path)  # the second answer is a hit everywhere
            status, _, body, head_bytes = measure.get(peer.port, case.path)
        except (OSError, ValueError, KeyError) as problem:
            found.append(f"failed: {problem}")
            continue
        is_right = status == 200 and hashlib.sha256(body).digest() == wanted
        found.append(str(head_bytes) if is_right else f"failed: status {status} or other bytes")
    return found


def measured(
    case: Case, peers: list[servers.Server], rounds: int, seconds: int
) -> dict[str, list[Run | Failure]]:
    """Windows by server, taken in turn, so that what changes meanwhile meets all of them."""
    found: dict[str, list[Run | Failure]] = {peer.name: [] for peer in peers}
    for peer in peers:
        measure.wrk(peer.url(case.path), case.connections, WARM_UP_S, peer.pids)
    for _ in range(rounds):
        for peer in peers:
            found[peer.name].append(measure.wrk(peer.url(case.path), case.connections, seconds, peer.pids))
    return found


def show(case: Case, found: dict[str, list[Run | Failure]], head_bytes: list[str]) -> None:
    rows = []
    medians = {}
    for (name, runs), head in zip(found.items(), head_bytes, strict=True):
        good = [run for run in runs if isinstance(run, Run)]
        failures = [run.why for run in runs if isinstance(run, Failure)]
        if head.startswith("failed"):
            failures, good = [head], []
        if failures or not good:
            why = failures[0] if failures else "no run"
            rows.append([name, f"failed: {why} ({len(failures)} of {len(runs)} runs)"])
            continue
        medians[name] = median(run.cpu_us for run in good)
        rows.append(
            [
                name,
                f"{medians[name]:.2f}",
                f"{median(run.rate for run in good):,.0f}",
                f"{median(run.server_share for run in good):.0%}",
                f"{median(run.load_share for run in good):.0%}",
                f"{median(run.others_share for run in good):.0%}",
                head,
                spread([run.cpu_us for run in good]),
            ]
        )
    columns = ["server", "CPU µs/request", "requests/s", "server CPU", "load CPU", "others", "head B", "each run's µs"]
    print(f"\n{case.title} ({case.path})")
    measure.table(columns, rows)
    ours = medians.get("accelerator")
    peers = {name: value for name, value in medians.items() if name.startswith("nginx")}
    if ours is None or not peers:
        print("  ratio: none, as a side failed")
        return
    peer = min(peers, key=peers.__getitem__)
    ratio = ours / peers[peer]
    answer = f"{measure.reached(ratio <= case.target)} (at most 1/{1 / case.target:.2f})"
    print(f"  CPU per request, ours / {peer}: {ratio:.3f} = 1/{1 / ratio:.2f}: {answer}")


def main(rounds: int = ROUNDS, seconds: int = SECONDS, is_plane: bool = False) -> None:
    if absent := measure.missing("wrk", "nginx", "taskset"):
        print(f"hits: not measured, not installed: {absent}")
        return
    measure.allow_many_files(65536)
    with contextlib.ExitStack() as stack:
        origin = stack.enter_context(servers.origin())
        files = {case.path: body_of(case.path) for case in CASES}
        peers = [
            stack.enter_context(servers.plane([case.path for case in CASES]) if is_plane else servers.box(origin.port)),
            stack.enter_context(servers.nginx_files(files, True)),
            stack.enter_context(servers.nginx_files(files, False)),
            stack.enter_context(servers.nginx_cache(origin.port)),
        ]
        print(f"{rounds} windows of {seconds} s each, the servers in turn; medians; one server core, one load core")
        for case in CASES:
            head_bytes = heads(case, peers)
            found = measured(case, peers, rounds, seconds)
            asked = servers.times_asked(origin, case.path)
            show(case, found, head_bytes)
            print(f"  origin asked {asked} times, by both caches together (2: all windows were hits)")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--seconds", type=int, default=SECONDS)
    parser.add_argument("--plane", action="store_true")
    arguments = parser.parse_args()
    main(arguments.rounds, arguments.seconds, arguments.plane)
