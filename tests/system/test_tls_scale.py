"""Ten thousand viewers over TLS at once, asking now and then, as a webcast has them: what one more costs, and that
others are served meanwhile. The crowd is h2load, in a process of its own."""

from __future__ import annotations

import contextlib
import resource
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from certified import Certified
from recording_origin import GOOD_BODY, RecordingOrigin
from running_box import HOST, RunningBox, policy_for, read_response, wait_for
from test_overload import enough_descriptors, resident_bytes

N = 10_000
GET = f"GET /good/film HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode()
pytestmark = pytest.mark.skipif(shutil.which("h2load") is None, reason="needs nghttp2-client: make setup")


@contextlib.contextmanager
def crowd(url: str, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """Each asks once in ten seconds. They all come at once, so the last handshakes take their time."""
    command = ["h2load", f"-c{N}", "-D100", "--rps=0.1", "-w20", "-W20", *options, url]
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (N + 200, N + 200)),
    ) as process:  # fmt: skip
        try:
            yield process
        finally:
            process.kill()


def milliseconds_of(box: RunningBox, made: Certified, n: int) -> list[float]:
    """Sorted times of `n` hits over TLS, one after the other."""
    times = []
    with made.context().wrap_socket(box.connect(), server_hostname=HOST) as viewer:
        for _ in range(n):
            began = time.monotonic()
            viewer.sendall(GET)
            assert read_response(viewer)[0].body == GOOD_BODY
            times.append((time.monotonic() - began) * 1000)
            time.sleep(0.002)
    return sorted(times)


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("options", [("--h1",), ()], ids=["http/1.1", "h2"])
def test_ten_thousand_viewers_over_tls(tmp_path: Path, options: tuple[str, ...]) -> None:
    enough_descriptors(N + 1000)
    made = Certified(tmp_path / "state" / "credentials")
    made.put("site", HOST)
    with RecordingOrigin() as origin:
        policy = policy_for(
            origin.url, listen={"lan": {"tls": "site"}}, origins={"media": {"hosts": ["*"]}},
            cache={"memory": "1GiB"}, limits={"idle_timeout": "5m", "head_timeout": "60s"},
        )  # fmt: skip
        with RunningBox(tmp_path, policy, nofile=N + 1000) as box:
            host, port = box.address()
            alone = milliseconds_of(box, made, 1000)
            before = resident_bytes(box)
            began = time.monotonic()
            with crowd(f"https://{host}:{port}/good/film", *options):
                wait_for(lambda: box.stats()["tls_handshakes"] > N, seconds=150, what="all connected")
                took = time.monotonic() - began
                among = milliseconds_of(box, made, 1000)
                grown = resident_bytes(box) - before
                stats = box.stats()
                assert box.control("top")["counters"]["connections"] >= N, "they stay"
            wait_for(lambda: box.control("top")["counters"]["connections"] == 0, seconds=60, what="all gone")
            assert milliseconds_of(box, made, 10)
        p99 = [times[int(len(times) * 0.99)] for times in (alone, among)]
        print(
            f"{N} connected in {took:.1f} s, {grown / N / 1024:.1f} KiB resident each; p99 of hits: "
            f"alone {p99[0]:.2f} ms, among them {p99[1]:.2f} ms; {stats['tls_handshakes']} handshakes, "
            f"{stats['requests']} requests"
        )
        assert stats["tls_handshakes"] >= N
        assert (stats["h2_connections"] >= N) == (options == ())
        assert stats["tls_broken"] == stats["closed_memory"] == stats["status_503"] == 0
        assert grown < N * 100 * 1024
        assert p99[1] < 1000  # coarse: crowd and box share the machine with whatever else runs; the figure is printed
