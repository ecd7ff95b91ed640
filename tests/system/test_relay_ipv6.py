"""Relays over IPv6: what the kernel does otherwise than over IPv4, met on links of a real stack."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import netns
import pytest
from relay_box import Places, Receiver, RelayBox, Sender, unicast
from running_box import wait_for

REASON = netns.why_not()
pytestmark = [pytest.mark.netns, pytest.mark.skipif(REASON is not None, reason=str(REASON))]

GROUP = "ff15::1:5"
OF_LINK = "ff12::1:5"


@pytest.fixture
def places() -> Iterator[Places]:
    with netns.Topology() as topology:
        yield topology.proxy(1)


def test_one_group_on_two_links_is_two_streams(places: Places, tmp_path: Path) -> None:
    """Each relay was given both: for IPv6 the kernel doesn't compare interfaces (inet6_mc_check)."""
    source, namespace, (screens,) = places
    relays = {
        name: {"from": [f"rtp://[{GROUP}]:5004"], "interface": link, "join": "always",
               "to": [{"unicast": [f"10.1.0.2:{port}"]}]}
        for name, link, port in (("one", "wan", 6001), ("other", "lan0", 6002))
    }  # fmt: skip
    with (
        RelayBox(namespace, tmp_path, **relays) as box,
        Receiver(unicast(screens, "10.1.0.2", 6001)) as one,
        Receiver(unicast(screens, "10.1.0.2", 6002)) as other,
    ):
        wait_for(lambda: all(box.relay(name)["joined"] for name in relays), seconds=30)
        with Sender(source, [(GROUP, 5004)], 200, ssrc=1), Sender(screens, [(GROUP, 5004)], 200, ssrc=2):
            wait_for(lambda: len(one.datagrams) > 50 and len(other.datagrams) > 50, seconds=30)
        found = {name: box.relay(name) for name in relays}
        assert (set(one.sources), set(other.sources)) == ({1}, {2})
    for each in found.values():
        assert each["counters"]["drop_link"] > 0
        assert each["dropped"] == 0, "what the other relay takes is no fault of this one"


def test_a_group_of_one_link_waits_for_its_interface_and_follows_it(places: Places, tmp_path: Path) -> None:
    """Such a group couldn't even be opened before its interface was there: the daemon did not start. And an interface
    that came back had another number, of which the socket never heard."""
    source, namespace, (screens,) = places
    hall = {"from": [f"rtp://[{OF_LINK}]:5004"], "interface": "late", "join": "always",
            "to": [{"unicast": ["10.1.0.2:6001"]}]}  # fmt: skip
    with (
        RelayBox(namespace, tmp_path, hall=hall) as box,
        Receiver(unicast(screens, "10.1.0.2", 6001)) as screen,
    ):
        assert wait_for(lambda: box.relay()["troubles"], seconds=30) == [f"{OF_LINK}: there is no interface late"]
        for _ in range(2):
            namespace.ip("link", "add", "late", "type", "veth", "peer", "name", "eth1", "netns", source.name)
            namespace.ip("link", "set", "late", "up")
            source.ip("link", "set", "eth1", "up")
            wait_for(lambda: box.relay()["joined"], seconds=30)
            n = len(screen.datagrams)
            with Sender(source, [(OF_LINK, 5004)], 200, interface="eth1"):
                wait_for(lambda n=n: len(screen.datagrams) > n + 20, seconds=30)
            namespace.ip("link", "del", "late")
            wait_for(lambda: box.relay()["troubles"], seconds=30)
