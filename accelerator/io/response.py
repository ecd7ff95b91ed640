"""What the upstream client gives and needs: the parsed head (`Response`), its parser, where bytes go (`Sink`).

The parser is passed in: `io` stands above `dataplane.py`, the one file that imports compiled code.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from accelerator.errors import OriginError
    from accelerator.io.origin import Upstream
    from accelerator.io.switch import Switch

Fields = list[tuple[bytes, bytes]]


class Response(Protocol):
    """A response head. `content_length`: -1 without the field. `length`: bytes of the head with its empty line."""

    @property
    def status(self) -> int: ...
    @property
    def reason(self) -> bytes: ...
    @property
    def minor(self) -> int: ...
    @property
    def keep_alive(self) -> bool: ...
    @property
    def content_length(self) -> int: ...
    @property
    def chunked(self) -> bool: ...
    @property
    def fields(self) -> Fields: ...
    @property
    def length(self) -> int: ...


# Head bytes in; None: more are needed. On a bad head it raises the exception type that the client is given beside it.
ParseResponse = Callable[[bytes], Response | None]


class Sink(Protocol):
    """Who receives one response: interim_received*, head_received, (get_buffer, bytes_received)*, then ended or failed,
    once.

    Never called from within `UpstreamClient.request`. A sink may pause, resume or cancel its call from any of these.
    """

    def interim_received(self, response: Response) -> None:
        """A 1xx head but 101 (RFC 9110 section 15.2), before the final one; at most 16."""

    def head_received(self, response: Response, upstream: Upstream) -> None:
        """The final head."""

    def get_buffer(self, size_hint: int) -> memoryview:
        """Writable memory, never empty, where the next body bytes go. `size_hint`: what the body still has, or a guess.

        Another get_buffer may follow without bytes_received between (nothing was there to read).
        """

    def bytes_received(self, n: int) -> None:
        """`n` body bytes stand at the start of the last get_buffer(), which is not touched again."""

    def ended(self) -> None:
        """The body is complete and framed right (RFC 9112 section 6.3)."""

    def failed(self, error: OriginError, received_any: bool) -> None:
        """No (whole) response. `received_any`: bytes of it had come. `error.can_retry`: asking again may help."""


class SwitchSink(Sink, Protocol):
    """The sink of a request for another protocol: where that is granted, `switched` comes in place of all the rest."""

    def switched(self, response: Response, upstream: Upstream, first: bytes, connection: Switch) -> None:
        """101, and the new protocol's first bytes. Takes the connection or raises OriginError, which refuses it."""
