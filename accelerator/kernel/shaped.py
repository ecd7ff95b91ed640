"""Shaping as services desire it: a tree of bounded classes at one interface, for what goes out of it, or for what comes
in by it. Frozen values, checked when they are read from JSON. Ours is told by the numbers that stand here: handles of
queues, the name of the device through which incoming packets are led. Nothing is carried out here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from accelerator.kernel import checked
from accelerator.kernel.checked import StateError

# Handles of our roots. The kernel deals out 8001: and up by itself, and persons write 1: or 10:.
MAJOR_FIRST, MAJOR_LAST = 0x7A10, 0x7A6F
DEVICE_PREFIX = "accel-ifb"
PREFERENCE = 8600  # of our filters
# What no other class takes; the one that all hang below.
REST, PARENT = 0xFF, 1
SHAPERS_MAX, CLASSES_MAX, FILTERS_MAX = 48, 256, 512
RATE_BPS_MIN, RATE_BPS_MAX = 8_000, 400_000_000_000
_SIDES = ("egress", "ingress")


@dataclass(frozen=True, slots=True)
class Match:
    """Incoming packets from one of `sources` (none: from anywhere), of this protocol and port, with this mark."""

    sources: tuple[str, ...] = ()
    protocol: str | None = None
    source_ports: tuple[int, ...] = ()
    dscp: int | None = None

    @property
    def n_filters(self) -> int:
        """Networks and ports are told apart one by one; what names no network is said for both families."""
        return (len(self.sources) or 2) * (len(self.source_ports) or 1)


@dataclass(frozen=True, slots=True)
class ShapedClass:
    """Has `rate_bps` for sure and borrows up to `ceiling_bps`, lower `priority` first. `name` is for operators."""

    minor: int
    name: str
    rate_bps: int
    ceiling_bps: int
    priority: int = 7
    matches: tuple[Match, ...] = ()


@dataclass(frozen=True, slots=True)
class Shaper:
    """`major`: the handle of its root. At the egress packets are put into classes by PacketRule.priority, and what has
    none goes unshaped; at the ingress by each class's matches, and what none takes is in class REST."""

    interface: str
    side: str
    major: int
    rate_bps: int
    classes: tuple[ShapedClass, ...]

    @property
    def device(self) -> str:
        """Where the queues stand."""
        return self.interface if self.side == "egress" else f"{DEVICE_PREFIX}{self.major - MAJOR_FIRST}"


def shapers(document: object) -> tuple[Shaper, ...]:
    rows = tuple(map(_shaper, checked.items(document, "shapers")))
    if len(rows) > SHAPERS_MAX:
        raise StateError("value", f"more than {SHAPERS_MAX} shapers")
    check_shapers(rows)
    return rows


def check_shapers(rows: tuple[Shaper, ...]) -> None:
    """StateError where two want the same place."""
    places: set[object] = set()
    for row in rows:
        for place in ((row.interface, row.side), row.major):
            if place in places:
                raise StateError("conflict", f"two shapers for {row.interface}, {row.side}, or with the same number")
            places.add(place)


def encode(row: Shaper) -> dict[str, Any]:
    def plain(value: Any) -> Any:
        if isinstance(value, (Match, ShapedClass, Shaper)):
            return {each.name: plain(getattr(value, each.name)) for each in fields(value)}
        return [plain(each) for each in value] if isinstance(value, tuple) else value

    encoded: dict[str, Any] = plain(row)
    return encoded


def _shaper(document: object) -> Shaper:
    given = checked.mapping(document, "a shaper", {field.name for field in fields(Shaper)})
    interface = checked.interface(given.get("interface"), "a shaper")
    where = f"the shaper of {interface}"
    major = checked.whole(given, "major", 0, 0, 0xFFFF, where)
    if not MAJOR_FIRST <= major <= MAJOR_LAST:
        raise StateError("foreign", f"{where}: our handles are {MAJOR_FIRST:x}: to {MAJOR_LAST:x}:")
    classes = tuple(_class(each, where) for each in checked.items(given.get("classes", []), where))
    if len(classes) > CLASSES_MAX or len({each.minor for each in classes}) != len(classes):
        raise StateError("value", f"{where}: too many classes, or two with the same number")
    side = checked.choice(given, "side", "", _SIDES, where)
    if side == "ingress" and REST not in {each.minor for each in classes}:
        raise StateError("value", f"{where}: it has no class {REST:x}, for what no other one takes")
    if sum(match.n_filters for each in classes for match in each.matches) > FILTERS_MAX:
        raise StateError("value", f"{where}: its classes need more than {FILTERS_MAX} filters")
    rate_bps = checked.whole(given, "rate_bps", 0, RATE_BPS_MIN, RATE_BPS_MAX, where)
    return Shaper(interface, side, major, rate_bps, classes)


def _class(document: object, where: str) -> ShapedClass:
    given = checked.mapping(document, f"{where}: a class", {field.name for field in fields(ShapedClass)})
    return ShapedClass(
        checked.whole(given, "minor", 0, 2, 0xFFF, where),
        checked.text(given, "name", f"{where}: a class"),
        checked.whole(given, "rate_bps", 0, RATE_BPS_MIN, RATE_BPS_MAX, where),
        checked.whole(given, "ceiling_bps", 0, RATE_BPS_MIN, RATE_BPS_MAX, where),
        checked.whole(given, "priority", 7, 0, 7, where),
        tuple(_match(each, where) for each in checked.items(given.get("matches", []), where)),
    )


def _match(document: object, where: str) -> Match:
    given: Mapping[str, object] = checked.mapping(document, f"{where}: a match", {each.name for each in fields(Match)})
    protocol = given.get("protocol")
    if protocol is not None and protocol not in ("tcp", "udp"):
        raise StateError("value", f"{where}: protocol is tcp or udp")
    match = Match(
        checked.networks(given.get("sources", []), where) or (),
        protocol if isinstance(protocol, str) else None,
        checked.ports(given.get("source_ports", []), where),
        None if given.get("dscp") is None else checked.whole(given, "dscp", 0, 0, 63, where),
    )
    if match.source_ports and match.protocol is None:
        raise StateError("value", f"{where}: ports need a protocol")
    if match == Match():
        raise StateError("value", f"{where}: a match that takes everything")
    return match
