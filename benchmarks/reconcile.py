"""How long netd's reconciler needs for 10,000 unicast routes from nothing, for a pass that has nothing to do, and after
somebody has flushed the table; and for 1,000 multicast routes. Beside it, in the same namespace and run, the same
routes by pyroute2's high-level calls and by `ip -batch`.

Needs root, for network namespaces. Run: .venv/bin/python benchmarks/reconcile.py [ROUTES]

Medians of five, in seconds. Meanwhile another process, as netd's that answers for multicast is, sleeps for a
millisecond and installs a multicast route, again and again: how late it woke and how long the kernel took at most is
what an upcall may wait for, beside how long the reconciler's own event loop was away."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from multiprocessing.connection import Connection
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import netns  # noqa: E402
from pyroute2 import IPRoute  # noqa: E402

from accelerator.kernel.mroute import MulticastSocket  # noqa: E402
from accelerator.kernel.objects import Route  # noqa: E402
from accelerator.kernel.plan import Wanted, plan, wanted  # noqa: E402
from accelerator.kernel.routing import Routing  # noqa: E402

ROUNDS, TABLE = 5, 86_001
SWITCH_S = 0.0002  # as netd sets it
TARGET_NOTHING_S, TARGET_UNCHANGED_S, TARGET_MULTICAST_S = 2.0, 0.3, 1.0


def answering(interface: int, pipe: Connection) -> None:
    """Until told to end: what was the worst, of waking and of the kernel's answer."""
    router, late_s, took_s = MulticastSocket(socket.AF_INET), 0.0, 0.0
    router.add_vif(0, interface)
    pipe.send(None)
    while not pipe.poll():
        before_s = time.perf_counter()
        time.sleep(0.001)
        woken_s = time.perf_counter()
        router.add_route(bytes([10, 0, 0, 2]), bytes([239, 1, 0, 1]), 0, [0])
        late_s, took_s = max(late_s, woken_s - before_s - 0.001), max(took_s, time.perf_counter() - woken_s)
    pipe.send((late_s, took_s))
    router.close()


class Gap:
    """The longest time between two turns of the event loop."""

    def __init__(self) -> None:
        self.most_s = 0.0

    async def watch(self) -> None:
        while True:
            before_s = time.perf_counter()
            await asyncio.sleep(0)
            self.most_s = max(self.most_s, time.perf_counter() - before_s)


async def timed(work: Callable[[], Awaitable[object]]) -> tuple[float, float]:
    gap = Gap()
    watcher = asyncio.get_running_loop().create_task(gap.watch())
    await asyncio.sleep(0)
    begin_s = time.perf_counter()
    await work()
    took_s = time.perf_counter() - begin_s
    watcher.cancel()
    return took_s, gap.most_s


def one_pass(routing: Routing, wish: list[Route], interface: int, kept: list[Wanted]) -> None:
    is_changed = not kept
    if is_changed:
        kept.append(wanted(wish, (), {"wan": interface}))
    found = routing.observe([TABLE], everywhere=is_changed)
    failed = routing.carry_out(plan(kept[0], found.routes, found.rules, frozenset()))
    if failed:
        raise RuntimeError(str(failed))


async def ours(routes: list[Route], interface: int) -> dict[str, tuple[float, float]]:
    """As netd does it: in a thread, and what is wanted is worked out once."""
    sys.setswitchinterval(SWITCH_S)
    routing = Routing()
    figures: dict[str, list[tuple[float, float]]] = {"from nothing": [], "unchanged": [], "to nothing": []}
    gc.disable()  # as netd does during a pass
    for _ in range(ROUNDS):
        kept: list[Wanted] = []
        for name, wish, known in (("from nothing", routes, kept), ("unchanged", routes, kept), ("to nothing", [], [])):

            def work(wish: list[Route] = wish, known: list[Wanted] = known) -> Awaitable[object]:
                return asyncio.to_thread(one_pass, routing, wish, interface, known)

            figures[name].append(await timed(work))
    routing.close()
    gc.enable()
    return {
        name: (statistics.median(took for took, _ in rows), max(gap for _, gap in rows))
        for name, rows in figures.items()
    }


def by_pyroute2(routes: list[Route], interface: int) -> tuple[float, float]:
    with IPRoute() as netlink:
        begin_s = time.perf_counter()
        for route in routes:
            netlink.route("add", dst=route.destination, gateway=route.gateway, oif=interface, table=TABLE, proto=86)
        added_s = time.perf_counter() - begin_s
        begin_s = time.perf_counter()
        n = len(list(netlink.get_routes(table=TABLE, family=socket.AF_INET)))
        read_s = time.perf_counter() - begin_s
        if n != len(routes):
            raise RuntimeError(f"{n} routes")
    return added_s, read_s


def by_ip_batch(routes: list[Route], name: str) -> float:
    text = "".join(f"route add {each.destination} via {each.gateway} dev wan table {TABLE}\n" for each in routes)
    begin_s = time.perf_counter()
    subprocess.run(["ip", "-n", name, "-batch", "-"], input=text.encode(), check=True)
    return time.perf_counter() - begin_s


def multicast(interface: int, n: int) -> float:
    router = MulticastSocket(socket.AF_INET)
    try:
        router.add_vif(0, interface)
        begin_s = time.perf_counter()
        for number in range(n):
            router.add_route(bytes([10, 0, 0, 2]), bytes([239, 1, number >> 8, number & 255]), 0, [0])
        return time.perf_counter() - begin_s
    finally:
        router.close()


def main() -> int:
    if why := netns.why_not():
        print(f"not run: {why}")
        return 0
    n = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    routes = [
        Route(TABLE, f"172.{16 + (i >> 16)}.{i >> 8 & 255}.{i & 255}/32", "10.0.0.2", "wan") for i in range(n)
    ]
    with netns.Topology() as topology:
        _, box, _ = topology.proxy()
        index = box.index("wan")
        mine, its = multiprocessing.Pipe()
        other = multiprocessing.get_context("fork").Process(target=lambda: box.call(lambda: answering(index, its)))
        other.start()
        mine.recv()
        figures = box.call(lambda: asyncio.run(ours(routes, index)))
        mine.send(None)
        late_s, add_s = mine.recv()
        other.join()
        targets = {"from nothing": TARGET_NOTHING_S, "unchanged": TARGET_UNCHANGED_S}
        for name, (took_s, gap_s) in figures.items():
            target = f"   target {targets[name]:.1f} s" if name in targets else ""
            print(f"{n:,} unicast routes, {name:<14}{took_s:8.3f} s   longest gap {gap_s * 1e3:5.1f} ms{target}")
        print(f"another process meanwhile: woken {late_s * 1e3:.1f} ms late at most, a multicast route installed in "
              f"{add_s * 1e3:.1f} ms at most")  # fmt: skip
        added_s, read_s = box.call(lambda: by_pyroute2(routes, index))
        box.ip("route", "flush", "table", str(TABLE))
        batch_s = by_ip_batch(routes, box.name)
        mine_s, unchanged_s = figures["from nothing"][0], figures["unchanged"][0]
        print(f"pyroute2's calls: added in {added_s:.3f} s ({added_s / mine_s:.1f} of ours), read in {read_s:.3f} s "
              f"({read_s / unchanged_s:.1f} of an unchanged pass of ours)")  # fmt: skip
        print(f"ip -batch: added in {batch_s:.3f} s ({batch_s / mine_s:.1f} of ours)")
        took_s = statistics.median(box.call(lambda: multicast(index, 1000)) for _ in range(ROUNDS))
        print(f"1,000 multicast routes, from nothing  {took_s:8.3f} s   target {TARGET_MULTICAST_S:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
