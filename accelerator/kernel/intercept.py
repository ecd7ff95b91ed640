"""Interception of plain HTTP (TPROXY): put into the kernel while the data plane proves that it works, and taken out
when it doesn't, so that video still plays past a box that is dead or stuck. Everything is in one nft table, one rule
and one routing table of ours; nothing else is touched. Knows no policy, and holds no viewer's socket.

The rule sends packets to a socket only while there is one: without it they go their usual way (nft_tproxy gives up), so
a process that was killed intercepts nothing, even where nobody is left to take the rule out.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable

from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkError

from accelerator.kernel.state import Interception

TABLE = "accelerator_intercept"
MARK = 0x0ACC
ROUTING_TABLE = 7780
PRIORITY = 7780
# A beat a second; missed for so long it is withdrawn. With the look each half second: at most 5 s, of the 6 allowed.
SILENCE_S = 4.0
LOOK_S = 0.5
_IP_TRANSPARENT = 19
_BACKLOG = 4096
_NFT_TIMEOUT_S = 5.0

Tell = Callable[[dict[str, str]], None]


def open_transparent(port: int) -> socket.socket:
    """Takes connections to any address. The caller passes it on and closes its own copy: while one is open, the kernel
    believes that somebody accepts. OSError: no CAP_NET_ADMIN, or the port is taken."""
    made = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.setsockopt(socket.IPPROTO_IP, _IP_TRANSPARENT, 1)
        made.bind(("0.0.0.0", port))
        made.listen(_BACKLOG)
    except OSError:
        made.close()
        raise
    return made


def rules_of(wish: Interception) -> str:
    """The nft table, whole. Packets to the box itself are not taken; what it sends itself never comes by here."""
    interfaces = ", ".join(f'"{name}"' for name in wish.interfaces)
    ports = ", ".join(map(str, wish.ports))
    return f"""table ip {TABLE}
delete table ip {TABLE}
table ip {TABLE} {{
    chain prerouting {{
        type filter hook prerouting priority mangle; policy accept;
        iifname {{ {interfaces} }} ip daddr {{ {", ".join(wish.destinations)} }} tcp dport {{ {ports} }} \
fib daddr type != local tproxy to :{wish.port} meta mark set {MARK:#x} accept
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

    @property
    def is_active(self) -> bool:
        return self._installed is not None

    def want(self, wish: Interception | None) -> None:
        if wish != self._wanted:
            self._wanted = wish
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
        try:
            while True:
                await self._settle()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), LOOK_S)
                self._changed.clear()
        finally:
            if self._installed is not None:
                await asyncio.shield(self._withdraw("netd ends"))

    async def _settle(self) -> None:
        now_s = asyncio.get_running_loop().time()
        is_alive = self._beat_s is not None and now_s - self._beat_s <= SILENCE_S
        due = self._wanted if is_alive else None
        try:
            if due is None and (self._installed is not None or self._is_left_over):
                was = self._installed is not None
                await self._withdraw("the data plane is silent" if was and self._wanted is not None else "")
                if not is_alive:
                    self._beat_s = None
            elif due is not None and due != self._installed:
                await self._install(due)
        except (OSError, NetlinkError, TimeoutError) as fault:
            self._tell({"kind": "intercept-failed", "message": f"interception can't be changed: {fault}"})
            await asyncio.sleep(LOOK_S)

    async def _install(self, wish: Interception) -> None:
        async with AsyncIPRoute() as netlink:
            await netlink.route("replace", dst="0.0.0.0/0", oif=1, table=ROUTING_TABLE, type="local", scope=254)
            with contextlib.suppress(NetlinkError):  # there already
                await netlink.rule("add", fwmark=MARK, table=ROUTING_TABLE, priority=PRIORITY)
        await _nft(rules_of(wish))
        self._installed, self._is_left_over = wish, False
        self._tell({
            "kind": "intercept-on",
            "message": f"plain HTTP to {', '.join(wish.destinations)} on {', '.join(wish.interfaces)} is intercepted",
        })  # fmt: skip

    async def _withdraw(self, why: str) -> None:
        # First what takes packets, then what they went by.
        await _nft(f"table ip {TABLE}\ndelete table ip {TABLE}\n")
        was, self._installed, self._is_left_over = self._installed, None, False
        async with AsyncIPRoute() as netlink:
            with contextlib.suppress(NetlinkError):
                await netlink.rule("del", fwmark=MARK, table=ROUTING_TABLE, priority=PRIORITY)
            with contextlib.suppress(NetlinkError):
                await netlink.flush_routes(table=ROUTING_TABLE)
        if was is not None:
            self._tell({
                "kind": "intercept-off",
                "message": "interception is withdrawn, viewers go past the box" + (f": {why}" if why else ""),
            })  # fmt: skip


async def _nft(rules: str) -> None:
    """One transaction. OSError: it is not there, or refuses."""
    process = await asyncio.create_subprocess_exec(
        "nft", "-f", "-", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE, env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
    )  # fmt: skip
    try:
        async with asyncio.timeout(_NFT_TIMEOUT_S):
            _, said = await process.communicate(rules.encode())
    except TimeoutError:
        process.kill()
        await process.wait()
        raise
    if process.returncode:
        lines = said.decode(errors="replace").strip().splitlines()
        raise OSError(f"nft: {lines[0] if lines else 'it failed'}")
