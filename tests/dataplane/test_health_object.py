"""The health probe's object: it must outlive any shortage of memory, or routers take a busy box for a dead one."""

from __future__ import annotations

from accelerator.dataplane import BOX_ORIGIN, FOREVER_NS, HEALTH_PATH, DataPlane


def test_bug_the_health_object_was_evicted_when_memory_was_short() -> None:
    dataplane = DataPlane(1, 16 << 20)
    dataplane.put_health_object()
    body = bytes(1 << 20)
    for i in range(64):  # four times what fits
        stored = dataplane.plane.create(
            1, len(body), 200, b"HTTP/1.1 200 OK\r\n", b"", b"", b"", -1, FOREVER_NS, 0, 0, 0, 0, False, True
        )
        assert stored is not None
        stored.begin_fill()
        room = stored.room(0, len(body))
        assert room is not None
        room[:] = body
        stored.commit(0, len(body))
        stored.end_fill()
        stored.finish(len(body))
        assert stored.insert(b"/%d" % i, b"", b"")
    assert dataplane.plane.totals()["evictions"] > 0
    (health,) = dataplane.plane.find(BOX_ORIGIN, HEALTH_PATH)
    assert health.body(16) == b"ok\n"
