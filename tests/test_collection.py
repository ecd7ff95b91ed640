"""The tests' names. What a test tests may not live here."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent


@pytest.mark.timeout(300)
def test_tests_have_the_same_names_in_each_process(request: pytest.FixtureRequest) -> None:
    """A parameter that gzip had put the time into was named otherwise by the other process of `make test` when a second
    ended between the two, and no test ran. Here the other process is later, and hashes otherwise."""
    ours = {item.nodeid for item in request.session.items}
    environment = {**os.environ, "PYTHONHASHSEED": "4242", "TZ": "Asia/Tokyo"}
    pytest_options = ["-p", "no:cacheprovider", "-p", "no:xdist", "--collect-only", "-q"]
    command = [sys.executable, "-m", "pytest", *pytest_options, *sorted({name.partition("::")[0] for name in ours})]
    collected = subprocess.run(command, capture_output=True, text=True, check=False, cwd=PROJECT, env=environment)
    theirs = {line for line in collected.stdout.splitlines() if "::" in line}
    assert theirs, collected.stdout[-2000:] + collected.stderr[-2000:]
    assert sorted(ours - theirs) == []
