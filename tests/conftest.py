"""What every test run has: the check that a sanitized run tested sanitized modules, and the demo as a running peer.
Fixtures of one kind of test live in that folder's own conftest.py."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from claim_tables import (  # noqa: F401 - hooks, found by their names
    pytest_collection_modifyitems,
    pytest_runtest_logreport,
    pytest_terminal_summary,
)
from running_demo import RunningDemo


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """A run under a sanitizer that loaded a plain module, or none, proved nothing: it fails."""
    wanted = os.environ.get("ACCELERATOR_EXT_MUST_BE_IN")
    if wanted is None or session.config.option.collectonly:
        return
    modules = [module for name, module in sys.modules.items() if name.startswith("ext.")]
    loaded = [Path(module.__file__) for module in modules if module.__file__]
    strangers = [str(path) for path in loaded if not path.is_relative_to(wanted)]
    if strangers or not loaded:
        print(f"\nmodules not from {wanted}: {strangers or 'none of ext was loaded'}", file=sys.stderr)
        session.exitstatus = pytest.ExitCode.INTERNAL_ERROR


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDemo]:
    """The whole demo: origin, encoder and box, on ports that nobody else has. With DEMO_ORIGIN_ONLY set, tests play
    straight from the origin, to tell a fault of the box from one of the media."""
    with RunningDemo(tmp_path_factory.mktemp("demo"), has_box="DEMO_ORIGIN_ONLY" not in os.environ) as running:
        yield running
