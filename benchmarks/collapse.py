"""Does one new segment cross the WAN once, and does nobody wait behind the others? 1,000 viewers on open connections.

They all ask for the same 4 MB segment, that nobody has; the origin is 50 ms away and sends 50 Mbit/s. Counted: requests
at the origin, and how long after the first viewer the last one has its first body byte. For context: nginx's lock.
Run: .venv/bin/python benchmarks/collapse.py [--rounds N]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import zlib

import measure
import servers
from origin import body_of

VIEWERS = 1000
SEGMENT_BYTES = 4 * 2**20
RATE_BPS = 50e6
ROUND_TRIP_S = 0.05
TARGET_MS = 20.0
ROUNDS = 5
PEER_ROUNDS = 2  # only for context


def window(program: str, server: servers.Server, origin: servers.Server, path: str) -> dict[str, float] | str:
    """One new segment: its figures, or why they don't count."""
    command = [program, str(server.port), str(VIEWERS), "/warm-100.m4s", path]
    before_s = measure.cpu_s(server.pids)
    command = measure.pin(command, measure.LOAD_CPU)
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
    if done.returncode != 0:
        return (done.stdout + done.stderr).strip()[:200] or f"followers ended with {done.returncode}"
    found = json.loads(done.stdout)
    wanted = zlib.adler32(body_of(path))
    if found["ok"] != VIEWERS or any(value != wanted for value in found["adler32"]):
        return f"{found['ok']} of {VIEWERS} answers whole, checksums {'right' if found['ok'] == VIEWERS else 'unknown'}"
    return {
        "asked": servers.times_asked(origin, path),
        "first_ms": found["first_ms"],
        "behind_ms": found["slowest_ms"] - found["first_ms"],
        "last_ms": found["last_byte_ms"],
        "cpu_s": measure.cpu_s(server.pids) - before_s,
    }


def rounds_of(program: str, server: servers.Server, origin: servers.Server, rounds: int) -> list[str]:
    """One row of the table."""
    found = []
    for number in range(rounds):
        path = f"/paced/{server.name.split(',')[0]}-{number}-{SEGMENT_BYTES}.m4s"
        found.append(window(program, server, origin, path))
    failures = [each for each in found if isinstance(each, str)]
    if failures:
        return [server.name, f"failed: {failures[0]} ({len(failures)} of {rounds} runs)"]
    good = [each for each in found if isinstance(each, dict)]
    behind = [each["behind_ms"] for each in good]
    if server.name == "accelerator":
        once = all(each["asked"] == 1 for each in good)
        print(f"  one upstream request for each segment: {measure.reached(once)}")
        middle = measure.median(behind)
        answer = measure.reached(middle <= TARGET_MS)
        print(f"  slowest follower after the first: {middle:.1f} ms: {answer} (at most {TARGET_MS:.0f})")
    return [
        server.name,
        measure.spread([each["asked"] for each in good]),
        f"{measure.median(each['first_ms'] for each in good):.1f}",
        f"{measure.median(behind):.1f}",
        f"{max(behind):.1f}",
        f"{measure.median(each['last_ms'] for each in good):.0f}",
        f"{measure.median(each['cpu_s'] for each in good) / VIEWERS * 1e6:.0f}",
        measure.spread(behind),
    ]


def main(rounds: int = ROUNDS) -> None:
    if absent := measure.missing("gcc", "nginx", "taskset"):
        print(f"collapse: not measured, not installed: {absent}")
        return
    measure.allow_many_files(65536)
    program = measure.compiled("followers")
    alone_ms = ROUND_TRIP_S * 1e3 + SEGMENT_BYTES * 8e3 / RATE_BPS
    print(f"{VIEWERS:,} viewers, a segment of {SEGMENT_BYTES:,} bytes; origin {ROUND_TRIP_S * 1e3:.0f} ms away with")
    print(f"{RATE_BPS / 1e6:.0f} Mbit/s: one viewer alone would have the last byte after {alone_ms:.0f} ms")
    rows = []
    with servers.origin(RATE_BPS, ROUND_TRIP_S) as origin:
        with servers.box(origin.port) as box:
            rows.append(rounds_of(program, box, origin, rounds))
        with servers.nginx_cache(origin.port) as nginx:
            rows.append(rounds_of(program, nginx, origin, min(rounds, PEER_ROUNDS)))
    columns = ["server", "asked", "first ms", "behind ms", "worst ms", "last byte ms", "CPU µs/viewer", "each ms"]
    measure.table(columns, rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    main(parser.parse_args().rounds)
