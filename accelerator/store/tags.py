"""Which heads have a tag: flat rows, chained by the tag's bucket, so that a tag of a million objects costs no more to
add to than one of three. Pure; knows rows of heads by their number and sequence, not what they are.

Rows of heads that are gone stay until `sweep`: a look-up passes over them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from accelerator.store.rows import Array

FIRST_ROWS = 1024
_SPREAD = np.uint64(0x9E3779B97F4A7C15)
_COLUMNS = (("tag", "u8"), ("sequence", "u8"), ("owner", "u4"))


class TagRows:
    def __init__(self) -> None:
        self.n = 0
        self._take({name: np.zeros(FIRST_ROWS, dtype) for name, dtype in _COLUMNS}, 0)

    @property
    def n_bytes(self) -> int:
        return sum(array.nbytes for array in self._array.values()) + self._following.nbytes + self._slots.nbytes

    def add(self, tag: int, sequence: int, owner: int) -> None:
        if self.n == len(self._following):
            grown = {name: np.concatenate([each, np.zeros_like(each)]) for name, each in self._array.items()}
            self._take(grown, self.n)
        row = self.n
        self.n += 1
        self._tag[row], self._sequence[row], self._owner[row] = tag, sequence, owner
        slot = self._slot_of(tag)
        self._next[row] = self._first[slot]
        self._first[slot] = row + 1

    def find(self, tag: int) -> Iterator[tuple[int, int]]:
        """(row of a head, its sequence when it was tagged), the newest first."""
        at = self._first[self._slot_of(tag)]
        while at:
            if self._tag[at - 1] == tag:
                yield self._owner[at - 1], self._sequence[at - 1]
            at = self._next[at - 1]

    def sweep(self, sequences: Array) -> None:
        """Forgets what was tagged of heads that are gone, by the sequence that each row of heads has now."""
        rows = {name: each[: self.n] for name, each in self._array.items()}
        is_live = sequences[rows["owner"]] == rows["sequence"]
        if int(np.count_nonzero(is_live)) * 4 > self.n * 3:
            return  # not worth it yet
        kept = np.unique(np.stack([rows[name][is_live].astype("u8") for name, _ in _COLUMNS]), axis=1)
        self._load([kept[i].astype(dtype) for i, (_, dtype) in enumerate(_COLUMNS)])

    # -- as bytes ------------------------------------------------------------------------------------------------------

    def dump(self) -> list[bytes]:
        return [self._array[name][: self.n].tobytes() for name, _ in _COLUMNS]

    @staticmethod
    def size_of_dump(n: int) -> int:
        return n * sum(np.dtype(dtype).itemsize for _, dtype in _COLUMNS)

    def load(self, data: memoryview, n: int) -> int:
        """Takes what `dump` gave from the start of `data`; bytes taken. Raises ValueError."""
        if len(data) < self.size_of_dump(n):
            raise ValueError("shorter than its rows")
        columns, at = [], 0
        for _, dtype in _COLUMNS:
            size = n * np.dtype(dtype).itemsize
            columns.append(np.frombuffer(data[at : at + size], dtype))
            at += size
        self._load(columns)
        return at

    @property
    def owner_most(self) -> int:
        return int(self._array["owner"][: self.n].max()) if self.n else 0

    # -- inside --------------------------------------------------------------------------------------------------------

    def _load(self, columns: list[Array]) -> None:
        n = len(columns[0])
        room = max(FIRST_ROWS, n + n // 4)
        arrays: dict[str, Array] = {}
        for (name, dtype), column in zip(_COLUMNS, columns, strict=True):
            arrays[name] = np.zeros(room, dtype)
            arrays[name][:n] = column
        self._take(arrays, n)

    def _take(self, arrays: dict[str, Array], n: int) -> None:
        """These rows from here on, of which `n` are used; their chains are made anew, all at once."""
        self._array, self.n = arrays, n
        room = len(arrays["tag"])
        self._mask = (1 << max(10, (room - 1).bit_length())) - 1
        self._following = np.zeros(room, "u4")
        self._slots: Array = np.zeros(self._mask + 1, "u4")
        if n:
            slots = ((arrays["tag"][:n] * _SPREAD) >> np.uint64(20)) & np.uint64(self._mask)
            order = np.argsort(slots, kind="stable")
            is_last = np.append(slots[order][1:] != slots[order][:-1], True)
            # Each is followed by the one before it in its slot; the slot itself leads to its last.
            self._following[order[1:]] = np.where(is_last[:-1], 0, order[:-1] + 1)
            self._slots[slots[order][is_last].astype("i8")] = order[is_last] + 1
        view: dict[str, Any] = {name: memoryview(each.data) for name, each in arrays.items()}
        self._tag, self._sequence, self._owner = view["tag"], view["sequence"], view["owner"]
        self._next, self._first = memoryview(self._following.data), memoryview(self._slots.data)

    def _slot_of(self, tag: int) -> int:
        return (tag * int(_SPREAD) & (1 << 64) - 1) >> 20 & self._mask
