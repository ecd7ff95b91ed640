"""Compiles a checked policy to flat rows, frozen and of plain values, from which the data plane's tables are filled.

Nothing is checked here: a policy that check_policy accepted compiles. No rows of upstreams or timeouts are made here:
services read them from the policy.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from ipaddress import IPv4Network, IPv6Network

from accelerator.policy.credentials import places_of
from accelerator.policy.link_rows import LinkRow, MarkRow, ShareRow, link_rows, mark_rows, share_rows
from accelerator.policy.model import Origin, Policy, Relay, RelayOutput
from accelerator.policy.multicast_rows import MulticastRows, multicast_rows
from accelerator.policy.relay_addresses import dscp_value
from accelerator.policy.relay_rules import (
    REORDER_FEC_S,
    REORDER_LEGS_S,
    REORDER_RETRANSMIT_S,
    REORDER_S,
    inputs_of,
)
from accelerator.policy.relay_rules import Input as RelayInput
from accelerator.policy.steering_rows import InterceptRow, intercept_row, prefix_paths

PROFILES = ("media", "generic")
VIEWERS = ("zone", "hash", "truncate")
# What Allow says where any method is passed.
ANY_METHODS = ("GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE")
# The control plane's time-outs end first.
WAIT_SPARE_S = 30.0
# The last: any host, but unknown (421) where none of its paths is asked for.
HOST_EXACT, HOST_SUFFIX, HOST_ANY, HOST_PATHS = range(4)
# Names of relays' rows among the origins'; no origin's name has a colon.
RELAY_PREFIX = "relay:"
UDPXY_NAME = "relay:udpxy:"
# Longer than services/relays/viewers.py waits for a signal.
RELAY_WAIT_S = 30.0
HOLD_S = 0.005
# 1,000 viewers of 8 Mbit/s: docs/decisions/0201-readers-are-told-in-steps.md
HOLD_HTTP_S = 0.02

# Pairs of host and path in all, inherited ones included: 100,000 rows compile in 0.06 s (measured).
ROUTES_MAX = 100_000


@dataclass(frozen=True, slots=True)
class OriginRow:
    """`profile` is an index of PROFILES. `methods`: what Allow says. `any_method`: others are passed too.
    `wait_s`: longer than the upstream client can take to give a head or an error. `credential_rule`: 0: nobody's
    credential is judged; else a number of 63 bits that differs for each rule, so that what was allowed under one is not
    under another. `may_tunnel`: Upgrade goes up. `max_offline_s`: 0: no limit. `dscp`: of answers. `is_relay`: no
    origin, but a relay's path (its name begins with RELAY_PREFIX), for the zones of `zone_mask`; 0: for all."""

    name: str
    profile: int
    class_name: str | None
    methods: tuple[str, ...]
    any_method: bool
    body_max_bytes: int | None
    wait_s: float
    credential_parameters: tuple[str, ...] = ()
    credential_headers: tuple[str, ...] = ()
    credential_cookies: tuple[str, ...] = ()
    credential_rule: int = 0
    may_tunnel: bool = False
    refusal: int = 403
    judges_all: bool = False
    max_offline_s: float = 0.0
    is_relay: bool = False
    zone_mask: int = 0
    dscp: int = 0


@dataclass(frozen=True, slots=True)
class PathRow:
    """`prefix` has no slash at its end unless it is "/", which matches all; it matches at a segment boundary.
    `strip`: of the URL prefix, so many bytes before the origin's own path begins."""

    prefix: str
    origin: int
    strip: int = 0


@dataclass(frozen=True, slots=True)
class HostRow:
    """`kind` 0 exact ("media.corp.example", no port), 1 suffix (".corp.example"), 2 any ("*"), 3 any, for paths of
    relays and URL prefixes alone; `paths` longest first.

    Paths of less specific rows that match the same hosts are here too (the row's own win): the first row that matches
    decides alone.
    """

    pattern: str
    kind: int
    paths: tuple[PathRow, ...]


HTTP2 = {"never": 0, "tls": 1, "cleartext": 2}  # ext/layout.pxd


@dataclass(frozen=True, slots=True)
class ListenerRow:
    """`zone_mask` 0 = every zone; else bit i = zone i of Tables.zones. Port 0 = any free one. `certificates`: names of
    credentials; without any it is plain. `is_legacy`: old versions of TLS too."""

    name: str
    host: str
    port: int
    zone_mask: int
    certificates: tuple[str, ...] = ()
    is_legacy: bool = False
    http2: int = 1  # of HTTP2


@dataclass(frozen=True, slots=True)
class NetRow:
    """`network` 16 bytes, IPv4 mapped (RFC 4291 section 2.5.5.2); `prefix_bits` of 128; `zone`: of Tables.zones."""

    network: bytes
    prefix_bits: int
    zone: int


@dataclass(frozen=True, slots=True)
class RelayOutputRow:
    """`kind`: group, unicast, http. `targets`: (address, port) of the group, or the receivers of the list. `zones`:
    whose receivers may be added; none: anybody. `rate_bps` 0: as it comes; -1: as measured."""

    kind: str
    targets: tuple[tuple[str, int], ...]
    path: str
    interface: str | None
    ttl: int
    dscp: int
    source_port: int
    zones: tuple[str, ...]
    rtp: str
    hold_ns: int
    rate_bps: int
    window_bytes: int = 0


@dataclass(frozen=True, slots=True)
class RelayRow:
    """`sources`: networks as text, none: those of the inputs, or any. `payload_type` -1: any; `bitrate_bps` 0: any."""

    name: str
    inputs: tuple[RelayInput, ...]
    is_backup: bool
    is_always: bool
    linger_s: float
    failover_ns: int
    wait_ns: int
    sources: tuple[str, ...]
    payload_type: int
    receivers_max: int
    bitrate_bps: int
    outputs: tuple[RelayOutputRow, ...]
    announce: str = ""
    # Whom missing packets are asked from, and the payload type of the answers; None: nobody.
    asks: tuple[str, int] | None = None
    asks_type: int = -1


@dataclass(frozen=True, slots=True)
class UdpxyRow:
    """Networks as text; `groups` none: viewers may ask for nothing."""

    groups: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    interface: str | None = None
    channels: int = 0
    linger_s: float = 10.0
    bitrate_bps: int = 0
    window_bytes: int = 0


@dataclass(frozen=True, slots=True)
class DiskClassRow:
    """`quota_bytes` 0: no bound of its own."""

    name: str
    quota_bytes: int
    is_pinned: bool


@dataclass(frozen=True, slots=True)
class DiskRow:
    """`classes`: those that are kept on the disk, in the policy's order."""

    path: str
    size_bytes: int
    encrypt: str
    classes: tuple[DiskClassRow, ...]


@dataclass(frozen=True, slots=True)
class Limits:
    """`send_rate_min_Bps` is in bytes per second; 0 = none."""

    connections: int
    connections_per_address: int
    head_timeout_s: float
    body_timeout_s: float
    idle_timeout_s: float
    send_rate_min_Bps: int  # noqa: N815 - the unit's own spelling
    drain_s: float


@dataclass(frozen=True, slots=True)
class Logs:
    """`viewer` is an index of VIEWERS. `access_retention_s` is the shorter of the policy's two. `security_has_viewers`:
    the security log keeps its lines no longer than the policy lets anything about viewers be kept."""

    has_access: bool
    viewer: int
    access_retention_s: float
    access_bytes: int
    security_retention_s: float
    security_bytes: int
    security_has_viewers: bool = False


@dataclass(frozen=True, slots=True)
class Tables:
    """One policy for the data plane. `workers` 0 = auto.

    `hosts` exact first, then longest suffix, then any; `nets` most specific first.
    """

    site: str
    origins: tuple[OriginRow, ...]
    hosts: tuple[HostRow, ...]
    listeners: tuple[ListenerRow, ...]
    zones: tuple[str, ...]
    nets: tuple[NetRow, ...]
    limits: Limits
    memory_bytes: int
    workers: int
    digest: str
    logs: Logs
    admin: tuple[str, int] | None
    admin_reads_freely: bool
    multicast: MulticastRows
    disk: DiskRow | None = None
    relays: tuple[RelayRow, ...] = ()
    udpxy: UdpxyRow = UdpxyRow()
    # Zones by name, for who may have what of relays; and those of them that get no multicast.
    zone_nets: tuple[tuple[str, tuple[str, ...]], ...] = ()
    zones_without_multicast: tuple[str, ...] = ()
    links: tuple[LinkRow, ...] = ()
    marks: tuple[MarkRow, ...] = ()
    shares: tuple[ShareRow, ...] = ()
    intercept: InterceptRow | None = None
    may_connect: bool = False
    has_pages: bool = False
    memory_quotas: tuple[int, ...] = ()  # of each class in the policy's order; 0: no bound of its own


def compile_policy(policy: Policy) -> Tables:
    """The tables of a policy that check_policy accepted. Pure and deterministic; raises nothing for such a policy."""
    zones = tuple(policy.zones)
    limits = policy.limits
    return Tables(
        site=policy.site.name,
        origins=(
            *(_origin_row(name, row, policy) for name, row in policy.origins.items()),
            *(row for row, _ in _relay_paths(policy)),
        ),
        hosts=_host_rows(policy),
        listeners=tuple(
            ListenerRow(
                name,
                row.address.host,
                row.address.port,
                sum({1 << zones.index(zone) for zone in row.zones}),
                row.tls,
                row.legacy,
                HTTP2["never" if row.legacy else row.http2],  # RFC 9113 section 9.2 forbids the old suites
            )
            for name, row in policy.listen.items()
        ),
        zones=zones,
        nets=_net_rows(policy),
        limits=Limits(
            connections=limits.connections,
            connections_per_address=limits.connections_per_address,
            head_timeout_s=limits.head_timeout,
            body_timeout_s=limits.body_timeout,
            idle_timeout_s=limits.idle_timeout,
            send_rate_min_Bps=-(-limits.send_rate // 8),
            drain_s=limits.drain,
        ),
        memory_bytes=policy.cache.memory,
        workers=policy.workers,
        digest=digest_of(policy),
        logs=Logs(
            has_access=policy.logs.access.enabled,
            viewer=VIEWERS.index(policy.privacy.viewer),
            access_retention_s=min(policy.logs.access.retention, policy.privacy.retention),
            access_bytes=policy.logs.access.max_size,
            security_retention_s=policy.logs.security.retention,
            security_bytes=policy.logs.security.max_size,
            security_has_viewers=policy.logs.security.retention <= policy.privacy.retention,
        ),
        admin=(policy.admin.address.host, policy.admin.address.port) if policy.admin is not None else None,
        admin_reads_freely=policy.admin is None or policy.admin.token != "always",
        multicast=multicast_rows(policy),
        disk=_disk_row(policy),
        relays=tuple(_relay_row(name, row) for name, row in policy.relays.items()),
        udpxy=_udpxy_row(policy),
        zone_nets=tuple((name, tuple(map(str, zone.nets))) for name, zone in policy.zones.items()),
        zones_without_multicast=tuple(name for name, zone in policy.zones.items() if zone.multicast == "never"),
        links=link_rows(policy),
        marks=mark_rows(policy),
        shares=share_rows(policy),
        intercept=intercept_row(policy),
        may_connect=bool(policy.steering.connect),
        has_pages=policy.steering.proxy is not None or policy.steering.document is not None,
        memory_quotas=tuple(
            _share(policy.cache.memory, row.quota) if row.store == "memory" or policy.cache.disk is None else 0
            for row in policy.classes.values()
        ),
    )


def _relay_paths(policy: Policy) -> list[tuple[OriginRow, tuple[str, ...]]]:
    """Relays' paths as rows beside those of origins, by which workers find them: (row, paths)."""
    zones = tuple(policy.zones)
    found: list[tuple[str, tuple[str, ...], tuple[str, ...]]] = [
        (f"{RELAY_PREFIX}{name}{f':{index}' if index else ''}", output.zones, (output.http,))
        for name, relay in policy.relays.items()
        for index, output in enumerate(relay.to)
        if output.http is not None
    ]
    if policy.udpxy.groups:
        found.append((UDPXY_NAME, policy.udpxy.zones, ("/udp", "/rtp")))
    return [
        (
            OriginRow(
                name=name, profile=0, class_name=None, methods=("GET", "HEAD", "OPTIONS"), any_method=False,
                body_max_bytes=0, wait_s=RELAY_WAIT_S, is_relay=True,
                zone_mask=sum({1 << zones.index(zone) for zone in for_zones}),
            ),
            paths,
        )
        for name, for_zones, paths in found
    ]  # fmt: skip


def _udpxy_row(policy: Policy) -> UdpxyRow:
    row = policy.udpxy
    if not row.groups:
        return UdpxyRow()
    return UdpxyRow(
        groups=tuple(map(str, row.groups)),
        sources=tuple(map(str, row.sources)),
        interface=row.interface,
        channels=row.channels,
        linger_s=row.linger,
        bitrate_bps=row.bitrate or 0,
        window_bytes=row.window,
    )


def _relay_row(name: str, relay: Relay) -> RelayRow:
    reorder_s = relay.reorder
    if reorder_s is None:
        reorder_s = REORDER_LEGS_S if len(relay.from_) > 1 and relay.mode == "legs" else REORDER_S
        reorder_s = max(reorder_s, REORDER_RETRANSMIT_S) if relay.retransmit is not None else reorder_s
        reorder_s = max(reorder_s, REORDER_FEC_S) if relay.fec != "none" else reorder_s
    return RelayRow(
        name=name,
        inputs=inputs_of(relay),
        is_backup=relay.mode == "backup",
        is_always=relay.join == "always",
        linger_s=relay.linger,
        failover_ns=int(relay.failover * 1e9),
        wait_ns=int(reorder_s * 1e9),
        sources=tuple(map(str, relay.sources)),
        payload_type=-1 if relay.payload_type is None else relay.payload_type,
        receivers_max=relay.receivers,
        bitrate_bps=relay.bitrate or 0,
        outputs=tuple(map(_relay_output_row, relay.to)),
        announce=relay.announce or "",
        asks=relay.retransmit.from_ if relay.retransmit is not None else None,
        asks_type=relay.retransmit.payload_type if relay.retransmit is not None else -1,
    )


def _relay_output_row(output: RelayOutput) -> RelayOutputRow:
    kind = "group" if output.group is not None else "http" if output.http is not None else "unicast"
    targets = (output.group,) if output.group is not None else output.unicast or ()
    hold_s = (HOLD_HTTP_S if kind == "http" else HOLD_S) if output.hold is None else output.hold
    return RelayOutputRow(
        kind=kind,
        targets=tuple((each.host, each.port) for each in targets),
        path=output.http or "",
        interface=output.interface,
        ttl=output.ttl,
        dscp=dscp_value(output.dscp),
        source_port=output.source_port,
        zones=output.zones,
        rtp=output.rtp,
        hold_ns=int(hold_s * 1e9),
        rate_bps=output.rate or 0,
        window_bytes=output.window if kind == "http" else 0,
    )


def _origin_row(name: str, row: Origin, policy: Policy) -> OriginRow:
    is_media = row.profile == "media"
    methods = tuple(dict.fromkeys(row.methods)) or ("GET", "HEAD")
    if is_media and "OPTIONS" not in methods:
        methods = (*methods, "OPTIONS")  # preflights are answered at the edge
    any_method = not is_media and not row.methods
    places = places_of(row.credential)
    # For a place, then for each upstream to accept, then for the head.
    wait_s = 2 * row.head_timeout + len(row.from_) * row.timeouts.connect + WAIT_SPARE_S
    return OriginRow(
        name=name,
        profile=PROFILES.index(row.profile),
        class_name=row.class_,
        methods=ANY_METHODS if any_method else methods,
        any_method=any_method,
        body_max_bytes=row.body_max,
        wait_s=wait_s,
        credential_parameters=places.parameters,
        credential_headers=places.headers,
        credential_cookies=places.cookies,
        credential_rule=_rule_number(row),
        may_tunnel=row.tunnels > 0 and (row.upgrade or not is_media),
        judges_all=row.credential is not None and row.credential.verify is not None,
        refusal=row.credential.refusal if row.credential is not None else 403,
        max_offline_s=max_offline_of(row, policy),
        dscp=dscp_value(policy.classes[row.class_].dscp) if row.class_ is not None else 0,
    )


def max_offline_of(row: Origin, policy: Policy) -> float:
    """The shorter of the origin's and its class's, in seconds; 0: no limit."""
    own_class = policy.classes.get(row.class_ or "")
    limits = (row.max_offline, own_class.max_offline if own_class is not None else None)
    return min((each for each in limits if each is not None), default=0.0)


def _rule_number(origin: Origin) -> int:
    if origin.credential is None:
        return 0
    text = json.dumps(origin.credential.model_dump(mode="json", by_alias=True), sort_keys=True)
    return int.from_bytes(sha256(text.encode()).digest()[:8], "big") >> 1 | 1


def _disk_row(policy: Policy) -> DiskRow | None:
    disk = policy.cache.disk
    if disk is None:
        return None
    rows = tuple(
        DiskClassRow(name, _share(disk.size, row.quota), row.pin)
        for name, row in policy.classes.items()
        if row.store == "disk"
    )
    return DiskRow(disk.path, disk.size, disk.encrypt, rows)


def _share(size_bytes: int, quota: int) -> int:
    return size_bytes * quota // 100 if quota < 100 else 0


def digest_of(policy: Policy) -> str:
    """SHA-256 (hex) of what the policy says: comments, files, key order and defaults written out change nothing.

    The order of zones, links and classes counts: the first zone and link win, classes are priorities.
    """
    data = policy.model_dump(mode="json", by_alias=True, exclude={"locked"})
    data["zones"] = list(data["zones"].items())
    data["links"] = list(data["links"].items())
    data["classes"] = list(data["classes"].items())
    return sha256(json.dumps(data, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _own_paths(policy: Policy) -> dict[str, dict[str, int]]:
    """pattern as written -> path prefix -> origin index."""
    hosts: dict[str, dict[str, int]] = {}
    for index, origin in enumerate(policy.origins.values()):
        for host in origin.hosts:
            paths = hosts.setdefault(host, {})
            for path in origin.paths:
                paths.setdefault(path, index)
    for index, (_, own) in enumerate(_relay_paths(policy), len(policy.origins)):
        for path in own:
            hosts.setdefault("*", {}).setdefault(path, index)
    return hosts


def _wider(pattern: str, hosts: dict[str, dict[str, int]]) -> Iterator[str]:
    """The patterns among `hosts` that match all that `pattern` matches, the most specific first, itself left out."""
    rest = pattern.removeprefix("*.")
    while "." in rest:
        rest = rest.partition(".")[2]
        if "*." + rest in hosts:
            yield "*." + rest
    if pattern != "*" and "*" in hosts:
        yield "*"


def n_routes(policy: Policy) -> int:
    """How many path rows the policy compiles to, at most; quick, whatever the product of hosts and paths is."""
    counts: dict[str, int] = {}
    for origin in policy.origins.values():
        for host in origin.hosts:
            counts[host] = counts.get(host, 0) + len(origin.paths)
    hosts: dict[str, dict[str, int]] = {host: {} for host in counts}
    return sum(count + sum(counts[wider] for wider in _wider(host, hosts)) for host, count in counts.items())


def _host_rows(policy: Policy) -> tuple[HostRow, ...]:
    hosts = _own_paths(policy)
    rows = []
    for pattern, own in hosts.items():
        paths = dict(own)
        for wider in _wider(pattern, hosts):
            for prefix, origin in hosts[wider].items():
                paths.setdefault(prefix, origin)
        longest_first = sorted(paths.items(), key=lambda item: (-len(item[0]), item[0]))
        kind = HOST_ANY if pattern == "*" else HOST_SUFFIX if pattern.startswith("*.") else HOST_EXACT
        if kind == HOST_ANY and all(origin >= len(policy.origins) for origin in own.values()):
            kind = HOST_PATHS
        text = pattern[1:] if kind == HOST_SUFFIX else pattern
        rows.append(HostRow(text, kind, tuple(PathRow(prefix, origin) for prefix, origin in longest_first)))
    rows += _prefix_rows(policy)
    return tuple(
        sorted(rows, key=lambda row: (row.kind, -len(row.pattern) if row.kind == HOST_SUFFIX else 0, row.pattern))
    )


def _prefix_rows(policy: Policy) -> Iterator[HostRow]:
    """For the box's own names; or for every host that no origin has."""
    if policy.steering.prefix:
        paths = tuple(PathRow(*row) for row in prefix_paths(policy))
        for host in policy.steering.hosts:
            yield HostRow(f"[{host}]" if ":" in host else host, HOST_EXACT, paths)
        if not policy.steering.hosts:
            yield HostRow("", HOST_PATHS, paths)


def _mapped(network: IPv4Network | IPv6Network) -> tuple[bytes, int]:
    packed = network.network_address.packed
    if network.version == 4:
        return bytes(10) + b"\xff\xff" + packed, network.prefixlen + 96
    return packed, network.prefixlen


def _net_rows(policy: Policy) -> tuple[NetRow, ...]:
    first: dict[tuple[bytes, int], int] = {}
    for index, zone in enumerate(policy.zones.values()):
        for network in zone.nets:
            first.setdefault(_mapped(network), index)
    rows = [NetRow(network, bits, zone) for (network, bits), zone in first.items()]
    return tuple(sorted(rows, key=lambda row: (-row.prefix_bits, row.network)))
