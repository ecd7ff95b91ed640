"""How a link is shaped where the box stands inline: the queues of each place and what goes into which, as netd's
desired state. Pure; why so: docs/decisions/0260.

Marks come first and have for sure what `video` leaves of the link; classes that can be told by their mark have of
`video` what the policy gives them; the rest borrows what nobody uses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from accelerator.kernel.objects import PacketRule
from accelerator.kernel.shaped import MAJOR_FIRST, REST, Match, ShapedClass, Shaper
from accelerator.policy.compile import Tables
from accelerator.policy.link_rows import LinkRow, MarkRow, ShareRow

# Below the link's own rate, so that queues form here and not at the provider's: 8 % lose no packet of EF beside six
# bulk transfers that begin, 5 % lose some (docs/decisions/0260).
MARGIN = 0.92
LAN, EGRESS, INGRESS = MAJOR_FIRST, MAJOR_FIRST + 0x20, MAJOR_FIRST + 0x40
_MARK, _CLASS = 0x10, 0x100
# Of what is shaped, where `video` leaves nothing or isn't said.
_ROOM_MIN, _ROOM_UNKNOWN = 0.1, 0.5
_TRICKLE = 0.01


def shapers(tables: Tables) -> tuple[Shaper, ...]:
    found: list[Shaper] = []
    marks, shares = tables.marks, tables.shares
    for link in tables.links:
        down, up, video = link.down_bps, link.up_bps, link.video_bps
        if link.is_shaped_in:
            found.append(_shaper(link.interface, "ingress", INGRESS + link.number, down * MARGIN, video, marks, shares))
        elif link.shaped_lan:
            # What the box itself fetches comes by the link too, and never leaves by this interface as what came.
            rate = (down - video) * MARGIN
            found.append(_shaper(link.shaped_lan, "egress", LAN + link.number, rate, 0, marks, shares))
        if link.is_shaped_out:
            found.append(_shaper(link.interface, "egress", EGRESS + link.number, up * MARGIN, 0, marks, shares))
    return tuple(found)


def _shaper(
    interface: str, side: str, major: int, rate: float, video: int, marks: Sequence[MarkRow], shares: Sequence[ShareRow]
) -> Shaper:
    room = max(rate - video, rate * _ROOM_MIN) if video else rate * _ROOM_UNKNOWN
    room = room if marks else 0.0
    is_matched = side == "ingress"
    classes, left = [], rate - room
    for number, mark in enumerate(marks):
        match = Match(mark.nets, mark.protocol, mark.ports, mark.marked)
        classes.append(ShapedClass(
            _MARK + number, mark.name, int(room / len(marks)), int(rate), 0, (match,) if is_matched else (),
        ))  # fmt: skip
    given = left
    for number, share in enumerate(shares):
        sure = given * max(share.guarantee / 100, _TRICKLE) * (1 - _TRICKLE * (len(shares) + 1))
        left -= sure
        ceiling = max(sure, (video or rate) * share.ceiling / 100)
        matches = (Match(dscp=share.dscp),) if is_matched else ()
        classes.append(
            ShapedClass(_CLASS + number, share.name, int(sure), int(min(ceiling, rate)), min(6, 1 + number), matches)
        )
    classes.append(ShapedClass(REST, "(the rest)", int(max(left, rate * _TRICKLE)), int(rate), 7))
    return Shaper(interface, side, major, int(rate), tuple(classes))


def class_rules(tables: Tables) -> tuple[PacketRule, ...]:
    """What goes into which class of an egress: the last rule that fits wins, so the most important ones come last."""
    rules: list[PacketRule] = []
    for link in tables.links:
        if link.shaped_lan and not link.is_shaped_in:
            rules += _lan_rules(link, tables)
        if link.is_shaped_out:
            rules += _egress_rules(link, tables)
    return tuple(rules)


def _lan_rules(link: LinkRow, tables: Tables) -> Iterator[PacketRule]:
    """Only what is forwarded from the link: what the box serves from its cache goes unshaped."""
    major = LAN + link.number
    forwarded = PacketRule("forward", interface_in=link.interface, interface_out=link.shaped_lan)
    yield replace(forwarded, priority=f"{major:x}:{REST:x}")
    for number, share in reversed([*enumerate(tables.shares)]):
        yield replace(forwarded, dscp_is=share.dscp, priority=f"{major:x}:{_CLASS + number:x}")
    for number, mark in reversed([*enumerate(tables.marks)]):
        mine = replace(forwarded, protocol=mark.protocol, source=mark.nets, source_ports=mark.ports)
        yield replace(mine, dscp_is=mark.marked, priority=f"{major:x}:{_MARK + number:x}")


def _egress_rules(link: LinkRow, tables: Tables) -> Iterator[PacketRule]:
    major = EGRESS + link.number
    sent = PacketRule("postrouting", interface_out=link.interface)
    yield replace(sent, priority=f"{major:x}:{REST:x}")
    for number, share in reversed([*enumerate(tables.shares)]):
        yield replace(sent, dscp_is=share.dscp, priority=f"{major:x}:{_CLASS + number:x}")
    for number, mark in reversed([*enumerate(tables.marks)]):
        mine = replace(sent, protocol=mark.protocol, destination=mark.nets, ports=mark.ports)
        yield replace(mine, dscp_is=mark.marked, priority=f"{major:x}:{_MARK + number:x}")
