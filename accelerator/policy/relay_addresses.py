"""Inputs and outputs of relays as a policy writes them: URLs, groups, receivers, DSCP, paths. No name is resolved.

Every parse function takes the text that was written, and raises ValueError with one clear line.
"""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv4Network, IPv6Address, ip_address, ip_network
from typing import Final, Literal, NamedTuple, cast

from accelerator.policy.addresses import Address, IpAddress, literal, parse_path_prefix
from accelerator.policy.units import nearest, parse_whole, quoted

Scheme = Literal["rtp", "udp", "srt", "rist"]

_URL = re.compile(r"([a-z]{1,8})://(?:([^@/]*)@)?(\[[^\]]*\]|[^:/@\[\]]+):([0-9]{1,5})/?")
_DSCP_NAMES: Final = {
    **{f"CS{i}": 8 * i for i in range(8)},
    **{f"AF{row}{drop}": 8 * row + 2 * drop for row in range(1, 5) for drop in range(1, 4)},
    "VA": 44,
    "EF": 46,
}
_DSCP_TEXTS: Final = {value: name for name, value in _DSCP_NAMES.items()}

# RFC 5771 section 4: routers never forward it, and switches flood it.
LINK_LOCAL: Final = ip_network("224.0.0.0/24")
SSM_V4: Final = ip_network("232.0.0.0/8")
SSM_V6: Final = ip_network("ff30::/12")
ADMIN_SCOPED: Final = ip_network("239.0.0.0/8")


class RelayUrl(NamedTuple):
    """Where a relay's packets come from. `source`: of a group, "" for any."""

    scheme: Scheme
    source: str
    host: str
    port: int

    def __str__(self) -> str:
        at = f"{_bracketed(self.source)}@" if self.source else ""
        return f"{self.scheme}://{at}{Address(self.host, self.port)}"

    @property
    def is_group(self) -> bool:
        return ip_address(self.host).is_multicast


def parse_relay_url(text: str) -> RelayUrl:
    """`rtp://10.1.0.1@239.1.1.1:5004`, `udp://@239.1.1.1:1234`, `udp://10.0.0.5:5004`, `srt://198.51.100.7:9000`."""
    found = _URL.fullmatch(text)
    if found is None or found[1] not in ("rtp", "udp", "srt", "rist"):
        known = nearest(found[1], ["rtp", "udp", "srt", "rist"]) if found is not None else ""
        raise ValueError(f"expected rtp|udp|srt|rist://[SOURCE@]ADDRESS:PORT, got {quoted(text)}{known}")
    scheme, source_text, host_text = cast(Scheme, found[1]), found[2] or "", found[3]
    address = _literal(host_text)
    if address is None and "%" in host_text:
        raise ValueError(f"{quoted(host_text)}: the interface stands under `interface`, not in the address")
    if address is None:
        raise ValueError(f"an input is an IP address, not {quoted(host_text)}: a relay resolves no names")
    source = ""
    if source_text:
        sender = _literal(source_text)
        if sender is None or sender.is_multicast or sender.is_unspecified:
            raise ValueError(f"the source before '@' is an IP address of a sender, not {quoted(source_text)}")
        if sender.version != address.version:
            raise ValueError(f"{quoted(text)}: source and address are of two families")
        source = str(sender)
    if scheme in ("srt", "rist") and (address.is_multicast or source):
        raise ValueError(f"{scheme} connects to one address: neither a group nor a source stands here")
    if address.is_multicast:
        _check_group(address)
    return RelayUrl(scheme, source, str(address), _port(text, found[4]))


def parse_group(text: str) -> Address:
    """`239.2.1.1:5004`, `[ff15::2:1]:5004`."""
    address, port = _endpoint(text, "a group and port such as 239.2.1.1:5004")
    if not address.is_multicast:
        raise ValueError(f"{address} is no group: single receivers stand under `unicast`")
    _check_group(address)
    return Address(str(address), port)


def parse_receiver(text: str) -> Address:
    """`10.12.0.7:5004`, `[2001:db8::7]:5004`."""
    address, port = _endpoint(text, "a receiver's address and port such as 10.12.0.7:5004")
    if address.is_multicast or address.is_unspecified or address == IPv4Address("255.255.255.255"):
        hint = ": groups stand under `group`" if address.is_multicast else ""
        raise ValueError(f"{address} is no single receiver{hint}")
    if isinstance(address, IPv6Address) and address.is_link_local:
        raise ValueError(f"{address} is an address of one link alone (RFC 4291 section 2.5.6): give a routable one")
    return Address(str(address), port)


def parse_dscp(text: str) -> str:
    """`AF41`, `EF`, `CS5`, or 0 to 63; given back by its name where it has one (RFC 4594, RFC 5865)."""
    if text.upper() in _DSCP_NAMES:
        return text.upper()
    try:
        value = parse_whole(text)
    except ValueError:
        hint = nearest(text.upper(), list(_DSCP_NAMES))
        raise ValueError(f"expected a class such as AF41, EF or CS5, or 0 to 63, got {quoted(text)}{hint}") from None
    if not 0 <= value <= 63:
        raise ValueError(f"a DSCP is 0 to 63, got {value}")
    return _DSCP_TEXTS.get(value, text)


def dscp_value(name: str) -> int:
    """The number of what parse_dscp gave."""
    return _DSCP_NAMES[name] if name in _DSCP_NAMES else int(name)


def parse_stream_path(text: str) -> str:
    """`/relay/hall.ts`: one path, not a prefix."""
    path = parse_path_prefix(text)
    if path == "/" or text.endswith("/") or path.startswith("/.well-known/"):
        raise ValueError(f"expected the path of one stream such as /relay/hall.ts, got {quoted(text)}")
    return path


def parse_title(text: str) -> str:
    """`Große Halle, 1. Stock`: what players show; in SDP and M3U it is a line's rest, in UTF-8."""
    if not 1 <= len(text.encode()) <= 256 or not text.isprintable() or text != text.strip():
        raise ValueError(f"expected a name of one line, at most 256 bytes, got {quoted(text)}")
    return text


def parse_stream_id(text: str) -> str:
    """`live/hall`, `#!::r=hall,m=publish`: what SRT's handshake carries, at most 512 characters."""
    if not 1 <= len(text) <= 512 or not all("!" <= each <= "~" for each in text):
        raise ValueError(f"a stream ID is 1 to 512 printable ASCII characters without spaces, got {quoted(text)}")
    return text


def ethernet_of(address: IpAddress) -> bytes:
    """The Ethernet address that a group is sent to: RFC 1112 section 6.4 (32 groups share one), RFC 2464 section 7."""
    if isinstance(address, IPv4Address):
        packed = address.packed
        return bytes((0x01, 0x00, 0x5E, packed[1] & 0x7F, packed[2], packed[3]))
    return b"\x33\x33" + address.packed[12:]


def is_flooded(address: IpAddress) -> bool:
    """Whether snooping switches flood a group: 224.0.0.x, or one of the 31 other groups that look like it to them."""
    return isinstance(address, IPv4Address) and ethernet_of(address)[3:5] == b"\0\0"


def stays_on_link(address: IpAddress) -> bool:
    """IPv6: an address or group that says nothing without an interface (RFC 4291 sections 2.5.6 and 2.7)."""
    if not isinstance(address, IPv6Address):
        return False
    return address.is_link_local or (address.is_multicast and address.packed[1] & 15 == 2)


def needs_source(address: IpAddress) -> bool:
    """RFC 4607 section 1: in this range nothing comes without a source."""
    if isinstance(address, IPv4Address):
        return address in SSM_V4
    return address in SSM_V6


def _check_group(address: IpAddress) -> None:
    if isinstance(address, IPv4Address) and address in cast(IPv4Network, LINK_LOCAL):
        raise ValueError(f"{address} belongs to routing protocols (RFC 5771 section 4), no stream may be there")
    if isinstance(address, IPv6Address) and address.packed[1] & 15 in (0, 1, 15):
        raise ValueError(f"{address} has the scope of no network (RFC 4291 section 2.7)")
    if isinstance(address, IPv6Address) and address.packed[1] >> 4 == 0:
        raise ValueError(f"{address} is a well-known group (RFC 4291 section 2.7.1), no stream may be there")


def _endpoint(text: str, expected: str) -> tuple[IpAddress, int]:
    host, colon, port = text.rpartition(":")
    address = _literal(host) if colon else None
    if address is None or (address.version == 6) != host.startswith("["):
        raise ValueError(f"expected {expected}, got {quoted(text)}")
    return address, _port(text, port)


def _literal(text: str) -> IpAddress | None:
    return literal(text[1:-1] if text.startswith("[") and text.endswith("]") else text)


def _port(text: str, port: str) -> int:
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and 1 <= int(port) <= 65535):
        raise ValueError(f"a port is a number from 1 to 65535, got {quoted(text)}")
    return int(port)


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
