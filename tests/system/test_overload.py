"""Overload of the running daemon: crowds of bad viewers, floods of connections, no memory left, a worker that hangs.
What a single viewer may take is in test_limits.py."""

from __future__ import annotations

import array
import contextlib
import fcntl
import os
import re
import resource
import shutil
import socket
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from recording_origin import GOOD_BODY, RecordingOrigin
from running_box import HOST, PROJECT, RunningBox, policy_for, read_response, wait_for
from stopped_thread import edge_threads, stopped_thread

GOOD = f"GET /good/film HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode()
MIB = 1 << 20


@pytest.fixture(scope="module")
def origin() -> Iterator[RecordingOrigin]:
    with RecordingOrigin() as running:
        yield running


def enough_descriptors(n: int) -> None:
    if resource.getrlimit(resource.RLIMIT_NOFILE)[1] < n:
        pytest.skip(f"needs {n} descriptors")


@contextlib.contextmanager
def crowd(box: RunningBox, kind: str, n: int) -> Iterator[None]:
    host, port = box.address()
    with subprocess.Popen(
        [sys.executable, str(PROJECT / "tests/system/crowd.py"), host, str(port), kind, str(n)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (n + 100, n + 100)),
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdin is not None
        try:
            assert process.stdout.readline() == b"ready\n"
            yield
        finally:
            process.stdin.close()
            process.wait(10)


def milliseconds_of(box: RunningBox, n: int, *, every_s: float = 0.0) -> list[float]:
    """Sorted times of `n` hits one after the other, each on a connection that stays open."""
    times = []
    with box.connect() as viewer:
        rest = b""
        for _ in range(n):
            began = time.perf_counter()
            viewer.sendall(GOOD)
            response, rest = read_response(viewer, rest)
            times.append((time.perf_counter() - began) * 1000)
            assert response.body == GOOD_BODY
            if every_s:
                time.sleep(every_s)  # the viewers' pace
    return sorted(times)


def resident_bytes(box: RunningBox) -> int:
    found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{box.process.pid}/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


@pytest.mark.slow
def test_ten_thousand_slow_heads_and_a_thousand_slow_readers(origin: RecordingOrigin, tmp_path: Path) -> None:
    """Row 45: good viewers' p99 at most doubled, 25 MiB of process memory."""
    enough_descriptors(13_000)
    policy = policy_for(origin.url, cache={"memory": "256MiB"})
    with RunningBox(tmp_path, policy, nofile=13_000) as box:
        assert len(box.get("/bytes/60000000").body) == 60_000_000
        box.get("/good/film")
        alone = milliseconds_of(box, 3000, every_s=0.001)
        before, n_lines = resident_bytes(box), box.output.count("\n")
        with crowd(box, "slow-heads", 10_000), crowd(box, "slow-readers", 1000):
            among = milliseconds_of(box, 3000, every_s=0.001)
            wait_for(lambda: box.stats()["closed_slow_head"] > 1000, seconds=30)  # those that are cut come back
            later = milliseconds_of(box, 3000, every_s=0.001)
            grown = resident_bytes(box) - before
            connections = box.control("top")["counters"]["connections"]
        p99 = [times[int(len(times) * 0.99)] for times in (alone, among, later)]
        print(
            f"p99 of hits: alone {p99[0]:.2f} ms, among {connections} bad ones {p99[1]:.2f} and {p99[2]:.2f} ms; "
            f"{grown / MIB:.1f} MiB more resident; slowest {among[-1]:.1f} and {later[-1]:.1f} ms"
        )
        assert grown < 25 * MIB
        # Doubled, where the machine lets that be seen: the crowd takes a core of two of its own.
        assert max(p99[1:]) < max(2 * p99[0], 25)
        assert box.output.count("\n") - n_lines <= 5


@pytest.mark.slow
def test_a_flood_of_connections(origin: RecordingOrigin, tmp_path: Path) -> None:
    """Row 46: 5,000 connections a second; at least 99 % of good requests are served."""
    if shutil.which("wrk") is None:
        pytest.skip("wrk is not installed")
    with RunningBox(tmp_path, policy_for(origin.url)) as box:
        box.get("/good/film")
        host, port = box.address()
        before = box.stats()
        began = time.monotonic()
        flood = subprocess.Popen(
            ["wrk", "-t1", "-c100", "-d6s", "-H", f"Host: {HOST}", "-H", "Connection: close", f"http://{host}:{port}/good/film"],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        served, times = 0, []
        while flood.poll() is None:
            asked = time.monotonic()
            served += box.get("/good/film").body == GOOD_BODY
            times.append(time.monotonic() - asked)
        took = time.monotonic() - began
        rate = box.grown(before)["connections_accepted"] / took
        times.sort()
        print(
            f"{rate:.0f} connections/s; {served} of {len(times)} good ones served, "
            f"p99 {times[int(len(times) * 0.99)] * 1000:.1f} ms, with a connection each"
        )
        assert served == len(times)
        assert served >= 100
        print(flood.communicate()[0])


# -- memory ------------------------------------------------------------------------------------------------------------

CGROUPS = Path("/sys/fs/cgroup")
BALLAST = """
import sys
held = []
for line in sys.stdin:
    wanted = int(line)
    while len(held) > wanted: held.pop()
    while len(held) < wanted: held.append(bytearray(b"x") * (1 << 20))
    print(len(held), flush=True)
"""


class MemoryGroup:
    """A control group with a memory limit; version 2 where it has the controller, else 1."""

    def __init__(self, limit_bytes: int) -> None:
        is_v2 = "memory" in _read(CGROUPS / "cgroup.subtree_control").split()
        self.path = (CGROUPS if is_v2 else CGROUPS / "memory") / f"accelerator-test-{os.getpid()}"
        try:
            self.path.mkdir()
            (self.path / ("memory.max" if is_v2 else "memory.limit_in_bytes")).write_text(str(limit_bytes))
        except OSError as fault:
            pytest.skip(f"no memory control group can be made here: {fault.strerror}")
        self._is_v2 = is_v2

    def add(self, pid: int) -> None:
        (self.path / "cgroup.procs").write_text(str(pid))

    @property
    def used_bytes(self) -> int:
        return int(_read(self.path / ("memory.current" if self._is_v2 else "memory.usage_in_bytes")))

    @property
    def n_killed(self) -> int:
        text = _read(self.path / ("memory.events" if self._is_v2 else "memory.oom_control"))
        return sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("oom_kill "))

    def remove(self) -> None:
        wait_for(lambda: not _read(self.path / "cgroup.procs"), seconds=10)
        self.path.rmdir()


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def test_memory_that_runs_out_is_given_back_rung_by_rung(origin: RecordingOrigin, tmp_path: Path) -> None:
    """Row 34: the cache shrinks, keep-alive ends, new viewers get 503 while those who watch go on, nobody is killed;
    and all of it comes back."""
    limit = 400
    group = MemoryGroup(limit * MIB)
    try:
        with contextlib.ExitStack() as stack:
            box = stack.enter_context(RunningBox(tmp_path, policy_for(origin.url, cache={"memory": "256MiB"})))
            box.get("/good/film")
            group.add(box.process.pid)
            ballast = stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", BALLAST], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
                )
            )
            stack.callback(ballast.kill)
            group.add(ballast.pid)
            for i in range(10):
                assert len(box.get(f"/bytes/20000000/{i}").body) == 20_000_000

            def press(mebibytes: int) -> None:
                assert ballast.stdin is not None
                assert ballast.stdout is not None
                ballast.stdin.write(f"{mebibytes}\n")
                ballast.stdin.flush()
                assert int(ballast.stdout.readline()) == mebibytes

            def gauge(name: str) -> float:
                return box.metrics()[f"accelerator_{name}"]

            assert gauge("overload") == 0
            full = box.stats()["memory_bytes"]
            assert full > 180 * MIB
            old = stack.enter_context(box.connect())
            assert box.get_on(old, "/good/film").status == 200

            press(155)  # 355 of 400 MiB: 88 %
            wait_for(lambda: box.stats()["memory_bytes"] < full - 5 * MIB, seconds=10)
            wait_for(lambda: gauge("memory_given_up_bytes") > 0)
            assert box.get_on(old, "/good/film").fields.get("connection") != "close"

            watching = stack.enter_context(box.connect(receive_buffer=65536))
            watching.sendall(f"GET /gate/pressed/4000 HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
            wait_for(lambda: origin.targets("/gate/pressed"))
            waiting = stack.enter_context(box.connect())

            held = 155

            def is_refusing() -> bool:
                """Takes what the cache gives back, until that has nothing left."""
                nonlocal held
                rung = gauge("overload")
                if group.used_bytes < 0.97 * limit * MIB:
                    held += 1
                    press(held)
                return rung == 3

            wait_for(is_refusing, seconds=60)
            refused = box.get("/good/film")
            assert (refused.status, refused.fields["retry-after"].isdigit()) == (503, True)
            assert box.admin("/healthz")[0] == 503
            waiting.sendall(GOOD)
            assert read_response(waiting)[0].fields["connection"] == "close"  # who is in is answered, and leaves
            origin.open_gate("pressed")
            assert len(read_response(watching)[0].body) == 4000
            assert box.stats()["refused_connections_overload"] >= 1
            assert box.stats()["closed_overload"] >= 1

            press(0)
            wait_for(lambda: gauge("overload") == 0, seconds=15)
            assert box.get("/good/film").body == GOOD_BODY  # also while the cache has hardly anything yet
            wait_for(lambda: gauge("memory_given_up_bytes") == 0, seconds=30)
            assert box.admin("/healthz")[0] == 200
            assert group.n_killed == 0
            events = [event["what"] for event in box.control("events")["events"] if event["kind"] == "overload"]
            assert any("refused" in what for what in events)
            assert "as before" in events[-1]
    finally:
        group.remove()


# -- a worker that hangs -----------------------------------------------------------------------------------------------


def test_a_worker_that_hangs_stops_the_watchdogs_pings(origin: RecordingOrigin, tmp_path: Path) -> None:
    """Issue: each worker proves progress. The thread is stopped by ptrace; the control plane's loop goes on."""
    heard = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    heard.bind(str(tmp_path / "notify"))
    heard.settimeout(10)
    environ = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "1000000"}

    def next_word() -> str:
        return heard.recv(4096).decode()

    with heard, RunningBox(tmp_path / "box", policy_for(origin.url, workers=2), environ=environ) as box:
        while "WATCHDOG=1" not in next_word():
            pass
        workers = edge_threads(box.process.pid)
        assert len(workers) == 2
        with stopped_thread(workers[0]):
            while "no progress of edge worker" not in next_word():
                pass
            heard.settimeout(1.2)
            with pytest.raises(TimeoutError):
                next_word()
            assert box.status()["site"] == "test"  # the loop itself is well
        heard.settimeout(10)
        assert "WATCHDOG=1" in next_word()
        assert box.get("/good/film").body == GOOD_BODY


def test_a_small_answer_does_not_wait_for_three_hundred_large_ones(origin: RecordingOrigin, tmp_path: Path) -> None:
    """A pass of the worker sends a bounded number of bytes. With 512 KiB for each who asked it lasted 0.2 s."""
    policy = policy_for(origin.url, cache={"memory": "256MiB"})
    with RunningBox(tmp_path, policy) as box, contextlib.ExitStack() as held:
        assert len(box.get("/bytes/60000000").body) == 60_000_000
        box.get("/good/film")
        worker = edge_threads(box.process.pid)[0]
        large = [held.enter_context(box.connect(receive_buffer=MIB)) for _ in range(300)]
        small = held.enter_context(box.connect())
        with stopped_thread(worker):
            for viewer in large:
                viewer.sendall(GOOD.replace(b"/good/film", b"/bytes/60000000"))
            small.sendall(GOOD)
        assert read_response(small)[0].body == GOOD_BODY
        waiting = array.array("i", [0])
        sent = 0
        for viewer in large:
            fcntl.ioctl(viewer, termios.FIONREAD, waiting)
            sent += waiting[0]
    print(f"{sent / MIB:.0f} MiB had been sent to the others")
    assert sent < 80 * MIB
