"""Starts with 1,000,000 objects on the disk: warm within 2 s, and without its index the box serves while it is made.

Every record is real, in full segments: the disk that million_disk.py makes is what the box itself would have written,
but for its checkpoint, which the box makes here after it has read the log. Before each start the folder is taken out of
the page cache. Run it alone: `pytest -m slow -s tests/system/test_disk_million.py` prints its figures.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import statistics
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from disk_box import VideoOrigin, body_of, disk_box
from million_disk import SIZE, forget_pages, make_disk, path_of, trust_checkpoint
from parent_proxies import free_port
from running_box import HOST, Response, RunningBox, read_response, wait_for

N_OBJECTS = 1_000_000
N_STARTS = 3
# Not scaled by anything: where a busy machine misses it, the load average that is printed says so.
FIRST_ANSWER_S = 2.0
REBUILD_S = 300.0
POLL_S = 0.005


def ask(address: tuple[str, int], target: str, host: str) -> Response | None:
    """None: nobody listens yet."""
    with contextlib.suppress(ConnectionRefusedError), socket.create_connection(address, timeout=10) as connected:
        connected.sendall(f"GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        return read_response(connected)[0]
    return None


class Start:
    """One start of the box, watched from outside: seconds from the process's start to each first."""

    def __init__(self, box: RunningBox, lan: int, admin: int, numbers: Iterator[int]) -> None:
        self.load = os.getloadavg()[0]
        self.answer_s = self.disk_hit_s = self.healthy_s = 0.0
        self.cpu_s = 0.0  # of the box until then: what a machine with nothing else to do would need at least
        self.n_before_hit = 0
        self._box = box
        self._lan, self._admin, self._numbers = ("127.0.0.1", lan), ("127.0.0.1", admin), numbers
        self._began = time.monotonic()
        box.spawn()

    @property
    def age_s(self) -> float:
        return time.monotonic() - self._began

    def view(self, number: int | None = None) -> str:
        """Asks for an object, by default one that nobody asked for; its Cache-Status, "" while nobody listens."""
        path = path_of(next(self._numbers) if number is None else number)
        response = ask(self._lan, path, HOST)
        if response is None:
            return ""
        assert (response.status, response.body) == (200, body_of(path)), response
        if not self.answer_s:
            self.answer_s, self.cpu_s = self.age_s, self._box.cpu_seconds()
        return response.fields["cache-status"]

    def until_warm(self) -> None:
        health = threading.Thread(target=self.until_healthy)
        health.start()
        while "; hit" not in (status := self.view()):
            assert self.age_s < 30, "nothing comes from the disk"
            self.n_before_hit += bool(status)
            time.sleep(POLL_S)
        self.disk_hit_s, self.cpu_s = self.age_s, self._box.cpu_seconds()
        health.join()

    def until_healthy(self) -> None:
        while self.age_s < 30:
            response = ask(self._admin, "/healthz", "{}:{}".format(*self._admin))
            if response is not None and response.status == 200:
                self.healthy_s = self.age_s
                return
            time.sleep(POLL_S)

    def __str__(self) -> str:
        hit = f"first from the disk {self.disk_hit_s:.2f} s, " if self.disk_hit_s else ""
        before = f" ({self.n_before_hit} from the origin before)" if self.n_before_hit else ""
        healthy = f"/healthz 200 {self.healthy_s:.2f} s; {self.cpu_s:.2f} s of CPU, load {self.load:.1f}{before}"
        return f"first answer {self.answer_s:.2f} s, {hit}{healthy}"


def end(box: RunningBox, number: signal.Signals) -> None:
    box.signal(number)
    box.exit_code(seconds=30)
    forget_pages(box.state / "cache")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.fault(16)
def test_a_million_objects_on_the_disk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ports = {"lan": free_port(), "admin": free_port()}
    listen = {"lan": {"address": f"127.0.0.1:{ports['lan']}"}}
    sections = {
        "size": "4GiB", "memory": "256MiB", "listen": listen, "admin": {"address": f"127.0.0.1:{ports['admin']}"},
    }  # fmt: skip
    numbers = iter(random.Random(1).sample(range(1, N_OBJECTS), N_OBJECTS // 2))
    figures, firsts = [], []
    with VideoOrigin() as origin:
        origin.server.lifetime = 30 * 86400
        folder = tmp_path / "state" / "cache"
        box = disk_box(tmp_path, origin, **sections)  # type: ignore[arg-type]
        try:
            began = time.monotonic()
            n_segments, n_bytes = make_disk(tmp_path, origin, N_OBJECTS, **sections)
            figures.append(
                f"{N_OBJECTS:,} objects of {SIZE} bytes, {n_bytes / 1e6:.0f} MB in {n_segments} segments, "
                f"written in {time.monotonic() - began:.0f} s"
            )
            forget_pages(folder)
            figures += rebuild_behind_the_service(box, origin, ports, numbers)
            end(box, signal.SIGTERM)
            figures.append(f"checkpoint: {trust_checkpoint(folder) / 1e6:.0f} MB")
            forget_pages(folder)
            for number in [signal.SIGTERM] * (N_STARTS - 1) + [signal.SIGKILL]:
                asked = origin.n_asked
                start = Start(box, ports["lan"], ports["admin"], numbers)
                start.until_warm()
                figures.append(f"start with its checkpoint: {start}")
                assert origin.n_asked == asked + start.n_before_hit
                assert box.stats()["disk_objects"] == N_OBJECTS
                firsts.append(max(start.disk_hit_s, start.healthy_s))
                end(box, number)
            assert max(firsts) < FIRST_ANSWER_S, figures
        finally:
            box.kill()
            shutil.rmtree(folder, ignore_errors=True)
            with capsys.disabled():
                print("\n" + "\n".join(figures))


def rebuild_behind_the_service(
    box: RunningBox, origin: VideoOrigin, ports: dict[str, int], numbers: Iterator[int]
) -> list[str]:
    """A start without a checkpoint: viewers are answered, and find all when it is over."""
    assert not (box.state / "cache" / "checkpoint").exists()
    start = Start(box, ports["lan"], ports["admin"], numbers)
    health = threading.Thread(target=start.until_healthy)
    health.start()
    wait_for(start.view, what="the first answer")
    health.join()
    assert max(start.answer_s, start.healthy_s) < FIRST_ANSWER_S, str(start)
    assert box.stats()["disk_objects"] < N_OBJECTS, "the index was there too soon to see anything"
    warm_number = next(numbers)
    assert "; hit" not in start.view(warm_number)
    took_s: dict[str, list[float]] = {"hit": [], "miss": []}
    while (n_known := box.stats()["disk_objects"]) < N_OBJECTS:
        assert start.age_s < REBUILD_S, n_known
        for kind, number in (("hit", warm_number), ("miss", None)):
            began = time.monotonic()
            assert ("; hit" in start.view(number)) == (kind == "hit")
            took_s[kind].append(time.monotonic() - began)
        time.sleep(0.05)
    rebuilt_s = start.age_s
    wait_for(lambda: box.status()["disk"]["state"] == "ready")
    sent, asked = origin.server.sent, origin.n_asked
    for _ in range(100):
        start.view()
    # Found, and validated, as a purge may have been told of in what was lost: 304 without a body.
    assert (origin.server.sent, origin.n_asked) == (sent, asked + 100)
    waits = ", ".join(
        f"{kind} {statistics.median(each) * 1000:.1f} ms (most {max(each) * 1000:.0f} of {len(each)})"
        for kind, each in took_s.items()
    )
    return [f"start without its checkpoint: {start}", f"index made anew after {rebuilt_s:.1f} s; meanwhile a {waits}"]
