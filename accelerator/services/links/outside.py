"""What comes by WAN links past their pacing: tunnels, whose bytes workers move, and relays, whose senders can't be held
back. Only counted here, so that a link's budget leaves it its place; nothing is slowed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping

# Bytes that an origin's tunnels have brought, by its number; what tells a leg, its interface (ANY: the first link's),
# and the bytes that have come.
TunnelBytes = Callable[[], Mapping[int, int]]
RelayBytes = Callable[[], Iterable[tuple[object, str, int]]]
ANY = "*"
KINDS = ("tunnels", "relays")


class Outside:
    """`link_of_origin`, `link_of_interface`: a link's name, "": none of ours."""

    def __init__(self, tunnels: TunnelBytes, relays: RelayBytes) -> None:
        self._tunnels, self._relays = tunnels, relays
        self._seen: dict[object, int] = {}
        # Since the start, by link and kind.
        self.totals: Counter[tuple[str, str]] = Counter()

    def grown(
        self, link_of_origin: Callable[[int], str], link_of_interface: Callable[[str], str]
    ) -> Mapping[str, int]:
        """Bytes by link since the last time."""
        seen: dict[object, int] = {}
        grown: Counter[str] = Counter()
        rows: list[tuple[tuple[str, object], str, int]] = []
        rows += [(("tunnels", origin), link_of_origin(origin), n) for origin, n in self._tunnels().items()]
        rows += [(("relays", leg), link_of_interface(interface), n) for leg, interface, n in self._relays()]
        for key, link, n in rows:
            seen[key] = n
            before = self._seen.get(key, 0)
            more = n - before if n >= before else n  # smaller: another one's, in the same place
            if link and more > 0:
                grown[link] += more
                self.totals[link, key[0]] += more
        self._seen = seen
        return grown
