"""Outputs paced by the rate that is measured: a queue of 64 packets is enough for bursts of 120."""

from __future__ import annotations

import itertools
import shutil
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import netns
import pytest
from relay_box import Places, RelayBox, unicast
from running_box import wait_for

REASON = netns.why_not() or ("needs tc" if shutil.which("tc") is None else None)
pytestmark = [pytest.mark.netns, pytest.mark.skipif(REASON is not None, reason=str(REASON))]

BURST, RATE_BPS, SIZE = 120, 8_000_000, 1316
PERIOD_S = BURST * SIZE * 8 / RATE_BPS
# What came closer together than this left together: 1,316 bytes take 11 µs at 1 Gbit/s, 1.2 ms at the rate.
TOGETHER_NS = 100_000


@pytest.fixture
def places() -> Iterator[Places]:
    with netns.Topology() as topology:
        yield topology.proxy(3)


class Stamped:
    """Numbers, and when the kernel received them."""

    def __init__(self, made: socket.socket) -> None:
        made.setsockopt(socket.SOL_SOCKET, 35, 1)  # SO_TIMESTAMPNS
        made.settimeout(0.05)
        self.socket = made
        self.rows: list[tuple[int, int]] = []
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._done.is_set():
            try:
                data, ancillary, _, _ = self.socket.recvmsg(2048, 64)
            except TimeoutError:
                continue
            seconds, nanoseconds = struct.unpack("qq", ancillary[0][2])
            self.rows.append((struct.unpack_from("!I", data, 12)[0], seconds * 1_000_000_000 + nanoseconds))

    def close(self) -> None:
        self._done.set()
        self._thread.join()
        self.socket.close()

    def longest(self, first: int) -> int:
        """How many, of those from `first` on, came together at most."""
        found = longest = 1
        for (_, before), (_, after) in itertools.pairwise(row for row in self.rows if row[0] >= first):
            found = found + 1 if after - before < TOGETHER_NS else 1
            longest = max(longest, found)
        return longest


def test_bursts_pass_a_queue_of_64_packets(places: Places, tmp_path: Path) -> None:
    """Three links: paced into a small queue, not paced, and without a queue, where our own bursts are seen."""
    source, namespace, hosts = places
    for name in ("lan0", "lan1"):
        namespace.run(*f"tc qdisc add dev {name} root tbf rate 10mbit burst 3000 limit 87000".split())
    hall = {
        "from": ["rtp://10.0.0.1:5004"],
        "to": [
            {"unicast": ["10.1.0.2:7000"], "rate": "measured", "hold": "0ms"},
            {"unicast": ["10.1.1.2:7000"], "hold": "0ms"},
            {"unicast": ["10.1.2.2:7000"], "rate": "measured", "hold": "0ms"},
        ],
    }  # fmt: skip
    n_bursts, first = 24, 8 * BURST  # by then the rate is known
    with RelayBox(namespace, tmp_path, hall=hall) as box:
        screens = [Stamped(unicast(host, f"10.1.{index}.2", 7000)) for index, host in enumerate(hosts)]
        made = netns.sender(source, "eth0")
        try:
            begin_s, number = time.monotonic(), 0
            for burst in range(n_bursts):
                for _ in range(BURST):
                    head = struct.pack("!BBHIII", 0x80, 33, number & 0xFFFF, number * 10, 7, number)
                    made.sendto(head.ljust(SIZE, b"\0"), ("10.0.0.1", 5004))
                    number += 1
                time.sleep(max(0.0, begin_s + (burst + 1) * PERIOD_S - time.monotonic()))
            wait_for(lambda: box.relay()["counters"]["packets"] == number)
            wait_for(lambda: len(screens[2].rows) == number, what="what is paced comes whole")
            wait_for(lambda: screens[0].rows and screens[0].rows[-1][0] == number - 1)
        finally:
            for each in screens:
                each.close()
            made.close()
        sent = [each["packets"] for each in box.relay()["to"]]
    assert sent == [number] * 3
    paced, unpaced = ([n for n, _ in screens[index].rows if n >= first] for index in (0, 1))
    assert len(paced) == number - first, "nothing lost in the queue"
    assert len(unpaced) < 0.9 * (number - first), "which loses where nothing is paced"
    assert screens[2].longest(first) <= 16
