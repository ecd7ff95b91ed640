"""`top` and `cache ls` with many origins and hostile names: in tmux at 80 x 24, piped, and as JSON."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from memory_box import RunningControl

HOSTILE = "evil\x1b]0;owned\x07\x1b[2J\u202etxt.exe\u2066\x9b31m\u200b"
REPOSITORY = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def control(tmp_path: Path) -> Iterator[RunningControl]:
    with RunningControl(tmp_path / "control.sock") as running:
        running.box.origin_names = [f"origin-with-a-long-name-{number:03}" for number in range(300)] + [HOSTILE]
        yield running


def accelctl(control: RunningControl, *arguments: str) -> str:
    command = [sys.executable, "-m", "accelerator.cli", "--socket", str(control.path), *arguments]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True, timeout=60).stdout


def is_harmless(text: str) -> bool:
    return all(char.isprintable() or char == "\n" for char in text) and "\u202e" not in text


@pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed")
def test_top_fits_a_small_terminal(control: RunningControl, tmp_path: Path) -> None:
    tmux = ["tmux", "-S", str(tmp_path / "tmux"), "-f", "/dev/null"]
    command = f"{sys.executable} -m accelerator.cli --socket {control.path} top --interval 0.2 --sort name"
    environ = {**os.environ, "TERM": "xterm-256color", "LC_ALL": "C.UTF-8"}
    new = [*tmux, "new-session", "-d", "-x", "80", "-y", "24", "-c", str(REPOSITORY), command]
    subprocess.run(new, env=environ, check=True)
    try:
        ends = time.monotonic() + 30
        shown = ""
        while "more origins" not in shown:
            assert time.monotonic() < ends, shown
            done = subprocess.run([*tmux, "capture-pane", "-p"], capture_output=True, text=True, check=True)
            shown = done.stdout
            time.sleep(0.05)
    finally:
        subprocess.run([*tmux, "kill-server"], check=False)
    lines = shown.rstrip("\n").split("\n")
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80
    assert is_harmless(shown)
    assert "requests/s" in lines[0]
    assert "memory" in shown
    assert sum("origin-with" in line for line in lines) == 8  # the hostile name comes before them
    assert "to viewers" in shown
    assert r"evil\x1b" in shown


def test_top_piped_is_whole_and_harmless(control: RunningControl) -> None:
    shown = accelctl(control, "top", "--interval", "0.1", "--limit", "301", "--sort", "name")
    assert is_harmless(shown)
    assert shown.count("origin-with-a-long-name-") == 300
    assert r"evil\x1b]0;owned\x07" in shown
    assert r"\u202e" in shown
    assert "upstreams" in shown
    assert "more origins" not in shown


def test_top_as_json_is_bounded_and_chosen(control: RunningControl) -> None:
    sample = json.loads(accelctl(control, "--json", "top", "--interval", "0.1", "--limit", "7", "--sort", "name"))
    assert (sample["n_origins"], len(sample["origins"])) == (301, 7)
    found = json.loads(accelctl(control, "--json", "top", "--interval", "0.1", "--contains", "NAME-29"))
    assert found["n_origins"] == 10
    assert all("name-29" in each["name"] for each in found["origins"])


def test_cache_ls_of_hostile_names_is_harmless(control: RunningControl) -> None:
    for each in control.box.objects[:3]:
        each["url"] = f"http://a.example/{HOSTILE}?…0123456789ab"
        each["origin"] = HOSTILE
    shown = accelctl(control, "cache", "ls", "--limit", "1000")
    assert is_harmless(shown)
    assert shown.count(r"evil\x1b]0;owned\x07") == 6
