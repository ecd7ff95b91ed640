"""What the documents tell a newcomer to type works, and what they point at is there."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from running_demo import PROJECT, free_port_base

DOCUMENTS = sorted(
    [
        PROJECT / "README.md",
        PROJECT / "CONTRIBUTING.md",
        *(PROJECT / "docs").rglob("*.md"),
        *PROJECT.glob("*/README.md"),
    ]
)
TEXTS = [pytest.param(path.read_text(), id=str(path.relative_to(PROJECT))) for path in DOCUMENTS]


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=60, check=False)


def commands_of(text: str) -> list[str]:
    """Lines of the fenced blocks that begin with a command of ours."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.startswith((".venv/bin/", "make "))]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(PROJECT)))
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", path.read_text()):
        if not re.match(r"[a-z]+:", target):
            assert (path.parent / target).exists(), target


@pytest.mark.parametrize("text", TEXTS)
def test_named_files_exist(text: str) -> None:
    folders = r"(?:accelerator|ext|config|systemd|benchmarks|tests|docs|tools)"
    for name in re.findall(rf"`({folders}/[\w./-]+)`", text):
        assert (PROJECT / name).exists(), name


@pytest.mark.parametrize("text", TEXTS)
def test_make_targets_exist(text: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (PROJECT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`make ([a-z-]+)", text)) <= targets


@pytest.mark.parametrize("text", TEXTS)
def test_accelctl_commands_exist(text: str) -> None:
    for words in set(re.findall(r"`accelctl ((?:[a-z][a-z-]* ?)+)", text)):
        known = run([".venv/bin/accelctl", *words.split()[:2], "--help"])
        assert known.returncode == 0, f"accelctl {words}: {known.stderr}"


def test_the_readmes_policy_is_accepted() -> None:
    checks = [line for line in commands_of((PROJECT / "README.md").read_text()) if " policy check " in line]
    assert checks
    for line in checks:
        checked = run(line.split())
        assert checked.returncode == 0, checked.stderr


@pytest.mark.parametrize("module", ["accelerator.demo", "accelerator.demo.origin"])
def test_what_make_run_starts_explains_itself(module: str) -> None:
    assert run([".venv/bin/python", "-m", module, "--help"]).returncode == 0


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_make_run_plays_and_ends(tmp_path: Path) -> None:
    arguments = f"--port-base {free_port_base()} --work-dir {tmp_path} --duration 2"
    made = subprocess.run(
        ["make", "run", f"ARGS={arguments}"], cwd=PROJECT, capture_output=True, text=True, timeout=500, check=False
    )
    assert made.returncode == 0, made.stderr
    assert "through the box" in made.stdout
