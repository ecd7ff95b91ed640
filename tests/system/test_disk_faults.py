"""Disks that fail, fill up, hang or can't be written: viewers don't notice, and the disk comes back when it is well."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from chaos_fs import ChaosFs
from disk_box import MIB, VideoOrigin, body_of, disk_box, fill
from running_box import HOST, RunningBox, wait_for

from accelerator.dataplane import disk_checksum

PATHS = [f"/v/{MIB + 7}/{name}" for name in range(12)]


@pytest.fixture
def origin() -> Iterator[VideoOrigin]:
    with VideoOrigin() as running:
        yield running


@contextlib.contextmanager
def injected(box: RunningBox, rule: str) -> Iterator[None]:
    """strace on the running box: each such call of any of its threads fails, or takes its time."""
    if shutil.which("strace") is None:
        pytest.skip("needs strace")
    call = rule.partition(":")[0]
    log = box.work / "strace"
    command = ["strace", "-f", "-o", str(log), "-p", str(box.process.pid), "-e", f"trace={call}"]
    command += ["-e", f"inject={rule}"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        if "attached" not in line:
            pytest.skip(f"strace can't attach: {line}")
        yield
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(20)


@contextlib.contextmanager
def small_file_system(folder: Path, options: str) -> Iterator[None]:
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", options, "none", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("no mounts here")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def ask_all(box: RunningBox, paths: list[str]) -> float:
    """Every answer is right; the longest time that one took."""
    longest = 0.0
    for path in paths:
        began = time.monotonic()
        response = box.get(path)
        longest = max(longest, time.monotonic() - began)
        assert (response.status, response.body == body_of(path)) == (200, True), response.raw[:300]
    return longest


def kinds(box: RunningBox) -> set[str]:
    return {event["kind"] for event in box.control("events")["events"]}


def only_on_disk(box: RunningBox, paths: list[str]) -> RunningBox:
    """What is on the disk, and nothing of it in memory: a new process."""
    fill(box, paths)
    box.signal(signal.SIGTERM)
    box.exit_code(seconds=20)
    return RunningBox(box.work, box.policy)


@pytest.mark.fault(12, 14)
@pytest.mark.timeout(120)
@pytest.mark.parametrize("rule", ["preadv:error=EIO", "preadv:retval=0", "preadv:delay_enter=5000000"])
def test_reads_that_fail_or_hang_cost_a_fetch_and_put_the_disk_aside(
    tmp_path: Path, origin: VideoOrigin, rule: str
) -> None:
    with disk_box(tmp_path, origin) as first, only_on_disk(first, PATHS) as box:
        with injected(box, rule):
            assert ask_all(box, PATHS) < 5.0
            assert ask_all(box, PATHS[-3:]) < 5.0
            if "retval" in rule:
                assert box.stats()["disk_corrupt"] >= 5  # a record that is cut off is no fault of the device
                return
            wait_for(lambda: "disk-aside" in kinds(box))
            assert box.status()["health"]["ok"]
        wait_for(lambda: "disk-returned" in kinds(box), seconds=60)
        wait_for(lambda: box.status()["disk"]["state"] == "ready", seconds=60)
        stats = box.stats()
        assert stats["broken_transfers"] == stats["refused"] == 0


@pytest.mark.fault(9, 11, 13)
@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    "rule", ["pwrite64:error=EIO", "pwrite64:error=EROFS", "fdatasync:error=EIO", "fallocate:error=ENOSPC"]
)
def test_writes_that_fail_are_nobodys_business_but_the_operators(
    tmp_path: Path, origin: VideoOrigin, rule: str
) -> None:
    with disk_box(tmp_path, origin) as box:
        with injected(box, rule):
            ask_all(box, PATHS)
            ask_all(box, PATHS)
            if "fdatasync" in rule:
                wait_for(lambda: box.stats()["disk_errors"] > 0)
            elif "ENOSPC" not in rule:
                wait_for(lambda: "disk-aside" in kinds(box))
            assert box.status()["health"]["ok"]
        wait_for(lambda: box.status()["disk"]["state"] == "ready", seconds=60)
        path = f"/v/{MIB}/after"
        assert box.get(path).body == body_of(path)
        assert box.stats()["refused"] == 0


@pytest.mark.fault(9, 10)
@pytest.mark.timeout(120)
@pytest.mark.parametrize("options", ["size=20m", "size=200m,nr_inodes=4"])
def test_full_file_system_is_no_fault_of_viewers(tmp_path: Path, origin: VideoOrigin, options: str) -> None:
    with small_file_system(tmp_path / "state" / "cache", options), disk_box(tmp_path, origin, memory="32MiB") as box:
        for name in range(40):
            path = f"/v/{MIB}/{name}"
            assert box.get(path).body == body_of(path)
        ask_all(box, [f"/v/{MIB}/{name}" for name in range(40)])
        assert box.status()["health"]["ok"]
        assert box.stats()["refused"] == 0
        assert kinds(box) & {"disk-full", "disk-aside"}


@pytest.mark.fault(11)
@pytest.mark.timeout(120)
def test_disk_that_is_read_only_at_the_start_is_used_when_it_can_be_written(
    tmp_path: Path, origin: VideoOrigin
) -> None:
    folder = tmp_path / "state" / "cache"
    with small_file_system(folder, "size=100m,ro"), disk_box(tmp_path, origin) as box:
        ask_all(box, PATHS[:3])
        assert box.status()["disk"]["state"] == "aside"
        subprocess.run(["mount", "-o", "remount,rw", str(folder)], check=True)
        wait_for(lambda: box.status()["disk"]["state"] == "ready", seconds=60)
        path = f"/v/{MIB}/after"
        assert box.get(path).body == body_of(path)
        wait_for(lambda: box.stats()["disk_objects"] >= 1)


# -- a file system of our own ------------------------------------------------------------------------------------------

needs_fuse = pytest.mark.skipif(ChaosFs.why_not() is not None, reason=str(ChaosFs.why_not()))


def heads_and_marks(box: RunningBox) -> list[tuple[Path, int]]:
    """(segment's file, offset) of each record, as the log has them: at multiples of 64, each with its length."""
    found = []
    for path in sorted((box.state / "cache").glob("seg-*.log")):
        data, at = path.read_bytes(), 64
        while data[at : at + 4] == b"ACR1":
            found.append((path, at))
            at += -(-(128 + int.from_bytes(data[at + 68 : at + 72], "little")) // 64) * 64
    return found


def flip(path: Path, at: int, bit: int = 0) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        value = file.read(1)[0]
        file.seek(at)
        file.write(bytes([value ^ 1 << bit]))


@pytest.mark.fault(15)
def test_a_purge_outlives_a_kill_and_a_flipped_bit_before_its_mark(tmp_path: Path, origin: VideoOrigin) -> None:
    """The replay ended at the damaged record: the mark behind it was not seen, and what was purged was back."""
    with disk_box(tmp_path, origin) as box:
        fill(box, PATHS[:4])
        assert box.control("cache purge", url=f"http://{HOST}{PATHS[0]}")["purged"] == 1
        box.kill()
        path, at = heads_and_marks(box)[-2]
        flip(path, at + 20)
        origin.server.edition = 2
        asked = origin.n_asked
        with RunningBox(box.work, box.policy) as again:
            wait_for(lambda: "disk-corrupt" in kinds(again))
            ask_all(again, PATHS[:4])
            assert origin.n_asked - asked == 4  # each was asked for again, or validated


@needs_fuse
@pytest.mark.fault(12)
def test_a_purge_by_prefix_is_not_said_to_be_done_while_the_disk_is_aside(tmp_path: Path, origin: VideoOrigin) -> None:
    """It found nothing to purge there, and said that it would be written later."""
    with (
        ChaosFs(tmp_path / "state" / "cache") as disk,
        disk_box(tmp_path, origin) as first,
        only_on_disk(first, PATHS[:3]) as box,
    ):
        disk.fail(all={"error": "EIO"})
        for n in range(5):
            box.get(f"/v/9/{n}")
        wait_for(lambda: "disk-aside" in kinds(box))
        with pytest.raises(RuntimeError, match="3 objects on the disk can't be looked at"):
            box.control("cache purge", prefix=f"http://{HOST}/v/")


@needs_fuse
@pytest.mark.fault(12)
def test_what_could_not_be_read_and_was_purged_then_is_not_back_after_a_kill(
    tmp_path: Path, origin: VideoOrigin
) -> None:
    """The index had let go of it, so the purge met nothing and left no mark; the log still had it."""
    with (
        ChaosFs(tmp_path / "state" / "cache") as disk,
        disk_box(tmp_path, origin) as first,
        only_on_disk(first, PATHS[:2]) as box,
    ):
        disk.fail(read={"error": "EIO"})
        assert box.get(PATHS[0]).body == body_of(PATHS[0])
        disk.fail()
        box.control("cache purge", url=f"http://{HOST}{PATHS[0]}")
        box.control("cache purge", prefix=f"http://{HOST}/v/")
        origin.server.edition = 2
        box.kill()
        asked = origin.n_asked
        with RunningBox(box.work, box.policy) as again:
            ask_all(again, PATHS[:2])
            assert origin.n_asked == asked + 2


@needs_fuse
@pytest.mark.fault(14)
@pytest.mark.timeout(120)
def test_a_disk_that_hangs_at_the_start_holds_nobody_up(tmp_path: Path, origin: VideoOrigin) -> None:
    """The box was unhealthy for as long as its index loaded, its control loop stood still while the folder was opened,
    and its end waited for the disk."""
    with ChaosFs(tmp_path / "state" / "cache") as disk, disk_box(tmp_path, origin) as box:
        fill(box, PATHS[:3])
        box.kill()
        disk.fail(all={"delay_s": 5.0})
        began = time.monotonic()
        with RunningBox(box.work, box.policy) as again:  # until it says that it is well
            assert time.monotonic() - began < 10
            assert again.status()["disk"]["state"] == "loading"
            assert ask_all(again, PATHS[:3]) < 2.0
            wait_for(lambda: "disk-slow" in kinds(again))
            again.signal(signal.SIGTERM)
            assert again.exit_code(seconds=15) == 0
        disk.fail()


@needs_fuse
@pytest.mark.fault(14)
@pytest.mark.timeout(120)
def test_hits_from_memory_do_not_wait_for_a_disk_of_5_s(tmp_path: Path, origin: VideoOrigin) -> None:
    with ChaosFs(tmp_path / "state" / "cache") as disk, disk_box(tmp_path, origin, memory="128MiB") as box:
        fill(box, PATHS[:3])
        disk.fail(all={"delay_s": 5.0})
        for n in range(20):
            assert box.get(f"/v/{MIB}/new-{n}").body == body_of(f"/v/{MIB}/new-{n}")
        took = []
        with box.connect() as connected:
            for n in range(300):
                began = time.monotonic()
                assert box.get_on(connected, PATHS[n % 3]).body == body_of(PATHS[n % 3])
                took.append(time.monotonic() - began)
        assert sorted(took)[-4] < 0.05, sorted(took)[-4:]  # the 99th percentile
        disk.fail()


@needs_fuse
@pytest.mark.fault(7)
@pytest.mark.parametrize("lies", [True, False])
def test_torn_writes_are_misses(tmp_path: Path, origin: VideoOrigin, lies: bool) -> None:
    with ChaosFs(tmp_path / "state" / "cache") as disk, disk_box(tmp_path, origin) as first:
        disk.fail(write={"torn": 3000, "lies": lies, "rate": 0.5})
        ask_all(first, PATHS)
        wait_for(lambda: first.stats()["disk_queued_bytes"] == 0)
        first.kill()
        disk.fail()
        with RunningBox(first.work, first.policy) as box:
            ask_all(box, PATHS)
            assert box.stats()["refused"] == 0


@needs_fuse
@pytest.mark.fault(11)
@pytest.mark.timeout(120)
def test_a_disk_that_becomes_read_only_and_writable_again(tmp_path: Path, origin: VideoOrigin) -> None:
    with ChaosFs(tmp_path / "state" / "cache") as disk, disk_box(tmp_path, origin) as box:
        fill(box, PATHS[:3])
        refused = {"error": "EROFS"}
        disk.fail(write=refused, create=refused, rename=refused, rename2=refused, unlink=refused, fallocate=refused)
        ask_all(box, PATHS)
        wait_for(lambda: "disk-aside" in kinds(box), seconds=30)
        ask_all(box, [f"/v/1000/ro-{n}" for n in range(10)])
        disk.fail()
        began = time.monotonic()
        wait_for(lambda: box.status()["disk"]["state"] == "ready", seconds=30)
        assert time.monotonic() - began < 20


@needs_fuse
@pytest.mark.fault(9)
@pytest.mark.timeout(120)
def test_a_file_system_that_others_fill_makes_the_tier_smaller(tmp_path: Path, origin: VideoOrigin) -> None:
    with ChaosFs(tmp_path / "state" / "cache") as disk, disk_box(tmp_path, origin, memory="32MiB") as box:
        disk.hold(24 * MIB)
        ask_all(box, [f"/v/{MIB}/{n}" for n in range(40)])
        wait_for(lambda: kinds(box) & {"disk-full", "disk-aside"})
        ask_all(box, [f"/v/{MIB}/{n}" for n in range(40)])
        stats = box.stats()
        assert stats["refused"] == stats["broken_transfers"] == 0
        assert box.status()["health"]["ok"]

# -- what is on the platter --------------------------------------------------------------------------------------------


@pytest.mark.fault(15)
@pytest.mark.timeout(120)
def test_a_thousand_flipped_bits_and_no_wrong_byte(tmp_path: Path, origin: VideoOrigin) -> None:
    dice = random.Random(15)
    paths = [f"/v/{dice.choice((3000, 40_000, 200_000, MIB + 9))}/{n}" for n in range(60)]
    with disk_box(tmp_path, origin) as first:
        fill(first, paths)
        first.signal(signal.SIGTERM)
        first.exit_code(seconds=20)
        files = sorted((first.state / "cache").glob("seg-*.log"))
        sizes = [path.stat().st_size for path in files]
        for _ in range(1000):
            path = dice.choices(files, sizes)[0]
            flip(path, dice.randrange(path.stat().st_size), dice.randrange(8))
        with RunningBox(first.work, first.policy) as box:
            ask_all(box, paths)
            stats = box.stats()
            assert stats["disk_corrupt"] > 20
            assert "disk-corrupt" in kinds(box)
            assert box.status()["health"]["ok"]
            # One line for the cause, not one for each record.
            assert box.output.count("is not what was written") <= 2 + stats["disk_corrupt"] // 10


@pytest.mark.fault(16)
@pytest.mark.timeout(120)
@pytest.mark.parametrize("damage", ["cut", "zeroed", "random"])
def test_damaged_files_of_the_state_directory(tmp_path: Path, origin: VideoOrigin, damage: str) -> None:
    """Each file of the tier and of the policy's history: the start is quick, every answer right."""
    with disk_box(tmp_path, origin) as first:
        fill(first, PATHS[:4])
        first.signal(signal.SIGTERM)
        first.exit_code(seconds=20)
        files = [path for path in (first.state / "cache").iterdir() if path.is_file()]
        files += list((first.state / "policies").glob("*.json"))
        assert len(files) >= 4
        for path in files:
            data = path.read_bytes()
            n = len(data)
            spoilt = {"cut": data[: n // 2], "zeroed": bytes(n), "random": random.Random(1).randbytes(n)}[damage]
            path.write_bytes(spoilt)
        began = time.monotonic()
        with RunningBox(first.work, first.policy) as box:
            assert time.monotonic() - began < 10
            ask_all(box, PATHS[:4])


@pytest.mark.fault(44)
def test_what_a_newer_version_wrote_is_ignored_and_no_crash(tmp_path: Path, origin: VideoOrigin) -> None:
    """Records, the segment's head, the checkpoint and the keys say version 9, and are whole otherwise."""
    with disk_box(tmp_path, origin) as first:
        fill(first, PATHS[:4])
        first.signal(signal.SIGTERM)
        first.exit_code(seconds=20)
        folder = first.state / "cache"
        for path, at in heads_and_marks(first):
            newer(path, at, 128, 8, 4)
        for path in folder.glob("seg-*.log"):
            newer(path, 0, 64, 60, 4, n_version=4)
        for name, at in (("checkpoint", 4), ("keys", None)):
            data = bytearray((folder / name).read_bytes()[:-4])
            if at is None:
                data = bytearray(bytes(data).replace(b'"version": 1', b'"version": 9'))
            else:
                data[at] = 9
            (folder / name).write_bytes(bytes(data) + disk_checksum(bytes(data)).to_bytes(4, "little"))
        with RunningBox(first.work, first.policy) as box:
            asked = origin.n_asked
            ask_all(box, PATHS[:4])
            assert origin.n_asked == asked + 4
            fill(box, ["/v/5000/after"])
            assert "Traceback" not in box.output


def newer(path: Path, at: int, length: int, crc_at: int, version_at: int, *, n_version: int = 2) -> None:
    """A header of version 9, with its checksum right: the segment's at its end, a record's with the field as zero."""
    with path.open("r+b") as file:
        file.seek(at)
        head = bytearray(file.read(length))
        head[version_at : version_at + n_version] = (9).to_bytes(n_version, "little")
        if crc_at + 4 == length:
            summed = bytes(head[:crc_at])
        else:
            head[crc_at : crc_at + 4] = bytes(4)
            summed = bytes(head)
        head[crc_at : crc_at + 4] = disk_checksum(summed).to_bytes(4, "little")
        file.seek(at)
        file.write(head)


def test_what_may_only_be_in_memory_is_nowhere_on_the_disk(tmp_path: Path, origin: VideoOrigin) -> None:
    """Each file below the state directory is searched for what went through: bodies, names, paths."""
    classes = {"secret": {"store": "memory"}}
    paths = [f"/v/{size}/confidential-{size}" for size in (900, 70_000, MIB + 1)]
    with disk_box(tmp_path, origin, classes=classes, origins={"media": {"class": "secret"}}) as box:
        ask_all(box, paths)
        ask_all(box, paths)
        box.signal(signal.SIGTERM)
        box.exit_code(seconds=20)
        searched = 0
        for file in (each for each in box.state.rglob("*") if each.is_file()):
            data = file.read_bytes()
            searched += 1
            assert b"confidential-" not in data, file
            for path in paths:
                assert body_of(path)[400:432] not in data, file
        assert searched >= 3
