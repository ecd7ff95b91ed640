"""The kernel's table: each target of multicast, routes and the WAN's budget, measured on this machine and printed with
its verdict. The pieces are benchmarks and test boxes of their own; this file calls them in turn.

Needs root, for network namespaces. Run: .venv/bin/python benchmarks/kernel_table.py [--short]

--short: a flood of 10 s instead of 60, fewer joins, no WAN. Times include others' load: on a busy machine run it with
BENCH_NICE=-19."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "kernel"), str(ROOT / "benchmarks")]

import frr_box  # noqa: E402
import merged_filters  # noqa: E402
import multicast_flood  # noqa: E402
import multicast_join  # noqa: E402
import netns  # noqa: E402
import reconcile  # noqa: E402
from measure import conditions  # noqa: E402
from netd_box import NetdBox, wait_for  # noqa: E402
from streams import ASM, FAR_HOST, SOURCE, SSM, TO_FAR_HOST, Count, Stream, listener  # noqa: E402

from accelerator.kernel.objects import Route  # noqa: E402

PORT = 5004
TV: dict[str, object] = {"name": "tv", "upstream": "wan", "downstream": ["lan0", "lan1"], "fast_leave": True}
PACKET_RULE = {"hook": "forward", "destination": ["10.98.0.0/24"], "dscp": 46}
# Wide enough for all that is measured, so that it delays nothing.
SHAPER = {
    "interface": "lan1",
    "side": "egress",
    "major": 0x7A10,
    "rate_bps": 10**10,
    "classes": [{"minor": 0xFF, "name": "rest", "rate_bps": 10**9, "ceiling_bps": 10**10}],
}
JOINS, STEPS, NEW_FLOWS, RUNS = 20, 20, 30, 5
UNICAST_ROUTES, MULTICAST_ROUTES = 10_000, 1000
# 950 packets of 1,316 bytes a second.
FLOW_GAP_S = 1 / 950
Row = tuple[str, str, str, bool]


class Box:
    """A branch with two links and netd in its middle. Use with `with`."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Box:
        self.folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
        topology = self._stack.enter_context(netns.Topology())
        self.source, self.box, self.hosts = topology.proxy(2)
        self.box.sysctl("net.ipv4.ip_forward", "1")
        self.netd = self._stack.enter_context(NetdBox(self.box, self.folder))
        self.netd.desire(TV, **TO_FAR_HOST, packet_rules=[PACKET_RULE], shapers=[SHAPER])
        self.netd.ready()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def merged(n_steps: int) -> Iterator[Row]:
    """The same course of joins and leaves, seen by others' implementations."""
    target = "equal to the merged filter"
    for name, is_v6 in (
        ("a kernel bridge, IGMPv3", False),
        ("a kernel bridge, MLDv2", True),
        ("FRR pimd, IGMPv3", False),
    ):
        case, is_frr = f"joins from behind us, seen by {name}", name.startswith("FRR")
        if is_frr and frr_box.why_not():
            yield case, frr_box.why_not() or "", target, False
            continue
        with Box() as it, contextlib.ExitStack() as stack:
            if is_frr:
                frr = stack.enter_context(frr_box.Frr(it.source, it.folder / "frr", "eth0"))
                told: Callable[[str], object] = lambda group, frr=frr: merged_filters.pimd_says(frr, group)  # noqa: E731
            else:
                merged_filters.bridge_above(it.source)
                told = lambda group, it=it: merged_filters.bridge_says(it.source, group)  # noqa: E731
            players, n_right = merged_filters.Hosts(it.hosts, is_v6=is_v6), 0
            chance = random.Random(3)
            for _ in range(n_steps):
                players.change(chance)
                n_right += all(is_told(told, group, players) for group in (ASM[is_v6], SSM[is_v6]))
            players.close()
        yield case, f"{n_right} of {n_steps} steps equal", target, n_right == n_steps


def is_told(told: Callable[[str], object], group: str, players: merged_filters.Hosts) -> bool:
    wanted = players.merged(group)
    with contextlib.suppress(AssertionError):
        return bool(wait_for(lambda: told(group) == wanted, group, 5))
    return False


def joining(n: int) -> Iterator[Row]:
    cases: list[tuple[str, str, tuple[str, ...]]] = [
        ("IGMPv3, any source", ASM[False], ()),
        ("IGMPv3, one source", SSM[False], (SOURCE[False],)),
        ("MLDv2, any source", ASM[True], ()),
        ("MLDv2, one source", SSM[True], (SOURCE[True],)),
    ]
    with tempfile.TemporaryDirectory() as folder, netns.Topology() as topology:
        source, router, hosts = topology.proxy(1)
        with NetdBox(router, Path(folder)) as box:
            box.desire({**TV, "downstream": ["lan0"]})
            box.ready()
            for name, group, sources in cases:
                sent, n_lost = multicast_join.lost(box, source, hosts[0], group, sources)
                until_left(box, group)
                delays = multicast_join.joins(box, source, hosts[0], group, sources, n)
                median_s, max_s = statistics.median(delays), max(delays)
                case = f"report to first packet, {name}"
                figures = f"median {median_s * 1e3:.2f} ms, max {max_s * 1e3:.2f} ms of {n}"
                yield case, figures, "median 5 ms, max 20 ms", median_s <= 0.005 and max_s <= 0.020
                yield f"new flow at 2,000 packets/s, {name}", f"{n_lost} of {sent:,} lost", "0 lost", n_lost == 0


def until_left(box: NetdBox, group: str) -> None:
    wait_for(lambda: group not in box.proxy(is_v6=":" in group)["asked_upstream"], "the leave")


def asking(n_flows: int, n_runs: int) -> Iterator[Row]:
    """Flows that nobody foretold, of a source behind a downstream: the kernel holds four packets of each, and asks. An
    answer takes the kernel's lock of all networking (rtnl), which other namespaces that come and go hold for long:
    the figure is of a machine where nothing else does that."""
    with Box() as it:
        for number, name in enumerate(("alone", "while 10,000 routes are put up and taken away")):
            # In a process of its own: what it says of 10,000 routes must not hold up the sender of the packets.
            stirring = multiprocessing.get_context("fork").Process(target=_stir, args=(it.netd,))
            if number:
                stirring.start()
            runs = [_lost(it, number, run * n_flows, n_flows) for run in range(n_runs)]
            if number:
                stirring.terminate()
                stirring.join()
            case = f"{n_flows} new flows of 10 Mbit/s that nobody foretold"
            figure = f"{statistics.median(runs):.0f}, worst {max(runs)} of {20 * n_flows} lost in {n_runs}"
            yield case if not number else f"  {name}", figure, "0 lost", not max(runs)


def _lost(it: Box, number: int, first: int, n_flows: int) -> int:
    n_lost = 0
    for flow in range(first, first + n_flows):
        group = f"239.{50 + number}.{flow >> 8}.{flow & 255}"
        with netns.join(it.source, "eth0", group, PORT) as sink, netns.sender(it.hosts[0], "eth0") as out:
            sink.settimeout(0.3)
            for each in range(20):
                out.sendto(bytes([each]), (group, PORT))
                time.sleep(FLOW_GAP_S)
            n_lost += 20 - _received(sink)
    return n_lost


def _received(sink: socket.socket) -> int:
    n = 0
    with contextlib.suppress(TimeoutError):
        while True:
            sink.recv(100)
            n += 1
    return n


def _stir(netd: NetdBox) -> None:
    routes = [
        {"table": 86_002, "destination": f"172.16.{i >> 8}.{i & 255}/32", "gateway": "10.0.0.2", "interface": "wan"}
        for i in range(UNICAST_ROUTES)
    ]
    while True:
        netd.desire(service="stir", routes=routes)
        time.sleep(0.7)
        netd.desire(service="stir")
        time.sleep(0.7)


def flooding(seconds: float) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as folder:
        got = multicast_flood.flood(seconds, Path(folder))
    n_lost = got.n_sent - min(got.n_sent, got.n_heard) + got.n_kernel_drops + sum(got.n_dropped.values())
    case = f"1,000 groups, 20 interfaces, 2,000 reports/s, {got.seconds:.0f} s"
    yield case, f"{n_lost} of {got.n_sent:,} reports lost", "0 lost", n_lost == 0 and got.is_state_right
    yield "  flows meanwhile", f"{got.flows_lost} of {got.flows_sent:,} packets lost", "0 lost", got.flows_lost == 0
    yield "  netd's CPU", f"{got.cores:.2f} cores", "at most 1 core", got.cores <= multicast_flood.TARGET_CORES
    memory = [got.rss_before, *got.rss_meanwhile, got.rss_after]
    shown = " ".join(f"{each / 1e6:.0f}" for each in memory)
    # All groups and sources are there from the beginning: what comes after would be a leak.
    yield "  netd's memory", f"{shown} MB, by quarters", "bounded", got.rss_after < 1.1 * got.rss_before


def reconciling() -> Iterator[Row]:
    with netns.Topology() as topology:
        _, box, _ = topology.proxy()
        index = box.index("wan")
        routes = [
            Route(reconcile.TABLE, f"172.{16 + (i >> 16)}.{i >> 8 & 255}.{i & 255}/32", "10.0.0.2", "wan")
            for i in range(UNICAST_ROUTES)
        ]
        figures = box.call(lambda: asyncio.run(reconcile.ours(routes, index)))
        took_s = statistics.median(box.call(lambda: reconcile.multicast(index, MULTICAST_ROUTES)) for _ in range(5))
    nothing_s, _ = figures["from nothing"]
    unchanged_s, _ = figures["unchanged"]
    yield "reconcile 10,000 unicast routes from nothing", f"{nothing_s:.2f} s", "2 s", nothing_s <= 2
    yield "  an unchanged pass", f"{unchanged_s:.3f} s", "0.3 s", unchanged_s <= 0.3
    yield "1,000 multicast routes from nothing", f"{took_s:.3f} s", "1 s", took_s <= 1


def deleting() -> Iterator[Row]:
    """What another program or an administrator takes away."""
    with Box() as it:
        box = it.box

        def count(*words: str) -> int:
            return box.run(*words).count("\n")

        nft = ("nft", "list", "chain", "inet", "accelerator", "forward")
        cases: list[tuple[str, tuple[str, ...], Callable[[], bool]]] = [
            (
                "route",
                ("ip", "route", "flush", "table", "86001"),
                lambda: count("ip", "route", "show", "table", "86001") > 0,
            ),
            ("rule", ("ip", "rule", "del", "pref", "8601"), lambda: "8601:" in box.run("ip", "rule")),
            ("qdisc", ("tc", "qdisc", "del", "dev", "lan1", "root"), lambda: "7a10:" in box.run("tc", "qdisc", "show")),
            ("nft rule", ("nft", "flush", "table", "inet", "accelerator"), lambda: "10.98.0.0" in box.run(*nft)),
        ]
        wait_for(lambda: all(is_there() for _, _, is_there in cases), "everything is there")
        for name, command, is_there in cases:
            times = []
            for _ in range(3):
                box.run(*command)
                begin_s = time.monotonic()
                wait_for(is_there, name)
                times.append(time.monotonic() - begin_s)
                time.sleep(0.1)
            yield f"somebody deletes our {name}", f"back after {max(times):.2f} s at most of 3", "1 s", max(times) <= 1


def killing() -> Iterator[Row]:
    with Box() as it:
        it.hosts[0].ip("addr", "add", f"{FAR_HOST}/32", "dev", "lo")
        counts = [Count(listener(it.hosts[0], FAR_HOST))]
        counts += [Count(netns.join(it.hosts[1], "eth0", ASM[is_v6], PORT)) for is_v6 in (False, True)]
        wait_for(lambda: it.netd.proxy()["routes"] and it.netd.proxy(is_v6=True)["routes"], "the routes")
        streams = [Stream(it.source, to, 500) for to in (FAR_HOST, ASM[False], ASM[True])]
        wait_for(lambda: all(len(each.numbers) > 200 for each in counts), "packets")
        times = []
        for _ in range(3):
            it.netd.stop(signal.SIGKILL)
            time.sleep(0.5)
            begin_s = time.monotonic()
            it.netd.start()

            def is_right() -> bool:
                shown = it.netd.ask("show")
                routes = [
                    each["is_installed"]
                    for family in ("ipv4", "ipv6")
                    for each in shown["multicast"][family]["tv"]["routes"]
                ]
                return routes == [True, True] and not shown["kernel"]["n_steps"]

            wait_for(is_right, "all as it was")
            times.append(time.monotonic() - begin_s)
        time.sleep(0.5)
        for each in streams:
            each.stop()
        n_sent = sum(each.n_sent for each in streams)
        n_lost = n_sent - sum(len(set(each.stop())) for each in counts)
        is_kept = it.netd.ask("show")["kernel"]["repairs"] == 0
    case = "kill -9 of netd, unicast and multicast of both families"
    yield case, f"{n_lost} of {n_sent:,} packets lost in 3", "0 lost", n_lost == 0 and is_kept
    yield "  reconciled, from the start of the new process", f"{max(times):.2f} s at most of 3", "1 s", max(times) <= 1


def main() -> int:
    if why := netns.why_not():
        print(f"not run: {why}")
        return 1
    is_short = "--short" in sys.argv[1:]
    for name, value in conditions():
        print(f"{name:<14}{value}")
    print(f"\n{'case':<58}{'measured':<38}{'target':<30}verdict")
    pieces: list[Callable[[], Iterator[Row]]] = [
        lambda: merged(5 if is_short else STEPS),
        lambda: joining(5 if is_short else JOINS),
        lambda: flooding(10.0 if is_short else multicast_flood.SECONDS),
        lambda: asking(5 if is_short else NEW_FLOWS, 2 if is_short else RUNS),
        reconciling,
        deleting,
        killing,
    ]
    for piece in pieces:
        for case, figure, target, is_reached in piece():
            print(f"{case:<58}{figure:<38}{target:<30}{'reached' if is_reached else 'NOT reached'}", flush=True)
    if not is_short:
        print("\n20 Mbit/s WAN, live, bulk and EF (benchmarks/wan_budget.py):", flush=True)
        subprocess.run([sys.executable, str(ROOT / "benchmarks" / "wan_budget.py")], check=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
