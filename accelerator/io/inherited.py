"""Listening sockets that were open before us: passed by the service manager (sd_listen_fds(3)), or by the acceleratord
that we take over from. Each is adopted only where the policy says that we listen; nothing is opened here."""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import socket
from collections.abc import Iterable, MutableMapping

log = logging.getLogger("accelerator")

FIRST_FD = 3  # SD_LISTEN_FDS_START
# systemd passes at most this many of one service's socket units and store; more is no number that we were given.
PASSED_MAX = 1024

Named = tuple[str, socket.socket]


def passed_sockets(environ: MutableMapping[str, str], pid: int) -> list[Named]:
    """What the service manager passed to process `pid`, with its names ("" without one); owned by the caller.

    Takes the variables out of `environ`. Descriptors that are no sockets are closed.
    """
    count, for_pid = environ.pop("LISTEN_FDS", ""), environ.pop("LISTEN_PID", "")
    names = environ.pop("LISTEN_FDNAMES", "").split(":")
    # int() takes more than a number: "+3", " 3", "1_0".
    if for_pid != str(pid) or not (count.isascii() and count.isdigit() and len(count) < 5):
        return []
    found: list[Named] = []
    for index in range(min(int(count), PASSED_MAX)):
        name = names[index] if index < len(names) else ""
        try:
            sock = socket.socket(fileno=FIRST_FD + index)
        except OSError as fault:
            log.warning("descriptor %d (%s) that was passed is no socket: %s", FIRST_FD + index, name, fault.strerror)
            continue
        sock.set_inheritable(False)
        found.append((name, sock))
    return found


class Inherited:
    """Sockets that wait for a listener of the policy, until close(). Each adoption is a duplicate, so that a start that
    fails can be tried again with another policy.
    """

    def __init__(self, passed: Iterable[Named] = ()) -> None:
        self._waiting = list(passed)
        self._adopted: dict[str, str] = {}

    def add(self, passed: Iterable[Named]) -> None:
        self._waiting += passed

    def adopt(self, name: str, host: str, port: int) -> socket.socket | None:
        """A listening, non-blocking stream socket of this very address, the caller's; None: there is none.

        One of this name comes before one that has only the address. Port 0 is any port, so there the name has to be
        right too.
        """
        fitting = [row for row in self._waiting if is_bound_to(row[1], host, port) and (port != 0 or row[0] == name)]
        for passed_name, sock in sorted(fitting, key=lambda row: row[0] != name):
            if _is_listening(sock):
                adopted = sock.dup()
                adopted.setblocking(False)
                self._adopted[describe(sock)] = passed_name
                return adopted
        return None

    @property
    def adopted_names(self) -> list[str]:
        """The names, as they were passed, of what was adopted."""
        return list(self._adopted.values())

    def close(self) -> list[str]:
        """Ends it all; what nobody adopted, for the log. A duplicate of what was adopted is no news: a socket unit and
        the store may both pass one.
        """
        left = []
        for name, sock in self._waiting:
            if describe(sock) not in self._adopted:
                left.append(f"{name or 'without a name'} ({describe(sock)})")
            sock.close()
        self._waiting = []
        return left


def is_bound_to(sock: socket.socket, host: str, port: int) -> bool:
    """Whether it is a stream socket of that literal address; port 0: of any port."""
    if sock.family not in (socket.AF_INET, socket.AF_INET6) or sock.type != socket.SOCK_STREAM:
        return False
    try:
        bound = sock.getsockname()
        # Textual forms differ ("::", "0:0::0"), a scope's name too.
        same_host = ipaddress.ip_address(bound[0].partition("%")[0]) == ipaddress.ip_address(host.partition("%")[0])
    except (OSError, ValueError):
        return False
    return same_host and bound[1] != 0 and port in (0, bound[1])


def describe(sock: socket.socket) -> str:
    """Its address, for a log line."""
    with contextlib.suppress(OSError):
        bound = sock.getsockname()
        if isinstance(bound, tuple):
            return f"[{bound[0]}]:{bound[1]}" if ":" in bound[0] else f"{bound[0]}:{bound[1]}"
        return str(bound) or "no address"
    return "closed"


def _is_listening(sock: socket.socket) -> bool:
    """Linux says so itself. A socket that is bound but was shut down listens no more: then its port is free to reopen,
    by us or, below 1024, by the service manager only."""
    try:
        return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    except OSError:
        return False
