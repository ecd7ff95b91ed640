"""The control socket's server against real peers: what it refuses, how long it waits, who may do what."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import socket
import stat
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from memory_box import LOOPS, MemoryBox, RunningControl, accelctl, stored, wait_until

from accelerator.control.client import ControlClient
from accelerator.control.server import COUNTERS, ControlLimits, ControlServer
from accelerator.errors import ControlError

STATUS = b'{"command": "status"}\n'
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="takes other users' identities, which only root can")


@pytest.fixture(params=sorted(LOOPS))
def control(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RunningControl]:
    with RunningControl(tmp_path / "state" / "control.sock", loop=request.param) as running:
        yield running


class Raw:
    """A peer that sends what it likes."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.connect(str(path))  # blocking: with a timeout a full queue would refuse at once
        self.socket.settimeout(10)
        self.file = self.socket.makefile("rb")

    def send(self, data: bytes) -> None:
        # The server may have said its word and closed before everything was sent.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.socket.sendall(data)

    def reply(self) -> Any:
        return json.loads(self.file.readline())

    def ask(self, data: bytes) -> Any:
        self.send(data)
        return self.reply()

    def is_closed(self) -> bool:
        try:
            return self.file.read(1) == b""
        except ConnectionResetError:
            return True

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()
        self.socket.close()


def request(command: str, **arguments: object) -> bytes:
    return json.dumps({"command": command, "args": arguments}).encode() + b"\n"


# Each: what is sent, the kind of the refusal, and whether the connection is closed after it.
REFUSED = {
    "oversized, never ending": (b"x" * 200_000, "oversized", True),
    "oversized by one byte": (b'{"command": "status"}'.ljust(65_537) + b"\n", "oversized", True),
    "binary": (bytes(range(256)) + b"\n", "binary", True),
    "TLS client hello": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\n", "binary", True),
    "NUL in a string": (b'{"command": "sta\x00tus"}\n', "binary", True),
    "not UTF-8": (b'{"command": "\xff\xfe"}\n', "binary", True),
    "empty line": (b"\n", "syntax", True),
    "HTTP": (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", "syntax", True),
    "no object": (b"[]\n", "syntax", True),
    "null": (b"null\n", "syntax", True),
    "deeply nested": (b"[" * 65_000 + b"\n", "syntax", True),
    "duplicate key": (b'{"command": "status", "command": "cache purge"}\n', "syntax", True),
    "other key": (b'{"command": "status", "uid": 0}\n', "syntax", True),
    "NaN": (b'{"command": "cache ls", "args": {"limit": NaN}}\n', "syntax", True),
    "endless number": (b'{"command": "cache ls", "args": {"limit": ' + b"9" * 60_000 + b"}}\n", "syntax", True),
    "arguments are a list": (b'{"command": "status", "args": []}\n', "syntax", True),
    "two documents": (b"{} {}\n", "syntax", True),
    "unknown command": (request("reboot"), "unknown-command", False),
    "offline command": (request("policy check", path="/etc/shadow"), "unknown-command", False),
    "dunder": (request("__class__"), "unknown-command", False),
    "method name": (request("cache_purge", origin="media"), "unknown-command", False),
    "unknown argument": (request("status", verbose=True), "arguments", False),
    "local argument": (request("top", once=True), "arguments", False),
    "number as text": (request("cache ls", limit="5"), "arguments", False),
    "bool as number": (request("cache ls", limit=True), "arguments", False),
    "fraction": (request("cache ls", limit=1.5), "arguments", False),
    "infinite": (b'{"command": "cache ls", "args": {"limit": 1e999}}\n', "arguments", False),
    "negative": (request("cache ls", offset=-1), "arguments", False),
    "too many": (request("cache ls", limit=10_001), "arguments", False),
    "no such sort": (request("cache ls", sort="colour"), "arguments", False),
    "purge nothing": (request("cache purge"), "arguments", False),
    "purge two": (request("cache purge", url="x", origin="y"), "arguments", False),
    "purge the empty prefix": (request("cache purge", prefix=""), "arguments", False),
    "purge a list": (request("cache purge", url=["x"]), "arguments", False),
    "newline in a URL": (request("cache purge", url="http://a.example/\nforged log line"), "arguments", False),
    "half a surrogate pair": (b'{"command": "cache purge", "args": {"url": "\\ud800"}}\n', "arguments", False),
}
COUNTED = {"unknown-command": "refused_unknown"}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses_with_a_reason_and_a_counter(case: str, control: RunningControl) -> None:
    data, kind, is_closed = REFUSED[case]
    objects = list(control.box.objects)
    with Raw(control.path) as peer:
        reply = peer.ask(data)
        assert (reply["ok"], reply["error"]["kind"]) == (False, kind)
        assert reply["error"]["message"].isprintable()
        assert len(reply["error"]["message"]) < 300
        if is_closed:
            assert peer.is_closed()
        else:
            assert peer.ask(STATUS)["ok"], "the connection is still good"
    assert control.server.counts[COUNTED.get(kind, f"refused_{kind}")] == 1
    assert control.box.objects == objects
    assert control.audited == []


def test_every_counter_is_declared(control: RunningControl) -> None:
    for data, _, _ in REFUSED.values():
        with Raw(control.path) as peer:
            peer.ask(data)
    assert set(control.server.counts) <= set(COUNTERS)
    figures = control.server.counters()
    assert figures["control_refused_binary"][0] == 4
    assert figures["control_timed_out_idle"][0] == 0


def test_answers_in_pieces_pipelined_and_after_half_close(control: RunningControl) -> None:
    with Raw(control.path) as peer:
        for byte in b'{"command": "status", "args": {}}\r\n':
            peer.send(bytes([byte]))
        assert peer.reply()["result"]["site"] == "lyon"
        peer.send(request("cache ls", limit=1) * 300 + STATUS * 300)
        replies = [peer.reply() for _ in range(600)]
        assert all(reply["ok"] for reply in replies)
        assert [len(reply["result"].get("objects", ())) for reply in replies] == [1] * 300 + [0] * 300
        peer.send(STATUS * 3 + b'{"command"')
        peer.socket.shutdown(socket.SHUT_WR)
        assert [peer.reply()["ok"] for _ in range(3)] == [True] * 3
        assert peer.is_closed()
    wait_until(lambda: not control.server.connections)


@pytest.mark.parametrize("loop", sorted(LOOPS))
def test_closes_slow_and_idle_peers(loop: str, tmp_path: Path) -> None:
    limits = ControlLimits(line_s=0.4, idle_s=1.0, read_answer_s=0.4)
    with RunningControl(tmp_path / "control.sock", loop=loop, limits=limits) as control:
        with Raw(control.path) as peer:
            begun = time.monotonic()
            peer.socket.settimeout(0.02)
            for byte in b'{"command": "status"' + b" " * 1000:
                peer.send(bytes([byte]))  # bytes keep coming, and do not prolong the line's deadline
                with contextlib.suppress(TimeoutError):
                    if peer.socket.recv(1, socket.MSG_PEEK):
                        break
            peer.socket.settimeout(10)
            assert 0.3 < time.monotonic() - begun < 3
            assert b"timed-out" in peer.socket.recv(1000)
        with Raw(control.path) as peer:
            assert peer.ask(STATUS)["ok"]
            begun = time.monotonic()
            assert peer.reply()["error"]["kind"] == "timed-out"
            assert 0.9 < time.monotonic() - begun < 5
            assert peer.is_closed()
        control.box.objects = [stored("http://a.example/" + "x" * 2000, hits=n) for n in range(5000)]
        with Raw(control.path) as stuck, Raw(control.path) as other:
            stuck.send(request("cache ls", limit=5000) * 3)  # and reads nothing of 30 MB
            assert other.ask(STATUS)["ok"]
            wait_until(lambda: control.server.counts["timed_out_reader"] == 1)
        counts = control.server.counts
        assert (counts["timed_out_line"], counts["timed_out_idle"], counts["timed_out_reader"]) == (1, 1, 1)
        wait_until(lambda: not control.server.connections)


def test_a_thousand_connections(control: RunningControl) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 4096:
        pytest.skip(f"needs 4096 descriptors, {hard} allowed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 4096), hard))
    with contextlib.ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        peers = [stack.enter_context(Raw(control.path)) for _ in range(1000)]
        for peer in peers[64:]:
            assert peer.reply()["error"]["kind"] == "busy"
            assert peer.is_closed()
        times_s = []
        for peer in peers[:64]:
            begun = time.monotonic()
            assert peer.ask(STATUS)["ok"]
            times_s.append(time.monotonic() - begun)
        print(f"64 of 1000 admitted; status took {sorted(times_s)[32] * 1000:.2f} ms (median)")
        refused = accelctl("status", "--json", socket_path=control.path)
        assert refused.returncode == 1
        assert json.loads(refused.stdout)["error"]["kind"] == "busy"
        assert control.server.counts["refused_busy"] == 937
    wait_until(lambda: not control.server.connections)
    with Raw(control.path) as peer:
        assert peer.ask(STATUS)["ok"]


def test_audits_changes_and_only_them(control: RunningControl) -> None:
    with ControlClient(str(control.path)) as client:
        for command in ("status", "cache stats", "cache ls", "top"):
            client.call(command)
        assert control.audited == []
        assert client.call("cache purge", {"url": "http://a.example/live/1.ts"}) == {"purged": 1}
        with pytest.raises(ControlError, match="no origin 'nobody'") as refusal:
            client.call("cache purge", {"origin": "nobody"})
        assert (refusal.value.kind, refusal.value.exit_code) == ("unknown-origin", 1)
        with pytest.raises(ControlError, match="RuntimeError"):
            client.call("cache purge", {"url": "http://a.example/fault"})
        assert client.call("status")["site"] == "lyon"
    assert [entry.outcome for entry in control.audited] == ["done", "refused", "failed"]
    first = control.audited[0]
    assert (first.command, first.uid, first.pid) == ("cache purge", os.geteuid(), os.getpid())
    assert first.arguments == {"url": "http://a.example/live/1.ts", "prefix": None, "origin": None, "tag": None}
    assert control.server.counts["failed"] == 1


def test_directory_and_socket_modes(tmp_path: Path) -> None:
    directory = tmp_path / "made" / "deeper"
    with RunningControl(directory / "control.sock") as control:
        assert stat.S_IMODE(directory.stat().st_mode) == 0o750
        assert stat.S_IMODE(control.path.stat().st_mode) == 0o660
        assert [each.name for each in directory.iterdir()] == ["control.sock"]
    assert list(directory.iterdir()) == []
    empty = tmp_path / "empty"
    empty.mkdir()
    empty.chmod(0o777)
    with RunningControl(empty / "control.sock"):
        assert stat.S_IMODE(empty.stat().st_mode) == 0o750
    used = tmp_path / "used"
    used.mkdir()
    (used / "precious").touch()
    used.chmod(0o755)
    with RunningControl(used / "control.sock"):
        assert stat.S_IMODE(used.stat().st_mode) == 0o755, "someone else's directory is left as it is"
    used.chmod(0o777)
    with pytest.raises(ControlError, match="others may write") as refusal, RunningControl(used / "control.sock"):
        pass
    assert refusal.value.kind == "directory"


def test_replaces_a_dead_socket_but_no_live_one(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with RunningControl(path) as control:
        with pytest.raises(ControlError, match="already running") as refusal, RunningControl(path):
            pass
        assert refusal.value.kind == "in-use"
        with Raw(control.path) as peer:
            assert peer.ask(STATUS)["ok"], "the first one did not notice"
    assert not path.exists()
    path.write_text("precious")
    with pytest.raises(ControlError, match="no socket"), RunningControl(path):
        pass
    assert path.read_text() == "precious"
    path.unlink()
    with socket.socket(socket.AF_UNIX) as busy, contextlib.ExitStack() as stack:
        busy.bind(str(path))
        busy.listen(0)
        with contextlib.suppress(BlockingIOError):
            while True:
                waiting = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK))
                waiting.connect(str(path))
        with pytest.raises(ControlError, match="already running"), RunningControl(path):
            pass


def test_of_daemons_that_start_at_once_one_wins(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    n = 8
    barrier, done = threading.Barrier(n), threading.Barrier(n)
    outcomes: list[str] = []

    def start() -> None:
        barrier.wait()
        try:
            with RunningControl(path) as control:
                outcomes.append("won")
                done.wait()
                assert control.path.exists()
        except ControlError as error:
            outcomes.append(error.kind)
            done.wait()

    threads = [threading.Thread(target=start) for _ in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["in-use"] * (n - 1) + ["won"]


def test_stop_leaves_a_successors_socket_alone(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    with RunningControl(path) as old:
        path.unlink()
        with RunningControl(path):
            old.thread.run(old.server.stop())
            with Raw(path) as peer:
                assert peer.ask(STATUS)["ok"]


def test_stop_ends_connections_and_a_stuck_reader(tmp_path: Path) -> None:
    with RunningControl(tmp_path / "control.sock") as control:
        control.box.objects = [stored("http://a.example/" + "x" * 2000, hits=n) for n in range(5000)]
        with Raw(control.path) as idle, Raw(control.path) as stuck:
            assert idle.ask(STATUS)["ok"]
            stuck.send(request("cache ls", limit=5000))
            wait_until(lambda: control.server.counts["commands"] == 2)
            control.thread.run(control.server.stop())
            assert idle.is_closed()
            wait_until(lambda: not control.server.connections)


def test_a_path_that_is_too_long_is_refused(tmp_path: Path) -> None:
    server = ControlServer(MemoryBox(), tmp_path / ("x" * 108), audit=print)
    with pytest.raises(ControlError, match="at most 107 bytes"):
        RunningControl.__enter__(running := RunningControl(server.path))
    assert not running.path.exists()


NOBODY, GROUP = 65534, 60


@pytest.fixture
def shared() -> Iterator[RunningControl]:
    """A server whose socket belongs to a group that can reach it; pytest's own directories are root's alone."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        directory = Path(name) / "run"
        directory.mkdir(mode=0o750)
        os.chown(directory, 0, GROUP)
        limits = ControlLimits(connections=4, reserved=2)
        with RunningControl(directory / "control.sock", limits=limits, group_id=GROUP) as running:
            yield running


def as_user(uid: int, gid: int, *groups: int) -> tuple[str, ...]:
    more = ("--groups", ",".join(map(str, groups))) if groups else ("--clear-groups",)
    return ("setpriv", "--reuid", str(uid), "--regid", str(gid), *more)


@needs_root
@pytest.mark.parametrize("identity", [as_user(NOBODY, GROUP), as_user(NOBODY, NOBODY, 7, GROUP)], ids=["gid", "groups"])
def test_members_of_the_group_may_read_but_not_change(shared: RunningControl, identity: tuple[str, ...]) -> None:
    objects = list(shared.box.objects)
    for command in (["status"], ["cache", "stats"], ["cache", "ls"], ["top", "--interval", "0.1"]):
        assert accelctl(*command, "--json", socket_path=shared.path, prefix=identity).returncode == 0
    for _ in range(3):
        refused = accelctl("cache", "purge", "--origin", "media", socket_path=shared.path, prefix=identity)
        assert (refused.returncode, refused.stdout) == (1, "")
        assert "only root and the daemon's own user" in refused.stderr
    assert shared.box.objects == objects
    assert shared.server.counts["refused_right"] == 3
    assert [(entry.uid, entry.outcome) for entry in shared.audited] == [(NOBODY, "refused")], "once in 10 s"
    assert accelctl("cache", "purge", "--origin", "media", socket_path=shared.path).returncode == 0
    assert len(shared.box.objects) == 1


@needs_root
def test_strangers_may_do_nothing(shared: RunningControl) -> None:
    identity = as_user(NOBODY, NOBODY)
    refused = accelctl("status", socket_path=shared.path, prefix=identity)
    assert refused.returncode == 1
    assert "permission denied" in refused.stderr
    # Even where somebody has opened the directory and the socket to all.
    shared.path.parent.chmod(0o755)
    shared.path.chmod(0o666)
    refused = accelctl("status", "--json", socket_path=shared.path, prefix=identity)
    assert refused.returncode == 1
    assert json.loads(refused.stdout)["error"]["kind"] == "not-permitted"
    assert shared.server.counts["refused_peer"] == 1


@needs_root
def test_readers_cannot_lock_root_out(shared: RunningControl) -> None:
    with contextlib.ExitStack() as stack:
        # The kernel notes the identity at connect(): a thread of its own takes another's for that long.
        peers: list[Raw] = []

        def connect() -> None:
            os_setresgid(GROUP)
            os_setresuid(NOBODY)
            peers.extend(stack.enter_context(Raw(shared.path)) for _ in range(4))

        thread = threading.Thread(target=connect)
        thread.start()
        thread.join()
        kinds = [peer.ask(STATUS).get("error", {}).get("kind") for peer in peers]
        assert kinds == [None, None, "busy", "busy"]
        with Raw(shared.path) as root, Raw(shared.path) as second, Raw(shared.path) as third:
            assert root.ask(STATUS)["ok"]
            assert second.ask(request("cache purge", origin="library"))["result"] == {"purged": 1}
            assert third.reply()["error"]["kind"] == "busy"


def os_setresuid(uid: int) -> None:
    """The bare system call changes this thread alone; glibc's, and so os.setresuid, would change the process."""
    _syscall(117, uid)


def os_setresgid(gid: int) -> None:
    _syscall(119, gid)


def _syscall(number: int, identity: int) -> None:
    import ctypes
    import platform

    if platform.machine() != "x86_64":
        pytest.skip("system call numbers of x86-64")
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.syscall(number, identity, identity, identity) == 0, os.strerror(ctypes.get_errno())
