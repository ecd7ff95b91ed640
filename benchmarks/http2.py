"""How much CPU time does a hit cost over HTTP/2, beside nginx? The playlist and the segment of hits.py, by h2load.

First without TLS (prior knowledge), so that what is compared is HTTP/2 alone, then over TLS 1.3 with the same
certificate and cipher; nginx reads files or sends them, the cheaper one is the peer. Each case with one stream a
connection at a time, as hits.py asks, and with ten.
Run: .venv/bin/python benchmarks/http2.py [--rounds N] [--seconds S] [--only plain|tls] [--plane: without the daemon]
"""

from __future__ import annotations

import argparse
import contextlib
import re
import resource
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass

import measure
import servers
from hits import COLUMNS, OURS, ROUNDS, SECONDS, row
from measure import Failure, Run, median
from origin import body_of

CIPHER = "TLS_AES_128_GCM_SHA256"


@dataclass(frozen=True)
class Case:
    """One object. `target`: ours by nginx's, server CPU time per request."""

    title: str
    path: str
    connections: int
    streams: int
    target: float


CASES = (
    Case("2.7 KB playlist, 100 connections, 1 stream", "/vod-2700.m3u8", 100, 1, 1 / 1.2),
    Case("2.7 KB playlist, 100 connections, 10 streams", "/vod-2700.m3u8", 100, 10, 1 / 1.2),
    Case("1 MB segment, 50 connections, 1 stream", "/segment-1048576.m4s", 50, 1, 1 / 1.15),
    Case("1 MB segment, 50 connections, 10 streams", "/segment-1048576.m4s", 50, 10, 1 / 1.15),
)


def h2load(url: str, case: Case, seconds: int, server: Sequence[int]) -> Run | Failure:
    """One window of h2load with one thread on the load's core. Requests are body bytes that have come by the body's
    size: streams share a connection by turns, so that a window's end leaves many bodies nearly whole."""
    command = ["h2load", "-t1", f"-c{case.connections}", f"-m{case.streams}", f"-D{seconds}", url]
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    before, busy = measure.cpu_s(server), measure.busy_s({measure.SERVER_CPU, measure.LOAD_CPU})
    begin = time.monotonic()
    try:
        done = subprocess.run(
            measure.pin(command, measure.LOAD_CPU), capture_output=True, text=True, timeout=seconds + 15, check=False
        )
    except subprocess.TimeoutExpired:  # seen with nginx, 10 streams and TLS on a busy machine
        return Failure("h2load did not end")
    elapsed_s = time.monotonic() - begin
    server_cpu_s = measure.cpu_s(server) - before
    busy = measure.busy_s({measure.SERVER_CPU, measure.LOAD_CPU}) - busy
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    load_cpu_s = after.ru_utime + after.ru_stime - children.ru_utime - children.ru_stime
    found = re.search(r"requests: .* done, (\d+) succeeded, (\d+) failed, (\d+) errored", done.stdout)
    came = re.search(r"traffic: .*\((\d+)\) data", done.stdout)
    protocol = re.search(r"Application protocol: (\S+)", done.stdout)
    if done.returncode != 0 or found is None or came is None:
        return Failure((done.stderr or done.stdout or "h2load").strip().splitlines()[-1])
    if int(found[2]) or int(found[3]) or (protocol and protocol[1] not in ("h2c", "h2")):
        return Failure(f"{found[0]}; {protocol and protocol[1]}")
    if url.startswith("https:") and f"Cipher: {CIPHER}" not in done.stdout:
        return Failure(f"another cipher than {CIPHER}")
    requests = round(int(came[1]) / len(body_of(case.path)))
    if requests == 0 or server_cpu_s == 0:
        return Failure("nothing was answered")
    return Run(requests, elapsed_s, server_cpu_s, load_cpu_s, max(0.0, busy - server_cpu_s - load_cpu_s))


def show(title: str, found: dict[str, list[Run | Failure]], target: float, heads: dict[str, str] | None = None) -> None:
    """A case's table and ratio. `heads`: by server, bytes of the response head, or what was wrong with it."""
    rows, cost, both = [], {}, {}
    for name, runs in found.items():
        whole = [run for run in runs if isinstance(run, Run)]
        failures = [run.why for run in runs if isinstance(run, Failure)]
        head = heads[name] if heads else "-"
        if head.startswith("failed"):
            rows.append([name, head])
        elif failures or not whole:
            rows.append([name, f"failed: {failures[0] if failures else 'no run'}"])
        else:
            rows.append(row(name, whole, head))
            cost[name] = median(run.cpu_us for run in whole)
            both[name] = median(run.both_cpu_us for run in whole)
    print(f"\n{title}")
    measure.table(COLUMNS, rows)
    peers = [name for name in cost if name != OURS]
    if OURS not in cost or not peers:
        print("  ratio: none, as one side failed")
        return
    peer = min(peers, key=cost.__getitem__)
    ratio = cost[OURS] / cost[peer]
    print(
        f"  server CPU per request, ours / {peer}: {ratio:.3f} = 1/{1 / ratio:.2f}: {measure.reached(ratio <= target)} "
        f"(at most {target:.3f}); with the load's CPU: {both[OURS] / both[peer]:.3f}"
    )


def main(rounds: int = ROUNDS, seconds: int = SECONDS, only: str | None = None, is_plane: bool = False) -> None:
    if absent := measure.missing("h2load", "nginx", "taskset", "openssl"):
        print(f"http2: not measured, not installed: {absent}")
        return
    measure.allow_many_files(65536)
    files = {case.path: body_of(case.path) for case in CASES}
    print(f"{rounds} windows of {seconds} s each, the servers in turn; medians; one server core, one load core")
    with contextlib.ExitStack() as stack:
        origin = stack.enter_context(servers.origin())
        tls = stack.enter_context(servers.certificate())
        ours = servers.plane(list(files)) if is_plane else servers.box(origin.port, tls=tls)
        peers = [
            stack.enter_context(ours),
            stack.enter_context(servers.nginx_files(files, True, is_http2=True, tls=tls)),
            stack.enter_context(servers.nginx_files(files, False, is_http2=True, tls=tls)),
        ]
        for is_tls in (False, True):
            if only == ("plain" if is_tls else "tls") or (is_tls and is_plane):
                continue
            for case in CASES:
                urls = {peer.name: peer.tls_url(case.path) if is_tls else peer.url(case.path) for peer in peers}
                found: dict[str, list[Run | Failure]] = {peer.name: [] for peer in peers}
                for peer in peers:
                    h2load(urls[peer.name], case, 1, peer.pids)
                for _ in range(rounds):
                    for peer in peers:
                        run = h2load(urls[peer.name], case, seconds, peer.pids)
                        if isinstance(run, Failure):  # once more: a load that did not end is no server's fault
                            run = h2load(urls[peer.name], case, seconds, peer.pids)
                        found[peer.name].append(run)
                show(f"{case.title}, {'over TLS 1.3' if is_tls else 'without TLS'} ({case.path})", found, case.target)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--seconds", type=int, default=SECONDS)
    parser.add_argument("--only", choices=["plain", "tls"])
    parser.add_argument("--plane", action="store_true")
    arguments = parser.parse_args()
    main(arguments.rounds, arguments.seconds, arguments.only, arguments.plane)
