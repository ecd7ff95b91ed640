"""How netd runs another module of ours as a process. What the process does, and starting it, are not here."""

from __future__ import annotations

import sys
from pathlib import Path

_ROOT = Path(__file__).resolve().parent.parent.parent
_CODE = (
    "import runpy, sys; sys.path.insert(0, {root!r}); del sys.argv[0]; "
    "runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)"
)


def command_of(module: str, *arguments: str) -> list[str]:
    """The command that runs the module as a program. The installed product stands where no Python looks by itself, so
    `python -m` finds it in a developer's tree only; and as for the installed programs, neither PYTHON* variables nor
    the current directory has a say."""
    site = ["-S"] if sys.flags.no_site else []
    return [sys.executable, "-I", *site, "-c", _CODE.format(root=str(_ROOT)), module, *arguments]
