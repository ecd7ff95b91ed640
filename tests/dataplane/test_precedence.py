"""An edge worker lets a relay worker have the core that both want."""

from __future__ import annotations

import os
import threading
import time

from plane_rig import PATIENCE_S, Rig
from relay_packets import stream
from relay_rig import RelayRig


def one_core() -> set[int]:
    return {min(os.sched_getaffinity(0))}


def load(rig: Rig, done: threading.Event) -> None:
    """Requests without end on one connection: the worker always has the next one."""
    viewer = rig.viewer()
    while not done.is_set():
        for _ in range(50):
            viewer.ask("/x")
        for _ in range(50):
            assert viewer.reply().status == 200


def test_an_edge_worker_steps_aside_for_a_relay_worker_that_waits_and_goes_on() -> None:
    """Both on one core. Whoever waits for the core is a matter of time: it happens many times a second here."""
    packets = stream(64)
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, one_core())  # threads that are made now inherit it
    try:
        edge = Rig()
        with RelayRig(beside=edge.plane) as relays:
            edge.store("/x", bytes(1000))
            incoming, receiver = relays.open(), relays.receiver()
            relays.relay([incoming], [receiver] * 200, segments=False)
            done = threading.Event()
            viewers = [threading.Thread(target=load, args=(edge, done)) for _ in range(2)]
            for viewer in viewers:
                viewer.start()
            end_s, sent = time.monotonic() + PATIENCE_S, 0
            while not (edge.total("gave_way") and edge.total("requests") > 500):
                assert time.monotonic() < end_s, "no edge worker ever gave way"
                relays.send(incoming, packets[sent % 64 :][:1])
                sent += 1
                relays.drain()
            done.set()
            for viewer in viewers:
                viewer.join()
            assert not any(value for name, value in relays.output().items() if name.startswith("drop"))
        # The relays are gone: nobody is waited for any more.
        gave_way = edge.total("gave_way")
        viewer = edge.viewer()
        for _ in range(200):
            assert viewer.get("/x").status == 200
        assert edge.total("gave_way") == gave_way
        edge.close()
    finally:
        os.sched_setaffinity(0, allowed)
