"""A plane whose addresses another process has taken over, and the proof that its workers move."""

from __future__ import annotations

import time

from plane_rig import Rig, wait_until

HEALTH = "/.well-known/accelerator/health"


def test_who_is_idle_at_a_hand_over_may_ask_once_more(rig: Rig) -> None:
    """Bug class: a request that is on its way while its connection is closed is a failed request."""
    rig.store("/x", b"body")
    rig.store(HEALTH, b"ok\n", origin=0)
    used, fresh, probe = (rig.viewer() for _ in range(3))
    assert used.get("/x").body == b"body"
    wait_until(lambda: rig.plane.n_connections == 3)
    rig.plane.drain(60_000)
    passes = rig.passes()
    rig.plane.poke()
    wait_until(lambda: rig.passes() > passes, "the drain is read")
    for viewer in (used, fresh):
        reply = viewer.get("/x")
        assert (reply.body, reply["connection"]) == (b"body", "close")
        assert viewer.rest() == b""
    # Whoever probes this address is answered well: it is served, if not by us much longer.
    reply = probe.get(HEALTH)
    assert (reply.status, reply["connection"]) == (200, "close")
    wait_until(lambda: rig.plane.n_connections == 0)


def test_who_stays_idle_after_a_hand_over_is_closed(rig: Rig) -> None:
    idle = rig.viewer()
    wait_until(lambda: rig.plane.n_connections == 1)
    rig.plane.drain(1)
    assert idle.rest() == b""
    wait_until(lambda: rig.plane.n_connections == 0)


def test_a_poke_makes_a_sleeping_worker_move(rig: Rig) -> None:
    """Asleep, it makes a pass a second: twenty pokes need milliseconds."""
    began = time.monotonic()
    for _ in range(20):
        before = rig.passes()
        rig.plane.poke()
        wait_until(lambda before=before: rig.passes() > before)
    assert time.monotonic() - began < 10
