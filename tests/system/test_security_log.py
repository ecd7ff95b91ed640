"""The security log of a running daemon: who changed what, what was refused, and that no query is in it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from recording_origin import RecordingOrigin
from running_box import HOST, RunningBox, policy_for, wait_for

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
    for path in (state / "logs").iterdir():
        assert path.is_symlink() or path.stat().st_mode & 0o777 == 0o640
