"""What the service manager hears: a real NOTIFY_SOCKET, real descriptors, a loop whose workers are played."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from accelerator.io.notify import CHECKS_EACH_TIMEOUT, Notifier, Watchdog, from_environment, stuck_workers


class NotifySocket:
    """The service manager's end of NOTIFY_SOCKET."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(address)
        self.socket.settimeout(10)

    def heard(self) -> tuple[dict[str, str], list[int]]:
        data, fds, _, _ = socket.recv_fds(self.socket, 4096, 4)
        return dict(line.split("=", 1) for line in data.decode().split("\n")), fds


@pytest.fixture(params=["path", "abstract"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "notify") if request.param == "path" else f"@{tmp_path}"


@pytest.fixture
def manager(address: str) -> Iterator[NotifySocket]:
    found = NotifySocket("\0" + address[1:] if address.startswith("@") else address)
    with found.socket:
        yield found


def test_states_are_told(manager: NotifySocket, address: str) -> None:
    notifier = from_environment({"NOTIFY_SOCKET": address}, 1)
    notifier.ready("serving\nMAINPID=1")
    assert manager.heard()[0] == {"READY": "1", "STATUS": "serving MAINPID=1"}
    notifier.reloading()
    assert manager.heard()[0].keys() == {"RELOADING", "MONOTONIC_USEC"}
    notifier.stopping("draining", 31.5)
    assert manager.heard()[0] == {"STOPPING": "1", "STATUS": "draining", "EXTEND_TIMEOUT_USEC": "31500000"}
    notifier.main_pid(4711)
    assert manager.heard()[0] == {"MAINPID": "4711", "WATCHDOG": "1"}


def test_a_stored_socket_is_the_same_socket(manager: NotifySocket, address: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        Notifier(address).store("lan", listening)
        fields, (fd,) = manager.heard()
        assert fields == {"FDSTORE": "1", "FDNAME": "lan"}
        with socket.socket(fileno=fd) as kept:
            assert kept.getsockname() == listening.getsockname()


def test_without_a_service_manager_nothing_happens() -> None:
    environ = {"HOME": "/"}
    notifier = from_environment(environ, 1)
    notifier.ready("serving")
    notifier.watchdog()
    assert not notifier.is_supervised
    assert notifier.environment() == {}


def test_a_service_manager_that_is_gone_ends_nobody(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    notifier = Notifier(str(tmp_path / "nobody"))
    notifier.ready("serving")
    notifier.watchdog()
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    ("environ", "timeout_s"),
    [
        ({"WATCHDOG_USEC": "5000000"}, 5.0),
        ({"WATCHDOG_USEC": "5000000", "WATCHDOG_PID": "77"}, 5.0),
        ({"WATCHDOG_USEC": "5000000", "WATCHDOG_PID": "78"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "+5"}, None),
        ({"WATCHDOG_USEC": "\u0665"}, None),
        ({}, None),
    ],
)
def test_the_watchdog_is_on_when_the_unit_says_so(environ: dict[str, str], timeout_s: float | None) -> None:
    notifier = from_environment({"NOTIFY_SOCKET": "@x", **environ}, 77)
    assert notifier.watchdog_s == timeout_s


def test_a_successor_in_the_unit_is_told_all_that_we_were(address: str) -> None:
    environ = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "5000000", "WATCHDOG_PID": "77"}
    notifier = from_environment(environ, 77)
    assert environ == {}
    successor = from_environment(notifier.environment(), 78)
    assert (successor.is_supervised, successor.watchdog_s) == (True, 5.0)


def test_who_is_stuck() -> None:
    assert stuck_workers([1, 2, 3], [2, 2, None]) == [1, 2]
    assert stuck_workers([], [0, 0]) == []


def test_the_watchdog_hears_of_progress_and_only_of_progress(manager: NotifySocket, address: str) -> None:
    """Workers that move only when they are woken, one of which stops for a while."""
    timeout_s = 0.2
    passes: list[int | None] = [0, 0]
    stuck: set[int] = set()
    poked = asyncio.Event()

    def poke() -> None:
        passes[:] = [n if i in stuck or n is None else n + 1 for i, n in enumerate(passes)]
        poked.set()

    async def run() -> None:
        loop = asyncio.get_running_loop()
        heard_of: asyncio.Queue[dict[str, str]] = asyncio.Queue()
        loop.add_reader(manager.socket, lambda: heard_of.put_nowait(manager.heard()[0]))
        next_heard = heard_of.get

        watchdog = Watchdog(Notifier(address, timeout_s), poke, lambda: tuple(passes), loop)
        watchdog.start()
        began = loop.time()
        for _ in range(CHECKS_EACH_TIMEOUT):
            assert await next_heard() == {"WATCHDOG": "1"}
        assert loop.time() - began > timeout_s * 0.9
        stuck.add(1)
        while (heard := await next_heard()) == {"WATCHDOG": "1"}:
            pass
        assert heard == {"STATUS": "no progress of edge worker 1"}
        # Checks go on, and say nothing: whatever comes now comes because the worker moves again.
        poked.clear()
        await poked.wait()
        assert heard_of.empty()
        stuck.clear()
        assert await next_heard() == {"WATCHDOG": "1"}
        passes[0] = None
        while (heard := await next_heard()) == {"WATCHDOG": "1"}:
            pass
        assert heard == {"STATUS": "no progress of edge worker 0"}
        watchdog.stop()

    asyncio.run(run())
