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
from accelerator.dataplane import BOX_ORIGIN, COMPLETE, FILLING, list_objects, tagged_objects
from accelerator.errors import ControlError
from accelerator.protocols.cache_tags import number_of_tag
from accelerator.services.fetch.flight import KINDS
from accelerator.services.logs.queries import shown_key
from accelerator.services.objects.heads import NS
from accelerator.store.head import to_monotonic

if TYPE_CHECKING:
    from accelerator.dataplane import DataPlane
    from accelerator.services.fetch.ledger import Ledger
    from accelerator.services.origins.origins import Origins
    from accelerator.store.head import DiskHead

UNKNOWN_HOST = -1  # Plane.route

# Objects listed last that can be named by their `id`: queries are never shown, so a URL can't name all of them.
NAMED_MAX = 1000
# No listing of memory has more.
ALL = (1 << 63) - 1
# Keys taken out between two turns of the loop.
AT_ONCE = 256

# (origin row, key, b""), or what is on the disk only: (origin row, key as it is written there, its digest)
Named = tuple[int, bytes, bytes]
Matches = Callable[[int, bytes], bool]

_SORTS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "url": lambda row: row["url"],
    "size": lambda row: -row["size_bytes"],
    "age": lambda row: -row["age_s"],
    "ttl": lambda row: -row["ttl_s"],
}


class Inventory:
    def __init__(self, dataplane: DataPlane, origins: Origins, ledger: Ledger) -> None:
        self._dataplane = dataplane
        self._plane = dataplane.plane
        self._origins = origins
        self._ledger = ledger
        self.class_names: list[str] = []
        self.pinned_classes: set[int] = set()
        # Without a secret, short queries could be found again by trying them.
        self._secret = secrets.token_bytes(32)
        self._named: OrderedDict[str, Named] = OrderedDict()
        self._one_listing = asyncio.Lock()

    async def listing(
        self, *, prefix: str | None, contains: str | None, origin: str | None, class_name: str | None, sort: str,
        offset: int, limit: int,
    ) -> dict[str, Any]:  # fmt: skip
        """CacheList of control.box. Done in a thread without the GIL, one at a time. Raises ControlError."""
        only = self._origin_id(origin) if origin is not None else None
        class_index = self._class_index(class_name) if class_name is not None else None
        disk = self._ledger.disk
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
            is_below = self._written_matcher(prefix) if prefix is not None else lambda *_: True
            needle = contains.lower() if contains is not None else ""
            there = [
                row
                for origin_id, digest, head in on_disk
                if wanted[origin_id] and is_below(origin_id, head.key)
                and needle in f"{self._host(origin_id)}{head.key.partition(b'?')[0].decode('latin-1')}".lower()
                for row in [self._disk_row(origin_id, digest, head)]
            ]  # fmt: skip
            total += len(there)
            rows = sorted(rows + there, key=_SORTS[sort])[offset : offset + limit]
        return {"total": total, "objects": rows}

    def _disk_row(self, origin_id: int, digest: bytes, head: DiskHead) -> dict[str, Any]:
        now_ns = clock.monotonic_ns()
        fresh_until_ns, _, born_ns, _ = to_monotonic(head, now_ns, clock.steady_wall_ns())
        return self._row(
            now_ns, origin_id, head.key, head.status, head.total_length, born_ns, fresh_until_ns, COMPLETE, head.kind,
            digest,
        )  # fmt: skip

    def _page(self, total: int, found: list[tuple[Any, ...]]) -> tuple[int, list[dict[str, Any]]]:
        now_ns = clock.monotonic_ns()
        return total, [self._row(now_ns, *each) for each in found]

    async def purge(
        self, *, url: str | None, prefix: str | None, origin: str | None, tag: str | None = None
    ) -> dict[str, int]:
        """Takes objects out of the table, and off the disk for good, before it returns; fills under way go on for
        their readers only. One of them, or a tag of one origin. Raises ControlError."""
        if url is not None:
            where = self._locate(url)
            self._ledger.withdraw(lambda *each: each == where)
            purged = self._take_out({where})
        elif prefix is not None:
            purged = await self._purge_prefix(prefix)
        elif tag is not None:
            purged = await self._purge_tag(tag, origin)
        else:
            assert origin is not None
            purged = await self._purge_origin(origin)
        if self._ledger.disk is not None:
            await self._ledger.disk.settle()
        self._plane.count("purged", purged)
        return {"purged": purged}

    async def _purge_origin(self, name: str) -> int:
        """Also of one that the policy doesn't have any more: what it left would be there again with it."""
        disk = self._ledger.disk
        names = self._dataplane.origin_names()
        row = names.index(name.encode()) if name.encode() in names else BOX_ORIGIN
        knows_disk = disk is not None and disk.knows_origin(name)
        self._ledger.withdraw(lambda origin_id, _: origin_id == row != BOX_ORIGIN)
        on_disk = disk.forget_origin(name) if disk is not None else 0
        in_memory = await self._purge_memory({row}, [], None, lambda origin_id, _: True)
        if self._origins.by_name(name) is None and not (knows_disk or in_memory):
            raise ControlError("unknown-origin", f"there is no origin '{name}'")
        return max(on_disk, in_memory)

    async def _purge_prefix(self, prefix: str) -> int:
        host, path = self._located_prefix(prefix)
        matches = self._prefix_matcher(prefix)
        beginnings = [(each, self._plane.key_of(each, path)) for each in self._origins.by_id]
        self._ledger.withdraw(matches)
        purged = await self._purge_memory(set(self._origins.by_id), beginnings, host, matches)
        disk = self._ledger.disk
        if disk is None:
            return purged
        await disk.settled_before()
        found, n_unread = await disk.names()
        is_below = self._written_matcher(prefix)
        for n, (origin_id, written, digest) in enumerate(found):
            purged += disk.forget_digest(digest) if is_below(origin_id, written) else 0
            if n % AT_ONCE == 0:
                await asyncio.sleep(0)
        # What was read back from there meanwhile.
        await self._purge_memory(set(self._origins.by_id), beginnings, host, matches)
        if n_unread:
            raise ControlError(
                "disk", f"{purged} purged; {n_unread} objects on the disk can't be looked at: try again, or purge by"
                " origin, which needs no reading",
            )  # fmt: skip
        return purged

    async def _purge_tag(self, text: str, origin: str | None) -> int:
        origin_id = self._origin_id(origin) if origin is not None else None
        tag = number_of_tag(text.encode())
        self._ledger.withdraw_tag(tag, origin_id)
        purged = await self._purge_tagged(tag, origin_id)
        disk = self._ledger.disk
        if disk is not None:
            purged += await disk.forget_tag(tag, origin)
            await self._purge_tagged(tag, origin_id)  # what was read back from there meanwhile
        return purged

    async def _purge_tagged(self, tag: int, origin_id: int | None) -> int:
        found = tagged_objects(self._plane, tag, -1 if origin_id is None else origin_id)
        keys = {(row, key) for row, key, _ in found}
        self._ledger.withdraw(lambda *each: each in keys)
        return await self._take_out_in_turns(keys)

    async def _purge_memory(
        self, origins: set[int], beginnings: list[tuple[int, bytes]], host: bytes | None, matches: Matches
    ) -> int:
        rows = await self._in_memory(origins, beginnings, host)
        return await self._take_out_in_turns({(row, key) for row, key, *_ in rows if matches(row, key)})

    async def _in_memory(
        self, origins: set[int], beginnings: list[tuple[int, bytes]], host: bytes | None
    ) -> list[tuple[Any, ...]]:
        """What is in the table of these origins, below these beginnings of keys; looked up in a thread."""
        n_origins = len(self._dataplane.origin_names())
        wanted = [each in origins and each != BOX_ORIGIN for each in range(n_origins)]
        hosts = [b""] * n_origins
        only: dict[str, Any] = {"prefix": (host, beginnings)} if host is not None else {}
        rows: list[tuple[Any, ...]]
        _, rows = await asyncio.get_running_loop().run_in_executor(
            None, lambda: list_objects(self._plane, hosts, wanted, limit=ALL, **only)
        )
        if host is None and beginnings:
            rows = [row for row in rows if any(row[1].startswith(key) for each, key in beginnings if each == row[0])]
        return rows

    async def _take_out_in_turns(self, keys: set[tuple[int, bytes]]) -> int:
        purged = 0
        rest = list(keys)
        for at in range(0, len(rest), AT_ONCE):
            purged += self._take_out(set(rest[at : at + AT_ONCE]))
            await asyncio.sleep(0)
        return purged

    async def erase(self, *, class_name: str | None) -> dict[str, Any]:
        """All of a class (None: of no class) out of memory, and off the disk so that nobody can read it again: returns
        when that is done. Raises ControlError."""
        disk = self._ledger.disk
        is_known = class_name is None or class_name in self.class_names
        if not is_known and (disk is None or not disk.knows_class(class_name or "")):
            raise ControlError("unknown-class", f"there is no class '{class_name}'")
        index = self.class_names.index(class_name) + 1 if class_name in self.class_names else 0
        rows = {each.id for each in self._origins.by_id.values() if each.class_index == index and is_known}
        self._ledger.withdraw(lambda origin_id, _: origin_id in rows)
        erased = await self._purge_memory(rows, [], None, lambda origin_id, _: True)
        on_disk, n_segments = await disk.erase(class_name or "") if disk is not None else (0, 0)
        # What was read back from there meanwhile.
        await self._purge_memory(rows, [], None, lambda origin_id, _: True)
        is_sealed = disk is not None and disk.log.keys.site is not None
        return {"erased": max(erased, on_disk), "segments": n_segments, "sealed": is_sealed}

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
            if self._ledger.disk is not None and origin is not None:
                on_disk = self._ledger.disk.forget(origin, key)
            purged += max(complete, on_disk)
        return purged

    async def purge_named(self, name: str) -> dict[str, int]:
        """What a listing called `id`: one key with all its variants. Raises ControlError("unknown-object")."""
        named = self._named.get(name)
        if named is None:
            raise ControlError("unknown-object", "this object was listed too long ago: list it again")
        origin_id, key, digest = named
        if digest:
            purged = await self._forget_everywhere(*named)
        else:
            self._ledger.withdraw(lambda *each: each == (origin_id, key))
            purged = self._take_out({(origin_id, key)})
        if self._ledger.disk is not None:
            await self._ledger.disk.settle()
        self._plane.count("purged", purged)
        return {"purged": purged}

    async def _forget_everywhere(self, origin_id: int, written: bytes, digest: bytes) -> int:
        """What a listing found on the disk. It may be in memory by now, under a key that only its digest tells."""
        origin, disk = self._origins.by_id.get(origin_id), self._ledger.disk
        if origin is None or disk is None:
            return 0
        path = written.partition(b"?")[0]
        keys = {
            key for _, key, *_ in await self._in_memory({origin_id}, [(origin_id, path)], None)
            if disk.log.keys.digest(origin.name, key) == digest
        }  # fmt: skip
        self._ledger.withdraw(lambda o, k: o == origin_id and disk.log.keys.digest(origin.name, k) == digest)
        return max(self._take_out({(origin_id, key) for key in keys}), disk.forget_digest(digest))

    def shown_url(self, name: str) -> str:
        """Of what purge_named() takes; "" where it is not known."""
        named = self._named.get(name)
        return self._url(*named) if named is not None else ""

    def _name(self, origin_id: int, key: bytes, digest: bytes) -> str:
        name = blake2s(b"%d " % origin_id + key + b" " + digest, key=self._secret, digest_size=12).hexdigest()
        self._named[name] = (origin_id, key, digest)
        self._named.move_to_end(name)
        if len(self._named) > NAMED_MAX:
            self._named.popitem(last=False)
        return name

    def _row(
        self, now_ns: int, origin_id: int, key: bytes, status: int, size_bytes: int, born_ns: int, fresh_until_ns: int,
        flags: int, kind: int, digest: bytes = b"",
    ) -> dict[str, Any]:  # fmt: skip
        class_index = self._class_of(origin_id)
        ttl_s = (fresh_until_ns - now_ns) / NS if fresh_until_ns else 0.0
        state = "fresh" if ttl_s > 0 else "stale"
        if not flags & COMPLETE:
            state = "filling" if flags & FILLING else "partial"
        return {
            "id": self._name(origin_id, key, digest),
            "url": self._url(origin_id, key, digest),
            "origin": self._dataplane.origin_name(origin_id),
            "status": status,
            "size_bytes": size_bytes,
            "age_s": round((now_ns - born_ns) / NS, 3),
            "ttl_s": round(ttl_s, 3),
            "state": state,
            "class": self.class_names[class_index - 1] if class_index else None,
            "pinned": class_index in self.pinned_classes,
            "kind": KINDS[kind].value,
        }

    def _url(self, origin_id: int, key: bytes, digest: bytes = b"") -> str:
        """A viewer's URL of the object: any host that leads to its origin. For its query stands a digest (of what is on
        the disk only, the one that is written there)."""
        shown = shown_key(key)
        if digest and b"?" in key:
            shown = key.replace(b"?", "?…".encode(), 1)[:-4].decode()
        return f"http://{self._host(origin_id)}{shown}"

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

    def _written_matcher(self, prefix: str) -> Matches:
        """The same for keys as the disk has them, with a digest for the query: a prefix that reaches into the query
        takes every query of its path."""
        host, path = self._located_prefix(prefix)
        keys: dict[int, bytes] = {}

        def matches(origin_id: int, written: bytes) -> bool:
            if origin_id not in keys:
                keys[origin_id] = self._plane.key_of(origin_id, path)
            begin, mark, _ = keys[origin_id].partition(b"?")
            own, has_query, _ = written.partition(b"?")
            is_below = own == begin and bool(has_query) if mark else written.startswith(begin)
            return is_below and self._plane.route(host, own) == origin_id

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
