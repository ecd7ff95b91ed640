"""netd's end of the process that answers for multicast (multicast_process.py): starts it while any multicast is wanted,
says what, shows what it has, and starts another one when somebody has ended it. Routes stay meanwhile: the keeper has
them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from accelerator.errors import ControlError
from accelerator.kernel.own_process import command_of
from accelerator.kernel.state import DesiredState, encode

LINE_BYTES_MAX = 16 << 20
# Two in a row that end so soon after their start: the next one waits, as it may do so too.
SOON_S, RETRY_S = 2.0, 5.0
_SHOW_S, _END_S = 20.0, 3.0
_MODULE = "accelerator.kernel.multicast_process"

Tell = Callable[[dict[str, Any]], None]


class MulticastEnd:
    """Lives in netd's event loop."""

    def __init__(self, keeper_path: Path, tell: Tell) -> None:
        self._keeper_path = keeper_path
        self._tell = tell
        self._wanted: list[dict[str, Any]] = []  # nothing: no process
        self._task: asyncio.Task[None] | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._asked: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._n_asked = 0
        self._is_ending = False  # because nothing is wanted
        # Done when no process is looked after any more, for a fault of ours.
        self.fault: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def want(self, states: Sequence[DesiredState]) -> None:
        """What services desire together: what of it is multicast's is carried out, in place of what was before."""
        wanted = [encode(_multicast_of(state)) for state in states]
        if not any(state.multicast or state.multicast_routes for state in states):
            wanted = []
        if wanted == self._wanted:
            return
        self._wanted = wanted
        if self._writer is not None:
            self._say_wanted()
        if wanted and (self._task is None or self._task.done()):
            self._task = asyncio.get_running_loop().create_task(self._run())
            self._task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (fault := task.exception()) is not None and not self.fault.done():
            self.fault.set_exception(fault)

    async def show(self) -> dict[str, Any]:
        """"multicast": what there is, by family, and "refused": why there is none. ControlError: there is no answer."""
        if not self._wanted:
            return {"multicast": {}, "refused": {}}
        self._n_asked += 1
        number = self._n_asked
        asked: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._asked[number] = asked
        if self._writer is not None:
            self._send({"show": number})
        try:
            async with asyncio.timeout(_SHOW_S):
                return await asked
        except TimeoutError:
            raise ControlError("busy", "the process that answers for multicast does not say what it has") from None
        finally:
            self._asked.pop(number, None)

    async def stop(self) -> None:
        """Ends the process. Routes stay, with the keeper."""
        if self._task is None:
            return
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        """A process at a time, for as long as multicast is wanted."""
        loop = asyncio.get_running_loop()
        was_soon = False
        while self._wanted:
            begin_s = loop.time()
            try:
                await self._run_one()
                why = "was ended"
            except OSError as error:
                why = f"can't be started ({error.strerror})"
            if self._is_ending:
                self._is_ending = False
                continue
            is_soon = loop.time() < begin_s + SOON_S
            if not (is_soon and was_soon):
                message = f"the process that answers for multicast {why}; its routes stay, and another one takes over"
                self._tell({"kind": "multicast-restarted", "message": message})
            else:
                await asyncio.sleep(RETRY_S)
            was_soon = is_soon

    async def _run_one(self) -> None:
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                # In a group of its own: what ends netd's group spares it. It ends when netd's end of the stream does.
                process = subprocess.Popen(
                    command_of(_MODULE, str(theirs.fileno()), str(self._keeper_path)),
                    stdin=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    process_group=0,
                )
            reader, writer = await asyncio.open_connection(sock=ours, limit=LINE_BYTES_MAX)
        except OSError:
            ours.close()
            raise
        try:
            self._writer = writer
            self._say_wanted()
            for number in self._asked if self._wanted else ():
                self._send({"show": number})
            with contextlib.suppress(ConnectionError):
                while line := await reader.readline():
                    self._take(json.loads(line))
        finally:
            self._writer = None
            writer.close()
            try:
                await asyncio.to_thread(process.wait, _END_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _say_wanted(self) -> None:
        self._send({"want": self._wanted})
        if not self._wanted:
            # It has taken all out when it comes to the stream's end, and ends.
            assert self._writer is not None
            self._writer.write_eof()
            self._writer, self._is_ending = None, True

    def _send(self, message: dict[str, Any]) -> None:
        assert self._writer is not None
        self._writer.write(json.dumps(message).encode() + b"\n")

    def _take(self, message: dict[str, Any]) -> None:
        if "event" in message:
            self._tell(message["event"])
            return
        asked = self._asked.get(message["shown"])
        if asked is not None and not asked.done():
            asked.set_result({name: message[name] for name in ("multicast", "refused")})


def _multicast_of(state: DesiredState) -> DesiredState:
    return DesiredState(
        multicast=state.multicast,
        multicast_routes=state.multicast_routes,
        multicast_never=state.multicast_never,
        multicast_table=state.multicast_table,
    )
