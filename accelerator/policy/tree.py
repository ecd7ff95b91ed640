"""The tree of a policy's text: what was written, and where. Values have no type yet; no file is read here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple


class Mark(NamedTuple):
    """A place in a file; line and column count from 1, columns in characters."""

    file: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


@dataclass(slots=True)
class Text:
    """A scalar as it was written, unescaped. `is_empty`: nothing was written at all (`key:`), not even quotes."""

    mark: Mark
    text: str
    is_empty: bool = False


@dataclass(slots=True)
class Items:
    """A list."""

    mark: Mark
    items: list[Node]


class Entry(NamedTuple):
    """A value of a map, with the place of its key."""

    key_mark: Mark
    value: Node


@dataclass(slots=True)
class Map:
    """A map; keys in the order in which they were written."""

    mark: Mark
    entries: dict[str, Entry]


Node = Text | Items | Map
Plain = str | list["Plain"] | dict[str, "Plain"] | None
Path = tuple[str | int, ...]


def plain(node: Node) -> Plain:
    """The tree without its marks: text, lists, maps; None where nothing was written."""
    if isinstance(node, Map):
        return {key: plain(entry.value) for key, entry in node.entries.items()}
    if isinstance(node, Items):
        return [plain(item) for item in node.items]
    return None if node.is_empty else node.text


def walk(root: Map, path: Path) -> Iterator[tuple[Mark, Node]]:
    """(place of the key or item, node) for each step of `path`, as far as the tree goes."""
    node: Node = root
    for step in path:
        if isinstance(node, Map) and isinstance(step, str) and step in node.entries:
            mark, node = node.entries[step]
        elif isinstance(node, Items) and isinstance(step, int) and step < len(node.items):
            node = node.items[step]
            mark = node.mark
        else:
            return
        yield mark, node


def key_mark(root: Map, path: Path) -> Mark:
    """Where the last key of `path` that exists was written; the file's start when none does."""
    marks = [mark for mark, _ in walk(root, path)]
    return marks[-1] if marks else Mark(root.mark.file, 1, 1)


def value_mark(root: Map, path: Path) -> Mark:
    """Where the value at `path` begins; its key where the value is empty; else the last key that exists."""
    steps = list(walk(root, path))
    if len(steps) != len(path) or not steps:
        return key_mark(root, path)
    mark, node = steps[-1]
    return mark if isinstance(node, Text) and node.is_empty else node.mark


def remove(root: Map, path: Path) -> None:
    """Take the value at `path` out of the tree, with its key; nothing where there is none."""
    parents: list[Node] = [root, *(node for _, node in walk(root, path[:-1]))]
    if len(parents) != len(path):
        return
    parent, step = parents[-1], path[-1]
    if isinstance(parent, Map) and isinstance(step, str):
        parent.entries.pop(step, None)
    elif isinstance(parent, Items) and isinstance(step, int) and step < len(parent.items):
        del parent.items[step]


def put(root: Map, path: Path, value: Node) -> None:
    """Set the key at the end of `path`, whose sections above are there; nothing where they are not."""
    parents: list[Node] = [root, *(node for _, node in walk(root, path[:-1]))]
    parent, step = parents[-1], path[-1]
    if len(parents) == len(path) and isinstance(parent, Map) and isinstance(step, str):
        parent.entries[step] = Entry(value.mark, value)
    elif len(parents) == len(path) and isinstance(parent, Text) and parent.is_empty and len(path) > 1:
        put(root, path[:-1], Map(parent.mark, {str(step): Entry(value.mark, value)}))
