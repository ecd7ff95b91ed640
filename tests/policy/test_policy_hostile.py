"""Bombs and mutated policies: always Problems or a Policy, soon, never a crash."""

from __future__ import annotations

import time
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from policy_mutations import SEEDS, check_holds, mutate

from accelerator.policy import check_texts

HEAD = "version: 1\nsite: {name: a}\n"


@settings(max_examples=2000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.sampled_from(SEEDS), random=st.integers(0, 2**32).map(Random))
def test_a_mutated_policy_gives_problems_or_a_policy(seed: bytes, random: Random) -> None:
    check_holds(mutate(seed, random))


@settings(max_examples=300, deadline=None)
@given(random=st.integers(0, 2**32).map(Random))
def test_mutated_files_merge_to_problems_or_a_policy(random: Random) -> None:
    check_holds(
        SEEDS[0] + b"\nlocked: [origins.media.from, limits, zones.desks]\n",
        mutate(SEEDS[0], random),
        mutate(SEEDS[1], random),
    )


@settings(max_examples=300, deadline=None)
@given(
    st.binary(max_size=200)
    | st.text(max_size=200).map(str.encode)
    | st.text("{}[],:-?&*!|>'\"%#\n ab1", max_size=80).map(str.encode)
)
def test_any_bytes_give_problems(data: bytes) -> None:
    check_holds(data)


def origins(n: int, body: str) -> str:
    return HEAD + "origins:\n" + "".join(f"  o{i}: {{from: ['http://a.b'], {body.format(i)}}}\n" for i in range(n))


BOMBS = {
    "laughs": "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10)),
    "aliases": "a: &a x\nb: [" + "*a," * 200_000 + "]",
    "brackets": "[" * 100_000,
    "braces": "{a: " * 100_000,
    "dashes": "- " * 100_000,
    "questions": "? " * 100_000,
    "blocks": "".join(" " * i + "a:\n" for i in range(1000)),
    "20,000 keys": HEAD + "".join(f"k{i}: 1\n" for i in range(20_000)),
    "20,000 long keys": HEAD + "".join(f"origin{'s' * 30}{i}: 1\n" for i in range(20_000)),
    "20,000 keys of a section": HEAD + "zones:\n" + "".join(f"  z{i}: {{}}\n" for i in range(20_000)),
    "20,000 duplicates": HEAD + "a: 1\n" * 20_000,
    "100,000 keys": "".join(f"k{i}: 1\n" for i in range(80_000)),
    "wrong items": HEAD + "zones: {a: {nets: [" + "1," * 49_000 + "]}}",
    "empty items": HEAD + "origins: {a: {from: [" + "{}," * 24_000 + "]}}",
    "one long text": HEAD + "x: " + "a" * (2**20 - 100),
    "one long key": HEAD + "? " + "a" * (2**20 - 100) + "\n: 1\n",
    "one long name": HEAD + "zones: {a: {nets: [" + "9" * (2**20 - 100) + "]}}",
    "hosts and paths": HEAD + "origins: {a: {from: ['http://x'], hosts: [" + ",".join(f"h{i}" for i in range(1000))
    + "], paths: [" + ",".join(f"/p{i}" for i in range(1000)) + "]}}",
    "the same host": origins(4000, "hosts: [h, g]"),
    "wide hosts": origins(
        100, "hosts: ['*', h{0}, '*.x{0}'], paths: [" + ",".join(f"/{{0}}p{i}" for i in range(300)) + "]"
    ),
    "deep hosts": origins(1000, "hosts: ['" + "a." * 120 + "x{0}', '*." + "a." * 60 + "x{0}']"),
    "pins": HEAD + "listen:\n" + "".join(f"  l{i}: {{address: '127.0.0.{i}:80'}}\n" for i in range(256))
    + origins(250, "hosts: [h{0}], resolve: [" + ",".join(f"127.0.1.{i}" for i in range(64)) + "]").removeprefix(HEAD),
    "nets": HEAD + "zones:\n"
    + "".join(f" z{z}: {{nets: [{','.join(f'10.{z}.{i >> 8}.{i & 255}' for i in range(4000))}]}}\n" for z in range(12)),
    "locks": HEAD + "locked: [" + ",".join(["a." * 300 + "b"] * 1000) + "]",
    "a long lock": HEAD + "locked: [" + "a." * 400_000 + "]",
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_ends_soon(name: str) -> None:
    started_s = time.process_time()
    check_holds(BOMBS[name].encode())
    assert time.process_time() - started_s < 2


def test_more_than_a_mebibyte_is_refused_unread() -> None:
    assert check_holds(HEAD.encode() + b"#" * 2**20) is None


@pytest.mark.parametrize("n_levels", [19, 20, 21])
def test_depth(n_levels: int) -> None:
    _, problems = check_texts([("p", ("[" * n_levels + "]" * n_levels).encode())])
    assert any("nested deeper than 20 levels" in problem.message for problem in problems) == (n_levels > 20)
