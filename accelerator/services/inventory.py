"""What is stored, as operators see and purge it: listing, purge by viewers' URLs. Changes nothing but by purge."""

from __future__ import annotations

import asyncio
import heapq
import secrets
from collections import OrderedDict
from collections.abc import Callable
from hashlib import blake2s
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from accelerator import clock
from accelerator.dataplane import BOX_ORIGIN
from accelerator.errors import ControlError
from accelerator.services.flight import KINDS
from accelerator.services.heads import NS
from accelerator.services.queries import shown_key

if TYPE_CHECKING:
    from accelerator.dataplane import DataPlane, StoredObject
    from accelerator.services.fetch import Fetcher
    from accelerator.services.origins import Origins

UNKNOWN_HOST = -1  # Plane.route

# Rows looked at before others have their turn: about 1 ms. A listing of 100,000 objects must not delay a viewer.
LOOK_AT_ONCE = 1000
# Objects listed last that can be named by their `id`: queries are never shown, so a URL can't name all of them.
NAMED_MAX = 1000

_Found = tuple[int, bytes, "StoredObject"]


class Inventory:
    def __init__(self, dataplane: DataPlane, origins: Origins, fetcher: Fetcher) -> None:
        self._dataplane = dataplane
        self._plane = dataplane.plane
        self._origins = origins
        self._fetcher = fetcher
        self.class_names: list[str] = []
        # Without a secret, short queries could be found again by trying them.
        self._secret = secrets.token_bytes(32)
        self._named: OrderedDict[str, tuple[int, bytes]] = OrderedDict()

    async def listing(
        self, *, prefix: str | None, contains: str | None, origin: str | None, sort: str, offset: int, limit: int
    ) -> dict[str, Any]:
        """CacheList of control.box. Looks at all objects in pieces; builds the page's rows only."""
        origin_id = self._origin_id(origin) if origin is not None else None
        now_ns = clock.monotonic_ns()
        matches = self._prefix_matcher(prefix) if prefix is not None else None
        needle = contains.lower().encode() if contains is not None else b""
        order = self._order(sort)
        everything = self._plane.objects()
        total = 0
        first: list[tuple[Any, int, _Found]] = []  # the offset + limit first ones so far
        for begin in range(0, len(everything), LOOK_AT_ONCE):
            piece = []
            for index in range(begin, min(begin + LOOK_AT_ONCE, len(everything))):
                row_origin, key, stored = everything[index]
                if row_origin == BOX_ORIGIN or (origin_id is not None and row_origin != origin_id):
                    continue
                if matches is not None and not matches(row_origin, key):
                    continue
                if needle and needle not in self._searched(row_origin, key):
                    continue
                piece.append((order(row_origin, key, stored), index, (row_origin, key, stored)))
            total += len(piece)
            piece.sort()
            first = list(heapq.merge(first, piece))[: offset + limit]
            await asyncio.sleep(0)
        return {"total": total, "objects": [self._row(*found, now_ns) for _, _, found in first[offset:]]}

    def _order(self, sort: str) -> Callable[[int, bytes, StoredObject], Any]:
        if sort == "url":
            return lambda origin_id, key, _: (self._host(origin_id), key)
        if sort == "size":
            return lambda _, __, stored: -stored.filled_bytes
        if sort == "age":
            return lambda _, __, stored: stored.born_ns
        return lambda _, __, stored: -stored.fresh_until_ns

    def _searched(self, origin_id: int, key: bytes) -> bytes:
        """What `contains` looks into: what is shown, and so never the query."""
        return (self._host(origin_id).encode() + key.partition(b"?")[0]).lower()

    def purge(self, *, url: str | None, prefix: str | None, origin: str | None) -> dict[str, int]:
        """Takes objects out of the table before it returns; fills under way go on for their readers only."""
        if url is not None:
            origin_id, key = self._locate(url)
            matches: Callable[[int, bytes], bool] = lambda o, k: (o, k) == (origin_id, key)  # noqa: E731
            found = [(origin_id, key, stored) for stored in self._plane.find(origin_id, key)]
        elif prefix is not None:
            matches = self._prefix_matcher(prefix)
            found = self._plane.objects()
        else:
            assert origin is not None
            wanted = self._origin_id(origin)
            matches = lambda o, k: o == wanted  # noqa: E731
            found = self._plane.objects()
        self._fetcher.withdraw(matches)
        purged = 0
        for row_origin, key, stored in found:
            if row_origin != BOX_ORIGIN and matches(row_origin, key):
                purged += bool(stored.is_complete)
                stored.detach()
        self._plane.count("purged", purged)
        return {"purged": purged}

    def purge_named(self, name: str) -> dict[str, int]:
        """What a listing called `id`: one key with all its variants. Raises ControlError("unknown-object")."""
        named = self._named.get(name)
        if named is None:
            raise ControlError("unknown-object", "this object was listed too long ago: list it again")
        self._fetcher.withdraw(lambda origin_id, key: (origin_id, key) == named)
        purged = 0
        for stored in self._plane.find(*named):
            purged += bool(stored.is_complete)
            stored.detach()
        self._plane.count("purged", purged)
        return {"purged": purged}

    def shown_url(self, name: str) -> str:
        """Of what purge_named() takes; "" where it is not known."""
        named = self._named.get(name)
        return self._url(*named) if named is not None else ""

    def _name(self, origin_id: int, key: bytes) -> str:
        name = blake2s(b"%d " % origin_id + key, key=self._secret, digest_size=12).hexdigest()
        self._named[name] = (origin_id, key)
        self._named.move_to_end(name)
        if len(self._named) > NAMED_MAX:
            self._named.popitem(last=False)
        return name

    def _row(self, origin_id: int, key: bytes, stored: StoredObject, now_ns: int) -> dict[str, Any]:
        origin = self._origins.by_id.get(origin_id)
        class_index = origin.class_index if origin is not None else 0
        ttl_s = (stored.fresh_until_ns - now_ns) / NS if stored.fresh_until_ns else 0.0
        state = "fresh" if ttl_s > 0 else "stale"
        if not stored.is_complete:
            state = "filling" if stored.is_filling else "partial"
        return {
            "id": self._name(origin_id, key),
            "url": self._url(origin_id, key),
            "origin": self._dataplane.origin_name(origin_id),
            "status": stored.status,
            "size_bytes": stored.filled_bytes,
            "age_s": round((now_ns - stored.born_ns) / NS, 3),
            "ttl_s": round(ttl_s, 3),
            "state": state,
            "class": self.class_names[class_index - 1] if class_index else None,
            "kind": KINDS[stored.kind].value,
        }

    def _url(self, origin_id: int, key: bytes) -> str:
        """A viewer's URL of the object: any host that leads to its origin. For its query stands a digest."""
        return f"http://{self._host(origin_id)}{shown_key(key)}"

    def _host(self, origin_id: int) -> str:
        origin = self._origins.by_id.get(origin_id)
        return origin.policy.hosts[0] if origin is not None else "gone"

    def _origin_id(self, name: str) -> int:
        origin = self._origins.by_name(name)
        if origin is None:
            raise ControlError("unknown-origin", f"there is no origin '{name}'")
        return origin.id

    def _locate(self, url: str) -> tuple[int, bytes]:
        """(origin row, key) of a viewer's URL, routed as the workers do. Raises ControlError."""
        host, path = _split(url)
        origin_id: int = self._plane.route(host, path)
        if origin_id < 0:
            raise ControlError("no-origin", "no origin of the policy serves this URL")
        return origin_id, self._plane.key_of(origin_id, path)

    def _prefix_matcher(self, prefix: str) -> Callable[[int, bytes], bool]:
        """Several origins may share a host, each with paths of its own below the prefix."""
        host, path = _split(prefix)
        if self._plane.route(host, b"/") == UNKNOWN_HOST:
            raise ControlError("no-origin", "no origin of the policy serves this host")
        keys: dict[int, bytes] = {}

        def matches(origin_id: int, key: bytes) -> bool:
            if origin_id not in keys:
                keys[origin_id] = self._plane.key_of(origin_id, path)
            return key.startswith(keys[origin_id]) and self._plane.route(host, key) == origin_id

        return matches


def _split(url: str) -> tuple[bytes, bytes]:
    """(host without port, path and query as a viewer's request has them) of a URL. Raises ControlError.

    urlsplit() drops an empty query, and a `?` at the end is another key.
    """
    try:
        parts = urlsplit(url)
        host = (parts.hostname or "").encode("ascii")
        rest = url.partition("#")[0].partition("://")[2]
        begin = min((at for at in (rest.find("/"), rest.find("?")) if at >= 0), default=len(rest))
        path = rest[begin:].encode("ascii")
    except (ValueError, UnicodeError):
        raise ControlError("bad-url", "not a URL that a viewer could ask for") from None
    if parts.scheme not in ("http", "https") or not host:
        raise ControlError("bad-url", "a URL begins with http:// or https:// and a host")
    return host, path if path.startswith(b"/") else b"/" + path
