"""Addresses, URLs, host patterns, path prefixes, networks, field names as a policy writes them. No name is resolved.

Every parse function takes the text that was written, and raises ValueError with one clear line.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Literal, NamedTuple

from accelerator.policy.units import quoted

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IpNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

# RFC 1123 section 2.1 labels; the underscore is not a host name's, but Windows domains have it.
_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_HOST_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_PARAMETER = re.compile(r"[A-Za-z0-9_.~-]{1,64}")
_SHORT_TEXT = re.compile(r"[ !#-\[\]-~]{1,256}")
_PORT = re.compile(r"[0-9]{1,5}")
# RFC 3986 section 3.3 pchar, as a path is compared byte for byte with what viewers send.
_PATH = re.compile(r"/(?:[A-Za-z0-9._~!$&'()*+,;=:@/-]|%[0-9A-Fa-f]{2})*")
_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}")

# What the upstream request has for its own reasons: no `forward:` may add it (RFC 9110 sections 7.6.1, 10.1, 13, 14.2).
# What the head parser takes (ext/http_head.pyx).
METHOD_LENGTH_MAX = 32
_NEVER_FORWARDED = frozenset(
    """
    accept-encoding cdn-loop connection content-length expect forwarded host http2-settings if-match if-modified-since
    if-none-match if-range if-unmodified-since keep-alive max-forwards range te trailer transfer-encoding upgrade via
    x-http-method-override x-original-url x-rewrite-url
    """.split()  # noqa: SIM905 - a column of quotes would be no easier to read
)
_NEVER_FORWARDED_PREFIXES = ("proxy-", "x-forwarded-")


def format_address(host: str, port: int) -> str:
    """As URLs and people write it: an IPv6 literal in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class Address(NamedTuple):
    """A socket address to listen on: canonical IP literal (no brackets) and port, 0 for any free port."""

    host: str
    port: int

    def __str__(self) -> str:
        return format_address(self.host, self.port)

    @property
    def is_loopback(self) -> bool:
        return ipaddress.ip_address(self.host).is_loopback


class OriginUrl(NamedTuple):
    """An upstream: scheme, host (lower case; IP literals canonical, without brackets) and port."""

    scheme: Literal["http", "https"]
    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.scheme}://{Address(self.host, self.port)}"


class ProxyUrl(NamedTuple):
    """A parent proxy: host (lower case; IP literals canonical, without brackets) and port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"http://{Address(self.host, self.port)}"


class FileName(NamedTuple):
    """A file that a policy names: as it was written, and where it is (absolute once a policy is loaded)."""

    written: str
    path: str


def literal(host: str) -> IpAddress | None:
    """The IP address that `host` (no brackets) is, or None for a name. IPv4-mapped IPv6 gives the IPv4 address."""
    if "%" in host:  # ipaddress takes scope identifiers; no key of ours has a use for them yet
        return None
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def _port(text: str, lowest: int) -> int:
    if not _PORT.fullmatch(text) or not lowest <= int(text) <= 65535:
        raise ValueError(f"a port is a number from {lowest} to 65535, got {quoted(text)}")
    return int(text)


def _is_host_name(text: str) -> bool:
    return len(text) <= 253 and _HOST_NAME.fullmatch(text) is not None


def parse_listen_address(text: str) -> Address:
    """`127.0.0.1:8080`, `[::1]:8080`; port 0 is any free one."""
    host, colon, port = text.rpartition(":")
    if not colon or not host or host == "*":
        raise ValueError(
            f"expected ADDRESS:PORT, got {quoted(text)}; every IPv4 address is 0.0.0.0:8080, every IPv6 '[::]:8080'"
        )
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        if ":" not in host:
            raise ValueError(f"only IPv6 addresses stand in brackets, got {quoted(text)}")
    elif ":" in host:
        raise ValueError(f"an IPv6 address stands in brackets, as in '[::1]:8080', got {quoted(text)}")
    address = literal(host)
    if address is None:
        hint = " (did you mean '127.0.0.1'?)" if host.lower() == "localhost" else ""
        raise ValueError(f"an address to listen on is an IP address, not {quoted(host)}{hint}")
    if address.is_multicast:
        raise ValueError(f"{address} is a multicast address: nothing can listen for connections there")
    return Address(str(address), _port(port, 0))


def parse_origin_url(text: str) -> OriginUrl:
    """`https://media.corp.example`, `http://10.0.0.1:8000/`: no path, query, fragment or user."""
    scheme, separator, rest = text.partition("://")
    scheme = scheme.lower()
    if not separator or scheme not in ("http", "https"):
        hint = f" (did you mean 'https://{text}'?)" if not separator and _is_host_name(text) else ""
        raise ValueError(f"expected http://HOST[:PORT] or https://HOST[:PORT], got {quoted(text)}{hint}")
    if "@" in rest:
        raise ValueError("a user or password may not stand in an origin's URL: no secret stands in a policy")
    if any(mark in rest.removesuffix("/") for mark in "/?#"):
        raise ValueError(
            f"an origin's URL has no path, query or fragment (paths go upstream as they are), got {quoted(text)}"
        )
    default_port = 443 if scheme == "https" else 80
    host, port = _authority(text, rest.removesuffix("/"), default_port)
    return OriginUrl("https" if scheme == "https" else "http", host, port)


def parse_proxy_url(text: str) -> ProxyUrl:
    """`http://proxy.corp.example:3128`: plain HTTP to it, and the port is written."""
    scheme, separator, rest = text.partition("://")
    if "@" in rest:
        raise ValueError("a user or password may not stand in a proxy's URL: name it by via_credential")
    if not separator or scheme.lower() != "http" or any(mark in rest.removesuffix("/") for mark in "/?#"):
        hint = f" (did you mean 'http://{text}'?)" if not separator and _is_host_name(text.partition(":")[0]) else ""
        raise ValueError(f"expected http://HOST:PORT of a proxy, got {quoted(text)}{hint}")
    authority = rest.removesuffix("/")
    if not authority.rpartition("]")[2].partition(":")[1]:
        raise ValueError(f"a proxy's port has to be written, such as :3128, got {quoted(text)}")
    return ProxyUrl(*_authority(text, authority, 0))


def _authority(text: str, authority: str, default_port: int) -> tuple[str, int]:
    """Host (lower case, or canonical IP literal without brackets) and port of the URL `text`."""
    if authority.startswith("["):
        host, bracket, port = authority[1:].partition("]")
        if not bracket or literal(host) is None or ":" not in host or (port and not port.startswith(":")):
            raise ValueError(f"{quoted(text)} has no valid IPv6 address")
        port = port[1:] if port else str(default_port)
    else:
        host, colon, port = authority.partition(":")
        port = port if colon else str(default_port)
        if ":" in port:
            raise ValueError(f"an IPv6 address stands in brackets, as in 'http://[::1]:8080', got {quoted(text)}")
    address = literal(host)
    if address is not None:
        _check_unicast(address)
        host = str(address)
    elif not _is_host_name(host) or host.rpartition(".")[2].isdigit():
        # WHATWG URL section 3.5: a host whose last label is a number is an IPv4 address or nothing (10.1 is 10.0.0.1).
        raise ValueError(f"{quoted(host)} is not a host name or IP address")
    return host.lower(), _port(port, 1)


def _check_unicast(address: IpAddress) -> None:
    # Linux connects 0.0.0.0 and :: to loopback, which nobody who writes them means.
    if address.is_unspecified or address.is_multicast:
        raise ValueError(f"{address} is not an address that one can connect to")


def parse_pinned_address(text: str) -> str:
    """An IP literal of `resolve:`, in canonical form."""
    address = literal(text.removeprefix("[").removesuffix("]") if text.startswith("[") else text)
    if address is None:
        raise ValueError(f"expected an IP address, got {quoted(text)}")
    _check_unicast(address)
    return str(address)


def parse_host_pattern(text: str) -> str:
    """`media.corp.example`, `*.corp.example`, `*`, `10.0.0.1` or `[::1]`: lower case."""
    if text == "*":
        return text
    if "://" in text or "/" in text:
        raise ValueError(f"expected a host name without scheme or path, got {quoted(text)}")
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        if not rest and ":" in host and literal(host) is not None:
            return f"[{ipaddress.ip_address(host)}]"
        raise ValueError(f"expected an IPv6 address in brackets and no port, got {quoted(text)}")
    name, colon, _ = text.partition(":")
    if colon:
        hint = f" (did you mean '{name}'?)" if _is_host_name(name) else ""
        raise ValueError(
            f"a host stands here without a port, which plays no part in the choice, got {quoted(text)}{hint}"
        )
    suffix = name.removeprefix("*.")
    if not _is_host_name(suffix):
        if not suffix.isascii():
            raise ValueError(f"write {quoted(text)} as it travels, in ASCII (xn--...)")
        raise ValueError(f"expected a host name, '*.suffix' or '*', got {quoted(text)}")
    return name.lower()


def parse_path_prefix(text: str) -> str:
    """`/`, `/live`: compared byte for byte; `/live/` is `/live`, as prefixes match at a segment boundary."""
    if not text.startswith("/"):
        hint = f" (did you mean '/{text}'?)" if len(text) <= 60 and _PATH.fullmatch(f"/{text}") else ""
        raise ValueError(f"a path starts with '/', got {quoted(text)}{hint}")
    if not _PATH.fullmatch(text):
        raise ValueError(
            f"a path has no query, space or other character that must be percent-encoded, got {quoted(text)}"
        )
    if len(text) > 1024:
        raise ValueError("a path has at most 1,024 characters")
    segments = text.removesuffix("/").split("/")[1:]
    if any(segment in ("", ".", "..") for segment in segments):
        raise ValueError(f"a path has no empty, '.' or '..' segment, got {quoted(text)}")
    return "/" + "/".join(segments)


def parse_network(text: str) -> IpNetwork:
    """`10.12.0.0/22`, `2001:db8::/32`, or one address."""
    host, slash, bits = text.partition("/")
    if literal(host) is None or (slash and not (bits.isascii() and bits.isdigit() and len(bits) <= 3)):
        raise ValueError(f"expected a network such as 10.12.0.0/22, got {quoted(text)}")
    try:
        return ipaddress.ip_network(text)
    except ValueError:
        try:
            wider = ipaddress.ip_network(text, strict=False)
        except ValueError:
            raise ValueError(f"{quoted(text)}: the prefix length is at most {32 if '.' in host else 128}") from None
        raise ValueError(f"{text} has bits set right of its prefix (did you mean '{wider}'?)") from None


def parse_parameter_name(text: str) -> str:
    """A parameter of a query, or a cookie, that carries a credential: as it is written in requests."""
    if not _PARAMETER.fullmatch(text):
        raise ValueError(f"expected a parameter's name of letters, digits, '_', '.', '~', '-', got {quoted(text)}")
    return text


def parse_credential_field(text: str) -> str:
    """A request field that carries a credential, lower case; cookies have a key of their own."""
    name = parse_field_name(text)
    if name == "cookie":
        raise ValueError("Cookie carries everything: name the cookies under `cookies`")
    return name


def parse_short_text(text: str) -> str:
    """Printable ASCII without quotes, as claims, URLs and templates have it."""
    if not _SHORT_TEXT.fullmatch(text):
        raise ValueError(f"expected 1 to 256 printable characters of ASCII without quotes, got {quoted(text)}")
    return text


def parse_method(text: str) -> str:
    """A method of `methods:`, as it is written: methods are case-sensitive (RFC 9110 section 9.1)."""
    if not _TOKEN.fullmatch(text) or len(text) > METHOD_LENGTH_MAX:
        raise ValueError(f"expected the name of a method, got {quoted(text)}")
    if text in ("CONNECT", "TRACE"):
        raise ValueError(f"{text} is never passed on")
    return text


def parse_field_name(text: str) -> str:
    """A request field of `forward:`, lower case."""
    if not _TOKEN.fullmatch(text):
        raise ValueError(f"expected the name of a request field, got {quoted(text)}")
    name = text.lower()
    if name in _NEVER_FORWARDED or name.startswith(_NEVER_FORWARDED_PREFIXES):
        raise ValueError(f"{text} is never forwarded: the box writes it itself or it belongs to one connection only")
    return name


def parse_interface_name(text: str) -> str:
    """A network interface, as the kernel names them (dev_valid_name)."""
    if not 0 < len(text) <= 15 or text in (".", "..") or any(each in "/:" or each.isspace() for each in text):
        raise ValueError(f"expected the name of an interface such as 'eth0', got {quoted(text)}")
    return text


def parse_multicast_network(text: str) -> IpNetwork:
    network = parse_network(text)
    if not network.is_multicast:
        raise ValueError(f"{text} is no range of groups: expected one such as '239.0.0.0/8'")
    return network


def parse_group(text: str) -> str:
    """One group that may leave its link, in its usual writing."""
    address = literal(text.removeprefix("[").removesuffix("]") if text.startswith("[") else text)
    if address is None or not address.is_multicast:
        raise ValueError(f"{quoted(text)} is no group: expected one such as '239.9.0.1'")
    packed = address.packed
    if packed[:3] == b"\xe0\0\0" if address.version == 4 else packed[1] & 15 <= 2:
        raise ValueError(f"{address} is of link scope: no router forwards it")
    return str(address)


def parse_folder(value: str) -> str:
    """The name of a folder that may be somebody's alone: not `.` nor `..`. Raises ValueError."""
    if not value.strip("./ ") or "\0" in value or "\n" in value:
        raise ValueError("expected the name of a folder, such as 'cache'")
    return value
