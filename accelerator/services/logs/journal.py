"""Log lines for systemd's journal with fields of their own, by its native protocol.

systemd.io/JOURNAL_NATIVE_PROTOCOL. Used when the service manager says that our stderr is the journal; plain lines
otherwise (log_lines). No line is composed here, and no field holds a viewer's address or a query.
"""

from __future__ import annotations

import logging
import os
import re
import socket
from collections.abc import Mapping

from accelerator.services.logs.lines import LINE_BYTES_MAX, LogWriter
from accelerator.services.logs.queries import without_queries

JOURNAL_PATH = "/run/systemd/journal/socket"
IDENTIFIER = "acceleratord"
SEND_WITHIN_S = 2.0
# RFC 5424 section 6.2.1, as syslog(3) has them.
_PRIORITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
_DEBUG = 7
_NAME = re.compile(r"[a-z][a-z0-9_]{0,40}")


def is_journal(environ: Mapping[str, str], fd: int) -> bool:
    """Whether `fd` is the stream to the journal that $JOURNAL_STREAM names, DEVICE:INODE (systemd.exec(5))."""
    try:
        found = os.fstat(fd)
    except OSError:
        return False
    return environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


def encode(fields: Mapping[str, str]) -> bytes:
    """One entry. A value with a line feed is written with its length, so that none can look like another field."""
    parts = []
    for name, text in fields.items():
        value = text.encode("utf-8", "backslashreplace")[:LINE_BYTES_MAX]
        if b"\n" in value:
            parts.append(name.encode() + b"\n" + len(value).to_bytes(8, "little") + value + b"\n")
        else:
            parts.append(name.encode() + b"=" + value + b"\n")
    return b"".join(parts)


class JournalWriter(LogWriter):
    """Sends each line with PRIORITY, SYSLOG_IDENTIFIER and ACCELERATOR_... of log_lines.about(). What the journal
    doesn't take goes to `fd` as a plain line."""

    def __init__(self, fd: int, path: str = JOURNAL_PATH) -> None:
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.settimeout(SEND_WITHIN_S)
        super().__init__(fd)

    def encoded(self, record: logging.LogRecord) -> bytes:
        fields = {
            "MESSAGE": self.format(record).removeprefix(f"{IDENTIFIER}: "),
            "PRIORITY": str(next((number for level, number in _PRIORITIES if record.levelno >= level), _DEBUG)),
            "SYSLOG_IDENTIFIER": IDENTIFIER,
        }
        for name, value in getattr(record, "about", {}).items():
            if _NAME.fullmatch(name):
                fields[f"ACCELERATOR_{name.upper()}"] = without_queries(str(value))
        return encode(fields)

    def write(self, data: bytes) -> None:
        try:
            self._socket.sendto(data, self._path)
        except OSError:
            super().write(_message_of(data) + b"\n")


def _message_of(entry: bytes) -> bytes:
    """MESSAGE is the first field that encoded() writes."""
    if entry.startswith(b"MESSAGE\n"):
        return entry[16 : 16 + int.from_bytes(entry[8:16], "little")]
    return entry.removeprefix(b"MESSAGE=").partition(b"\n")[0]
