"""Multicast routes in a real kernel: both families, routes for any source, upcalls, tables, what is left after
close."""

from __future__ import annotations

import select
import socket
from collections.abc import Iterator
from ipaddress import ip_address

import netns
import pytest

from accelerator.kernel.mroute import MulticastRoutingError, MulticastSocket, Unrouted, Upcall, read_upcall

pytestmark = [pytest.mark.netns, pytest.mark.skipif(bool(netns.why_not()), reason=netns.why_not() or "")]


def packed(text: str) -> bytes:
    return ip_address(text).packed


FAMILIES = pytest.mark.parametrize("is_v6", [False, True], ids=["ipv4", "ipv6"])
WAN, LAN0, LAN1 = 0, 1, 2
PORT = 5004
ADDRESSES = {
    False: ("10.0.0.2", "239.1.2.3", "232.1.2.3"),
    True: ("fd00::2", "ff15::1:3", "ff35::8000:1"),
}


@pytest.fixture
def net() -> Iterator[tuple[netns.Namespace, netns.Namespace, list[netns.Namespace]]]:
    with netns.Topology() as topology:
        yield topology.proxy(2)


Net = tuple[netns.Namespace, netns.Namespace, list[netns.Namespace]]


def router(box: netns.Namespace, *, is_v6: bool, table: int | None = None) -> MulticastSocket:
    family = socket.AF_INET6 if is_v6 else socket.AF_INET
    made = box.call(lambda: MulticastSocket(family, table))
    for vif, name in enumerate(("wan", "lan0", "lan1")):
        made.add_vif(vif, box.index(name))
    return made


def upcall(made: MulticastSocket, *, is_v6: bool) -> Unrouted:
    """The next upcall: packets of membership are passed over."""
    while True:
        assert select.select([made], [], [], 5)[0], "no upcall"
        found = read_upcall(made.socket.recv(2048), is_v6=is_v6)
        if found is not None:
            return found


@FAMILIES
def test_a_route_is_asked_for_and_forwards_what_waited(net: Net, is_v6: bool) -> None:
    source, box, hosts = net
    origin, group, _ = ADDRESSES[is_v6]
    made = router(box, is_v6=is_v6)
    sink = netns.join(hosts[0], "eth0", group, PORT)
    out = netns.sender(source, "eth0", is_v6=is_v6)
    out.sendto(b"first", (group, PORT))
    assert upcall(made, is_v6=is_v6) == Unrouted(Upcall.NO_ROUTE, WAN, packed(origin), packed(group))
    made.add_route(packed(origin), packed(group), WAN, [LAN0])
    out.sendto(b"second", (group, PORT))
    assert [sink.recv(100) for _ in range(2)] == [b"first", b"second"]
    # Replaced in one step, and taken away.
    made.add_route(packed(origin), packed(group), WAN, [LAN1])
    other = netns.join(hosts[1], "eth0", group, PORT)
    out.sendto(b"third", (group, PORT))
    assert other.recv(100) == b"third"
    made.delete_route(packed(origin), packed(group), WAN)
    made.delete_route(packed(origin), packed(group), WAN)
    out.sendto(b"fourth", (group, PORT))
    assert upcall(made, is_v6=is_v6).kind is Upcall.NO_ROUTE
    for each in (made, sink, other, out):
        each.close()


@FAMILIES
def test_a_route_for_any_source_needs_no_upcall(net: Net, is_v6: bool) -> None:
    source, box, hosts = net
    origin, group, _ = ADDRESSES[is_v6]
    made = router(box, is_v6=is_v6)
    made.add_route(None, packed(group), WAN, [LAN0])
    sink = netns.join(hosts[0], "eth0", group, PORT)
    out = netns.sender(source, "eth0", is_v6=is_v6)
    for each in range(20):
        out.sendto(bytes([each]), (group, PORT))
    assert [sink.recv(100)[0] for _ in range(20)] == list(range(20))
    # A source with an entry of its own is an exception.
    made.add_route(packed(origin), packed(group), WAN, [])
    out.sendto(b"refused", (group, PORT))
    made.delete_route(packed(origin), packed(group), WAN)
    out.sendto(b"wanted", (group, PORT))
    assert sink.recv(100) == b"wanted"
    made.delete_route(None, packed(group), WAN)
    out.sendto(b"unrouted", (group, PORT))
    # The one upcall: all that came before had its route.
    assert upcall(made, is_v6=is_v6) == Unrouted(Upcall.NO_ROUTE, WAN, packed(origin), packed(group))
    for each in (made, sink, out):
        each.close()


@FAMILIES
def test_packets_on_the_wrong_interface_are_told(net: Net, is_v6: bool) -> None:
    _, box, hosts = net
    _, group, _ = ADDRESSES[is_v6]
    made = router(box, is_v6=is_v6)
    host = packed("fd00:1:0::2" if is_v6 else "10.1.0.2")
    made.add_route(host, packed(group), WAN, [LAN1])
    out = netns.sender(hosts[0], "eth0", is_v6=is_v6)
    out.sendto(b"from below", (group, PORT))
    assert upcall(made, is_v6=is_v6) == Unrouted(Upcall.WRONG_INTERFACE, LAN0, host, packed(group))
    out.close()
    made.close()


@FAMILIES
def test_one_router_each_table(net: Net, is_v6: bool) -> None:
    _, box, _ = net
    first = router(box, is_v6=is_v6)
    with pytest.raises(MulticastRoutingError) as refused:
        router(box, is_v6=is_v6)
    assert refused.value.kind == "busy"
    beside = router(box, is_v6=is_v6, table=1234)
    beside.close()
    first.close()
    router(box, is_v6=is_v6).close()


@FAMILIES
def test_a_duplicate_keeps_the_routes(net: Net, is_v6: bool) -> None:
    """What the keeper process relies on."""
    source, box, hosts = net
    origin, group, _ = ADDRESSES[is_v6]
    made = router(box, is_v6=is_v6)
    made.add_route(packed(origin), packed(group), WAN, [LAN0])
    kept = made.socket.dup()
    made.close()
    sink = netns.join(hosts[0], "eth0", group, PORT)
    out = netns.sender(source, "eth0", is_v6=is_v6)
    out.sendto(b"still", (group, PORT))
    assert sink.recv(100) == b"still"
    kept.close()
    shown = box.read("/proc/net/ip6_mr_cache" if is_v6 else "/proc/net/ip_mr_cache")
    assert len(shown.splitlines()) == 1
    for each in (sink, out):
        each.close()


@FAMILIES
def test_deleting_what_went_with_its_interface_is_fine(net: Net, is_v6: bool) -> None:
    _, box, _ = net
    made = router(box, is_v6=is_v6)
    box.ip("link", "del", "lan1")
    made.delete_vif(LAN1)
    made.delete_vif(LAN0)
    with pytest.raises(OSError, match=r"."):
        made.add_vif(5, 9999)
    made.close()


def test_no_upcall_is_read_from_packets() -> None:
    assert read_upcall(b"", is_v6=False) is None
    assert read_upcall(bytes(19), is_v6=False) is None
    assert read_upcall(bytes(8) + b"\x01\x02" + bytes(20), is_v6=False) is None
    assert read_upcall(bytes(8) + b"\x09\x00" + bytes(20), is_v6=False) is None
    assert read_upcall(b"\x8f" + bytes(60), is_v6=True) is None
    assert read_upcall(b"\x00\x07" + bytes(60), is_v6=True) is None
    assert read_upcall(bytes(39), is_v6=True) is None
