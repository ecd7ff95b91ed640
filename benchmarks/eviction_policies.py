"""LRU, SIEVE and S3-FIFO written plainly from their papers, and the box's own store behind the same two lines.

`policy.get(key, size)` says whether it was a hit, and admits it where it was not. Sizes are bytes. Nothing here
measures. tests/store/test_eviction_policies.py holds them against tables computed by hand.
"""

from __future__ import annotations

import sys
import time
from collections import OrderedDict, deque
from pathlib import Path
from typing import Protocol

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

HOUR_NS = 3600 * 10**9


class Policy(Protocol):
    def get(self, key: int, size: int) -> bool: ...


class Lru:
    def __init__(self, capacity: int) -> None:
        self.capacity, self.used = capacity, 0
        self.kept: OrderedDict[int, int] = OrderedDict()  # the least recently used first

    def get(self, key: int, size: int) -> bool:
        if key in self.kept:
            self.kept.move_to_end(key)
            return True
        if size > self.capacity:
            return False
        while self.used + size > self.capacity:
            self.used -= self.kept.popitem(last=False)[1]
        self.kept[key] = size
        self.used += size
        return False


class _Node:
    __slots__ = ("key", "newer", "older", "size", "visited")

    def __init__(self, key: int, size: int) -> None:
        self.key, self.size, self.visited = key, size, False
        self.newer: _Node | None = None
        self.older: _Node | None = None


class Sieve:
    """Zhang et al., NSDI 2024, algorithm 1: one queue, one hand from the tail to the head, one bit.

    `most`: what is larger is not admitted (0: everything that fits is)."""

    def __init__(self, capacity: int, most: int = 0) -> None:
        self.capacity, self.used, self.most = capacity, 0, most or capacity
        self.kept: dict[int, _Node] = {}
        self._newest: _Node | None = None
        self._oldest: _Node | None = None
        self._hand: _Node | None = None

    def get(self, key: int, size: int) -> bool:
        node = self.kept.get(key)
        if node is not None:
            node.visited = True
            return True
        if size > self.most:
            return False
        while self.used + size > self.capacity:
            self._evict()
        node = _Node(key, size)
        node.older = self._newest
        if self._newest is not None:
            self._newest.newer = node
        self._newest = node
        self._oldest = self._oldest or node
        self.kept[key] = node
        self.used += size
        return False

    def _evict(self) -> None:
        node = self._hand or self._oldest
        assert node is not None
        while node.visited:
            node.visited = False
            node = node.newer or self._oldest
            assert node is not None
        self._hand = node.newer
        if node.newer is not None:
            node.newer.older = node.older
        else:
            self._newest = node.older
        if node.older is not None:
            node.older.newer = node.newer
        else:
            self._oldest = node.newer
        del self.kept[node.key]
        self.used -= node.size


class S3Fifo:
    """Yang et al., SOSP 2023, algorithm 1: a tenth for newcomers, the rest for what was asked for again, and a ghost
    queue of as many names as the main queue holds."""

    def __init__(self, capacity: int) -> None:
        self.capacity, self.small_most = capacity, capacity // 10
        self.small: deque[int] = deque()
        self.main: deque[int] = deque()
        self.ghost: OrderedDict[int, None] = OrderedDict()
        self.sizes: dict[int, int] = {}
        self.freq: dict[int, int] = {}
        self.used = self.used_small = 0

    def get(self, key: int, size: int) -> bool:
        if key in self.sizes:
            self.freq[key] = min(self.freq[key] + 1, 3)
            return True
        if size > self.capacity:
            return False
        while self.used + size > self.capacity:
            if (self.used_small >= self.small_most and self.small) or not self.main:
                self._evict_small()
            else:
                self._evict_main()
        if key in self.ghost:
            del self.ghost[key]
            self.main.append(key)
        else:
            self.small.append(key)
            self.used_small += size
        self.sizes[key], self.freq[key] = size, 0
        self.used += size
        return False

    def _evict_small(self) -> None:
        while self.small:
            key = self.small.popleft()
            self.used_small -= self.sizes[key]
            if self.freq[key] > 1:
                self.freq[key] = 0
                self.main.append(key)
                continue
            self._drop(key)
            self.ghost[key] = None
            while len(self.ghost) > max(1, len(self.main)):
                self.ghost.popitem(last=False)
            return

    def _evict_main(self) -> None:
        while True:
            key = self.main.popleft()
            if self.freq[key] == 0:
                self._drop(key)
                return
            self.freq[key] -= 1
            self.main.append(key)

    def _drop(self, key: int) -> None:
        self.used -= self.sizes.pop(key)
        del self.freq[key]


class Store:
    """The box's own store (ext/store.pyx), driven as the control plane and a worker do; bodies are accounted, not
    written.

    `capacity` is for objects: what the store leaves free for connections comes on top. Heads and rows are in it."""

    def __init__(self, capacity: int) -> None:
        from ext.plane import Plane

        self.plane = Plane(1, capacity + min(capacity // 31, 64 << 20))
        self.n_refused = 0

    def get(self, key: int, size: int) -> bool:
        name = b"/%x" % key
        found = self.plane.find(1, name)
        if found and found[0].is_whole:
            found[0].visit()
            return True
        if found:
            found[0].detach()  # larger than all memory: part of it had to go while it came
        now_ns = time.monotonic_ns()
        stored = self.plane.create(
            1, size, 200, b"HTTP/1.1 200 OK\r\n", b"Content-Type: video/mp4\r\n", b"", b'"x"', -1, now_ns + HOUR_NS, 0,
            0, now_ns, 0, False, True,
        )  # fmt: skip
        if stored is None or not stored.insert(name, b"", b""):
            self.n_refused += 1
            return False
        offset = 0
        while offset < size:
            room = stored.room(offset, size - offset)
            if room is None:
                self.n_refused += 1
                stored.fail()
                return False
            stored.commit(offset, len(room))
            offset += len(room)
        stored.finish(size)
        return False
