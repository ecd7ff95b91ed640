"""The history of policies on a real file system: crash points, damage, bounds, what may be returned to."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from accelerator.services.rollout.history import ENTRIES_MAX, History, decode_entry, source_digest

PROJECT = Path(__file__).resolve().parents[2]
# Adds two entries and marks the first one: every system call on the way is a point where the process may die.
COMMIT = """
import sys
from pathlib import Path
from accelerator.services.rollout.history import History
history = History(Path(sys.argv[1]), print)
history.load()
for text in ("one", "two"):
    entry = history.add(at_s=1.0, by="apply", outcome="applied", digest="ab" * 32, path="p", folder="/",
                        files=[("p", text.encode() * 2000)], file_digest="")
history.mark(history.entries[-2], "good", "served well")
"""


def make(directory: Path) -> tuple[History, list[str]]:
    faults: list[str] = []
    history = History(directory, faults.append)
    history.load()
    return history, faults


def add(history: History, text: str, outcome: str = "applied", **changed: Any) -> Any:
    settings: dict[str, Any] = {
        "at_s": 1.0, "by": "apply", "digest": (text.encode().hex() + "0" * 64)[:64], "path": "/p.yaml", "folder": "/",
        "file_digest": "",
    }  # fmt: skip
    settings.update(changed)
    return history.add(outcome=outcome, files=[("p.yaml", text.encode())], **settings)


def test_what_was_added_is_there_for_the_next_process_with_its_mode(tmp_path: Path) -> None:
    history, faults = make(tmp_path / "policies")
    first = add(history, "one")
    history.mark(first, "good", "served well")
    add(history, "two")
    again, more = make(tmp_path / "policies")
    assert again.entries == history.entries
    assert faults + more == []
    assert [entry.outcome for entry in again.entries] == ["good", "applied"]
    assert stat.S_IMODE((tmp_path / "policies").stat().st_mode) == 0o750
    for path in (tmp_path / "policies").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_killed_at_any_system_call_an_entry_is_whole_or_not_there(tmp_path: Path) -> None:
    """reliability.md goal 2: each call that touches the disk, one after another, until one run gets to its end."""
    n_points = 0
    for call in ("mkdir", "openat", "write", "fchmod", "fsync", "close", "rename"):
        for point in range(1, 100):
            directory = tmp_path / f"{call}-{point}"
            paths = [directory, *(directory / f"0000000{n}.{end}" for n in (1, 2) for end in ("new", "json"))]
            done = subprocess.run(
                ["strace", "-f", "-qq", "-o", "/dev/null", *(word for path in paths for word in ("-P", str(path))),
                 "-e", f"trace={call}", "-e", f"inject={call}:signal=KILL:when={point}",
                 sys.executable, "-c", COMMIT, str(directory)],
                cwd=PROJECT, capture_output=True, check=False,
            )  # fmt: skip
            history, faults = make(directory)
            assert faults == [], (call, point)
            n_entries = len(history.entries)
            assert [entry.number for entry in history.entries] == list(range(1, n_entries + 1))
            assert [entry.outcome for entry in history.entries] in (
                ["applied"] * n_entries, ["good", "applied"],
            )  # fmt: skip
            # What is left over must not stand in the way of what comes.
            add(history, "three")
            assert make(directory)[0].entries == history.entries
            if done.returncode == 0:
                assert n_entries == 2
                break
            n_points += 1
        else:
            pytest.fail("the commit never came to its end")
    assert n_points > 15


@pytest.mark.parametrize("damage", ["truncated", "zeroed", "flipped", "foreign", "directory", "renamed"])
def test_a_damaged_file_is_ignored_and_told(damage: str, tmp_path: Path) -> None:
    history, _ = make(tmp_path)
    for text in ("one", "two", "three"):
        add(history, text)
    path = tmp_path / "00000002.json"
    data = bytearray(path.read_bytes())
    match damage:
        case "truncated":
            path.write_bytes(data[: len(data) // 2])
        case "zeroed":
            path.write_bytes(bytes(len(data)))
        case "flipped":
            data[len(data) // 2] ^= 1
            path.write_bytes(data)
        case "foreign":
            path.write_text(json.dumps({"hello": "world"}))
        case "directory":
            path.unlink()
            path.mkdir()
        case _:
            path.rename(tmp_path / "00000009.json")
    again, faults = make(tmp_path)
    assert [entry.number for entry in again.entries] == [1, 3]
    assert len(faults) == 1
    assert "damaged" in faults[0]


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    history, _ = make(tmp_path / "policies")
    add(history, "one")
    (tmp_path / "outside").write_bytes((tmp_path / "policies" / "00000001.json").read_bytes())
    (tmp_path / "policies" / "00000001.json").unlink()
    (tmp_path / "policies" / "00000001.json").symlink_to(tmp_path / "outside")
    again, faults = make(tmp_path / "policies")
    assert again.entries == ()
    assert len(faults) == 1


def test_a_disk_that_refuses_costs_no_reload(tmp_path: Path) -> None:
    (tmp_path / "policies").write_text("a file where the directory should be")
    history, faults = make(tmp_path / "policies")
    add(history, "one")
    assert [entry.number for entry in history.entries] == [1]
    assert len(faults) == 2
    assert (tmp_path / "policies").read_text() == "a file where the directory should be"


def test_keeps_fifty_and_never_loses_the_good_one_the_running_one_or_a_quarantine(tmp_path: Path) -> None:
    history, _ = make(tmp_path)
    good = history.mark(add(history, "good"), "good", "served well")
    bad = history.mark(add(history, "bad"), "withdrawn", "hurt")
    for n in range(2 * ENTRIES_MAX):
        add(history, f"applied {n}")
        add(history, f"refused {n}", "refused", reason="syntax")
    assert len(history.entries) == len(list(tmp_path.iterdir())) == ENTRIES_MAX
    assert history.last_good() == good
    assert history.quarantine(bad.digest, "") == bad
    assert history.running is not None
    assert history.running.files[0][1] == f"applied {2 * ENTRIES_MAX - 1}"
    assert make(tmp_path)[0].entries == history.entries


def test_a_sync_that_brings_the_same_refused_text_each_minute_is_one_entry(tmp_path: Path) -> None:
    history, _ = make(tmp_path)
    add(history, "good")
    for minute in range(500):
        add(history, "bad", "refused", reason="syntax", at_s=float(minute), digest="")
    assert [(entry.outcome, entry.n) for entry in history.entries] == [("applied", 1), ("refused", 500)]
    assert make(tmp_path)[0].entries[-1].n == 500


def test_quarantine_is_by_meaning_and_by_text_until_applied_again(tmp_path: Path) -> None:
    history, _ = make(tmp_path)
    bad = history.mark(add(history, "bad"), "withdrawn", "hurt")
    assert history.quarantine(bad.digest, "another text") == bad
    assert history.quarantine("another digest", source_digest([("q", b"bad")])) == bad
    assert history.quarantine("", source_digest([("q", b"else")])) is None
    add(history, "bad", "refused", reason="quarantined")
    assert history.quarantine(bad.digest, "") == bad
    add(history, "bad")  # by force
    assert history.quarantine(bad.digest, "") is None


def test_returns_further_back_each_time(tmp_path: Path) -> None:
    history, _ = make(tmp_path)
    one, two, three = (history.mark(add(history, text), "good", "") for text in ("one", "two", "three"))
    assert history.last_good(before=three.position, but=three.digest) == two
    back = add(history, "two", by="rollback", restores=two.number)
    assert back.position == two.position
    assert history.last_good(before=back.position, but=back.digest) == one
    assert history.last_good(before=one.position, but=one.digest) is None


def test_text_that_is_no_utf8_is_kept_as_well_as_it_can_be(tmp_path: Path) -> None:
    history, _ = make(tmp_path)
    entry = history.add(
        at_s=1.0, by="reload", outcome="refused", digest="", path="p", folder="/", files=[("p", b"\xff\x00ok")],
        file_digest="", reason="not UTF-8",
    )  # fmt: skip
    assert decode_entry((tmp_path / "00000001.json").read_bytes()) == entry
    assert os.listdir(tmp_path) == ["00000001.json"]
