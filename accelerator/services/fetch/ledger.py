"""Requests to origins that are under way: who waits for which, who may join, what is withdrawn, and what all share.

Asks no origin and answers nobody: what is begun is fetcher.py's, what becomes of it flight.py's or passing.py's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from accelerator import clock
from accelerator.services.fetch.fills import Fills
from accelerator.services.objects.remembered import Key, Remembered, WithdrawnTags

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from accelerator.dataplane import DataPlane, Exchange
    from accelerator.errors import OriginError
    from accelerator.services.disk.tier import DiskTier
    from accelerator.services.fetch.fill import Fill
    from accelerator.services.origins.origins import Origin, Origins


class Request(Protocol):
    """One upstream request, and the exchanges that wait for it."""

    key: Key
    exchanges: list[Exchange]
    is_withdrawn: bool  # purged while under way: answers those who wait, is not stored

    @property
    def is_alone(self) -> bool:
        """Whether nobody may join."""

    @property
    def requested_ns(self) -> int:
        """When it asked the origin for something that may be stored; 0: not yet, or never."""

    def start(self) -> None: ...
    def leave(self, exchange: Exchange) -> None: ...
    def abandon(self) -> None: ...
    def release(self) -> None: ...


class Uploading(Protocol):
    def body_moved(self) -> None: ...


class Ledger:
    """One per box. `note_error(origin, error)` hears each upstream failure once."""

    def __init__(
        self,
        dataplane: DataPlane,
        origins: Origins,
        loop: asyncio.AbstractEventLoop,
        note_error: Callable[[Origin, OriginError], None],
    ) -> None:
        self.dataplane = dataplane
        self.origins = origins
        self.loop = loop
        self.site = b""
        self.fills = Fills(dataplane, self._note_broken_fill)
        self.remembered = Remembered(dataplane.plane)
        self.withdrawn_tags = WithdrawnTags()
        self.uploads: dict[int, Uploading] = {}  # by their body's identity
        self._disk: DiskTier | None = None
        self._note_error = note_error
        # What may be joined: by key, until it is answered.
        self._open: dict[Key, Request] = {}
        self._all: set[Request] = set()
        self._by_exchange: dict[tuple[int, int, int], tuple[Request, Exchange]] = {}

    @property
    def disk(self) -> DiskTier | None:
        """Where a miss is looked for before its origin is asked; None: there is no disk."""
        return self._disk

    @disk.setter
    def disk(self, disk: DiskTier | None) -> None:
        self._disk = self.fills.disk = disk

    @property
    def n_requests(self) -> int:
        return len(self._all)

    # -- beginning and joining -----------------------------------------------------------------------------------------

    def begin(self, request: Request, exchange: Exchange) -> None:
        self._by_exchange[exchange.identity] = (request, exchange)
        self._all.add(request)
        if not request.is_alone:
            self._open[request.key] = request
        try:
            request.start()
        except BaseException:
            self.over(request)
            raise

    def join(self, key: Key, exchange: Exchange) -> bool:
        """Whether there is one to wait for; then it is waited for."""
        request = self._open.get(key)
        if request is None:
            return False
        request.exchanges.append(exchange)
        self._by_exchange[exchange.identity] = (request, exchange)
        return True

    def leave(self, identity: tuple[int, int, int]) -> bool:
        """Its viewer has left. False: it waits for nothing that is known here."""
        waiting = self._by_exchange.get(identity)
        if waiting is not None:
            waiting[0].leave(waiting[1])
        return waiting is not None

    def abandon_all(self) -> None:
        for request in list(self._all):
            request.abandon()

    # -- what requests tell --------------------------------------------------------------------------------------------

    def unlist(self, request: Request) -> None:
        """Nobody joins any more: it has been answered, or is its leader's alone."""
        if self._open.get(request.key) is request:
            del self._open[request.key]

    def answered(self, exchanges: list[Exchange]) -> None:
        for exchange in exchanges:
            self._by_exchange.pop(exchange.identity, None)

    def over(self, request: Request) -> None:
        self.unlist(request)
        self.answered(request.exchanges)
        self._all.discard(request)
        request.release()

    def note_error(self, origin: Origin, error: OriginError) -> None:
        origin.errors += 1
        self.dataplane.plane.count("upstream_errors")
        self._note_error(origin, error)

    def _note_broken_fill(self, fill: Fill) -> None:
        if fill.error is not None:
            self.note_error(fill.source.origin, fill.error)

    # -- withdrawal ----------------------------------------------------------------------------------------------------

    def withdraw(self, matches: Callable[[int, bytes], bool]) -> None:
        """Requests under way for purged keys answer who asked before the purge, and store nothing."""
        for request in self._all:
            if matches(*request.key):
                request.is_withdrawn = True
                self.unlist(request)

    def withdraw_tag(self, tag: int, origin_id: int | None) -> None:
        """What is under way may turn out to have this tag: then it is as if it had been withdrawn by its key."""
        now_ns = clock.monotonic_ns()
        asked_ns = (request.requested_ns for request in self._all)
        self.withdrawn_tags.add(tag, origin_id, now_ns, min(filter(None, asked_ns), default=now_ns))
