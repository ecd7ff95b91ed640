"""A person opens the demo's page and watches: Chromium plays the live channel through the box without a stall.

`DEMO_URL=http://127.0.0.1:8080 pytest tests/browser` plays from something that runs already instead.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from typing import Any

import pytest
from running_demo import PROJECT

WATCH_S = int(os.environ.get("DEMO_WATCH_S", "60"))
pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def page_url(request: pytest.FixtureRequest) -> str:
    if shutil.which("chromium") is None or shutil.which("node") is None:
        pytest.skip("needs Debian's chromium and nodejs: make setup")
    return os.environ.get("DEMO_URL") or str(request.getfixturevalue("demo").box_url)


def watch(url: str, name: str, seconds: int) -> dict[str, Any]:
    screenshot = PROJECT / "build" / f"{name}.png"
    screenshot.parent.mkdir(exist_ok=True)
    command = ["node", str(PROJECT / "tests" / "browser" / "play.mjs"), url, str(seconds), str(screenshot)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 120, cwd=PROJECT, check=False)
    assert done.returncode == 0, done.stderr
    seen: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return seen


# fMP4 for the whole minute, TS long enough for a few playlist reloads.
@pytest.mark.parametrize(("variant", "seconds"), [("cmaf", WATCH_S), ("ts", min(15, WATCH_S))])
def test_chromium_plays_the_live_channel_without_a_stall(page_url: str, variant: str, seconds: int) -> None:
    seen = watch(f"{page_url}/?variant={variant}", f"browser-{variant}", seconds)

    assert seen["fatal"] is None, seen
    assert seen["complaints"] == []
    assert seen["answers"]["failed"] == []
    assert seen["stalls"] == 0, seen
    assert seen["playedSeconds"] >= seconds * 55 / 60, seen
    assert seen["segments"] >= seconds // 2
    if "DEMO_URL" not in os.environ:
        assert seen["cacheStatus"].startswith("demo"), "the bytes did not come through the box"
        assert seen["answers"]["withCacheStatus"] == seen["answers"]["total"]
