"""How the running daemon starts, reloads and ends: signals, exit codes, one clear line for what is wrong."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from recording_origin import GOOD_BODY, RecordingOrigin
from running_box import HOST, PROBE, PROJECT, Response, RunningBox, merge, policy_for, read_all, read_response, wait_for

GOOD = f"GET /good/film HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode()
GOOD_POLICY = """\
version: 1
site: {name: lyon}
listen: {lan: {address: "127.0.0.1:0"}}
origins: {media: {from: ["http://192.0.2.1"], hosts: [h.example]}}
"""


@pytest.fixture(scope="module")
def origin() -> Iterator[RecordingOrigin]:
    with RecordingOrigin() as running:
        yield running


@pytest.fixture
def box(origin: RecordingOrigin, tmp_path: Path) -> Iterator[RunningBox]:
    with RunningBox(tmp_path, policy_for(origin.url)) as running:
        yield running


def free_ports(n: int) -> list[int]:
    """Ports below those that the kernel gives by itself."""
    found = []
    for port in range(20000 + os.getpid() % 9000, 32000):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            found.append(port)
        if len(found) == n:
            return found
    raise RuntimeError("no free ports")


def policy_of(box: RunningBox) -> tuple[int, str]:
    policy = box.status()["policy"]
    return policy["generation"], policy["digest"]


def is_refused(address: tuple[str, int]) -> bool:
    try:
        with socket.create_connection(address, timeout=5) as connected:
            connected.sendall(GOOD)
            return connected.recv(1) == b""
    except ConnectionError:
        return True


def start(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The daemon where it must end by itself."""
    return subprocess.run(
        [str(PROJECT / ".venv/bin/acceleratord"), *arguments],
        cwd=cwd, capture_output=True, text=True, timeout=20, check=False,
    )  # fmt: skip


# -- the end -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_idle_box_ends_at_once_and_leaves_nothing(number: signal.Signals, box: RunningBox) -> None:
    assert box.get("/good/film").status == 200
    with box.connect() as idle:
        idle.sendall(GOOD)
        assert read_response(idle)[0].status == 200
        box.signal(number)
        assert read_all(idle) == b""
    assert box.exit_code(seconds=3) == 0
    assert not (box.state / "control.sock").exists()
    assert "draining" in box.output


def test_sigterm_finishes_what_runs_and_takes_nothing_new(box: RunningBox, origin: RecordingOrigin) -> None:
    address, admin = box.address(), box.status()["admin"]
    admin_port = int(admin.rpartition(":")[2])
    with (
        box.connect() as running,
        box.connect() as probe,
        socket.create_connection(("127.0.0.1", admin_port)) as health,
    ):
        running.sendall(GOOD.replace(b"/good/film", b"/gate/drain/100000"))
        probe.sendall(f"GET {PROBE} HTTP/1.1\r\n".encode())  # the other half comes later
        wait_for(lambda: origin.targets("/gate/drain"))
        wait_for(lambda: box.control("top")["counters"]["connections"] == 2)
        box.signal(signal.SIGTERM)
        wait_for(lambda: "draining" in box.output)
        health.sendall(f"GET /healthz HTTP/1.1\r\nHost: {admin}\r\nConnection: close\r\n\r\n".encode())
        answer = Response(read_all(health))
        assert (answer.status, answer.body) == (503, b"draining\n")
        status = box.status()
        assert status["health"] == {"ok": False, "reasons": ["draining"]}
        assert [row["accepting"] for row in status["listeners"]] == [False]
        assert wait_for(lambda: is_refused(address), seconds=2)
        probe.sendall(f"Host: {HOST}\r\n\r\n".encode())
        answer = Response(read_all(probe))
        assert (answer.status, answer.fields["connection"]) == (503, "close")
        assert box.process.poll() is None
        origin.open_gate("drain")
        whole = Response(read_all(running))
        assert (whole.status, len(whole.body)) == (200, 100000)
    assert box.exit_code(seconds=3) == 0


def test_who_connected_before_sigterm_is_answered(box: RunningBox) -> None:
    """The request is in the kernel's queue when the signal comes: the process is stopped meanwhile."""
    assert box.get("/good/film").status == 200
    address = box.address()
    box.signal(signal.SIGSTOP)
    with contextlib.ExitStack() as held:
        viewers = [held.enter_context(socket.create_connection(address, timeout=10)) for _ in range(50)]
        for viewer in viewers:
            viewer.sendall(GOOD)
        box.signal(signal.SIGTERM)
        box.signal(signal.SIGCONT)
        for viewer in viewers:
            response = Response(read_all(viewer))
            assert (response.status, response.body) == (200, GOOD_BODY)
    assert box.exit_code(seconds=3) == 0


def test_drain_has_an_end(origin: RecordingOrigin, tmp_path: Path) -> None:
    with RunningBox(tmp_path, policy_for(origin.url, limits={"drain": "500ms"})) as box, box.connect() as running:
        running.sendall(GOOD.replace(b"/good/film", b"/gate/never/100000"))
        wait_for(lambda: origin.targets("/gate/never"))
        box.signal(signal.SIGTERM)
        began = time.monotonic()
        assert len(read_all(running)) < 100000
        assert 0.4 < time.monotonic() - began < 3
        assert box.exit_code(seconds=3) == 0


def test_a_second_sigterm_ends_at_once(box: RunningBox, origin: RecordingOrigin) -> None:
    with box.connect() as running:
        running.sendall(GOOD.replace(b"/good/film", b"/gate/second/100000"))
        wait_for(lambda: origin.targets("/gate/second"))
        box.signal(signal.SIGTERM)
        wait_for(lambda: "draining" in box.output)
        wait_for(lambda: is_refused_now(box))
        assert box.process.poll() is None
        began = time.monotonic()
        box.signal(signal.SIGTERM)
        assert box.exit_code(seconds=5) == 0
        assert time.monotonic() - began < 3
        assert len(read_all(running)) < 100000


def is_refused_now(box: RunningBox) -> bool:
    return is_refused(box.address())


def test_after_sigkill_the_same_state_directory_serves_again(box: RunningBox) -> None:
    assert box.get("/good/film").status == 200
    with box.connect() as viewer:
        box.kill()
        assert read_all(viewer) == b""
    assert (box.state / "control.sock").exists()
    began = time.monotonic()
    with box:
        assert box.get("/good/film").body == GOOD_BODY
        print(f"served again after {time.monotonic() - began:.2f} s")


# -- SIGHUP ------------------------------------------------------------------------------------------------------------


def test_a_reload_changes_listeners_and_keeps_connections(box: RunningBox, origin: RecordingOrigin) -> None:
    first, second, third = free_ports(3)

    def listen(**ports: int) -> dict[str, Any]:
        policy = deepcopy(box.policy)
        policy["listen"] = {name: {"address": f"127.0.0.1:{port}"} for name, port in ports.items()}
        return policy

    with box.connect() as old:
        old.sendall(GOOD.replace(b"/good/film", b"/gate/reload/100000"))
        wait_for(lambda: origin.targets("/gate/reload"))
        assert "generation 2" in box.reload(policy=listen(lan=first))  # moved
        assert box.get("/good/film").body == GOOD_BODY
        assert box.address() == ("127.0.0.1", first)
        assert "generation 3" in box.reload(policy=listen(lan=first, hall=second))  # added
        assert box.get("/good/film", listener="hall").body == GOOD_BODY
        assert "generation 4" in box.reload(policy=listen(lan=second, hall=first))  # changed places
        assert box.get("/good/film").body == box.get("/good/film", listener="hall").body == GOOD_BODY
        assert "generation 5" in box.reload(policy=listen(desks=second, hall=third))  # renamed, moved
        assert box.get("/good/film", listener="desks").body == box.get("/good/film", listener="hall").body == GOOD_BODY
        assert is_refused(("127.0.0.1", first))
        assert "generation 6" in box.reload(policy=listen(hall=third))  # removed
        assert is_refused(("127.0.0.1", second))
        assert [row["name"] for row in box.status()["listeners"]] == ["hall"]
        origin.open_gate("reload")
        assert len(read_response(old)[0].body) == 100000
        old.sendall(GOOD)  # the listener that it came by is long gone
        assert read_response(old)[0].body == GOOD_BODY
        assert "generation 7" in box.reload(policy=listen(hall=third, lan=first))  # back at an address that was left
        assert box.get("/good/film").body == GOOD_BODY


def test_a_reload_changes_origins(box: RunningBox) -> None:
    with RecordingOrigin() as other, box.connect() as viewer:
        viewer.sendall(GOOD)
        assert read_response(viewer)[0].status == 200
        digest = box.status()["policy"]["digest"]
        box.reload(
            {"origins": {"media": {"from": [other.url]}, "more": {"from": [other.url], "hosts": ["more.example"]}}}
        )
        assert box.status()["policy"]["digest"] != digest
        assert box.get_on(viewer, "/echo/changed").status == 200
        assert other.targets("/echo") == ["/echo/changed"]
        assert box.get_on(viewer, "/echo/more", host="more.example").status == 200
        policy = deepcopy(box.policy)
        del policy["origins"]["more"]
        box.reload(policy=policy)
        assert box.get_on(viewer, "/echo/more", host="more.example").status == 421
        assert box.get_on(viewer, "/good/film").body == GOOD_BODY


def test_reloads_under_load_fail_no_request(box: RunningBox) -> None:
    assert box.get("/good/film").status == 200
    address = box.address()
    stop = threading.Event()
    faults: list[str] = []
    counts = [0, 0]

    def keep_asking() -> None:
        rest = b""
        with socket.create_connection(address, timeout=10) as viewer:
            while not stop.is_set():
                viewer.sendall(GOOD)
                response, rest = read_response(viewer, rest)
                counts[0] += 1
                if response.body != GOOD_BODY:
                    faults.append(repr(response))

    def keep_connecting() -> None:
        while not stop.is_set():
            with socket.create_connection(address, timeout=10) as viewer:
                viewer.sendall(GOOD)
                counts[1] += 1
                if read_response(viewer)[0].body != GOOD_BODY:
                    faults.append("new connection")

    def watched(work: Any) -> None:
        try:
            work()
        except Exception as error:
            faults.append(repr(error))

    threads = [threading.Thread(target=watched, args=(work,)) for work in (keep_asking, keep_connecting)]
    for thread in threads:
        thread.start()
    for i in range(40):
        box.reload({"limits": {"drain": f"{30 + i % 2}s"}})
    stop.set()
    for thread in threads:
        thread.join()
    print(f"40 reloads, {counts[0]} requests on one connection, {counts[1]} new connections")
    assert faults == []
    assert box.status()["policy"]["generation"] == 41


def test_a_bad_policy_changes_nothing_and_all_problems_are_said(box: RunningBox) -> None:
    before = policy_of(box)
    bad = {**box.policy, "listne": {}, "workers": "many"}
    said = box.reload(policy=bad)
    lines = [line for line in said.splitlines() if "policy.yaml:" in line]
    assert len(lines) == 2
    numbered = box.policy_path.read_text().splitlines()
    for line in lines:
        row, column = (int(part) for part in line.partition("policy.yaml:")[2].split(":")[:2])
        assert ("listne" in numbered[row - 1] and "did you mean 'listen'" in line) or "workers" in numbered[row - 1]
        assert column >= 1
    assert "the running one stays" in said
    assert policy_of(box) == before
    assert box.get("/good/film").body == GOOD_BODY
    box.policy_path.unlink()
    n = len(box.output)
    box.signal(signal.SIGHUP)
    wait_for(lambda: "the running one stays" in box.output[n:])
    assert "policy.yaml" in box.output[n:]
    assert policy_of(box) == before


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"cache": {"memory": "128MiB"}}, "cache.memory"),
        ({"workers": 2}, "workers"),
        ({"admin": {"address": "127.0.0.1:1"}}, "admin"),
    ],
)
def test_what_needs_a_restart_is_refused_whole(change: dict[str, Any], word: str, box: RunningBox) -> None:
    before = box.status()
    said = box.reload(merge(deepcopy(change), {"listen": {"more": {"address": "127.0.0.1:0"}}}))
    assert word in said
    assert "restart" in said
    assert box.status()["listeners"] == before["listeners"]
    assert policy_of(box) == (before["policy"]["generation"], before["policy"]["digest"])


def test_a_listener_that_can_not_open_leaves_the_others(box: RunningBox) -> None:
    before = box.status()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = box.reload({"listen": {"a": {"address": "127.0.0.1:0"}, "b": {"address": f"127.0.0.1:{port}"}}})
    assert f"listen.b: 127.0.0.1:{port}: Address already in use" in said
    assert box.status()["listeners"] == before["listeners"]
    assert box.get("/good/film").body == GOOD_BODY


def test_bug_a_reload_while_draining_opened_the_listeners_again(box: RunningBox, origin: RecordingOrigin) -> None:
    with box.connect() as running:
        running.sendall(GOOD.replace(b"/good/film", b"/gate/again/1000"))
        wait_for(lambda: origin.targets("/gate/again"))
        box.signal(signal.SIGTERM)
        wait_for(lambda: "draining" in box.output)
        before, port = policy_of(box), free_ports(1)[0]
        box.write_policy({**box.policy, "listen": {"lan": {"address": f"127.0.0.1:{port}"}}})
        box.signal(signal.SIGHUP)
        wait_for(lambda: is_refused_now(box))  # by now it has heard of both signals
        assert is_refused(("127.0.0.1", port))
        assert policy_of(box) == before
        origin.open_gate("again")
        assert box.exit_code(seconds=5) == 0


def test_bug_sighup_before_the_start_was_over_ended_the_process(origin: RecordingOrigin, tmp_path: Path) -> None:
    box = RunningBox(tmp_path, policy_for(origin.url)).spawn()
    try:
        wait_for((box.state / "control.sock").exists, seconds=20)
        for _ in range(20):
            box.signal(signal.SIGHUP)
        wait_for(lambda: "serving viewers" in box.output)
        assert box.get("/good/film").body == GOOD_BODY
        box.signal(signal.SIGTERM)
        assert box.exit_code() == 0
    finally:
        box.kill()


# -- zones -------------------------------------------------------------------------------------------------------------


def test_zones_restrict_a_listener_and_outlive_it(origin: RecordingOrigin, tmp_path: Path) -> None:
    zones = {"desks": {"nets": ["127.0.0.8/30"]}, "screens": {"nets": ["127.0.0.9/32"]}}
    policy = policy_for(origin.url, zones=zones)
    policy["listen"]["desks"] = {"address": "127.0.0.1:0", "zones": ["desks"]}
    with RunningBox(tmp_path, policy) as box:
        before = box.stats()
        assert box.get("/good/film", listener="desks", source="127.0.0.10").status == 200
        refused = box.get("/good/film", listener="desks", source="127.0.0.1")
        assert (refused.status, refused.fields["connection"]) == (403, "close")
        assert refused.fields["cache-status"] == "test"
        assert box.get("/good/film", listener="desks", source="127.0.0.9").status == 403  # the more specific zone
        assert box.get("/good/film", source="127.0.0.9").status == 200
        assert box.get(PROBE, listener="desks", source="127.0.0.1").status == 200  # routers are in no zone
        assert box.grown(before)["refused_zone"] == 2
        with (
            box.connect("desks", source="127.0.0.1") as stranger,
            box.connect("desks", source="127.0.0.10") as member,
            box.connect("desks", source="127.0.0.10") as moved,
        ):
            wait_for(lambda: box.control("top")["counters"]["connections"] == 3)
            changed = deepcopy(box.policy)
            del changed["listen"]["desks"]
            box.reload(policy=changed)
            assert box.get_on(stranger, "/good/film").status == 403
            assert box.get_on(member, "/good/film").status == 200
            del changed["zones"]["desks"]
            box.reload(policy=changed)
            assert box.get_on(moved, "/good/film").status == 403


# -- the start ---------------------------------------------------------------------------------------------------------


def test_two_daemons_on_one_state_directory(box: RunningBox) -> None:
    second = start("--policy", str(box.policy_path), "--state-dir", str(box.state), cwd=box.work)
    assert second.returncode == 1
    assert second.stderr.count("\n") == 1
    assert "already running" in second.stderr
    assert box.get("/good/film").body == GOOD_BODY
    assert box.status()["health"]["ok"]


@pytest.mark.parametrize("section", ["listen", "admin"])
def test_a_port_in_use_is_one_clear_line(section: str, origin: RecordingOrigin, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        change = {"listen": {"lan": {"address": address}}} if section == "listen" else {"admin": {"address": address}}
        box = RunningBox(tmp_path, policy_for(origin.url, **change)).spawn()
        try:
            assert box.exit_code(seconds=20) == 1
        finally:
            box.kill()
    assert box.output.count("\n") == 1
    assert section in box.output
    assert address in box.output
    assert "in use" in box.output
    assert not (box.state / "control.sock").exists()


def test_a_bad_policy_is_reported_whole(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text(
        "version: 1\nsite: {name: lyon}\nlistne: {}\nworkers: many\norigins: {m: {hosts: []}}\n"
    )
    for extra in (["--state-dir", str(tmp_path / "state")], ["--check"]):
        ended = start("--policy", "bad.yaml", *extra, cwd=tmp_path)
        assert ended.returncode == 1
        assert "bad.yaml:3:1:" in ended.stderr
        assert "did you mean 'listen'" in ended.stderr
        assert "bad.yaml:4:10:" in ended.stderr
        assert "bad.yaml:5:" in ended.stderr
        assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--policy", "missing.yaml", "--state-dir", "state"], 1, "missing.yaml"),
        (["--policy", "missing.yaml", "--check"], 1, "missing.yaml"),
        (["--policy", "empty", "--check"], 1, "empty"),
        (["--policy", "good.yaml", "--state-dir", "good.yaml"], 1, "good.yaml"),
        (["--policy", "good.yaml", "--state-dir", "good.yaml/below"], 1, "good.yaml"),
        (["--policy", "good.yaml", "--state-dir", "l" * 150], 1, "107"),
        (["--policy", "good.yaml"], 2, "--state-dir"),
        (["--state-dir", "state"], 2, "--policy"),
        (["--polic", "good.yaml", "--frobnicate"], 2, "usage"),
        (["--policy", "good.yaml", "--check"], 0, ""),
        (["--version"], 0, ""),
        (["--help"], 0, ""),
    ],
)
def test_what_the_command_line_says(arguments: list[str], code: int, words: str, tmp_path: Path) -> None:
    (tmp_path / "good.yaml").write_text(GOOD_POLICY)
    (tmp_path / "empty").mkdir()
    ended = start(*arguments, cwd=tmp_path)
    assert ended.returncode == code, ended.stderr
    assert words in ended.stderr
    assert "Traceback" not in ended.stderr
    if code == 1:
        assert ended.stderr.count("\n") == 1, ended.stderr


def test_a_state_directory_where_others_may_write_is_refused(tmp_path: Path) -> None:
    (tmp_path / "good.yaml").write_text(GOOD_POLICY)
    state = tmp_path / "state"
    state.mkdir()
    (state / "something").touch()
    state.chmod(0o777)
    ended = start("--policy", "good.yaml", "--state-dir", "state", cwd=tmp_path)
    assert (ended.returncode, ended.stderr.count("\n")) == (1, 1)
    assert "others may write" in ended.stderr


def test_warnings_of_the_policy_are_said_and_do_not_stop_the_start(origin: RecordingOrigin, tmp_path: Path) -> None:
    policy = policy_for(origin.url, origins={"media": {"override_private": True}})
    with RunningBox(tmp_path, policy) as box:
        assert "warning: origins.media.override_private" in box.output
        assert box.get("/good/film").status == 200
