"""Rows of links and marks, as netd and the services that fetch get them. Nothing is checked here."""

from __future__ import annotations

from dataclasses import dataclass

from accelerator.policy.model import Policy
from accelerator.policy.relay_addresses import dscp_value


@dataclass(frozen=True, slots=True)
class LinkRow:
    """One WAN link, for netd. `number`: its place, which its table's and its rule's numbers go by. `gateway` empty: as
    the system's routes say."""

    number: int
    name: str
    interface: str
    gateway: str


@dataclass(frozen=True, slots=True)
class MarkRow:
    """Traffic that netd marks: networks as text, no ports: all."""

    nets: tuple[str, ...]
    protocol: str
    ports: tuple[int, ...]
    dscp: int


def link_rows(policy: Policy) -> tuple[LinkRow, ...]:
    named = enumerate(policy.links.items())
    return tuple(LinkRow(number, name, row.interface, row.gateway or "") for number, (name, row) in named)


def mark_rows(policy: Policy) -> tuple[MarkRow, ...]:
    rows = policy.marks.values()
    return tuple(MarkRow(tuple(map(str, row.nets)), row.protocol, row.ports, dscp_value(row.dscp)) for row in rows)
