"""The live view of `accelctl top`: snapshots, keys, the screen given back as it was. What it shows is
control.display's.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import termios
import time
import tty
from collections.abc import Iterator
from typing import Any

from rich.live import Live
from rich.text import Text

from accelerator.control.client import NO_DAEMON, ControlClient
from accelerator.control.display import RELAY_FIXED_LINES, TOP_FIXED_LINES, make_console, relay_list_page, top_page
from accelerator.control.rates import paged, rates
from accelerator.errors import ControlError

_LEAVE = b"qQ\x03\x04\x1b"


def watch(path: str, *, interval_s: float, sort: str, contains: str | None, limit: int) -> None:
    """Refresh until q or Ctrl-C. A daemon that goes away is waited for; one that was never there raises
    ControlError.
    """
    source = _Snapshots(path)
    before = source.take()
    assert before is not None
    page: Any = Text("first sample ...")
    console = make_console()
    with _keyboard() as is_left_within, Live(page, console=console, screen=True, auto_refresh=False) as live:
        while not is_left_within(interval_s):
            after = source.take()
            if after is None:
                page = Text(f"{source.trouble}; trying again. q leaves.", style="bold red")
            elif before is not None:
                fitting = max(1, min(limit, console.height - TOP_FIXED_LINES))
                sample = paged(rates(before, after), sort=sort, contains=contains, limit=fitting)
                page = top_page(sample, width=console.width)
            before = after
            live.update(page, refresh=True)


def watch_relays(path: str, *, interval_s: float) -> None:
    """The same for relays, whose rates the daemon has."""
    source = _Snapshots(path, "relay ls")
    sample = source.take()
    console = make_console()
    with _keyboard() as is_left_within, Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            page: Any = Text(f"{source.trouble}; trying again. q leaves.", style="bold red")
            if sample is not None:
                page = relay_list_page(sample, rows_max=max(1, console.height - RELAY_FIXED_LINES))
            live.update(page, refresh=True)
            if is_left_within(interval_s):
                return
            sample = source.take()


class _Snapshots:
    """Answers of one daemon over one connection, made anew when it breaks."""

    def __init__(self, path: str, command: str = "top") -> None:
        self._path = path
        self._command = command
        self._client: ControlClient | None = ControlClient(path)
        self.trouble = ""

    def take(self) -> dict[str, Any] | None:
        """None where no daemon answers now; `trouble` says why. Raises ControlError where it refuses."""
        for _ in range(2):
            # The server closes a connection that is idle for longer than its limit, so a long interval needs a second
            # try.
            try:
                self._client = self._client or ControlClient(self._path)
                return self._client.call(self._command)
            except ControlError as error:
                if self._client is not None:
                    self._client.close()
                    self._client = None
                if error.exit_code != NO_DAEMON and error.kind not in ("timed-out", "busy"):
                    raise
                self.trouble = error.message
        return None


@contextlib.contextmanager
def _keyboard() -> Iterator[Any]:
    """A function that waits for so many seconds, and says whether a key asked to leave."""
    with _Signals() as signals:
        if not sys.stdin or not sys.stdin.isatty():
            yield lambda seconds: _sleep(signals, seconds)
            return
        fd = sys.stdin.fileno()
        saved = termios.tcgetattr(fd)
        try:
            tty.setcbreak(fd)
            yield lambda seconds: _is_left(signals, fd, seconds)
        finally:
            termios.tcsetattr(fd, termios.TCSADRAIN, saved)


class _Signals:
    """SIGINT and SIGTERM leave through every `finally`, so that the terminal is given back.

    Python drops an exception that a handler raises while a finalizer runs: whoever waits next raises it again.
    """

    def __init__(self) -> None:
        self._came = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> _Signals:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._leave)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _leave(self, number: int, frame: object) -> None:
        self._came = number
        self.raise_again()

    def raise_again(self) -> None:
        if self._came == signal.SIGINT:
            raise KeyboardInterrupt
        if self._came:
            sys.exit(128 + self._came)


def _sleep(signals: _Signals, seconds: float) -> bool:
    signals.raise_again()
    time.sleep(seconds)
    return False


def _is_left(signals: _Signals, fd: int, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        signals.raise_again()
        readable, _, _ = select.select([fd], [], [], left)
        if readable:
            typed = os.read(fd, 64)
            if not typed or any(key in _LEAVE for key in typed):
                return True
    return False
