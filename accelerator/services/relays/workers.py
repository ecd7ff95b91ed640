"""What `status` says of the relay workers. They are started and watched by relays.py."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from accelerator.dataplane import RelayPlane
from accelerator.protocols.lateness import late_p99_ms


def worker_rows(plane: RelayPlane | None, stalled: Collection[int]) -> list[dict[str, Any]]:
    if plane is None:
        return []
    return [
        {
            "index": index,
            "alive": is_alive and index not in stalled,
            "late_p99_ms": late_p99_ms(late),
            "short_of_time_s": round(pressed_ns / 1e9, 1),
        }
        for index, ((_, is_alive), late, (pressed_ns, _)) in enumerate(
            zip(plane.workers_state(), plane.late(), plane.pressed(), strict=True)
        )
    ]
