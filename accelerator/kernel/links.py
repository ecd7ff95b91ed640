"""The box's interfaces as they are, by netlink, and a socket that says when they have changed. Never changes one:
addresses belong to the system's own network configuration."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_address, ip_interface
from typing import Any

from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkError

from accelerator.protocols.membership.messages import Prefix, prefix

_IFF_UP = 1
_IFA_F_TENTATIVE = 0x40
_GROUPS = 1 | 1 << 4 | 1 << 8  # RTMGRP_LINK, RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR


# Several changes of links come at once: one reading is enough for them.
SETTLE_S, RETRY_S = 0.02, 5.0


@dataclass(frozen=True, slots=True)
class Link:
    """One interface. Addresses are packed; `address6` is the link-local one, which MLD wants. None: it has none
    (yet). `port_of`: the bridge or bond whose port it is, and which gets what comes in there."""

    name: str
    index: int
    is_up: bool
    mtu: int
    address4: bytes | None = None
    nets4: tuple[Prefix, ...] = ()
    address6: bytes | None = None
    addresses: frozenset[bytes] = frozenset()  # all of them, of both families
    port_of: str | None = None


async def read_links() -> dict[str, Link]:
    """All interfaces by name."""
    async with AsyncIPRoute() as netlink:
        links = [each async for each in await netlink.get_links()]
        addresses = [each async for each in await netlink.get_addr()]
    by_index: dict[int, list[Any]] = {}
    for address in addresses:
        by_index.setdefault(address["index"], []).append(address)
    found: dict[str, Link] = {}
    names = {link["index"]: _name(link) for link in links}
    for link in links:
        index, mine = link["index"], by_index.get(link["index"], [])
        # The local end of a point-to-point link is IFA_LOCAL, of any other both are the same.
        v4 = [
            (ip_address(each.get("local") or each.get("address")).packed, each["prefixlen"])
            for each in mine
            if each["family"] == socket.AF_INET
        ]
        v6 = [
            ip_address(each.get("local") or each.get("address"))
            for each in mine
            if each["family"] == socket.AF_INET6 and not each["flags"] & _IFA_F_TENTATIVE
        ]
        name = names[index]
        # A VRF leaves its members what comes in there.
        is_port = link.get(("linkinfo", "slave_kind")) not in (None, "vrf")
        found[name] = Link(
            name,
            index,
            bool(link["flags"] & _IFF_UP),
            link.get("mtu"),
            v4[0][0] if v4 else None,
            tuple(prefix(ip_interface((address, length)).network) for address, length in v4),
            min((each.packed for each in v6 if each.is_link_local), default=None),
            frozenset({*(address for address, _ in v4), *(each.packed for each in v6)}),
            names.get(link.get("master")) if is_port else None,
        )
    return found


def _name(link: Any) -> str:
    """The kernel takes any bytes for one."""
    name = link.get("ifname")
    return name if isinstance(name, str) else name.decode(errors="replace")


async def follow_links(changed: Callable[[dict[str, Link]], None], tell: Callable[[dict[str, Any]], None]) -> None:
    """Gives the interfaces as they are, at once and whenever they may have changed; never ends by itself."""
    loop, watch, wanted = asyncio.get_running_loop(), LinkWatch(), asyncio.Event()

    def event() -> None:
        watch.drain()
        wanted.set()

    loop.add_reader(watch.fileno(), event)
    wanted.set()
    try:
        while True:
            await wanted.wait()
            wanted.clear()
            try:
                links = await read_links()
            except (OSError, NetlinkError) as error:
                tell({"kind": "links-unreadable", "message": f"the interfaces can't be read: {error}"})
                await asyncio.sleep(RETRY_S)
                wanted.set()
                continue
            changed(links)
            await asyncio.sleep(SETTLE_S)
    finally:
        loop.remove_reader(watch.fileno())
        watch.close()


class LinkWatch:
    """Readable when interfaces or addresses may have changed. What the events say is not read: whoever is woken reads
    the links anew, so an event that was lost for want of memory costs nothing."""

    def __init__(self) -> None:
        kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        self._socket = socket.socket(socket.AF_NETLINK, kind, socket.NETLINK_ROUTE)
        self._socket.bind((0, _GROUPS))

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def drain(self) -> None:
        """Takes what is there, so that the next change wakes again."""
        while True:
            try:
                self._socket.recv(1 << 16)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != 105:  # ENOBUFS: events were lost, which is one more reason to read
                    raise
