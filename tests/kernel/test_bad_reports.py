"""What hosts must not say, said by raw sockets to a netd that runs: each is dropped, counted by its name for its
interface, and changes nothing."""

from __future__ import annotations

import socket
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import netns
import pytest
from netd_box import NetdBox, wait_for

from accelerator.protocols import igmp, mld
from accelerator.protocols.membership.messages import Drop, Kind, Query, Record, Report
from accelerator.protocols.membership.wire import checksum

pytestmark = [pytest.mark.netns, pytest.mark.skipif(bool(netns.why_not()), reason=netns.why_not() or "")]

HEADER = 24
PROXY: dict[str, object] = {
    "name": "tv",
    "upstream": "wan",
    "downstream": ["lan0"],
    "groups": ["239.0.0.0/8", "232.0.0.0/8", "ff15::/16", "ff35::/16"],
    "sources": ["10.0.0.0/8", "fd00::/8"],
    "n_groups_max": 2,
}
US = "10.1.0.2"
packed = socket.inet_aton


@pytest.fixture
def net(tmp_path: Path) -> Iterator[tuple[netns.Namespace, NetdBox]]:
    with netns.Topology() as topology:
        _, box, hosts = topology.proxy(1)
        with NetdBox(box, tmp_path) as netd:
            netd.desire(PROXY)
            netd.ready()
            yield hosts[0], netd


def report(kind: Kind, group: str, *sources: str, sender: str = US) -> bytes:
    record = Record(kind, packed(group), frozenset(map(packed, sources)))
    return igmp.write(Report(3, (record,)), packed(sender))[0].data


def altered(packet: bytes, at: int, *values: int) -> bytes:
    """Bytes of the message replaced, its checksum right again."""
    message = bytearray(packet[HEADER:])
    message[at : at + len(values)] = values
    message[2:4] = bytes(2)
    message[2:4] = checksum(bytes(message)).to_bytes(2)
    return packet[:HEADER] + bytes(message)


def shortened(packet: bytes, size: int) -> bytes:
    message = packet[HEADER : HEADER + size]
    return packet[:2] + (HEADER + size).to_bytes(2) + packet[4:HEADER] + message


GOOD = report(Kind.ALLOW, "232.1.2.3", "10.0.0.2")
# IHL 5 and no option: Router Alert is the only one that we write.
NO_ALERT = b"\x45" + GOOD[1:2] + (len(GOOD) - 4).to_bytes(2) + GOOD[4:20] + GOOD[HEADER:]
BAD4: list[tuple[bytes, Drop]] = [
    (altered(GOOD, 6, 0, 9), Drop.TRUNCATED),  # nine records
    (altered(GOOD, 10, 1, 0), Drop.TRUNCATED),  # 256 sources
    (altered(GOOD, 9, 200), Drop.TRUNCATED),  # auxiliary data
    (shortened(GOOD, 7), Drop.LENGTH),
    (GOOD[:-1] + b"\x09", Drop.CHECKSUM),
    (GOOD[:8] + b"\x02" + GOOD[9:], Drop.HOPS),
    (NO_ALERT, Drop.NO_ROUTER_ALERT),
    (altered(GOOD, 0, 0x99), Drop.UNKNOWN_TYPE),
    (altered(GOOD, 12, 10), Drop.NOT_MULTICAST),
    (altered(GOOD, 16, 224), Drop.BAD_SOURCE),
    (report(Kind.ALLOW, "232.1.2.3", "10.0.0.2", sender="192.0.2.99"), Drop.OFF_LINK),
    (report(Kind.TO_EXCLUDE, "224.0.0.251"), Drop.LINK_SCOPE),
    (report(Kind.TO_EXCLUDE, "225.1.2.3"), Drop.GROUP_NOT_ALLOWED),
    (report(Kind.ALLOW, "232.1.2.3", "192.0.2.1"), Drop.SOURCE_NOT_ALLOWED),
    (report(Kind.TO_EXCLUDE, "232.1.2.3"), Drop.ANY_SOURCE_OF_SSM),
]


def say4(host: netns.Namespace, packets: list[bytes]) -> None:
    def opened() -> socket.socket:
        made = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
        index = socket.if_nametoindex("eth0")
        made.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, bytes(8) + struct.pack("=i", index))
        return made

    with host.call(opened) as out:
        for packet in packets:
            out.sendto(packet, ("224.0.0.22", 0))


def drops(netd: NetdBox, *, is_v6: bool = False) -> dict[str, int]:
    shown: dict[str, int] = netd.proxy(is_v6=is_v6)["downstreams"]["lan0"]["drops"]
    # The host's own kernel reports what it is in for itself.
    return {name: n for name, n in shown.items() if name != Drop.LINK_SCOPE.value} | {
        name: 1 for name, n in shown.items() if name == Drop.LINK_SCOPE.value and n
    }


def test_bad_igmp_is_dropped_by_name(net: tuple[netns.Namespace, NetdBox]) -> None:
    host, netd = net
    say4(host, [packet for packet, _ in BAD4])
    expected = dict(Counter(drop.value for _, drop in BAD4))
    wait_for(lambda: drops(netd) == expected, f"{expected}")
    assert netd.proxy()["routes"] == []
    assert netd.proxy()["asked_upstream"] == {}
    # What is right counts as ever; a third group is one too many.
    say4(host, [report(Kind.ALLOW, f"232.1.2.{each}", "10.0.0.2") for each in range(3)])
    wait_for(lambda: drops(netd).get("group-limit") == 1, "the limit")
    assert len(netd.proxy()["routes"]) == 2
    few = [f"10.0.{each >> 8}.{each & 255}" for each in range(600)]
    say4(host, [report(Kind.ALLOW, "232.1.2.0", *few[at : at + 300]) for at in (0, 300)])
    wait_for(lambda: drops(netd).get("source-limit") == 1, "the limit of sources")


def mld_socket() -> socket.socket:
    made = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
    made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, socket.if_nametoindex("eth0"))
    made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 1)
    made.setsockopt(socket.IPPROTO_IPV6, 54, mld.HOP_BY_HOP)
    return made


def test_a_forged_query_silenced_a_link_for_hours(net: tuple[netns.Namespace, NetdBox]) -> None:
    """31,744 s between two queries, robustness 7, from the lowest address of the link: we go on asking, it is counted
    by its name, and told once without its sender's address. One with usual times has the office, as the RFC says."""
    host, netd = net
    usual = igmp.write(Query(3, 10.0, robustness=2, interval_s=125.0), packed("10.1.0.0"))[0].data
    absurd = altered(usual, 8, 7, 255)
    say4(host, [absurd] * 20)
    wait_for(lambda: drops(netd).get("query-absurd") == 20, "the count")
    assert netd.proxy()["downstreams"]["lan0"]["is_querier"]
    assert not netd.events("querier-changed")
    (event,) = netd.events("query-absurd")
    assert "10.1.0.0/24" in event["message"]
    assert "other_present_max" in event["message"]
    say4(host, [usual, report(Kind.ALLOW, "232.1.2.3", "10.0.0.2")])
    wait_for(lambda: netd.proxy()["downstreams"]["lan0"]["querier"] == "10.1.0.0", "the other querier")
    wait_for(lambda: netd.proxy()["asked_upstream"], "a report counts as ever")


def test_a_forged_query_silenced_a_link_for_hours_over_ipv6(net: tuple[netns.Namespace, NetdBox]) -> None:
    host, netd = net
    message = bytearray(mld.write(Query(3, 10.0, robustness=7), bytes(16))[0].data)
    message[25] = 255
    # The lowest address of a link: the kernel computes the checksum.
    host.ip("addr", "add", "fe80::/64", "dev", "eth0", "nodad")

    def said() -> None:
        with mld_socket() as out:
            out.bind(("fe80::", 0, 0, socket.if_nametoindex("eth0")))
            out.sendto(bytes(message), ("ff02::1", 0))

    host.call(said)
    wait_for(lambda: drops(netd, is_v6=True).get("query-absurd") == 1, "the count")
    assert netd.proxy(is_v6=True)["downstreams"]["lan0"]["is_querier"]
    assert "fe80" not in netd.events("query-absurd")[0]["message"]


def test_one_host_filled_a_link_for_all(tmp_path: Path) -> None:
    """10,000 groups from one sender: it has as many as a host may have, the next host's join goes on working."""
    with netns.Topology() as topology:
        _, box, hosts = topology.proxy(1)
        with NetdBox(box, tmp_path) as netd:
            netd.desire({**PROXY, "n_groups_max": 4096, "n_groups_host_max": 100})
            netd.ready()
            groups = [f"239.{64 + (each >> 8)}.{each & 255}.1" for each in range(10_000)]
            for first in range(0, len(groups), 100):
                records = tuple(
                    Record(Kind.TO_EXCLUDE, packed(each), frozenset()) for each in groups[first : first + 100]
                )
                say4(hosts[0], [igmp.write(Report(3, records), packed("10.1.0.9"))[0].data])
            wait_for(lambda: drops(netd).get("group-limit-of-host") == 9900, "the limit of one host", 30)
            assert netd.proxy()["downstreams"]["lan0"]["groups"] >= 100
            (event,) = netd.events("group-limit-of-host")
            assert "10.1.0.0/24" in event["message"]
            with netns.join(hosts[0], "eth0", "239.5.5.5", 5004):
                wait_for(lambda: "239.5.5.5" in netd.proxy()["asked_upstream"], "another host's join")


def test_bad_mld_is_dropped_by_name(net: tuple[netns.Namespace, NetdBox]) -> None:
    host, netd = net
    group, source = (socket.inet_pton(socket.AF_INET6, text) for text in ("ff35::8000:1", "fd00::2"))
    message = mld.write(Report(3, (Record(Kind.ALLOW, group, frozenset((source,))),)), bytes(16))[0].data

    def opened(*, has_alert: bool = True, hops: int = 1) -> socket.socket:
        made = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, socket.if_nametoindex("eth0"))
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, hops)
        if has_alert:
            made.setsockopt(socket.IPPROTO_IPV6, 54, mld.HOP_BY_HOP)
        return made

    def from_afar() -> socket.socket:
        made = opened()
        made.bind(("fd00:1:0::2", 0))
        return made

    def say(how: Callable[[], socket.socket], data: bytes) -> None:
        with host.call(how) as out:
            out.sendto(data, ("ff02::16", 0))

    cases: list[tuple[Callable[[], socket.socket], bytes, Drop]] = [
        (opened, message[:6] + b"\0\x09" + message[8:], Drop.TRUNCATED),
        (opened, message[:9] + b"\xc8" + message[10:], Drop.TRUNCATED),
        (opened, message[:12] + b"\x20" + message[13:], Drop.NOT_MULTICAST),
        (lambda: opened(hops=2), message, Drop.HOPS),
        (lambda: opened(has_alert=False), message, Drop.NO_ROUTER_ALERT),
        (from_afar, message, Drop.NOT_LINK_LOCAL),
    ]
    for how, data, _ in cases:
        say(how, data)
    expected = dict(Counter(drop.value for *_, drop in cases))

    def is_counted() -> bool:
        shown = drops(netd, is_v6=True)
        return {name: n for name, n in shown.items() if name in expected} == expected

    wait_for(is_counted, f"{expected}")
    assert netd.proxy(is_v6=True)["routes"] == []
    say(opened, message)
    wait_for(lambda: len(netd.proxy(is_v6=True)["routes"]) == 1, "what is right counts")
