"""Streams that the kernel drops without a word are told of, each with its reason; those that are fine are not."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import netns
import pytest
from netd_box import NetdBox, wait_for
from streams import ASM, FAMILIES, PORT, SOURCE, SSM

from accelerator.kernel.stream_watch import LOOK_S, WINDOW_S, read_header

pytestmark = [pytest.mark.netns, pytest.mark.skipif(bool(netns.why_not()), reason=netns.why_not() or "")]

TV: dict[str, object] = {"name": "tv", "upstream": "wan", "downstream": ["lan0", "lan1"]}
Net = tuple[netns.Namespace, list[netns.Namespace], NetdBox]


@pytest.fixture
def net(tmp_path: Path) -> Iterator[Net]:
    with netns.Topology() as topology:
        source, box, hosts = topology.proxy(2)
        # The smallest that IPv6 may have.
        for namespace, name in ((box, "lan1"), (hosts[1], "eth0")):
            namespace.ip("link", "set", name, "mtu", "1280")
        with NetdBox(box, tmp_path) as netd:
            netd.desire(TV)
            netd.ready()
            yield source, hosts, netd


def messages(netd: NetdBox) -> list[str]:
    return [each["message"] for kind in ("stream-ttl", "stream-too-large") for each in netd.events(kind)]


@FAMILIES
def test_a_stream_with_ttl_1_is_told_of(net: Net, is_v6: bool) -> None:
    source, hosts, netd = net
    player = netns.join(hosts[0], "eth0", SSM[is_v6], PORT, (SOURCE[is_v6],))
    wait_for(lambda: netd.proxy(is_v6=is_v6)["routes"], "the route")
    near, far = (netns.sender(source, "eth0", is_v6=is_v6, hops=hops) for hops in (1, 8))

    def is_told() -> list[str]:
        # What nobody wants is nobody's trouble: that one has TTL 1 too.
        for group in (SSM[is_v6], ASM[is_v6]):
            near.sendto(b"near", (group, PORT))
        far.sendto(b"far", (SSM[is_v6], PORT))
        return messages(netd)

    (message,) = wait_for(is_told, "the event", LOOK_S + 2 * WINDOW_S)
    word = "hop limit" if is_v6 else "TTL"
    assert message.startswith(f"{SOURCE[is_v6]} sends {SSM[is_v6]} with a {word} of 1 on wan")
    assert player.recv(100) == b"far"
    for each in (player, near, far):
        each.close()


@FAMILIES
def test_packets_that_are_too_large_for_a_link_are_told_of(net: Net, is_v6: bool) -> None:
    """Linux sends UDP with Don't Fragment: such a stream reaches the wide link, and not the narrow one."""
    source, hosts, netd = net
    wide, narrow = (netns.join(host, "eth0", SSM[is_v6], PORT, (SOURCE[is_v6],)) for host in hosts)
    wait_for(lambda: any(each["to"] == ["lan0", "lan1"] for each in netd.proxy(is_v6=is_v6)["routes"]), "the route")
    out = netns.sender(source, "eth0", is_v6=is_v6)
    # IPV6_MTU_DISCOVER: IPV6_PMTUDISC_PROBE, as of a sender that no Packet Too Big reaches, or IP_PMTUDISC_DO.
    out.setsockopt(*((socket.IPPROTO_IPV6, 23, 3) if is_v6 else (socket.IPPROTO_IP, 10, 2)))

    def is_told() -> list[str]:
        out.sendto(bytes(1400), (SSM[is_v6], PORT))
        return messages(netd)

    (message,) = wait_for(is_told, "the event", LOOK_S + 2 * WINDOW_S)
    size = 1400 + (48 if is_v6 else 28)
    assert message.startswith(f"packets of {size} bytes from {SOURCE[is_v6]} to {SSM[is_v6]} don't reach lan1")
    assert len(wide.recv(2000)) == 1400
    narrow.settimeout(0.1)
    with pytest.raises(TimeoutError):
        narrow.recv(2000)
    for each in (wide, narrow, out):
        each.close()


def test_a_viewers_address_is_in_no_event(net: Net) -> None:
    """Events are kept on disk."""
    _, hosts, netd = net
    group, host = ASM[False], "10.1.0.2"
    player = netns.join(hosts[1], "eth0", group, PORT)
    near = netns.sender(hosts[0], "eth0", hops=1)

    def is_told() -> list[str]:
        near.sendto(b"near", (group, PORT))
        return messages(netd)

    (message,) = wait_for(is_told, "the event", LOOK_S + 2 * WINDOW_S)
    assert message.startswith(f"a host on lan0 sends {group} with a TTL of 1 on lan0")
    assert host not in message
    player.close()
    near.close()


def test_packets_that_may_be_cut_up_are_no_news(net: Net) -> None:
    source, hosts, netd = net
    narrow = netns.join(hosts[1], "eth0", SSM[False], PORT, (SOURCE[False],))
    wait_for(lambda: netd.proxy()["routes"], "the route")
    out = netns.sender(source, "eth0")
    out.setsockopt(socket.IPPROTO_IP, 10, 0)  # IP_MTU_DISCOVER: IP_PMTUDISC_DONT
    end_s = time.monotonic() + 1.3
    while time.monotonic() < end_s:
        out.sendto(bytes(1400), (SSM[False], PORT))
        assert len(narrow.recv(2000)) == 1400
    assert messages(netd) == []
    narrow.close()
    out.close()


def test_headers_that_are_none() -> None:
    for is_v6 in (False, True):
        for data in (b"", bytes(19), bytes(64), b"\x45" + bytes(18), b"\x60" + bytes(38), b"\x75" + bytes(63)):
            assert read_header("wan", data, is_v6=is_v6) is None
