"""What protects a network from relays, and relays from a network, provoked for real: boxes that relay to each other."""

from __future__ import annotations

import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import netns
import pytest
from relay_box import RelayBox
from running_box import wait_for

sys.path.append(str(Path(__file__).resolve().parents[1] / "dataplane"))
from relay_packets import rtp, transport

REASON = netns.why_not()
pytestmark = [pytest.mark.netns, pytest.mark.skipif(REASON is not None, reason=str(REASON))]

PACKETS = 400
RING = {"first": ("239.1.1.1:5004", "239.2.1.1:5004"), "second": ("239.2.1.1:5004", "239.1.1.1:5004")}


@pytest.fixture
def two() -> Iterator[tuple[netns.Namespace, netns.Namespace]]:
    """Two boxes with two links between them; a sender of its own address is on the first link."""
    with netns.Topology() as topology:
        first, second = topology.namespace("first"), topology.namespace("second")
        for index, name in enumerate(("wan", "lan")):
            topology.wire(first, name, second, name)
            first.ip("addr", "add", f"10.{index}.0.1/24", "dev", name)
            second.ip("addr", "add", f"10.{index}.0.2/24", "dev", name)
        second.ip("addr", "add", "10.0.0.9/24", "dev", "wan")
        yield first, second


def payload(i: int) -> bytes:
    return b"".join(transport(0x100, 7 * i + j) for j in range(7))[:-4] + struct.pack("!I", i)


@pytest.mark.parametrize(
    ("scheme", "form"),
    [
        ("udp", "keep"), ("rtp", "restamp"),
        pytest.param("rtp", "keep", marks=pytest.mark.slow), pytest.param("udp", "restamp", marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_two_boxes_that_relay_to_each_other_make_no_storm(
    scheme: str, form: str, two: tuple[netns.Namespace, netns.Namespace], tmp_path: Path
) -> None:
    """What the first sends comes back to it by the second, from an address that it doesn't know as its own: each packet
    goes round once, and no further. MPEG-TS without RTP has no number by which it could be known again."""
    boxes = {}
    links = {"first": ("wan", "lan"), "second": ("lan", "wan")}
    for namespace, (name, (from_, to)) in zip(two, RING.items(), strict=True):
        interface, output = links[name]
        hall = {
            "from": [f"{scheme}://{from_}"], "interface": interface, "join": "always",
            "to": [{"group": to, "interface": output, "rtp": form, "hold": "0ms"}],
        }  # fmt: skip
        boxes[name] = RelayBox(namespace, tmp_path / name, hall=hall)
        (tmp_path / name).mkdir()

    def counters(name: str) -> dict[str, int]:
        found: dict[str, int] = boxes[name].relay()["counters"]
        return found

    with boxes["first"], boxes["second"], netns.sender(two[1], "wan") as source:
        source.bind(("10.0.0.9", 0))
        wait_for(lambda: all(each.relay()["joined"] for each in boxes.values()))
        for i in range(PACKETS):
            body = payload(i)
            source.sendto(rtp(i, body) if scheme == "rtp" else body, ("239.1.1.1", 5004))
            time.sleep(0.002)
        wait_for(lambda: counters("first")["packets"] >= PACKETS)
        rest: list[Any] = []
        wait_for(lambda: rest.append(counters("first")) or (len(rest) > 3 and rest[-1] == rest[-3]), seconds=5)
        first, second = counters("first"), counters("second")
    assert first["packets"] == PACKETS
    assert first["datagrams"] <= 2 * PACKETS, "each came back once"
    assert second["packets"] == PACKETS
    # By whichever rule comes first: another sender, the same number, or RTP where none was.
    assert sum(first[name] for name in ("drop_sender", "duplicate", "drop_format")) == PACKETS, first
