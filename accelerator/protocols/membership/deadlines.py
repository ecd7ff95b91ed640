"""Deadlines by key, most of which are put off before they are due: a heap that is corrected when it is looked at. Group
timers are refreshed by every report, so a heap entry for each refresh would grow without bound."""

from __future__ import annotations

from heapq import heappop, heappush


class Deadlines:
    """Keys are packed addresses. Times are those of the caller's clock, in seconds."""

    def __init__(self) -> None:
        self._when: dict[bytes, float] = {}
        # The earliest entry that the heap has for a key. Entries that don't equal it are leftovers.
        self._queued: dict[bytes, float] = {}
        self._heap: list[tuple[float, bytes]] = []

    def __len__(self) -> int:
        return len(self._when)

    def __contains__(self, key: bytes) -> bool:
        return key in self._when

    def get(self, key: bytes) -> float | None:
        return self._when.get(key)

    def set(self, key: bytes, when_s: float | None) -> None:
        """Sets, moves or (None) removes the key's deadline."""
        if when_s is None:
            self._when.pop(key, None)
            return
        self._when[key] = when_s
        if when_s < self._queued.get(key, float("inf")):
            self._push(key, when_s)

    def clear(self) -> None:
        self._when.clear()
        self._queued.clear()
        self._heap.clear()

    def next(self) -> float | None:
        """The earliest deadline."""
        while self._heap:
            at_s, key = self._heap[0]
            if self._queued.get(key) == at_s:
                when_s = self._when.get(key)
                if when_s == at_s:
                    return at_s
                heappop(self._heap)
                del self._queued[key]
                if when_s is not None:
                    self._push(key, when_s)
            else:
                heappop(self._heap)
        return None

    def pop_due(self, now_s: float) -> list[bytes]:
        """Removes and returns the keys whose deadline has come, earliest first."""
        due = []
        while (at_s := self.next()) is not None and at_s <= now_s:
            _, key = heappop(self._heap)
            del self._queued[key]
            del self._when[key]
            due.append(key)
        return due

    def _push(self, key: bytes, when_s: float) -> None:
        heappush(self._heap, (when_s, key))
        self._queued[key] = when_s
        # Keys that come and go at a flood's rate would leave an entry each until its time.
        if len(self._heap) > 2 * len(self._when) + 256:
            self._queued = dict(self._when)
            self._heap = sorted((at_s, each) for each, at_s in self._when.items())
