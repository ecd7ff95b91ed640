"""Little memory, a slow disk, many viewers, odd ones: bodies are whole, whatever waits to be written or read."""

from __future__ import annotations

import concurrent.futures
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from disk_box import MIB, VideoOrigin, body_of, disk_box, fill
from running_box import HOST, Response, RunningBox, read_all, wait_for
from test_disk_faults import injected


@pytest.fixture
def origin() -> Iterator[VideoOrigin]:
    with VideoOrigin() as running:
        yield running


def wrong(box: RunningBox, path: str) -> str:
    response = box.get(path)
    if response.status == 200 and response.body == body_of(path):
        return ""
    return f"{path}: {response.status}, {len(response.body)} bytes"


def faults(box: RunningBox, paths: list[str], n_viewers: int) -> list[str]:
    with concurrent.futures.ThreadPoolExecutor(n_viewers) as viewers:
        return [fault for fault in viewers.map(lambda path: wrong(box, path), paths) if fault]


@pytest.mark.timeout(120)
def test_slow_disk_keeps_what_came_faster_than_it_writes(tmp_path: Path, origin: VideoOrigin) -> None:
    """A body was kept in part only: what did not fit into the queue of writes was dropped, with memory to spare."""
    paths = [f"/v/{3 * MIB}/{name}" for name in range(4)]
    with disk_box(tmp_path, origin, size="512MiB", memory="64MiB") as box:
        with injected(box, "pwrite64:delay_enter=50000"):
            assert faults(box, paths, 4) == []
            wait_for(lambda: box.stats()["disk_write_bytes"] >= 12 * MIB, seconds=30)
        assert box.stats()["disk_write_drops"] == 0
        box.signal(signal.SIGTERM)
        box.exit_code(seconds=20)
        with RunningBox(box.work, box.policy) as again:
            asked = origin.n_asked
            assert faults(again, paths, 4) == []
            assert origin.n_asked == asked


@pytest.mark.timeout(120)
def test_what_waits_to_be_written_takes_no_memory_from_viewers(tmp_path: Path, origin: VideoOrigin) -> None:
    """Slices on their way to a slow disk were counted where connections are, with all memory full of objects."""
    with disk_box(tmp_path, origin, size="512MiB", memory="32MiB") as box, injected(box, "pwrite64:delay_enter=50000"):
        assert faults(box, [f"/v/{2 * MIB}/{name}" for name in range(60)], 8) == []
        stats = box.stats()
        assert stats["closed_memory"] == stats["broken_transfers"] == stats["refused"] == 0
        assert stats["memory_bytes"] <= stats["memory_limit_bytes"]


def test_viewer_who_ends_his_side_gets_the_whole_body_from_the_disk(tmp_path: Path, origin: VideoOrigin) -> None:
    """Two flags of an object had the same bit: what came from the disk was taken for an endless stream. Who had shut
    his side got an empty body, and a fill of what the disk had lost grew by steps that eviction might take away."""
    path = f"/v/{20 * MIB}/half-closed"
    with disk_box(tmp_path, origin) as box:
        fill(box, [path])
        box.signal(signal.SIGTERM)
        box.exit_code(seconds=20)
        with RunningBox(box.work, box.policy) as again, again.connect() as viewer:
            viewer.sendall(f"GET {path} HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n".encode())
            viewer.shutdown(socket.SHUT_WR)
            response = Response(read_all(viewer))
            assert (response.status, len(response.body), response.body == body_of(path)) == (200, 20 * MIB, True)


def test_body_that_is_purged_while_it_is_read_goes_on_from_the_origin(tmp_path: Path, origin: VideoOrigin) -> None:
    """Its slices were still found on the disk, and could not be read, being nobody's: their reader asked for ever."""
    path = f"/v/{16 * MIB}/purged"
    with disk_box(tmp_path, origin, memory="48MiB") as box:
        fill(box, [path])
        box.signal(signal.SIGTERM)
        box.exit_code(seconds=20)
        with RunningBox(box.work, box.policy) as again, again.connect(receive_buffer=65536) as viewer:
            viewer.sendall(f"GET {path} HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n".encode())
            begun = viewer.recv(1000)
            assert again.control("cache purge", url=f"http://{HOST}{path}")["purged"] >= 1
            response = Response(begun + read_all(viewer))
            assert (response.status, len(response.body), response.body == body_of(path)) == (200, 16 * MIB, True)
            assert origin.server.sent > 16 * MIB
