"""The demo as a peer for tests: started as a newcomer would, on ports of its own. Asserts nothing itself."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType

PROJECT = Path(__file__).resolve().parent.parent
READY_LINE = "Ctrl-C ends everything"
# Making these takes a quarter of a minute: test runs share what `make run` made, and make it where it did not.
RECORDED = PROJECT / "state" / "demo" / "recorded"


def free_port_base(n: int = 3) -> int:
    """A port such that it and the next n - 1 are free now, below the kernel's ephemeral range."""
    start = 20000 + os.getpid() % 10000
    for base in [*range(start, 32000, n), *range(20000, start, n)]:
        try:
            for offset in range(n):
                with socket.socket() as probe:
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    probe.bind(("127.0.0.1", base + offset))
        except OSError:
            continue
        return base
    raise RuntimeError("no free ports")


class RunningDemo:
    """`python -m accelerator.demo` in a process group of its own. Attributes are set once it said that it is ready."""

    def __init__(self, work: Path, *arguments: str, has_box: bool = True, port_base: int | None = None) -> None:
        self.work = work
        self.has_box = has_box
        self.port_base = port_base or free_port_base()
        self.box_url = f"http://127.0.0.1:{self.port_base + (0 if has_box else 2)}"
        self.admin_url = f"http://127.0.0.1:{self.port_base + 1}"
        self.origin_url = f"http://127.0.0.1:{self.port_base + 2}"
        self._log = work / "demo.log"
        self._arguments = arguments if has_box else ("--origin-only", *arguments)

    @property
    def output(self) -> str:
        """All that the demo and the box wrote so far."""
        return self._log.read_text(errors="replace")

    def __enter__(self) -> RunningDemo:
        self.work.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "accelerator.demo", "--work-dir", str(self.work)]
        command += ["--port-base", str(self.port_base), "--recorded-dir", str(RECORDED), *self._arguments]
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                command, cwd=PROJECT, stdin=subprocess.DEVNULL, stdout=log, stderr=log, process_group=0
            )
        try:
            self._wait_until_ready(deadline_s=90)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self, signal_number: signal.Signals = signal.SIGINT) -> int:
        """Exit code of the demo, which ends within ten seconds or is killed (then a negative number)."""
        if self.process.poll() is None:
            self.process.send_signal(signal_number)
        try:
            return self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()

    def _wait_until_ready(self, *, deadline_s: float) -> None:
        ends_s = time.monotonic() + deadline_s
        while READY_LINE not in self.output:
            try:
                self.process.wait(timeout=0.05)
            except subprocess.TimeoutExpired:
                if time.monotonic() > ends_s:
                    raise TimeoutError(f"the demo was not ready within {deadline_s} s:\n{self.output}") from None
            else:
                raise RuntimeError(f"the demo ended with {self.process.returncode}:\n{self.output}")
