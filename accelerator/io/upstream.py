"""The upstream client of one origin: slots, pool, fail-over, retry (RFC 9110 section 9.2.2). No caching decisions here.

A request reaches the origin at most once, except for the single repetition of an idempotent one whose reused connection
died without a byte (RFC 9112 section 9.3.1).
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Sequence

from accelerator.errors import OriginError
from accelerator.io.body_writer import Body
from accelerator.io.call import Call
from accelerator.io.connection import Connection
from accelerator.io.dial import Dialler
from accelerator.io.failover import UpstreamOrder
from accelerator.io.health import Attempt, Health, NoteEvent, UpstreamHealth
from accelerator.io.origin import OriginCounters, OriginSettings, ParentProxy, Upstream, UpstreamEvent
from accelerator.io.pacing import Lane
from accelerator.io.request import build_request
from accelerator.io.resolve import GetAddrInfo, IPAddress, Resolver, is_own_address
from accelerator.io.response import ParseResponse, Response, Sink, SwitchSink
from accelerator.io.tunnel import proxy_refusal

__all__ = ["Body", "Call", "OriginCounters", "OriginSettings", "Response", "Sink", "Upstream", "UpstreamClient"]

# How long an idle connection is taken for alive by a request that can't be repeated: below any keep-alive time-out.
RECENT_S = 1.0


class UpstreamClient:
    """Requests to one origin. Lives on one loop; nothing here is thread-safe.

    `parse_response` raises `head_error` on a head that must be refused. `note_event` hears when DNS or an upstream
    fails and returns, once each. `getaddrinfo` and `is_own` replace the resolver's in tests.
    """

    def __init__(
        self,
        settings: OriginSettings,
        loop: asyncio.AbstractEventLoop,
        *,
        parse_response: ParseResponse,
        head_error: type[Exception],
        note_event: NoteEvent = lambda event: None,
        getaddrinfo: GetAddrInfo | None = None,
        is_own: Callable[[IPAddress], bool] = is_own_address,
    ) -> None:
        self.settings = settings
        self.counters = OriginCounters()
        self._loop = loop
        self._parse_response = parse_response
        self._head_error = head_error
        self._note_event = note_event
        self._resolver = Resolver(loop, self.counters, getaddrinfo, is_own, self._note)
        self._dialler = self._new_dialler()
        self._upstreams = UpstreamOrder(settings.upstreams)
        self._health = self._new_health()
        self._generation = 0
        self.lane = Lane()
        self._n_active = 0
        self._n_streams = 0
        self._old_upstreams: set[Upstream] = set()
        self._queue: OrderedDict[Call, None] = OrderedDict()
        self._calls: set[Call] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._open: set[Connection[Call]] = set()
        self._idle: dict[Upstream, OrderedDict[Connection[Call], None]] = {}
        self._is_closed = False
        self._all_gone: asyncio.Event | None = None
        self._all_ended: asyncio.Event | None = None

    @property
    def n_connections(self) -> int:
        """Open connections, idle ones included."""
        return len(self._open)

    @property
    def n_streams(self) -> int:
        return self._n_streams

    @property
    def n_queued(self) -> int:
        return len(self._queue)

    def health(self) -> tuple[UpstreamHealth, ...]:
        """How each upstream does, in the policy's order, judged by the requests that it got."""
        return self._health.snapshot()

    def request(
        self,
        method: bytes,
        target: bytes,
        fields: Sequence[tuple[bytes, bytes]],
        sink: Sink,
        *,
        idempotent: bool = True,
        avoid: Upstream | None = None,
        body: Body | None = None,
    ) -> Call:
        """Starts a request. `idempotent`: it may be repeated where a reused connection has died; never with a `body`.
        `avoid` is tried last: a resume after a broken transfer goes elsewhere first.

        Never calls the sink before it returns; every error goes to the sink, 'breaker-open' at once.
        """
        can_repeat = idempotent and body is None
        call = Call(self._cancel, method, target, fields, sink, can_repeat, avoid, body, self._become_stream)
        if self._accept(call):
            self._enter(call)
        return call

    def upgrade(self, target: bytes, fields: Sequence[tuple[bytes, bytes]], sink: SwitchSink) -> Call:
        """A GET that asks for another protocol, on a connection of its own, which counts in no limit here.

        A parent proxy gets a CONNECT for it in any case (RFC 6455 section 4.1). Else like `request`.
        """
        call = Call(
            self._cancel, b"GET", target, fields, sink, False, None, None, self._become_stream, is_upgrade=True
        )
        if self._accept(call):
            self._connect_for(call, self._upstreams.order(self._loop.time()), fresh=True)
        return call

    def _accept(self, call: Call) -> bool:
        """False: it fails."""
        self.counters.requests += 1
        self._calls.add(call)
        if self._is_closed:
            self._loop.call_soon(self._fail, call, OriginError("closed", f"{self.settings.name}: shutting down"))
            return False
        try:
            first = self.settings.upstreams[0]
            _build(call, first, None if call.is_upgrade else self.settings.proxy_for(first))
            if call.body is not None and call.body.length < 0 and first in self._old_upstreams:
                # RFC 9112 section 6.1: its last response was HTTP/1.0, which knows no chunks.
                raise OriginError("length-required", f"{first}: HTTP/1.0 takes no chunked body", status=411)
        except OriginError as error:
            self._loop.call_soon(self._fail, call, error)
            return False
        if not self._health.may_ask_any():
            self._loop.call_soon(self._fail, call, self._health.refusal())
            return False
        return True

    def _enter(self, call: Call) -> None:
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

    def set_settings(self, settings: OriginSettings) -> None:
        """For requests that start from now on; connections that these settings would not have opened are not reused."""
        same = settings.reaches_same(self.settings)
        self.settings = settings
        # A new one also reads the CA file again, whose content may be why settings are set.
        self._dialler = self._new_dialler()
        if not same:
            self._generation += 1
            self._upstreams = UpstreamOrder(settings.upstreams)
            self._health.retire()
            self._health = self._new_health()
            self._close_idle()
        self._pump()

    def set_lane(self, lane: Lane) -> None:
        """For requests that start from now on. Connections that were made for another way or mark are not reused."""
        if (lane.device, lane.dscp) != (self.lane.device, self.lane.dscp):
            self._generation += 1
            self._close_idle()
        self.lane = lane

    def leave_way(self) -> None:
        """The way that transfers are under way on is dead: they end now, so that what can be resumed is, elsewhere."""
        for connection in list(self._open):
            connection.way_lost()

    async def finish(self) -> None:
        """Lets the calls under way end as they would, however long that takes, then closes. No new ones may come."""
        if self._calls:
            self._all_ended = asyncio.Event()
            await self._all_ended.wait()
        await self.close()

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
            self._all_gone = self._all_gone or asyncio.Event()
            await self._all_gone.wait()

    def _new_dialler(self) -> Dialler:
        return Dialler(
            self._loop, self.settings, self._resolver, self.counters, self._parse_response, self._head_error
        )

    def _new_health(self) -> Health:
        settings = self.settings
        return Health(self._loop, settings.upstreams, self.counters, self._note, self._breaker_opened)

    def _note(self, event: UpstreamEvent) -> None:
        self._loop.call_soon(self._tell, self._note_event, event)

    # -- slots -------------------------------------------------------------------------------------------------------

    def _begin(self, call: Call) -> None:
        self._n_active += 1
        order = self._upstreams.order(self._loop.time(), call.avoid)
        attempt = self._health.admit(order[0]) if self._idle.get(order[0]) else None
        connection = self._take_idle(order[0], call) if attempt is not None else None
        if attempt is not None and connection is not None:
            self._start(call, connection, attempt)
            return
        if attempt is not None:
            attempt.released()
        self._connect_for(call, order, fresh=False)

    def _release(self, call: Call) -> None:
        """The call is over: its place goes to the one that waits longest."""
        call._is_over = True
        self._calls.discard(call)
        if self._all_ended is not None and not self._calls:
            self._all_ended.set()
        if call._attempt is not None:
            call._attempt.released()
        if call._queue_timer is not None:
            call._queue_timer.cancel()
            call._queue_timer = None
        if call in self._queue:
            del self._queue[call]
        elif call._connection is not None or call._task is not None:
            call._connection = call._task = None
            if call._long_timer is not None:
                call._long_timer.cancel()
                call._long_timer = None
            if call._is_stream:
                self._n_streams -= 1
                return
            if not call.is_upgrade:
                self._n_active -= 1
                self._pump()

    def _become_stream(self, call: Call) -> bool:
        if call._is_over or call._connection is None:
            return False
        if not call._is_stream:
            if self._n_streams >= self.settings.streams:
                self.counters.streams_refused += 1
                return False
            call._is_stream = True
            self.counters.streams += 1
            self._n_streams += 1
            self._n_active -= 1
            self._pump()
        call._connection.set_body_timeout(self.settings.stream_timeout_s)
        return True

    def _waits_for_long(self, call: Call) -> None:
        """A long poll: its head may be a minute away, and 64 of them must not stop everybody else."""
        call._long_timer = None
        if call._connection is not None and call._connection.awaits_head and not call._is_over:
            if self._n_streams < self.settings.streams:
                self._become_stream(call)
                call._connection.set_body_timeout(self.settings.body_timeout_s)
            else:
                self.counters.streams_refused += 1

    def _pump(self) -> None:
        while self._queue and self._n_active < self.settings.connections and not self._is_closed:
            call, _ = self._queue.popitem(last=False)
            if call._queue_timer is not None:
                call._queue_timer.cancel()
                call._queue_timer = None
            self._begin(call)

    def _breaker_opened(self) -> None:
        """Not at once: a connection is in the middle of telling its end."""
        self._loop.call_soon(self._refuse_queued)

    def _refuse_queued(self) -> None:
        for call in list(self._queue):
            if self._health.may_ask_any():
                return
            self._fail(call, self._health.refusal())

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

    def _start(self, call: Call, connection: Connection[Call], attempt: Attempt) -> None:
        call._connection, call._task, call._attempt = connection, None, attempt
        if connection.exchanges:
            self.counters.connections_reused += 1
        if call._built_for != (connection.upstream, connection.proxy):
            try:
                _build(call, connection.upstream, connection.proxy)
            except OriginError as error:
                connection.abandon()
                self._loop.call_soon(self._fail, call, error)
                return
        connection.start(
            call,
            call._sink,
            call._request,
            body=call.body,
            is_head_request=call.method == b"HEAD",
            paused=call._paused,
            head_timeout_s=self.settings.head_timeout_s,
            body_timeout_s=self.settings.body_timeout_s,
            allows_switch=call.is_upgrade,
            # A tunnel's socket is given away; its bytes are few.
            lane=None if call.is_upgrade else self.lane,
        )
        is_counted = not call.is_upgrade and not call._is_stream
        if self.settings.long_poll_s is not None and call._long_timer is None and is_counted:
            call._long_timer = self._loop.call_later(self.settings.long_poll_s, self._waits_for_long, call)

    def _take_idle(self, upstream: Upstream, call: Call) -> Connection[Call] | None:
        """The connection used last, so that the surplus ages out. What can't be repeated gets none that may be closing
        at its other end (RFC 9112 section 9.3.1)."""
        pool = self._idle.get(upstream)
        while pool:
            connection, _ = pool.popitem()
            if not call._idempotent and self._loop.time() - connection.idle_since_s > RECENT_S:
                pool[connection] = None
                return None
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
        task = self._loop.create_task(self._connect_in_order(call, order, self._health, fresh))
        call._task = task
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect_in_order(self, call: Call, order: list[Upstream], health: Health, fresh: bool) -> None:
        errors: list[OriginError] = []
        try:
            for i, upstream in enumerate(order):
                attempt = health.admit(upstream)
                if attempt is None:
                    continue
                self.counters.failovers += i > 0
                try:
                    connection = self._take_idle(upstream, call) if i and not fresh else None
                    if connection is None:
                        connection = await self._connect(upstream, health, is_upgrade=call.is_upgrade)
                except OriginError as error:
                    errors.append(error)
                    if error.kind != "breaker-open":
                        attempt.connect_failed(error.message)
                    continue
                except BaseException:
                    attempt.released()
                    raise
                self._start(call, connection, attempt)
                return
        except Exception as exc:
            # A fault of ours must not leave waiters without an answer.
            self._loop.call_exception_handler({"message": "upstream connect failed", "exception": exc})
            errors.append(OriginError("internal", f"{self.settings.name}: {exc!r}"))
        tried = [error for error in errors if error.kind != "breaker-open"]
        last = tried[-1] if tried else health.refusal()
        message = "; ".join(error.message for error in tried) or last.message
        self._fail(call, OriginError(last.kind, message, status=last.status, can_retry=last.can_retry))

    async def _connect(self, upstream: Upstream, health: Health, *, is_upgrade: bool) -> Connection[Call]:
        generation, proxy = self._generation, None if is_upgrade else self.settings.proxy_for(upstream)
        if not is_upgrade:
            self._make_room()
        async with health.connecting(upstream):
            connection = await self._dialler.connect(
                upstream,
                lambda sock: Connection(
                    self._loop, self, upstream, sock, self.counters, self._parse_response, self._head_error, generation
                ),
                by_tunnel=is_upgrade,
                lane=self.lane,
            )
        connection.proxy = proxy
        self._open.add(connection)
        return connection

    def _make_room(self) -> None:
        """Idle connections count in the origin's limit, but never stand in the way of a request."""
        if len(self._open) - self._n_streams < self.settings.connections:
            return
        for pool in self._idle.values():
            if pool:
                connection, _ = pool.popitem(last=False)
                connection.close()
                return

    # -- connection.Owner --------------------------------------------------------------------------------------------

    def head_arrived(self, call: Call, upstream: Upstream, response: Response) -> None:
        self.counters.responses += 1
        status = response.status
        if response.minor == 0:
            self._old_upstreams.add(upstream)
        else:
            self._old_upstreams.discard(upstream)
        if call._long_timer is not None:
            call._long_timer.cancel()
            call._long_timer = None
        proxy = call._connection.proxy if call._connection is not None else None
        if status == 407 and proxy is not None:
            raise proxy_refusal(proxy, status)
        if call._attempt is not None:
            if status in self.settings.failure_statuses:
                call._attempt.failed(f"{upstream}: status {status}")
            else:
                call._attempt.answered()
        if call.avoid is None:
            self._upstreams.answered(upstream, self._loop.time())

    def exchange_ended(self, connection: Connection[Call], call: Call, can_reuse: bool) -> None:
        is_wanted = connection.generation == self._generation and not call.is_upgrade and not self._is_closed
        if can_reuse and is_wanted:
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
            if call._attempt is not None:
                # The connection had been idle too long: that says nothing of the upstream.
                call._attempt.released()
            call._connection = call._attempt = None
            self.counters.retries += 1
            order = self._upstreams.order(self._loop.time(), call.avoid)
            if connection.upstream in order:
                order.remove(connection.upstream)
                order.insert(0, connection.upstream)
            self._connect_for(call, order, fresh=True)
            return
        # A wrong 101 says that its chat is broken, not that the upstream is: video from there goes on.
        if call._attempt is not None and error.kind not in ("internal", "bad-switch"):
            call._attempt.failed(error.message)
        self._fail(call, error, received_any)

    def connection_gone(self, connection: Connection[Call]) -> None:
        self._open.discard(connection)
        pool = self._idle.get(connection.upstream)
        if pool is not None:
            pool.pop(connection, None)
        if self._all_gone is not None and not self._open:
            self._all_gone.set()


def _build(call: Call, upstream: Upstream, proxy: ParentProxy | None) -> None:
    """Raises OriginError('bad-field')."""
    length = None if call.body is None else call.body.length
    call._request = build_request(call.method, call.target, call.fields, upstream, proxy, length)
    call._built_for = (upstream, proxy)
