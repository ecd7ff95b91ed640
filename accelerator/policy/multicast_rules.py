"""What proxies and multicast routes of a policy mean together: interfaces in one place, nothing that loops, one route
for a flow. Parses no value."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address

from accelerator.policy.model import Policy

# Of the kernel (<linux/rtnetlink.h>): default, main and local, and what stands for a number in an attribute.
_TABLES_TAKEN = range(252, 256)

Finding = tuple[tuple[str | int, ...], str, bool]


def multicast_findings(policy: Policy) -> Iterator[Finding]:
    """(place below multicast, message, whether it is only a warning)."""
    table = policy.multicast.table
    if table in _TABLES_TAKEN:
        yield ("table",), f"multicast.table: {table} is one of the kernel's own: leave it out for the usual one", False
    yield from _places(policy)
    yield from _routes(policy)


def _places(policy: Policy) -> Iterator[Finding]:
    """One place for each interface: of two, one proxy would loop what the other sends (RFC 4605 section 5 leaves that
    to the administrator), or two would fight for a flow's one route."""
    places: dict[str, str] = {}
    for name, proxy in policy.multicast.proxies.items():
        path = ("proxies", name)
        where: list[tuple[tuple[str | int, ...], str]] = [((*path, "upstream"), proxy.upstream)]
        where += [((*path, "downstream", index), each) for index, each in enumerate(proxy.downstream)]
        for place, interface in where:
            key = f"multicast.proxies.{name}.{place[2]}"
            if interface in places:
                yield place, f"{key}: {interface} stands in {places[interface]} already: that would loop", False
            places.setdefault(interface, key)


def _routes(policy: Policy) -> Iterator[Finding]:
    first: dict[tuple[str | None, str], str] = {}
    upstreams = {proxy.upstream: name for name, proxy in policy.multicast.proxies.items()}
    downstreams = {each: name for name, proxy in policy.multicast.proxies.items() for each in proxy.downstream}
    for name, route in policy.multicast.routes.items():
        path, key = ("routes", name), f"multicast.routes.{name}"
        group = ip_address(route.group)
        if route.source is not None and ip_address(route.source).version != group.version:
            yield (*path, "source"), f"{key}.source: {route.source} and {route.group} are of two families", False
        if route.source is None and _is_ssm(group):
            yield (*path, "group"), f"{key}.group: {route.group} is source-specific (RFC 4607): name its source", False
        for index, each in enumerate(route.to):
            if each == route.from_:
                yield (*path, "to", index), f"{key}.to: {each} is where the packets come from: that would loop", False
            elif each in route.to[:index]:
                yield (*path, "to", index), f"{key}.to: {each} stands there twice", False
        other = first.setdefault((route.source, route.group), name)
        if other != name:
            whose = route.source or "anybody"
            what = f"{key}: {whose}'s packets to {route.group} have a route in multicast.routes.{other} already"
            yield (*path, "group"), what, False
        if route.source is None and route.from_ in downstreams:
            what = f"{key}: {route.from_} is a downstream of proxy '{downstreams[route.from_]}', which sends all that "
            yield (*path, "from"), what + "comes in there up and to its members: name a source", False
        elif route.source is None and route.from_ in upstreams:
            proxy = policy.multicast.proxies[upstreams[route.from_]]
            if proxy.sources:
                what = f"{key}: proxy '{upstreams[route.from_]}' lets in certain sources from {route.from_} only: "
                yield (*path, "from"), what + "name the route's source", False
        if route.source is not None and route.from_ in downstreams:
            upstream = policy.multicast.proxies[downstreams[route.from_]].upstream
            if upstream in route.to:
                what = f"{key}.to: proxy '{downstreams[route.from_]}' sends it to {upstream} anyway"
                yield (*path, "to", route.to.index(upstream)), what, True


def _is_ssm(group: IPv4Address | IPv6Address) -> bool:
    """232.0.0.0/8, and ff3x::/32 of every scope x."""
    return int(group) >> 24 == 232 if group.version == 4 else int(group) >> 96 & 0xFFF0FFFF == 0xFF300000
