"""A person watches a relay in a browser: Chromium plays its endless MPEG-TS by mpegts.js and MediaSource."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from relay_channel import running_channel
from running_box import PROJECT

_MISSING = [name for name in ("chromium", "node", "ffmpeg") if shutil.which(name) is None]
_MISSING += [] if (PROJECT / "node_modules" / "mpegts.js").exists() else ["mpegts.js: make setup"]
pytestmark = [pytest.mark.browser, pytest.mark.skipif(bool(_MISSING), reason=f"needs {', '.join(_MISSING)}")]


@pytest.mark.slow
def test_chromium_plays_a_relay(tmp_path: Path) -> None:
    """Slow: 5 s of it, and a browser's start."""
    with running_channel(tmp_path) as url:
        command = ["node", str(PROJECT / "tests" / "browser" / "relay.mjs"), url, "5"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=PROJECT, check=False)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])
    assert (seen["errors"], seen["complaints"]) == ([], []), seen
    assert seen["width"] == 320
    assert seen["frames"] > 50, seen
    assert seen["played"] > 3, seen
