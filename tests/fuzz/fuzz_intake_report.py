"""Fuzz target: what the process of an SRT or RIST input says. Whatever the bytes are, what is read is of known names,
bounded, printable, without addresses, and the same however the stream was cut.

    PYTHONPATH=. .venv/bin/python tests/fuzz/fuzz_intake_report.py 600   so many seconds; prints the number of runs
"""

from __future__ import annotations

import random
import sys
import time
from ipaddress import IPv4Address

from mutation import mutated

from accelerator.protocols.intake_report import (
    LINE_BYTES_MAX,
    REFUSALS,
    STATES,
    STATS,
    TEXT_MAX,
    Lines,
    plain,
    read_report,
)

SEEDS = [
    b'{"state":"connected"}\n{"stats":{"packets":194,"missed":0,"given_up":0,"undecrypted":0}}\n',
    b'{"state":"waiting","why":"Connection setup failure: connection timed out: 10.0.0.1:9000"}\n',
    b'{"refused":{"source":17,"stream-id":1}}\n{"unconfined":"no landlock"}\n',
    b'{"state":"failed","why":"librist: [2001:db8::1]:9000"}\n' + b"x" * 5000 + b"\n",
]
WORDS = [b'"why":', b"{", b"}", b"\n", b"\\ud800", b"1e999", b"-1", b"true", b"10.0.0.1", b"::1", b"[", b"\xff", b"NaN"]


def check(source: random.Random, data: bytes) -> None:
    whole, cut = Lines(), Lines()
    lines = whole.add(data)
    pieces, at = [], 0
    while at < len(data):
        size = source.randrange(1, 4 * LINE_BYTES_MAX if source.random() < 0.3 else 64)
        pieces += cut.add(data[at : at + size])
        at += size
    # A line that is too long may be dropped by either, whole; nothing else may differ.
    assert pieces == lines
    for line in lines:
        assert len(line) <= LINE_BYTES_MAX
        assert len(plain(line.decode(errors="replace"))) <= TEXT_MAX
        said = read_report(line)
        if said is None:
            continue
        assert said.state in ("", *STATES)
        assert set(said.stats) <= set(STATS)
        assert set(said.refused) <= set(REFUSALS)
        assert all(0 <= each < 2**63 for each in (*said.stats.values(), *said.refused.values()))
        for text in (said.why, said.unconfined):
            assert text.isprintable()
            assert len(text) <= TEXT_MAX
            for word in text.replace(":", " ").split():
                if word.count(".") == 3:
                    try:
                        IPv4Address(word)
                    except ValueError:
                        continue
                    raise AssertionError(text)


def run(seconds: float, seed: int) -> int:
    source, n_runs = random.Random(seed), 0
    ends_s = time.monotonic() + seconds
    while time.monotonic() < ends_s:
        data = b"".join(mutated(source, SEEDS, WORDS) for _ in range(source.randrange(1, 3)))
        check(source, data)
        n_runs += 1
    return n_runs


def test_fuzz_intake_report() -> None:
    assert run(1.0, 1)


if __name__ == "__main__":
    print(run(float(sys.argv[1]), time.time_ns()), "runs")
