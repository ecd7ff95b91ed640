"""Takes all that netd has ever put into the kernel out of it, for who takes the product off a machine. netd itself
leaves it there when it ends, so that traffic goes on. Only what is marked as ours is touched; netd must have ended."""

from __future__ import annotations

import os
import select
import signal
import socket
import struct
from pathlib import Path
from typing import Any

from accelerator.kernel.intercept import Interceptor
from accelerator.kernel.packet_filter import FilterError
from accelerator.kernel.reconcile import Reconciler

_END_S = 5.0


async def remove(state_dir: Path) -> list[str]:
    """What could not be taken out, a line each; none: nothing is left."""
    problems: list[str] = []

    def told(_: dict[str, Any]) -> None:
        """What is repaired or told meanwhile is nobody's news."""

    try:
        # First what takes viewers' packets.
        await Interceptor(told).clear()
    except (OSError, FilterError, TimeoutError) as error:
        problems.append(f"interception: {error}")
    reconciler = Reconciler(told)
    try:
        problem = await reconciler.clear()
        if problem:
            problems.append(problem)
    except (OSError, FilterError) as error:
        problems.append(str(error))
    finally:
        await reconciler.stop()
    try:
        _end_keeper(state_dir / "netd-keeper.sock")
        # Else the next netd would begin with it.
        (state_dir / "netd-desired.json").unlink(missing_ok=True)
    except OSError as error:
        problems.append(f"multicast routes: {error}")
    return problems


def _end_keeper(path: Path) -> None:
    """What it keeps goes with it. Not asked to let go: it listens to netd's user, and who removes the product is root.
    OSError: it could not be ended."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC) as asked:
        try:
            asked.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return
        pid, uid, _ = struct.unpack("3i", asked.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        try:
            process = os.pidfd_open(pid)
        except ProcessLookupError:
            return
    try:
        # The number may be another process's by now.
        if os.stat(f"/proc/{pid}").st_uid == uid:
            signal.pidfd_send_signal(process, signal.SIGKILL)
            if not select.select([process], [], [], _END_S)[0]:
                raise TimeoutError(f"the keeper (process {pid}) does not end")
    except (FileNotFoundError, ProcessLookupError):
        pass  # it has ended
    finally:
        os.close(process)
    path.unlink(missing_ok=True)
