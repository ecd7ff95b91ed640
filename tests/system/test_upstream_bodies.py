"""The upstream client's requests with bodies: framing, back-pressure, early answers, no repetition, streams."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hostile_origin import HostileOrigin, Peer, Request, Script, die_on_reuse, raw, reply
from recording_sink import RecordingSink, until
from upstream_box import OK, Run, box, get, run

from accelerator.io.upstream import Call, UpstreamClient

__all__ = ["run"]


@dataclass
class Pieces:
    """A body that is put in piece by piece."""

    length: int = -1
    pieces: list[bytes] = field(default_factory=list)
    has_ended: bool = False
    last: list[tuple[bytes, bytes]] = field(default_factory=list)
    n_read: int = 0

    def read(self, most: int) -> bytes | None:
        if self.pieces:
            piece = self.pieces[0][:most]
            self.pieces[0] = self.pieces[0][most:]
            if not self.pieces[0]:
                self.pieces.pop(0)
            self.n_read += len(piece)
            return piece
        return None if self.has_ended else b""

    def trailers(self) -> list[tuple[bytes, bytes]]:
        return self.last


def post(client: UpstreamClient, body: Pieces, target: bytes = b"/up", **more: Any) -> tuple[RecordingSink, Call]:
    sink = RecordingSink()
    return sink, client.request(b"POST", target, [], sink, idempotent=False, body=body, **more)


class Kept:
    """What an origin got behind each head, and when to answer."""

    def __init__(self) -> None:
        self.body = bytearray()
        self.heads: list[bytes] = []
        self.is_over = False

    def script(self, n: int, then: Script | None = None) -> Script:
        async def taking(peer: Peer, request: Request) -> bool:
            self.heads.append(request.raw)
            while len(self.body) < n:
                piece = await peer.reader.read(65536)
                if not piece:
                    self.is_over = True
                    return False
                self.body += piece
            return await (then or reply(b"hello"))(peer, request)

        return taking


def test_a_body_of_known_length(run: Run) -> None:
    kept = Kept()

    async def main() -> None:
        async with box({b"/up": kept.script(11)}) as (_, client):
            body = Pieces(11, [b"hello "])
            sink, call = post(client, body)
            await until(lambda: kept.body == b"hello ")
            body.pieces.append(b"world")
            body.has_ended = True
            call.body_ready()
            assert await sink.over() == OK
            assert client.n_connections == 1
        assert b"Content-Length: 11\r\n" in kept.heads[0]
        assert b"Transfer-Encoding" not in kept.heads[0]
        assert kept.body == b"hello world"

    run(main())


def test_a_body_of_unknown_length_goes_chunked(run: Run) -> None:
    kept = Kept()
    coded = b"5\r\nhello\r\n6\r\n world\r\n0\r\nX-Sum: 1\r\n\r\n"

    async def main() -> None:
        async with box({b"/up": kept.script(len(coded))}) as (_, client):
            body = Pieces(-1, [b"hello", b" world"], has_ended=True, last=[(b"X-Sum", b"1")])
            sink, _ = post(client, body)
            assert await sink.over() == OK
        assert b"Transfer-Encoding: chunked\r\n" in kept.heads[0]
        assert kept.body == coded

    run(main())


def test_an_origin_that_reads_slowly_holds_the_body_back(run: Run) -> None:
    async def silent(peer: Peer, request: Request) -> bool:
        peer.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await peer.gates["go"].wait()
        peer.writer.transport.resume_reading()  # type: ignore[attr-defined]
        await peer.closed_by_client()
        return False

    async def main() -> None:
        async with box({b"/up": silent}, body_timeout_s=0.3) as (origin, client):
            body = Pieces(1 << 30, [bytes(1 << 20)] * 64)
            sink, _ = post(client, body)
            assert await sink.over() == [("failed", "upload-timeout", 504, False)]
            assert body.n_read < 32 << 20
            origin.gate("go").set()

    run(main())


@pytest.mark.parametrize("status", [200, 403, 413])
def test_an_answer_before_the_bodys_end(run: Run, status: int) -> None:
    """It is taken, and the connection, whose request is not whole, is not used again."""

    async def main() -> None:
        async with box({b"/up": reply(b"hello", status=status), b"/ok": reply(b"hello")}) as (origin, client):
            sink, _ = post(client, Pieces(1000, [b"begun"]))
            assert await sink.over() == [("head", status), b"hello", ("ended",)]
            await until(lambda: client.n_connections == 0)
            assert (await get(client, b"/ok")).calls == OK
            assert origin.n_connections == 2

    run(main())


def test_an_origin_that_refuses_and_closes_in_the_middle_is_heard(run: Run) -> None:
    """nginx answers 413 and closes; what was written after that must not throw its answer away."""

    async def main() -> None:
        async with box({b"/up": reply(b"too large", status=413, keep=False)}) as (_, client):
            for _ in range(20):
                sink, _ = post(client, Pieces(1 << 30, [bytes(1 << 20)] * 8))
                assert await sink.over() == [("head", 413), b"too large", ("ended",)]

    run(main())


def test_a_cancelled_body_is_never_whole(run: Run) -> None:
    kept = Kept()

    async def main() -> None:
        async with box({b"/up": kept.script(1 << 20)}) as (_, client):
            _, call = post(client, Pieces(-1, [b"hello"]))
            await until(lambda: bool(kept.body))
            call.cancel()
            await until(lambda: kept.is_over)
        assert kept.body == b"5\r\nhello\r\n"

    run(main())


def test_a_body_is_never_sent_twice(run: Run) -> None:
    """Nor is a POST without one: a reused connection that dies is an error, and an old one isn't taken."""

    async def main() -> None:
        async with box({b"/up": die_on_reuse(reply(b"hello"))}) as (origin, client):
            assert (await get(client, b"/up")).calls == OK
            sink, _ = post(client, Pieces(5, [b"hello"], has_ended=True))
            assert await sink.over() in ([("failed", kind, 502, False)] for kind in ("closed", "reset"))
            assert len(origin.requests) == 2
            assert client.counters.retries == 0

    run(main())


def test_interim_responses_are_heard_in_order(run: Run) -> None:
    data = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"

    async def main() -> None:
        answer = raw(data + b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", "keep")
        async with box({b"/up": answer}) as (_, client):
            sink, _ = post(client, Pieces(0, [], has_ended=True))
            assert await sink.over() == OK
            assert sink.interims == [100, 103]

    run(main())


def test_an_origin_of_http_1_0_gets_no_chunks(run: Run) -> None:
    async def main() -> None:
        async with box({b"/ok": raw(b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello")}) as (_, client):
            assert (await get(client, b"/ok")).calls == OK
            sink, _ = post(client, Pieces(-1, [b"hello"], has_ended=True))
            assert await sink.over() == [("failed", "length-required", 411, False)]

    run(main())


def test_streams_leave_the_connections(run: Run) -> None:
    """One place, three streams in it, and another request still gets one."""
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n"

    async def main() -> None:
        scripts = {b"/events": raw(head, "hang"), b"/ok": reply(b"hello")}
        async with box(scripts, connections=1, streams=3, body_timeout_s=0.2) as (_, client):
            calls: list[Call] = []
            for n in range(4):
                held: list[Call] = []
                sink = RecordingSink(on={"head_received": become(held)})
                held.append(client.request(b"GET", b"/events", [], sink))
                calls += held
                await until(lambda sink=sink: sink.body != b"")  # type: ignore[misc]
                assert client.n_streams == min(n + 1, 3)
            assert client.counters.streams_refused == 1
            calls.pop().cancel()
            assert (await get(client, b"/ok")).calls == OK
            for call in calls:
                call.cancel()
            assert client.n_streams == 0

    run(main())


def become(held: list[Call]) -> Callable[[], object]:
    return lambda: held[0].become_stream()


def test_long_polls_leave_the_connections(run: Run) -> None:
    async def late(peer: Peer, request: Request) -> bool:
        await peer.gates["go"].wait()
        return await reply(b"hello")(peer, request)

    async def main() -> None:
        async with box({b"/poll": late, b"/ok": reply(b"hello")}, connections=1, long_poll_s=0.1) as (origin, client):
            polls = [RecordingSink() for _ in range(3)]
            for poll in polls:
                client.request(b"GET", b"/poll", [], poll)
            await until(lambda: client.n_streams == 3)
            assert (await get(client, b"/ok")).calls == OK
            origin.gate("go").set()
            for poll in polls:
                assert await poll.over() == OK
            assert client.n_streams == 0

    run(main())


def test_a_fault_of_the_bodys_source_ends_its_request_only(run: Run) -> None:
    async def main() -> None:
        async with box({b"/up": raw(b"", "hang"), b"/ok": reply(b"hello")}) as (_, client):
            sink, _ = post(client, Pieces(3, [b"longer"], has_ended=True))
            assert await sink.over() == [("failed", "internal", 502, False)]
            assert (await get(client, b"/ok")).calls == OK

    run(main())


def test_hostile_origins_are_unharmed_by_bodies(run: Run) -> None:
    async def main() -> None:
        async with box() as (origin, client):
            assert isinstance(origin, HostileOrigin)
            for target, sums in ((b"/reset-at-once", "reset"), (b"/no-bytes", "closed"), (b"/not-http", "bad-head")):
                sink, _ = post(client, Pieces(100_000, [bytes(1000)]), target)
                await asyncio.wait_for(sink.over(), 10)
                assert sink.error is not None
                assert sink.error.kind in (sums, "reset", "closed")

    run(main())
