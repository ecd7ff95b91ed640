"""The security log: who changed what, and what was refused; STATE_DIR/logs/security-*.log, one JSON document a line.

Written by a thread of its own: nobody waits for a disk. What an outsider can cause is told once a cause and 10 s, with
how often. No whole address of anybody, no query. Each line is sealed (protocols.hash_chain).
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerator import clock
from accelerator.protocols.hash_chain import link_of, seal
from accelerator.services.logs.events import Events, clean
from accelerator.services.logs.files import LogFiles
from accelerator.services.logs.lines import EVERY_NS, Causes

log = logging.getLogger("accelerator")

ENTRIES_MAX = 1000
CAUSES_MAX = 512
TAIL_BYTES = 65536
LINE_BYTES_MAX = 8192
# Retention is looked after this often where nothing is written.
ENFORCE_S = 600.0

# Events that are told here too, by the kind that they have there.
KEPT_EVENTS = frozenset({
    "policy-applied", "policy-rolled-back", "policy-refused", "policy-withdrawn", "policy-hurts", "policy-fallback",
    "history-fault", "worker-ended", "drain",
})  # fmt: skip


class SecurityLog:
    """note() and refused() may be called from any thread, and cost no system call."""

    def __init__(
        self,
        folder: Path,
        *,
        retention_s: float,
        bytes_max: int,
        events: Events | None = None,
        wall_s: Callable[[], float] = clock.wall_s,
        now_ns: Callable[[], int] = clock.monotonic_ns,
    ) -> None:
        self.n_dropped = 0
        self.folder = folder
        self._files = LogFiles(folder, "security", wall_s, retention_s=retention_s, bytes_max=bytes_max)
        self._events = events
        self._wall_s = wall_s
        self._now_ns = now_ns
        self._queue: queue.Queue[dict[str, Any] | None] = queue.Queue(ENTRIES_MAX)
        self._lock = threading.Lock()
        # cause -> (when it was told last, how often since, the entry to tell)
        self._waiting: OrderedDict[tuple[str, str, str], tuple[int, int, dict[str, Any]]] = OrderedDict()
        self._causes = Causes()
        self._link = ""
        self._number = 0
        self._thread = threading.Thread(target=self._run, name="security-log", daemon=True)
        self._thread.start()

    def note(self, kind: str, what: str, **fields: str | int | None) -> None:
        """One act of somebody who may: each is told. `fields`: outcome, uid, pid, and what else is known."""
        self._put(self._entry(kind, what, fields))

    def refused(
        self, kind: str, what: str, *, viewer: str | None = None, n: int = 1, **fields: str | int | None
    ) -> None:
        """`n` times something was refused to somebody. `kind` says where (admin, control, request), `what` why: few
        texts. `viewer` is what may be kept of him (services.viewers). Told once a cause in 10 s, with the count."""
        cause = (kind, what, viewer or "")
        now_ns = self._now_ns()
        with self._lock:
            if cause not in self._waiting and len(self._waiting) >= CAUSES_MAX:
                # Somebody comes by many ways: from here on they count as one.
                cause, viewer = (kind, what, "*"), "*"
            last_ns, n_waiting, _ = self._waiting.get(cause, (now_ns - EVERY_NS, 0, {}))
            entry = self._entry(kind, what, {"outcome": "refused", "viewer": viewer, **fields})
            if now_ns - last_ns < EVERY_NS:
                self._waiting[cause] = (last_ns, n_waiting + n, entry)
                return
            self._waiting[cause] = (now_ns, 0, {})
        self._put({**entry, "count": n_waiting + n})

    def tick(self) -> None:
        """To be called each second: tells what was held back, once its 10 s are over."""
        now_ns = self._now_ns()
        due = []
        with self._lock:
            for cause, (last_ns, n_waiting, entry) in list(self._waiting.items()):
                if now_ns - last_ns < EVERY_NS:
                    continue
                if n_waiting:
                    due.append({**entry, "count": n_waiting})
                    self._waiting[cause] = (now_ns, 0, {})
                else:
                    del self._waiting[cause]
        for entry in due:
            self._put(entry)

    def keep(self, *, retention_s: float, bytes_max: int) -> None:
        """What the policy says from now on."""
        self._files.retention_s = retention_s
        self._files.bytes_max = bytes_max
        with contextlib.suppress(queue.Full):
            self._queue.put_nowait({})

    def finish(self, seconds: float) -> None:
        """Waits until all is written, but no longer than `seconds`."""
        with self._lock:
            waiting = [{**entry, "count": n} for _, n, entry in self._waiting.values() if n]
            self._waiting.clear()
        for entry in waiting:
            self._put(entry)
        with contextlib.suppress(queue.Full):
            self._queue.put(None, timeout=seconds)
            self._thread.join(seconds)

    def _entry(self, kind: str, what: str, fields: dict[str, str | int | None]) -> dict[str, Any]:
        entry: dict[str, Any] = {"at_s": round(self._wall_s(), 3), "kind": kind, "what": clean(what)}
        for name, value in fields.items():
            if value is not None:
                entry[name] = clean(value) if isinstance(value, str) else value
        return entry

    def _put(self, entry: dict[str, Any]) -> None:
        try:
            self._queue.put_nowait(entry)
        except queue.Full:
            self.n_dropped += 1

    # -- the thread ----------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        self._continue_chain()
        self._enforce()
        while True:
            try:
                entry = self._queue.get(timeout=ENFORCE_S)
            except queue.Empty:
                entry = {}
            if entry is None:
                break
            if entry:
                self._write(entry)
            if self._queue.empty():
                self._settle()
        self._settle()
        if self._number:
            log.info("security log: ends with link %s", self._link)
        self._files.close()

    def _continue_chain(self) -> None:
        """The first line of ours follows the last one that is there."""
        path = self._files.newest
        if path is None:
            return
        with contextlib.suppress(OSError), path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL_BYTES))
            for line in reversed(file.read().splitlines()):
                if (link := link_of(line)) is not None:
                    self._link = link
                    return

    def _write(self, entry: dict[str, Any]) -> None:
        try:
            if self._files.prepare(LINE_BYTES_MAX):
                if self._number:
                    log.info("security log: another file, which follows link %s", self._link)
                entry = {**entry, "after": self._link}
            link, line = seal(self._link, {"number": self._number + 1, **entry})
            self._files.append(line)
            self._link, self._number = link, self._number + 1
        except OSError as fault:
            self.n_dropped += 1
            self._complain(fault)

    def _settle(self) -> None:
        try:
            self._files.sync()
        except OSError as fault:
            self._complain(fault)
        self._enforce()

    def _enforce(self) -> None:
        try:
            self._files.enforce()
        except OSError as fault:
            self._complain(fault)

    def _complain(self, fault: OSError) -> None:
        end = self._causes.due("write", clock.monotonic_ns())
        if end is None:
            return
        log.error("security log: can't be written: %s%s", fault.strerror or fault, end)
        if self._events is not None:
            self._events.note_from_thread(
                "log-fault", "the security log can't be written", why=fault.strerror or "",
                advice="look at the disk of the state directory", cause="security-log",
            )  # fmt: skip
