"""Where this acceleratord's listening sockets come from and to whom they go: the service manager, the one before, the
one after. The only place that knows all three. How each is talked to is io's, when the daemon ends is the daemon's.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Protocol

from accelerator.errors import AcceleratorError, Source
from accelerator.io.handover import HandOverServer, Predecessor
from accelerator.io.inherited import Inherited, passed_sockets
from accelerator.io.notify import Watchdog, from_environment

log = logging.getLogger("accelerator")

# Among the sockets that are handed over; no listener can be called so.
ADMIN_NAME = "(admin)"
# What TimeoutStopSec= is asked to allow beyond limits.drain: closing, and the last lines of the log.
END_S = 5.0
START_WITHIN_S = 10.0


class SuccessorError(AcceleratorError):
    """No successor was started."""

    source = Source.OPERATOR


class Serving(Protocol):
    """What of the box is needed here."""

    def listening_sockets(self) -> Mapping[str, socket.socket]: ...
    def poke_workers(self) -> None: ...
    def worker_passes(self) -> Sequence[int | None]: ...
    def ticket_keys(self) -> Mapping[str, object]: ...


class Succession:
    """One for the daemon's life: begin(), then adopt() while it starts, take(), offer(), serve(), ending(), end()."""

    def __init__(
        self, state_dir: Path, loop: asyncio.AbstractEventLoop, environ: MutableMapping[str, str], *, takes_over: bool
    ) -> None:
        """Takes out of `environ` what the service manager put there."""
        self.takes_over = takes_over
        self.notifier = from_environment(environ, os.getpid())
        self._loop = loop
        self._path = state_dir / "handover.sock"
        self._inherited = Inherited(passed_sockets(environ, os.getpid()))
        self._predecessor: Predecessor | None = None
        self._server: HandOverServer | None = None
        self._watchdog: Watchdog | None = None
        self._is_starting = False
        self._successor: int | None = None
        self._successor_fd = -1
        self._status = ""
        self.handed_tickets: object = None  # keys of session tickets that the one before sealed with

    # -- from the one before -------------------------------------------------------------------------------------------

    async def begin(self) -> None:
        """Asks the running acceleratord for its sockets, if this one is to take over. Raises HandOverError."""
        if self.takes_over:
            self._predecessor = Predecessor(self._path)
            self._inherited.add(await self._predecessor.ask())
            self.handed_tickets = self._predecessor.tickets

    def adopt(self, name: str, host: str, port: int) -> socket.socket | None:
        """The listening socket of this address that was there before us, the caller's; None: it has to be opened."""
        return self._inherited.adopt(name, host, port)

    def opened(self, name: str, listening: socket.socket) -> None:
        """A listener was opened that nobody had passed: the service manager keeps it over a restart or a crash.

        One that is shut down it lets go by itself, as it polls what it keeps."""
        self.notifier.store(name, listening)

    async def take(self) -> None:
        """This one is ready: returns when the one before accepts no more. Raises HandOverError: that one serves on."""
        if self._predecessor is not None:
            await self._predecessor.ready(self._inherited.adopted_names)
            log.info("taken over from process %d", self._predecessor.pid)

    # -- serving -------------------------------------------------------------------------------------------------------

    def offer(self, box: Serving, admin: socket.socket | None, leave: Callable[[frozenset[str]], None]) -> None:
        """From here on a successor can take over; `leave` is called with the listeners that it serves on. Raises
        HandOverError."""
        for left in self._inherited.close():
            log.warning("a listening socket was passed that no listener of the policy has the address of: %s", left)

        def sockets() -> Mapping[str, socket.socket]:
            found = dict(box.listening_sockets())
            if admin is not None:
                found[ADMIN_NAME] = admin
            return found

        def left_to(pid: int, names: frozenset[str]) -> None:
            self.notifier.main_pid(pid)
            self._stop_watchdog()
            leave(names)

        server = HandOverServer(self._path, sockets, left_to, only_pid=self._only_pid, tickets=box.ticket_keys)
        server.start()
        self._server = server

    def serve(self, box: Serving, status: str) -> None:
        """Tells the service manager that viewers are served, and from here on that all is well as long as it is."""
        self._watchdog = Watchdog(self.notifier, box.poke_workers, box.worker_passes, self._loop)
        self._watchdog.start()
        self._status = status
        self.notifier.ready(status)

    def on_reload(self, begins: bool) -> None:
        if begins:
            self.notifier.reloading()
        else:
            self.notifier.ready(self._status)

    @property
    def keeps_sockets(self) -> bool:
        """Whether the listening sockets outlive this process: then they must not be shut down at its end."""
        return self.notifier.is_supervised

    def _only_pid(self) -> int | None:
        """The service manager would take the unit for dead if its main process left it to one that it does not know."""
        if not self.notifier.is_supervised:
            return None
        return self._successor if self._successor is not None else -1

    # -- to the one after ----------------------------------------------------------------------------------------------

    async def start_successor(self, command: Sequence[str]) -> None:
        """Runs `command`, which is to take over. What becomes of it is logged. Raises SuccessorError."""
        if self._is_starting or self._successor is not None:
            raise SuccessorError("busy", "another one is taking over already")
        self._is_starting = True
        environ = {**os.environ, **self.notifier.environment()}
        try:
            pid = await asyncio.to_thread(_start_orphan, command, environ)
            self._successor_fd = os.pidfd_open(pid)
        except (OSError, ValueError, subprocess.SubprocessError) as fault:
            raise SuccessorError("successor", f"{command[0]}: {fault}") from fault
        finally:
            self._is_starting = False
        log.info("started process %d, which is to take over", pid)
        self._successor = pid
        self._loop.add_reader(self._successor_fd, self._successor_ended)

    def _successor_ended(self) -> None:
        log.error("process %s, which was to take over, has ended; this one serves on", self._successor)
        self._forget_successor()

    def _forget_successor(self) -> None:
        self._successor = None
        if self._successor_fd >= 0:
            self._loop.remove_reader(self._successor_fd)
            os.close(self._successor_fd)
            self._successor_fd = -1

    # -- ending --------------------------------------------------------------------------------------------------------

    def ending(self, drain_s: float, *, is_left: bool) -> None:
        """Nobody takes over from here on. `is_left`: somebody has, and it is not the service that stops."""
        self._stop_watchdog()
        if self._server is not None:
            self._server.stop()
        if not is_left:
            self.notifier.stopping("draining", drain_s + END_S)

    def end(self) -> None:
        """Safe at any time, and more than once."""
        self._stop_watchdog()
        if self._server is not None:
            self._server.stop()
        if self._predecessor is not None:
            self._predecessor.close()
        self._inherited.close()
        with contextlib.suppress(OSError):
            self._forget_successor()

    def _stop_watchdog(self) -> None:
        if self._watchdog is not None:
            self._watchdog.stop()


def _start_orphan(command: Sequence[str], environ: Mapping[str, str]) -> int:
    """Starts a process that is init's child at once; its number.

    A main process that is not its own child systemd kills at a stop without waiting for its drain (252,
    unit_kill_context), and it looks whose child it is only at MAINPID=. Python must not fork where threads are, so
    another process does.
    """
    code = "import subprocess, sys; print(subprocess.Popen(sys.argv[1:], stdout=2).pid)"
    starter = [sys.executable, "-IS", "-c", code, *command]
    done = subprocess.run(
        starter, env=environ, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, timeout=START_WITHIN_S, check=True
    )
    return int(done.stdout)
