"""MLD on the wire: ICMPv6 messages in and out, versions 1 (RFC 2710) and 2 (RFC 9777). IPv6 headers are the kernel's;
what it tells of them comes in as arguments. What the messages mean is in protocols/membership."""

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

ALL_NODES = bytes.fromhex("ff02") + bytes(13) + b"\x01"
ALL_ROUTERS = bytes.fromhex("ff02") + bytes(13) + b"\x02"
ALL_V2_ROUTERS = bytes.fromhex("ff02") + bytes(13) + b"\x16"

QUERY, REPORT_V1, DONE, REPORT_V2 = 130, 131, 132, 143
# Hop-by-Hop options that every MLD packet carries: Router Alert of value 0, padded (RFC 2711, RFC 9777 section 5). The
# first byte is the kernel's to set.
HOP_BY_HOP = bytes((0, 0, 5, 2, 0, 0, 1, 0))

_ICMPV6 = 58
_HEADERS = 40 + len(HOP_BY_HOP)
_MANTISSA = 12
_INTERVAL_MANTISSA = 4


def read(message: bytes, sender: bytes, destination: bytes, hops: int, hop_by_hop: bytes | None) -> Heard | Drop:
    """One ICMPv6 message as a raw socket gives it, with what it tells of the header: `hop_by_hop` is that extension
    header, whole, or None. RFC 9777 sections 5.1.14, 5.2.13 and 6.2: link-local sender, hop limit 1, Router Alert."""
    if hops != 1:
        return Drop.HOPS
    if sender[0] != 0xFE or sender[1] & 0xC0 != 0x80:
        return Drop.NOT_LINK_LOCAL
    if hop_by_hop is None or not _has_router_alert(hop_by_hop):
        return Drop.NO_ROUTER_ALERT
    if len(message) < 8:
        return Drop.LENGTH
    if checksum(_pseudo_header(sender, destination, len(message)) + message):
        return Drop.CHECKSUM
    said = _read_message(message)
    return said if isinstance(said, Drop) else Heard(sender, said)


def _has_router_alert(header: bytes) -> bool:
    if len(header) < 8 or len(header) != 8 * (header[1] + 1):
        return False
    at = 2
    while at < len(header):
        if header[at] == 0:  # Pad1
            at += 1
            continue
        if at + 1 >= len(header) or at + 2 + header[at + 1] > len(header):
            return False
        if header[at : at + 4] == HOP_BY_HOP[2:6]:
            return True
        at += 2 + header[at + 1]
    return False


def _read_message(data: bytes) -> Message | Drop:
    kind = data[0]
    if kind == REPORT_V2:
        records = read_records(data, 8, int.from_bytes(data[6:8]), 16)
        return records if isinstance(records, Drop) else Report(3, records)
    if kind not in (QUERY, REPORT_V1, DONE):
        return Drop.UNKNOWN_TYPE
    if len(data) < 24:
        return Drop.LENGTH
    group = data[8:24]
    if kind == QUERY:
        return _read_query(data, group)
    if not is_multicast(group):
        return Drop.NOT_MULTICAST
    return Leave(group) if kind == DONE else Report(2, (Record(Kind.IS_EXCLUDE, group),))


def _read_query(data: bytes, group: bytes) -> Query | Drop:
    """Version 1 has 24 bytes, version 2 at least 28 (RFC 9777 section 8.1)."""
    asked = group if any(group) else None
    if asked is not None and not is_multicast(asked):
        return Drop.NOT_MULTICAST
    code = int.from_bytes(data[4:6])
    if len(data) == 24:
        return Query(2, code / 1000, asked)
    if len(data) < 28:
        return Drop.LENGTH
    sources = read_sources(data, 28, int.from_bytes(data[26:28]), 16)
    if isinstance(sources, Drop):
        return sources
    if sources and asked is None:
        return Drop.SOURCES_WITHOUT_GROUP
    return Query(
        3,
        decode_code(code, _MANTISSA) / 1000,
        asked,
        sources,
        suppress=bool(data[24] & 8),
        robustness=data[24] & 7,
        interval_s=float(decode_code(data[25], _INTERVAL_MANTISSA)),
    )


def write(message: Message, sender: bytes, mtu: int = 1500) -> list[Packet]:
    """The ICMPv6 messages that say `message`, each at most `mtu` bytes with its headers. The socket adds HOP_BY_HOP
    and hop limit 1; `sender` is the interface's link-local address, for the checksum."""
    return [
        Packet(destination, _summed(body, sender, destination))
        for destination, body in _bodies(message, mtu - _HEADERS)
    ]


def _bodies(message: Message, room: int) -> Iterator[tuple[bytes, bytes]]:
    if isinstance(message, Leave):
        yield ALL_ROUTERS, bytes((DONE, *bytes(7))) + message.group
    elif isinstance(message, Report):
        if message.version < 3:
            for record in message.records:
                yield record.group, bytes((REPORT_V1, *bytes(7))) + record.group
        else:
            for count, body in write_records(message.records, 16, room - 8):
                yield ALL_V2_ROUTERS, bytes((REPORT_V2, *bytes(5))) + count.to_bytes(2) + body
    else:
        yield from _query_bodies(message, room)


def _query_bodies(query: Query, room: int) -> Iterator[tuple[bytes, bytes]]:
    destination = query.group or ALL_NODES
    group = query.group or bytes(16)
    milliseconds = round(query.max_response_s * 1000)
    if query.version < 3:
        code = min(milliseconds, 0xFFFF)
        yield destination, bytes((QUERY, 0, 0, 0)) + code.to_bytes(2) + bytes(2) + group
        return
    head = bytes((QUERY, 0, 0, 0)) + encode_code(milliseconds, _MANTISSA).to_bytes(2) + bytes(2) + group
    flags = query.suppress << 3 | (query.robustness if query.robustness <= 7 else 0)
    head += bytes((flags, encode_code(round(query.interval_s), _INTERVAL_MANTISSA)))
    for sources in split_sources(query.sources, (room - 28) // 16):
        yield destination, head + len(sources).to_bytes(2) + b"".join(sources)


def _pseudo_header(sender: bytes, destination: bytes, length: int) -> bytes:
    return sender + destination + length.to_bytes(4) + bytes((0, 0, 0, _ICMPV6))


def _summed(body: bytes, sender: bytes, destination: bytes) -> bytes:
    total = checksum(_pseudo_header(sender, destination, len(body)) + body)
    return body[:2] + total.to_bytes(2) + body[4:]
