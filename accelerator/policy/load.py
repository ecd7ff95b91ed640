"""Reads a policy's files into one tree with a place for each key and value. Knows YAML; knows no key of the policy.

Only a small part of YAML is accepted: maps, lists and scalars of one document. Anchors and aliases (bombs), tags (types
that YAML would choose), duplicate keys (the last silently wins elsewhere) and keys that are no text are refused.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any

import yaml

from accelerator.errors import Problem
from accelerator.policy.merge import merge
from accelerator.policy.tree import Entry, Items, Map, Mark, Node, Text
from accelerator.policy.units import quoted

SIZE_MAX_BYTES = 2**20
DEPTH_MAX = 20
# In all files. 1 MiB of "1," would be half a million values and take 16 s to report as wrong (measured); 1,000 origins
# with every key written out are 30,000.
VALUES_MAX = 50_000
PROBLEMS_MAX = 1000
FILES_MAX = 1000

# libyaml parses 20,000 keys in 0.04 s, PyYAML's own parser in 0.6 s (measured); both count lines and columns alike.
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

# Control characters, line breaks that only YAML knows (NEL, LS, PS: editors count lines otherwise), and
# bidirectional overrides, which show a reviewer another text than the one that is read (CVE-2021-42574).
_REFUSED = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff\ufffe\uffff]")
_BREAK = re.compile("\r\n|\r|\n")


@dataclass
class Source:
    """One merged policy text. `is_whole` is false if a file could not be read to its end: a lack means nothing."""

    root: Map
    folder: str
    problems: list[Problem] = field(default_factory=list)
    is_whole: bool = True


@dataclass
class Files:
    """What a policy was read from: (name, content) pairs, or None where nothing could be read; `folder` is absolute."""

    texts: list[tuple[str, bytes]] | None
    folder: str
    problems: list[Problem]
    are_all_read: bool


class _TreeBuilder:
    """Builds one file's tree from YAML events, which are taken one by one so that a bomb is never expanded."""

    def __init__(self, file: str, text: str, problems: list[Problem], n_values: int) -> None:
        self._file = file
        self._text = text
        self._problems = problems
        self.n_values = n_values
        self.is_whole = True

    def build(self) -> Map:
        root: Node | None = None
        try:
            loader = _LOADER(self._text)
            try:
                root = self._document(loader)
            finally:
                loader.dispose()
        except yaml.MarkedYAMLError as error:
            self._stop(self._mark(error.problem_mark or error.context_mark), error.problem or "not YAML")
        except yaml.YAMLError as error:
            self._stop(Mark(self._file, 1, 1), str(error).splitlines()[0])
        if root is None or (isinstance(root, Text) and root.is_empty):
            return Map(Mark(self._file, 1, 1), {})
        if not isinstance(root, Map):
            self._stop(root.mark, "a policy is a map of keys, such as 'version: 1'")
            return Map(Mark(self._file, 1, 1), {})
        return root

    def _document(self, loader: Any) -> Node | None:
        root: Node | None = None
        documents = 0
        event = loader.get_event()
        while event is not None and not isinstance(event, yaml.StreamEndEvent):
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    self._stop(self._mark(event.start_mark), "a second document in one file: write one file for each")
                    return root
            elif not isinstance(event, yaml.StreamStartEvent | yaml.DocumentEndEvent):
                root = self._node(loader, event, 1)
                if not self.is_whole:
                    return None
            event = loader.get_event()
        return root

    def _node(self, loader: Any, event: Any, depth: int) -> Node:
        mark = self._mark(event.start_mark)
        self.n_values += 1
        if self.n_values > VALUES_MAX:
            self._stop(mark, f"more than {VALUES_MAX:,} keys and values, which no policy has")
        elif len(self._problems) > PROBLEMS_MAX:
            self.is_whole = False
        if isinstance(event, yaml.AliasEvent):
            self._problem(mark, f"alias {quoted('*' + str(event.anchor))} is refused: write the value out")
            return Text(mark, "", is_empty=True)
        if event.anchor is not None:
            self._problem(mark, f"anchor {quoted('&' + event.anchor)} is refused: write values out where they are used")
        if event.tag is not None:
            self._problem(mark, f"tag {quoted(event.tag)} is refused: values are read by what their key expects")
        if isinstance(event, yaml.ScalarEvent):
            return self._scalar(event, mark)
        if depth > DEPTH_MAX:
            self._stop(mark, f"nested deeper than {DEPTH_MAX} levels")
            return Text(mark, "", is_empty=True)
        if isinstance(event, yaml.SequenceStartEvent):
            return self._items(loader, mark, depth)
        return self._map(loader, mark, depth)

    def _scalar(self, event: Any, mark: Mark) -> Text:
        text: str = event.value
        # PyYAML's Python scanner lets "\ud800" through: no such text can be printed or sent.
        if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
            self._problem(mark, "half a surrogate pair is not a character")
            text = ""
        return Text(mark, text, is_empty=not text and not event.style)

    def _items(self, loader: Any, mark: Mark, depth: int) -> Items:
        items: list[Node] = []
        event = loader.get_event()
        while self.is_whole and not isinstance(event, yaml.SequenceEndEvent):
            items.append(self._node(loader, event, depth + 1))
            if self.is_whole:
                event = loader.get_event()
        return Items(mark, items)

    def _map(self, loader: Any, mark: Mark, depth: int) -> Map:
        entries: dict[str, Entry] = {}
        event = loader.get_event()
        while self.is_whole and not isinstance(event, yaml.MappingEndEvent):
            key = self._node(loader, event, depth + 1)
            if not self.is_whole:
                break
            value = self._node(loader, loader.get_event(), depth + 1)
            if not isinstance(key, Text) or key.is_empty:
                if not isinstance(event, yaml.AliasEvent):  # that was reported
                    self._problem(key.mark, "a key is one word of text")
            elif key.text in entries:
                first = entries[key.text].key_mark
                self._problem(key.mark, f"duplicate key {quoted(key.text)}: it is already in line {first.line}")
            else:
                entries[key.text] = Entry(key.mark, value)
            if self.is_whole:
                event = loader.get_event()
        return Map(mark, entries)

    def _mark(self, mark: Any) -> Mark:
        return Mark(self._file, 1, 1) if mark is None else Mark(self._file, mark.line + 1, mark.column + 1)

    def _problem(self, mark: Mark, message: str) -> None:
        self._problems.append(Problem(*mark, message))

    def _stop(self, mark: Mark, message: str) -> None:
        self._problem(mark, message)
        self.is_whole = False


def _place(file: str, text: str, index: int) -> Mark:
    start = 0
    line = 1
    for match in _BREAK.finditer(text, 0, index):
        line += 1
        start = match.end()
    return Mark(file, line, index - start + 1)


def _decode(file: str, data: bytes, problems: list[Problem]) -> str | None:
    """The file's text, or None with a problem."""
    if len(data) > SIZE_MAX_BYTES:
        problems.append(Problem(file, 0, 0, "larger than 1 MiB, which no policy is"))
        return None
    try:
        text = data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        before = data[: error.start].decode("utf-8")
        problems.append(Problem(*_place(file, before, len(before)), "not UTF-8"))
        return None
    refused = _REFUSED.search(text)
    if refused is not None:
        place = _place(file, text, refused.start())
        problems.append(Problem(*place, f"character U+{ord(refused.group()):04X} is refused"))
        return None
    return text


def load_texts(files: Sequence[tuple[str, bytes]], folder: str) -> Source:
    """Parse and merge files in memory, in the order given. `folder` is what relative file names start from."""
    problems: list[Problem] = []
    trees: list[Map] = []
    n_values = 0
    is_whole = True
    for file, data in files:
        text = _decode(file, data, problems)
        if text is None:
            is_whole = False
            continue
        builder = _TreeBuilder(file, text, problems, n_values)
        trees.append(builder.build())
        n_values = builder.n_values
        is_whole = is_whole and builder.is_whole
        if n_values > VALUES_MAX:
            break
    return Source(merge(trees, problems), folder, problems, is_whole)


def load(path: FilePath) -> Source:
    """Read a file, or the `*.yaml` of a directory in name order. Nothing is raised: what fails is a Problem."""
    files = read_files(path)
    if files.texts is None:
        return Source(Map(Mark(os.fspath(path), 1, 1), {}), files.folder, files.problems, is_whole=False)
    source = load_texts(files.texts, files.folder)
    source.problems += files.problems
    source.is_whole = source.is_whole and files.are_all_read
    return source


def read_files(path: FilePath) -> Files:
    """The content of a file, or of the `*.yaml` of a directory in name order, at most 1 MiB and a bit in all."""
    name = os.fspath(path)
    problems: list[Problem] = []
    try:
        is_folder = stat.S_ISDIR(os.stat(name).st_mode)
        paths = _files_of(name, problems) if is_folder else [name]
    except (OSError, ValueError) as error:
        return Files(None, os.path.abspath("."), [Problem(name, 0, 0, _reason(error))], are_all_read=False)
    folder = os.path.abspath(name if is_folder else os.path.dirname(name) or ".")
    files: list[tuple[str, bytes]] = []
    size_bytes = 0
    are_all_read = True
    for file in paths:
        try:
            data = _read(file)
        except (OSError, ValueError) as error:
            problems.append(Problem(file, 0, 0, _reason(error)))
            are_all_read = False
            continue
        size_bytes += len(data)
        if size_bytes > SIZE_MAX_BYTES and files:
            problems.append(Problem(file, 0, 0, "with this file the policy is larger than 1 MiB, which no policy is"))
            are_all_read = False
            break
        files.append((file, data))
    return Files(files, folder, problems, are_all_read)


def _files_of(folder: str, problems: list[Problem]) -> list[str]:
    names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    files = [os.path.join(folder, name) for name in names if name.endswith(".yaml")]
    problems += [
        Problem(os.path.join(folder, name), 0, 0, "not read: only *.yaml is", is_warning=True)
        for name in names
        if name.endswith(".yml")
    ]
    if not files:
        raise ValueError("no *.yaml in this directory")
    if len(files) > FILES_MAX:
        raise ValueError(f"more than {FILES_MAX} files in this directory")
    return files


def _read(file: str) -> bytes:
    # Asked before opening: opening a pipe would wait for its writer.
    if not stat.S_ISREG(os.stat(file).st_mode):
        raise ValueError("not a regular file")
    with open(file, "rb") as stream:
        return stream.read(SIZE_MAX_BYTES + 1)


def _reason(error: OSError | ValueError) -> str:
    return f"can't be read: {error.strerror}" if isinstance(error, OSError) else f"can't be read: {error}"
