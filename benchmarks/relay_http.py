"""What does a channel cost to 1,000 HTTP viewers? CPU of the whole daemon for each gigabyte that they take of one relay
of 8 Mbit/s, beside a bare epoll loop in C that copies one ring to as many sockets, in the same steps. On loopback.

Run: .venv/bin/python benchmarks/relay_http.py [RUNS]     (root; medians of RUNS, by default 5)

udpxy, whose work this is elsewhere, isn't packaged in Debian: it is no peer here.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import measure

sys.path.append(str(measure.ROOT))
sys.path.append(str(measure.ROOT / "tests" / "dataplane"))
sys.path.append(str(measure.ROOT / "tests" / "system"))
from running_box import RunningBox, policy_for, wait_for
from stream_rig import Program

VIEWERS = 1000
RATE_BPS = 8_000_000
STEP_MS = 20
SECONDS = 5.0
PATH = "/relay/hall.ts"


class Channel:
    """Datagrams of seven transport packets at a steady rate, until stopped."""

    def __init__(self, port: int) -> None:
        self._stop = threading.Event()
        self._to = ("127.0.0.1", port)
        self._datagrams = Program().datagrams(5000)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        begin_s, n = time.monotonic(), 0
        while not self._stop.wait(0.002):
            due = int((time.monotonic() - begin_s) * RATE_BPS / 8 / len(self._datagrams[0]))
            for number in range(n, due):
                sender.sendto(self._datagrams[number % len(self._datagrams)], self._to)
            n = max(n, due)
        sender.close()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()


def free_port(kind: socket.SocketKind) -> int:
    with socket.socket(socket.AF_INET, kind) as made:
        made.bind(("127.0.0.1", 0))
        port: int = made.getsockname()[1]
        return port


def cpu_ns(pid: int) -> int:
    """Of all threads of a process."""
    return sum(int(path.read_text().split()[0]) for path in Path(f"/proc/{pid}/task").glob("*/schedstat"))


def taken(readers: subprocess.Popen[bytes]) -> tuple[int, int, int]:
    """Bytes in all, viewers there, the least that one has."""
    assert readers.stdin is not None
    assert readers.stdout is not None
    readers.stdin.write(b"\n")
    readers.stdin.flush()
    total, there, least = map(int, readers.stdout.readline().split())
    return total, there, least


@contextmanager
def viewers(port: int) -> Iterator[subprocess.Popen[bytes]]:
    program = measure.compiled("ring_readers")
    started = subprocess.Popen(
        ["taskset", "-c", str(measure.LOAD_CPU), str(program), str(port), str(VIEWERS), PATH],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert started.stdout is not None
        assert started.stdout.readline() == b"asked\n"
        yield started
    finally:
        started.kill()
        started.wait()


def window(pid: int, readers: subprocess.Popen[bytes]) -> tuple[float, float]:
    """(CPU seconds for each gigabyte, gigabytes a second), once every viewer reads."""
    wait_for(lambda: taken(readers)[2] > 0, seconds=30, what="every viewer reads")
    time.sleep(1)
    begin_s, begin_ns, (begin, _, _) = time.monotonic(), cpu_ns(pid), taken(readers)
    time.sleep(SECONDS)
    end, there, _ = taken(readers)
    used_ns, elapsed_s = cpu_ns(pid) - begin_ns, time.monotonic() - begin_s
    if there != VIEWERS:
        raise SystemExit(f"only {there} of {VIEWERS} viewers are left: no figure")
    return used_ns / (end - begin), (end - begin) / 1e9 / elapsed_s


def ours() -> tuple[float, float]:
    port = free_port(socket.SOCK_DGRAM)
    relay = {"from": [f"udp://127.0.0.1:{port}"], "to": [{"http": PATH, "hold": f"{STEP_MS}ms"}]}
    with tempfile.TemporaryDirectory() as folder:
        box = RunningBox(Path(folder), policy_for("http://127.0.0.1:9", relays={"hall": relay}), nofile=8192)
        box.prefix = ["taskset", "-c", str(measure.SERVER_CPU)]
        with box:
            channel = Channel(port)
            try:
                with viewers(int(box.status()["listeners"][0]["address"].rpartition(":")[2])) as readers:
                    found = window(box.process.pid, readers)
                    skips = box.stats()["relay_skips"]
                    if skips:
                        print(f"  {skips} skips: viewers could not take what they were sent")
                    return found
            finally:
                channel.stop()


def bare() -> tuple[float, float]:
    udp_port, tcp_port = free_port(socket.SOCK_DGRAM), free_port(socket.SOCK_STREAM)
    program = measure.compiled("bare_ring")
    loop = subprocess.Popen(
        ["taskset", "-c", str(measure.SERVER_CPU), str(program),
         *map(str, (udp_port, tcp_port, VIEWERS, STEP_MS))],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert loop.stdout is not None
    assert loop.stdout.readline() == b"ready\n"
    channel = Channel(udp_port)
    try:
        with viewers(tcp_port) as readers:
            return window(loop.pid, readers)
    finally:
        channel.stop()
        loop.kill()
        loop.wait()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=int, nargs="?", default=5)
    runs = parser.parse_args().runs
    if measure.missing("gcc", "taskset"):
        print("not measured: needs gcc and taskset")
        return 0
    os.sched_setaffinity(0, {measure.LOAD_CPU})
    found: dict[str, list[tuple[float, float]]] = {"ours": [], "bare": []}
    for _ in range(runs):
        found["ours"].append(ours())
        found["bare"].append(bare())
    asked = VIEWERS * RATE_BPS / 8e9
    print(f"{VIEWERS} viewers of {RATE_BPS / 1e6:.0f} Mbit/s, steps of {STEP_MS} ms; medians of {runs}")
    for name, rows in found.items():
        cpu = [row[0] for row in rows]
        rate = statistics.median(row[1] for row in rows)
        spread = f"{min(cpu):.3f} to {max(cpu):.3f}"
        print(f"  {name:<6}{statistics.median(cpu):>8.3f} CPU s per GB   {spread}   {rate:.2f} GB/s")
    ratio = statistics.median(row[0] for row in found["ours"]) / statistics.median(row[0] for row in found["bare"])
    print(f"  ratio {ratio:>8.2f}   (target: at most 1.3; {asked:.2f} GB/s are asked for)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
