"""Shares of the disk: what each class may take, and which classes are pinned. Decides; writes and reads nothing.

A class over its quota gives back what is least asked for. A pinned one gives nothing back by itself: what is there
stays, what comes when it is full is not kept, and the operator hears of both (docs/decisions/0141).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from accelerator import clock
from accelerator.services.disk.keys import number_of
from accelerator.services.objects.heads import NS

if TYPE_CHECKING:
    from accelerator.services.disk.log import DiskLog

# Sums over the whole index take 10 ms at 1,000,000 objects.
LOOK_S = 1.0
NEARLY_FULL = 0.9
# A class that is cut back is cut to so much of its quota, so that it isn't done again at once.
CUT_TO = 0.9


@dataclass(frozen=True, slots=True)
class Kept:
    """A class that may be on the disk. `quota_bytes` 0: no bound of its own."""

    name: str
    quota_bytes: int = 0
    is_pinned: bool = False


class Quotas:
    """`note(kind, subject, why)` hears when a pinned class is nearly full, and when it is."""

    def __init__(self, log: DiskLog, note: Callable[[str, str, str], None]) -> None:
        self.n_refused = 0
        self._log = log
        self._note = note
        self._by_number: dict[int, Kept] = {}
        self._bytes: dict[int, int] = {}
        self._since: dict[int, int] = {}  # taken since `_bytes` were summed
        self._looked_ns = 0
        self._told: dict[int, str] = {}

    def set_classes(self, kept: list[Kept]) -> None:
        self._by_number = {number_of(each.name): each for each in kept}
        self._log.pinned = frozenset(number for number, each in self._by_number.items() if each.is_pinned)
        self._told = {number: kind for number, kind in self._told.items() if number in self._log.pinned}
        self._looked_ns = 0

    def take(self, class_id: int, n_bytes: int) -> bool:
        """Whether so many bytes of a class may be written; they count from here on."""
        kept = self._by_number.get(class_id)
        if kept is None or not kept.quota_bytes:
            return True
        self._look()
        taken = self._bytes.get(class_id, 0) + self._since.get(class_id, 0) + n_bytes
        if kept.is_pinned:
            if taken > kept.quota_bytes:
                self.n_refused += 1
                self._tell(class_id, "pins-full", "what comes now is not kept for the morning")
                return False
            if taken > kept.quota_bytes * NEARLY_FULL:
                self._tell(class_id, "pins-nearly-full", f"{taken * 100 // kept.quota_bytes}% of its quota are taken")
        self._since[class_id] = self._since.get(class_id, 0) + n_bytes
        return True

    def _tell(self, class_id: int, kind: str, why: str) -> None:
        if self._told.get(class_id) != kind:
            self._told[class_id] = kind
            self._note(kind, f"class '{self._by_number[class_id].name}' is pinned", why)

    def _look(self) -> None:
        """From time to time: sums, and what has more than its share gives back."""
        now_ns = clock.monotonic_ns()
        if now_ns - self._looked_ns < LOOK_S * NS:
            return
        self._looked_ns = now_ns
        index = self._log.index
        self._bytes, self._since = index.class_bytes(), {}
        for class_id, n_bytes in self._bytes.items():
            kept = self._by_number.get(class_id)
            if kept is None or not kept.quota_bytes:
                continue
            if kept.is_pinned:
                if n_bytes <= kept.quota_bytes * NEARLY_FULL:
                    self._told.pop(class_id, None)
            elif n_bytes > kept.quota_bytes:
                index.shrink_class(class_id, n_bytes - int(kept.quota_bytes * CUT_TO))
                self._log.graves.has_unmarked = True

    def figures(self) -> dict[str, int]:
        pinned = self._log.pinned
        if pinned:
            self._look()
        return {
            "disk_pinned_bytes": sum(self._bytes.get(each, 0) + self._since.get(each, 0) for each in pinned),
            "disk_pinned_limit_bytes": sum(self._by_number[each].quota_bytes for each in pinned),
            "disk_pin_refusals": self.n_refused,
        }
