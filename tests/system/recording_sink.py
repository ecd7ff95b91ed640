"""A sink that writes down what it hears and refuses calls out of order. Test support, no test."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from accelerator.errors import OriginError
from accelerator.io.response import Response
from accelerator.io.upstream import Upstream

_FILL = 0xA5


class RecordingSink:
    """`calls`: ("head", status), body bytes joined over calls, ("ended",) or ("failed", kind, status, received_any).

    Every get_buffer gives new memory of `size` bytes at most, so that bytes written outside what was announced show.
    `on` maps a method's name to a function that runs inside it.
    """

    def __init__(self, size: int = 65536, on: dict[str, Callable[[], Any]] | None = None) -> None:
        self.size = size
        self.on = on or {}
        self.calls: list[Any] = []
        self.interims: list[int] = []
        self.size_hints: list[int] = []
        self.n_heads = 0
        self.response: Response | None = None
        self.upstream: Upstream | None = None
        self.error: OriginError | None = None
        self.memories: list[bytearray] = []
        self.violations: list[str] = []
        self._given: bytearray | None = None
        self._over = asyncio.Event()
        self._heard = asyncio.Condition()

    @property
    def body(self) -> bytes:
        return b"".join(call for call in self.calls if isinstance(call, bytes))

    @property
    def is_over(self) -> bool:
        return self._over.is_set()

    def interim_received(self, response: Response) -> None:
        if self.n_heads:
            self.violations.append("an interim response after the final one")
        self.interims.append(response.status)
        self._hook("interim_received")

    def head_received(self, response: Response, upstream: Upstream) -> None:
        self._note(("head", response.status))
        self.n_heads += 1
        if self.n_heads > 1:
            self.violations.append("two heads")
        self.response, self.upstream = response, upstream
        self._hook("head_received")

    def get_buffer(self, size_hint: int) -> memoryview:
        if self.n_heads != 1 or self.is_over:
            self.violations.append("get_buffer outside a body")
        if size_hint <= 0:
            self.violations.append(f"size_hint {size_hint}")
        self.size_hints.append(size_hint)
        self._hook("get_buffer")
        self._given = bytearray([_FILL]) * self.size
        self.memories.append(self._given)
        return memoryview(self._given)

    def bytes_received(self, n: int) -> None:
        given, self._given = self._given, None
        if given is None or not 0 < n <= len(given) or self.is_over:
            self.violations.append(f"bytes_received({n}) without a buffer for them")
            return
        if given.count(_FILL, n) != len(given) - n:
            self.violations.append("bytes beyond those announced")
        if self.calls and isinstance(self.calls[-1], bytes):
            self.calls[-1] += bytes(given[:n])
        else:
            self._note(bytes(given[:n]))
        self._hook("bytes_received")

    def ended(self) -> None:
        self._end(("ended",))
        self._hook("ended")

    def failed(self, error: OriginError, received_any: bool) -> None:
        self.error = error
        self._end(("failed", error.kind, error.status, received_any))
        self._hook("failed")

    async def over(self) -> list[Any]:
        """What was heard, once the end was."""
        await asyncio.wait_for(self._over.wait(), 20)
        assert not self.violations
        return self.calls

    def _end(self, call: Any) -> None:
        if self.is_over:
            self.violations.append(f"{call} after the end")
        self.calls.append(call)
        self._over.set()

    def _note(self, call: Any) -> None:
        if self.is_over:
            self.violations.append(f"{call} after the end")
        self.calls.append(call)

    def _hook(self, name: str) -> None:
        hook = self.on.get(name)
        if hook is not None:
            hook()


async def until(condition: Callable[[], bool], what: str = "condition") -> None:
    """Runs the loop until `condition` holds; 20 s at most."""
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.001)
    assert condition(), what
