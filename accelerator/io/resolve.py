"""From an upstream's host to addresses that may be connected to; nobody resolves again after this. Opens no connection.

Names must not lead the box to itself or its link (SSRF, DNS rebinding); literals and pins are the policy's own words
and are allowed, but our own listeners never.
"""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from itertools import zip_longest
from typing import Any

from accelerator.errors import OriginError
from accelerator.io.origin import OriginCounters, UpstreamEvent

IPAddress = IPv4Address | IPv6Address
# Like loop.getaddrinfo(host, port, type=...).
GetAddrInfo = Callable[..., Awaitable[list[tuple[Any, ...]]]]

# One lookup serves the connections opened within this time: getaddrinfo tells no TTL, DNS steering uses 20 s and more.
REUSE_S = 5.0
# Up to this share sooner, so that names looked up together don't go on asking together.
REUSE_JITTER = 0.2
# A name with more addresses than this is tried no further: each costs a viewer one connect time-out.
MAX_ADDRESSES = 4

_REFUSED_V4 = (
    (IPv4Network("127.0.0.0/8"), "loopback"),
    (IPv4Network("169.254.0.0/16"), "link-local"),
    (IPv4Network("0.0.0.0/8"), "unspecified"),
    (IPv4Network("224.0.0.0/4"), "multicast"),
    (IPv4Network("255.255.255.255/32"), "broadcast"),
)
_REFUSED_V6 = (
    (IPv6Network("::1/128"), "loopback"),
    (IPv6Network("::/128"), "unspecified"),
    (IPv6Network("fe80::/10"), "link-local"),
    (IPv6Network("ff00::/8"), "multicast"),
)
# Where an IPv6 address carries an IPv4 one: (prefix, bits to the right of it).
_EMBEDDED = (
    (IPv6Network("::/96"), (0,)),  # IPv4-compatible, RFC 4291 section 2.5.5.1
    (IPv6Network("::ffff:0:0/96"), (0,)),  # IPv4-mapped, RFC 4291 section 2.5.5.2
    (IPv6Network("::ffff:0:0:0/96"), (0,)),  # IPv4-translated, RFC 2765
    (IPv6Network("64:ff9b::/96"), (0,)),  # NAT64, RFC 6052
    (IPv6Network("2002::/16"), (80,)),  # 6to4, RFC 3056
)
_LOCAL_NAT64 = IPv6Network("64:ff9b:1::/48")  # RFC 8215
_TEREDO = IPv6Network("2001::/32")  # RFC 4380: server at bits 64, client's address inverted at 0
_ISATAP = (0x00005EFE, 0x02005EFE)  # RFC 5214: interface identifier 0:5efe:a.b.c.d or 200:5efe:a.b.c.d


@dataclass(frozen=True)
class Address:
    """A checked address: connected to as it stands, never resolved again."""

    ip: str
    port: int

    @property
    def family(self) -> int:
        return socket.AF_INET6 if ":" in self.ip else socket.AF_INET


def embedded_v4(ip: IPv6Address) -> tuple[IPv4Address, ...]:
    """The IPv4 addresses that packets to `ip` may be sent on to by a translator or tunnel."""
    number = int(ip)
    found: list[int] = []
    for network, shifts in _EMBEDDED:
        if ip in network:
            found += [(number >> shift) & 0xFFFFFFFF for shift in shifts]
    if ip in _LOCAL_NAT64:
        # RFC 6052 section 2.2: a /48, /56, /64 or /96 may be in use within it; bits 64 to 71 are skipped.
        # A reading that gives 0.x.y.z is the wrong one; refusing it would refuse every address of a longer prefix.
        joined = (number >> 64 << 56) | (number & ((1 << 56) - 1))
        readings = [number & 0xFFFFFFFF, *((joined >> (88 - prefix_bits)) & 0xFFFFFFFF for prefix_bits in (48, 56, 64))]
        found += [reading for reading in readings if reading >> 24]
    if ip in _TEREDO:
        found += [(number >> 64) & 0xFFFFFFFF, ~number & 0xFFFFFFFF]
    if (number >> 32) & 0xFFFFFFFF in _ISATAP:
        found.append(number & 0xFFFFFFFF)
    return tuple(IPv4Address(value) for value in found)


def is_own_address(ip: IPAddress) -> bool:
    """Whether `ip` is one of this machine's: the kernel then picks it as its own source too. No packet is sent.

    A trial bind() answers yes to everything under net.ipv4.ip_nonlocal_bind, which VRRP set-ups switch on.
    """
    family = socket.AF_INET if ip.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as probe:
            probe.connect((str(ip), 9))
            return ip_address(probe.getsockname()[0].partition("%")[0]) == ip
    except OSError:
        return False


def refusal(ip: IPAddress, is_own: Callable[[IPAddress], bool] = is_own_address) -> str | None:
    """Why a name must not lead to `ip`, as a short word; None when it may."""
    if isinstance(ip, IPv4Address):
        for network_v4, word in _REFUSED_V4:
            if ip in network_v4:
                return word
    else:
        for network_v6, word in _REFUSED_V6:
            if ip in network_v6:
                return word
        for inner in embedded_v4(ip):
            why = refusal(inner, is_own)
            if why is not None:
                return why
    return "own address" if is_own(ip) else None


def is_own_listener(
    ip: IPAddress,
    port: int,
    listeners: Iterable[tuple[str, int]],
    is_own: Callable[[IPAddress], bool] = is_own_address,
) -> bool:
    """Whether a connection to (ip, port) would reach one of `listeners` (address, port), wildcard ones included."""
    forms: set[IPAddress] = {ip}
    if isinstance(ip, IPv6Address):
        forms.update(embedded_v4(ip))
    for host, listening_port in listeners:
        if listening_port != port:
            continue
        listener = parse_ip(host)
        if listener is None:
            continue
        if isinstance(listener, IPv6Address) and listener.ipv4_mapped is not None:
            listener = listener.ipv4_mapped
        for form in forms:
            # Linux takes a connection to the unspecified address as one to loopback.
            if form == listener or (form.is_unspecified and (listener.is_loopback or listener.is_unspecified)):
                return True
            if listener.is_unspecified and (form.is_loopback or is_own(form)):
                return True
    return False


def parse_ip(text: str) -> IPAddress | None:
    """Strict literal (dotted quad, RFC 4291 text), else None: `127.1`, `0x7f.1` and `2130706433` are names here."""
    try:
        ip = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return ip


def families_in_turn(ips: Iterable[IPAddress]) -> list[IPAddress]:
    """The same addresses, so that the second is of the other family if there is one (RFC 8305 section 4)."""
    left = list(ips)
    first = [ip for ip in left if ip.version == left[0].version]
    second = [ip for ip in left if ip.version != left[0].version]
    return [ip for pair in zip_longest(first, second) for ip in pair if ip is not None]


@dataclass
class _Name:
    """What is known of one name. `task`: its last lookup, which serves until `reuse_until_s`."""

    task: asyncio.Task[tuple[IPAddress, ...]]
    reuse_until_s: float
    good: tuple[IPAddress, ...] = ()
    good_at_s: float = 0.0
    is_failing: bool = False


class Resolver:
    """Looks names up, one lookup per name at a time, checks every address, keeps the last good answer.

    `note` hears once when lookups of a name begin to fail, and once when they succeed again.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        counters: OriginCounters,
        getaddrinfo: GetAddrInfo | None = None,
        is_own: Callable[[IPAddress], bool] = is_own_address,
        note: Callable[[UpstreamEvent], None] = lambda event: None,
    ) -> None:
        self._loop = loop
        self._counters = counters
        self._getaddrinfo: GetAddrInfo = loop.getaddrinfo if getaddrinfo is None else getaddrinfo
        self._is_own = is_own
        self._note = note
        self._names: dict[str, _Name] = {}

    async def addresses(
        self,
        host: str,
        port: int,
        *,
        pins: tuple[str, ...],
        own_listeners: frozenset[tuple[str, int]],
        timeout_s: float,
        grace_s: float,
    ) -> tuple[Address, ...]:
        """Addresses to try in order, the families in turn. Raises OriginError('dns' or 'forbidden-address').

        `pins` stand for a name, not for a literal. `grace_s`: how long the last good answer serves while DNS fails.
        One forbidden address refuses the whole name: an answer that mixes them is either an attack or a mistake.
        """
        literal = parse_ip(host)
        ips: tuple[IPAddress, ...]
        if literal is not None:
            ips = (literal,)
        elif pins:
            parsed = [parse_ip(pin) for pin in pins]
            if None in parsed:
                raise OriginError("dns", f"resolve: {pins} of {host} has something that is no address")
            ips = tuple(ip for ip in parsed if ip is not None)
        else:
            ips = await self._look_up(host, timeout_s, grace_s)
            for ip in ips:
                why = refusal(ip, self._is_own)
                if why is not None:
                    raise OriginError("forbidden-address", f"{host} resolves to {ip} ({why})")
        for ip in ips:
            if is_own_listener(ip, port, own_listeners, self._is_own):
                raise OriginError("forbidden-address", f"{host} leads to our own listener {ip} port {port}")
        return tuple(Address(str(ip), port) for ip in families_in_turn(ips)[:MAX_ADDRESSES])

    async def _look_up(self, host: str, timeout_s: float, grace_s: float) -> tuple[IPAddress, ...]:
        now_s = self._loop.time()
        name = self._names.get(host)
        if name is None or (name.task.done() and now_s >= name.reuse_until_s):
            task = self._loop.create_task(self._ask(host))
            reuse_until_s = now_s + REUSE_S * (1 - REUSE_JITTER * random.random())
            if name is None:
                name = self._names[host] = _Name(task, reuse_until_s)
            else:
                name.task, name.reuse_until_s = task, reuse_until_s
            task.add_done_callback(lambda done: self._heard(host, done))
        has_good = bool(name.good) and now_s - name.good_at_s <= grace_s
        if has_good and name.is_failing and not name.task.done():
            # DNS is down: nobody waits for what will most likely fail again.
            self._counters.resolved_by_last_good += 1
            return name.good
        try:
            # Shielded: others wait for the same lookup, and a resolver that answers late is still worth hearing.
            async with asyncio.timeout(timeout_s):
                return await asyncio.shield(name.task)
        except (OSError, UnicodeError, TimeoutError) as exc:
            is_late = isinstance(exc, TimeoutError)
            message = "no answer in time" if is_late else str(exc)
            self._counters.resolve_failures += 1
            if not name.is_failing:
                name.is_failing = True
                uses = f"goes on with {', '.join(map(str, name.good))}" if has_good else "has no earlier answer"
                self._note(UpstreamEvent("dns-failed", host, f"can't be resolved ({message}); {uses}"))
            if has_good:
                self._counters.resolved_by_last_good += 1
                return name.good
            raise OriginError("dns", f"{host}: {message}", status=504 if is_late else 502, can_retry=True) from exc

    def _heard(self, host: str, task: asyncio.Task[tuple[IPAddress, ...]]) -> None:
        """A lookup is over, whether anybody still waits for it or not."""
        name = self._names.get(host)
        if task.cancelled() or task.exception() is not None or name is None:
            return
        if all(refusal(ip, self._is_own) is None for ip in task.result()):
            name.good, name.good_at_s = task.result(), self._loop.time()
        if name.is_failing:
            name.is_failing = False
            self._note(UpstreamEvent("dns-returned", host, "can be resolved again"))

    async def _ask(self, host: str) -> tuple[IPAddress, ...]:
        answers = await self._getaddrinfo(host, None, type=socket.SOCK_STREAM)
        ips: dict[IPAddress, None] = {}
        for family, _type, _protocol, _name, sockaddr in answers:
            if family not in (socket.AF_INET, socket.AF_INET6):
                continue
            ip = parse_ip(str(sockaddr[0]))
            if ip is None:
                raise OSError(f"unreadable address {sockaddr[0]!r}")
            ips[ip] = None
        if not ips:
            raise OSError("no address")
        return tuple(ips)

    async def close(self) -> None:
        """Forgets lookups under way."""
        tasks = [name.task for name in self._names.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._names.clear()
