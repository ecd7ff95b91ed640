"""The chunked decoder: one table of bodies, fed whole, byte by byte, with bytes after the end (RFC 9112 7.1)."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accelerator.errors import OriginError
from accelerator.protocols.chunked import (
    EXCESS_MAX,
    LINE_SIZE_MAX,
    SIZE_DIGITS_MAX,
    TRAILERS_SIZE_MAX,
    ChunkedDecoder,
)

WHOLE = [
    (b"0\r\n\r\n", b""),
    (b"5\r\nhello\r\n0\r\n\r\n", b"hello"),
    (b"5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n", b"hello world"),
    (b"A\r\n0123456789\r\n00\r\n\r\n", b"0123456789"),
    (b"a;x\r\n0123456789\r\n0;y=z\r\n\r\n", b"0123456789"),
    (b'a \t; x = "q;\xff"\r\n0123456789\r\n0\r\n\r\n', b"0123456789"),
    (b"2\r\n\r\n\r\n0\r\n\r\n", b"\r\n"),
    (b"0\r\nX-Trailer: a b\r\nY:\r\n\r\n", b""),
    (b"0" * (SIZE_DIGITS_MAX - 1) + b"1\r\n!\r\n0\r\n\r\n", b"!"),
    (b"1;" + b"x" * (LINE_SIZE_MAX - 4) + b"\r\n!\r\n0\r\n\r\n", b"!"),
    (b"0\r\nX:" + b"t" * (TRAILERS_SIZE_MAX - 6) + b"\r\n\r\n", b""),
    (b"1\r\n!\r\n" * 5000 + b"0\r\n\r\n", b"!" * 5000),
]
BROKEN = [
    b"\r\n",
    b"x\r\n",
    b"-1\r\n",
    b"+5\r\nhello\r\n",
    b" 5\r\nhello\r\n",
    b"5 \r\nhello\r\n",
    b"0x5\r\nhello\r\n",
    b"5_0\r\n",
    b"5\nhello\r\n",
    b"5\r\nhello\n0\r\n\r\n",
    b"5\r\nhelloX0\r\n\r\n",
    b"5\r\nhello\rX",
    b"5;a\rb\r\nhello",
    b"5;a\x00b\r\nhello",
    b"5;a\x7fb\r\nhello",
    b"5,5\r\nhello",
    b"\xd9\xa5\r\nhello",
    b"0" * (SIZE_DIGITS_MAX + 1) + b"\r\n",
    b"f" * (SIZE_DIGITS_MAX + 1) + b"\r\n",
    b"1;" + b"x" * (LINE_SIZE_MAX - 3) + b"\r\n!\r\n",
    b"1" * (LINE_SIZE_MAX + 1),
    b"0\r\n\n",
    b"0\r\nX\r\n\r\n",
    b"0\r\nX :y\r\n\r\n",
    b"0\r\n X: y\r\n\r\n",
    b"0\r\nX: y\r\n folded\r\n\r\n",
    b"0\r\nX: \x00\r\n\r\n",
    b"0\r\nX: y\n\r\n",
    b"0\r\nX:" + b"t" * (TRAILERS_SIZE_MAX - 5) + b"\r\n\r\n",
    b"0\r\n" + b"X:\r\n" * (TRAILERS_SIZE_MAX // 4) + b"\r\n",
    (b"1;" + b"x" * 100 + b"\r\n!\r\n") * (EXCESS_MAX // 80),
]


def decode(*pieces: bytes) -> tuple[bytes, int, bool]:
    """Body, bytes consumed, and whether it ended."""
    decoder, body, consumed = ChunkedDecoder(), bytearray(), 0
    for piece in pieces:
        consumed += decoder.feed(memoryview(piece), body.extend)
    return bytes(body), consumed, decoder.finished


def in_bytes(data: bytes) -> list[bytes]:
    return [data[i : i + 1] for i in range(len(data))]


@pytest.mark.parametrize(("coded", "body"), WHOLE)
def test_9112_7_1_a_whole_body(coded: bytes, body: bytes) -> None:
    assert decode(coded) == (body, len(coded), True)
    assert decode(*in_bytes(coded)) == (body, len(coded), True)


@pytest.mark.parametrize(("coded", "body"), WHOLE)
def test_bytes_after_the_end_are_left(coded: bytes, body: bytes) -> None:
    assert decode(coded + b"HTTP/1.1 200 OK\r\n") == (body, len(coded), True)
    assert decode(*in_bytes(coded + b"HTTP/1.1 200 OK\r\n")) == (body, len(coded), True)


@pytest.mark.parametrize(("coded", "body"), WHOLE)
def test_9112_8_a_body_that_breaks_off_never_ends(coded: bytes, body: bytes) -> None:
    for end in range(len(coded)) if len(coded) < 200 else (1, len(coded) // 2, len(coded) - 1):
        part, consumed, finished = decode(coded[:end])
        assert (body.startswith(part), consumed, finished) == (True, end, False)


@pytest.mark.parametrize("coded", BROKEN)
def test_9112_7_1_what_is_not_of_the_grammar_is_refused(coded: bytes) -> None:
    with pytest.raises(OriginError) as whole:
        decode(coded)
    with pytest.raises(OriginError) as bytewise:
        decode(*in_bytes(coded))
    assert {whole.value.kind, bytewise.value.kind} == {"framing"}


@pytest.mark.parametrize("coded", [b"x", b"5\r\nhelloX", b"5\r\nhello\rX", b"\r", b"\x00"])
def test_a_wrong_byte_is_refused_at_once_and_not_by_a_time_out(coded: bytes) -> None:
    with pytest.raises(OriginError):
        decode(coded)


@given(st.lists(st.binary(min_size=1, max_size=50), max_size=8), st.data())
def test_any_chunks_cut_anywhere_give_the_body(chunks: list[bytes], data: st.DataObject) -> None:
    coded = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
    cuts = sorted(data.draw(st.lists(st.integers(0, len(coded)), max_size=6)))
    pieces = [coded[a:b] for a, b in zip([0, *cuts], [*cuts, len(coded)], strict=True)]
    assert decode(*pieces) == (b"".join(chunks), len(coded), True)


@pytest.mark.parametrize(("padding", "is_refused"), [(12, False), (13, True)])
def test_framing_may_outweigh_data_by_a_fixed_budget_only(padding: int, is_refused: bool) -> None:
    # 18 bytes of framing are free for one byte of data; each byte more is taken from the budget
    coded = (b"1;" + b"x" * padding + b"\r\n!\r\n") * EXCESS_MAX
    assert decode(coded)[2] is False
    with pytest.raises(OriginError) if is_refused else nullcontext():
        decode(coded + b"1;" + b"x" * padding + b"\r\n")


def test_data_is_handed_on_without_a_copy() -> None:
    buffer = bytearray(b"5\r\nhello\r\n0\r\n\r\n")
    views: list[memoryview] = []
    ChunkedDecoder().feed(memoryview(buffer), views.append)
    assert [view.obj is buffer for view in views] == [True]
