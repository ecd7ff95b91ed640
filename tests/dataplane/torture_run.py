"""Runs a torture's threads for its time: viewers against one control plane. What they do is each test's own."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Protocol

from plane_rig import wait_until


class Party(Protocol):
    """A thread that ends when it is told to, and keeps what it fell over."""

    must_stop: threading.Event
    error: BaseException | None

    def start(self) -> None: ...
    def join(self) -> None: ...
    def is_alive(self) -> bool: ...


def run_for(seconds: float, control: Party, clients: Sequence[Party]) -> None:
    """The control plane goes on until the last viewer has left. Raises the first error of any."""
    threads = (control, *clients)
    for thread in threads:
        thread.start()
    end = time.monotonic() + seconds
    wait_until(
        lambda: time.monotonic() > end or not all(thread.is_alive() for thread in threads), patience_s=seconds + 10
    )
    for client in clients:
        client.must_stop.set()
    for client in clients:
        client.join()
    control.must_stop.set()
    control.join()
    for thread in threads:
        if thread.error is not None:
            raise thread.error
