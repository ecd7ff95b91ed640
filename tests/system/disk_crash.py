"""One process that fills, purges, checkpoints and evicts, to be killed at any system call; what must hold then.

`python disk_crash.py FOLDER` is the one that dies; it says what it has done, line by line. `check` is the other.
"""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from accelerator.dataplane import DataPlane, StoredObject
from accelerator.services.disk.keys import Naming
from accelerator.services.disk.log import DiskLog
from accelerator.store.index import GONE

MIB = 1 << 20
SIZE_BYTES = 12 * MIB  # three segments: the fourth evicts
LENGTH = MIB + 300
N_OBJECTS = 12
PURGED = 1
KEY = bytes(range(32))


def body_of(number: int) -> bytes:
    return random.Random(number).randbytes(LENGTH)


def naming_of(log: DiskLog, number: int) -> Naming:
    return Naming(log.keys.digest("origin", b"/%d" % number), 1, "")


def head_of(number: int) -> bytes:
    return b"head of %d" % number * 20


def an_object(dataplane: DataPlane, body: bytes = b"") -> StoredObject:
    stored = dataplane.plane.create(
        1, LENGTH, 200, b"HTTP/1.1 200 OK\r\n", b"", b"", b'"x"', -1, 0, 0, 0, 0, 0, False, True
    )
    assert stored is not None
    for at in range(0, len(body), MIB):
        piece = body[at : at + MIB]
        room = stored.room(at, len(piece))
        assert room is not None
        room[:] = piece
        stored.commit(at, len(piece))
    return stored


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.001)


async def opened(folder: Path, dataplane: DataPlane) -> DiskLog:
    log = DiskLog(dataplane, asyncio.get_running_loop(), folder, SIZE_BYTES, KEY, lambda *_: None)
    log.keys.key_of("")
    log.start()
    await until(lambda: log.is_loaded)
    log.keys.key_of("")
    return log


async def work(folder: Path) -> None:
    dataplane = DataPlane(1, 64 * MIB)
    log = await opened(folder, dataplane)
    for number in range(N_OBJECTS):
        naming, stored = naming_of(log, number), an_object(dataplane, body_of(number))
        assert log.write_head(naming, 1, number + 1, LENGTH, head_of(number)) or number > 5
        for index in (0, 1):
            log.write_slice(naming, number + 1, index, LENGTH, min(MIB, LENGTH - index * MIB), stored)
        await until(lambda: not log.is_settling)
        print(f"stored {number} {log.counts['evictions']}", flush=True)
        if number == 3:
            log.graves.bury(GONE, naming_of(log, PURGED))
            await log.graves.settle()
            print("purged", flush=True)
            log.save_checkpoint()
            await until(lambda: not log.is_settling)
            print("checkpointed", flush=True)
    await log.close()
    print("closed", flush=True)


async def check(folder: Path, said: list[str]) -> list[int]:
    """Reopens what the killed one left. Every object is what was written, as far as it is there; what was purged is
    not; what was stored is, unless it was evicted. The numbers of those that are whole. Raises AssertionError."""
    dataplane = DataPlane(1, 64 * MIB)
    log = await opened(folder, dataplane)
    whole = []
    evicted = any(line.startswith("stored") and not line.endswith(" 0") for line in said)
    for number in range(N_OBJECTS):
        naming = naming_of(log, number)
        heads = log.index.find(naming.key)
        if number == PURGED and "purged" in said:
            assert heads == [], "what was purged is back"
            continue
        is_being_purged = number == PURGED and "stored 3 0" in said
        if f"stored {number} 0" in said and not is_being_purged and not evicted and number + 3 < N_OBJECTS:
            # What has been evicted meanwhile is not said before its own object is stored.
            assert heads or log.index.segments.keys().isdisjoint({1}), f"{number} was stored, and is not there"
        for head in heads:
            error, value = await asked(lambda done, head=head: log.read_head(head, done))  # type: ignore[misc]
            assert (error, value) == (0, (naming.digest, head_of(number)))
            stored = an_object(dataplane)
            for index in (0, 1):
                place = log.index.slice_of(number + 1, index)
                if place is None:
                    continue
                error, is_published = await asked(
                    lambda done, i=index, p=place: log.read_slice(naming, number + 1, i, p, stored, done)  # type: ignore[misc] # noqa: B023
                )
                assert (error, is_published) == (0, True), (number, index)
                assert stored.has_bytes(index * MIB) == min(MIB, LENGTH - index * MIB)
            if stored.is_whole:
                assert stored.body(LENGTH) == body_of(number)
                whole.append(number)
    # It goes on: the next one is stored and found.
    naming, stored = naming_of(log, 99), an_object(dataplane, body_of(99))
    await until(lambda: log.write_head(naming, 1, 100, LENGTH, head_of(99)))
    await until(lambda: bool(log.index.find(naming.key)))
    assert log.counts["corrupt"] == 0
    await log.close()
    return whole


async def asked(ask: Callable[[Callable[[int, Any], None]], bool]) -> tuple[int, Any]:
    result: asyncio.Future[tuple[int, Any]] = asyncio.get_running_loop().create_future()
    assert ask(lambda error, value: result.set_result((error, value)))
    return await result


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(coroutine)


if __name__ == "__main__":
    run(work(Path(sys.argv[1])))
