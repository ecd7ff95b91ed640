"""The ring of events: one a cause and 10 s with the count, bounds, what is left out of texts, followers that lag."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accelerator.dataplane import digest_of_query
from accelerator.errors import ControlError
from accelerator.services.logs.events import BACKLOG_MAX, CAUSES_MAX, EVENTS_MAX, FOLLOWERS_MAX, TEXT_MAX, Events

SECOND_NS = 1_000_000_000


class Ring(Events):
    def __init__(self) -> None:
        self.at_ns = 0
        super().__init__(lambda: self.at_ns)

    def told(self) -> list[tuple[str, int]]:
        return [(event.what, event.count) for event in self.latest(since_s=None)]


def test_one_a_cause_in_ten_seconds_and_none_is_lost() -> None:
    ring = Ring()
    for _ in range(50):  # 5 a second
        ring.note("origin-failing", "media")
        ring.note("origin-failing", "other", cause="other")
        ring.at_ns += SECOND_NS // 5
        ring.tick()
    ring.at_ns += 10 * SECOND_NS
    ring.tick()
    told = ring.told()
    assert len(told) == 4
    assert {what: sum(count for name, count in told if name == what) for what in ("media", "other")} == {
        "media": 50, "other": 50,
    }  # fmt: skip
    assert [event.number for event in ring.latest(since_s=None)] == [1, 2, 3, 4]


def test_a_storm_of_causes_takes_bounded_memory() -> None:
    ring = Ring()
    for n in range(2 * CAUSES_MAX):
        ring.note("x", f"{n}" + "y" * 5000)
    events = ring.latest(since_s=None)
    assert len(events) == EVENTS_MAX
    assert max(len(event.what) for event in events) == TEXT_MAX
    assert len(ring._causes) <= CAUSES_MAX


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("GET /live/a.ts?token=abc failed", f"GET /live/a.ts?…{digest_of_query(b'token=abc')} failed"),
        ("http://h.example?x=1, again", f"http://h.example?…{digest_of_query(b'x=1')}, again"),
        ("unknown key (did you mean 'x'?)", "unknown key (did you mean 'x'?)"),
        ("why? because", "why? because"),
        ("two\nlines\x1b[0m", "two lines\N{REPLACEMENT CHARACTER}[0m"),
    ],
    ids=("target", "address", "question", "end", "control"),  # digests have a key that is each process's own
)
def test_texts_are_one_line_without_queries(text: str, clean: str) -> None:
    ring = Ring()
    ring.note("x", text, why=text, advice=text)
    event = ring.latest(since_s=None)[0]
    assert (event.what, event.why, event.advice) == (clean, clean, clean)


@settings(max_examples=200, deadline=None)
@given(st.text(), st.text(st.characters(codec="ascii", exclude_categories=["Cc", "Zs"]), min_size=8, max_size=20))
def test_no_text_carries_a_query(before: str, secret: str) -> None:
    ring = Ring()
    secret = "".join(char for char in secret if char not in "'\"<>?)]}") + "s3cret-s3cret"
    ring.note("x", f"{before} http://h.example/path?{secret}")
    assert "s3cret-s3cret" not in ring.latest(since_s=None)[0].what


def test_a_follower_gets_all_in_order_and_a_slow_one_is_dropped() -> None:
    async def follow() -> None:
        ring = Ring()
        ring.note("x", "past")
        feed, slow = ring.follow(since_s=60), ring.follow(since_s=None)
        got: list[dict[str, Any]] = []

        async def read() -> None:
            async for event in feed:
                got.append(event)

        reading = asyncio.create_task(read())
        n = EVENTS_MAX + BACKLOG_MAX + 1
        for number in range(n):
            ring.note("x", f"{number}")
            await asyncio.sleep(0)  # gives the reader its turn
        assert [event["number"] for event in got] == list(range(1, n + 2))
        with pytest.raises(ControlError, match="too far behind"):
            await slow.__anext__()
        assert ring.n_dropped_followers == 1
        reading.cancel()
        feed.close()
        slow.close()
        feeds = [ring.follow(since_s=None) for _ in range(FOLLOWERS_MAX)]
        with pytest.raises(ControlError, match="already"):
            ring.follow(since_s=None)
        for each in feeds:
            each.close()

    asyncio.run(follow())
