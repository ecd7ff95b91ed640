"""IGMP on the wire: whole IPv4 packets in and out, versions 1 (RFC 1112), 2 (RFC 2236) and 3 (RFC 9776). What the
messages mean is in protocols/membership."""

from __future__ import annotations

from collections.abc import Iterator

from accelerator.protocols.membership.messages import (
    Drop,
    Heard,
    Kind,
    Leave,
    Message,
    Packet,
    Query,
    Record,
    Report,
    is_multicast,
)
from accelerator.protocols.membership.wire import (
    checksum,
    decode_code,
    encode_code,
    read_records,
    read_sources,
    split_sources,
    write_records,
)

ALL_SYSTEMS = bytes((224, 0, 0, 1))
ALL_ROUTERS = bytes((224, 0, 0, 2))
ALL_V3_ROUTERS = bytes((224, 0, 0, 22))

QUERY, REPORT_V1, REPORT_V2, LEAVE, REPORT_V3 = 0x11, 0x12, 0x16, 0x17, 0x22
V1_MAX_RESPONSE_S = 10.0  # RFC 9776 section 4.1.1: what a code of 0 in eight bytes means

_PROTOCOL = 2
_ROUTER_ALERT = bytes((148, 4, 0, 0))
_HEADER = 24
_INTERNETWORK_CONTROL = 0xC0
_MANTISSA = 4


def read(packet: bytes, *, needs_router_alert: bool = True) -> Heard | Drop:
    """One IPv4 packet from a raw socket, header included. Version 1 has no Router Alert; versions 2 and 3 without it
    are dropped, as reports from afar could be (RFC 2236 section 10, RFC 9776 section 9), unless the caller knows such
    hosts."""
    if len(packet) < 20 or packet[0] >> 4 != 4 or packet[9] != _PROTOCOL:
        return Drop.IP_HEADER
    header = 4 * (packet[0] & 15)
    total = int.from_bytes(packet[2:4])
    if header < 20 or total < header:
        return Drop.IP_HEADER
    if total > len(packet):
        return Drop.TRUNCATED
    if int.from_bytes(packet[6:8]) & 0x3FFF:
        return Drop.FRAGMENT
    if packet[8] != 1:
        return Drop.HOPS
    message = _read_message(packet[header:total])
    if isinstance(message, Drop):
        return message
    may_lack_alert = isinstance(message, (Query, Report)) and message.version == 1
    if needs_router_alert and not may_lack_alert and not _has_router_alert(packet[20:header]):
        return Drop.NO_ROUTER_ALERT
    return Heard(packet[12:16], message)


def _has_router_alert(options: bytes) -> bool:
    at = 0
    while at < len(options):
        kind = options[at]
        if kind == 0:
            return False
        if kind == 1:
            at += 1
            continue
        if at + 1 >= len(options) or options[at + 1] < 2 or at + options[at + 1] > len(options):
            return False
        # RFC 2113: length 4; routers look at the packet whatever the value is.
        if kind == _ROUTER_ALERT[0] and options[at + 1] == 4:
            return True
        at += options[at + 1]
    return False


def _read_message(data: bytes) -> Message | Drop:
    if len(data) < 8:
        return Drop.LENGTH
    if checksum(data):
        return Drop.CHECKSUM
    kind = data[0]
    if kind == REPORT_V3:
        records = read_records(data, 8, int.from_bytes(data[6:8]), 4)
        return records if isinstance(records, Drop) else Report(3, records)
    group = data[4:8]
    if kind == QUERY:
        return _read_query(data, group)
    if kind not in (REPORT_V1, REPORT_V2, LEAVE):
        return Drop.UNKNOWN_TYPE
    if not is_multicast(group):
        return Drop.NOT_MULTICAST
    if kind == LEAVE:
        return Leave(group)
    return Report(1 if kind == REPORT_V1 else 2, (Record(Kind.IS_EXCLUDE, group),))


def _read_query(data: bytes, group: bytes) -> Query | Drop:
    """The version follows from length and code (RFC 9776 section 7.1); lengths 9 to 11 are no version's."""
    asked = group if any(group) else None
    if asked is not None and not is_multicast(asked):
        return Drop.NOT_MULTICAST
    if len(data) == 8:
        if not data[1]:
            return Query(1, V1_MAX_RESPONSE_S, asked)
        return Query(2, data[1] / 10, asked)
    if len(data) < 12:
        return Drop.LENGTH
    sources = read_sources(data, 12, int.from_bytes(data[10:12]), 4)
    if isinstance(sources, Drop):
        return sources
    if sources and asked is None:
        return Drop.SOURCES_WITHOUT_GROUP
    return Query(
        3,
        decode_code(data[1], _MANTISSA) / 10,
        asked,
        sources,
        suppress=bool(data[8] & 8),
        robustness=data[8] & 7,
        interval_s=float(decode_code(data[9], _MANTISSA)),
    )


def write(message: Message, sender: bytes, mtu: int = 1500) -> list[Packet]:
    """The IPv4 packets that say `message`, each at most `mtu` bytes: TTL 1, Internetwork Control, Router Alert (RFC
    9776 section 4). `sender` is the interface's address, or 0.0.0.0."""
    return [
        Packet(destination, _header(len(body), sender, destination) + body)
        for destination, body in _bodies(message, mtu - _HEADER)
    ]


def _bodies(message: Message, room: int) -> Iterator[tuple[bytes, bytes]]:
    if isinstance(message, Leave):
        yield ALL_ROUTERS, _summed(bytes((LEAVE, 0, 0, 0)) + message.group)
    elif isinstance(message, Report):
        if message.version < 3:
            for record in message.records:
                kind = REPORT_V1 if message.version == 1 else REPORT_V2
                yield record.group, _summed(bytes((kind, 0, 0, 0)) + record.group)
        else:
            for count, body in write_records(message.records, 4, room - 8):
                yield ALL_V3_ROUTERS, _summed(bytes((REPORT_V3, 0, 0, 0, 0, 0)) + count.to_bytes(2) + body)
    else:
        yield from _query_bodies(message, room)


def _query_bodies(query: Query, room: int) -> Iterator[tuple[bytes, bytes]]:
    destination = query.group or ALL_SYSTEMS
    group = query.group or bytes(4)
    tenths = round(query.max_response_s * 10)
    if query.version < 3:
        code = 0 if query.version == 1 else min(max(tenths, 1), 255)
        yield destination, _summed(bytes((QUERY, code, 0, 0)) + group)
        return
    head = bytes((QUERY, encode_code(tenths, _MANTISSA), 0, 0)) + group
    # A robustness above 7 is told as 0: "ask your own default" (RFC 9776 section 4.1.6).
    flags = query.suppress << 3 | (query.robustness if query.robustness <= 7 else 0)
    head += bytes((flags, encode_code(round(query.interval_s), _MANTISSA)))
    for sources in split_sources(query.sources, (room - 12) // 4):
        yield destination, _summed(head + len(sources).to_bytes(2) + b"".join(sources))


def _summed(body: bytes) -> bytes:
    return body[:2] + checksum(body).to_bytes(2) + body[4:]


def _header(length: int, sender: bytes, destination: bytes) -> bytes:
    """Don't Fragment: a membership message that doesn't fit is split by its sender, never by IP. The kernel fills the
    identification, which is 0 here, and the checksum again, over what it filled."""
    fixed = bytes((0x40 | _HEADER // 4, _INTERNETWORK_CONTROL)) + (_HEADER + length).to_bytes(2)
    fixed += bytes((0, 0, 0x40, 0, 1, _PROTOCOL, 0, 0)) + sender + destination + _ROUTER_ALERT
    return fixed[:10] + checksum(fixed).to_bytes(2) + fixed[12:]
