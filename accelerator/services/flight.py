"""A flight: one upstream request for a key, and the exchanges that wait for it. The rules are in protocols/."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from accelerator import clock
from accelerator.dataplane import SLICE_BYTES
from accelerator.errors import OriginError
from accelerator.protocols import live
from accelerator.protocols.cache_decide import Verdict, decide, may_answer_waiting, with_manifest
from accelerator.protocols.cache_validate import decide_304, matches_304, may_serve_stale
from accelerator.protocols.fields import Field, Fields, get_first, has
from accelerator.protocols.representation import selected_etag, stored_fields
from accelerator.protocols.upstream_fields import upstream_fields
from accelerator.services.fill import Fill
from accelerator.services.heads import NS, compose, split_lines, with_exposed

if TYPE_CHECKING:
    from accelerator.dataplane import Exchange, StoredObject
    from accelerator.io.origin import Upstream
    from accelerator.io.response import Response
    from accelerator.io.upstream import Call
    from accelerator.services.fetch import Fetcher
    from accelerator.services.origins import Origin

STALE_STATUSES = frozenset({500, 502, 503, 504})
KINDS = list(live.Kind)
DISCARD_BYTES = 65536


class Flight:
    """Asks `origin` for the target of `first` and answers all exchanges that have joined.

    `key` None: for the leader alone, nothing is stored under a key that others could find.
    """

    def __init__(self, fetcher: Fetcher, origin: Origin, first: Exchange, request: Any, *, is_alone: bool) -> None:
        self.fetcher = fetcher
        self.origin = origin
        self.exchanges: list[Exchange] = [first]
        self.key: bytes = first.key
        self.is_alone = is_alone
        self.is_withdrawn = False  # purged while under way: answers those who wait, is not stored
        self.request = request
        self.stored: StoredObject | None = first.stored
        self.is_validation = False
        self.requested_range: tuple[int, int | None] | None = None
        self.requested_ns = 0
        self.requested_wall_s = 0.0
        self.call: Call | None = None
        self.fill: Fill | None = None
        self.is_answered = False
        self._plane = fetcher.dataplane.plane
        self._scratch = bytearray(0)
        self._verdict: Verdict | None = None
        self._fields: list[Field] = []
        self._response_ns = 0
        self._discarded = 0

    @property
    def path(self) -> bytes:
        return self.key

    # -- asking --------------------------------------------------------------------------------------------------------

    def start(self, *, unconditional: bool = False, as_asked: bool = False) -> None:
        """Sends the request; `as_asked`: with the viewer's own Range, because its part can't be combined."""
        first = self.exchanges[0]
        validators = None
        self.is_validation = False
        if self.stored is not None and not unconditional and not self.is_alone:
            stored = split_lines(self.stored.lines())
            validators = (selected_etag(stored), get_first(stored, b"last-modified"))
            self.is_validation = validators != (None, None)
            if not self.is_validation:
                validators = None
        self.requested_range = None
        if (
            not self.is_validation
            and self.request.method == b"GET"
            and (first.range_first, first.range_last) != (-1, -1)
        ):
            self.requested_range = asked_range(first) if as_asked or self.is_alone else aligned_range(first)
        fields = upstream_fields(
            self.request.fields,
            self.origin.rules,
            host=viewer_host(self.request.fields) if self.origin.policy.upstream_host == "viewer" else b"",
            site=self.fetcher.site,
            method=self.request.method,
            validators=validators,
            byte_range=self.requested_range,
        )
        self.requested_ns = clock.monotonic_ns()
        self.requested_wall_s = clock.wall_s()
        self._plane.count("upstream_requests")
        if self.is_validation:
            self._plane.count("validations")
        self.call = self.origin.client.request(self.request.method, upstream_target(self.request), fields, self)

    def join(self, exchange: Exchange) -> None:
        self.exchanges.append(exchange)

    # -- the sink of the upstream call ---------------------------------------------------------------------------------

    def head_received(self, response: Response, upstream: Upstream) -> None:
        self._response_ns = clock.monotonic_ns()
        wall_s = clock.wall_s()
        try:
            if response.status == 304 and self.is_validation:
                self._validated(response, wall_s)
            elif response.status == 304:
                raise OriginError("unasked-304", "304 to a request without conditions")
            elif response.status in STALE_STATUSES and self._serve_stale("5xx"):
                self._abandon()
            else:
                self._respond(response, upstream, wall_s)
        except OriginError as error:
            self._abandon()
            self.failed(error, True)

    def get_buffer(self, size_hint: int) -> memoryview:
        if self.fill is not None and not self.fill.is_over:
            return self.fill.get_buffer(size_hint)
        if not self._scratch:
            self._scratch = bytearray(DISCARD_BYTES)
        return memoryview(self._scratch)

    def bytes_received(self, n: int) -> None:
        if self.fill is not None and not self.fill.is_over:
            self.fill.bytes_received(n)

    def ended(self) -> None:
        if self.fill is not None:
            self.fill.ended()
        if not self.is_answered:
            self._answer_error(502)
        self.fetcher.flight_over(self)

    def failed(self, error: OriginError, received_any: bool) -> None:
        """No head came, or a bad one (a body that breaks off is the fill's matter)."""
        if self.fill is not None:
            self.fill.failed(error, received_any)
        if not self.is_answered:
            self.origin.errors += 1
            self._plane.count("upstream_errors")
            self.fetcher.note_error(self.origin, error)
            if not self._serve_stale("disconnected"):
                # Without validation the stored response may not be used: 504 (RFC 9111 section 5.2.2.2).
                is_impossible = self.stored is not None and self.is_validation and error.status == 502
                self._answer_error(504 if is_impossible else error.status)
        self.fetcher.flight_over(self)

    # -- answers -------------------------------------------------------------------------------------------------------

    def _respond(self, response: Response, upstream: Upstream, wall_s: float) -> None:
        verdict = decide(
            self.request.fields, self.request.method, self.path, self.origin.rules, response.status, response.fields,
            request_wall_s=self.requested_wall_s, response_wall_s=wall_s,
            is_timing=self.fetcher.is_timing(self.origin.id, self.key),
        )  # fmt: skip
        self._verdict = verdict
        verdict = self._held_not_found(verdict, response.status)
        may_list = not self.is_alone and not self.is_withdrawn
        if response.status == 206 and not (verdict.shareable and may_list):
            if (
                self.requested_range is not None
                and not self.is_alone
                and self.requested_range != asked_range(self.exchanges[0])
            ):
                self._ask_again(as_asked=True)
                return
            self._pass(response, upstream, verdict)
        elif may_list and (verdict.store or (response.status == 206 and verdict.shareable)):
            self._store(response, upstream, verdict, wall_s)
        else:
            self._pass(response, upstream, verdict)

    def _held_not_found(self, verdict: Verdict, status: int) -> Verdict:
        """One 404 at the live edge answers everyone for a moment (DESIGN.md section 5)."""
        if status in (404, 410) and not verdict.store and verdict.share_waiting and not verdict.vary:
            kind = live.recognise(self.path, b"")
            if self.origin.rules.profile == "media" and (kind in live.SEGMENTS or kind in live.PLAYLISTS):
                self.fetcher.forget_soon(self.origin.id, self.key, live.NOT_FOUND_HOLD_S)
                return replace(verdict, store=True, shareable=True, lifetime_s=live.NOT_FOUND_HOLD_S, initial_age_s=0.0)
        return verdict

    def _store(self, response: Response, upstream: Upstream, verdict: Verdict, wall_s: float) -> None:
        """Into the table at once: everybody who waits looks again and reads while it fills."""
        part = verdict.partial
        total = response.content_length if part is None else (part.total or 0)
        offset = 0 if part is None else part.first
        if part is not None and offset % SLICE_BYTES:
            # Not where we asked: a slice can't begin in its middle.
            self._pass(response, upstream, verdict)
            return
        fields = stored_fields(response.fields, response_wall_s=wall_s)
        if part is not None:
            fields = [field for field in fields if field[0].lower() != b"content-range"]
        if not has(fields, b"accept-ranges"):
            fields.append((b"Accept-Ranges", b"bytes"))
        self._fields = fields
        head = compose(
            200 if part is not None else response.status, with_exposed(fields), verdict,
            request_ns=self.requested_ns, response_ns=self._response_ns, has_age=has(response.fields, b"age"),
        )  # fmt: skip
        stored = self._plane.create(
            self.origin.id, total, *head.arguments(), False, verdict.etag_is_strong, KINDS.index(verdict.kind),
            self.origin.class_index,
        )  # fmt: skip
        vary = b"".join(name + b"\n" for name in verdict.vary)
        if stored is None or not stored.insert(self.key, vary, self.exchanges[0].head):
            self._pass(response, upstream, verdict)
            return
        self._plane.count("stored")
        end = None if part is None else part.last + 1
        self._fill_into(stored, upstream, offset, end, is_private=False)
        if total == 0:
            stored.finish(0)
        self.is_answered = True
        for exchange in self.exchanges:
            exchange.match(response.status, True)

    def _pass(self, response: Response, upstream: Upstream, verdict: Verdict) -> None:
        """For those who wait, or for the leader alone."""
        rules = self.origin.rules
        self._plane.count("not_stored")
        fields = stored_fields(response.fields, response_wall_s=clock.wall_s(), shared=False)
        head = compose(
            response.status, with_exposed(fields), None,
            request_ns=self.requested_ns, response_ns=self._response_ns, has_age=has(response.fields, b"age"),
        )  # fmt: skip
        stored = self._plane.create(self.origin.id, response.content_length, *head.arguments(), True, False, 0, 0)
        if stored is None:
            raise OriginError("no-memory", "no memory for a response", status=503)
        if self.request.method != b"HEAD":
            self._fill_into(stored, upstream, 0, None, is_private=True)
            if response.content_length == 0 or response.status in (204, 304):
                stored.finish(0)
        self.is_answered = True
        shares = (
            verdict.share_waiting and not self.is_alone and not verdict.vary and response.status >= 400
            and may_answer_waiting(verdict, self.request.fields, rules)
        )  # fmt: skip
        if shares:
            self._plane.count("shared_errors")
            for exchange in self.exchanges:
                exchange.everybody(stored, response.status)
            return
        if verdict.not_shareable_for_s and not self.is_alone:
            self.fetcher.remember_unshareable(self.origin.id, self.key, verdict.not_shareable_for_s)
        self.exchanges[0].leader(stored, response.status)
        for exchange in self.exchanges[1:]:
            if verdict.waiting_status:
                exchange.error(verdict.waiting_status)
            else:
                exchange.match(response.status, False)

    def _fill_into(
        self, stored: StoredObject, upstream: Upstream, offset: int, end: int | None, *, is_private: bool
    ) -> None:
        self.fill = Fill(
            self.fetcher.dataplane, stored, offset, end, is_private=is_private,
            received=self._count_received, ended=self._fill_ended, resume=None if is_private else self._resume,
        )  # fmt: skip
        self.fill.etag = self._verdict.etag if self._verdict is not None and self._verdict.etag_is_strong else None
        self.fill.call = self.call
        self.fill.started(upstream)
        self.fetcher.fill_begun(self.fill)

    def _count_received(self, n: int) -> None:
        self._plane.count("bytes_from_origin", n)
        self.origin.bytes_from_origin += n

    def _resume(self, offset: int, sink: Fill, avoid: Upstream | None) -> Call | None:
        assert sink.etag is not None
        end = sink.end if sink.end is not None else sink.stored.total_length
        if offset >= end:
            return None
        fields = upstream_fields(
            self.request.fields, self.origin.rules,
            host=viewer_host(self.request.fields) if self.origin.policy.upstream_host == "viewer" else b"",
            site=self.fetcher.site, byte_range=(offset, end - 1), if_range=sink.etag,
        )  # fmt: skip
        self._plane.count("upstream_requests")
        return self.origin.client.request(b"GET", upstream_target(self.request), fields, sink, avoid=avoid)

    def _fill_ended(self, fill: Fill) -> None:
        self.fetcher.fill_over(fill)
        verdict = self._verdict
        if (
            verdict is None
            or not fill.stored.is_complete
            or not fill.stored.is_listed
            or verdict.kind not in live.PLAYLISTS
        ):
            return
        # What a playlist is, only its body says: its lifetime and how long it may be stale follow.
        self._apply_manifest(fill.stored, verdict, self._fields)

    def _apply_manifest(self, stored: StoredObject, verdict: Verdict, fields: Fields) -> None:
        body = stored.body(live.MANIFEST_SIZE_MAX + 1)
        manifest = live.read_manifest(body, self.path, get_first(fields, b"content-type") or b"")
        if manifest is None:
            return
        for url in manifest.timing_urls:
            self.fetcher.add_timing(self.origin.id, self.key, url)
        known = with_manifest(verdict, manifest, self.origin.rules, is_blocking=b"_HLS_msn=" in self.key)
        head = compose(
            stored.status, with_exposed(fields), known,
            request_ns=self.requested_ns, response_ns=self._response_ns, has_age=False,
        )  # fmt: skip
        stored.set_head(*head.arguments())

    def _validated(self, response: Response, wall_s: float) -> None:
        """304: the stored response is good (RFC 9111 section 4.3.4)."""
        assert self.stored is not None
        stored = split_lines(self.stored.lines())
        if self.stored.is_failed or not matches_304(
            selected_etag(stored), get_first(stored, b"last-modified"), response.fields
        ):
            self._ask_again(unconditional=True)
            return
        validated = decide_304(
            self.request.fields, self.path, self.origin.rules, self.stored.status, stored, response.fields,
            request_wall_s=self.requested_wall_s, response_wall_s=wall_s,
        )  # fmt: skip
        self._plane.count("validated")
        self._verdict = validated.verdict
        head = compose(
            self.stored.status, with_exposed(validated.fields), validated.verdict,
            request_ns=self.requested_ns, response_ns=self._response_ns, has_age=False,
        )  # fmt: skip
        self.is_answered = True
        if not validated.verdict.store or self.is_withdrawn:
            self.stored.detach()
            self.exchanges[0].leader(self.stored, 304)
            for exchange in self.exchanges[1:]:
                exchange.match(304, False)
            return
        if not self.stored.set_head(*head.arguments()):
            self.stored.detach()
        elif validated.verdict.kind in live.PLAYLISTS and self.stored.is_complete:
            self._apply_manifest(self.stored, validated.verdict, validated.fields)
        for exchange in self.exchanges:
            exchange.match(304, True)

    def _serve_stale(self, failure: Any) -> bool:
        """Serves the stored response although it is stale, where that is allowed (RFC 9111 section 4.2.4)."""
        if self.stored is None or self.is_answered or self.is_withdrawn or self.stored.is_failed:
            return False
        now_ns = clock.monotonic_ns()
        fields = split_lines(self.stored.lines())
        wall_s = clock.wall_s()
        verdict = decide(
            [], b"GET", self.path, self.origin.rules, self.stored.status, fields,
            request_wall_s=wall_s, response_wall_s=wall_s,
        )  # fmt: skip
        if verdict.kind in live.PLAYLISTS:
            verdict = with_manifest(
                verdict, live.read_manifest(self.stored.body(live.MANIFEST_SIZE_MAX + 1)), self.origin.rules
            )
        staleness_s = max(0, now_ns - max(self.stored.fresh_until_ns, self.stored.born_ns)) / NS
        if not may_serve_stale(verdict, staleness_s=staleness_s, failure=failure):
            return False
        self.is_answered = True
        for exchange in self.exchanges:
            exchange.stale(self.stored)
        return True

    def _answer_error(self, status: int) -> None:
        self.is_answered = True
        for exchange in self.exchanges:
            exchange.error(status)

    # -- ends ----------------------------------------------------------------------------------------------------------

    def leave(self, exchange: Exchange) -> None:
        """The last viewer of an exchange has left; the answer is still wanted, unless it was for him alone."""
        if self.is_answered or not self.is_alone:
            return
        self._abandon()
        self.is_answered = True
        exchange.done()
        self.fetcher.flight_over(self)

    def _ask_again(self, *, unconditional: bool = False, as_asked: bool = False) -> None:
        self._abandon()
        if as_asked:
            self.is_alone = True
            for exchange in self.exchanges[1:]:
                exchange.match(0, False)
            del self.exchanges[1:]
            self.fetcher.unlist(self)
        self.start(unconditional=unconditional, as_asked=as_asked)

    def _abandon(self) -> None:
        if self.call is not None:
            self.call.cancel()
            self.call = None


def asked_range(exchange: Exchange) -> tuple[int, int | None]:
    """The viewer's own range, as upstream_fields takes it."""
    if exchange.range_first < 0:
        return -exchange.range_last, None
    return exchange.range_first, None if exchange.range_last < 0 else exchange.range_last


def aligned_range(exchange: Exchange) -> tuple[int, int | None] | None:
    """The slices that the viewer's range touches; None: from the start without end, which needs no Range."""
    if exchange.range_first < 0:
        return asked_range(exchange)
    first = exchange.range_first - exchange.range_first % SLICE_BYTES
    if exchange.range_last < 0:
        return (first, None) if first else None
    return first, exchange.range_last - exchange.range_last % SLICE_BYTES + SLICE_BYTES - 1


def upstream_target(request: Any) -> bytes:
    """Path and query as received (RFC 9110 section 7.7); absolute-form loses its authority only."""
    path: bytes = request.path
    return path if path.startswith(b"/") else b"/" + path


def viewer_host(fields: Sequence[Field]) -> bytes:
    return get_first(fields, b"host") or b""
