"""accelerator-netd: does in the kernel what services desire, and holds the only capabilities of the box. This file is
its composition root: the event loop, the socket DIR/netd.sock, the state on disk. Plain asyncio: pyroute2 does not
run on uvloop.

Messages are those of the control socket (control/message.py):

    desire  {"service", "generation", "state"}   a service's whole desired state; older than its last: refused
    alive   {}                                   the data plane has moved: interception goes on for some seconds more
    transparent {"port"}                         the listening socket of a desired interception, by SCM_RIGHTS
    show    {}                                   what is desired, what is, and what has been dropped
    queues  {}                                   the shapers' queues alone, with what the kernel counts
    follow  {}                                   the reply, then a line {"event": {...}} for each event from then on
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import functools
import json
import os
import signal
import socket
import struct
import sys
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerator import clock
from accelerator.control.message import encode_error, encode_result, parse_request
from accelerator.errors import ControlError
from accelerator.kernel.desired_file import SERVICES_MAX, check_said, check_together, read_desired, write_desired
from accelerator.kernel.intercept import Interceptor, open_transparent
from accelerator.kernel.links import follow_links
from accelerator.kernel.multicast_end import MulticastEnd
from accelerator.kernel.multicast_wish import multicast_rules, multicast_wish
from accelerator.kernel.reconcile import Reconciler
from accelerator.kernel.removal import remove
from accelerator.kernel.state import DesiredState, StateError, decode, encode

# 100,000 routes.
MESSAGE_BYTES_MAX = 16 << 20
CLIENTS_MAX = 16
EVENTS_KEPT = 1000
LOCK_TRIES, LOCK_S = 10, 0.05
# A pass, a state that is read, and who asks meanwhile. The usual number grows with the cores, towards the tasks that
# the unit allows, keeper and nft included: whoever asked often enough could have ended netd.
THREADS = 4
SWITCH_S = 0.0002
# A message that takes more than a fraction of a millisecond to read is read in a thread.
LARGE_BYTES = 16 << 10


class Netd:
    """The daemon. Made and used in its event loop."""

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / "netd.sock"
        self._kept_path = state_dir / "netd-desired.json"
        self._services: dict[str, tuple[int, DesiredState]] = {}
        self._desiring = asyncio.Lock()
        self._events: deque[dict[str, Any]] = deque(maxlen=EVENTS_KEPT)
        self._n_events = 0
        self._is_saved = True
        self._followers: set[asyncio.Queue[dict[str, Any]]] = set()
        self._clients: set[asyncio.Task[None]] = set()
        self._multicast = MulticastEnd(state_dir / "netd-keeper.sock", self._tell)
        self._interceptor = Interceptor(self._tell)
        self._beating: set[asyncio.Task[None]] = set()
        self._reconciler = Reconciler(self._tell)

    async def run(self, until: asyncio.Event) -> None:
        """Serves until the event is set. Routes stay when it ends: the keeper has them, for the next netd."""
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(THREADS, "netd"))
        reconciler = self._reconciler.start()
        self._load()
        self._apply()
        server = await asyncio.start_unix_server(self._serve, str(self._path), limit=MESSAGE_BYTES_MAX)
        os.chmod(self._path, 0o600)
        follower = loop.create_task(follow_links(self._reconciler.links_changed, self._tell))
        intercepting = loop.create_task(self._interceptor.run())
        ending = loop.create_task(until.wait())
        try:
            working: list[asyncio.Future[Any]] = [follower, reconciler, intercepting, self._multicast.fault]
            await asyncio.wait([ending, *working], return_when=asyncio.FIRST_COMPLETED)
            # A netd that no longer follows interfaces must not look well: the next one takes over from the keeper.
            for each in working:
                if each.done():
                    each.result()
        finally:
            ending.cancel()
            follower.cancel()
            intercepting.cancel()
            await asyncio.gather(intercepting, follower, return_exceptions=True)
            server.close()
            for client in list(self._clients):
                client.cancel()
            with contextlib.suppress(FileNotFoundError):
                self._path.unlink()
            await self._multicast.stop()
            await self._reconciler.stop()

    # Desired state.

    async def desire(self, service: str, generation: int, document: object) -> None:
        """ControlError: nonsense, older than what the service said last, or at odds with another service. What takes
        time is done in a thread, one state at a time."""
        async with self._desiring:
            known = self._services.get(service)
            if known is not None and generation < known[0]:
                raise ControlError("stale", f"{service} has said generation {known[0]} already")
            others = [each for name, (_, each) in self._services.items() if name != service]
            try:
                state = await asyncio.to_thread(_checked, document, known[1] if known is not None else None, others)
            except StateError as error:
                raise ControlError(error.kind, error.message) from None
            services = self._services | {service: (generation, state)}
            try:
                # First on disk: what `show` says outlives a kill.
                await asyncio.to_thread(write_desired, self._kept_path, services)
                self._is_saved = True
            except OSError as error:
                # The disk is the cache's too, and may be full. What is wanted is done all the same.
                if self._is_saved:
                    message = f"what is wanted can't be kept ({error.strerror}): a restart begins with an older one"
                    self._tell({"kind": "state-unsaved", "message": message})
                self._is_saved = False
            self._services = services
            self._apply()

    def _load(self) -> None:
        """What was desired last is desired until services say otherwise."""
        try:
            self._services = read_desired(self._kept_path)
        except FileNotFoundError:
            return
        except (OSError, StateError) as error:
            why = error.message if isinstance(error, StateError) else error.strerror
            self._tell({"kind": "state-unreadable", "message": f"the desired state on disk can't be read: {why}"})

    def _apply(self) -> None:
        """Hands on what services desire together."""
        if not self._services:
            return  # nobody has spoken: what is there may be wanted
        states = [state for _, (_, state) in sorted(self._services.items())]
        self._reconciler.want(
            [route for state in states for route in state.routes],
            [*(rule for state in states for rule in state.rules), *multicast_rules(multicast_wish(states))],
            [rule for state in states for rule in state.packet_rules],
            [row for state in states for row in state.shapers],
        )
        wanted = (state.intercept for _, state in self._services.values())
        self._interceptor.want(next((each for each in wanted if each is not None), None))
        self._multicast.want(states)

    def _tell(self, event: dict[str, Any]) -> None:
        self._n_events += 1
        event = {"n": self._n_events, "at": round(clock.wall_s(), 3), **event}
        self._events.append(event)
        print(event["message"], file=sys.stderr, flush=True)
        for queue in self._followers:
            # Who doesn't read loses events, and sees it by their numbers.
            with contextlib.suppress(asyncio.QueueFull):
                queue.put_nowait(event)

    # The socket.

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._clients.add(task)
        try:
            refusal = self._refusal(writer)
            if refusal is not None:
                writer.write(encode_error(refusal))
                return
            while line := await reader.readline():
                if not await self._answer(line, reader, writer):
                    return
                await writer.drain()
        except (ValueError, ConnectionError):
            return  # longer than any message may be, or gone
        finally:
            self._clients.discard(task)
            if task in self._beating:
                self._beating.discard(task)
                if not self._beating:  # while one acceleratord takes over from another both say it
                    self._interceptor.gone()
            writer.close()

    def _refusal(self, writer: asyncio.StreamWriter) -> ControlError | None:
        connection = writer.get_extra_info("socket")
        _, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        # The directory's owner is who runs acceleratord.
        if uid not in (0, os.geteuid(), self._path.parent.stat().st_uid):
            return ControlError("not-permitted", "only the appliance's own user may ask netd")
        return ControlError("busy", "too many connections") if len(self._clients) > CLIENTS_MAX else None

    async def _answer(self, line: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Whether the connection goes on."""
        try:
            line = line.rstrip(b"\n")
            is_large = len(line) > LARGE_BYTES
            read = functools.partial(parse_request, line, MESSAGE_BYTES_MAX)
            request = await asyncio.to_thread(read) if is_large else read()
            match request.command:
                case "desire":
                    writer.write(encode_result(await self._desire(request.arguments)))
                case "show":
                    shown = {**await self.show(), "kernel": await self._reconciler.show()}
                    writer.write(await asyncio.to_thread(_encoded_by_pieces, shown))
                case "queues":
                    writer.write(encode_result({"queues": await self._reconciler.queues()}))
                case "alive":
                    task = asyncio.current_task()
                    assert task is not None
                    self._beating.add(task)
                    self._interceptor.beat()
                    writer.write(encode_result({"active": self._interceptor.is_active}))
                case "transparent":
                    self._give_transparent(request.arguments, writer)
                case "follow":
                    await self._follow(reader, writer)
                    return False
                case _:
                    raise ControlError("unknown-command", f"netd knows no command {request.command!r:.40}")
        except ControlError as error:
            writer.write(encode_error(error))
        return True

    def _give_transparent(self, arguments: Any, writer: asyncio.StreamWriter) -> None:
        """The listening socket of a desired interception, with the answer (SCM_RIGHTS). Ours is closed at once."""
        port = arguments.get("port")
        wanted = {state.intercept.port for _, state in self._services.values() if state.intercept is not None}
        if isinstance(port, bool) or not isinstance(port, int) or port not in wanted:
            raise ControlError("value", "no interception with that port is wanted")
        try:
            made = open_transparent(port)
        except OSError as fault:
            raise ControlError("socket", f"no transparent socket on port {port}: {fault.strerror}") from None
        with made, socket.socket(fileno=os.dup(writer.get_extra_info("socket").fileno())) as connection:
            socket.send_fds(connection, [encode_result({"port": port})], [made.fileno()])

    async def _desire(self, arguments: Any) -> dict[str, Any]:
        service, generation = arguments.get("service"), arguments.get("generation")
        try:
            check_said(service, generation)
        except StateError as error:
            raise ControlError(error.kind, error.message) from None
        if service not in self._services and len(self._services) >= SERVICES_MAX:
            raise ControlError("value", f"there are {SERVICES_MAX} services already")
        await self.desire(service, generation, arguments.get("state"))
        return {"generation": generation}

    async def show(self) -> dict[str, Any]:
        return {
            "services": await asyncio.to_thread(_encoded_states, dict(self._services)),
            **await self._multicast.show(),
            "events": list(self._events)[-100:],
        }

    async def _follow(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue(EVENTS_KEPT)
        self._followers.add(queue)
        # Who has gone gives its place back at once: the next event may be days away.
        gone = asyncio.get_running_loop().create_task(reader.read(1))
        following = asyncio.get_running_loop().create_task(self._pass_on(queue, writer))
        try:
            await asyncio.wait({gone, following}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._followers.discard(queue)
            gone.cancel()
            following.cancel()
            await asyncio.gather(gone, following, return_exceptions=True)

    async def _pass_on(self, queue: asyncio.Queue[dict[str, Any]], writer: asyncio.StreamWriter) -> None:
        writer.write(encode_result({"events": list(self._events)}))
        while True:
            await writer.drain()
            event = await queue.get()
            writer.write(json.dumps({"event": event}).encode() + b"\n")


def _encoded_by_pieces(shown: dict[str, Any]) -> bytes:
    """As encode_result, which is one step of the interpreter's, however long the answer is."""
    return "".join(json.JSONEncoder().iterencode({"ok": True, "result": shown})).encode() + b"\n"


def _encoded_states(services: dict[str, tuple[int, DesiredState]]) -> dict[str, Any]:
    return {name: {"generation": generation, "state": encode(state)} for name, (generation, state) in services.items()}


def _checked(document: object, before: DesiredState | None, others: list[DesiredState]) -> DesiredState:
    """What was desired before and is again is the same object: so it is compared at once, in the event loop too.
    StateError: nonsense, or at odds with others."""
    state = decode(document)
    check_together((*others, state))
    if before is None:
        return state
    known = {route: route for route in before.routes}
    return replace(state, routes=tuple([known.get(route, route) for route in state.routes]))


async def _locked(path: Path) -> int | None:
    """Held until the process ends; None: another one holds it. The socket's file can't say that: it may be gone, and
    whoever started beside it would have the same routes, and take away the other's socket at its end."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    if os.geteuid() == 0:  # who takes the product off is; the unit's netd is not, and has to open it afterwards
        os.fchown(descriptor, path.parent.stat().st_uid, -1)
    for _ in range(LOCK_TRIES):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        except BlockingIOError:
            # One that was just killed may have a child that has not become nft yet.
            await asyncio.sleep(LOCK_S)
    os.close(descriptor)
    return None


async def _main(state_dir: Path, *, is_removing: bool) -> int:
    if await _locked(state_dir / "netd.lock") is None:
        print(f"accelerator-netd: another one runs in {state_dir}", file=sys.stderr)
        return 1
    try:
        probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with probe:
            probe.connect(str(state_dir / "netd.sock"))
        print(f"accelerator-netd: another one runs in {state_dir}", file=sys.stderr)
        return 1
    except OSError:
        pass
    if is_removing:
        problems = await remove(state_dir)
        for problem in problems:
            print(f"accelerator-netd: {problem}", file=sys.stderr)
        return 1 if problems else 0
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await Netd(state_dir).run(stop)
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="accelerator-netd", description=__doc__.split("\n\n", 1)[0])
    parser.add_argument("--state-dir", type=Path, required=True, metavar="DIR", help="where netd.sock stands")
    parser.add_argument(
        "--remove", action="store_true", help="take all that is ours out of the kernel, and end: before uninstalling"
    )
    options = parser.parse_args(arguments)
    if not options.state_dir.is_dir():
        print(f"accelerator-netd: {options.state_dir} is no directory", file=sys.stderr)
        return 1
    # Whoever works in a thread gives way to the event loop within so long.
    sys.setswitchinterval(SWITCH_S)
    try:
        return asyncio.run(_main(options.state_dir, is_removing=options.remove))
    except OSError as error:
        # One that names no file is of a socket or a message to the kernel.
        is_refused = isinstance(error, PermissionError) and error.filename is None
        hint = "; it needs CAP_NET_ADMIN and CAP_NET_RAW, which its unit gives" if is_refused else ""
        print(f"accelerator-netd: {error}{hint}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
