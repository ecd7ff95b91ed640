"""What does a hole that can't be repaired cost each packet behind it? A stream with repair packets (SMPTE 2022-1)
through a relay's window, no socket: nothing lost, packets that are given back, and matrices that are beyond repair.

Run: .venv/bin/python benchmarks/relay_fec.py [PACKETS [RUNS]]     (by default 40,000 a case, medians of 5; no peer)

Where a matrix is beyond repair a hole is open all the time. Python's calls are in all cases' time; "nothing lost" says
how much that is.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import measure

sys.path.append(str(measure.ROOT))
sys.path.append(str(measure.ROOT / "tests" / "dataplane"))
from relay_packets import matrix, stream

from ext.relay_plane import RelayBench, Settings

MS = 1_000_000
SHAPES = ((8, 5), (20, 20))
# Whether a matrix's packet of this column and row is lost.
LOST: dict[str, Callable[[int, int], bool]] = {
    "nothing": lambda column, row: False,
    "one of each matrix": lambda column, row: column == row == 2,
    "four in a rectangle": lambda column, row: column in {0, 3} and row in {0, 2},
    "two fifths of each row and column": lambda column, row: (column + row) % 5 < 2,
}


def taken_ns(packets: list[bytes], repairs: dict[int, list[bytes]], lost: set[int]) -> tuple[float, int]:
    """By packet; and how many were given back."""
    legs: list[tuple[int, str, tuple[tuple[bytes, int], ...]]] = [(-1, "media", ()), (-1, "fec", ())]
    bench = RelayBench(Settings(legs=legs, is_rtp=True, wait_ns=500 * MS, window_packets=1024))
    begin_s = time.process_time()
    for number, packet in enumerate(packets):
        if number not in lost:
            bench.take(0, packet, (number + 1) * MS // 100)
        for repair in repairs.get(number, ()):
            bench.take(1, repair, (number + 1) * MS // 100)
    return (time.process_time() - begin_s) * 1e9 / len(packets), bench.known()["repaired"]


def main() -> int:
    n = int(sys.argv[1]) if len(sys.argv) > 1 else 40_000
    runs = int(sys.argv[2]) if len(sys.argv) > 2 else 5
    rows = []
    for columns, lines in SHAPES:
        size = columns * lines
        count = n // size * size
        packets = stream(count)
        repairs = {
            block + size - 1: [
                repair for kind in matrix(packets[block : block + size], columns, lines, block) for repair in kind
            ]
            for block in range(0, count, size)
        }
        for name, is_lost in LOST.items():
            lost = {at for at in range(count) if is_lost(at % size % columns, at % size // columns)}
            found = [taken_ns(packets, repairs, lost) for _ in range(runs)]
            taken = statistics.median(each for each, _ in found)
            rows.append((f"L={columns} D={lines}, lost: {name}", f"{taken:,.0f}", f"{len(lost):,}", f"{found[0][1]:,}"))
    print(f"{n:,} packets of 1,316 bytes; ns a packet, medians of {runs} runs")
    measure.table(("case", "ns", "lost", "given back"), rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
