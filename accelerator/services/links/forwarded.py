"""Viewers' own traffic to an origin's servers, by the link that the origin is reached by: the addresses of origins with
`link_for: all`, as routes of the link in use. Names are asked again and again, as servers move; what is not named any
more goes after a while. The routes are netd's (services/netd/wishes.py has the numbers); the default route can't be
among them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address

from accelerator.errors import OriginError
from accelerator.io.origin import OriginCounters
from accelerator.io.resolve import Resolver
from accelerator.kernel.objects import Route, Rule
from accelerator.policy.model import Policy
from accelerator.services.logs.events import Events
from accelerator.services.netd.wishes import STEER_PRIORITY, STEER_TABLE

ASK_EACH_S = 15.0
ASK_TIMEOUT_S = 5.0
# Connections to an address that DNS doesn't name any more go on as long.
KEPT_S = 600.0
# Of one origin, and of all. A name with more is a content network's, for which this is not made.
ADDRESSES_MAX, ADDRESSES_ALL_MAX = 64, 1024


@dataclass(frozen=True, slots=True)
class Wanted:
    routes: tuple[Route, ...] = ()
    rules: tuple[Rule, ...] = ()


class Forwarded:
    """Lives on one loop. `tell` gets what netd shall have, each time that this is something else. `link_of`: the link
    that an origin goes by now."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, events: Events, link_of: Callable[[str], str],
        tell: Callable[[Wanted], None],
    ) -> None:  # fmt: skip
        self._loop = loop
        self._events = events
        self._link_of = link_of
        self._tell = tell
        self._resolver = Resolver(loop, OriginCounters())
        self._policy: Policy | None = None
        # By origin: addresses, and when DNS named them last.
        self._seen: dict[str, dict[str, float]] = {}
        self._task: asyncio.Task[None] | None = None
        self._told = Wanted()

    def apply(self, policy: Policy) -> None:
        self._policy = policy
        names = {name for name, origin in policy.origins.items() if origin.link_for == "all" and origin.link}
        self._seen = {name: self._seen.get(name, {}) for name in names}
        if self._task is not None:
            self._task.cancel()
            self._task = None
        if names:
            self._task = self._loop.create_task(self._ask_again_and_again(policy, sorted(names)))
        self.link_changed()

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        await self._resolver.close()

    def link_changed(self) -> None:
        """Some origin goes by another link now: its viewers do too."""
        assert self._policy is not None
        wanted = routes_of(self._policy, self._seen, self._link_of)
        if wanted != self._told:
            self._told = wanted
            self._tell(wanted)

    async def _ask_again_and_again(self, policy: Policy, names: Iterable[str]) -> None:
        while True:
            for name in names:
                await self._ask(policy, name)
            self.link_changed()
            await asyncio.sleep(ASK_EACH_S)

    async def _ask(self, policy: Policy, name: str) -> None:
        origin, now_s = policy.origins[name], self._loop.time()
        known = self._seen[name]
        for url in origin.from_:
            try:
                found = await self._resolver.addresses(
                    url.host, url.port, pins=tuple(map(str, origin.resolve)), own_listeners=frozenset(),
                    timeout_s=ASK_TIMEOUT_S, grace_s=KEPT_S,
                )  # fmt: skip
            except OriginError as fault:
                # What was known stays for its time.
                self._events.note(
                    "forwarded-unknown", f"origin {name}: where viewers' own traffic goes isn't known",
                    why=str(fault), advice="look at the resolver", cause=f"forwarded {name}",
                )  # fmt: skip
                continue
            for address in found:
                if may_be_steered(address.ip):
                    known[address.ip] = now_s
        for old, at_s in sorted(known.items(), key=lambda each: each[1]):
            if now_s - at_s > KEPT_S or len(known) > ADDRESSES_MAX:
                del known[old]


def may_be_steered(address: str) -> bool:
    """One host's address, which no table of the system's needs for itself."""
    host = ip_address(address)
    return not (host.is_unspecified or host.is_loopback or host.is_link_local or host.is_multicast)


def routes_of(policy: Policy, seen: Mapping[str, Mapping[str, float]], link_of: Callable[[str], str]) -> Wanted:
    """A table for each link, with a route for each address, and a rule without conditions: what isn't in the table is
    looked for in the system's own. Of an address that two origins have, the first origin's link. Pure."""
    numbers = {name: number for number, name in enumerate(policy.links)}
    routes: dict[str, Route] = {}
    for name in policy.origins:
        link = policy.links.get(link_of(name)) if name in seen else None
        if link is None or link.gateway is None:
            continue
        gateway = ip_address(str(link.gateway))
        for text in sorted(seen[name]):
            address = ip_address(text)
            if address.version != gateway.version or address == gateway or len(routes) == ADDRESSES_ALL_MAX:
                continue
            table = STEER_TABLE + numbers[link_of(name)]
            whole = f"{address}/{address.max_prefixlen}"
            routes.setdefault(whole, Route(table, whole, str(gateway), link.interface))
    families = {(route.table, 6 if ":" in route.destination else 4) for route in routes.values()}
    rules = [Rule(STEER_PRIORITY + table - STEER_TABLE, table, family) for table, family in sorted(families)]
    return Wanted(tuple(routes.values()), tuple(rules))
