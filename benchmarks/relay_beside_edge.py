"""Does an edge worker at full load keep a relay worker on its core waiting? Added delay and loss of a relay, and what
viewers get meanwhile: alone, beside an edge that gives way (the default), beside one that doesn't, and with nice -10.

Run: .venv/bin/python benchmarks/relay_beside_edge.py [SECONDS [RUNS]]     (root; of each window; by default 3, 3 runs)

Both workers are bound to one core, of which the relay needs most; wrk asks from the other for all that the rest gives.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator

import measure
import relay_delay
from plane_rig import Rig
from relay_delay import Window, links, netns, relay, window

from ext.relay_plane import RelayPlane

RECEIVERS, HOLD_MS = 6000, 20
BODY_BYTES = 1024
# name: (is beside the edge's plane, nice, is the edge loaded)
CASES = {
    "edge idle": (True, 0, False),
    "edge at full load, gives way": (True, 0, True),
    "edge at full load, does not": (False, 0, True),
    "edge at full load, does not, nice -10": (False, -10, True),
    "edge at full load, relay to 30 only": (False, 0, True),
}


def beside(listener: socket.socket, is_beside: bool) -> RelayPlane:
    """An edge and a relay worker, bound to one core."""
    os.sched_setaffinity(0, {measure.SERVER_CPU})
    rig = Rig(memory=64 << 20, slice_bytes=1 << 20)
    rig.store("/x", bytes(BODY_BYTES))
    rig.plane.listen(listener.fileno(), 0)
    made = RelayPlane(1, rig.plane if is_beside else None)
    kept.append(rig)
    return made


kept: list[Rig] = []


@contextlib.contextmanager
def viewers(port: int, seconds: float) -> Iterator[Callable[[], float]]:
    """The function gives how many requests a second were answered."""
    command = ["wrk", "-t1", "-c32", f"-d{seconds:g}s", "-H", "Host: a", f"http://127.0.0.1:{port}/x"]
    load = subprocess.Popen(
        ["taskset", "-c", str(measure.LOAD_CPU), "nice", "-n", "10", *command], stdout=subprocess.PIPE
    )

    def answered() -> float:
        text = load.communicate()[0].decode()
        found = re.search(r"Requests/sec:\s+([\d.]+)", text)
        assert found is not None, text
        return float(found[1])

    yield answered
    load.wait()


def measured(box: netns.Namespace, host: netns.Namespace, case: str, seconds: float) -> tuple[Window, float]:
    is_beside, nice, is_loaded = CASES[case]
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        listener.setblocking(False)
        made = relay(
            box, relay_delay.INPUTS if "only" in case else RECEIVERS, HOLD_MS, lambda: beside(listener, is_beside),
            lambda task: os.setpriority(os.PRIO_PROCESS, task, nice),
        )  # fmt: skip
        if not is_loaded:
            return window(box, host, made, HOLD_MS, seconds), 0.0
        with viewers(listener.getsockname()[1], seconds + 1) as answered:
            found = window(box, host, made, HOLD_MS, seconds)
            return found, answered()


def main() -> int:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 3.0
    runs = int(sys.argv[2]) if len(sys.argv) > 2 else 3
    if why := netns.why_not() or ("needs nft, bridge, wrk" if measure.missing("nft", "bridge", "wrk") else None):
        print(f"not measured: {why}")
        return 0
    os.sched_setaffinity(0, {measure.LOAD_CPU})
    found: dict[str, list[tuple[Window, float]]] = {case: [] for case in CASES}
    with netns.Topology() as topology:
        _, box, (host,) = topology.proxy()
        box.ip("route", "replace", "10.9.0.0/16", "via", links(box, host)["bridge"])
        for _ in range(runs):
            for case, windows in found.items():
                windows.append(measured(box, host, case, seconds))
    print(f"{relay_delay.INPUTS} inputs of 2 Mbit/s to {RECEIVERS:,} receivers, hold {HOLD_MS} ms, on the edge's core;")
    print(f"added delay in ms, medians of {runs} windows of {seconds:g} s")
    rows = []
    for case, windows in found.items():
        p99_ms = statistics.median(each.p99_ms for each, _ in windows)
        lost = sum(each.lost for each, _ in windows)
        verdict = f"{HOLD_MS + 3} ms: {measure.reached(lost == 0 and p99_ms <= HOLD_MS + 3)}" if "way" in case else ""
        rows.append((
            case, f"{lost}", f"{statistics.median(each.p50_ms for each, _ in windows):.1f}", f"{p99_ms:.1f}",
            f"{statistics.median(each.cpu for each, _ in windows):.0%}",
            f"{statistics.median(each.waiting for each, _ in windows):.1%}",
            f"{statistics.median(rate for _, rate in windows):,.0f}", verdict,
        ))  # fmt: skip
    measure.table(("case", "lost", "p50", "p99", "relay's core", "waiting", "requests/s", "target of p99"), rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
