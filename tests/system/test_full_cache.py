"""A cache that is full, and asked for many times what it holds, keeps the hit ratio that its policy promises, through a
scan, with readers in the middle of what is evicted."""

from __future__ import annotations

import random
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from disk_box import MIB, VideoOrigin, body_of, disk_box
from running_box import HOST, RunningBox, read_response

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from eviction_policies import Sieve

SIZE = 200_000


@pytest.fixture
def origin() -> Iterator[VideoOrigin]:
    with VideoOrigin() as running:
        yield running


def zipf(rng: random.Random, n_objects: int, n: int, alpha: float = 0.9) -> list[int]:
    weights = [1 / rank**alpha for rank in range(1, n_objects + 1)]
    return rng.choices(range(n_objects), weights, k=n)


def ask(box: RunningBox, names: list[int], kind: str) -> list[bool]:
    """Whether each was answered without the origin. Every length is checked, every 16th body byte for byte."""
    hits = []
    with box.connect() as connected:
        for at, name in enumerate(names):
            path = f"/v/{SIZE}/{kind}{name}"
            connected.sendall(f"GET {path} HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
            response, rest = read_response(connected)
            assert (response.status, len(response.body), rest) == (200, SIZE, b""), response.raw[:300]
            if at % 16 == 0:
                assert response.body == body_of(path)
            hits.append("; hit" in response.fields["cache-status"])
    return hits


def measured(box: RunningBox, n_objects: int, n: int, capacity: int) -> dict[str, Any]:
    """Hit ratios before and after a scan of twice the cache, of the box and of the plain algorithm in `capacity`."""
    rng = random.Random(3)
    model = Sieve(capacity)

    def both(names: list[int], kind: str) -> tuple[float, float]:
        modelled = [model.get(name + (1 << 32 if kind == "scan" else 0), SIZE) for name in names]
        found = ask(box, names, kind)
        half = len(names) // 2
        return sum(found[half:]) / (len(names) - half), sum(modelled[half:]) / (len(names) - half)

    before = both(zipf(rng, n_objects, n), "vod")
    scanned = both(list(range(2 * capacity // SIZE)), "scan")
    after = both(zipf(rng, n_objects, n // 4), "vod")
    return {"before": before, "scan": scanned, "after": after}


def slow_reader(box: RunningBox, path: str, got: list[bytes], is_over: threading.Event) -> None:
    """Reads a little now and then, until the end."""
    with box.connect(receive_buffer=65536) as connected:
        connected.sendall(f"GET {path} HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n".encode())
        connected.settimeout(60)
        while piece := connected.recv(1 << 16):
            got.append(piece)
            if not is_over.is_set():
                is_over.wait(0.05)


def check(box: RunningBox, n_objects: int, n: int, capacity: int) -> dict[str, Any]:
    long_path = f"/v/{24 * MIB}/long"
    got: list[bytes] = []
    is_over = threading.Event()
    reader = threading.Thread(target=slow_reader, args=(box, long_path, got, is_over))
    reader.start()
    try:
        found = measured(box, n_objects, n, capacity)
    finally:
        is_over.set()
        reader.join(60)
    assert b"".join(got).partition(b"\r\n\r\n")[2] == body_of(long_path)
    stats = box.stats()
    assert stats["memory_bytes"] <= stats["memory_limit_bytes"]
    assert stats["broken_transfers"] == stats["closed_memory"] == stats["refused"] == 0
    assert stats["evictions"] > 0
    return found


def test_full_memory_keeps_its_hit_ratio(tmp_path: Path, origin: VideoOrigin) -> None:
    """Memory of 24 MiB, 300 bodies of 0.2 MB and a long one: what the long reader and connections take is a quarter."""
    with disk_box(tmp_path, origin, memory="24MiB", classes={"m": {"store": "memory"}}, origins={
        "media": {"class": "m"},
    }) as box:  # fmt: skip
        found = check(box, 300, 1600, 18 * MIB)
    assert found["scan"][0] == 0.0
    for when in ("before", "after"):
        assert found[when][0] > found[when][1] - 0.1, found
    assert found["after"][0] > found["before"][0] - 0.1, found


@pytest.mark.slow
@pytest.mark.timeout(280)
def test_full_memory_and_disk_keep_their_hit_ratio(tmp_path: Path, origin: VideoOrigin) -> None:
    """Long, as the working set is ten times the disk: 64 MiB of memory, 128 MiB of disk, 1.3 GB of bodies."""
    with disk_box(tmp_path, origin, memory="64MiB", size="128MiB") as box:
        found = check(box, 6500, 12000, 96 * MIB)
        assert box.stats()["disk_bytes"] <= 128 * MIB
        assert box.stats()["disk_evictions"] > 0
    for when in ("before", "after"):
        assert found[when][0] > found[when][1] - 0.1, found
    assert found["after"][0] > found["before"][0] - 0.1, found
