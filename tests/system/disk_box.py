"""A box with a disk, and an origin whose every byte is known from the path. Test support, no test itself."""

from __future__ import annotations

import random
import re
import threading
import zlib
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any

from running_box import RunningBox, policy_for, wait_for

MIB = 1 << 20


@lru_cache(maxsize=64)
def body_of(path: str) -> bytes:
    """`/v/SIZE/NAME`: SIZE bytes that depend on the whole path."""
    return random.Random(path).randbytes(int(path.split("/")[2]))


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.server.asked.append((self.path, {name.lower(): value for name, value in self.headers.items()}))
        lifetime = self.server.lifetime
        body, etag = body_of(path), f'"{zlib.crc32(path.encode())}-{self.server.edition}"'
        lines = {"Cache-Control": f"max-age={lifetime}", "ETag": etag, "Content-Type": "video/mp4"}
        if "/weak/" in path:
            del lines["ETag"]
        if "/vary/" in path:
            lines["Vary"] = "Accept-Language"
            body = (self.headers.get("Accept-Language") or "none").encode() + body
        status, first, last = 200, 0, len(body) - 1
        if self.headers.get("If-None-Match") == etag and "ETag" in lines:
            status, body = 304, b""
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if status == 200 and wanted and self.headers.get("If-Range") in (None, etag) and "ETag" in lines:
            first = int(wanted[1])
            last = min(last, int(wanted[2])) if wanted[2] else last
            status = 206
            lines["Content-Range"] = f"bytes {first}-{last}/{len(body)}"
        piece = body[first : last + 1]
        self.send_response(status)
        for name, value in lines.items():
            self.send_header(name, value)
        if status != 304:
            self.send_header("Content-Length", str(len(piece)))
        self.end_headers()
        self.server.sent += len(piece)
        self.wfile.write(piece)

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.sent = 0
        self.edition = 1
        self.lifetime = 3600

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # the box closes connections as it likes


class VideoOrigin:
    """Runs between __enter__ and __exit__. `server.asked`: (target, fields) of each request."""

    def __enter__(self) -> VideoOrigin:
        self.server = _Server()
        self._thread = threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.server.shutdown()
        self.server.server_close()
        self._thread.join(10)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    @property
    def n_asked(self) -> int:
        return len(self.server.asked)


def disk_box(
    work: Path, origin: VideoOrigin, *, size: str = "128MiB", memory: str = "64MiB", **sections: Any
) -> RunningBox:
    cache = {"memory": memory, "disk": {"size": size}}
    return RunningBox(work, policy_for(origin.url, cache=cache, **sections))


def is_written(box: RunningBox, n_objects: int) -> bool:
    """Whether so many objects are on the disk, and nothing waits to be written."""
    stats = box.stats()
    return bool(stats["disk_objects"] >= n_objects and stats["disk_write_bytes"] >= stats["bytes_from_origin"])


def fill(box: RunningBox, paths: list[str]) -> None:
    """Asks for each, checks it, and waits until it is on the disk: a queue of writes that is full drops some."""
    known = box.stats()["disk_objects"]
    for n, path in enumerate(paths, 1):
        response = box.get(path)
        assert response.status == 200, response
        assert len(response.body) == len(body_of(path)), (path, len(response.body))
        assert response.body == body_of(path), path
        wait_for(lambda n=n: is_written(box, known + n), what="it is on the disk")  # type: ignore[misc]
