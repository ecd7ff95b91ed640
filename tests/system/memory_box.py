"""A box that holds its objects in a list, for control.server and web.admin to talk to, and the server running on it."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import uvloop

from accelerator.control.server import AuditEntry, ControlLimits, ControlServer
from accelerator.errors import ControlError

REPOSITORY = Path(__file__).resolve().parents[2]
LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}
HOSTILE = "http://a.example/\x1b]0;owned\x07\u202egnp.ts[red]:smile:"


def stored(url: str, origin: str = "media", **changed: Any) -> dict[str, Any]:
    plain = {"status": 200, "size_bytes": 1000, "age_s": 5.0, "ttl_s": 55.0, "state": "fresh", "class": None}
    return {"url": url, "origin": origin, "kind": "segment", "hits": 3, **plain, **changed}


def upstream(origin: str, **changed: Any) -> dict[str, Any]:
    plain = {"upstream": f"http://{origin}.example", "state": "ok", "failures": 0, "trial_in_s": 0.0, "error": ""}
    return {"origin": origin, **plain, **changed}


class MemoryBox:
    """Implements control.box.Box."""

    def __init__(self) -> None:
        self.objects = [
            stored(f"http://a.example/live/{n}.ts", size_bytes=1000 * n, age_s=n, ttl_s=60 - n) for n in range(1, 6)
        ]
        self.objects.append(stored("http://a.example/vod/film.mp4", "library", size_bytes=2**31))
        self.reasons: list[str] = []
        self.requests = 0
        self.refusals: list[tuple[str, str]] = []
        self.origin_names = ["media", "library"]
        self.events: list[dict[str, Any]] = []
        self._live: dict[str, Any] | None = None

    def status(self) -> dict[str, Any]:
        return {
            "site": "lyon",
            "version": "0.1.0",
            "uptime_s": 3725.0,
            "listeners": [{"name": "lan", "address": "127.0.0.1:43211", "accepting": True}],
            "admin": "127.0.0.1:43212",
            "certificates": [],
            "policy": {"generation": 7, "digest": "ab" * 32, "path": "/etc/accelerator"},
            "workers": [{"index": 0, "connections": 12, "alive": True}],
            "health": {"ok": not self.reasons, "reasons": self.reasons},
            "upstreams": [upstream("media"), upstream("library", state="open", failures=5, error="refused \x1b[2J")],
        }

    def cache_stats(self) -> dict[str, Any]:
        self.requests += 100
        return {
            "requests": self.requests,
            "hits": self.requests * 9 // 10,
            "misses": self.requests // 20,
            "collapsed": self.requests // 20,
            "passed": 0,
            "refused": 0,
            "bytes_to_viewers": self.requests * 1_000_000,
            "bytes_from_origin": self.requests * 1000,
            "objects": len(self.objects),
            "memory_bytes": 3 * 2**20,
            "memory_limit_bytes": 512 * 2**20,
            "evictions": 4,
        }

    async def cache_list(
        self, *, prefix: str | None, contains: str | None, origin: str | None, class_name: str | None, sort: str,
        offset: int, limit: int,
    ) -> dict[str, Any]:  # fmt: skip
        await asyncio.sleep(0)  # a coroutine that really waits: the server has to cope with both sorts
        found = [each for each in self.objects if self._is_wanted(each, None, prefix, origin)]
        found = [each for each in found if (contains or "") in each["url"]]
        column = {"url": "url", "size": "size_bytes", "age": "age_s", "ttl": "ttl_s"}[sort]
        found = [each for each in found if class_name in (None, each["class"])]
        found.sort(key=lambda each: each[column], reverse=sort != "url")
        return {"total": len(found), "objects": found[offset : offset + limit]}

    def cache_purge(
        self, *, url: str | None, prefix: str | None, origin: str | None, tag: str | None = None
    ) -> dict[str, Any]:
        if origin is not None and origin not in self.origin_names:
            raise ControlError("unknown-origin", f"no origin {origin!r}")
        if url == "http://a.example/fault":
            raise RuntimeError("a fault of the box")
        gone = [each for each in self.objects if self._is_wanted(each, url, prefix, origin)]
        self.objects = [each for each in self.objects if each not in gone]
        return {"purged": len(gone)}

    def top(self) -> dict[str, Any]:
        counters = {**self.cache_stats(), "connections": 12}
        origins = [
            {
                "name": name,
                "requests": self.requests,
                "hits": self.requests // 2,
                "bytes_to_viewers": self.requests * 10,
                "bytes_from_origin": self.requests,
                "connections": 2,
                "errors": 0,
                "upstreams": 1,
                "upstreams_out": 0,
            }
            for name in self.origin_names
        ]
        return {"now_ns": time.monotonic_ns(), "counters": counters, "origins": origins, "listeners": []}

    def relay_list(self) -> dict[str, Any]:
        return {"relays": []}

    def relay_metrics(self) -> tuple[dict[str, str], list[tuple[str, dict[str, int], dict[str, float]]]]:
        return {"lost": "packets that never came"}, [("hall", {"lost": 3}, {"live": 1.0})]

    def note_refused(self, kind: str, what: str) -> None:
        self.refusals.append((kind, what))

    def live(self) -> dict[str, Any]:
        """The same until `renew` is called, as a box gives it."""
        if self._live is None:
            status, top = self.status(), self.top()
            row = {"level": "ok", "class": None, "hit_ratio": 0.5, "upstreams": [], "objects": 1, "stored_bytes": 9}
            rates = dict.fromkeys(("requests_per_s", "to_viewers_bps", "from_origin_bps"), 1.0)
            self._live = {
                "number": 1, "at_s": time.time(), "level": "ok", "findings": [], "last_event": len(self.events),
                **status, "counters": top["counters"], "n_origins": len(top["origins"]), "classes": [], "relays": [],
                "now": {**rates, "refused_per_s": 0.0, "hit_ratio": 0.9, "collapsed_ratio": 0.05},
                "origins": [{**origin, **row, **rates, "errors_minute": 0} for origin in top["origins"]],
            }  # fmt: skip
        return self._live

    def recent(self) -> dict[str, Any]:
        return {key: [1.0, 2.0] for key in ("at_s", "to_viewers_bps", "from_origin_bps", "requests_per_s")}

    def renew(self) -> None:
        self._live = None

    def events_after(self, *, number: int) -> dict[str, Any]:
        return {"last": len(self.events), "events": self.events[number:]}

    def policy_history(self) -> dict[str, Any]:
        return {"running": 1, "entries": []}

    def policy_text(self, *, number: int | None) -> dict[str, Any]:
        if number not in (None, 1):
            raise ControlError("no-such-entry", "the history has no such policy")
        return {"number": 1, "files": [{"name": "policy.yaml", "text": "version: 1\n"}]}

    def policy_rollback(self, *, to: int | None) -> dict[str, Any]:
        return {"number": to}

    def object_purge(self, *, name: str) -> dict[str, Any]:
        gone = [each for each in self.objects if each["url"].endswith(name)]
        self.objects = [each for each in self.objects if each not in gone]
        return {"purged": len(gone), "url": gone[0]["url"] if gone else ""}

    def counters(self) -> dict[str, tuple[float, str]]:
        return {"requests": (self.requests, "Requests answered"), "refused_head": (3, "Heads refused,\n\\ by syntax")}

    def gauges(self) -> dict[str, tuple[float, str]]:
        return {"memory_bytes": (3 * 2**20, "Memory in use"), "objects": (len(self.objects), "Objects")}

    @staticmethod
    def _is_wanted(each: Mapping[str, Any], url: str | None, prefix: str | None, origin: str | None) -> bool:
        return (
            (url is None or each["url"] == url)
            and (prefix is None or each["url"].startswith(prefix))
            and (origin is None or each["origin"] == origin)
        )


class LoopThread:
    """An event loop in a thread of its own: what runs there answers while the test blocks."""

    def __init__(self, loop: str = "uvloop") -> None:
        self.loop = LOOPS[loop]()
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(20)

    def __enter__(self) -> LoopThread:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(20)
        self.loop.close()


class RunningControl:
    """A control server on a memory box, on a real socket."""

    def __init__(
        self, path: Path, *, loop: str = "uvloop", limits: ControlLimits | None = None, group_id: int | None = None
    ) -> None:
        self.path = path
        self.box = MemoryBox()
        self.audited: list[AuditEntry] = []
        self.thread = LoopThread(loop)
        self.server = ControlServer(self.box, path, audit=self.audited.append, limits=limits, group_id=group_id)

    def __enter__(self) -> RunningControl:
        try:
            self.thread.run(self.server.start())
        except BaseException:
            self.thread.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self.thread:
            self.thread.run(self.server.stop())


def accelctl(
    *arguments: str, socket_path: Path | None = None, prefix: tuple[str, ...] = (), **environment: str
) -> subprocess.CompletedProcess[str]:
    """The real program, in a process of its own."""
    settings = {name: value for name, value in os.environ.items() if name not in ("ACCELERATOR_SOCKET", "NO_COLOR")}
    settings |= {"PYTHONPATH": str(REPOSITORY), **environment}
    if socket_path is not None:
        settings["ACCELERATOR_SOCKET"] = str(socket_path)
    command = [*prefix, sys.executable, "-m", "accelerator.cli", *arguments]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=60,
        env=settings,
        cwd="/",
        stdin=subprocess.DEVNULL,
        check=False,
    )


def wait_until(is_true: Callable[[], bool], *, seconds: float = 10.0) -> None:
    """Look again and again; fails after `seconds`."""
    end = time.monotonic() + seconds
    event = threading.Event()
    while not is_true():
        assert time.monotonic() < end, "waited in vain"
        event.wait(0.005)
