"""What the relays of a policy need of the system: sockets, and the data plane's memory. All of it is had before the
policy is taken over, which can't be refused any more by then. When relays begin and end is relays.py's.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass, field

from accelerator.dataplane import RelaySettings
from accelerator.io.credentials import Credentials
from accelerator.io.datagram import open_input
from accelerator.io.intakes import Intake, IntakeSpec, open_pair
from accelerator.policy.compile import RelayRow
from accelerator.policy.relay_rules import Input, Session
from accelerator.services.relays.flow import Leg, settings_of

LegKey = tuple[str, int, str, str | None, Session | None]


@dataclass
class Prepared:
    """Of a policy: for each relay that begins, its inputs and what the data plane makes of them; `reused`: legs whose
    sockets go on in a copy. All that a system short of memory or descriptors could refuse is here already."""

    rows: tuple[RelayRow, ...]
    legs: dict[str, list[Leg]] = field(default_factory=dict)
    settings: dict[str, RelaySettings] = field(default_factory=dict)
    reused: list[Leg] = field(default_factory=list)


def leg_key(spec: Input) -> LegKey:
    return (spec.host, spec.port, spec.source, spec.interface, spec.session)


def prepare_relay(row: RelayRow, prepared: Prepared, spare: dict[LegKey, list[Leg]], credentials: Credentials) -> None:
    """`spare`: legs of relays that end, whose sockets may go on."""
    legs = prepared.legs.setdefault(row.name, [])
    for spec in row.inputs:
        if spare.get(leg_key(spec)):
            # What is in a socket's buffer stays there: the new relay reads on where the old one has stopped.
            old = spare[leg_key(spec)][-1]
            legs.append(Leg(spec, old.socket.dup(), old.is_joined, old.link, intake=old.intake))
            prepared.reused.append(spare[leg_key(spec)].pop())
        else:
            made, intake = _open(spec, credentials)
            legs.append(Leg(spec, made, intake=intake))
    prepared.settings[row.name] = settings_of(row, legs)


def discard(prepared: Prepared) -> None:
    """The policy was not taken over after all."""
    kept = {id(leg.intake) for leg in prepared.reused}
    for leg in (leg for legs in prepared.legs.values() for leg in legs):
        leg.socket.close()
        if leg.intake is not None and id(leg.intake) not in kept:
            leg.intake.close()


def _open(spec: Input, credentials: Credentials) -> tuple[socket.socket, Intake | None]:
    if spec.session is None:
        return open_input(spec.host, spec.port, interface=spec.interface), None
    said = spec.session
    passphrase = credentials.passphrase(said.passphrase) if said.passphrase else ""
    reading, feed = open_pair()
    wanted = IntakeSpec(
        said.scheme, "listener" if said.is_listener else "caller", spec.host, spec.port, said.latency_ms,
        said.stream_id, said.profile, said.sources, passphrase,
    )  # fmt: skip
    return reading, Intake(wanted, feed)
