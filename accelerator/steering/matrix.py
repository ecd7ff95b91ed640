"""The flow matrix of a policy: what the firewall team has to let through, and why. Pure: only what the policy says."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import asdict, astuple, dataclass, fields
from ipaddress import ip_address

from accelerator.policy.model import Policy


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
    rows = [*_listeners(policy), *taken, *_origins(policy), *_tunnels(policy), *_relays(policy), *_multicast(policy)]
    return list(dict.fromkeys(rows))


def _nets(policy: Policy, zones: Sequence[str]) -> list[str]:
    """Networks of these zones; none: of all zones, where there are any, as that is where viewers are."""
    named = zones or tuple(policy.zones)
    nets = [str(net) for name in named if name in policy.zones for net in policy.zones[name].nets]
    return nets or ["viewers"]


def _listeners(policy: Policy) -> Iterator[Flow]:
    for name, row in policy.listen.items():
        if row.address.is_loopback:
            continue
        what = "HTTPS" if row.tls else "HTTP"
        for net in _nets(policy, row.zones):
            yield Flow(net, row.address.host, "tcp", str(row.address.port), "in", f"viewers' {what} (listen.{name})")
        yield Flow(
            "routers, load balancers", row.address.host, "tcp", str(row.address.port), "in",
            f"health probe /.well-known/accelerator/health (listen.{name})",
        )  # fmt: skip
    if policy.admin is not None and not policy.admin.address.is_loopback:
        address = policy.admin.address
        yield Flow("administrators, monitoring", address.host, "tcp", str(address.port), "in",
                   "dashboard, /metrics (admin)")


def _intercepted(policy: Policy) -> Iterator[Flow]:
    """As packets look: to the video servers' own addresses. Past the box, where it is withdrawn, they look the same."""
    row = policy.steering.intercept
    if row is None:
        return
    for net in _nets(policy, ()):
        for destination in map(str, row.destinations):
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


def _tunnels(policy: Policy) -> Iterator[Flow]:
    for each in policy.steering.connect:
        yield Flow("box", each.host, "tcp", str(each.port), "out", "CONNECT of viewers (steering.connect)")


def _relays(policy: Policy) -> Iterator[Flow]:
    for name, relay in policy.relays.items():
        for url in relay.from_:
            group = ip_address(url.host)
            if url.scheme in ("srt", "rist"):
                yield Flow("box", url.host, "udp", str(url.port), "out", f"input of relay {name} ({url.scheme})")
                continue
            last = url.port + {"none": 0, "columns": 2, "both": 4}[relay.fec]
            ports = str(url.port) if last == url.port else f"{url.port}-{last}"
            why = f"input of relay {name}"
            sources = [url.source] if url.source else [str(net) for net in relay.sources] or ["any sender"]
            for source in sources:
                yield Flow(source, url.host, "udp", ports, "in", why)
            if group.is_multicast:
                yield from _membership(group.version, relay.interface or "uplink", why)
        for output in relay.to:
            if output.group is not None:
                yield Flow(
                    "box", output.group.host, "udp", str(output.group.port), "out",
                    f"relay {name} to the group on {output.interface or 'the default interface'}, TTL {output.ttl}",
                )  # fmt: skip
            for receiver in output.unicast or ():
                yield Flow("box", receiver.host, "udp", str(receiver.port), "out", f"relay {name} to a receiver")
        if relay.announce:
            yield Flow("box", "224.2.127.254, or its scope's last address", "udp", "9875", "out",
                       f"announcement of relay {name} (SAP)")  # fmt: skip


def _membership(version: int, interface: str, why: str) -> Iterator[Flow]:
    if version == 4:
        yield Flow("box", "224.0.0.22", "igmp", "-", "out", f"joins on {interface} for {why}")
        yield Flow("querier", "224.0.0.1", "igmp", "-", "in",
                   f"queries on {interface}: without them the stream ends")  # fmt: skip
    else:
        yield Flow("box", "ff02::16", "icmpv6 (MLD)", "-", "out", f"joins on {interface} for {why}")
        yield Flow("querier", "ff02::1", "icmpv6 (MLD)", "-", "in",
                   f"queries on {interface}: without them the stream ends")


def _multicast(policy: Policy) -> Iterator[Flow]:
    for name, proxy in policy.multicast.proxies.items():
        why = f"multicast proxy {name}"
        for version in (4, 6):
            yield from _membership(version, proxy.upstream, why)
            for interface in proxy.downstream:
                if version == 4:
                    yield Flow("viewers", "224.0.0.22", "igmp", "-", "in", f"joins on {interface} for {why}")
                    yield Flow("box", "224.0.0.1", "igmp", "-", "out", f"queries on {interface} for {why}")
                else:
                    yield Flow("viewers", "ff02::16", "icmpv6 (MLD)", "-", "in", f"joins on {interface} for {why}")
                    yield Flow("box", "ff02::1", "icmpv6 (MLD)", "-", "out", f"queries on {interface} for {why}")
        groups = [str(each) for each in proxy.groups] or ["224.0.0.0/4"]
        sources = [str(each) for each in proxy.sources] or ["any sender"]
        for source in sources:
            for group in groups:
                yield Flow(source, group, "udp", "any", "in", f"{why}, forwarded from {proxy.upstream}")


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
