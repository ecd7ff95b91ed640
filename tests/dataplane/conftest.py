"""Fixtures of the data plane's tests: planes that are held to account when a test ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from plane_rig import Rig


@pytest.fixture
def rigs() -> Iterator[Callable[..., Rig]]:
    """Makes planes; each is closed, and its counters and memory checked, when the test ends."""
    made: list[Rig] = []

    def make(**options: object) -> Rig:
        made.append(Rig(**options))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for rig in made:
        rig.close()


@pytest.fixture
def rig(rigs: Callable[..., Rig]) -> Rig:
    """One worker, slices of 4 KiB."""
    return rigs()
