"""The admin listener: the dashboard, GET /healthz for probes, GET /metrics for Prometheus. Changes need a token.

It listens on loopback by default, and a browser on the same machine must not be made to read it for a stranger's page:
guard.py. The dashboard's files and its API are dashboard.py's.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

from aiohttp import web
from aiohttp.http import RawRequestMessage
from multidict import CIMultiDict
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector

from accelerator.control.box import Box
from accelerator.control.text import printable
from accelerator.web.dashboard import Audit, Dashboard
from accelerator.web.guard import Guard

_log = logging.getLogger(__name__)
# aiohttp logs a traceback for each malformed request: a stranger could fill the disk with them.
_aiohttp_log = logging.getLogger(f"{__name__}.aiohttp")
_aiohttp_log.disabled = True

# A hundred open dashboards have one connection each, and up to six while they load; above this a new one is closed at
# once. Well within the descriptors that the data plane leaves (dataplane.SPARE_DESCRIPTORS).
CONNECTIONS_MAX = 256
# A connection without a whole request for so long is closed: idle ones and slow heads alike. Prometheus asks each 15 s.
IDLE_S = 30.0
HEAD_BYTES_MAX = 8190

_SECURITY_FIELDS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
_ORIGIN_COUNTERS = {
    "requests": "requests of viewers",
    "hits": "of them answered from the store",
    "bytes_to_viewers": "body bytes to viewers",
    "bytes_from_origin": "body bytes from the origin",
    "errors": "failed requests to the origin",
}


async def start_admin(
    box: Box,
    host: str,
    port: int,
    listening: socket.socket | None = None,
    *,
    token: str | None = None,
    reads_freely: bool = True,
    audit: Audit = lambda what, given, outcome, detail: None,
) -> tuple[web.ServerRunner, int]:
    """Listen on `host` (a literal or a name) and `port` (0: any), or by `listening`. The runner, and the real port.

    `token`: what changes need, and reading too unless `reads_freely`. Raises OSError where the address can't be had.
    """

    def note_refusal(what: str) -> None:
        box.note_refused("admin", what)

    guard = Guard(host, token, reads_freely=reads_freely, now_s=time.monotonic, note_refusal=note_refusal)
    server = _AdminServer(box, guard, audit)
    runner = web.ServerRunner(server, shutdown_timeout=1.0)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port) if listening is None else web.SockSite(runner, listening)
        await site.start()
    except OSError:
        await runner.cleanup()
        raise
    return runner, runner.addresses[0][1]


async def stop_admin(runner: web.ServerRunner) -> None:
    """Stop accepting, let answers end for one second, close."""
    await runner.cleanup()


class BoxCollector(Collector):
    """The box's figures as Prometheus metrics `accelerator_*`, read anew at each scrape."""

    def __init__(self, box: Box, guard: Guard) -> None:
        self._box = box
        self._guard = guard

    def collect(self) -> Iterable[Metric]:
        for name, (value, text) in {**self._box.counters(), **self._guard.counters()}.items():
            yield CounterMetricFamily(_metric_name(name), text, value)
        for name, (value, text) in self._box.gauges().items():
            yield GaugeMetricFamily(_metric_name(name), text, value)
        status: Mapping[str, Any] = self._box.status()
        build = GaugeMetricFamily("accelerator_build_info", "What runs here", labels=["site", "version"])
        build.add_metric([printable(status["site"]), printable(status["version"])], 1)
        yield build
        yield GaugeMetricFamily("accelerator_healthy", "1 when /healthz answers 200", int(status["health"]["ok"]))
        yield GaugeMetricFamily("accelerator_uptime_seconds", "Seconds since the start", status["uptime_s"])
        yield GaugeMetricFamily(
            "accelerator_policy_generation", "Generation of the published policy", status["policy"]["generation"]
        )
        accepting = GaugeMetricFamily("accelerator_listener_accepting", "1 when it accepts", labels=["listener"])
        for listener in status["listeners"]:
            accepting.add_metric([printable(listener["name"])], int(listener["accepting"]))
        yield accepting
        ends = GaugeMetricFamily(
            "accelerator_certificate_not_after_seconds", "When a listener's certificate ends, since the epoch",
            labels=["certificate"],
        )  # fmt: skip
        for row in status["certificates"]:
            ends.add_metric([printable(row["name"])], row["not_after_s"])
        yield ends
        yield from self._upstreams(status["upstreams"])
        yield from self._links(status.get("links", ()))
        yield from self._queues(status.get("queues", ()))
        yield from self._origins()
        yield from self._relays()

    def _relays(self) -> Iterable[Metric]:
        counters_help, rows = self._box.relay_metrics()
        families: dict[str, Metric] = {}
        for name, counters, gauges in rows:
            for counter, value in counters.items():
                key = f"accelerator_relay_{counter}"
                text = f"By relay: {counters_help[counter]}"
                family = families.setdefault(key, CounterMetricFamily(key, text, labels=["relay"]))
                family.add_metric([printable(name)], value)  # type: ignore[attr-defined]
            for gauge, figure in gauges.items():
                key = f"accelerator_relay_{gauge}"
                family = families.setdefault(key, GaugeMetricFamily(key, f"By relay, now: {gauge}", labels=["relay"]))
                family.add_metric([printable(name)], figure)  # type: ignore[attr-defined]
        return families.values()

    @staticmethod
    def _links(rows: Iterable[Mapping[str, Any]]) -> Iterable[Metric]:
        is_up = GaugeMetricFamily("accelerator_link_up", "1 while the WAN link may be used", labels=["link"])
        budget = GaugeMetricFamily("accelerator_link_video_bps", "The link's video budget; 0: none", labels=["link"])
        labels = ["link", "class"]
        arrived = CounterMetricFamily("accelerator_link_bytes", "By link and class: bytes fetched", labels=labels)
        held = CounterMetricFamily("accelerator_link_held", "By link and class: waits for the budget", labels=labels)
        outside = CounterMetricFamily(
            "accelerator_link_outside_bytes", "By link: bytes of tunnels and relays, which take from the budget first",
            labels=["link", "kind"],
        )  # fmt: skip
        for row in rows:
            link = printable(row["name"])
            is_up.add_metric([link], int(row["up"]))
            budget.add_metric([link], row["video_bps"])
            for kind in ("tunnels", "relays"):
                outside.add_metric([link, kind], row["outside"][kind])
            for each in row["classes"]:
                arrived.add_metric([link, printable(each["name"])], each["bytes"])
                held.add_metric([link, printable(each["name"])], each["held"])
        return (is_up, budget, arrived, held, outside)

    @staticmethod
    def _queues(rows: Iterable[Mapping[str, Any]]) -> Iterable[Metric]:
        """Only where the kernel shapes."""
        labels = ["interface", "side", "class"]
        families: dict[str, Metric] = {
            name: CounterMetricFamily(f"accelerator_queue_{name}", f"By queue of the kernel: {text}", labels=labels)
            for name, text in (("bytes", "bytes sent"), ("packets", "packets sent"), ("drops", "packets dropped"))
        }
        waiting = "Bytes that wait in the kernel's queue"
        families["backlog_bytes"] = GaugeMetricFamily("accelerator_queue_backlog_bytes", waiting, labels=labels)
        for row in rows:
            for each in row["classes"]:
                names = [printable(row["interface"]), row["side"], printable(each["name"])]
                for counter, family in families.items():
                    if each["is_there"]:
                        family.add_metric(names, each[counter])  # type: ignore[attr-defined]
        return families.values() if rows else ()

    @staticmethod
    def _upstreams(rows: Iterable[Mapping[str, Any]]) -> Iterable[Metric]:
        labels = ["origin", "upstream"]
        usable = GaugeMetricFamily("accelerator_upstream_usable", "0 while its breaker is open", labels=labels)
        failures = GaugeMetricFamily(
            "accelerator_upstream_recent_failures", "Failures among its last 20 outcomes", labels=labels
        )
        for row in rows:
            names = [printable(row["origin"]), printable(row["upstream"])]
            usable.add_metric(names, int(row["state"] in ("ok", "suspect")))
            failures.add_metric(names, row["failures"])
        yield usable
        yield failures

    def _origins(self) -> Iterable[Metric]:
        top: Mapping[str, Any] = self._box.top()
        for counter, text in _ORIGIN_COUNTERS.items():
            family = CounterMetricFamily(f"accelerator_origin_{counter}", f"By origin: {text}", labels=["origin"])
            for origin in top["origins"]:
                family.add_metric([printable(origin["name"])], origin.get(counter, 0))
            yield family
        tunnels = GaugeMetricFamily("accelerator_tunnels", "By origin: Upgrade tunnels open now", labels=["origin"])
        for origin in top["origins"]:
            tunnels.add_metric([printable(origin["name"])], origin.get("tunnels", 0))
        yield tunnels


def _metric_name(name: str) -> str:
    return "accelerator_" + name.removeprefix("accelerator_")


class _AdminServer(web.Server):
    """aiohttp's low-level server: its application's answers to bad syntax go past our fields (docs/decisions/0031)."""

    def __init__(self, box: Box, guard: Guard, audit: Audit) -> None:
        super().__init__(
            self._answer,
            request_factory=self._make_request,
            keepalive_timeout=IDLE_S,
            access_log=None,
            logger=_aiohttp_log,
            max_line_size=HEAD_BYTES_MAX,
            max_field_size=HEAD_BYTES_MAX,
            lingering_time=0.0,
        )
        self._box = box
        self._guard = guard
        self._dashboard = Dashboard(box, guard, audit)
        self._n_open = 0
        self._logged: set[type[Exception]] = set()
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(BoxCollector(box, guard))
        self._pages: Mapping[str, Callable[[], web.Response]] = {"/healthz": self._healthz, "/metrics": self._metrics}

    def __call__(self) -> web.RequestHandler:
        # Counted here and not by `connections`, which learns of a connection later: asyncio accepts 128 before that.
        if self._n_open >= CONNECTIONS_MAX:
            # Only the event loop sees it, which wants no more than a protocol.
            return cast(web.RequestHandler, _Refusal())
        self._n_open += 1
        return super().__call__()

    def connection_lost(self, handler: web.RequestHandler, exc: BaseException | None = None) -> None:
        self._n_open -= 1
        super().connection_lost(handler, exc)

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        if not self._guard.is_our_host(request):
            return _text(421, "this is not the host that you asked for\n")
        path = request.raw_path.partition("?")[0]
        try:
            page = self._pages.get(path)
            if page is None:
                answer = await self._dashboard.answer(request)
                return answer if answer is not None else _text(404, "there is no such page\n")
            if request.method != "GET":
                response = _text(405, "GET only\n")
                response.headers["Allow"] = "GET"
                return response
            if path == "/metrics" and not self._guard.reads_freely:
                refusal = self._guard.refusal(request)
                if refusal is not None:
                    response = _text(refusal[0], f"{refusal[1]}: the admin token is needed (accelctl admin token)\n")
                    response.headers["WWW-Authenticate"] = 'Bearer realm="accelerator"'
                    return response
            return page()
        except Exception as error:
            # A fault of ours, reported once a kind: probes ask each second.
            if type(error) not in self._logged:
                self._logged.add(type(error))
                _log.exception("%s failed", path)
            return _text(500, f"{type(error).__name__}\n")

    def _healthz(self) -> web.Response:
        health = cast(Mapping[str, Any], self._box.status()["health"])
        if health["ok"]:
            return _text(200, "ok\n")
        return _text(503, "".join(f"{printable(reason)}\n" for reason in health["reasons"]) or "not healthy\n")

    def _metrics(self) -> web.Response:
        response = web.Response(body=generate_latest(self._registry))
        response.headers["Content-Type"] = CONTENT_TYPE_PLAIN_0_0_4
        return response

    def _make_request(
        self,
        message: RawRequestMessage,
        payload: Any,
        protocol: web.RequestHandler,
        writer: Any,
        task: asyncio.Task[None],
    ) -> web.BaseRequest:
        return _Request(message, payload, protocol, writer, task, self._loop)


class _Request(web.BaseRequest):
    """Puts our fields on every answer, those to bad syntax included."""

    async def _prepare_hook(self, response: web.StreamResponse) -> None:
        fields: CIMultiDict[str] = response.headers
        for name, value in _SECURITY_FIELDS.items():
            fields.setdefault(name, value)
        fields.popall("Server", None)  # aiohttp's names its version and Python's


class _Refusal(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.close()


def _text(status: int, text: str) -> web.Response:
    return web.Response(status=status, text=text)
