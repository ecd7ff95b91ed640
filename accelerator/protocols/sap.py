"""Session announcements (SAP version 1, RFC 2974): one datagram read and written, and how often one may be sent.

No socket and no clock: chance and time come in as arguments. The description inside is sdp.py's.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

PORT = 9875
GLOBAL_GROUP = "224.2.127.254"
# RFC 2974 section 3: the highest address of the scope that the group is in.
_SCOPES = tuple((ip_network(net), str(ip_network(net)[-1])) for net in ("239.255.0.0/16", "239.192.0.0/14"))
SDP = "application/sdp"
_PAYLOAD_TYPE_MAX = 64
# Section 3.1: all announcements of a group together, and never more often than this.
BANDWIDTH_BPS = 4000
INTERVAL_MIN_S = 300.0


@dataclass(frozen=True, slots=True)
class Announcement:
    """`hash_` and `source` together name a version of a session. `is_deletion`: the session is over."""

    source: IPv4Address | IPv6Address
    hash_: int
    payload: bytes
    is_deletion: bool = False
    payload_type: str = SDP


def group_for(group: str) -> str:
    """Where a stream to `group` is announced."""
    address = ip_address(group)
    if isinstance(address, IPv6Address):
        return f"ff0{address.packed[1] & 15:x}::2:7ffe"
    return next((highest for net, highest in _SCOPES if address in net), GLOBAL_GROUP)


def hash_of(payload: bytes) -> int:
    """A 16-bit hash that changes with the payload, never 0 (section 5: 0 means that none is given)."""
    return int.from_bytes(sha256(payload).digest()[:2], "big") or 1


def read(data: bytes) -> Announcement:
    """The announcement of one datagram. ValueError with the reason: short, another version, encrypted or compressed
    (RFC 2974 discourages both, and inflating a stranger's bytes buys nothing), no payload type."""
    if len(data) < 4:
        raise ValueError("short")
    flags, auth_words = data[0], data[1]
    if flags >> 5 != 1:
        raise ValueError("another version than 1")
    if flags & 0x03:
        raise ValueError("encrypted or compressed")
    address_bytes = 16 if flags & 0x10 else 4
    start = 4 + address_bytes + 4 * auth_words
    if len(data) < start:
        raise ValueError("short")
    packed = data[4 : 4 + address_bytes]
    source = IPv6Address(packed) if address_bytes == 16 else IPv4Address(packed)
    payload_type = SDP
    payload = data[start:]
    # Section 6: the type may be left out before SDP, whose first line is always the same.
    if not payload.startswith(b"v=0"):
        name, end, _ = payload[: _PAYLOAD_TYPE_MAX + 1].partition(b"\0")
        if not end or not name or not name.isascii() or any(byte <= 32 or byte == 127 for byte in name):
            raise ValueError("no payload type")
        payload_type, payload = name.decode("ascii").lower(), payload[len(name) + 1 :]
    return Announcement(source, int.from_bytes(data[2:4], "big"), payload, bool(flags & 0x04), payload_type)


def write(announcement: Announcement) -> bytes:
    """The datagram of an announcement, without authentication. ValueError for a payload type or hash that no datagram
    can hold."""
    if not 0 <= announcement.hash_ <= 0xFFFF:
        raise ValueError("the hash has 16 bits")
    flags = 0x20 | (0x10 if announcement.source.version == 6 else 0) | (0x04 if announcement.is_deletion else 0)
    head = bytes([flags, 0]) + announcement.hash_.to_bytes(2, "big") + announcement.source.packed
    data = head + announcement.payload_type.encode() + b"\0" + announcement.payload
    if read(data) != announcement:
        raise ValueError("a payload type is lower case, without blanks, at most 64 characters")
    return data


def interval_s(n_announcements: int, size_bytes: int, chance: float) -> float:
    """Seconds until the next announcement (section 3.1). `n_announcements`: of all senders in the group, ours among
    them; `size_bytes`: of ours; `chance`: 0 to 1, drawn anew each time, so that senders don't fall into step."""
    base_s = max(INTERVAL_MIN_S, 8 * n_announcements * size_bytes / BANDWIDTH_BPS)
    return base_s + (chance * 2 / 3 - 1 / 3) * base_s


def is_gone(silence_s: float, interval_seen_s: float) -> bool:
    """Section 4: a session whose announcements have stopped for ten intervals, or an hour, whichever is longer."""
    return silence_s > max(3600.0, 10 * interval_seen_s)
