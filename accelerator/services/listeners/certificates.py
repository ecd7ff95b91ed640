"""Viewers' listeners over TLS: their certificates as they were read last, when these end, and the keys of tickets.

Read at each start and reload, all or none. Where a certificate ends is told 30, 14 and 3 days before, and after it.
"""

from __future__ import annotations

import asyncio
import datetime
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from accelerator import clock
from accelerator.dataplane import DataPlane, TlsServer
from accelerator.io.credentials import CredentialError, Credentials
from accelerator.io.server_certificate import ServerCertificate
from accelerator.policy.model import Policy
from accelerator.services.logs.events import Events

DAY_S = 86_400.0
TELL_AT_DAYS = (30, 14, 3, 0)
LOOK_EVERY_S = 60.0
# A ticket is good for four hours (ext/tls.pyx), so with a new key every four hours the one before is enough.
ROTATE_EVERY_S = 4 * 3600.0
TICKET_KEY_BYTES = 80


@dataclass
class Served:
    """What one policy's listeners show: by listener, and each certificate once."""

    servers: dict[str, TlsServer] = field(default_factory=dict)
    certificates: dict[str, ServerCertificate] = field(default_factory=dict)
    listeners: dict[str, list[str]] = field(default_factory=dict)


class TicketKeys:
    """Keys of session tickets, the newest last: it seals, and those before open what they sealed. In memory only."""

    def __init__(self, keys: Sequence[bytes] = (), age_s: float = 0.0, now_s: float = 0.0) -> None:
        self.keys = list(keys)[-2:] or [os.urandom(TICKET_KEY_BYTES)]
        self.born_s = now_s - age_s

    def rotate(self, now_s: float) -> bool:
        """Whether it was time for a new key. After a long sleep the old ones are both too old."""
        if now_s - self.born_s < ROTATE_EVERY_S:
            return False
        before = self.keys[-1:] if now_s - self.born_s < 2 * ROTATE_EVERY_S else []
        self.keys = [*before, os.urandom(TICKET_KEY_BYTES)]
        self.born_s = now_s
        return True

    def as_handed_over(self, now_s: float) -> dict[str, object]:
        return {"keys": [key.hex() for key in self.keys], "age_s": round(now_s - self.born_s, 3)}


def tickets_from(handed: object, now_s: float) -> TicketKeys:
    """What a predecessor said; new ones where it said nothing that can be used."""
    if isinstance(handed, dict):
        keys, age_s = handed.get("keys"), handed.get("age_s")
        try:
            found = [bytes.fromhex(key) for key in keys] if isinstance(keys, list) else []
        except (TypeError, ValueError):
            found = []
        if found and all(len(key) == TICKET_KEY_BYTES for key in found) and isinstance(age_s, int | float):
            return TicketKeys(found, max(0.0, float(age_s)), now_s)
    return TicketKeys(now_s=now_s)


class Certificates:
    """Of one running box."""

    def __init__(
        self, dataplane: DataPlane, credentials: Credentials, events: Events, loop: asyncio.AbstractEventLoop
    ) -> None:  # fmt: skip
        self.tickets = TicketKeys(now_s=_now_s())
        self._dataplane = dataplane
        self._credentials = credentials
        self._events = events
        self._loop = loop
        self._served = Served()
        self._told: dict[tuple[int, str], int] = {}
        self._timer: asyncio.TimerHandle | None = None

    def adopt(self, handed: object) -> None:
        """Keys of a predecessor, whose viewers come with its tickets. Before anything is taken over."""
        self.tickets = tickets_from(handed, _now_s())

    def read(self, policy: Policy) -> Served:
        """The certificates that the policy names; nothing is taken over. Raises CredentialError."""
        served = Served()
        for listener, row in policy.listen.items():
            if not row.tls:
                continue
            try:
                for name in row.tls:
                    if name not in served.certificates:
                        served.certificates[name] = self._credentials.server_certificate(name, clock.wall_s())
                found = [served.certificates[name] for name in row.tls]
                for each in found:  # one by one, so that the fault has a name
                    _server([each], is_legacy=row.legacy)
                served.servers[listener] = _server(found, is_legacy=row.legacy)
            except CredentialError as error:
                raise CredentialError(error.kind, f"listen.{listener}.tls: {error.message}") from error
            served.listeners[listener] = list(row.tls)
        return served

    def take_over(self, served: Served) -> None:
        """These are shown from now on; the caller publishes them."""
        self._served = served
        self._dataplane.set_ticket_keys(self.tickets.keys)
        self._look()

    def start(self) -> None:
        self._timer = self._loop.call_later(LOOK_EVERY_S, self._again)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _again(self) -> None:
        if self.tickets.rotate(_now_s()):
            self._dataplane.set_ticket_keys(self.tickets.keys)
        self._look()
        self.start()

    def _look(self) -> None:
        """Tells what is due, each step once."""
        now_s = clock.wall_s()
        for name, each in self._served.certificates.items():
            left_days = (each.not_after_s - now_s) / DAY_S
            key = (each.serial, name)
            step = next((days for days in reversed(TELL_AT_DAYS) if left_days <= days), None)
            if each.not_before_s > now_s:
                step = -1
            if step is not None and self._told.get(key) != step:
                self._told[key] = step
                self._tell(each, left_days, step)
            if each.ocsp_fault and self._told.get((each.serial, each.ocsp_fault)) is None:
                self._told[each.serial, each.ocsp_fault] = 0
                self._events.note(
                    "certificate-ocsp", f"certificate '{name}': nothing is stapled", why=each.ocsp_fault,
                    advice="put a response for this certificate there, then send SIGHUP", cause=f"ocsp {name}",
                )  # fmt: skip

    def _tell(self, certificate: ServerCertificate, left_days: float, step: int) -> None:
        until = datetime.datetime.fromtimestamp(certificate.not_after_s, datetime.UTC)
        if step == -1:
            what = f"certificate '{certificate.name}' is not good yet: look at the clock"
        elif step == 0:
            what = f"certificate '{certificate.name}' has expired: viewers' players refuse it"
        else:
            what = f"certificate '{certificate.name}' expires in {max(0, int(left_days))} days"
        self._events.note(
            "certificate-expired" if step <= 0 else "certificate-expiry", what,
            why=f"it is good until {until:%Y-%m-%d %H:%M} UTC",
            advice=f"accelctl csr {certificate.name}, put the answer into {certificate.name}.crt, then send SIGHUP",
            cause=f"certificate {certificate.name}",
        )  # fmt: skip

    # -- what operators are shown --------------------------------------------------------------------------------------

    def rows(self) -> list[dict[str, Any]]:
        """For `status` and /metrics."""
        now_s = clock.wall_s()
        return [
            {
                "name": name,
                "listeners": [listener for listener, names in self._served.listeners.items() if name in names],
                "hosts": [host.decode("ascii") for host in each.names],
                "issuer": each.issuer,
                "not_after_s": int(each.not_after_s),
                "days_left": round((each.not_after_s - now_s) / DAY_S, 1),
                "state": _state(each, now_s),
                "stapled": bool(each.ocsp) and each.ocsp_until_s > now_s,
            }
            for name, each in self._served.certificates.items()
        ]

    def names_of(self, listener: str) -> list[str]:
        return self._served.listeners.get(listener, [])


def _state(certificate: ServerCertificate, now_s: float) -> str:
    if certificate.not_after_s <= now_s:
        return "expired"
    if certificate.not_before_s > now_s:
        return "not yet"
    return "expiring" if certificate.not_after_s - now_s <= TELL_AT_DAYS[0] * DAY_S else "ok"


def _server(certificates: Sequence[ServerCertificate], *, is_legacy: bool) -> TlsServer:
    rows = [(each.chain, each.key, each.names, each.ocsp, each.ocsp_until_s) for each in certificates]
    try:
        return TlsServer(rows, is_legacy)
    except ValueError as fault:
        names = ", ".join(each.name for each in certificates)
        raise CredentialError("credential", f"certificate '{names}': {fault}") from fault


def _now_s() -> float:
    return clock.monotonic_ns() / 1e9
