"""Writes a request's body behind its head, as fast as it comes and the origin reads (RFC 9112 section 6). No socket."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from accelerator.io.response import Fields

# What is taken of a body at once: with the transport's own 64 KiB, all that one upload holds here.
PIECE_BYTES = 65536


class Body(Protocol):
    """A request's body. It says that more has come by Call.body_ready()."""

    @property
    def length(self) -> int:
        """In bytes; -1: not known, so it goes up chunked."""

    def read(self, most: int) -> bytes | None:
        """Up to `most` bytes; none: nothing has come. None: that was all."""

    def trailers(self) -> Fields:
        """What goes after a chunked body; asked for once that has ended."""


class BodyWriter:
    """`write` takes bytes; between `pause` and `resume` none are given to it."""

    def __init__(self, body: Body, write: Callable[[bytes], None]) -> None:
        self.is_done = False
        self.is_paused = False
        self._body = body
        self._write = write
        self._is_chunked = body.length < 0
        self._left = body.length

    def pump(self) -> None:
        """Writes what there is, until the origin doesn't keep up. Raises ValueError for a body of another length."""
        while not self.is_paused and not self.is_done:
            piece = self._body.read(PIECE_BYTES)
            if piece is None:
                self._end()
            elif not piece:
                return
            elif self._is_chunked:
                self._write(b"%x\r\n%b\r\n" % (len(piece), piece))
            else:
                self._left -= len(piece)
                if self._left < 0:
                    raise ValueError("a body longer than its Content-Length")
                self._write(piece)

    def _end(self) -> None:
        if self._is_chunked:
            lines = b"".join(b"%b: %b\r\n" % field for field in self._body.trailers())
            self._write(b"0\r\n%b\r\n" % lines)
        elif self._left:
            raise ValueError("a body shorter than its Content-Length")
        self.is_done = True
