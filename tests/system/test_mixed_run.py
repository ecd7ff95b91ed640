"""The mixed run, short here and whole in `make qualify`; and that its judge sees what is wrong."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
from chaos_fs import ChaosFs
from mixed_check import Answer, Asked, Judge, Wrong
from mixed_origin import Key, Kind, make_keys
from mixed_run import mixed_run

WHOLE = 1_000_000


@pytest.mark.fault(7, 9, 12, 13, 14, 15, 18, 20, 21, 22, 23)
@pytest.mark.timeout(110)
def test_mixed_run_in_short(tmp_path: Path) -> None:
    run = mixed_run(random.randrange(1 << 30), tmp_path, 15_000, 150)
    assert run.problems == []
    assert run.seen["kill -9"] + run.seen["reloads"] > 0


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(ChaosFs.why_not() is not None, reason=str(ChaosFs.why_not()))
def test_a_million_answers_without_a_wrong_byte(tmp_path: Path) -> None:
    run = mixed_run(random.randrange(1 << 30), tmp_path, WHOLE, 300)
    assert run.problems == []
    assert run.n_checked >= WHOLE
    assert run.seen["kill -9"] > 10
    assert run.seen["purges"] > 100


# -- the judge ---------------------------------------------------------------------------------------------------------


def judged(key: Key, answer: Answer, **asked: str) -> str:
    fields = {name.replace("_", "-"): value for name, value in asked.items()}
    return Judge({key.path: key}).sort_of(Asked(key, key.path, "GET", fields, b"", at=100.0), answer)


def answer_of(key: Key, version: int, variant: str = "-", **changes: object) -> Answer:
    body = key.body(version, variant)
    fields = {"x-version": str(version), "etag": key.etag(version, variant), "content-length": str(len(body))}
    return replace(Answer(200, fields, body, True, 100.1), **changes)  # type: ignore[arg-type]


@pytest.fixture
def key() -> Key:
    """Of three versions, the current one since 99 s, fresh for one second."""
    keys = make_keys(random.Random(1), 10).values()
    key = next(each for each in keys if each.kind is Kind.STRICT)
    key.versions = [0.0, 50.0, 99.0]
    return key


def test_right_answers_are_right(key: Key) -> None:
    assert judged(key, answer_of(key, 2)) == "200"
    assert judged(key, answer_of(key, 1)) == "200"  # it was current when its second began
    assert judged(key, answer_of(key, 2, is_whole=False, body=key.body(2, "-")[:100])) == "! broken"


def test_wrong_answers_are_seen(key: Key) -> None:
    body = key.body(2, "-")
    flipped = body[:50] + bytes([body[50] ^ 1]) + body[51:]
    for wrong in (
        answer_of(key, 2, body=flipped), answer_of(key, 2, body=body[:-1]), answer_of(key, 2, body=body + b"x"),
        answer_of(key, 2, body=flipped, is_whole=False), answer_of(key, 0), answer_of(key, 2, variant="fr"),
        answer_of(key, 2, status=206), answer_of(key, 2, status=304), answer_of(key, 2, status=403),
    ):  # fmt: skip
        with pytest.raises((Wrong, KeyError)):
            judged(key, wrong)


def test_what_was_purged_is_seen(key: Key) -> None:
    asked = Asked(key, key.path, "GET", {}, b"", at=100.0, floor=99.5)
    with pytest.raises(Wrong, match="older"):
        Judge({key.path: key}).sort_of(asked, answer_of(key, 1))


def test_anothers_page_is_seen() -> None:
    keys = make_keys(random.Random(1), 10).values()
    key = next(each for each in keys if each.kind is Kind.PERSONAL)
    assert judged(key, answer_of(key, 0, "me"), cookie="who=me") == "200"
    with pytest.raises(Wrong):
        judged(key, answer_of(key, 0, "you"), cookie="who=me")


def test_letting_in_who_may_not_is_seen(key: Key) -> None:
    asked = Asked(key, key.path, "GET", {}, b"", at=100.0, may=False)
    with pytest.raises(Wrong, match="let in"):
        Judge({key.path: key}).sort_of(asked, answer_of(key, 2))
