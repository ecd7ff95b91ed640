"""Requests with bodies at the worker: the ring, its back-pressure, framing, limits, early ends, aborts."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator

import pytest
from plane_rig import GENERIC, Rig, pattern, wait_until

from ext.asked import Exchange

Rigs = Callable[..., Rig]
POST = "POST /generic/x HTTP/1.1\r\nHost: a\r\n"


@pytest.fixture
def rigs(all_rigs: Rigs) -> Rigs:
    return all_rigs


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """Rig.close() counts memory: a body held by a test's own variable would be taken for one that was lost."""
    yield
    gc.collect()


def chunked(*pieces: bytes) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


def read_body(exchange: Exchange, most: int = 1 << 20) -> bytes:
    """All of it; returns when it is over."""
    body = exchange.body
    assert body is not None
    data = bytearray()

    def is_over() -> bool:
        data.extend(body.read(most))
        return body.is_over

    wait_until(is_over, "the body's end")
    return bytes(data)


def answer(rig: Rig, exchange: Exchange, body: bytes = b"ok", status: int = 200) -> None:
    stored = rig.create(len(body), status=status, private=True, origin=GENERIC)
    assert stored is not None
    rig.append(stored, 0, body)
    stored.finish(len(body))
    exchange.leader(stored, status)


def test_a_body_with_its_head(rigs: Rigs) -> None:
    rig = rigs()
    viewer = rig.viewer()
    viewer.send(f"{POST}Content-Length: 5\r\n\r\nhello".encode())
    exchange = rig.exchange("pass")
    assert exchange.key == b"/generic/x"
    assert exchange.head.startswith(b"POST /generic/x")
    assert exchange.head.endswith(b"\r\n\r\n")
    assert exchange.body is not None
    assert exchange.body.length == 5
    assert read_body(exchange) == b"hello"
    answer(rig, exchange)
    reply = viewer.reply()
    assert reply.body == b"ok"
    assert reply["cache-status"] == "lyon; fwd=method; fwd-status=200"
    assert rig.total("passed") == rig.total("uploads") == 1
    assert rig.total("bytes_from_viewers") == 5
    assert viewer.get("/generic/nothing", method="TRACE").status == 405, "the connection goes on"


@pytest.mark.parametrize("form", ["length", "chunked"])
@pytest.mark.parametrize("n", [1, 511, 70_000, 1_500_000])
def test_a_body_that_takes_its_time(rigs: Rigs, form: str, n: int) -> None:
    """Longer than the ring too, and a request pipelined behind it is answered after it."""
    rig = rigs()
    viewer = rig.viewer()
    data = pattern(n)
    if form == "length":
        head, coded = f"{POST}Content-Length: {n}\r\n\r\n".encode(), data
    else:
        head = f"{POST}Transfer-Encoding: chunked\r\n\r\n".encode()
        coded = chunked(*(data[i : i + 7919] for i in range(0, n, 7919)))
    following = b"PUT /generic/y HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nend"
    viewer.send(head)
    exchange = rig.exchange("pass")
    from threading import Thread

    sender = Thread(target=viewer.send, args=(coded + following,))
    sender.start()
    assert read_body(exchange, 50_000) == data
    sender.join()
    answer(rig, exchange)
    assert viewer.reply().body == b"ok"
    exchange = rig.exchange("pass")
    assert exchange.head.startswith(b"PUT /generic/y")
    assert read_body(exchange) == b"end"
    answer(rig, exchange, b"second")
    assert viewer.reply().body == b"second"
    exchange = None  # type: ignore[assignment]


def test_a_body_that_came_before_its_requests_turn(rigs: Rigs) -> None:
    """Its last edge was over when the answer before it was: nobody read the socket any more, and it ended in 408."""
    rig = rigs()
    viewer = rig.viewer()
    data = pattern(300_000)
    heads = f"{POST}Content-Length: 2\r\n\r\nhi{POST}Content-Length: {len(data)}\r\n\r\n"
    viewer.send(heads.encode() + data[:1000])
    exchange = rig.exchange("pass")
    assert read_body(exchange) == b"hi"
    viewer.send(data[1000:])
    answer(rig, exchange)
    assert viewer.reply().body == b"ok"
    exchange = rig.exchange("pass")
    assert read_body(exchange) == data
    answer(rig, exchange)
    assert viewer.reply().body == b"ok"
    exchange = None  # type: ignore[assignment]


def test_a_ring_that_nobody_empties_holds_the_viewer_back(rigs: Rigs) -> None:
    """Bounded memory: what the box takes of a body is its ring, the rest waits in the sockets."""
    rig = rigs()
    viewer = rig.viewer()
    viewer.send(f"{POST}Content-Length: 50000000\r\n\r\n".encode())
    viewer.socket.setblocking(False)
    exchange = rig.exchange("pass")
    sent = 0

    def is_held() -> bool:
        nonlocal sent
        try:
            sent += viewer.socket.send(bytes(65536))
        except BlockingIOError:
            return rig.total("bytes_from_viewers") == 131072
        return False

    wait_until(is_held, "the viewer is held back")
    assert rig.kept() < 200_000
    viewer.reset()
    wait_until(lambda: exchange.body is not None and exchange.body.is_aborted)
    assert rig.total("uploads_aborted") == 1
    wait_until(lambda: rig.take() or rig.cancelled)
    exchange.done()
    exchange = None  # type: ignore[assignment]


@pytest.mark.parametrize("size", [b"5x", b"", b"0x5", b"-1", b"+5", b"5 5", b"ffffffffffffffff", b"5;a\nb"])
@pytest.mark.parametrize("is_later", [False, True])
def test_bad_chunks_are_refused(rigs: Rigs, size: bytes, is_later: bool) -> None:
    rig = rigs()
    viewer = rig.viewer()
    head = f"{POST}Transfer-Encoding: chunked\r\n\r\n".encode()
    if is_later:
        viewer.send(head + b"3\r\nabc\r\n")
        exchange = rig.exchange("pass")
        viewer.send(size + b"\r\nhello\r\n0\r\n\r\n")
        reply = viewer.reply()
        assert exchange.body is not None
        wait_until(lambda: exchange.body is not None and exchange.body.is_aborted)
        assert not exchange.body.is_over
        exchange.done()
        exchange = None  # type: ignore[assignment]
    else:
        viewer.send(head + size + b"\r\nhello\r\n0\r\n\r\n")
        reply = viewer.reply()
        assert rig.no_exchange()
    assert reply.status == 400
    assert reply["connection"] == "close"


def test_too_large_is_refused_at_once_by_length(rigs: Rigs) -> None:
    """Without waiting for the body, and without 100 (Continue)."""
    rig = rigs(body_max=1000)
    viewer = rig.viewer()
    viewer.send(f"{POST}Content-Length: 1001\r\nExpect: 100-continue\r\n\r\n".encode())
    assert viewer.reply().status == 413
    assert rig.no_exchange()
    assert rig.total("status_413") == 1


def test_too_large_is_refused_when_it_is_seen(rigs: Rigs) -> None:
    rig = rigs(body_max=1000)
    viewer = rig.viewer()
    viewer.send(f"{POST}Transfer-Encoding: chunked\r\n\r\n3e8\r\n".encode() + bytes(1000) + b"\r\n")
    exchange = rig.exchange("pass")
    viewer.send(b"1\r\na\r\n0\r\n\r\n")
    assert viewer.reply().status == 413
    wait_until(lambda: exchange.body is not None and exchange.body.is_aborted)
    assert rig.total("uploads_aborted") == rig.total("status_413") == 1
    exchange.done()
    exchange = None  # type: ignore[assignment]


def test_a_body_that_stalls_is_408(rigs: Rigs) -> None:
    rig = rigs(body_timeout_ns=300_000_000)
    viewer = rig.viewer()
    viewer.send(f"{POST}Content-Length: 10\r\n\r\nhalf".encode())
    exchange = rig.exchange("pass")
    assert viewer.reply().status == 408
    assert rig.total("closed_slow_body") == rig.total("uploads_aborted") == 1
    wait_until(lambda: exchange.body is not None and exchange.body.is_aborted)
    exchange.done()
    exchange = None  # type: ignore[assignment]


def test_a_viewer_that_ends_within_its_body(rigs: Rigs) -> None:
    """A half-closed connection can't complete its request: nothing may take what came for all of it."""
    rig = rigs()
    viewer = rig.viewer()
    viewer.send(f"{POST}Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n".encode())
    exchange = rig.exchange("pass")
    viewer.socket.shutdown(1)
    wait_until(lambda: exchange.body is not None and exchange.body.is_aborted)
    assert exchange.body is not None
    assert exchange.body.read(100) == b"hello"
    assert not exchange.body.is_over
    exchange.done()
    exchange = None  # type: ignore[assignment]


def test_an_answer_before_the_bodys_end_closes_gently(rigs: Rigs) -> None:
    """RFC 9112 section 9.6: the viewer gets the answer, not a reset that throws it away."""
    rig = rigs()
    viewer = rig.viewer()
    viewer.send(f"{POST}Content-Length: 3000000\r\n\r\n".encode() + bytes(100_000))
    exchange = rig.exchange("pass")
    answer(rig, exchange, b"no, thanks", 403)
    exchange = None  # type: ignore[assignment]
    reply = viewer.reply()
    assert (reply.status, reply.body) == (403, b"no, thanks")
    viewer.send(bytes(500_000))
    assert viewer.rest() == b""
    assert rig.total("uploads_cut") == 1


def test_an_answer_while_the_body_goes_on(rigs: Rigs) -> None:
    """The response is under way, and the rest of the request still goes up."""
    rig = rigs()
    viewer = rig.viewer()
    viewer.send(f"{POST}Content-Length: 300000\r\n\r\n".encode())
    exchange = rig.exchange("pass")
    stored = rig.create(-1, private=True, origin=GENERIC)
    assert stored is not None
    stored.begin_fill()
    rig.append(stored, 0, b"begun ")
    exchange.leader(stored, 200)
    assert viewer.head().is_chunked
    assert viewer.chunk() == b"begun "
    data = pattern(300_000)
    from threading import Thread

    sender = Thread(target=viewer.send, args=(data,))
    sender.start()
    assert read_body(exchange) == data
    sender.join()
    rig.append(stored, 6, b"ended")
    stored.finish(11)
    stored.end_fill()
    assert viewer.chunk() == b"ended"
    assert viewer.chunk() == b""
    assert viewer.get("/generic/nothing", method="TRACE").status == 405
    exchange = stored = None  # type: ignore[assignment]


def test_interim_responses_come_first_and_in_order(rigs: Rigs) -> None:
    rig = rigs()
    viewer = rig.viewer()
    viewer.send(f"{POST}Content-Length: 2\r\nExpect: 100-continue\r\n\r\n".encode())
    exchange = rig.exchange("pass")
    exchange.interim(b"HTTP/1.1 100 Continue\r\n\r\n")
    assert viewer.head().status == 100
    viewer.send(b"hi")
    assert read_body(exchange) == b"hi"
    exchange.interim(b"HTTP/1.1 102 Processing\r\n\r\n")
    exchange.interim(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n")
    answer(rig, exchange)
    assert [viewer.head().status for _ in range(2)] == [102, 103]
    assert viewer.reply().body == b"ok"
    assert rig.total("interim_sent") == 3
    exchange = None  # type: ignore[assignment]


def test_http_1_0_gets_no_interim_response(rigs: Rigs) -> None:
    rig = rigs()
    viewer = rig.viewer()
    viewer.send(b"POST /generic/x HTTP/1.0\r\nHost: a\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\nhi")
    exchange = rig.exchange("pass")
    exchange.interim(b"HTTP/1.1 100 Continue\r\n\r\n")
    answer(rig, exchange)
    assert viewer.reply().status == 200
    exchange = None  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("request_line", "status"),
    [("TRACE /generic/x", 405), ("CONNECT a:80", 501), ("POST /x", 405), ("BREW /x", 501), ("DELETE /x", 405)],
)
def test_methods_that_are_not_allowed(rigs: Rigs, request_line: str, status: int) -> None:
    rig = rigs()
    viewer = rig.viewer()
    viewer.send(f"{request_line} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
    assert viewer.reply().status == status


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "PROPFIND", "x-own"])
def test_generic_passes_any_other_method(rigs: Rigs, method: str) -> None:
    rig = rigs()
    viewer = rig.viewer()
    viewer.ask("/generic/x", method=method)
    exchange = rig.exchange("pass")
    assert exchange.body is None
    answer(rig, exchange)
    assert viewer.reply()["cache-status"].startswith("lyon; fwd=method")


def test_a_get_with_a_body_is_never_answered_from_the_store(rigs: Rigs) -> None:
    rig = rigs()
    rig.store("/generic/x", b"stored", origin=GENERIC)
    viewer = rig.viewer()
    assert viewer.get("/generic/x").body == b"stored"
    viewer.send(b"GET /generic/x HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi")
    exchange = rig.exchange("pass")
    assert read_body(exchange) == b"hi"
    answer(rig, exchange, b"own")
    assert viewer.reply().body == b"own"
    exchange = None  # type: ignore[assignment]


def test_an_unknown_expectation_is_417(rigs: Rigs) -> None:
    rig = rigs()
    viewer = rig.viewer()
    viewer.send(f"{POST}Content-Length: 2\r\nExpect: a-miracle\r\n\r\n".encode())
    assert viewer.reply().status == 417
