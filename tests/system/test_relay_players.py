"""Players of others read a relay over HTTP: GStreamer and VLC. (ffmpeg and curl: test_relay_http.py; Chromium:
tests/browser/test_relay_page.py.)"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from relay_channel import running_channel

pytestmark = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs ffmpeg")
NOBODY = 65_534


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_channel(tmp_path_factory.mktemp("channel")) as found:
        yield found


def needs(*programs: str) -> pytest.MarkDecorator:
    missing = [each for each in programs if shutil.which(each) is None]
    return pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)}")


@needs("gst-launch-1.0")
def test_gstreamer_takes_pictures_and_sound_apart(url: str) -> None:
    """souphttpsrc to tsdemux: 300 KB of whole pictures and sound, and no warning on the way."""
    pipeline = (
        f"souphttpsrc location={url} blocksize=3000 num-buffers=100 ! tsdemux name=d d. ! queue ! h264parse ! "
        "video/x-h264,alignment=au ! fakesink name=pictures silent=false sync=false async=false "
        "d. ! queue ! aacparse ! fakesink sync=false async=false"
    )
    done = subprocess.run(
        ["gst-launch-1.0", "-v", *pipeline.split()], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "width=(int)320, height=(int)240" in done.stdout
    assert "audio/mpeg" in done.stdout
    assert done.stdout.count("(pictures:sink)") > 20
    assert "WARN" not in done.stderr, done.stderr


@needs("cvlc", "setpriv")
@pytest.mark.slow
def test_vlc_shows_pictures(url: str, tmp_path: Path) -> None:
    """Headless, and not as root, which it refuses. Slow: it plays for 6 s."""
    home = tmp_path / "home"
    home.mkdir()
    home.chmod(0o777)
    for folder in home.parents:
        if folder.stat().st_mode & 0o001 == 0 and folder.is_relative_to("/tmp"):
            folder.chmod(folder.stat().st_mode | 0o011)
    command = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "cvlc", "-vv", "--no-color"]
    command += ["--intf=dummy", "--vout=dummy", "--aout=dummy", "--run-time=6", "--play-and-exit", url, "vlc://quit"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=90, check=False, cwd="/",
        env={"HOME": str(home), "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    said = done.stdout + done.stderr
    assert done.returncode == 0, said[-3000:]
    assert "Received first picture" in said, said[-3000:]
    assert not re.search(r"discontinuity received|ts_demux_error|libdvbpsi error", said), said[-3000:]
