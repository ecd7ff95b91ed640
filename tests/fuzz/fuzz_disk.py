"""Fuzzes what is read from the disk: segments, checkpoints, heads. Nothing crashes, nothing foreign is taken for a
record of ours. Takes the seconds to run as its only argument."""

from __future__ import annotations

import contextlib
import random
import select
import sys
import tempfile
import time
import zlib
from pathlib import Path

import numpy as np

from accelerator.store.checkpoint import dump_checkpoint, load_checkpoint
from accelerator.store.head import DiskHead, pack_head, unpack_head
from accelerator.store.index import DiskIndex, Place
from ext.disk import DiskIo
from ext.disk_record import KIND_HEAD, RECORD_DTYPE, START_BYTES, space_of


def wait(io: DiskIo, job: int) -> tuple[int, object]:
    while True:
        assert select.select([io.bell_fd], [], [], 30)[0]
        for number, _, error, value, _ in io.take():
            if number == job:
                return error, value


def spoil(data: bytes, chance: random.Random) -> bytes:
    spoilt = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(spoilt) + 1)
        what = chance.randrange(4)
        if what == 0 and spoilt:
            spoilt[at % len(spoilt)] ^= 1 << chance.randrange(8)
        elif what == 1:
            del spoilt[at:]
        elif what == 2:
            spoilt[at:at] = chance.randbytes(chance.randint(1, 70))
        else:
            spoilt[at : at + chance.randint(1, 300)] = bytes(chance.randint(0, 300))
    return bytes(spoilt)


def a_checkpoint() -> bytes:
    index = DiskIndex()
    for key in range(20):
        index.put_head(key, 0, key + 1, key + 1, 5, Place(1, 64, 9), 1, 1)
        index.put_slice(key, key + 1, 0, key + 50, Place(1, 640, 9))
    index.segments[1] = 4096
    index.bury(3, 4, bytes(16), 99, 1)
    return b"".join(dump_checkpoint(index, 1, 64))


def main(seconds: float) -> int:
    chance = random.Random(1)
    head = pack_head(DiskHead("o", b"/k", b"", b"", b"A: b\r\n", b"", b'"e"', 1, 0, 200, -1, 1, 0, 1, 1, 1, 5, (7, 8)))
    checkpoint = a_checkpoint()
    end, rounds = time.monotonic() + seconds, 0
    with tempfile.TemporaryDirectory() as folder:
        io = DiskIo(folder, None, 1, 1 << 20)
        at, payloads = START_BYTES, {}
        for sequence in range(1, 30):
            payload = chance.randbytes(chance.randint(0, 900))
            row = (KIND_HEAD, sequence, b"d" * 16, 1, 5, 0, 0, 1, 7, 8, b"s" * 16)
            assert wait(io, io.write(1, at, row, payload))[0] == 0
            payloads[at] = payload
            at += space_of(len(payload))
        path = Path(folder) / f"seg-{1:016x}.log"
        good = path.read_bytes()
        while time.monotonic() < end:
            rounds += 1
            path.write_bytes(spoil(good, chance))
            _, value = wait(io, io.scan(1, chance.choice([0, 0, 64, chance.randrange(len(good))])))
            rows, offsets, _ = value  # type: ignore[misc]
            for record, offset in zip(np.frombuffer(rows, RECORD_DTYPE), np.frombuffer(offsets, "u8"), strict=True):
                error, read = wait(io, io.read(1, int(offset), int(record["length"]), KIND_HEAD, 5))
                assert error < 0 or read[1] in payloads.values()  # type: ignore[index]
            DiskIndex().apply(np.frombuffer(rows, RECORD_DTYPE), np.frombuffer(offsets, "u8"))
            spoilt = spoil(checkpoint, chance)
            try:  # with a sum that is right: as if we had written it
                index, _, _ = load_checkpoint(
                    memoryview(spoilt + zlib.crc32(spoilt).to_bytes(4, "little")), lambda data: zlib.crc32(data)
                )
                for key in range(20):
                    for found in index.find(key):
                        index.slice_of(found.generation, 0)
            except ValueError:
                pass
            with contextlib.suppress(ValueError):
                unpack_head(spoil(head, chance))
        io.close()
    print(f"fuzz_disk: {rounds} rounds, nothing found")
    return 0


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1])))
