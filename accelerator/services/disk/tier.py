"""The disk tier as the box uses it: what is kept, what a miss or an absent slice finds there, purges. Knows no file."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from accelerator import clock
from accelerator.dataplane import FLAG_MUST_VALIDATE, SLICE_BYTES
from accelerator.errors import AcceleratorError, ControlError
from accelerator.protocols import live
from accelerator.services.disk.keys import Naming, number_of
from accelerator.services.disk.log import DiskLog
from accelerator.services.disk.lookup import LookUp, unpacked
from accelerator.services.disk.quotas import Kept, Quotas
from accelerator.services.objects.heads import NS, status_line
from accelerator.store.head import LONG_AGO_NS, DiskHead, pack_head, to_monotonic, to_wall
from accelerator.store.index import GONE, ORIGIN_GONE, Head

if TYPE_CHECKING:
    from accelerator.dataplane import DataPlane, Exchange, StoredObject
    from accelerator.protocols.cache_decide import Verdict
    from accelerator.services.objects.remembered import Key
    from accelerator.services.origins.origins import Origin, Origins

# How long a viewer waits for the disk before the origin is asked.
PATIENCE_S = 1.0
MEMORY_RETRY_S = 0.005
MEMORY_RETRIES = 200
READ_AHEAD = 2
# What a head takes at most in its segment, for all practical purposes: room is looked for before it and its slice.
HEAD_ROOM_BYTES = 16384
# Slices that came faster than the disk writes. Of a body without a strong validator they can't be evicted meanwhile, so
# that they may be a share of memory at most; of others eviction takes what it needs, and the disk goes without.
BACKLOG_SHARE = 4
STATUSES = frozenset({200, 203, 301, 308})
# What is fresh for less, and has no validator, is gone before it could be read again.
LIFETIME_MIN_S = 10.0
# A validation that gives less is not worth a record: after a restart it is validated again.
REFRESH_MIN_S = 60.0
# Heads that one listing reads at most.
LISTED_MOST = 100_000
READ_AT_ONCE = 64
HEAD_RETRIES = 1000
KINDS = list(live.Kind)
# Fields of a request that are its viewer's own: what varies by them would be on the disk with their values.
_VIEWERS_OWN = frozenset({b"authorization", b"cookie"})
# A check is written down when so much of max_offline has passed since the last one that was.
CHECKS_WRITTEN = 8
_PLAYLISTS = frozenset({live.Kind.PLAYLIST, live.Kind.LIVE_PLAYLIST})


class DiskTier:
    """`log` holds what is kept, `origins` says what may be. Classes with `store: memory` never get here."""

    def __init__(
        self, dataplane: DataPlane, origins: Origins, log: DiskLog, loop: asyncio.AbstractEventLoop,
        note: Callable[[str, str, str], None],
    ) -> None:  # fmt: skip
        self.log = log
        self._dataplane = dataplane
        self._plane = dataplane.plane
        self._origins = origins
        self._loop = loop
        self._kept_classes: dict[int, Kept] = {}  # by class index
        self.quotas = Quotas(log, note)
        self._heads_queued: set[int] = set()
        self._looking: dict[Key, list[Exchange]] = {}
        self._reading: dict[tuple[int, int], list[StoredObject]] = {}
        self._backlog: deque[tuple[StoredObject, int]] = deque()
        self._backlog_most = dataplane.plane.memory["limit"] // SLICE_BYTES
        log.on_room = self._catch_up
        self._late: set[tuple[int, int]] = set()
        self._early: list[Callable[[], int]] = []  # purges from before the index was there
        log.on_loaded = self._loaded

    def _loaded(self) -> None:
        """Nothing has been found in the index yet: what was purged while it loaded never is."""
        early, self._early = self._early, []
        for bury in early:
            bury()

    def set_classes(self, kept: dict[int, Kept]) -> None:
        """Which classes are kept, by the index that origins name (0: none)."""
        self._kept_classes = kept
        self.quotas.set_classes(list(kept.values()))
        for each in kept.values():
            self.log.keys.key_of(each.name)

    def _naming(self, origin: Origin, key: bytes) -> Naming | None:
        kept = self._kept_classes.get(origin.class_index)
        if kept is None:
            return None
        return Naming(self.log.keys.digest(origin.name, key), number_of(origin.name), kept.name)

    def _grave(self, origin: Origin, key: bytes) -> Naming:
        """What a purge names: also of an origin whose class isn't kept any more, as it may be again."""
        return Naming(self.log.keys.digest(origin.name, key), number_of(origin.name), "")

    def _naming_of(self, stored: StoredObject) -> Naming | None:
        """None where it isn't kept, or is kept, and sealed, under another class than its origin has now."""
        key, origin = stored.key, self._origins.by_id.get(stored.origin)
        naming = None if key is None or origin is None else self._naming(origin, key)
        if naming is None or self.log.index.class_of(naming.key, stored.generation) not in (None, naming.class_id):
            return None
        return naming

    # -- writing behind ------------------------------------------------------------------------------------------------

    def admit(self, stored: StoredObject, origin: Origin, verdict: Verdict) -> None:
        """A response that was listed: it is kept where its class and its nature let it be, as its slices come."""
        if origin.class_index not in self._kept_classes or not verdict.shareable or verdict.kind in _PLAYLISTS:
            return
        if not (verdict.store or verdict.partial is not None) or stored.status not in STATUSES:
            return
        if not _VIEWERS_OWN.union(origin.rules.credential_headers).isdisjoint(verdict.vary):
            return
        has_validator = verdict.etag is not None or verdict.last_modified_s is not None
        if verdict.lifetime_s < LIFETIME_MIN_S and not has_validator:
            return
        stored.generation = int.from_bytes(os.urandom(8), "little") or 1

    def slice_done(self, stored: StoredObject, offset: int) -> None:
        """The bytes before `offset` came last; a slice may be whole now."""
        total = stored.total_length
        generation = stored.generation
        if not generation or total < 0 or not (offset % SLICE_BYTES == 0 or offset == total):
            return
        if not stored.is_strong and total > SLICE_BYTES:
            return  # without a strong validator a part that is lost can't be fetched again: whole or not at all
        naming = self._naming_of(stored)
        if not self.log.is_usable:
            self._backlog.clear()
            return
        number = (offset - 1) // SLICE_BYTES if offset else 0
        if naming is None:
            return
        if not self._backlog and self._keep(stored, naming, number):
            return
        if len(self._backlog) < (self._backlog_most if stored.is_strong else self._backlog_most // BACKLOG_SHARE):
            self._backlog.append((stored, number))
        else:
            self.log.counts["write_drops"] += 1

    def _keep(self, stored: StoredObject, naming: Naming, number: int) -> bool:
        """Queues a slice, and its object's head before the first. False: the disk takes no more just now."""
        generation, total = stored.generation, stored.total_length
        length = min(SLICE_BYTES, total - number * SLICE_BYTES)
        if not self.log.can_take(length + HEAD_ROOM_BYTES):
            return False
        is_new = total and self.log.index.slice_of(generation, number) is None
        if is_new and not self.quotas.take(naming.class_id, length):
            return True
        if not self._has_head(naming, generation) and not self._write_head(stored, naming):
            return True
        if is_new:
            self.log.write_slice(naming, generation, number, total, length, stored)
        return True

    def _catch_up(self) -> None:
        """There is room in the queue: what came faster than the disk wrote is next, if it is still in memory."""
        while self._backlog:
            stored, number = self._backlog[0]
            naming = self._naming_of(stored)
            is_there = stored.total_length == 0 or stored.has_bytes(number * SLICE_BYTES) > 0
            if naming is None or not is_there or not self.log.is_usable:
                self.log.counts["write_drops"] += 1
            elif not self._keep(stored, naming, number):
                return
            self._backlog.popleft()

    def body_done(self, stored: StoredObject) -> None:
        """A body whose length nobody had said is whole."""
        total = stored.total_length
        if stored.generation and 0 <= total <= SLICE_BYTES and stored.is_whole:
            self.slice_done(stored, total)

    def head_changed(self, stored: StoredObject, checked_ns: int) -> None:
        """A validation gave it another head; before, it had last been checked at `checked_ns`."""
        naming = self._naming_of(stored)
        if naming is None or not stored.generation or not self._has_head(naming, stored.generation):
            return
        step_ns = int(self._origins.by_id[stored.origin].rules.max_offline_s * NS) // CHECKS_WRITTEN
        is_due = step_ns > 0 and checked_ns // step_ns != stored.validated_ns // step_ns
        if is_due or stored.fresh_until_ns - clock.monotonic_ns() >= REFRESH_MIN_S * NS:
            self._write_head(stored, naming)

    def _has_head(self, naming: Naming, generation: int) -> bool:
        return generation in self._heads_queued or self.log.index.is_current(naming.key, generation)

    def _write_head(self, stored: StoredObject, naming: Naming) -> bool:
        origin = self._origins.by_id[stored.origin]
        now_ns, wall_ns = clock.monotonic_ns(), clock.steady_wall_ns()
        lines, short_lines, etag, flags, last_modified_s = stored.head_parts()
        vary, values = stored.vary
        generation, tags = stored.generation, stored.tags
        written = self.log.keys.written(stored.key or b"")
        try:
            payload = pack_head(
                DiskHead(
                    origin.name, written, vary, values, lines, short_lines, etag, stored.kind,
                    flags | (HEAD_STRONG if stored.is_strong else 0), stored.status, last_modified_s,
                    to_wall(stored.fresh_until_ns, now_ns, wall_ns), to_wall(stored.stale_until_ns, now_ns, wall_ns),
                    stored.born_ns - now_ns + wall_ns, wall_ns, stored.validated_ns - now_ns + wall_ns,
                    stored.total_length, tags,
                )
            )
        except ValueError:
            return False
        variant = int.from_bytes(self.log.keys.digest("", vary + b"\0" + values)[:8], "little")
        self._heads_queued.add(generation)
        done = lambda error, value: self._heads_queued.discard(generation)  # noqa: E731
        numbers = tuple(self.log.keys.tag(tag) for tag in tags)
        if self.log.write_head(naming, variant, generation, stored.total_length, payload, done, tags=numbers):
            return True
        self._heads_queued.discard(generation)
        return False

    # -- misses --------------------------------------------------------------------------------------------------------

    def look_up(self, exchange: Exchange, origin: Origin, go_on: Callable[[Exchange], None]) -> bool:
        """Whether the disk may have it: then `exchange` is answered from there, or given to `go_on`."""
        if not self.log.is_usable:
            return False
        key = (exchange.origin, exchange.key)
        waiting = self._looking.get(key)
        if waiting is not None:
            waiting.append(exchange)
            return True
        naming = self._naming(origin, exchange.key)
        if naming is None:
            return False
        heads = self.log.index.find(naming.key)
        if not heads:
            return False
        in_memory = {stored.generation for stored in self._plane.find(*key)}
        # What was stored under another class is sealed by that one's key, and is erased with it.
        wanted = [head for head in heads if head.generation not in in_memory and head.class_id == naming.class_id]
        if not wanted:
            return False
        self._looking[key] = [exchange]
        look = LookUp(self, key, naming, origin, len(wanted), exchange.range_first, go_on)
        look.timer = self._loop.call_later(PATIENCE_S, look.late)
        for head in wanted:
            if not self.log.read_head(head, lambda error, value, head=head: look.head_read(head, error, value)):  # type: ignore[misc]
                look.head_read(head, 0, None)
        return True

    def find(self, key: Key) -> list[StoredObject]:
        """What is in memory under a key."""
        found: list[StoredObject] = self._plane.find(*key)
        return found

    def answer(self, key: Key, *, is_restored: bool, go_on: Callable[[Exchange], None]) -> None:
        for exchange in self._looking.pop(key, ()):
            if is_restored:
                self.log.counts["hits"] += 1
                exchange.restored()
            else:
                go_on(exchange)

    def restore(self, head: Head, naming: Naming, origin: Origin, key: bytes, found: DiskHead) -> StoredObject | None:
        """The object in memory, not listed yet and without its body."""
        now_ns, wall_ns = clock.monotonic_ns(), clock.steady_wall_ns()
        fresh_until_ns, stale_until_ns, born_ns, checked_ns = to_monotonic(found, now_ns, wall_ns)
        if head.sequence < self.log.index.suspect_below:
            fresh_until_ns, stale_until_ns, checked_ns = 0, 0, LONG_AGO_NS
        stored: StoredObject | None = self._plane.create(
            origin.id, found.total_length, found.status, status_line(found.status), found.lines, found.short_lines,
            found.etag, found.last_modified_s, fresh_until_ns, stale_until_ns, checked_ns, born_ns,
            found.flags & ~HEAD_STRONG,
            False, bool(found.flags & HEAD_STRONG), found.kind, origin.class_index,
        )  # fmt: skip
        if stored is None or not stored.set_tags(found.tags):
            return None
        stored.generation = head.generation
        return stored

    # -- slices --------------------------------------------------------------------------------------------------------

    def has(self, stored: StoredObject, offset: int) -> bool:
        """Whether the slice at `offset` can be read here."""
        number = offset // SLICE_BYTES
        generation = stored.generation
        if not generation or not self.log.is_usable or (generation, number) in self._late:
            return False
        if self.log.index.slice_of(generation, number) is None:
            return False
        # One that was purged or replaced while it is read has rows of slices left, until their segments go.
        naming = self._naming_of(stored)
        return naming is not None and self.log.index.is_current(naming.key, generation)

    def want(self, stored: StoredObject, offset: int) -> bool:
        """A reader is at `offset`. Whether its slice comes from here."""
        if not self.has(stored, offset):
            return False
        number = offset // SLICE_BYTES
        self._read_slice(stored, number, MEMORY_RETRIES)
        for ahead in range(number + 1, number + 1 + READ_AHEAD):
            start = ahead * SLICE_BYTES
            if start < stored.total_length and not stored.has_bytes(start) and self.has(stored, start):
                self._read_slice(stored, ahead, 0)
        return True

    def _read_slice(self, stored: StoredObject, number: int, retries: int) -> None:
        generation = stored.generation
        name = (generation, number)
        if name in self._reading:
            if stored not in self._reading[name]:  # the same, restored anew while the one before is still read
                self._reading[name].append(stored)
            return
        naming = self._naming_of(stored)
        place = self.log.index.slice_of(generation, number)
        if naming is None or place is None:
            stored.forget_want()
            return
        self._reading[name] = [stored]
        timer = self._loop.call_later(PATIENCE_S, self._slice_late, stored, name)

        def done(error: int, was_published: Any) -> None:
            timer.cancel()
            waiting = self._reading.pop(name)
            self._late.discard(name)
            if error and self.log.index.slice_of(generation, number) == place:
                self.log.index.drop_slice(generation, number)
            for each in waiting[1 if was_published else 0 :]:
                each.forget_want()

        if self.log.read_slice(naming, generation, number, place, stored, done):
            return
        timer.cancel()
        del self._reading[name]
        if retries:
            self._loop.call_later(MEMORY_RETRY_S, self._read_slice, stored, number, retries - 1)
        else:
            stored.forget_want()

    def _slice_late(self, stored: StoredObject, name: tuple[int, int]) -> None:
        """The reader asks again, and the origin is asked then; what the disk brings later is taken if it is first."""
        self.log.health.late()
        self._late.add(name)
        stored.forget_want()

    # -- withdrawal ----------------------------------------------------------------------------------------------------

    def forget(self, origin: Origin, key: bytes) -> int:
        """What is stored of a key is no more, for the origin or an operator said so; how many objects the disk had."""
        if not self.log.is_loaded:
            self._early.append(lambda: self.log.graves.bury(GONE, self._grave(origin, key)))
            return 0
        grave = self._grave(origin, key)
        return self.log.graves.bury(GONE, grave) if self.log.index.find(grave.key) or self._heads_queued else 0

    def forget_digest(self, digest: bytes) -> int:
        """The same by the digest of a key."""
        return self.log.graves.bury(GONE, Naming(digest, 0, ""))

    def forget_origin(self, name: str) -> int:
        """All of an origin, also of one that the policy doesn't have any more."""
        grave = Naming(bytes(16), number_of(name), "")
        if not self.log.is_loaded:
            self._early.append(lambda: self.log.graves.bury(ORIGIN_GONE, grave))
            return 0
        return self.log.graves.bury(ORIGIN_GONE, grave)

    def knows_origin(self, name: str) -> bool:
        return self.log.index.has_origin(number_of(name))

    def knows_class(self, name: str) -> bool:
        return name in self.log.keys.classes or self.log.index.has_class(number_of(name))

    async def erase(self, class_name: str) -> tuple[int, int]:
        """(objects, segments) that were erased of a class. Raises ControlError."""
        try:
            return await self.log.eraser.erase(class_name)
        except AcceleratorError as error:
            raise ControlError(error.kind, error.message) from error

    async def forget_tag(self, tag: int, origin: str | None) -> int:
        """What has a tag. Raises ControlError where a head can't be asked for its tags."""
        await self.settled_before()
        await self.learn_tags()
        keys = self.log.index.tagged(self.log.keys.tag(tag), None if origin is None else number_of(origin))
        gone = 0
        for n, key in enumerate(keys, 1):
            gone += self.log.graves.bury(GONE, Naming(key.to_bytes(8, "little") + bytes(8), 0, ""))
            if n % READ_AT_ONCE == 0:
                await asyncio.sleep(0)
        return gone

    async def learn_tags(self) -> None:
        """Of heads that the log had and the checkpoint had not. One that can't be read is none any more."""
        while heads := self.log.index.untagged():
            for at in range(0, len(heads), READ_AT_ONCE):
                chunk = heads[at : at + READ_AT_ONCE]
                for head, read in zip(chunk, await asyncio.gather(*map(self._read_head, chunk)), strict=True):
                    if read is not None:
                        self.log.index.learn_tags(head, tuple(self.log.keys.tag(tag) for tag in read[1].tags))
                    elif not self.log.is_usable:
                        raise ControlError("disk", "purged from memory; the disk can't tell tags now: try again")
                    elif self._is_there(head):
                        self.log.graves.drop(head)

    async def settled_before(self) -> None:
        """Returns when all that was queued before can be found. Raises ControlError."""
        try:
            await self.log.graves.wait_loaded()
            await self.log.graves.quiesce()
        except AcceleratorError as error:
            raise ControlError(error.kind, error.message) from error

    def given_up(self, stored: StoredObject, kind: str) -> None:
        """A fill has broken off. Where the origin has another representation now, what is here of the old one goes."""
        naming = self._naming_of(stored)
        if naming is not None and stored.generation and kind == "changed":
            self.log.graves.bury(GONE, naming)

    async def settle(self) -> None:
        """Returns when what was forgotten would stay forgotten after a power cut. Raises ControlError."""
        try:
            await self.log.graves.wait_loaded()
            await self.log.graves.settle()
        except AcceleratorError as error:
            raise ControlError(error.kind, error.message) from error

    async def listed(self) -> list[tuple[int, bytes, DiskHead]]:
        """(origin row, digest of the key, head) of what is on the disk and not in memory: at most LISTED_MOST."""
        if not self.log.is_usable:
            return []
        in_memory = {stored.generation for _, _, stored in self._plane.objects()}
        by_name = {origin.name: origin.id for origin in self._origins.by_id.values()}
        rows = self.log.index.heads.live()[:LISTED_MOST].tolist()
        found: list[tuple[int, bytes, DiskHead]] = []
        for at in range(0, len(rows), READ_AT_ONCE):
            heads = [self.log.index.head(row) for row in rows[at : at + READ_AT_ONCE]]
            reads = [self._read_head(head) for head in heads if head.generation and head.generation not in in_memory]
            for read in await asyncio.gather(*reads):
                if read is not None and read[1].origin in by_name:
                    found.append((by_name[read[1].origin], *read))
        return found

    async def names(self) -> tuple[set[tuple[int, bytes, bytes]], int]:
        """(origin row, key as it is written, its digest) of all on the disk, however much, and how many records could
        not be read. What must not be missed (a purge by prefix) asks this: a head that moves meanwhile is met again, as
        its generation stays. A record that is not what was written has no name any more, and is dropped."""
        by_name = {origin.name: origin.id for origin in self._origins.by_id.values()}
        found: set[tuple[int, bytes, bytes]] = set()
        seen: set[int] = set()
        n_unread = 0
        while True:
            heads = [self.log.index.head(row) for row in self.log.index.heads.live().tolist()]
            heads = [head for head in heads if head.generation and head.generation not in seen]
            if not heads:
                break
            if not self.log.is_usable:
                n_unread += len(heads)  # put aside: they are there again when it is back
                break
            for at in range(0, len(heads), READ_AT_ONCE):
                chunk = heads[at : at + READ_AT_ONCE]
                for head, read in zip(chunk, await asyncio.gather(*map(self._read_head, chunk)), strict=True):
                    if read is not None:
                        seen.add(head.generation)
                        if read[1].origin in by_name:
                            found.add((by_name[read[1].origin], read[1].key, read[0]))
                    elif self._is_there(head):
                        n_unread += 1
                        seen.add(head.generation)
        return found, n_unread

    def _is_there(self, head: Head) -> bool:
        return self.log.index.head(head.row) == head

    async def _read_head(self, head: Head) -> tuple[bytes, DiskHead] | None:
        """Digest of its key, and the head; None where it can't be read, or is no longer there."""
        result: asyncio.Future[tuple[bytes, DiskHead] | None] = self._loop.create_future()

        def done(error: int, value: Any) -> None:
            found = None if error else unpacked(value[1])
            if found is None and error <= 0 and self._is_there(head):
                self.log.graves.drop(head)
            if not result.done():
                result.set_result(None if found is None else (value[0], found))

        for _ in range(HEAD_RETRIES):
            if self.log.read_head(head, done):
                return await result
            if not self.log.is_usable or not self._is_there(head):
                break
            await asyncio.sleep(MEMORY_RETRY_S)  # too many are under way: viewers' come first
        return None

    def state(self) -> dict[str, Any]:
        health = self.log.health
        state = "ready" if self.log.is_usable else "loading" if health.is_ok else "aside"
        is_sealed = self.log.keys.site is not None
        return {"state": state, "why": health.why, "path": str(self.log.folder), "sealed": is_sealed}


# Beyond the flags of the data plane, in records only: parts of it can be fetched again.
HEAD_STRONG = 1 << 15
assert FLAG_MUST_VALIDATE < HEAD_STRONG
