"""Policies on the running daemon: compared, applied, refused, taken back, withdrawn, started on when others fail."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml
from recording_origin import RecordingOrigin
from running_box import HOST, PROJECT, RunningBox, merge, policy_for, wait_for
from steady_load import SteadyLoad

OTHER_HOST = "other.example"
N_FAST = 50
N_SLOW = 1000


@pytest.fixture(scope="module")
def origin() -> Iterator[RecordingOrigin]:
    with RecordingOrigin() as running:
        yield running


@pytest.fixture
def box(origin: RecordingOrigin, tmp_path: Path) -> Iterator[RunningBox]:
    with RunningBox(tmp_path, policy_for(origin.url)) as running:
        yield running


@pytest.fixture
def nobody() -> Iterator[str]:
    """The URL of an address where nobody listens."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{reserved.getsockname()[1]}"


def written(box: RunningBox, name: str, changes: dict[str, Any]) -> Path:
    path = box.work / name
    path.write_text(yaml.safe_dump(merge(deepcopy(box.policy), changes), sort_keys=False))
    return path


def apply(box: RunningBox, path: Path, *words: str) -> dict[str, Any]:
    done = box.accelctl("--json", "policy", "apply", str(path), *words)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def events(box: RunningBox, kind: str = "") -> list[dict[str, Any]]:
    return [event for event in box.control("events")["events"] if kind in ("", event["kind"])]


def outcomes(box: RunningBox) -> list[tuple[int, str, str]]:
    """Oldest first."""
    rows = box.control("policy history")["entries"]
    return [(row["number"], row["by"], row["outcome"]) for row in reversed(rows)]


# -- by hand -----------------------------------------------------------------------------------------------------------


def test_diff_then_apply_then_rollback(box: RunningBox) -> None:
    path = written(box, "new.yaml", {"origins": {"media": {"hosts": [OTHER_HOST]}}})
    diff = box.accelctl("policy", "diff", str(path))
    assert diff.returncode == 0
    assert f"- origins.media.hosts: {HOST}\n+ origins.media.hosts: {OTHER_HOST}\n" in diff.stdout
    assert "leaves 1 of 1 routes" in diff.stdout
    assert box.get("/good/a").status == 200

    applied = apply(box, path)
    assert applied["generation"] == 2
    assert box.get("/good/a").status == 421
    assert box.get("/good/a", host=OTHER_HOST).status == 200
    assert box.accelctl("policy", "diff", str(path)).stdout == "nothing changes\n"

    back = json.loads(box.accelctl("--json", "policy", "rollback").stdout)
    assert (back["generation"], back["restored"]) == (3, 1)
    assert box.get("/good/a").status == 200
    assert outcomes(box) == [(1, "start", "applied"), (2, "apply", "applied"), (3, "rollback", "applied")]
    assert box.accelctl("policy", "rollback").returncode == 1  # further back there is nothing
    forward = json.loads(box.accelctl("--json", "policy", "rollback", "--to", "2").stdout)
    assert forward["restored"] == 2
    assert box.get("/good/a", host=OTHER_HOST).status == 200
    assert [event["kind"] for event in events(box) if event["kind"].startswith("policy")] == [
        "policy-applied", "policy-rolled-back",
    ]  # fmt: skip
    assert "policy apply" in box.output
    assert "audit: uid" in box.output


def test_apply_tells_each_problem_with_its_place_and_changes_nothing(box: RunningBox) -> None:
    path = box.work / "bad.yaml"
    path.write_text("version: 1\nsite: {name: x}\norigin: {}\nlisten: {lan: {address: here}}\n")
    done = box.accelctl("policy", "apply", str(path))
    assert done.returncode == 1
    assert f"{path}:3:1: unknown key 'origin' (did you mean 'origins'?)" in done.stderr
    assert f"{path}:4:" in done.stderr
    assert box.status()["policy"]["generation"] == 1
    # Sent as it is by another client, it is refused by the daemon too.
    with pytest.raises(RuntimeError, match="unknown key"):
        box.control("policy apply", path="x", folder="/", files=[["x.yaml", path.read_text()]], force=False)
    assert events(box, "policy-refused")
    assert outcomes(box)[-1] == (2, "apply", "refused")


def test_an_origin_that_leaves_finishes_what_it_sends(origin: RecordingOrigin, box: RunningBox) -> None:
    """It used to break off every transfer of an origin that the new policy no longer has."""
    request = f"GET /gate/leaving/200000 HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n".encode()
    with box.connect() as viewer:
        viewer.sendall(request)
        received = len(viewer.recv(1000))
        changes = {"origins": {"renamed": box.policy["origins"]["media"]}}
        path = written(box, "new.yaml", changes)
        path.write_text(yaml.safe_dump({**box.policy, **changes}, sort_keys=False))
        assert [change["kind"] for change in apply(box, path)["changes"]] == ["removed", "added"]
        assert box.get("/good/a").status == 200
        origin.open_gate("leaving")
        while piece := viewer.recv(1 << 18):
            received += len(piece)
    assert received > 200_000


def test_what_needs_a_restart_is_refused_and_said_by_diff(box: RunningBox) -> None:
    path = written(box, "new.yaml", {"cache": {"memory": "128MiB"}, "workers": 2})
    assert json.loads(box.accelctl("--json", "policy", "diff", str(path)).stdout)["needs_restart"] is True
    done = box.accelctl("policy", "apply", str(path))
    assert done.returncode == 1
    assert "restart" in done.stderr
    assert box.status()["policy"]["generation"] == 1


def test_a_directory_and_the_files_beside_it_are_what_the_operator_sees(box: RunningBox) -> None:
    folder = box.work / "d"
    folder.mkdir()
    (folder / "10-dsi.yaml").write_text(yaml.safe_dump(box.policy, sort_keys=False))
    (folder / "50-site.yaml").write_text(f"origins: {{media: {{hosts: [{OTHER_HOST}]}}}}\n")
    assert apply(box, folder)["generation"] == 2
    assert box.get("/good/a", host=OTHER_HOST).status == 200


def test_a_policy_of_a_megabyte_is_applied_and_more_is_refused(box: RunningBox) -> None:
    path = written(box, "large.yaml", {"limits": {"drain": "5s"}})
    text = path.read_text()
    comment = "# " + "é" * 60 + "\n"
    path.write_text(text + comment * ((2**20 - len(text)) // len(comment.encode())))
    assert path.stat().st_size > 2**20 - 200
    assert apply(box, path)["generation"] == 2
    path.write_text(path.read_text() + comment * 2)
    done = box.accelctl("policy", "apply", str(path))
    assert done.returncode == 1
    assert "larger than 1 MiB" in done.stderr


@pytest.mark.parametrize(
    "request_line",
    [
        b'{"command": "status", "args": {}' + b" " * 70_000,
        b'{"args": {}, "command": "policy apply"' + b" " * 70_000,
        b'{"command": "policy apply", "args": {' + b" " * 5_000_000,
    ],
)
def test_only_apply_may_be_larger_than_usual_and_has_a_limit_too(box: RunningBox, request_line: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as peer:
        peer.settimeout(10)
        peer.connect(str(box.state / "control.sock"))
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            peer.sendall(request_line)
        with contextlib.suppress(ConnectionResetError):
            assert b'"oversized"' in peer.makefile("rb").readline()
    wait_for(lambda: box.metrics()["accelerator_control_refused_oversized_total"] == 1)


def test_applied_at_once_from_many_sides_one_comes_after_another(box: RunningBox) -> None:
    paths = [written(box, f"{n}.yaml", {"limits": {"drain": f"{n}s"}}) for n in range(1, 9)]
    threads = [threading.Thread(target=apply, args=(box, path)) for path in paths]
    for thread in threads:
        thread.start()
        box.signal(signal.SIGHUP)
    for thread in threads:
        thread.join()
    wait_for(lambda: box.status()["policy"]["generation"] >= 1 + len(paths))
    assert box.get("/good/a").status == 200
    history = box.control("policy history")
    running = next(row for row in history["entries"] if row["number"] == history["running"])
    assert running["digest"] == box.status()["policy"]["digest"]


# -- by itself ---------------------------------------------------------------------------------------------------------


def test_a_policy_that_hurts_is_withdrawn_and_its_like_refused_until_forced(box: RunningBox, nobody: str) -> None:
    """reliability.md fault 41: a policy that points to a dead origin."""
    path = written(box, "dead.yaml", {"origins": {"media": {"from": [nobody]}}})
    with SteadyLoad(box.address(), 50, HOST, misses=2):
        wait_for(lambda: box.stats()["upstream_requests"] > 60)
        apply(box, path)
        wait_for(lambda: events(box, "policy-withdrawn"), seconds=60, what="the policy is withdrawn")
    status = box.status()
    assert status["health"]["ok"]
    assert "withdrawn" in status["warnings"][0]
    assert "warning: policy 2 was withdrawn" in box.accelctl("status").stdout
    assert box.metrics()["accelerator_policy_is_fallback"] == 1
    assert box.get("/good/new").status == 200
    assert outcomes(box) == [(1, "start", "applied"), (2, "apply", "withdrawn"), (3, "withdrawal", "applied")]
    told = events(box, "policy-withdrawn")[0]
    assert "of 2" in told["why"] or "requests to it fail" in told["why"]
    assert "--force" in told["advice"]

    # Nor by SIGHUP, nor with another comment, nor by the next process.
    refused = box.accelctl("policy", "apply", str(path))
    assert refused.returncode == 1
    assert "was withdrawn as policy 2" in refused.stderr
    dead = yaml.safe_load(path.read_text())
    assert "refused" in box.reload(policy=dead)
    path.write_text("# synced again\n" + path.read_text())
    assert box.accelctl("policy", "apply", str(path)).returncode == 1
    good = box.policy
    box.process.terminate()
    box.exit_code()
    box.policy = dead
    with box:
        assert "withdrawn" in box.status()["warnings"][0]
        assert box.get("/good/newer").status == 200
        assert apply(box, path, "--force")["changes"]
        assert box.get("/good/newest").status in (502, 503)
        box.policy = good


def test_a_wan_that_is_down_is_no_policys_fault(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        wan = contextlib.ExitStack()
        stack.callback(wan.close)
        one, two = wan.enter_context(RecordingOrigin()), wan.enter_context(RecordingOrigin())
        sections = {"origins": {"other": {"from": [two.url], "hosts": [OTHER_HOST]}}}
        box = stack.enter_context(RunningBox(tmp_path, policy_for(one.url, **sections)))
        stack.enter_context(SteadyLoad(box.address(), 100, HOST, OTHER_HOST, misses=1))
        wait_for(lambda: box.stats()["upstream_requests"] > 200)
        # The policy changes one origin's time-out; at the same moment the WAN goes.
        path = written(box, "new.yaml", {"origins": {"media": {"timeouts": {"connect": "2s"}}}})
        wan.close()
        apply(box, path)
        wait_for(lambda: "the WAN may be down" in box.status()["policy"]["hold"], seconds=60)
        before = box.stats()["upstream_errors"]
        wait_for(lambda: box.stats()["upstream_errors"] > before + 500, seconds=30)
        assert not events(box, "policy-withdrawn")
        assert events(box, "origin-failing")
        assert box.status()["policy"]["outcome"] == "applied"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_five_minutes_of_real_traffic_make_a_policy_good_and_a_rollback_finds_it(box: RunningBox) -> None:
    with SteadyLoad(box.address(), 20, HOST):
        wait_for(lambda: events(box, "policy-good"), seconds=330)
    assert outcomes(box) == [(1, "start", "good")]
    for n in (1, 2):
        apply(box, written(box, f"{n}.yaml", {"limits": {"drain": f"{n}s"}}))
    back = json.loads(box.accelctl("--json", "policy", "rollback").stdout)
    assert (back["restored"], back["was_good"]) == (1, True)
    restarted(box)
    assert outcomes(box)[0] == (1, "start", "good")
    assert box.status()["policy"]["number"] == 4


# -- starts ------------------------------------------------------------------------------------------------------------


def restarted(box: RunningBox, text: str | None = None, *, kill: bool = False) -> None:
    """Ends the process, and starts it anew with this text in its policy file."""
    if kill:
        box.kill()
    else:
        box.process.terminate()
        box.exit_code()
    if text is not None:
        box.policy_path.write_text(text)
    box.write_policy = lambda policy: None  # type: ignore[method-assign]  # the file stays as it is
    box.__enter__()


def test_a_broken_file_at_the_start_leaves_the_last_policy_in_charge_and_says_so(box: RunningBox) -> None:
    restarted(box, "version: 1\nsite: {name: x}\nlissen: {}\n")
    assert box.get("/good/a").status == 200
    status = box.status()
    assert status["health"]["ok"]
    assert "is refused" in status["warnings"][0]
    assert f"{box.policy_path}:3:1: unknown key 'lissen'" in box.output
    assert events(box, "policy-fallback")[0]["advice"]
    # Corrected, SIGHUP is enough.
    box.policy_path.write_text(yaml.safe_dump(merge(deepcopy(box.policy), {"limits": {"drain": "1s"}})))
    box.signal(signal.SIGHUP)
    wait_for(lambda: not box.status()["warnings"])


def test_a_policy_that_can_not_be_started_with_leaves_the_last_one_in_charge(box: RunningBox) -> None:
    """Its listener's address belongs to somebody else."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        restarted(box, yaml.safe_dump(merge(deepcopy(box.policy), {"listen": {"lan": {"address": address}}})))
        assert address in box.status()["warnings"][0]
        assert box.get("/good/a").status == 200


def test_without_a_history_a_broken_file_ends_the_start(tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").write_text("version: 2\n")
    command = [PROJECT / ".venv/bin/acceleratord", "--policy", tmp_path / "policy.yaml", "--state-dir", tmp_path / "s"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 1
    assert f"{tmp_path}/policy.yaml:1:" in done.stderr


def test_what_was_applied_outlives_a_kill_until_the_file_is_changed(box: RunningBox) -> None:
    apply(box, written(box, "new.yaml", {"origins": {"media": {"hosts": [OTHER_HOST]}}}))
    restarted(box, kill=True)
    assert box.get("/good/a", host=OTHER_HOST).status == 200
    assert not box.status()["warnings"]
    restarted(box, "# changed by the DSI\n" + box.policy_path.read_text())
    assert box.get("/good/a", host=HOST).status == 200


def test_damaged_history_files_cost_nothing_but_themselves(box: RunningBox) -> None:
    apply(box, written(box, "new.yaml", {"limits": {"drain": "5s"}}))
    files = sorted((box.state / "policies").iterdir())
    assert len(files) == 2
    files[1].write_bytes(os.urandom(1000))
    restarted(box)
    assert box.get("/good/a").status == 200
    assert "damaged" in events(box, "history-fault")[0]["what"]
    assert [row["number"] for row in box.control("policy history")["entries"]] == [1]


# -- events ------------------------------------------------------------------------------------------------------------


def test_a_follower_is_told_what_was_and_what_comes(box: RunningBox) -> None:
    apply(box, written(box, "a.yaml", {"limits": {"drain": "1s"}}))
    command = [PROJECT / ".venv/bin/accelctl", "--socket", box.state / "control.sock"]
    follower = subprocess.Popen(
        [*command, "--json", "events", "--follow", "--since", "600"], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    with follower:
        assert follower.stdout is not None
        assert json.loads(follower.stdout.readline())["kind"] == "policy-applied"
        box.accelctl("policy", "rollback")
        told = json.loads(follower.stdout.readline())
        assert told["kind"] == "policy-rolled-back"
        assert "by a rollback" in told["why"]
        box.process.terminate()
        assert json.loads(follower.stdout.readline())["kind"] == "drain"
        assert follower.wait(20) == 3  # the daemon is gone
    text = box.output
    assert "Traceback" not in text


def test_followers_that_leave_or_do_not_read_cost_nothing(box: RunningBox) -> None:
    def follow(*, half_closed: bool = False) -> socket.socket:
        peer = socket.socket(socket.AF_UNIX)
        peer.settimeout(10)
        peer.connect(str(box.state / "control.sock"))
        peer.sendall(b'{"command": "events", "args": {"follow": true}}\n')
        if half_closed:
            peer.shutdown(socket.SHUT_WR)
        return peer

    followers = [follow() for _ in range(16)]
    assert all(json.loads(peer.recv(100)) == {"ok": True, "result": {"following": True}} for peer in followers)
    with follow() as one_too_many:
        assert b'"busy"' in one_too_many.recv(1000)
    for peer in followers:
        peer.close()

    def is_free() -> bool:
        with follow() as peer:
            return b"following" in peer.recv(1000)

    wait_for(is_free)
    with follow(half_closed=True) as peer:
        peer.makefile("rb").read()  # ends: whether it leaves could not be seen
    with follow() as peer:
        peer.recv(100)
        peer.sendall(b"x" * 1_000_000)  # is not read as commands, nor kept
        assert box.status()["health"]["ok"]


def test_no_event_holds_a_query_or_a_viewers_address(origin: RecordingOrigin, tmp_path: Path, nobody: str) -> None:
    source = "127.0.0.77"
    with RunningBox(tmp_path, policy_for(nobody)) as box:
        for n in range(30):
            assert box.get(f"/live/{n}.ts?token=s3cret", source=source).status in (502, 503)
        wait_for(lambda: events(box, "origin-failing"))
        text = json.dumps(box.control("events")) + box.output
        assert "s3cret" not in text
        assert source not in text


# -- under load --------------------------------------------------------------------------------------------------------


def alternate(box: RunningBox, origin: RecordingOrigin, n: int) -> dict[str, Any]:
    """Applies two policies in turn, `n` times, half by the control socket and half by SIGHUP, under 2,000 requests/s.
    They differ in all that may change without being wrong for a viewer: the way to the origin, an origin more, a
    listener more, limits, profile, zones."""
    others = {
        "zones": {"all": {"nets": ["127.0.0.0/8"]}},
        "limits": {"drain": "5s", "connections_per_address": 10_000},
        "listen": {"second": {"address": "127.0.0.1:0", "zones": ["all"]}},
        "origins": {
            "media": {"from": [origin.url, "http://127.0.0.1:9"], "timeouts": {"connect": "2s"}, "connections": 32},
            "spare": {"from": [origin.url], "hosts": [OTHER_HOST]},
        },
    }
    texts = [yaml.safe_dump(policy, sort_keys=False) for policy in (merge(deepcopy(box.policy), others), box.policy)]
    with SteadyLoad(box.address(), 2000, HOST) as load:
        for index in range(n):
            # Requests under each of them, not only while they change.
            enough = box.stats()["requests"] + 20
            wait_for(lambda enough=enough: box.stats()["requests"] >= enough)
            generation = box.status()["policy"]["generation"]
            if index % 4 < 2:
                box.control("policy apply", path="x", folder="/", files=[["x", texts[index % 2]]], force=False)
            else:
                box.policy_path.write_text(texts[index % 2])
                box.signal(signal.SIGHUP)
                wait_for(lambda known=generation: box.status()["policy"]["generation"] > known)
        result = load.end()
    assert box.status()["policy"]["generation"] == 1 + n
    assert not events(box, "policy-withdrawn")
    return result


@pytest.mark.parametrize("n", [N_FAST, pytest.param(N_SLOW, marks=[pytest.mark.slow, pytest.mark.timeout(900)])])
def test_no_request_fails_while_policies_change(n: int, box: RunningBox, origin: RecordingOrigin) -> None:
    """Issue 3: under 2,000 requests/s, 1,000 times, 0 failed requests (reliability.md fault 39)."""
    result = alternate(box, origin, n)
    print(result)
    assert result["failures"] == {}
    assert result["statuses"].keys() == {"200"}
    assert result["requests"] > 20 * n
    assert "Traceback" not in box.output
