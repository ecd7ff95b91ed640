"""Types of ext/relay_plane.pyx: the relay workers as Python sees them."""

from collections.abc import Iterable, Sequence
from typing import Any

from ext.plane import Plane
from ext.stream_plane import Ring

SLOTS: int
LEGS: int
OUTPUTS: int
DESTINATION_BYTES: int
FORMATS: tuple[str, ...]
OUTPUT_FORMATS: dict[str, int]
SEGMENTS: tuple[str, ...]
MODES: dict[str, int]
RELAY_COUNTERS: tuple[tuple[int, str, str], ...]
RELAY_GAUGES: tuple[tuple[int, str], ...]
LEG_COLUMNS: tuple[tuple[int, str], ...]
OUTPUT_COLUMNS: tuple[tuple[int, str], ...]

class Settings:
    legs: Sequence[tuple[int, str, Sequence[tuple[bytes, int]]]]
    def __init__(
        self,
        *,
        legs: Sequence[tuple[int, str, Sequence[tuple[bytes, int]]]],
        mode: str = "merge",
        is_rtp: bool = False,
        wait_ns: int = 0,
        failover_ns: int = 500_000_000,
        window_packets: int = 256,
        slot_bytes: int = 1536,
        payload_type: int = 255,
        clock_hz: int = 90000,
        cap_bytes_s: int = 0,
        ask_to: bytes = b"",
        ask_ssrc: int = 0,
        ask_name: bytes = b"",
        rtx_type: int = 255,
        is_wrapped: bool = False,
        groups: Sequence[bytes] = (),
    ) -> None: ...

class RelayPlane:
    n_workers: int
    relays: Any
    legs: Any
    outputs: Any
    worker_rows: Any
    def __init__(self, workers: int = 1, beside: Plane | None = None) -> None: ...
    def start(self) -> None: ...
    def native_ids(self) -> list[int]: ...
    def workers_state(self) -> list[tuple[int, bool]]: ...
    def late(self) -> list[list[int]]: ...
    def pressed(self) -> list[tuple[int, int]]: ...
    def set_early(self, is_always: bool) -> None: ...
    def close(self) -> None: ...
    def collect(self) -> int: ...
    def add(
        self, slot: int, settings: Settings, sockets: Iterable[object] = (), *, receives: bool = True
    ) -> None: ...
    def receive(self, slot: int) -> None: ...
    def remove(self, slot: int) -> None: ...
    def open_output(
        self,
        slot: int,
        index: int,
        fd: int,
        *,
        format: str = "keep",
        hold_ns: int = 5_000_000,
        pace_bytes_s: int = 0,
        train_packets: int = 16,
        train_bytes: int = 0,
        ssrc: int = 0,
        sequence: int = 0,
        segments: bool = True,
        is_pace_measured: bool = False,
    ) -> None: ...
    def set_receivers(self, slot: int, receivers: Sequence[tuple[int, bytes]]) -> None: ...
    def set_link(self, slot: int, leg: int, link: int) -> None: ...
    def set_own(self, own: Sequence[tuple[bytes, int]]) -> None: ...

    def set_stream(self, slot: int, ring: Ring | None) -> None: ...

class RelayBench:
    counters: Any
    legs: Any
    outputs: Any
    def __init__(self, settings: Settings) -> None: ...
    def take(self, leg: int, data: bytes, now: int, sender: bytes = ...) -> list[bytes]: ...
    def ask(self, now: int) -> bytes: ...
    def expire(self, now: int) -> list[bytes]: ...
    def set_stream(self, ring: Ring | None) -> None: ...
    def publish(self, now: int) -> None: ...
    def known(self) -> dict[str, int]: ...

def allows(settings: Settings, leg: int, address: bytes) -> bool: ...
