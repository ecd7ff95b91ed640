"""Whether a WAN link may be used, damped: down after a few failures in a row, up again only once it has been good for a
while, longer each time that it flaps. And which of an origin's links that leaves. Pure; probes are made elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

# Probes come each second: a link that is dead is left within three.
FAILURES_DOWN = 3
GOOD_S = 5.0
# Each return within this time of the last fall doubles the time that the link has to be good for.
FLAP_S = 600.0
GOOD_S_MAX = 160.0


class LinkHealth:
    """One link. Up until known otherwise: a box that has just started must not wait for probes."""

    def __init__(self) -> None:
        self.is_up = True
        self.why = ""
        self._failures = 0
        self._good_since_s: float | None = None
        self._down_s = float("-inf")
        self._good_s = GOOD_S

    def failed(self, why: str, now_s: float) -> bool:
        """A probe failed. Whether that makes the link down."""
        self._failures += 1
        self._good_since_s = None
        return self._failures >= FAILURES_DOWN and self._fall(why, now_s)

    def lost(self, why: str, now_s: float) -> bool:
        """The interface is gone or has no carrier: no probe is needed. Whether that makes the link down."""
        self._failures = FAILURES_DOWN
        self._good_since_s = None
        return self._fall(why, now_s)

    def worked(self, now_s: float) -> bool:
        """A probe was answered, or the interface is well where there is none. Whether the link is up again by that."""
        self._failures = 0
        if self.is_up:
            return False
        if self._good_since_s is None:
            self._good_since_s = now_s
        if now_s - self._good_since_s < self._good_s:
            return False
        self.is_up, self.why = True, ""
        return True

    def left_s(self, now_s: float) -> float:
        """How long a link that is down has to be good yet; 0: it is up."""
        if self.is_up:
            return 0.0
        return self._good_s if self._good_since_s is None else max(0.0, self._good_s - (now_s - self._good_since_s))

    def _fall(self, why: str, now_s: float) -> bool:
        was_up = self.is_up
        self.is_up, self.why = False, why
        if was_up:
            is_flap = now_s - self._down_s < FLAP_S
            self._good_s = min(GOOD_S_MAX, self._good_s * 2) if is_flap else GOOD_S
            self._down_s = now_s
        return was_up


def choose(links: Sequence[str], is_up: Callable[[str], bool]) -> str | None:
    """The first that is up; where none is, the first of all: to try the best one beats trying nothing."""
    return next((each for each in links if is_up(each)), links[0] if links else None)
