"""What netd does under a flood of reports: 1,000 groups on 20 interfaces, 2,000 reports a second for a minute, joins,
leaves and refreshes with and without sources. Whether one is lost, what flows that run meanwhile lose, what it costs.

Needs root, for network namespaces. Run: .venv/bin/python benchmarks/multicast_flood.py [SECONDS]

Reports are whole packets from each link's host; netd and the kernel count what they took, so no report can be lost
unseen. What is wanted at the end is computed by a model of its own and compared with what netd shows."""

from __future__ import annotations

import os
import random
import socket
import struct
import sys
import tempfile
import time
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "kernel")]

import netns  # noqa: E402
from netd_box import NetdBox, wait_for  # noqa: E402
from streams import PORT, Count, Stream  # noqa: E402

from accelerator.protocols import igmp  # noqa: E402
from accelerator.protocols.membership.messages import Kind, Record, Report  # noqa: E402

N_GROUPS, N_LINKS, RATE = 1000, 20, 2000.0
SECONDS = 60.0
# What a link's host sends before it breathes.
BURST = 20
TARGET_CORES = 1.0


@dataclass
class Outcome:
    n_sent: int = 0
    n_heard: int = 0
    n_dropped: dict[str, int] = field(default_factory=dict)
    n_kernel_drops: int = 0
    flows_sent: int = 0
    flows_lost: int = 0
    cores: float = 0.0
    rss_before: int = 0
    rss_after: int = 0
    rss_meanwhile: list[int] = field(default_factory=list)  # at each quarter of the time
    seconds: float = 0.0
    is_state_right: bool = False


def packed(text: str) -> bytes:
    return ip_address(text).packed


GROUPS = [packed("239.64.0.0")[:2] + each.to_bytes(2) for each in range(1, N_GROUPS // 2 + 1)]
SSM_GROUPS = [packed("232.64.0.0")[:2] + each.to_bytes(2) for each in range(1, N_GROUPS // 2 + 1)]
SOURCES = [packed(f"192.0.2.{each}") for each in range(1, 9)]


class Link:
    """One link's host: sends reports, and knows what it wants after them."""

    def __init__(self, host: netns.Namespace, number: int) -> None:
        self.address = packed(f"10.1.{number}.2")
        self.wanted: dict[bytes, frozenset[bytes] | None] = {}  # None: any source

        def opened() -> socket.socket:
            made = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
            index = socket.if_nametoindex("eth0")
            made.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, bytes(8) + struct.pack("=i", index))
            return made

        self._socket = host.call(opened)

    def send(self, record: Record) -> None:
        for packet in igmp.write(Report(3, (record,)), self.address):
            self._socket.sendto(packet.data, (socket.inet_ntoa(packet.destination), 0))

    def step(self, source: random.Random) -> None:
        """One report: a join, a leave, or the same again."""
        if source.random() < 0.5:
            group = source.choice(GROUPS)
            if group in self.wanted and source.random() < 0.4:
                del self.wanted[group]
                self.send(Record(Kind.TO_INCLUDE, group))
            else:
                kind = Kind.IS_EXCLUDE if group in self.wanted else Kind.TO_EXCLUDE
                self.wanted[group] = None
                self.send(Record(kind, group))
            return
        group = source.choice(SSM_GROUPS)
        before = self.wanted.get(group) or frozenset()
        few = frozenset(source.sample(SOURCES, source.randrange(1, 4)))
        if before and source.random() < 0.4:
            gone = before & few or before
            self.wanted[group] = before - gone
            self.send(Record(Kind.BLOCK, group, gone))
        else:
            self.wanted[group] = before | few
            self.send(Record(Kind.ALLOW, group, few))
        if not self.wanted[group]:
            del self.wanted[group]

    def close(self) -> None:
        self._socket.close()


def rss_bytes(pids: list[int]) -> int:
    pages = (int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids)
    return sum(pages) * os.sysconf("SC_PAGE_SIZE")


def cpu_s(pids: list[int]) -> float:
    stats = (Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids)
    return sum(int(words[11]) + int(words[12]) for words in stats) / os.sysconf("SC_CLK_TCK")


def kernel_drops(box: netns.Namespace) -> int:
    """Of the raw IGMP sockets: their buffers were full."""
    return sum(int(line.split()[-1]) for line in box.read("/proc/net/raw").splitlines()[1:])


def expected(links: list[Link]) -> dict[str, dict[str, object]]:
    """What the box has to ask for upstream (RFC 4605 section 4.1)."""
    merged: dict[bytes, set[bytes] | None] = {}
    for link in links:
        for group, sources in link.wanted.items():
            before = merged.get(group, set())
            merged[group] = None if sources is None or before is None else before | sources
    return {
        socket.inet_ntoa(group): {
            "mode": "exclude" if sources is None else "include",
            "sources": sorted((socket.inet_ntoa(each) for each in sources or ()), key=socket.inet_aton),
        }
        for group, sources in merged.items()
    }


def flood(seconds: float, folder: Path, n_links: int = N_LINKS) -> Outcome:
    """Refused: AssertionError of what never came."""
    outcome = Outcome()
    source = random.Random(1)
    with netns.Topology() as topology:
        upstream, router, hosts = topology.proxy(n_links)
        with NetdBox(router, folder) as box:
            box.desire({"name": "tv", "upstream": "wan", "downstream": [f"lan{each}" for each in range(n_links)]})
            box.ready()
            # The kernels of the hosts have flows of their own, which nothing of the flood touches.
            flows = ["239.1.0.1", "239.1.0.2"]
            counts = [Count(netns.join(host, "eth0", group, PORT)) for host, group in zip(hosts, flows, strict=False)]
            links = [Link(host, number) for number, host in enumerate(hosts)]
            wait_for(lambda: flows[-1] in box.proxy()["asked_upstream"], "the flows' joins")
            streams = [Stream(upstream, group, 500) for group in flows]
            # Every group is joined, with every source, before the clock begins: then memory is at its most.
            for link in links:
                for n, group in enumerate(GROUPS + SSM_GROUPS):
                    if group in GROUPS:
                        link.wanted[group] = None
                        link.send(Record(Kind.TO_EXCLUDE, group))
                    else:
                        link.wanted[group] = frozenset(SOURCES)
                        link.send(Record(Kind.ALLOW, group, frozenset(SOURCES)))
                    outcome.n_sent += 1
                    if not n % BURST:
                        time.sleep(BURST / RATE)
            assert box.process is not None
            pids = processes(box)
            wait_for(lambda: heard(box) >= outcome.n_sent + len(flows), "all joins", 30)
            outcome.rss_before = rss_bytes(pids)
            begin_s, begin_cpu_s, n = time.monotonic(), cpu_s(pids), 0
            while (passed_s := time.monotonic() - begin_s) < seconds:
                while n < passed_s * RATE:
                    links[n % n_links].step(source)
                    n += 1
                time.sleep(0.001)
                if len(outcome.rss_meanwhile) < int(4 * passed_s / seconds):
                    outcome.rss_meanwhile.append(rss_bytes(pids))
            outcome.seconds = time.monotonic() - begin_s
            outcome.cores = (cpu_s(pids) - begin_cpu_s) / outcome.seconds
            # Before anybody asks for all of the state: that is as large once more while it is written.
            outcome.rss_after = rss_bytes(pids)
            outcome.n_sent += n
            for link in links:
                link.close()
            for group in flows:
                links[flows.index(group)].wanted[packed(group)] = None
            want = expected(links)

            def is_settled() -> bool:
                # Who has left is asked for twice in two seconds before it counts.
                return bool(box.proxy()["asked_upstream"] == want)

            try:
                wait_for(is_settled, "the state that reports add up to", 15)
                outcome.is_state_right = True
            except AssertionError:
                got = box.proxy()["asked_upstream"]
                differ = [g for g in want.keys() | got.keys() if want.get(g) != got.get(g)]
                print(f"{len(differ)} groups differ: {[(each, want.get(each), got.get(each)) for each in differ[:3]]}")
            shown = box.proxy()["downstreams"]
            outcome.n_heard = sum(each["reports"] for each in shown.values())
            for each in shown.values():
                for name, count in each["drops"].items():
                    outcome.n_dropped[name] = outcome.n_dropped.get(name, 0) + count
            outcome.n_kernel_drops = kernel_drops(router)
            for stream in streams:
                stream.stop()
                outcome.flows_sent += stream.n_sent
            for count, stream in zip(counts, streams, strict=True):
                outcome.flows_lost += stream.n_sent - len(set(count.stop()))
    return outcome


def processes(box: NetdBox) -> list[int]:
    """netd's own (`ip netns exec` becomes it), and the one that answers for multicast."""
    assert box.process is not None
    return [box.process.pid, *box.answering()]


def heard(box: NetdBox) -> int:
    return sum(int(each["reports"]) for each in box.proxy()["downstreams"].values())


def main() -> int:
    reason = netns.why_not()
    if reason is not None:
        print(f"not measured: {reason}")
        return 1
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else SECONDS
    with tempfile.TemporaryDirectory() as folder:
        got = flood(seconds, Path(folder))
    is_reached = (
        got.n_heard >= got.n_sent
        and not got.n_dropped
        and not got.n_kernel_drops
        and got.flows_lost == 0
        and got.cores <= TARGET_CORES
        and got.is_state_right
    )
    memory = [got.rss_before, *got.rss_meanwhile, got.rss_after]
    rows = [
        ("reports sent", f"{got.n_sent:,} in all, {RATE:,.0f}/s for {got.seconds:.0f} s on {N_LINKS} interfaces"),
        ("heard by netd", f"{got.n_heard:,} (hosts' own too), refused {got.n_dropped or 0}"),
        ("lost by the kernel", f"{got.n_kernel_drops}"),
        ("state at the end", "what the reports add up to" if got.is_state_right else "WRONG"),
        ("flows meanwhile", f"{got.flows_lost} of {got.flows_sent:,} packets lost"),
        ("netd's CPU", f"{got.cores:.2f} cores (target {TARGET_CORES:.0f})"),
        ("netd's memory", " -> ".join(f"{each / 1e6:.1f}" for each in memory) + " MB: before, each quarter, after"),
        ("verdict", "reached" if is_reached else "NOT reached"),
    ]
    for name, text in rows:
        print(f"{name:<20}{text}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
