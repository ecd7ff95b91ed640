"""The files of a log and the security log, on a clock of the test's own."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from accelerator.protocols.hash_chain import first_break
from accelerator.services.logs.events import Events
from accelerator.services.logs.files import LogFiles
from accelerator.services.logs.security import CAUSES_MAX, SecurityLog

DAY = 86_400.0
NOON = 1_800_014_400.0 - 1_800_014_400.0 % DAY + DAY / 2


class Clock:
    def __init__(self) -> None:
        self.now_s = NOON

    def __call__(self) -> float:
        return self.now_s


def files_of(folder: Path, clock: Clock, *, retention_s: float = 7 * DAY, bytes_max: int = 1 << 20) -> LogFiles:
    return LogFiles(folder / "logs", "access", clock, retention_s=retention_s, bytes_max=bytes_max)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "logs").iterdir() if not path.is_symlink())


def files_in_order(folder: Path, name: str) -> list[Path]:
    return sorted((folder / "logs").glob(f"{name}-*.log"), key=lambda path: path.stat().st_mtime_ns)


def put(files: LogFiles, line: bytes) -> bool:
    begins = files.prepare(len(line))
    files.append(line)
    return begins


def test_modes_and_the_link_to_the_newest(tmp_path: Path) -> None:
    files = files_of(tmp_path, Clock())
    assert put(files, b"one\n") is True
    assert put(files, b"two\n") is False
    link = tmp_path / "logs" / "access.log"
    assert link.is_symlink()
    assert link.read_bytes() == b"one\ntwo\n"
    assert stat.S_IMODE(link.stat().st_mode) & ~0o640 == 0
    assert stat.S_IMODE(link.parent.stat().st_mode) & 0o007 == 0


def test_a_day_ends_a_file_and_retention_removes_it(tmp_path: Path) -> None:
    clock = Clock()
    files = files_of(tmp_path, clock)
    for day in range(12):
        clock.now_s = NOON + day * DAY
        assert put(files, b"%d\n" % day) is True
        files.enforce()
        oldest = min(int(path.read_bytes()) for path in (tmp_path / "logs").glob("access-*.log"))
        assert day - oldest < 7, "no line outlives its retention"
    assert len(names(tmp_path)) == 7
    files.close()
    clock.now_s += 8 * DAY
    files_of(tmp_path, clock).enforce()
    assert names(tmp_path) == []


def test_the_file_that_is_written_goes_in_time_too(tmp_path: Path) -> None:
    clock = Clock()
    files = files_of(tmp_path, clock, retention_s=3600.0)
    put(files, b"x\n")
    clock.now_s += 3600.0
    files.enforce()
    assert names(tmp_path) == []


def test_sizes_are_bounded(tmp_path: Path) -> None:
    clock = Clock()
    files = files_of(tmp_path, clock, bytes_max=1 << 20)
    for number in range(64):
        clock.now_s += 1
        put(files, b"%032d\n" % number * 1986)  # 64 KiB
        files.enforce()
        total = sum(path.stat().st_size for path in (tmp_path / "logs").glob("access-*.log"))
        assert total <= 1 << 20
    assert len(names(tmp_path)) >= 7


def test_who_moves_the_file_gets_another(tmp_path: Path) -> None:
    files = files_of(tmp_path, Clock())
    put(files, b"one\n")
    moved = tmp_path / "moved"
    (tmp_path / "logs" / "access.log").resolve().rename(moved)
    assert put(files, b"two\n") is True
    assert moved.read_bytes() == b"one\n"
    assert (tmp_path / "logs" / "access.log").read_bytes() == b"two\n"


def test_two_of_one_second_do_not_meet(tmp_path: Path) -> None:
    clock = Clock()
    files, others = files_of(tmp_path, clock), files_of(tmp_path, clock)
    put(files, b"one\n")
    put(others, b"two\n")
    assert len(names(tmp_path)) == 2


def test_a_file_of_the_future_and_other_files(tmp_path: Path) -> None:
    clock = Clock()
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "access-29991231T000000Z.log").write_bytes(b"x")
    (tmp_path / "logs" / "access-20263311T990000Z.log").write_bytes(b"no date")
    (tmp_path / "logs" / "notes.txt").write_bytes(b"ours not")
    files_of(tmp_path, clock).enforce()
    assert names(tmp_path) == ["access-20263311T990000Z.log", "notes.txt"]


def test_a_full_disk_leaves_no_half_line(tmp_path: Path) -> None:
    files = files_of(tmp_path, Clock())
    put(files, b"one\n")
    read_end, write_end = os.pipe()
    os.close(read_end)
    os.dup2(write_end, files._fd)  # EPIPE, as any other fault of write(2)
    os.close(write_end)
    with pytest.raises(OSError, match="Broken pipe"):
        files.append(b"two\n")
    assert put(files, b"three\n") is True
    lines = b"".join(path.read_bytes() for path in files_in_order(tmp_path, "access"))
    assert lines == b"one\nthree\n"


# -- the security log --------------------------------------------------------------------------------------------------


class Ticks:
    def __init__(self) -> None:
        self.now_ns = 10**12

    def __call__(self) -> int:
        return self.now_ns


def security_log(folder: Path, ticks: Ticks | None = None) -> SecurityLog:
    return SecurityLog(
        folder / "logs", retention_s=30 * DAY, bytes_max=1 << 20, wall_s=Clock(), now_ns=ticks or Ticks()
    )


def lines_of(folder: Path) -> list[bytes]:
    return [line for path in files_in_order(folder, "security") for line in path.read_bytes().splitlines()]


def entries_of(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in lines_of(folder)]


def test_entries_are_sealed_and_go_on_after_a_restart(tmp_path: Path) -> None:
    for run in range(3):
        log = security_log(tmp_path)
        log.note("start", f"run {run}", uid=7, pid=8, user=None)
        log.note("command", "cache purge url /a?secret=1", outcome="done", uid=0)
        log.finish(5)
    found = entries_of(tmp_path)
    assert [entry["kind"] for entry in found] == ["start", "command"] * 3
    assert "user" not in found[0]
    assert "secret" not in str(found)
    files = files_in_order(tmp_path, "security")
    assert len(files) == 3
    assert all(first_break(path.read_bytes().splitlines()) is None for path in files)
    assert found[2]["after"] == found[1]["link"]


def test_refusals_are_told_once_a_cause_and_10_s_with_how_many(tmp_path: Path) -> None:
    ticks = Ticks()
    log = security_log(tmp_path, ticks)
    for _ in range(1000):
        log.refused("admin", "wrong Host")
        log.refused("request", "status 400", viewer="zone wifi", n=2)
    ticks.now_ns += 10_000_000_000
    log.tick()
    log.tick()
    log.finish(5)
    found = [(entry["what"], entry["count"]) for entry in entries_of(tmp_path)]
    assert found == [("wrong Host", 1), ("status 400", 2), ("wrong Host", 999), ("status 400", 1998)]


def test_many_sources_become_one(tmp_path: Path) -> None:
    log = security_log(tmp_path)
    for number in range(CAUSES_MAX + 5000):
        log.refused("request", "status 400", viewer=f"{number}")
    log.finish(5)
    found = entries_of(tmp_path)
    assert len(found) <= CAUSES_MAX + 2
    assert sum(int(str(entry["count"])) for entry in found) + log.n_dropped >= CAUSES_MAX
    assert found[-1]["viewer"] == "*"


def test_a_log_that_cannot_be_written_stops_nobody_and_says_so_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "logs").write_text("in the way")
    log = SecurityLog(tmp_path / "logs", retention_s=DAY, bytes_max=1 << 20, events=Events())
    for _ in range(10):
        log.note("start", "x")
    log.finish(5)
    assert log.n_dropped == 10
    assert len([record for record in caplog.records if "can't be written" in record.message]) == 1
