"""Rows of `steering`, as netd and the route table get them. Nothing is checked here."""

from __future__ import annotations

from dataclasses import dataclass

from accelerator.policy.model import Policy


@dataclass(frozen=True, slots=True)
class InterceptRow:
    """What netd takes for us: networks as text; `port` of the listening socket that it makes."""

    interfaces: tuple[str, ...]
    destinations: tuple[str, ...]
    ports: tuple[int, ...]
    port: int


def intercept_row(policy: Policy) -> InterceptRow | None:
    row = policy.steering.intercept
    return None if row is None else InterceptRow(row.interfaces, tuple(map(str, row.destinations)), row.ports, row.port)


def prefix_paths(policy: Policy) -> list[tuple[str, int, int]]:
    """(path, origin, bytes of the prefix), the longest first: /ORIGIN before each path of an origin."""
    paths = [
        (f"/{name}{path.rstrip('/')}", index, len(name) + 1)
        for index, (name, origin) in enumerate(policy.origins.items())
        for path in origin.paths
    ]
    return sorted(paths, key=lambda row: (-len(row[0]), row[0]))
