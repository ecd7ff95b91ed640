"""IGMP and MLD on the wire: scapy reads what we write, we read what scapy writes, every length and count one off."""

from __future__ import annotations

import socket
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.igmp import IGMP_MR, IGMPv2_LG, IGMPv2_MR, IGMPv3_MQ, IGMPv3_MR, IGMPv3_MR_Group
from scapy.layers.inet import IP, IPOption_Router_Alert
from scapy.layers.inet6 import (
    ICMPv6MLDMultAddrRec,
    ICMPv6MLQuery,
    ICMPv6MLQuery2,
    ICMPv6MLReport,
    ICMPv6MLReport2,
    IPv6,
    IPv6ExtHdrHopByHop,
    RouterAlert,
)
from scapy.packet import Raw

from accelerator.protocols import igmp, mld
from accelerator.protocols.membership.messages import Drop, Heard, Kind, Leave, Query, Record, Report
from accelerator.protocols.membership.wire import checksum, decode_code, encode_code


def packed(text: str) -> bytes:
    return ip_address(text).packed


US, GROUP, SSM_GROUP = packed("10.0.0.1"), packed("239.1.2.3"), packed("232.1.2.3")
S1, S2, S3 = packed("192.0.2.1"), packed("192.0.2.2"), packed("198.51.100.3")
US6, GROUP6, ALL6 = packed("fe80::1"), packed("ff3e::8000:1"), packed("ff02::16")
T1, T2 = packed("2001:db8::1"), packed("2001:db8::2")
REPORT = Report(
    3,
    (
        Record(Kind.IS_INCLUDE, SSM_GROUP, frozenset({S1, S2})),
        Record(Kind.TO_EXCLUDE, GROUP),
        Record(Kind.BLOCK, GROUP, frozenset({S3})),
    ),
)
REPORT6 = Report(3, (Record(Kind.ALLOW, GROUP6, frozenset({T1, T2})), Record(Kind.IS_EXCLUDE, packed("ff15::7"))))
QUERY = Query(3, 1.0, SSM_GROUP, frozenset({S1, S3}), suppress=True, robustness=2, interval_s=125.0)
QUERY6 = Query(3, 1.0, GROUP6, frozenset({T1}), suppress=True, robustness=2, interval_s=125.0)


def read6(data: bytes, destination: bytes = ALL6, sender: bytes = US6, hops: int = 1) -> Heard | Drop:
    return mld.read(data, sender, destination, hops, mld.HOP_BY_HOP)


@pytest.mark.parametrize(
    "message",
    [
        REPORT,
        QUERY,
        Query(3, 10.0, None, robustness=2, interval_s=125.0),
        Query(3, 0.0, GROUP, robustness=7, interval_s=31744.0),
        Query(2, 10.0, None),
        Query(2, 1.0, GROUP),
        Query(1, 10.0, None),
        Report(2, (Record(Kind.IS_EXCLUDE, GROUP),)),
        Report(1, (Record(Kind.IS_EXCLUDE, GROUP),)),
        Leave(GROUP),
    ],
)
def test_igmp_read_back_is_what_was_written(message: Query | Report | Leave) -> None:
    (packet,) = igmp.write(message, US)
    assert igmp.read(packet.data) == Heard(US, message)
    header = IP(packet.data)
    assert (header.ttl, header.tos, header.proto, header.flags, header.dst) == (
        1,
        0xC0,
        2,
        "DF",
        socket.inet_ntoa(packet.destination),
    )
    assert [type(option) for option in header.options] == [IPOption_Router_Alert]
    assert checksum(packet.data[:24]) == 0
    assert checksum(packet.data[24:]) == 0


@pytest.mark.parametrize(
    "message",
    [
        REPORT6,
        QUERY6,
        Query(3, 10.0, None, robustness=2, interval_s=125.0),
        Query(2, 10.0, None),
        Query(2, 1.0, GROUP6),
        Report(2, (Record(Kind.IS_EXCLUDE, GROUP6),)),
        Leave(GROUP6),
    ],
)
def test_mld_read_back_is_what_was_written(message: Query | Report | Leave) -> None:
    (packet,) = mld.write(message, US6)
    assert read6(packet.data, packet.destination) == Heard(US6, message)


def test_scapy_reads_our_igmpv3() -> None:
    (packet,) = igmp.write(REPORT, US)
    report = IGMPv3_MR(packet.data[24:])
    assert (report.type, report.numgrp, packet.destination) == (0x22, 3, igmp.ALL_V3_ROUTERS)
    assert [(one.rtype, one.maddr, one.srcaddrs) for one in report.records] == [
        (1, "232.1.2.3", ["192.0.2.1", "192.0.2.2"]),
        (4, "239.1.2.3", []),
        (6, "239.1.2.3", ["198.51.100.3"]),
    ]
    (packet,) = igmp.write(QUERY, US)
    query = IGMPv3_MQ(packet.data[24:])
    assert (query.type, query.mrcode, packet.destination) == (0x11, 10, SSM_GROUP)
    assert (query.gaddr, query.s, query.qrv, query.qqic, query.srcaddrs) == (
        "232.1.2.3",
        1,
        2,
        encode_code(125, 4),
        ["192.0.2.1", "198.51.100.3"],
    )


def test_scapy_reads_our_mldv2() -> None:
    (packet,) = mld.write(REPORT6, US6)
    whole = IPv6(src="fe80::1", dst="ff02::16", hlim=1) / IPv6ExtHdrHopByHop(options=[RouterAlert()])
    report = ICMPv6MLReport2(packet.data)
    first = report.records[0]
    # scapy reads the second record as the first one's payload, in its own packets too.
    assert [(one.rtype, one.dst, one.sources) for one in (first, first.payload)] == [
        (5, "ff3e::8000:1", ["2001:db8::1", "2001:db8::2"]),
        (2, "ff15::7", []),
    ]
    # The checksum as scapy computes it.
    del report.cksum
    assert bytes(whole / report)[48:] == packet.data
    assert bytes(whole)[40:] == bytes((whole[IPv6ExtHdrHopByHop].nh, *mld.HOP_BY_HOP[1:]))
    (packet,) = mld.write(QUERY6, US6)
    query = ICMPv6MLQuery2(packet.data)
    assert (query.mrd, query.mladdr, query.S, query.QRV, query.QQIC, query.sources, packet.destination) == (
        1000,
        "ff3e::8000:1",
        1,
        2,
        encode_code(125, 4),
        ["2001:db8::1"],
        GROUP6,
    )


def from_scapy(message: object, **header: object) -> bytes:
    return bytes(IP(**{"src": "10.0.0.1", "dst": "224.0.0.22", "ttl": 1, "proto": 2, **header}) / message)


def test_we_read_scapys_igmp() -> None:
    alert = {"options": [IPOption_Router_Alert()]}
    report = IGMPv3_MR(
        records=[
            IGMPv3_MR_Group(rtype=3, maddr="239.1.2.3"),
            IGMPv3_MR_Group(rtype=5, maddr="232.1.2.3", srcaddrs=["192.0.2.1"]),
        ]
    )
    assert igmp.read(from_scapy(report, **alert)) == Heard(
        US, Report(3, (Record(Kind.TO_INCLUDE, GROUP), Record(Kind.ALLOW, SSM_GROUP, frozenset({S1}))))
    )
    query = IGMPv3_MQ(mrcode=10, gaddr="232.1.2.3", s=1, qrv=2, qqic=20, srcaddrs=["192.0.2.1"])
    assert igmp.read(from_scapy(query, **alert)) == Heard(
        US, Query(3, 1.0, SSM_GROUP, frozenset({S1}), suppress=True, robustness=2, interval_s=20.0)
    )
    assert igmp.read(from_scapy(IGMPv2_MR(gaddr="239.1.2.3"), **alert)) == Heard(
        US, Report(2, (Record(Kind.IS_EXCLUDE, GROUP),))
    )
    assert igmp.read(from_scapy(IGMPv2_LG(gaddr="239.1.2.3"), **alert)) == Heard(US, Leave(GROUP))


def test_we_read_scapys_mld() -> None:
    def payload(message: object) -> bytes:
        return bytes(IPv6(src="fe80::1", dst="ff02::16") / IPv6ExtHdrHopByHop(options=[RouterAlert()]) / message)[48:]

    report = ICMPv6MLReport2(
        records=[ICMPv6MLDMultAddrRec(rtype=1, dst="ff3e::8000:1", sources=["2001:db8::1", "2001:db8::2"])]
    )
    assert read6(payload(report)) == Heard(US6, Report(3, (Record(Kind.IS_INCLUDE, GROUP6, frozenset({T1, T2})),)))
    assert read6(payload(ICMPv6MLReport(mladdr="ff3e::8000:1"))) == Heard(
        US6, Report(2, (Record(Kind.IS_EXCLUDE, GROUP6),))
    )
    assert read6(payload(ICMPv6MLQuery(mrd=1000))) == Heard(US6, Query(2, 1.0))


def resummed(packet: bytes, at: int, new: bytes) -> bytes:
    """The packet with `new` at `at`, its IGMP checksum right again."""
    data = bytearray(packet)
    data[at : at + len(new)] = new
    header = 4 * (data[0] & 15)
    data[header + 2 : header + 4] = bytes(2)
    data[header + 2 : header + 4] = checksum(bytes(data[header:])).to_bytes(2)
    return bytes(data)


REPORT_BYTES = igmp.write(REPORT, US)[0].data
QUERY_BYTES = igmp.write(QUERY, US)[0].data
V2_BYTES = igmp.write(Report(2, (Record(Kind.IS_EXCLUDE, GROUP),)), US)[0].data


@pytest.mark.parametrize(
    ("packet", "reason"),
    [
        (b"", Drop.IP_HEADER),
        (REPORT_BYTES[:19], Drop.IP_HEADER),
        (b"\x65" + REPORT_BYTES[1:], Drop.IP_HEADER),
        (b"\x44" + REPORT_BYTES[1:], Drop.IP_HEADER),
        (REPORT_BYTES[:9] + b"\x11" + REPORT_BYTES[10:], Drop.IP_HEADER),
        (REPORT_BYTES[:-1], Drop.TRUNCATED),
        (REPORT_BYTES[:6] + b"\x20\x00" + REPORT_BYTES[8:], Drop.FRAGMENT),
        (REPORT_BYTES[:6] + b"\x00\x01" + REPORT_BYTES[8:], Drop.FRAGMENT),
        (REPORT_BYTES[:8] + b"\x02" + REPORT_BYTES[9:], Drop.HOPS),
        (REPORT_BYTES[:20] + b"\x00" + REPORT_BYTES[21:], Drop.NO_ROUTER_ALERT),
        (REPORT_BYTES[:21] + b"\x05" + REPORT_BYTES[22:], Drop.NO_ROUTER_ALERT),
        (REPORT_BYTES[:26] + b"\x00\x00" + REPORT_BYTES[28:], Drop.CHECKSUM),
        (resummed(REPORT_BYTES, 30, b"\x00\x04"), Drop.TRUNCATED),  # a record more than there is
        (resummed(REPORT_BYTES, 34, b"\x00\xff"), Drop.TRUNCATED),  # sources beyond the end
        (resummed(REPORT_BYTES, 33, b"\xff"), Drop.TRUNCATED),  # auxiliary data beyond the end
        (resummed(REPORT_BYTES, 36, b"\x0a"), Drop.NOT_MULTICAST),
        (resummed(REPORT_BYTES, 40, b"\xe0"), Drop.BAD_SOURCE),
        (resummed(QUERY_BYTES, 34, b"\x00\x03"), Drop.TRUNCATED),
        (resummed(QUERY_BYTES, 28, bytes(4)), Drop.SOURCES_WITHOUT_GROUP),
        (resummed(QUERY_BYTES, 28, b"\x0a"), Drop.NOT_MULTICAST),
        (resummed(V2_BYTES, 24, b"\x13"), Drop.UNKNOWN_TYPE),
        (resummed(V2_BYTES, 28, b"\x0a"), Drop.NOT_MULTICAST),
    ],
)
def test_igmp_bad_input_is_dropped_by_name(packet: bytes, reason: Drop) -> None:
    assert igmp.read(packet) is reason


@pytest.mark.parametrize("length", range(12))
def test_igmp_queries_of_odd_lengths(length: int) -> None:
    """RFC 9776 section 7.1: 8 bytes are version 1 or 2, 12 and more version 3, all else is dropped."""
    message = QUERY_BYTES[24 : 24 + length]
    message = message[:2] + bytes(2) + message[4:]
    if length >= 4:
        message = message[:2] + checksum(message).to_bytes(2) + message[4:]
    packet = QUERY_BYTES[:2] + (24 + length).to_bytes(2) + QUERY_BYTES[4:24] + message
    heard = igmp.read(packet)
    if length == 8:
        assert isinstance(heard, Heard)
        assert heard.message == Query(2, 1.0, SSM_GROUP)
    else:
        assert heard is Drop.LENGTH


def test_trailing_and_auxiliary_data_are_passed_over() -> None:
    record = bytes((1, 1, 0, 1)) + SSM_GROUP + S1 + b"aux!" + bytes((9, 0, 0, 0)) + GROUP + bytes((4, 0, 0, 0)) + GROUP
    body = bytes((0x22, 0, 0, 0, 0, 0, 0, 3)) + record + b"trailing"
    body = body[:2] + checksum(body).to_bytes(2) + body[4:]
    packet = REPORT_BYTES[:2] + (24 + len(body)).to_bytes(2) + REPORT_BYTES[4:24] + body
    # The record of unknown type 9 is left out, its neighbours count (RFC 9776 section 4.2.12).
    assert igmp.read(packet + b"ethernet padding") == Heard(
        US, Report(3, (Record(Kind.IS_INCLUDE, SSM_GROUP, frozenset({S1})), Record(Kind.TO_EXCLUDE, GROUP)))
    )


def test_version_1_needs_no_router_alert_and_others_may_be_let_off() -> None:
    plain = IP(src="10.0.0.1", dst="239.1.2.3", ttl=1, proto=2)
    v1 = bytes(plain) + bytes(IGMP_MR(gaddr="239.1.2.3"))
    v1 = v1[:2] + (28).to_bytes(2) + v1[4:]
    assert igmp.read(v1) == Heard(US, Report(1, (Record(Kind.IS_EXCLUDE, GROUP),)))
    v2 = v1[:20] + bytes(IGMPv2_MR(gaddr="239.1.2.3"))
    assert igmp.read(v2) is Drop.NO_ROUTER_ALERT
    assert isinstance(igmp.read(v2, needs_router_alert=False), Heard)


def resummed6(data: bytes, at: int, new: bytes) -> bytes:
    message = bytearray(data)
    message[at : at + len(new)] = new
    message[2:4] = bytes(2)
    pseudo = US6 + ALL6 + len(message).to_bytes(4) + bytes((0, 0, 0, 58))
    message[2:4] = checksum(pseudo + bytes(message)).to_bytes(2)
    return bytes(message)


REPORT6_BYTES = mld.write(REPORT6, US6)[0].data
QUERY6_BYTES = mld.write(QUERY6, US6)[0].data


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", Drop.LENGTH),
        (REPORT6_BYTES[:7], Drop.LENGTH),
        (REPORT6_BYTES[:2] + bytes(2) + REPORT6_BYTES[4:], Drop.CHECKSUM),
        (resummed6(REPORT6_BYTES, 6, b"\x00\x03"), Drop.TRUNCATED),
        (resummed6(REPORT6_BYTES, 10, b"\x00\x09"), Drop.TRUNCATED),
        (resummed6(REPORT6_BYTES, 9, b"\xff"), Drop.TRUNCATED),
        (resummed6(REPORT6_BYTES, 12, b"\x20"), Drop.NOT_MULTICAST),
        (resummed6(REPORT6_BYTES, 28, bytes(16)), Drop.BAD_SOURCE),
        (resummed6(REPORT6_BYTES, 0, b"\x88"), Drop.UNKNOWN_TYPE),
        (resummed6(QUERY6_BYTES, 26, b"\x00\x02"), Drop.TRUNCATED),
        (resummed6(QUERY6_BYTES, 8, bytes(16)), Drop.SOURCES_WITHOUT_GROUP),
        (resummed6(QUERY6_BYTES[:27], 2, b""), Drop.LENGTH),
        (resummed6(QUERY6_BYTES[:23], 2, b""), Drop.LENGTH),
    ],
)
def test_mld_bad_input_is_dropped_by_name(data: bytes, reason: Drop) -> None:
    assert read6(data) is reason


def test_mld_from_afar_is_dropped() -> None:
    assert read6(REPORT6_BYTES, hops=2) is Drop.HOPS
    assert read6(REPORT6_BYTES, sender=T1) is Drop.NOT_LINK_LOCAL
    assert read6(REPORT6_BYTES, sender=bytes(16)) is Drop.NOT_LINK_LOCAL  # RFC 9777 section 5.2.13
    for header in (None, b"", bytes((58, 0, 1, 4, 0, 0, 0, 0)), bytes((58, 1, 5, 2, 0, 0, 1, 0))):
        assert mld.read(REPORT6_BYTES, US6, ALL6, 1, header) is Drop.NO_ROUTER_ALERT
    padded_first = bytes((58, 0, 1, 0, 5, 2, 0, 0))
    assert isinstance(mld.read(REPORT6_BYTES, US6, ALL6, 1, padded_first), Heard)


@given(st.integers(0, 40_000), st.just(4))
def test_codes_never_wait_longer_than_meant(value: int, bits: int) -> None:
    code = encode_code(value, bits)
    assert 0 <= code <= 255
    assert decode_code(code, bits) <= value
    assert code == 255 or value < decode_code(code + 1, bits)


def test_code_vectors() -> None:
    """RFC 9776 section 4.1.1, RFC 9777 section 5.1.3: the bounds of each form."""
    assert [decode_code(code, 4) for code in (0, 127, 128, 143, 255)] == [0, 127, 128, 248, 31744]
    assert [decode_code(code, 12) for code in (0, 32767, 32768, 65535)] == [0, 32767, 32768, 8387584]
    for code in range(65536):
        assert encode_code(decode_code(code, 12), 12) == code
    assert encode_code(10**9, 12) == 65535


def addresses(n: int) -> frozenset[bytes]:
    return frozenset((10 << 24 | each).to_bytes(4) for each in range(1, n + 1))


@pytest.mark.parametrize("mtu", [576, 1280, 1500, 9000])
def test_reports_are_split_at_the_mtu_and_mean_the_same(mtu: int) -> None:
    records = [Record(Kind.IS_INCLUDE, (0xE8010000 | each).to_bytes(4), addresses(each)) for each in range(1, 60)]
    records.append(Record(Kind.TO_INCLUDE, SSM_GROUP, addresses(3000)))
    packets = igmp.write(Report(3, tuple(records)), US, mtu)
    read: dict[bytes, set[bytes]] = {}
    kinds: list[Kind] = []
    for packet in packets:
        assert len(packet.data) <= mtu
        heard = igmp.read(packet.data)
        assert isinstance(heard, Heard)
        assert isinstance(heard.message, Report)
        for record in heard.message.records:
            read.setdefault(record.group, set()).update(record.sources)
            if record.group == SSM_GROUP:
                kinds.append(record.kind)
    assert {group: frozenset(sources) for group, sources in read.items()} == {r.group: r.sources for r in records}
    # A second TO_INCLUDE would make the router ask for the first one's sources.
    assert kinds == [Kind.TO_INCLUDE] + [Kind.ALLOW] * (len(kinds) - 1)


def test_an_excluded_list_that_does_not_fit_is_cut() -> None:
    """RFC 9776 section 4.2.16: one record with what fits; two would replace each other."""
    (packet,) = igmp.write(Report(3, (Record(Kind.TO_EXCLUDE, GROUP, addresses(1000)),)), US, 1500)
    heard = igmp.read(packet.data)
    assert isinstance(heard, Heard)
    assert isinstance(heard.message, Report)
    (record,) = heard.message.records
    assert record.sources == frozenset(sorted(addresses(1000))[: (1500 - 24 - 8 - 8) // 4])


def test_queries_are_split_at_the_mtu() -> None:
    packets = igmp.write(Query(3, 1.0, SSM_GROUP, addresses(1000)), US, 1500)
    heard = [igmp.read(packet.data) for packet in packets]
    asked = [one.message.sources for one in heard if isinstance(one, Heard) and isinstance(one.message, Query)]
    assert frozenset().union(*asked) == addresses(1000)
    assert sum(map(len, asked)) == 1000
    packets = mld.write(Query(3, 1.0, GROUP6, frozenset(packed("2001:db8::")[:12] + s for s in addresses(500))), US6)
    assert len(packets) == 6
    assert all(len(packet.data) + 48 <= 1500 for packet in packets)


@given(st.binary(max_size=65))
def test_the_checksum_is_the_sum_of_words(data: bytes) -> None:
    padded = data + bytes(len(data) % 2)
    total = sum(int.from_bytes(padded[at : at + 2]) for at in range(0, len(padded), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    assert checksum(data) == 0xFFFF - total


def test_raw_padding_of_scapy_is_no_message() -> None:
    assert igmp.read(from_scapy(Raw(b"\x22"), options=[IPOption_Router_Alert()])) is Drop.LENGTH
