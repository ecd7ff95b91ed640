"""What the code imports is declared and locked, and no lock file says where anything was fetched from."""

from __future__ import annotations

import ast
import json
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("accelerator", "ext", "tests", "benchmarks", "tools")
# Imported only where it is found: a fuzzer that follows coverage, without which the target mutates by itself.
OPTIONAL = {"atheris"}


def normal(name: str) -> str:
    """A distribution's name as PyPI compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def declared() -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    return {normal(re.split(r"[<>=~\[; ]", line)[0]) for line in lines}


def imported() -> set[str]:
    """Top-level modules that are neither Python's nor ours."""
    sources = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    modules = set()
    for path in sources:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                modules |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
                modules.add(node.module.split(".")[0])
    ours = {path.stem for path in sources} | set(FOLDERS)
    return modules - set(sys.stdlib_module_names) - ours - OPTIONAL


def test_every_imported_package_is_declared() -> None:
    distributions = packages_distributions()
    missing = {
        module
        for module in imported()
        if not {normal(name) for name in distributions.get(module, [])} & (declared() | {"multidict"})  # aiohttp's own
    }
    assert missing == set()


def test_every_package_of_ours_is_installed() -> None:
    """One was missing from an installed box, which did not start; an editable install doesn't notice."""
    folders = {path.parent for folder in ("accelerator", "ext") for path in (ROOT / folder).rglob("__init__.py")}
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    assert {".".join(folder.relative_to(ROOT).parts) for folder in folders} == {
        name for name in packages if (ROOT / name.replace(".", "/") / "__init__.py").exists()
    }


def test_every_declared_package_is_locked() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    locked = {normal(name) for name in re.findall(r"^([\w.-]+)==", lock, re.MULTILINE)}
    assert declared() <= locked
    assert len(re.findall(r"^[\w.-]+==\S+ \\\n    --hash=sha256:", lock, re.MULTILINE)) == len(locked)


def test_lock_files_name_no_registry() -> None:
    for name in ("requirements.lock", "package.json", ".npmrc"):
        assert "//" not in (ROOT / name).read_text(), name
    locked = json.loads((ROOT / "package-lock.json").read_text())
    for package in locked["packages"].values():
        package.pop("funding", None)  # whom a package's authors would like to be paid by is fetched by nobody
    assert "://" not in json.dumps(locked)  # a digest may have two slashes
