"""Session descriptions (SDP, RFC 8866) of the streams that relays announce and are told: read and written. Bytes and
values; nothing is sent, no address is resolved, and no meaning of codecs lives here.

What a relay needs is kept in order: origin, name, connections, attributes, media. Times, bandwidths, keys, e-mail and
phone lines are read over; what is written has the one time line `0 0`, a session without end.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

# An announcement is one datagram, and SAP asks for at most 1 kB (RFC 2974 section 6).
DESCRIPTION_BYTES_MAX = 8192
MEDIA_MAX = 64
_NUMBER = re.compile(r"[0-9]{1,20}")
_TOKEN = re.compile(r"[!#-'*+\-.0-9A-Z^_`a-z{|}~]{1,64}")
_PROTOCOL = re.compile(r"[!#-'*+\-.0-9A-Z^_`a-z{|}~]{1,32}(?:/[!#-'*+\-.0-9A-Z^_`a-z{|}~]{1,32}){0,4}")

IpAddress = IPv4Address | IPv6Address
Attribute = tuple[str, str | None]


@dataclass(frozen=True, slots=True)
class Origin:
    """Who made it (RFC 8866 section 5.2): all but `version` name the session; that rises with each change."""

    user: str
    session: int
    version: int
    address: str


@dataclass(frozen=True, slots=True)
class Connection:
    """Where it is sent (section 5.7). `ttl` is given for IPv4 groups only. Ranges of addresses are refused."""

    address: IpAddress
    ttl: int | None = None


@dataclass(frozen=True, slots=True)
class Media:
    """`connection` is its own one, or None where the session's holds. Port 0: refused or not used (RFC 3264)."""

    kind: str
    port: int
    protocol: str
    formats: tuple[str, ...]
    connection: Connection | None = None
    attributes: tuple[Attribute, ...] = ()


@dataclass(frozen=True, slots=True)
class Description:
    """One session. `attributes` are (name, value), value None where there is none."""

    origin: Origin
    name: str
    connection: Connection | None = None
    attributes: tuple[Attribute, ...] = ()
    media: tuple[Media, ...] = ()

    def connection_of(self, media: Media) -> Connection | None:
        """Where a medium is sent: its own connection, else the session's."""
        return media.connection if media.connection is not None else self.connection


@dataclass(frozen=True, slots=True)
class SourceFilter:
    """RFC 4570. `group` None: any destination ("*")."""

    is_include: bool
    group: IpAddress | None
    sources: tuple[IpAddress, ...]


def read(data: bytes) -> Description:
    """The description of `data`. ValueError with one clear line: too long, not UTF-8, out of order, or a line that
    can't be read."""
    if len(data) > DESCRIPTION_BYTES_MAX:
        raise ValueError(f"longer than {DESCRIPTION_BYTES_MAX} bytes")
    if b"\0" in data:
        raise ValueError("has a NUL byte")
    try:
        text = data.decode()
    except UnicodeDecodeError as fault:
        raise ValueError("is not UTF-8") from fault
    # CRLF ends a line, but parsers should accept a bare LF (section 5).
    lines = [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]
    if lines[0] != "v=0":
        raise ValueError("does not begin with v=0")
    origin: Origin | None = None
    name: str | None = None
    connection: Connection | None = None
    attributes: list[Attribute] = []
    media: list[Media] = []
    for number, line in enumerate(lines[1:], 2):
        if len(line) < 2 or line[1] != "=" or not ("a" <= line[0] <= "z") or "\r" in line:
            raise ValueError(f"line {number} is not TYPE=VALUE")
        kind, value = line[0], line[2:]
        try:
            if kind == "m":
                media.append(_media(value))
            elif kind == "c":
                if media:
                    media[-1] = _with_connection(media[-1], _connection(value))
                elif connection is None:
                    connection = _connection(value)
                else:
                    raise ValueError("a second connection")
            elif kind == "a":
                if media:
                    media[-1] = _with_attribute(media[-1], _attribute(value))
                else:
                    attributes.append(_attribute(value))
            elif kind in "vos":
                if media or (kind == "o") != (origin is None) or kind == "v" or name is not None:
                    raise ValueError("out of order, or twice")
                if kind == "o":
                    origin = _origin(value)
                else:
                    name = value
        except ValueError as fault:
            raise ValueError(f"line {number} ({kind}=): {fault}") from fault
        if len(media) > MEDIA_MAX:
            raise ValueError(f"more than {MEDIA_MAX} media")
    if origin is None or name is None:
        raise ValueError("has no o= or no s= line")
    found = Description(origin, name, connection, tuple(attributes), tuple(media))
    if any(found.connection_of(each) is None for each in media):
        raise ValueError("a medium without connection")
    return found


def write(description: Description) -> bytes:
    """What read() gives back. ValueError for values that a line can't hold."""
    origin = description.origin
    lines = [
        "v=0",
        f"o={origin.user} {origin.session} {origin.version} IN {_family(ip_address(origin.address))} {origin.address}",
        f"s={description.name}",
        *_connection_lines(description.connection),
        "t=0 0",
        *_attribute_lines(description.attributes),
    ]
    for media in description.media:
        lines.append(f"m={media.kind} {media.port} {media.protocol} {' '.join(media.formats)}")
        lines += _connection_lines(media.connection)
        lines += _attribute_lines(media.attributes)
    data = "".join(f"{line}\r\n" for line in lines).encode()
    if read(data) != description:
        raise ValueError("a value that no line can hold")
    return data


def source_filters(attributes: tuple[Attribute, ...]) -> tuple[SourceFilter, ...]:
    """RFC 4570's `source-filter` attributes. ValueError for one that can't be read."""
    found = []
    for name, value in attributes:
        if name != "source-filter":
            continue
        words = (value or "").split()
        is_mode = words[:1] in (["incl"], ["excl"])
        if len(words) < 5 or not is_mode or words[1] != "IN" or words[2] not in ("IP4", "IP6", "*"):
            raise ValueError("source-filter is not MODE IN FAMILY DESTINATION SOURCE…")
        group = None if words[3] == "*" else ip_address(words[3])
        found.append(SourceFilter(words[0] == "incl", group, tuple(ip_address(word) for word in words[4:])))
    return tuple(found)


def duplicates(description: Description) -> tuple[tuple[Media, ...], ...]:
    """The media that carry the same packets (RFC 7104 `a=group:DUP`), by the groups that name them; unknown marks and
    groups of one are left out."""
    by_mark: dict[str, Media] = {}
    for media in description.media:
        for name, value in media.attributes:
            if name == "mid" and value is not None:
                by_mark.setdefault(value, media)
    found = []
    for name, value in description.attributes:
        words = (value or "").split()
        if name == "group" and words[:1] == ["DUP"]:
            legs = tuple(by_mark[word] for word in dict.fromkeys(words[1:]) if word in by_mark)
            if len(legs) > 1:
                found.append(legs)
    return tuple(found)


def _whole(text: str, highest: int) -> int:
    if not _NUMBER.fullmatch(text) or int(text) > highest:
        raise ValueError(f"expected a number up to {highest}")
    return int(text)


def _address(family: str, text: str) -> IpAddress:
    if family not in ("IP4", "IP6"):
        raise ValueError("expected IP4 or IP6")
    try:
        address = ip_address(text)
    except ValueError:
        raise ValueError("expected an IP address") from None
    if address.version != int(family[2]) or "%" in text:
        raise ValueError("the address is not of this family")
    return address


def _family(address: IpAddress) -> str:
    return f"IP{address.version}"


def _origin(value: str) -> Origin:
    words = value.split(" ")
    if len(words) != 6 or not words[0] or words[3] != "IN":
        raise ValueError("expected USER SESSION VERSION IN FAMILY ADDRESS")
    # A name is allowed where the address stands; only literals can be told from nonsense here.
    address = _address(words[4], words[5])
    return Origin(words[0], _whole(words[1], 2**64 - 1), _whole(words[2], 2**64 - 1), str(address))


def _connection(value: str) -> Connection:
    words = value.split(" ")
    if len(words) != 3 or words[0] != "IN":
        raise ValueError("expected IN FAMILY ADDRESS")
    text, *rest = words[2].split("/")
    address = _address(words[1], text)
    if address.version == 6:
        if rest:
            raise ValueError("ranges of addresses are not taken")
        return Connection(address)
    if address.is_multicast:
        if len(rest) != 1:
            raise ValueError("an IPv4 group needs /TTL, and ranges are not taken")
        return Connection(address, _whole(rest[0], 255))
    if rest:
        raise ValueError("a TTL is for groups")
    return Connection(address)


def _connection_lines(connection: Connection | None) -> list[str]:
    if connection is None:
        return []
    ttl = f"/{connection.ttl}" if connection.ttl is not None else ""
    return [f"c=IN {_family(connection.address)} {connection.address}{ttl}"]


def _attribute(value: str) -> Attribute:
    name, colon, rest = value.partition(":")
    if not _TOKEN.fullmatch(name):
        raise ValueError("expected NAME or NAME:VALUE")
    return name, rest if colon else None


def _attribute_lines(attributes: tuple[Attribute, ...]) -> list[str]:
    return [f"a={name}" if value is None else f"a={name}:{value}" for name, value in attributes]


def _media(value: str) -> Media:
    words = value.split(" ")
    if len(words) < 4 or not _TOKEN.fullmatch(words[0]) or not _PROTOCOL.fullmatch(words[2]):
        raise ValueError("expected KIND PORT PROTOCOL FORMAT…")
    if not all(_TOKEN.fullmatch(word) for word in words[3:]):
        raise ValueError("a format is a word")
    if "/" in words[1]:
        raise ValueError("ranges of ports are not taken")
    return Media(words[0], _whole(words[1], 65_535), words[2], tuple(words[3:]))


def _with_connection(media: Media, connection: Connection) -> Media:
    if media.connection is not None or media.attributes:
        raise ValueError("a second connection of a medium, or one behind its attributes")
    return Media(media.kind, media.port, media.protocol, media.formats, connection)


def _with_attribute(media: Media, attribute: Attribute) -> Media:
    return Media(
        media.kind, media.port, media.protocol, media.formats, media.connection, (*media.attributes, attribute)
    )  # fmt: skip
