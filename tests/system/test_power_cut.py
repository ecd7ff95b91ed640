"""Power cuts: what nobody synced is gone, or half there; objects are whole or absent, purges hold."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from chaos_fs import ChaosFs
from disk_box import MIB, VideoOrigin, body_of, disk_box, fill
from running_box import HOST, RunningBox, wait_for

START_S = 10.0
SIZES = (1, 900, 70_000, MIB, MIB + 1, 3 * MIB + 5)
pytestmark = [
    pytest.mark.skipif(ChaosFs.why_not() is not None, reason=str(ChaosFs.why_not())), pytest.mark.timeout(300),
]  # fmt: skip


@pytest.fixture
def origin() -> Iterator[VideoOrigin]:
    with VideoOrigin() as running:
        yield running


def cut(box: RunningBox, disk: ChaosFs, seed: int, keep: float) -> None:
    box.signal(signal.SIGKILL)
    box.process.wait()
    disk.cut_power(seed, keep)


@pytest.mark.fault(8)
def test_what_is_older_than_a_sync_survives_a_power_cut(tmp_path: Path, origin: VideoOrigin) -> None:
    paths = [f"/v/{size}/{n}" for n, size in enumerate(SIZES)]
    with ChaosFs(tmp_path / "state", is_forgetful=True) as disk, disk_box(tmp_path, origin) as box:
        fill(box, paths)
        synced = disk.counts().get("fsync", 0)
        wait_for(lambda: disk.counts()["fsync"] > synced, what="the log is synced")
        assert box.control("cache purge", url=f"http://{HOST}{paths[2]}")["purged"] == 1
        asked = origin.n_asked
        cut(box, disk, seed=1, keep=0.0)
        with RunningBox(box.work, box.policy) as again:
            assert again.stats()["disk_objects"] == len(paths) - 1
            for path in paths:
                assert again.get(path).body == body_of(path)
            assert origin.n_asked == asked + 1
            assert again.stats()["disk_corrupt"] == 0


def one_cut(work: Path, origin: VideoOrigin, seed: int) -> None:
    """Objects, purges and policies come and go; the power is cut at some moment of it."""
    dice = random.Random(seed)
    paths = [f"/v/{dice.choice(SIZES)}/{seed}-{n}" for n in range(dice.randrange(3, 14))]
    purged = set()
    with ChaosFs(work / "state", is_forgetful=True) as disk, disk_box(work, origin) as box:
        n_policies = 1
        for path in paths:
            assert box.get(path).body == body_of(path)
            throw = dice.random()
            if throw < 0.2:
                victim = dice.choice(paths)
                box.control("cache purge", url=f"http://{HOST}{victim}")
                purged.add(victim)
            elif throw < 0.3:
                box.reload({"limits": {"idle_timeout": f"{70 + n_policies}s"}})
                n_policies += 1
            purged.discard(path)
        asked, since = set(purged), origin.n_asked
        cut(box, disk, seed, keep=dice.choice((0.0, 0.2, 0.9)))
        began = time.monotonic()
        with RunningBox(work, box.policy) as again:
            assert time.monotonic() - began < START_S
            assert len(again.control("policy history")["entries"]) >= 1
            for path in paths:
                response = again.get(path)
                assert (response.status, response.body == body_of(path)) == (200, True), (seed, path)
            fetched = {path for path, _ in origin.server.asked[since:]}
            assert asked <= fetched, f"purged, acknowledged, and back: {asked - fetched} (seed {seed})"
            # It goes on: what is stored now is there after an ordinary end.
            fill(again, [f"/v/5000/{seed}-after"])
            again.signal(signal.SIGTERM)
            assert again.exit_code(seconds=20) == 0


@pytest.mark.fault(8)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_power_cut_at_some_moment(tmp_path: Path, origin: VideoOrigin, seed: int) -> None:
    one_cut(tmp_path, origin, seed)


@pytest.mark.slow
@pytest.mark.fault(8)
@pytest.mark.timeout(1200)
def test_a_hundred_power_cuts(tmp_path: Path, origin: VideoOrigin) -> None:
    for seed in range(100, 200):
        one_cut(tmp_path / str(seed), origin, seed)
