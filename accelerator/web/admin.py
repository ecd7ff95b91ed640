"""The admin listener: GET /healthz for probes, GET /metrics for Prometheus, and nothing else. Changes nothing, ever.

It listens on loopback by default and asks nobody for a password, so a browser on the same machine must not be made to
read it for a stranger's page: the Host field has to be an IP literal, localhost or the configured name (DNS rebinding).
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import re
import socket
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

from aiohttp import web
from aiohttp.http import HttpVersion10, RawRequestMessage
from multidict import CIMultiDict
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector

from accelerator.control.box import Box
from accelerator.control.text import printable

_log = logging.getLogger(__name__)
# aiohttp logs a traceback for each malformed request: a stranger could fill the disk with them.
_aiohttp_log = logging.getLogger(f"{__name__}.aiohttp")
_aiohttp_log.disabled = True

# Probes and one or two Prometheus servers need a handful; above this a new connection is closed at once.
CONNECTIONS_MAX = 128
# A connection without a whole request for so long is closed: idle ones and slow heads alike. Prometheus asks each 15 s.
IDLE_S = 30.0
HEAD_BYTES_MAX = 8190

_SECURITY_FIELDS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
_HOST = re.compile(r"(?P<name>\[[0-9A-Fa-f:.]+\]|[^\[\]:@/\s]+)(?::[0-9]{0,5})?")
_ORIGIN_COUNTERS = {
    "requests": "requests of viewers",
    "hits": "of them answered from the store",
    "bytes_to_viewers": "body bytes to viewers",
    "bytes_from_origin": "body bytes from the origin",
    "errors": "failed requests to the origin",
}


async def start_admin(
    box: Box, host: str, port: int, listening: socket.socket | None = None
) -> tuple[web.ServerRunner, int]:
    """Listen on `host` (a literal or a name) and `port` (0: any), or by `listening`. The runner, and the real port.

    Raises OSError where the address can't be had.
    """
    server = _AdminServer(box, host)
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

    def __init__(self, box: Box) -> None:
        self._box = box

    def collect(self) -> Iterable[Metric]:
        for name, (value, text) in self._box.counters().items():
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
        yield from self._origins()

    def _origins(self) -> Iterable[Metric]:
        top: Mapping[str, Any] = self._box.top()
        for counter, text in _ORIGIN_COUNTERS.items():
            family = CounterMetricFamily(f"accelerator_origin_{counter}", f"By origin: {text}", labels=["origin"])
            for origin in top["origins"]:
                family.add_metric([printable(origin["name"])], origin.get(counter, 0))
            yield family


def _metric_name(name: str) -> str:
    return "accelerator_" + name.removeprefix("accelerator_")


class _AdminServer(web.Server):
    """aiohttp's low-level server: its application's answers to bad syntax go past our fields (docs/decisions/0031)."""

    def __init__(self, box: Box, host: str) -> None:
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
        self._host = host.lower()
        self._n_open = 0
        self._logged: set[type[Exception]] = set()
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(BoxCollector(box))
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
        if not self._is_our_host(request):
            self._box.note_refused("admin", "wrong Host")
            return _text(421, "this is not the host that you asked for\n")
        page = self._pages.get(request.raw_path.partition("?")[0])
        if page is None:
            return _text(404, "there are only /healthz and /metrics\n")
        if request.method != "GET":
            response = _text(405, "GET only\n")
            response.headers["Allow"] = "GET"
            return response
        try:
            return page()
        except Exception as error:
            # A fault of ours, reported once a kind: probes ask each second.
            if type(error) not in self._logged:
                self._logged.add(type(error))
                _log.exception("%s failed", request.path)
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

    def _is_our_host(self, request: web.BaseRequest) -> bool:
        hosts = request.headers.getall("Host", [])
        if not hosts and request.version <= HttpVersion10:
            return True  # load balancers probe so; no browser can be made to
        match = _HOST.fullmatch(hosts[0]) if len(hosts) == 1 else None
        if match is None:
            return False
        name = match["name"].lower()
        if name in ("localhost", self._host):
            return True
        try:
            ipaddress.ip_address(name.strip("[]"))
        except ValueError:
            return False
        return True

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
        fields.update(_SECURITY_FIELDS)
        fields.popall("Server", None)  # aiohttp's names its version and Python's


class _Refusal(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.close()


def _text(status: int, text: str) -> web.Response:
    return web.Response(status=status, text=text)
