"""What a policy's tables want of the kernel, as netd's desired state. Pure; nothing is sent here, and what becomes of
it is kernel/'s business."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_address

from accelerator.kernel.objects import PacketRule, Route, Rule
from accelerator.kernel.state import DesiredState, Interception, MulticastProxy, MulticastRoute
from accelerator.policy.compile import Tables
from accelerator.policy.link_rows import LinkRow, MarkRow
from accelerator.policy.multicast_rows import ProxyRow
from accelerator.services.netd.shaping import class_rules, shapers

# A table and a rule for each link: policy/link_model.py has at most 16.
LINK_TABLE, LINK_PRIORITY = 86_010, 8610
# And for what is forwarded to origins' servers; after those, so that what is bound to a link goes by that.
STEER_TABLE, STEER_PRIORITY = 86_030, 8630


def desired(tables: Tables) -> DesiredState:
    routes, rules = link_routes(tables.links)
    row = tables.intercept
    taken = None if row is None else Interception(row.interfaces, row.destinations, row.ports, row.port)
    wanted = tables.multicast
    return DesiredState(
        tuple(map(_proxy, wanted.proxies)),
        routes,
        rules,
        (*mark_rules(tables.marks), *class_rules(tables)),
        taken,
        tuple(MulticastRoute(each.name, each.source, each.group, each.interface, each.to) for each in wanted.routes),
        wanted.never,
        wanted.table,
        shapers(tables),
    )


def mark_rules(marks: Iterable[MarkRow]) -> tuple[PacketRule, ...]:
    """Both ways: towards the service its ports are the destination's, from there the source's."""
    rules = []
    for each in marks:
        if each.marked == each.dscp:
            continue
        hook, protocol, marked, dscp = "postrouting", each.protocol, each.marked, each.dscp
        nets, ports = each.nets, each.ports
        rules.append(PacketRule(hook, protocol, destination=nets, ports=ports, dscp_is=marked, dscp=dscp))
        if nets or ports:
            rules.append(PacketRule(hook, protocol, source=nets, source_ports=ports, dscp_is=marked, dscp=dscp))
    return tuple(rules)


def link_routes(links: Iterable[LinkRow]) -> tuple[tuple[Route, ...], tuple[Rule, ...]]:
    """A default route that only packets use that are bound to the link's interface: io/dial binds them."""
    routes, rules = [], []
    for link in links:
        if not link.gateway:
            continue
        family = ip_address(link.gateway).version
        table, priority = LINK_TABLE + link.number, LINK_PRIORITY + link.number
        everywhere = "0.0.0.0/0" if family == 4 else "::/0"
        routes.append(Route(table, everywhere, link.gateway, link.interface))
        rules.append(Rule(priority, table, family, interface_out=link.interface))
    return tuple(routes), tuple(rules)


def _proxy(row: ProxyRow) -> MulticastProxy:
    return MulticastProxy(
        row.name,
        row.upstream,
        row.downstream,
        row.querier,
        row.interval_s,
        row.robustness,
        row.last_member_s,
        row.fast_leave,
        row.groups or None,
        row.sources or None,
        row.group_limit,
        n_groups_host_max=row.group_limit_per_host,
        other_present_max_s=row.other_present_max_s,
    )
