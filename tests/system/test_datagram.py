"""Sockets of relays, in namespaces: what is joined is what the kernel tells its router, what is sent has the marks."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator

import netns
import pytest

from accelerator.errors import AcceleratorError
from accelerator.io.datagram import Membership, destination_row, join, leave, open_input, open_output
from ext.relay_plane import DESTINATION_BYTES

REASON = netns.why_not()
pytestmark = [pytest.mark.netns, pytest.mark.skipif(REASON is not None, reason=str(REASON))]


@pytest.fixture
def places() -> Iterator[tuple[netns.Namespace, netns.Namespace, netns.Namespace]]:
    with netns.Topology() as topology:
        source, box, (host,) = topology.proxy()
        yield source, box, host


Places = tuple[netns.Namespace, netns.Namespace, netns.Namespace]


def heard(made: socket.socket, wait_s: float = 0.3) -> list[bytes]:
    made.settimeout(wait_s)
    found = []
    try:
        while True:
            found.append(made.recv(2000))
    except TimeoutError:
        return found


@pytest.mark.parametrize(
    ("group", "other", "source", "stranger"),
    [("239.7.7.7", "239.7.7.8", "10.0.0.2", "10.0.0.3"), ("ff1e::7", "ff1e::8", "fd00::2", "fd00::3")],
)
def test_an_input_hears_its_own_membership_only(
    places: Places, group: str, other: str, source: str, stranger: str
) -> None:
    head, box, _ = places
    is_v6 = ":" in group
    head.ip("addr", "add", stranger + ("/64" if is_v6 else "/24"), "dev", "eth0", *(["nodad"] if is_v6 else []))
    membership = Membership(group, "wan", (source,))
    incoming = box.call(lambda: open_input(group, 5004, interface="wan"))
    neighbour = box.call(lambda: open_input(other, 5004))
    senders = []
    for address in (source, stranger):
        out = head.call(lambda: open_output(is_v6=is_v6, interface="eth0", ttl=4))
        out.close()
        made = netns.sender(head, "eth0", is_v6=is_v6)
        made.bind((address, 0))
        senders.append(made)

    def send(text: bytes) -> None:
        for made, who in zip(senders, (b" source", b" stranger"), strict=True):
            made.sendto(text + who, (group, 5004))

    try:
        box.call(lambda: join(neighbour, Membership(other, "wan")))
        send(b"before")
        assert heard(incoming) == []
        box.call(lambda: join(incoming, membership))
        box.call(lambda: join(incoming, membership))  # twice is once
        send(b"joined")
        assert heard(incoming) == [b"joined source"]
        assert heard(neighbour) == []
        box.call(lambda: leave(incoming, membership))
        box.call(lambda: leave(incoming, membership))
        send(b"left")
        assert heard(incoming) == []
        box.call(lambda: join(incoming, Membership(group, "wan")))
        send(b"any")
        assert sorted(heard(incoming)) == [b"any source", b"any stranger"]
    finally:
        for made in (incoming, neighbour, *senders):
            made.close()


def test_memberships_are_what_the_kernel_tells(places: Places) -> None:
    _, box, _ = places
    made = box.call(lambda: open_input("232.1.1.1", 5004))
    box.call(lambda: join(made, Membership("232.1.1.1", "wan", ("10.0.0.2", "10.0.0.9"))))
    filters = [line.split() for line in box.read("/proc/net/mcfilter").splitlines()[1:]]
    assert sorted(row[3] for row in filters if row[1] == "wan") == ["0x0a000002", "0x0a000009"]
    box.call(lambda: leave(made, Membership("232.1.1.1", "wan", ("10.0.0.9",))))
    filters = [line.split() for line in box.read("/proc/net/mcfilter").splitlines()[1:]]
    assert [row[3] for row in filters if row[1] == "wan"] == ["0x0a000002"]
    made.close()
    assert len(box.read("/proc/net/mcfilter").splitlines()) == 1


@pytest.mark.parametrize("is_v6", [False, True])
def test_an_output_has_ttl_dscp_interface_and_source_port(places: Places, is_v6: bool) -> None:
    _, box, host = places
    group = "ff1e::9" if is_v6 else "239.9.9.9"
    listening = netns.join(host, "eth0", group, 6000)
    if is_v6:
        listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVHOPLIMIT, 1)
        listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVTCLASS, 1)
    else:
        listening.setsockopt(socket.IPPROTO_IP, 12, 1)  # IP_RECVTTL
        listening.setsockopt(socket.IPPROTO_IP, 13, 1)  # IP_RECVTOS
    own = netns.join(box, "lan0", group, 6000)
    out = box.call(lambda: open_output(is_v6=is_v6, interface="lan0", ttl=8, dscp=34, source_port=7001))
    box.call(lambda: out.sendto(b"x", (group, 6000)))
    data, control, _, sender = listening.recvmsg(100, 200)
    assert data == b"x"
    assert sender[1] == 7001
    numbers = sorted(int.from_bytes(value[:4], "little") for _, _, value in control)
    assert numbers == [8, 34 << 2]
    assert heard(own) == []
    for made in (listening, own, out):
        made.close()


def test_what_can_not_be_opened_is_told_in_one_line(places: Places) -> None:
    _, box, _ = places
    with pytest.raises(AcceleratorError, match="no interface 'nowhere0'"):
        box.call(lambda: open_output(interface="nowhere0"))
    made = box.call(lambda: open_input("239.1.1.1", 5004))
    with pytest.raises(AcceleratorError, match="no interface"):
        box.call(lambda: join(made, Membership("239.1.1.1", "nowhere0")))
    box.call(lambda: open_input("10.9.9.9", 5004)).close()  # an address that may come later
    taken = box.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    taken.bind(("10.0.0.1", 5004))
    with pytest.raises(AcceleratorError, match="Address already in use"):
        box.call(lambda: open_input("10.0.0.1", 5004))
    for wrong in ({"ttl": 0}, {"ttl": 256}, {"dscp": 64}):
        with pytest.raises(ValueError, match="ttl"):
            open_output(**wrong)  # type: ignore[arg-type]
    made.close()
    taken.close()


def test_rows_have_the_size_that_the_worker_reads() -> None:
    assert len(destination_row("10.1.2.3", 5004)) == len(destination_row("fd00::1", 5004)) == DESTINATION_BYTES
    family, port, address = struct.unpack("=H2s4s", destination_row("10.1.2.3", 5004)[:8])
    assert (family, port, address) == (socket.AF_INET, b"\x13\x8c", bytes([10, 1, 2, 3]))
    with pytest.raises(ValueError, match="port"):
        destination_row("10.1.2.3", 0)
