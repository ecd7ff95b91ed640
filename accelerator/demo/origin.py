"""The demo's origin: a small HTTP server in a process of its own. Serves files; knows nothing of the box."""

from __future__ import annotations

import argparse
from collections.abc import Awaitable, Callable
from pathlib import Path

from aiohttp import web

PAGE = Path(__file__).resolve().parent / "page"
HLS_JS = Path("node_modules/hls.js/dist/hls.min.js")

Handler = Callable[[web.Request], Awaitable[web.FileResponse]]

TYPES = {
    ".m3u8": "application/vnd.apple.mpegurl",
    ".mpd": "application/dash+xml",
    ".ts": "video/mp2t",
    ".m4s": "video/iso.segment",
    ".mp4": "video/mp4",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
}


def lifetime(path: Path) -> str:
    """The Cache-Control that a careful publisher gives: short for what moves, long for names that never come back."""
    if path.suffix == ".m3u8":
        return "max-age=1"
    if path.suffix in {".ts", ".m4s"} or path.name.startswith("init_"):
        return "max-age=3600"
    if path.suffix in {".mp4", ".mpd"}:
        return "max-age=60"
    return "no-cache"


def application(live: Path, recorded: Path, hls_js: Path) -> web.Application:
    """Folder `live` is served below /live/, `recorded` below /, and of both only the types that we know. Ranges, ETag
    and conditions are aiohttp's."""

    async def page(request: web.Request) -> web.FileResponse:
        return _file(PAGE / (request.match_info.get("name") or "index.html"))

    async def player(_: web.Request) -> web.FileResponse:
        return _file(hls_js)

    def below(folder: Path) -> Handler:
        root = folder.resolve()

        async def file(request: web.Request) -> web.FileResponse:
            path = (root / request.match_info["path"]).resolve()
            if not path.is_relative_to(root) or path.suffix not in TYPES:
                raise web.HTTPNotFound
            return _file(path)

        return file

    app = web.Application()
    app.router.add_get("/", page)
    app.router.add_get("/{name:demo\\.(?:js|css)}", page)
    app.router.add_get("/hls.js", player)
    app.router.add_get("/live/{path:.+}", below(live))
    app.router.add_get("/{path:.+}", below(recorded))
    return app


def _file(path: Path) -> web.FileResponse:
    if not path.is_file():
        raise web.HTTPNotFound
    headers = {"Content-Type": TYPES[path.suffix], "Cache-Control": lifetime(path), "Access-Control-Allow-Origin": "*"}
    return web.FileResponse(path, headers=headers)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m accelerator.demo.origin", description="Serves the demo's media.")
    parser.add_argument("--live", type=Path, required=True, help="folder to serve below /live/")
    parser.add_argument("--recorded", type=Path, required=True, help="folder to serve below /")
    parser.add_argument("--port", type=int, required=True, help="port on 127.0.0.1")
    parser.add_argument("--hls-js", type=Path, default=HLS_JS, help=f"hls.js for the page (default {HLS_JS})")
    arguments = parser.parse_args()
    app = application(arguments.live, arguments.recorded, arguments.hls_js)
    web.run_app(app, host="127.0.0.1", port=arguments.port, print=None, access_log=None, shutdown_timeout=0.5)


if __name__ == "__main__":
    main()
