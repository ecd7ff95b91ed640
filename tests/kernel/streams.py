"""Numbered packets to a group, and what a player has of them. No assertion stands here."""

from __future__ import annotations

import socket
import threading
import time

import netns

PORT = 5004


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
