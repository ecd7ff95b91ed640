"""Health of an origin's upstreams as its requests see it: a breaker for each, its changes told. Sends nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from accelerator.errors import OriginError
from accelerator.io.origin import OriginCounters, Upstream, UpstreamEvent
from accelerator.protocols.breaker import Breaker, Permit

NoteEvent = Callable[[UpstreamEvent], None]


@dataclass(frozen=True)
class UpstreamHealth:
    """`state`: ok, suspect, open, half-open. `n_failures` of the last 20 outcomes; `error`: of the last failure."""

    upstream: Upstream
    state: str
    n_failures: int
    trial_in_s: float
    error: str

    @property
    def is_out(self) -> bool:
        """Not asked for now, but for trials."""
        return self.state in ("open", "half-open")


class Attempt:
    """One request's leave to ask one upstream. Ends once: what is told after that is ignored."""

    __slots__ = ("_health", "_permit", "upstream")

    def __init__(self, health: Health, upstream: Upstream, permit: Permit) -> None:
        self.upstream = upstream
        self._health = health
        self._permit = permit

    def answered(self) -> None:
        self._health._told(self.upstream, lambda breaker: breaker.answered(self._permit))

    def released(self) -> None:
        self._health._told(self.upstream, lambda breaker: breaker.released(self._permit))

    def failed(self, error: str) -> None:
        now_s = self._health._loop.time()
        self._health._told(self.upstream, lambda breaker: breaker.failed(self._permit, now_s), error)

    def connect_failed(self, error: str) -> None:
        now_s = self._health._loop.time()
        self._health._told(self.upstream, lambda breaker: breaker.connect_failed(self._permit, now_s), error)


class Health:
    """Of one set of upstreams; other settings get another one. `opened()` is called when a breaker opens."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        upstreams: tuple[Upstream, ...],
        counters: OriginCounters,
        note_event: NoteEvent,
        opened: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._counters = counters
        self._note_event: NoteEvent | None = note_event
        self._opened = opened
        self._breakers = {upstream: Breaker() for upstream in upstreams}
        self._errors = dict.fromkeys(upstreams, "")
        self._connecting: dict[Upstream, set[asyncio.Timeout]] = {upstream: set() for upstream in upstreams}

    def retire(self) -> None:
        """Other upstreams are asked now: what becomes of these is nobody's news."""
        self._note_event = None

    def may_ask_any(self) -> bool:
        now_s = self._loop.time()
        return any(breaker.may_ask(now_s) for breaker in self._breakers.values())

    def admit(self, upstream: Upstream) -> Attempt | None:
        permit = self._breakers[upstream].admit(self._loop.time())
        return None if permit is None else Attempt(self, upstream, permit)

    @asynccontextmanager
    async def connecting(self, upstream: Upstream) -> AsyncIterator[None]:
        """Around a connect: when the breaker opens meanwhile, OriginError('breaker-open') ends it at once."""
        try:
            async with asyncio.timeout(None) as scope:
                self._connecting[upstream].add(scope)
                try:
                    yield
                finally:
                    self._connecting[upstream].discard(scope)
        except TimeoutError as exc:
            raise self.refusal(upstream) from exc

    def refusal(self, upstream: Upstream | None = None) -> OriginError:
        """Why `upstream`, or none of them, is asked now."""
        self._counters.breaker_refused += upstream is None
        now_s = self._loop.time()
        upstreams = self._breakers if upstream is None else (upstream,)
        parts = [
            f"{one}: out of use, next trial in {self._breakers[one].trial_in_s(now_s):.1f} s ({self._errors[one]})"
            for one in upstreams
        ]
        return OriginError("breaker-open", "; ".join(parts), status=503, can_retry=True)

    def snapshot(self) -> tuple[UpstreamHealth, ...]:
        now_s = self._loop.time()
        return tuple(
            UpstreamHealth(
                upstream, breaker.state(now_s).value, breaker.n_failures, breaker.trial_in_s(now_s),
                self._errors[upstream],
            )
            for upstream, breaker in self._breakers.items()
        )  # fmt: skip

    def _told(self, upstream: Upstream, tell: Callable[[Breaker], None], error: str = "") -> None:
        breaker = self._breakers[upstream]
        was_closed = breaker.is_closed
        self._errors[upstream] = error or self._errors[upstream]
        tell(breaker)
        if breaker.is_closed == was_closed:
            return
        if breaker.is_closed:
            self._note("breaker-closed", upstream, "answers again")
            return
        self._counters.breaker_opened += 1
        self._note("breaker-open", upstream, f"is not asked any more but for trials: {error}")
        now_s = self._loop.time()
        for scope in self._connecting[upstream]:
            if not scope.expired():
                scope.reschedule(now_s)
        self._opened()

    def _note(self, kind: str, upstream: Upstream, message: str) -> None:
        if self._note_event is not None:
            self._note_event(UpstreamEvent(kind, str(upstream), message))
