"""Takes all that netd has ever put into the kernel out of it, for who takes the product off a machine. netd itself
leaves it there when it ends, so that traffic goes on. Only what is marked as ours is touched; netd must have ended."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from accelerator.kernel.intercept import Interceptor
from accelerator.kernel.keeper import SLOTS
from accelerator.kernel.kept import Kept
from accelerator.kernel.packet_filter import FilterError
from accelerator.kernel.reconcile import Reconciler


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
        path = state_dir / "netd-keeper.sock"
        if path.exists():
            kept = Kept(path, 0.1)
            for slot in SLOTS:
                kept.drop(slot)
            kept.close()
        # Else the next netd would begin with it.
        (state_dir / "netd-desired.json").unlink(missing_ok=True)
    except (OSError, RuntimeError) as error:
        problems.append(str(error))
    return problems
