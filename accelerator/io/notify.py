"""What the service manager is told over NOTIFY_SOCKET (sd_notify(3)), and when it may be told that we are well.

Without a service manager every call does nothing: nobody else has to ask whether there is one. No decision about the
daemon's life is taken here. Why this is our own: docs/decisions/0070-systemd-and-upgrade.md.
"""

from __future__ import annotations

import array
import asyncio
import logging
import socket
from collections.abc import Callable, MutableMapping, Sequence

from accelerator import clock

log = logging.getLogger("accelerator")

# sd_watchdog_enabled(3) asks for half the time-out; at a quarter a worker that is only slow once has a second look.
CHECKS_EACH_TIMEOUT = 4


class Notifier:
    """One datagram a call to the service manager. What can't be sent is logged once: it must not end us."""

    def __init__(self, address: str | None, watchdog_s: float | None = None) -> None:
        """`address` as in NOTIFY_SOCKET: a path, or @ and an abstract name; None: there is no service manager."""
        self.watchdog_s = watchdog_s
        self._address = address
        self._has_failed = False

    @property
    def is_supervised(self) -> bool:
        return self._address is not None

    def ready(self, status: str) -> None:
        self._send(["READY=1", f"STATUS={status}"])

    def reloading(self) -> None:
        """ready() has to follow, whatever became of it. systemd 253 wants the time for Type=notify-reload."""
        self._send(["RELOADING=1", f"MONOTONIC_USEC={clock.monotonic_ns() // 1000}"])

    def stopping(self, status: str, within_s: float) -> None:
        """Ending takes up to `within_s`, however short TimeoutStopSec= is."""
        self._send(["STOPPING=1", f"STATUS={status}", f"EXTEND_TIMEOUT_USEC={int(within_s * 1e6)}"])

    def status(self, text: str) -> None:
        self._send([f"STATUS={text}"])

    def watchdog(self) -> None:
        self._send(["WATCHDOG=1"])

    def main_pid(self, pid: int) -> None:
        """Another process of the unit is the main one from now on; its time for the first watchdog() begins."""
        self._send([f"MAINPID={pid}", "WATCHDOG=1"])

    def environment(self) -> dict[str, str]:
        """What from_environment() has to find in that other process."""
        found = {} if self._address is None else {"NOTIFY_SOCKET": self._address}
        if self.watchdog_s is not None:
            found["WATCHDOG_USEC"] = str(int(self.watchdog_s * 1e6))
        return found

    def store(self, name: str, sock: socket.socket) -> None:
        """Keeps a duplicate until remove(), so that it comes back at the next start, also after a crash."""
        self._send(["FDSTORE=1", f"FDNAME={name}"], [sock.fileno()])

    def remove(self, name: str) -> None:
        self._send(["FDSTOREREMOVE=1", f"FDNAME={name}"])

    def _send(self, lines: Sequence[str], fds: Sequence[int] = ()) -> None:
        if self._address is None:
            return
        # One value, one line: a newline would begin another assignment.
        message = "\n".join(line.replace("\n", " ") for line in lines).encode()
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sender:
                address = self._address
                sender.sendmsg([message], ancillary, 0, "\0" + address[1:] if address.startswith("@") else address)
        except OSError as fault:
            if not self._has_failed:
                self._has_failed = True
                log.warning("the service manager can't be told %s: %s", lines[0], fault.strerror)


def from_environment(environ: MutableMapping[str, str], pid: int) -> Notifier:
    """The service manager that started process `pid`. Takes its variables out of `environ`: they are ours alone."""
    address = environ.pop("NOTIFY_SOCKET", None) or None
    timeout_us = environ.pop("WATCHDOG_USEC", "")
    for_pid = environ.pop("WATCHDOG_PID", "")
    watchdog_s = None
    if timeout_us.isascii() and timeout_us.isdigit() and int(timeout_us) and for_pid in ("", str(pid)):
        watchdog_s = int(timeout_us) / 1e6
    return Notifier(address, watchdog_s)


class Watchdog:
    """Tells the service manager that all is well as long as every worker moves; runs on the loop, which so moves too.

    A worker that sleeps proves nothing, so each check wakes them all, and the next one wants to see that each has made
    a pass since.
    """

    def __init__(
        self,
        notifier: Notifier,
        poke: Callable[[], None],
        passes: Callable[[], Sequence[int | None]],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        """`passes` gives each worker's count of passes, None of one that has ended."""
        self._notifier = notifier
        self._poke = poke
        self._passes = passes
        self._loop = loop
        self._before: Sequence[int | None] = ()
        self._timer: asyncio.TimerHandle | None = None
        self._was_well = True

    def start(self) -> None:
        if self._notifier.watchdog_s is not None and self._timer is None:
            self._before = self._passes()
            self._wake()

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _wake(self) -> None:
        self._poke()
        assert self._notifier.watchdog_s is not None
        self._timer = self._loop.call_later(self._notifier.watchdog_s / CHECKS_EACH_TIMEOUT, self._check)

    def _check(self) -> None:
        now = self._passes()
        stuck = stuck_workers(self._before, now)
        if not stuck:
            self._notifier.watchdog()
        elif self._was_well:
            text = f"no progress of edge worker {', '.join(map(str, stuck))}"
            log.error("watchdog: %s; the service manager is not told that all is well", text)
            self._notifier.status(text)
        self._was_well = not stuck
        self._before = now
        self._wake()


def stuck_workers(before: Sequence[int | None], now: Sequence[int | None]) -> list[int]:
    """Indices of the workers that have made no pass between two looks, or have ended."""
    return [
        index for index, passes in enumerate(now) if passes is None or (index < len(before) and before[index] == passes)
    ]
