"""The demo ends all that it started, however it ends, and says plainly why it cannot start."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from running_demo import PROJECT, RECORDED, RunningDemo, free_port_base

from accelerator.demo.__main__ import POLICY, policy_text

HAS_BOX = "DEMO_ORIGIN_ONLY" not in os.environ
N_CHILDREN = 3 if HAS_BOX else 2  # encoder, origin, box


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition: Callable[[], bool], *, deadline_s: float = 10) -> None:
    ends_s = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < ends_s
        time.sleep(0.02)


@pytest.mark.parametrize("told", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_told_to_stop_it_ends_what_it_started_and_exits_0(tmp_path: Path, told: signal.Signals) -> None:
    with RunningDemo(tmp_path, has_box=HAS_BOX) as demo:
        started = children(demo.process.pid)
        assert len(started) == N_CHILDREN
        assert demo.stop(told) == 0, demo.output
    assert not any(is_alive(pid) for pid in started)


def test_killed_it_takes_its_children_with_it(tmp_path: Path) -> None:
    with RunningDemo(tmp_path, has_box=HAS_BOX) as demo:
        started = children(demo.process.pid)
        assert len(started) == N_CHILDREN
        demo.stop(signal.SIGKILL)
    wait_until(lambda: not any(is_alive(pid) for pid in started))


def test_when_one_child_dies_all_end_and_it_says_which(tmp_path: Path) -> None:
    with RunningDemo(tmp_path, has_box=HAS_BOX) as demo:
        started = children(demo.process.pid)
        encoder = next(pid for pid in started if b"ffmpeg" in Path(f"/proc/{pid}/cmdline").read_bytes())
        os.kill(encoder, signal.SIGKILL)
        assert demo.process.wait(timeout=15) == 1
    assert "demo: ffmpeg-live ended by itself" in demo.output
    assert not any(is_alive(pid) for pid in started)


def test_it_ends_by_itself_after_its_duration(tmp_path: Path) -> None:
    with RunningDemo(tmp_path, "--duration", "0.5", has_box=HAS_BOX) as demo:
        assert demo.process.wait(timeout=15) == 0


@pytest.mark.parametrize("offset", [0, 1, 2])
def test_a_port_in_use_is_one_clear_line(tmp_path: Path, offset: int) -> None:
    base = free_port_base()
    with socket.create_server(("127.0.0.1", base + offset)):
        command = [sys.executable, "-m", "accelerator.demo", "--port-base", str(base), "--work-dir", str(tmp_path)]
        started = subprocess.run(command, capture_output=True, text=True, cwd=PROJECT, timeout=20, check=False)
    assert started.returncode == 1
    assert started.stdout == ""
    assert len(started.stderr.splitlines()) == 1
    assert f"port {base + offset} " in started.stderr
    assert "--port-base" in started.stderr


def test_another_port_base_moves_the_policys_three_ports_and_nothing_else() -> None:
    written = yaml.safe_load((PROJECT / POLICY).read_text())
    moved = yaml.safe_load(policy_text(8081))  # overlaps with the default ports

    written["listen"]["viewers"]["address"] = "127.0.0.1:8081"
    written["admin"]["address"] = "127.0.0.1:8082"
    written["origins"]["demo"]["from"] = ["http://127.0.0.1:8083"]
    assert moved == written


def test_the_picture_has_a_key_frame_at_each_segment_in_every_rendition(tmp_path: Path) -> None:
    """Settings that ffmpeg applied to the first output only once gave the others ten-second groups of pictures."""
    with RunningDemo(tmp_path, has_box=False):
        for clip in sorted(RECORDED.glob("clip_*.mp4")):
            command = ["ffprobe", "-v", "error", "-select_streams", "v", "-skip_frame", "nokey"]
            command += ["-show_entries", "frame=pts_time", "-of", "csv=p=0", str(clip)]
            times = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
            assert [float(time_s.strip(",")) for time_s in times] == [float(time_s) for time_s in range(0, 60, 2)]
