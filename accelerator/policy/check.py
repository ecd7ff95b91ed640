"""Checks a policy whole: every problem at once, each with its place. What keys mean together is in rules.py.

A value that is wrong is reported and taken out, and the rest is checked on, so that one mistake doesn't hide another.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import count
from pathlib import Path as FilePath
from typing import Any

from pydantic import ValidationError

from accelerator.errors import PolicyError, Problem
from accelerator.policy.load import PROBLEMS_MAX, Source, load, load_texts
from accelerator.policy.model import Policy
from accelerator.policy.rules import Rules, dotted
from accelerator.policy.shape import keys_of, section_at
from accelerator.policy.tree import Entry, Items, Map, Node, Path, Text, key_mark, plain, put, remove, value_mark, walk
from accelerator.policy.units import nearest, quoted

# Taking out a wrong value can make its section wrong, which is then taken out: at most as often as sections nest.
_ROUNDS_MAX = 6


def load_policy(path: FilePath) -> Policy:
    """The policy of a file or directory. Raises PolicyError with every problem; warnings are left to check_policy."""
    policy, problems = check_policy(path)
    if policy is None:
        raise PolicyError(tuple(problem for problem in problems if not problem.is_warning))
    return policy


def check_policy(path: FilePath) -> tuple[Policy | None, tuple[Problem, ...]]:
    """The policy, or None when anything is wrong with it, and all problems with warnings, in the order of their places.

    `path` is a file, or a directory whose *.yaml are merged in name order. Reads files; raises nothing.
    """
    return _check(load(path), str(path))


def check_texts(files: Sequence[tuple[str, bytes]], folder: str = "") -> tuple[Policy | None, tuple[Problem, ...]]:
    """Like check_policy, of (name, content) pairs in memory; `folder` is what relative file names start from."""
    return _check(load_texts(files, folder), files[0][0] if files else "")


def _check(source: Source, name: str) -> tuple[Policy | None, tuple[Problem, ...]]:
    problems = list(source.problems)
    policy: Policy | None = None
    if source.is_whole:
        rules = Rules(source.root, problems)
        policy = _typed(source, problems)
        if policy is not None:
            rules.check(policy)
    ordered = sorted(set(problems))
    if any(not problem.is_warning for problem in ordered):
        policy = None
    if len(ordered) > PROBLEMS_MAX:
        # Errors first where not all are told: a thousand warnings must not hide the one reason for a refusal.
        kept = sorted(sorted(ordered, key=lambda problem: problem.is_warning)[:PROBLEMS_MAX])
        more = f"more than {PROBLEMS_MAX:,} problems: the others are not shown"
        ordered = [*kept, Problem(name, 0, 0, more, is_warning=policy is not None)]
    return policy, tuple(ordered)


def _typed(source: Source, problems: list[Problem]) -> Policy | None:
    """The policy's typed values, without those that are wrong; None if too little is left. The tree changes alike."""
    root = source.root
    context = {"folder": source.folder}
    for round_number in range(_ROUNDS_MAX):
        try:
            return Policy.model_validate(plain(root), context=context)
        except ValidationError as error:
            details = error.errors(include_url=False)
        if round_number == 0:
            _report(root, details[: PROBLEMS_MAX + 1], problems)
        if len(details) > PROBLEMS_MAX:
            return None  # more than anybody reads, and slow to take out one by one
        _take_out(root, details)
    return None


def _report(root: Map, details: Sequence[Any], problems: list[Problem]) -> None:
    for detail in details:
        path: Path = tuple(detail["loc"])
        kind: str = detail["type"]
        where = f" in {dotted(path[:-1])}" if path[:-1] else ""
        if kind == "extra_forbidden":
            key = str(path[-1])
            hint = nearest(key, _known_keys(path[:-1]))
            problems.append(Problem(*key_mark(root, path), f"unknown key {quoted(key)}{where}{hint}"))
        elif kind == "missing":
            problems.append(Problem(*key_mark(root, path), f"missing required key '{path[-1]}'{where}"))
        elif path[-1] == "[key]":
            problems.append(Problem(*key_mark(root, path[:-1]), f"{dotted(path[:-2])}: {_reason(detail)}"))
        elif kind != "too_short" or not detail["input"]:  # too short for want of a good item: the bad one is told
            problems.append(Problem(*value_mark(root, path), f"{dotted(path)}: {_reason(detail)}"))


def _known_keys(path: Path) -> list[str]:
    section = section_at(path)
    return list(keys_of(section)) if section is not None else []


def _kind_of(value: object) -> str:
    return "text" if isinstance(value, str) else "a list" if isinstance(value, list) else "a map"


def _reason(detail: Any) -> str:
    """What is wrong with a value, in a DSI's words and not in Python's."""
    kind, value = detail["type"], detail["input"]
    if value is None:
        return "has no value"
    if kind == "value_error":
        got = "" if isinstance(value, str) else f", got {_kind_of(value)}"
        return f"{detail['ctx']['error']}{got}"
    if kind == "tuple_type":
        is_short = isinstance(value, str) and len(value) <= 60 and value.isprintable()
        return f"expected a list, got {_kind_of(value)}" + (f" (did you mean '[{value}]'?)" if is_short else "")
    if kind in ("model_type", "mapping_type", "dict_type"):
        return f"expected a map, got {_kind_of(value)}"
    if kind == "string_type":
        return f"expected text, got {_kind_of(value)}"
    if kind == "literal_error":
        expected: str = detail["ctx"]["expected"].replace("'", "")
        if not isinstance(value, str):
            return f"expected {expected}, got {_kind_of(value)}"
        return f"expected {expected}, got {quoted(value)}{nearest(value, re.split(', | or ', expected))}"
    if kind == "too_short":
        return "must not be empty"
    if kind == "too_long":
        return f"has more than {detail['ctx']['max_length']:,} entries"
    return str(detail["msg"])


def _take_out(root: Map, details: Sequence[Any]) -> None:
    numbers = count(1)
    paths: set[Path] = set()
    for detail in details:
        path: Path = tuple(detail["loc"])
        if detail["type"] == "missing":
            put(root, path, _stand_in(root, path, next(numbers)) or Items(key_mark(root, path), []))
        else:
            paths.add(path[:-1] if path[-1] == "[key]" else path)
    # From the last item of a list to its first: taking one out moves those behind it.
    for path in sorted(paths, key=_from_last_item, reverse=True):
        remove(root, path)
        above = list(walk(root, path[:-1]))
        if above and isinstance(above[-1][1], Items) and not above[-1][1].items:
            path = path[:-1]
            remove(root, path)
        path, stand_in = _output_stand_in(root, path) or (path, _stand_in(root, path, next(numbers)))
        if stand_in is not None and section_at(path[:-1]) is not None:
            put(root, path, stand_in)


def _from_last_item(path: Path) -> list[tuple[int, str]]:
    return [(step, "") if isinstance(step, int) else (-1, step) for step in path]


def _output_stand_in(root: Map, path: Path) -> tuple[Path, Node] | None:
    """Where and what, so that a relay's output whose kind was wrong isn't told to have none, nor a relay to have no
    output: single receivers, as yet nobody."""
    if path[0] != "relays" or len(path) not in (3, 5) or path[2] != "to" or section_at(path[:-1]) is None:
        return None
    mark, nobody = key_mark(root, path), ("unicast", Items(key_mark(root, path), []))
    if len(path) == 3:
        return path, Items(mark, [Map(mark, {nobody[0]: Entry(mark, nobody[1])})])
    output = list(walk(root, path[:-1]))[-1][1]
    if not isinstance(output, Map) or {"group", "unicast", "http"} & output.entries.keys():
        return None
    return (*path[:-1], nobody[0]), nobody[1]


def _stand_in(root: Map, path: Path, number: int) -> Node | None:
    """What collides with nothing, in the place of a value whose lack would be a second mistake, or mean something."""
    mark = key_mark(root, path)
    name = f"stand-in-{number}"
    texts = {"version": "1", "name": name, "address": "127.0.0.1:0"}
    lists = {"from": f"https://{name}.invalid:1", "hosts": f"{name}.invalid", "paths": f"/{name}"}
    key = str(path[-1])
    if key == "interface" and path[0] in ("relays", "udpxy"):  # left out, it means something
        return Text(mark, name)
    if key in texts:
        return Text(mark, texts[key])
    if key in lists:
        return Items(mark, [Text(mark, lists[key])])
    return Map(mark, {"name": Entry(mark, Text(mark, name))}) if path == ("site",) else None
