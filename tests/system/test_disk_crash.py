"""Kill -9 at every storage system call of a fill, purge, checkpoint and eviction leaves each object whole or absent."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import disk_crash
import pytest
from running_box import PROJECT

CALLS = ("pwrite64", "write", "fdatasync", "fsync", "fallocate", "renameat", "unlinkat", "ftruncate", "openat", "close")
# Calls that would have to be swept too, if they were made.
OTHERS = ("pwritev", "pwritev2", "rename", "renameat2", "unlink", "truncate")
STORAGE = ("pwrite64", "fdatasync", "fsync", "fallocate", "renameat", "unlinkat", "ftruncate")

pytestmark = pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")


def traced(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["strace", "-f", "-q", *arguments, sys.executable, disk_crash.__file__, str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, check=False)


def counts(folder: Path, calls: tuple[str, ...]) -> Counter[str]:
    """How often the busiest thread makes each call: strace counts by thread."""
    log = folder.parent / "calls"
    done = traced(folder, "-o", str(log), "-e", f"trace={','.join(calls)}")
    if done.returncode != 0 and "ptrace" in done.stderr:
        pytest.skip("ptrace is not allowed here")
    said = done.stdout.splitlines()
    assert said[-1:] == ["closed"], done.stderr[-2000:]
    # All four are swept: fills, a purge, a checkpoint, evictions.
    assert "purged" in said
    assert "checkpointed" in said
    assert any(line.startswith("stored") and not line.endswith(" 0") for line in said)
    by_thread: Counter[tuple[str, str]] = Counter()
    for line in log.read_text().splitlines():
        thread, _, rest = line.partition(" ")
        name = rest.strip().partition("(")[0]
        if name in calls:
            by_thread[(thread, name)] += 1
    most: Counter[str] = Counter()
    for (_, name), n in by_thread.items():
        most[name] = max(most[name], n)
    return most


def killed_at(folder: Path, call: str, number: int) -> bool:
    """Whether the process died there; what it left is checked."""
    shutil.rmtree(folder, ignore_errors=True)
    done = traced(folder, "-o", "/dev/null", "-e", f"trace={call}", "-e", f"inject={call}:signal=KILL:when={number}")
    said = done.stdout.splitlines()
    disk_crash.run(disk_crash.check(folder, said))
    return done.returncode in (-signal.SIGKILL, 128 + signal.SIGKILL)


def test_nothing_is_lost_without_a_kill(tmp_path: Path) -> None:
    most = counts(tmp_path / "disk", STORAGE + OTHERS)
    assert most["pwrite64"] > 20
    assert all(most[call] > 0 for call in ("fdatasync", "fsync", "fallocate", "renameat", "unlinkat")), most
    assert not most.keys() & (set(OTHERS) - {"truncate"}), most
    assert len(disk_crash.run(disk_crash.check(tmp_path / "disk", ["closed"]))) >= 4


@pytest.mark.parametrize(("call", "number"), [("pwrite64", 9), ("fdatasync", 1), ("renameat", 2), ("unlinkat", 1)])
def test_kill_at_one_call_of_each_sort(tmp_path: Path, call: str, number: int) -> None:
    assert killed_at(tmp_path / "disk", call, number)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_kill_at_every_storage_call(tmp_path: Path) -> None:
    most = counts(tmp_path / "disk", CALLS)
    n_points = n_killed = 0
    for call in STORAGE:
        for number in range(1, most[call] + 1):
            n_points += 1
            n_killed += killed_at(tmp_path / "disk", call, number)
    print(f"crash sweep: {n_points} points, {n_killed} killed there, each object whole or absent after each")
    assert n_killed >= n_points * 9 // 10
