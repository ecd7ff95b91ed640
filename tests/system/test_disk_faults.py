"""Disks that fail, fill up, hang or can't be written: viewers don't notice, and the disk comes back when it is well."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from disk_box import MIB, VideoOrigin, body_of, disk_box, fill
from running_box import RunningBox, wait_for

PATHS = [f"/v/{MIB + 7}/{name}" for name in range(12)]


@pytest.fixture
def origin() -> Iterator[VideoOrigin]:
    with VideoOrigin() as running:
        yield running


@contextlib.contextmanager
def injected(box: RunningBox, rule: str) -> Iterator[None]:
    """strace on the running box: each such call of any of its threads fails, or takes its time."""
    if shutil.which("strace") is None:
        pytest.skip("needs strace")
    call = rule.partition(":")[0]
    log = box.work / "strace"
    command = ["strace", "-f", "-o", str(log), "-p", str(box.process.pid), "-e", f"trace={call}"]
    command += ["-e", f"inject={rule}"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        if "attached" not in line:
            pytest.skip(f"strace can't attach: {line}")
        yield
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(20)


@contextlib.contextmanager
def small_file_system(folder: Path, options: str) -> Iterator[None]:
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", options, "none", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("no mounts here")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def ask_all(box: RunningBox, paths: list[str]) -> float:
    """Every answer is right; the longest time that one took."""
    longest = 0.0
    for path in paths:
        began = time.monotonic()
        response = box.get(path)
        longest = max(longest, time.monotonic() - began)
        assert (response.status, response.body == body_of(path)) == (200, True), response.raw[:300]
    return longest


def kinds(box: RunningBox) -> set[str]:
    return {event["kind"] for event in box.control("events")["events"]}


def only_on_disk(box: RunningBox, paths: list[str]) -> RunningBox:
    """What is on the disk, and nothing of it in memory: a new process."""
    fill(box, paths)
    box.signal(signal.SIGTERM)
    box.exit_code(seconds=20)
    return RunningBox(box.work, box.policy)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("rule", ["preadv:error=EIO", "preadv:retval=0", "preadv:delay_enter=5000000"])
def test_reads_that_fail_or_hang_cost_a_fetch_and_put_the_disk_aside(
    tmp_path: Path, origin: VideoOrigin, rule: str
) -> None:
    with disk_box(tmp_path, origin) as first, only_on_disk(first, PATHS) as box:
        with injected(box, rule):
            assert ask_all(box, PATHS) < 5.0
            assert ask_all(box, PATHS[-3:]) < 5.0
            if "retval" in rule:
                assert box.stats()["disk_corrupt"] >= 5  # a record that is cut off is no fault of the device
                return
            wait_for(lambda: "disk-aside" in kinds(box))
            assert box.status()["health"]["ok"]
        wait_for(lambda: "disk-returned" in kinds(box), seconds=60)
        wait_for(lambda: box.status()["disk"]["state"] == "ready", seconds=60)
        stats = box.stats()
        assert stats["broken_transfers"] == stats["refused"] == 0


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    "rule", ["pwrite64:error=EIO", "pwrite64:error=EROFS", "fdatasync:error=EIO", "fallocate:error=ENOSPC"]
)
def test_writes_that_fail_are_nobodys_business_but_the_operators(
    tmp_path: Path, origin: VideoOrigin, rule: str
) -> None:
    with disk_box(tmp_path, origin) as box:
        with injected(box, rule):
            ask_all(box, PATHS)
            ask_all(box, PATHS)
            if "fdatasync" in rule:
                wait_for(lambda: box.stats()["disk_errors"] > 0)
            elif "ENOSPC" not in rule:
                wait_for(lambda: "disk-aside" in kinds(box))
            assert box.status()["health"]["ok"]
        wait_for(lambda: box.status()["disk"]["state"] == "ready", seconds=60)
        path = f"/v/{MIB}/after"
        assert box.get(path).body == body_of(path)
        assert box.stats()["refused"] == 0


@pytest.mark.timeout(120)
@pytest.mark.parametrize("options", ["size=20m", "size=200m,nr_inodes=4"])
def test_full_file_system_is_no_fault_of_viewers(tmp_path: Path, origin: VideoOrigin, options: str) -> None:
    with small_file_system(tmp_path / "state" / "cache", options), disk_box(tmp_path, origin, memory="32MiB") as box:
        for name in range(40):
            path = f"/v/{MIB}/{name}"
            assert box.get(path).body == body_of(path)
        ask_all(box, [f"/v/{MIB}/{name}" for name in range(40)])
        assert box.status()["health"]["ok"]
        assert box.stats()["refused"] == 0
        assert kinds(box) & {"disk-full", "disk-aside"}


@pytest.mark.timeout(120)
def test_disk_that_is_read_only_at_the_start_is_used_when_it_can_be_written(
    tmp_path: Path, origin: VideoOrigin
) -> None:
    folder = tmp_path / "state" / "cache"
    with small_file_system(folder, "size=100m,ro"), disk_box(tmp_path, origin) as box:
        ask_all(box, PATHS[:3])
        assert box.status()["disk"]["state"] == "aside"
        subprocess.run(["mount", "-o", "remount,rw", str(folder)], check=True)
        wait_for(lambda: box.status()["disk"]["state"] == "ready", seconds=60)
        path = f"/v/{MIB}/after"
        assert box.get(path).body == body_of(path)
        wait_for(lambda: box.stats()["disk_objects"] >= 1)
