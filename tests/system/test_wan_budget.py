"""The WAN budget on a link of 20 Mbit/s: what the wire carries, whom the queue loses, who has its guarantee."""

from __future__ import annotations

import statistics
from pathlib import Path

import netns
import pytest
from wan_box import Wan

pytestmark = pytest.mark.skipif(netns.why_not() is not None, reason=str(netns.why_not()))
LIVE_BYTES = 600_000


def test_bulk_live_and_voice_share_a_link_of_20_mbit_s(tmp_path: Path) -> None:
    """6 fills, a segment each second and an EF flow of 2 Mbit/s, with a budget of 15 Mbit/s and 40 % for the webcast.

    Takes 6 s: the budget is one of windows of a second."""
    with Wan(tmp_path) as wan:
        figures = wan.run(6, live_bytes=LIVE_BYTES)
        row = wan.box.status()["links"][0]
        metrics = wan.here.call(wan.box.metrics)
    # The sampler is a thread of a busy machine: 2 % are its own.
    assert figures.fetch_max_bps <= 15e6 * 1.02
    assert figures.fetch_mean_bps >= 15e6 * 0.75, "what is free is used"
    assert figures.ef_loss < 0.005, figures
    # 40 % of 15 Mbit/s carry the segment in 0.85 s.
    assert statistics.median(figures.live_s) < 0.85, figures.live_s
    classes = {each["name"]: each for each in row["classes"]}
    assert classes["webcast"]["bytes"] >= LIVE_BYTES * len(figures.live_s)
    assert classes["library"]["held"] > 0
    assert metrics["accelerator_link_bytes_total{library}{main}"] > 1_000_000
    assert metrics["accelerator_link_video_bps{main}"] == 15_000_000


def test_another_budget_holds_at_once_for_what_is_under_way(tmp_path: Path) -> None:
    with Wan(tmp_path) as wan:
        wan.box.reload({"links": {"main": {"video": "4Mbit/s"}}})
        small = wan.run(2.2, bulk=2)
        assert small.fetch_max_bps <= 4e6 * 1.04
        policy = {**wan.box.policy, "links": {"main": {"interface": "wan"}}}
        assert "taken over" in wan.box.reload(policy=policy)
        assert wan.box.status()["links"][0]["video_bps"] == 0
        free = wan.run(1.5, bulk=2, name="b")
        assert free.fetch_max_bps > 10e6
        wan.box.reload({"links": {"main": {"video": "15Mbit/s"}}, "classes": {"library": {"ceiling": "20%"}}})
        bounded = wan.run(2.2, bulk=3, name="c")
        assert bounded.fetch_max_bps <= 3e6 * 1.06, "of the class's ceiling, though nobody else wants anything"
