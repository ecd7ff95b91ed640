"""What the wire formats of IGMPv3 and MLDv2 share: floating-point codes, the checksum, group records, splitting at a
packet's room. Message heads are in igmp.py and mld.py."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from accelerator.protocols.membership.messages import Drop, Kind, Record, is_multicast, is_unicast

RECORD_HEAD = 4
_KINDS = {int(kind): kind for kind in Kind}


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071); 0 over a message that contains its own right one. The sum of 16-bit words
    modulo 65535 is that of the whole number, since 65536 leaves 1."""
    total = int.from_bytes(data if len(data) % 2 == 0 else data + b"\0")
    # A sum that isn't 0 but is a multiple of 65535 folds to 0xffff, its complement to 0.
    return 0xFFFF - (total % 0xFFFF or (0xFFFF if total else 0))


def decode_code(code: int, mantissa_bits: int) -> int:
    """A floating-point code: Max Resp Code and QQIC with 4 bits of mantissa (RFC 9776 sections 4.1.1 and 4.1.7),
    Maximum Response Code of MLDv2 with 12 (RFC 9777 section 5.1.3)."""
    if not code >> (mantissa_bits + 3):
        return code
    mantissa = code & ((1 << mantissa_bits) - 1) | 1 << mantissa_bits
    return mantissa << (code >> mantissa_bits & 7) + 3


def encode_code(value: int, mantissa_bits: int) -> int:
    """The code of the largest number that is at most `value`: so nobody waits for longer than was meant."""
    if value < 1 << (mantissa_bits + 3):
        return value
    shift = value.bit_length() - mantissa_bits - 1
    if shift > 10:
        return (1 << (mantissa_bits + 4)) - 1
    return 1 << (mantissa_bits + 3) | shift - 3 << mantissa_bits | value >> shift & ((1 << mantissa_bits) - 1)


def read_sources(data: bytes, at: int, count: int, size: int) -> frozenset[bytes] | Drop:
    """`count` addresses of `size` bytes from `at` on."""
    end = at + count * size
    if end > len(data):
        return Drop.TRUNCATED
    sources = frozenset(data[first : first + size] for first in range(at, end, size))
    return sources if all(is_unicast(source) for source in sources) else Drop.BAD_SOURCE


def read_records(data: bytes, at: int, count: int, size: int) -> tuple[Record, ...] | Drop:
    """The group records of a report. Auxiliary data and unknown types are passed over, as is what follows the last
    record (RFC 9776 sections 4.2.10 to 4.2.12). One bad record spoils the report: its lengths can't be believed."""
    records = []
    for _ in range(count):
        if at + RECORD_HEAD + size > len(data):
            return Drop.TRUNCATED
        kind = _KINDS.get(data[at])
        n_sources = int.from_bytes(data[at + 2 : at + 4])
        auxiliary = 4 * data[at + 1]
        group = data[at + RECORD_HEAD : at + RECORD_HEAD + size]
        at += RECORD_HEAD + size
        sources = read_sources(data, at, n_sources, size)
        at += n_sources * size + auxiliary
        if at > len(data):
            return Drop.TRUNCATED
        if kind is None:
            continue
        if isinstance(sources, Drop):
            return sources
        if not is_multicast(group):
            return Drop.NOT_MULTICAST
        records.append(Record(kind, group, sources))
    return tuple(records)


def _pieces(record: Record, size: int, room: int) -> Iterator[Record]:
    """The record, in as many as `room` bytes need. A list of excluded sources can't be split, since the second record
    would replace the first: it's cut, so that too much is asked for rather than too little (RFC 9776 section
    4.2.16)."""
    most = (room - RECORD_HEAD - size) // size
    if len(record.sources) <= most:
        yield record
        return
    ordered = sorted(record.sources)
    if record.kind in (Kind.IS_EXCLUDE, Kind.TO_EXCLUDE):
        yield Record(record.kind, record.group, frozenset(ordered[:most]))
        return
    first = record.kind
    # Likewise a second TO_INCLUDE would take back the first; ALLOW adds to it.
    rest = Kind.ALLOW if first is Kind.TO_INCLUDE else first
    for start in range(0, len(ordered), most):
        yield Record(rest if start else first, record.group, frozenset(ordered[start : start + most]))


def write_records(records: Iterable[Record], size: int, room: int) -> Iterator[tuple[int, bytes]]:
    """The records as bodies of reports of at most `room` bytes, each with its number of records."""
    body, count = bytearray(), 0
    for piece in (piece for record in records for piece in _pieces(record, size, room)):
        sources = b"".join(sorted(piece.sources))
        length = RECORD_HEAD + size + len(sources)
        if count and len(body) + length > room:
            yield count, bytes(body)
            body, count = bytearray(), 0
        body += bytes((piece.kind, 0)) + len(piece.sources).to_bytes(2) + piece.group + sources
        count += 1
    if count:
        yield count, bytes(body)


def split_sources(sources: Iterable[bytes], most: int) -> Iterator[list[bytes]]:
    """The sources of a query in portions of at most `most`, in order; one empty portion if there are none."""
    ordered = sorted(sources)
    for start in range(0, max(1, len(ordered)), most):
        yield ordered[start : start + most]
