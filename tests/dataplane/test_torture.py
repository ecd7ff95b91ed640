"""The object store tortured before any socket: compiled readers against a writer at random, every byte checked.

`TORTURE_S` (seconds, default 3) makes it longer; `TORTURE_SEED` repeats a run, as far as threads can be repeated."""

from __future__ import annotations

import os
import random

import pytest
from ext.torture import Torture

SECONDS = float(os.environ.get("TORTURE_S", "3"))
SEED = int(os.environ.get("TORTURE_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 32)


@pytest.mark.timeout(120 + 2 * SECONDS)
@pytest.mark.parametrize(
    ("readers", "memory_mib", "slice_bytes"),
    [(3, 16, 4096), (2, 8, 65536), (4, 64, 16384)],
    ids=["slices", "tight", "wide"],
)
def test_readers_against_a_writer(readers: int, memory_mib: int, slice_bytes: int) -> None:
    print(f"seed {SEED}")
    torture = Torture(readers, memory_mib << 20, slice_bytes, SEED)
    figures = torture.run(SECONDS)
    print(figures)
    for name in ("created", "finished", "failed", "swapped", "purged", "marked", "found", "bytes", "wakes"):
        assert figures[name] > 0, name
