"""SRT and RIST inputs: starts the process of each (accelerator/intake.py), reads what it says, starts it again when it
ends, and ends it. Its packets come by a pair of connected loopback sockets. No policy and no event is known here.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from accelerator.errors import AcceleratorError
from accelerator.io.datagram import INPUT_BUFFER_BYTES, set_receiving
from accelerator.protocols.intake_report import Lines, plain, read_report

PROGRAM = Path(__file__).resolve().parent.parent / "intake.py"
# Between two starts; damped, as one that crashes at once must not take a core.
RESTART_S = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0)
STEADY_S = 30.0
# Of what its libraries write to stderr: lines that the journal gets in so long.
LOG_LINES = 10
LOG_EVERY_S = 10.0
READ_BYTES = 65_536
END_WITHIN_S = 1.0
# A connected one counts its packets aloud every 2 s; one that says nothing for so long hangs in its library.
WORDLESS_S = 10.0

_log = logging.getLogger("accelerator")


@dataclass(frozen=True, slots=True)
class IntakeSpec:
    """`passphrase` "": none. `sources`: networks that may call a listener; none: anybody."""

    scheme: str
    mode: str
    host: str
    port: int
    latency_ms: int
    stream_id: str = ""
    profile: str = "main"
    sources: tuple[str, ...] = ()
    passphrase: str = field(default="", repr=False)


def open_pair() -> tuple[socket.socket, socket.socket]:
    """(what a relay reads, what the process writes to), connected to each other: the kernel drops what others send."""
    reading = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    writing = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        set_receiving(reading, INPUT_BUFFER_BYTES)
        # Whatever comes between bind and connect is drained before it is read by anybody.
        reading.bind(("127.0.0.1", 0))
        writing.bind(("127.0.0.1", 0))
        reading.connect(writing.getsockname())
        writing.connect(reading.getsockname())
        writing.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 0)
        with contextlib.suppress(BlockingIOError):
            while True:
                reading.recv(1)
    except OSError as fault:
        reading.close()
        writing.close()
        raise AcceleratorError("relay-socket", f"loopback: {fault.strerror}", can_retry=True) from fault
    return reading, writing


class Intake:
    """Of one input. `follow` is called a few times a second and never waits."""

    def __init__(self, spec: IntakeSpec, feed: socket.socket) -> None:
        self.spec = spec
        self.state = "off"  # or starting, waiting, connected, failed
        self.why = ""
        self.stats: dict[str, int] = {}
        self.refused: dict[str, int] = {}
        self.n_crashes = 0
        self._feed = feed
        self._process: subprocess.Popen[bytes] | None = None
        self._lines = Lines()
        self._errors = Lines()
        self._started_ns = 0
        self._said_ns = 0
        self._again_ns = 0
        self._n_short = 0
        self._n_logged = 0
        self._logging_since_ns = 0

    @property
    def trouble(self) -> str:
        if self.state in ("off", "starting", "connected"):
            return ""
        what = "no connection" if self.state != "failed" else "does not run"
        return f"{self.spec.scheme}: {what}{f': {self.why}' if self.why else ''}"

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    def follow(self, now_ns: int, *, is_wanted: bool) -> None:
        if not is_wanted:
            self.stop()
            return
        if self._process is None:
            if now_ns >= self._again_ns:
                self._start(now_ns)
            return
        has_ended = self._process.poll() is not None  # before what it said is read: its last word is in the pipe then
        self._read(now_ns)
        if has_ended:
            self._ended(now_ns)
        elif self.state in ("starting", "connected") and now_ns - self._said_ns > WORDLESS_S * 1e9:
            self._process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(END_WITHIN_S)
            self.n_crashes += 1
            self._forget()
            self._retry(now_ns, f"it hung: nothing said for {WORDLESS_S:.0f} s, so it was killed")

    def stop(self) -> None:
        """At once: what it has is on its way to nobody."""
        if self._process is None:
            return
        self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(END_WITHIN_S)  # its port must be free for whoever comes next
        self._forget()
        self.state, self.why = "off", ""
        self._n_short = self._again_ns = 0

    def close(self) -> None:
        self.stop()
        self._feed.close()

    def _start(self, now_ns: int) -> None:
        spec = self.spec
        config = {
            "scheme": spec.scheme, "mode": spec.mode, "host": spec.host, "port": spec.port, "stream_id": spec.stream_id,
            "latency_ms": spec.latency_ms, "passphrase": spec.passphrase, "profile": spec.profile,
            "sources": spec.sources, "parent": os.getpid(), "feed": self._feed.fileno(),
        }  # fmt: skip
        # Secrets go by the pipe: command lines and environments can be read by others.
        command = [sys.executable, "-I", "-S", str(PROGRAM)]
        try:
            made = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd="/", env={},
                pass_fds=(self._feed.fileno(),), start_new_session=True,
            )  # fmt: skip
            assert made.stdin is not None
            assert made.stdout is not None
            assert made.stderr is not None
            os.set_blocking(made.stdout.fileno(), False)
            os.set_blocking(made.stderr.fileno(), False)
            os.write(made.stdin.fileno(), json.dumps(config).encode() + b"\n")
        except OSError as fault:
            self._retry(now_ns, f"can't be started: {fault.strerror}")
            return
        self._process, self._started_ns, self._said_ns = made, now_ns, now_ns
        self._lines, self._errors = Lines(), Lines()
        self.state, self.why = "starting", ""

    def _read(self, now_ns: int) -> None:
        assert self._process is not None
        for line in self._lines.add(_read(self._process.stdout)):
            said = read_report(line)
            if said is None:
                continue
            self._said_ns = now_ns
            if said.state:
                self.state, self.why = said.state, said.why
            self.stats.update(said.stats)
            self.refused.update(said.refused)
            if said.unconfined:
                _log.info("%s input: its process can't be confined: %s", self.spec.scheme, said.unconfined)
        if now_ns - self._logging_since_ns > LOG_EVERY_S * 1e9:
            self._logging_since_ns, self._n_logged = now_ns, 0
        for line in self._errors.add(_read(self._process.stderr)):
            self._n_logged += 1
            if self._n_logged <= LOG_LINES:
                _log.warning("%s input: %s", self.spec.scheme, plain(line.decode(errors="replace")))
            elif self._n_logged == LOG_LINES + 1:
                _log.warning("%s input: more lines of this kind are left out", self.spec.scheme)

    def _ended(self, now_ns: int) -> None:
        assert self._process is not None
        code = self._process.returncode
        why = self.why if self.state == "failed" else f"ended by signal {-code}" if code < 0 else f"ended with {code}"
        self._n_short = 0 if now_ns - self._started_ns > STEADY_S * 1e9 else self._n_short
        if self.state != "failed":
            self.n_crashes += 1
        self._forget()
        self._retry(now_ns, why)

    def _retry(self, now_ns: int, why: str) -> None:
        self.state, self.why = "failed", why
        self._again_ns = now_ns + int(RESTART_S[min(self._n_short, len(RESTART_S) - 1)] * 1e9)
        self._n_short += 1

    def _forget(self) -> None:
        assert self._process is not None
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()
        self._process = None


def _read(pipe: object) -> bytes:
    try:
        return os.read(pipe.fileno(), READ_BYTES)  # type: ignore[attr-defined]
    except BlockingIOError:
        return b""
