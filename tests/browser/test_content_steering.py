"""Content steering in real players: hls.js and dash.js in Chromium play from the box, the box is killed, and they go on
from the pathway that is left; wherever the steering document stands."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import pytest
from running_box import PROJECT, RunningBox, policy_for

HAS_BROWSER = shutil.which("chromium") is not None and shutil.which("node") is not None
pytestmark = [
    pytest.mark.browser,
    pytest.mark.timeout(180),
    pytest.mark.skipif(not HAS_BROWSER, reason="needs Debian's chromium and nodejs: make setup"),
]

PLAYERS = {"/hls.js": "hls.js/dist/hls.min.js", "/dash.js": "dashjs/dist/modern/umd/dash.all.min.js"}
SEGMENT_S = 1
WINDOW = 6
TYPES = {
    ".m3u8": "application/vnd.apple.mpegurl", ".mpd": "application/dash+xml", ".m4s": "video/iso.segment",
    ".html": "text/html", ".js": "text/javascript", ".json": "application/json",
}  # fmt: skip
# As a company's DNS would name them; Chromium is told where they are.
BOX, CDN = "lyon.example", "cdn.example"
DOCUMENT = "/.well-known/accelerator/steering"
STEERING = {"document": {"pathways": ["lyon", "cdn"], "ttl": "10s"}}


class Cdn:
    """Serves a minute of video as a film and as a channel, by HLS and DASH, with what `pages` adds."""

    def __init__(self, folder: Path) -> None:
        self.pages: dict[str, bytes] = {"/page.html": (PROJECT / "tests/browser/steered.html").read_bytes()}
        for path, name in PLAYERS.items():
            self.pages[path] = (PROJECT / "node_modules" / name).read_bytes()
        self.folder = folder
        self.before: Callable[[str, str], None] = lambda host, path: None
        self.after: Callable[[str, str], None] = lambda host, path: None
        self.begun_s = time.monotonic()
        cdn = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                path = self.path.partition("?")[0]
                cdn.before(self.headers["Host"], path)
                body = cdn.body(path)
                self.send_response(404 if body is None else 200)
                self.send_header("Content-Type", TYPES.get(Path(path).suffix, "application/octet-stream"))
                is_piece = path.endswith((".m4s", ".mp4"))
                self.send_header("Cache-Control", "max-age=3600" if is_piece else "max-age=1")
                self.send_header("Access-Control-Allow-Origin", "*")
                self.send_header("Content-Length", str(len(body or b"")))
                self.end_headers()
                self.wfile.write(body or b"")
                cdn.after(self.headers["Host"], path)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        self._thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self._thread.start()

    def body(self, path: str) -> bytes | None:
        if path in self.pages:
            return self.pages[path]
        if path == "/v/live.m3u8":
            return self.channel()
        file = self.folder / path.removeprefix("/v/")
        return file.read_bytes() if file.parent == self.folder and file.is_file() else None

    def channel(self) -> bytes:
        """The film's playlist as if it were made now: the last six segments of it."""
        lines = (self.folder / "media_0.m3u8").read_text().splitlines()
        pieces = [lines[n : n + 3] for n, line in enumerate(lines) if line.startswith("#EXTINF")]
        n = min(int((time.monotonic() - self.begun_s) / SEGMENT_S) + WINDOW, len(pieces))
        first = n - WINDOW
        head = ["#EXTM3U", "#EXT-X-VERSION:7", f"#EXT-X-TARGETDURATION:{SEGMENT_S}", f"#EXT-X-MEDIA-SEQUENCE:{first}"]
        head += [line for line in lines if line.startswith("#EXT-X-MAP")]
        return "\n".join([*head, *(line for piece in pieces[first:n] for line in piece), ""]).encode()

    def close(self) -> None:
        self.server.shutdown()
        self._thread.join()
        self.server.server_close()


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """100 s, in one fragmented MP4 track that both kinds of manifest name."""
    folder = tmp_path_factory.mktemp("film")
    subprocess.run(
        ["ffmpeg", "-loglevel", "error", "-f", "lavfi", "-i", "testsrc2=size=160x90:rate=10", "-t", "100",
         "-c:v", "libx264", "-preset", "ultrafast", "-b:v", "60k", "-g", "10", "-pix_fmt", "yuv420p", "-f", "dash",
         "-seg_duration", str(SEGMENT_S), "-use_template", "1", "-use_timeline", "0", "-hls_playlist", "1",
         str(folder / "film.mpd")],
        check=True,
    )  # fmt: skip
    return folder


@pytest.fixture
def cdn(film: Path) -> Iterator[Cdn]:
    running = Cdn(film)
    yield running
    running.close()


def multivariant(playlist: str, server: str, *pathways: str) -> bytes:
    lines = ["#EXTM3U", f'#EXT-X-CONTENT-STEERING:SERVER-URI="{server}",PATHWAY-ID="cdn"']
    for name in pathways:
        host = {"lyon": BOX, "cdn": CDN}[name]
        lines += [f'#EXT-X-STREAM-INF:BANDWIDTH=100000,CODECS="avc1.42c00a",PATHWAY-ID="{name}"',
                  f"http://{host}/v/{playlist}"]  # fmt: skip
    return "\n".join([*lines, ""]).encode()


def manifest(film: Path, server: str, *pathways: str) -> bytes:
    """ffmpeg's MPD, told where its pieces are (ETSI TS 103 998)."""
    text = (film / "film.mpd").read_text()
    places = [f'<BaseURL serviceLocation="{name}">http://{({"lyon": BOX, "cdn": CDN})[name]}/v/</BaseURL>'
              for name in pathways]  # fmt: skip
    steering = f'<ContentSteering defaultServiceLocation="cdn" queryBeforeStart="true">{server}</ContentSteering>'
    return re.sub(r"(<Period )", "\n".join([*places, steering, r"\1"]), text, count=1).encode()


class Way(NamedTuple):
    """Who plays what, where the document is, whether the manifest names the box, how long it waits for a piece
    (None: the player's own patience), and whether the page is without what docs/steering.md adds."""

    player: str
    what: str
    document: str
    is_clone: bool = False
    patience_ms: int | None = None
    is_plain: bool = False


def pages(cdn: Cdn, way: Way, box: RunningBox) -> str:
    """Puts the manifest, and where it is the CDN's the document, on the CDN; the page's path."""
    server = f"http://{BOX}{DOCUMENT}"
    if way.document != "box":
        cdn.pages["/lyon.json"] = box.accelctl("steering", "document").stdout.encode()
        server = f"http://{CDN}/lyon.json"
    if way.document == "elsewhere, after a first":
        cdn.pages["/first.json"] = box.accelctl("steering", "document", "--first", "lyon.json").stdout.encode()
        server = f"http://{CDN}/first.json"
    named = ("cdn",) if way.is_clone else ("cdn", "lyon")
    if way.player == "hls":
        cdn.pages["/main.m3u8"] = multivariant(way.what, server, *named)
    else:
        cdn.pages["/main.mpd"] = manifest(cdn.folder, server, *named)
    url = f"http://{CDN}/main.{'m3u8' if way.player == 'hls' else 'mpd'}"
    patience = "" if way.patience_ms is None else f"&patience={way.patience_ms}"
    plain = "&plain" if way.is_plain else ""
    return f"http://{CDN}/page.html?player={way.player}&url={quote(url)}{patience}{plain}"


@contextmanager
def watch(page: str, pathway: str, cdn: Cdn, box: RunningBox) -> Iterator[subprocess.Popen[str]]:
    host, port = box.address()
    rules = f"MAP {BOX} {host}:{port}, MAP {CDN} 127.0.0.1:{cdn.port}"
    command = ["node", str(PROJECT / "tests/browser/steering.mjs"), page, pathway, rules]
    browser = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=PROJECT)
    try:
        yield browser
    finally:
        browser.terminate()
        browser.communicate()


def line_of(browser: subprocess.Popen[str]) -> dict[str, Any]:
    assert browser.stdout is not None
    said: dict[str, Any] = json.loads(browser.stdout.readline())
    assert said["fatal"] is None, said
    assert said["complaints"] == []
    return said


def policy(cdn: Cdn, way: Way) -> dict[str, Any]:
    document: dict[str, Any] = {**STEERING["document"]}
    if way.is_clone:
        document |= {"clone_of": "cdn", "host": BOX}
    made = policy_for(f"http://127.0.0.1:{cdn.port}", steering={"document": document})
    made["origins"]["media"] |= {"hosts": [BOX], "paths": ["/v"]}
    return made


def leave(cdn: Cdn, folder: Path, way: Way, number: signal.Signals) -> dict[str, Any]:
    """What the player says once it has played more than it had when the box got the signal."""
    with RunningBox(folder, policy(cdn, way)) as box, watch(pages(cdn, way, box), BOX, cdn, box) as browser:
        before = line_of(browser)
        assert before["hosts"][-1] == BOX
        assert box.stats()["bytes_from_origin"] > 0
        box.signal(number)
        assert browser.stdin is not None
        browser.stdin.write("done\n")
        browser.stdin.flush()
        after = line_of(browser)
        assert browser.wait(60) == 0
        box.kill()
    print(f"{way.player} {way.what}, patience {way.patience_ms}, {number.name}: next after {after['nextMs']:.0f} ms")
    assert set(after["hosts"]) == {CDN}
    assert after["time"] > before["buffered"]
    return after


@pytest.mark.parametrize(
    "way",
    [
        Way("hls", "live.m3u8", "box"),
        # What is left of hls and dash by film, channel and place of the document: six seconds each.
        pytest.param(Way("dash", "film.mpd", "elsewhere", is_clone=True), marks=pytest.mark.slow),
        pytest.param(Way("hls", "media_0.m3u8", "elsewhere", is_clone=True), marks=pytest.mark.slow),
        pytest.param(Way("dash", "film.mpd", "box"), marks=pytest.mark.slow),
    ],
    ids=lambda way: f"{way.player}-{way.what}-{way.document}",
)
def test_a_player_leaves_a_box_that_is_killed(cdn: Cdn, tmp_path: Path, way: Way) -> None:
    leave(cdn, tmp_path, way, signal.SIGKILL)


@pytest.mark.parametrize(
    "way",
    [
        Way("hls", "media_0.m3u8", "elsewhere", is_clone=True),
        # Its first document holds for five seconds.
        pytest.param(Way("hls", "media_0.m3u8", "elsewhere, after a first", is_plain=True), marks=pytest.mark.slow),
        pytest.param(
            Way("hls", "live.m3u8", "elsewhere, after a first", is_clone=True, is_plain=True), marks=pytest.mark.slow
        ),
    ],
    ids=lambda way: f"{way.player}-{way.what}-{way.document}",
)
def test_no_player_stands_still_that_is_sent_to_the_box_while_its_first_piece_comes(
    cdn: Cdn, tmp_path: Path, way: Way
) -> None:
    """hls.js 1.5 to 1.7.4 drops a first piece that comes after the document and before the new pathway's playlist, and
    then waits for it for ever: decision 0282. Here each player's first piece does, unless it was early."""
    told, had = threading.Event(), threading.Event()

    def before(host: str, path: str) -> None:
        if path.endswith((".m4s", ".mp4")) and host == CDN:
            told.wait(20)
        elif path.endswith(".m3u8") and host not in (CDN, BOX):  # what the box asks
            had.wait(1)  # the page may have given its first piece up
        elif path == "/got":
            had.set()

    def after(_: str, path: str) -> None:
        if path.endswith(".json"):
            told.set()

    cdn.before, cdn.after = before, after
    with RunningBox(tmp_path, policy(cdn, way)) as box, watch(pages(cdn, way, box), BOX, cdn, box) as browser:
        said = line_of(browser)
        assert {CDN, BOX} >= set(said["hosts"])
        assert said["hosts"][-1] == BOX


@pytest.mark.slow  # the player's patience with a box that says nothing, and then what it had
@pytest.mark.parametrize(
    "way",
    [
        Way("hls", "live.m3u8", "box", patience_ms=2500),
        Way("hls", "media_0.m3u8", "elsewhere", is_clone=True, patience_ms=2500),
        Way("dash", "film.mpd", "elsewhere", is_clone=True, patience_ms=2500),
    ],
    ids=lambda way: f"{way.player}-{way.what}-{way.document}",
)
def test_a_player_told_to_be_impatient_leaves_a_box_that_is_stopped(cdn: Cdn, tmp_path: Path, way: Way) -> None:
    """With the players' own settings it took hls.js 30 s (a channel) or 50 s (a film), dash.js over a minute."""
    assert leave(cdn, tmp_path, way, signal.SIGSTOP)["nextMs"] < 10_000
