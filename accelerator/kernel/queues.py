"""The kernel's queues over one netlink socket: what is ours, and the steps of a plan carried out. Blocks, so that a
thread of its own has it. Decides nothing."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from typing import Any

from accelerator.kernel import queue_wire as tc
from accelerator.kernel.netlink import Netlink
from accelerator.kernel.queue_plan import FoundQueues, QueuePlan, Step, Tree
from accelerator.kernel.queue_wire import FilterRow, QdiscRow
from accelerator.kernel.shaped import DEVICE_PREFIX, MAJOR_FIRST, MAJOR_LAST, PREFERENCE, Shaper

_CLASS_MINOR = 0xFFFF


class Queues:
    """One thread at a time. OSError: netlink failed as a whole."""

    def __init__(self) -> None:
        self._netlink = Netlink()

    def close(self) -> None:
        self._netlink.close()

    def observe(self, shapers: Iterable[Shaper]) -> FoundQueues:
        """Of all interfaces, so that what is ours and wanted no more is found too."""
        found = FoundQueues()
        for body in self._netlink.dump(tc.links_request()):
            link = tc.read_link(body)
            if link is not None:
                found.links[link.name] = link
        names = {link.index: name for name, link in found.links.items()}
        devices: dict[int, list[QdiscRow]] = {}
        for body in self._netlink.dump(tc.tc_request(tc.RTM_GETQDISC, 0)):
            read = tc.read_qdisc(body)
            if read is not None and read[0] in names:
                devices.setdefault(read[0], []).append(read[1])
        wanted = {shaper.device for shaper in shapers}
        for index, rows in devices.items():
            name = names[index]
            self._ingress(found, name, index, rows)
            root = next((row for row in rows if row.parent == tc.ROOT), None)
            if root is None:
                continue
            if root.kind == "htb" and MAJOR_FIRST <= root.handle >> 16 <= MAJOR_LAST:
                found.trees[name] = self._tree(found, name, index, root, rows)
            elif name in wanted:
                found.trees[name] = Tree(root.handle)
        return found

    def _tree(self, found: FoundQueues, name: str, index: int, root: QdiscRow, rows: list[QdiscRow]) -> Tree:
        classes, filters = set(), set()
        for body in self._netlink.dump(tc.tc_request(tc.RTM_GETTCLASS, index)):
            read = tc.read_class(body)
            if read is not None:
                # The kernel says of a leaf's parent the class itself, and of the topmost one's the root.
                row = read[0]._replace(parent=root.handle if read[0].parent == tc.ROOT else read[0].parent)
                classes.add(row)
                found.counts[name, row.handle & _CLASS_MINOR] = read[1]
        if name.startswith(DEVICE_PREFIX):
            filters = {row for _, row in self._filters(index, root.handle) if row is not None}
        below = {row for row in rows if row.parent >> 16 == root.handle >> 16 or row is root}
        return Tree(root.handle, frozenset(below), frozenset(classes), frozenset(filters))

    def _ingress(self, found: FoundQueues, name: str, index: int, rows: list[QdiscRow]) -> None:
        """Somebody's who has any filter there that isn't our one, or who wants clsact."""
        ingress = next((row for row in rows if row.handle == tc.INGRESS), None)
        if ingress is None:
            return
        if ingress.kind != "ingress":
            found.taken.add(name)
            return
        rows_there = set()
        for preference, row in self._filters(index, tc.INGRESS):
            if preference != PREFERENCE:
                found.taken.add(name)
            elif row is not None:
                rows_there.add(row)
        found.redirects[name] = frozenset(rows_there)

    def _filters(self, index: int, parent: int) -> list[tuple[int, FilterRow | None]]:
        read = (tc.read_filter(body) for body in self._netlink.dump(tc.tc_request(tc.RTM_GETTFILTER, index, parent)))
        return [each for each in read if each is not None]

    def carry_out(self, planned: QueuePlan, found: FoundQueues) -> Counter[str]:
        """How often each error came; none: all is done. One step after the other: each leans on those before."""
        failed: Counter[str] = Counter()
        numbers = {name: link.index for name, link in found.links.items()}
        broken: set[str] = set()
        for step in planned.steps:
            if step.interface in broken:
                continue
            if numbers.get(step.device, 0) == 0 or (step.target and numbers.get(step.target, 0) == 0):
                numbers = self._numbers()
            error = self._do(step, numbers)
            if error:
                # What hangs below would fail too.
                broken.add(step.interface)
                failed[f"{step.text}: {error}"] += 1
        return failed

    def _do(self, step: Step, numbers: dict[str, int]) -> str:
        message = step.message(numbers.get(step.device, 0), numbers.get(step.target, 0))
        return next((os.strerror(each) for each in self._netlink.send([message])), "")

    def _numbers(self) -> dict[str, int]:
        links = (tc.read_link(body) for body in self._netlink.dump(tc.links_request()))
        return {link.name: link.index for link in links if link is not None}


def rows(shapers: Iterable[Shaper], found: FoundQueues) -> list[dict[str, Any]]:
    """For operators: what stands where, by class, with the kernel's counts."""
    shown = []
    for shaper in shapers:
        classes = []
        for each in shaper.classes:
            counts = found.counts.get((shaper.device, each.minor))
            row: dict[str, Any] = {"name": each.name, "rate_bps": each.rate_bps, "ceiling_bps": each.ceiling_bps}
            row["is_there"] = counts is not None
            row.update(counts._asdict() if counts is not None else {})
            classes.append(row)
        place = {"interface": shaper.interface, "side": shaper.side, "device": shaper.device}
        shown.append({**place, "rate_bps": shaper.rate_bps, "classes": classes})
    return shown
