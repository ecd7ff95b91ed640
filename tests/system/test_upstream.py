"""The upstream client against right and hostile origins: exact sink calls for each, on asyncio's loop and on uvloop."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from hostile_origin import STANDARD, HostileOrigin, chunked, drip, in_turn, pieces, raw, reply
from recording_sink import RecordingSink, until
from upstream_box import OK, Run, box, client_of, get, run, settings_of

from accelerator.io.upstream import Upstream

__all__ = ["run"]

BAD_HEAD = [("failed", "bad-head", 502, True)]
FRAMING = ("failed", "framing", 502, True)
TRUNCATED = ("failed", "truncated", 502, True)
EXCESS = [("head", 200), b"hello", ("failed", "excess", 502, True)]

# path: calls, whether the connection is used again
EXPECTED: dict[bytes, tuple[list[Any], bool]] = {
    b"/ok": (OK, True),
    b"/empty": ([("head", 200), ("ended",)], True),
    b"/close": (OK, False),
    b"/until-close": (OK, False),
    b"/no-bytes": ([("failed", "closed", 502, False)], False),
    b"/silence": ([("failed", "head-timeout", 504, False)], False),
    b"/reset-at-once": ([("failed", "reset", 502, False)], False),
    b"/length-short": (EXCESS, False),
    b"/length-long": ([("head", 200), b"hello", TRUNCATED], False),
    b"/reason-none": (OK, True),
    b"/reason-odd": (OK, True),
    b"/interim": (OK, True),
    b"/interim-flood": ([("failed", "interim-flood", 502, True)], False),
    b"/head-cut": ([TRUNCATED], False),
    b"/reset-in-head": ([("failed", "reset", 502, True)], False),
    b"/no-content-with-body": ([("head", 204), ("ended",)], False),
    b"/not-modified-with-body": ([("head", 304), ("ended",)], False),
    b"/chunked": (OK, True),
    b"/chunked-trailers": (OK, True),
    b"/chunked-cut": ([("head", 200), b"hello", TRUNCATED], False),
    b"/chunked-cut-in-chunk": ([("head", 200), b"hello", TRUNCATED], False),
    b"/chunked-bad-size": ([("head", 200), b"hel", FRAMING], False),
    b"/chunked-bare-lf": ([("head", 200), b"hel", FRAMING], False),
    b"/chunked-too-long": ([("head", 200), b"hello", FRAMING], False),
    b"/chunked-excess": (EXCESS, False),
    b"/reset-in-body": ([("head", 200), b"hello", ("failed", "reset", 502, True)], False),
    b"/stalls-in-body": ([("head", 200), b"hello", ("failed", "body-timeout", 504, True)], False),
    **{
        path: (BAD_HEAD, False)
        for path in STANDARD
        if path.startswith((b"/length-", b"/coding-", b"/endless-", b"/status-", b"/http-2", b"/not-http"))
        and path not in (b"/length-short", b"/length-long")
    },
    **dict.fromkeys(
        (b"/bare-lf", b"/obs-fold", b"/nul", b"/no-colon", b"/space-before-colon", b"/switching"), (BAD_HEAD, False)
    ),
}


def test_every_standard_behaviour_is_expected_here() -> None:
    assert set(EXPECTED) | {b"/gzip"} == set(STANDARD)


@pytest.mark.parametrize("path", sorted(EXPECTED), ids=lambda path: path.decode())
def test_behaviour(run: Run, path: bytes) -> None:
    calls, reused = EXPECTED[path]

    async def main() -> None:
        timeouts = {"head_timeout_s": 0.2} if path == b"/silence" else {"body_timeout_s": 0.2}
        async with box(**timeouts) as (origin, client):
            assert (await get(client, path)).calls == calls
            # A connection that must not be used again serves no second request, and the origin is asked once for each.
            assert (await get(client, b"/ok")).calls == OK
            assert origin.targets() == [path, b"/ok"]
            assert origin.n_connections == (1 if reused else 2)
            assert client.counters.connections_reused == int(reused)
            assert client.counters.failures == int(calls[-1][0] == "failed")
            assert client.faults == []

    run(main())


def test_bodies_of_a_coding_travel_as_they_are(run: Run) -> None:
    async def main() -> None:
        async with box() as (_, client):
            sink = await get(client, b"/gzip")
            assert sink.body.startswith(b"\x1f\x8b")
            assert (b"Content-Encoding", b"gzip") in sink.response.fields

    run(main())


def test_head_has_no_body_and_keeps_the_connection(run: Run) -> None:
    async def main() -> None:
        coded = raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "keep")
        scripts = {b"/a": reply(b"hello"), b"/coded": coded}
        async with box(scripts) as (origin, client):
            for target in (b"/a", b"/coded", b"/a"):
                assert (await get(client, target, b"HEAD")).calls == [("head", 200), ("ended",)]
            assert (await get(client, b"/a")).body == b"hello"
            assert origin.n_connections == 1

    run(main())


def test_request_bytes(run: Run) -> None:
    async def main() -> None:
        async with box({}) as (origin, client):
            await get(client, b"/A%2f..//b?x=1&&y=%zz")
            sink = RecordingSink()
            client.request(b"GET", b"/", [(b"X-A", b"1"), (b"host", b"media.example"), (b"X-A", b"")], sink)
            await sink.over()
            assert origin.requests[0].raw == (
                b"GET /A%%2f..//b?x=1&&y=%%zz HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nAccept: */*\r\n\r\n" % origin.port
            )
            assert origin.requests[1].raw == b"GET / HTTP/1.1\r\nHost: media.example\r\nX-A: 1\r\nX-A: \r\n\r\n"

    run(main())


BAD_REQUESTS: list[tuple[bytes, bytes, list[tuple[bytes, bytes]]]] = [
    (b"GET", b"/a b", []),
    (b"GET", b"/a\r\nX: y", []),
    (b"GET", b"/a\x00", []),
    (b"GET", b"", []),
    (b"GE T", b"/", []),
    (b"GET\n", b"/", []),
    (b"", b"/", []),
    (b"GET", b"/", [(b"X", b"a\r\nY: b")]),
    (b"GET", b"/", [(b"X", b"a\n")]),
    (b"GET", b"/", [(b"X", b"a\rb")]),
    (b"GET", b"/", [(b"X", b"a\x00b")]),
    (b"GET", b"/", [(b"X", b"a\x7f")]),
    (b"GET", b"/", [(b"X:", b"a")]),
    (b"GET", b"/", [(b"X ", b"a")]),
    (b"GET", b"/", [(b"", b"a")]),
    (b"GET", b"/", [(b"X\r\nY", b"a")]),
    (b"GET", b"/", [(b"Host", b"a"), (b"host", b"b")]),
    (b"GET", b"/", [(b"Host", b"")]),
    (b"GET", b"/", [(b"Transfer-Encoding", b"chunked")]),
    (b"GET", b"/", [(b"Content-Length", b"5")]),
]


@pytest.mark.parametrize("request_parts", BAD_REQUESTS)
def test_nothing_that_ends_a_line_early_is_sent(run: Run, request_parts: tuple[Any, Any, Any]) -> None:
    async def main() -> None:
        async with box() as (origin, client):
            sink = RecordingSink()
            client.request(*request_parts, sink)
            assert sink.calls == []
            assert await sink.over() == [("failed", "bad-field", 502, False)]
            assert origin.n_connections == 0

    run(main())


def test_body_lands_in_the_sinks_memory_in_its_sizes_and_is_let_go(run: Run) -> None:
    body = bytes(range(256)) * 4096

    async def main() -> None:
        two_chunks = raw(chunked(body[:700_000], body[700_000:]), "keep")
        for wire in (reply(body), raw(b"HTTP/1.1 200 OK\r\n\r\n" + body), two_chunks):
            async with box({b"/": wire}) as (_, client):
                for size in (1_000, 65_536, 2 * len(body)):
                    sink = await get(client, b"/", size=size)
                    assert sink.calls == [("head", 200), body, ("ended",)]
                    await asyncio.sleep(0)
                    for memory in sink.memories:
                        memory.append(0)  # BufferError if anybody still holds a view

    run(main())


def test_the_hint_is_what_the_body_still_has(run: Run) -> None:
    async def main() -> None:
        script = pieces(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n", b"abcdefghi", gate="g")
        async with box({b"/": script}) as (origin, client):
            sink = RecordingSink(size=4, on={"head_received": origin.gate("g").set})
            client.request(b"GET", b"/", [], sink)
            assert await sink.over() == [("head", 200), b"abcdefghi", ("ended",)]
            hints = list(dict.fromkeys(sink.size_hints))
            assert hints == [9, 5, 1]

    run(main())


def test_a_slow_head_ends_by_its_own_deadline_though_bytes_come(run: Run) -> None:
    async def main() -> None:
        script = drip(b"", b"HTTP/1.1 200 OK\r\nX: " + b"a" * 1000, 0.02)
        async with box({b"/": script}, head_timeout_s=0.2) as (_, client):
            assert (await get(client, b"/")).calls == [("failed", "head-timeout", 504, True)]
            assert client.counters.timeouts == 1

    run(main())


def test_a_slow_body_goes_on_while_bytes_come(run: Run) -> None:
    async def main() -> None:
        script = drip(b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n", b"a" * 20, 0.05)
        async with box({b"/": script}, body_timeout_s=0.4) as (_, client):
            assert (await get(client, b"/")).calls == [("head", 200), b"a" * 20, ("ended",)]

    run(main())


# -- pause -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [b"/ok", b"/drip", b"/chunked", b"/until-close"])
def test_a_sink_that_pauses_while_it_is_asked_for_memory(run: Run, path: bytes) -> None:
    """uv_read_stop within libuv's allocation callback crashed the process."""

    async def main() -> None:
        scripts = {**STANDARD, b"/drip": drip(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", b"hello", 0.01)}
        async with box(scripts) as (_, client):
            sink = RecordingSink()
            sink.on = {"get_buffer": lambda: call.pause()}
            call = client.request(b"GET", path, [], sink)
            await until(lambda: bool(sink.size_hints))
            assert (await get(client, b"/close")).calls == OK
            assert sink.calls == [("head", 200)]
            sink.on = {}
            call.resume()
            assert await sink.over() == OK

    run(main())


@pytest.mark.parametrize("kind", ["length", "chunked", "until-close"])
def test_a_paused_sink_hears_no_byte_and_loses_none(run: Run, kind: str) -> None:
    body = b"x" * 8_000_000
    wire = {
        "length": reply(body),
        "chunked": raw(chunked(*[body[:50_000]] * 160), "keep"),
        "until-close": raw(b"HTTP/1.1 200 OK\r\n\r\n" + body),
    }[kind]

    async def main() -> None:
        async with box({b"/": wire, b"/stall": STANDARD[b"/stalls-in-body"]}, body_timeout_s=0.2) as (_, client):
            sink = RecordingSink()
            sink.on = {"head_received": lambda: call.pause()}
            call = client.request(b"GET", b"/", [], sink)
            await until(lambda: sink.n_heads == 1)
            # The same time-out runs out for another call meanwhile, so it would have for this one.
            assert (await get(client, b"/stall")).error.kind == "body-timeout"
            assert sink.calls == [("head", 200)]
            sink.on = {"bytes_received": lambda: (call.pause(), pauses.append(len(sink.body)))}
            pauses: list[int] = []
            for i in range(3):
                call.resume()
                await until(lambda: len(pauses) > i)  # noqa: B023
                await asyncio.sleep(0)
                assert len(sink.body) == pauses[-1]
            sink.on = {}
            call.resume()
            assert await sink.over() == [("head", 200), body, ("ended",)]

    run(main())


def test_a_body_that_ended_while_paused_is_told_after_resume_and_its_connection_reads_again(run: Run) -> None:
    """The connection went back to the pool with its transport paused, and its next response was never read."""

    async def main() -> None:
        async with box() as (_, client):
            for target in (b"/ok", b"/until-close", b"/chunked", b"/close"):
                sink = RecordingSink()
                sink.on = {"head_received": lambda: call.pause()}  # noqa: B023
                call = client.request(b"GET", target, [], sink)
                await until(lambda: sink.n_heads == 1)  # noqa: B023
                assert (await get(client, b"/close")).calls == OK
                assert sink.calls == [("head", 200)]
                call.resume()
                assert sink.calls == [("head", 200)]
                assert await sink.over() == OK
            assert client.counters.connections_reused == 2
            assert (await get(client, b"/ok")).calls == OK

    run(main())


def test_a_call_paused_before_its_connection_exists(run: Run) -> None:
    async def main() -> None:
        async with box() as (_, client):
            sink = RecordingSink()
            call = client.request(b"GET", b"/ok", [], sink)
            call.pause()
            await until(lambda: sink.n_heads == 1)
            assert (await get(client, b"/close")).calls == OK
            assert sink.calls == [("head", 200)]
            call.resume()
            assert await sink.over() == OK

    run(main())


def test_a_stall_after_resume_times_out(run: Run) -> None:
    async def main() -> None:
        async with box(body_timeout_s=0.2) as (_, client):
            sink = RecordingSink()
            sink.on = {"head_received": lambda: call.pause()}
            call = client.request(b"GET", b"/stalls-in-body", [], sink)
            await until(lambda: sink.n_heads == 1)
            call.resume()
            call.pause()
            call.resume()
            assert await sink.over() == [("head", 200), b"hello", ("failed", "body-timeout", 504, True)]

    run(main())


# -- cancel and faults of ours ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["head_received", "get_buffer", "bytes_received"])
@pytest.mark.parametrize("path", [b"/ok", b"/chunked", b"/until-close", b"/stalls-in-body", b"/drip"])
def test_cancel_within_a_sinks_method(run: Run, when: str, path: bytes) -> None:
    """Within get_buffer libuv is about to read: stopping or closing the stream there crashed the process."""

    async def main() -> None:
        scripts = {**STANDARD, b"/drip": drip(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", b"hello", 0.01)}
        async with box(scripts, connections=1) as (origin, client):
            sink = RecordingSink(size=3)
            sink.on = {when: lambda: call.cancel()}
            call = client.request(b"GET", path, [], sink)
            # One connection at most: this waits for the slot that the cancelled call had.
            assert (await get(client, b"/ok")).calls == OK
            assert call.is_over
            assert not sink.is_over
            assert sink.violations == []
            assert len(sink.calls) == (2 if when == "bytes_received" else 1)
            assert len(sink.body) <= 3
            assert client.counters.cancelled == 1
            assert client.faults == []
            call.cancel()
            call.pause()
            call.resume()
            assert client.counters.cancelled == 1
            assert origin.n_connections == 2

    run(main())


def test_cancel_while_waiting_for_the_head_closes_the_connection(run: Run) -> None:
    async def main() -> None:
        async with box(connections=1) as (origin, client):
            sink = RecordingSink()
            call = client.request(b"GET", b"/silence", [], sink)
            await until(lambda: len(origin.requests) == 1)
            call.cancel()
            await until(lambda: client.n_connections == 0)
            assert (await get(client, b"/ok")).calls == OK
            assert sink.calls == []

    run(main())


def test_cancel_while_connecting_and_while_queued(run: Run) -> None:
    async def main() -> None:
        origin = await HostileOrigin().start()
        asked = asyncio.Event()

        async def never(*_: Any, **__: Any) -> list[Any]:
            asked.set()
            await asyncio.Event().wait()
            return []

        client = client_of(settings_of(origin, connections=1), getaddrinfo=never)
        literal = client.settings
        client.set_settings(replace(literal, upstreams=(Upstream("http", "media.example", origin.port),)))
        sinks = [RecordingSink() for _ in range(3)]
        calls = [client.request(b"GET", b"/ok", [], sink) for sink in sinks]
        await asked.wait()
        assert client.n_queued == 2
        calls[1].cancel()
        client.set_settings(literal)
        calls[0].cancel()
        assert await sinks[2].over() == OK
        assert sinks[0].calls == sinks[1].calls == []
        assert len(origin.requests) == 1
        await client.close()
        await origin.close()

    run(main())


@pytest.mark.parametrize("when", ["head_received", "get_buffer", "bytes_received", "ended"])
@pytest.mark.parametrize("path", [b"/ok", b"/chunked", b"/until-close", b"/drip"])
def test_a_sink_that_raises_loses_its_own_call_only(run: Run, when: str, path: bytes) -> None:
    def broken() -> None:
        raise RuntimeError("sink")

    async def main() -> None:
        scripts = {**STANDARD, b"/drip": drip(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n", b"abc", 0.01)}
        async with box(scripts, connections=1) as (_, client):
            sink = RecordingSink(on={when: broken})
            client.request(b"GET", path, [], sink)
            assert (await get(client, b"/ok")).calls == OK
            last = (await sink.over())[-1]
            assert last == (("ended",) if when == "ended" else ("failed", "internal", 502, True))
            assert len(client.faults) == 1

    run(main())


def test_an_empty_buffer_is_a_fault_of_the_sink(run: Run) -> None:
    async def main() -> None:
        script = drip(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n", b"abc", 0.01)
        async with box({b"/drip": script, b"/ok": reply(b"hello")}) as (_, client):
            for target in (b"/drip", b"/ok"):
                assert (await get(client, target, size=0)).calls == [("head", 200), ("failed", "internal", 502, True)]

    run(main())


def test_close_fails_calls_in_every_state_and_leaves_nothing(run: Run) -> None:
    async def main() -> None:
        async with box(connections=2) as (origin, client):
            sinks = [RecordingSink() for _ in range(4)]
            for sink, target in zip(sinks, [b"/stalls-in-body", b"/silence", b"/ok", b"/ok"], strict=True):
                client.request(b"GET", target, [], sink)
            await until(lambda: sinks[0].body == b"hello" and len(origin.requests) == 2)
            await client.close()
            for sink in sinks:
                assert (await sink.over())[-1][:3] == ("failed", "closed", 502)
            assert client.n_connections == 0
            late = RecordingSink()
            client.request(b"GET", b"/ok", [], late)
            assert await late.over() == [("failed", "closed", 502, False)]

    run(main())


def test_many_at_once_get_their_own_bodies(run: Run) -> None:
    async def main() -> None:
        bodies = {b"/%d" % i: b"%d-" % i * (1 + i * 97 % 5000) for i in range(200)}
        scripts = {path: in_turn(reply(body), raw(chunked(body), "keep")) for path, body in bodies.items()}
        async with box(scripts, connections=7) as (origin, client):
            for _ in range(2):
                sinks = {path: RecordingSink(size=700) for path in bodies}
                for path, sink in sinks.items():
                    client.request(b"GET", path, [], sink)
                for path, sink in sinks.items():
                    assert await sink.over() == [("head", 200), bodies[path], ("ended",)]
            assert origin.n_connections <= 7
            assert len(origin.requests) == 400

    run(main())
