"""The keeper process and netd's end of it, without a kernel's routes."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path

from accelerator.kernel.keeper import SLOTS, Kept


def end(kept: Kept) -> None:
    """Closes it, and its process ends as its time alone is over."""
    process = kept._process
    kept.close()
    assert process is not None
    process.wait(10)


def test_what_is_kept_comes_back(tmp_path: Path) -> None:
    first = Kept(tmp_path / "keeper.sock", 0.3)
    with open(tmp_path / "kept", "w") as file:
        first.keep(SLOTS[0], file.fileno())
    first.close()
    second = Kept(tmp_path / "keeper.sock", 0.3)
    assert second._process is None
    assert os.readlink(f"/proc/self/fd/{second.descriptors[SLOTS[0]]}") == str(tmp_path / "kept")
    second.close()
    assert first._process is not None
    first._process.wait(10)


def test_a_keeper_that_was_being_killed_took_a_connection_and_never_answered(tmp_path: Path) -> None:
    """netd then had no keeper, and said nothing of it: the routes would have gone with it."""
    path = tmp_path / "keeper.sock"
    dying = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    dying.bind(str(path))
    dying.listen(1)

    def die() -> None:
        dying.accept()[0].close()
        dying.close()

    thread = threading.Thread(target=die)
    thread.start()
    kept = Kept(path, 0.1)
    thread.join()
    assert kept._process is not None
    end(kept)
