"""What the box gives up when memory runs short, rung by rung, and what it takes back. Sans-IO.

    share of the limit   NONE --0.85--> SHRINK --0.92--> NO_KEEP_ALIVE --0.95--> REFUSE

SHRINK takes memory from the cache until the share is at 0.85 again; NO_KEEP_ALIVE closes connections after their
answer; REFUSE turns new connections away (503, Retry-After), so that those who watch already go on. A rung is left 0.03
below where it begins, so that the box does not flap (Envoy's overload manager begins at 0.92 and 0.95 too).
"""

from __future__ import annotations

from enum import IntEnum

# What the cache takes back of the limit in a second: slower than it gives, since what filled the machine may return.
REGAIN_SHARE = 0.02
HYSTERESIS = 0.03
# What the cache keeps whatever happens: without room for a few slices no miss could be passed on.
KEPT_BYTES_MIN = 16 << 20
KEPT_SHARE = 1 / 32


class Rung(IntEnum):
    NONE = 0
    SHRINK = 1
    NO_KEEP_ALIVE = 2
    REFUSE = 3


BEGINS = {Rung.SHRINK: 0.85, Rung.NO_KEEP_ALIVE: 0.92, Rung.REFUSE: 0.95}


class Ladder:
    """`rung` is where it stands; `give_up_bytes` is what the cache leaves of its own limit."""

    def __init__(self, cache_limit_bytes: int) -> None:
        self.give_up_bytes = 0
        kept_bytes = max(KEPT_BYTES_MIN, int(KEPT_SHARE * cache_limit_bytes))
        self._give_up_most = cache_limit_bytes - min(kept_bytes, cache_limit_bytes // 2)
        self._memory = self._connections = Rung.NONE

    @property
    def rung(self) -> Rung:
        return max(self._memory, self._connections)

    def observe(
        self, used_bytes: int, limit_bytes: int, cache_bytes: int, connections_share: float, since_s: float = 1.0
    ) -> None:
        """One look, `since_s` after the last. `used_bytes` of `limit_bytes` (0: unknown) are taken, of the machine or
        of the daemon's cgroup, and can't be reclaimed; `cache_bytes` of them are stored objects.

        `connections_share` is what connections take of the daemon's own limit: shrinking frees nothing of that, so it
        knows the upper rungs only."""
        self._shrink(used_bytes, limit_bytes, cache_bytes, since_s)
        self._memory = _rung(used_bytes / limit_bytes if limit_bytes > 0 else 0.0, self._memory)
        by_connections = _rung(connections_share, self._connections)
        self._connections = by_connections if by_connections >= Rung.NO_KEEP_ALIVE else Rung.NONE

    def _shrink(self, used_bytes: int, limit_bytes: int, cache_bytes: int, since_s: float) -> None:
        excess_bytes = int(used_bytes - BEGINS[Rung.SHRINK] * limit_bytes)
        if limit_bytes <= 0:
            self.give_up_bytes = 0
        elif excess_bytes > 0:
            # What was asked for last time may still be on its way: never more than is there.
            self.give_up_bytes = min(self.give_up_bytes + min(excess_bytes, cache_bytes), self._give_up_most)
        elif used_bytes < (BEGINS[Rung.SHRINK] - HYSTERESIS) * limit_bytes:
            self.give_up_bytes = max(0, self.give_up_bytes - int(REGAIN_SHARE * since_s * limit_bytes))


def _rung(share: float, now: Rung) -> Rung:
    """The highest rung that `share` reaches, or that it has not left yet."""
    return max(
        (rung for rung, begins in BEGINS.items() if share >= (begins - HYSTERESIS if now >= rung else begins)),
        default=Rung.NONE,
    )
