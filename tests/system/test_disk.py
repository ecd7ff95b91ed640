"""The disk tier in the running box: warm after a restart and after kill -9, purged for good, never a wrong byte."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from disk_box import MIB, VideoOrigin, body_of, disk_box, fill
from running_box import HOST, Response, RunningBox, read_all, wait_for

PATHS = [f"/v/{size}/{name}" for name, size in enumerate((1, 70_000, MIB, MIB + 1, 3 * MIB + 5))]


@pytest.fixture
def origin() -> Iterator[VideoOrigin]:
    with VideoOrigin() as running:
        yield running


def segments(box: RunningBox) -> list[Path]:
    return sorted((box.state / "cache").glob("seg-*.log"))


def restart(box: RunningBox, number: signal.Signals) -> RunningBox:
    box.signal(number)
    box.exit_code(seconds=20)
    again = RunningBox(box.work, box.policy)
    return again.__enter__()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_restart_is_warm(tmp_path: Path, origin: VideoOrigin, number: signal.Signals) -> None:
    with disk_box(tmp_path, origin) as box:
        fill(box, PATHS)
        asked = origin.n_asked
        again = restart(box, number)
        try:
            before = again.stats()
            assert before["disk_objects"] == len(PATHS)
            listed = again.control("cache ls")
            assert {row["url"] for row in listed["objects"]} == {f"http://{HOST}{path}" for path in PATHS}
            for path in PATHS:
                response = again.get(path)
                assert (response.status, response.body) == (200, body_of(path))
                assert "; hit" in response.fields["cache-status"]
                assert int(response.fields["age"]) >= 0
            part = again.get(PATHS[-1], f"Range: bytes={2 * MIB - 3}-{2 * MIB + 7}")
            assert (part.status, part.body) == (206, body_of(PATHS[-1])[2 * MIB - 3 : 2 * MIB + 8])
            assert origin.n_asked == asked
            grown = again.grown(before)
            assert grown["hits"] == grown["requests"] == len(PATHS) + 1
            assert grown["disk_hits"] == len(PATHS)
            assert again.metrics()["accelerator_disk_usable"] == 1
            assert again.status()["disk"]["state"] == "ready"
        finally:
            again.__exit__(None, None, None)


def test_who_has_ended_his_side_gets_all_of_what_comes_from_the_disk(tmp_path: Path, origin: VideoOrigin) -> None:
    """What the disk had was taken for an endless stream: one flag of an object had two meanings."""
    path = f"/v/{5 * MIB}/half-closed"
    with disk_box(tmp_path, origin) as box:
        fill(box, [path])
        again = restart(box, signal.SIGTERM)
        try:
            with again.connect(receive_buffer=16384) as connected:
                connected.sendall(f"GET {path} HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n".encode())
                connected.shutdown(socket.SHUT_WR)
                response = Response(read_all(connected))
            assert (response.status, len(response.body)) == (200, 5 * MIB)
            assert response.body == body_of(path)
        finally:
            again.__exit__(None, None, None)


def test_what_memory_cannot_hold_comes_from_the_disk(tmp_path: Path, origin: VideoOrigin) -> None:
    paths = [f"/v/{2 * MIB}/{name}" for name in range(40)]
    with disk_box(tmp_path, origin, size="256MiB", memory="32MiB") as box:
        fill(box, paths)
        asked = origin.n_asked
        for path in paths * 2:
            response = box.get(path)
            assert (response.status, response.body == body_of(path)) == (200, True), response.raw[:300]
        assert origin.n_asked == asked
        stats = box.stats()
        assert stats["disk_hits"] > 20
        assert stats["memory_bytes"] <= stats["memory_limit_bytes"]


def test_eviction_keeps_the_disk_within_its_size(tmp_path: Path, origin: VideoOrigin) -> None:
    with disk_box(tmp_path, origin, size="64MiB", memory="32MiB") as box:
        for name in range(60):
            path = f"/v/{2 * MIB}/{name}"
            response = box.get(path)
            assert (response.status, response.body == body_of(path)) == (200, True), response.raw[:300]
            wait_for(lambda: box.stats()["disk_queued_bytes"] == 0)
        wait_for(lambda: box.stats()["disk_evictions"] >= 4)
        wait_for(lambda: sum(path.stat().st_blocks * 512 for path in segments(box)) <= 64 * MIB)
        assert box.stats()["disk_bytes"] <= 64 * MIB
        for name in range(60):
            path = f"/v/{2 * MIB}/{name}"
            response = box.get(path)
            assert (response.status, response.body == body_of(path)) == (200, True), response.raw[:300]


def test_a_purge_by_prefix_finds_all_that_is_on_the_disk_only(tmp_path: Path, origin: VideoOrigin) -> None:
    """It read the first so many heads only, and said that the purge was whole."""
    with disk_box(tmp_path, origin) as box:
        fill(box, [f"/v/1000/{folder}/{name}" for folder in ("gone", "kept") for name in range(150)])
        again = restart(box, signal.SIGTERM)
        try:
            assert again.stats()["disk_objects"] == 300
            assert again.control("cache purge", prefix=f"http://{HOST}/v/1000/gone/") == {"purged": 150}
            assert again.stats()["disk_objects"] == 150
            asked = origin.n_asked
            for folder, n_asked in (("kept", 0), ("gone", 150)):
                for name in range(150):
                    assert again.get(f"/v/1000/{folder}/{name}").body == body_of(f"/v/1000/{folder}/{name}")
                assert origin.n_asked == asked + n_asked
        finally:
            again.kill()


def test_purge_outlives_a_kill(tmp_path: Path, origin: VideoOrigin) -> None:
    paths = [f"/v/1000/{name}" for name in "abcd"] + ["/v/1000/dir/x", "/v/1000/dir/y"]
    with disk_box(tmp_path, origin) as box:
        fill(box, paths)
        assert box.control("cache purge", url=f"http://{HOST}/v/1000/a")["purged"] == 1
        assert box.control("cache purge", prefix=f"http://{HOST}/v/1000/dir/")["purged"] == 2
        again = restart(box, signal.SIGKILL)
        try:
            assert again.stats()["disk_objects"] == 3
            # What is on the disk only is purged too.
            assert again.control("cache purge", url=f"http://{HOST}/v/1000/b")["purged"] == 1
            asked = origin.n_asked
            for path in ("/v/1000/a", "/v/1000/b", "/v/1000/dir/x"):
                assert again.get(path).body == body_of(path)
            assert origin.n_asked == asked + 3
            assert again.get("/v/1000/c").body == body_of("/v/1000/c")
            assert origin.n_asked == asked + 3
            assert again.control("cache purge", origin="media")["purged"] >= 5
            third = restart(again, signal.SIGKILL)
            try:
                assert third.stats()["disk_objects"] == 0
                assert third.control("cache ls")["total"] == 0
            finally:
                third.__exit__(None, None, None)
        finally:
            again.__exit__(None, None, None)


@pytest.mark.fault(16)
def test_lost_checkpoint_is_rebuilt_and_what_is_found_is_validated(tmp_path: Path, origin: VideoOrigin) -> None:
    with disk_box(tmp_path, origin) as box:
        fill(box, PATHS)
        box.signal(signal.SIGTERM)
        box.exit_code(seconds=20)
        (box.state / "cache" / "checkpoint").unlink()
        with RunningBox(box.work, box.policy) as again:
            wait_for(lambda: again.stats()["disk_objects"] == len(PATHS))
            sent = origin.server.sent
            for path in PATHS:
                assert again.get(path).body == body_of(path)
            assert origin.server.sent == sent  # 304s
            assert again.stats()["validated"] == len(PATHS)


@pytest.mark.fault(15, 16)
@pytest.mark.parametrize("damage", ["checkpoint", "segment", "keys", "all"])
def test_damage_is_a_miss_and_never_a_wrong_byte(tmp_path: Path, origin: VideoOrigin, damage: str) -> None:
    with disk_box(tmp_path, origin) as box:
        fill(box, PATHS)
        box.signal(signal.SIGTERM)
        box.exit_code(seconds=20)
        for path in (box.state / "cache").iterdir():
            if damage == "all" or path.name.startswith(damage[:3]):
                data = bytearray(path.read_bytes())
                for at in range(50, len(data), 300_007):
                    data[at] ^= 0x20
                path.write_bytes(data)
        with RunningBox(box.work, box.policy) as again:
            for path in PATHS:
                assert again.get(path).body == body_of(path), path
            if damage == "segment":
                assert again.stats()["disk_corrupt"] > 0
                kinds = {event["kind"] for event in again.control("events")["events"]}
                assert "disk-corrupt" in kinds


def test_memory_class_never_touches_the_disk(tmp_path: Path, origin: VideoOrigin) -> None:
    classes = {"secret": {"store": "memory"}}
    with disk_box(tmp_path, origin, classes=classes, origins={"media": {"class": "secret"}}) as box:
        for path in PATHS:
            response = box.get(path)
            assert (response.status, response.body == body_of(path)) == (200, True), response.raw[:300]
        assert box.stats()["disk_writes"] == 0
        assert segments(box) == []


def test_variants_come_back_apart(tmp_path: Path, origin: VideoOrigin) -> None:
    path = "/v/5000/vary/x"
    with disk_box(tmp_path, origin, origins={"media": {"profile": "generic"}}) as box:
        for language in ("fr", "de"):
            assert box.get(path, f"Accept-Language: {language}").body == language.encode() + body_of(path)
        wait_for(lambda: box.stats()["disk_objects"] == 2)
        again = restart(box, signal.SIGKILL)
        try:
            asked = origin.n_asked
            for language in ("de", "fr"):
                assert again.get(path, f"Accept-Language: {language}").body == language.encode() + body_of(path)
            assert origin.n_asked == asked
            assert again.get(path, "Accept-Language: it").body == b"it" + body_of(path)
            assert origin.n_asked == asked + 1
        finally:
            again.__exit__(None, None, None)


def test_stale_objects_are_validated_and_new_ones_replace_them(tmp_path: Path, origin: VideoOrigin) -> None:
    origin.server.lifetime = 0
    with disk_box(tmp_path, origin) as box:
        fill(box, PATHS[1:3])
        again = restart(box, signal.SIGKILL)
        try:
            sent = origin.server.sent
            assert again.get(PATHS[1]).body == body_of(PATHS[1])
            assert origin.server.sent == sent
            origin.server.edition = 2
            assert again.get(PATHS[2]).body == body_of(PATHS[2])
            assert origin.server.sent == sent + MIB
        finally:
            again.__exit__(None, None, None)


def test_without_a_validator_only_small_bodies_are_kept(tmp_path: Path, origin: VideoOrigin) -> None:
    small, large = "/v/4000/weak/s", f"/v/{2 * MIB}/weak/l"
    with disk_box(tmp_path, origin) as box:
        for path in (small, large):
            response = box.get(path)
            assert (response.status, response.body == body_of(path)) == (200, True), response.raw[:300]
        wait_for(lambda: box.stats()["disk_objects"] == 1)
        again = restart(box, signal.SIGKILL)
        try:
            asked = origin.n_asked
            for path in (small, large):
                assert again.get(path).body == body_of(path)
            assert origin.n_asked == asked + 1
        finally:
            again.__exit__(None, None, None)


def test_sealed_disk_shows_nothing_and_needs_its_key(tmp_path: Path, origin: VideoOrigin) -> None:
    path = "/v/70000/confidential"
    credentials = tmp_path / "state" / "credentials"
    credentials.mkdir(parents=True)
    (credentials / "disk.key").write_text("ab" * 32 + "\n")
    with disk_box(tmp_path, origin) as box:
        fill(box, [path])
        assert box.status()["disk"]["sealed"] is True
        again = restart(box, signal.SIGKILL)
        try:
            asked = origin.n_asked
            assert again.get(path).body == body_of(path)
            assert origin.n_asked == asked
            for file in (again.state / "cache").iterdir():
                data = file.read_bytes()
                assert body_of(path)[100:132] not in data, file
                assert b"confidential" not in data, file
            (credentials / "disk.key").write_text("cd" * 32 + "\n")
            third = restart(again, signal.SIGKILL)
            try:
                assert third.stats()["disk_objects"] == 0
                assert third.get(path).body == body_of(path)
                assert origin.n_asked == asked + 1
            finally:
                third.__exit__(None, None, None)
        finally:
            again.__exit__(None, None, None)


def test_class_keeps_to_its_quota(tmp_path: Path, origin: VideoOrigin) -> None:
    classes = {"some": {"store": "disk", "quota": "10%"}}
    with disk_box(tmp_path, origin, size="128MiB", classes=classes, origins={"media": {"class": "some"}}) as box:
        fill(box, [f"/v/{MIB}/{name}" for name in range(12)])
        for name in range(12, 30):
            path = f"/v/{MIB}/{name}"
            response = box.get(path)
            assert (response.status, response.body == body_of(path)) == (200, True), response.raw[:300]
            wait_for(lambda n=name: box.stats()["disk_writes"] >= 2 * n + 2)  # type: ignore[misc]
        polls: list[int] = []

        def is_within() -> bool:
            polls.append(len(polls))
            box.get(f"/v/1/{len(polls)}")
            return bool(box.stats()["disk_objects"] <= 12 + len(polls))

        wait_for(is_within)
