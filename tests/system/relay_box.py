"""The daemon with relays in a namespace, numbered packets into it and what comes out. No test itself."""

from __future__ import annotations

import itertools
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import netns
from running_box import RunningBox, merge


def policy_of(**sections: Any) -> dict[str, Any]:
    policy: dict[str, Any] = {
        "version": 1, "site": {"name": "test"}, "cache": {"memory": "64MiB"}, "workers": 1,
        "listen": {"lan": {"address": "127.0.0.1:0"}},
    }  # fmt: skip
    return merge(policy, sections)


class RelayBox(RunningBox):
    """The daemon in a namespace."""

    def __init__(self, namespace: netns.Namespace, work: Path, **relays: Any) -> None:
        super().__init__(work, policy_of(relays=relays))
        self.prefix = ["ip", "netns", "exec", namespace.name]

    def relay(self, name: str = "hall") -> dict[str, Any]:
        return self.control("relay show", name=name)

    def events(self, kind: str) -> list[dict[str, Any]]:
        return [each for each in self.control("events")["events"] if each["kind"] == kind]


class Sender:
    """Numbered RTP packets to one or several addresses, at a steady rate, until stopped."""

    def __init__(
        self,
        namespace: netns.Namespace,
        to: Sequence[tuple[str, int]],
        rate: float,
        *,
        interface: str = "eth0",
        ssrc: int = 7,
    ) -> None:
        is_v6 = ":" in to[0][0]
        self._socket = netns.sender(namespace, interface, is_v6=is_v6)
        self._to, self._rate, self._ssrc = to, rate, ssrc
        self._stop = threading.Event()
        self.n_sent = 0
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        begin_s = time.monotonic()
        while not self._stop.is_set():
            while self.n_sent < (time.monotonic() - begin_s) * self._rate:
                number = self.n_sent & 0xFFFF
                packet = struct.pack("!BBHIII", 0x80, 33, number, self.n_sent * 10, self._ssrc, self.n_sent) + bytes(
                    180
                )
                for address in self._to:
                    self._socket.sendto(packet, address)
                self.n_sent += 1
            self._stop.wait(0.001)

    def stop(self) -> int:
        if not self._stop.is_set():
            self._stop.set()
            self._thread.join()
            self._socket.close()
        return self.n_sent

    def __enter__(self) -> Sender:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class Receiver:
    """What a socket hears: the numbers, in order, and the SSRCs."""

    def __init__(self, made: socket.socket) -> None:
        self.socket = made
        self.datagrams: list[bytes] = []
        self._stop = threading.Event()
        made.settimeout(0.05)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self.datagrams.append(self.socket.recv(65_536))
            except TimeoutError:
                continue

    @property
    def numbers(self) -> list[int]:
        return [struct.unpack_from("!I", each, 12)[0] for each in self.datagrams]

    @property
    def sources(self) -> list[int]:
        return [struct.unpack_from("!I", each, 8)[0] for each in self.datagrams]

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self.socket.close()

    def __enter__(self) -> Receiver:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def unicast(namespace: netns.Namespace, address: str, port: int) -> socket.socket:
    def opened() -> socket.socket:
        made = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
        made.setsockopt(socket.SOL_SOCKET, 33, 4 << 20)  # SO_RCVBUFFORCE
        made.bind((address, port))
        return made

    return namespace.call(opened)


@contextmanager
def sending(*processes: subprocess.Popen[bytes]) -> Iterator[None]:
    """Senders that are killed at the end, whatever they still have to say."""
    try:
        yield
    finally:
        for each in processes:
            each.kill()
            each.communicate()


def groups(namespace: netns.Namespace, interface: str) -> str:
    """What the kernel tells routers that this host is a member of, on an interface."""
    return namespace.ip("maddr", "show", "dev", interface)


Places = tuple[netns.Namespace, netns.Namespace, list[netns.Namespace]]
HALL: dict[str, Any] = {"from": ["rtp://10.0.0.2@239.1.1.1:5004"], "interface": "wan"}


def is_whole(numbers: Sequence[int], at_least: int) -> bool:
    """Nothing lost, nothing twice, in order."""
    return len(numbers) >= at_least and list(numbers) == list(range(numbers[0], numbers[0] + len(numbers)))


def gaps(numbers: Sequence[int]) -> list[int]:
    return [b - a for a, b in itertools.pairwise(numbers) if b - a != 1]
