"""Reading while writing: appends, chunks, broken fills, evicted slices, many readers at different speeds."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from plane_rig import Rig, Viewer, pattern, wait_until

N = 50_000
BODY = pattern(N)
RANGE = (5_000, 30_000)


def test_readers_follow_a_fill(rigs: Callable[..., Rig]) -> None:
    rig = rigs(workers=2)
    stored = rig.begin("/x", N, strong=True)
    viewers = [rig.viewer() for _ in range(20)]
    for viewer in viewers[:10]:
        viewer.ask("/x")
    ranged = rig.viewer()
    ranged.ask("/x", f"Range: bytes={RANGE[0]}-{RANGE[1]}")
    wait_until(lambda: stored.n_readers == 11)
    offset, chance = 0, random.Random(2)
    while offset < N:
        offset = rig.append(stored, offset, BODY[offset : offset + chance.randrange(1, 3000)])
        viewer = viewers[0]
        while len(viewer.data) < offset:  # what is there is sent at once, not at the end
            viewer.more()
        if offset > N // 2:
            for viewer in viewers[10:]:
                viewer.ask("/x")
            viewers, late = viewers[:10], viewers[10:]
            if late:
                joined = late
    stored.finish(N)
    stored.end_fill()
    for viewer in viewers + joined:
        assert viewer.reply().body == BODY
    part = ranged.reply()
    assert (part.status, part.body) == (206, BODY[RANGE[0] : RANGE[1] + 1])
    for exchange in rig.exchanges:
        assert exchange.kind == "want"
        exchange.done()
    rig.exchanges.clear()
    assert stored.n_readers == 0
    assert rig.total("misses") == 0
    assert rig.total("collapsed") + rig.total("hits") == 21


def test_appends_do_not_ask_for_the_slice_again(rig: Rig) -> None:
    """Each append let the readers ask for their slice anew: one more exchange each."""
    stored = rig.begin("/x", N)
    viewer = rig.viewer()
    offset = rig.append(stored, 0, BODY[:1])
    viewer.ask("/x")
    wait_until(lambda: stored.n_readers == 1)
    while offset < N:
        offset = rig.append(stored, offset, BODY[offset : offset + 50])
        while len(viewer.data) < offset:
            viewer.more()
        rig.take()
    stored.finish(N)
    stored.end_fill()
    assert viewer.reply().body == BODY
    assert rig.total("slices_wanted") <= N // 4096 + 1


@pytest.mark.parametrize("sizes", [[1], [1, 1, 1], [10, 4096, 4096, 1], [4095, 1, 4096, 20_000], [70_000]])
def test_a_body_of_unknown_length_comes_in_chunks(rig: Rig, sizes: list[int]) -> None:
    body = pattern(sum(sizes))
    stored = rig.begin("/x", -1)
    viewers = [rig.viewer() for _ in range(3)]
    for viewer in viewers:
        viewer.ask("/x", "Range: bytes=0-0")  # of an unknown whole: everything
    old = rig.viewer()
    old.ask("/x", minor=0)
    wait_until(lambda: stored.n_readers == 4)
    offset = 0
    for size in sizes:
        offset = rig.append(stored, offset, body[offset : offset + size])
        viewers[0].more()
    stored.finish(len(body))
    stored.end_fill()
    for viewer in viewers:
        reply = viewer.reply()
        assert (reply.status, reply.is_chunked, reply.body) == (200, True, body)
        assert viewer.get("/x")["content-length"] == str(len(body))
    reply = old.head()
    assert not reply.has("content-length")
    assert reply["connection"] == "close"
    assert old.rest() == body


def test_an_empty_body_of_unknown_length(rig: Rig) -> None:
    stored = rig.begin("/x", -1)
    viewer, old = rig.viewer(), rig.viewer()
    viewer.ask("/x")
    old.ask("/x", minor=0)
    wait_until(lambda: stored.n_readers == 2)
    stored.finish(0)
    stored.end_fill()
    assert viewer.reply().body == b""
    assert old.reply().body == b""
    assert viewer.get("/x")["content-length"] == "0"


def test_head_of_an_unknown_length_has_none(rig: Rig) -> None:
    stored = rig.begin("/x", -1)
    reply = rig.viewer().get("/x", method="HEAD")
    assert not reply.has("content-length")
    assert not reply.is_chunked
    stored.fail()
    stored.end_fill()


def test_chunks_through_a_socket_that_takes_little(rigs: Callable[..., Rig]) -> None:
    rig = rigs(send_bytes=2048)
    body = pattern(200_000)
    stored = rig.begin("/x", -1)
    viewer = rig.viewer(receive_bytes=2048)
    viewer.ask("/x")
    viewer.ask("/y")
    wait_until(lambda: stored.n_readers == 1)
    chance, offset = random.Random(3), 0
    while offset < len(body):
        offset = rig.append(stored, offset, body[offset : offset + chance.randrange(1, 9000)])
    stored.finish(len(body))
    stored.end_fill()
    rig.store("/y", b"next")
    assert viewer.reply().body == body
    assert viewer.reply().body == b"next"


@pytest.mark.parametrize("total", [N, -1])
@pytest.mark.parametrize("minor", [0, 1])
def test_a_broken_fill_breaks_the_transfer(rig: Rig, total: int, minor: int) -> None:
    """By reset: a clean end would be taken for the whole where the length isn't known."""
    stored = rig.begin("/x", total)
    viewer, ended = rig.viewer(), rig.viewer()
    rig.append(stored, 0, BODY[:20_000])
    viewer.ask("/x", minor=minor)
    wait_until(lambda: stored.n_readers == 1)
    if total > 0:
        assert ended.get("/x", "Range: bytes=0-19999").body == BODY[:20_000]
    stored.fail()
    stored.end_fill()
    assert viewer.is_reset()
    assert rig.total("broken_transfers") == 1
    assert stored.is_failed
    assert not stored.is_listed
    ended.ask("/x")
    rig.exchange("miss").error(502)
    assert ended.reply().status == 502


def test_a_fill_that_fails_before_the_first_byte(rig: Rig) -> None:
    stored = rig.begin("/x", N)
    viewer = rig.viewer()
    viewer.ask("/x")
    wait_until(lambda: stored.n_readers == 1)
    stored.fail()
    stored.end_fill()
    assert viewer.is_reset()


def answer_wants(rig: Rig, body: bytes) -> None:
    rig.take()
    for exchange in rig.exchanges:
        assert exchange.kind == "want"
        assert exchange.stored is not None
        rig.refill(exchange.stored, body, exchange.offset)
        exchange.done()
    rig.exchanges.clear()


def test_evicted_slices_are_wanted_and_sent_all_the_same(rigs: Callable[..., Rig]) -> None:
    """Slow readers hold (object, offset): their slices go for others', and come back when they get there."""
    memory = 3 << 20
    rig = rigs(workers=2, memory=memory, slice_bytes=8192, send_bytes=4096)
    body = pattern(150_000)
    stored = rig.store("/slow", body, strong=True)
    viewers = [rig.viewer(receive_bytes=4096) for _ in range(4)]
    for viewer in viewers:
        viewer.ask("/slow")
    ranged = rig.viewer(receive_bytes=4096)
    ranged.ask("/slow", "Range: bytes=50000-129999")
    wait_until(lambda: stored.n_readers == 5)
    other = rig.viewer()
    for i in range(40):
        rig.store(f"/other{i}", pattern(400_000, i))
        assert other.get(f"/other{i}", "Range: bytes=0-9").status == 206  # not only the hand's first choice
        memory_now = rig.plane.memory
        assert memory_now["mapped"] + memory_now["outside"] <= memory
    assert stored.filled_bytes < len(body)
    assert stored.is_listed
    for viewer in viewers:
        while len(viewer.data) < len(body):
            answer_wants(rig, body)
            viewer.socket.settimeout(0.01)
            try:
                viewer.more()
            except TimeoutError:
                continue
        assert viewer.reply().body == body
    while len(ranged.data) < 80_000:
        answer_wants(rig, body)
        ranged.socket.settimeout(0.01)
        try:
            ranged.more()
        except TimeoutError:
            continue
    assert ranged.reply().body == body[50_000:130_000]
    assert rig.total("slices_wanted") > 0
    wait_until(lambda: not answer_wants(rig, body) and stored.n_readers == 0)


def test_a_hit_on_evicted_slices_says_that_it_was_none(rigs: Callable[..., Rig]) -> None:
    rig = rigs(memory=4 << 20, slice_bytes=65536)
    body = pattern(1 << 20)
    stored = rig.begin("/x", len(body), strong=True)
    viewer = rig.viewer()
    viewer.ask("/x")
    wait_until(lambda: stored.n_readers == 1)
    rig.append(stored, 0, body)
    stored.finish(len(body))
    stored.end_fill()
    assert viewer.reply().body == body  # what nobody has read would stay longest
    rig.take()
    while rig.exchanges:  # the reader may have been at a slice before its filling began
        rig.exchanges.pop().done()
    for i in range(40):
        rig.store(f"/other{i}", pattern(400_000, i))
    assert stored.has_bytes(0) == 0
    viewer.ask("/x", "Range: bytes=0-99")
    want = rig.exchange("want")
    assert (want.offset, want.stored) == (0, stored)
    rig.refill(stored, body, 0)
    want.done()
    reply = viewer.reply()
    assert reply.body == body[:100]
    assert "fwd=partial" in reply["cache-status"]
    assert reply.has("age")
    assert (rig.total("hits"), rig.total("misses"), rig.total("collapsed")) == (0, 1, 1)


def test_a_want_that_is_not_filled_can_be_asked_again(rig: Rig) -> None:
    stored = rig.begin("/x", N)
    viewer = rig.viewer()
    viewer.ask("/x", "Range: bytes=9000-9010")
    first = rig.exchange("want")
    assert first.offset == 9000
    first.done()
    assert rig.no_exchange()
    stored.forget_want()
    second = rig.exchange("want")
    second.done()
    stored.end_fill()
    third = rig.exchange("want")
    rig.refill(stored, BODY, 9000)
    third.done()
    assert viewer.reply().body == BODY[9000:9011]


def test_a_paused_fill_is_nudged_when_a_reader_gets_there(rig: Rig) -> None:
    stored = rig.begin("/x", N)
    offset = rig.append(stored, 0, BODY[:20_000])
    assert stored.pause_at(10_000)
    viewer = rig.viewer()
    viewer.ask("/x")
    wait_until(lambda: rig.take() or stored in rig.nudged)
    assert not stored.pause_at(10_000)
    rig.append(stored, offset, BODY[offset:])
    stored.finish(N)
    stored.end_fill()
    assert viewer.reply().body == BODY
    for exchange in rig.exchanges:
        exchange.done()
    rig.exchanges.clear()


def test_a_fill_hears_that_its_last_reader_left(rig: Rig) -> None:
    stored = rig.begin("/x", N)
    viewers = [rig.viewer() for _ in range(2)]
    for viewer in viewers:
        viewer.ask("/x")
    wait_until(lambda: stored.n_readers == 2)
    viewers[0].reset()
    wait_until(lambda: stored.n_readers == 1)
    viewers[1].reset()
    wait_until(lambda: rig.take() or stored in rig.nudged)
    assert stored.n_readers == 0
    stored.fail()
    stored.end_fill()


def test_a_private_body_keeps_only_what_its_reader_has_not_got(rig: Rig) -> None:
    viewer = rig.viewer()
    viewer.ask("/x", "Range: bytes=5-9")
    exchange = rig.exchange("miss")
    body = pattern(300_000)
    stored = rig.create(-1, private=True)
    assert stored is not None
    stored.begin_fill()
    exchange.leader(stored, 200)
    offset = 0
    for i in range(0, len(body), 10_000):
        offset = rig.append(stored, offset, body[i : i + 10_000])
        while len(viewer.data) < offset:
            viewer.more()
        stored.drop_before(offset)
        assert stored.filled_bytes < 20_000
    stored.finish(len(body))
    stored.end_fill()
    reply = viewer.reply()
    assert (reply.status, reply.body) == (200, body)
    assert reply["cache-status"] == "lyon; fwd=uri-miss; fwd-status=200"
    assert rig.total("passed") == 1


def test_purge_while_read(rig: Rig) -> None:
    stored = rig.begin("/x", N)
    viewer: Viewer = rig.viewer()
    viewer.ask("/x")
    rig.append(stored, 0, BODY[:10_000])
    wait_until(lambda: stored.n_readers == 1)
    stored.detach()
    assert rig.plane.find(1, b"/x") == []
    rig.append(stored, 10_000, BODY[10_000:])
    stored.finish(N)
    stored.end_fill()
    assert viewer.reply().body == BODY
    viewer.ask("/x")
    assert rig.exchange("miss").kind == "miss"
