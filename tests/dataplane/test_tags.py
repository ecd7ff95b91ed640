"""Objects by their tags: found while they are in the table, never after, whatever the order in which they go."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from ext.tags import tagged_objects
from plane_rig import Rig, pattern

from ext.stored import StoredObject


def keys(rig: Rig, tag: int, origin: int = -1) -> set[bytes]:
    return {key for _, key, _ in tagged_objects(rig.plane, tag, origin)}


def put(rig: Rig, path: str, tags: tuple[int, ...], n: int = 100) -> StoredObject:
    stored = rig.begin(path, n)
    assert stored.set_tags(tags)
    rig.append(stored, 0, pattern(n))
    stored.finish(n)
    stored.end_fill()
    return stored


def test_tagged_objects_come_and_go(rigs: Callable[..., Rig]) -> None:
    rig = rigs()
    assert keys(rig, 1) == set()
    first, second = put(rig, "/a", (1, 2)), put(rig, "/b", (2, 2**64 - 1))
    assert (first.tags, second.tags) == ((1, 2), (2, 2**64 - 1))
    assert (keys(rig, 1), keys(rig, 2), keys(rig, 2**64 - 1), keys(rig, 3)) == ({b"/a"}, {b"/a", b"/b"}, {b"/b"}, set())
    assert keys(rig, 2, first.origin) == {b"/a", b"/b"}
    assert keys(rig, 2, first.origin + 1) == set()
    assert first.set_tags((3,))
    assert (keys(rig, 1), keys(rig, 2), keys(rig, 3)) == (set(), {b"/b"}, {b"/a"})
    second.detach()
    assert second.set_tags((5,))  # too late to be found by it
    assert (keys(rig, 2), keys(rig, 5)) == (set(), set())
    put(rig, "/a", ())  # takes its place
    assert keys(rig, 3) == set()
    with pytest.raises(ValueError, match="more tags"):
        first.set_tags(tuple(range(257)))


def test_tags_of_what_is_evicted_are_found_no_more(rigs: Callable[..., Rig]) -> None:
    rig = rigs()
    chance = random.Random(7)
    for number in range(3000):
        put(rig, f"/{number}", tuple(chance.sample(range(40), 3)), 60_000)
        if number % 500 == 0:
            rig.plane.reclaim()
    listed = {key for _, key, _ in rig.plane.objects()}
    found = set()
    for tag in range(40):
        of_tag = keys(rig, tag)
        assert of_tag <= listed
        found |= of_tag
    assert found == listed - {b"/.well-known/accelerator/health"}
    assert len(found) < 3000, "some were evicted"
