"""Log lines with fields for the journal, received by a real socket; plain lines where there is none."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from accelerator.services.logs.journal import JournalWriter, encode, is_journal
from accelerator.services.logs.lines import about


def decoded(data: bytes) -> dict[str, str]:
    """An entry as the journal reads it: NAME=value, or NAME, a length and so many bytes."""
    found = {}
    while data:
        line, _, rest = data.partition(b"\n")
        name, mark, value = line.partition(b"=")
        if not mark:
            n = int.from_bytes(rest[:8], "little")
            value, end, data = rest[8 : 8 + n], rest[8 + n : 9 + n], rest[9 + n :]
            assert end == b"\n"
        else:
            data = rest
        found[name.decode()] = value.decode()
    return found


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiving:
        receiving.bind(str(tmp_path / "socket"))
        receiving.settimeout(10)
        yield receiving


def logger_of(writer: JournalWriter) -> logging.Logger:
    log = logging.Logger("test")
    writer.setFormatter(logging.Formatter("acceleratord: %(message)s"))
    log.addHandler(writer)
    return log


def test_lines_have_fields(journal: socket.socket, tmp_path: Path) -> None:
    writer = JournalWriter(2, str(tmp_path / "socket"))
    log = logger_of(writer)
    log.warning("origin media: %s", "refused", extra=about(event="origin-error", origin="media", **{"BAD=": "x"}))
    log.error("two\nlines")
    log.info("x", extra=about(origin="a\nPRIORITY=0", url="http://h/p?token=canary"))
    assert decoded(journal.recv(1 << 16)) == {
        "MESSAGE": "origin media: refused", "PRIORITY": "4", "SYSLOG_IDENTIFIER": "acceleratord",
        "ACCELERATOR_EVENT": "origin-error", "ACCELERATOR_ORIGIN": "media",
    }  # fmt: skip
    assert decoded(journal.recv(1 << 16))["MESSAGE"] == "two\nlines"
    third = decoded(journal.recv(1 << 16))
    assert (third["PRIORITY"], third["ACCELERATOR_ORIGIN"]) == ("6", "a\nPRIORITY=0")
    assert "canary" not in third["ACCELERATOR_URL"]
    writer.finish(5)


def test_without_a_journal_lines_are_plain(tmp_path: Path) -> None:
    plain = tmp_path / "stderr"
    with plain.open("wb") as file:
        writer = JournalWriter(file.fileno(), str(tmp_path / "nothing"))
        log = logger_of(writer)
        log.error("still told")
        log.error("in two\nlines")
        writer.finish(5)
    assert plain.read_bytes() == b"still told\nin two\nlines\n"


def test_the_service_manager_says_whether_stderr_is_the_journal(tmp_path: Path) -> None:
    with (tmp_path / "x").open("wb") as file:
        found = os.fstat(file.fileno())
        assert is_journal({"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"}, file.fileno())
        assert not is_journal({"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino + 1}"}, file.fileno())
        assert not is_journal({"JOURNAL_STREAM": "x"}, file.fileno())
        assert not is_journal({}, file.fileno())
    assert not is_journal({}, 999)


def test_no_value_can_look_like_a_field() -> None:
    fields = {"MESSAGE": "a\nPRIORITY=0\n", "X": "=\n", "Y": "", "Z": "\ud800"}
    assert decoded(encode(fields)) == {**fields, "Z": "\\ud800"}
