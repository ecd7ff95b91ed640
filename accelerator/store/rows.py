"""Flat rows and an open-addressing table of their numbers (linear probing), in numpy arrays. No meaning of columns."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

# The golden ratio's multiplier (Knuth, TAOCP 3, section 6.4): spreads numbers that differ little.
_SPREAD = 0x9E3779B97F4A7C15
_WORD = (1 << 64) - 1
FIRST_ROWS = 1024
# Slots for each row: at two, a look-up that finds nothing takes 2.5 probes (Knuth, section 6.4).
SLOTS_PER_ROW = 2


class Rows:
    """Rows of `columns` (name, dtype), found by the values of `hash_a` and, where it is named, `hash_b`.

    Row numbers stay until `remove`. Columns are arrays in `array` and, for single values, memoryviews in `at`.
    """

    def __init__(self, columns: tuple[tuple[str, str], ...], hash_a: str, hash_b: str | None = None) -> None:
        self.columns = columns
        self._hash_a, self._hash_b = hash_a, hash_b
        self.array: dict[str, Array] = {name: np.zeros(FIRST_ROWS, dtype) for name, dtype in columns}
        self.at: dict[str, memoryview] = {}
        self.used = np.zeros(FIRST_ROWS, "u1")
        self.n_high = 0  # rows ever used: none above
        self.n_live = 0
        self._free: list[int] = []
        self.slots: Array = np.zeros(1, "<u4")
        self._view()
        self._rebuild(FIRST_ROWS * SLOTS_PER_ROW)

    @property
    def n_bytes(self) -> int:
        return sum(array.nbytes for array in self.array.values()) + self.used.nbytes + self.slots.nbytes

    def home(self, a: int, b: int = 0) -> int:
        mixed = (a ^ b * 0xD6E8FEB86659FD93 & _WORD) * _SPREAD & _WORD
        return (mixed >> 20) & self._mask

    def find(self, a: int, b: int = 0) -> Iterator[int]:
        """Rows whose hashed columns are these."""
        slots, mask = self._slots, self._mask
        first = self.at[self._hash_a]
        second = self.at[self._hash_b] if self._hash_b is not None else None
        i = self.home(a, b)
        while row := slots[i]:
            if first[row - 1] == a and (second is None or second[row - 1] == b):
                yield row - 1
            i = (i + 1) & mask

    def add(self, **values: int) -> int:
        """A new row; its number."""
        if self._free:
            row = self._free.pop()
        else:
            if self.n_high == len(self.used):
                self._grow()
            row = self.n_high
            self.n_high += 1
        for name, _ in self.columns:
            self.at[name][row] = values.get(name, 0)
        self._used[row] = 1
        self.n_live += 1
        i = self._home_of(row)
        slots, mask = self._slots, self._mask
        while slots[i]:
            i = (i + 1) & mask
        slots[i] = row + 1
        return row

    def remove(self, row: int) -> None:
        slots, mask = self._slots, self._mask
        i = self._home_of(row)
        while slots[i] != row + 1:
            i = (i + 1) & mask
        # Backward shift (Knuth, section 6.4, algorithm R): no tombstones, so a table that lives for years stays quick.
        j = i
        while True:
            j = (j + 1) & mask
            following = slots[j]
            if not following:
                break
            if (j - self._home_of(following - 1)) & mask >= (j - i) & mask:
                slots[i] = following
                i = j
        slots[i] = 0
        self._used[row] = 0
        self.n_live -= 1
        self._free.append(row)

    def remove_many(self, rows: Array) -> None:
        """Rows by number, all at once: the table is made anew where that is quicker."""
        if len(rows) < 2000 or len(rows) < self.n_live // 64:
            for row in rows.tolist():
                self.remove(row)
            return
        self.used[rows] = 0
        self.n_live -= len(rows)
        self._free += rows.tolist()
        self._rebuild(len(self.slots))

    def live(self) -> Array:
        """Numbers of the rows in use."""
        return np.flatnonzero(self.used[: self.n_high])

    # -- as bytes ------------------------------------------------------------------------------------------------------

    def dump(self) -> list[bytes]:
        """Columns, use and slots: a copy, in an order that `load` knows."""
        parts = [self.array[name][: self.n_high].tobytes() for name, _ in self.columns]
        return [*parts, self.used[: self.n_high].tobytes(), self.slots.tobytes()]

    def size_of_dump(self, n_high: int, n_slots: int) -> int:
        return n_high * (sum(np.dtype(dtype).itemsize for _, dtype in self.columns) + 1) + 4 * n_slots

    def load(self, data: memoryview, n_high: int, n_slots: int) -> int:
        """Takes what `dump` gave from the start of `data`; bytes taken. After a ValueError it is to be thrown away."""
        if len(data) < self.size_of_dump(n_high, n_slots):
            raise ValueError("shorter than its rows")
        is_power = n_slots & (n_slots - 1) == 0
        if n_slots < FIRST_ROWS or not is_power or n_high * SLOTS_PER_ROW > n_slots:
            raise ValueError("a table of a size that is never written")
        at = 0
        # A power of two, as slots are found by a mask: in twice any other number of them a search can go in circles.
        room = max(FIRST_ROWS, 1 << max(0, n_high - 1).bit_length())
        for name, dtype in self.columns:
            array = np.zeros(room, dtype)
            size = n_high * array.itemsize
            array[:n_high] = np.frombuffer(data[at : at + size], dtype)
            self.array[name] = array
            at += size
        self.used = np.zeros(room, "u1")
        self.used[:n_high] = np.frombuffer(data[at : at + n_high], "u1")
        at += n_high
        self.slots = np.frombuffer(data[at : at + 4 * n_slots], "<u4").copy()
        at += 4 * n_slots
        self.n_high = n_high
        self.n_live = int(np.count_nonzero(self.used))
        # A slot that points nowhere would be an endless search or a foreign row: better no checkpoint than that.
        if (n_slots and int(self.slots.max()) > n_high) or int(np.count_nonzero(self.slots)) != self.n_live:
            raise ValueError("slots that belong to other rows")
        self._free = np.flatnonzero(self.used[:n_high] == 0).tolist()
        self._mask = n_slots - 1
        self._view()
        return at

    # -- inside --------------------------------------------------------------------------------------------------------

    def _home_of(self, row: int) -> int:
        return self.home(self.at[self._hash_a][row], self.at[self._hash_b][row] if self._hash_b is not None else 0)

    def _view(self) -> None:
        self.at = {name: memoryview(array.data) for name, array in self.array.items()}
        self._used = memoryview(self.used.data)
        self._slots = memoryview(self.slots.data)

    def _grow(self) -> None:
        room = len(self.used) * 2
        for name, array in self.array.items():
            grown = np.zeros(room, array.dtype)
            grown[: len(array)] = array
            self.array[name] = grown
        used = np.zeros(room, "u1")
        used[: len(self.used)] = self.used
        self.used = used
        self._view()
        self._rebuild(room * SLOTS_PER_ROW)

    def _rebuild(self, n_slots: int) -> None:
        self.slots = np.zeros(n_slots, "<u4")
        self._mask = n_slots - 1
        rows = self.live()
        a = self.array[self._hash_a][rows].astype("u8")
        mixed = a
        if self._hash_b is not None:
            mixed = a ^ self.array[self._hash_b][rows].astype("u8") * np.uint64(0xD6E8FEB86659FD93)
        at = (mixed * np.uint64(_SPREAD) >> np.uint64(20)).astype("i8") & self._mask
        # All at once: who finds its slot taken goes on to the next, so that none lies behind an empty one.
        while len(rows):
            is_free = self.slots[at] == 0
            self.slots[at[is_free]] = rows[is_free] + 1
            is_left = self.slots[at] != rows + 1
            rows, at = rows[is_left], (at[is_left] + 1) & self._mask
        self._view()
