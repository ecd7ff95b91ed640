"""Notices streams that the kernel does not forward and says nothing of: a TTL of 1, packets that are larger than a
link beyond takes and must not be cut up. Looks for half a second each ten seconds, through a filter in the kernel that
passes such packets only: a look costs nothing where all is well."""

from __future__ import annotations

import ctypes
import errno
import socket
import struct
import threading
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from accelerator.kernel.links import Link

LOOK_S, WINDOW_S = 10.0, 0.5
# After a route is new: whoever has just set up a stream looks for why it doesn't come.
SOON_S, REST_S = 0.5, 2.0
AGAIN_S = 3600.0
NEWS_MAX = 50
_READ_MAX, _TOLD_MAX = 256, 1000
_BUFFER_BYTES = 1 << 16
_SO_ATTACH_FILTER = 26
_ETH_P_IP, _ETH_P_IPV6 = 0x0800, 0x86DD
# linux/bpf_common.h: load a word, half word or byte; jumps; the answer.
_LD_W, _LD_H, _LD_B, _AND, _RET = 0x20, 0x28, 0x30, 0x54, 0x06
_JEQ, _JGT, _JSET = 0x15, 0x25, 0x45


@dataclass(frozen=True, slots=True)
class OddPacket:
    """What of a packet's header matters. `is_whole`: no router may cut it up."""

    interface: str
    source: bytes
    group: bytes
    hops: int
    size: int
    is_whole: bool


def odd_filter(mtu: int, *, is_v6: bool) -> list[tuple[int, int, int, int]]:
    """The filter's instructions, over a packet from its network header on: groups that routers forward, no membership,
    and one hop left or more than `mtu` bytes that must stay whole."""
    if is_v6:
        checks = [
            (_LD_B, 24, None),
            (_JEQ, 0xFF, "next"),
            (_LD_B, 25, None),
            (_AND, 15, None),
            (_JGT, 2, "next"),
            (_LD_B, 6, None),
            (_JEQ, 58, "drop"),
            (_JEQ, 0, "drop"),
            (_LD_B, 7, None),
            (_JGT, 1, "skip"),
            (_RET, 128, None),
            (_LD_H, 4, None),
            (_JGT, max(0, mtu - 40), "take"),
        ]
    else:
        checks = [
            (_LD_B, 16, None),
            (_AND, 0xF0, None),
            (_JEQ, 0xE0, "next"),
            (_LD_W, 16, None),
            (_AND, 0xFFFFFF00, None),
            (_JEQ, 0xE0000000, "drop"),
            (_LD_B, 9, None),
            (_JEQ, 2, "drop"),
            (_LD_B, 8, None),
            (_JGT, 1, "skip"),
            (_RET, 128, None),
            (_LD_H, 6, None),
            (_JSET, 0x4000, "next"),
            (_LD_H, 2, None),
            (_JGT, mtu, "take"),
        ]
    # Two answers at the end: drop, take.
    drop, made = len(checks), []
    for at, (code, value, sense) in enumerate(checks):
        to_drop = drop - at - 1
        yes, no = {
            None: (0, 0),
            "next": (0, to_drop),  # else it is dropped
            "drop": (to_drop, 0),
            "skip": (1, 0),  # over the answer that follows
            "take": (to_drop + 1, to_drop),
        }[sense]
        made.append((code, yes, no, value))
    return [*made, (_RET, 0, 0, 0), (_RET, 0, 0, 128)]


def read_header(interface: str, data: bytes, *, is_v6: bool) -> OddPacket | None:
    if is_v6:
        if len(data) < 40 or data[0] >> 4 != 6:
            return None
        return OddPacket(interface, data[8:24], data[24:40], data[7], int.from_bytes(data[4:6]) + 40, True)
    if len(data) < 20 or data[0] >> 4 != 4:
        return None
    is_whole = bool(data[6] & 0x40)
    return OddPacket(interface, data[12:16], data[16:20], data[8], int.from_bytes(data[2:4]), is_whole)


def explained(packet: OddPacket, outputs: Mapping[str, int], *, is_viewer: bool) -> Iterable[tuple[str, str]]:
    """What becomes of it on its way to `outputs`, whose MTUs these are: events' kinds and texts. Events are kept, and
    viewers' addresses aren't."""
    source = f"a host on {packet.interface}" if is_viewer else _text(packet.source)
    group = _text(packet.group)
    if packet.hops <= 1:
        word = "TTL" if len(packet.source) == 4 else "hop limit"
        what = f"{source} sends {group} with a {word} of {packet.hops} on {packet.interface}: no router may forward it"
        yield "stream-ttl", f"{what}; set it to the number of routers on the way and one more at its sender, such as 8"
        return
    narrow = {name: mtu for name, mtu in outputs.items() if packet.size > mtu}
    if packet.is_whole and narrow:
        links = ", ".join(f"{name} (MTU {mtu})" for name, mtu in sorted(narrow.items()))
        why = "they say Don't Fragment" if len(packet.source) == 4 else "routers don't fragment IPv6"
        what = f"packets of {packet.size} bytes from {source} to {group} don't reach {links}: {why}"
        yield "stream-too-large", f"{what}; have them sent smaller, or raise the link's MTU"


class StreamWatch:
    """One family's. `soon` at a new route, `on_timer` when `next_timer` has come. A thread does the looking: the kernel
    binds and closes a packet socket only after a grace period of RCU, some ten milliseconds in which upcalls would
    wait (docs/decisions/0271)."""

    def __init__(self, *, is_v6: bool, now_s: float) -> None:
        self._is_v6 = is_v6
        self._at_s = now_s + LOOK_S
        self._ended_s = now_s - LOOK_S
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._found: dict[tuple[bytes, bytes], OddPacket] = {}
        self.fault = ""  # why nothing can be looked at
        self._told_s: dict[tuple[str, bytes, bytes], float] = {}
        self._news_s: deque[float] = deque(maxlen=NEWS_MAX)

    def close(self) -> None:
        self._stop.set()

    def next_timer(self) -> float:
        return self._at_s

    def soon(self, now_s: float) -> None:
        if self._thread is None:
            self._at_s = min(self._at_s, max(now_s, self._ended_s + REST_S) + SOON_S)

    def on_timer(self, now_s: float, mtus: Mapping[str, int], links: Mapping[str, Link]) -> list[OddPacket]:
        """`mtus`: where streams may come in, and the smallest MTU of the links that they may go to. What a look has
        found: empty at its beginning."""
        if now_s < self._at_s:
            return []
        if self._thread is None:
            places = [(name, links[name].index, mtu) for name, mtu in mtus.items() if name in links]
            self._at_s = now_s + (WINDOW_S if places else LOOK_S)
            if places:
                self._thread = threading.Thread(target=self._look, args=(places,), daemon=True)
                self._thread.start()
            return []
        if self._thread.is_alive():
            self._at_s = now_s + WINDOW_S / 5
            return []
        found, self._found, self._thread = self._found, {}, None
        self._ended_s, self._at_s = now_s, now_s + LOOK_S
        return list(found.values())

    def is_news(self, kind: str, packet: OddPacket, now_s: float) -> bool:
        """Whether it is to be told: once an hour, however long it goes on, and of so many streams only: who forges
        senders has any number of them."""
        key = kind, packet.source, packet.group
        if now_s < self._told_s.get(key, now_s - AGAIN_S) + AGAIN_S:
            return False
        if len(self._news_s) == NEWS_MAX and now_s < self._news_s[0] + AGAIN_S:
            return False
        self._news_s.append(now_s)
        if len(self._told_s) >= _TOLD_MAX:
            del self._told_s[next(iter(self._told_s))]
        self._told_s.pop(key, None)
        self._told_s[key] = now_s
        return True

    def _look(self, places: list[tuple[str, int, int]]) -> None:
        """In the thread: nothing of the watch is touched but what was found."""
        sockets: list[tuple[str, socket.socket]] = []
        for name, index, mtu in places:
            try:
                sockets.append((name, self._open(index, mtu)))
            except OSError as error:
                # ENODEV, ENXIO: gone in this moment.
                if error.errno not in (errno.ENODEV, errno.ENXIO):
                    self.fault = error.strerror or str(error)
        self._stop.wait(WINDOW_S)
        for name, each in sockets:
            for packet in self._read(name, each):
                before = self._found.get((packet.source, packet.group))
                if before is None or packet.size > before.size:
                    self._found[packet.source, packet.group] = packet
            each.close()

    def _open(self, index: int, mtu: int) -> socket.socket:
        kind = socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        made = socket.socket(socket.AF_PACKET, kind, 0)
        try:
            steps = odd_filter(mtu, is_v6=self._is_v6)
            code = b"".join(struct.pack("=HBBI", *step) for step in steps)
            buffer = ctypes.create_string_buffer(code, len(code))
            program = struct.pack("@HP", len(steps), ctypes.addressof(buffer))
            made.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
            name = socket.if_indextoname(index)
            # Nothing comes before it is bound, so nothing unfiltered.
            made.bind((name, _ETH_P_IPV6 if self._is_v6 else _ETH_P_IP))
        except OSError:
            made.close()
            raise
        return made

    def _read(self, name: str, each: socket.socket) -> Iterable[OddPacket]:
        for _ in range(_READ_MAX):
            try:
                data, sender = each.recvfrom(128)
            except OSError:
                return
            if sender[2] == socket.PACKET_OUTGOING:
                continue
            packet = read_header(name, data, is_v6=self._is_v6)
            if packet is not None:
                yield packet


def _text(address: bytes) -> str:
    return socket.inet_ntop(socket.AF_INET if len(address) == 4 else socket.AF_INET6, address)
