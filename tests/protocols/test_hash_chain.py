"""The chain of hashes through a log's lines."""

from __future__ import annotations

import json

import pytest

from accelerator.protocols.hash_chain import first_break, link_of, seal

SEALED = b',"link":"' + b"0" * 32 + b'"}'


def sealed(n: int, after: str = "") -> list[bytes]:
    link, lines = after, []
    for number in range(n):
        entry: dict[str, object] = {"number": number, "what": 'odd "text", \\ and é'}
        link, line = seal(link, {**entry, "after": after} if number == 0 else entry)
        lines.append(line)
    return lines


def test_what_was_sealed_holds() -> None:
    lines = sealed(5)
    assert first_break(lines) is None
    assert json.loads(lines[3])["link"] == link_of(lines[3])
    last = link_of(lines[-1])
    assert last is not None
    assert first_break(sealed(2, after=last)) is None
    assert first_break([]) is None


@pytest.mark.parametrize("number", range(5))
def test_a_change_is_found_where_it_is(number: int) -> None:
    lines = sealed(5)
    lines[number] = lines[number].replace(b"odd", b"old")
    found = first_break(lines)
    assert found is not None
    assert found[0] == number + 1


def test_lines_taken_out_put_in_or_moved_are_found() -> None:
    lines = sealed(5)
    assert first_break([*lines[:2], *lines[3:]]) == (3, "changed, or a line before it is gone")
    assert first_break([lines[0], lines[2], lines[1], *lines[3:]]) is not None
    assert first_break([*lines[:2], lines[1], *lines[2:]]) is not None
    assert first_break(lines[1:]) == (1, "the first line does not say what it follows")


@pytest.mark.parametrize(
    "line",
    [b"", b"\n", b"{}", b"\xff\xfe", b'{"link":"x"}', b"[" + SEALED, b'{"a":' + SEALED, b'{"after":1' + SEALED,
     b"[" * 100_000, b'{"after":' + b"[" * 100_000 + SEALED],
)  # fmt: skip
def test_anything_else_is_no_sealed_line(line: bytes) -> None:
    assert first_break([line]) is not None
