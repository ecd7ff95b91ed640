"""Interception of plain HTTP (TPROXY): put into the kernel while the data plane proves that it works, and taken out
when it doesn't, so that video still plays past a box that is dead or stuck. Everything is in one nft table, one rule
and one routing table of ours, for each family; nothing else is touched. What somebody takes out of it is put back, but
never while it is withdrawn. Knows no policy, and holds no viewer's socket.

The rule sends packets to a socket only while there is one: without it they go their usual way (nft_tproxy gives up), so
a process that was killed intercepts nothing, even where nobody is left to take the rule out.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections import deque
from collections.abc import Callable, Iterable

from accelerator.kernel import packet_filter, wire
from accelerator.kernel.netlink import NETFILTER, NFT_GROUPS, ROUTE_GROUPS, Netlink, drain, watch
from accelerator.kernel.objects import PROTOCOL
from accelerator.kernel.packet_filter import FilterError
from accelerator.kernel.state import Interception
from accelerator.kernel.wire import INET, INET6, METRIC6, RouteRow, RuleRow

TABLE = "accelerator_intercept"
MARK = 0x0ACC
ROUTING_TABLE = 7780
PRIORITY = 7780
# A beat a second; missed for so long it is withdrawn. With the look each half second: at most 5 s, of the 6 allowed.
SILENCE_S = 4.0
LOOK_S = 0.5
# Whoever takes it out so often in a minute is a program, and means it: it is withdrawn for so long.
FIGHT_ROUNDS, FIGHT_S, STOP_S = 5, 60.0, 300.0
# Several events come of one change.
SETTLE_S = 0.05
_IP_TRANSPARENT = 19
_BACKLOG = 4096
_LOOPBACK = 1
# The mark leads to the box itself, whatever the address is.
_ROWS = {
    INET: (
        RouteRow(INET, ROUTING_TABLE, bytes(4), 0, 0, "local", interface=_LOOPBACK),
        RuleRow(INET, PRIORITY, ROUTING_TABLE, mark=MARK, mask=0xFFFFFFFF),
    ),
    INET6: (
        RouteRow(INET6, ROUTING_TABLE, bytes(16), 0, METRIC6, "local", interface=_LOOPBACK),
        RuleRow(INET6, PRIORITY, ROUTING_TABLE, mark=MARK, mask=0xFFFFFFFF),
    ),
}

Tell = Callable[[dict[str, str]], None]


def open_transparent(port: int) -> socket.socket:
    """Takes connections to any address, of both families where the system has IPv6. The caller passes it on and closes
    its own copy: while one is open, the kernel believes that somebody accepts. OSError: no CAP_NET_ADMIN, or the port
    is taken."""
    try:
        made = _socket(socket.AF_INET6)
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        address = "::"
    except OSError:
        made, address = _socket(socket.AF_INET), "0.0.0.0"
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # One flag of the socket for both families.
        made.setsockopt(socket.IPPROTO_IP, _IP_TRANSPARENT, 1)
        made.bind((address, port))
        made.listen(_BACKLOG)
    except OSError:
        made.close()
        raise
    return made


def _socket(family: socket.AddressFamily) -> socket.socket:
    return socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)


def families_of(wish: Interception) -> tuple[int, ...]:
    """Those that its destinations are of."""
    return tuple(family for family in (INET, INET6) if _of(wish, family))


def _of(wish: Interception, family: int) -> list[str]:
    return [each for each in wish.destinations if (":" in each) == (family == INET6)]


def rules_of(wish: Interception) -> str:
    """The nft table, whole. Packets to the box itself are not taken; what it sends itself never comes by here."""
    interfaces = ", ".join(f'"{packet_filter.quoted(name)}"' for name in wish.interfaces)
    ports = ", ".join(map(str, wish.ports))
    rules = "\n".join(
        f"        iifname {{ {interfaces} }} {name} daddr {{ {', '.join(_of(wish, family))} }} tcp dport {{ {ports} }} "
        f"fib daddr type != local tproxy {name} to :{wish.port} meta mark set {MARK:#x} accept"
        for family, name in ((INET, "ip"), (INET6, "ip6"))
        if _of(wish, family)
    )
    return f"""table inet {TABLE}
delete table inet {TABLE}
table inet {TABLE} {{
    chain prerouting {{
        type filter hook prerouting priority mangle; policy accept;
{rules}
    }}
}}
"""


class Interceptor:
    """Wanted by `want`, kept alive by `beat`. Used in one event loop, which `run` belongs to."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self._wanted: Interception | None = None
        self._installed: Interception | None = None
        self._is_left_over = True  # an earlier netd may have left its table
        self._beat_s: float | None = None
        self._changed = asyncio.Event()
        self._watches = [watch(socket.NETLINK_ROUTE, ROUTE_GROUPS), watch(NETFILTER, NFT_GROUPS)]
        self._is_doubtful = False  # something in the kernel has changed since it was looked at
        self._listed: tuple[str, int] | None = None
        self._problem = ""
        self._repairs: deque[float] = deque(maxlen=FIGHT_ROUNDS)
        self._stopped_until_s = 0.0

    @property
    def is_active(self) -> bool:
        return self._installed is not None

    def want(self, wish: Interception | None) -> None:
        if wish != self._wanted:
            self._wanted = wish
            self._stopped_until_s = 0.0  # whoever changes it wants it tried anew
            self._changed.set()

    def beat(self) -> None:
        """The data plane has moved since the last one."""
        was_silent = self._beat_s is None
        self._beat_s = asyncio.get_running_loop().time()
        if was_silent:
            self._changed.set()

    def gone(self) -> None:
        """Who sent the beats has ended: nothing to wait for."""
        self._beat_s = None
        self._changed.set()

    async def run(self) -> None:
        """Until cancelled; what is installed then is taken out: nobody would watch it."""
        loop = asyncio.get_running_loop()
        for each in self._watches:
            loop.add_reader(each.fileno(), self._event, each)
        try:
            while True:
                await self._settle()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_S):
                        await self._changed.wait()
                if self._is_doubtful:
                    await asyncio.sleep(SETTLE_S)
                self._changed.clear()
        finally:
            for each in self._watches:
                loop.remove_reader(each.fileno())
                each.close()
            # Also what was being put in at that moment.
            if self._installed is not None or self._is_left_over:
                await asyncio.shield(self._withdraw("netd ends"))

    async def clear(self) -> None:
        """Takes out what an earlier netd left, where `run` is not. OSError, FilterError: that can't be done."""
        try:
            await self._withdraw("")
        finally:
            for each in self._watches:
                each.close()

    def _event(self, watching: socket.socket) -> None:
        drain(watching)
        if self._installed is not None:
            self._is_doubtful = True
            self._changed.set()

    async def _settle(self) -> None:
        now_s = asyncio.get_running_loop().time()
        is_alive = self._beat_s is not None and now_s - self._beat_s <= SILENCE_S
        due = self._wanted if is_alive and now_s >= self._stopped_until_s else None
        try:
            if due is None and (self._installed is not None or self._is_left_over):
                was = self._installed is not None
                await self._withdraw("the data plane is silent" if was and self._wanted is not None else "")
                if not is_alive:
                    self._beat_s = None
            elif due is not None and due != self._installed:
                await self._install(due)
                self._tell({
                    "kind": "intercept-on",
                    "message": f"plain HTTP to {', '.join(due.destinations)} on {', '.join(due.interfaces)} is taken",
                })  # fmt: skip
            elif due is not None and self._is_doubtful:
                await self._look(due, now_s)
            self._problem = ""
        except (OSError, FilterError, TimeoutError) as fault:
            # A part may be there, or missing.
            self._is_doubtful = self._installed is not None
            if str(fault) != self._problem:  # nft may be missing for as long as netd runs
                self._problem = str(fault)
                self._tell({"kind": "intercept-failed", "message": f"interception can't be changed: {fault}"})
            await asyncio.sleep(LOOK_S)

    async def _look(self, wish: Interception, now_s: float) -> None:
        """Somebody may have taken a part of it out."""
        self._is_doubtful = False
        if await packet_filter.listed(TABLE) == self._listed and self._listed is not None and _is_there(wish):
            return
        self._repairs.append(now_s)
        if len(self._repairs) == FIGHT_ROUNDS and now_s - self._repairs[0] < FIGHT_S:
            self._repairs.clear()
            self._stopped_until_s = now_s + STOP_S
            message = f"interception: another program takes it out again and again; withdrawn for {STOP_S:.0f} s"
            self._tell({"kind": "kernel-fight", "message": f"{message}: find out which (ip monitor, nft monitor)"})
            await self._withdraw("another program takes it out")
            return
        await self._install(wish)
        self._tell({"kind": "kernel-repaired", "message": "interception: somebody has taken out a part; put back"})

    async def _install(self, wish: Interception) -> None:
        self._is_left_over = True  # until it is whole: what fails half way is taken out when it isn't wanted
        _change((*_ROWS[family], True) for family in families_of(wish))
        unwanted = [family for family in _ROWS if family not in families_of(wish)]
        await packet_filter.run(rules_of(wish))
        _change(((*_ROWS[family], False) for family in unwanted), is_surely_there=False)
        # What changes from here on is somebody else's doing, or costs one more look.
        self._is_doubtful = False
        self._listed = await packet_filter.listed(TABLE)
        if self._listed is not None and self._listed[1] != len(families_of(wish)):
            self._listed = None  # somebody was quicker: the next look puts it back
        self._installed, self._is_left_over = wish, False
        self._is_doubtful = self._is_doubtful or self._listed is None or not _is_there(wish)

    async def _withdraw(self, why: str) -> None:
        # First what takes packets, then what they went by. An earlier version's table was of IPv4 alone.
        tables = (f"{kind} {TABLE}" for kind in ("inet", "ip"))
        await packet_filter.run("".join(f"table {each}\ndelete table {each}\n" for each in tables))
        was, self._installed, self._is_left_over = self._installed, None, False
        _change(((*rows, False) for rows in _ROWS.values()), is_surely_there=False)
        if was is not None:
            self._tell({
                "kind": "intercept-off",
                "message": "interception is withdrawn, viewers go past the box" + (f": {why}" if why else ""),
            })  # fmt: skip


def _change(rows: Iterable[tuple[RouteRow, RuleRow, bool]], *, is_surely_there: bool = True) -> None:
    """A handful of messages, answered at once. OSError: the kernel refuses; a family that isn't there has nothing that
    could be taken away."""
    netlink = Netlink()
    try:
        for route, rule, is_added in rows:
            messages = [
                wire.route_message(route, is_added=is_added),
                wire.rule_message(rule, is_added=is_added),
            ]
            for error in netlink.send(messages if is_added else messages[::-1]):
                if is_surely_there:
                    raise OSError(error, os.strerror(error))
    finally:
        netlink.close()


def _is_there(wish: Interception) -> bool:
    """Rule and route of each family that is taken."""
    netlink = Netlink()
    try:
        for family in families_of(wish):
            route, rule = _ROWS[family]
            routes = {wire.read_route(body) for body in netlink.dump(wire.routes_request(family, table=ROUTING_TABLE))}
            rules = {wire.read_rule(body) for body in netlink.dump(wire.rules_request(family))}
            if (PROTOCOL, route) not in routes or (PROTOCOL, rule) not in rules:
                return False
    finally:
        netlink.close()
    return True
