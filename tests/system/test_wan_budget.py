"""The WAN budget on a link of 20 Mbit/s: what the wire carries, whom the queue loses, who has its guarantee."""

from __future__ import annotations

import socket
import statistics
import threading
import time
from pathlib import Path

import netns
import pytest
from running_box import wait_for
from wan_box import Wan

pytestmark = pytest.mark.skipif(netns.why_not() is not None, reason=str(netns.why_not()))
LIVE_BYTES = 600_000


def test_bulk_live_and_voice_share_a_link_of_20_mbit_s(tmp_path: Path) -> None:
    """6 fills, a segment each second and an EF flow of 2 Mbit/s, with a budget of 15 Mbit/s and 40 % for the webcast.

    Takes 6 s: the budget is one of windows of a second."""
    with Wan(tmp_path) as wan:
        figures = wan.run(6, live_bytes=LIVE_BYTES)
        row = wan.box.status()["links"][0]
        metrics = wan.here.call(wan.box.metrics)
    # The sampler is a thread of a busy machine: 2 % are its own.
    assert figures.fetch_max_bps <= 15e6 * 1.02
    assert figures.fetch_mean_bps >= 15e6 * 0.75, "what is free is used"
    assert figures.ef_loss < 0.005, figures
    # 40 % of 15 Mbit/s carry the segment in 0.85 s.
    assert statistics.median(figures.live_s) < 0.85, figures.live_s
    classes = {each["name"]: each for each in row["classes"]}
    assert classes["webcast"]["bytes"] >= LIVE_BYTES * len(figures.live_s)
    assert classes["library"]["held"] > 0
    assert metrics["accelerator_link_bytes_total{library}{main}"] > 1_000_000
    assert metrics["accelerator_link_video_bps{main}"] == 15_000_000


def test_another_budget_holds_at_once_for_what_is_under_way(tmp_path: Path) -> None:
    with Wan(tmp_path) as wan:
        wan.box.reload({"links": {"main": {"video": "4Mbit/s"}}})
        small = wan.run(2.2, bulk=2)
        assert small.fetch_max_bps <= 4e6 * 1.04
        policy = {**wan.box.policy, "links": {"main": {"interface": "wan"}}}
        assert "taken over" in wan.box.reload(policy=policy)
        assert wan.box.status()["links"][0]["video_bps"] == 0
        free = wan.run(1.5, bulk=2, name="b")
        assert free.fetch_max_bps > 10e6
        wan.box.reload({"links": {"main": {"video": "15Mbit/s"}}, "classes": {"library": {"ceiling": "20%"}}})
        bounded = wan.run(2.2, bulk=3, name="c")
        assert bounded.fetch_max_bps <= 3e6 * 1.06, "of the class's ceiling, though nobody else wants anything"


def test_a_tunnel_takes_from_the_budget_first_and_fills_get_by_with_the_rest(tmp_path: Path) -> None:
    """6 Mbit/s by CONNECT beside two fills: together they stay within 15 Mbit/s, and the tunnel isn't slowed."""
    with Wan(tmp_path, steering={"connect": ["10.9.0.1:8100"]}) as wan:
        listener = wan.origin.call(lambda: socket.create_server(("10.9.0.1", 8100)))
        done, came = threading.Event(), [0]
        threads = [
            threading.Thread(target=_steady, args=(listener, done)),
            threading.Thread(target=_tunnel, args=(wan, came)),
        ]
        for thread in threads:
            thread.start()
        wait_for(lambda: came[0] > 20_000)
        before = came[0]
        figures = wan.run(3.0, bulk=2)
        carried_bps = (came[0] - before) * 8 / 3.0
        row = wan.box.status()["links"][0]
        metrics = wan.here.call(wan.box.metrics)
        done.set()
        for thread in threads:
            thread.join()
        listener.close()
    assert carried_bps > 5e6
    assert figures.fetch_mean_bps < 15e6 * 1.05
    assert sum(figures.bulk_bytes) * 8 / 3.0 > 4e6, "what is left is used"
    assert row["outside"]["tunnels"] >= before
    assert metrics["accelerator_link_outside_bytes_total{tunnels}{main}"] >= before


def _steady(listener: socket.socket, done: threading.Event) -> None:
    """6 Mbit/s, whatever the other side does."""
    with listener.accept()[0] as connection:
        next_s = time.monotonic()
        while not done.is_set():
            connection.sendall(bytes(7500))
            next_s += 0.01
            time.sleep(max(0.0, next_s - time.monotonic()))


def _tunnel(wan: Wan, came: list[int]) -> None:
    with wan.here.call(lambda: socket.create_connection(wan.address, timeout=30)) as viewer:
        viewer.sendall(b"CONNECT 10.9.0.1:8100 HTTP/1.1\r\nHost: 10.9.0.1:8100\r\n\r\n")
        reader = viewer.makefile("rb")
        assert b" 200 " in reader.readline()
        while block := reader.read1(1 << 16):
            came[0] += len(block)


def test_a_relays_sender_on_the_link_takes_from_its_budget(tmp_path: Path) -> None:
    relay = {
        "from": ["udp://10.9.0.2:5010"], "interface": "wan", "sources": ["10.9.0.0/24"],
        "to": [{"unicast": ["127.0.0.1:5011"]}],
    }  # fmt: skip
    with Wan(tmp_path, relays={"hall": relay}) as wan:
        out = wan.origin.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))

        def is_counted() -> bool:
            for _ in range(7):
                out.sendto(bytes(1316), ("10.9.0.2", 5010))
            return bool(wan.box.status()["links"][0]["outside"]["relays"] > 20_000)

        with out:
            wait_for(is_counted)
        assert wan.box.status()["links"][0]["outside"]["tunnels"] == 0
