"""Interfaces under a running relay: down and up, another address, another name, IPv4 and IPv6. The stream is back
within half a second where the kernel says what changes, and within 2 s where the sandbox doesn't let us hear it."""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import netns
import pytest
from relay_box import HALL, Places, Receiver, RelayBox, Sender, gaps, groups
from running_box import wait_for

REASON = netns.why_not()
pytestmark = [pytest.mark.netns, pytest.mark.skipif(REASON is not None, reason=str(REASON))]

WITHIN_S = {"followed": 0.6, "asked": 2.0}


@pytest.fixture
def places() -> Iterator[Places]:
    with netns.Topology() as topology:
        yield topology.proxy(1)


def reporters(namespace: netns.Namespace) -> Callable[[], set[str]]:
    """Who has reported memberships (IGMP) on eth0 since."""
    heard = namespace.call(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800)))
    heard.setblocking(False)
    found: set[str] = set()

    def so_far() -> set[str]:
        try:
            while True:
                data = heard.recv(2000)
                if data[9] == socket.IPPROTO_IGMP:
                    found.add(socket.inet_ntoa(data[12:16]))
        except BlockingIOError:
            return found

    return so_far


def without_netlink(box: RelayBox) -> None:
    """As the packaged unit's RestrictAddressFamilies has it."""
    box.prefix += [sys.executable, str(Path(__file__).parent / "no_netlink.py")]


@pytest.mark.parametrize("way", ["followed", pytest.param("asked", marks=pytest.mark.slow)])
def test_whatever_happens_to_a_link_the_stream_is_soon_back(way: str, places: Places, tmp_path: Path) -> None:
    source, namespace, (screens,) = places
    hall = {**HALL, "to": [{"group": "239.2.1.1:5004", "interface": "lan0"}]}
    heard = reporters(source)
    took: dict[str, float] = {}
    made = RelayBox(namespace, tmp_path, hall=hall)
    if way == "asked":
        without_netlink(made)
    with (
        made as box,
        Receiver(netns.join(screens, "eth0", "239.2.1.1", 5004)) as screen,
        Sender(source, [("239.1.1.1", 5004)], 200),
    ):
        assert box.status()["relays"]["follows_links"] is (way == "followed")

        def is_back(what: str) -> None:
            """From now on: until packets come that were sent after now."""
            begin_s, n = time.monotonic(), len(screen.datagrams)
            wait_for(lambda: len(screen.datagrams) > n + 20)
            took[what] = time.monotonic() - begin_s

        wait_for(lambda: len(screen.datagrams) > 20)
        for name in ("wan", "lan0"):
            namespace.ip("link", "set", name, "down")
            n = len(screen.datagrams)
            time.sleep(0.3)  # what is tested: a while without the link
            assert len(screen.datagrams) <= n + 20
            namespace.ip("link", "set", name, "up")
            is_back(f"{name} down and up")
        # Another address: who asks for members must hear of them from it.
        namespace.ip("addr", "del", "10.0.0.1/24", "dev", "wan")
        namespace.ip("addr", "add", "10.0.0.77/24", "dev", "wan")
        begin_s = time.monotonic()
        wait_for(lambda: "10.0.0.77" in heard())
        took["reported from the new address"] = time.monotonic() - begin_s
        is_back("another address")
        # Another name is another interface to the policy.
        namespace.ip("link", "set", "wan", "down")
        namespace.ip("link", "set", "wan", "name", "wan9")
        namespace.ip("link", "set", "wan9", "up")
        wait_for(lambda: box.relay()["troubles"] == ["239.1.1.1: there is no interface wan"])
        wait_for(lambda: "239.1.1.1" not in groups(namespace, "wan9"))
        namespace.ip("link", "set", "wan9", "down")
        namespace.ip("link", "set", "wan9", "name", "wan")
        namespace.ip("link", "set", "wan", "up")
        is_back("renamed, and back")
        assert box.relay()["counters"]["restarts"] <= 4
    print(way, {what: round(each_s, 3) for what, each_s in took.items()})
    assert max(took.values()) < WITHIN_S[way], took


def test_an_ipv6_group_is_joined_anew_with_another_address(places: Places, tmp_path: Path) -> None:
    """A group over IPv6, whose interface loses all its addresses of that family (as it does when it goes down), and has
    them back."""
    source, namespace, (screens,) = places
    hall = {"from": ["rtp://[ff15::101]:5004"], "interface": "wan", "join": "always",
            "to": [{"group": "[ff15::201]:5004", "interface": "lan0"}]}  # fmt: skip
    with (
        RelayBox(namespace, tmp_path, hall=hall) as box,
        Receiver(netns.join(screens, "eth0", "ff15::201", 5004)) as screen,
        Sender(source, [("ff15::101", 5004)], 200),
    ):
        wait_for(lambda: len(screen.datagrams) > 20)
        namespace.ip("link", "set", "wan", "down")
        wait_for(lambda: (box.relay()["silent_s"] or 0) > 0.3)
        namespace.ip("link", "set", "wan", "up")
        begin_s, n = time.monotonic(), len(screen.datagrams)
        wait_for(lambda: len(screen.datagrams) > n + 20)
        assert time.monotonic() - begin_s < WITHIN_S["asked"], "the kernel itself tries its new address first"
        namespace.ip("-6", "addr", "add", "fd00:9::1/64", "dev", "wan", "nodad")
        n = len(screen.datagrams)
        wait_for(lambda: len(screen.datagrams) > n + 100)
        assert not gaps(screen.numbers[n:]), "an address more is no reason to lose a packet"
