"""A passed request: a method that is never cached, or one with a body. For its asker alone, never stored.

What a successful unsafe one says of other objects is invalidation.py's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from accelerator import clock
from accelerator.errors import OriginError
from accelerator.protocols.cache_tags import without_tags
from accelerator.protocols.fields import has
from accelerator.services.fetch.fill import Fill
from accelerator.services.fetch.invalidation import invalidate
from accelerator.services.fetch.private import interim_head, is_event_stream, private_object
from accelerator.services.origins.request import UpstreamRequest

if TYPE_CHECKING:
    from accelerator.dataplane import Exchange, RequestBody
    from accelerator.io.origin import Upstream
    from accelerator.io.response import Fields, Response
    from accelerator.io.upstream import Call
    from accelerator.services.fetch.ledger import Ledger
    from accelerator.services.origins.origins import Origin

DISCARD_BYTES = 65536
# May be sent once more where a reused connection has died (RFC 9110 section 9.2.2); a DELETE might, but need not be.
_REPEATED = frozenset({b"GET", b"HEAD", b"OPTIONS"})
# A server may ask for a length where these have none (RFC 9110 section 8.6).
_EXPECT_CONTENT = frozenset({b"POST", b"PUT", b"PATCH"})


class Upload:
    """A viewer's body as the upstream client reads it (io.body_writer.Body)."""

    def __init__(self, body: RequestBody) -> None:
        self._body = body

    @property
    def length(self) -> int:
        return self._body.length

    def read(self, most: int) -> bytes | None:
        data = self._body.read(most)
        return None if not data and self._body.is_over else data

    def trailers(self) -> Fields:
        return []


class Passing:
    """Sends what `exchange` asks for, with its body as that comes, and answers it with what the origin says."""

    is_alone = True
    requested_ns = 0  # nothing of it is ever stored

    def __init__(self, ledger: Ledger, origin: Origin, exchange: Exchange, request: Any) -> None:
        self.ledger = ledger
        self.origin = origin
        self.exchanges: list[Exchange] = [exchange]
        self.key: tuple[int, bytes] = (origin.id, exchange.key)
        self.is_withdrawn = False  # nothing of it is stored anyway
        self.body = exchange.body
        if self.body is not None:
            ledger.uploads[self.body.identity] = self
        self._plane = ledger.dataplane.plane
        self._source = UpstreamRequest(self._plane, origin, request, ledger.site)
        self._expects_continue = self.body is not None and request.minor > 0 and has(request.fields, b"expect")
        self._requested_ns = 0
        self._call: Call | None = None
        self._fill: Fill | None = None
        self._scratch = bytearray(0)

    def start(self) -> None:
        extra: list[tuple[bytes, bytes]] = []
        if self._expects_continue:
            extra.append((b"Expect", b"100-continue"))  # RFC 9110 section 10.1.1: the origin's to meet, end to end
        if self.body is None and self._source.method in _EXPECT_CONTENT:
            extra.append((b"Content-Length", b"0"))
        self._requested_ns = clock.monotonic_ns()
        self._call = self._source.send(
            self, extra=extra, body=None if self.body is None else Upload(self.body),
            idempotent=self._source.method in _REPEATED,
        )  # fmt: skip

    def body_moved(self) -> None:
        """More of the body has come, or it is clear that its end never will."""
        if self.body is None:
            return
        if self.body.is_aborted:
            self.abandon()
        elif self._call is not None:
            self._call.body_ready()

    # -- the sink of the upstream call ---------------------------------------------------------------------------------

    def interim_received(self, response: Response) -> None:
        for exchange in self.exchanges:
            exchange.interim(interim_head(response))

    def head_received(self, response: Response, upstream: Upstream) -> None:
        self.origin.answered += 1
        self.origin.refused += response.status >= 400
        if not self.origin.rules.forward_tags:
            response.fields[:] = without_tags(response.fields)
        try:
            self._respond(response, upstream)
        except OriginError as error:
            self._cancel()
            self.failed(error, True)

    def get_buffer(self, size_hint: int) -> memoryview:
        if self._fill is not None and not self._fill.is_over:
            return self._fill.get_buffer(size_hint)
        if not self._scratch:
            self._scratch = bytearray(DISCARD_BYTES)
        return memoryview(self._scratch)

    def bytes_received(self, n: int) -> None:
        if self._fill is not None and not self._fill.is_over:
            self._fill.bytes_received(n)
        else:
            self._source.received(n)

    def ended(self) -> None:
        if self._fill is not None:
            self._fill.ended()
        self._answer_error(502)
        self.ledger.over(self)

    def failed(self, error: OriginError, received_any: bool) -> None:
        if self._fill is not None:
            self._fill.failed(error, received_any)
        elif self.exchanges:
            self.ledger.note_error(self.origin, error)
        self._answer_error(error.status)
        self.ledger.over(self)

    def _respond(self, response: Response, upstream: Upstream) -> None:
        method = self._source.method
        self._plane.count("not_stored")
        invalidate(self.ledger, self.origin, method, self.key, self._source, response)
        stored = private_object(
            self._plane, self.origin.id, response,
            requested_ns=self._requested_ns, response_ns=clock.monotonic_ns(),
        )  # fmt: skip
        if method != b"HEAD":
            self._fill = Fill(
                self.ledger.dataplane, stored, 0, None, is_private=True, etag=None, source=self._source,
                ended=self._fill_ended,
            )  # fmt: skip
            self._fill.call = self._call
            if is_event_stream(response.fields):
                self._fill.become_stream()
            self._fill.started(upstream)
            self.ledger.fills.begun(self._fill)
            if response.content_length == 0 or response.status in (204, 304):
                stored.finish(0)
        exchanges, self.exchanges = self.exchanges, []
        self.ledger.answered(exchanges)
        for exchange in exchanges:
            exchange.leader(stored, response.status)

    def _fill_ended(self, fill: Fill) -> None:
        self.ledger.fills.over(fill)
        if fill.error is not None or not fill.stored.is_complete:
            self.ledger.over(self)

    # -- ends ----------------------------------------------------------------------------------------------------------

    def _answer_error(self, status: int) -> None:
        exchanges, self.exchanges = self.exchanges, []
        self.ledger.answered(exchanges)
        for exchange in exchanges:
            exchange.error(status)

    def leave(self, exchange: Exchange) -> None:
        """Its viewer has left: the origin must not take what it has got for the whole."""
        if self.exchanges:
            self.abandon()

    def abandon(self) -> None:
        self._cancel()
        if self._fill is not None:
            self._fill.stop()
        exchanges, self.exchanges = self.exchanges, []
        self.ledger.answered(exchanges)
        for exchange in exchanges:
            exchange.done()
        self.ledger.over(self)

    def release(self) -> None:
        """Over: holds nothing any more."""
        if self.body is not None:
            self.ledger.uploads.pop(self.body.identity, None)
            self.body.drop()
        self._call = self._fill = self.body = None

    def _cancel(self) -> None:
        if self._call is not None:
            self._call.cancel()
            self._call = None
