"""The policies that benchmarks/eviction.py measures by: against tables computed by hand from the papers, and our own
store against the plain SIEVE."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from eviction_policies import Lru, Policy, S3Fifo, Sieve, Store
from eviction_traces import library, mixed, webcast

# Names of one byte each; capital letters are the hits.
TABLES = [
    # d takes the place of b, b that of c, c that of a.
    (Lru(3), "abcAdbcD", "bcd"),
    # d: the hand spares a and takes b. b: it goes on and takes c, then d for c. a is still there.
    (Sieve(3), "abcAdbAc", "abc"),
    # c: both are spared once, then the hand is at a again. a: it takes b. d: it takes c, which is older than a by now.
    (Sieve(2), "aAbBcad", "ad"),
    # k: a was asked for twice again, so it goes to the main queue, and b goes; its ghost gives way to that of c.
    (S3Fifo(10), "aAAbcdefghijkAb", "abdefghijk"),
    # Three in the main queue, so three ghosts: d's is gone when d comes again, f's is there, so f joins a, b and c, and
    # stays while six that are asked for once pass through the small queue.
    (S3Fifo(10), "aAAbBBcCCdefghijklmCBdfnopqru", "abcfnopqru"),
]


@pytest.mark.parametrize(("policy", "asked", "kept"), TABLES, ids=lambda value: value if isinstance(value, str) else "")
def test_papers_by_hand(policy: Policy, asked: str, kept: str) -> None:
    got = "".join(name.upper() if policy.get(ord(name.lower()), 1) else name.lower() for name in asked)
    names = policy.sizes if isinstance(policy, S3Fifo) else policy.kept  # type: ignore[attr-defined]
    there = [name for name in "abcdefghijklmnopqrstu" if ord(name) in names]
    assert (got, "".join(there)) == (asked, kept)


def test_capacities_are_kept_in_bytes() -> None:
    rng = random.Random(1)
    sizes = [rng.randrange(1, 400) for _ in range(200)]
    for policy in (Lru(1000), Sieve(1000), S3Fifo(1000)):
        for _ in range(5000):
            key = int(rng.paretovariate(0.7)) % 200
            policy.get(key, sizes[key])
            assert policy.used <= 1000
        assert not policy.get(1000, 1001)
        assert policy.used == sum(
            policy.sizes.values() if isinstance(policy, S3Fifo)
            else (each if isinstance(each, int) else each.size for each in policy.kept.values())
        )  # fmt: skip


def test_our_store_keeps_what_sieve_keeps() -> None:
    """On the same requests: but for what heads, rows and memory pages take, it is the algorithm of the paper."""
    trace = mixed(library(0.9, sessions=400), webcast()[:4000])
    capacity = sum(dict(trace).values()) // 10
    model, store = Sieve(capacity), Store(capacity)
    hits = [(model.get(key, size), store.get(key, size)) for key, size in trace]
    n_model, n_store = (sum(each) for each in zip(*hits, strict=True))
    assert abs(n_model - n_store) < 0.01 * len(trace)
    assert sum(a == b for a, b in hits) > 0.97 * len(trace)
    memory = store.plane.memory
    assert memory["mapped"] + memory["outside"] <= memory["limit"]
