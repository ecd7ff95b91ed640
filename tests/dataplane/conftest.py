"""Fixtures of the data plane's tests: planes that are held to account when a test ends."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import pytest
from plane_rig import Rig
from tls_rig import rig_of


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


@pytest.fixture(params=["plain", "tls-1.3"])
def all_rigs(rigs: Callable[..., Rig], request: pytest.FixtureRequest) -> Callable[..., Rig]:
    """Planes of each kind of listener, for what must not depend on it. Viewers over TLS can close one way only."""
    return functools.partial(rig_of, rigs, request.param)
