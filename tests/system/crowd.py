"""A crowd of bad viewers in a process of its own, so that the driver of the good ones has an interpreter to itself.

    crowd.py HOST PORT slow-heads N    N connections that send a byte of their head every second, and come back when cut
    crowd.py HOST PORT slow-readers N  N viewers of one large object who take 2 kB of it a second

Prints "ready" when all are connected, and ends with its standard input. No test lives here.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys

AT_ONCE = 200
EVERY_S = 1.0


class Bad:
    """One bad viewer: `step` is called each second."""

    def __init__(self, address: tuple[str, int], target: str | None) -> None:
        self._address = address
        self._target = target
        self.socket: socket.socket | None = None

    async def connect(self, loop: asyncio.AbstractEventLoop) -> None:
        made = socket.socket()
        made.setblocking(False)
        if self._target:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        try:
            await loop.sock_connect(made, self._address)
            made.send((f"GET {self._target} HTTP/1.1\r\nHost: video.example\r\n\r\n" if self._target else "G").encode())
        except OSError:
            made.close()
            return
        self.socket = made

    def step(self) -> bool:
        """False: it was cut off."""
        assert self.socket is not None
        try:
            if self._target is None:
                self.socket.send(b"E")
            if not self.socket.recv(2000):
                raise ConnectionResetError
        except BlockingIOError:
            return True
        except OSError:
            self.socket.close()
            self.socket = None
            return False
        return True


async def main(host: str, port: int, kind: str, n: int) -> None:
    loop = asyncio.get_running_loop()
    target = "/bytes/60000000" if kind == "slow-readers" else None
    crowd = [Bad((host, port), target) for _ in range(n)]
    for begin in range(0, n, AT_ONCE):
        await asyncio.gather(*(bad.connect(loop) for bad in crowd[begin : begin + AT_ONCE]))
    print("ready", flush=True)
    while True:
        for begin in range(0, n, AT_ONCE):
            for bad in crowd[begin : begin + AT_ONCE]:
                if bad.socket is None or not bad.step():
                    await bad.connect(loop)
            await asyncio.sleep(EVERY_S * AT_ONCE / n)


async def until_told(host: str, port: int, kind: str, n: int) -> None:
    work = asyncio.ensure_future(main(host, port, kind, n))
    await asyncio.to_thread(sys.stdin.read)
    work.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await work


if __name__ == "__main__":
    asyncio.run(until_told(sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])))
