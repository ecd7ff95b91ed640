"""An inline box behind a link of 20 Mbit/s each way (tbf, 40 ms), and what competes through it. No test itself.

    origin (10.0.0.2) eth0 --- tbf --- wan box lan0 --- eth0 (10.1.0.2) viewer
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import netns

EF_BYTES, EF_EVERY_S = 972, 0.004  # about 2 Mbit/s on the wire
EF_PORT = 3478
BULK_PORT = 9000
LINK = "20mbit"


@dataclass
class Competed:
    """What came of one run."""

    ef_sent: int = 0
    ef_received: int = 0
    bulk_bytes: int = 0
    seconds: float = 0.0

    @property
    def ef_loss(self) -> float:
        return 1 - self.ef_received / max(1, self.ef_sent)

    @property
    def bulk_bps(self) -> float:
        return self.bulk_bytes * 8 / self.seconds


def narrow(origin: netns.Namespace, box: netns.Namespace, viewer: netns.Namespace) -> None:
    """The provider's end of the link, whose queue is in front of the box and knows no marks."""
    for namespace, interface in ((origin, "eth0"), (box, "wan"), (box, "lan0"), (viewer, "eth0")):
        namespace.run("ethtool", "-K", interface, "tso", "off", "gso", "off", "gro", "off")
    origin.run("tc", "qdisc", "add", "dev", "eth0", "root", "tbf", "rate", LINK, "burst", "8kb", "latency", "40ms")


def compete(
    sender: netns.Namespace, receiver: netns.Namespace, to: str, seconds: float, *, bulk: int = 1, ef_dscp: int = 46,
    ef_source_port: int = 0, control: str = "cubic", until: Callable[[], object] | None = None,
) -> Competed:  # fmt: skip
    """Bulk flows that begin a quarter of a second after an EF flow, through the box; with `until` first, and EF once
    that is so."""
    came, done = Competed(), threading.Event()
    sink = receiver.call(lambda: _udp((to, EF_PORT)))
    listener = receiver.call(lambda: socket.create_server((to, BULK_PORT), backlog=64))
    ef = sender.call(lambda: _udp(("", ef_source_port)))
    ef.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, ef_dscp << 2)
    threads = [threading.Thread(target=_count, args=(came, sink, done))]
    threads += [threading.Thread(target=_drain, args=(came, listener)) for _ in range(bulk)]
    threads += [threading.Thread(target=_fill, args=(sender, to, control, done)) for _ in range(bulk)]
    for thread in threads[: 1 + bulk]:
        thread.start()
    is_filling = until is not None
    if until is not None:
        for thread in threads[1 + bulk :]:
            thread.start()
        while not until():
            time.sleep(0.02)
    began_s = next_s = time.monotonic()
    while time.monotonic() < began_s + seconds:
        ef.sendto(bytes(EF_BYTES), (to, EF_PORT))
        came.ef_sent += 1
        next_s += EF_EVERY_S
        if not is_filling and time.monotonic() > began_s + 0.25:
            is_filling = True
            for thread in threads[1 + bulk :]:
                thread.start()
        time.sleep(max(0.0, next_s - time.monotonic()))
    done.set()
    came.seconds = time.monotonic() - began_s
    for thread in threads:
        thread.join()
    for each in (sink, listener, ef):
        each.close()
    return came


def steady(sender: netns.Namespace, receiver: netns.Namespace, to: str, meanwhile: Callable[[], object]) -> Competed:
    """1,000 small packets a second, from before `meanwhile` begins until it has ended."""
    came, done, sent = Competed(), threading.Event(), threading.Event()
    sink = receiver.call(lambda: _udp((to, EF_PORT)))
    source = sender.call(lambda: _udp(("", 0)))

    def send() -> None:
        next_s = time.monotonic()
        while not sent.is_set():
            source.sendto(bytes(100), (to, EF_PORT))
            came.ef_sent += 1
            next_s += 0.001
            time.sleep(max(0.0, next_s - time.monotonic()))

    threads = [threading.Thread(target=_count, args=(came, sink, done)), threading.Thread(target=send)]
    for thread in threads:
        thread.start()
    meanwhile()
    sent.set()
    threads[1].join()
    done.set()
    threads[0].join()
    sink.close()
    source.close()
    return came


def _udp(address: tuple[str, int]) -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    netns.widen(made)
    made.bind(address)
    made.settimeout(0.3)
    return made


def _count(came: Competed, sink: socket.socket, done: threading.Event) -> None:
    while True:
        try:
            sink.recv(2048)
        except TimeoutError:
            if done.is_set():
                return
            continue
        came.ef_received += 1


def _fill(sender: netns.Namespace, to: str, control: str, done: threading.Event) -> None:
    """As most servers do it, whatever this machine's usual congestion control is."""

    def connected() -> socket.socket:
        made = socket.socket()
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, control.encode())
        made.settimeout(20)
        made.connect((to, BULK_PORT))
        return made

    with sender.call(connected) as flow:
        while not done.is_set():
            flow.sendall(bytes(65_536))


def _drain(came: Competed, listener: socket.socket) -> None:
    with listener.accept()[0] as flow:
        while block := flow.recv(65_536):
            came.bulk_bytes += len(block)
