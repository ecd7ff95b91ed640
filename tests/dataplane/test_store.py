"""Objects, table and memory as the control plane drives them: no socket but where a reader matters."""

from __future__ import annotations

import contextlib
import gc
import random
import time
from collections.abc import Callable

import pytest
from plane_rig import MEDIA, SECOND_NS, Rig, Viewer, pattern, wait_until

from ext import layout
from ext.stored import StoredObject


def mapped(rig: Rig) -> int:
    memory = rig.plane.memory
    assert memory["mapped"] + memory["outside"] <= memory["limit"], memory
    return int(memory["mapped"])


def test_rows_are_laid_out_alike() -> None:
    sizes = layout.struct_sizes()
    for name in ("origin", "host", "path", "net", "listener", "string", "limits"):
        assert getattr(layout, f"{name.upper()}_DTYPE").itemsize == sizes[name]
    assert sizes["n_counters"] == len(layout.COUNTERS) <= sizes["stride"]
    assert [column for column, _, _ in layout.COUNTERS] == list(range(len(layout.COUNTERS)))


@pytest.mark.parametrize("slice_bytes", [64, 4096, 1 << 20])
@pytest.mark.parametrize("n", [0, 1, 63, 64, 65, 4096, 16_384, 16_385, 100_000])
@pytest.mark.parametrize("is_known", [True, False])
def test_a_body_is_what_was_put_in(rigs: Callable[..., Rig], slice_bytes: int, n: int, is_known: bool) -> None:
    rig = rigs(slice_bytes=slice_bytes)
    stored = rig.begin("/x", n if is_known else -1)
    assert rig.append(stored, 0, pattern(n)) == n
    assert stored.total_length == (n if is_known else -1)
    assert not stored.is_complete
    stored.finish(n)
    stored.end_fill()
    assert (stored.total_length, stored.filled_bytes, stored.is_complete, stored.is_whole) == (n, n, True, True)
    assert stored.body(1 << 30) == pattern(n)
    assert stored.body(10) == pattern(n)[:10]
    assert rig.plane.n_objects == 1


def test_excess_room_is_given_back(rigs: Callable[..., Rig]) -> None:
    rig = rigs(slice_bytes=1 << 20)
    before = rig.plane.memory["used"]
    for n in (0, 10, 20_000, 1 << 20, (1 << 20) + 1):
        stored = rig.begin(f"/{n}", -1)
        offset = rig.append(stored, 0, pattern(n))
        rig.room(stored, offset, 1)  # asked for before the end was known
        stored.finish(n)
        stored.end_fill()

        def is_given_back(bound: int = before + n + n // 4 + 2000) -> bool:
            rig.plane.reclaim()  # once the worker has passed
            return bool(rig.plane.memory["used"] < bound)

        wait_until(is_given_back)
        assert stored.body(1 << 30) == pattern(n)
        before = rig.plane.memory["used"]


def test_room_and_commit_hold_to_the_slice(rig: Rig) -> None:
    stored = rig.create(10_000)
    assert stored is not None
    stored.begin_fill()
    room = stored.room(0, 100_000)
    assert room is not None
    assert len(room) == 4096
    for offset, n in ((0, 4097), (1, 1), (4096, 5000), (100_000, 1), (-1, 1)):
        with pytest.raises(ValueError, match="room"):
            stored.commit(offset, n)
    assert stored.room(1, 1) is None
    assert stored.room(100_000, 1) is None
    stored.commit(0, 4096)
    assert stored.has_bytes(0) == 4096
    assert stored.has_bytes(4000) == 96
    assert stored.has_bytes(4096) == 0
    stored.end_fill()
    with pytest.raises(ValueError, match="begin_fill"):
        stored.end_fill()


def test_an_object_is_listed_once(rig: Rig) -> None:
    stored = rig.store("/x", b"body")
    assert not stored.insert(b"/y", b"", b"")
    stored.detach()
    assert not stored.insert(b"/y", b"", b"")
    assert rig.plane.find(MEDIA, b"/x") == []
    assert rig.plane.n_objects == 0


def test_a_passing_reference_does_not_take_the_object_away(rig: Rig) -> None:
    """The end of any StoredObject retired an object that was not listed yet: its owner could not list it any more."""
    stored = rig.create(4)
    assert stored is not None
    viewer = rig.viewer()
    viewer.ask("/other")
    stored.begin_fill()
    rig.exchange("miss").everybody(stored)
    wait_until(lambda: stored.n_readers == 1)
    viewer.reset()
    wait_until(lambda: rig.take() or rig.nudged)
    rig.nudged.clear()
    gc.collect()
    assert stored.insert(b"/x", b"", b"")
    rig.append(stored, 0, b"body")
    stored.finish(4)
    stored.end_fill()
    assert rig.viewer().get().body == b"body"


def test_finding_objects_while_garbage_holds_one(rig: Rig) -> None:
    """find() made Python objects under the lock: the collector ran a finalizer that takes it, and that was that."""
    for i in range(400):
        rig.store(f"/{i % 5}", b"body")
        ring: list[object] = [rig.plane.find(MEDIA, b"/1"), rig.plane.objects()]
        ring.append(ring)  # garbage that only the collector finds
        del ring
    assert len(rig.plane.objects()) == 5
    assert {key for _, key, _ in rig.plane.objects()} == {b"/%d" % i for i in range(5)}


def test_many_keys(rigs: Callable[..., Rig]) -> None:
    rig = rigs(slice_bytes=64)
    for i in range(20_000):
        rig.store(f"/{i}", b"%d" % i)
    assert rig.plane.n_objects == 20_000
    viewer = rig.viewer()
    for i in range(0, 20_000, 997):
        assert viewer.get(f"/{i}").body == b"%d" % i
    for i in range(0, 20_000, 2):
        for stored in rig.plane.find(MEDIA, b"/%d" % i):
            stored.detach()
    assert rig.plane.n_objects == 10_000
    viewer.ask("/0")
    rig.exchange("miss").error(504)
    assert viewer.reply().status == 504
    assert viewer.get("/1").body == b"1"


def test_everything_that_goes_is_given_back(rigs: Callable[..., Rig]) -> None:
    rig = rigs(workers=2)
    rig.store("/first", b"x").detach()
    chance = random.Random(4)

    def used() -> int:
        gc.collect()
        rig.plane.reclaim()
        return int(rig.plane.memory["used"])

    before = used()
    for turn in range(200):
        head = b"GET /x HTTP/1.1\r\nHost: a\r\nA: %d\r\n\r\n" % (turn % 40)
        vary = chance.choice([b"", b"a\n", b"a\nb\n"])
        stored = rig.begin(f"/{turn % 7}", chance.choice([-1, 30_000]), vary=vary, request=head)
        n = chance.randrange(30_001) if stored.total_length < 0 else 30_000
        rig.append(stored, 0, pattern(n))
        if turn % 5 == 0:
            stored.fail()
        else:
            stored.finish(n)
            assert stored.set_head(200, b"HTTP/1.1 200 OK\r\n", b"X: y\r\n" * (turn % 9), b"", b"", -1, 0, 0, 0, 0, 0)
        stored.end_fill()
        rig.plane.mark_unshareable(MEDIA, b"/m%d" % turn, time.monotonic_ns() + 1000 * SECOND_NS)
    stored = None  # type: ignore[assignment]
    for _, _, listed in rig.plane.objects():
        listed.detach()
    listed = None  # type: ignore[assignment]
    for turn in range(200):
        rig.plane.mark_unshareable(MEDIA, b"/m%d" % turn, 0)
    wait_until(lambda: used() == before, f"all {used() - before} bytes back")
    assert rig.plane.n_objects == 0


# --- memory -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [[100], [5000], [70_000], [1_000_000], [10, 300, 5000, 70_000, 1_000_000]])
@pytest.mark.parametrize("slice_bytes", [4096, 1 << 20])
def test_the_limit_holds_while_much_more_comes(rigs: Callable[..., Rig], sizes: list[int], slice_bytes: int) -> None:
    limit = 4 << 20
    rig = rigs(memory=limit, slice_bytes=slice_bytes)
    chance = random.Random(5)
    most = filled = n = 0
    while filled < 4 * limit and n < 8000:
        size = chance.choice(sizes)
        rig.store(f"/{n}", bytes(size))
        filled += size + 600
        n += 1
        most = max(most, mapped(rig))
    if filled >= 4 * limit:
        assert rig.total("evictions") > 0
        assert most > limit // 2
    assert rig.total("memory_refused") == 0


def test_what_is_asked_for_again_survives_a_scan(rigs: Callable[..., Rig]) -> None:
    rig = rigs(memory=8 << 20, slice_bytes=65536)
    hot = [f"/hot{i}" for i in range(20)]
    for path in hot:
        rig.store(path, pattern(60_000))
    viewer = rig.viewer()
    for i in range(600):
        rig.store(f"/scan{i}", pattern(60_000, i))
        if i % 20 == 0:
            for path in hot:
                assert viewer.get(path, "Range: bytes=0-0").status == 206
    assert all(rig.plane.find(MEDIA, path.encode()) for path in hot)
    assert rig.total("evictions") > 400


def test_what_readers_hold_on_to_does_not_stop_eviction(rigs: Callable[..., Rig]) -> None:
    """Purged objects that are being read counted as about to come free: nothing was evicted, everything refused."""
    rig = rigs(memory=8 << 20, slice_bytes=1 << 16, send_bytes=4096)
    readers = []
    for i in range(2):
        stored = rig.store("/slow", pattern(2_000_000, i))
        reader = rig.viewer(receive_bytes=4096)
        reader.ask("/slow")
        wait_until(lambda stored=stored: stored.n_readers == 1)
        stored.detach()
        readers.append(reader)
    for i in range(100):
        stored = rig.create(200_000)
        assert stored is not None
        stored.begin_fill()
        assert stored.insert(b"/%d" % i, b"", b"")
        rig.append(stored, 0, pattern(200_000, i))
        stored.finish(200_000)
        stored.end_fill()
    for i, reader in enumerate(readers):
        reader.socket.setsockopt(1, 8, 1 << 20)
        assert reader.head().status == 200
        assert reader.until(100_000) == pattern(2_000_000, i)[:100_000]
        reader.reset()


def test_a_fill_keeps_its_place_in_tight_memory(rigs: Callable[..., Rig]) -> None:
    """Eviction emptied the first slice of a strong body whose length was not known yet, between two appends."""
    rig = rigs(memory=4 << 20, slice_bytes=65536)
    body = pattern(400_000)
    stored = rig.begin("/x", -1, strong=True)
    offset = rig.append(stored, 0, body[:16384])
    viewer = rig.viewer()
    for i in range(60):
        rig.store(f"/{i}", pattern(200_000, i))
        assert viewer.get(f"/{i}", "Range: bytes=0-0").status == 206
    assert stored.has_bytes(0) == 16384
    offset = rig.append(stored, offset, body[16384:70_000])
    stored.finish(70_000)
    stored.end_fill()
    assert stored.body(1 << 20) == body[:70_000]
    assert offset == 70_000


def follow(rig: Rig, viewer: Viewer, n: int) -> None:
    """Reads until `n` bytes are there, answering what the workers ask meanwhile: wants by refilling, others by 504."""
    viewer.socket.settimeout(0.01)
    while len(viewer.data) < n:
        rig.take()
        for exchange in rig.exchanges:
            if exchange.stored is None:
                exchange.error(504)
                continue
            number = int(exchange.head.split(b" ")[1][1:])
            rig.refill(exchange.stored, pattern(150_000, number), exchange.offset)
            exchange.done()
        rig.exchanges.clear()
        with contextlib.suppress(TimeoutError):
            viewer.more()


def test_eviction_while_readers_are_at_it(rigs: Callable[..., Rig]) -> None:
    rig = rigs(workers=2, memory=6 << 20, slice_bytes=16384)
    chance = random.Random(6)
    viewers = [rig.viewer() for _ in range(8)]
    for i in range(150):
        rig.store(f"/{i}", pattern(150_000, i), strong=bool(i % 2))
        asked = []
        for viewer in viewers:
            number = max(0, i - chance.randrange(12))
            viewer.ask(f"/{number}")
            asked.append(number)
        mapped(rig)
        for viewer, number in zip(viewers, asked, strict=True):
            follow(rig, viewer, 1)
            reply = viewer.head()
            follow(rig, viewer, int(reply["content-length"]))
            body = viewer.until(int(reply["content-length"]))
            if reply.status == 200:
                assert body == pattern(150_000, number)


def test_a_body_beyond_all_bounds_is_refused(rig: Rig) -> None:
    assert rig.create(1 << 62) is None
    assert rig.create(4096 * (1 << 20) + 1) is None
    assert rig.create((1 << 63) - 1) is None


# --- keys that can't be shared ----------------------------------------------------------------------------------------


def test_marks_do_not_fill_the_store(rigs: Callable[..., Rig]) -> None:
    """Nothing took marked entries out: any viewer could fill the memory with keys."""
    rig = rigs(memory=4 << 20)
    until_ns = time.monotonic_ns() + 1000 * SECOND_NS
    for i in range(80_000):
        rig.plane.mark_unshareable(MEDIA, b"/%060d" % i, until_ns)
    mapped(rig)
    stored = rig.store("/x", pattern(1_000_000))
    assert stored.is_whole
    assert rig.viewer().get("/x").body == pattern(1_000_000)


def test_marks_end_and_their_entries_go(rig: Rig) -> None:
    rig.plane.reclaim()
    before = rig.plane.memory["used"]
    now_ns = time.monotonic_ns()
    for i in range(500):
        assert rig.plane.mark_unshareable(MEDIA, b"/%d" % i, now_ns + SECOND_NS // 50)

    def are_gone() -> bool:
        rig.plane.reclaim()
        return bool(rig.plane.memory["used"] == before)

    wait_until(are_gone)


def test_references_compare_by_object(rig: Rig) -> None:
    first, second = rig.store("/1", b"a"), rig.store("/2", b"a")
    again: StoredObject = rig.plane.find(MEDIA, b"/1")[0]
    assert first == again
    assert first is not again
    assert hash(first) == hash(again)
    assert first != second
