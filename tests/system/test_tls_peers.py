"""The box over TLS, as clients that others have written see it: curl in each version of TLS and HTTP, ffmpeg, h2load.
Chromium is in tests/browser; what is agreed on in a handshake is tests/dataplane/test_tls.py's."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from certified import Certified
from recording_origin import RecordingOrigin
from running_box import HOST, RunningBox, policy_for
from running_demo import RunningDemo

pytestmark = pytest.mark.skipif(
    not all(map(shutil.which, ("curl", "h2load", "ffmpeg"))), reason="needs curl, nghttp2-client and ffmpeg: make setup"
)
VERSIONS = [(http, tls) for http in ("2", "1.1") for tls in ("1.3", "1.2")]


class Curl:
    """One version of HTTP and of TLS, and no other."""

    def __init__(self, box: RunningBox, made: Certified, http: str, tls: str) -> None:
        host, self.port = box.address()
        self.http = http
        self.command = ["curl", "-sS", "-i", "--max-time", "20", "--cacert", str(made.authority()), f"--http{http}"]
        self.command += [f"--tlsv{tls}", "--tls-max", tls, "--resolve", f"{HOST}:{self.port}:{host}"]

    def url(self, path: str) -> str:
        return f"https://{HOST}:{self.port}{path}"

    def __call__(self, path: str, *options: str) -> tuple[int, dict[str, str], bytes]:
        """Status, fields, body."""
        command = [*self.command, *options, self.url(path)]
        done = subprocess.run(command, capture_output=True, timeout=30, check=False)
        assert done.returncode == 0, done.stderr
        data = done.stdout
        while True:  # past 100 (Continue)
            head, _, data = data.partition(b"\r\n\r\n")
            lines = head.decode().split("\r\n")
            assert lines[0].startswith(f"HTTP/{self.http} "), lines[0]
            if lines[0].split()[1] != "100":
                break
        fields = dict(line.lower().split(": ", 1) for line in lines[1:])
        return int(lines[0].split()[1]), fields, data


@pytest.fixture(scope="module")
def origin() -> Iterator[RecordingOrigin]:
    with RecordingOrigin() as running:
        yield running


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Certified:
    certified = Certified(tmp_path_factory.mktemp("box") / "state" / "credentials")
    certified.put("site", HOST, "127.0.0.1")
    return certified


@pytest.fixture(scope="module")
def box(made: Certified, origin: RecordingOrigin) -> Iterator[RunningBox]:
    portal = {"media": {"profile": "generic", "hosts": ["*"]}}
    policy = policy_for(origin.url, listen={"lan": {"tls": "site"}}, origins=portal)
    with RunningBox(made.folder.parent.parent, policy) as running:
        yield running


@pytest.mark.parametrize(("http", "tls"), VERSIONS)
def test_curl_gets_the_same_in_each_version(box: RunningBox, made: Certified, http: str, tls: str) -> None:
    curl = Curl(box, made, http, tls)
    status, fields, whole = curl("/tagged/300000/a")
    assert (status, len(whole)) == (200, 300_000)
    assert curl("/tagged/300000/a")[2] == whole
    status, fields, piece = curl("/tagged/300000/a", "-r", "99990-100009")
    assert (status, piece) == (206, whole[99_990:100_010])
    assert fields["content-range"] == "bytes 99990-100009/300000"
    assert curl("/tagged/300000/a", "-r", "-5")[2] == whole[-5:]
    assert curl("/tagged/300000/a", "-r", "300000-")[0] == 416
    status, fields, parts = curl("/tagged/300000/a", "-r", "0-9,299990-299999")
    assert status == 206
    assert fields["content-type"].startswith("multipart/byteranges")
    assert whole[:10] in parts
    assert whole[-10:] in parts
    assert curl("/tagged/300000/a", "-I")[0] == 200
    status, fields, nothing = curl("/tagged/300000/a", "-H", 'If-None-Match: "one"')
    assert (status, nothing) == (304, b"")
    assert curl("/tagged/300000/a", "-H", 'If-None-Match: "other"')[2] == whole
    assert curl("/tagged/300000/a", "-r", "0-3", "-H", 'If-Range: "one"')[2] == whole[:4]
    assert curl("/tagged/300000/a", "-r", "0-3", "-H", 'If-Range: "other"')[0] == 200


@pytest.mark.parametrize(("http", "tls"), VERSIONS)
def test_curl_uploads_in_each_version(
    box: RunningBox, made: Certified, origin: RecordingOrigin, tmp_path: Path, http: str, tls: str
) -> None:
    curl = Curl(box, made, http, tls)
    sent = tmp_path / "sent"
    sent.write_bytes(bytes(range(256)) * 8000)
    of_unknown_length = ("-H", "Content-Length:" if http == "2" else "Transfer-Encoding: chunked")
    for options in ((), of_unknown_length, ("-H", "Expect: 100-continue")):
        assert curl("/echo", "-T", str(sent), *options)[0] == 200
        assert origin.asked[-1].body == sent.read_bytes()
    assert not origin.faults


def test_an_upload_that_curl_breaks_off_is_whole_nowhere(
    box: RunningBox, made: Certified, origin: RecordingOrigin, tmp_path: Path
) -> None:
    sent = tmp_path / "sent"
    sent.write_bytes(bytes(50_000_000))
    before = box.stats()["uploads_aborted"]
    for http in ("2", "1.1"):
        curl = Curl(box, made, http, "1.3")
        command = [*curl.command, "--limit-rate", "200k", "--max-time", "1", "-T", str(sent), curl.url("/echo")]
        assert subprocess.run(command, capture_output=True, timeout=30, check=False).returncode == 28
    assert box.stats()["uploads_aborted"] == before + 2
    assert all(len(asked.body) < 50_000_000 for asked in origin.asked)


@pytest.mark.parametrize("options", [("--h1",), ("-m20",)], ids=["http/1.1", "h2"])
def test_h2load_is_served_without_an_error(
    box: RunningBox, made: Certified, origin: RecordingOrigin, options: tuple[str, ...]
) -> None:
    host, port = box.address()
    url = f"https://{host}:{port}/bytes/20000/load"
    load = subprocess.run(
        ["h2load", "-n3000", "-c30", *options, url],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert "3000 succeeded, 0 failed, 0 errored" in load.stdout, load.stdout
    assert "TLSv1.3" in load.stdout
    assert ("Application protocol: h2" in load.stdout) == (options != ("--h1",))
    assert len(origin.targets("/bytes/20000/load")) == 1


@pytest.mark.timeout(300)
@pytest.mark.parametrize("path", ["/live/ts/master.m3u8", "/live/cmaf/master.m3u8", "/film.mp4"])
def test_ffmpeg_decodes_what_comes_over_tls(demo: RunningDemo, made: Certified, tmp_path: Path, path: str) -> None:
    """HLS and a film with seeks; every frame is decoded, and counted."""
    seconds = 6
    shutil.copytree(made.folder, tmp_path / "state" / "credentials")
    policy = policy_for(demo.origin_url, listen={"lan": {"tls": "site"}}, origins={"media": {"hosts": ["*"]}})
    with RunningBox(tmp_path, policy) as box:
        host, port = box.address()
        command = ["ffmpeg", "-hide_banner", "-nostdin", "-loglevel", "error", "-xerror", "-t", str(seconds)]
        command += ["-tls_verify", "1", "-ca_file", str(made.authority())] if path == "/film.mp4" else []
        command += ["-i", f"https://{host}:{port}{path}", "-map", "0:v:0", "-map", "0:a:0", "-f", "null"]
        played = subprocess.run(
            [*command, "-progress", "-", "-"], capture_output=True, text=True, timeout=120, check=False
        )
        stats = box.stats()
    assert (played.returncode, played.stderr) == (0, "")
    frames = [int(line.removeprefix("frame=")) for line in played.stdout.splitlines() if line.startswith("frame=")]
    assert frames[-1] >= seconds * 24
    assert stats["tls_handshakes"] >= 1
    assert stats["bytes_to_viewers"] > 100_000
    assert stats["tls_broken"] == 0
