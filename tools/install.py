"""Puts the product's files under a root, as a Debian package would (make install DESTDIR=...); where: docs/install.md.
Nothing but files: users, directories and starting are sysusers.d, tmpfiles.d and systemctl."""

from __future__ import annotations

import argparse
import compileall
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import requires
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
WORK = PROJECT / "build" / "install"
LIBRARY = Path("usr/lib/video-accelerator")
DOCUMENTS = Path("usr/share/doc/video-accelerator")
PIP = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--no-input")
UNITS = {
    "acceleratord.service": "usr/lib/systemd/system",
    "accelerator-netd.service": "usr/lib/systemd/system",
    "acceleratord@.socket": "usr/lib/systemd/system",
    "sysusers.d/accelerator.conf": "usr/lib/sysusers.d",
    "tmpfiles.d/accelerator.conf": "usr/lib/tmpfiles.d",
}
READING = (
    "docs/install.md",
    "docs/policy.md",
    "docs/multicast.md",
    "config/accelerator.yaml",
    "config/accelerator.schema.json",
)
# Neither PYTHON* variables nor what else is installed on the machine has a say: -I, and -S for no site-packages.
LAUNCHER = """#!/usr/bin/python3 -IS
import sys

sys.path.insert(0, "/{library}")
from {module} import {function}

sys.exit({function}())
"""


def normal(name: str) -> str:
    """A distribution's name as PyPI compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def needed(names: list[str]) -> set[str]:
    """These distributions and what they need. Markers are not read: what they rule out is not installed here."""
    found: set[str] = set()
    waiting = [normal(name) for name in names]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        try:
            lines = requires(name) or []
        except ModuleNotFoundError:
            continue  # a marker is false here
        found.add(name)
        waiting += [normal(re.split(r"[^\w.-]", line)[0]) for line in lines if "extra ==" not in line]
    return found


def locked_requirements(project: dict[str, list[str]]) -> str:
    """Of requirements.lock, hashes and all, what runs the product; the rest is for building and testing it."""
    names = needed([re.split(r"[^\w.-]", line)[0] for line in project["dependencies"]])
    blocks = re.findall(r"^[\w.-]+==.*?(?=^[\w.-]+==|\Z)", (PROJECT / "requirements.lock").read_text(), re.M | re.S)
    return "".join(block for block in blocks if normal(block.partition("==")[0]) in names)


def install(root: Path) -> None:
    """Raises CalledProcessError, OSError."""
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir(parents=True)
    requirements = WORK / "requirements.txt"
    requirements.write_text(locked_requirements(project))
    wheel = ("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(WORK), str(PROJECT))
    subprocess.run([*PIP, *wheel], check=True)
    library = root / LIBRARY
    # A new folder: what was removed from the product must not stay. Renamed: it is whole when it is there.
    new, old = library.with_name(f".{library.name}.new"), library.with_name(f".{library.name}.old")
    for path in (new, old):
        shutil.rmtree(path, ignore_errors=True)
    into = ("install", "--no-deps", "--no-compile", "--no-warn-script-location", "--target", str(new))
    subprocess.run([*PIP, *into, "--require-hashes", "--requirement", str(requirements)], check=True)
    subprocess.run([*PIP, *into, *map(str, WORK.glob("*.whl"))], check=True)
    shutil.rmtree(new / "bin", ignore_errors=True)
    compileall.compile_dir(new, quiet=2, stripdir=str(new), prependdir=f"/{LIBRARY}")
    if library.exists():
        library.rename(old)
    new.rename(library)
    shutil.rmtree(old, ignore_errors=True)
    for command, entry in project["scripts"].items():
        module, _, function = entry.partition(":")
        path = root / "usr/bin" / command
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(LAUNCHER.format(library=LIBRARY, module=module, function=function))
        path.chmod(0o755)
    for name, folder in UNITS.items():
        copy(PROJECT / "systemd" / name, root / folder)
    for name in READING:
        copy(PROJECT / name, root / DOCUMENTS)


def copy(source: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, folder / source.name)


def main() -> int:
    parser = argparse.ArgumentParser(prog="make install", description="Installs the product under a root.")
    parser.add_argument("--destdir", default="", metavar="DIR", help="the root; empty: this machine's")
    root = Path(parser.parse_args().destdir or "/").resolve()
    try:
        install(root)
    except (subprocess.CalledProcessError, OSError) as fault:
        print(f"make install: {fault}", file=sys.stderr)
        return 1
    if root == Path("/"):
        print("installed; next: systemd-sysusers && systemd-tmpfiles --create && systemctl daemon-reload")
    return 0


if __name__ == "__main__":
    sys.exit(main())
