"""The upstream client of one origin: slots, pool, fail-over, retry (RFC 9110 section 9.2.2). No caching decisions here.

A request reaches the origin at most once, except for the single repetition of an idempotent one whose reused connection
died without a byte (RFC 9112 section 9.3.1).
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Sequence

from accelerator.errors import OriginError
from accelerator.io.connection import Connection
from accelerator.io.dial import Dialler
from accelerator.io.failover import UpstreamOrder
from accelerator.io.origin import OriginCounters, OriginSettings, Upstream
from accelerator.io.request import build_request
from accelerator.io.resolve import GetAddrInfo, IPAddress, Resolver, is_own_address
from accelerator.io.response import ParseResponse, Response, Sink

__all__ = ["Call", "OriginCounters", "OriginSettings", "Response", "Sink", "Upstream", "UpstreamClient"]


class Call:
    """One request under way. After `cancel` its sink hears nothing more."""

    __slots__ = (
        "_authority", "_client", "_connection", "_idempotent", "_is_over", "_is_retry", "_paused", "_queue_timer",
        "_request", "_sink", "_task", "avoid", "fields", "method", "target",
    )  # fmt: skip

    def __init__(
        self,
        client: UpstreamClient,
        method: bytes,
        target: bytes,
        fields: Sequence[tuple[bytes, bytes]],
        sink: Sink,
        idempotent: bool,
        avoid: Upstream | None,
    ) -> None:
        self.method = method
        self.target = target
        self.fields = fields
        self.avoid = avoid
        self._client = client
        self._sink = sink
        self._idempotent = idempotent
        self._is_over = False
        self._is_retry = False
        self._paused = False
        self._queue_timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self._connection: Connection[Call] | None = None
        self._authority = self._request = b""

    @property
    def is_over(self) -> bool:
        """True once the sink has heard its last word, or the call was cancelled."""
        return self._is_over

    def pause(self) -> None:
        """From here on no body byte reaches the sink (its end or failure may); the body time-out stands still."""
        self._paused = True
        if self._connection is not None:
            self._connection.pause()

    def resume(self) -> None:
        self._paused = False
        if self._connection is not None:
            self._connection.resume()

    def cancel(self) -> None:
        """Gives the call up; a connection in mid-response is closed. Nothing happens when the call is over."""
        self._client._cancel(self)


class UpstreamClient:
    """Requests to one origin. Lives on one loop; nothing here is thread-safe.

    `parse_response` raises `head_error` on a head that must be refused. `getaddrinfo` and `is_own` replace the
    resolver's in tests.
    """

    def __init__(
        self,
        settings: OriginSettings,
        loop: asyncio.AbstractEventLoop,
        *,
        parse_response: ParseResponse,
        head_error: type[Exception],
        getaddrinfo: GetAddrInfo | None = None,
        is_own: Callable[[IPAddress], bool] = is_own_address,
    ) -> None:
        self.settings = settings
        self.counters = OriginCounters()
        self._loop = loop
        self._parse_response = parse_response
        self._head_error = head_error
        self._resolver = Resolver(loop, self.counters, getaddrinfo, is_own)
        self._dialler = Dialler(loop, settings, self._resolver, self.counters)
        self._upstreams = UpstreamOrder(settings.upstreams)
        self._generation = 0
        self._n_active = 0
        self._queue: OrderedDict[Call, None] = OrderedDict()
        self._calls: set[Call] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._open: set[Connection[Call]] = set()
        self._idle: dict[Upstream, OrderedDict[Connection[Call], None]] = {}
        self._is_closed = False
        self._all_gone: asyncio.Event | None = None

    @property
    def n_connections(self) -> int:
        """Open connections, idle ones included."""
        return len(self._open)

    @property
    def n_queued(self) -> int:
        return len(self._queue)

    def request(
        self,
        method: bytes,
        target: bytes,
        fields: Sequence[tuple[bytes, bytes]],
        sink: Sink,
        *,
        idempotent: bool = True,
        avoid: Upstream | None = None,
    ) -> Call:
        """Starts a request without body. `avoid` is tried last: a resume after a broken transfer goes elsewhere first.

        Never calls the sink before it returns; every error goes to the sink.
        """
        self.counters.requests += 1
        call = Call(self, method, target, fields, sink, idempotent, avoid)
        self._calls.add(call)
        if self._is_closed:
            self._loop.call_soon(self._fail, call, OriginError("closed", f"{self.settings.name}: shutting down"))
            return call
        try:
            call._authority = self.settings.upstreams[0].authority
            call._request = build_request(method, target, fields, call._authority)
        except OriginError as error:
            self._loop.call_soon(self._fail, call, error)
            return call
        if self._n_active < self.settings.connections and not self._queue:
            self._begin(call)
        elif len(self._queue) >= self.settings.queue_limit:
            self.counters.queue_refused += 1
            full = OriginError("queue-full", f"{self.settings.name}: too many wait", status=503, can_retry=True)
            self._loop.call_soon(self._fail, call, full)
        else:
            self.counters.queued += 1
            self._queue[call] = None
            call._queue_timer = self._loop.call_later(self.settings.head_timeout_s, self._queued_too_long, call)
        return call

    def set_settings(self, settings: OriginSettings) -> None:
        """For requests that start from now on; connections that these settings would not have opened are not reused."""
        same = settings.reaches_same(self.settings)
        self.settings = settings
        # A new one also reads the CA file again, whose content may be why settings are set.
        self._dialler = Dialler(self._loop, settings, self._resolver, self.counters)
        if not same:
            self._generation += 1
            self._upstreams = UpstreamOrder(settings.upstreams)
            self._close_idle()
        self._pump()

    async def close(self) -> None:
        """Fails every call with 'closed' and returns when no connection is left."""
        self._is_closed = True
        for call in list(self._calls):
            connection, task = call._connection, call._task
            if connection is not None:
                connection.abandon()
            if task is not None:
                task.cancel()
            self._fail(call, OriginError("closed", f"{self.settings.name}: shutting down"))
        self._close_idle()
        for connection in list(self._open):
            connection.abandon()
        if self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._resolver.close()
        if self._open:
            self._all_gone = asyncio.Event()
            await self._all_gone.wait()

    # -- slots -------------------------------------------------------------------------------------------------------

    def _begin(self, call: Call) -> None:
        self._n_active += 1
        order = self._upstreams.order(self._loop.time(), call.avoid)
        connection = self._take_idle(order[0])
        if connection is not None:
            self._start(call, connection)
        else:
            self._connect_for(call, order, fresh=False)

    def _release(self, call: Call) -> None:
        """The call is over: its place goes to the one that waits longest."""
        call._is_over = True
        self._calls.discard(call)
        if call._queue_timer is not None:
            call._queue_timer.cancel()
            call._queue_timer = None
        if call in self._queue:
            del self._queue[call]
        elif call._connection is not None or call._task is not None:
            call._connection = call._task = None
            self._n_active -= 1
            self._pump()

    def _pump(self) -> None:
        while self._queue and self._n_active < self.settings.connections and not self._is_closed:
            call, _ = self._queue.popitem(last=False)
            if call._queue_timer is not None:
                call._queue_timer.cancel()
                call._queue_timer = None
            self._begin(call)

    def _queued_too_long(self, call: Call) -> None:
        call._queue_timer = None
        self.counters.timeouts += 1
        message = f"{self.settings.name}: no free connection in time"
        self._fail(call, OriginError("queue-timeout", message, status=504, can_retry=True))

    def _cancel(self, call: Call) -> None:
        if call._is_over:
            return
        self.counters.cancelled += 1
        if call._connection is not None:
            call._connection.abandon()
        if call._task is not None:
            call._task.cancel()
        self._release(call)

    def _fail(self, call: Call, error: OriginError, received_any: bool = False) -> None:
        if call._is_over:
            return
        self.counters.failures += 1
        self._release(call)
        self._tell(call._sink.failed, error, received_any)

    def _tell(self, method: Callable[..., None], *arguments: object) -> None:
        """The sink's last call: what it raises must not leave a connection half done."""
        try:
            method(*arguments)
        except Exception as exc:
            self._loop.call_exception_handler({"message": "upstream sink failed", "exception": exc})

    # -- connections -------------------------------------------------------------------------------------------------

    def _start(self, call: Call, connection: Connection[Call]) -> None:
        call._connection, call._task = connection, None
        if connection.exchanges:
            self.counters.connections_reused += 1
        upstream = connection.upstream
        request = call._request
        if upstream.authority != call._authority:
            request = build_request(call.method, call.target, call.fields, upstream.authority)
        connection.start(
            call,
            call._sink,
            request,
            is_head_request=call.method == b"HEAD",
            paused=call._paused,
            head_timeout_s=self.settings.head_timeout_s,
            body_timeout_s=self.settings.body_timeout_s,
        )

    def _take_idle(self, upstream: Upstream) -> Connection[Call] | None:
        """The connection used last, so that the surplus ages out."""
        pool = self._idle.get(upstream)
        while pool:
            connection, _ = pool.popitem()
            if connection.is_reusable():
                return connection
            connection.close()
        return None

    def _close_idle(self) -> None:
        pools, self._idle = self._idle, {}
        for pool in pools.values():
            for connection in pool:
                connection.close()

    def _connect_for(self, call: Call, order: list[Upstream], *, fresh: bool) -> None:
        task = self._loop.create_task(self._connect_in_order(call, order, fresh))
        call._task = task
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect_in_order(self, call: Call, order: list[Upstream], fresh: bool) -> None:
        errors: list[OriginError] = []
        try:
            for i, upstream in enumerate(order):
                connection = None
                if i:
                    self.counters.failovers += 1
                if i and not fresh:
                    connection = self._take_idle(upstream)
                if connection is None:
                    try:
                        connection = await self._connect(upstream)
                    except OriginError as error:
                        errors.append(error)
                        continue
                self._start(call, connection)
                return
        except Exception as exc:
            # A fault of ours must not leave waiters without an answer.
            self._loop.call_exception_handler({"message": "upstream connect failed", "exception": exc})
            errors.append(OriginError("internal", f"{self.settings.name}: {exc!r}"))
        last = errors[-1]
        message = "; ".join(error.message for error in errors)
        self._fail(call, OriginError(last.kind, message, status=last.status, can_retry=last.can_retry))

    async def _connect(self, upstream: Upstream) -> Connection[Call]:
        generation = self._generation
        self._make_room()
        connection = await self._dialler.connect(
            upstream,
            lambda sock: Connection(
                self._loop, self, upstream, sock, self.counters, self._parse_response, self._head_error, generation
            ),
        )
        self._open.add(connection)
        return connection

    def _make_room(self) -> None:
        """Idle connections count in the origin's limit, but never stand in the way of a request."""
        if len(self._open) < self.settings.connections:
            return
        for pool in self._idle.values():
            if pool:
                connection, _ = pool.popitem(last=False)
                connection.close()
                return

    # -- connection.Owner --------------------------------------------------------------------------------------------

    def head_arrived(self, call: Call, upstream: Upstream) -> None:
        self.counters.responses += 1
        if call.avoid is None:
            self._upstreams.answered(upstream, self._loop.time())

    def exchange_ended(self, connection: Connection[Call], call: Call, can_reuse: bool) -> None:
        if can_reuse and connection.generation == self._generation and not self._is_closed:
            connection.keep_idle(self.settings.idle_s)
            self._idle.setdefault(connection.upstream, OrderedDict())[connection] = None
        elif can_reuse:
            connection.close()
        self._release(call)
        self._tell(call._sink.ended)

    def exchange_failed(self, connection: Connection[Call], call: Call, error: OriginError, received_any: bool) -> None:
        was_reused = connection.exchanges > 1
        died = error.kind in ("closed", "reset") and not received_any
        if died and was_reused and call._idempotent and not call._is_retry and not self._is_closed:
            call._is_retry = True
            call._connection = None
            self.counters.retries += 1
            order = self._upstreams.order(self._loop.time(), call.avoid)
            if connection.upstream in order:
                order.remove(connection.upstream)
                order.insert(0, connection.upstream)
            self._connect_for(call, order, fresh=True)
            return
        self._fail(call, error, received_any)

    def connection_gone(self, connection: Connection[Call]) -> None:
        self._open.discard(connection)
        pool = self._idle.get(connection.upstream)
        if pool is not None:
            pool.pop(connection, None)
        if self._all_gone is not None and not self._open:
            self._all_gone.set()

