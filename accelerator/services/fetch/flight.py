"""A flight: one upstream request for a key, and the exchanges that wait for it. The rules are in protocols/."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from accelerator import clock
from accelerator.dataplane import SLICE_BYTES
from accelerator.errors import OriginError
from accelerator.protocols import live
from accelerator.protocols.cache_decide import NOT_SHAREABLE_S, Verdict, decide, with_manifest
from accelerator.protocols.cache_tags import number_of_tag, tags_of, without_tags
from accelerator.protocols.cache_validate import decide_304, matches_304
from accelerator.protocols.fields import Fields, get_first, get_list, has
from accelerator.protocols.representation import holds, is_what_was_asked, selected_etag, stored_fields
from accelerator.services.fetch.fill import Fill
from accelerator.services.fetch.private import interim_head, is_event_stream, private_object
from accelerator.services.objects.freshen import freshen_by_head
from accelerator.services.objects.heads import compose, split_lines, with_exposed
from accelerator.services.objects.sharing import (
    OTHERS_AGAIN,
    OTHERS_ALONE,
    answers_waiting,
    ends_stored,
    lies_in_request,
    shares_error,
)
from accelerator.services.objects.stale import Failure, kept_verdict, permits_stale
from accelerator.services.origins.origins import LONG_POLL_S
from accelerator.services.origins.request import (
    UpstreamRequest,
    aligned_range,
    asked_range,
    has_range,
    has_several_ranges,
    own_condition,
    several_ranges,
)

if TYPE_CHECKING:
    from asyncio import TimerHandle

    from accelerator.dataplane import Exchange, StoredObject
    from accelerator.io.origin import Upstream
    from accelerator.io.response import Response
    from accelerator.io.upstream import Call
    from accelerator.protocols.byte_ranges import ByteRange
    from accelerator.services.fetch.ledger import Ledger
    from accelerator.services.origins.origins import Origin

STALE_STATUSES = frozenset({500, 502, 503, 504})
KINDS = list(live.Kind)
DISCARD_BYTES = 65536
# A body that can't be fetched again in parts stays in memory while it is read: not more than this share of it.
PINNED_SHARE = 4
# After a long poll nobody waits for its URL's next answer for so long; then one viewer's first seconds find it again.
LONG_POLL_REMEMBERED_S = 60.0
# Failures that lie in this box, not in the way to the origin.
_OURS = frozenset({"queue-full", "no-memory", "internal"})


class Flight:
    """Asks `origin` for what `first` asks for, and answers all exchanges that have joined.

    `is_alone`: for the leader only; nothing is stored, nobody joins.
    """

    def __init__(self, ledger: Ledger, origin: Origin, first: Exchange, request: Any, *, is_alone: bool) -> None:
        self.ledger = ledger
        self.origin = origin
        self.exchanges: list[Exchange] = [first]
        self.key: tuple[int, bytes] = (origin.id, first.key)
        self.is_alone = is_alone
        self.is_withdrawn = False  # purged while under way: answers those who wait, is not stored
        self.is_answered = False
        self._plane = ledger.dataplane.plane
        self._source = UpstreamRequest(self._plane, origin, request, ledger.site)
        self._first_head = first.head
        self._range = asked_range(first) if has_range(first) and request.method == b"GET" else None
        self._has_several_ranges = self._range is not None and has_several_ranges(self._source.fields)
        if self._has_several_ranges and ledger.remembered.is_uncombinable(self.key):
            self._range = None  # the whole, from which they can be answered
        self._others = OTHERS_AGAIN if is_alone else OTHERS_ALONE
        self._stored: StoredObject | None = first.stored
        self._is_validation = False
        self._requested_range: ByteRange | None = None
        self._has_asked_several = False
        self._condition: bytes | None = None  # If-Range, as it went up
        self._requested_ns = 0
        self._requested_wall_s = 0.0
        self._response_ns = 0
        self._has_age = False
        self._call: Call | None = None
        self._long_timer: TimerHandle | None = None
        self._fill: Fill | None = None
        self._verdict: Verdict | None = None
        self._fields: Fields = []
        self._tags: tuple[int, ...] | None = None  # numbers of the response's tags; None: it says nothing of tags
        self._scratch = bytearray(0)

    @property
    def path(self) -> bytes:
        return self.key[1]

    @property
    def requested_ns(self) -> int:
        """When it asked the origin; 0: not yet."""
        return self._requested_ns

    # -- asking --------------------------------------------------------------------------------------------------------

    def start(self, *, unconditional: bool = False) -> None:
        validators = None
        if self._stored is not None and not unconditional and not self.is_alone:
            stored = split_lines(self._stored.lines())
            validators = (selected_etag(stored), get_first(stored, b"last-modified"))
            if validators == (None, None):
                validators = None
        self._is_validation = validators is not None
        several, condition = self._parts_to_ask_for()
        self._condition = condition
        self._requested_range = several[0] if len(several) == 1 else None
        self._has_asked_several = len(several) > 1
        self._requested_ns = clock.monotonic_ns()
        self._requested_wall_s = clock.wall_s()
        self._call = self._source.send(
            self, validators=validators, byte_ranges=several, if_range=condition
        )
        if self.origin.rules.profile == "generic" and not self.is_alone and self._long_timer is None:
            self._long_timer = self.ledger.loop.call_later(LONG_POLL_S, self._waits_for_long)

    def _parts_to_ask_for(self) -> tuple[list[ByteRange], bytes | None]:
        """The ranges that go to the origin, and the condition with them."""
        if self._range is None:
            return [], None
        if self.is_alone:
            condition, can_be_judged = own_condition(self._source.fields)
            parts = [self._range]
            if self._has_several_ranges:
                parts = [] if self.origin.knows_one_range_only() else several_ranges(self._source.fields)
            return (parts, condition) if can_be_judged and parts else ([], None)
        if self._is_validation and not (self._stored is not None and self._stored.is_strong):
            return [], None  # a part of what replaces it could not be kept
        # A validation names the part too: of new content the origin then sends no more (RFC 9110 section 13.2.2).
        part = aligned_range(self.exchanges[0], SLICE_BYTES)
        return ([] if part is None else [part]), None

    def _waits_for_long(self) -> None:
        """A long poll, by all signs: whoever waits behind its viewer would be answered when he is, if at all."""
        self._long_timer = None
        if self.is_answered or self.is_alone:
            return
        self.is_alone = True
        self._others = OTHERS_AGAIN
        self.ledger.unlist(self)
        self.ledger.remembered.not_shareable(self.key, LONG_POLL_REMEMBERED_S)
        others, self.exchanges = self.exchanges[1:], self.exchanges[:1]
        self.ledger.answered(others)
        for exchange in others:
            exchange.alone()
        self.exchanges[0].split()

    def _ask_again(self, *, as_asked: bool = False) -> None:
        """Without conditions; `as_asked`: exactly the leader's part, for him alone."""
        self._cancel()
        if as_asked:
            self.is_alone = True
            self._others = OTHERS_AGAIN
            self.ledger.unlist(self)
        self.start(unconditional=True)

    # -- the sink of the upstream call ---------------------------------------------------------------------------------

    def interim_received(self, response: Response) -> None:
        # To whose request it answers, and to nobody who waits behind him on another worker: whether the final response
        # is for them too isn't known yet.
        if self.exchanges:
            self.exchanges[0].interim(interim_head(response))

    def head_received(self, response: Response, upstream: Upstream) -> None:
        self._response_ns = clock.monotonic_ns()
        self._has_age = has(response.fields, b"age")
        wall_s = clock.wall_s()
        self.origin.answered += 1
        self.origin.refused += response.status >= 400
        try:
            self._take_tags(response)
            if response.status == 304 and self._is_validation:
                self._validated(response, wall_s)
            elif response.status == 304:
                raise OriginError("unasked-304", f"{upstream}: 304 to a request without conditions")
            elif response.status == 206 and self._requested_range is None and not self._has_asked_several:
                raise OriginError("unasked-206", f"{upstream}: 206 to a request without Range")
            elif response.status == 206 and self._is_validation and self._is_of_stored(response):
                self._validated(response, wall_s)  # an origin that looks at Range before the condition
                if self.is_answered:
                    self.abandon()
            elif response.status == 200 and self._has_asked_several and self._condition is None:
                self._take_slices()
            elif response.status in STALE_STATUSES and self._serve_stale("5xx"):
                self.abandon()
            else:
                self._respond(response, upstream, wall_s)
        except OriginError as error:
            self._cancel()
            self.failed(error, True)

    def _take_tags(self, response: Response) -> None:
        """What is known by tags that were purged since it was asked for is purged too (the flight is withdrawn)."""
        try:
            tags = tags_of(response.fields)
        except OriginError as error:
            self.ledger.note_error(self.origin, error)
            self.ledger.remembered.not_shareable(self.key, NOT_SHAREABLE_S)
            tags, self.is_withdrawn = None, True
        if tags is None and not self.is_withdrawn:
            return
        if not self.origin.rules.forward_tags:
            response.fields[:] = without_tags(response.fields)
        self._tags = tuple(map(number_of_tag, tags or ()))
        if self.ledger.withdrawn_tags.covers(self._tags, self.origin.id, self._requested_ns):
            self.is_withdrawn = True
        if self.is_withdrawn:
            self.ledger.unlist(self)

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
        if not self.is_answered:
            self._answer(lambda exchange: exchange.error(502))
        self.ledger.over(self)

    def failed(self, error: OriginError, received_any: bool) -> None:
        """No head came, or a bad one (a body that breaks off is the fill's matter)."""
        if self._fill is not None:
            self._fill.failed(error, received_any)
        if not self.is_answered:
            self.ledger.note_error(self.origin, error)
            if not self._serve_stale("disconnected"):
                # What may not be used without validation, and can't be validated: RFC 9111 section 5.2.2.2 says 504.
                status = 504 if self._kept is not None and error.kind not in _OURS else error.status
                self._answer(lambda exchange: exchange.error(status))
        self.ledger.over(self)

    # -- answers -------------------------------------------------------------------------------------------------------

    def _answer(
        self, to_first: Callable[[Exchange], None], to_others: Callable[[Exchange], None] | None = None
    ) -> None:
        """Each exchange once; from here on nobody joins, and no viewer's head or object is held here."""
        self.is_answered = True
        self.ledger.unlist(self)
        exchanges, self.exchanges = self.exchanges, []
        self.ledger.answered(exchanges)
        to_first(exchanges[0])
        for exchange in exchanges[1:]:
            (to_others or to_first)(exchange)

    def _answer_match(self, status: int) -> None:
        self._answer(lambda e: e.match(status), lambda e: e.match(status, joined=True))

    def _answer_leader(self, stored: StoredObject, status: int, others: int) -> None:
        def to_others(exchange: Exchange) -> None:
            if others == OTHERS_AGAIN:
                exchange.match(status, False)
            elif others == OTHERS_ALONE:
                exchange.alone(status)
            else:
                exchange.error(others)

        self._answer(lambda e: e.leader(stored, status, others), to_others)

    def _respond(self, response: Response, upstream: Upstream, wall_s: float) -> None:
        verdict = decide(
            self._source.fields, self._source.method, self.path, self.origin.rules, response.status, response.fields,
            request_wall_s=self._requested_wall_s, response_wall_s=wall_s,
            is_timing=self.ledger.remembered.is_timing(self.key),
        )  # fmt: skip
        if self._source.method == b"HEAD" and response.status == 200 and not self.is_withdrawn:
            self._freshen(response, wall_s)
        verdict = self._held_not_found(verdict, response.status)
        if response.status == 206 and self._condition is not None and not holds(self._condition, response.fields):
            raise OriginError("changed", f"{upstream}: a part of another representation than If-Range names")
        part, asked = verdict.partial, self._requested_range
        if part is not None and asked is not None and not is_what_was_asked(part, *asked):
            raise OriginError("content-range", f"{upstream}: another range than the one asked for")
        self._verdict = verdict
        may_list = not self.is_alone and not self.is_withdrawn
        if self._is_validation and not verdict.store and ends_stored(response.status, verdict):
            assert self._stored is not None
            self._withdraw(self._stored)  # RFC 9111 section 4.3.3: the full response takes its place
        if response.status == 206 and not (verdict.shareable and may_list):
            if not self.is_alone and self._has_several_ranges:
                self.ledger.remembered.uncombinable(self.key)
                self._range = None
                self._ask_again()
                return
            # As it stands it is his only if it is the part that he asked for, on his own condition.
            is_his = self._requested_range == self._range and not has(self._source.fields, b"if-range")
            if not self.is_alone and not is_his:
                self.ledger.remembered.uncombinable(self.key)
                self._ask_again(as_asked=True)
                return
            self._pass(response, upstream, verdict)
        elif may_list and (verdict.store or response.status == 206 or answers_waiting(response.status, verdict)):
            self._store(response, upstream, verdict, wall_s)
        else:
            self._pass(response, upstream, verdict)

    def _is_of_stored(self, response: Response) -> bool:
        """Whether a part is one of what is stored, by its strong tag."""
        tag = selected_etag(response.fields)
        stored = self._stored
        return (
            stored is not None and stored.is_strong and tag is not None and not tag.startswith(b"W/")
            and tag == selected_etag(split_lines(stored.lines()))
        )  # fmt: skip

    def _take_slices(self) -> None:
        """The whole, where a few parts were asked for: from this origin they are fetched slice by slice."""
        self.origin.note_one_range_only()
        self._answer(lambda exchange: exchange.match(0, False))
        self.abandon()

    def _freshen(self, response: Response, wall_s: float) -> None:
        stored = self._plane.match(*self.key, self._first_head)
        if stored is not None:
            freshen_by_head(
                stored, self._source.fields, response.fields, self.path, self.origin.rules,
                request_wall_s=self._requested_wall_s, response_wall_s=wall_s,
                request_ns=self._requested_ns, response_ns=self._response_ns,
            )  # fmt: skip
            if not stored.is_listed and self.ledger.disk is not None:
                self.ledger.disk.forget(self.origin, self.path)

    def _held_not_found(self, verdict: Verdict, status: int) -> Verdict:
        """One 404 at the live edge answers everyone for a moment (DESIGN.md section 5)."""
        if status in (404, 410) and not verdict.store and verdict.share_waiting:
            kind = live.recognise(self.path, b"")
            if self.origin.rules.profile == "media" and (kind in live.SEGMENTS or kind in live.PLAYLISTS):
                hold_s = live.NOT_FOUND_HOLD_S
                self.ledger.loop.call_later(hold_s + 0.05, self._forget_not_found)
                return replace(verdict, store=True, shareable=True, lifetime_s=hold_s, initial_age_s=0.0)
        return verdict

    def _forget_not_found(self) -> None:
        now_ns = clock.monotonic_ns()
        for stored in self._plane.find(*self.key):
            if stored.status in (404, 410) and stored.fresh_until_ns <= now_ns:
                stored.detach()

    def _store(self, response: Response, upstream: Upstream, verdict: Verdict, wall_s: float) -> None:
        """Into the table at once: everybody who waits looks again and reads while it fills."""
        part = verdict.partial
        total = response.content_length if part is None else (part.total or 0)
        offset = 0 if part is None else part.first
        # Who ignored our Range, or says that he would, can't be asked for a part again; nor where no end is known.
        ignores_range = self._requested_range is not None or get_list(response.fields, b"accept-ranges") == [b"none"]
        has_parts = part is not None or (verdict.etag_is_strong and total >= 0 and not ignores_range)
        if not has_parts:
            limit = self._plane.memory["limit"]
            if total > limit // PINNED_SHARE:
                self.ledger.remembered.not_shareable(self.key, NOT_SHAREABLE_S)
            if total > limit // PINNED_SHARE or max(total, 0) + self.ledger.fills.pinned_bytes > limit // 2:
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
            request_ns=self._requested_ns, response_ns=self._response_ns, has_age=self._has_age,
        )  # fmt: skip
        stored = self._plane.create(
            self.origin.id, total, *head.arguments(), False, has_parts, KINDS.index(verdict.kind),
            self.origin.class_index,
        )  # fmt: skip
        vary = b"".join(name + b"\n" for name in verdict.vary)
        # Without its tags it could not be found by a purge.
        is_tagged = stored is not None and stored.set_tags(self._tags or ())
        if stored is None or not is_tagged or not stored.insert(self.path, vary, self._first_head):
            self._others = OTHERS_AGAIN
            self._pass(response, upstream, verdict)
            return
        self._plane.count("stored")
        if self.origin.knows_one_range_only():
            stored.mark_by_slices()
        if self.ledger.disk is not None:
            self.ledger.disk.admit(stored, self.origin, verdict)
        if has_parts and (offset % SLICE_BYTES or self._is_elsewhere(part is not None, total)):
            # The head is worth keeping, the body isn't where the viewer is: readers' wants fetch what they are at.
            self._answer_match(response.status)
            self.abandon()
            return
        self._fill_into(stored, upstream, offset, None if part is None else part.last + 1, is_private=False)
        if total == 0:
            stored.finish(0)
        self._answer_match(response.status)

    def _is_elsewhere(self, is_part: bool, total: int) -> bool:
        """Whether a whole body came where the leader wants a small part of a large one: a validation found it new."""
        if is_part or self._range is None:
            return False
        first, last = self._range
        asked = -first if first < 0 else (total if last is None else last + 1) - first
        return total - asked > 2 * SLICE_BYTES

    def _pass(self, response: Response, upstream: Upstream, verdict: Verdict) -> None:
        """For those who wait, or for the leader alone."""
        self._plane.count("not_stored")
        stored = private_object(
            self._plane, self.origin.id, response, requested_ns=self._requested_ns, response_ns=self._response_ns
        )
        # A 416 is about the leader's range only.
        is_of_range = response.status == 416 and self._requested_range is not None
        shares = (
            not self.is_alone and not self.is_withdrawn and not is_of_range
            and shares_error(response, verdict, self._source.fields, self.origin.rules)
        )  # fmt: skip
        if self._source.method != b"HEAD":
            self._fill_into(stored, upstream, 0, None, is_private=not shares)
            if self._fill is not None and not shares and is_event_stream(response.fields):
                self._fill.become_stream()
            if response.content_length == 0 or response.status in (204, 304):
                stored.finish(0)
        if shares:
            self._plane.count("shared_errors")
            self._answer(lambda exchange: exchange.everybody(stored, response.status))
            return
        others = self._others
        if self.is_withdrawn or is_of_range or lies_in_request(verdict):
            others = OTHERS_AGAIN
        if not self.is_alone and verdict.waiting_status:
            others = verdict.waiting_status
        if verdict.not_shareable_for_s and not self.is_alone and not self.is_withdrawn:
            self.ledger.remembered.not_shareable(self.key, verdict.not_shareable_for_s)
        self._answer_leader(stored, response.status, others)

    def _fill_into(
        self, stored: StoredObject, upstream: Upstream, offset: int, end: int | None, *, is_private: bool
    ) -> None:
        verdict = self._verdict
        self._fill = Fill(
            self.ledger.dataplane, stored, offset, end, is_private=is_private, source=self._source,
            etag=verdict.etag if verdict is not None and verdict.etag_is_strong and stored.total_length >= 0 else None,
            ended=self._fill_ended, keeper=None if is_private else self.ledger.disk,
        )  # fmt: skip
        self._fill.call = self._call
        self._fill.started(upstream)
        self.ledger.fills.begun(self._fill)

    def _fill_ended(self, fill: Fill) -> None:
        self.ledger.fills.over(fill)
        self.ledger.over(self)
        verdict = self._verdict
        if verdict is not None and fill.stored.is_complete and fill.stored.is_listed and verdict.kind in live.PLAYLISTS:
            # What a playlist is, only its body says: its lifetime and how long it may be stale follow.
            self._apply_manifest(fill.stored, verdict, self._fields)

    def _apply_manifest(self, stored: StoredObject, verdict: Verdict, fields: Fields) -> None:
        body = stored.body(live.MANIFEST_SIZE_MAX + 1)
        manifest = live.read_manifest(body, self.path, get_first(fields, b"content-type") or b"")
        if manifest is None:
            return
        self.ledger.remembered.timing(self.key, manifest.timing_urls)
        known = with_manifest(verdict, manifest, self.origin.rules, is_blocking=b"_HLS_msn=" in self.path)
        head = compose(
            stored.status, with_exposed(fields), known,
            request_ns=self._requested_ns, response_ns=self._response_ns, has_age=self._has_age,
        )  # fmt: skip
        stored.set_head(*head.arguments())

    def _validated(self, response: Response, wall_s: float) -> None:
        """304: the stored response is good (RFC 9111 section 4.3.4)."""
        object_ = self._stored
        assert object_ is not None
        stored = split_lines(object_.lines())
        if object_.is_failed or not matches_304(
            selected_etag(stored), get_first(stored, b"last-modified"), response.fields
        ):
            self._ask_again()
            return
        validated = decide_304(
            self._source.fields, self.path, self.origin.rules, object_.status, stored, response.fields,
            request_wall_s=self._requested_wall_s, response_wall_s=wall_s,
        )  # fmt: skip
        self._plane.count("validated")
        verdict = self._verdict = validated.verdict
        if not verdict.store or self.is_withdrawn:
            if not lies_in_request(verdict):
                self._withdraw(object_)
            self._answer_leader(object_, 304, OTHERS_AGAIN)
            return
        head = compose(
            object_.status, with_exposed(validated.fields), verdict,
            request_ns=self._requested_ns, response_ns=self._response_ns, has_age=self._has_age,
        )  # fmt: skip
        checked_ns = object_.validated_ns
        is_tagged = self._tags is None or object_.set_tags(self._tags)
        if not is_tagged or not object_.set_head(*head.arguments()):
            object_.detach()
        elif verdict.kind in live.PLAYLISTS and object_.is_complete:
            self._apply_manifest(object_, verdict, validated.fields)
        if self.ledger.disk is not None:
            self.ledger.disk.head_changed(object_, checked_ns)
        self._answer_match(304)

    def _withdraw(self, stored: StoredObject) -> None:
        """What is stored of the key may not be used any more, here nor from the disk."""
        stored.detach()
        if self.ledger.disk is not None:
            self.ledger.disk.forget(self.origin, self.path)

    @property
    def _kept(self) -> Verdict | None:
        """The verdict on what is stored of it, and is there for more than those who waited for it."""
        stored = self._stored
        return None if stored is None else kept_verdict(stored, self.path, self.origin.rules)

    def _serve_stale(self, failure: Failure) -> bool:
        stored = self._stored
        if stored is None or self.is_answered or self.is_withdrawn or self.is_alone:
            return False
        verdict = self._kept
        asked = None if self._has_several_ranges else self._range
        if verdict is None or not permits_stale(stored, verdict, failure, asked, self.origin.rules):
            return False
        self._answer(lambda exchange: exchange.stale(stored))
        return True

    # -- ends ----------------------------------------------------------------------------------------------------------

    def leave(self, exchange: Exchange) -> None:
        """The last viewer of an exchange has left; the answer is still wanted, unless it was for him alone."""
        if self.is_alone and not self.is_answered:
            self._answer(lambda waiting: waiting.done())
            self.abandon()

    def abandon(self) -> None:
        """No further word of the origin is wanted."""
        self._cancel()
        self.ledger.over(self)

    def release(self) -> None:
        """Over: holds nothing any more. Left to the garbage collector, cycles through calls and fills kept objects
        from being evicted for minutes, which is all memory where there is little of it."""
        self._call = self._fill = self._stored = None
        if self._long_timer is not None:
            self._long_timer.cancel()
            self._long_timer = None

    def _cancel(self) -> None:
        if self._call is not None:
            self._call.cancel()
            self._call = None
