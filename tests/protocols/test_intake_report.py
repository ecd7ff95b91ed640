"""What processes of inputs say, read with suspicion."""

from __future__ import annotations

import pytest

from accelerator.protocols.intake_report import LINE_BYTES_MAX, TEXT_MAX, Lines, plain, read_report


def test_a_report_is_read() -> None:
    said = read_report(b'{"state":"waiting","why":"Connection timeout","refused":{"source":3},"stats":{"packets":7}}')
    assert said is not None
    assert (said.state, said.why, said.refused, said.stats) == (
        "waiting", "Connection timeout", {"source": 3}, {"packets": 7},
    )  # fmt: skip


@pytest.mark.parametrize(
    "line",
    [b"", b"[]", b"null", b"{", b'{"state":"root"}', b'{"state":["waiting"]}', b"[" * 4000, b"{" + b" " * 4096 + b"}"],
)
def test_what_is_no_report(line: bytes) -> None:
    assert read_report(line) is None


def test_what_is_no_count_is_left_out() -> None:
    said = read_report(b'{"stats":{"packets":-1,"missed":true,"given_up":1e3,"undecrypted":1,"x":2},"refused":7}')
    assert said is not None
    assert (said.stats, said.refused) == ({"undecrypted": 1}, {})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("rejected 10.12.0.7:9000: no", "rejected ADDRESS: no"),
        ("peer [2001:db8::7]:9000 gone", "peer ADDRESS gone"),
        ("fe80::1 and ::ffff:10.0.0.1", "ADDRESS and ADDRESS"),
        ("a\x1b[31m\nb\u202e", "a [31m b"),
        ("10:59:46.1 error", "10:59:46.1 error"),
    ],
)
def test_texts_are_one_line_without_addresses(text: str, expected: str) -> None:
    assert plain(text) == expected


def test_texts_are_bounded() -> None:
    assert len(plain("x" * 100_000)) == TEXT_MAX


def test_a_line_that_is_too_long_is_dropped_whole() -> None:
    lines = Lines()
    assert lines.add(b"a\nb") == [b"a"]
    assert lines.add(b"c\n") == [b"bc"]
    assert lines.add(b"x" * (LINE_BYTES_MAX + 1)) == []
    assert lines.add(b"y" * LINE_BYTES_MAX) == []
    assert lines.add(b"end of it\nnext\n") == [b"next"]
