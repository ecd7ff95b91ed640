"""How much memory is taken of how much: of the machine and of each control group of the process. Decides nothing.

What the kernel would give back when asked (the page cache, which the disk tier fills) does not count as taken.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
CGROUPS = Path("/sys/fs/cgroup")
# A group without a limit says "max" in version 2, and a number near 2^63 in version 1.
UNLIMITED_BYTES = 1 << 60


@dataclass(frozen=True, slots=True)
class Memory:
    used_bytes: int
    limit_bytes: int

    @property
    def share(self) -> float:
        return self.used_bytes / self.limit_bytes


class MemoryGauge:
    """`read` costs a few small files of the kernel's; what can't be read (a unit's ProcSubset=pid) is left out."""

    def __init__(self, proc: Path = PROC, cgroups: Path = CGROUPS) -> None:
        self._meminfo = proc / "meminfo"
        self._listing = proc / "self/cgroup"
        self._cgroups = cgroups

    def read(self) -> Memory | None:
        """The tightest of all; None: nothing can be read."""
        groups = _groups(self._listing, self._cgroups)
        found = [memory for memory in map(_of_group, groups) if memory is not None]
        machine = _of_machine(self._meminfo)
        if machine is not None:
            found.append(machine)
        return max(found, key=lambda memory: memory.share, default=None)


def _groups(listing: Path, cgroups: Path) -> list[Path]:
    """The folders of the process's memory groups, its own and those around it."""
    try:
        lines = listing.read_text().splitlines()
    except OSError:
        return []
    folders = []
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers == "":
            root = cgroups
        elif "memory" in controllers.split(","):
            root = cgroups / "memory"
        else:
            continue
        folder = root / path.lstrip("/")
        while folder != root:
            folders.append(folder)
            folder = folder.parent
    return folders


def _of_group(group: Path) -> Memory | None:
    try:
        stat = _fields(group / "memory.stat")
        if (group / "memory.max").exists():
            written = (group / "memory.max").read_text().strip()
            limit = UNLIMITED_BYTES if written == "max" else int(written)
            used = int((group / "memory.current").read_text())
            cached = stat.get("active_file", 0) + stat.get("inactive_file", 0) + stat.get("slab_reclaimable", 0)
        else:
            limit = int((group / "memory.limit_in_bytes").read_text())
            used = int((group / "memory.usage_in_bytes").read_text())
            cached = stat.get("total_active_file", 0) + stat.get("total_inactive_file", 0)
    except (OSError, ValueError):
        return None
    return Memory(max(0, used - cached), limit) if 0 < limit < UNLIMITED_BYTES else None


def _of_machine(meminfo: Path) -> Memory | None:
    try:
        fields = _fields(meminfo)
        total, available = fields["MemTotal:"] * 1024, fields["MemAvailable:"] * 1024
    except (OSError, ValueError, KeyError):
        return None
    return Memory(max(0, total - available), total) if total else None


def _fields(path: Path) -> dict[str, int]:
    return {words[0]: int(words[1]) for words in (line.split() for line in path.read_text().splitlines()) if words[1:]}
