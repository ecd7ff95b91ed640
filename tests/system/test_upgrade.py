"""One acceleratord after another on the same sockets: by hand-over, by a signal, by a service manager that keeps them.

The service manager is played here (NOTIFY_SOCKET, LISTEN_FDS); test_machine.py has the real one.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from recording_origin import GOOD_BODY, RecordingOrigin
from running_box import HOST, PROJECT, RunningBox, address_of, policy_for, read_response, wait_for
from steady_load import SteadyLoad

ACCELERATORD = str(PROJECT / ".venv/bin/acceleratord")
GET = f"GET /good/film HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode()


class UpgradedBox(RunningBox):
    """A box whose process is another one after each upgrade(); `former` are those that drain or have ended."""

    former: list[subprocess.Popen[bytes]]

    def command(self) -> list[str]:
        return [ACCELERATORD, "--policy", str(self.policy_path), "--state-dir", str(self.state)]

    def serving_pid(self) -> int:
        """Whose control socket it is, as the kernel says."""
        with socket.socket(socket.AF_UNIX) as connected:
            connected.connect(str(self.state / "control.sock"))
            return int(struct.unpack("3i", connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0])

    def successor(self, **options: Any) -> subprocess.Popen[bytes]:
        with self.log_path.open("ab") as log:
            return subprocess.Popen([*self.command(), "--take-over"], cwd=self.work, stdout=log, stderr=log, **options)

    def upgrade(self) -> None:
        """Returns once another process serves."""
        new = self.successor()
        try:
            wait_for(lambda: self.serving_pid() == new.pid or new.poll() is not None, seconds=60, what="a successor")
        finally:
            if new.poll() is not None or self.serving_pid() != new.pid:
                new.kill()
                new.wait()
                raise AssertionError(self.output)
        self.former.append(self.process)
        self.process = new

    def kill(self) -> None:
        super().kill()
        for process in self.former:
            if process.poll() is None:
                process.kill()
            process.wait()


@pytest.fixture(scope="module")
def origin() -> Iterator[RecordingOrigin]:
    with RecordingOrigin() as running:
        yield running


def upgraded_box(work: Path, origin: RecordingOrigin, **sections: Any) -> UpgradedBox:
    box = UpgradedBox(work, policy_for(origin.url, **sections))
    box.former = []
    return box


@pytest.fixture
def box(tmp_path: Path, origin: RecordingOrigin) -> Iterator[UpgradedBox]:
    with upgraded_box(tmp_path, origin) as running:
        yield running


def upgrades_under_load(box: UpgradedBox, upgrades: int, rate: int) -> dict[str, Any]:
    address, admin = box.address(), box.status()["admin"]
    with SteadyLoad(address, rate, HOST) as load:
        for _ in range(upgrades):
            box.upgrade()
            assert box.admin("/healthz")[0] == 200
            # At most a handful drain at once: each has a cache of its own.
            wait_for(lambda: sum(process.poll() is None for process in box.former) < 4, seconds=40)
        result = load.end()
    assert (box.address(), box.status()["admin"]) == (address, admin)
    assert [process.wait(40) for process in box.former] == [0] * upgrades
    return result


def test_5_upgrades_under_load_fail_no_request(box: UpgradedBox) -> None:
    result = upgrades_under_load(box, 5, 300)
    assert result["failures"] == {}
    assert result["requests"] > 300


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_100_upgrades_under_load_fail_no_request(box: UpgradedBox) -> None:
    """reliability.md, fault 42 and goal 7. A steady load checks each body; wrk sends a request after each answer,
    so that it gives as many as there is time for beside starts that take a core each."""
    if shutil.which("wrk") is None:
        pytest.skip("not installed: wrk")
    host, port = box.address()
    command = ["wrk", "--threads", "1", "--connections", "16", "--duration", "900s", "--timeout", "60s"]
    report = ""
    command += ["--header", f"Host: {HOST}", f"http://{host}:{port}/bytes/2000/hit-1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as wrk:
        try:
            result = upgrades_under_load(box, 100, 200)
        finally:
            wrk.send_signal(signal.SIGINT)  # it prints its report then
            with contextlib.suppress(subprocess.TimeoutExpired):
                report = wrk.communicate(timeout=60)[0]
            wrk.kill()
    print(result, report)
    assert result["failures"] == {}
    assert "Socket errors" not in report
    assert "Non-2xx" not in report
    found = re.search(r"(\d+) requests in", report)
    assert found is not None
    assert int(found[1]) > 100_000


def test_a_long_transfer_drains_while_the_new_one_serves(box: UpgradedBox, origin: RecordingOrigin) -> None:
    with box.connect() as viewer:
        viewer.sendall(f"GET /gate/long/4000 HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
        begun = viewer.recv(100)
        assert begun.startswith(b"HTTP/1.1 200")
        box.upgrade()
        old = box.former[0]
        assert box.get("/good/film").body == GOOD_BODY
        assert old.poll() is None
        origin.open_gate("long")
        response, rest = read_response(viewer, begun)
        assert (response.status, len(response.body), rest) == (200, 4000, b"")
    assert old.wait(20) == 0


def test_a_transfer_without_end_is_broken_off_after_limits_drain(tmp_path: Path, origin: RecordingOrigin) -> None:
    with upgraded_box(tmp_path, origin, limits={"drain": "1s"}) as box, box.connect() as viewer:
        viewer.sendall(f"GET /gate/endless/4000 HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
        begun = viewer.recv(100)
        box.upgrade()
        assert box.former[0].wait(20) == 0
        with pytest.raises((EOFError, ConnectionError)):
            read_response(viewer, begun)
        assert box.get("/good/film").status == 200


def test_a_connection_that_was_idle_is_answered_once_more(box: UpgradedBox) -> None:
    with box.connect() as viewer:
        viewer.sendall(GET)
        response, rest = read_response(viewer)
        assert "connection" not in response.fields
        box.upgrade()
        # It may take a moment until the old one's workers know; each request is answered, the last one says that it is.
        while "connection" not in response.fields:
            viewer.sendall(GET)
            response, rest = read_response(viewer, rest)
            assert (response.status, response.body) == (200, GOOD_BODY)
        assert response.fields["connection"] == "close"
        assert viewer.recv(1) == b""
    assert box.former[0].wait(20) == 0


def test_the_new_one_has_its_own_policy(box: UpgradedBox, origin: RecordingOrigin) -> None:
    address = box.address()
    changed = policy_for(origin.url, site={"name": "renamed"})
    del changed["listen"]["lan"]
    changed["listen"]["wan"] = {"address": "127.0.0.1:0"}
    box.write_policy(changed)
    box.upgrade()
    status = box.status()
    assert (status["site"], [row["name"] for row in status["listeners"]]) == ("renamed", ["wan"])
    assert box.get("/good/film", listener="wan").status == 200
    assert box.former[0].wait(20) == 0
    # Nobody listens where nobody serves.
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)


def test_one_that_does_not_start_leaves_the_old_one_serving(box: UpgradedBox, tmp_path: Path) -> None:
    """reliability.md, fault 43: builds that fail before they ask, and after."""
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "uvloop.py").write_text("raise ImportError('a broken build')\n")
    new = box.successor(env={**os.environ, "PYTHONPATH": str(broken)})
    assert new.wait(20) == 1
    asks_and_ends = (
        "import asyncio, pathlib, sys; from accelerator.io.handover import Predecessor;"
        "asyncio.run(Predecessor(pathlib.Path(sys.argv[1])).ask()); sys.exit(7)"
    )
    done = subprocess.run([sys.executable, "-c", asks_and_ends, str(box.state / "handover.sock")], check=False)
    assert done.returncode == 7
    wait_for(lambda: "this one serves on" in box.output)
    assert box.process.poll() is None
    assert box.get("/good/film").body == GOOD_BODY
    assert box.admin("/healthz")[0] == 200
    box.upgrade()
    assert box.get("/good/film").body == GOOD_BODY


def test_taking_over_from_nobody_is_refused(tmp_path: Path, origin: RecordingOrigin) -> None:
    box = upgraded_box(tmp_path, origin)
    box.write_policy(box.policy)
    new = box.successor()
    assert new.wait(20) == 1
    assert "no acceleratord to take over from" in box.output
    assert not (box.state / "control.sock").exists()


def test_a_second_one_that_takes_nothing_over_is_still_refused(box: UpgradedBox) -> None:
    done = subprocess.run(box.command(), capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 1
    assert "already running" in done.stderr
    assert box.get("/good/film").status == 200


def test_sigusr2_starts_a_successor(box: UpgradedBox) -> None:
    old = box.process
    address = box.address()
    box.signal(signal.SIGUSR2)
    assert old.wait(20) == 0
    assert box.address() == address
    assert box.get("/good/film").body == GOOD_BODY
    new = box.serving_pid()
    assert new != old.pid
    os.kill(new, signal.SIGTERM)
    wait_for(lambda: not (box.state / "control.sock").exists())
    # Its parent has ended, so whether init reaps it here is not ours to know.
    wait_for(lambda: not _runs(new))


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


class NotifySocket:
    """systemd, as far as a unit with Type=notify and FileDescriptorStoreMax= sees it."""

    def __init__(self, work: Path, box: UpgradedBox, *, watchdog_s: float = 0) -> None:
        self.address = str(work / "notify.sock")
        self.box = box
        self.watchdog_s = watchdog_s
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(self.address)
        self.socket.settimeout(20)
        self.stored: list[tuple[str, int]] = []
        self.told: list[dict[str, str]] = []

    def __enter__(self) -> NotifySocket:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()
        for _, fd in self.stored:
            os.close(fd)

    def start(self) -> None:
        """Passes what is stored, from descriptor 3 on, with LISTEN_PID of the process that it becomes."""
        fds = [fd for _, fd in self.stored]
        code = "import os, sys; os.environ['LISTEN_PID'] = str(os.getpid()); os.execv(sys.argv[1], sys.argv[1:])"
        environ = {
            **os.environ,
            "NOTIFY_SOCKET": self.address,
            "LISTEN_FDS": str(len(fds)),
            "LISTEN_FDNAMES": ":".join(name for name, _ in self.stored),
        }
        if self.watchdog_s:
            environ["WATCHDOG_USEC"] = str(int(self.watchdog_s * 1e6))

        def place() -> None:
            for index, fd in enumerate([os.dup2(fd, 200 + index) for index, fd in enumerate(fds)]):
                os.dup2(fd, 3 + index)
                os.close(fd)

        self.box.work.mkdir(exist_ok=True)
        self.box.write_policy(self.box.policy)
        with self.box.log_path.open("ab") as log:
            self.box.process = subprocess.Popen(
                [sys.executable, "-c", code, *self.box.command()],
                cwd=self.box.work, env=environ, stdout=log, stderr=log, preexec_fn=place, close_fds=False,
            )  # fmt: skip

    def hear(self, name: str) -> dict[str, str]:
        """The next message that has `name`; what is stored before it is kept."""
        return self.hear_all(name)

    def hear_all(self, *names: str) -> dict[str, str]:
        """Until each of `names` was told, in whatever order: two processes may be telling."""
        found: dict[str, str] = {}
        end = time.monotonic() + 60
        while not found.keys() >= set(names):
            assert time.monotonic() < end, (names, self.told)
            data, fds, _, _ = socket.recv_fds(self.socket, 4096, 4)
            message = dict(line.split("=", 1) for line in data.decode().split("\n"))
            self.told.append(message)
            self.stored += [(message["FDNAME"], fd) for fd in fds]
            if found or message.keys() & set(names):
                found |= message
        return found

    def started(self) -> None:
        self.start()
        self.hear("READY")


@pytest.fixture
def manager(tmp_path: Path, origin: RecordingOrigin) -> Iterator[NotifySocket]:
    box = upgraded_box(tmp_path / "box", origin)
    with NotifySocket(tmp_path, box, watchdog_s=2) as running:
        yield running
        with contextlib.suppress(AttributeError):
            box.kill()


def test_the_service_manager_hears_of_each_state(manager: NotifySocket) -> None:
    manager.started()
    box = manager.box
    assert [name for name, _ in manager.stored] == ["lan"]
    assert manager.hear("WATCHDOG") == {"WATCHDOG": "1"}
    box.signal(signal.SIGHUP)
    manager.hear("RELOADING")
    manager.hear("READY")
    box.signal(signal.SIGTERM)
    assert manager.hear("STOPPING")["EXTEND_TIMEOUT_USEC"] == "35000000"
    assert box.exit_code() == 0


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_who_connects_between_two_processes_is_answered(manager: NotifySocket, end: signal.Signals) -> None:
    """reliability.md, section 6, FDSTORE: by a restart nobody is refused, by a crash neither."""
    manager.started()
    box = manager.box
    address = box.address()
    box.signal(end)
    box.process.wait(20)
    with socket.create_connection(address, timeout=20) as viewer:
        viewer.sendall(GET)
        manager.started()
        assert read_response(viewer)[0].body == GOOD_BODY
    assert box.address() == address
    assert len(manager.stored) == 1, "what was passed is not stored again"


def test_a_passed_socket_at_another_address_is_left_alone(manager: NotifySocket) -> None:
    with socket.create_server(("127.0.0.2", 0)) as strange:
        strange_address = "{}:{}".format(*strange.getsockname())
        manager.stored.append(("lan", os.dup(strange.fileno())))
        manager.started()
        box = manager.box
        assert address_of(strange_address) != box.address()
        assert f"no listener of the policy has the address of: lan ({strange_address})" in box.output
        assert box.get("/good/film").status == 200


def test_a_stopped_process_does_not_say_that_it_is_well(manager: NotifySocket) -> None:
    """reliability.md, fault 5; that systemd then ends it is test_machine.py's."""
    manager.started()
    manager.hear("WATCHDOG")
    box = manager.box
    box.signal(signal.SIGSTOP)
    manager.socket.settimeout(manager.watchdog_s)
    with contextlib.suppress(TimeoutError):  # what it said before may still be here
        manager.hear("WATCHDOG")
    with pytest.raises(TimeoutError):
        manager.hear("WATCHDOG")
    manager.socket.settimeout(20)
    box.signal(signal.SIGCONT)
    manager.hear("WATCHDOG")


def test_in_a_unit_only_the_daemon_itself_starts_its_successor(manager: NotifySocket) -> None:
    manager.started()
    box = manager.box
    stranger = box.successor()
    assert stranger.wait(20) == 1
    assert "SIGUSR2" in box.output
    old = box.process
    box.signal(signal.SIGUSR2)
    # The one says who comes, the other that it serves: either may be first.
    new = int(manager.hear_all("MAINPID", "READY")["MAINPID"])
    assert box.serving_pid() == new
    assert old.wait(20) == 0
    assert not any("STOPPING" in message for message in manager.told)
    # It says that it is well, and would start the next one.
    manager.hear("WATCHDOG")
    os.kill(new, signal.SIGUSR2)
    newest = int(manager.hear_all("MAINPID", "READY")["MAINPID"])
    assert box.get("/good/film").body == GOOD_BODY
    os.kill(newest, signal.SIGTERM)
    wait_for(lambda: not (_runs(new) or _runs(newest)))
