"""How long the disk's index takes to load from its checkpoint, to save, to be asked: 1,000,000 objects of one slice.

Five times each, median and all; no peer. Nothing of it touches a disk but the page cache."""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from accelerator.store.checkpoint import dump_checkpoint, load_checkpoint
from accelerator.store.index import DiskIndex, Place
from ext.disk_record import checksum

N = 1_000_000
TIMES = 5


def key_of(number: int) -> int:
    return number * 0x9E3779B97F4A7C15 + 12345 & (1 << 64) - 1


def filled() -> DiskIndex:
    index = DiskIndex()
    for number in range(N):
        segment, at = number // 240 + 1, number % 240 * 1_000_000
        key = key_of(number)
        index.put_head(key, 0, number + 1, 2 * number + 1, 1 << 20, Place(segment, at, 900), 1, 1)
        index.put_slice(key, number + 1, 0, 2 * number + 2, Place(segment, at + 1024, 1 << 20))
        index.segments[segment] = 256 << 20
    return index


def timed(what: str, act: Callable[[], object]) -> None:
    took = []
    for _ in range(TIMES):
        began = time.perf_counter()
        act()
        took.append(time.perf_counter() - began)
    every = " ".join(f"{each:.3f}" for each in took)
    print(f"{what:<44}{statistics.median(took):>8.3f} s   ({every})")


def main() -> int:
    index = filled()
    print(f"{N:,} objects of one slice: {index.memory_bytes / N:.0f} bytes of memory each")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "checkpoint"
        data = b"".join(dump_checkpoint(index, 1, 64))
        path.write_bytes(data + checksum(data).to_bytes(4, "little"))
        print(f"checkpoint: {len(data) / 1e6:.0f} MB")
        timed("copy for a checkpoint (stops the loop)", lambda: dump_checkpoint(index, 1, 64))
        timed("load: read, check, take over", lambda: load_checkpoint(memoryview(path.read_bytes()), checksum))
        timed("which segment goes next", lambda: index.least_useful(but=1))
        timed("100,000 look-ups of an object and its slice", lambda: look_up(index))
    return 0


def look_up(index: DiskIndex) -> None:
    for number in range(0, N, N // 100_000):
        for head in index.find(key_of(number)):
            assert index.slice_of(head.generation, 0) is not None


if __name__ == "__main__":
    sys.exit(main())
