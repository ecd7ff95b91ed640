"""A WAN of 20 Mbit/s (tbf, a queue of 40 ms): six bulk fills, a live segment of 600 kB each second and an EF flow of
2 Mbit/s compete. What the wire carried over windows of a second, what EF lost, how long a segment took: without a
budget, and with 15 Mbit/s of which the webcast has 40 % for sure.

Needs root, for network namespaces. Run: .venv/bin/python benchmarks/wan_budget.py [SECONDS]

The peer is the same box without a budget: what a proxy does that leaves it to TCP."""

from __future__ import annotations

import statistics
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "system")]

import netns  # noqa: E402
from wan_box import Wan  # noqa: E402

BUDGET_BPS, GUARANTEE, LIVE_BYTES = 15e6, 0.4, 600_000
TARGET_LOSS = 0.001


def measure(seconds: float, video: str | None, *, tls: bool = False) -> float:
    links = {"main": {"interface": "wan", **({"video": video} if video else {})}}
    with tempfile.TemporaryDirectory() as work, Wan(Path(work), tls=tls, links=links) as wan:
        figures = wan.run(seconds, live_bytes=LIVE_BYTES)
    promised_s = LIVE_BYTES * 8 * 1.06 / (BUDGET_BPS * GUARANTEE)
    times = figures.live_s or [float("inf")]
    live = f"{statistics.median(times):.2f} s, at most {max(times):.2f} s"
    print(
        f"budget {video or 'none':<10}{'by TLS' if tls else '      '} fetches: mean "
        f"{figures.fetch_mean_bps / 1e6:5.2f}, at most "
        f"{figures.fetch_max_bps / 1e6:5.2f} Mbit/s in a second   EF lost {figures.ef_sent - figures.ef_received} of "
        f"{figures.ef_sent} ({figures.ef_loss:.2%})   a segment: median {live} (promised {promised_s:.2f} s)"
    )
    return figures.ef_loss


def main() -> int:
    if why := netns.why_not():
        print(f"not run: {why}")
        return 0
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 10.0
    before = measure(seconds, None)
    after = measure(seconds, "15Mbit/s")
    measure(seconds, "15Mbit/s", tls=True)
    print(f"EF loss {before:.2%} -> {after:.2%}, target below {TARGET_LOSS:.1%}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
