"""The flow matrix of a policy: what the firewall team has to let through, and why. Pure: only what the policy says."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import asdict, astuple, dataclass, fields
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

from accelerator.policy.model import Policy
from accelerator.policy.relay_addresses import RelayUrl
from accelerator.policy.relay_model import Relay
from accelerator.protocols import sap


@dataclass(frozen=True, slots=True)
class Flow:
    """One row. `direction` as the box sees it: in or out. `port` "-" where the protocol has none."""

    source: str
    destination: str
    protocol: str
    port: str
    direction: str
    why: str


def flow_matrix(policy: Policy) -> list[Flow]:
    """Each flow once, in the policy's order."""
    taken = _intercepted(policy)
    rows = [*_listeners(policy), *taken, *_origins(policy), *_links(policy), *_tunnels(policy), *_relays(policy),
            *_udpxy(policy), *_multicast(policy)]  # fmt: skip
    return list(dict.fromkeys([*rows, *_control(rows)]))


def _control(rows: Sequence[Flow]) -> Iterator[Flow]:
    """What IP itself needs beside these."""
    if rows:
        yield Flow("any router", "box", "icmp", "-", "in",
                   "destination unreachable, fragmentation needed: stateful firewalls pass it as related")  # fmt: skip
    if any(":" in host for row in rows for host in (row.source, row.destination)):
        yield Flow("any router", "box", "icmpv6", "-", "in", "packet too big: stateful firewalls pass it as related")
        yield Flow("neighbours", "box", "icmpv6 (ND)", "-", "in", "neighbour discovery: without it there is no IPv6")
        yield Flow("box", "neighbours", "icmpv6 (ND)", "-", "out", "neighbour discovery: without it there is no IPv6")


def _own(host: str) -> str:
    """A listener's address as a firewall needs it."""
    return "box" if _is_address(host) and ip_address(host).is_unspecified else host


def _nets(policy: Policy, zones: Sequence[str], to: str) -> list[str]:
    """Networks of these zones that can send to `to`, an address, a network or a name; no zones: of all, where there are
    any, as that is where viewers are."""
    named = zones or tuple(policy.zones)
    nets = [net for name in named if name in policy.zones for net in policy.zones[name].nets]
    try:
        version = ip_network(to).version
    except ValueError:
        return list(map(str, nets)) or ["viewers"]
    return [str(net) for net in nets if net.version == version] if nets else ["viewers"]


def _listeners(policy: Policy) -> Iterator[Flow]:
    for name, row in policy.listen.items():
        if row.address.is_loopback:
            continue
        what = "HTTPS" if row.tls else "HTTP"
        for net in _nets(policy, row.zones, row.address.host):
            yield Flow(net, _own(row.address.host), "tcp", str(row.address.port), "in",
                       f"viewers' {what} (listen.{name})")  # fmt: skip
        yield Flow(
            "routers, load balancers", _own(row.address.host), "tcp", str(row.address.port), "in",
            f"health probe /.well-known/accelerator/health (listen.{name})",
        )  # fmt: skip
    if policy.admin is not None and not policy.admin.address.is_loopback:
        address = policy.admin.address
        yield Flow("administrators, monitoring", _own(address.host), "tcp", str(address.port), "in",
                   "dashboard, /metrics (admin)")


def _intercepted(policy: Policy) -> Iterator[Flow]:
    """As packets look: to the video servers' own addresses. Past the box, where it is withdrawn, they look the same."""
    row = policy.steering.intercept
    if row is None:
        return
    for destination in map(str, row.destinations):
        for net in _nets(policy, (), destination):
            for port in row.ports:
                yield Flow(net, destination, "tcp", str(port), "in",
                           f"viewers' HTTP, taken on {', '.join(row.interfaces)} (steering.intercept)")  # fmt: skip
                why = "the same, forwarded while the box doesn't take it"
                yield Flow(net, destination, "tcp", str(port), "out", why)


def _origins(policy: Policy) -> Iterator[Flow]:
    asks_names = False
    for name, origin in policy.origins.items():
        if origin.via is not None:
            asks_names |= not origin.resolve and not _is_address(origin.via.host)
            for host in origin.resolve or (origin.via.host,):
                yield Flow("box", host, "tcp", str(origin.via.port), "out", f"parent proxy of origin {name}")
            continue
        for url in origin.from_:
            asks_names |= not origin.resolve and not _is_address(url.host)
            for host in origin.resolve or (url.host,):
                yield Flow("box", host, "tcp", str(url.port), "out", f"origin {name}")
    asks_names |= any(not _is_address(each.host) for each in policy.steering.connect)
    if asks_names:
        for protocol in ("udp", "tcp"):
            yield Flow("box", "resolvers of /etc/resolv.conf", protocol, "53", "out", "addresses of origins")
    if policy.origins:
        yield Flow("box", "time servers", "udp", "123", "out",
                   "the clock, by which lifetimes and certificates are judged")


def _links(policy: Policy) -> Iterator[Flow]:
    for name, link in policy.links.items():
        if link.probe is not None:
            yield Flow("box", link.probe.host, "tcp", str(link.probe.port), "out", f"probe of link {name} (links)")
    for name, origin in policy.origins.items():
        if origin.link_for == "all":
            why = f"what viewers send to origin {name} themselves, forwarded by its link (link_for)"
            for host in origin.resolve or tuple(url.host for url in origin.from_):
                for net in _nets(policy, (), host):
                    yield Flow(net, host, "any", "any", "out", why)
    for name, mark in policy.marks.items():
        why = f"traffic of others, forwarded and marked (marks.{name})"
        for net in map(str, mark.nets):
            for port in mark.ports or ("any",):
                yield Flow("viewers", net, mark.protocol, str(port), "out", why)
                yield Flow(net, "viewers", mark.protocol, "any", "out", f"{why}; from port {port}")


def _tunnels(policy: Policy) -> Iterator[Flow]:
    for each in policy.steering.connect:
        yield Flow("box", each.host, "tcp", str(each.port), "out", "CONNECT of viewers (steering.connect)")


def _relays(policy: Policy) -> Iterator[Flow]:
    for name, relay in policy.relays.items():
        why = f"input of relay {name}"
        for url in relay.from_:
            if url.scheme in ("srt", "rist"):
                yield from _connected(relay, url, why)
                continue
            last = url.port + {"none": 0, "columns": 2, "both": 4}[relay.fec]
            ports = str(url.port) if last == url.port else f"{url.port}-{last}"
            sources = [url.source] if url.source else [str(net) for net in relay.sources] or ["any sender"]
            for source in sources:
                yield Flow(source, _own(url.host), "udp", ports, "in", why)
            if url.is_group:
                yield from _membership(url.host, relay.interface or "uplink", why)
        if relay.retransmit is not None:
            asked = relay.retransmit.from_
            again = f"missing packets of relay {name} are asked for (retransmit)"
            yield Flow("box", asked.host, "udp", str(asked.port), "out", again)
            if relay.retransmit.port:
                yield Flow(asked.host, "box", "udp", str(relay.retransmit.port), "in", again)
        for output in relay.to:
            if output.group is not None:
                yield Flow(
                    "box", output.group.host, "udp", str(output.group.port), "out",
                    f"relay {name} to the group on {output.interface or 'the default interface'}, TTL {output.ttl}",
                )  # fmt: skip
            for receiver in output.unicast or ():
                yield Flow("box", receiver.host, "udp", str(receiver.port), "out", f"relay {name} to a receiver")
            if output.unicast is not None:
                yield Flow("box", "receivers", "udp", "any", "out",
                           f"relay {name} to those that accelctl relay add-receiver names")  # fmt: skip
        for output in relay.to if relay.announce else ():
            if output.group is not None:
                yield Flow("box", sap.group_for(output.group.host), "udp", str(sap.PORT), "out",
                           f"announcement of relay {name} (SAP)")  # fmt: skip


def _connected(relay: Relay, url: RelayUrl, why: str) -> Iterator[Flow]:
    """SRT and RIST: who calls whom, and RIST's simple profile has its RTCP on the next port."""
    is_simple = url.scheme == "rist" and relay.connection is not None and relay.connection.profile == "simple"
    ports = f"{url.port}-{url.port + 1}" if is_simple else str(url.port)
    if relay.connection is None or relay.connection.mode == "caller":
        yield Flow("box", url.host, "udp", ports, "out", f"{why} ({url.scheme})")
        return
    for source in map(str, relay.sources or ("any sender",)):
        yield Flow(source, _own(url.host), "udp", ports, "in", f"{why} ({url.scheme}), whose sender connects")


def _udpxy(policy: Policy) -> Iterator[Flow]:
    wanted = policy.udpxy
    for group in wanted.groups:
        why = "groups that viewers ask for by HTTP (udpxy)"
        for source in _sources(wanted.sources, group.version):
            yield Flow(source, str(group), "udp", "any", "in", why)
        yield from _membership(str(group), wanted.interface or "uplink", why)


def _membership(group: str, interface: str, why: str) -> Iterator[Flow]:
    """A member's side: what it sends and hears. The older versions are spoken where the querier speaks them."""
    is_v4 = ":" not in group
    protocol = "igmp" if is_v4 else "icmpv6 (MLD)"
    routers, nodes, leaves = ("224.0.0.22", "224.0.0.1", "224.0.0.2") if is_v4 else ("ff02::16", "ff02::1", "ff02::2")
    older = f"the same in version {2 if is_v4 else 1}, where the querier has no newer one"
    yield Flow("box", routers, protocol, "-", "out", f"joins on {interface} for {why}")
    for destination in (group, leaves):
        yield Flow("box", destination, protocol, "-", "out", f"joins on {interface} for {why}: {older}")
    yield Flow("querier", nodes, protocol, "-", "in", f"queries on {interface}: without them the stream ends")
    yield Flow("querier", group, protocol, "-", "in", f"queries on {interface}, when somebody has left")


def _multicast(policy: Policy) -> Iterator[Flow]:
    for name, proxy in policy.multicast.proxies.items():
        why = f"multicast proxy {name}"
        for group in proxy.groups or (ip_network("224.0.0.0/4"), ip_network("ff00::/8")):
            yield from _membership(str(group), proxy.upstream, why)
            for interface in proxy.downstream:
                yield from _members(str(group), interface, why)
            for source in _sources(proxy.sources, group.version):
                yield Flow(source, str(group), "udp", "any", "in", f"{why}, from {proxy.upstream}")
                for interface in proxy.downstream:
                    yield Flow(source, str(group), "udp", "any", "out", f"{why}, forwarded to {interface}")
    for name, route in policy.multicast.routes.items():
        why = f"multicast route {name}"
        source = route.source or "any sender"
        yield from _membership(route.group, route.from_, why)
        yield Flow(source, route.group, "udp", "any", "in", f"{why}, from {route.from_}")
        for interface in route.to:
            yield Flow(source, route.group, "udp", "any", "out", f"{why}, forwarded to {interface}")


def _members(group: str, interface: str, why: str) -> Iterator[Flow]:
    """A router's side of a downstream link."""
    is_v4 = ":" not in group
    protocol = "igmp" if is_v4 else "icmpv6 (MLD)"
    routers, nodes, leaves = ("224.0.0.22", "224.0.0.1", "224.0.0.2") if is_v4 else ("ff02::16", "ff02::1", "ff02::2")
    for destination in (routers, group, leaves):
        said = "joins" if destination == routers else f"joins and leaves of version {2 if is_v4 else 1}"
        yield Flow("viewers", destination, protocol, "-", "in", f"{said} on {interface} for {why}")
    # Another querier's on this link are heard too: the lower address asks.
    for destination in (nodes, group):
        yield Flow("box", destination, protocol, "-", "out", f"queries on {interface} for {why}")
        yield Flow("another querier", destination, protocol, "-", "in", f"its queries on {interface}, for {why}")


def _sources(nets: Sequence[IPv4Network | IPv6Network], version: int) -> list[str]:
    return [str(net) for net in nets if net.version == version] if nets else ["any sender"]


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def as_csv(rows: Sequence[Flow]) -> str:
    """RFC 4180, with a head."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow([each.name for each in fields(Flow)])
    # A cell that begins with one of these is a formula to a spreadsheet; addresses and names never do.
    writer.writerows([f"'{cell}" if cell[:1] in "=+@" else cell for cell in astuple(row)] for row in rows)
    return out.getvalue()


def as_text(rows: Sequence[Flow]) -> str:
    table = [[each.name for each in fields(Flow)], *(list(astuple(row)) for row in rows)]
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]) - 1)]
    lines = [
        "  ".join([cell.ljust(width) for cell, width in zip(row, widths, strict=False)] + row[-1:]).rstrip()
        for row in table
    ]
    return "\n".join(lines)


def as_rows(rows: Sequence[Flow]) -> list[dict[str, str]]:
    return [asdict(row) for row in rows]
