"""The access log of a running daemon: switched on and off by policy, writable or not; no query, no whole address."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from recording_origin import RecordingOrigin
from running_box import RunningBox, policy_for, wait_for


@pytest.fixture(scope="module")
def origin() -> Iterator[RecordingOrigin]:
    with RecordingOrigin() as running:
        yield running


def policy_with(origin: RecordingOrigin, *, viewer: str = "zone", **access: object) -> dict[str, Any]:
    return policy_for(
        origin.url, logs={"access": {"enabled": True, **access}}, privacy={"viewer": viewer},
        zones={"desks": {"nets": ["127.88.0.0/16"]}},
    )  # fmt: skip


def access_lines(state: Path) -> list[dict[str, Any]]:
    files = sorted((state / "logs").glob("access-*.log"), key=lambda path: path.stat().st_mtime_ns)
    return [json.loads(line) for path in files for line in path.read_text("ascii").splitlines()]


def test_lines_of_all_kinds_of_answers(origin: RecordingOrigin, tmp_path: Path) -> None:
    with RunningBox(tmp_path, policy_with(origin)) as box:
        box.get("/good/a?token=canary", source="127.88.7.6")
        box.get("/good/a?token=canary", source="127.99.7.6")
        box.ask(b"BAD\r\n\r\n", source="127.88.7.6")
        wait_for(lambda: len(access_lines(box.state)) >= 3)
        found = access_lines(box.state)
        names = box.metrics()
        assert names["accelerator_access_log_written_total"] == 3
        assert names["accelerator_access_log_dropped_total"] == 0
        box.get("/good/a?token=canary")
        state = box.state
    assert len(access_lines(state)) == 4, "what came last is written at the end"
    assert [each["how"] for each in found] == ["miss", "hit", "refused"]
    assert [each.get("zone") for each in found] == ["desks", None, "desks"]
    assert [each.get("path") for each in found] == ["/good/a", "/good/a", None]
    assert found[0]["query"] == found[1]["query"]
    assert {each["listener"] for each in found} == {"lan"}
    assert found[0]["origin"] == "media"
    text = b"".join(path.read_bytes() for path in (state / "logs").iterdir())
    assert b"canary" not in text
    assert b"7.6" not in text


@pytest.mark.parametrize("viewer", ["hash", "truncate"])
def test_viewers_are_never_whole(origin: RecordingOrigin, tmp_path: Path, viewer: str) -> None:
    policy = policy_with(origin, viewer=viewer)
    if viewer == "hash":
        policy["logs"]["security"] = {"retention": "30d"}
    with RunningBox(tmp_path, policy) as box:
        for last in (6, 6, 7):
            box.get("/good/a", source=f"127.88.7.{last}")
        box.ask(b"BAD\r\n\r\n", source="127.88.7.6")
        wait_for(lambda: len(access_lines(box.state)) >= 4)
        found = [each["viewer"] for each in access_lines(box.state)]
        wait_for(lambda: "request" in (box.state / "logs" / "security.log").read_text())
        refused = [json.loads(line) for line in (box.state / "logs" / "security.log").read_text().splitlines()]
        # Where that log keeps its lines for longer than anything about viewers may be kept, it tells of none.
        expected = found[3] if viewer == "hash" else None
        assert [each.get("viewer") for each in refused if each["kind"] == "request"] == [expected]
        text = b"".join(path.read_bytes() for path in (box.state / "logs").iterdir())
        assert b"127.88.7.6" not in text
    if viewer == "hash":
        assert found[0] == found[1] == found[3] != found[2]
    else:
        assert set(found) == {"127.88.7.0/24"}


def test_a_reload_switches_it_on_and_off(origin: RecordingOrigin, tmp_path: Path) -> None:
    with RunningBox(tmp_path, policy_for(origin.url)) as box:
        box.get("/good/before")
        box.reload(policy_with(origin))
        box.get("/good/on")
        wait_for(lambda: access_lines(box.state))
        box.reload({"logs": {"access": {"enabled": False}}})
        box.get("/good/after")
        state = box.state
    assert [each["path"] for each in access_lines(state)] == ["/good/on"]


def test_a_log_that_cannot_be_written_disturbs_no_viewer(origin: RecordingOrigin, tmp_path: Path) -> None:
    with RunningBox(tmp_path, policy_with(origin)) as box:
        (box.state / "logs").rename(tmp_path / "away")
        (box.state / "logs").write_text("in the way")
        for _ in range(20):
            assert box.get("/good/a").status == 200
        wait_for(lambda: box.metrics()["accelerator_access_log_unwritten_total"] > 0)
        for _ in range(20):
            assert box.get("/good/a").status == 200
        wait_for(lambda: any(event["kind"] == "log-fault" for event in box.control("events")["events"]))
        (box.state / "logs").unlink()
        assert box.get("/good/again").status == 200
        wait_for(lambda: (box.state / "logs").is_dir() and access_lines(box.state))
        assert box.output.count("access log: can't be written") == 1, "one line in 10 s"


def test_who_moves_a_file_gets_another_without_a_signal(origin: RecordingOrigin, tmp_path: Path) -> None:
    with RunningBox(tmp_path, policy_with(origin)) as box:
        box.get("/good/a")
        wait_for(lambda: access_lines(box.state))
        os.rename((box.state / "logs" / "access.log").resolve(), tmp_path / "moved.log")
        box.get("/good/b")
        wait_for(lambda: [each["path"] for each in access_lines(box.state)] == ["/good/b"])
