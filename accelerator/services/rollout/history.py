"""Policies that were applied, kept as files in STATE_DIR/policies: their text, when, by whom, and what became of them.

Each entry is a file of its own, written whole under another name, synced and renamed: after kill -9 or a power cut at
any point an entry is there as it was or as it became. What can't be read back is ignored, and told as an event. No
policy is checked or applied here.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from accelerator.errors import AcceleratorError
from accelerator.services.logs.folders import make_folder

ENTRIES_MAX = 50
# 1 MiB of policy, each byte escaped by JSON, and the rest of the entry.
FILE_BYTES_MAX = 8 << 20
FORMAT = 1
OUTCOMES = ("refused", "applied", "good", "withdrawn")
ORIGINS = ("start", "reload", "apply", "rollback", "withdrawal")
REASON_MAX = 2000

_NAME = re.compile(r"([0-9]{8})\.json")
_DIGEST = re.compile(r"[0-9a-f]{64}")

Texts = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Entry:
    """`digest` is of the policy's meaning ("" where it had none), `source_digest` of the text. `at_s` since the epoch.
    `by`: one of ORIGINS; `outcome`: one of OUTCOMES. `restores`: the entry whose policy this one brought back.
    `file_digest`: of the text that --policy named at that time. `n`: how often in a row the same was refused."""

    number: int
    at_s: float
    by: str
    outcome: str
    reason: str
    digest: str
    source_digest: str
    file_digest: str
    path: str
    folder: str
    files: Texts
    restores: int | None = None
    n: int = 1

    @property
    def position(self) -> int:
        """Where its policy stands in time: a rollback's is that of the entry it brought back."""
        return self.number if self.restores is None else self.restores

    @property
    def texts(self) -> list[tuple[str, bytes]]:
        return [(name, text.encode()) for name, text in self.files]

    def summary(self) -> dict[str, Any]:
        """What operators are shown: without the text."""
        shown = asdict(self)
        del shown["files"], shown["folder"], shown["file_digest"]
        return shown


def source_digest(files: Iterable[tuple[str, bytes]]) -> str:
    """Of the content only: the same files in another folder are the same."""
    total = sha256()
    for _, data in files:
        total.update(sha256(data).digest())
    return total.hexdigest()


class History:
    """All entries, the oldest first. `note_fault` hears one line for each file that is ignored or can't be written.

    Writing blocks for as long as the disk needs to sync: call `add` and `mark` off the loop, one at a time.
    """

    def __init__(self, directory: Path, note_fault: Callable[[str], None]) -> None:
        self._directory = directory
        self._note_fault = note_fault
        self.entries: tuple[Entry, ...] = ()

    def load(self) -> None:
        """Reads what is there. Raises nothing: without a directory there is no history, and that is told."""
        entries = []
        try:
            make_folder(self._directory, 0o750)
            names = sorted(os.listdir(self._directory))
        except OSError as fault:
            self._note_fault(f"{self._directory}: {fault.strerror}")
            return
        for name in names:
            path = self._directory / name
            match = _NAME.fullmatch(name)
            if match is None:
                continue  # what was being written when its process ended is written over by the next of its number
            entry = self._read(path)
            if entry is None or entry.number != int(match[1]):
                self._note_fault(f"{path} is damaged, and ignored")
                continue
            entries.append(entry)
        self.entries = tuple(entries)

    # -- what is asked for ---------------------------------------------------------------------------------------------

    def get(self, number: int) -> Entry | None:
        return next((entry for entry in self.entries if entry.number == number), None)

    @property
    def running(self) -> Entry | None:
        """The policy that was applied last."""
        return next((entry for entry in reversed(self.entries) if entry.outcome in ("applied", "good")), None)

    def last_good(self, *, before: int | None = None, but: str = "") -> Entry | None:
        """The newest policy that proved good and is not quarantined. `before`: it stood before this position; `but`:
        it is not the one of this digest."""
        return self._newest("good", before, but)

    def last_applied(self, *, before: int | None = None, but: str = "") -> Entry | None:
        """The newest policy that ran, proved or not, and is not quarantined."""
        return self._newest("applied", before, but)

    def _newest(self, outcome: str, before: int | None, but: str) -> Entry | None:
        for entry in reversed(self.entries):
            if (
                entry.outcome == outcome
                and (before is None or entry.position < before)
                and entry.digest != but
                and self.quarantine(entry.digest, entry.source_digest) is None
            ):
                return entry
        return None

    def quarantine(self, digest: str, source: str) -> Entry | None:
        """The withdrawn entry of this policy or this very text, unless it was applied by force, or proved good, since.
        """
        for entry in reversed(self.entries):
            if (digest and entry.digest == digest) or entry.source_digest == source:
                if entry.outcome == "withdrawn":
                    return entry
                if entry.outcome in ("applied", "good"):
                    return None
        return None

    # -- what is written -----------------------------------------------------------------------------------------------

    def add(
        self,
        *,
        at_s: float,
        by: str,
        outcome: str,
        digest: str,
        path: str,
        folder: str,
        files: Sequence[tuple[str, bytes]],
        file_digest: str,
        reason: str = "",
        restores: int | None = None,
    ) -> Entry:
        """A new entry, on disk when this returns. The same text refused again for the same reason is counted only:
        a sync that brings it every minute must not push the good ones out."""
        source = source_digest(files)
        for last in reversed(self.entries):
            if last.outcome != "refused":
                break
            if outcome == "refused" and last.source_digest == source and last.reason == reason[:REASON_MAX]:
                return self._replace(replace(last, at_s=at_s, n=last.n + 1))
        texts = tuple((name, data.decode("utf-8", "replace")) for name, data in files)
        number = self.entries[-1].number + 1 if self.entries else 1
        entry = Entry(
            number, at_s, by, outcome, reason[:REASON_MAX], digest, source, file_digest, path, folder, texts, restores
        )
        self._write(entry)
        self.entries = (*self.entries, entry)
        self._prune()
        return entry

    def mark(self, entry: Entry, outcome: str, reason: str) -> Entry:
        """Says what became of an entry."""
        return self._replace(replace(entry, outcome=outcome, reason=reason[:REASON_MAX]))

    def _replace(self, entry: Entry) -> Entry:
        self._write(entry)
        self.entries = tuple(entry if known.number == entry.number else known for known in self.entries)
        return entry

    def _prune(self) -> None:
        """Least worth first: refusals, what ran without proof, what was good once, and last what is quarantined.

        Never what runs, nor the last good one: while those stay there are at most two that can't go."""
        kept = {entry.number for entry in (self.running, self.last_good()) if entry is not None}
        while len(self.entries) > ENTRIES_MAX:
            free = [entry for entry in self.entries if entry.number not in kept]
            gone = min(free, key=lambda entry: (OUTCOMES.index(entry.outcome), entry.number))
            for path in (self._path(gone.number), self._path(gone.number).with_suffix(".new")):
                with contextlib.suppress(OSError):
                    path.unlink()
            self.entries = tuple(entry for entry in self.entries if entry is not gone)

    # -- files ---------------------------------------------------------------------------------------------------------

    def _path(self, number: int) -> Path:
        return self._directory / f"{number:08}.json"

    def _write(self, entry: Entry) -> None:
        """A disk that refuses costs the history, never the reload: it is told, and the entry lives in memory."""
        path = self._path(entry.number)
        new = path.with_suffix(".new")
        try:
            fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640)
            try:
                with open(fd, "wb", closefd=False) as stream:
                    stream.write(encode_entry(entry))
                os.fchmod(fd, 0o640)
                os.fsync(fd)
            finally:
                os.close(fd)
            os.rename(new, path)
            folder = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as fault:
            self._note_fault(f"{path} could not be written: {fault.strerror}")

    @staticmethod
    def _read(path: Path) -> Entry | None:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            with open(fd, "rb") as stream:
                data = stream.read(FILE_BYTES_MAX + 1)
        except OSError:
            return None
        return decode_entry(data)


def encode_entry(entry: Entry) -> bytes:
    """A line with the checksum of the rest, then the entry as JSON."""
    body = json.dumps({"format": FORMAT, **asdict(entry)}, indent=1).encode() + b"\n"
    return sha256(body).hexdigest().encode() + b"\n" + body


def decode_entry(data: bytes) -> Entry | None:
    """What encode_entry gave, or None for anything else. Raises nothing."""
    checksum, _, body = data.partition(b"\n")
    if len(data) > FILE_BYTES_MAX or checksum != sha256(body).hexdigest().encode():
        return None
    try:
        document = json.loads(body)
        return _entry(document)
    except (ValueError, TypeError, KeyError, RecursionError, AcceleratorError):
        return None


def _entry(document: Any) -> Entry:
    """Raises ValueError, TypeError, KeyError where the document, checksum right or not, is no entry."""
    if not isinstance(document, dict) or document.pop("format", None) != FORMAT:
        raise ValueError("another format")
    files = tuple((_text(name), _text(text)) for name, text in document.pop("files"))
    entry = Entry(files=files, **document)
    for value in (entry.by, entry.outcome, entry.reason, entry.path, entry.folder):
        _text(value)
    for number in (entry.number, entry.n, *(() if entry.restores is None else (entry.restores,))):
        if type(number) is not int or not 0 < number < 10**8:
            raise ValueError("not a number of an entry")
    if type(entry.at_s) not in (int, float) or not 0 <= entry.at_s < 1e12:
        raise ValueError("not a time")
    if entry.by not in ORIGINS or entry.outcome not in OUTCOMES:
        raise ValueError("not an outcome")
    if not _DIGEST.fullmatch(_text(entry.source_digest)) or not all(
        _DIGEST.fullmatch(_text(digest)) for digest in (entry.digest, entry.file_digest) if digest != ""
    ):
        raise ValueError("not a digest")
    return entry


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("not text")
    value.encode()  # half a surrogate pair is no text: UnicodeEncodeError is a ValueError
    return value
