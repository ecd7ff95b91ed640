"""What players get through the box is what the origin has: every byte of HLS, DASH and MP4, and ffmpeg plays it."""

from __future__ import annotations

import hashlib
import http.client
import re
import subprocess
import time
from collections.abc import Iterator
from urllib.parse import urljoin, urlsplit

import pytest
from running_demo import RECORDED, RunningDemo

FILM_BYTES_READ_AT_ONCE = 1 << 20
pytestmark = pytest.mark.timeout(300)


class Site:
    """One server that the same paths are asked of, over one kept connection."""

    def __init__(self, url: str) -> None:
        self._connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=20)

    def get(self, path: str, **fields: str) -> tuple[int, bytes]:
        self._connection.request("GET", path, headers=fields)
        response = self._connection.getresponse()
        return response.status, response.read()

    def digest(self, path: str) -> tuple[int, str]:
        """Status and SHA-256 of a body that may be large."""
        self._connection.request("GET", path)
        response = self._connection.getresponse()
        digest = hashlib.sha256()
        while piece := response.read(FILM_BYTES_READ_AT_ONCE):
            digest.update(piece)
        return response.status, digest.hexdigest()


@pytest.fixture(scope="module")
def box(demo: RunningDemo) -> Site:
    return Site(demo.box_url)


@pytest.fixture(scope="module")
def origin(demo: RunningDemo) -> Site:
    return Site(demo.origin_url)


def referenced(playlist_path: str, playlist: str) -> Iterator[str]:
    """Paths of all that an HLS playlist names."""
    for line in playlist.splitlines():
        name = re.search(r'URI="([^"]+)"', line)
        if name is not None:
            yield urljoin(playlist_path, name.group(1))
        elif line and not line.startswith("#"):
            yield urljoin(playlist_path, line)


def same_playlist(box: Site, origin: Site, path: str) -> str:
    """A live playlist moves under our hands: asks until the origin's did not, and then the box's must be the same."""
    ends_s = time.monotonic() + 10
    while time.monotonic() < ends_s:
        before = origin.get(path)
        through_box = box.get(path)
        if before == through_box == origin.get(path):
            return through_box[1].decode()
    raise AssertionError(f"{path}: the box gives {through_box}, the origin {before}")


@pytest.mark.parametrize("kind", ["cmaf", "ts"])
def test_every_byte_of_the_live_channel_equals_the_origins(box: Site, origin: Site, kind: str) -> None:
    master_path = f"/live/{kind}/master.m3u8"
    variants = list(referenced(master_path, same_playlist(box, origin, master_path)))
    assert len(variants) == 3

    n_compared = 0
    for variant in variants:
        for path in referenced(variant, same_playlist(box, origin, variant)):
            status, expected = origin.get(path)
            assert status == 200
            assert box.get(path) == (200, expected), path
            assert box.get(path) == (200, expected), f"{path}, from the store"
            n_compared += 1
    assert n_compared >= 9


def test_every_byte_of_the_dash_presentation_equals_the_origins(box: Site, origin: Site) -> None:
    paths = [f"/dash/{file.name}" for file in sorted((RECORDED / "dash").iterdir())]
    assert "/dash/manifest.mpd" in paths
    assert len(paths) > 50
    for path in paths:
        status, expected = origin.digest(path)
        assert status == 200
        assert box.digest(path) == (200, expected), path
        assert box.digest(path) == (200, expected), f"{path}, from the store"


def test_every_byte_of_the_film_equals_the_origins(box: Site, origin: Site) -> None:
    whole = origin.digest("/film.mp4")
    assert whole[0] == 200
    assert box.digest("/film.mp4") == whole


@pytest.mark.parametrize("byte_range", ["0-0", "0-1023", "1048570-1048590", "60000000-62000000", "-4096", "118000000-"])
def test_ranges_of_the_film_equal_the_origins(box: Site, origin: Site, byte_range: str) -> None:
    expected = origin.get("/film.mp4", Range=f"bytes={byte_range}")
    assert expected[0] == 206
    assert box.get("/film.mp4", Range=f"bytes={byte_range}") == expected


@pytest.mark.parametrize(
    ("path", "seconds"),
    [("/live/cmaf/master.m3u8", 12), ("/live/ts/master.m3u8", 12), ("/dash/manifest.mpd", 60), ("/film.mp4", 60)],
)
def test_ffmpeg_plays_it_without_an_error_line(demo: RunningDemo, path: str, seconds: int) -> None:
    command = ["ffmpeg", "-hide_banner", "-nostdin", "-loglevel", "error", "-t", str(seconds)]
    command += ["-i", f"{demo.box_url}{path}", "-map", "0:v:0", "-map", "0:a:0", "-f", "null", "-progress", "-", "-"]
    played = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (played.returncode, played.stderr) == (0, "")
    times = re.findall(r"out_time_us=(\d+)", played.stdout)
    assert int(times[-1]) >= (seconds - 1) * 1e6


@pytest.mark.parametrize("path", ["/dash/manifest.mpd", "/film.mp4"])
def test_ffmpeg_reads_the_same_packets_as_from_the_origin(demo: RunningDemo, path: str) -> None:
    def packets(url: str) -> str:
        command = ["ffmpeg", "-hide_banner", "-nostdin", "-loglevel", "error", "-i", url]
        command += ["-map", "0", "-c", "copy", "-f", "streamhash", "-hash", "sha256", "-"]
        read = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert (read.returncode, read.stderr) == (0, "")
        return read.stdout

    expected = packets(f"{demo.origin_url}{path}")
    assert "SHA256=" in expected
    assert packets(f"{demo.box_url}{path}") == expected
