"""Erasing a class: nothing of it can be read from the raw disk any more, with whatever keys there were and are."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from disk_box import MIB, VideoOrigin, body_of, disk_box, fill
from running_box import RunningBox, wait_for

from accelerator.services.disk.keys import DiskKeys, number_of
from ext.disk import DiskIo
from ext.disk_record import RECORD_DTYPE

SITE_KEY = bytes.fromhex("ab" * 32)
CLASSES = {"secret": {"store": "disk"}, "open": {"store": "disk"}}
SECRET = [f"/v/{size}/secret/{n}" for n, size in enumerate((900, 70_000, MIB + 5))]
OPEN = [f"/v/{size}/open/{n}" for n, size in enumerate((900, 70_000, MIB + 5))]


@pytest.fixture
def origin() -> Iterator[VideoOrigin]:
    with VideoOrigin() as running:
        yield running


def a_box(work: Path, origin: VideoOrigin, *, is_sealed: bool) -> RunningBox:
    if is_sealed:
        credentials = work / "state" / "credentials"
        credentials.mkdir(parents=True, exist_ok=True)
        (credentials / "disk.key").write_text(SITE_KEY.hex() + "\n")
    origins = {
        "media": {"class": "open"},
        "board": {"from": [origin.url], "hosts": ["board.example"], "class": "secret"},
    }
    return disk_box(work, origin, classes=CLASSES, origins=origins)


def fill_both(box: RunningBox) -> None:
    fill(box, OPEN)
    for n, path in enumerate(SECRET, 1):
        assert box.get(path, host="board.example").body == body_of(path)
        wait_for(lambda n=n: box.stats()["disk_objects"] == len(OPEN) + n)  # type: ignore[misc]
    # A slice each, and one more of the large one.
    wait_for(lambda: box.stats()["disk_writes"] >= 2 * (len(OPEN) + len(SECRET)) + 2)


def records_of(folder: Path) -> list[tuple[int, int, Any]]:
    """(segment, offset, header) of every record in the files."""
    io = DiskIo(str(folder), None, 1)
    try:
        found = []
        for path in sorted(folder.glob("seg-*.log")):
            job = io.scan(int(path.name[4:-4], 16))
            [(_, _, error, (rows, offsets, _), _)] = wait_for(io.take)
            # -1: a tail that a kill has left half overwritten; what is good before it is all there.
            assert job > 0, job
            assert error in (0, -1), error
            headers = np.frombuffer(rows, RECORD_DTYPE)
            segment = int(path.name[4:-4], 16)
            places = np.frombuffer(offsets, "u8").tolist()
            found += [(segment, at, row) for at, row in zip(places, headers, strict=True)]
        return found
    finally:
        io.close()


def readable(folder: Path, keys: DiskKeys | None, class_name: str) -> list[bytes]:
    """Payloads of a class's records that these keys open; None: those that are not sealed."""
    io = DiskIo(str(folder), None, 1)
    payloads = []
    try:
        for segment, offset, row in records_of(folder):
            if int(row["class_id"]) != number_of(class_name) or not row["length"]:
                continue
            for key in {None, *(keys.classes.values() if keys is not None else ())}:
                if row["kind"] == 1:
                    io.read(segment, offset, int(row["length"]), 1, int(row["generation"]), key)
                    [(_, _, error, value, _)] = wait_for(io.take)
                    payloads += [value[1]] if error == 0 else []
        return payloads
    finally:
        io.close()


def keys_in(data: bytes) -> DiskKeys | None:
    return DiskKeys.load(data, SITE_KEY)


@pytest.mark.parametrize("is_sealed", [True, False])
def test_nothing_of_an_erased_class_can_be_read(tmp_path: Path, origin: VideoOrigin, is_sealed: bool) -> None:
    with a_box(tmp_path, origin, is_sealed=is_sealed) as box:
        fill_both(box)
        folder = box.state / "cache"
        old_keys_file = (folder / "keys").read_bytes()[:-4]
        old_keys = keys_in(old_keys_file)
        assert (old_keys is not None) is is_sealed
        assert len(readable(folder, old_keys, "secret")) == len(SECRET), "the scan finds what is there"
        done = box.accelctl("cache", "erase", "secret")
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("3 objects erased")
        asked = origin.n_asked
        for path in OPEN:  # the other class is as it was
            assert box.get(path).body == body_of(path)
        assert origin.n_asked == asked
        box.signal(signal.SIGTERM)
        box.exit_code(seconds=20)
        # Whoever has the disk and all keys that there ever were.
        assert readable(folder, old_keys, "secret") == []
        assert len(readable(folder, old_keys, "open")) == len(OPEN)
        assert b"secret" not in (folder / "keys").read_bytes()
        for file in folder.iterdir():
            data = file.read_bytes()
            for path in SECRET:
                assert body_of(path)[100:164] not in data, file
                assert path.encode() not in data, file
        for segment, offset, row in records_of(folder):
            if int(row["class_id"]) == number_of("secret"):
                assert row["kind"] in (0, 5), (segment, offset)
                assert not any(bytes(row["key"])), (segment, offset)
        with RunningBox(box.work, box.policy) as again:
            assert again.stats()["disk_objects"] == len(OPEN)
            for path in SECRET:
                assert again.get(path, host="board.example").body == body_of(path)
            assert origin.n_asked == asked + len(SECRET)
            wait_for(lambda: again.stats()["disk_objects"] == len(OPEN) + len(SECRET))
            assert again.stats()["disk_corrupt"] == 0


def test_it_is_not_found_by_an_index_that_is_made_anew(tmp_path: Path, origin: VideoOrigin) -> None:
    with a_box(tmp_path, origin, is_sealed=True) as box:
        fill_both(box)
        assert box.control("cache erase", **{"class": "secret"})["erased"] == len(SECRET)
        box.signal(signal.SIGKILL)
        box.exit_code()
        (box.state / "cache" / "checkpoint").unlink(missing_ok=True)
        with RunningBox(box.work, box.policy) as again:
            wait_for(lambda: again.stats()["disk_objects"] == len(OPEN))
            assert again.get(SECRET[0], host="board.example").body == body_of(SECRET[0])
            assert again.stats()["disk_corrupt"] == 0


def test_what_erase_refuses_and_what_has_no_class(tmp_path: Path, origin: VideoOrigin) -> None:
    with a_box(tmp_path, origin, is_sealed=False) as box:
        assert "no class 'none'" in box.accelctl("cache", "erase", "none").stderr
        assert box.accelctl("cache", "erase").returncode == 2
        assert box.accelctl("cache", "erase", "open", "--unclassed").returncode == 2
        unclassed = {name: value for name, value in box.policy["origins"]["media"].items() if name != "class"}
        box.reload(policy={**box.policy, "origins": {**box.policy["origins"], "media": unclassed}})
        fill(box, OPEN[:2])
        assert box.accelctl("cache", "erase", "open").stdout.startswith("0 objects")
        assert box.accelctl("cache", "erase", "--unclassed").stdout.startswith("2 objects")
        assert box.stats()["disk_objects"] == 0
        wait_for(lambda: "cache erase" in box.output, what="it is audited")


@pytest.mark.slow  # a kill at each of some forty calls
@pytest.mark.timeout(900)
@pytest.mark.parametrize("is_sealed", [True, False])
def test_kill_at_any_call_of_an_erasure_leaves_it_undone_or_done_after_the_next_start(
    tmp_path: Path, origin: VideoOrigin, is_sealed: bool
) -> None:
    if shutil.which("strace") is None:
        pytest.skip("needs strace")
    with a_box(tmp_path, origin, is_sealed=is_sealed) as box:
        fill_both(box)
        box.signal(signal.SIGTERM)
        box.exit_code(seconds=20)
    whole = tmp_path / "whole"
    shutil.copytree(box.state, whole, symlinks=True)
    calls = "pwrite64,write,openat,linkat,renameat,unlinkat,fsync,fdatasync,fallocate"
    n_killed = n_erased = 0
    for call in calls.split(","):
        for when in range(1, 7):
            shutil.rmtree(box.state)
            shutil.copytree(whole, box.state, symlinks=True)
            with RunningBox(box.work, box.policy) as running:
                tracing = subprocess.Popen(
                    ["strace", "-f", "-o", str(tmp_path / "strace"), "-p", str(running.process.pid), "-e",
                     f"trace={call}", "-e", f"inject={call}:signal=KILL:when={when}"],
                    stderr=subprocess.PIPE, text=True,
                )  # fmt: skip
                assert tracing.stderr is not None
                if "attached" not in tracing.stderr.readline():
                    pytest.skip("strace can't attach")
                try:
                    running.control("cache erase", **{"class": "secret"})
                    is_killed = False
                except (OSError, RuntimeError, json.JSONDecodeError):
                    is_killed = True
                if not is_killed:
                    tracing.send_signal(signal.SIGINT)
                    tracing.wait(20)
                    break
                running.process.wait(20)
                tracing.wait(20)
                n_killed += 1
            with RunningBox(box.work, box.policy) as again:
                folder = again.state / "cache"
                wait_for(lambda folder=folder: not (folder / "keys.old").exists())  # type: ignore[misc]
                for path in OPEN:
                    assert again.get(path).body == body_of(path), (call, when)
                wait_for(lambda folder=folder: b'"erasing": {}' in (folder / "keys").read_bytes(), what=f"{call} {when}")  # type: ignore[misc]  # noqa: E501
                n_found = again.stats()["disk_objects"] - len(OPEN)
                assert n_found in (0, len(SECRET)), (call, when)
                if not n_found:
                    assert b'"secret"' not in (folder / "keys").read_bytes(), (call, when)
                    assert readable(folder, None, "secret") == [], (call, when)
                    n_erased += 1
                else:
                    for path in SECRET:
                        assert again.get(path, host="board.example").body == body_of(path), (call, when)
                assert again.stats()["disk_corrupt"] == 0, (call, when)
    assert n_killed >= 10
    assert n_erased >= 3


@contextmanager
def a_file_system(image: Path, folder: Path) -> Iterator[None]:
    """ext4 in a file, whose raw blocks can be looked at."""
    image.write_bytes(b"")
    os.truncate(image, 256 * MIB)
    folder.mkdir(parents=True)
    made = shutil.which("mkfs.ext4") and subprocess.run(["mkfs.ext4", "-q", str(image)], check=False).returncode == 0
    mount = ["mount", "-o", "loop", str(image), str(folder)]
    if os.geteuid() or not made or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no loop mounts here")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_no_block_of_the_raw_disk_has_a_key_that_was_dropped(tmp_path: Path, origin: VideoOrigin) -> None:
    """Key files that were replaced lay in free blocks, and what is on them is sealed by nothing but disk.key."""
    image = tmp_path / "image"
    sealed: set[bytes] = set()
    folder = tmp_path / "box" / "state" / "cache"
    with a_file_system(image, folder), a_box(tmp_path / "box", origin, is_sealed=True) as box:
        keys = folder / "keys"

        def remember() -> None:
            for text in json.loads(keys.read_bytes()[:-4])["classes"].values():
                sealed.add(text.encode())

        wait_for(keys.exists)
        remember()
        for n in range(3):
            assert box.get(SECRET[0], host="board.example").body == body_of(SECRET[0])
            wait_for(lambda: box.stats()["disk_objects"] == 1)
            remember()
            if n == 0:
                before = bytes(image.read_bytes())
            box.control("cache erase", **{"class": "secret"})
        box.signal(signal.SIGTERM)
        box.exit_code(seconds=20)
        living = keys.read_bytes()
    data = image.read_bytes()
    assert any(each in before or each in living for each in sealed), "the search finds a key that is there"
    for each in sealed:
        assert each in living or each not in data
