"""Fuzz target: an origin's bytes through an upstream connection, whole, in pieces, and with a sink that pauses.

Whatever they are: one end is told, no exception escapes, the body and the end are the same however the bytes were cut,
and a response that we call complete is read alike by h11 or refused by it.

    .venv/bin/python -m pytest tests/fuzz/fuzz_upstream_response.py          a short run
    PYTHONPATH=. .venv/bin/python tests/fuzz/fuzz_upstream_response.py 600   so many seconds; prints the number of runs
"""

from __future__ import annotations

import random
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import h11
from hypothesis import example, given, settings
from hypothesis import strategies as st

from accelerator.errors import OriginError
from accelerator.io.connection import Connection
from accelerator.io.origin import OriginCounters, Upstream
from ext.http_head import HeadError, read_response

_UPSTREAM = Upstream("http", "origin.example", 80)
KINDS = {"bad-head", "interim-flood", "framing", "truncated", "closed", "excess"}


class World:
    """Loop, socket, transport and owner of one connection; only what a connection uses of them."""

    def __init__(self, method: bytes, source: random.Random | None) -> None:
        self.ready: deque[Callable[[], Any]] = deque()
        self.source = source
        self.is_paused = self.is_closed = False
        self.status = 0
        self.body = bytearray()
        self.end: str | None = None
        self.memory = memoryview(b"")
        self.connection: Connection[Any] = Connection(
            self, self, _UPSTREAM, self, OriginCounters(), read_response, HeadError, 0  # type: ignore[arg-type]
        )
        self.connection.connection_made(self)  # type: ignore[arg-type]
        self.connection.start(
            self, self, b"", is_head_request=method == b"HEAD", paused=False, head_timeout_s=30, body_timeout_s=30
        )

    def feed(self, data: bytes) -> None:
        """Like a transport: as much as the buffer takes, as long as it reads."""
        while data and not self.is_closed:
            if self.is_paused:
                self.connection.resume()
                self.run()
                continue
            buffer = self.connection.get_buffer(-1)
            assert len(buffer) > 0
            n = min(len(buffer), len(data))
            buffer[:n] = data[:n]
            self.connection.buffer_updated(n)
            data = data[n:]
            if self.source is not None:
                self.run()

    def finish(self) -> None:
        # A transport that does not read does not see the end either.
        while True:
            self.connection.resume()
            self.run()
            if not self.is_paused or self.is_closed:
                break
        if not self.is_closed:
            self.connection.eof_received()
            self.close()
        while self.end is None and self.connection._call is not None:
            self.connection.resume()
            self.run()

    def run(self) -> None:
        while self.ready:
            self.ready.popleft()()

    # The loop
    def time(self) -> float:
        return 0.0

    def call_soon(self, callback: Callable[..., Any], *arguments: Any) -> None:
        self.ready.append(lambda: callback(*arguments))

    def call_at(self, when: float, callback: Callable[..., Any]) -> Any:
        return self

    def cancel(self) -> None:
        pass

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        raise context["exception"]

    # The socket
    def recv(self, n: int, flags: int) -> bytes:
        raise BlockingIOError

    # The transport
    def get_extra_info(self, name: str) -> None:
        return None

    def is_closing(self) -> bool:
        return self.is_closed

    def write(self, data: bytes) -> None:
        pass

    def pause_reading(self) -> None:
        self.is_paused = True

    def resume_reading(self) -> None:
        self.is_paused = False

    def abort(self) -> None:
        self.close()

    def close(self) -> None:
        if not self.is_closed:
            self.is_closed = True
            self.call_soon(self.connection.connection_lost, None)
            self.run()

    # The owner
    def head_arrived(self, call: Any, upstream: Upstream, status: int) -> None:
        pass

    def exchange_ended(self, connection: Any, call: Any, can_reuse: bool) -> None:
        assert self.end is None
        self.end = "ended"

    def exchange_failed(self, connection: Any, call: Any, error: OriginError, received_any: bool) -> None:
        assert self.end is None
        assert error.kind in KINDS, error.kind
        self.end = error.kind

    def connection_gone(self, connection: Any) -> None:
        pass

    # The sink
    def interim_received(self, response: Any) -> None:
        assert 100 <= response.status < 200

    def head_received(self, response: Any, upstream: Upstream) -> None:
        assert self.status == 0
        assert 200 <= response.status <= 999
        self.status = response.status
        self._maybe_pause()

    def get_buffer(self, size_hint: int) -> memoryview:
        assert self.end is None
        assert self.status
        self.memory = memoryview(bytearray(self.source.randrange(1, 40) if self.source else 100_000))
        self._maybe_pause()
        return self.memory

    def bytes_received(self, n: int) -> None:
        assert self.end is None
        self.body += self.memory[:n]
        self._maybe_pause()

    def _maybe_pause(self) -> None:
        if self.source is not None and self.source.randrange(4) == 0:
            self.connection.pause()


def outcome(pieces: list[bytes], method: bytes, source: random.Random | None) -> tuple[int, bytes, str]:
    world = World(method, source)
    for piece in pieces:
        world.feed(piece)
    world.finish()
    assert world.end is not None
    # Whether excess is seen before the end is told depends on when it comes; a bad head that is cut off is both.
    end = {"excess": "ended", "bad-head": "no head", "closed": "no head"}.get(world.end, world.end)
    if world.status == 0 and end == "truncated":
        end = "no head"
    return world.status, bytes(world.body), end


def check_response(data: bytes, method: bytes, source: random.Random) -> None:
    """The target's invariant."""
    whole = outcome([data], method, None)
    cuts = sorted(source.randrange(len(data) + 1) for _ in range(source.randrange(1, 12)))
    pieces = [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]
    assert outcome(pieces, method, None) == whole
    if len(data) < 400:
        pieces = [data[i : i + 1] for i in range(len(data))]
        assert outcome(pieces, method, None) == whole
    paused = outcome(pieces, method, source)
    assert (paused[0], paused[2]) == (whole[0], whole[2])
    # A failure is told at once, before what a pause keeps back.
    assert paused[1] == whole[1] or (whole[2] != "ended" and whole[1].startswith(paused[1]))
    if whole[2] == "ended":
        _compare_with_h11(data, method, whole)


def _compare_with_h11(data: bytes, method: bytes, ours: tuple[int, bytes, str]) -> None:
    peer = h11.Connection(h11.CLIENT, max_incomplete_event_size=1 << 20)
    peer.send(h11.Request(method=method, target="/", headers=[("Host", "a")]))
    peer.send(h11.EndOfMessage())
    status, body = 0, b""
    try:
        peer.receive_data(data)
        # A second, empty piece is the end of the connection.
        for piece in (None, b""):
            if piece is not None:
                peer.receive_data(piece)
            while True:
                event = peer.next_event()
                if event in (h11.NEED_DATA, h11.PAUSED):
                    break
                if isinstance(event, h11.Response):
                    status = event.status_code
                elif isinstance(event, h11.Data):
                    body += bytes(event.data)
                elif isinstance(event, h11.EndOfMessage):
                    assert (status, body) == ours[:2]
                    return
                elif isinstance(event, h11.ConnectionClosed):
                    break
    except (h11.RemoteProtocolError, h11.LocalProtocolError):
        return
    raise AssertionError(f"we end, h11 waits: {ours}")


_SEEDS = [
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nETag: \"a\"\r\n\r\nhello",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\na;x=y\r\n0123456789\r\n0\r\nX-T: 1\r\n\r\n",
    b"HTTP/1.0 200 OK\r\nContent-Type: video/mp4\r\n\r\nhello until the end",
    b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n"
    b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 304 Not Modified\r\nETag: \"a\"\r\n\r\n",
    b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n",
    b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-2/9\r\nContent-Length: 3\r\n\r\nabc",
]
_TOKENS = [
    b"\r\n", b"\n", b"\r", b"\r\n\r\n", b"\x00", b" ", b"\t", b":", b";", b",", b"0", b"-1", b"+5", b"0x5",
    b"ffffffffffffffff",
    b"Content-Length: 5\r\n", b"Content-Length: 6\r\n", b"Transfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: gzip\r\n",
    b"Connection: close\r\n", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 100 \r\n\r\n", b"0\r\n\r\n", b"\xff", b"x" * 300,
]  # fmt: skip


def _mutated(source: random.Random) -> bytes:
    data = bytearray(source.choice(_SEEDS))
    for _ in range(source.randrange(4)):
        at = source.randrange(len(data) + 1)
        match source.randrange(5):
            case 0:
                data[at : at + 1] = bytes([source.randrange(256)])
            case 1:
                del data[at : at + source.randrange(8)]
            case 2:
                data[at:at] = source.choice(_TOKENS)
            case 3:
                data[at:at] = source.choice(_TOKENS) * source.randrange(1, 20)
            case _:
                other = source.choice(_SEEDS)
                data[at:] = other[source.randrange(len(other)) :]
    return bytes(data)


@settings(max_examples=500, deadline=None)
@given(
    st.lists(st.sampled_from(_SEEDS + _TOKENS) | st.binary(max_size=20), max_size=8).map(b"".join),
    st.sampled_from([b"GET", b"HEAD"]),
    st.integers(0, 1 << 32),
)
@example(b"HTTP/1.1 200 OK\r\n" + b"X-A: " + b"a" * 70_000, b"GET", 1)
@example(b"HTTP/1.1 103 \r\n\r\n" * 20, b"GET", 1)
@example(b"HTTP/1.1 103 \r\nX: " + b"a" * 9000 + b"\r\n\r\n" + _SEEDS[0], b"GET", 1)
def test_fuzz_upstream_response(data: bytes, method: bytes, seed: int) -> None:
    check_response(data, method, random.Random(seed))


def test_fuzz_mutated_seeds() -> None:
    source = random.Random(20)
    for _ in range(3_000):
        check_response(_mutated(source), source.choice([b"GET", b"HEAD"]), source)


def test_the_seeds_are_good() -> None:
    for seed in _SEEDS:
        assert outcome([seed], b"GET", None)[2] == "ended"


if __name__ == "__main__":
    end = time.monotonic() + float(sys.argv[1])
    randomness = random.Random()
    n_runs = 0
    while time.monotonic() < end:
        check_response(_mutated(randomness), randomness.choice([b"GET", b"HEAD"]), randomness)
        n_runs += 1
    print(f"{n_runs} runs, 0 findings")
