"""One upstream connection: response bytes in, sink calls out (RFC 9112). No pool, retry or resolution here.

Body bytes with Content-Length or up to the close are received straight into the sink's memory; heads and chunked bodies
go through a buffer of the connection's own. One timer per connection, moved only when it fires early.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from typing import Generic, TypeVar, cast

from accelerator.errors import OriginError
from accelerator.io.body_writer import Body, BodyWriter
from accelerator.io.deadline import Deadline
from accelerator.io.head_reader import HEAD_BYTES_MAX, HeadReader
from accelerator.io.origin import OriginCounters, ParentProxy, Upstream
from accelerator.io.pacing import Flow, Lane
from accelerator.io.phase import BODY, Owner, Phase, is_kept, late, why_lost
from accelerator.io.response import ParseResponse, Response, Sink, SwitchSink
from accelerator.io.switch import Switch
from accelerator.protocols.chunked import ChunkedDecoder

SCRATCH_BYTES = HEAD_BYTES_MAX
# One for all: what is read into it is used up before anything else is read. Only a head in parts needs its own.
_shared = bytearray(SCRATCH_BYTES)

CallT = TypeVar("CallT")


class Connection(asyncio.BufferedProtocol, Generic[CallT]):
    """One exchange at a time: `start`, sink calls, then one of the owner's exchange_ended and exchange_failed."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        owner: Owner[CallT],
        upstream: Upstream,
        sock: socket.socket,
        counters: OriginCounters,
        parse_response: ParseResponse,
        head_error: type[Exception],
        generation: int,
    ) -> None:
        self.upstream = upstream
        self.generation = generation
        self.exchanges = 0
        self.proxy: ParentProxy | None = None  # who reads our requests before the upstream, if anybody
        self._loop = loop
        self._now = loop.time
        self._owner = owner
        self._sock = sock
        self._counters = counters
        self._parse_response = parse_response
        self._head_error = head_error
        self._transport: asyncio.Transport | None = None
        self._ssl_object: ssl.SSLObject | None = None
        self._phase = Phase.IDLE
        self._call: CallT | None = None
        self._sink: Sink | None = None
        self._is_head_request = False
        self._has_no_body = False
        self._keep_alive = False
        self._received_any = False
        self._remaining = 0
        self._decoder: ChunkedDecoder | None = None
        self._excess_n = 0
        self._scratch: bytearray | None = None
        self._reader: HeadReader | None = None
        self._gave_sink_memory = False
        self._in_get_buffer = False
        self._paused = False
        self._flow: Flow | None = None
        self._is_held = False  # by the link's budget; the sink and its memory know nothing of it
        self._is_transport_paused = False
        self._pending = bytearray()  # body bytes that came while paused: at most what one read gave
        self._deadline = Deadline(loop, self._timed_out)
        self._left_s = 0.0
        self._body_timeout_s = 0.0
        self._head_timeout_s = 0.0
        self._writer: BodyWriter | None = None
        self._is_cut = False
        self._is_writing_paused = False
        self.idle_since_s = loop.time()

    # -- for the owner -----------------------------------------------------------------------------------------------

    @property
    def is_open(self) -> bool:
        return self._phase is not Phase.CLOSED and self._transport is not None and not self._transport.is_closing()

    @property
    def awaits_head(self) -> bool:
        """Whether the request is sent whole and no final head has come."""
        return self._phase is Phase.HEAD and (self._writer is None or self._writer.is_done)

    def start(
        self,
        call: CallT,
        sink: Sink,
        request: bytes,
        *,
        body: Body | None = None,
        is_head_request: bool,
        paused: bool,
        head_timeout_s: float,
        body_timeout_s: float,
        allows_switch: bool = False,
        lane: Lane | None = None,
    ) -> None:
        """Sends `request`, then `body` as it comes; an idle connection only.

        `allows_switch`: the request asks for another protocol, and the sink is a SwitchSink. `lane`: whose budget the
        answer counts in."""
        assert self._phase is Phase.IDLE
        assert self._transport is not None
        self.exchanges += 1
        self._phase = Phase.HEAD
        self._call, self._sink = call, sink
        self._is_head_request = is_head_request
        self._paused = paused
        self._received_any = self._is_cut = False
        self._excess_n = 0
        self._scratch = _shared
        self._reader = HeadReader(
            _shared, self._parse_response, self._head_error, self._interim_received, allows_switch=allows_switch
        )
        self._body_timeout_s, self._head_timeout_s = body_timeout_s, head_timeout_s
        self._deadline.set(head_timeout_s)
        self._flow = lane.begin(self, self._sock) if lane is not None else None
        if self._flow is not None and self._ssl_object is not None:
            # uvloop's TLS reads 256 KiB ahead of who has paused it, which would all be in the WAN's queue at once.
            self._transport.set_read_buffer_limits(1, 0)  # type: ignore[attr-defined]
        self._transport.write(request)
        if body is not None:
            self._deadline.clear()  # the head's time begins when the body has ended
            self._writer = BodyWriter(body, self._transport.write)
            self._writer.is_paused = self._is_writing_paused
            self._loop.call_soon(self.send_body)

    def send_body(self) -> None:
        """More of the body is there. A fault of its source ends the exchange."""
        writer = self._writer
        if writer is None or writer.is_done:
            return
        try:
            writer.pump()
        except Exception as exc:
            self._sink_broke(exc)
            return
        if self._phase is Phase.HEAD:
            if writer.is_done:
                self._deadline.set(self._head_timeout_s)
            elif writer.is_paused:
                self._deadline.set(self._body_timeout_s)
            else:
                self._deadline.clear()  # how long the viewer may take is the worker's business

    def set_body_timeout(self, seconds: float) -> None:
        self._body_timeout_s = seconds
        if self._phase in BODY and self._deadline.at_s is not None:
            self._deadline.set(seconds)

    def is_reusable(self) -> bool:
        """Whether an idle connection still looks alive: open and silent. Data that came unasked is excess."""
        if not self.is_open or self._phase is not Phase.IDLE:
            return False
        n = self._peek()
        if n > 0 and self._ssl_object is None:
            self._count_excess(n)
        # Over TLS waiting bytes may be a session ticket; a new connection then is the cheap and safe answer.
        return n < 0

    def keep_idle(self, idle_s: float) -> None:
        """Closes after `idle_s` seconds without a new exchange."""
        self._scratch = None
        self.idle_since_s = self._now()
        self._deadline.set(idle_s)

    def pause(self) -> None:
        """No body byte reaches the sink from here on; the body time-out stands still."""
        if self._paused:
            return
        self._paused = True
        if self._phase in BODY:
            self._pause_transport()

    def resume(self) -> None:
        if not self._paused:
            return
        self._paused = False
        if self._phase in BODY or self._phase is Phase.DONE:
            self._loop.call_soon(self._resume_soon, self._call)

    def hold(self) -> None:
        """As `pause`, but for the budget of the link: what was read already still goes to the sink."""
        self._is_held = True
        if self._phase in BODY:
            self._pause_transport()

    def let_go(self) -> None:
        self._is_held = False
        if not self._paused and self._phase in BODY:
            self._read_on()

    def abandon(self) -> None:
        """Ends the exchange without another word to anybody, and the connection with it."""
        self._detach()
        self._abort()

    def way_lost(self) -> None:
        """What it goes over is dead: the exchange fails now instead of at its time-out."""
        if self._call is not None and self._phase is not Phase.DONE:
            self._fail(OriginError("reset", f"{self.upstream}: its link is down", can_retry=True))

    def close(self) -> None:
        """An idle connection, in good order."""
        self._phase = Phase.CLOSED
        if self._transport is not None:
            self._transport.close()

    # -- asyncio's side ----------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._ssl_object = transport.get_extra_info("ssl_object")

    def pause_writing(self) -> None:
        self._is_writing_paused = True
        if self._writer is not None:
            self._writer.is_paused = True

    def resume_writing(self) -> None:
        self._is_writing_paused = False
        if self._writer is not None:
            self._writer.is_paused = False
            self.send_body()

    def get_buffer(self, sizehint: int) -> memoryview:
        # libuv crashes when its allocation callback stops or closes the stream: what a sink wants of it is done later.
        self._in_get_buffer = True
        try:
            return self._memory_for_read()
        finally:
            self._in_get_buffer = False

    def _memory_for_read(self) -> memoryview:
        phase = self._phase
        self._gave_sink_memory = False
        if (phase is Phase.LENGTH or phase is Phase.UNTIL_CLOSE) and not self._paused and not self._pending:
            sink = self._sink
            assert sink is not None
            try:
                if phase is Phase.UNTIL_CLOSE:
                    memory = sink.get_buffer(SCRATCH_BYTES)
                else:
                    memory = sink.get_buffer(self._remaining)
                    if len(memory) > self._remaining:
                        memory = memory[: self._remaining]
                if not memory:
                    raise ValueError("a sink gave an empty buffer")
                if self._sink is sink and not self._paused:
                    self._gave_sink_memory = True
                    return memory if self._flow is None else memory[: self._flow.quantum]
            except Exception as exc:
                self._sink_broke(exc)
        if self._scratch is None:
            self._scratch = _shared
        start = self._reader.filled if self._phase is Phase.HEAD and self._reader is not None else 0
        return memoryview(self._scratch)[start:]

    def buffer_updated(self, nbytes: int) -> None:
        try:
            if self._gave_sink_memory:
                self._gave_sink_memory = False
                self._body_arrived_in_place(nbytes)
            elif self._phase is Phase.HEAD:
                self._received_any = True
                self._head_bytes_received(nbytes)
            else:
                assert self._scratch is not None
                self._take(memoryview(self._scratch)[:nbytes])
            if self._flow is not None:
                self._flow.read()
        except OriginError as error:
            error.message = f"{self.upstream}: {error.message}"
            self._fail(error)
        except Exception as exc:
            self._sink_broke(exc)

    def eof_received(self) -> bool:
        # asyncio calls this over TLS for a close without close_notify too; uvloop does not.
        is_clean = self._drain_tls()
        self._stream_ended(is_clean)
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        is_clean = self._drain_tls() and exc is None
        self._stream_ended(is_clean)
        if self._call is not None and self._phase is not Phase.DONE:
            self._fail(why_lost(self.upstream, exc, self._received_any))
        if self._phase is not Phase.DONE:
            self._deadline.cancel()
            self._phase = Phase.CLOSED
        self._transport = None
        self._ssl_object = None
        self._scratch = None
        self._owner.connection_gone(self)

    # -- bodies ------------------------------------------------------------------------------------------------------

    def _head_bytes_received(self, n: int) -> None:
        reader = self._reader
        assert reader is not None
        head = reader.received(n)
        if self._reader is not reader:
            return  # an interim response was one too many for the sink
        if head is not None:
            self._begin_body(*head, reader.filled)
        elif reader.filled and self._scratch is _shared:
            self._scratch = bytearray(SCRATCH_BYTES)
            reader.move(self._scratch)

    def _interim_received(self, response: Response) -> None:
        self._counters.interim_received += 1
        if self._sink is not None:
            self._sink.interim_received(response)

    def _begin_body(self, response: Response, start: int, end: int) -> None:
        """The final head is there; `start` to `end` of the scratch buffer is what followed it in the same reads."""
        sink, call = self._sink, self._call
        assert sink is not None
        assert call is not None
        assert self._scratch is not None
        if response.status == 101:
            self._switch(response, bytes(memoryview(self._scratch)[start:end]))
            return
        self._keep_alive = response.keep_alive and (self.proxy is None or is_kept(response))
        # RFC 9112 section 6.3: these end with their head whatever follows, so excess does not make them suspect.
        self._has_no_body = self._is_head_request or response.status in (204, 304)
        if self._has_no_body:
            self._phase, self._remaining = Phase.LENGTH, 0
        elif response.chunked:
            self._phase, self._decoder = Phase.CHUNKED, ChunkedDecoder()
        elif response.content_length >= 0:
            self._phase, self._remaining = Phase.LENGTH, response.content_length
        else:
            self._phase = Phase.UNTIL_CLOSE
            self._keep_alive = False
        self._deadline.set(self._body_timeout_s)
        self._owner.head_arrived(call, self.upstream, response)
        if self._writer is not None and not self._writer.is_done and response.status >= 400:
            # Who has refused need not read on, and writing to who has closed would reset his answer away.
            self._writer.is_done = self._is_cut = True
        if self._paused or self._is_held:
            self._pause_transport()
        sink.head_received(response, self.upstream)
        if self._call is not call:
            return
        scratch, self._scratch = self._scratch, _shared
        self._take(memoryview(scratch)[start:end])

    def _switch(self, response: Response, first: bytes) -> None:
        """101: from its end on, `first`, what comes is another protocol's, and the sink's."""
        sink, call, transport = self._sink, self._call, self._transport
        assert call is not None
        assert transport is not None
        self._owner.head_arrived(call, self.upstream, response)
        switch = Switch(self._sock, transport, self._given_away, is_tls=self._ssl_object is not None)
        cast(SwitchSink, sink).switched(response, self.upstream, first, switch)
        if self._call is call:
            self._detach()
            self._owner.exchange_ended(self, call, False)
        self._abort()

    def _given_away(self) -> None:
        self._deadline.cancel()
        self._transport = self._ssl_object = self._scratch = None
        self._owner.connection_gone(self)

    def _body_arrived_in_place(self, n: int) -> None:
        sink, call = self._sink, self._call
        assert sink is not None
        if not self._is_held:
            self._deadline.move(self._body_timeout_s)
        if self._phase is Phase.LENGTH:
            self._remaining -= n
            sink.bytes_received(n)
            if self._remaining == 0 and self._call is call:
                self._complete()
        else:
            sink.bytes_received(n)

    def _take(self, data: memoryview) -> None:
        """Bytes after the head that stand in the scratch buffer. None at all may complete an empty body."""
        call = self._call
        if data and self._phase in BODY and not self._paused and not self._is_held:
            self._deadline.move(self._body_timeout_s)
        if self._phase is Phase.LENGTH:
            body = data[: self._remaining]
            self._remaining -= len(body)
            self._deliver(body)
            if self._call is call and self._remaining == 0:
                self._excess_n += len(data) - len(body)
                self._complete()
        elif self._phase is Phase.CHUNKED and data:
            assert self._decoder is not None
            consumed = self._decoder.feed(data, self._deliver)
            if self._call is call and self._decoder.finished:
                self._excess_n += len(data) - consumed
                self._complete()
        elif self._phase is Phase.UNTIL_CLOSE:
            self._deliver(data)
        elif self._phase is Phase.DONE:
            self._excess_n += len(data)
        elif self._phase is Phase.IDLE and data:
            self._count_excess(len(data))
            self._abort()

    def _deliver(self, data: memoryview) -> None:
        """Copies body bytes into the sink's memory; keeps what a pause leaves over."""
        while data:
            sink = self._sink
            if sink is None:
                return
            if self._paused or self._pending:
                self._pending += data
                return
            memory = sink.get_buffer(len(data))
            n = min(len(memory), len(data))
            if n == 0:
                raise ValueError("a sink gave an empty buffer")
            if self._sink is not sink or self._paused:
                continue
            memory[:n] = data[:n]
            sink.bytes_received(n)
            data = data[n:]

    def _complete(self) -> None:
        """The body is whole. Excess that is there already makes it suspect; later it only costs the connection."""
        self._phase = Phase.DONE
        self._deadline.clear()
        if self._pending:
            return
        if self._ssl_object is None:
            if self._excess_n == 0 and self._keep_alive and self._transport is not None:
                # A read that ends exactly at Content-Length hides what stands behind it.
                self._excess_n = max(0, self._peek())
            self._finish(self._call)
        else:
            # The transport may hold decrypted bytes: it delivers them before this callback runs.
            self._loop.call_soon(self._finish, self._call)

    def _finish(self, call: CallT | None) -> None:
        """Tells the end of `call`, unless that has been done meanwhile."""
        if call is None or self._call is not call or self._phase is not Phase.DONE or self._pending:
            return
        if self._excess_n:
            self._count_excess(self._excess_n)
            self._keep_alive = False
            if not self._has_no_body:
                self._fail(OriginError("excess", f"{self.upstream}: bytes after the end of the body"))
                return
        is_sent = self._writer is None or (self._writer.is_done and not self._is_cut)
        can_reuse = is_sent and self._keep_alive and self._transport is not None and not self._transport.is_closing()
        self._detach()
        if can_reuse:
            self._phase = Phase.IDLE
            self._resume_transport()
        self._owner.exchange_ended(self, call, can_reuse)
        if not is_sent:
            self._abort()
        elif not can_reuse and self._transport is not None:
            self._transport.close()

    def _resume_soon(self, call: CallT | None) -> None:
        if call is None or self._call is not call or self._paused:
            return
        try:
            data, self._pending = self._pending, bytearray()
            self._deliver(memoryview(data))
        except Exception as exc:
            self._sink_broke(exc)
            return
        if self._call is not call or self._paused:
            return
        if self._phase is Phase.DONE:
            self._finish(call)
        elif not self._is_held:
            self._read_on()

    def _read_on(self) -> None:
        if self._transport is not None and self._deadline.at_s is None:
            self._deadline.set(self._left_s)
            self._resume_transport()

    # -- ends --------------------------------------------------------------------------------------------------------

    def _stream_ended(self, is_clean: bool) -> None:
        """The origin has closed its side; `is_clean`: by FIN, over TLS by close_notify (RFC 9112 section 9.8)."""
        if self._phase is Phase.UNTIL_CLOSE and is_clean:
            self._complete()
        if self._phase is Phase.DONE:
            self._keep_alive = False
            self._finish(self._call)

    def _drain_tls(self) -> bool:
        """Reads what the TLS transport received but, at EOF, did not deliver. True: close_notify came (or no TLS).

        asyncio's and uvloop's transports drop what the last buffer had no room for (sslproto: _do_flush, eof_received).
        """
        tls = self._ssl_object
        if tls is None:
            return True
        while self._phase not in (Phase.CLOSED, Phase.IDLE):
            memory = self.get_buffer(-1)
            try:
                # typeshed knows only bytearray, read() takes any writable buffer.
                n = cast(int, tls.read(len(memory), cast(bytearray, memory)))
            except ssl.SSLError:
                return False
            if n == 0:
                return True
            self.buffer_updated(n)
        return False

    def _fail(self, error: OriginError) -> None:
        call, received_any = self._call, self._received_any
        self._detach()
        self._abort()
        if call is not None:
            self._owner.exchange_failed(self, call, error, received_any)

    def _sink_broke(self, exc: Exception) -> None:
        """A fault of ours: whoever waits for this response must hear of it, and nothing else be harmed."""
        self._loop.call_exception_handler({"message": "upstream sink or parser failed", "exception": exc})
        self._fail(OriginError("internal", f"{self.upstream}: {exc!r}"))

    def _detach(self) -> None:
        self._call = self._sink = self._decoder = self._reader = self._writer = None
        self._phase = Phase.CLOSED
        self._pending = bytearray()
        self._paused = self._is_held = False
        if self._flow is not None:
            self._flow.end()
            self._flow = None
        self._deadline.clear()

    def _abort(self) -> None:
        self._phase = Phase.CLOSED
        if self._transport is None:
            return
        if self._in_get_buffer:
            self._loop.call_soon(self._transport.abort)
        else:
            self._transport.abort()

    def _count_excess(self, n: int) -> None:
        self._counters.excess_bytes += n
        self._counters.excess_connections += 1

    def _peek(self) -> int:
        """Bytes that wait in the socket (a sample), 0 at end of file or after an error, -1 for none."""
        try:
            return len(self._sock.recv(4096, socket.MSG_PEEK | socket.MSG_DONTWAIT))
        except BlockingIOError:
            return -1
        except OSError:
            return 0

    # -- time --------------------------------------------------------------------------------------------------------

    def _pause_transport(self) -> None:
        if self._deadline.at_s is not None:
            self._left_s = self._deadline.left_s
            self._deadline.clear()
        if self._in_get_buffer:
            self._loop.call_soon(self._pause_transport_if_needed)
        else:
            self._pause_transport_if_needed()

    def _pause_transport_if_needed(self) -> None:
        is_wanted = self._phase in BODY and not self._paused and not self._is_held
        if self._transport is None or self._is_transport_paused or is_wanted or self._phase not in BODY:
            return
        self._is_transport_paused = True
        self._transport.pause_reading()

    def _resume_transport(self) -> None:
        if self._transport is not None and self._is_transport_paused:
            self._is_transport_paused = False
            self._transport.resume_reading()

    def _timed_out(self) -> None:
        if self._phase is Phase.IDLE:
            self.close()
        elif self._phase is Phase.HEAD or self._phase in BODY:
            self._counters.timeouts += 1
            self._fail(late(self.upstream, self._phase, self._body_timeout_s, is_sending=not self.awaits_head))
