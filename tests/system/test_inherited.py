"""Sockets from outside (LISTEN_FDS) and their adoption by address, by real processes and sockets."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from accelerator.io.inherited import Inherited, is_bound_to, passed_sockets


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock


def port_of(sock: socket.socket) -> int:
    return int(sock.getsockname()[1])


# Run in a process of its own: descriptors from 3 on belong to pytest here. Prints what passed_sockets() found.
SHOW = """
import os, socket, sys
from accelerator.io.inherited import passed_sockets
if sys.argv[1] == "own": os.environ["LISTEN_PID"] = str(os.getpid())
found = passed_sockets(os.environ, os.getpid())
left = [name for name in os.environ if name.startswith("LISTEN_")]
print([(name, sock.getsockname()[1], sock.get_inheritable()) for name, sock in found], left)
"""


def shown(sockets: list[socket.socket], pid: str = "own", **environ: str) -> str:
    """What a process says that is given `sockets` as systemd would."""

    def place() -> None:
        copies = [os.dup2(sock.fileno(), 100 + index) for index, sock in enumerate(sockets)]
        for index, fd in enumerate(copies):
            os.dup2(fd, 3 + index)

    command = [sys.executable, "-c", SHOW, pid]
    environment = {**os.environ, "LISTEN_PID": pid, **environ}
    done = subprocess.run(
        command, env=environment, preexec_fn=place, close_fds=False, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_sockets_come_with_their_names(listening: socket.socket) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        found = shown([listening, other], LISTEN_FDS="2", LISTEN_FDNAMES="lan:lan-tls")
        assert found == f"[('lan', {port_of(listening)}, False), ('lan-tls', {port_of(other)}, False)] []"


def test_a_socket_without_a_name_has_an_empty_one(listening: socket.socket) -> None:
    assert shown([listening], LISTEN_FDS="1") == f"[('', {port_of(listening)}, False)] []"


@pytest.mark.parametrize("count", ["", "0", "-1", "+1", " 1", "1_0", "\u0661", "x", "99999"])
def test_a_count_that_is_none_is_not_believed(listening: socket.socket, count: str) -> None:
    assert shown([listening], LISTEN_FDS=count) == "[] []"


def test_sockets_for_another_process_are_left_alone(listening: socket.socket) -> None:
    assert shown([listening], pid="1", LISTEN_FDS="1") == "[] []"


def test_a_descriptor_that_is_no_socket_is_passed_over() -> None:
    environ = {"LISTEN_FDS": "1", "LISTEN_PID": str(os.getpid())}
    fd = os.open("/dev/null", os.O_RDONLY)
    try:
        copied = os.dup(3) if _is_open(3) else None
        os.dup2(fd, 3)
        assert passed_sockets(environ, os.getpid()) == []
    finally:
        if copied is not None:
            os.dup2(copied, 3)
            os.close(copied)
        os.close(fd)


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def test_a_socket_is_adopted_where_the_policy_listens(listening: socket.socket) -> None:
    inherited = Inherited([("lan", listening)])
    adopted = inherited.adopt("lan", "127.0.0.1", port_of(listening))
    assert adopted is not None
    assert not adopted.getblocking()
    assert not adopted.get_inheritable()
    assert inherited.close() == []
    assert listening.fileno() == -1
    with adopted, socket.create_connection(adopted.getsockname()):
        adopted.accept()[0].close()


def test_a_start_that_fails_can_be_tried_again(listening: socket.socket) -> None:
    inherited = Inherited([("lan", listening)])
    for _ in range(2):
        adopted = inherited.adopt("lan", "127.0.0.1", port_of(listening))
        assert adopted is not None
        adopted.close()
    assert inherited.adopted_names == ["lan"]


def test_an_address_is_enough(listening: socket.socket) -> None:
    inherited = Inherited([("what-it-was", listening)])
    adopted = inherited.adopt("lan", "127.0.0.1", port_of(listening))
    assert adopted is not None
    adopted.close()
    assert inherited.adopted_names == ["what-it-was"]


def test_the_right_name_comes_first(listening: socket.socket) -> None:
    inherited = Inherited([("other", listening), ("lan", listening.dup())])
    adopted = inherited.adopt("lan", "127.0.0.1", port_of(listening))
    assert adopted is not None
    adopted.close()
    assert inherited.adopted_names == ["lan"]
    assert inherited.close() == []  # the other is a duplicate of what was adopted


def test_the_right_name_at_another_address_is_refused(listening: socket.socket) -> None:
    port = port_of(listening)
    inherited = Inherited([("lan", listening)])
    assert inherited.adopt("lan", "127.0.0.2", port) is None
    assert inherited.adopt("lan", "127.0.0.1", port + 1) is None
    assert inherited.adopt("lan", "::1", port) is None
    assert inherited.close() == [f"lan (127.0.0.1:{port})"]
    assert listening.fileno() == -1


def test_port_0_takes_the_name_at_its_word(listening: socket.socket) -> None:
    inherited = Inherited([("lan", listening)])
    assert inherited.adopt("wan", "127.0.0.1", 0) is None
    assert inherited.adopt("lan", "0.0.0.0", 0) is None
    adopted = inherited.adopt("lan", "127.0.0.1", 0)
    assert adopted is not None
    assert port_of(adopted) == port_of(listening)
    adopted.close()


def test_addresses_are_compared_as_addresses() -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as sock:
        assert is_bound_to(sock, "0:0:0:0:0:0:0:1", port_of(sock))


def test_what_is_no_listening_stream_socket_is_not_adopted(listening: socket.socket) -> None:
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams,
        socket.socket() as bound,
        socket.socket(socket.AF_UNIX) as local,
        socket.create_connection(listening.getsockname()) as connected,
    ):
        for sock in (datagrams, bound):
            sock.bind(("127.0.0.1", 0))
        for sock in (datagrams, bound, connected):
            assert Inherited([("lan", sock.dup())]).adopt("lan", "127.0.0.1", port_of(sock)) is None
        assert Inherited([("lan", local.dup())]).adopt("lan", "127.0.0.1", 0) is None


def test_a_socket_that_was_shut_down_is_not_adopted(listening: socket.socket) -> None:
    """A policy without the listener came in between: its port refuses, so the socket is of no use any more."""
    port = port_of(listening)
    listening.shutdown(socket.SHUT_RDWR)
    assert Inherited([("lan", listening)]).adopt("lan", "127.0.0.1", port) is None
