"""Starts the demo's programs and ends all of them, whatever happens. Knows processes, not what they are for."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from accelerator.errors import AcceleratorError

PR_SET_PDEATHSIG = 1  # linux/prctl.h
WATCHED = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD}
LIBC = ctypes.CDLL(None, use_errno=True)


class Children:
    """Child processes, each in a process group of its own, that the kernel kills when this process dies.

    While one exists, SIGINT, SIGTERM and SIGHUP are blocked and taken only inside `wait_until` and `run`, where they
    raise KeyboardInterrupt; so no signal can hit between starting a child and noting it.
    """

    def __init__(self, log_folder: Path) -> None:
        self._log_folder = log_folder
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._logged: set[str] = set()

    def __enter__(self) -> Children:
        signal.pthread_sigmask(signal.SIG_BLOCK, WATCHED)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def start(self, name: str, command: list[str], *, is_logged: bool = True) -> None:
        """Output goes to NAME.log in the log folder, or with `is_logged=False` to our own. Raises AcceleratorError."""
        parent = os.getpid()

        def in_child() -> None:
            LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:  # it died before prctl
                os._exit(1)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, WATCHED)

        log = self._log(name).open("wb") if is_logged else None
        if is_logged:
            self._logged.add(name)
        try:
            self._running[name] = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, process_group=0, preexec_fn=in_child
            )
        except OSError as error:
            raise AcceleratorError("no-program", f"{name}: {command[0]}: {error.strerror}") from error
        finally:
            if log is not None:
                log.close()

    def run(self, name: str, command: list[str], *, deadline_s: float) -> None:
        """Starts a child and waits for its end. Raises AcceleratorError when it fails, or when another child ends."""
        self.start(name, command)
        child = self._running[name]
        self.wait_until(lambda: child.poll() is not None, name, deadline_s=deadline_s, may_end=name)
        if child.returncode != 0:
            raise AcceleratorError("child-failed", f"{name} failed, {self._last_words(name)}")
        del self._running[name]

    def wait_until(
        self, condition: Callable[[], bool], what: str, *, deadline_s: float | None, may_end: str = ""
    ) -> None:
        """Returns when `condition` holds (asked ten times a second). Raises KeyboardInterrupt when told to stop,
        AcceleratorError when a child other than `may_end` ends, or when `deadline_s` seconds have passed."""
        end_s = time.monotonic() + deadline_s if deadline_s is not None else None
        while not condition():
            for name, child in self._running.items():
                if name != may_end and child.poll() is not None:
                    raise AcceleratorError("child-died", f"{name} ended by itself, {self._last_words(name)}")
            if end_s is not None and time.monotonic() > end_s:
                raise AcceleratorError("too-slow", f"{what}: not within {deadline_s:.0f} s")
            told = signal.sigtimedwait(WATCHED, 0.1)
            if told is not None and told.si_signo != signal.SIGCHLD:
                raise KeyboardInterrupt

    def _stop(self) -> None:
        """Asks twice (the box drains on the first SIGTERM and ends on the second), then insists."""
        for signal_number, patience_s in ((signal.SIGTERM, 1.0), (signal.SIGTERM, 3.0), (signal.SIGKILL, 5.0)):
            end_s = time.monotonic() + patience_s
            for child in self._running.values():
                self._send(child, signal_number)
            while any(child.poll() is None for child in self._running.values()) and time.monotonic() < end_s:
                signal.sigtimedwait({signal.SIGCHLD}, 0.05)
        self._running.clear()

    @staticmethod
    def _send(child: subprocess.Popen[bytes], signal_number: signal.Signals) -> None:
        """To the whole group: a child that ended may have left others behind."""
        try:
            os.killpg(child.pid, signal_number)
        except ProcessLookupError:
            return

    def _log(self, name: str) -> Path:
        return self._log_folder / f"{name}.log"

    def _last_words(self, name: str) -> str:
        """How a child ended, and the last line of its log when it has one."""
        code = f"exit code {self._running[name].returncode}"
        log = self._log(name)
        lines = log.read_text(errors="replace").strip().splitlines() if name in self._logged else []
        return f"{code}: {lines[-1]} (see {log})" if lines else code
