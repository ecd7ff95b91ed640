"""What the box counts, tells and lets be configured: each counter is counted, each event sent, each key read, and the
documents and the dashboard name all of them and no others.

Found in the sources, not by running the box: what a counter counts and when an event is sent is tested where it is.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from accelerator.control.commands import COMMANDS
from accelerator.dataplane import COUNTER_HELP

ROOT = Path(__file__).resolve().parent.parent
SOURCES = {path: path.read_text() for path in sorted((ROOT / "accelerator").rglob("*.py"))}
TREES = {path: ast.parse(text) for path, text in SOURCES.items()}
DOCUMENTS = {path: path.read_text() for path in sorted((ROOT / "docs").glob("*.md"))}
KIND = re.compile(r"[a-z]+(?:-[a-z0-9]+)+|drain|overload|refused")
# What is called to tell of an event, whose kind is the first argument; `note` of logs is another.
TELLERS = {"note", "_tell", "_say", "_note"}


def literals(node: ast.AST) -> Iterator[str]:
    """Texts that `node` may be; not those that it is looked up by."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.IfExp):
        yield from (*literals(node.body), *literals(node.orelse))


def kinds() -> dict[str, Path]:
    """Kinds of events that stand where events are told, with a file that has them."""
    found: dict[str, Path] = {}
    for path, tree in TREES.items():
        is_netd = "kernel" in path.parts or path.name == "netd.py"
        for node in ast.walk(tree):
            told: list[ast.AST] = []
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in TELLERS:
                is_event = node.func.attr != "note" or ast.unparse(node.func.value).endswith("events")
                told = [*node.args[:1]] if is_event else []
            elif isinstance(node, ast.Dict) and is_netd:
                named = zip(node.keys, node.values, strict=True)
                told = [value for key, value in named if isinstance(key, ast.Constant) and key.value == "kind"]
            for each in told:
                found |= {text: path for text in literals(each) if KIND.fullmatch(text)}
    return found


# What upstreams tell is renamed before an operator hears it (services/origins/notes.py).
RENAMED = {"breaker-open", "breaker-closed", "dns-failed", "dns-returned"}
EVENTS = {kind: path for kind, path in kinds().items() if kind not in RENAMED}
WORDS = {word for text in SOURCES.values() for word in re.findall(r"[\"' ]([a-z]+(?:-[a-z0-9]+)*)[\"' ]", text)}


def named_in_documents() -> set[str]:
    return {word for text in DOCUMENTS.values() for word in re.findall(r"`([\w-]+)`", text)}


def test_events_are_found_in_the_sources() -> None:
    for kind in ("policy-applied", "drain", "kernel-repaired", "keeper-missing", "intercept-on", "queue-taken"):
        assert kind in EVENTS


def test_every_event_is_in_the_documents() -> None:
    assert EVENTS.keys() - named_in_documents() == set()


@pytest.mark.parametrize("language", ["en", "fr"])
def test_every_event_has_its_words_on_the_dashboard(language: str) -> None:
    texts = json.loads((ROOT / "accelerator" / "web" / "static" / f"{language}.json").read_text())
    worded = {key.removeprefix("kind.") for key in texts if key.startswith("kind.")}
    assert EVENTS.keys() - worded == set()
    assert worded - WORDS == set(), "worded, and never sent"


def test_every_event_of_the_operations_table_is_sent() -> None:
    table = DOCUMENTS[ROOT / "docs" / "operations.md"].partition("\n## Events\n")[2].partition("\n## ")[0]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    named = {word for row in rows for word in re.findall(r"`([a-z-]+)`", row)}
    assert len(named) > 40
    assert named - WORDS == set()


def counted() -> str:
    """All code that may count, without the table of counters itself."""
    files = [path for suffix in ("pyx", "pxd") for path in (ROOT / "ext").glob(f"*.{suffix}")]
    return "\n".join(path.read_text() for path in files if path.stem not in ("layout", "torture"))


def test_every_counter_is_counted() -> None:
    columns = dict(re.findall(r"\((C_\w+), \"(\w+)\", ", (ROOT / "ext" / "layout.pyx").read_text()))
    assert sorted(columns.values()) == sorted(COUNTER_HELP)
    by_workers = counted()
    by_control = "\n".join(SOURCES.values())
    silent = [
        name for column, name in columns.items()
        if not re.search(rf"\b{column}\b|result\[\"{name}\"\]", by_workers)
        and not re.search(rf"count\(\s*\"{name}\"|\"{name}\" if|else \"{name}\"", by_control)
    ]  # fmt: skip
    assert silent == []


def test_every_counter_is_in_the_documents() -> None:
    assert COUNTER_HELP.keys() - named_in_documents() == set()


def test_every_metric_of_the_documents_is_exported() -> None:
    own = "\n".join(SOURCES.values())
    named = {name for text in DOCUMENTS.values() for name in re.findall(r"`accelerator_([a-z_]+[a-z])\b(?!\*)", text)}
    assert len(named) > 10
    families = ("link_", "queue_", "origin_", "relay_", "upstream_")  # the rest of whose names may be put together
    for name in {each.removesuffix("_total") for each in named}:
        ends = {name, *(name.removeprefix(family) for family in families)}
        assert any(f'accelerator_{end}"' in own or f'"{end}"' in own for end in ends), name


def test_every_option_of_the_documents_exists() -> None:
    """Of our own commands, tools and tests; what stands in blocks may be other programs' too."""
    files = [*SOURCES, *(path for folder in ("tools", "benchmarks", "tests") for path in (ROOT / folder).rglob("*.py"))]
    known = {option for path in files for option in re.findall(r"\"(--[a-z][a-z-]*)\"", path.read_text())}
    known |= {f"--{argument.name.replace('_', '-')}" for command in COMMANDS for argument in command.arguments}
    known |= set(re.findall(r"--[a-z][a-z-]+", (ROOT / "Makefile").read_text()))
    pages = [*DOCUMENTS, ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
    spans = [span for path in pages for span in re.findall(r"`([^`\n]+)`", without_blocks(path.read_text()))]
    named = {option for span in spans for option in re.findall(r"(?<![\w-])--[a-z][a-z-]+", span)}
    assert len(named) > 20
    assert named - known == set()


def without_blocks(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def test_every_key_of_the_policy_is_read() -> None:
    """By what compiles, checks or runs it: a key that only a model has does nothing."""
    models = [path for path in SOURCES if path.parent.name == "policy" and path.stem.endswith("model")]
    declared = {
        node.target.id: path.name
        for path in models
        for section in ast.walk(TREES[path]) if isinstance(section, ast.ClassDef)
        for node in section.body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }  # fmt: skip
    read = {
        node.attr
        for path, tree in TREES.items() if path not in models
        for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }  # fmt: skip
    assert len(declared) > 100
    assert {name: place for name, place in declared.items() if name not in read and name != "model_config"} == {}
