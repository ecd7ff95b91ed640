"""Manifests for viewers who came by a URL prefix: the origin's own, got and kept by the rules for everybody, and
written anew for whoever asks. What is written anew is never stored, neither in memory nor on the disk: no other
viewer can get it, and who purges the manifest has purged it.

The worker keeps such requests apart by their key's first byte; those that come together share one answer.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from accelerator import clock
from accelerator.dataplane import FOREVER_NS, parse_request
from accelerator.protocols import url_prefix
from accelerator.protocols.fields import get_first
from accelerator.protocols.live import MANIFEST_SIZE_MAX
from accelerator.protocols.url_prefix import Places
from accelerator.services.objects.heads import join_lines, split_lines, status_line
from accelerator.services.objects.sharing import OTHERS_AGAIN

if TYPE_CHECKING:
    from accelerator.dataplane import Exchange, StoredObject
    from accelerator.policy.model import Policy
    from accelerator.services.fetch.ledger import Ledger
    from accelerator.services.origins.origins import Origin

_MARK = b"\x01"  # ext/serve.pyx REWRITTEN
_LOOK_S = 0.005
_WAIT_S = 30.0
_TRIES_MAX = 4
# What is said of the origin's bytes is not true of ours; and nobody asks for parts of a manifest.
_LEFT_OUT = frozenset(
    {b"accept-ranges", b"content-digest", b"content-length", b"content-md5", b"digest", b"etag", b"last-modified",
     b"repr-digest"}
)  # fmt: skip
# Of the viewer's request: the manifest is wanted whole and as it is.
_NOT_ASKED = (b"accept-encoding", b"if-modified-since", b"if-none-match", b"if-range", b"range")
_numbers = itertools.count()

LookUp = Callable[[Any, "Origin", Any], None]  # (exchange, origin, request)


def is_rewritten(key: bytes) -> bool:
    return key.startswith(_MARK)


def places_of(policy: Policy) -> Places:
    """Hosts of origins, as viewers and as the origins themselves write them in manifests."""
    exact: dict[bytes, dict[bytes, bytes]] = {}
    suffixes: dict[bytes, dict[bytes, bytes]] = {}
    for name, origin in policy.origins.items():
        for host in (*origin.hosts, *(url.host for url in origin.from_)):
            if host == "*":
                continue
            rows = suffixes if host.startswith("*.") else exact
            known = rows.setdefault(host.removeprefix("*").encode(), {})
            for path in origin.paths:
                known.setdefault(path.encode(), name.encode())
    by_length = sorted(suffixes.items(), key=lambda each: -len(each[0]))
    return Places(
        {host: _longest_first(rows) for host, rows in exact.items()},
        tuple((suffix, _longest_first(rows)) for suffix, rows in by_length),
    )


def _longest_first(rows: Mapping[bytes, bytes]) -> Sequence[tuple[bytes, bytes]]:
    return tuple(sorted(rows.items(), key=lambda row: -len(row[0])))


class PrefixedManifest:
    """One question of a worker. To flights and to the disk it is an exchange for the manifest under its own key
    (dataplane.Exchange); what they answer with is written anew, and answers the worker. `look_up` asks for it."""

    def __init__(
        self, ledger: Ledger, places: Places, look_up: LookUp, origin: Origin, exchange: Exchange
    ) -> None:
        self._ledger = ledger
        self._places = places
        self._look_up = look_up
        self._origin_row = origin
        self._exchange = exchange
        self._plane = ledger.dataplane.plane
        self._n_tries = 0
        self._asked_ns = clock.monotonic_ns()
        self.origin = exchange.origin
        self.key = exchange.key[len(_MARK) :]
        self.head = plain_head(exchange.head)
        self.identity = (-1, next(_numbers), 0)
        self.kind = "miss"
        self.stored: StoredObject | None = None
        self.body = None
        self.listener, self.zone = exchange.listener, exchange.zone
        self.arrival_ns = exchange.arrival_ns
        self.tables_generation = exchange.tables_generation
        self.offset = 0
        self.range_first = self.range_last = -1

    def begin(self) -> None:
        """From what is stored, where it may be used; else from the origin."""
        found = self._plane.match(self.origin, self.key, self.head)
        now_ns = clock.monotonic_ns()
        if found is not None and not found.is_failed:
            if found.fresh_until_ns > now_ns or found.validated_ns >= self.arrival_ns:
                self._use(found)
                return
            self.kind, self.stored = "stale", found
        self._ask()

    def _ask(self) -> None:
        request = parse_request(self.head)
        assert request is not None
        self._look_up(self, self._origin_row, request)

    # -- what flights and the disk answer ------------------------------------------------------------------------------

    def match(self, fwd_status: int = 0, stored: bool = True, joined: bool = False) -> None:
        found = self._plane.match(self.origin, self.key, self.head)
        if found is not None and not found.is_failed:
            self._use(found)
            return
        self.alone(fwd_status)

    def restored(self) -> None:
        self.begin()

    def alone(self, fwd_status: int = 0) -> None:
        self._n_tries += 1
        if self._n_tries > _TRIES_MAX:
            self._exchange.error(502)
            return
        self.kind, self.stored = "alone", None
        self._ask()

    def leader(self, stored: StoredObject, fwd_status: int = 0, others: int = 0) -> None:
        self._use(stored, is_private=True)

    def everybody(self, stored: StoredObject, fwd_status: int = 0) -> None:
        self._use(stored)

    def stale(self, stored: StoredObject, fwd_status: int = 0) -> None:
        self._use(stored)

    def error(self, status: int) -> None:
        self._exchange.error(status)

    def refuse(self, status: int) -> None:
        self._exchange.refuse(status)

    def done(self) -> None:
        self._exchange.error(503)

    def interim(self, head: bytes) -> None:
        """Nobody waits for those of a manifest."""

    def split(self) -> None:
        self._exchange.split()

    # -- the answer ----------------------------------------------------------------------------------------------------

    def _use(self, stored: StoredObject, is_private: bool = False) -> None:
        if stored.is_failed:
            self._exchange.error(502)
        elif stored.is_complete or 0 <= stored.total_length <= stored.filled_bytes:  # a private one is never "complete"
            self._answer(stored, is_private)
        elif clock.monotonic_ns() - self._asked_ns > _WAIT_S * 1e9:
            self._exchange.error(504)
        else:
            self._ledger.fills.await_whole(stored)
            self._ledger.loop.call_later(_LOOK_S, self._use, stored, is_private)

    def _answer(self, stored: StoredObject, is_private: bool) -> None:
        try:
            answer = self._written_anew(stored)
        except Exception as fault:
            self._exchange.error(502)
            self._ledger.loop.call_exception_handler({"message": "manifest not written", "exception": fault})
            return
        if answer is None:
            self._exchange.error(503)
        elif is_private or stored.vary != (b"", b""):
            self._exchange.leader(answer, stored.status, OTHERS_AGAIN)
        else:
            self._exchange.everybody(answer, stored.status)

    def _written_anew(self, stored: StoredObject) -> StoredObject | None:
        """An object of its own that nothing lists. None: no memory."""
        fields = split_lines(stored.lines())
        body = stored.body(MANIFEST_SIZE_MAX + 1)
        kind = url_prefix.kind_of(get_first(fields, b"content-type") or b"", body)
        if kind is not None and len(body) <= MANIFEST_SIZE_MAX and get_first(fields, b"content-encoding") is None:
            body = url_prefix.rewrite(kind, body, self._origin_row.name.encode(), self._places)
        elif len(body) > MANIFEST_SIZE_MAX:
            return stored  # no manifest is that large: it goes as it is
        lines = join_lines([field for field in fields if field[0].lower() not in _LEFT_OUT])
        made: StoredObject | None = self._plane.create(
            self.origin, len(body), stored.status, status_line(stored.status), lines, b"", b"", -1, FOREVER_NS, 0,
            stored.validated_ns, stored.born_ns, 0, True, False,
        )  # fmt: skip
        if made is None:
            return None
        offset = 0
        while offset < len(body):
            room = made.room(offset, len(body) - offset)
            if room is None or not len(room):
                return None
            n = len(room)
            room[:] = body[offset : offset + n]
            made.commit(offset, n)
            offset += n
        made.finish(len(body))
        return made


def plain_head(head: bytes) -> bytes:
    """A viewer's request for the manifest whole, by GET, without what selects a part or a coding of it."""
    request_line, _, rest = head.lstrip(b"\r\n").partition(b"\r\n")
    kept = [
        line for line in rest.split(b"\r\n") if line.partition(b":")[0].strip().lower() not in _NOT_ASKED
    ]
    method, space, target = request_line.partition(b" ")
    return b"\r\n".join([(b"GET" if method == b"HEAD" else method) + space + target, *kept])

