"""What an operator sees of the running daemon and does to it: accelctl, /healthz, /metrics, the probe, the log."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from recording_origin import RecordingOrigin
from running_box import HOST, PROBE, PROJECT, RunningBox, policy_for, wait_for

from ext.layout import COUNTERS

CONTRACT = [
    "requests", "hits", "misses", "collapsed", "passed", "refused", "bytes_to_viewers", "bytes_from_origin", "objects",
    "memory_bytes", "memory_limit_bytes", "evictions",
]  # fmt: skip
OUTCOMES = ("hits", "misses", "collapsed", "passed", "refused")


@pytest.fixture(scope="module")
def origin() -> Iterator[RecordingOrigin]:
    with RecordingOrigin() as running:
        yield running


@pytest.fixture(scope="module")
def box(origin: RecordingOrigin, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningBox]:
    policy = policy_for(origin.url, classes={"library": {"store": "memory"}})
    policy["origins"]["media"]["class"] = "library"
    policy["origins"]["live"] = {"from": [origin.url], "hosts": [HOST], "paths": ["/good/live"]}
    policy["origins"]["portal"] = {"from": [origin.url], "hosts": ["portal.example"], "profile": "generic"}
    with RunningBox(tmp_path_factory.mktemp("box"), policy) as running:
        yield running


@pytest.fixture(autouse=True)
def sums(request: pytest.FixtureRequest) -> Iterator[None]:
    """Each test begins with nothing stored, and ends with sums that are right."""
    if "box" not in request.fixturenames:
        yield
        return
    box: RunningBox = request.getfixturevalue("box")
    for name in ("media", "live", "portal"):
        box.control("cache purge", origin=name)
    yield
    check_sums(box.stats())


def check_sums(stats: dict[str, Any]) -> None:
    assert stats["requests"] == sum(stats[name] for name in OUTCOMES), stats


def told(box: RunningBox, *arguments: str) -> Any:
    """The JSON that accelctl prints; it must succeed, and say nothing else."""
    done = box.accelctl("--json", *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


# -- status, stats -----------------------------------------------------------------------------------------------------


def test_status_is_what_runs(box: RunningBox) -> None:
    status = told(box, "status")
    assert status["site"] == "test"
    assert [(row["name"], row["accepting"]) for row in status["listeners"]] == [("lan", True)]
    with socket.create_connection(("127.0.0.1", int(status["listeners"][0]["address"].rpartition(":")[2]))):
        pass
    assert re.fullmatch(r"[0-9a-f]{64}", status["policy"]["digest"])
    assert status["policy"]["generation"] == 1
    assert [(worker["index"], worker["alive"]) for worker in status["workers"]] == [(0, True)]
    assert status["health"] == {"ok": True, "reasons": []}
    shown = box.accelctl("status")
    assert shown.returncode == 0
    assert "healthy" in shown.stdout


def test_stats_count_each_request_once(box: RunningBox, origin: RecordingOrigin) -> None:
    before = told(box, "cache", "stats")
    assert all(isinstance(before[name], int) for name in CONTRACT)
    box.get("/good/stats")  # a miss
    box.get("/good/stats")
    box.get("/good/stats", "Range: bytes=0-9")
    box.get("/good/stats", method="HEAD")
    box.get("/account/stats")  # not shareable
    box.get("/good/stats", host="unknown.example")
    box.get("/status/500")
    box.get("/good/stats", method="POST")
    with contextlib.ExitStack() as held:
        for _ in range(3):  # a leader and two who join
            viewer = held.enter_context(box.connect())
            viewer.sendall(f"GET /hold/stats HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
        wait_for(lambda: origin.targets("/hold/stats"))
        wait_for(lambda: box.control("top")["counters"]["connections"] == 3)
        origin.open_gate("stats")
        wait_for(lambda: box.stats()["requests"] - before["requests"] == 11)
    after = told(box, "cache", "stats")
    grown = {name: after[name] - before[name] for name in CONTRACT}
    check_sums(grown)
    assert (grown["hits"], grown["collapsed"], grown["refused"]) == (3, 2, 2)
    assert grown["misses"] + grown["passed"] == 4
    assert grown["passed"] >= 1
    assert origin.targets("/hold/stats") == ["/hold/stats"]
    head = len(f"GET /hold/stats\nHost: 127.0.0.1:{origin.port}\n") + len(
        "Accept: */*\nUser-Agent: video-accelerator\nVia: 1.1 test\nCDN-Loop: test\n"
    )
    account = head - len("/hold/stats") + len("/account/stats")
    status = head - len("/hold/stats") + len("/status/500")
    fetched = 1000 + account + status + head
    assert grown["bytes_from_origin"] == fetched
    assert grown["bytes_to_viewers"] == 2 * 1000 + 10 + account + status + 3 * head  # own errors' are not counted
    assert after["memory_limit_bytes"] == 64 << 20
    assert 0 < after["memory_bytes"] <= after["memory_limit_bytes"]


def test_objects_are_complete_variants(box: RunningBox, origin: RecordingOrigin) -> None:
    empty = box.stats()["objects"]
    for i in range(5):
        box.get(f"/good/objects/{i}")
    assert box.stats()["objects"] == empty + 5
    with box.connect() as viewer:
        viewer.sendall(f"GET /gate/objects/1000 HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
        wait_for(lambda: origin.targets("/gate/objects"))
        wait_for(lambda: [row for row in told(box, "cache", "ls")["objects"] if row["state"] == "filling"])
        assert box.stats()["objects"] == empty + 5
        origin.open_gate("objects")
        wait_for(lambda: box.stats()["objects"] == empty + 6)


# -- ls, purge ---------------------------------------------------------------------------------------------------------


def test_ls_shows_what_is_stored(box: RunningBox) -> None:
    box.get("/good/a")
    box.get("/good/live/b")
    box.get("/bytes/5000/c", host="portal.example")
    listed = told(box, "cache", "ls")
    assert listed["total"] == 3
    rows = {row["url"]: row for row in listed["objects"]}
    assert set(rows) == {
        f"http://{HOST}/good/a", f"http://{HOST}/good/live/b", "http://portal.example/bytes/5000/c",
    }  # fmt: skip
    row = rows[f"http://{HOST}/good/a"]
    assert (row["origin"], row["status"], row["size_bytes"], row["state"]) == ("media", 200, 1000, "fresh")
    assert row["class"] == "library"
    assert rows["http://portal.example/bytes/5000/c"]["class"] is None
    assert 0 <= row["age_s"] < 5
    assert 50 < row["ttl_s"] <= 60
    assert [row["origin"] for row in told(box, "cache", "ls", "--origin", "portal")["objects"]] == ["portal"]
    assert told(box, "cache", "ls", "--prefix", f"http://{HOST}/good/")["total"] == 2
    by_size = told(box, "cache", "ls", "--sort", "size", "--limit", "1")
    assert (by_size["total"], by_size["objects"][0]["size_bytes"]) == (3, 5000)
    assert told(box, "cache", "ls", "--limit", "2", "--offset", "2")["objects"][0]["url"] == max(rows)
    shown = box.accelctl("cache", "ls")
    assert "/good/live/b" in shown.stdout


def test_purge_acts_before_it_returns(box: RunningBox, origin: RecordingOrigin) -> None:
    for path in ("/good/p/1", "/good/p/2", "/good/pq", "/good/live/p", "/echo/p?x=1"):
        box.get(path)
    box.get("/good/p/1", host="portal.example")

    def purged(*arguments: str) -> int:
        result = told(box, "cache", "purge", *arguments)
        assert list(result) == ["purged"]
        return int(result["purged"])

    def is_fetched(path: str, host: str = HOST) -> bool:
        n = len(origin.asked)
        assert box.get(path, host=host).status == 200
        return len(origin.asked) == n + 1

    assert purged(f"http://{HOST}/good/none") == 0
    assert purged(f"http://{HOST}/good/p/1") == 1
    assert not is_fetched("/good/p/1", "portal.example")  # another origin's
    assert not is_fetched("/good/p/2")
    assert is_fetched("/good/p/1")
    assert purged(f"https://{HOST.upper()}:8443/good/p/1#part") == 1  # neither scheme, port nor spelling is in the key
    assert purged(f"http://{HOST}/echo/p") == 0
    assert purged(f"http://{HOST}/echo/p?x=1") == 1
    assert is_fetched("/good/p/1")
    assert purged("--prefix", f"http://{HOST}/good/p/") == 2
    assert not is_fetched("/good/pq")
    assert is_fetched("/good/p/2")
    assert purged("--origin", "portal") == 1
    assert purged("--prefix", f"http://{HOST}/") == 3  # pq, p/2, live/p
    assert told(box, "cache", "ls")["total"] == 0
    box.get("/good/p/1")
    assert "purged" in box.accelctl("cache", "purge", "--origin", "media").stdout


def test_bug_a_prefix_purged_one_of_the_origins_of_its_host(box: RunningBox) -> None:
    """`http://video.example/good/li` begins URLs of the origin `live` (/good/live) and of `media` (/)."""
    box.get("/good/live/1")
    box.get("/good/little")
    assert told(box, "cache", "ls", "--prefix", f"http://{HOST}/good/li")["total"] == 2
    assert told(box, "cache", "purge", "--prefix", f"http://{HOST}/good/li") == {"purged": 2}


def test_bug_a_url_that_ends_in_a_question_mark_could_not_be_purged(box: RunningBox) -> None:
    box.get("/good/question?")
    box.get("/good/question")
    assert told(box, "cache", "purge", f"http://{HOST}/good/question?") == {"purged": 1}
    assert told(box, "cache", "ls")["total"] == 1


def test_a_purge_of_what_is_being_fetched_keeps_it_out(box: RunningBox, origin: RecordingOrigin) -> None:
    with box.connect() as viewer:
        viewer.sendall(f"GET /hold/purged HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n".encode())
        wait_for(lambda: origin.targets("/hold/purged"))
        told(box, "cache", "purge", f"http://{HOST}/hold/purged")
        origin.open_gate("purged")
        assert viewer.recv(12) == b"HTTP/1.1 200"
    n = len(origin.targets("/hold/purged"))
    assert box.get("/hold/purged").status == 200
    assert len(origin.targets("/hold/purged")) == n + 1


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["status"], 0),
        (["top", "--once", "--interval", "0.1"], 0),
        (["cache", "stats"], 0),
        (["cache", "ls"], 0),
        (["cache", "ls", "--origin", "none"], 1),
        (["cache", "ls", "--prefix", "http://unknown.example/"], 1),
        (["cache", "ls", "--prefix", "no-url"], 1),
        (["cache", "purge", "ftp://video.example/"], 1),
        (["cache", "purge", "http://video.example/é"], 1),
        (["cache", "purge", "http://[::1/"], 1),
        (["cache", "purge", "http://unknown.example/"], 1),
        (["cache", "purge", "--origin", "none"], 1),
        (["cache", "purge"], 2),
        (["cache", "purge", "http://video.example/", "--origin", "media"], 2),
        (["cache", "frobnicate"], 2),
        (["cache", "ls", "--limit", "0"], 2),
        (["cache", "ls", "--limit", "+5"], 2),
    ],
)
def test_exit_codes_and_one_clear_line(arguments: list[str], code: int, box: RunningBox) -> None:
    done = box.accelctl(*arguments)
    assert done.returncode == code
    if code == 1:
        assert done.stdout == ""
        assert done.stderr.count("\n") == 1
        asked = box.accelctl("--json", *arguments)
        assert asked.returncode == 1
        assert json.loads(asked.stdout)["error"]["message"]
    assert "Traceback" not in done.stderr


def test_without_a_daemon_it_is_exit_code_3(tmp_path: Path, origin: RecordingOrigin) -> None:
    box = RunningBox(tmp_path, policy_for(origin.url))
    done = box.accelctl("status")
    assert (done.returncode, done.stderr.count("\n")) == (3, 1)
    with box:
        box.kill()
        assert box.accelctl("status").returncode == 3


def test_top_once_shows_rates(box: RunningBox) -> None:
    sample = told(box, "top", "--once", "--interval", "0.1")
    assert sample["interval_s"] > 0.09
    assert {row["name"] for row in sample["origins"]} == {"media", "live", "portal"}
    assert [row["name"] for row in sample["listeners"]] == ["lan"]
    shown = box.accelctl("top", "--once", "--interval", "0.1")
    assert shown.returncode == 0
    assert "requests/s" in shown.stdout


# -- health, metrics ---------------------------------------------------------------------------------------------------


def test_healthz_and_the_viewers_probe(box: RunningBox, origin: RecordingOrigin) -> None:
    before = box.stats()
    assert box.admin("/healthz") == (200, b"ok\n")
    assert box.admin("/healthz", host="rebound.example")[0] == 421
    for host in (HOST, "unknown.example", "127.0.0.1"):
        response = box.get(PROBE, host=host)
        assert (response.status, response.body) == (200, b"ok\n")
        assert response.fields["cache-control"] == "no-store"
    assert box.get(PROBE, method="HEAD").status == 200
    assert box.grown(before)["health_probes"] == 4
    assert origin.targets("/.well-known") == []
    assert told(box, "cache", "ls")["total"] == 0


def test_metrics_agree_with_stats(box: RunningBox) -> None:
    box.get("/good/metrics")
    box.get("/good/metrics")
    figures, stats, top = box.metrics(), box.stats(), box.control("top")
    names = {name for _, name, _ in COUNTERS}
    assert {f"accelerator_{name}_total" for name in names} <= figures.keys()
    moving = {"worker_passes", "worker_wakeups"}
    for name in names - moving:
        assert figures[f"accelerator_{name}_total"] == stats[name], name
    for name in ("objects", "memory_limit_bytes"):
        assert figures[f"accelerator_{name}"] == stats[name]
    assert figures["accelerator_healthy"] == 1
    assert figures["accelerator_listener_accepting{lan}"] == 1
    for row in top["origins"]:
        for name in ("requests", "hits", "bytes_to_viewers", "bytes_from_origin", "errors"):
            assert figures[f"accelerator_origin_{name}_total{{{row['name']}}}"] == row[name]
    assert sum(row["bytes_from_origin"] for row in top["origins"]) == stats["bytes_from_origin"]


def test_what_prometheus_would_refuse(box: RunningBox) -> None:
    """One TYPE and one HELP for each family, all samples of it together."""
    text = box.admin("/metrics")[1].decode()
    for kind in ("TYPE", "HELP"):
        names = re.findall(rf"^# {kind} (\S+)", text, re.MULTILINE)
        assert len(names) == len(set(names))
    assert text.endswith("\n")


def test_operations_document_names_each_counter() -> None:
    text = (PROJECT / "docs" / "operations.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \| (.+?) \|$", text, re.MULTILINE))
    for _, name, meaning in COUNTERS:
        assert rows.get(name) == meaning, name
    for name in CONTRACT:
        assert name in rows


# -- what stays on the box ---------------------------------------------------------------------------------------------


def test_an_origin_that_fails_a_thousand_times_writes_a_few_lines(origin: RecordingOrigin, tmp_path: Path) -> None:
    with RunningBox(tmp_path, policy_for(origin.url)) as box:
        before = box.output.count("\n")
        with box.connect() as viewer:
            for i in range(1000):
                kind = ("garbage", "break")[i % 2]
                try:
                    box.get_on(viewer, f"/{kind}/{i}?token=secret-{i}")
                except (EOFError, ConnectionError):
                    viewer.close()
                    viewer = box.connect()
            viewer.close()
        stats = box.stats()
        assert stats["upstream_errors"] + stats["broken_transfers"] >= 1000
        assert box.control("top")["origins"][0]["errors"] >= 500
        n_lines = box.output.count("\n") - before
        print(f"{n_lines} lines for 1,000 failures:\n{box.output}")
        assert 1 <= n_lines <= 8
        assert "secret" not in box.output


def test_bug_audit_lines_had_queries_in_them(box: RunningBox) -> None:
    box.get("/good/audited?token=hush-1")
    told(box, "cache", "purge", f"http://{HOST}/good/audited?token=hush-1")
    told(box, "cache", "purge", "--prefix", f"http://{HOST}/good/audited?token=hush-2")
    box.accelctl("cache", "purge", "http://unknown.example/?token=hush-3")
    wait_for(lambda: box.output.count("audit:") >= 3)
    assert "/good/audited?…" in box.output
    assert "hush" not in box.output


def test_nothing_of_viewers_is_left_anywhere(origin: RecordingOrigin, tmp_path: Path) -> None:
    """Planted: addresses and tokens that occur nowhere else."""
    with RunningBox(tmp_path, policy_for(origin.url)) as box:
        for i in range(20):
            source = f"127.99.88.{i + 1}"
            box.get(
                f"/good/private/{i}?token=hush-{i}", "Cookie: session=hush", "Authorization: Bearer hush", source=source
            )
            box.get(f"/garbage/{i}?token=hush", source=source)
            box.get(f"/break/{i}?token=hush", source=source)
            box.ask(b"GET /bad\0?token=hush HTTP/1.1\r\n\r\n", source=source)
        shown = box.output + json.dumps([box.status(), box.stats(), box.control("top"), box.control("cache ls")])
        shown += box.admin("/metrics")[1].decode()
        for arguments in (["status"], ["cache", "stats"], ["cache", "ls"], ["top", "--once", "--interval", "0.1"]):
            shown += box.accelctl(*arguments).stdout
        for planted in ("127.99.88", "hush", "token="):
            assert planted not in shown
        # Besides the socket the box writes the policies that it ran with, its admin token and the security log, and
        # nothing of what viewers asked.
        own = {"control.sock", "handover.sock", "policies", "credentials", "logs"}
        assert {path.name for path in box.state.iterdir()} <= own
        for path in box.state.rglob("*"):
            if path.is_file():
                content = path.read_bytes()
                for planted in (b"127.99.88", b"hush", b"token"):
                    assert planted not in content, path
        kept = ("/dev/", "/proc/", "/memfd", f"{box.state}/logs/security-")
        opened = {os.readlink(path) for path in Path(f"/proc/{box.process.pid}/fd").iterdir()}
        on_disk = {name for name in opened if name.startswith("/") and not name.startswith(kept)}
        assert on_disk <= {str(box.log_path)}, on_disk
    assert not (box.state / "control.sock").exists()
