"""What relays must know of network interfaces: whether one is there and up, its addresses, its speed. Asked, not
followed: a few ioctls for each interface that is in use, so that the sandbox needs no netlink (docs/decisions/0170).
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import socket
import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

# <linux/sockios.h>, <linux/if.h>
_SIOCGIFCONF, _SIOCGIFFLAGS, _SIOCGIFINDEX = 0x8912, 0x8913, 0x8933
_IFF_UP, _IFF_RUNNING = 0x1, 0x40
_IFREQ_BYTES = 40
_INTERFACES_MAX = 1024

IpAddress = IPv4Address | IPv6Address


@dataclass(frozen=True, slots=True)
class Link:
    """`index` changes when an interface goes and comes back under its name. `is_up`: and has a carrier."""

    index: int
    is_up: bool
    addresses: tuple[IpAddress, ...]


class Links:
    """Of the network namespace that this was made in. Never raises: what can't be read isn't there."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)

    def close(self) -> None:
        self._socket.close()

    def look(self, names: set[str]) -> dict[str, Link]:
        """Those of `names` that are there."""
        addresses = self.addresses()
        found = {}
        for name in names:
            request = name.encode()[:15].ljust(_IFREQ_BYTES, b"\0")
            with contextlib.suppress(OSError):
                index = struct.unpack_from("=i", fcntl.ioctl(self._socket, _SIOCGIFINDEX, request), 16)[0]
                flags = struct.unpack_from("=H", fcntl.ioctl(self._socket, _SIOCGIFFLAGS, request), 16)[0]
                is_up = flags & (_IFF_UP | _IFF_RUNNING) == _IFF_UP | _IFF_RUNNING
                found[name] = Link(index, is_up, addresses.get(name, ()))
        return found

    def addresses(self) -> dict[str, tuple[IpAddress, ...]]:
        """By interface; an alias (`eth0:1`) counts as its interface."""
        found: dict[str, list[IpAddress]] = {}
        for name, address in (*self._v4(), *_v6()):
            found.setdefault(name.partition(":")[0], []).append(address)
        return {name: tuple(sorted(each, key=lambda one: one.packed)) for name, each in found.items()}

    def _v4(self) -> list[tuple[str, IpAddress]]:
        # A row of `ifreq` for each address, secondary ones included (net/ipv4/devinet.c, inet_gifconf).
        buffer = bytearray(_IFREQ_BYTES * _INTERFACES_MAX)
        with contextlib.suppress(OSError):
            at = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
            asked = struct.pack("=iiQ", len(buffer), 0, at)  # struct ifconf
            size = struct.unpack_from("=i", fcntl.ioctl(self._socket, _SIOCGIFCONF, asked))[0]
            rows = [bytes(buffer[at : at + _IFREQ_BYTES]) for at in range(0, size, _IFREQ_BYTES)]
            return [(row[:16].partition(b"\0")[0].decode(errors="replace"), IPv4Address(row[20:24])) for row in rows]
        return []


def _v6() -> list[tuple[str, IpAddress]]:
    found: list[tuple[str, IpAddress]] = []
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/self/net/if_inet6").read_text().splitlines():
            words = line.split()
            found.append((words[5], IPv6Address(bytes.fromhex(words[0]))))
    return found


def speed_bps(name: str) -> int:
    """What the link is said to carry; 0: not known."""
    with contextlib.suppress(OSError, ValueError):
        return max(0, int(Path(f"/sys/class/net/{name}/speed").read_text())) * 1_000_000
    return 0
