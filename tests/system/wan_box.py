"""The daemon behind a WAN of 20 Mbit/s (tbf), what competes for it, and what the wire carried. No test itself.

    origin (10.9.0.1) eth0 --- tbf --- wan (10.9.0.2) box, viewers on its loopback
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import netns
from running_box import HOST, RunningBox, policy_for

PORT = 8000
EF_BYTES, EF_EVERY_S = 972, 0.004  # about 2 Mbit/s on the wire
EF_WIRE_BYTES = EF_BYTES + 28 + 14


@dataclass
class Figures:
    """What came of one run. Times in seconds, rates in bits per second on the wire."""

    fetch_max_bps: float = 0.0
    fetch_mean_bps: float = 0.0
    ef_sent: int = 0
    ef_received: int = 0
    live_s: list[float] = field(default_factory=list)
    bulk_bytes: list[int] = field(default_factory=list)

    @property
    def ef_loss(self) -> float:
        return 1 - self.ef_received / self.ef_sent


class Wan:
    """Use with `with`; `run` is one measurement."""

    def __init__(self, work: Path, rate: str = "20mbit", *, tls: bool = False, **policy: Any) -> None:
        self._stack = contextlib.ExitStack()
        self._work, self._rate, self._pem = work, rate, work / "origin.pem"
        scheme = "https" if tls else "http"
        self._tls = [str(self._pem)] if tls else []
        trust = {"ca": str(self._pem)} if tls else {}
        sections = {
            "links": {"main": {"interface": "wan", "down": "20Mbit/s", "video": "15Mbit/s"}},
            "classes": {"webcast": {"guarantee": "40%"}, "library": {}},
            "origins": {
                "live": {
                    "from": [f"{scheme}://10.9.0.1:{PORT}"],
                    "hosts": ["live.example"],
                    "class": "webcast",
                    **trust,
                },
                "media": {"class": "library", **trust},
            },
        }
        sections.update(policy)
        self._policy = policy_for(f"{scheme}://10.9.0.1:{PORT}", **sections)

    def __enter__(self) -> Wan:
        try:
            self._open()
        except BaseException:
            self._stack.close()
            raise
        return self

    def _open(self) -> None:
        topology = self._stack.enter_context(netns.Topology())
        self.origin, self.here = topology.namespace("origin"), topology.namespace("box")
        topology.wire(self.origin, "eth0", self.here, "wan")
        self.origin.ip("addr", "add", "10.9.0.1/24", "dev", "eth0")
        self.here.ip("addr", "add", "10.9.0.2/24", "dev", "wan")
        # A real link's queue is behind a router: what stands in it is lost or late for everybody.
        for interface, offloads in ((self.origin, "eth0"), (self.here, "wan")):
            interface.run("ethtool", "-K", offloads, "tso", "off", "gso", "off", "gro", "off")
        shape = ("root", "tbf", "rate", self._rate, "burst", "8kb", "latency", "40ms")
        self.origin.run("tc", "qdisc", "add", "dev", "eth0", *shape)
        if self._tls:
            netns.run(
                "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
                "-keyout", str(self._pem), "-out", str(self._pem) + ".crt", "-days", "2", "-subj", "/CN=origin",
                "-addext", "subjectAltName=IP:10.9.0.1",
            )  # fmt: skip
            self._pem.write_text(self._pem.read_text() + Path(f"{self._pem}.crt").read_text())
        server = self.origin.popen(
            sys.executable, str(Path(__file__).with_name("wan_origin.py")), "10.9.0.1", str(PORT), *self._tls,
            stdout=subprocess.PIPE,
        )  # fmt: skip
        assert server.stdout is not None
        self._stack.callback(server.wait)
        self._stack.callback(server.kill)
        assert server.stdout.readline() == b"serving\n"
        self.box = RunningBox(self._work, self._policy)
        self.box.prefix = ["ip", "netns", "exec", self.here.name]
        self._stack.enter_context(self.box)
        self.address = self.box.address()

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def fetch(self, host: str, target: str, until: threading.Event | None = None) -> int:
        """The body bytes that came."""

        def connected() -> socket.socket:
            return socket.create_connection(self.address, timeout=30)

        n = 0
        with self.here.call(connected) as viewer:
            viewer.sendall(f"GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
            reader = viewer.makefile("rb")
            while reader.readline() not in (b"\r\n", b""):
                pass
            while (until is None or not until.is_set()) and (block := reader.read1(1 << 16)):
                n += len(block)
        return n

    def run(self, seconds: float, *, bulk: int = 6, live_bytes: int = 0, name: str = "a") -> Figures:
        """`bulk` fills of 60 MB at once, a live segment of `live_bytes` each second (0: none), and an EF flow."""
        figures, done = Figures(), threading.Event()
        threads = [threading.Thread(target=self._bulk, args=(figures, f"{name}{i}", done)) for i in range(bulk)]
        threads.append(threading.Thread(target=self._ef, args=(figures, done)))
        if live_bytes:
            threads.append(threading.Thread(target=self._live, args=(figures, live_bytes, name, done)))
        sink = self.here.call(self._sink)
        threads.append(threading.Thread(target=self._count, args=(figures, sink, done)))
        for thread in threads:
            thread.start()
        samples = list(self._samples(seconds, figures))
        done.set()
        for thread in threads:
            thread.join()
        sink.close()
        figures.fetch_mean_bps = (samples[-1][1] - samples[0][1]) * 8 / (samples[-1][0] - samples[0][0])
        first = 0
        for at_s, n in samples:
            while samples[first + 1][0] <= at_s - 1.0:
                first += 1
            if at_s - samples[first][0] >= 1.0:
                figures.fetch_max_bps = max(
                    figures.fetch_max_bps, (n - samples[first][1]) * 8 / (at_s - samples[first][0])
                )
        return figures

    def _samples(self, seconds: float, figures: Figures) -> Iterator[tuple[float, int]]:
        """(time, bytes of the wire that are no EF) each 20 ms."""
        counter = self.here.call(lambda: open("/proc/thread-self/net/dev"))  # noqa: SIM115
        with counter:
            ends_s = time.monotonic() + seconds
            while time.monotonic() < ends_s:
                counter.seek(0)
                line = next(each for each in counter.read().splitlines() if each.strip().startswith("wan:"))
                yield time.monotonic(), int(line.split(":")[1].split()[0]) - figures.ef_received * EF_WIRE_BYTES
                time.sleep(0.02)

    def _bulk(self, figures: Figures, name: str, done: threading.Event) -> None:
        n = 0
        while not done.is_set():
            figures.bulk_bytes.append(self.fetch(HOST, f"/60000000/{name}-{n}", done))
            n += 1

    def _live(self, figures: Figures, n_bytes: int, name: str, done: threading.Event) -> None:
        n, next_s = 0, time.monotonic() + 1
        while not done.wait(max(0.0, next_s - time.monotonic())):
            began_s = time.monotonic()
            assert self.fetch("live.example", f"/{n_bytes}/{name}-{n}") == n_bytes
            figures.live_s.append(time.monotonic() - began_s)
            n, next_s = n + 1, next_s + 1

    def _ef(self, figures: Figures, done: threading.Event) -> None:
        sender = self.origin.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        with sender:
            sender.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, 0xB8)
            next_s = time.monotonic()
            while not done.is_set():
                sender.sendto(bytes(EF_BYTES), ("10.9.0.2", 5004))
                figures.ef_sent += 1
                next_s += EF_EVERY_S
                time.sleep(max(0.0, next_s - time.monotonic()))

    @staticmethod
    def _sink() -> socket.socket:
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.bind(("10.9.0.2", 5004))
        made.settimeout(0.3)
        return made

    @staticmethod
    def _count(figures: Figures, sink: socket.socket, done: threading.Event) -> None:
        while True:
            try:
                sink.recv(2048)
            except TimeoutError:
                if done.is_set():
                    return
                continue
            figures.ef_received += 1
