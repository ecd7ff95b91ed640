"""What links and classes of a policy mean together: budgets that add up, links that are there. Parses no value."""

from __future__ import annotations

from collections.abc import Iterator

from accelerator.policy.link_rows import mark_rows, share_rows
from accelerator.policy.model import Policy
from accelerator.policy.units import format_rate, nearest

FILTERS_MAX = 512  # of one link's ingress, as in kernel/shaped.py
Finding = tuple[tuple[str | int, ...], str, bool]


def link_findings(policy: Policy) -> Iterator[Finding]:
    """(place, message, whether it is only a warning)."""
    places: dict[str, str] = {}
    for name, link in policy.links.items():
        path = ("links", name)
        other = places.setdefault(link.interface, name)
        if other != name:
            what = f"links.{name}.interface: {link.interface} is link '{other}' already"
            yield (*path, "interface"), what, False
        if link.video is not None and link.down is not None and link.video > link.down:
            what = f"links.{name}.video: {format_rate(link.video)} is more than the link's {format_rate(link.down)}"
            yield (*path, "video"), what, False
    yield from _shapes(policy)
    for name, mark in policy.marks.items():
        if not mark.nets and mark.marked is None:
            yield ("marks", name), f"marks.{name}: it names no traffic: nets or marked", False
    yield from _classes(policy)
    yield from _origins(policy)


def _shapes(policy: Policy) -> Iterator[Finding]:
    n_filters = sum(row.n_filters for row in mark_rows(policy)) + 2 * len(share_rows(policy))
    uplinks = {link.interface: name for name, link in policy.links.items()}
    lans: dict[str, str] = {}
    for name, link in policy.links.items():
        path, shape = ("links", name, "shape"), link.shape
        where = f"links.{name}.shape"
        if (shape.ingress or shape.lan) and link.down is None:
            yield path, f"{where}: needs links.{name}.down, which the queues keep below", False
        if shape.egress and link.up is None:
            yield (*path, "egress"), f"{where}.egress: needs links.{name}.up, which the queues keep below", False
        if shape.ingress and shape.lan:
            yield (*path, "lan"), f"{where}.lan: what comes in would stand in two queues: ingress or lan", False
        if shape.ingress and n_filters > FILTERS_MAX:
            what = f"{where}.ingress: marks and classes need {n_filters} filters (networks times ports), the most is "
            yield (*path, "ingress"), f"{what}{FILTERS_MAX}: name larger networks, or no ports", False
        if shape.lan in uplinks:
            yield (*path, "lan"), f"{where}.lan: {shape.lan} is link '{uplinks[shape.lan]}'", False
        elif shape.lan and lans.setdefault(shape.lan, name) != name:
            yield (*path, "lan"), f"{where}.lan: {shape.lan} is shaped for link '{lans[shape.lan]}' already", False
        if shape.lan and link.down and link.video and link.video * 10 > link.down * 9:
            what = f"{where}.lan: links.{name}.video leaves less than a tenth for what is forwarded: use ingress"
            yield (*path, "lan"), what, False


def _classes(policy: Policy) -> Iterator[Finding]:
    total = 0
    for name, row in policy.classes.items():
        total += row.guarantee
        if row.guarantee > row.ceiling:
            what = f"classes.{name}.guarantee: {row.guarantee}% is more than the class's ceiling of {row.ceiling}%"
            yield ("classes", name, "guarantee"), what, False
        if total > 100 >= total - row.guarantee:
            what = f"classes.{name}.guarantee: all guarantees together are {total}% of a link, the most is 100%"
            yield ("classes", name, "guarantee"), what, False
        is_bounded = any(link.video is not None for link in policy.links.values())
        for key, is_set in (("guarantee", row.guarantee > 0), ("ceiling", row.ceiling < 100)):
            if is_set and not is_bounded:
                what = f"classes.{name}.{key}: has no effect without a link that has a video budget (links.NAME.video)"
                yield ("classes", name, key), what, True


def _origins(policy: Policy) -> Iterator[Finding]:
    known = list(policy.links)
    for name, origin in policy.origins.items():
        for index, link in enumerate(origin.link):
            place = ("origins", name, "link", index)
            if link not in policy.links:
                yield place, f"origins.{name}.link: unknown link '{link}'{nearest(link, known)}", False
            elif link in origin.link[:index]:
                yield place, f"origins.{name}.link: '{link}' stands there twice", False
        if origin.link_for == "all" and not origin.link:
            yield ("origins", name, "link_for"), f"origins.{name}.link_for: all needs origins.{name}.link", False
        for link in origin.link if origin.link_for == "all" else ():
            if link in policy.links and policy.links[link].gateway is None:
                what = f"origins.{name}.link_for: link '{link}' has no gateway: what is forwarded goes by the system's"
                yield ("origins", name, "link_for"), f"{what} routes", True
        if len(origin.link) > 1:
            for index, link in enumerate(origin.link[:-1]):
                row = policy.links.get(link)
                if row is not None and row.probe is None:
                    what = f"origins.{name}.link: link '{link}' has no probe: it is left only when its interface fails"
                    yield ("origins", name, "link", index), what, True
