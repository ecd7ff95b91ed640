"""The access log, and refused requests for the security log: a thread that reads what workers tell of their answers.

It makes lines without the GIL (ext.access_reader) and writes them to STATE_DIR/logs/access-*.log. No worker ever waits
for it: what they can't tell is counted.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path

from accelerator import clock
from accelerator.dataplane import DataPlane
from accelerator.policy.compile import Tables
from accelerator.services.logs.events import Events
from accelerator.services.logs.files import DAY_S, LogFiles
from accelerator.services.logs.lines import Causes
from accelerator.services.logs.security import SecurityLog

log = logging.getLogger("accelerator")

# A ring of 8,192 records is full after this at 160,000 requests/s.
EVERY_S = 0.05
# While the access log is off there are refusals only.
EVERY_WHEN_OFF_S = 0.25
BATCH_BYTES = 1 << 20
ENFORCE_S = 60.0
# A worker finishes with the tables that it has; a policy or two later nobody does.
GENERATIONS_KEPT = 8

REFUSALS = {
    400: "not HTTP", 403: "zone not served by the listener", 405: "method not allowed", 408: "head too slow",
    413: "body not allowed or too large", 414: "target too long", 416: "range", 421: "unknown host",
    431: "head too large", 501: "method or coding not implemented", 505: "HTTP version",
}  # fmt: skip


class DayKey:
    """The key of viewers' hashes: another each day (UTC), in memory only: yesterday's hashes are of nobody any more."""

    def __init__(self, wall_s: Callable[[], float]) -> None:
        self._wall_s = wall_s
        self._day = -1
        self._key = b""

    def __call__(self) -> bytes:
        day = int(self._wall_s() // DAY_S)
        if day != self._day:
            self._day, self._key = day, os.urandom(16)
        return self._key


class RequestLog:
    """Made before the workers start. `publish` tells of each policy; `finish` ends it."""

    def __init__(
        self,
        folder: Path,
        dataplane: DataPlane,
        security: SecurityLog,
        events: Events,
        *,
        wall_s: Callable[[], float] = clock.wall_s,
    ) -> None:
        self.n_written = 0
        self.n_unwritten = 0
        self._files = LogFiles(folder, "access", wall_s, retention_s=DAY_S, bytes_max=BATCH_BYTES)
        self._dataplane = dataplane
        self._reader = dataplane.access_reader()
        self._security = security
        self._events = events
        self._wall_s = wall_s
        self._day_key = DayKey(wall_s)
        self._causes = Causes()
        # (generation of the tables, names of its zones), the newest first; replaced whole, as the thread reads it
        self._zones: list[tuple[int, list[bytes]]] = []
        self._is_on = False
        self._names_viewers = False
        self._ending = threading.Event()
        self._n_unlisted = 0
        self._thread = threading.Thread(target=self._run, name="request-log", daemon=True)

    def prepare(self, tables: Tables, generation: int) -> None:
        """To be called before tables are published as `generation`. Raises MemoryError."""
        logs = tables.logs
        if logs.has_access:
            self._reader.open()
        self._zones = [(generation, [name.encode() for name in tables.zones]), *self._zones][:GENERATIONS_KEPT]
        self._files.retention_s = logs.access_retention_s
        self._files.bytes_max = logs.access_bytes
        self._is_on = logs.has_access
        self._names_viewers = logs.security_has_viewers

    def start(self) -> None:
        self._thread.start()

    def finish(self, seconds: float) -> None:
        """Writes what there is; to be called when no worker runs any more. Waits no longer than `seconds`."""
        self._ending.set()
        if self._thread.is_alive():
            self._thread.join(seconds)

    # -- the thread ----------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        enforced_ns = 0
        while True:
            is_last = self._ending.wait(EVERY_S if self._is_on else EVERY_WHEN_OFF_S)
            self._tell_refusals()
            while self._write_batch() >= BATCH_BYTES:
                pass
            now_ns = clock.monotonic_ns()
            if now_ns - enforced_ns > ENFORCE_S * 1e9:
                enforced_ns = now_ns
                try:
                    self._files.enforce()
                except OSError as fault:
                    self._complain(fault)
            if is_last:
                break
        self._files.close()

    def _write_batch(self) -> int:
        """How many bytes it was."""
        lines, n = self._reader.lines(
            int(self._wall_s() * 1e9) - clock.monotonic_ns(), self._day_key(), self._dataplane.listener_names(),
            self._dataplane.origin_names(), self._zones, BATCH_BYTES,
        )  # fmt: skip
        if not n:
            return 0
        try:
            self._files.prepare(len(lines))
            self._files.append(lines)
            self.n_written += n
        except OSError as fault:
            self.n_unwritten += n
            self._complain(fault)
        return len(lines)

    def _tell_refusals(self) -> None:
        listeners = self._dataplane.listener_names()
        for (status, is_framing, listener, zone, viewer), n in self._reader.refusals(
            self._day_key(), self._zones
        ).items():
            what = "two framings of one body (request smuggling?)" if is_framing else REFUSALS.get(status, "refused")
            self._security.refused(
                "request", f"{status} {what}", n=n, zone=zone.decode() or None,
                viewer=(viewer.decode() or None) if self._names_viewers else None,
                listener=listeners[listener].decode() if listener < len(listeners) else None,
            )  # fmt: skip
        n_unlisted = self._dataplane.plane.totals()["refusals_unlisted"]
        if n_unlisted > self._n_unlisted:
            self._security.refused("request", "more than can be listed", n=n_unlisted - self._n_unlisted)
            self._n_unlisted = n_unlisted

    def _complain(self, fault: OSError) -> None:
        end = self._causes.due("write", clock.monotonic_ns())
        if end is None:
            return
        reason = fault.strerror or str(fault)
        log.error("access log: can't be written, viewers are served: %s%s", reason, end)
        self._events.note_from_thread(
            "log-fault", "the access log can't be written; viewers are served", why=reason,
            advice="look at the disk of the state directory, or switch logs.access off", cause="access-log",
        )  # fmt: skip
