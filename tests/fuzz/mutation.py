"""Seeded mutations of byte strings, and the loop that fuzz targets share. What must hold is each target's own."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable, Sequence

_ODD = [
    b"\x00",
    b"\xff",
    b"\r",
    b"\n",
    b"\r\n",
    b" ",
    b"\t",
    b'"',
    b"\\",
    b",",
    b";",
    b"=",
    b"-",
    b"+",
    b"_",
    b"9" * 20,
]


def mutated(source: random.Random, seeds: Sequence[bytes], words: Sequence[bytes] = (), most: int = 6) -> bytes:
    """One of the seeds after up to `most` changes: bytes replaced, cut, doubled, words put in, two seeds crossed."""
    data = bytearray(source.choice(seeds))
    for _ in range(source.randrange(most + 1)):
        at = source.randrange(len(data) + 1)
        match source.randrange(6):
            case 0:
                data[at : at + 1] = bytes([source.randrange(256)])
            case 1:
                del data[at : at + source.randrange(1, 16)]
            case 2:
                data[at:at] = data[at : at + source.randrange(1, 32)] * source.randrange(1, 8)
            case 3:
                data[at:at] = source.choice(_ODD)
            case 4:
                data[at:at] = source.choice(words or _ODD)
            case _:
                other = source.choice(seeds)
                data[at:] = other[source.randrange(len(other) + 1) :]
    return bytes(data)


def run(check: Callable[[random.Random], None]) -> None:
    """Call `check` for argv[1] seconds, from seed argv[2] (0) on: each run has its own, printed if it fails."""
    end_s = time.monotonic() + float(sys.argv[1])
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    runs = 0
    while time.monotonic() < end_s:
        try:
            check(random.Random(seed + runs))
        except BaseException:
            print(f"finding: seed {seed + runs}", file=sys.stderr)
            raise
        runs += 1
    print(f"{runs} runs, 0 findings")
