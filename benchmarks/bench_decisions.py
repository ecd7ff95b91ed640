"""What do the control plane's decisions cost? One decide() per miss, a manifest, a policy of 200 origins.

One core, no I/O but reading the policy. Prints microseconds, each the median of five runs.
Run: .venv/bin/python benchmarks/bench_decisions.py
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from origin import body_of

from accelerator.policy import compile_policy, load_policy
from accelerator.protocols.cache_decide import OriginRules, decide
from accelerator.protocols.live import read_manifest

N_RUNS = 5
N_ORIGINS = 200
HLS = b"application/vnd.apple.mpegurl"
REQUEST = [
    (b"Host", b"media.example"), (b"User-Agent", b"Mozilla/5.0 (X11; Linux x86_64) Chrome/126.0.0.0 Safari/537.36"),
    (b"Accept", b"*/*"), (b"Origin", b"https://portal.corp.example"), (b"Accept-Encoding", b"gzip, deflate, br"),
]  # fmt: skip
RESPONSE = [
    (b"Date", b"Sun, 06 Nov 1994 08:49:37 GMT"), (b"Content-Type", b"video/iso.segment"), (b"Vary", b"Origin"),
    (b"Cache-Control", b"public, max-age=3600, stale-while-revalidate=60"), (b"Age", b"12"),
    (b"Last-Modified", b"Sun, 06 Nov 1994 08:49:37 GMT"), (b"Access-Control-Allow-Origin", b"*"),
    (b"Content-Length", b"1048576"), (b"ETag", b'"63677311-a8c"'),
]  # fmt: skip


def microseconds(call: Callable[[], object], n: int) -> float:
    """Per call: the median of N_RUNS runs of `n` calls."""
    found = []
    for _ in range(N_RUNS):
        begin = time.perf_counter_ns()
        for _ in range(n):
            call()
        found.append((time.perf_counter_ns() - begin) / n / 1000)
    return statistics.median(found)


def main() -> None:
    rules = OriginRules(profile="media")
    playlist = body_of("/vod-2700.m3u8")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "policy.yaml")
        origins = "".join(
            f'  o{i}: {{from: ["https://o{i}.corp.example"], hosts: [o{i}.lyon.corp.example], paths: [/live, /vod]}}\n'
            for i in range(N_ORIGINS)
        )
        path.write_text("version: 1\nsite: {name: lyon}\norigins:\n" + origins)
        policy = load_policy(path)
        cases: list[tuple[str, Callable[[], object], int]] = [
            (
                "decide(), a segment",
                lambda: decide(
                    REQUEST, b"GET", b"/live/720p/segment-001.m4s", rules, 200, RESPONSE,
                    request_wall_s=784111777.0, response_wall_s=784111777.1,
                ),
                2000,
            ),
            ("read_manifest(), 2.7 KB HLS", lambda: read_manifest(playlist, b"/vod.m3u8", HLS), 500),
            (f"load_policy(), {N_ORIGINS} origins", lambda: load_policy(path), 1),
            (f"compile_policy(), {N_ORIGINS} origins", lambda: compile_policy(policy), 3),
        ]  # fmt: skip
        for name, call, n in cases:
            print(f"  {name:<36}{microseconds(call, n):>12,.1f} µs")


if __name__ == "__main__":
    main()
