"""The listing of stored objects: filters, orders and pages as sorted() has them, also while objects come and go."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from typing import Any

import pytest
from ext.listing import COMPLETE, SORTS, list_objects
from plane_rig import CREDENTIAL, GENERIC, MEDIA, Rig

HOSTS = [b"box", b"b.example", b"c.example", b"b.example"]
ALL = [False, True, True, True]
KEYS: dict[str, Callable[[tuple[Any, ...]], Any]] = {
    "url": lambda row: (HOSTS[row[0]], row[1]),
    "size": lambda row: (-row[3], HOSTS[row[0]], row[1]),
    "age": lambda row: (row[4], HOSTS[row[0]], row[1]),
    "ttl": lambda row: (-row[5], HOSTS[row[0]], row[1]),
}


def filled(rig: Rig, n: int) -> None:
    chance = random.Random(1)
    for number in range(n):
        origin = chance.choice((MEDIA, GENERIC, CREDENTIAL))
        path = f"/{'generic' if origin == GENERIC else 'signed' if origin == CREDENTIAL else 'live'}/{chance.random()}"
        rig.store(
            f"{path}?token={number}", b"x" * chance.randrange(300), origin=origin, fresh_s=chance.randrange(1, 9),
            age_s=chance.randrange(9),
        )  # fmt: skip


@pytest.mark.parametrize("sort", SORTS)
def test_orders_and_pages(rigs: Callable[..., Rig], sort: str) -> None:
    rig = rigs()
    filled(rig, 1000)
    total, everything = list_objects(rig.plane, HOSTS, ALL, sort=sort, limit=10_000)
    assert total == len(everything) == 1000
    assert everything == sorted(everything, key=KEYS[sort])
    pages = [list_objects(rig.plane, HOSTS, ALL, sort=sort, offset=offset, limit=300) for offset in range(0, 1500, 300)]
    assert [row for _, page in pages for row in page] == everything
    assert {total for total, _ in pages} == {1000}
    assert all(row[6] & COMPLETE for row in everything)


def test_filters(rigs: Callable[..., Rig]) -> None:
    rig = rigs()
    filled(rig, 600)
    _, everything = list_objects(rig.plane, HOSTS, ALL, limit=10_000)

    def found(**chosen: Any) -> list[Any]:
        total, rows = list_objects(rig.plane, HOSTS, chosen.pop("wanted", ALL), limit=10_000, **chosen)
        assert total == len(rows)
        return rows

    assert found(wanted=[False, False, True, False]) == [row for row in everything if row[0] == GENERIC]
    assert found(contains=b"/0.5") == [row for row in everything if b"/0.5" in row[1]]
    assert found(contains=b"token") == [], "nobody may try queries"
    assert found(contains=b"?") == []
    beginnings = [(MEDIA, b"/li"), (GENERIC, b"/li"), (CREDENTIAL, b"/li")]
    assert found(prefix=(b"a", beginnings)) == [row for row in everything if row[0] == MEDIA]
    assert found(prefix=(b"unknown", beginnings)) == []
    assert found(prefix=(b"a", [])) == []
    assert found(wanted=[False] * 4) == []
    assert found(contains=b"c.example/gen") == [row for row in everything if row[0] == GENERIC]


def test_while_objects_come_and_go_and_tables_change(rigs: Callable[..., Rig]) -> None:
    """Listings from another thread, beside a writer whose table grows and whose policies are published."""
    rig = rigs(workers=2)
    ends = threading.Event()
    faults: list[str] = []

    def list_on() -> None:
        chance = random.Random(3)
        while not ends.is_set():
            sort = chance.choice(SORTS)
            total, rows = list_objects(rig.plane, HOSTS, ALL, sort=sort, prefix=(b"a", [(MEDIA, b"/")]), limit=1000)
            if rows != sorted(rows, key=KEYS[sort]) or total < len(rows):
                faults.append(f"{sort}: {total}")

    thread = threading.Thread(target=list_on)
    thread.start()
    kept = []
    for number in range(6000):
        kept.append(rig.store(f"/{number}", b"y" * 20))
        if number % 3 == 0:
            kept.pop(number % len(kept)).detach()
        if number % 100 == 0:
            rig.publish()
            rig.plane.reclaim()
    ends.set()
    thread.join()
    assert faults == []
    rig.publish()
    assert list_objects(rig.plane, HOSTS, ALL)[0] == len(kept)
