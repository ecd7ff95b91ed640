"""Numbered packets to a group, what a player has of them, and the groups that tests use. No assertion stands here."""

from __future__ import annotations

import socket
import threading
import time

import netns
import pytest

PORT = 5004
FAMILIES = pytest.mark.parametrize("is_v6", [False, True], ids=["ipv4", "ipv6"])
SOURCE = {False: "10.0.0.2", True: "fd00::2"}
ASM = {False: "239.1.2.3", True: "ff15::1:3"}
SSM = {False: "232.1.2.3", True: "ff35::8000:1"}


class Stream:
    """Numbered packets at a steady rate, until stopped."""

    def __init__(self, namespace: netns.Namespace, group: str, rate: float) -> None:
        self._socket = netns.sender(namespace, "eth0", is_v6=":" in group)
        self._to = (group, PORT)
        self._rate = rate
        self._stop = threading.Event()
        self.n_sent = 0
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        begin_s = time.monotonic()
        while not self._stop.is_set():
            while self.n_sent < (time.monotonic() - begin_s) * self._rate:
                self._socket.sendto(self.n_sent.to_bytes(4), self._to)
                self.n_sent += 1
            self._stop.wait(0.0005)

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()
        self._socket.close()


def listener(namespace: netns.Namespace, address: str) -> socket.socket:
    """What receives packets that are sent to one of the namespace's own addresses."""

    def opened() -> socket.socket:
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        netns.widen(made)
        made.bind((address, PORT))
        return made

    return namespace.call(opened)


# A host behind lan0 that only a route of netd's leads to: rows of a desired state.
FAR_HOST = "10.99.0.5"
TO_FAR_HOST: dict[str, object] = {
    "routes": [{"table": 86_001, "destination": "10.99.0.0/24", "gateway": "10.1.0.2", "interface": "lan0"}],
    "rules": [{"priority": 8601, "table": 86_001, "interface_in": "wan"}],
}


class Count:
    """The numbers that a player has received."""

    def __init__(self, joined: socket.socket) -> None:
        self._socket = joined
        self.numbers: list[int] = []
        self._thread = threading.Thread(target=self._run)
        self._socket.settimeout(0.5)
        self._is_over = False
        self._thread.start()

    def _run(self) -> None:
        while True:
            try:
                self.numbers.append(int.from_bytes(self._socket.recv(100)))
            except TimeoutError:
                if self._is_over:
                    return

    def stop(self) -> list[int]:
        self._is_over = True
        self._thread.join()
        self._socket.close()
        return self.numbers
