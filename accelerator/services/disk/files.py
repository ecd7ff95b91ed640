"""What is in the disk tier's folder when the box starts: lock, keys, checkpoint, segments. Blocks: runs in a thread."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerator.dataplane import disk_checksum
from accelerator.services.disk.keys import FILE_NAME, DiskKeys
from accelerator.services.logs.folders import make_folder
from accelerator.store.checkpoint import CRC_BYTES, load_checkpoint
from accelerator.store.index import DiskIndex

CHECKPOINT = "checkpoint"
LOCK = "lock"
# The wall clock while the tier was last alive: 8 bytes, and their sum.
CLOCK = "clock"
_SEGMENT = re.compile(r"seg-([0-9a-f]{16})\.log")
# Larger than any index that fits a machine: a file that claims more is none of ours.
_CHECKPOINT_MOST = 64 << 30


class DiskBusy(Exception):
    """Another process has the folder: a predecessor that drains."""


@dataclass
class Found:
    """`index` None: there is no checkpoint that can be used. `covered`: (segment, offset) where replay begins."""

    lock_fd: int
    keys: DiskKeys
    index: DiskIndex | None = None
    covered: tuple[int, int] = (0, 0)
    segments: set[int] = field(default_factory=set)
    unwanted: list[str] = field(default_factory=list)
    secret: list[str] = field(default_factory=list)  # unwanted, and to be overwritten
    note: str = ""
    latest_wall_ns: int = 0


def segment_file(segment: int) -> str:
    return f"seg-{segment:016x}.log"


def prepare(folder: Path, site_key: bytes | None) -> Found:
    """Makes the folder where there is none, takes its lock, reads what is there. Raises OSError, DiskBusy."""
    make_folder(folder, 0o700)
    lock_fd = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DiskBusy from None
        return _read(folder, site_key, lock_fd)
    except BaseException:
        os.close(lock_fd)
        raise


def _read(folder: Path, site_key: bytes | None, lock_fd: int) -> Found:
    names = os.listdir(folder)
    segments = {int(match[1], 16): name for name in names if (match := _SEGMENT.fullmatch(name))}
    secret = [name for name in names if name in (f"{FILE_NAME}.new", f"{FILE_NAME}.old")]
    unwanted = [name for name in names if (name.endswith(".new") or name == "probe") and name not in secret]
    keys = None
    if FILE_NAME in names:
        data = (folder / FILE_NAME).read_bytes()
        if disk_checksum(data[:-CRC_BYTES]) == int.from_bytes(data[-CRC_BYTES:], "little"):
            keys = DiskKeys.load(data[:-CRC_BYTES], site_key)
    if keys is None:
        # Names are digested and bodies sealed with keys that nobody has: nothing of it can be found again.
        note = f"{len(segments)} segments were written with keys that are not there any more" if segments else ""
        gone = [*unwanted, *segments.values(), *(name for name in names if name == CHECKPOINT)]
        return Found(lock_fd, DiskKeys.make(site_key), unwanted=gone, secret=secret, note=note)
    found = Found(lock_fd, keys, segments=set(segments), unwanted=unwanted, secret=secret)
    if CLOCK in names:
        data = (folder / CLOCK).read_bytes()
        if len(data) == 8 + CRC_BYTES and disk_checksum(data[:8]) == int.from_bytes(data[8:], "little"):
            found.latest_wall_ns = int.from_bytes(data[:8], "little")
    for name in segments.values():
        # What was preallocated and not used when the process was killed: blocks behind the end.
        os.truncate(folder / name, (folder / name).stat().st_size)
    try:
        path = folder / CHECKPOINT
        if path.stat().st_size > _CHECKPOINT_MOST:
            raise ValueError("larger than an index can be")
        found.index, *covered = load_checkpoint(memoryview(path.read_bytes()), disk_checksum)
        found.covered = (covered[0], covered[1])
    except FileNotFoundError:
        found.note = "there is no checkpoint" if segments else ""
    except ValueError as problem:
        found.note = f"the checkpoint can't be used: {problem}"
    return found


async def in_thread(loop: asyncio.AbstractEventLoop, work: Callable[[], Any]) -> Any:
    """What `work` gives. Its thread holds nobody up at the end: opening a file on a disk that hangs takes for ever."""
    result: asyncio.Future[Any] = loop.create_future()

    def told(value: Any, fault: BaseException | None) -> None:
        if result.done():
            return
        if fault is not None:
            result.set_exception(fault)
        else:
            result.set_result(value)

    def run() -> None:
        value, fault = None, None
        try:
            value = work()
        except BaseException as raised:
            fault = raised
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(told, value, fault)

    threading.Thread(target=run, name="disk-open", daemon=True).start()
    return await result
