"""What IGMP and MLD say, in one vocabulary: MLDv1 says what IGMPv2 says, MLDv2 what IGMPv3 says (RFC 9777 section 1).
Values only: no wire format (igmp.py, mld.py), no state.

Addresses are packed bytes, 4 or 16 of them; `version` is IGMP's number, so MLDv1 is 2 and MLDv2 is 3.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum, IntEnum
from ipaddress import IPv4Network, IPv6Network


class Drop(Enum):
    """Why a message, or a record of one, was left aside. Each is a counter's name."""

    TRUNCATED = "truncated"  # shorter than its own counts and lengths say
    IP_HEADER = "ip-header"
    FRAGMENT = "fragment"
    LENGTH = "length"  # of no version's message
    CHECKSUM = "checksum"
    HOPS = "ttl-not-1"  # forwarded from another link, or forged there
    NO_ROUTER_ALERT = "no-router-alert"
    NOT_LINK_LOCAL = "sender-not-link-local"
    UNKNOWN_TYPE = "unknown-type"
    NOT_MULTICAST = "group-not-multicast"
    BAD_SOURCE = "source-not-unicast"
    SOURCES_WITHOUT_GROUP = "sources-without-group"
    OFF_LINK = "sender-off-link"
    HOST_REFUSED = "host-of-zone-without-multicast"
    LINK_SCOPE = "group-of-link-scope"
    GROUP_NOT_ALLOWED = "group-not-allowed"
    SOURCE_NOT_ALLOWED = "source-not-allowed"
    ANY_SOURCE_OF_SSM = "any-source-of-ssm-group"  # RFC 4604 sections 2.2 and 2.3
    GROUP_LIMIT = "group-limit"
    GROUP_LIMIT_HOST = "group-limit-of-host"
    SOURCE_LIMIT = "source-limit"
    OLDER_VERSION = "ignored-in-older-version"  # RFC 9776 section 7.3.2
    QUERY_ABSURD = "query-absurd"  # its times would silence us for longer than policy allows
    RESPONSE_TIME = "response-time-cut"  # the query counts, its time to answer within does not
    SENDER_UNKNOWN = "query-without-sender"  # 0.0.0.0 can't win an election


class Kind(IntEnum):
    """Group record types (RFC 9776 section 4.2.13)."""

    IS_INCLUDE = 1
    IS_EXCLUDE = 2
    TO_INCLUDE = 3
    TO_EXCLUDE = 4
    ALLOW = 5
    BLOCK = 6


@dataclass(frozen=True, slots=True)
class Record:
    """One group record."""

    kind: Kind
    group: bytes
    sources: frozenset[bytes] = frozenset()


@dataclass(frozen=True, slots=True)
class Query:
    """A query. No group: a general one. `robustness` and `interval_s` are 0 where the sender told none."""

    version: int
    max_response_s: float
    group: bytes | None = None
    sources: frozenset[bytes] = frozenset()
    suppress: bool = False  # the S flag
    robustness: int = 0
    interval_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Report:
    """A report. One of version 1 or 2 has exactly one record, IS_EXCLUDE of nothing (RFC 9776 section 7.3.2)."""

    version: int
    records: tuple[Record, ...]


@dataclass(frozen=True, slots=True)
class Leave:
    """IGMPv2 Leave Group, MLDv1 Done."""

    group: bytes


Message = Query | Report | Leave


@dataclass(frozen=True, slots=True)
class Heard:
    """A message and who sent it: 0.0.0.0 where the sender had no address yet."""

    sender: bytes
    message: Message


@dataclass(frozen=True, slots=True)
class Packet:
    """One packet to send: an IPv4 packet with its header, or an ICMPv6 message whose header the kernel makes."""

    destination: bytes
    data: bytes


@dataclass(frozen=True, slots=True)
class Prefix:
    """A range of addresses of one family, `size` bytes long: those that equal `value` under `mask`."""

    size: int
    value: int
    mask: int

    def __contains__(self, address: bytes) -> bool:
        return len(address) == self.size and int.from_bytes(address) & self.mask == self.value


def prefix(network: IPv4Network | IPv6Network) -> Prefix:
    return Prefix(network.max_prefixlen // 8, int(network.network_address), int(network.netmask))


def is_within(address: bytes, prefixes: Iterable[Prefix]) -> bool:
    return any(address in each for each in prefixes)


# 232.0.0.0/8, and ff3x::/32 of every scope x (RFC 4607 section 1).
SSM_RANGES = (Prefix(4, 232 << 24, 0xFF << 24), Prefix(16, 0xFF30 << 112, 0xFFF0FFFF << 96))


def is_multicast(address: bytes) -> bool:
    return address[0] >> 4 == 14 if len(address) == 4 else address[0] == 0xFF


def is_unicast(address: bytes) -> bool:
    """Whether it can be a source: not multicast, not unspecified, not IPv4's class E."""
    return any(address) and (address[0] < 224 if len(address) == 4 else address[0] != 0xFF)


def is_forwardable(group: bytes) -> bool:
    """Not 224.0.0.0/24 (RFC 5771 section 4); not of reserved, interface or link scope (RFC 4291 section 2.7)."""
    return group[:3] != b"\xe0\x00\x00" if len(group) == 4 else group[1] & 15 > 2
