"""How long what somebody deletes of ours in the kernel is away: a route, a rule, the nft table, a queue, what leads
incoming packets to an ifb device. Looked for without rest until it is back. No peer: other daemons put nothing back.

Needs root, for network namespaces. Run: .venv/bin/python benchmarks/repairs.py

Medians of five, and the longest, in milliseconds. Each round has a netd of its own: five repairs in a minute are a
fight."""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "kernel")]

import netns  # noqa: E402
from netd_box import NetdBox, wait_for  # noqa: E402

ROUNDS, TARGET_MS = 5, 1000
STATE = {
    "routes": [{"table": 86_001, "destination": "192.0.2.0/24", "gateway": "10.0.0.2", "interface": "wan"}],
    "rules": [{"priority": 8600, "table": 86_001, "interface_out": "wan"}],
    "packet_rules": [{"hook": "postrouting", "protocol": "udp", "ports": [3478], "dscp": 46}],
    "shapers": [
        {"interface": name, "side": side, "major": major, "rate_bps": 10**8,
         "classes": [{"minor": 255, "name": "the rest", "rate_bps": 10**8, "ceiling_bps": 10**8}]}
        for name, side, major in (("lan0", "egress", 0x7A10), ("wan", "ingress", 0x7A50))
    ],
}  # fmt: skip
Case = tuple[str, tuple[str, ...], tuple[str, ...], str]
CASES: tuple[Case, ...] = (
    ("route", ("ip", "route", "flush", "table", "86001"), ("ip", "route", "show", "table", "all"), "192"),
    ("rule", ("ip", "rule", "del", "pref", "8600"), ("ip", "rule", "show", "pref", "8600"), "86001"),
    ("nft table", ("nft", "flush", "ruleset"), ("nft", "list", "ruleset"), "dscp set ef"),
    ("queue", ("tc", "qdisc", "del", "dev", "lan0", "root"), ("tc", "qdisc", "show", "dev", "lan0"), "htb 7a10:"),
    ("ifb's filter", ("tc", "qdisc", "del", "dev", "wan", "ingress"), ("tc", "filter", "show", "dev", "wan", "ingress"),
     "accel-ifb"),
)  # fmt: skip


def away_ms(box: netns.Namespace, delete: tuple[str, ...], show: tuple[str, ...], text: str) -> float:
    box.run(*delete)
    began_s = time.perf_counter()
    wait_for(lambda: text in box.run(*show), " ".join(show))
    return (time.perf_counter() - began_s) * 1e3


def one_round() -> dict[str, float]:
    with netns.Topology() as topology, tempfile.TemporaryDirectory() as folder:
        _, box, _ = topology.proxy()
        with NetdBox(box, Path(folder)) as netd:
            netd.ask("desire", service="bench", generation=1, state=STATE)
            is_right: Callable[[], bool] = lambda: netd.ask("show")["kernel"]["n_steps"] == 0  # noqa: E731
            wait_for(is_right, "the kernel is as wanted")
            return {name: away_ms(box, delete, show, text) for name, delete, show, text in CASES}


def main() -> int:
    if why := netns.why_not():
        print(f"not run: {why}")
        return 0
    rounds = [one_round() for _ in range(ROUNDS)]
    for name, *_ in CASES:
        taken = [each[name] for each in rounds]
        print(f"{name:<14} back after {statistics.median(taken):6.0f} ms, at most {max(taken):6.0f} ms   "
              f"target {TARGET_MS} ms")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
