"""The security log of a running daemon: who changed what, what was refused, and that no query is in it."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from recording_origin import RecordingOrigin
from running_box import HOST, PROJECT, RunningBox, policy_for, wait_for

from accelerator.protocols.hash_chain import first_break


@pytest.fixture(scope="module")
def origin() -> Iterator[RecordingOrigin]:
    with RecordingOrigin() as running:
        yield running


def security_lines(state: Path) -> list[bytes]:
    files = sorted((state / "logs").glob("security-*.log"), key=lambda path: path.stat().st_mtime_ns)
    return [line for path in files for line in path.read_bytes().splitlines()]


def security_entries(state: Path, kind: str = "") -> list[dict[str, Any]]:
    entries = [json.loads(line) for line in security_lines(state)]
    return [entry for entry in entries if not kind or entry["kind"] == kind]


def test_a_thousand_hostile_control_clients_are_counted_and_disturb_nobody(
    origin: RecordingOrigin, tmp_path: Path
) -> None:
    """Each of them one of: oversized, binary, half-sent, never-reading, silent; all at once, with a viewer beside."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 4096:
        pytest.skip(f"needs 4096 descriptors, {hard} allowed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 4096), hard))
    messages = [
        b"x" * 70_000, b"\x00\x01\x02\n", b'{"command": "sta', b'{"command":"cache ls","args":{"limit":10000}}\n' * 400,
        b"", b'{"command":"reboot"}\n{"command":"status"}\n',
    ]  # fmt: skip
    with contextlib.ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        box = stack.enter_context(RunningBox(tmp_path, policy_for(origin.url)))
        viewer = stack.enter_context(box.connect())
        peers = []
        for number in range(1000):
            peer = stack.enter_context(socket.socket(socket.AF_UNIX))
            peer.connect(str(box.state / "control.sock"))
            peer.setblocking(False)
            with contextlib.suppress(OSError):  # refused already, or full
                peer.send(messages[number % len(messages)])
            peers.append(peer)
            if number % 100 == 0:
                assert box.get_on(viewer, "/good/a").status == 200
        for peer in peers[::3]:
            peer.close()
        wait_for(lambda: box.accelctl("status").returncode == 0, seconds=20, what="room for one more")
        assert box.get_on(viewer, "/good/a").status == 200
        wait_for(lambda: box.metrics()["accelerator_control_timed_out_line_total"], seconds=20)
        names = box.metrics()
        for counter in ("refused_busy", "refused_oversized", "refused_binary", "refused_unknown"):
            assert names[f"accelerator_control_{counter}_total"] > 0, counter
        wait_for(lambda: len({entry["what"] for entry in security_entries(box.state, "control")}) >= 5)
        found = security_entries(box.state, "control")
        assert len(found) < 60, "summed up, not one by one"
        assert all(entry["viewer"] == f"uid {os.geteuid()}" for entry in found)


def test_a_life_of_the_daemon(origin: RecordingOrigin, tmp_path: Path) -> None:
    with RunningBox(tmp_path, policy_for(origin.url)) as box:
        state = box.state
        box.get("/good/a?token=canary")
        assert box.accelctl("cache", "purge", f"http://{HOST}/good/a?token=canary").returncode == 0
        wait_for(lambda: security_entries(state, "command"))
        box.admin("/metrics", host="evil.example")
        wait_for(lambda: security_entries(state, "admin"))
        exported = box.admin("/metrics")[1].decode()
        assert "accelerator_security_log_dropped_total 0.0" in exported
    found = security_entries(state)
    assert (found[0]["kind"], found[-1]["kind"]) == ("start", "stop")
    command = security_entries(state, "command")[0]
    assert (command["uid"], command["outcome"]) == (os.geteuid(), "done")
    assert command["what"].startswith("cache purge url http://")
    assert security_entries(state, "admin")[0]["what"] == "wrong Host"
    assert b"canary" not in b"".join(security_lines(state))
    assert b"evil" not in b"".join(security_lines(state))
    assert first_break(security_lines(state)) is None
    verify = [sys.executable, "-m", "accelerator.cli", "log", "verify"]
    assert subprocess.run([*verify, str(state / "logs")], cwd=PROJECT, check=False).returncode == 0
    changed = tmp_path / "changed.log"
    changed.write_bytes(b"\n".join(security_lines(state)).replace(b'"done"', b'"none"'))
    found_out = subprocess.run([*verify, str(changed)], cwd=PROJECT, capture_output=True, text=True, check=False)
    assert (found_out.returncode, "changed, or a line before it is gone" in found_out.stderr) == (1, True)
    assert subprocess.run([*verify, str(tmp_path / "no")], cwd=PROJECT, check=False).returncode == 1
    for path in (state / "logs").iterdir():
        assert path.is_symlink() or path.stat().st_mode & 0o777 == 0o640
