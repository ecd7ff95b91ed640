"""What is remembered of keys besides their objects: not shareable, clocks, parts that don't combine. No decision."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any
from urllib.parse import urljoin, urlsplit

from accelerator import clock
from accelerator.services.objects.heads import NS

# Per origin: a manifest that names thousands of clocks can't push another origin's out.
TIMING_URLS_MAX = 256
UNCOMBINABLE_MAX = 65536
UNCOMBINABLE_S = 60.0

Key = tuple[int, bytes]


class Remembered:
    """Keys are (origin row, key)."""

    def __init__(self, plane: Any) -> None:
        self._plane = plane
        self._timing: dict[int, set[bytes]] = {}
        self._uncombinable: OrderedDict[Key, int] = OrderedDict()

    def not_shareable(self, key: Key, seconds: float) -> None:
        """Nobody queues behind this key's responses for so long."""
        self._plane.mark_unshareable(*key, clock.monotonic_ns() + int(seconds * NS))

    def uncombinable(self, key: Key) -> None:
        """Parts of it come without strong validator: a range is asked for exactly as the viewer wants it."""
        self._uncombinable.pop(key, None)
        self._uncombinable[key] = clock.monotonic_ns() + int(UNCOMBINABLE_S * NS)
        if len(self._uncombinable) > UNCOMBINABLE_MAX:
            self._uncombinable.popitem(last=False)

    def is_uncombinable(self, key: Key) -> bool:
        return self._uncombinable.get(key, 0) > clock.monotonic_ns()

    def is_timing(self, key: Key) -> bool:
        return key[1] in self._timing.get(key[0], ())

    def timing(self, manifest_key: Key, urls: tuple[bytes, ...]) -> None:
        """URLs as the manifest names them: never stored from here on, and not kept (DESIGN.md section 5)."""
        origin_id, base = manifest_key
        known = self._timing.setdefault(origin_id, set())
        for url in urls:
            try:
                joined = urlsplit(urljoin("http://box" + base.decode("latin-1"), url.decode("latin-1")))
                path = (joined.path or "/") + (f"?{joined.query}" if joined.query else "")
                key = self._plane.key_of(origin_id, path.encode("latin-1"))
            except ValueError:  # no URL: urlsplit refuses "http://["
                continue
            if key in known or len(known) >= TIMING_URLS_MAX:
                continue
            known.add(key)
            for stored in self._plane.find(origin_id, key):
                stored.detach()


class WithdrawnTags:
    """Tags that were purged while something was under way whose tags nobody knew yet. As many as there were purges
    since the oldest request that is not answered."""

    def __init__(self) -> None:
        self._purged: OrderedDict[tuple[int, int | None], int] = OrderedDict()  # (tag, origin row or all) -> when

    def add(self, tag: int, origin_id: int | None, now_ns: int, oldest_ns: int) -> None:
        """`oldest_ns`: when the oldest of the requests that are under way was sent; `now_ns` where there is none."""
        self._purged.pop((tag, origin_id), None)
        self._purged[(tag, origin_id)] = now_ns
        while next(iter(self._purged.values())) < oldest_ns:
            self._purged.popitem(last=False)

    def covers(self, tags: tuple[int, ...], origin_id: int, requested_ns: int) -> bool:
        """Whether a response to a request of that time was purged by one of its tags."""
        if not self._purged:
            return False
        times = (self._purged.get((tag, origin), 0) for tag in tags for origin in (None, origin_id))
        return max(times, default=0) >= requested_ns
