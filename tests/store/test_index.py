"""The disk index against plain dicts: rows, objects, slices, tombstones, segments, checkpoint."""

from __future__ import annotations

import struct
import time
import zlib
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accelerator.store.checkpoint import dump_checkpoint, load_checkpoint
from accelerator.store.head import FOREVER_NS, LONG_AGO_NS, DiskHead, pack_head, to_monotonic, to_wall, unpack_head
from accelerator.store.index import GONE, ORIGIN_GONE, DiskIndex, Place
from accelerator.store.rows import Rows

SLICE = 1 << 20


def crc(data: memoryview) -> int:
    return zlib.crc32(data)


def saved(index: DiskIndex, segment: int = 1, offset: int = 64) -> bytes:
    data = b"".join(dump_checkpoint(index, segment, offset))
    return data + struct.pack("<I", zlib.crc32(data))


class Model:
    """What the index should say: {(key, variant): generation}, and each generation's slices."""

    def __init__(self) -> None:
        self.index = DiskIndex()
        self.heads: dict[tuple[int, int], tuple[int, int, int]] = {}  # (generation, segment, origin)
        self.slices: dict[tuple[int, int], int] = {}  # (generation, number) -> segment
        self.sequence = 0

    def head(self, key: int, variant: int, segment: int) -> None:
        self.sequence += 1
        generation = self.sequence * 7919
        self.index.segments.setdefault(segment, SLICE)
        place = Place(segment, self.sequence, 100)
        assert self.index.put_head(key, variant, generation, self.sequence, 3 * SLICE, place, 1, key % 3)
        self.heads[(key, variant)] = (generation, segment, key % 3)

    def slice(self, key: int, variant: int, number: int, segment: int) -> None:
        self.sequence += 1
        known = self.heads.get((key, variant))
        self.index.segments.setdefault(segment, SLICE)
        generation = known[0] if known else 1
        done = self.index.put_slice(key, generation, number, self.sequence, Place(segment, self.sequence, SLICE))
        assert done == (known is not None)
        if known:
            self.slices[(generation, number)] = segment

    def purge(self, key: int) -> None:
        self.sequence += 1
        gone = [name for name in self.heads if name[0] == key]
        assert self.index.bury(GONE, key, bytes(16), self.sequence, 9) == len(gone)
        for name in gone:
            del self.heads[name]

    def purge_origin(self, origin: int) -> None:
        self.sequence += 1
        gone = [name for name, row in self.heads.items() if row[2] == origin]
        assert self.index.bury(ORIGIN_GONE, origin, bytes(16), self.sequence, 9) == len(gone)
        for name in gone:
            del self.heads[name]

    def drop(self, segment: int) -> None:
        gone = [name for name, row in self.heads.items() if row[1] == segment]
        assert self.index.drop_segment(segment) == len(gone)
        for name in gone:
            del self.heads[name]
        self.slices = {name: place for name, place in self.slices.items() if place != segment}

    def restart(self) -> None:
        self.index, segment, offset = load_checkpoint(memoryview(saved(self.index)), crc)
        assert (segment, offset) == (1, 64)

    def check(self) -> None:
        assert self.index.n_objects == len(self.heads)
        for (key, variant), (generation, segment, _) in self.heads.items():
            head = next(head for head in self.index.find(key) if head.variant == variant)
            assert (head.generation, head.place.segment) == (generation, segment)
            numbers = {number for of, number in self.slices if of == generation}
            assert head.n_slices == len(numbers)
            for number in range(4):
                place = self.index.slice_of(generation, number)
                assert (place.segment if place else None) == self.slices.get((generation, number))


STEPS = st.one_of(
    st.tuples(st.just("head"), st.integers(0, 5), st.integers(0, 1), st.integers(1, 4)),
    st.tuples(st.just("slice"), st.integers(0, 5), st.integers(0, 1), st.integers(0, 3), st.integers(1, 4)),
    st.tuples(st.just("purge"), st.integers(0, 5)),
    st.tuples(st.just("purge_origin"), st.integers(0, 2)),
    st.tuples(st.just("drop"), st.integers(1, 4)),
    st.tuples(st.just("restart")),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(STEPS, max_size=40))
def test_index_says_what_a_dict_says(steps: list[tuple[str, *tuple[int, ...]]]) -> None:
    model = Model()
    for name, *arguments in steps:
        getattr(model, name)(*arguments)
        model.check()


def test_rows_grow_and_shift_back() -> None:
    rows = Rows((("key", "u8"), ("value", "u4")), "key")
    kept = {}
    for key in range(5000):
        kept[key * 2**40] = rows.add(key=key * 2**40, value=key)
    for key in range(0, 5000, 3):
        rows.remove(kept.pop(key * 2**40))
    assert rows.n_live == len(kept)
    assert all(list(rows.find(key)) == [row] for key, row in kept.items())
    assert all(not list(rows.find(key * 2**40)) for key in range(0, 5000, 3))


def test_bug_rows_that_grew_after_a_checkpoint_were_looked_for_in_circles() -> None:
    """A checkpoint of 1,500 rows made room for 1,500, which grew to a table of 6,000 slots: no power of two. The
    control loop then searched for ever, at a start or days later, and the next checkpoint was refused."""
    columns = (("key", "u8"), ("value", "u4"))
    before = Rows(columns, "key")
    for i in range(1500):
        before.add(key=i * 7919, value=i)
    loaded = Rows(columns, "key")
    loaded.load(memoryview(b"".join(before.dump())), before.n_high, len(before.slots))
    assert len(loaded.used) == 2048
    for i in range(1500, 5000):
        loaded.add(key=i * 7919, value=i)
        assert len(loaded.slots) & (len(loaded.slots) - 1) == 0
    assert all([loaded.at["value"][row] for row in loaded.find(i * 7919)] == [i] for i in range(5000))
    Rows(columns, "key").load(memoryview(b"".join(loaded.dump())), loaded.n_high, len(loaded.slots))


def test_older_head_that_is_found_later_changes_nothing() -> None:
    """A replay goes over records that the checkpoint knows already, the older ones first."""
    index = DiskIndex()
    index.put_head(1, 0, 20, 20, SLICE, Place(2, 64, 10), 1, 1)
    index.put_slice(1, 20, 0, 21, Place(2, 128, SLICE))
    assert not index.put_head(1, 0, 10, 10, SLICE, Place(1, 64, 10), 1, 1)
    assert not index.put_slice(1, 10, 0, 11, Place(1, 128, SLICE))
    assert [head.n_slices for head in index.find(1)] == [1]


def test_what_is_purged_stays_away_when_it_is_found_again() -> None:
    index = DiskIndex()
    index.put_head(1, 0, 5, 5, SLICE, Place(1, 64, 10), 1, 1)
    index.bury(GONE, 1, bytes(16), 6, 1)
    assert not index.put_head(1, 0, 5, 5, SLICE, Place(1, 64, 10), 1, 1)
    assert index.put_head(1, 0, 9, 9, SLICE, Place(1, 640, 10), 1, 1)


def test_segment_that_nobody_asks_for_goes_first() -> None:
    index = DiskIndex()
    for segment in (1, 2, 3):
        index.segments[segment] = 2 * SLICE
        index.put_head(segment, 0, segment, segment, SLICE, Place(segment, 64, 100), 1, 1)
        index.put_slice(segment, segment, 0, segment + 10, Place(segment, 256, SLICE))
    index.touch(index.find(1)[0].row)
    assert index.least_useful(but=3) == 2
    index.bury(GONE, 1, bytes(16), 100, 3)
    assert index.least_useful(but=3) == 1
    assert index.heads_to_keep(2) == []


def test_head_moves_when_slices_elsewhere_need_it() -> None:
    index = DiskIndex()
    index.segments |= {1: SLICE, 2: SLICE}
    index.put_head(1, 0, 7, 1, 2 * SLICE, Place(1, 64, 100), 1, 1)
    index.put_slice(1, 7, 0, 2, Place(1, 256, SLICE))
    index.put_slice(1, 7, 1, 3, Place(2, 64, SLICE))
    assert [head.generation for head in index.heads_to_keep(1)] == [7]
    index.put_head(1, 0, 7, 4, 2 * SLICE, Place(2, 999, 100), 1, 1)
    index.drop_segment(1)
    assert [(head.place.segment, head.n_slices) for head in index.find(1)] == [(2, 1)]


def test_class_over_its_share_gives_back_what_is_least_asked_for() -> None:
    index = DiskIndex()
    for key in range(10):
        index.put_head(key, 0, key + 1, key + 1, SLICE, Place(1, 64 * key, 100), 5, 1)
        index.put_slice(key, key + 1, 0, key + 100, Place(1, 9999, SLICE))
    index.touch(index.find(0)[0].row)
    assert index.class_bytes() == {5: 10 * SLICE}
    assert index.shrink_class(5, 4 * SLICE) >= 4
    assert index.class_bytes()[5] <= 6 * SLICE
    assert index.find(0)
    assert not index.find(1)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 5000), st.integers(1, 255))
def test_checkpoint_with_any_byte_changed_is_refused(at: int, change: int) -> None:
    model = Model()
    for key in range(3):
        model.head(key, 0, 1)
        model.slice(key, 0, 0, 1)
    data = bytearray(saved(model.index))
    data[at % len(data)] ^= change
    with pytest.raises(ValueError, match=r"\w"):
        load_checkpoint(memoryview(data), crc)


@given(st.binary(max_size=400), st.booleans())
def test_bytes_that_are_no_checkpoint_are_refused(data: bytes, has_right_sum: bool) -> None:
    if has_right_sum:
        data += struct.pack("<I", zlib.crc32(data))
    with pytest.raises(ValueError, match=r"\w"):
        load_checkpoint(memoryview(data), crc)


def a_head(**changed: object) -> DiskHead:
    values: dict[str, object] = {
        "origin": "media", "key": b"/a?b", "vary": b"accept\n", "vary_values": b"\x01x\n", "lines": b"A: b\r\n",
        "short_lines": b"", "etag": b'"1"', "kind": 3, "flags": 1, "status": 200, "last_modified_s": -1,
        "fresh_until_ns": 100, "stale_until_ns": 0, "born_ns": 5, "written_ns": 6, "checked_ns": 5, "total_length": 77,
        "tags": (3, 1 << 63),
    }  # fmt: skip
    return DiskHead(**(values | changed))  # type: ignore[arg-type]


def test_head_comes_back_as_it_was() -> None:
    assert unpack_head(pack_head(a_head())) == a_head()


@given(st.binary(max_size=300))
def test_bytes_that_are_no_head_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        unpack_head(data)


def cut(data: bytes) -> bytes:
    return data[:-1]


def longer(data: bytes) -> bytes:
    return data + b"x"


def newer(data: bytes) -> bytes:
    return b"\x03" + data[1:]


@pytest.mark.parametrize("spoil", [cut, longer, newer])
def test_spoilt_head_is_refused(spoil: Callable[[bytes], bytes]) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        unpack_head(spoil(pack_head(a_head())))


def test_times_survive_another_boot_and_a_clock_set_back() -> None:
    second = 10**9
    wall = 1_700_000_000 * second
    fresh = to_wall(1000 * second, 900 * second, wall)
    head = a_head(fresh_until_ns=fresh, born_ns=wall - 50 * second, written_ns=wall, checked_ns=wall - second)
    # 30 s later, on a machine that booted 5 s ago.
    assert to_monotonic(head, 5 * second, wall + 30 * second) == (75 * second, 0, -75 * second, -26 * second)
    # The clock was set back a year: nobody knows how old it is, so it is not fresh, and was never checked.
    fresh, stale, _, checked = to_monotonic(head, 5 * second, wall - 365 * 86400 * second)
    assert (fresh, stale, checked) == (0, 0, LONG_AGO_NS)
    # A year ahead: what had 100 s left has none.
    assert to_monotonic(head, 5 * second, wall + 365 * 86400 * second)[0] == 0
    assert to_monotonic(a_head(fresh_until_ns=FOREVER_NS), 5, 10)[0] == FOREVER_NS


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("put"), st.integers(0, 30), st.lists(st.integers(0, 6), max_size=4)),
            st.tuples(st.just("bury"), st.integers(0, 30), st.just([])),
            st.tuples(st.just("drop"), st.integers(0, 3), st.just([])),
            st.tuples(st.just("reload"), st.just(0), st.just([])),
        ),
        max_size=60,
    )
)
def test_tags_find_what_has_them_and_nothing_else(steps: list[tuple[str, int, list[int]]]) -> None:
    """Against a plain dictionary, over rewritten heads, purges, lost segments and checkpoints."""
    index = DiskIndex()
    known: dict[int, tuple[int, set[int]]] = {}  # key -> (segment, tags)
    for number, (what, key, tags) in enumerate(steps, 1):
        if what == "put":
            segment = number % 4
            place = Place(segment, 64 * number, 100)
            # Every other time it is the same object, with another head.
            generation = key + 1 if number % 2 else 1000 + number
            index.segments[segment] = 1
            assert index.put_head(key, 0, generation, number, SLICE, place, 1, 1, tuple(tags), len(tags))
            known[key] = (segment, set(tags))
        elif what == "bury":
            index.bury(GONE, key, bytes(16), number, 1)
            known.pop(key, None)
        elif what == "drop":
            index.drop_segment(key)
            known = {each: row for each, row in known.items() if row[0] != key}
        else:
            data = b"".join(dump_checkpoint(index, 0, 0))
            index, _, _ = load_checkpoint(memoryview(data + struct.pack("<I", zlib.crc32(data))), crc)
        for tag in range(7):
            assert index.tagged(tag) == {each for each, (_, its) in known.items() if tag in its}
    assert index.tagged(3, 2) == set()


def test_a_tag_of_many_objects_costs_no_more_to_add_to() -> None:
    """All rows of one tag in one chain of an open table would have been quadratic."""
    index = DiskIndex()
    began = time.process_time()
    for key in range(50_000):
        index.put_head(key, 0, key + 1, key + 1, SLICE, Place(1, 64, 9), 1, 1, (7, 1000 + key), 2)
    assert time.process_time() - began < 20, "it took minutes"
    assert len(index.tagged(7)) == 50_000
    assert index.tagged(1000 + 49_999) == {49_999}
