"""Fuzz target: IGMP and MLD packets. Each is a message or dropped by name; what was read can be written, and says the
same again, split or not.

    .venv/bin/python -m pytest tests/fuzz/fuzz_membership_wire.py          a short run
    PYTHONPATH=. .venv/bin/python tests/fuzz/fuzz_membership_wire.py 600   so many seconds; prints the number of runs
"""

from __future__ import annotations

import random
from ipaddress import ip_address

from mutation import mutated, run

from accelerator.kernel.stream_watch import read_header
from accelerator.protocols import igmp, mld
from accelerator.protocols.membership.messages import Drop, Heard, Kind, Leave, Message, Query, Record, Report
from accelerator.protocols.membership.wire import checksum


def packed(text: str) -> bytes:
    return ip_address(text).packed


US, US6, ALL6 = packed("10.0.0.1"), packed("fe80::1"), packed("ff02::16")
SOURCES = frozenset((10 << 24 | each).to_bytes(4) for each in range(1, 40))
SOURCES6 = frozenset(packed("2001:db8::")[:12] + each for each in SOURCES)


def messages(group: bytes, sources: frozenset[bytes]) -> list[Message]:
    some = frozenset(sorted(sources)[:3])
    records = tuple(Record(kind, group, some) for kind in Kind)
    return [
        Query(3, 1.0, group, some, suppress=True, robustness=2, interval_s=125.0),
        Query(3, 10.0, None, robustness=2, interval_s=125.0),
        Query(2, 10.0),
        Report(3, records),
        Report(3, (Record(Kind.IS_INCLUDE, group, sources),)),
        Report(2, (Record(Kind.IS_EXCLUDE, group),)),
        Leave(group),
    ]


SEEDS = [igmp.write(message, US)[0].data for message in messages(packed("232.1.2.3"), SOURCES)]
SEEDS6 = [mld.write(message, US6)[0].data for message in messages(packed("ff3e::1"), SOURCES6)]
WORDS = [bytes(4), b"\xe8\x01\x02\x03", b"\x01\x00\x00\x01", b"\x22", b"\x11", b"\xff\xff", b"\x00\x00\x00\x02"]
WORDS6 = [bytes(16), packed("ff3e::1"), b"\x01\x00\x00\x01", b"\x8f", b"\x82", b"\xff\xff", packed("2001:db8::7")]


def mended(packet: bytes) -> bytes:
    """The packet with its total length and IGMP checksum right, or most mutations would end at those."""
    data = bytearray(packet[:65535])
    if len(data) < 28:
        return packet
    data[2:4] = len(data).to_bytes(2)
    header = min(4 * (data[0] & 15), len(data) - 4)
    data[header + 2 : header + 4] = bytes(2)
    data[header + 2 : header + 4] = checksum(bytes(data[header:])).to_bytes(2)
    return bytes(data)


def mended6(message: bytes) -> bytes:
    if len(message) < 4:
        return message
    data = message[:2] + bytes(2) + message[4:]
    pseudo = US6 + ALL6 + len(data).to_bytes(4) + bytes((0, 0, 0, 58))
    return data[:2] + checksum(pseudo + data).to_bytes(2) + data[4:]


def meaning(message: Message) -> list[tuple[object, ...]]:
    """What a message says, however it was split: the sources of one kind, group by group, in order."""
    if isinstance(message, Report):
        said = [
            (message.version, record.kind, record.group, source)
            for record in message.records
            for source in [None, *sorted(record.sources)]
        ]
        return [*said]
    if isinstance(message, Query):
        return [(message, source) for source in sorted(message.sources)] or [(message,)]
    return [(message,)]


def check_message(data: bytes, heard: Heard | Drop, *, is_v6: bool) -> None:
    """The message read again from what we write, where one packet is enough; bounded packets where it isn't."""
    if isinstance(heard, Drop):
        return
    module, sender = (mld, US6) if is_v6 else (igmp, US)
    packets = module.write(heard.message, sender, 65000)
    assert len(packets) <= len(data)
    again = [
        mld.read(packet.data, US6, packet.destination, 1, mld.HOP_BY_HOP) if is_v6 else igmp.read(packet.data)
        for packet in packets
    ]
    assert all(isinstance(one, Heard) for one in again)
    if len(packets) == 1 and isinstance(again[0], Heard):
        assert again[0].message == heard.message or isinstance(heard.message, Report)
        if isinstance(heard.message, Report):
            assert meaning(again[0].message) == meaning(heard.message)
    for packet in module.write(heard.message, sender, 1280):
        assert len(packet.data) <= 1280


def check(source: random.Random) -> None:
    """The target's invariant, for one mutation."""
    packet = mutated(source, SEEDS, WORDS)
    if source.random() < 0.9:
        packet = mended(packet)
    # What is looked at of streams' headers, too.
    for each in (packet, source.randbytes(source.randrange(64))):
        for is_v6 in (False, True):
            read_header("wan", each, is_v6=is_v6)
    check_message(packet, igmp.read(packet, needs_router_alert=source.random() < 0.5), is_v6=False)
    message = mutated(source, SEEDS6, WORDS6)
    if source.random() < 0.9:
        message = mended6(message)
    alert = mutated(source, [mld.HOP_BY_HOP]) if source.random() < 0.1 else mld.HOP_BY_HOP
    check_message(message, mld.read(message, US6, ALL6, 1, alert), is_v6=True)


def test_fuzz_membership_wire() -> None:
    for seed in range(5000):
        check(random.Random(seed))


if __name__ == "__main__":
    run(check)
