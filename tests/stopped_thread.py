"""One thread of a process that stands still while its others go on: a worker that hangs. No assertion on the box stands
here."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

import pytest


def edge_threads(pid: int) -> list[int]:
    """The edge workers' of an acceleratord."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            if (task / "comm").read_text().startswith("edge"):
                found.append(int(task.name))
    return found


@contextlib.contextmanager
def stopped_thread(thread: int) -> Iterator[None]:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    seize, interrupt, detach = 0x4206, 0x4207, 17
    if libc.ptrace(seize, thread, None, None) != 0:
        pytest.skip(f"no thread can be stopped here: {os.strerror(ctypes.get_errno())}")
    assert libc.ptrace(interrupt, thread, None, None) == 0
    os.waitpid(thread, 0x40000000)  # __WALL
    try:
        yield
    finally:
        libc.ptrace(detach, thread, None, None)
