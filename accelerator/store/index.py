"""What is on the disk and where: objects by key, slices by object, segments by usefulness. Pure; does no I/O.

Keys are here as 64 bits of their digest: a collision costs a look at a record, which holds the whole digest.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from accelerator.store.rows import Array, Rows
from accelerator.store.tags import TagRows

HEAD, SLICE, GONE, ORIGIN_GONE, CLASS_GONE = 1, 2, 3, 4, 5  # kinds of records, as in the log
# What a tombstone's key is, but for GONE.
_COLUMNS = {ORIGIN_GONE: "origin_id", CLASS_GONE: "class_id"}
HITS_MOST = 7

HEAD_COLUMNS = (
    ("key", "u8"), ("variant", "u8"), ("generation", "u8"), ("sequence", "u8"), ("total", "u8"),
    ("segment", "u4"), ("offset", "u4"), ("length", "u4"), ("class_id", "u4"), ("origin_id", "u4"),
    ("n_slices", "u4"), ("hits", "u1"), ("n_tags", "u2"), ("has_tags", "u1"),
)  # fmt: skip
SLICE_COLUMNS = (
    ("generation", "u8"), ("number", "u4"), ("segment", "u4"), ("offset", "u4"), ("length", "u4"), ("owner", "u4"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Place:
    segment: int
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Head:
    """One object on the disk. `n_slices` of its body are there too. `n_tags`: how many its record has."""

    row: int
    variant: int
    generation: int
    sequence: int
    total: int
    place: Place
    class_id: int
    origin_id: int
    n_slices: int
    n_tags: int


@dataclass(slots=True)
class Tombstone:
    """Records of `key` (an origin's or a class's number) with a lower sequence are gone. `digest`: the whole key."""

    kind: int
    key: int
    digest: bytes
    limit: int
    segment: int


class DiskIndex:
    """Rows by key and slice. `segments`: bytes used of each, the newest being appended to."""

    def __init__(self) -> None:
        self.heads = Rows(HEAD_COLUMNS, "key")
        self.slices = Rows(SLICE_COLUMNS, "generation", "number")
        self.tags = TagRows()
        self.segments: dict[int, int] = {}
        self.tombstones: dict[tuple[int, int], Tombstone] = {}
        self.sequence = 0  # the highest seen
        # Heads with a lower sequence have lost what may have been known of them: they are validated before use.
        self.suspect_below = 0
        self.latest_wall_ns = 0  # the latest time that any record was written at

    @property
    def n_objects(self) -> int:
        return self.heads.n_live

    @property
    def n_slices(self) -> int:
        return self.slices.n_live

    @property
    def used_bytes(self) -> int:
        return sum(self.segments.values())

    @property
    def memory_bytes(self) -> int:
        return self.heads.n_bytes + self.slices.n_bytes + self.tags.n_bytes

    # -- look-ups ------------------------------------------------------------------------------------------------------

    def find(self, key: int) -> list[Head]:
        """All variants of a key."""
        return [self.head(row) for row in self.heads.find(key)]

    def head(self, row: int) -> Head:
        at = self.heads.at
        return Head(
            row, at["variant"][row], at["generation"][row], at["sequence"][row], at["total"][row],
            Place(at["segment"][row], at["offset"][row], at["length"][row]),
            at["class_id"][row], at["origin_id"][row], at["n_slices"][row], at["n_tags"][row],
        )  # fmt: skip

    def is_current(self, key: int, generation: int) -> bool:
        at = self.heads.at["generation"]
        return any(at[row] == generation for row in self.heads.find(key))

    def class_of(self, key: int, generation: int) -> int | None:
        """The class that an object was written under; None: it isn't there."""
        at = self.heads.at["generation"]
        return next((self.heads.at["class_id"][row] for row in self.heads.find(key) if at[row] == generation), None)

    def slice_of(self, generation: int, number: int) -> Place | None:
        at = self.slices.at
        for row in self.slices.find(generation, number):
            return Place(at["segment"][row], at["offset"][row], at["length"][row])
        return None

    def touch(self, row: int) -> None:
        hits = self.heads.at["hits"]
        if hits[row] < HITS_MOST:
            hits[row] += 1

    # -- changes -------------------------------------------------------------------------------------------------------

    def put_head(
        self, key: int, variant: int, generation: int, sequence: int, total: int, place: Place, class_id: int,
        origin_id: int, tags: tuple[int, ...] | None = (), n_tags: int = 0,
    ) -> bool:  # fmt: skip
        """An object, in place of the older one of the same variant. False: a newer one is there, or it is gone.

        `tags` None: it has `n_tags`, which its record knows (untagged)."""
        self.sequence = max(self.sequence, sequence)
        for kind, of in ((GONE, key), (ORIGIN_GONE, origin_id), (CLASS_GONE, class_id)):
            stone = self.tombstones.get((kind, of))
            if stone is not None and sequence < stone.limit:
                return False
        at = self.heads.at
        n_slices = hits = 0
        for row in self.heads.find(key):
            if at["variant"][row] == variant:
                if at["sequence"][row] > sequence:
                    return False
                if at["generation"][row] == generation:
                    # The same object with another head, or seen twice: what its slices point at stays.
                    at["segment"][row], at["offset"][row], at["length"][row] = place.segment, place.offset, place.length
                    at["sequence"][row] = sequence
                    self._tag(row, sequence, tags, n_tags)
                    return True
                hits = at["hits"][row]
                self.heads.remove(row)
                break
        row = self.heads.add(
            key=key, variant=variant, generation=generation, sequence=sequence, total=total, segment=place.segment,
            offset=place.offset, length=place.length, class_id=class_id, origin_id=origin_id, n_slices=n_slices,
            hits=hits,
        )  # fmt: skip
        self._tag(row, sequence, tags, n_tags)
        return True

    def _tag(self, row: int, sequence: int, tags: tuple[int, ...] | None, n_tags: int) -> None:
        """Tags are of the record that has them: those of an older head of the same object are none any more."""
        for tag in tags or ():
            self.tags.add(tag, sequence, row)
        self.heads.at["n_tags"][row] = n_tags if tags is None else len(tags)
        self.heads.at["has_tags"][row] = tags is not None

    def untagged(self) -> list[Head]:
        """Objects whose tags only their records know: after a start, those that the checkpoint didn't have yet."""
        live = self.heads.live()
        rows = live[(self.heads.array["n_tags"][live] > 0) & (self.heads.array["has_tags"][live] == 0)]
        return [self.head(row) for row in rows.tolist()]

    def learn_tags(self, head: Head, tags: tuple[int, ...]) -> None:
        """Of one of `untagged`, where it is still there."""
        if self.head(head.row) == head:
            self._tag(head.row, head.sequence, tags, len(tags))

    def tagged(self, tag: int, origin_id: int | None = None) -> set[int]:
        """Keys of the objects with this tag."""
        heads = self.heads.at
        rows = [row for row, sequence in self.tags.find(tag) if heads["sequence"][row] == sequence]
        rows = [row for row in rows if self.heads.used[row]]
        return {heads["key"][row] for row in rows if origin_id in (None, heads["origin_id"][row])}

    def has_origin(self, origin_id: int) -> bool:
        return bool((self.heads.array["origin_id"][self.heads.live()] == origin_id).any())

    def has_class(self, class_id: int) -> bool:
        return bool((self.heads.array["class_id"][self.heads.live()] == class_id).any())

    def put_slice(self, key: int, generation: int, number: int, sequence: int, place: Place) -> bool:
        """False: its object isn't there (any more)."""
        self.sequence = max(self.sequence, sequence)
        generations = self.heads.at["generation"]
        owner = next((row for row in self.heads.find(key) if generations[row] == generation), -1)
        if owner < 0:
            return False
        at = self.slices.at
        for row in self.slices.find(generation, number):
            at["segment"][row], at["offset"][row], at["length"][row] = place.segment, place.offset, place.length
            at["owner"][row] = owner
            return True
        self.slices.add(
            generation=generation, number=number, segment=place.segment, offset=place.offset, length=place.length,
            owner=owner,
        )  # fmt: skip
        self.heads.at["n_slices"][owner] += 1
        return True

    def drop_slice(self, generation: int, number: int) -> None:
        """One that can't be read."""
        for row in list(self.slices.find(generation, number)):
            owner = self.slices.at["owner"][row]
            if self.heads.at["generation"][owner] == generation and self.heads.at["n_slices"][owner]:
                self.heads.at["n_slices"][owner] -= 1
            self.slices.remove(row)

    def remove(self, row: int) -> None:
        """One object. Its slices are found no more; their rows go with their segments."""
        self.heads.remove(row)
        self.heads.at["generation"][row] = 0

    def bury(self, kind: int, key: int, digest: bytes, limit: int, segment: int) -> int:
        """Takes all that was written before `limit` under a key (GONE), or an origin's or a class's number, out, now
        and whenever it is found again. How many objects there were."""
        known = self.tombstones.get((kind, key))
        if known is None or known.limit <= limit:
            self.tombstones[(kind, key)] = Tombstone(kind, key, digest, limit, segment)
        self.sequence = max(self.sequence, limit)
        if kind == GONE:
            rows = [row for row in self.heads.find(key) if self.heads.at["sequence"][row] < limit]
            for row in rows:
                self.remove(row)
            return len(rows)
        live = self.heads.live()
        found = live[
            (self.heads.array[_COLUMNS[kind]][live] == key) & (self.heads.array["sequence"][live] < np.uint64(limit))
        ]
        self.heads.remove_many(found)
        self.heads.array["generation"][found] = 0
        return len(found)

    def apply(self, records: Array, offsets: Array) -> None:
        """What a scan of a segment found, in its order."""
        if len(records):
            self.latest_wall_ns = max(self.latest_wall_ns, int(records["wall_ns"].max()))
        for record, offset in zip(records, offsets.tolist(), strict=True):
            kind = int(record["kind"])
            digest = record["key"].tobytes()
            key = int.from_bytes(digest[:8], "little")
            sequence, generation, segment = int(record["sequence"]), int(record["generation"]), int(record["segment"])
            place = Place(segment, offset, int(record["length"]))
            if kind == HEAD:
                self.put_head(
                    key, int(record["variant"]), generation, sequence, int(record["total_length"]), place,
                    int(record["class_id"]), int(record["origin_id"]),
                    None if record["slice_index"] else (), int(record["slice_index"]),
                )  # fmt: skip
            elif kind == SLICE:
                self.put_slice(key, generation, int(record["slice_index"]), sequence, place)
            elif kind == GONE:
                self.bury(GONE, key, digest, generation, segment)
            elif kind == ORIGIN_GONE:
                self.bury(ORIGIN_GONE, int(record["origin_id"]), digest, generation, segment)
            elif kind == CLASS_GONE:
                self.bury(CLASS_GONE, int(record["class_id"]), digest, generation, segment)
            self.sequence = max(self.sequence, sequence)

    # -- eviction ------------------------------------------------------------------------------------------------------

    def usefulness(self, pinned: frozenset[int] = frozenset()) -> dict[int, float]:
        """Live bytes of each segment, weighted by how often their objects were asked for. Those of `pinned` classes
        would have to move, which is dearer than anything that could be lost."""
        order = np.array(sorted(self.segments), "u4")
        sums = np.zeros(len(order) + 1)
        for place, weight in self._live_bytes(pinned):
            found = np.searchsorted(order, place)
            sums += np.bincount(found, weights=weight, minlength=len(order) + 1)[: len(order) + 1]
        return {int(segment): float(value) for segment, value in zip(order, sums, strict=False)}

    def _live_bytes(self, pinned: frozenset[int]) -> Iterable[tuple[Array, Array]]:
        heads, slices = self.heads.array, self.slices.array
        worth = 1.0 + heads["hits"]
        if pinned:
            worth[np.isin(heads["class_id"], np.array(sorted(pinned), "u4"))] = HITS_MOST + 2.0
        rows = self.heads.live()
        yield heads["segment"][rows], heads["length"][rows] * worth[rows]
        rows = self.slices.live()
        owner = slices["owner"][rows]
        is_live = heads["generation"][owner] == slices["generation"][rows]
        yield slices["segment"][rows], slices["length"][rows] * worth[owner] * is_live

    def least_useful(self, *, but: int, pinned: frozenset[int] = frozenset()) -> int | None:
        """The sealed segment that holds least for its space; the oldest of equals. `but` is being appended to."""
        scores = self.usefulness(pinned)
        sealed = [segment for segment in sorted(self.segments) if segment != but]
        worth = {segment: scores[segment] / max(1, self.segments[segment]) for segment in sealed}
        return min(sealed, key=lambda segment: (worth[segment], segment), default=None)

    def decay(self) -> None:
        """Old hits count half: what was hot last month is not hot."""
        self.heads.array["hits"] >>= 1

    def forget_rows(self, class_id: int) -> None:
        """Leaves nothing of a class's objects in free rows, which a checkpoint would write down."""
        rows = np.flatnonzero(self.heads.used[: self.heads.n_high] == 0)
        rows = rows[self.heads.array["class_id"][rows] == class_id]
        for column in self.heads.array.values():
            column[rows] = 0

    def drop_segment(self, segment: int) -> int:
        """All that lies in it is on the disk no more. How many objects went."""
        slices, heads = self.slices.array, self.heads.array
        live = self.slices.live()
        rows = live[slices["segment"][live] == segment]
        owner = slices["owner"][rows]
        is_live = heads["generation"][owner] == slices["generation"][rows]
        np.subtract.at(heads["n_slices"], owner[is_live], 1)
        self.slices.remove_many(rows)
        live = self.heads.live()
        rows = live[heads["segment"][live] == segment]
        self.heads.remove_many(rows)
        heads["generation"][rows] = 0
        self.segments.pop(segment, None)
        self.tags.sweep(heads["sequence"] * self.heads.used)
        return len(rows)

    def heads_to_keep(self, segment: int) -> list[Head]:
        """Heads in a segment that goes, of objects with slices elsewhere, which would be lost with them."""
        slices, heads = self.slices.array, self.heads.array
        live = self.heads.live()
        inside = live[(heads["segment"][live] == segment) & (heads["n_slices"][live] > 0)]
        if not len(inside):
            return []
        rows = self.slices.live()
        rows = rows[slices["segment"][rows] != segment]
        owner = slices["owner"][rows]
        owner = owner[heads["generation"][owner] == slices["generation"][rows]]
        return [self.head(int(row)) for row in inside[np.isin(inside, owner)]]

    def pinned_in(self, segment: int, pinned: frozenset[int]) -> list[tuple[Head, list[tuple[int, Place]]]]:
        """What of `pinned` classes lies in a segment: objects with their head or slices (number, place) there."""
        if not pinned:
            return []
        slices, heads = self.slices.array, self.heads.array
        numbers = np.array(sorted(pinned), "u4")
        live = self.heads.live()
        own = live[(heads["segment"][live] == segment) & np.isin(heads["class_id"][live], numbers)]
        found: dict[int, list[tuple[int, Place]]] = {row: [] for row in own.tolist()}
        rows = self.slices.live()
        rows = rows[slices["segment"][rows] == segment]
        owner = slices["owner"][rows]
        is_live = heads["generation"][owner] == slices["generation"][rows]
        is_kept = is_live & np.isin(heads["class_id"][owner], numbers)
        at = self.slices.at
        for row in rows[is_kept].tolist():
            place = Place(segment, at["offset"][row], at["length"][row])
            found.setdefault(at["owner"][row], []).append((at["number"][row], place))
        return [(self.head(row), places) for row, places in found.items()]

    def tombstones_to_keep(self, segment: int) -> list[Tombstone]:
        """Those in a segment that goes while an older one stays, in which what they bury may lie."""
        if not any(other < segment for other in self.segments):
            return []
        return [stone for stone in self.tombstones.values() if stone.segment == segment]

    def forget_tombstones(self) -> None:
        """Those that no older segment needs."""
        oldest = min(self.segments, default=0)
        for key in [key for key, stone in self.tombstones.items() if stone.segment <= oldest]:
            if self.tombstones[key].segment < oldest:
                del self.tombstones[key]

    def class_bytes(self) -> dict[int, int]:
        """Live body bytes by class."""
        heads, slices = self.heads.array, self.slices.array
        rows = self.slices.live()
        owner = slices["owner"][rows]
        is_live = heads["generation"][owner] == slices["generation"][rows]
        classes, which = np.unique(heads["class_id"][owner[is_live]], return_inverse=True)
        sums = np.bincount(which, weights=slices["length"][rows[is_live]], minlength=len(classes))
        return {int(number): int(total) for number, total in zip(classes, sums, strict=True)}

    def shrink_class(self, class_id: int, excess_bytes: int) -> int:
        """Takes objects of a class out, least asked for and oldest first, of about so many bytes."""
        heads = self.heads.array
        live = self.heads.live()
        rows = live[heads["class_id"][live] == class_id]
        rows = rows[np.lexsort((heads["sequence"][rows], heads["hits"][rows]))]
        freed = np.cumsum(heads["total"][rows])
        n = int(np.searchsorted(freed, excess_bytes)) + 1
        gone = rows[:n]
        self.heads.remove_many(gone)
        heads["generation"][gone] = 0
        return len(gone)

    # -- as a whole ----------------------------------------------------------------------------------------------------

    def keep_segments(self, present: set[int]) -> None:
        """After a load: segments that were unlinked since are dropped, with all in them."""
        for segment in [segment for segment in self.segments if segment not in present]:
            self.drop_segment(segment)

    def figures(self) -> dict[str, Any]:
        return {"objects": self.n_objects, "slices": self.n_slices, "memory_bytes": self.memory_bytes}
