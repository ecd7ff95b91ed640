"""Deadlines, caps, the memory limit, drain, close, and new tables under load."""

from __future__ import annotations

import resource
import threading
from collections.abc import Callable

import numpy as np
import pytest
from plane_rig import SECOND_NS, Rig, Viewer, pattern, wait_until

from ext import layout

HEALTH = "/.well-known/accelerator/health"
REQUEST = b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n"
SHORT_NS = SECOND_NS // 4


def test_a_slow_head_is_a_408(rigs: Callable[..., Rig]) -> None:
    rig = rigs(head_timeout_ns=SHORT_NS)
    rig.store("/x", b"body")
    viewer = rig.viewer()
    assert viewer.get().body == b"body"
    viewer.send(REQUEST + b"GET /x HT")
    assert viewer.reply().body == b"body"
    assert viewer.reply().status == 408
    assert viewer.rest() == b""
    assert rig.total("closed_slow_head") == 1


def test_a_head_that_trickles_is_slow_too(rigs: Callable[..., Rig]) -> None:
    rig = rigs(head_timeout_ns=SECOND_NS)
    viewer = rig.viewer()
    viewer.send(b"GET /x HTTP/1.1\r\n")

    def trickle() -> bool:
        if viewer.is_silent():
            viewer.send(b"X")
        return not viewer.is_silent()

    wait_until(trickle)
    assert viewer.reply().status == 408


def test_the_time_for_a_head_runs_also_behind_a_pending_answer(rigs: Callable[..., Rig]) -> None:
    """What followed a pipelined request had the idle time-out, and went as idle."""
    rig = rigs(head_timeout_ns=SHORT_NS)
    viewer = rig.viewer()
    viewer.send(REQUEST + b"GET /x HT")
    exchange = rig.exchange("miss")
    rig.store("/x", b"body")
    exchange.match()
    assert viewer.reply().body == b"body"
    assert viewer.reply().status == 408


def test_idle_connections_close(rigs: Callable[..., Rig]) -> None:
    rig = rigs(head_timeout_ns=SHORT_NS, idle_timeout_ns=SHORT_NS)
    rig.store("/x", b"body")
    silent, used = rig.viewer(), rig.viewer()
    assert used.get().body == b"body"
    assert used.rest() == b""
    assert silent.rest() == b""
    assert rig.total("closed_idle") == 2
    assert rig.total("refused") == 0


def test_a_reader_below_the_minimum_rate_is_reset(rigs: Callable[..., Rig]) -> None:
    """Each step moved the end of the window, so that who took a byte now and then was never judged."""
    rig = rigs(send_bytes=4096, send_window_ns=SECOND_NS, send_window_bytes=1 << 20)
    rig.store("/x", pattern(3_000_000))
    slow, still, fast = rig.viewer(receive_bytes=4096), rig.viewer(receive_bytes=4096), rig.viewer()
    slow.ask()
    still.ask()
    assert fast.get().body == pattern(3_000_000)

    def trickle() -> bool:
        try:
            slow.socket.recv(600)
        except ConnectionResetError:
            return True
        return False

    wait_until(trickle)
    assert still.is_reset()
    assert rig.total("closed_slow_reader") == 2


def test_a_slow_source_is_not_the_readers_fault(rigs: Callable[..., Rig]) -> None:
    rig = rigs(send_window_ns=SHORT_NS, send_window_bytes=1 << 30)
    stored = rig.begin("/x", 20_000)
    viewer = rig.viewer()
    viewer.ask()
    wait_until(lambda: stored.n_readers == 1)
    passes = rig.passes()
    wait_until(lambda: rig.passes() > passes + 6)  # the wheel alone turns now: four times a second
    rig.append(stored, 0, pattern(20_000))
    stored.finish(20_000)
    stored.end_fill()
    assert viewer.reply().body == pattern(20_000)
    assert rig.total("closed_slow_reader") == 0


def test_the_cap_on_all_connections(rigs: Callable[..., Rig]) -> None:
    rig = rigs(workers=2, connections=5)
    rig.store("/x", b"body")
    viewers = [rig.viewer() for _ in range(5)]
    assert all(viewer.get().body == b"body" for viewer in viewers)
    above = rig.viewer()
    reply = above.reply()
    assert (reply.status, reply["retry-after"], reply["connection"]) == (503, "2", "close")
    assert above.rest() == b""
    viewers[0].close()
    wait_until(lambda: rig.plane.n_connections == 4)
    assert rig.viewer().get().body == b"body"
    assert rig.total("refused_connections_all") == 1


def test_the_cap_per_address(rigs: Callable[..., Rig]) -> None:
    rig = rigs(connections_per_address=2)
    rig.store("/x", b"body")
    for i in range(1, 40):
        viewers = [rig.viewer(source=f"127.0.0.{i}") for _ in range(2)]
        assert all(viewer.get().body == b"body" for viewer in viewers)
        assert rig.viewer(source=f"127.0.0.{i}").reply().status == 503
    for viewer in rig.viewers[:30]:
        viewer.close()
    wait_until(lambda: rig.plane.n_connections == 58)
    for i in range(1, 11):
        assert rig.viewer(source=f"127.0.0.{i}").get().body == b"body"
    assert rig.total("refused_connections_address") == 39


def test_running_out_of_descriptors_turns_away(rig: Rig) -> None:
    """What can't be accepted stays in the queue, and woke the worker for ever."""
    rig.store("/x", b"body")
    first = rig.viewer()
    assert first.get().body == b"body"
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    pending = Viewer()
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (pending.socket.fileno() + 1, hard))
        pending.connect(rig.address)
        assert pending.reply().status == 503
        assert first.get().body == b"body"
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    pending.close()
    assert rig.viewer().get().body == b"body"


def test_connections_take_no_more_than_the_limit(rigs: Callable[..., Rig]) -> None:
    """Buffers were charged to the limit and never held to it."""
    limit = 2 << 20
    rig = rigs(memory=limit)
    for i in range(100):
        rig.store(f"/{i}", pattern(50_000, i))
    viewers = []
    long = b"GET /x HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 14_000 + b"\r\nZ: "
    for _ in range(300):
        viewer = rig.viewer()
        viewer.send(long)
        viewers.append(viewer)
        memory = rig.plane.memory
        assert memory["mapped"] + memory["outside"] <= limit
        rig.take()
    wait_until(lambda: rig.total("closed_memory") > 0)
    for viewer in viewers:
        viewer.reset()
    wait_until(lambda: rig.plane.memory["outside"] == 0)
    rig.store("/x", b"body")
    assert rig.viewer().get().body == b"body"


def test_objects_give_way_to_connections(rigs: Callable[..., Rig]) -> None:
    limit = 8 << 20
    rig = rigs(memory=limit)
    for i in range(200):
        rig.store(f"/{i}", pattern(50_000, i))
    n_before = rig.plane.n_objects
    viewers = [rig.viewer() for _ in range(200)]
    long = b"GET /x HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 14_000 + b"\r\n"
    wait_until(lambda: rig.plane.n_connections == 200)
    for viewer in viewers:
        before = rig.plane.memory["outside"]
        viewer.send(long)
        wait_until(lambda before=before: rig.plane.memory["outside"] > before)
        rig.take()
    assert rig.plane.memory["outside"] > 200 * 14_000
    assert rig.plane.n_objects < n_before
    rig.store("/x", b"body")
    for viewer in viewers:
        viewer.send(b"\r\n")
    assert all(viewer.reply().body == b"body" for viewer in viewers)
    assert rig.total("closed_memory") == 0


def test_drain_closes_the_idle_and_finishes_the_active(rig: Rig) -> None:
    rig.store("/x", b"body")
    rig.store(HEALTH, b"ok\n", origin=0)
    idle, waiting, reading, half = (rig.viewer() for _ in range(4))
    assert idle.get().body == b"body"
    waiting.ask("/miss")
    exchange = rig.exchange("miss")
    filling = rig.begin("/f", 10_000)
    reading.ask("/f")
    wait_until(lambda: filling.n_readers == 1)
    passes = rig.passes()
    half.send(f"GET {HEALTH} HTTP/1.1\r\n".encode())
    wait_until(lambda: rig.passes() > passes)
    rig.plane.drain()
    assert idle.rest() == b""
    half.send(b"Host: a\r\n\r\n")
    probe = half.reply()
    assert (probe.status, probe["connection"]) == (503, "close")
    assert half.rest() == b""
    rig.store("/miss", b"late")
    exchange.match()
    reply = waiting.reply()
    assert (reply.body, reply["connection"]) == (b"late", "close")
    assert waiting.rest() == b""
    rig.append(filling, 0, pattern(10_000))
    filling.finish(10_000)
    filling.end_fill()
    assert reading.reply().body == pattern(10_000)
    assert reading.rest() == b""
    for want in rig.exchanges:
        want.done()
    rig.exchanges.clear()
    wait_until(lambda: rig.plane.n_connections == 0)


def test_close_ends_everything(rigs: Callable[..., Rig]) -> None:
    rig = rigs(slice_bytes=1 << 20)
    rig.store("/x", pattern(8_000_000))
    filling = rig.begin("/f", 10_000)
    idle, waiting, sending, reading = (rig.viewer(receive_bytes=4096) for _ in range(4))
    assert idle.get("/x", "Range: bytes=0-9").body == pattern(10)
    waiting.ask("/miss")
    exchange = rig.exchange("miss")
    sending.ask("/x")
    reading.ask("/f")
    wait_until(lambda: filling.n_readers == 1)
    rig.plane.close()
    assert idle.rest() == b""
    assert waiting.is_reset()
    assert sending.is_reset()
    assert reading.is_reset()
    assert rig.plane.n_connections == 0
    exchange.error(504)  # too late: nobody is there to hear it


def test_listeners_come_and_go(rig: Rig) -> None:
    rig.store("/x", b"body")
    assert rig.viewer().get().body == b"body"
    rig.plane.unlisten(0)
    passes = rig.passes()
    wait_until(lambda: rig.passes() > passes)
    late = rig.viewer()
    late.ask()
    assert rig.viewers[0].get().body == b"body"
    assert late.is_silent()
    rig.plane.listen(rig.listener.fileno(), 0)
    assert late.reply().body == b"body"


def test_new_tables_under_load(rigs: Callable[..., Rig]) -> None:
    rig = rigs(workers=2)
    rig.store("/x", pattern(5000))
    end = threading.Event()
    wrong: list[object] = []

    def load() -> None:
        viewer = rig.viewer()
        while not end.is_set():
            viewer.send(REQUEST * 8)
            for _ in range(8):
                reply = viewer.reply()
                if reply.body != pattern(5000):
                    wrong.append(reply)

    threads = [threading.Thread(target=load) for _ in range(3)]
    for thread in threads:
        thread.start()
    generation = 1
    for i in range(150):
        generation = rig.publish(hosts=(b"a", *(b"host-%d-%d" % (i, j) for j in range(i % 7))))
        if i % 10 == 0:
            wait_until(lambda generation=generation: rig.plane.acknowledged() == generation)
    end.set()
    for thread in threads:
        thread.join()
    wait_until(lambda: rig.plane.acknowledged() == generation)
    assert wrong == []
    assert generation == 151


def test_old_tables_stay_until_every_worker_has_passed(rig: Rig) -> None:
    rig.publish(hosts=(b"b",))
    wait_until(lambda: rig.plane.acknowledged() == 2)
    viewer = rig.viewer()
    assert viewer.get().status == 421
    rig.store("/x", b"body")
    assert viewer.get(host="b").body == b"body"


@pytest.mark.parametrize("column", ["prefix", "prefix_length"])
def test_tables_that_point_outside_are_refused(rig: Rig, column: str) -> None:
    path = np.zeros(1, dtype=layout.PATH_DTYPE)
    path[column] = 1000
    dtypes = (layout.ORIGIN_DTYPE, layout.NET_DTYPE, layout.LISTENER_DTYPE, layout.STRING_DTYPE)
    rows = [np.zeros(0, dtype=dtype) for dtype in dtypes]
    hosts, limits = np.zeros(0, dtype=layout.HOST_DTYPE), np.zeros(1, dtype=layout.LIMITS_DTYPE)
    with pytest.raises(ValueError, match="strings"):
        rig.plane.publish(b"lyon", (0, 4), hosts, path, *rows, limits)
    with pytest.raises(ValueError, match="site"):
        rig.plane.publish(b"lyon", (0, 5), hosts, path[:0], *rows, limits)
    with pytest.raises(TypeError):
        rig.plane.publish(b"lyon", (0, 4), path, path, *rows, limits)
