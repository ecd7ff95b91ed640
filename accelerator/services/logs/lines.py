"""Log lines that can't stop the box: written by a thread of their own, bounded in number, one per cause and 10 s.

A log that nobody reads (a full disk, a stopped reader of the pipe) costs lines, which are counted, and never a request
(reliability.md fault 47). No line is composed here.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import threading

LINES_MAX = 1000
LINE_BYTES_MAX = 16384
EVERY_NS = 10_000_000_000


def about(**fields: str) -> dict[str, dict[str, str]]:
    """For `extra` of a log call: what the line is about (event, origin, listener, ...), as fields of the journal."""
    return {"about": fields}


class LogWriter(logging.Handler):
    """Hands formatted lines to a thread that writes them to descriptor `fd`. `n_dropped` counts those it couldn't."""

    def __init__(self, fd: int) -> None:
        super().__init__()
        self.n_dropped = 0
        self._fd = fd
        self._lines: queue.Queue[bytes | None] = queue.Queue(LINES_MAX)
        # A daemon thread: when the box ends, a reader that does not read must not keep it.
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._lines.put_nowait(self.encoded(record))
        except queue.Full:
            self.n_dropped += 1
        except Exception:
            self.handleError(record)

    def encoded(self, record: logging.LogRecord) -> bytes:
        return self.format(record).encode("utf-8", "backslashreplace")[:LINE_BYTES_MAX] + b"\n"

    def write(self, data: bytes) -> None:
        """In the thread. Raises OSError."""
        while data:
            data = data[os.write(self._fd, data) :]

    def finish(self, seconds: float) -> None:
        """Waits until all is written, but no longer than `seconds`."""
        with contextlib.suppress(queue.Full):
            self._lines.put(None, timeout=seconds)
            self._thread.join(seconds)

    def _run(self) -> None:
        while (line := self._lines.get()) is not None:
            try:
                self.write(line)
            except OSError:
                self.n_dropped += 1


class Causes:
    """Which lines are due: the first of a cause, then one in ten seconds, which says how many were left out."""

    def __init__(self) -> None:
        self._last: dict[str, tuple[int, int]] = {}

    def due(self, cause: str, now_ns: int) -> str | None:
        """What to end the line with; None: it is not to be written."""
        last_ns, n_left_out = self._last.get(cause, (now_ns - EVERY_NS, 0))
        if now_ns - last_ns < EVERY_NS:
            self._last[cause] = (last_ns, n_left_out + 1)
            return None
        self._last[cause] = (now_ns, 0)
        return f" (and {n_left_out} more since)" if n_left_out else ""
