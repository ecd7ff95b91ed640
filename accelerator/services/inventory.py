"""What is stored, as operators see and purge it: listing, purge by viewers' URLs. Changes nothing but by purge."""

from __future__ import annotations

import asyncio
import secrets
from collections import OrderedDict
from collections.abc import Callable
from hashlib import blake2s
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from accelerator import clock
from accelerator.dataplane import BOX_ORIGIN, COMPLETE, FILLING, list_objects
from accelerator.errors import ControlError
from accelerator.services.flight import KINDS
from accelerator.services.heads import NS
from accelerator.services.queries import shown_key
from accelerator.store.head import to_monotonic

if TYPE_CHECKING:
    from accelerator.dataplane import DataPlane
    from accelerator.services.fetch import Fetcher
    from accelerator.services.origins import Origins
    from accelerator.store.head import DiskHead

UNKNOWN_HOST = -1  # Plane.route

# Objects listed last that can be named by their `id`: queries are never shown, so a URL can't name all of them.
NAMED_MAX = 1000

_SORTS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "url": lambda row: row["url"],
    "size": lambda row: -row["size_bytes"],
    "age": lambda row: -row["age_s"],
    "ttl": lambda row: -row["ttl_s"],
}


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
        self._one_listing = asyncio.Lock()

    async def listing(
        self, *, prefix: str | None, contains: str | None, origin: str | None, class_name: str | None, sort: str,
        offset: int, limit: int,
    ) -> dict[str, Any]:  # fmt: skip
        """CacheList of control.box. Done in a thread without the GIL, one at a time. Raises ControlError."""
        only = self._origin_id(origin) if origin is not None else None
        class_index = self._class_index(class_name) if class_name is not None else None
        disk = self._fetcher.disk
        on_disk = await disk.listed() if disk is not None else []
        chosen: dict[str, Any] = {"sort": sort, "offset": offset, "limit": limit}
        if on_disk:
            chosen.update(offset=0, limit=offset + limit)  # they come between
        if contains is not None:
            chosen["contains"] = contains.lower().encode()
        if prefix is not None:
            host, path = self._located_prefix(prefix)
            chosen["prefix"] = host, [(each, self._plane.key_of(each, path)) for each in self._origins.by_id]
        async with self._one_listing:
            n_origins = len(self._dataplane.origin_names())
            wanted = [
                each != BOX_ORIGIN and only in (None, each) and class_index in (None, self._class_of(each))
                for each in range(n_origins)
            ]
            hosts = [self._host(each).encode() for each in range(n_origins)]
            total, rows = await asyncio.get_running_loop().run_in_executor(
                None, lambda: self._page(*list_objects(self._plane, hosts, wanted, **chosen))
            )
        if on_disk:
            is_below = self._prefix_matcher(prefix) if prefix is not None else lambda *_: True
            needle = contains.lower() if contains is not None else ""
            there = [
                row
                for origin_id, head in on_disk
                if wanted[origin_id] and is_below(origin_id, head.key)
                and needle in f"{self._host(origin_id)}{head.key.partition(b'?')[0].decode('latin-1')}".lower()
                for row in [self._disk_row(origin_id, head)]
            ]  # fmt: skip
            total += len(there)
            rows = sorted(rows + there, key=_SORTS[sort])[offset : offset + limit]
        return {"total": total, "objects": rows}

    def _disk_row(self, origin_id: int, head: DiskHead) -> dict[str, Any]:
        now_ns = clock.monotonic_ns()
        fresh_until_ns, _, born_ns = to_monotonic(head, now_ns, int(clock.wall_s() * NS))
        return self._row(
            now_ns, origin_id, head.key, head.status, head.total_length, born_ns, fresh_until_ns, COMPLETE, head.kind
        )

    def _page(self, total: int, found: list[tuple[Any, ...]]) -> tuple[int, list[dict[str, Any]]]:
        now_ns = clock.monotonic_ns()
        return total, [self._row(now_ns, *each) for each in found]

    async def purge(self, *, url: str | None, prefix: str | None, origin: str | None) -> dict[str, int]:
        """Takes objects out of the table, and off the disk for good, before it returns; fills under way go on for
        their readers only. Raises ControlError."""
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
        gone = {(row, key) for row, key, _ in found if row != BOX_ORIGIN and matches(row, key)}
        if url is not None:
            gone.add((origin_id, key))
        purged = self._take_out(gone)
        disk = self._fetcher.disk
        if disk is not None:
            if origin is not None:
                row = self._origins.by_id.get(wanted)
                purged += disk.forget_origin(row) if row is not None else 0
            elif prefix is not None:
                found_there, n_unread = await disk.names()
                purged += self._take_out({name for name in found_there if matches(*name)})
                if n_unread:
                    raise ControlError(
                        "disk", f"{purged} purged; {n_unread} records on the disk can't be read: purge by origin, which"
                        " needs no reading",
                    )  # fmt: skip
            await disk.settle()
        self._plane.count("purged", purged)
        return {"purged": purged}

    def _take_out(self, keys: set[tuple[int, bytes]]) -> int:
        """Out of memory and disk, without a moment between in which the one could be filled from the other."""
        purged = 0
        for origin_id, key in keys:
            in_memory = self._plane.find(origin_id, key)
            complete = sum(bool(stored.is_complete) for stored in in_memory)
            for stored in in_memory:
                stored.detach()
            origin = self._origins.by_id.get(origin_id)
            on_disk = 0
            if self._fetcher.disk is not None and origin is not None:
                on_disk = self._fetcher.disk.forget(origin, key)
            purged += max(complete, on_disk)
        return purged

    async def purge_named(self, name: str) -> dict[str, int]:
        """What a listing called `id`: one key with all its variants. Raises ControlError("unknown-object")."""
        named = self._named.get(name)
        if named is None:
            raise ControlError("unknown-object", "this object was listed too long ago: list it again")
        self._fetcher.withdraw(lambda origin_id, key: (origin_id, key) == named)
        purged = self._take_out({named})
        if self._fetcher.disk is not None:
            await self._fetcher.disk.settle()
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

    def _row(
        self, now_ns: int, origin_id: int, key: bytes, status: int, size_bytes: int, born_ns: int, fresh_until_ns: int,
        flags: int, kind: int,
    ) -> dict[str, Any]:  # fmt: skip
        class_index = self._class_of(origin_id)
        ttl_s = (fresh_until_ns - now_ns) / NS if fresh_until_ns else 0.0
        state = "fresh" if ttl_s > 0 else "stale"
        if not flags & COMPLETE:
            state = "filling" if flags & FILLING else "partial"
        return {
            "id": self._name(origin_id, key),
            "url": self._url(origin_id, key),
            "origin": self._dataplane.origin_name(origin_id),
            "status": status,
            "size_bytes": size_bytes,
            "age_s": round((now_ns - born_ns) / NS, 3),
            "ttl_s": round(ttl_s, 3),
            "state": state,
            "class": self.class_names[class_index - 1] if class_index else None,
            "kind": KINDS[kind].value,
        }

    def _url(self, origin_id: int, key: bytes) -> str:
        """A viewer's URL of the object: any host that leads to its origin. For its query stands a digest."""
        return f"http://{self._host(origin_id)}{shown_key(key)}"

    def _host(self, origin_id: int) -> str:
        origin = self._origins.by_id.get(origin_id)
        return origin.policy.hosts[0] if origin is not None else "gone"

    def _class_of(self, origin_id: int) -> int:
        """0: none; else from 1 on."""
        origin = self._origins.by_id.get(origin_id)
        return origin.class_index if origin is not None else 0

    def _class_index(self, name: str) -> int:
        if name not in self.class_names:
            raise ControlError("unknown-class", f"there is no class '{name}'")
        return self.class_names.index(name) + 1

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

    def _located_prefix(self, prefix: str) -> tuple[bytes, bytes]:
        host, path = _split(prefix)
        if self._plane.route(host, b"/") == UNKNOWN_HOST:
            raise ControlError("no-origin", "no origin of the policy serves this host")
        return host, path

    def _prefix_matcher(self, prefix: str) -> Callable[[int, bytes], bool]:
        """Several origins may share a host, each with paths of its own below the prefix."""
        host, path = self._located_prefix(prefix)
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
