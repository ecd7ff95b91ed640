"""How much CPU time does a hit cost, beside nginx and Varnish? A 2.7 KB playlist and a 1 MB segment, keep-alive.

Windows of wrk on our daemon, three nginx (files by sendfile, files read, proxy_cache) and Varnish, in turn; the
cheapest nginx is the peer. bare_loop.c is the floor: a server that only sends.
Run: .venv/bin/python benchmarks/hits.py [--rounds N] [--seconds S] [--plane: the data plane without the daemon]
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
from dataclasses import dataclass

import measure
import servers
from measure import Failure, Run, median
from origin import body_of

OURS, FLOOR = "accelerator", "bare loop in C"


@dataclass(frozen=True)
class Case:
    """One object under one number of connections. `targets`: ours by a peer's, server CPU time per request."""

    title: str
    path: str
    connections: int
    targets: dict[str, float]


CASES = (
    Case("2.7 KB playlist, 100 connections", "/vod-2700.m3u8", 100, {"nginx": 1 / 1.5, "varnish": 1 / 2.5, FLOOR: 1.2}),
    Case("1 MB segment, 50 connections", "/segment-1048576.m4s", 50, {"nginx": 1 / 2, "varnish": 1 / 1.05, FLOOR: 1.1}),
)
COLUMNS = ("server", "CPU µs/request", "with load", "requests/s", "server CPU", "load CPU", "others", "head B", "each")
ROUNDS = 5
SECONDS = 2
WARM_UP_S = 1


def head_of(case: Case, peer: servers.Server) -> str:
    """Bytes of the response head; "failed: …" where a server doesn't send the right bytes."""
    wanted = hashlib.sha256(body_of(case.path)).digest()
    try:
        measure.get(peer.port, case.path)  # the second answer is a hit everywhere
        status, _, body, head_bytes = measure.get(peer.port, case.path)
    except (OSError, ValueError, KeyError) as problem:
        return f"failed: {problem}"
    is_right = status == 200 and (hashlib.sha256(body).digest() == wanted or peer.name == FLOOR)
    return str(head_bytes) if is_right else f"failed: status {status} or other bytes"


def measured(case: Case, peers: list[servers.Server], rounds: int, seconds: int) -> dict[str, list[Run | Failure]]:
    """Windows by server, taken in turn, so that what changes meanwhile meets all of them."""
    found: dict[str, list[Run | Failure]] = {peer.name: [] for peer in peers}
    for peer in peers:
        measure.wrk(peer.url(case.path), case.connections, WARM_UP_S, peer.pids)
    for _ in range(rounds):
        for peer in peers:
            found[peer.name].append(measure.wrk(peer.url(case.path), case.connections, seconds, peer.pids))
    return found


def row(name: str, runs: list[Run], head: str) -> list[str]:
    return [
        name,
        f"{median(run.cpu_us for run in runs):.2f}",
        f"{median(run.both_cpu_us for run in runs):.2f}",
        f"{median(run.rate for run in runs):,.0f}",
        f"{median(run.server_share for run in runs):.0%}",
        f"{median(run.load_share for run in runs):.0%}",
        f"{median(run.others_share for run in runs):.0%}",
        head,
        measure.spread([run.cpu_us for run in runs]),
    ]


def show(case: Case, found: dict[str, list[Run | Failure]], heads: dict[str, str]) -> None:
    rows = []
    whole: dict[str, list[Run]] = {}
    for name, runs in found.items():
        failures = [run.why for run in runs if isinstance(run, Failure)]
        if heads[name].startswith("failed"):
            rows.append([name, heads[name]])
        elif failures or not runs:
            why = failures[0] if failures else "no run"
            rows.append([name, f"failed: {why} ({len(failures)} of {len(runs)} runs)"])
        else:
            whole[name] = [run for run in runs if isinstance(run, Run)]
            rows.append(row(name, whole[name], heads[name]))
    print(f"\n{case.title} ({case.path})")
    measure.table(COLUMNS, rows)
    if OURS not in whole:
        print("  ratio: none, as our side failed")
        return
    cost = {name: median(run.cpu_us for run in runs) for name, runs in whole.items()}
    both = {name: median(run.both_cpu_us for run in runs) for name, runs in whole.items()}
    for prefix, target in case.targets.items():
        peers = [name for name in whole if name.startswith(prefix)]
        if not peers:
            print(f"  ratio to {prefix}: none, as that side failed or isn't installed")
            continue
        peer, both_peer = min(peers, key=cost.__getitem__), min(peers, key=both.__getitem__)
        ratio = cost[OURS] / cost[peer]
        print(
            f"  server CPU per request, ours / {peer}: {ratio:.3f} = 1/{1 / ratio:.2f}: "
            f"{measure.reached(ratio <= target)} (at most {target:.3f}); "
            f"with the load's CPU, ours / {both_peer}: {both[OURS] / both[both_peer]:.3f}"
        )


def main(rounds: int = ROUNDS, seconds: int = SECONDS, is_plane: bool = False) -> None:
    if absent := measure.missing("wrk", "nginx", "taskset", "gcc"):
        print(f"hits: not measured, not installed: {absent}")
        return
    measure.allow_many_files(65536)
    files = {case.path: body_of(case.path) for case in CASES}
    print(f"{rounds} windows of {seconds} s each, the servers in turn; medians; one server core, one load core")
    with contextlib.ExitStack() as stack:
        origin = stack.enter_context(servers.origin())
        peers = [
            stack.enter_context(servers.plane(list(files)) if is_plane else servers.box(origin.port)),
            stack.enter_context(servers.nginx_files(files, True)),
            stack.enter_context(servers.nginx_files(files, False)),
            stack.enter_context(servers.nginx_cache(origin.port)),
        ]
        if not measure.missing("varnishd"):
            peers.append(stack.enter_context(servers.varnish(origin.port)))
        for case in CASES:
            with servers.bare_loop(len(files[case.path])) as floor:
                all_peers = [*peers, floor]
                heads = {peer.name: head_of(case, peer) for peer in all_peers}
                found = measured(case, all_peers, rounds, seconds)
            asked = servers.times_asked(origin, case.path)
            show(case, found, heads)
            print(f"  origin asked {asked} times, by all caches together (a few: the windows were hits)")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--seconds", type=int, default=SECONDS)
    parser.add_argument("--plane", action="store_true")
    arguments = parser.parse_args()
    main(arguments.rounds, arguments.seconds, arguments.plane)
