"""Where an upstream connection stands in its response, and whom it tells of the end. Reads and writes nothing."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from accelerator.protocols.fields import get_list

if TYPE_CHECKING:
    from accelerator.errors import OriginError
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
