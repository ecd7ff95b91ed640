"""The wall clock is stepped under a running box: timers go on, nothing is fresh for longer than its lifetime."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from disk_box import VideoOrigin, body_of, disk_box
from running_box import RunningBox, wait_for

LIBRARIES = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not LIBRARIES, reason="needs faketime"), pytest.mark.timeout(120)]
LIFETIME_S = 2
YEAR_S = 365 * 86400


class Clock:
    """What the box takes for the time of day, by libfaketime; CLOCK_MONOTONIC stays as it is."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.path = folder / "clock"
        self.set(0)
        monkeypatch.setenv("LD_PRELOAD", str(LIBRARIES[0]))
        monkeypatch.setenv("FAKETIME_TIMESTAMP_FILE", str(self.path))
        monkeypatch.setenv("FAKETIME_NO_CACHE", "1")
        monkeypatch.setenv("FAKETIME_DONT_FAKE_MONOTONIC", "1")

    def set(self, offset_s: int) -> None:
        self.path.write_text(f"{offset_s:+d}s\n")


@pytest.fixture
def origin() -> Iterator[VideoOrigin]:
    with VideoOrigin() as running:
        running.server.lifetime = LIFETIME_S
        yield running


def holds_for_its_lifetime(box: RunningBox, origin: VideoOrigin, path: str, step: object) -> None:
    """Fetched, then the clock is stepped: it is asked for again when two seconds are over, and not much later."""
    assert box.get(path).body == body_of(path)
    began, asked = time.monotonic(), origin.n_asked
    assert callable(step)
    step()

    def is_asked_again() -> bool:
        response = box.get(path)
        assert (response.status, response.body) == (200, body_of(path))
        assert 0 <= int(response.fields.get("age", "0")) <= LIFETIME_S + 1
        return origin.n_asked > asked

    wait_for(is_asked_again, seconds=LIFETIME_S + 3.0)
    assert time.monotonic() - began < LIFETIME_S + 1.0


@pytest.mark.fault(17)
def test_a_clock_that_is_stepped(tmp_path: Path, origin: VideoOrigin, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(tmp_path, monkeypatch)
    with disk_box(tmp_path, origin) as box:
        taken = subprocess.run(["date", "+%s"], capture_output=True, text=True, check=True).stdout
        assert abs(int(taken) - time.time()) < 5  # the library is there, and in step
        for n, offset_s in enumerate((3600, -3600, YEAR_S, -YEAR_S, 0)):
            holds_for_its_lifetime(box, origin, f"/v/1000/{n}", lambda offset_s=offset_s: clock.set(offset_s))
        assert box.status()["health"]["ok"]
        assert "Traceback" not in box.output


@pytest.mark.fault(17)
@pytest.mark.parametrize("offset_s", [YEAR_S, -YEAR_S, -3600])
def test_a_clock_that_is_stepped_between_two_starts(
    tmp_path: Path, origin: VideoOrigin, monkeypatch: pytest.MonkeyPatch, offset_s: int
) -> None:
    """What is on the disk was written by another clock: it is validated rather than believed fresh for a year."""
    origin.server.lifetime = 60
    clock = Clock(tmp_path, monkeypatch)
    with disk_box(tmp_path, origin) as box:
        box.get("/v/1000/a")
        wait_for(lambda: box.stats()["disk_objects"] == 1)
        box.kill()
        clock.set(offset_s)
        asked = origin.n_asked
        with RunningBox(box.work, box.policy) as again:
            response = again.get("/v/1000/a")
            assert response.body == body_of("/v/1000/a")
            assert origin.n_asked == asked + 1 or int(response.fields["age"]) <= 60
