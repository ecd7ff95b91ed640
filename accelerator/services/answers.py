"""What operators ask the box, and its answers: implements control.box.Box. Each is a line or two; no rule may live
here, and nothing starts or ends here."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from accelerator import __version__, clock
from accelerator.dataplane import COUNTER_HELP
from accelerator.errors import ControlError, PolicyError
from accelerator.policy.addresses import format_address
from accelerator.protocols.overload import Rung
from accelerator.services.appliance import Appliance
from accelerator.services.disk.boot import counters_of, figures_of, gauges_of
from accelerator.services.figures.pulse import Pulse, upstream_row
from accelerator.services.logs.events import Feed
from accelerator.services.netd.client import NetdError
from accelerator.services.objects.heads import NS
from accelerator.services.relays.told import RELAY_COUNTER_HELP
from accelerator.services.rollout.rollout import Rollout, one_line

log = logging.getLogger("accelerator")


class Answers:
    """Of one running appliance."""

    def __init__(self, box: Appliance) -> None:
        self._box = box
        self.pulse = Pulse(self, box.dataplane, box.origins, box.inventory, box.fetcher.tunnels, box.events)

    async def routes(self) -> dict[str, Any]:
        try:
            return await self._box.netd.show()
        except NetdError as fault:
            raise ControlError("netd", str(fault)) from None

    def status(self) -> dict[str, Any]:
        reasons = self._unhealthy()
        warning = self._box.rollout.warning if self._box.rollout is not None else ""
        return {
            "site": self._box.tables.site,
            "version": __version__,
            "uptime_s": round((clock.monotonic_ns() - self._box.started_ns) / NS, 1),
            "listeners": self._listeners(),
            "admin": format_address(*self._box.admin_address) if self._box.admin_address else None,
            "policy": {
                "generation": self._box.generation,
                "digest": self._box.tables.digest,
                "path": str(self._box.policy_path),
                **(self._box.rollout.state() if self._box.rollout is not None else {}),
            },
            "warnings": [warning] if warning else [],
            "workers": [
                {"index": i, "connections": connections, "passes": passes, "alive": alive}
                for i, (connections, passes, alive) in enumerate(self._box.dataplane.plane.workers_state())
            ],
            "tunnels": self._box.fetcher.tunnels.n_open_all,
            "relays": self._box.relays.state(),
            "links": self._box.wan.rows(),
            "queues": self._box.netd.queues,
            **({"disk": self._box.disk.state()} if self._box.disk is not None else {}),
            "certificates": self._box.certificates.rows(),
            "health": {"ok": not reasons, "reasons": reasons},
            "upstreams": [
                upstream_row(name, health) for name, found in self._box.origins.health().items() for health in found
            ],
        }

    def _listeners(self) -> list[dict[str, Any]]:
        return [
            {
                "name": name,
                "address": format_address(*listening.getsockname()[:2]),
                "accepting": self._box.is_serving and not self._box.is_draining,
                "tls": self._box.certificates.names_of(name),
            }
            for name, listening in self._box.listening_sockets().items()
        ]

    def _unhealthy(self) -> list[str]:
        reasons = []
        if self._box.is_draining:
            reasons.append("draining")
        if not self._box.is_serving:
            reasons.append("not serving")
        elif not all(alive for _, _, alive in self._box.dataplane.plane.workers_state()):
            reasons.append("a worker has ended")
        if self._box.generation == 0:
            reasons.append("no policy is published")
        if self._box.overload.rung is Rung.REFUSE:
            reasons.append("memory is short: new connections are refused")
        reasons += self._box.relays.unhealthy()
        if self._box.disk is not None and not self._box.disk.log.is_settled:
            reasons.append("the disk's index is loading")
        return reasons

    def cache_stats(self) -> dict[str, Any]:
        memory = self._box.dataplane.plane.memory
        figures = dict(self._box.dataplane.plane.totals())
        figures.update(
            objects=self._box.dataplane.n_objects,
            memory_bytes=memory["mapped"] + memory["outside"],
            memory_limit_bytes=memory["limit"],
            memory_reclaiming_bytes=memory["retired"],
        )
        if self._box.disk is not None:
            figures.update(figures_of(self._box.disk))
        return figures

    def cache_list(
        self, *, prefix: str | None, contains: str | None, origin: str | None, class_name: str | None, sort: str,
        offset: int, limit: int,
    ) -> Awaitable[dict[str, Any]]:  # fmt: skip
        return self._box.inventory.listing(
            prefix=prefix, contains=contains, origin=origin, class_name=class_name, sort=sort, offset=offset,
            limit=limit,
        )

    def cache_purge(
        self, *, url: str | None, prefix: str | None, origin: str | None, tag: str | None = None
    ) -> Awaitable[dict[str, int]]:
        return self._box.inventory.purge(url=url, prefix=prefix, origin=origin, tag=tag)

    def cache_erase(self, *, class_name: str | None, is_unclassed: bool | None) -> Awaitable[dict[str, Any]]:
        return self._box.inventory.erase(class_name=class_name)

    async def object_purge(self, *, name: str) -> dict[str, Any]:
        url = self._box.inventory.shown_url(name)
        return {**await self._box.inventory.purge_named(name), "url": url}

    def relay_list(self) -> dict[str, Any]:
        return self._box.relays.listing()

    def relay_playlist(self) -> dict[str, str]:
        return self._box.relays.playlist()

    def relay_show(self, *, name: str) -> dict[str, Any]:
        return self._box.relays.show(name)

    async def relay_add_receiver(self, *, name: str, receivers: str) -> dict[str, Any]:
        return await self._box.relays.add_receivers(name, receivers)

    async def relay_remove_receiver(self, *, name: str, receivers: str) -> dict[str, Any]:
        return await self._box.relays.remove_receivers(name, receivers)

    def relay_metrics(
        self,
    ) -> tuple[Mapping[str, str], Sequence[tuple[str, Mapping[str, int], Mapping[str, float]]]]:
        return RELAY_COUNTER_HELP, self._box.relays.metrics()

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
        if self._box.rollout is None:
            raise ControlError("starting", "this acceleratord has not started yet")
        return self._box.rollout

    def event_list(self, *, since: float | None, follow: bool | None) -> dict[str, Any] | Feed:
        if follow:
            return self._box.events.follow(since_s=since)
        return {"events": [asdict(event) for event in self._box.events.latest(since_s=since)]}

    def events_after(self, *, number: int) -> dict[str, Any]:
        return {"last": self._box.events.n_told, "events": [asdict(event) for event in self._box.events.after(number)]}

    def live(self) -> dict[str, Any]:
        return self.pulse.live()

    def recent(self) -> dict[str, Any]:
        return self.pulse.recent()

    def admin_token_show(self) -> dict[str, Any]:
        if self._box.admin_token is None:
            raise ControlError("no-token", "there is no admin token that can be used: the log says why")
        return {"token": self._box.admin_token.text, "path": str(self._box.admin_token.path)}

    def top(self) -> dict[str, Any]:
        by_origin = self._box.dataplane.plane.origin_totals(list(self._box.origins.by_id))
        upstreams = self._box.origins.health()
        return {
            "now_ns": clock.monotonic_ns(),
            "counters": {**self.cache_stats(), "connections": self._box.dataplane.plane.n_connections},
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
                    "tunnels": self._box.fetcher.tunnels.n_open(origin.id),
                }
                for origin in self._box.origins.by_id.values()
            ],
            "listeners": self._listeners(),
        }

    def note_refused(self, kind: str, what: str) -> None:
        self._box.security.refused(kind, what)
        end = self._box.causes.due(f"{kind}:{what}", clock.monotonic_ns())
        if end is not None:
            log.warning("%s listener: %s%s", kind, what, end)
        self._box.events.note(
            "refused", f"{kind} listener: {what}", cause=f"{kind}:{what}",
            advice="if that was nobody of yours, see who can reach the admin address",
        )  # fmt: skip

    def counters(self) -> dict[str, tuple[float, str]]:
        figures: dict[str, tuple[float, str]] = {
            name: (value, COUNTER_HELP[name]) for name, value in self._box.dataplane.plane.totals().items()
        }
        request_log = self._box.request_log
        figures["access_log_written"] = (request_log.n_written, "lines written to the access log")
        figures["access_log_unwritten"] = (request_log.n_unwritten, "lines of the access log that no disk took")
        if self._box.disk is not None:
            figures.update(counters_of(self._box.disk))
        figures.update(self._box.extra_counters())
        return figures

    def gauges(self) -> dict[str, tuple[float, str]]:
        memory = self._box.dataplane.plane.memory
        return {
            **(gauges_of(self._box.disk) if self._box.disk is not None else {}),
            "connections": (self._box.dataplane.plane.n_connections, "viewers' connections open now"),
            "objects": (self._box.dataplane.n_objects, "complete variants stored now"),
            "memory_bytes": (memory["mapped"] + memory["outside"], "memory that objects and connections take"),
            "memory_limit_bytes": (memory["limit"], "hard limit of that memory"),
            "memory_given_up_bytes": (
                self._box.overload.give_up_bytes, "what of the limit the cache leaves free because memory is short",
            ),
            "overload": (
                int(self._box.overload.rung), "0: none; 1: the cache gives back; 2: no keep-alive; 3: refusing",
            ),
            "flights": (self._box.ledger.n_requests, "upstream requests under way"),
            "tls_relays": (self._box.fetcher.tunnels.n_relays, "tunnels whose origin is reached over TLS"),
            "policy_is_fallback": (
                int(self._box.rollout is not None and self._box.rollout.warning != ""),
                "1 while another policy runs than was asked for: accelctl status says why",
            ),
        }


async def _in_one_line(answer: Awaitable[dict[str, Any]]) -> dict[str, Any]:
    """The control protocol's errors are one line each."""
    try:
        return await answer
    except PolicyError as error:
        raise ControlError("policy", one_line(error)) from error
