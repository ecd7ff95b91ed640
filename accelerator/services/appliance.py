"""The whole box: data plane, origins, fetch service, listeners; how it starts, takes a policy over and ends. What
operators are shown of it is answers.py's."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerator import clock
from accelerator.dataplane import INTERCEPTED, DataPlane, worker_count
from accelerator.errors import AcceleratorError, Source
from accelerator.io.credentials import Credentials
from accelerator.policy.addresses import format_address
from accelerator.policy.compile import Tables, compile_policy
from accelerator.policy.model import Policy
from accelerator.services.disk.boot import make_tier, take_classes
from accelerator.services.fetch.fetcher import Fetcher
from accelerator.services.fetch.inventory import Inventory
from accelerator.services.fetch.ledger import Ledger
from accelerator.services.links.forwarded import Forwarded
from accelerator.services.links.outside import Outside
from accelerator.services.links.wan import Wan
from accelerator.services.listeners.admin_token import AdminToken
from accelerator.services.listeners.certificates import Certificates, Served
from accelerator.services.listeners.sockets import open_listener, refuse
from accelerator.services.listeners.succession import Succession
from accelerator.services.logs.events import Events
from accelerator.services.logs.lines import Causes
from accelerator.services.logs.requests import RequestLog
from accelerator.services.logs.security import SecurityLog
from accelerator.services.netd.client import NetdClient
from accelerator.services.netd.intercept import Interceptor
from accelerator.services.objects.heads import NS
from accelerator.services.origins.notes import OriginNotes
from accelerator.services.origins.origins import Origins, Secrets
from accelerator.services.overload import Overload
from accelerator.services.relays.prepare import Prepared
from accelerator.services.relays.relays import Relays
from accelerator.services.rollout.rollout import Rollout
from accelerator.steering.pages import own_pages

log = logging.getLogger("accelerator")

DRAIN_POLL_S = 0.05
# A worker still names a listener's descriptor until it has read its mail, which takes it a pass; were the number given
# to a viewer's connection meanwhile, the worker would stop listening to that.
RETIRED_SOCKET_S = 2.0
# What is left of the access log is written for so long at the end.
LOG_END_S = 1.0

Listening = dict[str, tuple[tuple[str, int], socket.socket]]


class StartError(AcceleratorError):
    """The box can't start or take a policy over: one clear line."""

    source = Source.OPERATOR


class Appliance:
    """Built once; `apply` takes a policy over, `drain` and `close` end it."""

    def __init__(
        self,
        policy: Policy,
        policy_path: Path,
        state_dir: Path,
        loop: asyncio.AbstractEventLoop,
        credentials: Credentials,
        events: Events,
        succession: Succession,
        security: SecurityLog,
    ) -> None:
        tables = compile_policy(policy)
        self._loop = loop
        self.policy_path = policy_path
        self.started_ns = clock.monotonic_ns()
        self._sockets: Listening = {}
        self._retired: set[socket.socket] = set()
        self.is_draining = False
        self.is_serving = False
        self.causes = Causes()
        self.events = events
        self.security = security
        notes = OriginNotes(self.causes, events, security)
        self._succession = succession
        self.rollout: Rollout | None = None
        self.admin_address: tuple[str, int] | None = None
        self.dataplane = DataPlane(worker_count(tables.workers), tables.memory_bytes)
        self._plane = self.dataplane.plane
        self.origins = Origins(self.dataplane, loop, credentials, notes.event)
        self.ledger = Ledger(self.dataplane, self.origins, loop, notes.error)
        self.fetcher = Fetcher(self.ledger, notes.refused)
        self.request_log = RequestLog(security.folder, self.dataplane, security, events)
        self.disk = make_tier(
            tables, policy, state_dir, credentials, self.dataplane, self.origins, events, self.causes, loop
        )
        self.ledger.disk = self.disk
        self.certificates = Certificates(self.dataplane, credentials, events, loop)
        self.inventory = Inventory(self.dataplane, self.origins, self.ledger)
        self.overload = Overload(self.dataplane, events, loop)
        self._intercepted: socket.socket | None = None
        self.interceptor = Interceptor(state_dir / "netd.sock", self, events, self._take_intercepted)
        self.netd = NetdClient(state_dir / "netd.sock", events)
        self.relays = Relays(events, credentials, self.dataplane)
        outside = Outside(
            self.fetcher.tunnels.bytes_by_origin,
            lambda: (row for flow in self.relays.flows.values() for row in flow.bytes_by_leg()),
        )
        self.wan = Wan(loop, self.origins, events, outside)
        self.forwarded = Forwarded(
            loop, events, self.wan.link_of, lambda wanted: self.netd.want_steered(wanted.routes, wanted.rules)
        )
        self.wan.on_steered = self.forwarded.link_changed
        self.relays.bases = self._bases
        self.fetcher.desk = self.relays.desk
        self._waiting_relays: Prepared | None = None
        self.admin_token: AdminToken | None = None
        self.extra_counters: Any = dict
        self.policy = policy
        self.tables = tables
        self.generation = 0

    # -- life ----------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Opens the listeners, publishes the tables, starts the workers. Raises StartError or CredentialError."""
        secrets = self.origins.read_secrets(self.policy)
        served = self.certificates.read(self.policy)
        self.certificates.adopt(self._succession.handed_tickets)
        opened = self._open_listeners(self.tables)
        self._waiting_relays = self._prepare_relays(self.tables)
        self._take_over(self.policy, self.tables, opened, secrets, served)
        self.dataplane.put_health_object()
        self._plane.start()
        self.request_log.start()
        for name, (_, listening) in self._sockets.items():
            self.dataplane.listen(name, listening)
        if self.disk is not None:
            self.disk.log.start()
        self.fetcher.start()
        self.netd.start()
        self.certificates.start()
        self.overload.start()
        self.is_serving = True

    def begin_relays(self) -> None:
        """Once no other process of ours relays: of two, each receiver would have everything twice."""
        prepared, self._waiting_relays = self._waiting_relays, None
        if prepared is not None:
            self.relays.take_over(self.tables, prepared)
            self.relays.start()

    def _prepare_relays(self, tables: Tables) -> Prepared:
        try:
            return self.relays.prepare(tables)
        except AcceleratorError as error:
            raise StartError(error.kind, error.message) from error

    def apply(self, policy: Policy) -> int:
        """Takes another policy over whole, or raises StartError or CredentialError and changes nothing."""
        tables = compile_policy(policy)
        if self.is_draining or not self.is_serving:
            raise StartError("draining", "this acceleratord has not started yet, or is ending")
        if (tables.admin, tables.admin_reads_freely) != (self.tables.admin, self.tables.admin_reads_freely):
            raise StartError("needs-restart", "admin has changed: restart acceleratord for it")
        if tables.memory_bytes != self.tables.memory_bytes:
            raise StartError("needs-restart", "cache.memory has changed: restart acceleratord for it")
        if policy.cache.disk != self.policy.cache.disk:
            raise StartError("needs-restart", "cache.disk has changed: restart acceleratord for it")
        if worker_count(tables.workers) != self._plane.n_workers:
            raise StartError("needs-restart", "workers has changed: restart acceleratord for it")
        secrets = self.origins.read_secrets(policy)
        served = self.certificates.read(policy)
        relays = self._prepare_relays(tables)
        try:
            opened = self._open_listeners(tables)
        except StartError:
            self.relays.discard(relays)
            raise
        before = dict(self._sockets)
        self._take_over(policy, tables, opened, secrets, served)
        self.relays.take_over(tables, relays)
        # First all that go, then all that come: a socket may change its name, and two may change places.
        for name, row in before.items():
            if opened.get(name) != row:
                self.dataplane.unlisten(name)
        for name, row in opened.items():
            if before.get(name) != row:
                self.dataplane.listen(name, row[1])
        kept = {listening for _, listening in opened.values()}
        for _, listening in before.values():
            if listening not in kept:
                self._retire(listening)
        return self.generation

    async def drain(self, why: str = "SIGTERM", *, kept: Container[str] = (), idle_s: float = 0.0) -> None:
        """No new connections, idle ones closed; returns when the last response is out or `limits.drain` is over.

        Listeners in `kept` go on listening, as others have their sockets too. With `idle_s` those serve already, and
        idle connections may be used once more within this time."""
        self.is_draining = True
        # From here on netd is another's to tell: a netd that starts meanwhile would be told the old policy.
        await self.netd.stop()
        await self.interceptor.stop()
        if idle_s:
            self.relays.stop(is_heir_there=True)
        self.events.note("drain", "draining: no new connections, running answers are finished", why=why)
        self._plane.drain(int(idle_s * 1000), int(self.tables.limits.drain_s * 1000))
        if self.disk is not None and idle_s:
            await self.disk.log.close()  # one process at a time has the folder, and another serves already
        deadline_ns = clock.monotonic_ns() + int(self.tables.limits.drain_s * NS)
        # The workers take what waits in the queues first; after that, who connects is refused and goes elsewhere.
        await asyncio.sleep(DRAIN_POLL_S)
        for name, (_, listening) in self._sockets.items():
            if name not in kept:
                refuse(listening)
        while self._plane.n_connections and clock.monotonic_ns() < deadline_ns:
            await asyncio.sleep(DRAIN_POLL_S)

    # -- services.succession.Serving -----------------------------------------------------------------------------------

    def listening_sockets(self) -> Mapping[str, socket.socket]:
        return {name: listening for name, (_, listening) in self._sockets.items()}

    def ticket_keys(self) -> dict[str, object]:
        return self.certificates.tickets.as_handed_over(clock.monotonic_ns() / NS)

    def _bases(self) -> list[str]:
        """Where viewers find the box, as URLs; of a listener on every address only the port is known."""
        rows = {row.name: row for row in self.tables.listeners}
        found = []
        for name, (_, listening) in self._sockets.items():
            host, port = listening.getsockname()[:2]
            place = f"THIS-BOX:{port}" if host in ("0.0.0.0", "::") else format_address(host, port)
            found += [f"http{'s' if rows[name].certificates else ''}://{place}"] if name in rows else []
        return found

    def poke_workers(self) -> None:
        self._plane.poke()

    def worker_passes(self) -> Sequence[int | None]:
        return [passes if alive else None for _, passes, alive in self._plane.workers_state()]

    async def close(self) -> None:
        self.is_serving = False
        self.certificates.stop()
        self.overload.stop()
        self.fetcher.stop()
        if self._waiting_relays is not None:
            self.relays.discard(self._waiting_relays)
        self.relays.close()
        await self.netd.stop()
        await self.wan.stop()
        await self.forwarded.stop()
        await self.fetcher.connects.close()
        await self.interceptor.stop()
        if self.disk is not None:
            await self.disk.log.close()
        self._plane.close()
        await asyncio.to_thread(self.request_log.finish, LOG_END_S)
        for listening in [*self._retired, *(listening for _, listening in self._sockets.values())]:
            listening.close()
        self._sockets = {}
        await self.origins.close()

    # -- taking a policy over ------------------------------------------------------------------------------------------

    def _take_over(
        self, policy: Policy, tables: Tables, opened: Listening, secrets: dict[str, Secrets], served: Served
    ) -> None:
        self._sockets = opened
        self.ledger.site = tables.site.encode("ascii")
        self.inventory.class_names = list(policy.classes)
        self.inventory.pinned_classes = {index for index, row in enumerate(policy.classes.values(), 1) if row.pin}
        own = {listening.getsockname()[:2] for _, listening in opened.values()}
        if self.admin_address is not None:
            own.add(self.admin_address)
        self.origins.apply(policy, frozenset(own), secrets)
        self.wan.apply(policy)
        self.fetcher.authoriser.apply({name: each.judge for name, each in secrets.items()})
        self.request_log.prepare(tables, self._plane.generation + 1)
        self.generation = self.dataplane.publish(tables, served.servers)
        self.certificates.take_over(served)
        self.policy, self.tables = policy, tables
        for index, quota_bytes in enumerate(tables.memory_quotas, 1):
            self._plane.set_quota(index, quota_bytes)
        if self.disk is not None:
            take_classes(self.disk, tables, policy)
        logs = tables.logs
        self.dataplane.put_pages(own_pages(policy))
        self.fetcher.take_over(policy, frozenset(own))
        self.netd.want(tables)
        self.forwarded.apply(policy)
        self.interceptor.want(tables.intercept.port if tables.intercept is not None else 0)
        self.security.keep(retention_s=logs.security_retention_s, bytes_max=logs.security_bytes)

    def _open_listeners(self, tables: Tables) -> Listening:
        """Sockets for every listener, those that are open already among them. On failure the new ones are closed.

        An open socket belongs to its address, whatever the listener is called now; port 0 names no address."""
        opened: Listening = {}
        new: list[socket.socket] = []
        fresh: dict[str, socket.socket] = {}
        by_address = {address: (address, sock) for address, sock in self._sockets.values() if address[1]}
        for row in tables.listeners:
            known = self._sockets.get(row.name) if row.port == 0 else by_address.get((row.host, row.port))
            if known is not None and known[0] == (row.host, row.port):
                opened[row.name] = known
                continue
            listening = self._succession.adopt(row.name, row.host, row.port)
            if listening is not None:
                new.append(listening)
                opened[row.name] = ((row.host, row.port), listening)
                continue
            try:
                listening = open_listener(row.host, row.port)
            except OSError as fault:
                for sock in new:
                    sock.close()
                raise StartError("listen", f"listen.{row.name}: {row.host}:{row.port}: {fault.strerror}") from fault
            new.append(listening)
            fresh[row.name] = listening
            opened[row.name] = ((row.host, row.port), listening)
        for name, listening in fresh.items():
            self._succession.opened(name, listening)
        return opened

    def _take_intercepted(self, listening: socket.socket | None) -> None:
        if self._intercepted is not None:
            self.dataplane.unlisten(INTERCEPTED)
            self._retire(self._intercepted)
        self._intercepted = listening
        if listening is not None:
            self.dataplane.listen(INTERCEPTED, listening)

    def _retire(self, listening: socket.socket) -> None:
        """Refuses connections from now on; the descriptor's number stays taken for a while."""
        refuse(listening)
        self._retired.add(listening)

        def close() -> None:
            self._retired.discard(listening)
            listening.close()

        self._loop.call_later(RETIRED_SOCKET_S, close)
