"""What is in the way of packets: reverse path filter, firewall, snooping, queriers, limits, MTU, offloads. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from ipaddress import ip_network

from accelerator.doctor.facts import Link, Network, Stream
from accelerator.doctor.finding import Finding, Report
from accelerator.doctor.packet_filter import Dropper, Packet, dropper_of

# Between two general queries of a querier with RFC 9776's defaults: from the last one that came in, a stream goes on
# until the switch has missed the answer to the next one or two.
QUERY_INTERVAL_S = 125
# All systems, all routers, IGMPv3: what a router's socket joins on a link.
_GROUPS_OF_A_ROUTER = 3
# Groups that nothing forwards or snoops: queries go to 224.0.0.1.
_ALL_SYSTEMS, _ALL_ROUTERS = "224.0.0.1", "224.0.0.22"
_MLD_QUERY, _MLD_REPORT = ("ff02::1", "mld-listener-query"), ("ff02::16", "mld2-listener-report")
_REASONS = {
    "ip_mroute": ("IPv4 multicast routing", "CONFIG_IP_MROUTE"),
    "ip6_mroute": ("IPv6 multicast routing", "CONFIG_IPV6_MROUTE"),
    "igmp": ("IGMP", "CONFIG_IP_MULTICAST"),
    "nf_tables": ("nft rules", "CONFIG_NF_TABLES"),
}


def judge_network(network: Network, report: Report) -> None:
    """Adds what is wrong."""
    checks: tuple[tuple[str, int, Callable[[Network], Iterator[Finding]]], ...] = (
        ("kernel", len(network.kernel), _kernel),
        ("interfaces", len(_wanted(network)), _interfaces),
        ("rp-filter", len(network.streams), _rp_filter),
        ("group-limits", len(network.streams), _limits),
        ("mtu", len(network.proxies), _mtu),
        ("offloads", sum(link.has_lro is not None for link in network.links.values()), _offloads),
        ("snooping", sum(link.bridge is not None for link in network.links.values()), _snooping),
        ("queriers", len(network.heard) + len(network.proxies), _queriers),
        ("left-aside", len(network.proxies), _left_aside),
        ("ttl", len(network.heard), _ttl),
        ("routing-daemons", 1, _routing_daemons),
        ("forwarding", len(network.intercepts), _forwarding),
    )
    for name, n, check in checks:
        report.add(name, n, check(network))
    if network.ruleset is not None:
        report.add("firewall", len(_packets(network)), _firewall(network))
        report.add("firewall-forward", len(network.proxies), _firewall_forward(network))


def _wanted(network: Network) -> dict[str, str]:
    """Interfaces by name, with who wants them."""
    wanted: dict[str, str] = {}
    for proxy in network.proxies:
        for name in (proxy.upstream, *proxy.downstream):
            wanted.setdefault(name, f"multicast.proxies.{proxy.name}")
    for stream in network.streams:
        if stream.interface:
            wanted.setdefault(stream.interface, stream.owner)
    return wanted


def _kernel(network: Network) -> Iterator[Finding]:
    for name, is_there in network.kernel.items():
        if not is_there:
            what, option = _REASONS[name]
            yield Finding(
                "kernel-option", "bad", option, f"This kernel has no {what}, which the policy needs.",
                f"use Debian's own kernel, or build this one with {option}=y",
            )  # fmt: skip


def _interfaces(network: Network) -> Iterator[Finding]:
    for name, owner in _wanted(network).items():
        link = network.links.get(name)
        if link is None:
            known = ", ".join(sorted(each for each in network.links if each != "lo")) or "none"
            yield Finding(
                "interface-missing", "bad", name,
                f"{owner} names interface {name}, and there is none (there is {known}).",
                "ip -brief link",
            )  # fmt: skip
        elif not link.is_up:
            yield Finding(
                "interface-down", "bad", name, f"Interface {name} of {owner} is down.", f"ip link set {name} up"
            )
        elif link.port_of:
            yield Finding(
                "interface-is-port", "bad", name,
                f"{owner} names interface {name}, which is a port of {link.port_of}: what comes in there is "
                f"{link.port_of}'s, and the box sees none of it.",
                f"name {link.port_of} in the policy in place of {name}",
            )  # fmt: skip


def _rp_filter(network: Network) -> Iterator[Finding]:
    told = set()
    for stream in network.streams:
        link = network.links.get(stream.interface)
        if link is None or link.rp_filter != 1 or not stream.route or stream.route == stream.interface:
            continue
        if (stream.interface, stream.source) in told:
            continue
        told.add((stream.interface, stream.source))
        who = f"from {stream.source}" if stream.source else "whose source lies behind the default route"
        yield Finding(
            "rp-filter", "bad", stream.interface,
            f"{stream.interface} drops packets {who}, because the way back leaves by {stream.route} and the "
            "reverse path filter is strict (rp_filter 1).",
            f"sysctl -w net.ipv4.conf.{stream.interface}.rp_filter=2",
        )  # fmt: skip


def _limits(network: Network) -> Iterator[Finding]:
    """The kernel counts per socket, and the box has one for each input and, of a proxy, for each interface: what others
    run into (20 groups, 10 sources) does not bind here, but a limit that was lowered does."""
    joined = [each for each in network.streams if each.is_host_join and each.group and ":" not in each.group]
    needs = max(1 if joined else 0, _GROUPS_OF_A_ROUTER if network.proxies else 0)
    if network.memberships_max is not None and network.memberships_max < needs:
        yield Finding(
            "group-limit", "bad", "igmp_max_memberships",
            f"A socket may join {network.memberships_max} groups here (igmp_max_memberships), and the policy needs "
            f"{needs}: joins fail.",
            "sysctl -w net.ipv4.igmp_max_memberships=20",
        )  # fmt: skip
    if network.sources_max is not None and network.sources_max < 1 and any(each.source for each in joined):
        yield Finding(
            "source-limit", "bad", "igmp_max_msf",
            "A socket may name no source here (igmp_max_msf 0): joins of relays with a SOURCE@ fail.",
            "sysctl -w net.ipv4.igmp_max_msf=10",
        )  # fmt: skip


def _mtu(network: Network) -> Iterator[Finding]:
    for proxy in network.proxies:
        upstream = network.links.get(proxy.upstream)
        for name in proxy.downstream:
            link = network.links.get(name)
            if upstream is not None and link is not None and link.mtu < upstream.mtu:
                yield Finding(
                    "mtu", "warn", name,
                    f"Multicast packets of more than {link.mtu} bytes from {upstream.name} (MTU {upstream.mtu}) don't "
                    f"fit through {name}: those that may not be split are lost.",
                    f"ip link set {name} mtu {upstream.mtu}",
                )  # fmt: skip


def _offloads(network: Network) -> Iterator[Finding]:
    wanted = _wanted(network)
    for name, link in network.links.items():
        if name not in wanted:
            continue
        if link.has_lro:
            yield Finding(
                "offload-lro", "bad", name, f"{name} merges packets in hardware (LRO), which breaks those that are "
                "forwarded.", f"ethtool -K {name} lro off",
            )  # fmt: skip
        if link.has_gro is False:
            yield Finding(
                "offload-gro", "info", name,
                f"{name} hands each packet up alone (GRO is off), which costs several times the CPU.",
                f"ethtool -K {name} gro on",
            )  # fmt: skip


def _snooping(network: Network) -> Iterator[Finding]:
    for name, link in network.links.items():
        bridge = link.bridge
        if bridge is not None and bridge.is_snooping and not bridge.is_querier and not bridge.other_querier:
            yield Finding(
                "snooping-no-querier", "bad", name,
                f"Bridge {name} snoops IGMP, and nobody asks there for members: it forgets them after 260 s, and "
                "streams then flood every port or stop.",
                f"ip link set {name} type bridge mcast_querier 1",
            )  # fmt: skip


def _queriers(network: Network) -> Iterator[Finding]:
    heard = {each.interface: each for each in network.heard}
    for proxy in network.proxies:
        for name in proxy.downstream:
            asked_by = None if proxy.asked_by is None else proxy.asked_by.get(name)
            others = heard[name].queriers if name in heard else ()
            if proxy.querier == "never" and asked_by == "" and not others:
                yield Finding(
                    "no-querier", "bad", name,
                    f"Nobody asks for multicast members on {name}, and multicast.querier.mode is never: switches stop "
                    "streams after about 260 s.",
                    "set multicast.querier.mode: if-none, then accelctl policy apply",
                )  # fmt: skip
            elif proxy.querier != "never" and asked_by == "":
                yield Finding(
                    "no-address", "bad", name,
                    f"{name} has no IPv4 address: nobody can ask there for members, and IPv4 streams of "
                    f"multicast.proxies.{proxy.name} are not sent there.",
                    f"ip addr add ADDRESS/LENGTH dev {name}, and in the system's own network configuration",
                )  # fmt: skip
            elif proxy.querier == "if-none" and asked_by not in (None, "us"):
                yield Finding(
                    "other-querier", "warn", name,
                    f"{asked_by} asks for multicast members on {name}, so that one has to forward there, and the box "
                    "doesn't: where it is a switch that only snoops, viewers get nothing.",
                    "set multicast.querier.mode: always, then accelctl policy apply",
                )  # fmt: skip
    for each in network.heard:
        if len(each.queriers) > 1:
            yield Finding(
                "two-queriers", "warn", each.interface,
                f"{' and '.join(each.queriers[:4])} all ask for members on {each.interface}, where the one with the "
                "lowest address should: something filters IGMP between them.",
                "turn off the querier that isn't wanted; on our side: multicast.querier.mode: if-none",
            )  # fmt: skip
        elif not each.queriers and each.seconds >= QUERY_INTERVAL_S and _is_upstream(network, each.interface):
            yield Finding(
                "no-querier", "bad", each.interface,
                f"In {each.seconds:.0f} s nobody asked for multicast members on {each.interface}: switches that snoop "
                "stop streams after about 260 s.",
                "turn on the IGMP querier of the switch or router of that link",
            )  # fmt: skip


# What hosts of a link said that was left aside, and what it means: netd's names.
_LEFT_ASIDE = {
    "query-absurd": (
        "absurd-query",
        "queries were dropped that would have silenced us for longer than multicast.querier.other_present_max: "
        "somebody forges them, or a router's interval is longer",
        "to see who sends them; if it is a router, raise multicast.querier.other_present_max",
    ),
    "group-limit-of-host": (
        "host-groups",
        "reports were left aside of hosts that want more groups than group_limit_per_host",
        "to see whose they are; if it speaks for many hosts, raise group_limit_per_host of the proxy",
    ),
    "group-limit": (
        "link-groups",
        "reports were left aside since the link has as many groups as group_limit allows",
        "to see who asks; if all are meant, raise group_limit of the proxy",
    ),
}


def _left_aside(network: Network) -> Iterator[Finding]:
    for proxy in network.proxies:
        for name, drops in proxy.drops.items():
            for why, (code, text, mend) in _LEFT_ASIDE.items():
                if drops.get(why):
                    yield Finding(
                        code, "warn", name,
                        f"On {name} {drops[why]} {text}.",
                        f"tcpdump -vni {name} 'igmp or icmp6' {mend}",
                    )  # fmt: skip


def _is_upstream(network: Network, name: str) -> bool:
    return any(stream.interface == name for stream in network.streams)


def _ttl(network: Network) -> Iterator[Finding]:
    upstreams = {proxy.upstream: proxy.name for proxy in network.proxies}
    for each in network.heard:
        if each.interface in upstreams:
            for source, group in each.expiring[:10]:
                yield Finding(
                    "ttl-1", "bad", group,
                    f"The stream {group} of {source} comes with TTL 1: no router, and so no proxy, may pass it on.",
                    f"set a larger TTL at the sender {source} (ffmpeg: ?ttl=16, VLC: --ttl 16); or take it by a relay",
                )  # fmt: skip


def _routing_daemons(network: Network) -> Iterator[Finding]:
    if network.proxies:
        for pid, name in network.routing_daemons:
            yield Finding(
                "mroute-daemon", "bad", name,
                f"{name} (process {pid}) routes multicast here too, and the kernel takes routes of one program only.",
                f"systemctl disable --now {name}",
            )  # fmt: skip


def _forwarding(network: Network) -> Iterator[Finding]:
    for switch in network.not_forwarding:
        yield Finding(
            "forwarding-off", "bad", network.intercepts[0],
            f"Viewers' packets are taken on {network.intercepts[0]}, and this box doesn't forward ({switch}): when "
            "interception is withdrawn, video stops.",
            f"sysctl -w {switch}=1",
        )  # fmt: skip


def _packets(network: Network) -> list[tuple[str, Packet, str]]:
    """(kind, packet, owner) of what must come in: queries where we are a host, reports where we are the router."""
    downstream = {name for proxy in network.proxies for name in proxy.downstream}
    joining = {stream.interface for stream in network.streams}
    # MLD is looked at where policy names IPv6 groups; IGMP is not where it names no others.
    four = {each.interface for each in network.streams if ":" not in each.group}
    six = {each.interface for each in network.streams if ":" in each.group}
    for proxy in network.proxies:
        links = {proxy.upstream, *proxy.downstream}
        four |= links if not proxy.groups or any(":" not in net for net in proxy.groups) else set()
        six |= links if any(":" in net for net in proxy.groups) else set()
    found = []
    for name, owner in _wanted(network).items():
        is_router, is_host = name in downstream, name in joining or name not in downstream
        if is_router and name in four:
            found.append(("reports", Packet(name, _ALL_ROUTERS, "igmp"), owner))
        if is_host and (name in four or name not in six):
            found.append(("igmp", Packet(name, _ALL_SYSTEMS, "igmp"), owner))
        for is_ours, kind, (to, icmp_type) in ((is_router, "mld-reports", _MLD_REPORT), (is_host, "mld", _MLD_QUERY)):
            if is_ours and name in six:
                found.append((kind, Packet(name, to, "ipv6-icmp", icmp_type=icmp_type), owner))
    for stream in network.streams:
        if stream.is_host_join and stream.interface and stream.group:
            packet = Packet(stream.interface, stream.group, "udp", stream.port, stream.source)
            found.append(("stream", packet, stream.owner))
    for name, address, port in network.listeners:
        for link in _facing(network, address):
            found.append(("viewers", Packet(link.name, address, "tcp", port), f"listen.{name}"))
    return found


def _facing(network: Network, address: str) -> list[Link]:
    """Where viewers of a listener come in. Of several the doctor can't know which; a drop on all of them is one."""
    if address.startswith("127.") or address == "::1":
        return []
    links = [each for each in network.links.values() if each.is_up and each.name != "lo"]
    return links[:1] if len(links) == 1 else []


def _firewall(network: Network) -> Iterator[Finding]:
    assert network.ruleset is not None
    told = set()
    for kind, packet, owner in _packets(network):
        dropper = dropper_of(network.ruleset, packet)
        if dropper is None or (kind, packet.interface, packet.port) in told:
            continue
        told.add((kind, packet.interface, packet.port))
        yield _dropped(kind, packet, owner, dropper)


def _firewall_forward(network: Network) -> Iterator[Finding]:
    """What a proxy passes on goes through the forward hook, as all that is routed does: Docker and many host firewalls
    drop there what they don't know."""
    assert network.ruleset is not None
    for proxy in network.proxies:
        for name in proxy.downstream:
            for groups, samples in _samples(proxy.groups):
                packets = [Packet(proxy.upstream, each, "udp", None, "", name) for each in samples]
                droppers = [dropper_of(network.ruleset, each, "forward") for each in packets]
                by = droppers[0]
                if by is None or not all(droppers):
                    continue
                family = "ip6" if ":" in groups else "ip"
                yield Finding(
                    "forward-dropped", "bad", name,
                    f"The firewall of this box (nft table {by.family} {by.table}, chain {by.chain}) drops streams to "
                    f"{groups} from {proxy.upstream} to {name}: multicast.proxies.{proxy.name} forwards none of them.",
                    f"nft insert rule {by.family} {by.table} {by.chain} iifname {proxy.upstream} oifname {name} "
                    f"{family} daddr {groups} accept",
                )  # fmt: skip
                break


def _samples(groups: tuple[str, ...]) -> list[tuple[str, tuple[str, ...]]]:
    """Networks of groups, each with some of its addresses: only where all are dropped is the network."""
    if not groups:
        return [("224.0.0.0/4", ("224.2.0.1", "232.1.1.1", "239.1.1.1", "239.192.0.1", "239.255.0.1"))]
    nets = [ip_network(each) for each in groups]
    return [(str(net), (str(net[0]), str(net[net.num_addresses // 2]), str(net[-1]))) for net in nets]


def _dropped(kind: str, packet: Packet, owner: str, by: Dropper) -> Finding:
    where = f"the firewall of this box (nft table {by.family} {by.table}, chain {by.chain})"
    rule = f"nft insert rule {by.family} {by.table} {by.chain}"
    if kind == "igmp":
        return Finding(
            "igmp-dropped", "bad", packet.interface,
            f"On {packet.interface} {where} drops IGMP queries: the stream will stop in about 120 s.",
            f"{rule} ip protocol igmp accept",
        )  # fmt: skip
    if kind == "reports":
        return Finding(
            "reports-dropped", "bad", packet.interface,
            f"On {packet.interface} {where} drops IGMP reports: who joins there is not heard, and gets no stream.",
            f"{rule} ip protocol igmp accept",
        )  # fmt: skip
    if kind in ("mld", "mld-reports"):
        what = "queries: the stream will stop in about 260 s" if kind == "mld" else (
            "reports: who joins there is not heard, and gets no stream")  # fmt: skip
        return Finding(
            f"{kind}-dropped", "bad", packet.interface, f"On {packet.interface} {where} drops MLD {what}.",
            f"{rule} icmpv6 type {packet.icmp_type} accept",
        )  # fmt: skip
    if kind == "stream":
        family = "ip6" if ":" in packet.destination else "ip"
        return Finding(
            "stream-dropped", "bad", packet.destination,
            f"On {packet.interface} {where} drops what {owner} waits for.",
            f"{rule} {family} daddr {packet.destination} udp dport {packet.port} accept",
        )  # fmt: skip
    return Finding(
        "viewers-dropped", "bad", owner, f"On {packet.interface} {where} drops viewers' connections to {owner}.",
        f"{rule} tcp dport {packet.port} accept",
    )  # fmt: skip


def stream_interfaces(streams: tuple[Stream, ...], proxies: tuple[str, ...]) -> tuple[str, ...]:
    """Where it is worth listening."""
    return tuple(dict.fromkeys([*(each.interface for each in streams if each.interface), *proxies]))
