"""One request under way, as whoever made it holds it. Its life is the client's business (upstream.py)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from accelerator.io.body_writer import Body
from accelerator.io.connection import Connection
from accelerator.io.health import Attempt
from accelerator.io.origin import ParentProxy, Upstream
from accelerator.io.response import Sink


class Call:
    """After `cancel` its sink hears nothing more. Underscored parts belong to the client."""

    __slots__ = (
        "_attempt", "_become_stream", "_built_for", "_cancel", "_connection", "_idempotent", "_is_over", "_is_retry",
        "_is_stream", "_long_timer", "_paused", "_queue_timer", "_request", "_sink", "_task", "avoid", "body",
        "fields", "is_upgrade", "method", "target",
    )  # fmt: skip

    def __init__(
        self,
        cancel: Callable[[Call], None],
        method: bytes,
        target: bytes,
        fields: Sequence[tuple[bytes, bytes]],
        sink: Sink,
        idempotent: bool,
        avoid: Upstream | None,
        body: Body | None,
        become_stream: Callable[[Call], bool],
        is_upgrade: bool = False,
    ) -> None:
        self.is_upgrade = is_upgrade
        self.method = method
        self.target = target
        self.fields = fields
        self.avoid = avoid
        self.body = body
        self._become_stream = become_stream
        self._is_stream = False
        self._long_timer: asyncio.TimerHandle | None = None
        self._cancel = cancel
        self._sink = sink
        self._idempotent = idempotent
        self._is_over = False
        self._is_retry = False
        self._paused = False
        self._queue_timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self._connection: Connection[Call] | None = None
        self._attempt: Attempt | None = None
        self._built_for: tuple[Upstream, ParentProxy | None] | None = None
        self._request = b""

    @property
    def is_over(self) -> bool:
        """True once the sink has heard its last word, or the call was cancelled."""
        return self._is_over

    def pause(self) -> None:
        """From here on no body byte reaches the sink (its end or failure may); the body time-out stands still."""
        self._paused = True
        if self._connection is not None:
            self._connection.pause()

    def resume(self) -> None:
        self._paused = False
        if self._connection is not None:
            self._connection.resume()

    def body_ready(self) -> None:
        """More of the body has come, or its end."""
        if self._connection is not None:
            self._connection.send_body()

    def become_stream(self) -> bool:
        """Gives its place among the origin's connections back: it may go on for hours and say little. From here on the
        body time-out is that of streams. False: there are too many streams, and it stays what it is."""
        return self._become_stream(self)

    def cancel(self) -> None:
        """Gives the call up; a connection in mid-response is closed. Nothing happens when the call is over."""
        self._cancel(self)
