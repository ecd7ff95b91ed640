"""Quotas and pins: what a pinned class has on the disk is there in the morning, whatever else passed the disk."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from disk_box import MIB, VideoOrigin, body_of, disk_box, fill
from running_box import HOST, RunningBox, wait_for

CLASSES = {"training": {"store": "disk", "pin": True, "quota": "40%"}, "rest": {"store": "disk"}}


@pytest.fixture
def origin() -> Iterator[VideoOrigin]:
    with VideoOrigin() as running:
        yield running


def origins(url: str) -> dict[str, Any]:
    training = {"from": [url], "hosts": [HOST], "paths": ["/v/2097152/training"], "class": "training"}
    small = {"from": [url], "hosts": [HOST], "paths": ["/v/3000/training"], "class": "training"}
    return {"media": {"class": "rest"}, "pinned": training, "small": small}


def pinned_box(work: Path, origin: VideoOrigin, **sections: Any) -> RunningBox:
    return disk_box(
        work, origin, size="64MiB", memory="24MiB", classes=CLASSES, origins=origins(origin.url), **sections
    )  # fmt: skip


def pass_through(box: RunningBox, name: str, n: int) -> None:
    for each in range(n):
        path = f"/v/{2 * MIB}/{name}/{each}"
        assert box.get(path).body == body_of(path)
        wait_for(lambda: box.stats()["disk_queued_bytes"] == 0)


def test_pinned_bodies_are_there_in_the_morning(tmp_path: Path, origin: VideoOrigin) -> None:
    paths = [f"/v/{2 * MIB}/training/{name}" for name in range(6)]
    paths += [f"/v/3000/training/{name}" for name in range(20)]
    with pinned_box(tmp_path, origin) as box:
        # Among what isn't: no segment holds nothing else.
        for at, path in enumerate(paths):
            fill(box, [path])
            if at < 6:
                pass_through(box, f"among{at}", 2)
        pass_through(box, "night", 40)  # more than the disk
        wait_for(lambda: box.stats()["disk_evictions"] >= 10)
        stats = box.stats()
        assert 12 * MIB <= stats["disk_pinned_bytes"] <= stats["disk_pinned_limit_bytes"] == 64 * MIB * 40 // 100
        assert stats["disk_bytes"] <= 64 * MIB
        box.signal(signal.SIGKILL)
        box.exit_code(seconds=20)
        with RunningBox(box.work, box.policy) as again:
            asked = origin.n_asked
            for path in paths:
                assert again.get(path).body == body_of(path), path
            assert origin.n_asked == asked
            rows = again.control("cache ls", limit=1000)["objects"]
            assert {row["pinned"] for row in rows if "/training/" in row["url"]} == {True}
            # A purge takes what is pinned, too.
            assert again.control("cache purge", url=f"http://{HOST}{paths[0]}")["purged"] == 1
            assert again.get(paths[0]).body == body_of(paths[0])
            assert origin.n_asked > asked


def test_full_pins_are_told_and_leave_room_for_others(tmp_path: Path, origin: VideoOrigin) -> None:
    with pinned_box(tmp_path, origin) as box:
        for name in range(25):  # 50 MiB of a quota of 25.6
            path = f"/v/{2 * MIB}/training/{name}"
            assert box.get(path).body == body_of(path)
            wait_for(lambda: box.stats()["disk_queued_bytes"] == 0)
        stats = box.stats()
        assert stats["disk_pinned_bytes"] <= stats["disk_pinned_limit_bytes"]
        assert stats["disk_pin_refusals"] > 0
        kinds = [event["kind"] for event in box.control("events")["events"]]
        assert (kinds.count("pins-nearly-full"), kinds.count("pins-full")) == (1, 1)
        before = box.stats()["disk_write_bytes"]
        pass_through(box, "night", 30)
        assert box.stats()["disk_write_bytes"] - before >= 60 * MIB
        asked = origin.n_asked
        for name in range(10):
            assert box.get(f"/v/{2 * MIB}/training/{name}").body == body_of(f"/v/{2 * MIB}/training/{name}")
        assert origin.n_asked == asked


def test_class_in_memory_keeps_to_its_quota(tmp_path: Path, origin: VideoOrigin) -> None:
    classes = {"bulk": {"store": "memory", "quota": "25%"}, "rest": {"store": "memory"}}
    with disk_box(tmp_path, origin, memory="64MiB", classes=classes, origins={
        "media": {"class": "rest"},
        "bulk": {"from": [origin.url], "hosts": [HOST], "paths": ["/v/1048576/bulk"], "class": "bulk"},
    }) as box:  # fmt: skip
        for name in range(8):
            path = f"/v/{MIB}/rest/{name}"
            assert box.get(path).body == body_of(path)
        for name in range(40):
            path = f"/v/{MIB}/bulk/{name}"
            assert box.get(path).body == body_of(path)

        def bulk_bytes() -> int:
            rows = box.control("cache ls", limit=1000)["objects"]
            return sum(row["size_bytes"] for row in rows if row["class"] == "bulk")

        wait_for(lambda: 8 * MIB < bulk_bytes() <= 16 * MIB)
        asked = origin.n_asked
        for name in range(8):
            assert box.get(f"/v/{MIB}/rest/{name}").body == body_of(f"/v/{MIB}/rest/{name}")
        assert origin.n_asked == asked
