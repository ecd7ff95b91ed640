"""What the sealed disk promises of its keys, over kills: no nonce comes twice, and nothing unsealed is believed."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from disk_box import VideoOrigin, body_of, disk_box, fill
from running_box import RunningBox, wait_for
from test_erase import SITE_KEY, records_of

from accelerator.services.disk.keys import DiskKeys
from accelerator.store.head import unpack_head
from ext.disk import DiskIo
from ext.disk_record import HEADER_BYTES, RECORD_DTYPE, checksum


@pytest.fixture
def origin() -> Iterator[VideoOrigin]:
    with VideoOrigin() as running:
        yield running


def sealed_box(work: Path, origin: VideoOrigin, size: str = "64MiB") -> RunningBox:
    credentials = work / "state" / "credentials"
    credentials.mkdir(parents=True)
    (credentials / "disk.key").write_text(SITE_KEY.hex() + "\n")
    return disk_box(work, origin, size=size)


def ask(box: RunningBox, path: str) -> None:
    with contextlib.suppress(OSError, ValueError):  # the box is killed meanwhile
        box.get(path)


def test_no_nonce_comes_twice_however_often_the_box_is_killed(tmp_path: Path, origin: VideoOrigin) -> None:
    """A segment's key is made of its 16 random bytes, and the nonce is the record's offset."""
    seen: dict[tuple[bytes, int], bytes] = {}
    salts: dict[int, bytes] = {}
    box = sealed_box(tmp_path, origin)
    n_records = 0
    for turn in range(4):
        with box:
            paths = [f"/v/300000/{turn}-{n}" for n in range(40)]
            asking = [threading.Thread(target=ask, args=(box, path)) for path in paths]
            for thread in asking:
                thread.start()
            wait_for(lambda: box.stats()["disk_writes"] >= 5)
            box.signal(signal.SIGKILL)  # in the midst of writing
            box.exit_code()
            for thread in asking:
                thread.join()
        for segment, offset, row in records_of(box.state / "cache"):
            salt, tag = bytes(row["salt"]), bytes(row["tag"])
            assert salts.setdefault(segment, salt) == salt, "one salt a segment"
            # Seen in an earlier turn, it is the same record; under this key and nonce there never is another.
            assert seen.setdefault((salt, offset), tag) == tag
            n_records += 1
    assert len(set(salts.values())) == len(salts) >= 4
    assert n_records > 20


def test_what_is_planted_without_a_seal_is_not_believed(tmp_path: Path, origin: VideoOrigin) -> None:
    """A head of a class that has no key was believed without one: whoever could write to the disk could send viewers
    of a URL elsewhere."""
    path = "/v/900/planted"
    box = sealed_box(tmp_path, origin)
    with box:
        fill(box, [path])
        box.signal(signal.SIGTERM)
        box.exit_code(seconds=20)
    folder = box.state / "cache"
    keys = DiskKeys.load((folder / "keys").read_bytes()[:-4], SITE_KEY)
    assert keys is not None
    segment, offset, row = next(each for each in records_of(folder) if each[2]["kind"] == 1)
    io = DiskIo(str(folder), None, 1)
    io.read(segment, offset, int(row["length"]), 1, int(row["generation"]), keys.classes[""])
    [(_, _, error, (_, payload), _)] = wait_for(io.take)
    io.close()
    assert error == 0
    # The attacker knows what a head looks like, not the key: the same length, another answer.
    forged = payload.replace(b"video/mp4", b"evil/evil")
    assert forged != payload
    assert unpack_head(forged).lines != unpack_head(payload).lines
    data = bytearray((folder / f"seg-{segment:016x}.log").read_bytes())
    data[offset + HEADER_BYTES : offset + HEADER_BYTES + len(forged)] = forged
    header = np.frombuffer(data, RECORD_DTYPE, 1, offset)
    header["flags"], header["class_id"], header["payload_crc"] = 0, 4711, checksum(forged)
    header["header_crc"] = 0
    header["header_crc"] = checksum(bytes(data[offset : offset + HEADER_BYTES]))
    (folder / f"seg-{segment:016x}.log").write_bytes(data)
    (folder / "checkpoint").unlink()
    asked = origin.n_asked
    with box:
        response = box.get(path)
        assert response.body == body_of(path)
        assert response.fields["content-type"] == "video/mp4"
        assert origin.n_asked == asked + 1
