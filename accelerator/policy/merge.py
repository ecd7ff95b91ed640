"""Merges the trees of files: maps by key, lists and scalars replace, `locked:` keys stay. Knows no other key."""

from __future__ import annotations

from collections.abc import Sequence

from accelerator.errors import Problem
from accelerator.policy.tree import Entry, Items, Map, Mark, Node, Text

LOCKED = "locked"

_Keys = tuple[str, ...]


class _Merge:
    def __init__(self, problems: list[Problem]) -> None:
        self._problems = problems
        self._locks: dict[_Keys, Mark] = {}
        self._locks_below: dict[_Keys, tuple[_Keys, Mark]] = {}  # for each path above a lock, the first lock below it

    def add_locks(self, tree: Map) -> None:
        """The locks of one file hold for the files after it."""
        entry = tree.entries.get(LOCKED)
        if entry is None or not isinstance(entry.value, Items):
            return
        for item in entry.value.items:
            if isinstance(item, Text):
                keys = tuple(item.text.split("."))
                self._locks.setdefault(keys, item.mark)
                for length in range(1, min(len(keys), 20)):
                    self._locks_below.setdefault(keys[:length], (keys, item.mark))

    def put(self, base: Map, over: Map, path: _Keys) -> None:
        """Lay `over` on `base`, which is changed."""
        for key, entry in over.entries.items():
            keys = (*path, key)
            old = base.entries.get(key)
            is_section = isinstance(entry.value, Map) or (
                old is not None
                and isinstance(old.value, Map)
                and isinstance(entry.value, Text)
                and entry.value.is_empty
            )
            if keys in self._locks and not (is_section and not isinstance(entry.value, Map)):
                self._refuse(entry.key_mark, keys, self._locks[keys])
            elif not is_section and keys in self._locks_below:
                self._refuse(entry.key_mark, *self._locks_below[keys])
            elif keys == (LOCKED,) and old is not None:
                base.entries[key] = Entry(old.key_mark, _joined(old.value, entry.value))
            elif isinstance(entry.value, Map):
                self._put_map(base, key, entry, keys)
            elif not is_section:  # an empty section lays nothing on the map that is there
                base.entries[key] = entry

    def _put_map(self, base: Map, key: str, entry: Entry, keys: _Keys) -> None:
        assert isinstance(entry.value, Map)
        old = base.entries.get(key)
        if old is not None and isinstance(old.value, Map):
            self.put(old.value, entry.value, keys)
            return
        below = Map(entry.value.mark, {})
        self.put(below, entry.value, keys)  # not taken whole: locks may name keys that are not there yet
        if below.entries or not entry.value.entries:
            base.entries[key] = Entry(entry.key_mark, below)

    def _refuse(self, mark: Mark, keys: _Keys, lock: Mark) -> None:
        message = f"'{'.'.join(keys)}' can't be set here: {lock} locks it"
        self._problems.append(Problem(*mark, message))


def _joined(first: Node, second: Node) -> Node:
    """Locks of both files: no file takes another's lock away, although lists replace."""
    if isinstance(first, Items) and isinstance(second, Items):
        return Items(first.mark, first.items + second.items)
    return first if isinstance(first, Items) else second


def merge(trees: Sequence[Map], problems: list[Problem]) -> Map:
    """One tree of all, in order. A key that an earlier file locks stays as it was; `problems` tells both places."""
    if len(trees) == 1:
        return trees[0]
    state = _Merge(problems)
    root = Map(trees[0].mark if trees else Mark("", 0, 0), {})
    for tree in trees:
        state.put(root, tree, ())
        state.add_locks(tree)
    return root
