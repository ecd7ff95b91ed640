"""Queues, their classes and filters as rtnetlink messages (traffic control): bytes from rows and rows from bytes. Pure.
A row holds what can differ from what is wanted, so that both are compared as sets; structures as in <linux/pkt_sched.h>
and <linux/pkt_cls.h>."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import NamedTuple

from accelerator.kernel import wire
from accelerator.kernel.wire import attribute, attributes, number

RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK = 16, 17, 18
RTM_NEWQDISC, RTM_DELQDISC, RTM_GETQDISC = 36, 37, 38
RTM_NEWTCLASS, RTM_DELTCLASS, RTM_GETTCLASS = 40, 41, 42
RTM_NEWTFILTER, RTM_DELTFILTER, RTM_GETTFILTER = 44, 45, 46
ROOT, INGRESS_PARENT, INGRESS = 0xFFFFFFFF, 0xFFFFFFF1, 0xFFFF0000
_CREATE = wire.F_ACK | wire.F_CREATE | wire.F_EXCL
_REPLACE = wire.F_ACK | wire.F_CREATE | wire.F_REPLACE
_TC = struct.Struct("=BBHiIII")  # tcmsg
_LINK = struct.Struct("=BBHiII")  # ifinfomsg
_RATE = struct.Struct("=BBHhHI")  # tc_ratespec
_HTB_CLASS = struct.Struct("=IIIII")  # the end of tc_htb_opt: buffer, cbuffer, quantum, level, prio
_SELECTOR = struct.Struct("!BBBxHHhhI")  # tc_u32_sel
_MIRRED = struct.Struct("=IIiiiiI")  # tc_mirred: tc_gen, eaction, ifindex
_KIND, _OPTIONS, _STATS2 = 1, 2, 7
_HTB_PARMS, _HTB_INIT, _HTB_DIRECT_QLEN, _HTB_RATE64, _HTB_CEIL64 = 1, 2, 5, 6, 7
_U32_CLASSID, _U32_SEL, _U32_ACT = 1, 5, 7
_IFNAME, _LINKINFO, _INFO_KIND = 3, 18, 1
_ETHERNET = 1  # TC_LINKLAYER_ETHERNET: the kernel wants no table of ours
_TICK_NS = 64
_UP = 1
_TERMINAL = 1  # TC_U32_TERMINAL
_EGRESS_REDIRECT, _STOLEN = 1, 4  # TCA_EGRESS_REDIR, TC_ACT_STOLEN
# What no class takes at an egress waits here, as in the kernel's own fifo.
_DIRECT_PACKETS = 1000
ETH_ALL, ETH_IP, ETH_IP6 = 0x0003, 0x0800, 0x86DD


class QdiscRow(NamedTuple):
    """`value`: HTB's class for what none takes, the bytes that a bfifo holds."""

    kind: str
    handle: int
    parent: int
    value: int = 0


class ClassRow(NamedTuple):
    """Rates in bytes per second, bursts in bytes."""

    handle: int
    parent: int
    rate: int
    ceiling: int
    burst: int
    quantum: int
    priority: int


class FilterRow(NamedTuple):
    """Of u32: `keys` are pairs of mask and value as they stand in the packet's head; `target` a class, or with
    `is_redirect` the interface that takes the packet."""

    protocol: int
    number: int
    keys: tuple[tuple[int, int, int], ...]
    target: int
    is_redirect: bool = False


@dataclass(frozen=True, slots=True)
class LinkRow:
    name: str
    index: int
    is_up: bool
    kind: str


class Counts(NamedTuple):
    bytes: int
    packets: int
    drops: int
    backlog_bytes: int


def _nested(kind: int, *inner: bytes) -> bytes:
    return attribute(kind, b"".join(inner))


def _tc(index: int, handle: int, parent: int, info: int = 0) -> bytes:
    return _TC.pack(0, 0, 0, index, handle, parent, info)


def qdisc_message(index: int, row: QdiscRow, *, is_added: bool) -> bytes:
    """A root is made only where there is none but the kernel's own, whose handle is 0: EEXIST keeps another's safe, and
    only a handle of ours is deleted."""
    body = _tc(index, row.handle, row.parent)
    if not is_added:
        return wire.message(RTM_DELQDISC, wire.F_ACK, 0, body)
    body += attribute(_KIND, row.kind.encode() + b"\0")
    if row.kind == "htb":
        body += _nested(
            _OPTIONS,
            attribute(_HTB_INIT, struct.pack("=IIIII", 3, 10, row.value, 0, 0)),
            number(_HTB_DIRECT_QLEN, _DIRECT_PACKETS),
        )
    elif row.kind == "bfifo":
        body += number(_OPTIONS, row.value)
    return wire.message(RTM_NEWQDISC, _REPLACE if row.kind == "bfifo" else _CREATE, 0, body)


def class_message(index: int, row: ClassRow, *, is_added: bool) -> bytes:
    body = _tc(index, row.handle, row.parent)
    if not is_added:
        return wire.message(RTM_DELTCLASS, wire.F_ACK, 0, body)
    rates = (_RATE.pack(0, _ETHERNET, 0, 0, 0, min(each, 2**32 - 1)) for each in (row.rate, row.ceiling))
    bursts = (_ticks(row.burst, row.rate), _ticks(row.burst, row.ceiling))
    body += attribute(_KIND, b"htb\0") + _nested(
        _OPTIONS,
        attribute(_HTB_PARMS, b"".join(rates) + _HTB_CLASS.pack(*bursts, row.quantum, 0, row.priority)),
        attribute(_HTB_RATE64, struct.pack("=Q", row.rate)),
        attribute(_HTB_CEIL64, struct.pack("=Q", row.ceiling)),
    )
    return wire.message(RTM_NEWTCLASS, _REPLACE, 0, body)


def _ticks(size: int, rate: int) -> int:
    return min(size * 1_000_000_000 // rate // _TICK_NS, 2**32 - 1)


def filter_message(index: int, parent: int, preference: int, row: FilterRow) -> bytes:
    # A node's number alone: the kernel puts it into the table of its preference.
    body = _tc(index, row.number, parent, preference << 16 | _swapped(row.protocol))
    keys = b"".join(struct.pack("!II", mask, value) + struct.pack("=ii", at, 0) for mask, value, at in row.keys)
    options = [attribute(_U32_SEL, _SELECTOR.pack(_TERMINAL, 0, len(row.keys), 0, 0, 0, 0, 0) + keys)]
    if row.is_redirect:
        parms = _MIRRED.pack(0, 0, _STOLEN, 0, 0, _EGRESS_REDIRECT, row.target)
        inner = attribute(1, b"mirred\0") + _nested(2, attribute(2, parms))  # TCA_ACT_KIND, _OPTIONS, MIRRED_PARMS
        options.append(_nested(_U32_ACT, _nested(1, inner)))
    else:
        options.insert(0, number(_U32_CLASSID, row.target))
    body += attribute(_KIND, b"u32\0") + _nested(_OPTIONS, *options)
    return wire.message(RTM_NEWTFILTER, _CREATE, 0, body)


def filters_gone(index: int, parent: int, preference: int, protocol: int) -> bytes:
    """Takes away all of one preference and protocol."""
    return wire.message(RTM_DELTFILTER, wire.F_ACK, 0, _tc(index, 0, parent, preference << 16 | _swapped(protocol)))


def _swapped(protocol: int) -> int:
    return int.from_bytes(struct.pack("!H", protocol), "little" if struct.pack("=H", 1) == b"\1\0" else "big")


def device_message(name: str) -> bytes:
    """An ifb device, up."""
    body = _LINK.pack(0, 0, 0, 0, _UP, _UP)
    body += attribute(_IFNAME, name.encode() + b"\0") + _nested(_LINKINFO, attribute(_INFO_KIND, b"ifb"))
    return wire.message(RTM_NEWLINK, _CREATE, 0, body)


def up_message(index: int) -> bytes:
    return wire.message(RTM_NEWLINK, wire.F_ACK, 0, _LINK.pack(0, 0, 0, index, _UP, _UP))


def device_gone(index: int) -> bytes:
    return wire.message(RTM_DELLINK, wire.F_ACK, 0, _LINK.pack(0, 0, 0, index, 0, 0))


def links_request() -> wire.Request:
    return lambda given: wire.message(RTM_GETLINK, wire.F_DUMP, given, _LINK.pack(0, 0, 0, 0, 0, 0))


def tc_request(kind: int, index: int, parent: int = 0) -> wire.Request:
    """`kind`: RTM_GETQDISC, RTM_GETTCLASS or RTM_GETTFILTER."""
    return lambda given: wire.message(kind, wire.F_DUMP, given, _tc(index, 0, parent))


def read_link(body: bytes) -> LinkRow | None:
    if len(body) < _LINK.size:
        return None
    _, _, _, index, flags, _ = _LINK.unpack_from(body)
    found = attributes(body, _LINK.size)
    info = attributes(found.get(_LINKINFO, b""), 0)
    return LinkRow(_text(found.get(_IFNAME)), index, bool(flags & _UP), _text(info.get(_INFO_KIND)))


def _text(value: bytes | None) -> str:
    return (value or b"").split(b"\0", 1)[0].decode(errors="replace")


def read_qdisc(body: bytes) -> tuple[int, QdiscRow] | None:
    """(interface, row)."""
    if len(body) < _TC.size:
        return None
    _, _, _, index, handle, parent, _ = _TC.unpack_from(body)
    found = attributes(body, _TC.size)
    kind, options, value = _text(found.get(_KIND)), found.get(_OPTIONS, b""), 0
    if kind == "htb":
        init = attributes(options, 0).get(_HTB_INIT, b"")
        value = struct.unpack_from("=I", init, 8)[0] if len(init) >= 12 else 0
    elif kind == "bfifo" and len(options) >= 4:
        (value,) = struct.unpack_from("=I", options)
    return index, QdiscRow(kind, handle, parent, value)


def read_class(body: bytes) -> tuple[ClassRow, Counts] | None:
    """Of HTB."""
    if len(body) < _TC.size:
        return None
    _, _, _, _, handle, parent, _ = _TC.unpack_from(body)
    found = attributes(body, _TC.size)
    options = attributes(found.get(_OPTIONS, b""), 0)
    parms = options.get(_HTB_PARMS, b"")
    if len(parms) < 2 * _RATE.size + _HTB_CLASS.size:
        return None
    rate, ceiling = (_RATE.unpack_from(parms, at)[5] for at in (0, _RATE.size))
    rate, ceiling = _wide(options.get(_HTB_RATE64), rate), _wide(options.get(_HTB_CEIL64), ceiling)
    buffer, _, quantum, _, priority = _HTB_CLASS.unpack_from(parms, 2 * _RATE.size)
    row = ClassRow(handle, parent, rate, ceiling, buffer, quantum, priority)
    return row, _counts(attributes(found.get(_STATS2, b""), 0))


def _wide(value: bytes | None, narrow: int) -> int:
    return int(struct.unpack("=Q", value)[0]) if value is not None and len(value) == 8 else narrow


def _counts(stats: dict[int, bytes]) -> Counts:
    basic, queue = stats.get(1, b""), stats.get(3, b"")
    n_bytes, packets = struct.unpack_from("=QI", basic) if len(basic) >= 12 else (0, 0)
    _, backlog, drops = struct.unpack_from("=III", queue) if len(queue) >= 12 else (0, 0, 0)
    return Counts(n_bytes, packets, drops, backlog)


def as_listed(row: ClassRow) -> ClassRow:
    """As the kernel gives it back: a burst in its ticks."""
    return row._replace(burst=_ticks(row.burst, row.rate))


def read_filter(body: bytes) -> tuple[int, FilterRow | None] | None:
    """(preference, row); without a row: one of another kind, or a table of u32's. None: nothing that can be read."""
    if len(body) < _TC.size:
        return None
    _, _, _, _, handle, _, info = _TC.unpack_from(body)
    found = attributes(body, _TC.size)
    options = attributes(found.get(_OPTIONS, b""), 0)
    preference, protocol = info >> 16, _swapped(info & 0xFFFF)
    selector = options.get(_U32_SEL, b"")
    if _text(found.get(_KIND)) != "u32" or len(selector) < _SELECTOR.size:
        return preference, None
    keys = []
    for at in range(_SELECTOR.size, len(selector) - 15, 16):
        mask, value = struct.unpack_from("!II", selector, at)
        keys.append((mask, value, struct.unpack_from("=i", selector, at + 8)[0]))
    classid = options.get(_U32_CLASSID, b"")
    target = struct.unpack("=I", classid)[0] if len(classid) == 4 else 0
    redirect = _redirect(options.get(_U32_ACT, b""))
    return preference, FilterRow(protocol, handle & 0xFFF, tuple(keys), redirect or target, bool(redirect))


def _redirect(actions: bytes) -> int:
    """The interface of a mirred action; 0: none."""
    action = attributes(attributes(actions, 0).get(1, b""), 0)
    if _text(action.get(1)) != "mirred":
        return 0
    parms = attributes(action.get(2, b""), 0).get(2, b"")
    return int(_MIRRED.unpack_from(parms)[6]) if len(parms) >= _MIRRED.size else 0
