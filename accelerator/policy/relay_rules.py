"""What the keys of `relays` mean together: loops, groups that switches or proxies confuse, zones. Parses no value."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, ip_address
from typing import NamedTuple

from accelerator.policy.addresses import Address, IpAddress, IpNetwork
from accelerator.policy.model import Policy, Relay, RelayOutput
from accelerator.policy.relay_addresses import (
    ADMIN_SCOPED,
    LINK_LOCAL,
    ethernet_of,
    is_flooded,
    needs_source,
    stays_on_link,
)
from accelerator.policy.relay_model import LEGS_MAX, RELAYS_MAX, WINDOW_BYTES, Connection, Udpxy
from accelerator.policy.units import format_size, nearest

# Seconds by default, where `reorder` is left out. FEC: a matrix of 100 packets of 1,316 bytes at 2 Mbit/s.
REORDER_S = 0.05
REORDER_LEGS_S = 0.25
REORDER_FEC_S = 0.6
REORDER_RETRANSMIT_S = 0.25
# Schemes that connect: their packets come by a process.
CONNECTED = ("srt", "rist")


class Finding(NamedTuple):
    """`below`: the path from `relays` on."""

    below: tuple[str | int, ...]
    message: str
    is_warning: bool = False


@dataclass(frozen=True, slots=True)
class Session:
    """How an input of SRT or RIST is reached. `passphrase`: a credential's name."""

    scheme: str
    is_listener: bool
    latency_ms: int
    passphrase: str
    stream_id: str
    profile: str
    sources: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Input:
    """One socket of a relay. `kind`: media, fec, or rtx: what asks for missing packets. `session`: its packets come by
    a process (SRT, RIST), as RTP."""

    url_index: int
    kind: str
    host: str
    port: int
    source: str
    interface: str | None
    is_rtp: bool
    session: Session | None = None


def inputs_of(relay: Relay) -> tuple[Input, ...]:
    """The sockets of a relay, media first, as the data plane counts its legs."""
    interfaces = relay.interfaces or (relay.interface,) * len(relay.from_)
    found = [
        Input(
            index, "media", url.host, url.port, url.source, interface, url.scheme != "udp", _session(relay, url.scheme)
        )
        for index, (url, interface) in enumerate(zip(relay.from_, interfaces, strict=False))
    ]
    first = found[0]
    for offset in {"none": (), "columns": (2,), "both": (2, 4)}[relay.fec]:
        found.append(Input(0, "fec", first.host, first.port + offset, first.source, first.interface, True))
    if relay.retransmit is not None:
        whom = relay.retransmit.from_.host
        found.append(Input(0, "rtx", "::" if ":" in whom else "0.0.0.0", relay.retransmit.port, whom, None, True))
    return tuple(found)


def _session(relay: Relay, scheme: str) -> Session | None:
    if scheme not in CONNECTED:
        return None
    said = relay.connection or Connection()
    return Session(
        scheme, said.mode == "listener", round(said.latency * 1000), said.passphrase or "", said.stream_id or "",
        said.profile, tuple(map(str, relay.sources)),
    )  # fmt: skip


class Zones:
    """Whose zone an address is in, in as many look-ups as there are prefix lengths: thousands are asked at once."""

    def __init__(self, zones: Mapping[str, tuple[IpNetwork, ...]]) -> None:
        self._by_length: dict[tuple[int, int], dict[int, str]] = {}
        for name, nets in zones.items():
            for net in nets:
                row = self._by_length.setdefault((net.version, net.prefixlen), {})
                row.setdefault(int(net.network_address), name)
        self._longest_first = sorted(self._by_length, reverse=True)

    def of(self, address: IpAddress) -> str | None:
        """The most specific network wins, then the first zone."""
        number = int(address)
        for version, length in self._longest_first:
            rest = address.max_prefixlen - length
            if version == address.version:
                found = self._by_length[version, length].get(number >> rest << rest)
                if found is not None:
                    return found
        return None


def relay_findings(policy: Policy) -> Iterator[Finding]:
    """Every problem of the relays of a policy, from which wrong values may have been taken out."""
    for name, relay in policy.relays.items():
        yield from _input_findings(name, relay)
        for index, output in enumerate(relay.to):
            for key, message, is_warning in _output_findings(policy, relay, output):
                below = (name, "to", index, *((key,) if key else ()))
                yield Finding(below, f"relays.{name}.to: {message}", is_warning)
    yield from _inputs_taken_twice(policy)
    yield from _loops(policy)
    yield from _source_ports(policy)
    yield from _paths(policy)
    yield from _switch_findings(policy)
    yield from _proxy_findings(policy)


def _input_findings(name: str, relay: Relay) -> Iterator[Finding]:
    where = f"relays.{name}"
    if relay.interfaces and len(relay.interfaces) != len(relay.from_):
        message = f"{where}.interfaces: has {len(relay.interfaces)} names for {len(relay.from_)} inputs"
        yield Finding((name, "interfaces"), message)
    if relay.interfaces and relay.interface is not None:
        yield Finding((name, "interfaces"), f"{where}.interfaces: stands beside interface, one of them is enough")
    if len({url.scheme for url in relay.from_}) > 1:
        yield Finding((name, "from"), f"{where}.from: inputs of one relay have one scheme")
    places = [(each.host, each.port, each.source, each.interface) for each in inputs_of(relay)]
    if len(set(places)) < len(places):
        yield Finding((name, "from"), f"{where}.from: the same input twice")
    if relay.mode == "backup" and len(relay.from_) == 1:
        yield Finding((name, "mode"), f"{where}.mode: has no effect with one input", True)
    if relay.fec != "none":
        n_legs = len(relay.from_) + (1 if relay.fec == "columns" else 2)
        if relay.from_[0].scheme != "rtp":
            yield Finding((name, "fec"), f"{where}.fec: repairs RTP, so the input has to be rtp://")
        elif n_legs > LEGS_MAX:
            yield Finding((name, "fec"), f"{where}.fec: makes {n_legs} streams of one relay, at most {LEGS_MAX} can be")
        elif relay.from_[0].port + (2 if relay.fec == "columns" else 4) > 65_535:
            yield Finding((name, "fec"), f"{where}.fec: its ports would be beyond 65535")
    yield from _retransmit_findings(name, relay)
    yield from _connection_findings(name, relay)
    for index, url in enumerate(relay.from_):
        address = ip_address(url.host)
        path = (name, "from", index)
        if url.is_group and needs_source(address) and not url.source:
            message = (
                f"{address} is source-specific (RFC 4607): write {url.scheme}://SOURCE@{Address(url.host, url.port)}"
            )
            yield Finding(path, f"{where}.from: {message}")
        elif stays_on_link(address) and relay.interface is None and not relay.interfaces:
            yield Finding(path, f"{where}.from: {address} is of one link alone: interface has to say which")
        elif url.is_group and relay.interface is None and not relay.interfaces:
            message = f"{address} is joined where the kernel's routes say: interface says where"
            yield Finding(path, f"{where}.from: {message}", True)
    if not relay.to:
        yield Finding((name,), f"{where}: has no output: it measures and sends nothing", True)
    if relay.announce is not None and all(output.group is None or output.interface is None for output in relay.to):
        message = "is for groups that are sent on an interface, and none is: nothing is announced"
        yield Finding((name, "announce"), f"{where}.announce: {message}", True)
    n_receivers = sum(len(output.unicast or ()) + (output.group is not None) for output in relay.to)
    if n_receivers > relay.receivers:
        yield Finding((name, "receivers"), f"{where}.receivers: {n_receivers} are listed, {relay.receivers} may be")


def _retransmit_findings(name: str, relay: Relay) -> Iterator[Finding]:
    if relay.retransmit is None:
        return
    below, key = (name, "retransmit"), f"relays.{name}.retransmit"
    if relay.from_[0].scheme != "rtp":
        yield Finding(below, f"{key}: asks by RTP's numbers, so the input has to be rtp://")
    elif len(relay.from_) > 1:
        yield Finding(below, f"{key}: asks one sender for one stream: with several inputs they fill each other's gaps")
    if relay.payload_type == relay.retransmit.payload_type:
        yield Finding((*below, "payload_type"), f"{key}.payload_type: is that of the stream itself")
    if relay.reorder is not None and relay.reorder < 0.02:
        yield Finding((name, "reorder"), f"relays.{name}.reorder: is over before an answer can come", True)


def _connection_findings(name: str, relay: Relay) -> Iterator[Finding]:
    where, scheme, said = f"relays.{name}", relay.from_[0].scheme, relay.connection or Connection()
    below, key = (name, "connection"), f"relays.{name}.connection"
    if scheme not in CONNECTED:
        if relay.connection is not None:
            yield Finding(below, f"{key}: is for srt:// and rist:// inputs, which connect: {scheme} doesn't")
        return
    for index, url in enumerate(relay.from_):
        if ip_address(url.host).is_unspecified and said.mode == "caller":
            yield Finding((name, "from", index), f"{where}.from: a caller connects to an address, {url.host} is none")
        if scheme == "rist" and said.profile == "simple" and url.port % 2:
            message = "the simple profile has its media on an even port, its control on the next (TR-06-1 5.1.1)"
            yield Finding((name, "from", index), f"{where}.from: {message}")
    if relay.interface is not None or relay.interfaces:
        yield Finding((name, "interface"), f"{where}.interface: has no effect with {scheme}: it joins no group", True)
    if relay.payload_type is not None:
        yield Finding((name, "payload_type"), f"{where}.payload_type: {scheme} carries none")
    if scheme == "rist" and said.stream_id is not None:
        yield Finding((*below, "stream_id"), f"{key}.stream_id: is SRT's, RIST has none")
    if said.profile == "simple" and (scheme == "srt" or said.passphrase is not None):
        what = "is RIST's" if scheme == "srt" else "can't encrypt: leave passphrase out, or take the main one"
        yield Finding((*below, "profile"), f"{key}.profile: simple {what}")
    if said.mode == "listener" and not relay.sources and said.passphrase is None:
        message = "whoever reaches this port may be the sender: sources or a passphrase would say who is"
        yield Finding((*below, "mode"), f"{key}.mode: {message}", True)


def _output_findings(policy: Policy, relay: Relay, output: RelayOutput) -> Iterator[tuple[str, str, bool]]:
    kinds = [key for key in ("group", "unicast", "http") if getattr(output, key) is not None]
    if len(kinds) != 1:
        said = f"{' and '.join(kinds)} stand together" if kinds else "neither stands here"
        yield "", f"an output has one of group, unicast and http: {said}", False
        return
    for zone in output.zones:
        if zone not in policy.zones:
            yield "zones", f"unknown zone '{zone}'{nearest(zone, list(policy.zones))}", False
        elif output.group is not None and policy.zones[zone].multicast == "never":
            yield "zones", f"zone '{zone}' says multicast: never: give it a unicast or http output", False
    if output.group is not None:
        address = ip_address(output.group.host)
        if output.interface is None and stays_on_link(address):
            yield "group", f"{address} is of one link alone: interface has to say which", False
        elif output.interface is None:
            yield "group", f"{output.group} is sent where the kernel's routes say: interface says where", True
        if (
            isinstance(address, IPv4Address)
            and address not in ADMIN_SCOPED
            and not needs_source(address)
            and output.ttl > 1
        ):
            message = (
                f"{address} is no group of one organisation (239.0.0.0/8, RFC 2365): with ttl {output.ttl} it may leave"
            )
            yield "group", message, True
        if not isinstance(address, IPv4Address) and address.packed[1] & 15 == 2 and output.ttl > 1:
            yield "ttl", f"{address} stays on its link: ttl {output.ttl} has no effect", True
        if output.hold is not None and output.hold > 0.04:
            yield "hold", "more than 40ms: players of multicast have buffers for less", True
    if output.unicast is not None and len({":" in each.host for each in output.unicast}) > 1:
        yield "unicast", "addresses of one family: give IPv4 and IPv6 an output each", False
    if output.unicast is not None and len(set(output.unicast)) < len(output.unicast):
        yield "unicast", "the same receiver twice", False
    if output.rtp == "restamp" and output.http is not None:
        yield "rtp", "has no effect over HTTP, where no packets are", True
    if output.window != WINDOW_BYTES and output.http is None:
        yield "window", "has an effect over HTTP only", True


def _inputs_taken_twice(policy: Policy) -> Iterator[Finding]:
    """A socket of one own address and port belongs to one relay; a group may be several relays' input."""
    taken: dict[tuple[str, int], str] = {}
    for name, relay in policy.relays.items():
        for each in inputs_of(relay):
            if ip_address(each.host).is_multicast or (each.session is not None and not each.session.is_listener):
                continue
            if each.kind == "rtx" and each.port == 0:
                continue
            owner = taken.setdefault((each.host, each.port), name)
            if owner != name:
                message = f"{Address(each.host, each.port)} is the input of relay '{owner}' already"
                yield Finding((name, "from", each.url_index), f"relays.{name}.from: {message}")


def _loops(policy: Policy) -> Iterator[Finding]:
    """Split horizon: what a relay sends is no relay's input, on the same link or where that isn't known."""
    sources: dict[tuple[str, int], list[tuple[str, str | None]]] = {}
    for name, relay in policy.relays.items():
        for each in inputs_of(relay):
            if each.session is not None or each.kind == "rtx":  # what we send there is no handshake, and no answer
                continue
            sources.setdefault((each.host, each.port), []).append((name, each.interface))
    for name, relay in policy.relays.items():
        for index, output in enumerate(relay.to):
            targets = [("group", output.group)] if output.group is not None else []
            targets += [("unicast", each) for each in output.unicast or ()]
            for key, target in targets:
                for other, interface in sources.get((target.host, target.port), ()):
                    if key == "unicast" or None in (interface, output.interface) or interface == output.interface:
                        message = f"{target} is the input of relay '{other}': packets would go in a circle"
                        yield Finding((name, "to", index, key), f"relays.{name}.to: {message}")
                        break


def _source_ports(policy: Policy) -> Iterator[Finding]:
    """Of two sockets on a port and any address the kernel gives what comes to one: an input would stay without."""
    inputs = {
        (each.port, ":" in each.host): name
        for name, relay in policy.relays.items()
        for each in inputs_of(relay)
        if each.session is None and each.port and ip_address(each.host).is_unspecified
    }
    for name, relay in policy.relays.items():
        for index, output in enumerate(relay.to):
            targets = [*(output.unicast or ()), *([output.group] if output.group is not None else [])]
            for is_v6 in {":" in each.host for each in targets} or {False, True}:
                owner = inputs.get((output.source_port, is_v6))
                if owner is not None:
                    message = f"{output.source_port} is the port of an input of relay '{owner}' on any address"
                    what = f"relays.{name}.to: {message}: give the input an address, or the output another port"
                    yield Finding((name, "to", index, "source_port"), what)
                    break


def _paths(policy: Policy) -> Iterator[Finding]:
    owners: dict[str, str] = {}
    origins = {path: origin for origin, row in policy.origins.items() for path in row.paths}
    for name, relay in policy.relays.items():
        for index, output in enumerate(relay.to):
            if output.http is None:
                continue
            said = ""
            owner = owners.setdefault(output.http, f"{name}.{index}")
            if owner != f"{name}.{index}":
                said = f"belongs to relay '{owner.partition('.')[0]}' already"
            elif output.http in origins:
                said = f"is a path of origin '{origins[output.http]}' too: give one of them another"
            elif policy.udpxy.groups and output.http.split("/")[1] in ("udp", "rtp"):
                said = "is below what udpxy answers: give it another"
            if said:
                yield Finding((name, "to", index, "http"), f"relays.{name}.to: {output.http} {said}")


def udpxy_findings(policy: Policy) -> Iterator[Finding]:
    """As relay_findings; `below` is from `udpxy` on."""
    row = policy.udpxy
    if not row.groups:
        if row != Udpxy():
            yield Finding((), "udpxy: lists no groups: nobody may ask for any", True)
        return
    for index, net in enumerate(row.groups):
        if not net.network_address.is_multicast or not net.broadcast_address.is_multicast:
            yield Finding(("groups", index), f"udpxy.groups: {net} is no range of groups")
        elif net.version == 4 and net.overlaps(LINK_LOCAL):
            yield Finding(("groups", index), f"udpxy.groups: {net} has groups that stay on their link (224.0.0.0/24)")
        elif net.prefixlen <= 8 and not row.sources:
            message = f"udpxy.groups: {net} is every group there is: sources, or a smaller range, say what is meant"
            yield Finding(("groups", index), message, True)
    for index, net in enumerate(row.sources):
        if net.network_address.is_multicast:
            yield Finding(("sources", index), f"udpxy.sources: {net} is a group, not a sender")
    for index, zone in enumerate(row.zones):
        if zone not in policy.zones:
            message = f"udpxy.zones: unknown zone '{zone}'{nearest(zone, list(policy.zones))}"
            yield Finding(("zones", index), message)
    if row.interface is None:
        yield Finding((), "udpxy: groups are joined where the kernel's routes say: interface says where", True)
    if len(policy.relays) + row.channels > RELAYS_MAX:
        message = f"udpxy.channels: {row.channels} beside {len(policy.relays)} relays: at most {RELAYS_MAX} in all"
        yield Finding(("channels",), message)
    for name, origin in policy.origins.items():
        for path in origin.paths:
            if path in ("/udp", "/rtp"):
                yield Finding(("groups",), f"udpxy.groups: origin '{name}' has the path {path}, which udpxy answers")


def window_findings(policy: Policy) -> Iterator[Finding]:
    """Streams are memory that is never evicted: half of the cache's is what they may take."""
    taken = sum(
        max((output.window for output in relay.to if output.http is not None), default=0)
        for relay in policy.relays.values()
    ) + (policy.udpxy.channels * policy.udpxy.window if policy.udpxy.groups else 0)
    if taken > policy.cache.memory // 2:
        message = (
            f"the windows of HTTP outputs and udpxy take {format_size(taken)}, more than half of cache.memory"
            f" ({format_size(policy.cache.memory)})"
        )
        yield Finding((), message)


def _groups(policy: Policy) -> Iterator[tuple[tuple[str | int, ...], str, IpAddress, str | None]]:
    """(path, dotted key, group, interface) of each group that relays join or send."""
    for name, relay in policy.relays.items():
        for each in inputs_of(relay):
            if each.kind == "media" and ip_address(each.host).is_multicast:
                yield (name, "from", each.url_index), f"relays.{name}.from", ip_address(each.host), each.interface
        for index, output in enumerate(relay.to):
            if output.group is not None:
                where = (name, "to", index, "group")
                yield where, f"relays.{name}.to", ip_address(output.group.host), output.interface


def _switch_findings(policy: Policy) -> Iterator[Finding]:
    seen: dict[tuple[str | None, bytes], IpAddress] = {}
    told: set[IpAddress] = set()
    for path, key, group, interface in _groups(policy):
        if is_flooded(group):
            if group not in told:
                told.add(group)
                yield Finding(path, f"{key}: switches take {group} for 224.0.0.x and flood it to every port", True)
            continue
        other = seen.setdefault((interface, ethernet_of(group)), group)
        if other != group:
            message = f"{group} has the Ethernet address of {other}: who joins one is sent both"
            yield Finding(path, f"{key}: {message}", True)


def _proxy_findings(policy: Policy) -> Iterator[Finding]:
    """A group that a proxy forwards to a link where a relay sends it: receivers there would have both."""
    for name, relay in policy.relays.items():
        joined = {url.host for url in relay.from_}
        for index, output in enumerate(relay.to):
            if output.group is None:
                continue
            group = ip_address(output.group.host)
            for route_name, route in policy.multicast.routes.items():
                if route.group == str(group) and output.interface in route.to:
                    message = f"{group} on {output.interface} is also sent by multicast.routes.{route_name}"
                    what = f"relays.{name}.to: {message}: two streams in one group"
                    yield Finding((name, "to", index, "group"), what, False)
            for proxy_name, proxy in policy.multicast.proxies.items():
                is_admitted = not proxy.groups or any(
                    group.version == net.version and group in net for net in proxy.groups
                )
                if output.interface not in proxy.downstream or not is_admitted:
                    continue
                message = f"{group} on {output.interface} is also forwarded by multicast.proxies.{proxy_name}"
                is_certain = bool(proxy.groups) or str(group) in joined
                hint = "receivers would have it twice" if is_certain else "where a sender upstream has it too, twice"
                yield Finding((name, "to", index, "group"), f"relays.{name}.to: {message}: {hint}", not is_certain)
