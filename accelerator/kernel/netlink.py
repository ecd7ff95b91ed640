"""One rtnetlink socket: messages sent in batches, dumps read. Blocks. Knows no kind of object."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Iterable, Iterator
from itertools import islice

from accelerator.kernel import wire

_SOL_NETLINK, _NETLINK_CAP_ACK, _NETLINK_GET_STRICT_CHK = 270, 10, 12
NETFILTER, NFT_GROUPS = 12, 1 << 6  # NFNLGRP_NFTABLES is 7
# Routes IPv4 and IPv6, rules IPv4 and IPv6 (<linux/rtnetlink.h>, RTNLGRP_*), as bits; traffic control.
ROUTE_GROUPS, TC_GROUP = 1 << 6 | 1 << 10 | 1 << 7 | 1 << 18, 1 << 3
# So many messages are written at once; their answers fit into the socket's buffer.
BATCH = 200
_RECEIVE_BYTES = 1 << 17
_TIMEOUT_S = 5.0
# What is fine: gone already, there already.
_DONE_ALREADY = frozenset({errno.ENOENT, errno.ESRCH, errno.EEXIST})


def watch(protocol: int, groups: int) -> socket.socket:
    """Readable when something of these groups may have changed."""
    kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
    made = socket.socket(socket.AF_NETLINK, kind, protocol)
    made.bind((0, groups))
    return made


def drain(watching: socket.socket) -> None:
    """Takes what is there, unread: whoever is woken looks at everything, so that an event that was lost for want of
    memory (ENOBUFS) costs nothing."""
    while True:
        try:
            watching.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise


def _opened() -> socket.socket:
    made = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
    made.settimeout(_TIMEOUT_S)
    made.setsockopt(_SOL_NETLINK, _NETLINK_CAP_ACK, 1)
    # Without it the kernel ignores what a dump asks for, and gives everything.
    made.setsockopt(_SOL_NETLINK, _NETLINK_GET_STRICT_CHK, 1)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    made.bind((0, 0))
    return made


class Netlink:
    """One thread at a time. OSError: netlink failed as a whole; the next call begins with a socket of its own."""

    def __init__(self) -> None:
        self._socket = _opened()
        self._number = 0

    def close(self) -> None:
        self._socket.close()

    def send(self, messages: Iterable[bytes]) -> Iterator[int]:
        """The errors that the kernel answers with, less those that say it is done already; to be read to its end."""
        left = iter(messages)
        with self._whole():
            while batch := list(islice(left, BATCH)):
                yield from self._send(batch)

    @contextlib.contextmanager
    def _whole(self) -> Iterator[None]:
        """What comes after a failure (ENOBUFS, no answer in time) must not be taken for the answer to what is asked
        next."""
        try:
            yield
        except OSError:
            self._socket.close()
            self._socket = _opened()
            raise

    def _send(self, batch: list[bytes]) -> Iterator[int]:
        self._socket.send(b"".join(batch))
        left = len(batch)
        while left:
            for kind, _, body in wire.messages(self._socket.recv(_RECEIVE_BYTES)):
                if kind == wire.NLMSG_ERROR:
                    left -= 1
                    number = wire.read_error(body)
                    if number and number not in _DONE_ALREADY:
                        yield number

    def ask(self, request: wire.Request) -> bytes | None:
        """The body of the one answer; None: the kernel has none."""
        self._number += 1
        with self._whole():
            self._socket.send(request(self._number))
            while True:
                for kind, answered, body in wire.messages(self._socket.recv(_RECEIVE_BYTES)):
                    if answered == self._number:
                        return None if kind == wire.NLMSG_ERROR else body

    def dump(self, request: wire.Request) -> Iterator[bytes]:
        """Bodies of the answers, to be read to their end. OSError where the kernel refuses."""
        with self._whole():
            yield from self._dump(request)

    def _dump(self, request: wire.Request) -> Iterator[bytes]:
        self._number += 1
        self._socket.send(request(self._number))
        while True:
            for kind, answered, body in wire.messages(self._socket.recv(_RECEIVE_BYTES)):
                if answered != self._number:
                    continue
                if kind == wire.NLMSG_DONE:
                    return
                if kind == wire.NLMSG_ERROR:
                    fault = wire.read_error(body)
                    # A table that isn't there; a kernel with one table of multicast routes only.
                    if fault in (errno.ENOENT, errno.EAFNOSUPPORT, errno.EOPNOTSUPP):
                        return
                    raise OSError(fault, f"netlink: {os.strerror(fault)}")
                yield body
