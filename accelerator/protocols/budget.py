"""The arithmetic of a WAN link's video budget: what each class may read now, and how far its windows may open. Video
comes inbound, where no queue of ours stands, so the reading itself is paced. Pure; timers and who waits: io/pacing.py.

Token buckets as in HTB: a class below its guarantee reads; above it, it borrows what the others leave, in the order of
the classes, up to its ceiling. Bytes are counted once they have been read, so a bucket may owe: nobody reads before it
has paid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

# What the wire carries for a byte of payload: 1,514 for 1,448 with Ethernet, IP, TCP and time stamps; TLS adds 2 %.
WIRE_PER_BYTE = 1.06
# A bucket holds so much of its rate. Over a window of a second this comes on top of it, and more that windows
# let through before a read is counted: rates are set lower by both.
BURST_S = 0.03
DEBT_S = 0.5
# How long a class is taken to want its guarantee after its last byte: between two segments of a live stream nothing
# is read, and bulk must have left the queues when the next one comes.
RECENT_S = 0.5
# What the sender may have under way besides a round trip: until the next read, and the read's own time.
WINDOW_SPARE_S = 0.02
WINDOW_BYTES_MIN, WINDOW_BYTES_MAX = 8 << 10, 4 << 20
QUANTUM_BYTES_MIN, QUANTUM_BYTES_MAX = 4 << 10, 256 << 10


@dataclass(frozen=True, slots=True)
class Share:
    """Of a link's rate, as parts of 1."""

    guarantee: float = 0.0
    ceiling: float = 1.0


class _Bucket:
    __slots__ = ("at_s", "level", "most", "rate")

    def __init__(self, rate: float, now_s: float) -> None:
        self.rate, self.most = rate, rate * BURST_S
        self.level, self.at_s = self.most, now_s

    def fill(self, now_s: float) -> None:
        if now_s > self.at_s:
            self.level = min(self.most, self.level + (now_s - self.at_s) * self.rate)
            self.at_s = now_s

    def wait_s(self) -> float:
        """Until there is something in it."""
        if self.level > 0:
            return 0.0
        return -self.level / self.rate + 1e-4 if self.rate > 0 else float("inf")


class _Class:
    __slots__ = ("ceiling", "guaranteed", "is_waiting", "n_flows", "rate", "read_at_s", "recent")

    def __init__(self, rate: float, share: Share, now_s: float) -> None:
        self.guaranteed = _Bucket(rate * share.guarantee, now_s)
        self.ceiling = _Bucket(rate * share.ceiling, now_s)
        self.is_waiting = False
        self.n_flows = 0
        self.read_at_s = float("-inf")
        self.recent = _Rate(now_s)


class _Rate:
    """Bytes per second, of the last half second or so."""

    __slots__ = ("at_s", "rate")

    def __init__(self, now_s: float) -> None:
        self.rate, self.at_s = 0.0, now_s

    def add(self, n: float, now_s: float) -> None:
        self.rate = self.now(now_s) + n / RECENT_S

    def now(self, now_s: float) -> float:
        self.rate *= max(0.0, 1.0 - (now_s - self.at_s) / RECENT_S)
        self.at_s = now_s
        return self.rate


class Budget:
    """One link's. Classes are numbers, the first is the most important one. The sum of the guarantees is at most 1."""

    def __init__(self, rate_bps: float, shares: Sequence[Share], now_s: float) -> None:
        self.rate_bps = rate_bps
        self.rate = rate_bps / 8 / WIRE_PER_BYTE * (1 - 2.5 * BURST_S)  # bytes of payload per second
        self._link = _Bucket(self.rate, now_s)
        self._classes = [_Class(self.rate, share, now_s) for share in shares]
        self._outside = _Rate(now_s)

    @property
    def quantum(self) -> int:
        """The most of one read: a hundredth of a second's worth."""
        return max(QUANTUM_BYTES_MIN, min(QUANTUM_BYTES_MAX, int(self.rate / 100)))

    def joined(self, index: int) -> None:
        """One more transfer of this class."""
        self._classes[index].n_flows += 1

    def left(self, index: int) -> None:
        self._classes[index].n_flows -= 1

    def took(self, index: int, n: int, now_s: float) -> None:
        """`n` bytes were read."""
        mine = self._classes[index]
        for bucket in (self._link, mine.guaranteed, mine.ceiling):
            bucket.fill(now_s)
        # What is owed for longer than a window of a second says nothing any more, and would stop everybody.
        self._link.level = max(self._link.level - n, -self._link.rate * DEBT_S)
        mine.ceiling.level = max(mine.ceiling.level - n, -mine.ceiling.rate * DEBT_S)
        # What was borrowed is not owed: else who has borrowed for an hour had nothing guaranteed in the next.
        if mine.guaranteed.level > 0:
            mine.guaranteed.level -= n
        mine.read_at_s = now_s
        mine.recent.add(n, now_s)

    def took_outside(self, n: int, now_s: float) -> None:
        """`n` bytes have come that nothing holds up, such as a tunnel's or a live relay's: of no class, and first. What
        classes read gets by with the rest."""
        self._link.fill(now_s)
        self._link.level = max(self._link.level - n, -self._link.rate * DEBT_S)
        self._outside.add(n, now_s)

    def outside_rate(self, now_s: float) -> float:
        """Bytes per second of that, of late."""
        return self._outside.now(now_s)

    def set_waiting(self, index: int, is_waiting: bool) -> None:
        """Whether a transfer of this class waits for the budget: less important ones may not borrow before it."""
        self._classes[index].is_waiting = is_waiting

    def wait_s(self, index: int, now_s: float) -> float:
        """How long a transfer of this class has to wait at least; 0: it may read now."""
        mine, link = self._classes[index], self._link
        for bucket in (mine.guaranteed, mine.ceiling, link):
            bucket.fill(now_s)
        ceiling_s = mine.ceiling.wait_s()
        if mine.guaranteed.level > 0:
            # The link may owe at most what it holds: a guarantee that was promised goes first, but never above.
            return max(ceiling_s, (-link.level - link.most) / link.rate)  if link.level < -link.most else ceiling_s
        # Whoever borrows leaves the guarantees of those who have read just now in the bucket.
        left = link.level - self._reserved(index, now_s)
        borrow_s = -left / link.rate + 1e-4 if left <= 0 else 0.0
        for other in self._classes[:index]:
            if other.is_waiting and other.ceiling.level > 0:
                borrow_s = max(borrow_s, 0.002)
        return max(ceiling_s, min(borrow_s, mine.guaranteed.wait_s()))

    def _reserved(self, index: int, now_s: float) -> float:
        reserved = 0.0
        for i, other in enumerate(self._classes):
            if i != index and now_s - other.read_at_s < RECENT_S:
                other.guaranteed.fill(now_s)
                reserved += max(0.0, other.guaranteed.level)
        return reserved

    def rate_of(self, index: int, now_s: float) -> float:
        """Bytes per second that a class has had of late."""
        return self._classes[index].recent.now(now_s)

    def window_bytes(self, index: int, round_trip_s: float, now_s: float) -> int:
        """How much one transfer's sender may have under way: what can be read in a round trip and a little, so that
        neither a burst of all senders stands in the WAN's queue nor a far one is too slow."""
        mine = self._classes[index]
        free = self.rate - self._outside.now(now_s) - sum(
            max(other.recent.now(now_s), min(other.guaranteed.rate, self.rate) if other.n_flows else 0.0)
            for i, other in enumerate(self._classes)
            if i != index
        )
        possible = min(mine.ceiling.rate, max(mine.guaranteed.rate, free, self.rate / 20))
        window = possible * (round_trip_s + WINDOW_SPARE_S) / max(1, mine.n_flows)
        return max(WINDOW_BYTES_MIN, min(WINDOW_BYTES_MAX, int(window)))
