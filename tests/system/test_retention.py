"""No line outlives what the policy promises: a box that ran weeks ago, and runs again."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from recording_origin import RecordingOrigin
from running_box import RunningBox, policy_for, wait_for

FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1")


@pytest.fixture(scope="module")
def origin() -> Iterator[RecordingOrigin]:
    with RecordingOrigin() as running:
        yield running


def run_at(box: RunningBox, day: int) -> None:
    """The box, a while ago; something is asked, and refused."""
    os.environ.update(LD_PRELOAD=str(FAKETIME), FAKETIME=f"{day}d", FAKETIME_DONT_FAKE_MONOTONIC="1")
    try:
        with box:
            box.get("/good/a")
            box.ask(b"BAD\r\n\r\n")
            wait_for(lambda: (box.state / "logs" / "access.log").exists())
            wait_for(lambda: "request" in (box.state / "logs" / "security.log").read_text())
            box.signal(signal.SIGTERM)
            box.exit_code()
    finally:
        for name in ("LD_PRELOAD", "FAKETIME", "FAKETIME_DONT_FAKE_MONOTONIC"):
            del os.environ[name]


def test_what_was_written_before_goes_in_time(origin: RecordingOrigin, tmp_path: Path) -> None:
    """Access lines after the shorter of two times, security lines after theirs; nothing before its time."""
    if not FAKETIME.exists():
        pytest.skip("needs faketime")
    logs = {"access": {"enabled": True, "retention": "20d"}, "security": {"retention": "40d"}}
    policy = policy_for(origin.url, logs=logs, privacy={"viewer": "truncate", "retention": "10d"})
    box = RunningBox(tmp_path, policy)
    folder = box.state / "logs"
    kept = {}
    for day in (-45, -15, -5):
        known = set(folder.glob("*-*.log")) if folder.exists() else set()
        run_at(box, day)
        for path in set(folder.glob("*-*.log")) - known:
            kept[(path.name.partition("-")[0], day)] = path
    assert len(kept) == 6
    with box:
        wait_for(lambda: not kept[("security", -45)].exists())
        wait_for(lambda: not kept[("access", -15)].exists())
        assert {name for name, path in kept.items() if path.exists()} == {
            ("access", -5), ("security", -15), ("security", -5)
        }  # fmt: skip
        # A shorter promise holds for what is there already.
        box.reload({"privacy": {"retention": "4d"}, "logs": {"security": {"retention": "4d"}}})
        wait_for(lambda: not kept[("security", -15)].exists() and not kept[("security", -5)].exists())
