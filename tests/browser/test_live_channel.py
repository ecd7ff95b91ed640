"""A person opens the demo's page and watches: Chromium plays the live channel through the box without a stall."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from certified import Certified
from running_box import RunningBox, policy_for
from running_demo import PROJECT, RunningDemo

HAS_BROWSER = shutil.which("chromium") is not None and shutil.which("node") is not None
pytestmark = [
    pytest.mark.browser,
    pytest.mark.timeout(300),
    pytest.mark.skipif(not HAS_BROWSER, reason="needs Debian's chromium and nodejs: make setup"),
]


def watch(url: str, name: str, seconds: int, pin: str = "") -> dict[str, Any]:
    screenshot = PROJECT / "build" / f"{name}.png"
    screenshot.parent.mkdir(exist_ok=True)
    command = ["node", str(PROJECT / "tests" / "browser" / "play.mjs"), url, str(seconds), str(screenshot), pin]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 120, cwd=PROJECT, check=False)
    assert done.returncode == 0, done.stderr
    seen: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return seen


# fMP4 for the whole minute, TS long enough for a few playlist reloads.
@pytest.mark.parametrize(("variant", "seconds"), [("cmaf", 60), ("ts", 15)])
def test_chromium_plays_the_live_channel_without_a_stall(demo: RunningDemo, variant: str, seconds: int) -> None:
    seen = watch(f"{demo.box_url}/?variant={variant}", f"browser-{variant}", seconds)

    assert seen["fatal"] is None, seen
    assert seen["complaints"] == []
    assert seen["answers"]["failed"] == []
    assert seen["stalls"] == 0, seen
    assert seen["playedSeconds"] >= seconds * 55 / 60, seen
    assert seen["segments"] >= seconds // 2
    if demo.has_box:
        assert seen["cacheStatus"].startswith("demo"), "the bytes did not come through the box"
        assert seen["answers"]["withoutCacheStatus"] == []


@pytest.mark.parametrize(("hop", "variant"), [("http/1.1", "ts"), ("h2", "cmaf")])
def test_chromium_plays_it_over_https(demo: RunningDemo, tmp_path: Path, hop: str, variant: str) -> None:
    """Another box in front of the demo's origin; its certificate is trusted by its key, as if it were the company's."""
    seconds = 6
    made = Certified(tmp_path / "state" / "credentials")
    made.put("site", "127.0.0.1")
    listen = {"lan": {"tls": "site", "http2": "tls" if hop == "h2" else "never"}}
    policy = policy_for(demo.origin_url, listen=listen, origins={"media": {"hosts": ["*"]}})
    with RunningBox(tmp_path, policy) as box:
        host, port = box.address()
        url = f"https://{host}:{port}/?variant={variant}"
        seen = watch(url, f"browser-https-{variant}", seconds, made.pin())
        stats = box.stats()

    assert seen["fatal"] is None, seen
    assert seen["complaints"] == seen["answers"]["failed"] == seen["answers"]["withoutCacheStatus"] == []
    assert seen["playedSeconds"] >= seconds * 0.8, seen
    assert seen["time"] >= seen["firstTime"] + seconds * 0.8, seen
    assert seen["segments"] >= 3
    assert seen["cacheStatus"].startswith("test"), "the bytes did not come through the box"
    assert set(seen["hops"]) == {hop}, seen["hops"]
    assert stats["bytes_to_viewers"] > 1_000_000
    assert stats["tls_handshakes"] >= 1
    assert (stats["h2_connections"] > 0) == (hop == "h2")
