"""The box's relays: from policy to running flows, receivers added by operators, events of signals. What one relay is
made of is flow.py's; no packet passes here.

A relay whose inputs a reload leaves alone goes on: its outputs and receivers change in one step. With another input it
begins anew on the same sockets, in whose buffers what comes meanwhile waits.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Callable
from ipaddress import ip_address, ip_network
from typing import Any

from accelerator import clock
from accelerator.dataplane import RELAY_SLOTS, DataPlane, RelayPlane
from accelerator.errors import AcceleratorError, ControlError
from accelerator.io.credentials import Credentials
from accelerator.io.link_changes import LinkChanges
from accelerator.io.links import IpAddress, Link, Links
from accelerator.policy.compile import RELAY_PREFIX, UDPXY_NAME, RelayRow, Tables, UdpxyRow
from accelerator.policy.relay_rules import Zones
from accelerator.protocols.relay_signal import State
from accelerator.services.logs.events import Events
from accelerator.services.relays.announce import Announcer
from accelerator.services.relays.channels import row_of
from accelerator.services.relays.flow import DOWN, Flow, Leg, Receiver, input_key, url_of
from accelerator.services.relays.prepare import LegKey, Prepared, discard, leg_key, prepare_relay
from accelerator.services.relays.receivers import CHUNK, parse_receivers
from accelerator.services.relays.told import metrics, playlist, sessions
from accelerator.services.relays.viewers import Desk, Shape, Viewers
from accelerator.services.relays.workers import worker_rows

# Interfaces are looked at so often, and when the kernel says that one has changed: joined anew within 2 s.
EVERY_S = 0.25
SAMPLES_EACH = 4
# A relay worker passes each second; see ext/relay_worker.pyx.
STALLED_S = 5.0
# Above edge workers where the system allows it: docs/decisions/0171.
NICE = -10
WORKERS_MAX = 4
_ADVICE_SILENT = "see that the sender runs and that the network brings its packets here: accelctl relay show NAME"


class Relays:
    """Lives on the control loop. `prepare` may refuse, `take_over` doesn't."""

    def __init__(self, events: Events, credentials: Credentials, dataplane: DataPlane) -> None:
        self._events = events
        self._credentials = credentials
        self._dataplane = dataplane
        self.desk = Desk(self._viewers_for, self._status_for, self._all_viewers)
        # Where viewers find the box: http://HOST:PORT.
        self.bases: Callable[[], list[str]] = list
        self._udpxy = UdpxyRow()
        # Flows that viewers' paths have made, and rings that nobody writes any more but somebody may read.
        self._channels: set[str] = set()
        self._closed: list[Viewers] = []
        self.flows: dict[str, Flow] = {}
        self._plane: RelayPlane | None = None
        self._links = Links()
        self._changes = LinkChanges(self._look)
        self._seen: dict[str, Link] = {}
        self._own: frozenset[tuple[bytes, int]] = frozenset()
        self._addresses: frozenset[IpAddress] = frozenset()
        self._zones = Zones({})
        self._no_multicast: frozenset[str] = frozenset()
        # What a worker may still use: (flow or none, its output, socket), and slots, whose counters it may still write.
        self._limbo: list[tuple[Flow | None, int, socket.socket]] = []
        self._left_slots: set[int] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._n_ticks = 0
        self._passes: list[tuple[int, int]] = []
        self._stalled: set[int] = set()
        self._announcer = Announcer()
        self._waiting_told: dict[str, str] = {}
        self.has_priority = False

    # -- life ----------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Looks at interfaces and signals from now on."""
        self._changes.start()
        self._tick()

    def stop(self, *, is_heir_there: bool = False) -> None:
        """Ends every relay at once: groups are left, receivers get nothing more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._changes.close()
        self.desk.close()
        for viewers in self._all_viewers():
            viewers.close()
        if not is_heir_there:  # whoever takes over announces the same
            self._announcer.close()
        for leg in (leg for flow in self.flows.values() for leg in flow.legs):
            if leg.intake is not None:
                leg.intake.close()
        left = [leg.socket for flow in self.flows.values() for leg in flow.legs]
        left += [made for flow in self.flows.values() for made in flow.end()]
        left += [made for _, _, made in self._limbo]
        self.flows, self._limbo, self._left_slots = {}, [], set()
        if self._plane is not None:
            self._plane.close()
            self._plane = None
        # Only now: a number that is closed may be a viewer's connection a moment later, and no worker may read that.
        for made in left:
            made.close()

    def close(self) -> None:
        if self._timer is not None:
            self.stop()
        self._links.close()

    # -- taking a policy over ------------------------------------------------------------------------------------------

    def prepare(self, tables: Tables) -> Prepared:
        """Opens what isn't open yet. Raises AcceleratorError, and nothing is open more than before then."""
        channels = [row_of(self.flows[name].row.outputs[0].path, tables.udpxy) for name in sorted(self._channels)]
        kept = [row for row in channels if isinstance(row, RelayRow)][: tables.udpxy.channels]
        rows = tables.relays + tuple(kept)
        prepared = Prepared(rows)
        self._reap()
        n_begin = sum(not self._runs(row) for row in rows)
        if n_begin > RELAY_SLOTS - len(self.flows) - len(self._left_slots):
            raise AcceleratorError("relay-socket", "relays that were just changed are still ending", can_retry=True)
        spare: dict[LegKey, list[Leg]] = {}
        for flow in self._leaving(rows).values():
            for leg in flow.legs:
                spare.setdefault(leg_key(leg.spec), []).append(leg)
        row = None
        try:
            for row in rows:
                if not self._runs(row):
                    prepare_relay(row, prepared, spare, self._credentials)
        except (AcceleratorError, OSError, MemoryError) as error:
            discard(prepared)
            why = error.message if isinstance(error, AcceleratorError) else os.strerror(errno.ENOMEM)
            why = error.strerror or why if isinstance(error, OSError) else why
            named = row.name if row is not None else ""
            raise AcceleratorError("relay-socket", f"relays.{named}.from: {why}", can_retry=True) from error
        return prepared

    def discard(self, prepared: Prepared) -> None:
        """The policy was not taken over after all."""
        discard(prepared)

    def take_over(self, tables: Tables, prepared: Prepared) -> None:
        self._zones = Zones({name: tuple(map(ip_network, nets)) for name, nets in tables.zone_nets})
        self._no_multicast = frozenset(tables.zones_without_multicast)
        self._udpxy = tables.udpxy
        if (prepared.rows or tables.udpxy.groups) and self._plane is None:
            self._plane = self._start_workers()
        gone = self._leaving(prepared.rows)
        for flow in gone.values():
            self._end(flow)
        known, begun = set(self.flows), []
        for row in prepared.rows:
            flow = self.flows.get(row.name) or self._begin(row, prepared, gone.get(row.name))
            begun += [flow] if row.name in gone or row.name not in known else []
            self._take_outputs(flow, row)
        # Groups that nobody asks for any more are left with their sockets.
        reused = {id(leg) for leg in prepared.reused}
        for leg in (leg for flow in gone.values() for leg in flow.legs):
            self._limbo.append((None, 0, leg.socket))
            if leg.intake is not None and id(leg) not in reused:
                leg.intake.close()
        for name in set(self._waiting_told) - set(self.flows):
            del self._waiting_told[name]
        self._look()
        for flow in begun:  # with its outputs open, so that the first packet has somewhere to go
            flow.receive()

    def _end(self, flow: Flow) -> None:
        """All but its input sockets, which may serve on."""
        del self.flows[flow.row.name]
        self._channels.discard(flow.row.name)
        if flow.viewers is not None:
            self._closed.append(flow.viewers)
        self._limbo += [(None, 0, made) for made in flow.end()]
        self._left_slots.add(flow.slot)

    def _runs(self, row: RelayRow) -> bool:
        """Whether a relay of this name and input runs, and may go on."""
        flow = self.flows.get(row.name)
        return flow is not None and input_key(flow.row) == input_key(row)

    def _leaving(self, rows: tuple[RelayRow, ...]) -> dict[str, Flow]:
        staying = {row.name for row in rows if self._runs(row)}
        return {name: flow for name, flow in self.flows.items() if name not in staying}

    def _begin(self, row: RelayRow, prepared: Prepared, before: Flow | None) -> Flow:
        assert self._plane is not None
        legs = prepared.legs[row.name]
        taken = {flow.slot for flow in self.flows.values()} | self._left_slots
        slot = next(each for each in range(RELAY_SLOTS) if each not in taken)
        flow = Flow(self._plane, slot, row, legs, self._discard)
        if before is not None:
            flow.subscribed, flow.carried, flow.signal = before.subscribed, before.carried, before.signal
            flow.http_carried = before.http_carried
        self._plane.add(slot, prepared.settings[row.name], receives=False)
        self.flows[row.name] = flow
        return flow

    def _take_outputs(self, flow: Flow, row: RelayRow) -> None:
        dropped = flow.take_outputs(row, self._place)
        while flow.subscribed and flow.n_receivers > row.receivers_max:
            dropped.append(next(reversed(flow.subscribed)))
            flow.unsubscribe(dropped[-1])
        flow.publish()
        self._fit_viewers(flow)
        if dropped:
            self._events.note(
                "relay-receivers-dropped", f"relay {row.name}: {len(dropped)} receivers that were added are dropped",
                why="no output of the new policy takes them, or it allows fewer",
                advice="give the relay a unicast output for their zones, or list them in the policy",
            )  # fmt: skip

    def _fit_viewers(self, flow: Flow) -> None:
        """A ring for its HTTP outputs, or none. Who reads one that stays the same sees no gap."""
        assert self._plane is not None
        rows = [output for output in flow.row.outputs if output.kind == "http"]
        shape = Shape(max(row.window_bytes for row in rows), min(row.hold_ns for row in rows)) if rows else None
        if flow.viewers is not None and flow.viewers.shape == shape:
            return
        if flow.viewers is not None:
            self._plane.set_stream(flow.slot, None)
            self._closed.append(flow.viewers)
            flow.leave_viewers()
        if shape is None:
            return
        try:
            flow.viewers = Viewers(self._dataplane, shape, flow.slot)
        except MemoryError:  # what is evicted for it comes free within a pass of the workers: _look() asks again
            return
        self._plane.set_stream(flow.slot, flow.viewers.ring)

    def _start_workers(self) -> RelayPlane:
        n_workers = max(1, min(WORKERS_MAX, len(os.sched_getaffinity(0)) // 4))
        plane = RelayPlane(n_workers, self._dataplane.plane)
        plane.start()
        self._passes = [(0, clock.monotonic_ns())] * n_workers
        try:
            for thread in plane.native_ids():
                os.setpriority(os.PRIO_PROCESS, thread, NICE)
            self.has_priority = True
        except OSError:  # PermissionError without RLIMIT_NICE or by the sandbox's filter
            self.has_priority = False
        return plane

    def _discard(self, flow: Flow, index: int, made: socket.socket) -> None:
        self._limbo.append((flow, index, made))

    def _reap(self) -> None:
        """Closes what no worker can use any more."""
        self._closed = [each for each in self._closed if each.ring.has_readers]
        if self._plane is None or not (self._limbo or self._left_slots) or self._plane.collect():
            return
        for flow, index, made in self._limbo:
            made.close()
            if flow is not None:
                flow.freed(index)
        self._limbo = []
        self._left_slots = set()

    # -- what time brings ----------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(EVERY_S, self._tick)
        self._n_ticks += 1
        if self._plane is None:
            return
        self._look()
        if self._n_ticks % SAMPLES_EACH == 0:
            now_ns = clock.monotonic_ns()
            self._announcer.follow(sessions(self.flows.values(), self._seen), now_ns / 1e9, clock.wall_s())
            for flow in self.flows.values():
                flow.sample(now_ns)
            self._watch_workers(now_ns)

    def _look(self) -> None:
        """Interfaces, memberships, outputs, signals."""
        if self._plane is None:
            return
        self._reap()
        now_ns = clock.monotonic_ns()
        names = {each.spec.interface for flow in self.flows.values() for each in flow.legs}
        names |= {each.row.interface for flow in self.flows.values() for each in flow.outlets}
        self._addresses = frozenset(one for each in self._links.addresses().values() for one in each)
        self._seen = self._links.look({name for name in names if name is not None})
        for flow in list(self.flows.values()):
            if flow.row.name in self._channels and not flow.is_wanted(now_ns):
                self._end(flow)
                self._limbo += [(None, 0, leg.socket) for leg in flow.legs]
                continue
            self._fit_viewers(flow)
            flow.follow(now_ns, self._seen, self._refusal, self._addresses)
            if flow.row.name not in self._channels:  # what viewers ask for is not for them to fill the journal with
                self._tell_waiting(flow)
                self._tell_refused(flow)
            self._follow_signal(flow, now_ns)
        self._say_own()

    def _refusal(self, link: Link) -> str:
        if not self._no_multicast:
            return ""
        zones = {self._zones.of(address) for address in link.addresses}
        never = sorted(zone for zone in zones if zone in self._no_multicast)
        return f"its zone {never[0]} says multicast: never" if never else ""

    def _say_own(self) -> None:
        """Split horizon: what our own outputs send is never an input, whatever way it comes."""
        assert self._plane is not None
        ports = {each.socket.getsockname()[1] for flow in self.flows.values() for each in flow.outlets if each.socket}
        addresses = set(map(_mapped, self._addresses)) if ports else set()
        own = frozenset((address, port) for address in addresses for port in ports)
        if own != self._own:
            self._own = own
            self._plane.set_own(sorted(own))

    def _tell_waiting(self, flow: Flow) -> None:
        # One that is down is shown, not told: it is so for a moment whenever an interface is made.
        name, troubles = flow.row.name, "; ".join([each for each in flow.troubles() if not each.endswith(DOWN)][:3])
        if troubles != self._waiting_told.get(name, ""):
            self._waiting_told[name] = troubles
            if troubles:
                self._events.note(
                    "relay-waiting", f"relay {name} waits", why=troubles, cause=f"relay-waiting:{name}:{troubles}",
                    advice="it goes on by itself when that is there; accelctl relay show NAME",
                )  # fmt: skip

    def _tell_refused(self, flow: Flow) -> None:
        for leg in flow.legs:
            refused = sum(leg.intake.refused.values()) if leg.intake is not None else 0
            if leg.intake is not None and refused != leg.n_refused_told:
                leg.n_refused_told = refused
                name, why = flow.row.name, ", ".join(f"{name} {n}" for name, n in leg.intake.refused.items())
                self._events.note(
                    "relay-sender-refused", f"relay {name}: a sender was refused", why=f"{url_of(leg.spec)}: {why}",
                    advice="sources and connection.stream_id say who may send", cause=f"relay-sender-refused:{name}",
                )  # fmt: skip

    def _follow_signal(self, flow: Flow, now_ns: int) -> None:
        name, gauges = flow.row.name, flow.gauges()
        before, since_ns = flow.signal.state, flow.signal.since_ns
        state = flow.signal.update(now_ns, gauges["last_ns"], is_wanted=flow.is_wanted(now_ns))
        if name in self._channels:
            return
        if state is State.SILENT:
            why = "nothing has come since it was asked for" if before is State.WAITING else "its packets stopped"
            self._events.note(
                "relay-signal-lost", f"relay {name}: no signal", why=why, advice=_ADVICE_SILENT,
                cause=f"relay-signal-lost:{name}",
            )  # fmt: skip
        elif state is State.LIVE and before is State.SILENT:
            gone_s = (now_ns - since_ns) / 1e9
            self._events.note(
                "relay-signal-returned", f"relay {name}: the signal is back", why=f"after {gone_s:.1f} s",
                cause=f"relay-signal-returned:{name}",
            )  # fmt: skip
        if flow.row.is_backup and gauges["active_leg"] != flow.active_leg:
            was, flow.active_leg = flow.active_leg, gauges["active_leg"]
            to = url_of(flow.row.inputs[flow.active_leg])
            is_back = flow.active_leg < was
            self._events.note(
                "relay-switched", f"relay {name}: {'back to' if is_back else 'backup'} input {to}",
                why="it lives again" if is_back else "the input before it was silent",
                cause=f"relay-switched:{name}:{flow.active_leg}",
            )  # fmt: skip

    def _watch_workers(self, now_ns: int) -> None:
        assert self._plane is not None
        for index, (passes, alive) in enumerate(self._plane.workers_state()):
            if passes != self._passes[index][0]:
                self._passes[index] = (passes, now_ns)
                self._stalled.discard(index)
            elif index not in self._stalled and (not alive or now_ns - self._passes[index][1] > STALLED_S * 1e9):
                self._stalled.add(index)
                self._events.note(
                    "relay-worker-stalled", f"relay worker {index} stands still",
                    why="it has begun no pass for 5 s", advice="restart acceleratord, and report this",
                )  # fmt: skip

    # -- viewers over HTTP ---------------------------------------------------------------------------------------------

    def _all_viewers(self) -> list[Viewers]:
        return [flow.viewers for flow in self.flows.values() if flow.viewers is not None]

    def _status_for(self, name: str, path: str) -> int:
        """What a HEAD is answered: nothing is opened or joined for it."""
        if name == UDPXY_NAME:
            row = row_of(path, self._udpxy)
            return row if isinstance(row, int) else 200
        return 200 if self._flow_at(name, path) is not None else 404

    def _flow_at(self, name: str, path: str) -> Flow | None:
        relay, _, index = name.removeprefix(RELAY_PREFIX).partition(":")
        flow = self.flows.get(relay)
        if flow is None or int(index or 0) >= len(flow.row.outputs):
            return None
        # The row of the worker's is a prefix; a relay has this path and no other.
        return flow if flow.row.outputs[int(index or 0)].path == path else None

    def _viewers_for(self, name: str, path: str) -> Viewers | int:
        if self._plane is None:
            return 503
        if name == UDPXY_NAME:
            row = row_of(path, self._udpxy)
            if isinstance(row, int):
                return row
            flow = self.flows.get(row.name) or self._open_channel(row)
        else:
            flow = self._flow_at(name, path)
            if flow is None:
                return 404
        if flow is None or flow.viewers is None or flow.n_receivers >= flow.row.receivers_max:
            return 503
        flow.viewers.want(clock.monotonic_ns())
        if not all(leg.is_joined or not leg.is_group for leg in flow.legs):
            flow.follow(clock.monotonic_ns(), self._seen, self._refusal, self._addresses)
        return flow.viewers

    def _open_channel(self, row: RelayRow) -> Flow | None:
        """None: there are as many as the policy allows, or the system has no socket for it."""
        n_taken = len(self.flows) + len(self._left_slots)
        if len(self._channels) >= self._udpxy.channels or n_taken >= RELAY_SLOTS:
            return None
        spec, prepared = row.inputs[0], Prepared((row,))
        try:
            prepare_relay(row, prepared, {}, self._credentials)
        except (AcceleratorError, MemoryError) as error:
            discard(prepared)
            self._events.note(
                "relay-waiting", "a channel that viewers ask for can't be opened", cause="relay-waiting:udpxy",
                why=error.message if isinstance(error, AcceleratorError) else os.strerror(errno.ENOMEM),
                advice="see udpxy.interface, and the system's limits on sockets",
            )  # fmt: skip
            return None
        flow = self._begin(row, prepared, None)
        self._channels.add(row.name)
        self._take_outputs(flow, row)
        if flow.viewers is None:  # no memory for it
            self._end(flow)
            self._limbo += [(None, 0, leg.socket) for leg in flow.legs]
            return None
        flow.viewers.want(clock.monotonic_ns())
        if spec.interface is not None and spec.interface not in self._seen:
            self._look()
        flow.receive()
        return flow

    # -- receivers that operators add ----------------------------------------------------------------------------------

    def _place(self, flow: Flow, receiver: Receiver) -> int | None:
        """The number of the first output that takes a receiver."""
        zone = None
        for number, output in enumerate(flow.row.outputs):
            if output.kind != "unicast":
                continue
            if output.zones and zone is None:
                zone = self._zones.of(ip_address(receiver[0]))
            if not output.zones or zone in output.zones:
                return number
        return None

    async def add_receivers(self, name: str, text: str) -> dict[str, Any]:
        """`text`: addresses and ports, separated by commas. All or none. Raises ControlError."""
        found = await parse_receivers(text)
        flow = self._flow(name)
        row = flow.row
        wanted = [each for each in found if each not in flow.subscribed and not flow.is_listed(each)]
        places = []
        for nth, receiver in enumerate(wanted, 1):
            if nth % CHUNK == 0:
                await asyncio.sleep(0)
            number = self._place(flow, receiver)
            if number is None:
                raise ControlError("no-output", f"relay {name} has no unicast output for receiver {nth} of these")
            self._check_loop(receiver)
            places.append((receiver, number))
        # From here on in one piece: others may have had their turn meanwhile.
        if self.flows.get(name) is not flow or flow.row is not row:
            raise ControlError("changed", f"relay {name} has just changed: once more")
        new = [each for each in places if each[0] not in flow.subscribed]
        if flow.n_receivers + len(new) > flow.row.receivers_max:
            most = flow.row.receivers_max
            raise ControlError("full", f"relay {name} may have {most:,} receivers, {flow.n_receivers:,} are there")
        for receiver, number in new:
            flow.subscribe(receiver, number)
        self._follow_now(flow)
        return {"added": len(new), "receivers": flow.n_receivers}

    async def remove_receivers(self, name: str, text: str) -> dict[str, Any]:
        wanted = await parse_receivers(text)
        flow = self._flow(name)
        if any(flow.is_listed(receiver) for receiver in wanted):
            raise ControlError("listed", f"the policy lists a receiver of relay {name}: change the policy")
        gone = [each for each in wanted if each in flow.subscribed]
        for receiver in gone:
            flow.unsubscribe(receiver)
        self._follow_now(flow)
        return {"removed": len(gone), "receivers": flow.n_receivers}

    def _follow_now(self, flow: Flow) -> None:
        """An output that isn't open yet is opened, and a group joined, before the answer."""
        if not flow.follow(clock.monotonic_ns(), self._seen, self._refusal, self._addresses):
            flow.publish()
        self._say_own()

    def _check_loop(self, receiver: Receiver) -> None:
        host, port = ip_address(receiver[0]), receiver[1]
        for flow in self.flows.values():
            for leg in flow.legs:
                bound = ip_address(leg.spec.host)
                if leg.is_group or leg.spec.port != port or bound.version != host.version:
                    continue
                is_ours = any(host in each for each in self._links.addresses().values()) or host.is_loopback
                if bound == host or (bound.is_unspecified and is_ours):
                    raise ControlError("loop", f"that is the input of relay {flow.row.name}: it would go in a circle")

    def _flow(self, name: str) -> Flow:
        if name not in self.flows:
            known = ", ".join(list(self.flows)[:5]) or "there are none"
            raise ControlError("no-such-relay", f"no relay is called {name[:80]!r}: {known}")
        return self.flows[name]

    # -- what operators are shown --------------------------------------------------------------------------------------

    def listing(self) -> dict[str, Any]:
        now_ns = clock.monotonic_ns()
        return {"relays": [flow.summary(now_ns) for flow in self.flows.values()]}

    def show(self, name: str) -> dict[str, Any]:
        return self._flow(name).details(clock.monotonic_ns())

    def playlist(self) -> dict[str, str]:
        named = [flow for name, flow in self.flows.items() if name not in self._channels]
        return {"m3u": playlist(named, self.bases())}

    def state(self) -> dict[str, Any]:
        """For `status`."""
        states = [flow.signal.state.value for flow in self.flows.values()]
        return {
            "n": len(states),
            **{each.value: states.count(each.value) for each in State},
            "receivers": sum(flow.n_receivers for flow in self.flows.values()),
            "viewers": sum(flow.n_viewers for flow in self.flows.values()),
            "channels": len(self._channels),
            "workers": worker_rows(self._plane, self._stalled),
            "has_priority": self.has_priority,
            "follows_links": self._changes.is_followed,
            "announcements_failed": self._announcer.n_failed,
            "silent_names": [name for name, flow in self.flows.items() if flow.signal.state is State.SILENT],
        }

    def unhealthy(self) -> list[str]:
        return [f"relay worker {index} stands still" for index in sorted(self._stalled)]

    def metrics(self) -> list[tuple[str, dict[str, int], dict[str, float]]]:
        return metrics(self.flows.values())


def _mapped(address: IpAddress) -> bytes:
    return bytes(10) + b"\xff\xff" + address.packed if address.version == 4 else address.packed
