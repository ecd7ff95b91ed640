"""Connections over real sockets: pipelining, heads in pieces, ends, resets, small socket buffers, fairness."""

from __future__ import annotations

import socket
from collections.abc import Callable

import pytest
from plane_rig import Rig, pattern, wait_until

REQUEST = b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n"


def request(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode()


@pytest.mark.parametrize("n", [0, 1, 50, 4096, 5000, 60_000])
def test_pipelined_requests_are_answered_in_order(rig: Rig, n: int) -> None:
    for i in range(5):
        rig.store(f"/{i}", pattern(n, i))
    viewer = rig.viewer()
    viewer.send(b"".join(request(f"/{i % 5}") for i in range(100)))
    for i in range(100):
        assert viewer.reply().body == pattern(n, i % 5)
    assert viewer.is_silent()
    assert rig.total("hits") == 100


def test_requests_split_at_each_byte(rig: Rig) -> None:
    rig.store("/x", b"one")
    rig.store("/y", pattern(30_000))
    both = REQUEST + request("/y")
    for i in range(1, len(both)):
        viewer = rig.viewer()
        before = rig.passes()
        viewer.send(both[:i])
        wait_until(lambda before=before: rig.passes() > before)
        viewer.send(both[i:])
        assert viewer.reply().body == b"one"
        assert viewer.reply().body == pattern(30_000)
        viewer.close()


def test_a_request_byte_by_byte(rig: Rig) -> None:
    rig.store("/x", b"one")
    viewer = rig.viewer()
    for byte in REQUEST + REQUEST:
        before = rig.passes()
        viewer.send(bytes([byte]))
        wait_until(lambda before=before: rig.passes() > before)
    assert viewer.reply().body == b"one"
    assert viewer.reply().body == b"one"


@pytest.mark.parametrize("n", [0, 100, 20_000, 400_000])
@pytest.mark.parametrize("field_bytes", [0, 3000, 14_000])
def test_answers_that_the_socket_takes_in_small_parts(rigs: Callable[..., Rig], n: int, field_bytes: int) -> None:
    """Heads are cut anywhere too; an empty body behind a cut head was taken for a whole answer."""
    rig = rigs(send_bytes=2048)
    rig.store("/x", pattern(n), lines=b"X-Long: " + b"y" * field_bytes + b"\r\n")
    viewer = rig.viewer(receive_bytes=2048)
    times = 12
    viewer.send(REQUEST * times + b"HEAD /x HTTP/1.1\r\nHost: a\r\n\r\n" + request("/unknown"))
    before = rig.passes()
    wait_until(lambda: rig.passes() > before or rig.total("requests"))
    for _ in range(times):
        reply = viewer.reply()
        assert len(reply["x-long"]) == field_bytes
        assert reply.body == pattern(n)
    assert viewer.reply("HEAD")["content-length"] == str(n)
    rig.exchange("miss").error(504)
    assert viewer.reply().status == 504
    assert viewer.is_silent()


def test_errors_and_preflights_that_the_socket_takes_in_small_parts(rigs: Callable[..., Rig]) -> None:
    rig = rigs(send_bytes=2048)
    viewer = rig.viewer(receive_bytes=2048)
    preflight = b"OPTIONS /x HTTP/1.1\r\nHost: a\r\nOrigin: http://" + b"o" * 400
    preflight += b"\r\nAccess-Control-Request-Method: GET\r\nAccess-Control-Request-Headers: " + b"h" * 1000
    preflight += b"\r\n\r\n"
    viewer.send((preflight + b"POST /x HTTP/1.1\r\nHost: a\r\n\r\n") * 40 + b"bad\r\n\r\n")
    for _ in range(40):
        assert viewer.reply()["access-control-allow-headers"] == "h" * 1000
        assert viewer.reply().status == 405
    assert viewer.reply().status == 400
    assert viewer.rest() == b""


def test_an_answer_of_many_slices_is_not_given_twice(rig: Rig) -> None:
    """More slices than one write takes, all taken by the socket: the request stayed in the buffer."""
    rig.store("/x", pattern(100_000))
    viewer = rig.viewer()
    viewer.get("/x")
    viewer.get("/x")
    assert viewer.is_silent()
    assert rig.total("requests") == 2


def test_what_follows_a_pending_answer_waits_for_it(rig: Rig) -> None:
    rig.store("/y", b"second")
    viewer = rig.viewer()
    viewer.send(REQUEST + request("/y") + b"GET /half")
    exchange = rig.exchange("miss")
    assert exchange.head == REQUEST
    assert viewer.is_silent()
    viewer.send(b" HTTP/1.1\r\nHost: a\r\n\r\n")
    rig.store("/half", b"third")
    rig.store("/x", b"first")
    exchange.match(200)
    assert [viewer.reply().body for _ in range(3)] == [b"first", b"second", b"third"]


def test_pipelined_heads_longer_than_the_input_buffer(rig: Rig) -> None:
    rig.store("/x", pattern(10))
    filler = b"".join(b"X-%d: " % i + b"z" * 15_000 + b"\r\n" for i in range(2))
    long = b"GET /x HTTP/1.1\r\nHost: a\r\n" + filler + b"\r\n"
    viewer = rig.viewer()
    viewer.ask("/wait")
    exchange = rig.exchange("miss")
    for _ in range(20):
        viewer.send(long)
    rig.store("/wait", b"first")
    exchange.match()
    assert viewer.reply().body == b"first"
    for _ in range(20):
        assert viewer.reply().body == pattern(10)
    assert viewer.is_silent()


def test_a_request_and_fin_in_one_segment_are_answered_then_closed(rig: Rig) -> None:
    """The end came with the data's edge and was never looked at: the connection stayed until the idle time-out."""
    rig.store("/x", pattern(200_000))
    viewer = rig.viewer()
    viewer.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
    viewer.send(REQUEST * 3)
    viewer.socket.shutdown(socket.SHUT_WR)
    for _ in range(3):
        assert viewer.reply().body == pattern(200_000)
    assert viewer.rest() == b""
    wait_until(lambda: rig.plane.n_connections == 0)


def test_a_waiting_viewer_that_ended_its_side_is_answered(rig: Rig) -> None:
    viewer = rig.viewer()
    viewer.send(REQUEST)
    viewer.socket.shutdown(socket.SHUT_WR)
    exchange = rig.exchange("miss")
    rig.store("/x", pattern(50_000))
    exchange.match()
    assert viewer.reply().body == pattern(50_000)
    assert viewer.rest() == b""


def test_an_end_within_a_head_closes(rig: Rig) -> None:
    viewer = rig.viewer()
    viewer.send(b"GET /x HT")
    viewer.socket.shutdown(socket.SHUT_WR)
    assert viewer.rest() == b""
    assert rig.total("requests") == 0


def test_resets_at_every_moment_lose_nothing(rig: Rig) -> None:
    rig.store("/x", pattern(3_000_000))
    filling = rig.begin("/f", 10_000)
    rig.append(filling, 0, pattern(5000))
    for data in (b"", b"GET", REQUEST, REQUEST * 3, request("/f"), request("/miss"), REQUEST + request("/miss")):
        for reads in (False, True):
            viewer = rig.viewer(receive_bytes=4096)
            if data:
                before = rig.passes()
                viewer.send(data)
                wait_until(lambda before=before: rig.passes() > before)
            if reads and REQUEST in data:
                viewer.more()
            viewer.reset()
    wait_until(lambda: rig.plane.n_connections == 0)
    filling.fail()
    filling.end_fill()
    assert rig.viewer().get("/x").body == pattern(3_000_000)


def test_one_who_pipelines_without_end_does_not_starve_the_others(rig: Rig) -> None:
    """Reading went on for as long as the socket had more, within one turn of the loop."""
    rig.store("/x", b"")
    greedy = rig.viewer()
    greedy.socket.setblocking(False)
    other = rig.viewer()
    burst = REQUEST * 2000
    sent = received = 0

    def feed() -> None:
        nonlocal sent, received
        try:
            while True:
                sent += greedy.socket.send(burst[sent % len(REQUEST) :])
        except BlockingIOError:
            pass
        try:
            while True:
                received += len(greedy.socket.recv(1 << 20))
        except BlockingIOError:
            pass

    for _ in range(20):
        feed()
        other.ask("/x")
        wait_until(lambda: feed() or not other.is_silent())
        assert other.reply().status == 200
    assert received


def test_many_connections_come_and_go(rigs: Callable[..., Rig]) -> None:
    rig = rigs(workers=2)
    rig.store("/x", pattern(100))
    for _ in range(4):
        viewers = [rig.viewer() for _ in range(200)]
        for viewer in viewers:
            viewer.send(REQUEST)
        for viewer in viewers:
            assert viewer.reply().body == pattern(100)
        wait_until(lambda: rig.plane.n_connections == 200)
        for i, viewer in enumerate(viewers):
            viewer.close() if i % 2 else viewer.reset()
        wait_until(lambda: rig.plane.n_connections == 0)
    assert rig.plane.memory["outside"] == 0


def test_a_child_that_inherits_descriptors_keeps_no_event(rig: Rig) -> None:
    """A descriptor that is open elsewhere stays in the epoll set after close(): its events named freed memory."""
    import os

    rig.store("/x", b"body")
    viewer = rig.viewer()
    assert viewer.get().body == b"body"
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.read(read_end, 1)
        os._exit(0)
    viewer.ask("/x", "Connection: close")
    assert viewer.reply().body == b"body"
    wait_until(lambda: rig.plane.n_connections == 0)
    # The child keeps the server's end open: what comes now is an event on a connection that is gone.
    viewer.send(REQUEST)
    again = rig.viewer()
    for _ in range(20):
        assert again.get().body == b"body"
    os.write(write_end, b"x")
    os.waitpid(child, 0)
    os.close(read_end)
    os.close(write_end)
    assert rig.total("connections_accepted") == 2


