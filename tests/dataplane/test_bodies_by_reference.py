"""Bodies that leave without a copy: whatever becomes of their memory, a viewer reads what was sent (decision 0196)."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from plane_rig import Rig, Viewer, pattern, wait_until

MIB = 1 << 20


def fill_with_others(rig: Rig, n: int, body: bytes) -> None:
    """So many objects, each of them asked for, that all memory has had another tenant."""
    viewer = rig.viewer()
    for i in range(n):
        rig.store(f"/other{i}", body)
        viewer.get(f"/other{i}", method="HEAD")
        rig.plane.reclaim()


def begin_and_stop_reading(rig: Rig, path: str) -> tuple[Viewer, int]:
    """A viewer whose answer has begun, as far as its socket takes it unread; how many bytes of the body that were."""
    viewer = rig.viewer(receive_bytes=65536)
    viewer.ask(path)
    sent = -1
    while sent != (sent := rig.total("bytes_to_viewers")) or sent == 0:
        before = rig.passes()
        rig.plane.poke()
        wait_until(lambda before=before: rig.passes() > before)
    return viewer, sent


def test_what_a_socket_still_holds_outlives_its_memory(rigs: Callable[..., Rig]) -> None:
    rig = rigs(memory=8 * MIB, slice_bytes=MIB, send_bytes=MIB)
    body = pattern(3 * MIB)
    film = rig.store("/film", body, strong=True, etag=b'"1"')
    viewer, sent = begin_and_stop_reading(rig, "/film")
    assert rig.total("bytes_by_reference") >= sent > 512 * 1024
    fill_with_others(rig, 40, b"\xee" * MIB)
    assert film.has_bytes(0) == 0, "the slice that is on its way was to be evicted"
    viewer.head()
    assert viewer.until(sent) == body[:sent]
    film.fail()  # nobody fetches the rest


def test_a_purged_object_still_goes_out_whole(rigs: Callable[..., Rig]) -> None:
    rig = rigs(memory=16 * MIB, slice_bytes=MIB, send_bytes=MIB)
    body = pattern(2 * MIB)
    film = rig.store("/film", body)
    viewer, _ = begin_and_stop_reading(rig, "/film")
    film.detach()
    del film
    fill_with_others(rig, 40, b"\xee" * MIB)
    assert viewer.reply().body == body


def test_memory_comes_back_for_ever(rigs: Callable[..., Rig]) -> None:
    """Address space is used again, also by pieces of other sizes: references don't end."""
    rig = rigs(memory=3 * MIB, slice_bytes=MIB)  # 64 MiB of address space
    viewer = rig.viewer()
    for i in range(240):
        n = (40_000, 70_000, 300_000, MIB)[i % 4] - 7 * i
        body = bytes([i]) * n
        rig.store("/x", body)
        rig.plane.reclaim()
        before = rig.total("bytes_by_reference")
        assert viewer.get("/x").body == body
        # A worker counts after the viewer may have read.
        wait_until(lambda before=before: rig.total("bytes_by_reference") > before, f"a reference to body {i}")


@pytest.mark.parametrize("n", [1, 1000, 32_000])
def test_small_bodies_are_copied(rigs: Callable[..., Rig], n: int) -> None:
    rig = rigs(slice_bytes=MIB)
    rig.store("/x", pattern(n))
    assert rig.viewer().get("/x").body == pattern(n)
    assert rig.total("bytes_by_reference") == 0


@pytest.mark.parametrize("first", [0, 4095, 100_000])
@pytest.mark.parametrize("n", [32_767, 32_768, 1_500_000])
def test_ranges_by_reference(rigs: Callable[..., Rig], first: int, n: int) -> None:
    rig = rigs(slice_bytes=MIB)
    body = pattern(2 * MIB)
    rig.store("/x", body)
    reply = rig.viewer().get("/x", f"Range: bytes={first}-{first + n - 1}")
    assert reply.body == body[first : first + n]
    if n < 32_768:
        assert rig.total("bytes_by_reference") == 0
    else:
        wait_until(lambda: rig.total("bytes_by_reference") > 0)


def test_a_body_of_unknown_length_goes_by_reference_between_its_chunks(rigs: Callable[..., Rig]) -> None:
    rig = rigs(slice_bytes=MIB, send_bytes=MIB)
    stored = rig.begin("/x", -1)
    viewer = rig.viewer()
    viewer.ask("/x")
    body = pattern(900_000)
    for at in range(0, len(body), 150_000):
        rig.append(stored, at, body[at : at + 150_000])
    stored.finish(len(body))
    stored.end_fill()
    assert viewer.reply().body == body
    wait_until(lambda: rig.total("bytes_by_reference") > 0)
