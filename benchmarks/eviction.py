"""What does the cache keep, beside LRU, SIEVE and S3-FIFO? Hit ratios of objects and of bytes on generated traces.

The box's own store is driven through its extension, with its heads and rows in the capacity; the others are written
plainly from their papers (eviction_policies.py) and count bodies only. Capacities are shares of the footprint: of all
bytes that a trace ever names. No time is measured; the figures are the same on every machine.
Run: .venv/bin/python benchmarks/eviction.py [--short: two traces, two sizes] [--trace NAME] [--admit: by size as well]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import measure
from eviction_policies import Lru, Policy, S3Fifo, Sieve, Store
from eviction_traces import Trace, all_traces

SHARES = (0.01, 0.05, 0.10, 0.30)
SHORT = ("library + crawl", "working day")
# The least capacity that the store works in: some MB go to slabs and what connections may need.
LEAST_BYTES = 16 << 20


def ratios(policy: Policy, trace: Trace) -> tuple[float, float]:
    """Hit ratio by objects and by bytes."""
    hits = bytes_hit = bytes_all = 0
    get = policy.get
    for key, size in trace:
        bytes_all += size
        if get(key, size):
            hits += 1
            bytes_hit += size
    return hits / len(trace), bytes_hit / bytes_all


def sieve_by_size(share: int, capacity: int) -> Policy:
    return Sieve(capacity, capacity // share)


def policies(is_by_size: bool) -> dict[str, Callable[[int], Policy]]:
    found: dict[str, Callable[[int], Policy]] = {"LRU": Lru, "S3-FIFO": S3Fifo, "SIEVE": Sieve, "our store": Store}
    if is_by_size:
        for share in (4, 16, 64):
            found[f"SIEVE, at most 1/{share}"] = partial(sieve_by_size, share)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--trace")
    parser.add_argument("--admit", action="store_true")
    arguments = parser.parse_args()
    chosen = policies(arguments.admit)
    sums: dict[str, list[float]] = {name: [0.0, 0.0, 0.0] for name in chosen}
    for name, make in all_traces().items():
        if (arguments.short and name not in SHORT) or (arguments.trace and name != arguments.trace):
            continue
        trace = make()
        sizes = dict(trace)
        footprint = sum(sizes.values())
        ceiling = 1 - len(sizes) / len(trace)
        ceiling_bytes = 1 - footprint / sum(size for _, size in trace)
        print(f"\n{name}: {len(trace):,} requests for {len(sizes):,} objects, {footprint / 1e9:.2f} GB; "
              f"with room for all {ceiling:.1%} of objects, {ceiling_bytes:.1%} of bytes are hits")  # fmt: skip
        rows = []
        for share in SHARES[1:3] if arguments.short else SHARES:
            capacity = int(footprint * share)
            if capacity < LEAST_BYTES:
                continue
            cells = [f"{share:.0%}, {capacity / 1e6:,.0f} MB"]
            for each, policy in chosen.items():
                hits, bytes_hit = ratios(policy(capacity), trace)
                cells.append(f"{hits:.1%} {bytes_hit:.1%}")
                sums[each] = [sums[each][0] + hits, sums[each][1] + bytes_hit, sums[each][2] + 1]
            rows.append(cells)
        measure.table(("capacity", *chosen), rows)
    print("\nmeans over all of the above (objects, bytes):")
    measure.table(("", *chosen), [["mean", *(f"{a / n:.1%} {b / n:.1%}" for a, b, n in sums.values() if n)]])


if __name__ == "__main__":
    main()
