"""The rules of the source tree, checked on the tree: imports, purity, file sizes, first lines, names, ruff and mypy.

The rules are DESIGN.md's sections 3 and 4. A rule that is wrong is changed here, in the open, not evaded.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PYTHON_FILES = sorted(
    path for folder in ("accelerator", "ext", "tests", "benchmarks") for path in (ROOT / folder).rglob("*.py")
)
CYTHON_FILES = sorted(path for suffix in ("pyx", "pxd", "pxi", "pyi") for path in (ROOT / "ext").rglob(f"*.{suffix}"))
ACCELERATOR_FILES = [path for path in PYTHON_FILES if path.is_relative_to(ROOT / "accelerator")]

LINES_MAX = 600
FORBIDDEN_WORDS = {"util", "utils", "common", "helper", "helpers", "manager", "managers"}

# accelerator.X may import these parts of accelerator, and itself. errors and clock are not parts: see NO_PART.
MAY_IMPORT = {
    "errors": set(),
    "clock": set(),
    "protocols": set(),
    "policy": set(),
    "dataplane": {"policy"},
    "io": {"protocols"},
    "store": set(),
    "kernel": {"protocols"},
    "services": {"store", "io", "protocols", "policy", "dataplane", "kernel", "steering"},
    "control": set(),
    "web": {"control"},
    "doctor": {"policy", "protocols"},  # looks at the machine for the command line, with or without a daemon
    "steering": {"policy", "protocols", "doctor"},
    "cli": {"control", "policy", "protocols", "doctor", "steering"},
    "daemon": {"services", "store", "io", "protocols", "policy", "dataplane", "control", "web"},
    "intake": set(),  # a process of its own, run as a file, of the standard library alone
    "netd": {"kernel", "control", "protocols"},
    "demo": set(),  # starts the box as a newcomer does, from outside
}
NO_PART = {"errors", "clock", "__init__"}
# accelerator.services.X may import these folders of services, and itself. What stands in no folder (the appliance and
# what is asked or looked at of a whole box) may import all of them; none of them may import it.
SERVICES_MAY_IMPORT: dict[str, set[str]] = {
    "logs": set(),
    "objects": set(),
    "origins": {"logs", "objects"},
    "disk": {"logs", "objects", "origins"},
    "netd": {"logs"},
    "links": {"logs", "origins", "netd"},
    "relays": {"logs", "links"},
    "fetch": {"logs", "objects", "origins", "disk", "relays"},
    "listeners": {"logs"},
    "rollout": {"logs", "origins"},
    "figures": {"logs", "origins", "fetch"},
}
PURE = (
    "accelerator/protocols/", "accelerator/policy/", "accelerator/kernel/plan.py", "accelerator/store/",
    "accelerator/steering/matrix.py", "accelerator/steering/recipes.py",
    "accelerator/steering/pages.py", "accelerator/doctor/judge_", "accelerator/doctor/packet_filter.py",
    "accelerator/doctor/facts.py",
)  # fmt: skip
IMPURE_MODULES = {"socket", "asyncio", "time", "random", "threading", "logging", "uvloop", "selectors", "ssl"}
# `datetime` is arithmetic until it reads the clock.
CLOCK_CALLS = {"datetime.now", "datetime.utcnow", "datetime.today", "date.today"}


def relative(path: Path) -> str:
    """Path as the rules name it."""
    return path.relative_to(ROOT).as_posix()


def imports(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Every imported module with its line, also those inside functions and under TYPE_CHECKING."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in line {node.lineno}"
            module = node.module or ""
            yield module, node.lineno
            for alias in node.names:
                yield f"{module}.{alias.name}", node.lineno


def part_of(module: str) -> str | None:
    """`protocols` of `accelerator.protocols.fields`; None for what is not ours, and for the package itself."""
    words = module.split(".")
    return words[1] if words[0] == "accelerator" and len(words) > 1 else None


def service_of(module: str) -> str | None:
    """`fetch` of `accelerator.services.fetch.flight`, "" of `accelerator.services.appliance`, else None."""
    words = module.split(".")
    if words[:2] != ["accelerator", "services"] or len(words) < 3:
        return None
    return words[2] if words[2] in SERVICES_MAY_IMPORT else ""


def import_problems(name: str, source: str) -> list[str]:
    """What is wrong with the imports of one file of accelerator/, by its path `name`."""
    problems = []
    part = part_of(name.removesuffix(".py").replace("/", "."))
    service = service_of(name.removesuffix(".py").replace("/", "."))
    is_pure = name.startswith(PURE)
    tree = ast.parse(source)
    for module, line in imports(tree):
        root, target = module.split(".")[0], part_of(module)
        place = f"{name}:{line}: imports {module}"
        if root == "ext" and name != "accelerator/dataplane.py":
            problems.append(f"{place}: only dataplane.py may")
        if is_pure and (root in IMPURE_MODULES or target == "clock"):
            problems.append(f"{place}: this part is pure, `now` and bytes come in as arguments")
        other = service_of(module)
        if service and other is not None and other not in {service, *SERVICES_MAY_IMPORT[service]}:
            problems.append(f"{place}: services/{service}/ may import {sorted(SERVICES_MAY_IMPORT[service])}")
        if target in MAY_IMPORT and target not in NO_PART | {part} and target not in MAY_IMPORT[part or "daemon"]:
            problems.append(f"{place}: {part} may import {sorted(MAY_IMPORT[part or 'daemon'])}")
    if part == "cli" and any(module.startswith("accelerator.control.server") for module, _ in imports(tree)):
        problems.append(f"{name}: the CLI talks to control.server through the socket only")
    if is_pure:
        calls = (
            node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
        )
        problems += [f"{name}:{call.lineno}: reads the clock" for call in calls if ast.unparse(call) in CLOCK_CALLS]
    return sorted(set(problems))


@pytest.mark.parametrize("path", ACCELERATOR_FILES, ids=relative)
def test_imports_go_one_way(path: Path) -> None:
    assert import_problems(relative(path), path.read_text()) == []


def test_every_part_has_a_place_in_the_import_order() -> None:
    parts = {path.relative_to(ROOT / "accelerator").parts[0].removesuffix(".py") for path in ACCELERATOR_FILES}
    assert parts - {"__init__"} <= MAY_IMPORT.keys()


def test_every_folder_of_services_has_a_place_in_the_import_order() -> None:
    folders = {path.parent.name for path in (ROOT / "accelerator" / "services").glob("*/__init__.py")}
    assert folders == SERVICES_MAY_IMPORT.keys()


def test_every_folder_is_on_the_architecture_page() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    folders = {path.parent.relative_to(ROOT / "accelerator").as_posix() for path in ACCELERATOR_FILES} - {"."}
    unnamed = {each for each in folders if f"{each}/`" not in page and f"`{each.rpartition('/')[2]}/`" not in page}
    assert unnamed == set()


def circles(imported: dict[str, set[str]]) -> list[tuple[str, ...]]:
    """Groups of modules of which each leads to each other one."""
    reached: dict[str, set[str]] = {}
    for start in imported:
        seen: set[str] = set()
        todo = [*imported[start]]
        while todo:
            module = todo.pop()
            if module not in seen:
                seen.add(module)
                todo += imported.get(module, ())
        reached[start] = seen
    return sorted({tuple(sorted(b for b in seen if a in reached[b])) for a, seen in reached.items() if a in seen})


def test_no_modules_import_each_other() -> None:
    """Also not for types alone: two files that can only be read together are one."""
    files = {
        relative(path).removesuffix(".py").removesuffix("/__init__").replace("/", "."): path
        for path in ACCELERATOR_FILES
    }
    imported: dict[str, set[str]] = {}
    for name, path in files.items():
        named = {(module, line) for module, line in imports(ast.parse(path.read_text())) if module in files}
        # `from package import module` names both; what the package's own file imports is no matter of the importer's.
        packages = {(module.rpartition(".")[0], line) for module, line in named}
        imported[name] = {module for module, _ in named - packages} - {name}
    assert len(imported["accelerator.daemon"]) > 5
    assert circles(imported) == []


def test_the_search_for_circles_finds_them() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}, "e": {"f"}, "f": {"g"}, "g": {"e"}}) == [
        ("b", "c"), ("e", "f", "g"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("accelerator/protocols/x.py", "import time"),
        ("accelerator/protocols/x.py", "from asyncio import sleep"),
        ("accelerator/policy/x.py", "def f():\n    import socket"),
        ("accelerator/policy/x.py", "from accelerator.clock import wall_s"),
        ("accelerator/policy/x.py", "from datetime import datetime\nprint(datetime.now())"),
        ("accelerator/policy/x.py", "from accelerator.protocols import fields"),
        ("accelerator/protocols/x.py", "from accelerator import io"),
        ("accelerator/io/x.py", "from accelerator.services.fetch.fetcher import Fetch"),
        ("accelerator/io/x.py", "import ext.http_head"),
        ("accelerator/services/x.py", "from ext import http_head"),
        ("accelerator/services/logs/x.py", "from accelerator.services.origins.origins import Origin"),
        ("accelerator/services/fetch/x.py", "from accelerator.services.appliance import Appliance"),
        ("accelerator/services/disk/x.py", "if TYPE_CHECKING:\n    from accelerator.services.fetch import fill"),
        ("accelerator/cli.py", "from accelerator.control.server import ControlServer"),
        ("accelerator/cli.py", "import accelerator.services"),
        ("accelerator/kernel/plan.py", "import logging"),
    ],
)
def test_the_import_rules_find_a_breach(name: str, source: str) -> None:
    assert import_problems(name, source)


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("accelerator/services/fetch/x.py", "from accelerator.services.logs.events import Events\nimport asyncio"),
        ("accelerator/services/x.py", "from accelerator.services.fetch.fetcher import Fetcher"),
        ("accelerator/protocols/x.py", "import re\nfrom accelerator.errors import OriginError"),
        ("accelerator/io/x.py", "import time\nfrom accelerator.protocols import fields\nfrom accelerator import clock"),
        ("accelerator/dataplane.py", "from ext import store\nfrom accelerator.policy.compile import Tables"),
        ("accelerator/daemon.py", "from accelerator.services import fetch\nfrom accelerator.web import admin"),
    ],
)
def test_the_import_rules_let_pass(name: str, source: str) -> None:
    assert import_problems(name, source) == []


@pytest.mark.parametrize("path", [path for path in CYTHON_FILES if path.suffix != ".pyi"], ids=relative)
def test_ext_never_imports_accelerator(path: Path) -> None:
    found = re.findall(r"^\s*(?:from|import|cimport)\s+accelerator\b.*$", path.read_text(), re.MULTILINE)
    assert found == []


@pytest.mark.parametrize("path", PYTHON_FILES + CYTHON_FILES, ids=relative)
def test_file_is_not_too_long(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= LINES_MAX


@pytest.mark.parametrize("path", PYTHON_FILES + CYTHON_FILES, ids=relative)
def test_first_lines_say_what_the_file_is_for(path: Path) -> None:
    lines = [line for line in path.read_text().splitlines() if not line.startswith(("# cython:", "# distutils:", "#!"))]
    if not lines and path.name == "__init__.pxd":  # Cython wants it to exist; there is nothing to say
        return
    assert lines, "an empty file says nothing"
    assert re.match(r'r?"""\S|# ?\S', lines[0]), f"the first line is {lines[0]!r}"


@pytest.mark.parametrize("path", PYTHON_FILES + CYTHON_FILES, ids=relative)
def test_names_mean_something(path: Path) -> None:
    words = {word for part in path.relative_to(ROOT).parts for word in re.split(r"[_.]", part.lower())}
    assert not words & FORBIDDEN_WORDS
    classes = re.findall(r"^\s*(?:cdef\s+)?class\s+(\w+)", path.read_text(), re.MULTILINE)
    assert [name for name in classes if name.lower().endswith(tuple(FORBIDDEN_WORDS))] == []


def run_checker(*arguments: str) -> None:
    done = subprocess.run([sys.executable, "-m", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


def test_ruff_is_clean() -> None:
    run_checker("ruff", "check", ".")


@pytest.mark.timeout(400)
def test_mypy_strict_is_clean() -> None:
    run_checker("mypy", "--strict", "accelerator/")
