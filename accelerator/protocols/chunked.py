"""The chunked transfer coding, decoding (RFC 9112 section 7.1). Strict: guessed framing is how smuggling starts."""

from __future__ import annotations

import re
from collections.abc import Callable
from enum import Enum, auto

from accelerator.errors import OriginError

# 15 hex digits are 2**60 bytes, and no 64-bit sum of sizes overflows in whoever counts on.
SIZE_DIGITS_MAX = 15
# A size line with its extension; trailers as a whole. Node and Go allow 16 KiB and 4 KiB for a line.
LINE_SIZE_MAX = 1024
TRAILERS_SIZE_MAX = 8192
# Bytes of framing beyond 16 + 2 * data per chunk that a body may have in all: the budget of Go's net/http against
# one-byte chunks with long extensions (CVE-2023-39326).
EXCESS_MAX = 16 * 1024

_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,%d})(?:[ \t]*;[\t\x20-\x7e\x80-\xff]*)?" % SIZE_DIGITS_MAX)
_TRAILER_LINE = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[\t\x20-\x7e\x80-\xff]*")


class _State(Enum):
    SIZE = auto()
    DATA = auto()
    DATA_END = auto()
    TRAILER = auto()
    FINISHED = auto()


class ChunkedDecoder:
    """Feeds itself with what arrives, and hands the data on without copying it.

    Once `finished`, nothing more is consumed: what is left belongs to nobody, and the connection must not be reused.
    A connection that ends before `finished` broke the body off.
    """

    def __init__(self) -> None:
        self._state = _State.SIZE
        self._line = bytearray()
        self._left_size = 0
        self._trailers_size = 0
        self._excess_size = 0

    @property
    def finished(self) -> bool:
        """Whether the last chunk and the trailers have been read."""
        return self._state is _State.FINISHED

    def feed(self, data: memoryview, out: Callable[[memoryview], None]) -> int:
        """Decode bytes; `out` gets views into `data`, never empty ones. Returns how many bytes were consumed.

        Raises OriginError("framing") at the first byte that is not of the grammar; the decoder is useless then.
        """
        position, end = 0, len(data)
        while position < end and self._state is not _State.FINISHED:
            if self._state is _State.DATA:
                size = min(self._left_size, end - position)
                out(data[position : position + size])
                position += size
                self._left_size -= size
                if not self._left_size:
                    self._state = _State.DATA_END
                continue
            position = self._take_line(data, position)
        return position

    def _take_line(self, data: memoryview, position: int) -> int:
        limit = LINE_SIZE_MAX if self._state is _State.SIZE else TRAILERS_SIZE_MAX - self._trailers_size
        if self._state is _State.DATA_END:
            limit = 2
        piece = bytes(data[position : position + limit + 1 - len(self._line)])
        newline = piece.find(b"\n")
        self._line += piece if newline < 0 else piece[: newline + 1]
        if len(self._line) > limit:
            raise OriginError("framing", f"chunked coding: a line or the trailers are longer than {limit} bytes")
        if newline < 0:
            self._refuse_early()
            return position + len(piece)
        line = bytes(self._line)
        self._line.clear()
        # RFC 9112 section 2.2 lets a recipient take a bare LF in the head; nothing lets it do so in chunked framing.
        if not line.endswith(b"\r\n"):
            raise OriginError("framing", "chunked coding: a line ends in a bare LF")
        self._line_received(line[:-2])
        return position + newline + 1

    def _refuse_early(self) -> None:
        # Without this, one wrong byte after a chunk would wait for the origin's time-out before it is refused.
        if self._state is _State.DATA_END and bytes(self._line) not in (b"", b"\r"):
            raise OriginError("framing", "chunked coding: a chunk is longer than its size says")
        if self._state is _State.SIZE and bytes(self._line[:1]) not in _HEX_OR_NOTHING:
            raise OriginError("framing", "chunked coding: a chunk size is not hexadecimal")

    def _line_received(self, line: bytes) -> None:
        if self._state is _State.DATA_END:
            if line:
                raise OriginError("framing", "chunked coding: a chunk is longer than its size says")
            self._state = _State.SIZE
        elif self._state is _State.SIZE:
            self._size_received(line)
        else:
            self._trailers_size += len(line) + 2
            if not line:
                self._state = _State.FINISHED
            elif not _TRAILER_LINE.fullmatch(line):  # this refuses obs-fold too (RFC 9112 section 5.2)
                raise OriginError("framing", "chunked coding: a trailer line is malformed")

    def _size_received(self, line: bytes) -> None:
        match = _SIZE_LINE.fullmatch(line)
        if match is None:
            raise OriginError("framing", "chunked coding: a size line is malformed")
        self._left_size = int(match.group(1), 16)
        self._state = _State.DATA if self._left_size else _State.TRAILER
        self._excess_size = max(0, self._excess_size + len(line) + 4 - (16 + 2 * self._left_size))
        if self._excess_size > EXCESS_MAX:
            raise OriginError("framing", "chunked coding: too much framing for too little data")


_HEX_OR_NOTHING = frozenset(bytes([byte]) for byte in b"0123456789abcdefABCDEF") | {b""}
