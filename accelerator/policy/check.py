"""Checks a policy whole: every problem at once, each with its place. What keys mean together is in rules.py.

A value that is wrong is reported and taken out, and the rest is checked on, so that one mistake doesn't hide another.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path as FilePath
from typing import Any

from pydantic import ValidationError

from accelerator.errors import PolicyError, Problem
from accelerator.policy.load import Source, load, load_texts
from accelerator.policy.model import Policy
from accelerator.policy.rules import Rules, dotted
from accelerator.policy.shape import keys_of, section_at
from accelerator.policy.tree import Items, Map, Path, Text, key_mark, plain, remove, value_mark, walk
from accelerator.policy.units import nearest, quoted

# More than anybody reads; a file of 20,000 wrong keys shall still be answered at once.
PROBLEMS_MAX = 1000
# Taking out a wrong value can make its section wrong (its last host), which is then taken out: as often as sections nest.
_ROUNDS_MAX = 6


def load_policy(path: FilePath) -> Policy:
    """The policy of a file or directory. Raises PolicyError with every problem; warnings are dropped (check_policy has them)."""
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
    """Like check_policy, of (name, content) pairs that are already in memory; `folder` is what relative file names start from."""
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
        ordered = [
            *kept,
            Problem(name, 0, 0, f"{len(ordered) - PROBLEMS_MAX} more problems are not shown", policy is not None),
        ]
    return policy, tuple(ordered)


def _typed(source: Source, problems: list[Problem]) -> Policy | None:
    """The policy's typed values, without those that are wrong; None where too little is left. Changes the tree alike."""
    root = source.root
    context = {"folder": source.folder}
    for round_number in range(_ROUNDS_MAX):
        try:
            return Policy.model_validate(plain(root), context=context)
        except ValidationError as error:
            details = error.errors(include_url=False)
        if round_number == 0:
            _report(root, details, problems)
        _take_out(root, details)
    return None


def _report(root: Map, details: Sequence[Any], problems: list[Problem]) -> None:
    hints_left = PROBLEMS_MAX
    for detail in details:
        path: Path = tuple(detail["loc"])
        kind: str = detail["type"]
        if kind == "extra_forbidden":
            where = f" in {dotted(path[:-1])}" if path[:-1] else ""
            hint = nearest(str(path[-1]), _known_keys(path[:-1])) if hints_left > 0 else ""
            hints_left -= 1
            problems.append(Problem(*key_mark(root, path), f"unknown key {quoted(str(path[-1]))}{where}{hint}"))
        elif kind == "missing":
            where = f" in {dotted(path[:-1])}" if path[:-1] else ""
            problems.append(Problem(*key_mark(root, path), f"missing required key '{path[-1]}'{where}"))
        elif path[-1] == "[key]":
            problems.append(Problem(*key_mark(root, path[:-1]), f"{dotted(path[:-2])}: {_reason(detail)}"))
        elif kind == "too_short" and detail["input"]:
            continue  # an item is wrong, and has been told
        else:
            problems.append(Problem(*value_mark(root, path), f"{dotted(path)}: {_reason(detail)}"))


def _known_keys(path: Path) -> list[str]:
    section = section_at(path)
    return list(keys_of(section)) if section is not None else []


def _reason(detail: Any) -> str:
    kind, value = detail["type"], detail["input"]
    if value is None:
        return "has no value"
    got = {str: "text", list: "a list", dict: "a map"}.get(type(value), "something else")
    if kind == "value_error":
        return str(detail["ctx"]["error"])
    if kind == "tuple_type":
        hint = (
            f" (did you mean '[{value}]'?)"
            if isinstance(value, str) and len(value) <= 60 and value.isprintable()
            else ""
        )
        return f"expected a list, got {got}{hint}"
    if kind in ("model_type", "model_attributes_type", "dict_type", "mapping_type"):
        return f"expected a map, got {got}"
    if kind == "string_type":
        return f"expected text, got {got}"
    if kind == "literal_error":
        expected: str = detail["ctx"]["expected"]
        if not isinstance(value, str):
            return f"expected {expected}, got {got}"
        return f"expected {expected}, got {quoted(value)}{nearest(value, expected.replace(' or ', ', ').replace(chr(39), '').split(', '))}"
    if kind == "too_short":
        return "must not be empty"
    if kind == "too_long":
        return f"has more than {detail['ctx']['max_length']:,} entries"
    return str(detail["msg"])


def _take_out(root: Map, details: Sequence[Any]) -> None:
    paths: set[Path] = set()
    for detail in details:
        path: Path = tuple(detail["loc"])
        if path[-1] == "[key]":
            path = path[:-1]
        if detail["type"] == "missing":
            if path == ("version",) or path[0] == "site":
                _stand_in(root, str(path[0]))
                continue
            path = path[:-1]
        elif path[0] in ("version", "site") and detail["type"] != "extra_forbidden":
            _stand_in(root, str(path[0]))
            continue
        paths.add(path)
    # From the last item of a list to its first: taking one out moves those behind it.
    for path in sorted(
        paths, key=lambda path: [(step, "") if isinstance(step, int) else (-1, step) for step in path], reverse=True
    ):
        remove(root, path)
        _remove_if_required(root, path)


def _stand_in(root: Map, key: str) -> None:
    """Something valid in the place of a required key that is wrong, so that the rest can be checked."""
    from accelerator.policy.tree import Entry

    mark = key_mark(root, (key,))
    one = Text(mark, "1")
    root.entries[key] = Entry(mark, one if key == "version" else Map(mark, {"name": Entry(mark, Text(mark, "site"))}))


def _remove_if_required(root: Map, path: Path) -> None:
    """Take out a list that has lost its last item to a mistake: empty it would mean something else (everybody, any path)."""
    steps = list(walk(root, path[:-1]))
    if len(steps) == len(path) - 1 and steps and isinstance(steps[-1][1], Items) and not steps[-1][1].items:
        remove(root, path[:-1])
