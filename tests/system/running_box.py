"""The real daemon as a peer for tests: a process with its policy, state directory and output. No test itself."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from copy import deepcopy
from pathlib import Path
from types import TracebackType
from typing import Any

import yaml
from prometheus_client.parser import text_string_to_metric_families

PROJECT = Path(__file__).resolve().parents[2]
PROBE = "/.well-known/accelerator/health"
HOST = "video.example"


def wait_for(condition: Callable[[], Any], *, seconds: float = 10.0, what: str = "") -> Any:
    """The first true value of `condition`, asked for every few milliseconds. Raises TimeoutError."""
    ends = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > ends:
            raise TimeoutError(f"not within {seconds} s: {what or condition}")
        time.sleep(0.005)


def policy_for(origin: str, **sections: Any) -> dict[str, Any]:
    """A policy of one listener and one origin, `origin` its URL; `sections` are merged into it."""
    policy: dict[str, Any] = {
        "version": 1,
        "site": {"name": "test"},
        "cache": {"memory": "64MiB"},
        "listen": {"lan": {"address": "127.0.0.1:0"}},
        "admin": {"address": "127.0.0.1:0"},
        "workers": 1,
        "origins": {"media": {"from": [origin], "hosts": [HOST]}},
    }
    merge(policy, sections)
    return policy


def merge(target: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    for key, value in changes.items():
        if isinstance(value, Mapping) and isinstance(target.get(key), dict):
            merge(target[key], value)
        else:
            target[key] = deepcopy(value)
    return target


class RunningBox:
    """`acceleratord` in a process of its own. `policy` is written to `work`/policy.yaml, as `reload` does later."""

    def __init__(
        self, work: Path, policy: Mapping[str, Any], *, nofile: int | None = None, stderr: int | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        self.work = work
        self.prefix: list[str] = []  # such as `ip netns exec NAME`
        self.policy_path = work / "policy.yaml"
        self.state = work / "state"
        self.log_path = work / "daemon.log"
        self.policy = dict(policy)
        self._nofile = nofile
        self._stderr = stderr
        self._environ = environ
        self.process: subprocess.Popen[bytes]

    # -- life ----------------------------------------------------------------------------------------------------------

    def write_policy(self, policy: Mapping[str, Any]) -> None:
        self.policy = dict(policy)
        self.policy_path.write_text(yaml.safe_dump(self.policy, sort_keys=False))

    def spawn(self) -> RunningBox:
        """Starts the process and returns at once."""
        self.work.mkdir(parents=True, exist_ok=True)
        self.write_policy(self.policy)
        command = [*self.prefix, str(PROJECT / ".venv/bin/acceleratord"), "--policy", str(self.policy_path)]
        command += ["--state-dir", str(self.state)]
        limit = self._nofile
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                command,
                cwd=self.work,
                env=None if self._environ is None else {**os.environ, **self._environ},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log if self._stderr is None else self._stderr,
                preexec_fn=(lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))) if limit else None,
            )
        return self

    def __enter__(self) -> RunningBox:
        self.spawn()
        try:
            wait_for(self._is_ready, seconds=20, what="the daemon is healthy")
        except BaseException as error:
            self.kill()
            error.add_note(self.output)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(0.5)
            except subprocess.TimeoutExpired:
                self.process.terminate()  # the second one ends at once
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.process.wait(5)
        self.kill()
        if error is not None:
            error.add_note(self.output)

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def exit_code(self, *, seconds: float = 10.0) -> int:
        return self.process.wait(seconds)

    def _is_ready(self) -> bool:
        if self.process.poll() is not None:
            raise RuntimeError(f"the daemon ended with {self.process.returncode}")
        # Its line comes last: before it, a reload is refused.
        if self._stderr is None and "serving viewers" not in self.output:
            return False
        try:
            return bool(self.status()["health"]["ok"])
        except OSError:
            return False

    def reload(self, changes: Mapping[str, Any] | None = None, *, policy: Mapping[str, Any] | None = None) -> str:
        """Writes the changed policy, sends SIGHUP, waits for the daemon's verdict; the lines that it wrote."""
        self.write_policy(policy if policy is not None else merge(deepcopy(self.policy), changes or {}))
        before = len(self.output)
        self.signal(signal.SIGHUP)
        verdicts = ("policy taken over", "refused, the running one stays")  # not an audit line that came late
        wait_for(lambda: any(verdict in self.output[before:] for verdict in verdicts))
        return self.output[before:]

    # -- what it says --------------------------------------------------------------------------------------------------

    @property
    def output(self) -> str:
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def control(self, command: str, **arguments: Any) -> dict[str, Any]:
        """One command over the control socket, without the cost of an accelctl. Raises OSError, RuntimeError."""
        with socket.socket(socket.AF_UNIX) as connected:
            connected.settimeout(10)
            connected.connect(str(self.state / "control.sock"))
            connected.sendall(json.dumps({"command": command, "args": arguments}).encode() + b"\n")
            answer = json.loads(connected.makefile("rb").readline())
        if not answer["ok"]:
            raise RuntimeError(answer["error"])
        return answer["result"]  # type: ignore[no-any-return]

    def status(self) -> dict[str, Any]:
        return self.control("status")

    def stats(self) -> dict[str, Any]:
        """`cache stats`: all counters and what is in memory."""
        return self.control("cache stats")

    def grown(self, before: Mapping[str, Any]) -> dict[str, int]:
        """The counters that changed since the snapshot `before`."""
        now = self.stats()
        return {name: now[name] - before[name] for name in now if now[name] != before.get(name)}

    def accelctl(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(PROJECT / ".venv/bin/accelctl"), "--socket", str(self.state / "control.sock"), *arguments],
            capture_output=True, text=True, timeout=30, check=False,
        )  # fmt: skip

    def admin(self, target: str, *, host: str | None = None) -> tuple[int, bytes]:
        address = self.status()["admin"]
        with socket.create_connection(address_of(address), timeout=10) as connected:
            connected.sendall(f"GET {target} HTTP/1.1\r\nHost: {host or address}\r\nConnection: close\r\n\r\n".encode())
            reply = read_all(connected)
        head, _, body = reply.partition(b"\r\n\r\n")
        return int(head.split()[1]), body

    def metrics(self) -> dict[str, float]:
        """/metrics by name as exposed; a labelled sample is `name{value}`, with the value of each label."""
        found = {}
        for family in text_string_to_metric_families(self.admin("/metrics")[1].decode()):
            for sample in family.samples:
                label = "".join(f"{{{value}}}" for value in sample.labels.values())
                name = sample.name + label
                assert name not in found, f"{name} twice"
                found[name] = sample.value
        return found

    # -- viewers -------------------------------------------------------------------------------------------------------

    def address(self, listener: str = "lan") -> tuple[str, int]:
        return next(address_of(row["address"]) for row in self.status()["listeners"] if row["name"] == listener)

    def connect(
        self, listener: str = "lan", *, source: str | None = None, receive_buffer: int | None = None
    ) -> socket.socket:
        host, port = self.address(listener)
        connected = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        connected.settimeout(10)
        if receive_buffer:
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        if source:
            connected.bind((source, 0))
        connected.connect((host, port))
        return connected

    def ask(self, request: bytes, **where: Any) -> bytes:
        """What the box answers to `request` until it closes; `request` should make it close."""
        with self.connect(**where) as connected:
            with contextlib.suppress(ConnectionError):
                connected.sendall(request)
            return read_all(connected)

    def get(self, target: str = "/", *lines: str, host: str = HOST, method: str = "GET", **where: Any) -> Response:
        head = [f"{method} {target} HTTP/1.1", f"Host: {host}", "Connection: close", *lines]
        return Response(self.ask("\r\n".join(head).encode("latin-1") + b"\r\n\r\n", **where))

    def get_on(self, connected: socket.socket, target: str, *, host: str = HOST) -> Response:
        """The same on a connection that stays open."""
        connected.sendall(f"GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode("latin-1"))
        return read_response(connected)[0]

    def cpu_seconds(self) -> float:
        words = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


class Response:
    """One response as it came, up to the end of the connection. Fields by lower-case name, joined by commas."""

    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        head, _, self.body = raw.partition(b"\r\n\r\n")
        line, *rest = head.decode("latin-1").split("\r\n")
        self.status = int(line.split()[1]) if line else 0
        self.fields: dict[str, str] = {}
        for each in rest:
            name, _, value = each.partition(":")
            known = self.fields.get(name.lower())
            self.fields[name.lower()] = value.strip() if known is None else f"{known}, {value.strip()}"

    def __repr__(self) -> str:
        return f"<Response {self.raw[:200]!r}>"


def address_of(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host.strip("[]"), int(port)


def read_all(connected: socket.socket) -> bytes:
    """All bytes until the peer closes or resets. Raises TimeoutError where it does neither."""
    pieces = []
    while True:
        try:
            piece = connected.recv(1 << 18)
        except ConnectionError:
            break
        if not piece:
            break
        pieces.append(piece)
    return b"".join(pieces)


def read_response(connected: socket.socket, rest: bytes = b"", *, has_body: bool = True) -> tuple[Response, bytes]:
    """One response with Content-Length (or none) from an open connection, and the bytes after it."""
    while b"\r\n\r\n" not in rest:
        piece = connected.recv(1 << 16)
        if not piece:
            raise EOFError(rest)
        rest += piece
    head, _, rest = rest.partition(b"\r\n\r\n")
    response = Response(head + b"\r\n\r\n")
    length = int(response.fields.get("content-length", "0")) if has_body else 0
    while len(rest) < length:
        piece = connected.recv(1 << 18)
        if not piece:
            raise EOFError(rest)
        rest += piece
    response.body = rest[:length]
    return response, rest[length:]
