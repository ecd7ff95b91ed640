"""A flood of reports, as benchmarks/multicast_flood.py makes it: none is lost, and what they add up to is what is asked
for upstream. How much CPU time it takes is the benchmark's question."""

from __future__ import annotations

import sys
from pathlib import Path

import netns
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import multicast_flood

pytestmark = [pytest.mark.netns, pytest.mark.skipif(bool(netns.why_not()), reason=netns.why_not() or "")]


@pytest.mark.parametrize(
    ("seconds", "n_links"),
    [(1.0, 3), pytest.param(60.0, 20, marks=[pytest.mark.slow, pytest.mark.timeout(300)])],
    ids=["short", "minute"],
)
def test_no_report_of_a_flood_is_lost(tmp_path: Path, seconds: float, n_links: int) -> None:
    got = multicast_flood.flood(seconds, tmp_path, n_links)
    assert (got.n_kernel_drops, got.n_dropped) == (0, {})
    assert got.n_heard >= got.n_sent
    assert got.is_state_right
    assert got.flows_lost == 0
    # Everything is joined before the clock begins.
    assert got.rss_after < 1.2 * got.rss_before
