"""What delay does a relay worker add under load? 30 inputs of 2 Mbit/s to thousands of receivers with `hold`, beside a
bare loop in C that holds and sends the same, on the same core, sockets and links.

Run: .venv/bin/python benchmarks/relay_delay.py [SECONDS [RUNS]]     (root; of each window; by default 3, medians of 5)

Added delay: from the sender's clock just before its system call to the kernel's time stamp at a receiver, so that every
queue is in it. One receiver of each input is measured, the last of its list. The others do no work: their packets are
dropped by a veth's other end as early as it can (its softirq is still the sender's core's), or by a bridge that floods
nowhere, which costs what handing a packet to a network card does. Relay, loop and the source have real-time priority:
others' work on the core is another question (relay_beside_edge.py), and a source that is kept from its core sends the
packets of all inputs at one moment, as no thirty encoders would. How late it was is printed (decision 0243).
"""

from __future__ import annotations

import contextlib
import os
import statistics
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import measure

sys.path.append(str(measure.ROOT))
sys.path.append(str(measure.ROOT / "tests"))
sys.path.append(str(measure.ROOT / "tests" / "dataplane"))
import netns
from relay_load import MS, Probe, rtp, udp, worker
from relay_rig import destination

from ext.relay_plane import RelayPlane, Settings

INPUTS = 30
RATE = 190  # packets of 1,316 bytes a second: 2 Mbit/s
# Not counted: all inputs begin at one moment, and so do their trains.
BEGINS_S = 0.5
BARE_PORT = 6000
CASES = ((4000, 5), (10_000, 40))


@dataclass(frozen=True)
class Window:
    lost: int
    p50_ms: float
    p99_ms: float
    cpu: float  # share of the core
    waiting: float  # for the core, which others had
    source_p99_ms: float  # how much later than they should have packets were sent to the inputs


Addresses = list[tuple[str, int]]
# Where to send; seconds of CPU and of waiting for it so far; packets that were dropped.
Sender = tuple[Addresses, Callable[[], tuple[float, float]], Callable[[], int]]


def first(task: int) -> None:
    os.sched_setscheduler(task, os.SCHED_FIFO, os.sched_param(1))


def used_of(task: str) -> Callable[[], tuple[float, float]]:
    def used_s() -> tuple[float, float]:
        with open(f"/proc/{task}/schedstat") as file:
            run_ns, wait_ns, _ = map(int, file.read().split())
        return run_ns / 1e9, wait_ns / 1e9

    return used_s


@contextlib.contextmanager
def punctual() -> Iterator[None]:
    first(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


@contextlib.contextmanager
def relay(
    box: netns.Namespace,
    receivers: int,
    hold_ms: int,
    plane_of: Callable[[], RelayPlane] = lambda: RelayPlane(1),
    prioritise: Callable[[int], None] = first,
) -> Iterator[Sender]:
    """In a process of its own, as the loop is: threads of one process pay for each other's memory."""
    out = udp(box)
    inputs = [udp(box, "127.0.0.1") for _ in range(INPUTS)]
    tells, told = os.pipe()
    ends, end = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(end)
        plane = plane_of()
        others = b"".join(destination((f"10.9.{i >> 8}.{i & 255}", 5004)) for i in range(receivers // INPUTS - 1))
        for index, incoming in enumerate(inputs):
            incoming.setblocking(False)
            plane.add(index, Settings(legs=[(incoming.fileno(), "media", ())], is_rtp=True, window_packets=1024))
            plane.open_output(index, 0, out.fileno(), hold_ns=hold_ms * MS)
            plane.set_receivers(index, [(0, others + destination(("10.1.0.2", 7000 + index)))])
        with worker(plane):
            prioritise(plane.native_ids()[0])
            os.write(told, struct.pack("q", plane.native_ids()[0]))
            os.read(ends, 1)
            os.write(told, struct.pack("q", int(sum(plane.outputs[16 * i, 4:8].sum() for i in range(INPUTS)))))
            os.read(ends, 1)
        os._exit(0)

    def said() -> int:
        return int(struct.unpack("q", os.read(tells, 8))[0])

    def dropped() -> int:
        os.write(end, b"x")
        return said()

    thread = said()
    yield [incoming.getsockname() for incoming in inputs], used_of(f"{pid}/task/{thread}"), dropped
    os.close(end)
    os.waitpid(pid, 0)
    for made in (out, *inputs):
        made.close()
    for each in (tells, told, ends):
        os.close(each)


@contextlib.contextmanager
def bare(box: netns.Namespace, receivers: int, hold_ms: int) -> Iterator[Sender]:
    loop = box.popen(
        "taskset", "-c", str(measure.SERVER_CPU), measure.compiled("bare_delay"), str(INPUTS),
        str(receivers // INPUTS), str(hold_ms * 1000), "10.1.0.2", stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert loop.stdout is not None
    assert loop.stdin is not None
    assert loop.stdout.readline() == b"ready\n"

    first(loop.pid)
    yield [("127.0.0.1", BARE_PORT + index) for index in range(INPUTS)], used_of(str(loop.pid)), lambda: 0
    loop.stdin.close()
    loop.wait()


def window(
    box: netns.Namespace,
    host: netns.Namespace,
    made: contextlib.AbstractContextManager[Sender],
    hold_ms: int,
    seconds: float,
) -> Window:
    probes = [Probe(udp(host, "10.1.0.2", 7000 + index)) for index in range(INPUTS)]
    source = udp(box, "127.0.0.1")
    number = 0
    late_s: list[float] = []
    with made as (to, used_s, dropped), punctual():
        begin_cpu_s, begin_s = used_s(), time.monotonic()
        while (now_s := time.monotonic()) - begin_s < seconds:
            # Inputs don't beat together: one after the other, evenly over the time of a packet.
            while number < (now_s - begin_s) * RATE * INPUTS:
                source.sendto(rtp(number // INPUTS, time.time_ns()), to[number % INPUTS])
                late_s.append(time.monotonic() - begin_s - number / RATE / INPUTS)
                number += 1
            for probe in probes[number % INPUTS :: INPUTS]:
                probe.read()
            time.sleep(0.0001)
        cpu_s, waited_s = (after - before for after, before in zip(used_s(), begin_cpu_s, strict=True))
        time.sleep(0.2 + hold_ms / 1000)
        lost = dropped()
    for probe in probes:
        probe.read()
        probe.close()
    source.close()
    lost += sum(probe.lost((number + INPUTS - 1 - index) // INPUTS) for index, probe in enumerate(probes))
    delays = sorted(
        delay
        for probe in probes
        for packet, delay in zip(probe.numbers, probe.delays_ns, strict=True)
        if packet >= RATE * BEGINS_S
    )
    p50_ms, p99_ms = (delays[len(delays) * part // 100] / MS if delays else 0.0 for part in (50, 99))
    source_p99_ms = sorted(late_s)[len(late_s) * 99 // 100] * 1000
    return Window(lost, p50_ms, p99_ms, cpu_s / seconds, waited_s / seconds, source_p99_ms)


def rows_of(case: str, hold_ms: int, found: dict[str, list[Window]]) -> Iterator[tuple[str, ...]]:
    p99_ms = {kind: statistics.median(each.p99_ms for each in windows) for kind, windows in found.items()}
    for kind, windows in found.items():
        lost = sum(each.lost for each in windows)
        verdict = ""
        if kind == "relay":
            is_reached = lost == 0 and p99_ms[kind] <= hold_ms + 3
            verdict = (
                f"{hold_ms + 3} ms: {measure.reached(is_reached)}, {p99_ms['bare C'] / p99_ms[kind]:.2f} of bare C"
            )
        yield (
            f"{case}: {kind}", f"{lost}", f"{statistics.median(each.p50_ms for each in windows):.1f}",
            f"{p99_ms[kind]:.1f}",
            f"{min(each.p99_ms for each in windows):.1f} to {max(each.p99_ms for each in windows):.1f}",
            f"{statistics.median(each.cpu for each in windows):.0%}",
            f"{statistics.median(each.waiting for each in windows):.1%}",
            f"{statistics.median(each.source_p99_ms for each in windows):.2f}", verdict,
        )  # fmt: skip


def links(box: netns.Namespace, host: netns.Namespace) -> dict[str, str]:
    """By name: the gateway of 10.9.0.0/16 over it."""
    host.run("nft", "add table netdev gone")
    host.run("nft", "add chain netdev gone in { type filter hook ingress device eth0 priority -500; policy accept; }")
    host.run("nft", "add rule netdev gone in ip daddr 10.9.0.0/16 drop")
    box.ip("link", "add", "void", "type", "bridge")
    box.ip("link", "add", "port", "type", "veth", "peer", "name", "nobody")
    box.ip("link", "set", "port", "master", "void")
    for name in ("port", "nobody", "void"):
        box.ip("link", "set", name, "up")
    box.run("bridge", "link", "set", "dev", "port", "flood", "off")
    box.ip("addr", "add", "10.8.0.1/24", "dev", "void")
    box.ip("neigh", "replace", "10.8.0.2", "lladdr", "02:00:00:00:00:02", "dev", "void")
    return {"veth": "10.1.0.2", "bridge": "10.8.0.2"}


def main() -> int:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 3.0
    runs = int(sys.argv[2]) if len(sys.argv) > 2 else 5
    if why := netns.why_not() or ("needs gcc, nft and bridge" if measure.missing("gcc", "nft", "bridge") else None):
        print(f"not measured: {why}")
        return 0
    os.sched_setaffinity(0, {measure.LOAD_CPU})
    rows: list[tuple[str, ...]] = []
    with netns.Topology() as topology:
        _, box, (host,) = topology.proxy()
        gateways = links(box, host)
        for receivers, hold_ms in CASES:
            for link, gateway in gateways.items():
                box.ip("route", "replace", "10.9.0.0/16", "via", gateway)
                found: dict[str, list[Window]] = {"relay": [], "bare C": []}
                for _ in range(runs):
                    for kind, windows in found.items():
                        made = (relay if kind == "relay" else bare)(box, receivers, hold_ms)
                        windows.append(window(box, host, made, hold_ms, seconds))
                rows += rows_of(f"{receivers:,} receivers, hold {hold_ms} ms, {link}", hold_ms, found)
    print(f"{INPUTS} inputs of 2 Mbit/s; added delay in ms, medians of {runs} windows of {seconds:g} s")
    heads = ("case", "lost", "p50", "p99", "p99 of windows", "core", "waiting", "source late, p99", "target of p99")
    measure.table(heads, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
