"""The whole box: data plane, origins, fetch service, listeners, and what operators are shown of them (control.box)."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Container, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerator import __version__, clock
from accelerator.dataplane import COUNTER_HELP, DataPlane, worker_count
from accelerator.errors import AcceleratorError, ControlError, OriginError, PolicyError, Source
from accelerator.io.credentials import Credentials
from accelerator.io.origin import UpstreamEvent
from accelerator.policy.compile import Tables, compile_policy
from accelerator.policy.model import Policy
from accelerator.protocols.overload import Rung
from accelerator.services.admin_token import AdminToken
from accelerator.services.certificates import Certificates, Served
from accelerator.services.disk_boot import counters_of, figures_of, gauges_of, make_tier, take_classes
from accelerator.services.events import Events, Feed
from accelerator.services.fetch import Fetcher
from accelerator.services.heads import NS
from accelerator.services.inventory import Inventory
from accelerator.services.listening import open_listener, refuse
from accelerator.services.log_lines import Causes, about
from accelerator.services.netd_client import NetdClient, NetdError
from accelerator.services.origins import Origin, Origins, Secrets
from accelerator.services.overload import Overload
from accelerator.services.pulse import Pulse, upstream_row
from accelerator.services.relays import RELAY_COUNTER_HELP, Prepared, Relays
from accelerator.services.request_log import RequestLog
from accelerator.services.rollout import Rollout, one_line
from accelerator.services.security_log import SecurityLog
from accelerator.services.succession import Succession

log = logging.getLogger("accelerator")

DRAIN_POLL_S = 0.05
# A worker still names a listener's descriptor until it has read its mail, which takes it a pass; were the number given
# to a viewer's connection meanwhile, the worker would stop listening to that.
RETIRED_SOCKET_S = 2.0
# What is left of the access log is written for so long at the end.
LOG_END_S = 1.0

_EVENT_KINDS = {
    "breaker-open": "origin-failing", "breaker-closed": "origin-recovered",
    "dns-failed": "origin-failing", "dns-returned": "origin-recovered",
}  # fmt: skip
_EVENT_ADVICE = {
    "breaker-open": "look whether the origin and the way to it work; it is tried again by itself",
    "dns-failed": "look at the resolver; the last address is used as long as resolve_grace allows",
}

# Errors of a request upstream that are about who the other side is.
_CERTIFICATE_KINDS = frozenset({"tls", "proxy-login", "forbidden-address"})

Listening = dict[str, tuple[tuple[str, int], socket.socket]]


class StartError(AcceleratorError):
    """The box can't start or take a policy over: one clear line."""

    source = Source.OPERATOR


class Appliance:
    """Built once; `apply` takes a policy over, `drain` and `close` end it. Implements control.box.Box."""

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
        self._policy_path = policy_path
        self._started_ns = clock.monotonic_ns()
        self._sockets: Listening = {}
        self._retired: set[socket.socket] = set()
        self._is_draining = False
        self._is_serving = False
        self._causes = Causes()
        self.events = events
        self.security = security
        self._succession = succession
        self.rollout: Rollout | None = None
        self.admin_address: tuple[str, int] | None = None
        self.dataplane = DataPlane(worker_count(tables.workers), tables.memory_bytes)
        self._plane = self.dataplane.plane
        self.origins = Origins(self.dataplane, loop, credentials, self._note_event)
        self.fetcher = Fetcher(self.dataplane, self.origins, loop, self._note_error, self._note_refused)
        self.request_log = RequestLog(security.folder, self.dataplane, security, events)
        self.disk = make_tier(
            tables, policy, state_dir, credentials, self.dataplane, self.origins, events, self._causes, loop
        )
        self.fetcher.disk = self.disk
        self.certificates = Certificates(self.dataplane, credentials, events, loop)
        self.inventory = Inventory(self.dataplane, self.origins, self.fetcher)
        self.pulse = Pulse(self)
        self.overload = Overload(self.dataplane, events, loop)
        self.netd = NetdClient(state_dir / "netd.sock", events)
        self.relays = Relays(events)
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
        self._is_serving = True

    def begin_relays(self) -> None:
        """Once no other process of ours relays: of two, each receiver would have everything twice."""
        prepared, self._waiting_relays = self._waiting_relays, None
        if prepared is not None:
            self.relays.take_over(self.tables, prepared)
            self.relays.start()

    def _prepare_relays(self, tables: Tables) -> Prepared:
        try:
            return self.relays.prepare(tables.relays)
        except AcceleratorError as error:
            raise StartError(error.kind, error.message) from error

    def apply(self, policy: Policy) -> int:
        """Takes another policy over whole, or raises StartError or CredentialError and changes nothing."""
        tables = compile_policy(policy)
        if self._is_draining or not self._is_serving:
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
        self._is_draining = True
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

    def poke_workers(self) -> None:
        self._plane.poke()

    def worker_passes(self) -> Sequence[int | None]:
        return [passes if alive else None for _, passes, alive in self._plane.workers_state()]

    async def close(self) -> None:
        self._is_serving = False
        self.certificates.stop()
        self.overload.stop()
        self.fetcher.stop()
        if self._waiting_relays is not None:
            self.relays.discard(self._waiting_relays)
        self.relays.close()
        await self.netd.stop()
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
        self.fetcher.site = tables.site.encode("ascii")
        self.inventory.class_names = list(policy.classes)
        self.inventory.pinned_classes = {index for index, row in enumerate(policy.classes.values(), 1) if row.pin}
        own = {listening.getsockname()[:2] for _, listening in opened.values()}
        if self.admin_address is not None:
            own.add(self.admin_address)
        self.origins.apply(policy, frozenset(own), secrets)
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
        self.netd.want(tables)
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

    def _retire(self, listening: socket.socket) -> None:
        """Refuses connections from now on; the descriptor's number stays taken for a while."""
        refuse(listening)
        self._retired.add(listening)

        def close() -> None:
            self._retired.discard(listening)
            listening.close()

        self._loop.call_later(RETIRED_SOCKET_S, close)

    def _note_error(self, origin: Origin, error: OriginError) -> None:
        end = self._causes.due(f"{origin.name}:{error.kind}", clock.monotonic_ns())
        if end is not None:
            log.warning(
                "origin %s: %s: %s%s", origin.name, error.kind, error.message, end,
                extra=about(event="origin-error", origin=origin.name, error=error.kind),
            )  # fmt: skip
        self.events.note(
            "origin-error", f"origin {origin.name}: {error.kind}", why=error.message,
            cause=f"{origin.name}:{error.kind}",
        )  # fmt: skip
        if error.kind in _CERTIFICATE_KINDS:
            self.security.refused("upstream", f"origin {origin.name}: {error.kind}: {error.message}")

    def _note_refused(self, origin: Origin, reason: str) -> None:
        """A viewer's credential was judged and refused: why, never whose."""
        self.security.refused("credential", f"origin {origin.name}: {reason}")
        self.events.note(
            "credential-refused", f"origin {origin.name}: viewers' credentials are refused: {reason}",
            cause=f"{origin.name}:credential:{reason}",
        )  # fmt: skip

    def _note_event(self, origin: str, event: UpstreamEvent) -> None:
        level = logging.INFO if event.kind in ("dns-returned", "breaker-closed") else logging.WARNING
        end = self._causes.due(f"{origin}:{event.kind}:{event.subject}", clock.monotonic_ns())
        if end is not None:
            log.log(
                level, "origin %s: %s: %s %s%s", origin, event.kind, event.subject, event.message, end,
                extra=about(event=_EVENT_KINDS.get(event.kind, event.kind), origin=origin),
            )  # fmt: skip
        self.events.note(
            _EVENT_KINDS.get(event.kind, event.kind), f"origin {origin}: {event.subject}", why=event.message,
            advice=_EVENT_ADVICE.get(event.kind, ""), cause=f"{origin}:{event.kind}:{event.subject}",
        )  # fmt: skip

    # -- control.box.Box -----------------------------------------------------------------------------------------------

    async def routes(self) -> dict[str, Any]:
        try:
            return await self.netd.show()
        except NetdError as fault:
            raise ControlError("netd", str(fault)) from None

    def status(self) -> dict[str, Any]:
        reasons = self._unhealthy()
        return {
            "site": self.tables.site,
            "version": __version__,
            "uptime_s": round((clock.monotonic_ns() - self._started_ns) / NS, 1),
            "listeners": self._listeners(),
            "admin": format_address(*self.admin_address) if self.admin_address else None,
            "policy": {
                "generation": self.generation,
                "digest": self.tables.digest,
                "path": str(self._policy_path),
                **(self.rollout.state() if self.rollout is not None else {}),
            },
            "warnings": [self.rollout.warning] if self.rollout is not None and self.rollout.warning else [],
            "workers": [
                {"index": i, "connections": connections, "passes": passes, "alive": alive}
                for i, (connections, passes, alive) in enumerate(self._plane.workers_state())
            ],
            "tunnels": self.fetcher.tunnels.n_open_all,
            "relays": self.relays.state(),
            **({"disk": self.disk.state()} if self.disk is not None else {}),
            "certificates": self.certificates.rows(),
            "health": {"ok": not reasons, "reasons": reasons},
            "upstreams": [
                upstream_row(name, health) for name, found in self.origins.health().items() for health in found
            ],
        }

    def _listeners(self) -> list[dict[str, Any]]:
        return [
            {
                "name": name,
                "address": format_address(*listening.getsockname()[:2]),
                "accepting": self._is_serving and not self._is_draining,
                "tls": self.certificates.names_of(name),
            }
            for name, (_, listening) in self._sockets.items()
        ]

    def _unhealthy(self) -> list[str]:
        reasons = []
        if self._is_draining:
            reasons.append("draining")
        if not self._is_serving:
            reasons.append("not serving")
        elif not all(alive for _, _, alive in self._plane.workers_state()):
            reasons.append("a worker has ended")
        if self.generation == 0:
            reasons.append("no policy is published")
        if self.overload.rung is Rung.REFUSE:
            reasons.append("memory is short: new connections are refused")
        reasons += self.relays.unhealthy()
        if self.disk is not None and not self.disk.log.is_settled:
            reasons.append("the disk's index is loading")
        return reasons

    def cache_stats(self) -> dict[str, Any]:
        memory = self._plane.memory
        figures = dict(self._plane.totals())
        figures.update(
            objects=max(0, self._plane.n_objects - 1),  # the health probe's own doesn't count
            memory_bytes=memory["mapped"] + memory["outside"],
            memory_limit_bytes=memory["limit"],
            memory_reclaiming_bytes=memory["retired"],
        )
        if self.disk is not None:
            figures.update(figures_of(self.disk))
        return figures

    def cache_list(
        self, *, prefix: str | None, contains: str | None, origin: str | None, class_name: str | None, sort: str,
        offset: int, limit: int,
    ) -> Awaitable[dict[str, Any]]:  # fmt: skip
        return self.inventory.listing(
            prefix=prefix, contains=contains, origin=origin, class_name=class_name, sort=sort, offset=offset,
            limit=limit,
        )

    def cache_purge(
        self, *, url: str | None, prefix: str | None, origin: str | None, tag: str | None = None
    ) -> Awaitable[dict[str, int]]:
        return self.inventory.purge(url=url, prefix=prefix, origin=origin, tag=tag)

    def cache_erase(self, *, class_name: str | None, is_unclassed: bool | None) -> Awaitable[dict[str, Any]]:
        return self.inventory.erase(class_name=class_name)

    async def object_purge(self, *, name: str) -> dict[str, Any]:
        url = self.inventory.shown_url(name)
        return {**await self.inventory.purge_named(name), "url": url}

    def relay_list(self) -> dict[str, Any]:
        return self.relays.listing()

    def relay_playlist(self) -> dict[str, str]:
        return self.relays.playlist()

    def relay_show(self, *, name: str) -> dict[str, Any]:
        return self.relays.show(name)

    async def relay_add_receiver(self, *, name: str, receivers: str) -> dict[str, Any]:
        return await self.relays.add_receivers(name, receivers)

    async def relay_remove_receiver(self, *, name: str, receivers: str) -> dict[str, Any]:
        return await self.relays.remove_receivers(name, receivers)

    def relay_metrics(
        self,
    ) -> tuple[Mapping[str, str], Sequence[tuple[str, Mapping[str, int], Mapping[str, float]]]]:
        return RELAY_COUNTER_HELP, self.relays.metrics()

    def policy_show(self) -> dict[str, Any]:
        return self._running_rollout().show()

    async def policy_apply(
        self, *, files: Sequence[tuple[str, str]], folder: str, path: str, force: bool | None
    ) -> dict[str, Any]:
        return await _in_one_line(self._running_rollout().apply(files, folder, path, force=bool(force)))

    def policy_history(self) -> dict[str, Any]:
        return self._running_rollout().listing()

    async def policy_rollback(self, *, to: int | None) -> dict[str, Any]:
        return await _in_one_line(self._running_rollout().rollback(to))

    def policy_text(self, *, number: int | None) -> dict[str, Any]:
        return self._running_rollout().text(number)

    async def policy_compare(self, *, number: int | None, to: int | None) -> dict[str, Any]:
        return await _in_one_line(self._running_rollout().compare(number, to))

    def _running_rollout(self) -> Rollout:
        if self.rollout is None:
            raise ControlError("starting", "this acceleratord has not started yet")
        return self.rollout

    def event_list(self, *, since: float | None, follow: bool | None) -> dict[str, Any] | Feed:
        if follow:
            return self.events.follow(since_s=since)
        return {"events": [asdict(event) for event in self.events.latest(since_s=since)]}

    def events_after(self, *, number: int) -> dict[str, Any]:
        return {"last": self.events.n_told, "events": [asdict(event) for event in self.events.after(number)]}

    def live(self) -> dict[str, Any]:
        return self.pulse.live()

    def recent(self) -> dict[str, Any]:
        return self.pulse.recent()

    def admin_token_show(self) -> dict[str, Any]:
        if self.admin_token is None:
            raise ControlError("no-token", "there is no admin token that can be used: the log says why")
        return {"token": self.admin_token.text, "path": str(self.admin_token.path)}

    def top(self) -> dict[str, Any]:
        by_origin = self._plane.origin_totals(list(self.origins.by_id))
        upstreams = self.origins.health()
        return {
            "now_ns": clock.monotonic_ns(),
            "counters": {**self.cache_stats(), "connections": self._plane.n_connections},
            "origins": [
                {
                    "name": origin.name,
                    "requests": by_origin[origin.id][0],
                    "hits": by_origin[origin.id][1],
                    "bytes_to_viewers": by_origin[origin.id][2],
                    "bytes_from_origin": origin.bytes_from_origin,
                    "connections": origin.client.n_connections,
                    "errors": origin.errors,
                    "upstreams": len(upstreams[origin.name]),
                    "upstreams_out": sum(each.is_out for each in upstreams[origin.name]),
                    "tunnels": self.fetcher.tunnels.n_open(origin.id),
                }
                for origin in self.origins.by_id.values()
            ],
            "listeners": self._listeners(),
        }

    def note_refused(self, kind: str, what: str) -> None:
        self.security.refused(kind, what)
        end = self._causes.due(f"{kind}:{what}", clock.monotonic_ns())
        if end is not None:
            log.warning("%s listener: %s%s", kind, what, end)
        self.events.note(
            "refused", f"{kind} listener: {what}", cause=f"{kind}:{what}",
            advice="if that was nobody of yours, see who can reach the admin address",
        )  # fmt: skip

    def counters(self) -> dict[str, tuple[float, str]]:
        figures: dict[str, tuple[float, str]] = {
            name: (value, COUNTER_HELP[name]) for name, value in self._plane.totals().items()
        }
        figures["access_log_written"] = (self.request_log.n_written, "lines written to the access log")
        figures["access_log_unwritten"] = (self.request_log.n_unwritten, "lines of the access log that no disk took")
        if self.disk is not None:
            figures.update(counters_of(self.disk))
        figures.update(self.extra_counters())
        return figures

    def gauges(self) -> dict[str, tuple[float, str]]:
        memory = self._plane.memory
        return {
            **(gauges_of(self.disk) if self.disk is not None else {}),
            "connections": (self._plane.n_connections, "viewers' connections open now"),
            "objects": (max(0, self._plane.n_objects - 1), "complete variants stored now"),
            "memory_bytes": (memory["mapped"] + memory["outside"], "memory that objects and connections take"),
            "memory_limit_bytes": (memory["limit"], "hard limit of that memory"),
            "memory_given_up_bytes": (
                self.overload.give_up_bytes, "what of the limit the cache leaves free because memory is short",
            ),
            "overload": (int(self.overload.rung), "0: none; 1: the cache gives back; 2: no keep-alive; 3: refusing"),
            "flights": (self.fetcher.n_flights, "upstream requests under way"),
            "tls_relays": (self.fetcher.tunnels.n_relays, "tunnels whose origin is reached over TLS"),
            "policy_is_fallback": (
                int(self.rollout is not None and self.rollout.warning != ""),
                "1 while another policy runs than was asked for: accelctl status says why",
            ),
        }


async def _in_one_line(answer: Awaitable[dict[str, Any]]) -> dict[str, Any]:
    """The control protocol's errors are one line each."""
    try:
        return await answer
    except PolicyError as error:
        raise ControlError("policy", one_line(error)) from error


def format_address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
