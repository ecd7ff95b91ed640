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
    down_bps: int = 0
    up_bps: int = 0
    video_bps: int = 0
    is_shaped_in: bool = False
    is_shaped_out: bool = False
    shaped_lan: str = ""


@dataclass(frozen=True, slots=True)
class MarkRow:
    """Traffic that netd marks: networks as text, no ports: all. `marked`: the mark that it has already."""

    name: str
    nets: tuple[str, ...]
    protocol: str
    ports: tuple[int, ...]
    dscp: int
    marked: int | None = None

    @property
    def n_filters(self) -> int:
        """Networks (without any: both families) and ports are told apart one by one where nft doesn't see packets."""
        return (len(self.nets) or 2) * (len(self.ports) or 1)


@dataclass(frozen=True, slots=True)
class ShareRow:
    """A class whose packets can be told by their mark. Parts of a hundred of the video budget."""

    name: str
    dscp: int
    guarantee: int
    ceiling: int


def link_rows(policy: Policy) -> tuple[LinkRow, ...]:
    return tuple(
        LinkRow(
            number,
            name,
            row.interface,
            row.gateway or "",
            row.down or 0,
            row.up or 0,
            row.video or 0,
            row.shape.ingress,
            row.shape.egress,
            row.shape.lan or "",
        )
        for number, (name, row) in enumerate(policy.links.items())
    )


def mark_rows(policy: Policy) -> tuple[MarkRow, ...]:
    return tuple(
        MarkRow(
            name,
            tuple(map(str, row.nets)),
            row.protocol,
            row.ports,
            dscp_value(row.dscp),
            None if row.marked is None else dscp_value(row.marked),
        )
        for name, row in policy.marks.items()
    )


def share_rows(policy: Policy) -> tuple[ShareRow, ...]:
    """Of two classes with one mark the first, which is the more important one."""
    found: dict[int, ShareRow] = {}
    for name, row in policy.classes.items():
        dscp = dscp_value(row.dscp)
        if dscp:
            found.setdefault(dscp, ShareRow(name, dscp, row.guarantee, row.ceiling))
    return tuple(found.values())
