"""Viewers at their own pace, beside nginx: 10,000 keep-alive connections with 2,000 requests/s over all, plain and over
TLS 1.3; up to 6,000 viewers of a low-latency live channel, each with a playlist and a part every 333 ms. First byte,
memory, server CPU.

paced.c is the load: it counts from when a request was due. The servers take turns; medians of the rounds.
Run: .venv/bin/python benchmarks/viewers.py [--rounds N] [--seconds S] [--case idle|live]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import time
from dataclasses import dataclass

import measure
import servers
from measure import median
from origin import body_of

PLAYLIST = "/vod-2700.m3u8"
# A third of a second of 3 Mbit/s.
PART = "/segment-125000.m4s"
ROUNDS = 5
SECONDS = 5
# Above this the load side is what is measured.
LOAD_SHARE_MAX = 0.9


@dataclass(frozen=True)
class Case:
    title: str
    connections: int
    interval_ms: int
    paths: tuple[str, ...]
    is_tls: bool = False


CASES = {
    "idle": (
        Case("10,000 keep-alive connections, 2,000 requests/s", 10_000, 5000, (PLAYLIST,)),
        Case("10,000 keep-alive connections, 2,000 requests/s, TLS 1.3", 10_000, 5000, (PLAYLIST,), is_tls=True),
    ),
    # From few to all: where the load side can't follow any more, the ones before it still say something.
    "live": tuple(
        Case(f"{n:,} live viewers, a playlist and a part of 125 kB every 333 ms", n, 333, (PLAYLIST, PART))
        for n in (1000, 3000, 6000)
    ),
}


@dataclass(frozen=True)
class Round:
    first_ms: list[float]
    cpu_us: float
    memory_bytes: int
    load_share: float
    late: int
    answers: int


def run(case: Case, server: servers.Server, seconds: int, idle_bytes: int) -> Round | str:
    """One round; what was wrong where it does not count."""
    command = [
        measure.compiled("paced", "-lssl", "-lcrypto"), str(server.tls_port if case.is_tls else server.port),
        str(case.connections), str(case.interval_ms), str(seconds), "tls" if case.is_tls else "plain", *case.paths,
    ]  # fmt: skip
    with subprocess.Popen(measure.pin(command, measure.LOAD_CPU), stdout=subprocess.PIPE, text=True) as load:
        assert load.stdout is not None
        first = load.stdout.readline()
        if first != "go\n":
            return first.strip()
        server_cpu, load_cpu, began = measure.cpu_s(server.pids), measure.cpu_s([load.pid]), time.monotonic()
        # While it runs: afterwards the connections are gone.
        time.sleep(seconds * 0.8)
        took = time.monotonic() - began
        server_s, load_s = measure.cpu_s(server.pids) - server_cpu, measure.cpu_s([load.pid]) - load_cpu
        memory = measure.pss_bytes(server.pids) - idle_bytes
        found = json.loads(load.stdout.readline())
    if found["errors"]:
        return f"{found['errors']} errors"
    rate = found["answers"] / seconds
    cpu_us = server_s / took / rate * 1e6
    return Round(found["first_ms"], cpu_us, memory, load_s / took, found["late"], found["answers"])


def show(case: Case, peers: list[servers.Server], rounds: int, seconds: int, idle: dict[str, int]) -> None:
    found: dict[str, list[Round]] = {peer.name: [] for peer in peers}
    wrong: dict[str, str] = {}
    for _ in range(rounds):
        for peer in peers:
            result = run(case, peer, seconds, idle[peer.name])
            if isinstance(result, str):
                wrong[peer.name] = result
            else:
                found[peer.name].append(result)
    print(f"\n{case.title}")
    columns = ("server", "first byte p50 ms", "p99", "max", "CPU µs/request", "load CPU", "memory more", "late rounds")
    rows = []
    for name, each in found.items():
        if name in wrong or not each:
            rows.append([name, f"failed: {wrong.get(name, 'no round')}"])
            continue
        rows.append([
            name, *(f"{median(one.first_ms[i] for one in each):.2f}" for i in range(3)),
            f"{median(one.cpu_us for one in each):.2f}", f"{median(one.load_share for one in each):.0%}",
            f"{median(one.memory_bytes for one in each) / 2**20:.1f} MiB", f"{median(one.late for one in each):.0f}",
        ])  # fmt: skip
    measure.table(columns, rows)
    ours = found["accelerator"]
    others = [each for name, each in found.items() if name != "accelerator" and name not in wrong and each]
    if not ours or "accelerator" in wrong or not others:
        return
    if max(median(one.load_share for one in each) for each in (ours, *others)) > LOAD_SHARE_MAX:
        print("  the load side is at its limit: first bytes are its own lateness, and don't count")
    p99 = median(one.first_ms[1] for one in ours)
    best = min(median(one.first_ms[1] for one in each) for each in others)
    cpu = median(one.cpu_us for one in ours) / min(median(one.cpu_us for one in each) for each in others)
    memory = median(one.memory_bytes for one in ours), min(median(one.memory_bytes for one in each) for each in others)
    if case.interval_ms > 1000:
        print(
            f"  p99 of the first byte, ours / the best peer: {p99 / best:.2f}: "
            f"{measure.reached(p99 <= best)} (at most 1)"
        )
        print(
            f"  memory of the connections, ours / the best peer: {memory[0] / max(memory[1], 1):.2f}: "
            f"{measure.reached(memory[0] <= memory[1])} (at most 1)"
        )
    else:
        print(f"  p99 of the first byte: {p99:.2f} ms: {measure.reached(p99 <= 50)} (at most 50 ms)")
    print(f"  server CPU per request, ours / the best peer: {cpu:.2f}: {measure.reached(cpu < 1)} (below 1)")


def main(rounds: int = ROUNDS, seconds: int = SECONDS, case: str = "") -> None:
    if absent := measure.missing("nginx", "taskset", "gcc"):
        print(f"viewers: not measured, not installed: {absent}")
        return
    limit = measure.allow_many_files(12_000)
    files = {path: body_of(path) for path in (PLAYLIST, PART)}
    print(f"{rounds} rounds of {seconds} s each, the servers in turn; medians; one server core, one load core")
    with contextlib.ExitStack() as stack:
        origin = stack.enter_context(servers.origin())
        tls = stack.enter_context(servers.certificate())
        peers = [
            stack.enter_context(servers.box(origin.port, tls=tls)),
            stack.enter_context(servers.nginx_files(files, True, tls=tls)),
            stack.enter_context(servers.nginx_files(files, False, tls=tls)),
        ]
        for peer in peers:
            for path in files:
                measure.get(peer.port, path)
        idle = {peer.name: measure.pss_bytes(peer.pids) for peer in peers}
        for each in (each for name, cases in CASES.items() if case in ("", name) for each in cases):
            if each.connections + 100 > limit:
                print(f"{each.title}: not measured, the limit of open files is {limit}")
                continue
            show(each, peers, rounds, max(seconds, each.interval_ms // 1000 + 1), idle)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--seconds", type=int, default=SECONDS)
    parser.add_argument("--case", choices=("idle", "live"), default="")
    arguments = parser.parse_args()
    main(arguments.rounds, arguments.seconds, arguments.case)
