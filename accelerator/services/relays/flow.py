"""One running relay: its input sockets and memberships, its outputs, its receivers, and what is read of its counters.

When it begins, changes and ends is relays.py's matter; packets are the data plane's.
"""

from __future__ import annotations

import base64
import random
import secrets
import socket
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Any

from accelerator.dataplane import (
    RELAY_COUNTERS,
    RELAY_FORMATS,
    RELAY_GAUGES,
    RELAY_LEG_COLUMNS,
    RELAY_LEGS,
    RELAY_OUTPUT_COLUMNS,
    RELAY_OUTPUTS,
    RelayPlane,
    RelaySettings,
)
from accelerator.errors import AcceleratorError
from accelerator.io.datagram import Membership, destination_row, join, leave, open_output, point_output
from accelerator.io.intakes import Intake
from accelerator.io.links import IpAddress, Link, speed_bps
from accelerator.policy.addresses import format_address
from accelerator.policy.compile import RelayOutputRow, RelayRow
from accelerator.policy.relay_rules import Input
from accelerator.protocols.relay_signal import Signal, State
from accelerator.services.links.outside import ANY
from accelerator.services.relays.viewers import Viewers

# What fits Ethernet, with room for a tunnel's header; larger datagrams are dropped, and counted.
DATAGRAM_BYTES_MAX = 1536
# In flight, half of it: 50 ms of 100 Mbit/s; with legs or repair 250 ms of 80 Mbit/s. 1.5 and 6 MiB.
WINDOW_PACKETS = 1024
WINDOW_PACKETS_WIDE = 4096
# A leg that has just connected is put beside the others within some packets.
APART_TOLD_NS = 5_000_000_000
# Of a link: what a train may take of it at most.
TRAIN_S = 0.0005
NOT_OURS = "no address of this machine: what is sent to a single receiver comes to an own one"
DOWN = "is down"
RATES = ("bitrate_bps", "packets_per_s", "lost_per_s", "sent_bps", "sent_packets_per_s")
# What another leg, or another relay, takes instead.
_NO_FAULT = ("drop_standby", "drop_link")
# Of the data plane: no RTP has come; what it stamps packets with of which it knows nothing (ext/relay_send.pyx).
NO_TYPE, DYNAMIC_TYPE = 255, 96
_RTP = {"keep": "keep", "strip": "strip", "restamp": "stamp"}

Receiver = tuple[str, int]


@dataclass(slots=True)
class Leg:
    """An input's socket. `link`: as it was when the group was joined, by which a change is seen. `intake`: what brings
    its packets, of SRT or RIST."""

    spec: Input
    socket: socket.socket
    is_joined: bool = False
    link: tuple[int, tuple[IpAddress, ...]] | tuple[()] = ()
    trouble: str = ""
    intake: Intake | None = None
    n_refused_told: int = 0
    apart_since_ns: int = 0

    @property
    def membership(self) -> Membership:
        return Membership(self.spec.host, self.spec.interface, (self.spec.source,) if self.spec.source else ())

    @property
    def is_group(self) -> bool:
        return ip_address(self.spec.host).is_multicast

    @property
    def held_group(self) -> bytes:
        """The group that is taken by its interface alone, which the kernel sees to for IPv4 only."""
        group = ip_address(self.spec.host)
        return group.packed if group.is_multicast and group.version == 6 and self.spec.interface is not None else b""


@dataclass(slots=True)
class Outlet:
    """An output of the data plane: one socket, one family. `index` None: it isn't open, and `trouble` says why."""

    key: tuple[object, ...]
    row: RelayOutputRow
    number: int
    is_v6: bool
    receivers: dict[Receiver, bytes] = field(default_factory=dict)
    index: int | None = None
    socket: socket.socket | None = None
    link_index: int = 0
    trouble: str = ""


def input_key(row: RelayRow) -> tuple[object, ...]:
    """What the data plane's relay is made of: with another one it begins anew."""
    return (row.inputs, row.is_backup, row.failover_ns, row.wait_ns, row.sources, row.payload_type, row.bitrate_bps,
            row.asks, row.asks_type)  # fmt: skip


def settings_of(row: RelayRow, legs: Iterable[Leg]) -> RelaySettings:
    listed = [_packed(text) for text in row.sources]
    rows, groups = [], []
    for leg in legs:
        groups.append(leg.held_group)
        own = [_packed(leg.spec.source)] if leg.spec.source else []
        # The process admits senders itself; what it gives comes by a socket connected to it alone.
        admitted = () if leg.intake is not None else tuple(own if leg.spec.kind == "rtx" else listed or own)
        rows.append((leg.socket.fileno(), leg.spec.kind, admitted))
    is_wide = len(rows) > 1 and not row.is_backup
    return RelaySettings(
        legs=rows,
        mode="backup" if row.is_backup else "merge",
        is_rtp=row.inputs[0].is_rtp,
        wait_ns=row.wait_ns,
        failover_ns=row.failover_ns,
        window_packets=WINDOW_PACKETS_WIDE if is_wide else WINDOW_PACKETS,
        slot_bytes=DATAGRAM_BYTES_MAX,
        payload_type=255 if row.payload_type < 0 else row.payload_type,
        cap_bytes_s=row.bitrate_bps // 8,
        ask_to=destination_row(*row.asks) if row.asks is not None else b"",
        # RFC 7022 section 4.2: 96 random bits in Base64. RFC 3550 section 5.1: a random SSRC.
        ask_name=base64.b64encode(secrets.token_bytes(12)),
        ask_ssrc=secrets.randbits(32),
        rtx_type=row.asks_type if row.asks is not None else 255,
        is_wrapped=row.inputs[0].session is not None,
        groups=groups,
    )


class Flow:
    """`discard` takes an output's index and socket until no worker can use them any more, and gives them back by
    `freed`."""

    def __init__(
        self, plane: RelayPlane, slot: int, row: RelayRow, legs: list[Leg],
        discard: Callable[[Flow, int, socket.socket], None],
    ) -> None:  # fmt: skip
        self.slot = slot
        self.row = row
        self.legs = legs
        self.outlets: list[Outlet] = []
        self.subscribed: dict[Receiver, None] = {}
        self.signal = Signal(max(2_000_000_000, 4 * row.failover_ns))
        self.rates: dict[str, float] = dict.fromkeys(RATES, 0)
        self.active_leg = 0
        self.carried: dict[str, int] = {}
        self.viewers: Viewers | None = None
        self.http_carried: dict[str, int] = {}
        self._plane = plane
        self._discard = discard
        self._free = set(range(RELAY_OUTPUTS))
        self._wanted_until_ns = 0
        self._listed: frozenset[Receiver] = frozenset()
        self._form = "unknown"
        self._sample: tuple[int, dict[str, int]] | None = None

    # -- outputs and receivers -----------------------------------------------------------------------------------------

    @property
    def n_receivers(self) -> int:
        return sum(len(each.receivers) for each in self.outlets) + self.n_viewers

    @property
    def n_viewers(self) -> int:
        """Over HTTP."""
        return self.viewers.n if self.viewers is not None else 0

    def take_outputs(self, row: RelayRow, place: Callable[[Flow, Receiver], int | None]) -> list[Receiver]:
        """The outputs of `row` in place of those that are; what is the same stays as it is. `place` gives the number
        of the output for a receiver that was added, None: it has no place any more. Returns those without one."""
        self.row = row
        self._listed = frozenset(target for output in row.outputs for target in output.targets)
        before = {each.key: each for each in self.outlets}
        self.outlets = []
        for number, output in enumerate(row.outputs):
            for is_v6 in sorted({":" in host for host, _ in output.targets}) if output.kind != "http" else ():
                outlet = self._outlet(before, number, output, is_v6=is_v6)
                outlet.receivers = {each: self._row_of(outlet, each) for each in output.targets}
        dropped = []
        for receiver in list(self.subscribed):
            number_or_none = place(self, receiver)
            if number_or_none is None or self.is_listed(receiver):
                del self.subscribed[receiver]
                dropped += [receiver] if number_or_none is None else []
            else:
                self._subscribe(before, receiver, number_or_none)
        for gone in before.values():
            self._close(gone)
        return dropped

    def is_listed(self, receiver: Receiver) -> bool:
        """Whether the policy lists it."""
        return receiver in self._listed

    def subscribe(self, receiver: Receiver, number: int) -> None:
        self._subscribe({}, receiver, number)

    def unsubscribe(self, receiver: Receiver) -> None:
        del self.subscribed[receiver]
        for outlet in self.outlets:
            outlet.receivers.pop(receiver, None)

    def _subscribe(self, known: dict[tuple[object, ...], Outlet], receiver: Receiver, number: int) -> None:
        is_v6 = ":" in receiver[0]
        found = next((each for each in self.outlets if each.number == number and each.is_v6 == is_v6), None)
        outlet = found or self._outlet(known, number, self.row.outputs[number], is_v6=is_v6)
        outlet.receivers[receiver] = destination_row(*receiver)
        self.subscribed[receiver] = None

    def _outlet(
        self, known: dict[tuple[object, ...], Outlet], number: int, row: RelayOutputRow, *, is_v6: bool
    ) -> Outlet:
        target = row.targets if row.kind == "group" else ()
        nth = 0
        while True:
            key = (row.kind, target, row.interface, row.ttl, row.dscp, row.source_port, row.rtp, row.hold_ns,
                   row.rate_bps, is_v6, nth)  # fmt: skip
            if all(each.key != key for each in self.outlets):
                break
            nth += 1
        outlet = known.pop(key, None) or Outlet(key, row, number, is_v6)
        outlet.row, outlet.number = row, number
        self.outlets.append(outlet)
        return outlet

    def _row_of(self, outlet: Outlet, receiver: Receiver) -> bytes:
        try:
            return destination_row(*receiver, interface=outlet.row.interface if outlet.row.kind == "group" else None)
        except AcceleratorError:
            return destination_row(*receiver)

    def publish(self) -> None:
        """The receivers of the open outputs, all at once."""
        ready = [(each.index, b"".join(each.receivers.values())) for each in self.outlets if each.index is not None]
        self._plane.set_receivers(self.slot, ready)

    def _open(self, outlet: Outlet, links: Mapping[str, Link]) -> None:
        row = outlet.row
        interface = row.interface if row.kind == "group" else None
        if not self._free:
            outlet.trouble = "too many outputs at once"
            return
        try:
            made = open_output(
                is_v6=outlet.is_v6, interface=interface, ttl=row.ttl, dscp=row.dscp, source_port=row.source_port
            )
        except AcceleratorError as error:
            outlet.trouble = error.message
            return
        outlet.trouble = ""
        outlet.index = min(self._free)
        self._free.discard(outlet.index)
        outlet.socket = made
        outlet.link_index = links[interface].index if interface is not None and interface in links else 0
        speed = speed_bps(row.interface) if row.interface is not None else 0
        self._plane.open_output(
            self.slot, outlet.index, made.fileno(), format=_RTP[row.rtp], hold_ns=row.hold_ns,
            pace_bytes_s=max(0, row.rate_bps) // 8,
            is_pace_measured=row.rate_bps < 0, train_bytes=int(speed * TRAIN_S / 8),
            # RFC 3550 section 5.1: both random, so that nobody can guess them.
            ssrc=random.SystemRandom().getrandbits(32), sequence=random.SystemRandom().getrandbits(16),
        )  # fmt: skip

    def _close(self, outlet: Outlet) -> None:
        if outlet.index is not None and outlet.socket is not None:
            self._discard(self, outlet.index, outlet.socket)
        outlet.index = outlet.socket = None

    def sends_rtp(self, outlet: Outlet) -> bool:
        return self._comes_as_rtp() if outlet.row.rtp == "keep" else outlet.row.rtp == "restamp"

    def _comes_as_rtp(self) -> bool:
        # After a silence the form is to be found again: until then it is what it was.
        found = RELAY_FORMATS[self.gauges()["format"]]
        self._form = found if found != "unknown" else self._form
        first = self.row.inputs[0]
        return (first.is_rtp and first.session is None) or self._form == "rtp"

    def payload_type(self, outlet: Outlet) -> int:
        """Of the RTP that an output sends; -1: nothing has come yet that would say."""
        seen = self.gauges()["payload_type"]
        if self._comes_as_rtp():
            return self.row.payload_type if self.row.payload_type >= 0 or seen == NO_TYPE else seen
        return DYNAMIC_TYPE if self._form == "opaque" and outlet.row.rtp == "restamp" else -1

    @property
    def carries_ts(self) -> bool:
        """Whether all packets so far have been MPEG-TS."""
        counters = self.counters()
        return counters["ts_packets"] >= counters["packets"]

    def freed(self, index: int) -> None:
        self._free.add(index)

    # -- what time and the network bring -------------------------------------------------------------------------------

    def is_wanted(self, now_ns: int) -> bool:
        has_viewers = self.viewers is not None and self.viewers.is_wanted(now_ns)
        if self.row.is_always or has_viewers or self.n_receivers:
            self._wanted_until_ns = now_ns + int(self.row.linger_s * 1e9)
            return True
        return now_ns < self._wanted_until_ns

    def follow(
        self, now_ns: int, links: Mapping[str, Link], refusal: Callable[[Link], str], own: Container[IpAddress]
    ) -> bool:
        """Joins, leaves and joins anew; opens outputs that can be now. `refusal`: why a group may not be sent to a
        link, "" if it may. `own`: this machine's addresses. True: outputs have changed, and are published."""
        is_wanted = self.is_wanted(now_ns)
        for index, leg in enumerate(self.legs):
            if leg.intake is not None:
                leg.intake.follow(now_ns, is_wanted=is_wanted)
                leg.is_joined, leg.trouble = leg.intake.state == "connected", leg.intake.trouble
                self._follow_place(index, leg, now_ns)
            elif leg.is_group:
                self._follow_leg(index, leg, links, is_wanted=is_wanted)
            elif leg.spec.kind != "rtx":
                self._follow_address(index, leg, own)
        changed = False
        for outlet in self.outlets:
            changed |= self._follow_outlet(outlet, links, refusal)
        if changed:
            self.publish()
        return changed

    def _follow_leg(self, index: int, leg: Leg, links: Mapping[str, Link], *, is_wanted: bool) -> None:
        name = leg.spec.interface
        link = links.get(name) if name is not None else None
        seen = (link.index, link.addresses) if link is not None else ()
        if leg.is_joined and (not is_wanted or (name is not None and seen != leg.link)):
            leave(leg.socket, leg.membership, leg.link[0] if leg.link else 0)
            leg.is_joined = False
        if not is_wanted:
            leg.trouble = ""
        elif name is not None and link is None:
            leg.trouble = f"there is no interface {name}"
        elif not leg.is_joined:
            self._hold(index, leg, seen)
            try:
                join(leg.socket, leg.membership)
            except AcceleratorError as error:
                leg.trouble = error.message
            else:
                leg.is_joined, leg.link, leg.trouble = True, seen, ""
        if leg.is_joined and link is not None:
            leg.trouble = _down(name, link)

    def _follow_address(self, index: int, leg: Leg, own: Container[IpAddress]) -> None:
        """An address that may come later refuses no policy; but most often it is the sender's by mistake."""
        host = ip_address(leg.spec.host)
        is_ours = host in own or host.is_unspecified or host.is_loopback
        leg.trouble = "" if is_ours or self.leg_counters(index)["datagrams"] else NOT_OURS

    def _hold(self, index: int, leg: Leg, seen: tuple[int, tuple[IpAddress, ...]] | tuple[()]) -> None:
        if leg.held_group:
            self._plane.set_link(self.slot, index, seen[0] if seen else 0)

    def _follow_place(self, index: int, leg: Leg, now_ns: int) -> None:
        """Of a leg that is put beside another by what it carries: a sender of other packets is left out, and told."""
        if not leg.is_joined or not self.leg_counters(index)["apart"]:
            leg.apart_since_ns = 0
            return
        leg.apart_since_ns = leg.apart_since_ns or now_ns
        if now_ns - leg.apart_since_ns > APART_TOLD_NS:
            leg.trouble = "its packets are not those of the other input: they are left out"

    def _follow_outlet(self, outlet: Outlet, links: Mapping[str, Link], refusal: Callable[[Link], str]) -> bool:
        name = outlet.row.interface if outlet.row.kind == "group" else None
        link = links.get(name) if name is not None else None
        trouble = ""
        if name is not None:
            trouble = refusal(link) if link is not None else f"there is no interface {name}"
        if trouble:
            outlet.trouble = trouble
            if outlet.index is None:
                return False
            index, made = outlet.index, outlet.socket
            outlet.index = outlet.socket = None
            self.publish()  # before the index may be used anew
            if made is not None:
                self._discard(self, index, made)
            return True
        if outlet.index is None:
            self._open(outlet, links)
            is_open = outlet.index is not None
            if is_open:
                outlet.receivers = {each: self._row_of(outlet, each) for each in outlet.receivers}
            return is_open
        if link is not None and outlet.socket is not None and link.index != outlet.link_index:
            try:
                point_output(outlet.socket, name)
            except AcceleratorError as error:
                outlet.trouble = error.message
                return False
            outlet.link_index = link.index
            outlet.receivers = {each: self._row_of(outlet, each) for each in outlet.receivers}
            return True
        if link is not None:
            outlet.trouble = _down(name, link)
        return False

    def receive(self) -> None:
        for index, leg in enumerate(self.legs):
            self._hold(index, leg, leg.link if leg.is_joined else ())
        self._plane.receive(self.slot)

    def end(self) -> list[socket.socket]:
        """Ends it in the data plane. The sockets of its outputs, to be closed once no worker can use them."""
        self.carried = self.counters()
        self.leave_viewers()
        self._plane.remove(self.slot)
        return [each.socket for each in self.outlets if each.socket is not None]

    # -- what operators are shown --------------------------------------------------------------------------------------

    def counters(self) -> dict[str, int]:
        """Since the relay was first there, over changes of its input."""
        row = self._plane.relays[self.slot]
        return {name: int(row[column]) + self.carried.get(name, 0) for column, name, _ in RELAY_COUNTERS}

    def gauges(self) -> dict[str, int]:
        row = self._plane.relays[self.slot]
        return {name: int(row[column]) for column, name in RELAY_GAUGES}

    def leg_counters(self, index: int) -> dict[str, int]:
        row = self._plane.legs[self.slot * RELAY_LEGS + index]
        return {name: int(row[column]) for column, name in RELAY_LEG_COLUMNS}

    def bytes_by_leg(self) -> Iterator[tuple[object, str, int]]:
        """What has come for each input that no group brings: (leg, interface, bytes). SRT and RIST, which cross WANs,
        come by the first link where policy names none; a plain sender may be next door."""
        for index, leg in enumerate(self.legs):
            interface = leg.spec.interface or (ANY if leg.spec.session is not None else "")
            if interface and not leg.is_group:
                yield (self.slot, index), interface, self.leg_counters(index)["bytes"]

    def output_counters(self, outlet: Outlet) -> dict[str, int]:
        if outlet.index is None:
            return {name: 0 for _, name in RELAY_OUTPUT_COLUMNS}
        row = self._plane.outputs[self.slot * RELAY_OUTPUTS + outlet.index]
        return {name: int(row[column]) for column, name in RELAY_OUTPUT_COLUMNS}

    def sample(self, now_ns: int) -> None:
        """Once a second: rates since the last time."""
        counters = self.counters()
        sent = [self.output_counters(each) for each in self.outlets]
        counters["sent_packets"] = sum(each["packets"] for each in sent)
        counters["sent_bytes"] = sum(each["bytes"] for each in sent)
        if self._sample is not None and now_ns > self._sample[0]:
            seconds = (now_ns - self._sample[0]) / 1e9
            before = self._sample[1]
            # Outputs that went take their counters with them.
            grown = {name: max(0, value - before[name]) / seconds for name, value in counters.items()}
            self.rates = {
                "bitrate_bps": round(8 * grown["packet_bytes"]),
                "packets_per_s": round(grown["packets"], 1),
                "lost_per_s": round(grown["lost"], 1),
                "sent_bps": round(8 * grown["sent_bytes"]),
                "sent_packets_per_s": round(grown["sent_packets"], 1),
            }
        self._sample = (now_ns, counters)

    def troubles(self) -> list[str]:
        found = [f"{each.spec.host}: {each.trouble}" for each in self.legs if each.trouble]
        return found + [f"output {each.number}: {each.trouble}" for each in self.outlets if each.trouble]

    def summary(self, now_ns: int) -> dict[str, Any]:
        counters, gauges = self.counters(), self.gauges()
        sent = [self.output_counters(each) for each in self.outlets]
        names = ("packets", "lost", "repaired", "merged", "reordered", "duplicate", "late", "restarts", "switches")
        return {
            "name": self.row.name,
            "state": self.signal.state.value,
            "format": RELAY_FORMATS[gauges["format"]],
            "inputs": [url_of(each.spec) for each in self.legs],
            "active": self.active_leg,
            "joined": sum(each.is_joined for each in self.legs),
            "receivers": self.n_receivers,
            "viewers": self.n_viewers,
            "outputs": len(self.row.outputs),
            **self.rates,
            "jitter_ms": round(gauges["jitter_ns"] / 1e6, 2),
            **{name: counters[name] for name in names},
            "discontinuities": counters["ts_continuity"] + counters["ts_pcr_jumps"],
            "dropped": sum(
                value for name, value in counters.items() if name.startswith("drop_") and name not in _NO_FAULT
            ),
            "send_dropped": sum(value for row in sent for name, value in row.items() if name.startswith("drop_")),
            "silent_s": round((now_ns - gauges["last_ns"]) / 1e9, 1) if gauges["last_ns"] else None,
            "troubles": self.troubles(),
        }

    def details(self, now_ns: int) -> dict[str, Any]:
        legs = []
        for index, leg in enumerate(self.legs):
            row = self.leg_counters(index)
            legs.append(
                {
                    "input": url_of(leg.spec), "kind": leg.spec.kind, "interface": leg.spec.interface,
                    "joined": leg.is_joined if leg.is_group or leg.intake is not None else None, "trouble": leg.trouble,
                    "connection": _connection(leg.intake) if leg.intake is not None else None,
                    "active": leg.spec.kind == "media" and (not self.row.is_backup or index == self.active_leg),
                    "silent_s": round((now_ns - row["last_ns"]) / 1e9, 1) if row["last_ns"] else None,
                    "jitter_ms": round(row["jitter_ns"] / 1e6, 2),
                    **{name: row[name] for name in ("datagrams", "bytes", "first", "lost", "drop_kernel", "apart")},
                }
            )  # fmt: skip
        outputs = [
            {
                "number": each.number, "kind": each.row.kind, "interface": each.row.interface,
                "to": f"{format_address(*each.row.targets[0])}" if each.row.kind == "group" else
                      f"{'IPv6' if each.is_v6 else 'IPv4'} receivers",
                "ttl": each.row.ttl, "dscp": each.row.dscp, "rtp": each.row.rtp, "trouble": each.trouble,
                **self.output_counters(each), "receivers": len(each.receivers),
            }
            for each in self.outlets
        ]  # fmt: skip
        outputs += self._http_details()
        return {
            **self.summary(now_ns),
            "mode": "backup" if self.row.is_backup else "legs",
            "join": "always" if self.row.is_always else "on-demand",
            "subscribed": len(self.subscribed),
            "ts_rate_bps": self.gauges()["ts_rate_bps"],
            "counters": self.counters(),
            "legs": legs,
            "to": outputs,
        }

    def http_counters(self) -> dict[str, int]:
        """Over HTTP; since the relay was first there, but for who reads now."""
        known = self.viewers.ring.known() if self.viewers is not None else {}
        counters = {
            name: known.get(name, 0) + self.http_carried.get(name, 0)
            for name in ("bytes", "skips", "refused", "stalled")
        }
        return {"readers": known.get("readers", 0), **counters}

    def leave_viewers(self) -> None:
        """Their ring goes: who reads it gets what is there, and then the end."""
        if self.viewers is not None:
            self.http_carried = {name: n for name, n in self.http_counters().items() if name != "readers"}
            self.viewers.close()
            self.viewers = None

    def _http_details(self) -> list[dict[str, Any]]:
        """The paths share one stream, and its figures."""
        known = self.http_counters()
        return [
            {
                "number": number, "kind": "http", "interface": None, "to": row.path, "ttl": None, "dscp": None,
                "rtp": "strip", "trouble": "", **{name: 0 for _, name in RELAY_OUTPUT_COLUMNS},
                "receivers": known["readers"], "bytes": known["bytes"],
                "skips": known["skips"], "drop_format": known["refused"], "drop_stalled": known["stalled"],
                "zones": list(row.zones),
            }
            for number, row in enumerate(self.row.outputs)
            if row.kind == "http"
        ]  # fmt: skip

    @property
    def is_live(self) -> bool:
        return self.signal.state is State.LIVE


def _down(name: str | None, link: Link) -> str:
    """What is joined and open stays so, for the moment when it is up again."""
    return "" if link.is_up else f"interface {name} {DOWN}"


def url_of(spec: Input) -> str:
    source = f"{spec.source}@" if spec.source else ""
    scheme = spec.session.scheme if spec.session is not None else "rtp" if spec.is_rtp else "udp"
    return f"{scheme}://{source}{format_address(spec.host, spec.port)}"


def _connection(intake: Intake) -> dict[str, Any]:
    return {
        "state": intake.state, "why": intake.why, "pid": intake.pid, "crashes": intake.n_crashes,
        **intake.stats, "refused": dict(intake.refused),
    }  # fmt: skip


def _packed(text: str) -> tuple[bytes, int]:
    """A network as the data plane has it: 16 bytes, IPv4 mapped."""
    net = ip_network(text)
    if net.version == 4:
        return bytes(10) + b"\xff\xff" + net.network_address.packed, net.prefixlen + 96
    return net.network_address.packed, net.prefixlen
