"""Hostile origins through the running box: nothing partial is kept, nobody waits for ever, others are served."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from box import MEDIA, Answer, Box, free_port, get, scenario, sound_box
from hostile_origin import STANDARD, Script, chunked, endless, in_turn, raw
from origin_scripts import cached, noise

GOOD = b"good again"
# Odd, but right.
RIGHT = {
    "ok", "empty", "close", "until-close", "gzip", "reason-none", "reason-odd", "interim", "chunked",
    "chunked-trailers", "no-content-with-body",
}  # fmt: skip
EXCESS = {"length-short", "chunked-excess"}
MORE: dict[str, Script] = {
    "length-and-list": raw(b"HTTP/1.1 200 OK\r\nContent-Length: 5, 5\r\n\r\nhello", "hang"),
    "huge-chunk": raw(chunked(end=b"ffffffffffffffff\r\nhello"), "hang"),
    "endless-chunk-size": endless(b"0" * 1000, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
    "endless-chunk-extension": endless(b"a" * 1000, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;x="),
    "endless-trailer": endless(start=b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n"),
    "petabyte": raw(b"HTTP/1.1 200 OK\r\nContent-Length: 999999999999999\r\n\r\nhello", "hang"),
    "noise": raw(noise(100_000), "close"),
    "nul-etag": raw(b'HTTP/1.1 200 OK\r\nETag: "a\0b"\r\nContent-Length: 5\r\n\r\nhello', "hang"),
    "two-etags": raw(b'HTTP/1.1 200 OK\r\nETag: "a"\r\nETag: "b"\r\nContent-Length: 50\r\n\r\nhello', "close"),
    "huge-vary": raw(b"HTTP/1.1 200 OK\r\nVary: " + b"x-a, " * 2000 + b"x\r\nContent-Length: 50\r\n\r\nhello", "close"),
    "status-999": raw(b"HTTP/1.1 999 What\r\nContent-Length: 50\r\n\r\nhello", "close"),
    "status-600": raw(b"HTTP/1.1 600 What\r\nContent-Length: 50\r\n\r\nhello", "reset"),
    "location-loop": raw(b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1/\r\nContent-Length: 50\r\n\r\nx", "close"),
}  # fmt: skip
BEHAVIOURS: dict[str, Script] = {path.decode().strip("/"): script for path, script in STANDARD.items()} | MORE


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    """An origin for each behaviour, so that the breaker of one does not answer for another."""
    port = free_port()
    timeouts = {"connect": "1s", "head": "700ms", "body": "700ms"}
    origins = {
        name: {"from": [f"http://127.0.0.1:{port}"], "hosts": [f"{name}.hostile.example"], "timeouts": timeouts}
        for name in (f"h-{name}".replace(".", "-") for name in BEHAVIOURS)
    }
    with sound_box(tmp_path_factory.mktemp("hostile"), origins=origins) as running:
        running.ports = (port, running.ports[0])
        yield running


@pytest.mark.fault(20, 21)
@scenario
async def test_no_behaviour_of_an_origin_is_stored_as_whole_or_holds_anybody(box: Box) -> None:
    scripts = {f"/{name}.m4s".encode(): in_turn(script, cached(GOOD)) for name, script in BEHAVIOURS.items()}
    scripts |= {f"/{name}.m4s".encode(): BEHAVIOURS[name] for name in RIGHT}

    async def waiters(name: str) -> tuple[str, list[Answer]]:
        host = f"h-{name}.hostile.example".replace("1.0", "1-0")
        return name, list(await asyncio.gather(*(get(box, f"/{name}.m4s", host=host) for _ in range(5))))

    async with box.origin(scripts, {b"/fine": cached(b"fine")}):
        asked = [asyncio.ensure_future(waiters(name)) for name in BEHAVIOURS]
        while not all(future.done() for future in asked):
            assert (await get(box, "/fine", host=MEDIA)).body == b"fine"
        for future in asked:
            name, answers = await future
            for answer in answers:
                if name in RIGHT:
                    assert answer.is_whole, (name, answer)
                    assert answer.status in (200, 204), (name, answer)
                else:
                    is_own_error = answer.status in (502, 503, 504) and answer["Cache-Control"] == "no-store"
                    is_good = answer.body == GOOD
                    # The body was out when the excess came; it is not kept.
                    is_before_excess = answer.body == b"hello" and name in EXCESS
                    assert is_own_error or is_good or is_before_excess or not answer.is_whole, (name, answer)
        for name in BEHAVIOURS.keys() - RIGHT:
            host = f"h-{name}.hostile.example".replace("1.0", "1-0")
            again = await get(box, f"/{name}.m4s", host=host)
            assert again.body == GOOD, (name, again)
    assert box.status()["workers"][0]["alive"]


@scenario
async def test_reason_phrases_of_origins_go_nowhere(box: Box) -> None:
    script = raw(
        b"HTTP/1.1 200 " + b"\xff%n" * 500 + b"\r\nContent-Length: 5\r\nCache-Control: max-age=9\r\n\r\nhello", "keep"
    )
    async with box.origin({}, {b"/reason": script}):
        for _ in range(2):
            request = f"GET /reason HTTP/1.1\r\nHost: {MEDIA}\r\nConnection: close\r\n\r\n"
            answer = await asyncio.to_thread(box.ask, request.encode())
            assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
