"""Does a relay keep its promises under load? Receivers that come and go, pacing. (Delay: relay_delay.py.)

Run: .venv/bin/python benchmarks/relay_load.py [SECONDS]     (root; of each case, by default 5; targets, no peer)
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import measure

sys.path.append(str(measure.ROOT))
sys.path.append(str(measure.ROOT / "tests"))
sys.path.append(str(measure.ROOT / "tests" / "dataplane"))
import netns
from relay_rig import destination

from accelerator.services.relays.relays import NICE
from ext.relay_plane import RelayPlane, Settings

SO_TIMESTAMPNS, UDP_SEGMENT, UDP_GRO = 35, 103, 104
MS = 1_000_000
# What came closer together than this left together: 1,316 bytes take 11 µs at 1 Gbit/s.
TOGETHER_NS = 100_000


def udp(namespace: netns.Namespace, address: str = "", port: int = 0) -> socket.socket:
    def opened() -> socket.socket:
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.setsockopt(socket.SOL_SOCKET, 33, 32 << 20)  # SO_RCVBUFFORCE
        made.setsockopt(socket.SOL_SOCKET, 32, 32 << 20)
        if address:
            made.bind((address, port))
        return made

    return namespace.call(opened)


def rtp(number: int, stamp_ns: int, size: int = 1316) -> bytes:
    return struct.pack("!BBHIIIQ", 0x80, 33, number & 0xFFFF, number * 10, 7, number, stamp_ns).ljust(size, b"\0")


class Probe:
    """What one receiver got: numbers, delays and times of arrival, by the kernel's own stamps."""

    def __init__(self, made: socket.socket) -> None:
        self.numbers: list[int] = []
        self.delays_ns: list[int] = []
        self.arrivals_ns: list[int] = []
        self._socket = made
        made.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        made.setblocking(False)

    def read(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                data, ancillary, _, _ = self._socket.recvmsg(2048, 64)
                number, stamp_ns = struct.unpack_from("!IQ", data, 12)
                seconds, nanoseconds = struct.unpack("qq", ancillary[0][2])
                at_ns = seconds * 1_000_000_000 + nanoseconds
                self.numbers.append(number)
                self.delays_ns.append(at_ns - stamp_ns)
                self.arrivals_ns.append(at_ns)

    def close(self) -> None:
        self._socket.close()

    def lost(self, n_sent: int) -> int:
        return n_sent - len(set(self.numbers))

    @property
    def twice(self) -> int:
        return len(self.numbers) - len(set(self.numbers))


def dropped_at(made: socket.socket) -> int:
    """Datagrams, or trains that GRO had joined, which found the socket's buffer full: SO_MEMINFO, SK_MEMINFO_DROPS
    (<linux/sock_diag.h>)."""
    return int(struct.unpack("9I", made.getsockopt(socket.SOL_SOCKET, 55, 36))[8])


def forked_reader(made: socket.socket, size: int) -> Callable[[], tuple[int, int]]:
    """Reads in a process of its own, as a thread of this one would have to wait for the sender. The function ends it,
    and gives how many packets came, and how many different ones."""
    tells, told = os.pipe()
    ends, end = os.pipe()
    pid = os.fork()
    if pid == 0:
        made.setsockopt(socket.SOL_UDP, UDP_GRO, 1)
        made.settimeout(0.1)
        os.set_blocking(ends, False)
        found = []
        is_over = False
        while True:
            try:
                found.append(made.recv(65_536))
            except TimeoutError:
                if is_over:
                    break
                with contextlib.suppress(BlockingIOError):
                    is_over = bool(os.read(ends, 1))
        numbers = [struct.unpack_from("!I", data, at + 12)[0] for data in found for at in range(0, len(data), size)]
        os.write(told, struct.pack("qq", len(numbers), len(set(numbers))))
        os._exit(0)

    def finish() -> tuple[int, int]:
        os.write(end, b"x")
        n, n_unique = struct.unpack("qq", os.read(tells, 16))
        os.waitpid(pid, 0)
        for each in (tells, told, ends, end):
            os.close(each)
        return n, n_unique

    return finish


@contextlib.contextmanager
def worker(plane: RelayPlane) -> Iterator[Callable[[], tuple[float, float]]]:
    """Runs the plane's worker on its CPU, with the priority that the box gives it; gives the seconds that it has
    had the CPU, and those that it has waited for it: others' work there makes delays that are not the relay's."""
    plane.start()
    thread = plane.native_ids()[0]
    os.sched_setaffinity(thread, {measure.SERVER_CPU})
    os.setpriority(os.PRIO_PROCESS, thread, NICE)

    def used_s() -> tuple[float, float]:
        with open(f"/proc/self/task/{thread}/schedstat") as file:
            run_ns, wait_ns, _ = map(int, file.read().split())
        return run_ns / 1e9, wait_ns / 1e9

    try:
        yield used_s
    finally:
        plane.close()


def come_and_go(box: netns.Namespace, seconds: float) -> None:
    """100,000 packets a second of 200 bytes, while the list of receivers is published anew all the time."""
    plane = RelayPlane(1)
    size, rate, train = 200, 100_000, 16
    incoming, out, source = udp(box, "127.0.0.1"), udp(box), udp(box)
    incoming.setsockopt(socket.SOL_UDP, UDP_GRO, 1)
    incoming.setblocking(False)
    stays = [udp(box, "127.0.0.1") for _ in range(2)]
    comes = [udp(box, "127.0.0.1") for _ in range(16)]
    for made in comes:  # nobody reads there, and all sockets share net.ipv4.udp_mem
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 0)
    readers = [forked_reader(made, size) for made in stays]
    plane.add(0, Settings(legs=[(incoming.fileno(), "media", ())], is_rtp=True, window_packets=16_384))
    plane.open_output(0, 0, out.fileno(), hold_ns=5 * MS)
    fixed = b"".join(destination(made.getsockname()) for made in stays)
    others = [destination(made.getsockname()) for made in comes]
    control = [(socket.SOL_UDP, UDP_SEGMENT, struct.pack("=H", size))]
    number = changes = 0
    with worker(plane):
        plane.set_receivers(0, [(0, fixed)])
        begin_s = time.monotonic()
        while number < rate * seconds or changes < 1000:
            if number < (time.monotonic() - begin_s) * rate:
                body = b"".join(rtp(number + i, 0, size) for i in range(train))
                source.sendmsg([body], control, 0, incoming.getsockname())
                number += train
            if changes < (time.monotonic() - begin_s) / seconds * 1000:
                plane.set_receivers(0, [(0, fixed + b"".join(others[: changes % 17]))])
                changes += 1
        took_s = time.monotonic() - begin_s
        time.sleep(0.5)
        dropped = int(plane.legs[0, 6]) + int(plane.outputs[0, 4:8].sum())
    counts = [finish() for finish in readers]
    # What the readers were too slow for, the box has sent; a train counts as one there, so it can't be taken off.
    full = sum(dropped_at(made) for made in stays)
    lost = sum(number - n_unique for _, n_unique in counts)
    twice = sum(n - n_unique for n, n_unique in counts)
    name = f"{changes:,} joins and leaves under {number / took_s:,.0f} packets/s"
    verdict = "not judged" if full and lost and not twice and not dropped else measure.reached(lost == twice == 0)
    print(
        f"{name:<52} lost {lost}, twice {twice} (full buffers: {dropped} of the box, {full} of the benchmark's readers)"
        f"   target: 0 and 0: {verdict}"
    )
    for made in (incoming, out, source, *stays, *comes):
        made.close()


def paced(box: netns.Namespace, host: netns.Namespace, pace_bps: int, seconds: float, *, has_queue: bool) -> None:
    """Bursts of 120 packets, 8 Mbit/s on average. `has_queue`: through a link of 10 Mbit/s with room for 64 packets.
    `pace_bps` -1: as measured, which the first 1.2 s are for."""
    if has_queue:
        box.run("tc", "qdisc", "add", "dev", "lan0", "root", "tbf", "rate", "10mbit", "burst", "3000", "limit", "87000")
    plane = RelayPlane(1)
    incoming, out, source = udp(box, "127.0.0.1"), udp(box), udp(box)
    incoming.setblocking(False)
    probe = Probe(udp(host, "10.1.0.2", 7000))
    plane.add(0, Settings(legs=[(incoming.fileno(), "media", ())], is_rtp=True, window_packets=1024))
    # A link of 100 Mbit/s takes 6,250 bytes in half a millisecond.
    plane.open_output(0, 0, out.fileno(), hold_ns=0, pace_bytes_s=max(0, pace_bps) // 8, train_bytes=6250,
                      is_pace_measured=pace_bps < 0)  # fmt: skip
    plane.set_receivers(0, [(0, destination(("10.1.0.2", 7000)))])
    number, period_s = 0, 120 * 1316 * 8 / 8_000_000
    with worker(plane):
        begin_s = time.monotonic()
        for burst in range(int(seconds / period_s)):
            for _ in range(120):
                source.sendto(rtp(number, time.time_ns()), incoming.getsockname())
                number += 1
            while time.monotonic() - begin_s < (burst + 1) * period_s:
                probe.read()
                time.sleep(0.001)
        time.sleep(0.5)
        probe.read()
    known = 8 * 120 if pace_bps < 0 else 0
    lost = number - known - len({each for each in probe.numbers if each >= known})
    arrivals_ns = [at_ns for each, at_ns in zip(probe.numbers, probe.arrivals_ns, strict=True) if each >= known]
    longest = run = 1
    for before, after in itertools.pairwise(arrivals_ns):
        run = run + 1 if after - before < TOGETHER_NS else 1
        longest = max(longest, run)
    link = "10 Mbit/s with room for 64 packets" if has_queue else "veth"
    how = "spaced as measured" if pace_bps < 0 else "spaced by 8.4 Mbit/s" if pace_bps else "not spaced"
    name = f"bursts of 120 packets, {how}, {link}"
    verdict = measure.reached(lost == 0 and longest <= 16) if pace_bps else "what it is for"
    print(f"{name:<52} lost {lost} of {number - known}, longest burst {longest}   target: 0, <= 16: {verdict}")
    for made in (incoming, out, source):
        made.close()
    if has_queue:
        box.run("tc", "qdisc", "del", "dev", "lan0", "root")


def main() -> int:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 5.0
    if why := netns.why_not() or ("needs tc" if measure.missing("tc") else None):
        print(f"not measured: {why}")
        return 0
    os.sched_setaffinity(0, {measure.LOAD_CPU})
    with netns.Topology() as topology:
        _, box, (host,) = topology.proxy()
        come_and_go(box, seconds)
        paced(box, host, 8_400_000, seconds, has_queue=False)
        with contextlib.suppress(subprocess.CalledProcessError, RuntimeError):
            paced(box, host, 8_400_000, seconds, has_queue=True)
            paced(box, host, -1, seconds, has_queue=True)
            paced(box, host, 0, seconds, has_queue=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
