"""The files of one log in STATE_DIR/logs: made, appended to, rotated by day and size, removed after their retention.

One file a process and day, so that two processes (at a hand-over) never write into one. A link without a date leads to
the newest. No line is composed here. Belongs to the thread that calls it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

DAY_S = 86_400.0
# A file is removed when its oldest line is due. The newest is younger by at most this part of the retention.
PERIODS = 4
SHARES = 8
SAME_SECOND_MAX = 1000
_DATE = "%Y%m%dT%H%M%SZ"


@dataclass(frozen=True, order=True)
class _File:
    begun_s: float
    attempt: int
    path: Path
    size_bytes: int


class LogFiles:
    """Of `name` access: access-20261123T101500Z.log, to which access.log leads. `now_s` is the wall clock.

    `retention_s` and `bytes_max` (of all files) may be changed at any time; enforce() makes them true."""

    def __init__(
        self, folder: Path, name: str, now_s: Callable[[], float], *, retention_s: float, bytes_max: int
    ) -> None:
        self.retention_s = retention_s
        self.bytes_max = bytes_max
        self._folder = folder
        self._name = name
        self._now_s = now_s
        self._pattern = re.compile(re.escape(name) + r"-([0-9]{8}T[0-9]{6}Z)(?:-([0-9]{1,4}))?\.log")
        self._fd = -1
        self._path: Path | None = None
        self._opened_s = 0.0
        self._size_bytes = 0

    @property
    def newest(self) -> Path | None:
        """The file that is written, or was written last by whoever it was."""
        files = self._files()
        return self._path or (files[-1].path if files else None)

    def prepare(self, n_bytes: int) -> bool:
        """Makes a file ready for the next `n_bytes`; True: they will begin it. Raises OSError."""
        self._rotate(n_bytes)
        if self._fd < 0:
            self._open()
        return self._size_bytes == 0

    def append(self, lines: bytes) -> None:
        """Writes whole lines where prepare() said, or raises OSError and leaves none of them."""
        written = 0
        try:
            while written < len(lines):
                written += os.write(self._fd, lines[written:])
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, self._size_bytes)
            self.close()  # the next attempt begins with another file: this disk, or this file, may be gone
            raise
        self._size_bytes += written

    def sync(self) -> None:
        if self._fd >= 0:
            os.fdatasync(self._fd)

    def enforce(self) -> None:
        """Removes files whose oldest line is older than `retention_s`, and the oldest ones above `bytes_max`. The file
        that is written is ended before it is due. Raises OSError."""
        self._rotate(0)
        now_s = self._now_s()
        total = 0
        for file in reversed(self._files()):
            total += file.size_bytes
            # A clock that was wrong when the file was named must not keep it for ever.
            begun_s = file.begun_s if file.begun_s <= now_s + DAY_S else 0.0
            if file.path != self._path and (begun_s + self.retention_s <= now_s or total > self.bytes_max):
                file.path.unlink(missing_ok=True)
                total -= file.size_bytes

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1
        self._path = None

    def _rotate(self, n_bytes: int) -> None:
        if self._fd < 0:
            return
        now_s = self._now_s()
        period_s = self.retention_s / PERIODS
        is_old = now_s >= self._opened_s + period_s or now_s // DAY_S != self._opened_s // DAY_S
        is_large = self._size_bytes and self._size_bytes + n_bytes > self.bytes_max // SHARES
        if is_old or is_large or not self._is_there():
            self.close()

    def _is_there(self) -> bool:
        """Whether our path still leads to our file: who moved or removed it wants another."""
        try:
            assert self._path is not None
            found, ours = self._path.lstat(), os.fstat(self._fd)
        except OSError:
            return False
        return (found.st_dev, found.st_ino) == (ours.st_dev, ours.st_ino)

    def _open(self) -> None:
        self._folder.mkdir(mode=0o750, exist_ok=True)
        opened_s = self._now_s()
        stem = f"{self._name}-{datetime.fromtimestamp(opened_s, UTC).strftime(_DATE)}"
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        for attempt in range(SAME_SECOND_MAX):
            path = self._folder / (f"{stem}-{attempt}.log" if attempt else f"{stem}.log")
            try:
                self._fd = os.open(path, flags, 0o640)
                break
            except FileExistsError:
                continue
        else:
            raise OSError(errno.EEXIST, os.strerror(errno.EEXIST), stem)
        self._path, self._opened_s, self._size_bytes = path, opened_s, 0
        link = self._folder / f"{self._name}.log"
        new = self._folder / f".{self._name}.{os.getpid()}"
        with contextlib.suppress(OSError):  # a convenience, no more
            new.unlink(missing_ok=True)
            new.symlink_to(path.name)
            new.replace(link)

    def _files(self) -> list[_File]:
        """All files of this log, the oldest first."""
        found = []
        with contextlib.suppress(OSError):
            for entry in os.scandir(self._folder):
                match = self._pattern.fullmatch(entry.name)
                if match is None:
                    continue
                with contextlib.suppress(OSError, ValueError):
                    begun = datetime.strptime(match[1], _DATE).replace(tzinfo=UTC)
                    size_bytes = entry.stat(follow_symlinks=False).st_size
                    found.append(_File(begun.timestamp(), int(match[2] or 0), Path(entry.path), size_bytes))
        return sorted(found)
