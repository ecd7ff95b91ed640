"""Whether a relay's input is there: from the time of its last packet, when its loss and its return are facts. Pure."""

from __future__ import annotations

from enum import Enum

# Shorter pauses are counted as loss or failover; nobody needs to be called for them.
SILENCE_NS = 2_000_000_000
# IGMP and a PIM tree that has to grow take their time before the first packet.
FIRST_NS = 5_000_000_000


class State(Enum):
    """`IDLE`: nobody asks for it. `WAITING`: asked for, nothing yet. `LIVE`. `SILENT`: lost."""

    IDLE = "idle"
    WAITING = "waiting"
    LIVE = "live"
    SILENT = "silent"


class Signal:
    """Of one relay. `update` as often as one likes; it gives the state when that has just changed."""

    def __init__(self, silence_ns: int = SILENCE_NS) -> None:
        self.state = State.IDLE
        self.since_ns = 0
        self._silence_ns = silence_ns
        self._last_ns = 0

    def update(self, now_ns: int, last_ns: int, *, is_wanted: bool) -> State | None:
        """`last_ns`: when the last good packet came, 0: none yet. A stream that comes unasked is live."""
        # An input that begins anew has had no packet yet: that is no loss.
        self._last_ns = max(self._last_ns, last_ns)
        is_fresh = self._last_ns > 0 and now_ns - self._last_ns < self._silence_ns
        if is_fresh:
            state = State.LIVE
        elif not is_wanted:
            state = State.IDLE
        elif self.state is State.LIVE:
            state = State.SILENT
        elif self.state is State.IDLE:
            state = State.WAITING
        elif self.state is State.WAITING and now_ns - self.since_ns >= FIRST_NS:
            state = State.SILENT
        else:
            state = self.state
        if state is self.state:
            return None
        self.state, self.since_ns = state, now_ns
        return state
