"""Source filters and how several become one (RFC 9776 section 3.2, RFC 4605 section 4.1). Values only."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

_NONE: frozenset[bytes] = frozenset()


@dataclass(frozen=True, slots=True)
class Filter:
    """Which sources of a group are wanted: those listed, or all but those listed."""

    is_exclude: bool = False
    sources: frozenset[bytes] = _NONE

    def accepts(self, source: bytes) -> bool:
        return (source in self.sources) != self.is_exclude


NOTHING = Filter()
EVERYTHING = Filter(is_exclude=True)


def merge(filters: Iterable[Filter]) -> Filter:
    """The filter that accepts what at least one of them does."""
    wanted: frozenset[bytes] = _NONE
    refused: frozenset[bytes] | None = None
    for each in filters:
        if not each.is_exclude:
            wanted |= each.sources
        else:
            refused = each.sources if refused is None else refused & each.sources
    return Filter(False, wanted) if refused is None else Filter(True, refused - wanted)
