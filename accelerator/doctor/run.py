"""The doctor's round: from a policy, and what the daemon says where it runs, to what judges say."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from accelerator.doctor import listen, observe_links, observe_origins, observe_service
from accelerator.doctor.facts import Certificate, Heard, Network, Proxy, Stream, Upstream
from accelerator.doctor.finding import Finding, Report
from accelerator.doctor.judge_kernel import judge_kernel, needs_of
from accelerator.doctor.judge_network import judge_network, stream_interfaces
from accelerator.doctor.judge_service import (
    judge_certificate,
    judge_clock,
    judge_disk,
    judge_upstream,
    rules_of,
)
from accelerator.doctor.observe_origins import Question
from accelerator.policy.model import Origin, Policy
from accelerator.policy.relay_rules import inputs_of

LISTEN_S = 2.0
QUESTIONS_MAX = 100


@dataclass(frozen=True, slots=True)
class Subject:
    """Whom the doctor looks at. `policy` None: only the machine is looked at. `status`, `routes`: what the
    daemon and accelerator-netd say, None where they don't run; `why`, `why_no_routes`: they can't be asked. `url`: one
    that viewers use, to try it at its origin."""

    policy: Policy | None
    state_dir: Path | None
    credentials: Path | None
    status: Mapping[str, Any] | None = None
    routes: Mapping[str, Any] | None = None
    url: str = ""
    listen_s: float = LISTEN_S
    why: str = ""
    why_no_routes: str = ""


def examine(subject: Subject) -> Report:
    """Everything that can be looked at from here, in a few seconds."""
    report = Report()
    network = _network(subject, report)
    judge_network(network, report)
    upstreams: list[Upstream] = []
    if subject.policy is not None:
        upstreams = _origins(subject.policy, subject.url, report)
        _disk(subject, subject.policy, report)
        _certificates(subject, subject.policy, report)
    else:
        report.skip("policy", f"{subject.why or 'no acceleratord runs here'}: name the policy with --policy")
    report.add("clock", 1, judge_clock(observe_service.is_clock_synchronised(), upstreams))
    if subject.status is not None:
        report.add("daemon", 1, _daemon(subject.status))
        needs = needs_of(subject.policy) if subject.policy is not None else []
        if needs:
            report.add("kernel-state", 1, judge_kernel(needs, subject.routes, subject.why_no_routes))
    elif subject.policy is not None:
        why = f" ({subject.why})" if subject.why else ""
        report.skip("daemon", f"acceleratord can't be asked{why}: what it says of relays and origins is missing")
    return report


# -- the network -------------------------------------------------------------------------------------------------------


def _network(subject: Subject, report: Report) -> Network:
    policy = subject.policy
    streams = _streams(policy) if policy is not None else ()
    proxies = _proxies(policy, subject.routes) if policy is not None else ()
    ways = {each.source: observe_links.route_to(each.source or "198.51.100.1") for each in streams if each.interface}
    streams = tuple(replace(each, route=ways.get(each.source, "")) for each in streams)
    ruleset = None
    try:
        ruleset = observe_links.read_ruleset()
        if observe_links.has_old_iptables():
            report.skip("firewall-iptables",
                        "there are rules of the old iptables too, which nft doesn't list: see iptables -L")
    except observe_links.ToolMissingError as fault:
        report.skip("firewall", f"the packet filter's rules can't be read as this user: {fault}")
    needed = ["nf_tables"] if streams or proxies else []
    needed += (["igmp"] if streams else []) + (["ip_mroute", "ip6_mroute"] if proxies else [])
    return Network(
        links=observe_links.read_links(),
        streams=streams,
        proxies=proxies,
        heard=tuple(_heard(streams, proxies, subject.listen_s, report)),
        listeners=_listeners(policy) if policy is not None else (),
        intercepts=policy.steering.intercept.interfaces if policy is not None and policy.steering.intercept else (),
        not_forwarding=_not_forwarding(policy) if policy is not None else (),
        ruleset=ruleset,
        kernel=observe_links.read_kernel(needed),
        memberships_max=observe_links.number_of("/proc/sys/net/ipv4/igmp_max_memberships"),
        sources_max=observe_links.number_of("/proc/sys/net/ipv4/igmp_max_msf"),
        routing_daemons=tuple(observe_links.routing_daemons()) if proxies else (),
    )


def _not_forwarding(policy: Policy) -> tuple[str, ...]:
    """The switches of those families that are taken, and not forwarded."""
    wanted = policy.steering.intercept
    if wanted is None:
        return ()
    switches = {4: "net.ipv4.ip_forward", 6: "net.ipv6.conf.all.forwarding"}
    versions = sorted({net.version for net in wanted.destinations})
    names = [switches[each] for each in versions]
    return tuple(each for each in names if observe_links.number_of(f"/proc/sys/{each.replace('.', '/')}") != 1)


def _streams(policy: Policy) -> tuple[Stream, ...]:
    found = []
    for name, relay in policy.relays.items():
        for each in inputs_of(relay):
            group = each.host if ip_address(each.host).is_multicast else ""
            found.append(Stream(f"relays.{name}", each.interface or "", group, each.port, each.source))
    for name, proxy in policy.multicast.proxies.items():
        single = [str(net.network_address) for net in proxy.sources if net.num_addresses == 1]
        for source in single or [""]:
            found.append(Stream(f"multicast.proxies.{name}", proxy.upstream, "", 0, source, is_host_join=False))
    return tuple(each for each in found if each.group or not each.is_host_join)


def _proxies(policy: Policy, routes: Mapping[str, Any] | None) -> tuple[Proxy, ...]:
    found = []
    for name, proxy in policy.multicast.proxies.items():
        families = (routes or {}).get("multicast", {})
        shown = families.get("ipv4", {}).get(name)
        drops: dict[str, Counter[str]] = {}
        for family in families.values():
            for each, state in family.get(name, {}).get("downstreams", {}).items():
                drops.setdefault(each, Counter()).update(state["drops"])
        asked = None
        if shown is not None:
            asked = {
                each: "us" if state["is_querier"] else str(state["querier"] or "")
                for each, state in shown["downstreams"].items()
            }
        found.append(Proxy(name, proxy.upstream, proxy.downstream, policy.multicast.querier.mode, asked, drops,
                           tuple(map(str, proxy.groups))))  # fmt: skip
    return tuple(found)


def _heard(
    streams: tuple[Stream, ...], proxies: tuple[Proxy, ...], seconds: float, report: Report
) -> list[Heard]:
    names = [name for each in proxies for name in (each.upstream, *each.downstream)]
    interfaces = stream_interfaces(streams, tuple(names))
    if not interfaces or seconds <= 0:
        return []
    try:
        heard = listen.listen(interfaces, seconds)
    except PermissionError:
        report.skip("listening", "only root may listen for queries and for streams with TTL 1: run it with sudo")
        return []
    if seconds < 125:
        report.skip(
            "queriers-whole", f"queries come every 125 s, and {seconds:g} s were listened: --listen 130 tells for sure"
        )
    return heard


def _listeners(policy: Policy) -> tuple[tuple[str, str, int], ...]:
    return tuple((name, row.address.host, row.address.port) for name, row in policy.listen.items() if row.address.port)


# -- origins -----------------------------------------------------------------------------------------------------------


def _origins(policy: Policy, url: str, report: Report) -> list[Upstream]:
    wanted = _owner_of(policy, url) if url else None
    if url and wanted is None:
        report.add("url", 1, [Finding(
            "url-unknown", "bad", url, f"No origin of the policy has {url}: viewers who ask for it get 421 or 404.",
            "add its host to an origin's hosts",
        )])  # fmt: skip
    questions: list[tuple[Question, Origin]] = []
    for name, origin in policy.origins.items():
        parts = urlsplit(url) if url and wanted == name else None
        target = origin.paths[0] if parts is None else (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        for each in origin.from_:
            authority = str(each).partition("://")[2]
            usual = {"http": 80, "https": 443}[each.scheme]
            host = authority.removesuffix(f":{usual}")
            if origin.upstream_host == "viewer":
                viewers = [known for known in origin.hosts if not known.startswith("*")]
                host = parts.netloc if parts is not None else viewers[0] if viewers else host
            via = (origin.via.host, origin.via.port) if origin.via is not None else None
            ca = origin.ca.path if origin.ca is not None else ""
            questions.append((
                Question(name, each.scheme, each.host, each.port, str(each), host, target, origin.resolve, via, ca),
                origin,
            ))  # fmt: skip
    if len(questions) > QUESTIONS_MAX:
        report.skip("origins", f"{len(questions) - QUESTIONS_MAX} of {len(questions)} upstreams were not asked")
    asked = questions[:QUESTIONS_MAX]
    seen = observe_origins.ask_all([question for question, _ in asked])
    for upstream, (_, origin) in zip(seen, asked, strict=True):
        rules = rules_of({"profile": origin.profile, "override_private": origin.override_private})
        report.add("origins", 1, judge_upstream(upstream, rules))
    return seen


def _owner_of(policy: Policy, url: str) -> str | None:
    """The origin that a viewer's URL belongs to: the most specific host, then the longest path."""
    parts = urlsplit(url)
    host, path = (parts.hostname or "").rstrip("."), parts.path or "/"
    best: tuple[int, int, int] | None = None
    owner = None
    for name, origin in policy.origins.items():
        for pattern in origin.hosts:
            suffix = pattern[1:] if pattern.startswith("*.") else ""
            if not (pattern in ("*", host) or (suffix and host.endswith(suffix))):
                continue
            for prefix in origin.paths:
                whole = prefix.rstrip("/")
                rank = (0 if pattern == "*" else 1 if suffix else 2, len(pattern), len(whole))
                if (path == whole or path.startswith(whole + "/")) and (best is None or rank > best):
                    best, owner = rank, name
    return owner


# -- the box -----------------------------------------------------------------------------------------------------------


def _disk(subject: Subject, policy: Policy, report: Report) -> None:
    disk = policy.cache.disk
    if disk is None:
        return
    if subject.state_dir is None and not Path(disk.path).is_absolute():
        report.skip("disk", "which folder the disk tier is in isn't known: name the state directory with --state-dir")
        return
    path = (subject.state_dir or Path("/")) / disk.path
    report.add("disk", 1, judge_disk(observe_service.look_at_disk(path, disk.size)))


def _certificates(subject: Subject, policy: Policy, report: Report) -> None:
    hosts = [host for origin in policy.origins.values() for host in origin.hosts if not host.startswith("*")]
    named = {name: listener for listener in policy.listen.values() for name in listener.tls}
    shown = {each["name"]: each for each in (subject.status or {}).get("certificates", ())}
    for name, listener in named.items():
        if name in shown:
            certificate = _shown_certificate(shown[name])
            wanted = hosts if len(listener.tls) == 1 else []
            report.add("certificates", 1, judge_certificate(certificate, wanted, time.time()))
            continue
        if subject.credentials is None:
            report.skip("certificates", "where the credentials are isn't known: name them with --credentials")
            return
        certificate = observe_service.read_certificate(subject.credentials, name)
        # Of several certificates each host needs one only.
        wanted = hosts if len(listener.tls) == 1 else []
        report.add("certificates", 1, judge_certificate(certificate, wanted, time.time()))


def _shown_certificate(row: Mapping[str, Any]) -> Certificate:
    """As the daemon shows it: systemd may have given it to the daemon alone."""
    begins_s = time.time() + 1 if row["state"] == "not yet" else 0.0
    return Certificate(str(row["name"]), "", begins_s, float(row["not_after_s"]), tuple(row["hosts"]))


def _daemon(status: Mapping[str, Any]) -> list[Finding]:
    found = [
        Finding("unhealthy", "bad", "acceleratord", f"acceleratord is not healthy: {reason}.", "accelctl events")
        for reason in status["health"]["reasons"]
    ]
    found += [
        Finding("policy-fallback", "warn", "policy", f"{warning}.".replace("..", "."), "accelctl policy history")
        for warning in status.get("warnings", ())
    ]
    found += [
        Finding("relay-silent", "bad", str(name), f"Nothing comes in for relay {name}, and somebody waits for it.",
                f"accelctl relay show {name}")
        for name in status.get("relays", {}).get("silent_names", ())
    ]
    return found
