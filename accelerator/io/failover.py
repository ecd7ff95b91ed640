"""Which upstream of an origin is tried first: the one that answered last, and every 30 s the first one again. Pure."""

from __future__ import annotations

from accelerator.io.origin import Upstream

FIRST_AGAIN_S = 30.0


class UpstreamOrder:
    """Sticky fail-over over `upstreams`, whose order is the policy's preference. `now_s` is any monotonic clock."""

    def __init__(self, upstreams: tuple[Upstream, ...]) -> None:
        self._upstreams = upstreams
        self._lead = 0
        self._first_again_at_s = 0.0

    def order(self, now_s: float, avoid: Upstream | None = None) -> list[Upstream]:
        """All upstreams, in the order to try. One caller in 30 s finds out about the first, the others stay."""
        upstreams = self._upstreams
        lead = upstreams[self._lead]
        order = [lead, *(upstream for upstream in upstreams if upstream != lead)]
        if self._lead and now_s >= self._first_again_at_s:
            self._first_again_at_s = now_s + FIRST_AGAIN_S
            order = [upstreams[0], *(upstream for upstream in order if upstream != upstreams[0])]
        if avoid in order:
            order.remove(avoid)
            order.append(avoid)
        return order

    def answered(self, upstream: Upstream, now_s: float) -> None:
        """`upstream` sent a response head."""
        if upstream == self._upstreams[self._lead] or upstream not in self._upstreams:
            return
        self._lead = self._upstreams.index(upstream)
        self._first_again_at_s = now_s + FIRST_AGAIN_S
