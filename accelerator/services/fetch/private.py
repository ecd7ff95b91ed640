"""Responses for one viewer alone: the object that carries one, interim heads, event streams. Nothing here is listed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from accelerator import clock
from accelerator.errors import OriginError
from accelerator.protocols.fields import get_first, has, without_hop_by_hop
from accelerator.protocols.representation import stored_fields
from accelerator.services.objects.heads import compose, join_lines, status_line, with_exposed

if TYPE_CHECKING:
    from typing import Any

    from accelerator.dataplane import StoredObject
    from accelerator.io.response import Fields, Response

EVENT_STREAM = b"text/event-stream"
# Framing is ours, and an interim response sets no state that the final one has not confirmed.
_NOT_INTERIM = frozenset({b"content-length", b"set-cookie"})


def private_object(
    plane: Any, origin_id: int, response: Response, *, requested_ns: int, response_ns: int
) -> StoredObject:
    """An object for a response that is its asker's. Raises OriginError('no-memory')."""
    fields = stored_fields(response.fields, response_wall_s=clock.wall_s(), shared=False)
    head = compose(
        response.status, with_exposed(fields), None,
        request_ns=requested_ns, response_ns=response_ns, has_age=has(response.fields, b"age"),
    )  # fmt: skip
    stored: StoredObject | None = plane.create(
        origin_id, response.content_length, *head.arguments(), True, False, 0, 0
    )
    if stored is None:
        raise OriginError("no-memory", "no memory for a response", status=503)
    return stored


def is_event_stream(fields: Fields) -> bool:
    """Whether a response goes on as long as somebody listens (HTML standard, section 9.2)."""
    content_type = get_first(fields, b"content-type") or b""
    return content_type.partition(b";")[0].strip(b" \t").lower() == EVENT_STREAM


def interim_head(response: Response) -> bytes:
    """A 1xx head as viewers get it."""
    fields = [field for field in without_hop_by_hop(response.fields) if field[0].lower() not in _NOT_INTERIM]
    return status_line(response.status) + join_lines(fields) + b"\r\n"
