"""Says that an interface or an address has changed, within 20 ms: a netlink socket of which nothing is read but that
something came. What has changed is links.py's to ask, which relays do four times a second where the sandbox gives no
netlink (docs/decisions/0251).
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

# <linux/rtnetlink.h>: RTMGRP_LINK, RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR. Such messages come from the kernel alone.
_GROUPS = 0x1 | 0x10 | 0x100
# What comes together is told together; a machine whose interfaces never rest makes us look 50 times a second at most.
GATHER_S = 0.02
_BUFFER_BYTES = 32_768
_MESSAGE_BYTES = 8192


class LinkChanges:
    """`tell` is called on the loop on which this was started."""

    def __init__(self, tell: Callable[[], None]) -> None:
        self._tell = tell
        self._socket: socket.socket | None = None
        self._timer: asyncio.TimerHandle | None = None

    @property
    def is_followed(self) -> bool:
        return self._socket is not None

    def start(self) -> None:
        """Where there is no netlink, `tell` is never called."""
        made = None
        try:
            made = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
            made.bind((0, _GROUPS))
        except OSError:
            if made is not None:
                made.close()
            return
        self._socket = made
        self._wait()

    def close(self) -> None:
        if self._socket is None:
            return
        if self._timer is not None:
            self._timer.cancel()
        else:
            asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()
        self._socket = self._timer = None

    def _wait(self) -> None:
        assert self._socket is not None
        asyncio.get_running_loop().add_reader(self._socket, self._gather)

    def _gather(self) -> None:
        assert self._socket is not None
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._socket)
        self._timer = loop.call_later(GATHER_S, self._changed)

    def _changed(self) -> None:
        assert self._socket is not None
        self._timer = None
        self._empty()
        self._wait()
        self._tell()

    def _empty(self) -> None:
        """Before anybody looks, so that what comes meanwhile is told again."""
        assert self._socket is not None
        for _ in range(_BUFFER_BYTES // 32):  # more than fit, should they come as fast as they are read
            try:
                self._socket.recv(_MESSAGE_BYTES)
            except BlockingIOError:
                return
            except OSError:  # ENOBUFS: more came than the buffer holds
                continue
