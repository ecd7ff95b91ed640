"""Where an upstream connection stands in its response, whom it tells of the end, and what went wrong. Reads and writes
nothing."""

from __future__ import annotations

import ssl
from enum import Enum
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from accelerator.errors import OriginError
from accelerator.protocols.fields import get_list

if TYPE_CHECKING:
    from accelerator.io.origin import Upstream
    from accelerator.io.response import Response

CallContra = TypeVar("CallContra", contravariant=True)


class Phase(Enum):
    """What the next byte from the origin is."""

    IDLE = "idle"  # excess
    HEAD = "head"
    LENGTH = "length"  # body, Content-Length says where it ends
    CHUNKED = "chunked"
    UNTIL_CLOSE = "until-close"  # body, ends with the connection
    DONE = "done"  # excess; the response is complete but its end not yet told
    CLOSED = "closed"  # nobody's


BODY = (Phase.LENGTH, Phase.CHUNKED, Phase.UNTIL_CLOSE)


class Owner(Protocol[CallContra]):
    """What a connection tells its client, which calls the sink's ended() and failed() when its books are right.

    head_arrived may refuse the response by OriginError: the sink hears of no head then.
    """

    def head_arrived(self, call: CallContra, upstream: Upstream, response: Response) -> None: ...
    def exchange_ended(self, connection: Any, call: CallContra, can_reuse: bool) -> None: ...
    def exchange_failed(self, connection: Any, call: CallContra, error: OriginError, received_any: bool) -> None: ...
    def connection_gone(self, connection: Any) -> None: ...


def is_kept(response: Response) -> bool:
    """Whether a proxy says that it reads another request from this connection.

    Silence is not enough: tinyproxy 1.11 sends what comes next to the same origin as it stands, our log-in included.
    """
    return any(option.lower() == b"keep-alive" for option in get_list(response.fields, b"connection"))


def why_lost(upstream: Upstream, exc: Exception | None, received_any: bool) -> OriginError:
    """What the end of a connection, by `exc` or in good order, means for a response that isn't complete."""
    message = f"{upstream}: {exc or 'closed'}"
    if isinstance(exc, ssl.SSLError):
        return OriginError("tls", message)
    if exc is not None:
        return OriginError("reset", message, can_retry=True)
    if not received_any:
        return OriginError("closed", f"{upstream}: closed without a response", can_retry=True)
    return OriginError("truncated", f"{upstream}: closed within the response", can_retry=True)


def late(upstream: Upstream, phase: Phase, body_timeout_s: float, *, is_sending: bool) -> OriginError:
    """What it means that nothing more came in `phase`; `is_sending`: the request's body isn't out yet."""
    if phase is not Phase.HEAD:
        message = f"{upstream}: no byte for {body_timeout_s:g} s"
        return OriginError("body-timeout", message, status=504, can_retry=True)
    if is_sending:
        message = f"{upstream}: takes no byte of the request's body for {body_timeout_s:g} s"
        return OriginError("upload-timeout", message, status=504)
    return OriginError("head-timeout", f"{upstream}: no response head in time", status=504, can_retry=True)
