"""A film of 20 GB over a WAN of 100 Mbit/s and 60 ms starts, seeks and resumes at its rate, for what was asked.

`slow`; prints its figures: .venv/bin/python -m pytest -m slow -s tests/system/test_huge_file.py
"""

from __future__ import annotations

import asyncio
import hashlib
import http.client
import random
import shutil
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import uvloop
from box import Viewer, free_port
from huge_origin import HugeOrigin, bytes_at, huge_origin
from running_box import HOST, RunningBox, policy_for, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
SIZE = 20_000_000_000
SLICE = 1 << 20
RATE_BPS = 100e6
DELAY_S = 0.03
# What is on its way when a viewer of an open range leaves: the fill's window, the sockets' and the WAN's own buffers.
ON_WAY_BYTES = 20 << 20
CACHES = {"memory": {"memory": "512MiB"}, "disk": {"memory": "512MiB", "disk": {"size": "2GiB"}}}


class Read:
    """What one request brought."""

    def __init__(self, n: int, first_byte_s: float, rate_bps: float) -> None:
        self.n, self.first_byte_s, self.rate_bps = n, first_byte_s, rate_bps


class Wan:
    """The way to the origin without the box, for comparison."""

    def __init__(self, port: int) -> None:
        self.port = port

    def address(self, listener: str = "") -> tuple[str, int]:
        return "127.0.0.1", self.port


async def read(box: RunningBox | Wan, path: str, written: str, most: int = SIZE) -> Read:
    """Asks for a range, compares at most `most` bytes of it, and leaves."""
    began_s = time.perf_counter()
    viewer = await Viewer.connect(box)  # type: ignore[arg-type]
    viewer.ask(path, {"Range": f"bytes={written}"}, host=HOST)
    answer = await viewer.head()
    assert answer.status == 206, answer
    place = first = int(answer["Content-Range"].split()[1].split("-")[0])
    last = int(answer["Content-Range"].split("/")[0].split("-")[1])
    first_byte_s = 0.0
    while place - first < most and (data := await viewer.more(1 << 18)):
        first_byte_s = first_byte_s or time.perf_counter()
        assert data == bytes_at(place, len(data)), f"a wrong byte after {place}"
        place += len(data)
        answer.received.clear()
    took_s = time.perf_counter() - first_byte_s
    assert place - first >= most or place == last + 1, f"ended at {place}"
    viewer.reset()
    return Read(place - first, first_byte_s - began_s, 8 * (place - first) / took_s)


@contextmanager
def film(work: Path, cache: dict[str, Any], rate_bps: float = RATE_BPS) -> Iterator[tuple[RunningBox, HugeOrigin]]:
    with huge_origin(rate_bps=rate_bps, delay_s=DELAY_S) as origin:
        policy = policy_for(f"http://127.0.0.1:{origin.wan}", cache=cache)
        with RunningBox(work, policy) as box:
            yield box, origin
            assert "Traceback" not in box.output, box.output


@pytest.mark.parametrize("cache", CACHES)
def test_20_gb_start_seek_and_resume_at_the_rate_of_the_wan(tmp_path: Path, cache: str) -> None:
    path = f"/{SIZE}/film.mp4"
    # (what a player does, its range, how far it reads, whether it is long enough to have a rate)
    steps = [
        ("starts", "0-", 40_000_000, True),
        ("looks at the end (moov)", f"{SIZE - 3_000_000}-", SIZE, False),
        ("starts again", "0-", 10_000_000, False),
        ("goes on", "40000000-", 40_000_000, True),
        ("seeks", "10000000000-", 40_000_000, True),
        ("seeks, a part", "5000000000-5039999999", SIZE, True),
        ("seeks back, a part", "10020000000-10059999999", SIZE, True),
        ("asks for the last 1,000 bytes", "-1000", SIZE, False),
        ("asks for 2 bytes over a slice's end", f"{15_000 * SLICE - 1}-{15_000 * SLICE}", SIZE, False),
        ("asks for 1 byte", "7000000001-7000000001", SIZE, False),
    ]
    with film(tmp_path, CACHES[cache]) as (box, origin):
        print(f"\n20 GB, {cache}, {RATE_BPS / 1e6:.0f} Mbit/s, {2 * DELAY_S * 1e3:.0f} ms")
        asked = 0
        rates: list[tuple[str, float]] = []
        for what, written, most, has_rate in steps:
            before = box.stats()["bytes_from_origin"]
            got = uvloop.run(read(box, path, written, most))
            found = wait_for(lambda: settled(box), what="the fill ends") - before
            n_asked = len(origin.asked()) - asked
            asked += n_asked
            print(
                f"{what:<38}{got.n / 1e6:>9.3f} MB, first byte {got.first_byte_s * 1e3:>4.0f} ms, "
                f"{got.rate_bps / 1e6:>6.1f} Mbit/s; from the origin {found / 1e6:>7.3f} MB by {n_asked} requests"
            )
            is_open = written.endswith("-") and most < SIZE
            assert found <= got.n + (ON_WAY_BYTES if is_open else 2 * SLICE), what
            assert n_asked <= 1, what
            if has_rate:
                rates.append((what, got.rate_bps))
        assert box.stats()["memory_bytes"] <= box.stats()["memory_limit_bytes"]
        # What a busy machine leaves of the WAN's rate it takes from both.
        direct_bps = min(RATE_BPS, uvloop.run(read(Wan(origin.wan), path, "0-", 40_000_000)).rate_bps)
        print(f"without the box {direct_bps / 1e6:.1f} Mbit/s")
        slow = [what for what, rate_bps in rates if rate_bps < 0.9 * direct_bps]
        assert not slow, (slow, rates)


def settled(box: RunningBox) -> int:
    """bytes_from_origin once it stands still; 0 before."""
    before = int(box.stats()["bytes_from_origin"])
    time.sleep(0.7)  # longer than a fill goes on without readers
    return before if box.stats()["bytes_from_origin"] == before else 0


@pytest.mark.parametrize("memory", ["512MiB", "64MiB"])
def test_20_viewers_seek_in_20_gb_at_random(tmp_path: Path, memory: str) -> None:
    """No wrong byte; those who are at the same places share what comes; memory within its limit."""
    dice = random.Random(1)
    chapters = [dice.randrange(SIZE) for _ in range(12)]
    n_read = n_most = n_requests = 0
    over = 0

    async def viewer(box: RunningBox) -> None:
        nonlocal n_read, n_most, n_requests
        for _ in range(12):
            first = dice.choice(chapters) + dice.randrange(4 << 20) if dice.random() < 0.7 else dice.randrange(SIZE)
            n = dice.choice((1, 1000, 65536, SLICE, 4 << 20))
            first = min(first, SIZE - n)
            is_open = dice.random() < 0.3
            got = await read(box, f"/{SIZE}/film.mp4", f"{first}-" + ("" if is_open else f"{first + n - 1}"), n)
            n_read += got.n
            n_most += got.n + (ON_WAY_BYTES if is_open else 2 * SLICE)
            n_requests += 1

    async def watch(box: RunningBox) -> None:
        nonlocal over
        while True:
            stats = await asyncio.to_thread(box.stats)
            over = max(over, stats["memory_bytes"] - stats["memory_limit_bytes"])
            await asyncio.sleep(0.02)

    async def everybody(box: RunningBox) -> None:
        watching = asyncio.ensure_future(watch(box))
        await asyncio.gather(*(viewer(box) for _ in range(20)))
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching

    with film(tmp_path, {"memory": memory}, rate_bps=0.0) as (box, origin):
        uvloop.run(everybody(box))
        fetched = box.stats()["bytes_from_origin"]
        print(
            f"\n20 viewers, {memory}: {n_requests} requests read {n_read / 1e6:.0f} MB; from the origin "
            f"{fetched / 1e6:.0f} MB by {len(origin.asked())} requests (without sharing up to {n_most / 1e6:.0f} MB)"
        )
    assert over <= 0
    assert fetched < n_most / 2


def test_20_viewers_of_the_same_place_cost_one(tmp_path: Path) -> None:
    async def together(box: RunningBox) -> list[Read]:
        place = 12_345_678_901
        return await asyncio.gather(
            *(read(box, f"/{SIZE}/film.mp4", f"{place + i * 1000}-{place + 30_000_000}") for i in range(20))
        )

    with film(tmp_path, {"memory": "512MiB"}) as (box, origin):
        got = uvloop.run(together(box))
        fetched = box.stats()["bytes_from_origin"]
        print(f"\n20 viewers of 30 MB: {fetched / 1e6:.1f} MB, {len(origin.asked())} requests, "
              f"the slowest {min(each.rate_bps for each in got) / 1e6:.1f} Mbit/s")  # fmt: skip
        assert fetched <= 30_000_001 + 2 * SLICE
        assert min(each.rate_bps for each in got) >= 0.85 * RATE_BPS


# -- real servers and players ------------------------------------------------------------------------------------------


@contextmanager
def nginx(folder: Path) -> Iterator[int]:
    """Debian's nginx with the files in `folder`/files, as it comes."""
    if shutil.which("nginx") is None:
        pytest.skip("needs nginx")
    port = free_port()
    (folder / "nginx.conf").write_text(
        f"daemon off; master_process off; pid {folder}/nginx.pid; error_log stderr crit;\n"
        "events { worker_connections 512; }\n"
        f"http {{ types {{ video/mp4 mp4; }} access_log off; client_body_temp_path {folder}/body;\n"
        f"proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; "
        f"scgi_temp_path {folder}/s;\n"
        f"server {{ listen 127.0.0.1:{port}; root {folder}/files; add_header Cache-Control max-age=600; }} }}\n"
    )
    process = subprocess.Popen(["nginx", "-c", str(folder / "nginx.conf"), "-p", str(folder)])
    try:
        wait_for(lambda: answers(port), what="nginx listens")
        yield port
    finally:
        process.terminate()
        process.wait(10)


def answers(port: int) -> bool:
    with suppress(OSError):
        return fetch(port, "/", "0-0")[0] > 0
    return False


def fetch(port: int, path: str, written: str) -> tuple[int, str, str]:
    """(status, Content-Range or Content-Type of several, SHA-256 of the body, of each part where there are several)."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", path, headers={"Range": f"bytes={written}", "Host": HOST})
    response = connection.getresponse()
    body = response.read()
    connection.close()
    content_type = response.headers.get("Content-Type", "")
    if content_type.startswith("multipart/byteranges"):
        pieces = body.split(b"--" + content_type.partition("boundary=")[2].encode())[1:-1]
        parts = [piece.strip(b"\r\n").partition(b"\r\n\r\n") for piece in pieces]
        ranges = [line for head, _, _ in parts for line in head.split(b"\r\n") if line.startswith(b"Content-Range")]
        return response.status, str(ranges), hashlib.sha256(b"|".join(body for _, _, body in parts)).hexdigest()
    return response.status, response.headers.get("Content-Range", ""), hashlib.sha256(body).hexdigest()


def make_film(folder: Path, size: int) -> Path:
    """A film of `size` bytes that plays: its moov stands at the end, behind a hole of nearly all of it."""
    if shutil.which("ffmpeg") is None:
        pytest.skip("needs ffmpeg")
    source, made = folder / "source.mp4", folder / "film.mp4"
    subprocess.run(
        [
            "ffmpeg", "-v", "error", "-f", "lavfi", "-i", "testsrc2=size=640x360:rate=25:duration=40", "-f", "lavfi",
            "-i", "sine=440:duration=40", "-c:v", "mpeg4", "-q:v", "3", "-g", "25", "-c:a", "aac", "-y", str(source),
        ],
        check=True,
    )  # fmt: skip
    data = source.read_bytes()
    at, moov = 0, b""
    while at < len(data):
        n = struct.unpack(">I", data[at : at + 4])[0]
        if data[at + 4 : at + 8] == b"moov":
            moov = data[at : at + n]
            assert at + n == len(data), "its moov is not at the end"
            data = data[:at]
        at += n
    # `free` with a 64-bit size (ISO 14496-12 section 4.2): what stands before it, mdat, keeps its offsets.
    hole = size - len(data) - len(moov)
    with made.open("wb") as out:
        out.write(data + struct.pack(">I4sQ", 1, b"free", hole))
        out.seek(size - len(moov))
        out.write(moov)
    source.unlink()
    assert made.stat().st_size == size
    return made


def played(url: str, *options: str) -> str:
    """Digests of the frames that ffmpeg decodes."""
    command = ["ffmpeg", "-v", "error", *options, "-i", url, "-frames:v", "40", "-f", "framemd5", "-"]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout


def test_nginx_with_a_real_film_of_20_gb(tmp_path: Path) -> None:
    """Ranges and players get the same through the box as from nginx itself."""
    (tmp_path / "files").mkdir()
    make_film(tmp_path / "files", SIZE)
    dice = random.Random(2)
    with nginx(tmp_path) as port:
        policy = policy_for(f"http://127.0.0.1:{port}", cache={"memory": "128MiB"})
        policy["origins"]["media"]["hosts"] = ["*"]
        (tmp_path / "box").mkdir()
        with RunningBox(tmp_path / "box", policy) as box:
            ranges = ["0-99", "-100", f"{SIZE - 1}-", f"{2**32 - 5}-{2**32 + 5}", f"{SIZE}-", "0-9,-10,5000000-5000009"]
            for _ in range(30):
                first = dice.choice((dice.randrange(40_000_000), dice.randrange(SIZE), SIZE - dice.randrange(1, 99999)))
                ranges.append(f"{first}-{first + dice.choice((0, 1000, 3 << 20))}")
            for written in ranges:
                ours = fetch(box.address()[1], "/film.mp4", written)
                theirs = fetch(port, "/film.mp4", written)
                assert (ours[0], ours[2]) == (theirs[0], theirs[2]) or ours[0] == theirs[0] == 416, written
                assert ours[1] == theirs[1], written
            before = box.stats()["bytes_from_origin"]
            box_url = f"http://127.0.0.1:{box.address()[1]}/film.mp4"
            own_url = f"http://127.0.0.1:{port}/film.mp4"
            for options in ((), ("-ss", "10"), ("-ss", "31.3"), ("-ss", "5"), ("-sseof", "-3")):
                frames = played(box_url, *options)
                assert frames == played(own_url, *options), options
                assert len(frames.splitlines()) > 40
            probe = ["ffprobe", "-v", "error", "-show_format", "-show_streams", "-of", "json"]
            shown = [
                subprocess.run([*probe, url], check=True, capture_output=True).stdout.replace(url.encode(), b"")
                for url in (box_url, own_url)
            ]
            assert shown[0] == shown[1]
            print(f"\nnginx, 20 GB: {len(ranges)} ranges and 6 plays alike; {before / 1e6:.0f} MB from the origin for "
                  f"the ranges, {(box.stats()['bytes_from_origin'] - before) / 1e6:.0f} MB for the plays")  # fmt: skip
