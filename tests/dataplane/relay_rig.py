"""A relay worker on loopback sockets: opened, drained while it waits, closed. What must hold is each test's own."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

from ext.plane import Plane
from ext.relay_plane import DESTINATION_BYTES, OUTPUT_COLUMNS, RELAY_COUNTERS, RelayPlane, Settings

UDP_SEGMENT, UDP_GRO, SO_RXQ_OVFL, SO_RCVBUFFORCE = 103, 104, 40, 33
WAIT_S = 20.0
OF_OUTPUT = (
    "format", "hold_ns", "pace_bytes_s", "is_pace_measured", "train_packets", "train_bytes", "ssrc", "sequence",
    "segments",
)  # fmt: skip


def destination(address: tuple[Any, ...]) -> bytes:
    """A row of the receivers' table: struct sockaddr_in or sockaddr_in6, and its length."""
    if ":" in address[0]:
        scope = address[3] if len(address) > 3 else 0
        packed = struct.pack("=H", socket.AF_INET6) + struct.pack("!HI", address[1], 0)
        packed += socket.inet_pton(socket.AF_INET6, address[0]) + struct.pack("=I", scope)
    else:
        packed = (
            struct.pack("=H", socket.AF_INET) + struct.pack("!H", address[1]) + socket.inet_aton(address[0]) + bytes(8)
        )
    return (packed.ljust(28, b"\0") + struct.pack("=I", len(packed))).ljust(DESTINATION_BYTES, b"\0")


def udp(address: str = "127.0.0.1", port: int = 0, *, gro: bool = False) -> socket.socket:
    """Bound, non-blocking, with as large a receive buffer as the kernel gives."""
    made = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 8 << 20)
    except PermissionError:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
    made.setsockopt(socket.SOL_SOCKET, SO_RXQ_OVFL, 1)
    if gro:
        made.setsockopt(socket.SOL_UDP, UDP_GRO, 1)
    made.bind((address, port))
    made.setblocking(False)
    return made


class RelayRig:
    """One plane; its sockets; receivers that are read whenever the rig waits."""

    def __init__(self, workers: int = 1, beside: Plane | None = None) -> None:
        self.plane = RelayPlane(workers, beside)
        self.sockets: list[socket.socket] = []
        self.received: dict[socket.socket, list[bytes]] = {}
        self.plane.start()

    def __enter__(self) -> RelayRig:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.plane.close()
        assert self.plane.collect() == 0
        for made in self.sockets:
            made.close()

    def open(self, address: str = "127.0.0.1", port: int = 0, *, gro: bool = False) -> socket.socket:
        made = udp(address, port, gro=gro)
        self.sockets.append(made)
        return made

    def receiver(self, address: str = "127.0.0.1") -> socket.socket:
        made = self.open(address)
        self.received[made] = []
        return made

    def relay(
        self,
        inputs: Sequence[socket.socket],
        receivers: Sequence[socket.socket],
        slot: int = 0,
        *,
        sources: Any = (),
        output: socket.socket | None = None,
        **options: Any,
    ) -> socket.socket:
        """A relay with one output; its socket. Options of the output and of the input by their names."""
        of_output = {name: options.pop(name) for name in OF_OUTPUT if name in options}
        sender = output or self.open(inputs[0].getsockname()[0] if inputs[0].family == socket.AF_INET6 else "127.0.0.1")
        settings = Settings(legs=[(made.fileno(), "media", sources) for made in inputs], **options)
        self.plane.add(slot, settings)
        self.plane.open_output(slot, 0, sender.fileno(), **{"hold_ns": 0, **of_output})
        self.plane.set_receivers(slot, [(0, b"".join(destination(made.getsockname()) for made in receivers))])
        return sender

    def drain(self) -> None:
        for made, found in self.received.items():
            while True:
                try:
                    found.append(made.recv(65_536))
                except BlockingIOError:
                    break

    def wait(self, condition: Callable[[], bool]) -> None:
        """Reads the receivers until `condition` holds."""
        end_s = time.monotonic() + WAIT_S
        while not condition():
            self.drain()
            assert time.monotonic() < end_s, f"not within {WAIT_S} s: {self.counters()}"
            time.sleep(0.0005)
        self.drain()

    def counters(self, slot: int = 0) -> dict[str, int]:
        return {name: int(self.plane.relays[slot, column]) for column, name, _ in RELAY_COUNTERS}

    def output(self, slot: int = 0, index: int = 0) -> dict[str, int]:
        return {name: int(self.plane.outputs[slot * 16 + index, column]) for column, name in OUTPUT_COLUMNS}

    def send(
        self, to: socket.socket, packets: Sequence[bytes], slot: int = 0, *, sender: socket.socket | None = None
    ) -> None:
        """Sends some at a time and waits until the relay has taken them, so that no buffer runs over."""
        source = sender or self.open(to.getsockname()[0] if to.family == socket.AF_INET6 else "127.0.0.1")
        for at in range(0, len(packets), 32):
            before = self.counters(slot)["datagrams"]
            for packet in packets[at : at + 32]:
                source.sendto(packet, to.getsockname())
            expected = before + len(packets[at : at + 32])
            self.wait(lambda expected=expected: self.counters(slot)["datagrams"] >= expected)  # type: ignore[misc]
