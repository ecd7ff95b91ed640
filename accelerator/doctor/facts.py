"""What observers have seen and what policy wants of the network, as plain values. No judgement, no system call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Bridge:
    """A bridge of this box. `other_querier`: who else asks there, "" for nobody."""

    is_snooping: bool
    is_querier: bool
    other_querier: str


@dataclass(frozen=True, slots=True)
class Link:
    """An interface. `rp_filter`: what counts, the larger of its own and `all`. Offloads None: not known. `port_of`: the
    bridge or bond that gets what comes in there."""

    name: str
    is_up: bool
    mtu: int
    rp_filter: int = 0
    has_lro: bool | None = None
    has_gro: bool | None = None
    bridge: Bridge | None = None
    port_of: str = ""


@dataclass(frozen=True, slots=True)
class Stream:
    """Packets that policy wants to come in: `interface` "" where the kernel's routes say, `group` "" for any group of a
    proxy. `route`: the interface of the way back to the source, "" where nothing is known of it."""

    owner: str  # as policy names it: relays.hall, multicast.proxies.tv
    interface: str
    group: str
    port: int
    source: str
    route: str = ""
    is_host_join: bool = True  # by a socket, which the kernel's limits bind


@dataclass(frozen=True, slots=True)
class Proxy:
    """A multicast proxy of the policy, and what accelerator-netd says of its downstreams: interface -> asker or "", and
    what was left aside there since netd began, by name, of both families. `groups`: networks; none: all."""

    name: str
    upstream: str
    downstream: tuple[str, ...]
    querier: str
    asked_by: Mapping[str, str] | None = None
    drops: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    groups: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Heard:
    """What was heard on an interface. `queriers`: who asked; `expiring`: (source, group) of packets with TTL 1."""

    interface: str
    seconds: float
    queriers: tuple[str, ...] = ()
    expiring: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Network:
    """All of it. `ruleset` None: could not be read. `kernel`: what is there, by name of the option."""

    links: Mapping[str, Link]
    streams: tuple[Stream, ...] = ()
    proxies: tuple[Proxy, ...] = ()
    heard: tuple[Heard, ...] = ()
    listeners: tuple[tuple[str, str, int], ...] = ()  # name, address, port
    intercepts: tuple[str, ...] = ()  # interfaces where viewers' packets are taken
    not_forwarding: tuple[str, ...] = ()  # sysctls that should be 1 for them
    ruleset: Mapping[str, Any] | None = None
    kernel: Mapping[str, bool] = field(default_factory=dict)
    memberships_max: int | None = None  # of a socket
    sources_max: int | None = None
    routing_daemons: tuple[tuple[int, str], ...] = ()  # pid and name of who else routes multicast


@dataclass(frozen=True, slots=True)
class DiskFolder:
    """Where the disk tier is. `fault`: why nothing can be written there. `taken_bytes`: by the tier itself."""

    path: str
    size_bytes: int
    fault: str = ""
    free_bytes: int = 0
    taken_bytes: int = 0
    is_in_memory: bool = False


@dataclass(frozen=True, slots=True)
class Certificate:
    """One that a listener shows. `hosts`: whom it is for; `fault`: why it can't be read."""

    name: str
    fault: str = ""
    not_before_s: float = 0.0
    not_after_s: float = 0.0
    hosts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """An origin's answer to one request for `path`."""

    path: str
    status: int
    fields: tuple[tuple[bytes, bytes], ...]
    asked_wall_s: float
    answered_wall_s: float


@dataclass(frozen=True, slots=True)
class Upstream:
    """One `from` of an origin as seen from here. `stage`: where it failed (dns, connect, tls, answer), or ""."""

    origin: str
    url: str
    host: str
    addresses: tuple[str, ...] = ()
    own_addresses: tuple[str, ...] = ()  # those of them that are this box's
    is_pinned: bool = False
    via: str = ""  # a parent proxy
    stage: str = ""
    fault: str = ""
    dns_s: float = 0.0
    mtu: int = 0
    link_mtu: int = 0
    answer: Answer | None = None
