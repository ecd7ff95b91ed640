"""The queues that shapers want, as rows, and the steps from what is there to them. Pure. Others' queues are never
replaced: a root that somebody has set is his, and then nothing is done at that interface."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_network

from accelerator.kernel import queue_wire as tc
from accelerator.kernel.queue_wire import ClassRow, Counts, FilterRow, LinkRow, QdiscRow
from accelerator.kernel.shaped import (
    DEVICE_PREFIX,
    MAJOR_FIRST,
    MAJOR_LAST,
    PARENT,
    PREFERENCE,
    REST,
    Match,
    Shaper,
)

# A queue holds so much of its class's ceiling: what waits longer should have been sent more slowly. What goes first
# hardly waits, having what it needs for sure; but a burst of it must fit, such as a picture's.
QUEUE_S, QUEUE_BYTES_MIN, FIRST_BYTES_MIN = 0.04, 30_000, 150_000
# A millisecond at once: fewer timers, and nothing that a queue behind us would notice.
BURST_S, BURST_BYTES_MIN = 0.001, 3200
_LEAF = 0x7B000000
# IPv4's and IPv6's filters cannot have the same preference.
PREFERENCES = {tc.ETH_IP: PREFERENCE, tc.ETH_IP6: PREFERENCE + 1}
_PROTOCOLS = {"tcp": 6, "udp": 17}


@dataclass(frozen=True, slots=True)
class Tree:
    """What stands at one device. `root`: whose it is; 0: the kernel's own."""

    root: int = 0
    qdiscs: frozenset[QdiscRow] = frozenset()
    classes: frozenset[ClassRow] = frozenset()
    filters: frozenset[FilterRow] = frozenset()


@dataclass(slots=True)
class FoundQueues:
    """By interface's name. `redirects`: what leads incoming packets away; `taken`: whose ingress somebody else uses."""

    links: dict[str, LinkRow] = field(default_factory=dict)
    trees: dict[str, Tree] = field(default_factory=dict)
    redirects: dict[str, frozenset[FilterRow]] = field(default_factory=dict)
    taken: set[str] = field(default_factory=set)
    counts: dict[tuple[str, int], Counts] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Step:
    """`text` as `tc` would be told; `message` by the numbers of `device` and of `target`, which a step before may have
    made (0: not there)."""

    interface: str
    text: str
    device: str
    message: Callable[[int, int], bytes]
    target: str = ""


@dataclass(slots=True)
class QueuePlan:
    steps: list[Step] = field(default_factory=list)
    missing: set[str] = field(default_factory=set)
    taken: set[str] = field(default_factory=set)

    @property
    def groups(self) -> frozenset[str]:
        return frozenset(f"queues of {step.interface}" for step in self.steps)


def wanted_tree(shaper: Shaper) -> Tree:
    root = shaper.major << 16
    rest = REST if shaper.side == "ingress" else 0
    qdiscs = {QdiscRow("htb", root, tc.ROOT, rest)}
    classes = {_class(root | PARENT, root, shaper.rate_bps, shaper.rate_bps, 0)}
    filters: list[FilterRow] = []
    for each in shaper.classes:
        handle = root | each.minor
        classes.add(_class(handle, root | PARENT, each.rate_bps, each.ceiling_bps, each.priority))
        least = QUEUE_BYTES_MIN if each.priority else FIRST_BYTES_MIN
        size = max(least, int(each.ceiling_bps / 8 * QUEUE_S))
        qdiscs.add(QdiscRow("bfifo", _LEAF + (each.minor << 16), handle, size))
    if shaper.side == "ingress":
        # The most important class first: the first filter that matches wins.
        for each in sorted(shaper.classes, key=lambda one: (one.priority, one.minor)):
            for match in each.matches:
                for protocol, keys in _keys(match):
                    filters.append(FilterRow(protocol, len(filters) + 1, keys, root | each.minor))
    return Tree(root, frozenset(qdiscs), frozenset(classes), frozenset(filters))


def _class(handle: int, parent: int, rate_bps: int, ceiling_bps: int, priority: int) -> ClassRow:
    rate, ceiling = rate_bps // 8, max(rate_bps, ceiling_bps) // 8
    burst = max(BURST_BYTES_MIN, int(rate * BURST_S))
    # The kernel warns of quanta outside of 1,000 to 200,000.
    return ClassRow(handle, parent, rate, ceiling, burst, max(1600, min(rate // 10, 60_000)), priority)


def _keys(match: Match) -> Iterable[tuple[int, tuple[tuple[int, int, int], ...]]]:
    """u32's, as they stand in the heads; packets with IP options are told by their ports only where they have none."""
    families = [(tc.ETH_IP, None), (tc.ETH_IP6, None)] if not match.sources else [
        (tc.ETH_IP if ip_network(each).version == 4 else tc.ETH_IP6, ip_network(each)) for each in match.sources
    ]  # fmt: skip
    for protocol, network in families:
        is_v6 = protocol == tc.ETH_IP6
        keys: list[tuple[int, int, int]] = []
        if match.dscp is not None:
            keys.append((0x0FC00000, match.dscp << 22, 0) if is_v6 else (0x00FC0000, match.dscp << 18, 0))
        if match.protocol is not None:
            number = _PROTOCOLS[match.protocol]
            keys.append((0x0000FF00, number << 8, 4) if is_v6 else (0x00FF0000, number << 16, 8))
        if network is not None:
            packed, mask = network.network_address.packed, network.netmask.packed
            words = ((int.from_bytes(mask[at : at + 4], "big"), int.from_bytes(packed[at : at + 4], "big"), at)
                     for at in range(0, len(packed), 4))  # fmt: skip
            keys += [(bits, value, (8 if is_v6 else 12) + at) for bits, value, at in words if bits]
        if not match.source_ports:
            yield protocol, tuple(keys)
        for port in match.source_ports:
            yield protocol, (*keys, (0xFFFF0000, port << 16, 40 if is_v6 else 20))


def plan(shapers: Iterable[Shaper], found: FoundQueues, stopped: frozenset[str]) -> QueuePlan:
    """Nothing is done about `stopped` groups."""
    planned = QueuePlan()
    devices, leading = {}, {}
    for shaper in shapers:
        link = found.links.get(shaper.interface)
        if link is None or not link.is_up:
            planned.missing.add(shaper.interface)
            continue
        devices[shaper.device] = shaper
        if shaper.side == "ingress":
            leading[shaper.interface] = shaper
    for shaper in devices.values():
        if f"queues of {shaper.interface}" in stopped:
            continue
        tree = found.trees.get(shaper.device, Tree())
        device = found.links.get(shaper.device)
        if _is_foreign(tree.root) or (device is not None and shaper.side == "ingress" and not _is_ours(device)):
            planned.taken.add(shaper.device)
        elif shaper.side == "ingress" and shaper.interface in found.taken:
            planned.taken.add(shaper.interface)
        else:
            planned.steps += _device_steps(shaper, device) if shaper.side == "ingress" else ()
            planned.steps += _tree_steps(shaper, tree)
            planned.steps += _lead_steps(shaper, found) if shaper.side == "ingress" else ()
    planned.steps += _left_over(devices, leading, found, stopped)
    return planned


def _is_foreign(root: int) -> bool:
    return root != 0 and not MAJOR_FIRST <= root >> 16 <= MAJOR_LAST


def _is_ours(link: LinkRow) -> bool:
    return link.kind == "ifb" and link.name.startswith(DEVICE_PREFIX)


def _device_steps(shaper: Shaper, device: LinkRow | None) -> list[Step]:
    name = shaper.device
    if device is None:
        made = tc.device_message(name)
        return [Step(shaper.interface, f"ip link add {name} type ifb", name, lambda *_: made)]
    if not device.is_up:
        return [Step(shaper.interface, f"ip link set {name} up", name, lambda index, _: tc.up_message(index))]
    return []


def _tree_steps(shaper: Shaper, there: Tree) -> list[Step]:
    want, name, interface = wanted_tree(shaper), shaper.device, shaper.interface
    steps = []
    if there.root and there.root != want.root:  # ours, of another number
        steps.append(_root_gone(interface, name, there.root))
        there = Tree()
    missing = sorted(want.qdiscs - there.qdiscs)
    steps += [_qdisc_added(interface, name, row) for row in missing if row.kind == "htb"]
    # Filters first: a class that one leads to can't be deleted. For a moment all is in the class of the rest.
    is_filtered_anew = bool(there.filters) and there.filters != want.filters
    if is_filtered_anew:
        gone = sorted({row.protocol for row in there.filters})
        steps += [_filters_gone(interface, name, want.root, protocol) for protocol in gone]
    listed = {tc.as_listed(row): row for row in want.classes}
    steps += [_class_added(interface, name, listed[row]) for row in sorted(set(listed) - there.classes)]
    steps += [_qdisc_added(interface, name, row) for row in missing if row.kind != "htb"]
    filters = sorted(want.filters if is_filtered_anew else want.filters - there.filters)
    steps += [_filter_added(interface, name, want.root, row) for row in filters]
    kept = {row.handle for row in want.classes}
    unwanted = sorted((row for row in there.classes if row.handle not in kept), reverse=True)
    return steps + [_class_gone(interface, name, row) for row in unwanted]


def _qdisc_added(interface: str, name: str, row: QdiscRow) -> Step:
    text = qdisc_text(name, row)
    return Step(interface, text, name, lambda index, _: tc.qdisc_message(index, row, is_added=True))


def _class_added(interface: str, name: str, row: ClassRow) -> Step:
    text = class_text(name, row)
    return Step(interface, text, name, lambda index, _: tc.class_message(index, row, is_added=True))


def _class_gone(interface: str, name: str, row: ClassRow) -> Step:
    text = f"tc class del dev {name} classid {_handle(row.handle)}"
    return Step(interface, text, name, lambda index, _: tc.class_message(index, row, is_added=False))


def _filter_added(interface: str, name: str, root: int, row: FilterRow) -> Step:
    preference = PREFERENCES[row.protocol]
    text = filter_text(name, row)
    return Step(interface, text, name, lambda index, _: tc.filter_message(index, root, preference, row))


def _filters_gone(interface: str, name: str, root: int, protocol: int) -> Step:
    preference = PREFERENCES.get(protocol, PREFERENCE)
    text = f"tc filter del dev {name} pref {preference}"
    return Step(interface, text, name, lambda index, _: tc.filters_gone(index, root, preference, protocol))


def _root_gone(interface: str, name: str, root: int) -> Step:
    row = QdiscRow("htb", root, tc.ROOT)
    text = f"tc qdisc del dev {name} root"
    return Step(interface, text, name, lambda index, _: tc.qdisc_message(index, row, is_added=False))


_INGRESS = QdiscRow("ingress", tc.INGRESS, tc.INGRESS_PARENT)


def _lead_steps(shaper: Shaper, found: FoundQueues) -> list[Step]:
    """Incoming packets go through the device once its queues stand."""
    name, device = shaper.interface, shaper.device
    there, link = found.redirects.get(name), found.links.get(device)
    steps = []
    if there is None:
        steps.append(_qdisc_added(name, name, _INGRESS))
    if link is None or there != frozenset({redirect(link.index)}):
        if there:
            steps.append(_filters_gone(name, name, tc.INGRESS, tc.ETH_ALL))
        text = f"tc filter add dev {name} ingress pref {PREFERENCE} u32 match u32 0 0 action mirred egress redirect " \
            f"dev {device}"  # fmt: skip
        steps.append(Step(name, text, name, _redirect_message, device))
    return steps


def _redirect_message(index: int, target: int) -> bytes:
    return tc.filter_message(index, tc.INGRESS, PREFERENCE, redirect(target))


def redirect(index: int) -> FilterRow:
    return FilterRow(tc.ETH_ALL, 1, ((0, 0, 0),), index, is_redirect=True)


def _left_over(
    devices: Mapping[str, Shaper], leading: Mapping[str, Shaper], found: FoundQueues, stopped: frozenset[str]
) -> Iterable[Step]:
    """Ours, and wanted no more: first what leads packets there."""
    for name, rows in sorted(found.redirects.items()):
        if rows and name not in leading and name not in found.taken and f"queues of {name}" not in stopped:
            text = f"tc qdisc del dev {name} ingress"
            yield Step(name, text, name, lambda index, _: tc.qdisc_message(index, _INGRESS, is_added=False))
    for name, tree in sorted(found.trees.items()):
        is_left = name not in devices and tree.root and not _is_foreign(tree.root) and not _is_ours(found.links[name])
        if is_left and f"queues of {name}" not in stopped:
            yield _root_gone(name, name, tree.root)
    for name, link in sorted(found.links.items()):
        if _is_ours(link) and name not in devices:
            yield Step(name, f"ip link del {name}", name, lambda index, _: tc.device_gone(index))


def _handle(number: int) -> str:
    major, minor = number >> 16, number & 0xFFFF
    return f"{major:x}:{minor:x}" if minor else f"{major:x}:"


def qdisc_text(name: str, row: QdiscRow) -> str:
    if row.kind == "ingress":
        return f"tc qdisc add dev {name} ingress"
    if row.kind == "htb":
        return f"tc qdisc add dev {name} root handle {_handle(row.handle)} htb default {row.value:x}"
    where = f"parent {_handle(row.parent)} handle {_handle(row.handle)}"
    return f"tc qdisc replace dev {name} {where} {row.kind} limit {row.value}"


def class_text(name: str, row: ClassRow) -> str:
    rates = f"rate {row.rate * 8}bit ceil {row.ceiling * 8}bit prio {row.priority}"
    return f"tc class replace dev {name} parent {_handle(row.parent)} classid {_handle(row.handle)} htb {rates}"


def filter_text(name: str, row: FilterRow) -> str:
    keys = " ".join(f"match u32 {value:#x} {mask:#x} at {at}" for mask, value, at in row.keys)
    kind = "ip" if row.protocol == tc.ETH_IP else "ipv6"
    return f"tc filter add dev {name} protocol {kind} pref {PREFERENCES[row.protocol]} u32 {keys} " \
        f"flowid {_handle(row.target)}"  # fmt: skip
