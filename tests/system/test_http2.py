"""HTTP/2 through the daemon, by clients that others have written: curl, nghttp, h2load. Without TLS here."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from certified import Certified
from recording_origin import RecordingOrigin
from running_box import HOST, RunningBox, policy_for

CLEARTEXT = {"listen": {"lan": {"http2": "cleartext"}}, "origins": {"media": {"profile": "generic"}}}
pytestmark = pytest.mark.skipif(
    not all(map(shutil.which, ("curl", "nghttp", "h2load"))), reason="needs curl and nghttp2-client: make setup"
)


@pytest.fixture
def origin() -> Iterator[RecordingOrigin]:
    with RecordingOrigin() as origin:
        yield origin


def curl(box: RunningBox, path: str, *options: str) -> tuple[int, str, bytes]:
    """Version and status, head, body of one request with prior knowledge."""
    host, port = box.address()
    done = subprocess.run(
        ["curl", "-sS", "-i", "--max-time", "20", "--http2-prior-knowledge", *options, "-H", f"Host: {HOST}",
         f"http://{host}:{port}{path}"],
        capture_output=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    head, _, body = done.stdout.partition(b"\r\n\r\n")
    text = head.decode()
    assert text.startswith("HTTP/2 ")
    return int(text.split()[1]), text.lower(), body


def test_a_miss_a_hit_a_range_and_a_condition(tmp_path: Path, origin: RecordingOrigin) -> None:
    with RunningBox(tmp_path, policy_for(origin.url, **CLEARTEXT)) as box:
        first, second = curl(box, "/bytes/50000/a"), curl(box, "/bytes/50000/a")
        assert (first[0], len(first[2])) == (200, 50_000)
        assert "cache-status: test; fwd=uri-miss" in first[1]
        assert "cache-status: test; hit" in second[1]
        assert first[2] == second[2]
        status, head, body = curl(box, "/bytes/50000/a", "-r", "10-19")
        assert (status, body) == (206, first[2][10:20])
        assert "content-range: bytes 10-19/50000" in head
        assert curl(box, "/bytes/50000/a", "-I")[0] == 200
        with box.connect() as viewer:  # the same object over HTTP/1.1
            assert box.get_on(viewer, "/bytes/50000/a").body == first[2]
        assert len(origin.targets("/bytes")) == 1


def test_an_upload(tmp_path: Path, origin: RecordingOrigin) -> None:
    sent = tmp_path / "sent"
    sent.write_bytes(bytes(range(256)) * 4000)
    with RunningBox(tmp_path, policy_for(origin.url, **CLEARTEXT)) as box:
        assert curl(box, "/echo", "--data-binary", f"@{sent}")[0] == 200
        assert origin.asked[-1].body == sent.read_bytes()
        assert curl(box, "/echo", "-T", str(sent), "-H", "Content-Length:")[0] == 200  # of unknown length
        assert origin.asked[-1].method == b"PUT"
        assert not origin.faults


def test_nghttp_and_h2load_are_served_without_an_error(tmp_path: Path, origin: RecordingOrigin) -> None:
    with RunningBox(tmp_path, policy_for(origin.url, **CLEARTEXT)) as box:
        host, port = box.address()
        url = f"http://{host}:{port}/bytes/30000/b"
        done = subprocess.run(
            ["nghttp", "-v", "--no-dep", "-H", f":authority: {HOST}", url],
            capture_output=True, text=True, timeout=30, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert re.search(r":status: 200", done.stdout)
        load = subprocess.run(
            ["h2load", "-n3000", "-c20", "-m30", "-H", f":authority: {HOST}", url],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert "3000 succeeded, 0 failed, 0 errored" in load.stdout, load.stdout
        assert len(origin.targets("/bytes")) == 1
        assert box.stats()["h2_streams"] >= 3001


def test_without_tls_it_is_off_until_the_policy_says_otherwise(tmp_path: Path, origin: RecordingOrigin) -> None:
    with RunningBox(tmp_path, policy_for(origin.url)) as box:
        host, port = box.address()
        command = ["curl", "-sS", "--http2-prior-knowledge", f"http://{host}:{port}/bytes/10/c"]
        assert subprocess.run(command, capture_output=True, timeout=30, check=False).returncode != 0
        box.reload({"listen": {"lan": {"http2": "cleartext"}}})
        assert curl(box, "/bytes/10/c")[0] == 200
        # Who only asks for an upgrade is answered without (RFC 9113 section 3.1).
        upgraded = subprocess.run(
            ["curl", "-sS", "-i", "--http2", "-H", f"Host: {HOST}", f"http://{host}:{port}/bytes/10/c"],
            capture_output=True, timeout=30, check=False,
        )  # fmt: skip
        assert upgraded.stdout.startswith(b"HTTP/1.1 200")


def test_over_tls_it_is_what_clients_agree_on(tmp_path: Path, origin: RecordingOrigin) -> None:
    made = Certified(tmp_path / "state" / "credentials")
    made.put("site", HOST)
    listen = {"lan": {"tls": "site"}, "old": {"address": "127.0.0.1:0", "tls": "site", "http2": "never"}}
    with RunningBox(tmp_path, policy_for(origin.url, listen=listen)) as box:
        for listener, version in (("lan", b"HTTP/2 200"), ("old", b"HTTP/1.1 200")):
            host, port = box.address(listener)
            done = subprocess.run(
                ["curl", "-sS", "-i", "--cacert", str(made.authority()), "--resolve", f"{HOST}:{port}:{host}",
                 f"https://{HOST}:{port}/bytes/50000/d"],
                capture_output=True, timeout=30, check=False,
            )  # fmt: skip
            assert done.stdout.startswith(version), (done.stderr, done.stdout[:200])
            assert len(done.stdout.partition(b"\r\n\r\n")[2]) == 50_000
        host, port = box.address()
        load = subprocess.run(
            ["h2load", "-n2000", "-c20", "-m20", "-H", f":authority: {HOST}", f"https://{host}:{port}/bytes/50000/d"],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert "2000 succeeded, 0 failed, 0 errored" in load.stdout, load.stdout
        assert "Application protocol: h2" in load.stdout
        assert len(origin.targets("/bytes")) == 1


def test_a_stop_waits_for_what_is_under_way_only(tmp_path: Path, origin: RecordingOrigin) -> None:
    with RunningBox(tmp_path, policy_for(origin.url, **CLEARTEXT)) as box:
        host, port = box.address()
        held = subprocess.Popen(
            ["curl", "-sS", "-i", "--http2-prior-knowledge", "-H", f"Host: {HOST}", f"http://{host}:{port}/gate/g/40000"],
            stdout=subprocess.PIPE,
        )  # fmt: skip
        while not origin.targets("/gate"):
            time.sleep(0.005)
        box.signal(signal.SIGTERM)
        origin.open_gate("g")
        whole, _ = held.communicate(timeout=20)
        assert held.returncode == 0
        assert len(whole.partition(b"\r\n\r\n")[2]) == 40_000
        assert box.exit_code() == 0
