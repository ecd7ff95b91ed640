"""The process that answers for multicast: hosts' reports, and the kernel's questions about flows that nobody foretold,
for which it keeps four packets. A process of its own, so that nothing that netd does to thousands of routes holds an
answer back: no lock of the interpreter is shared, and no memory (docs/decisions/0266). What reads policies, services'
messages or the disk is netd's and does not belong here.

    python -m accelerator.kernel.multicast_process DESCRIPTOR KEEPER_SOCKET

DESCRIPTOR is a stream to netd (multicast_end.py), a line of JSON for each message:

    netd     {"want": [STATE...]}             what services desire of multicast together (kernel/state.py)
             {"show": N}                      what is there
    we       {"shown": N, "multicast": {FAMILY: ...}, "refused": {FAMILY: WHY}}
             {"event": {...}}                 for netd to tell

It ends when netd does; the keeper has its sockets, for the next one."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

from accelerator import clock
from accelerator.kernel.kept import Kept
from accelerator.kernel.links import Link, follow_links
from accelerator.kernel.mroute import MulticastRoutingError, MulticastSocket, kept_table
from accelerator.kernel.multicast import MulticastService
from accelerator.kernel.multicast_end import LINE_BYTES_MAX
from accelerator.kernel.multicast_wish import MulticastWish, multicast_wish
from accelerator.kernel.state import decode

RETRY_S = 5.0
# The one thread that this process has beside its loop gives way to it within so long.
SWITCH_S = 0.0002
_SLOTS = {socket.AF_INET: ord("4"), socket.AF_INET6: ord("6")}


class MulticastProcess:
    """Made and used in its event loop."""

    def __init__(self, keeper_path: Path, writer: asyncio.StreamWriter) -> None:
        self._keeper_path = keeper_path
        self._writer = writer
        self._is_keeper_there = True
        self._refusals: dict[socket.AddressFamily, str] = {}
        self._keeper: Kept | None = None
        self._services: dict[socket.AddressFamily, MulticastService] = {}
        self._wish = MulticastWish()
        self._links: dict[str, Link] | None = None  # not read yet
        self._timers: dict[socket.AddressFamily, asyncio.TimerHandle] = {}
        self._retry: asyncio.TimerHandle | None = None

    async def run(self, reader: asyncio.StreamReader) -> None:
        """Until netd ends, or its end of the stream."""
        following = asyncio.get_running_loop().create_task(follow_links(self._links_changed, self._tell))
        reading = asyncio.get_running_loop().create_task(self._read(reader))
        try:
            await asyncio.wait({following, reading}, return_when=asyncio.FIRST_COMPLETED)
            # One that no longer follows interfaces must not look well.
            for each in (following, reading):
                if each.done():
                    each.result()
        finally:
            following.cancel()
            reading.cancel()
            await asyncio.gather(following, reading, return_exceptions=True)
            for family in list(self._services):
                self._stop(family)

    async def _read(self, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(ConnectionError):
            while line := await reader.readline():
                message = json.loads(line)
                if "want" in message:
                    self._want(multicast_wish([decode(each) for each in message["want"]]))
                else:
                    await self._show(message["show"])

    def _send(self, message: dict[str, Any]) -> None:
        self._writer.write(json.dumps(message).encode() + b"\n")

    def _tell(self, event: dict[str, Any]) -> None:
        self._send({"event": event})

    async def _show(self, number: int) -> None:
        services = list(self._services.items())
        # In a thread: an upcall must not wait for the kernel to say what thousands of routes there are.
        found = [await asyncio.to_thread(service.kernel_routes) for _, service in services]
        families = {
            name_of(family): service.show(routes) for (family, service), routes in zip(services, found, strict=True)
        }
        # json.dumps is one step of the interpreter's, however long the answer is.
        refused = {name_of(family): why for family, why in self._refusals.items()}
        pieces = json.JSONEncoder().iterencode({"shown": number, "multicast": families, "refused": refused})
        self._writer.write((await asyncio.to_thread("".join, pieces)).encode() + b"\n")
        await self._writer.drain()

    # What is wanted.

    def _want(self, wish: MulticastWish) -> None:
        """Starts, changes or ends the proxies of both families."""
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        for family in (socket.AF_INET, socket.AF_INET6):
            if wish == self._wish and family in self._services:
                continue
            self._stop(family)
            if wish.is_of(is_v6=family == socket.AF_INET6):
                self._start(family, wish)
            else:
                self._refusals.pop(family, None)
                if self._keeper is not None:
                    self._keeper.drop(_SLOTS[family])
        self._wish = wish

    def _start(self, family: socket.AddressFamily, wish: MulticastWish) -> None:
        loop = asyncio.get_running_loop()
        try:
            if self._keeper is None:
                self._keeper = Kept(self._keeper_path)
                loop.add_reader(self._keeper.fileno(), self._keeper_gone)
            kept = self._keeper.descriptors.get(_SLOTS[family])
            if kept is not None and kept_table(kept) != wish.table:
                # Of another table: a flow can't be in two, so this ends here and begins there.
                self._keeper.drop(_SLOTS[family])
                kept = None
            router = MulticastSocket(family, wish.table, None if kept is None else os.dup(kept))
            if kept is None:
                self._keeper.keep(_SLOTS[family], router.fileno())
        except (MulticastRoutingError, OSError, RuntimeError) as error:
            self._refused(family, error)
            return
        try:
            service = MulticastService(router, wish, _now_s(), self._wish)
        except OSError as error:
            router.close()
            self._refused(family, error)
            return
        self._refusals.pop(family, None)
        self._services[family] = service
        loop.add_reader(service.fileno(), self._readable, family)
        if self._links is not None:
            service.links_changed(self._links, _now_s())
            self._after(family)

    def _refused(self, family: socket.AddressFamily, error: Exception) -> None:
        """Told once, and tried again until it goes."""
        if self._refusals.get(family) != str(error):
            self._refusals[family] = str(error)
            self._tell({"kind": "multicast-refused", "family": name_of(family), "message": str(error)})
        if self._retry is None:
            self._retry = asyncio.get_running_loop().call_later(RETRY_S, self._again)

    def _again(self) -> None:
        self._want(self._wish)

    def _stop(self, family: socket.AddressFamily) -> None:
        service = self._services.pop(family, None)
        if service is None:
            return
        asyncio.get_running_loop().remove_reader(service.fileno())
        timer = self._timers.pop(family, None)
        if timer is not None:
            timer.cancel()
        service.close()

    # The keeper.

    def _keeper_gone(self) -> None:
        """Someone ended it: another one takes over what it had."""
        assert self._keeper is not None
        asyncio.get_running_loop().remove_reader(self._keeper.fileno())
        self._keeper.close()
        self._renew_keeper(self._keeper)

    def _renew_keeper(self, old: Kept) -> None:
        loop = asyncio.get_running_loop()
        try:
            self._keeper = Kept(self._keeper_path)
        except (OSError, RuntimeError) as error:
            if self._is_keeper_there:
                message = f"there is no keeper of multicast routes, which end with netd until there is: {error}"
                self._tell({"kind": "keeper-missing", "message": message})
            self._is_keeper_there = False
            loop.call_later(RETRY_S, self._renew_keeper, old)
            return
        self._is_keeper_there = True
        loop.add_reader(self._keeper.fileno(), self._keeper_gone)
        for slot, descriptor in old.descriptors.items():
            self._keeper.keep(slot, descriptor)
            os.close(descriptor)
        self._tell(
            {"kind": "keeper-restarted", "message": "the keeper of multicast routes was ended; there is a new one"}
        )

    # The kernel's events.

    def _readable(self, family: socket.AddressFamily) -> None:
        self._services[family].readable(_now_s())
        self._after(family)

    def _timer(self, family: socket.AddressFamily) -> None:
        self._services[family].on_timer(_now_s())
        self._after(family)

    def _after(self, family: socket.AddressFamily) -> None:
        service = self._services[family]
        while service.events:
            self._tell(service.events.popleft())
        loop = asyncio.get_running_loop()
        at_s = loop.time() + max(0.0, service.next_timer() - _now_s())
        timer = self._timers.get(family)
        if timer is None or timer.cancelled() or timer.when() != at_s:
            if timer is not None:
                timer.cancel()
            self._timers[family] = loop.call_at(at_s, self._timer, family)

    def _links_changed(self, links: dict[str, Link]) -> None:
        self._links = links
        for family, service in list(self._services.items()):
            service.links_changed(links, _now_s())
            self._after(family)


def name_of(family: socket.AddressFamily) -> str:
    return "ipv4" if family == socket.AF_INET else "ipv6"


def _now_s() -> float:
    return clock.monotonic_ns() / 1e9


async def _main(descriptor: int, keeper_path: Path) -> None:
    stream = socket.socket(fileno=descriptor)
    reader, writer = await asyncio.open_connection(sock=stream, limit=LINE_BYTES_MAX)
    await MulticastProcess(keeper_path, writer).run(reader)


if __name__ == "__main__":
    # Who ends netd by the terminal's key ends this with it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.setswitchinterval(SWITCH_S)
    asyncio.run(_main(int(sys.argv[1]), Path(sys.argv[2])))
