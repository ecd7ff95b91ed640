"""A portal behind the box, profile generic: log-ins by cookie, uploads, event streams, long polls, each one's own."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from portal import Portal
from running_box import HOST, RunningBox, policy_for, wait_for

N_IDLE = 1000


@pytest.fixture(scope="module")
def portal() -> Iterator[Portal]:
    with Portal() as running:
        yield running


@pytest.fixture(scope="module")
def box(portal: Portal, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningBox]:
    policy = policy_for(portal.url, limits={"send_rate": "0bit/s"})
    policy["origins"]["media"]["profile"] = "generic"
    with RunningBox(tmp_path_factory.mktemp("box"), policy) as running:
        yield running


class Browser:
    """curl with a cookie jar of its own."""

    def __init__(self, box: RunningBox, work: Path, user: str) -> None:
        self.box, self.jar, self.user = box, work / f"{user}.jar", user

    def __call__(self, target: str, *options: str) -> str:
        address, port = self.box.address()
        command = ["curl", "-sS", "--max-time", "20", "--resolve", f"{HOST}:{port}:{address}"]
        command += ["-b", str(self.jar), "-c", str(self.jar), *options, f"http://{HOST}:{port}{target}"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    def log_in(self) -> str:
        secret = {"ana": "secret-a", "bob": "secret-b"}[self.user]
        return self("/login", "-d", f"user={self.user}&password={secret}", "-L", "--post302")


# -- log-ins -----------------------------------------------------------------------------------------------------------


def test_two_viewers_at_once_see_only_their_own(box: RunningBox, portal: Portal, tmp_path: Path) -> None:
    ana, bob = Browser(box, tmp_path, "ana"), Browser(box, tmp_path, "bob")
    for each in (ana, bob):
        assert "<form" in each("/login")
        assert "form" in each("/home", "-L"), "not logged in: sent to the form"
    for each in (ana, bob):
        answer = each("/login", "-d", f"user={each.user}&password=secret-{each.user[0]}", "-i")
        assert answer.startswith("HTTP/1.1 302 ")
        assert "Location: /home?from=login\r\n" in answer.replace("\n", "\r\n").replace("\r\r", "\r")
        assert answer.count("Set-Cookie:") == 2
    for _ in range(3):
        for each in (ana, bob):
            assert each("/home").startswith(f"welcome {each.user}:")
    file = tmp_path / "file"
    file.write_bytes(os.urandom(100_000))
    assert ana("/upload", "-F", f"file=@{file}", "-L").startswith("welcome ana: ")
    assert bob("/home") == "welcome bob: "
    assert len(portal.uploads["ana"]) == 1
    assert "wrong user" in bob("/login", "-d", "user=bob&password=no")
    ana("/logout", "-L")
    assert "form" in ana("/home", "-L"), portal.field("/home", "cookie")
    assert bob("/home") == "welcome bob: "
    assert box.stats()["objects"] == 0, "nothing of it was stored"


def test_many_viewers_of_one_page_at_once(box: RunningBox, tmp_path: Path) -> None:
    """They wait for one another at most once, and nobody gets another's page."""
    users = [Browser(box, tmp_path, user) for user in ("ana", "bob")]
    for each in users:
        each.log_in()
    address, port = box.address()
    running = []
    for n in range(40):
        each = users[n % 2]
        command = ["curl", "-sS", "--max-time", "20", "--resolve", f"{HOST}:{port}:{address}", "-b", str(each.jar)]
        process = subprocess.Popen([*command, f"http://{HOST}:{port}/home"], stdout=subprocess.PIPE, text=True)
        running.append((each.user, process))
    for user, process in running:
        assert process.communicate()[0].startswith(f"welcome {user}:")


# -- event streams -----------------------------------------------------------------------------------------------------


def listen(box: RunningBox, target: str) -> socket.socket:
    viewer = box.connect()
    viewer.sendall(f"GET {target} HTTP/1.1\r\nHost: {HOST}\r\nAccept: text/event-stream\r\n\r\n".encode())
    return viewer


def until(viewer: socket.socket, end: bytes) -> bytes:
    seen = b""
    while not seen.endswith(end):
        piece = viewer.recv(65536)
        assert piece, seen
        seen += piece
    return seen


@pytest.mark.parametrize("form", ["chunked", "close"])
def test_each_event_comes_when_it_is_sent(box: RunningBox, portal: Portal, form: str) -> None:
    """The origin sends the next one only after the viewer has the one before, whole, chunk's end and all."""
    name = f"news-{form}"
    viewer = listen(box, f"/events/{name}/{form}")
    assert b"Content-Type: text/event-stream" in until(viewer, b"\r\n\r\n")
    for n in range(20):
        portal.open_gate(name)
        event = f"id: {n}\ndata: event {n} of {name}\n\n".encode()
        assert until(viewer, event + b"\r\n") == b"%x\r\n%b\r\n" % (len(event), event)
    portal.open_gate(f"{name}-end")
    if form == "close":
        viewer.close()
        wait_for(lambda: name not in portal.listeners)
    else:
        assert until(viewer, b"0\r\n\r\n") == b"0\r\n\r\n", "an origin that ends, ends the viewer's"
        viewer.close()


def test_an_event_that_overtakes_its_listeners_want_cuts_nobody(box: RunningBox, portal: Portal) -> None:
    """The worker asked for bytes that were there when the control plane looked, and the stream was broken off."""
    for turn in range(40):
        viewer = listen(box, f"/events/race{turn}/close")
        for n in range(5):
            portal.open_gate(f"race{turn}")
            until(viewer, f"event {n} of race{turn}\n\n\r\n".encode())
        viewer.close()


def test_each_listener_has_a_stream_of_his_own(box: RunningBox, portal: Portal) -> None:
    viewers = [listen(box, "/events/own") for _ in range(5)]
    for viewer in viewers:
        until(viewer, b"\r\n\r\n")
    assert portal.listeners.count("own") == 5
    for viewer in viewers:
        viewer.close()
    wait_for(lambda: "own" not in portal.listeners)


def test_a_listener_that_leaves_ends_the_origins_stream_at_once(box: RunningBox, portal: Portal) -> None:
    """Without another event: nothing is written that could show that he is gone."""
    viewer = listen(box, "/events/left")
    until(viewer, b"\r\n\r\n")
    assert "left" in portal.listeners
    viewer.close()
    wait_for(lambda: "left" not in portal.listeners, seconds=2)


def test_a_thousand_idle_listeners_take_little_and_stop_nobody(
    portal: Portal, tmp_path: Path, record_property: pytest.RecordProperty
) -> None:
    """Far more than the origin's 64 connections, and pages are still served beside them."""
    policy = policy_for(portal.url)
    policy["origins"]["media"]["profile"] = "generic"
    with RunningBox(tmp_path, policy) as box:
        statm = Path(f"/proc/{box.process.pid}/statm")

        def memory() -> tuple[int, int]:
            return box.stats()["memory_bytes"], int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

        warm = listen(box, "/events/idle")
        until(warm, b"\r\n\r\n")
        before = memory()
        viewers = []
        for _ in range(N_IDLE):
            viewers.append(listen(box, "/events/idle"))
            until(viewers[-1], b"\r\n\r\n")
        counted, resident = ((now - then) / N_IDLE for now, then in zip(memory(), before, strict=True))
        print(f"an idle listener: {counted:.0f} bytes of the memory limit, {resident:.0f} resident")
        assert portal.listeners.count("idle") == N_IDLE + 1
        assert box.get("/echo", method="POST").status == 200
        assert counted < 8192
        assert resident < 40_000
        assert box.stats()["streams"] == N_IDLE + 1
        for viewer in (warm, *viewers):
            viewer.close()
        wait_for(lambda: "idle" not in portal.listeners, seconds=30)


def test_a_stream_that_has_said_much_gives_its_memory_back(box: RunningBox, portal: Portal) -> None:
    viewer = listen(box, "/events/much")
    until(viewer, b"\r\n\r\n")
    before = box.stats()["memory_bytes"]
    for n in range(300):
        portal.open_gate("much")
        until(viewer, f"event {n} of much\n\n\r\n".encode())
    wait_for(lambda: box.stats()["memory_bytes"] <= before + 2048)
    viewer.close()
    wait_for(lambda: "much" not in portal.listeners)


# -- long polls --------------------------------------------------------------------------------------------------------


def poll(box: RunningBox, target: str, method: str = "GET") -> socket.socket:
    viewer = box.connect()
    viewer.sendall(f"{method} {target} HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n".encode())
    return viewer


def test_long_polls_don_t_use_the_connections_up(box: RunningBox, portal: Portal) -> None:
    """Eighty wait; after a few seconds they leave the 64 connections, and a page is served all the same."""
    viewers = [poll(box, f"/poll/wait{n}") for n in range(80)]
    wait_for(lambda: sum(name.startswith("wait") for name in portal.listeners) == 80, seconds=30)
    assert box.get("/echo", method="POST").status == 200
    for n in range(80):
        portal.open_gate(f"wait{n}")
    for viewer in viewers:
        assert b"news" in until(viewer, b"news")
        viewer.close()


def test_a_long_poll_keeps_nobody_waiting_for_its_answer(box: RunningBox, portal: Portal) -> None:
    """The same URL for everybody: who came later is not answered after who came first, but asks for himself."""
    viewers = [poll(box, "/poll/same") for _ in range(3)]
    wait_for(lambda: portal.listeners.count("same") == 3, seconds=30)
    portal.open_gate("same")
    for viewer in viewers:
        until(viewer, b"news")
        viewer.close()
