"""Hosts and ports of the policy's `steering`, as they are written. No name is resolved.

Every parse function takes the text that was written, and raises ValueError with one clear line.
"""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import urlsplit

from accelerator.policy.addresses import Address, literal, parse_host_pattern
from accelerator.policy.units import quoted

_PORT = re.compile(r"[0-9]{1,5}")
_URL = re.compile(r"https?://[\x21-\x7e]{1,500}")


class Authority(NamedTuple):
    """HOST:PORT: a name in lower case, or an IP literal without brackets."""

    host: str
    port: int

    def __str__(self) -> str:
        return str(Address(self.host, self.port))


def parse_own_host(text: str) -> str:
    """A whole name, or an IP address without brackets."""
    address = literal(text.removeprefix("[").removesuffix("]"))
    if address is not None:
        return str(address)
    host = parse_host_pattern(text)
    if "*" in host:
        raise ValueError(f"expected one name or address, got {quoted(text)}")
    return host


def parse_authority(text: str) -> Authority:
    host, colon, port = text.rpartition(":")
    if not colon or not _PORT.fullmatch(port) or not 1 <= int(port) <= 65_535:
        raise ValueError(f"expected HOST:PORT, got {quoted(text)}")
    return Authority(parse_own_host(host), int(port))


def parse_reload_url(text: str) -> str:
    if not _URL.fullmatch(text) or not urlsplit(text).hostname:
        raise ValueError(f"expected an http or https URL, got {quoted(text)}")
    return text
