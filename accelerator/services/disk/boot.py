"""The disk tier as the policy wants it: made at start, told of classes at each reload. Reads and writes nothing."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from accelerator import clock
from accelerator.io.credentials import CredentialError, Credentials
from accelerator.services.disk.log import DiskLog
from accelerator.services.disk.quotas import Kept
from accelerator.services.disk.tier import DiskTier

if TYPE_CHECKING:
    from accelerator.dataplane import DataPlane
    from accelerator.policy.compile import Tables
    from accelerator.policy.model import Policy
    from accelerator.services.logs.events import Events
    from accelerator.services.logs.lines import Causes
    from accelerator.services.origins.origins import Origins

log = logging.getLogger("accelerator")

_ADVICE = {
    "disk-aside": "look at the disk and its file system; it is tried again by itself every 10 s",
    "disk-clock": "set the clock: what is on the disk is validated before it is used, as its age isn't known",
    "disk-corrupt": "one is a misfortune, many are a disk that fails: the object is fetched again",
    "pins-full": "give the class a larger quota, or purge what is not needed any more",
    "pins-nearly-full": "give the class a larger quota, or purge what is not needed any more",
    "disk-full": "give cache.disk a file system of its own, or a smaller size",
    "disk-slow": "look at the disk: an index of a million objects loads in about a second",
    "disk-rebuilt": "nothing to do: what is found is validated before it is used",
}
_HELP = {
    "disk_bytes": "bytes of segments on the disk", "disk_limit_bytes": "the most that they may be",
    "disk_objects": "objects on the disk", "disk_index_bytes": "memory that the disk's index takes",
    "disk_queued_bytes": "bytes that wait to be written",
    "disk_hits": "requests answered from the disk", "disk_reads": "records read", "disk_writes": "records written",
    "disk_write_drops": "records not written: the disk was slow, full or put aside", "disk_errors": "failed operations",
    "disk_corrupt": "records that were not what was written", "disk_evictions": "segments evicted",
    "disk_pinned_bytes": "bytes of pinned classes on the disk", "disk_pinned_limit_bytes": "the most that they may be",
    "disk_pin_refusals": "slices of pinned classes not kept: their quota is full",
    "disk_read_bytes": "payload bytes read", "disk_write_bytes": "payload bytes written",
}  # fmt: skip
_GAUGES = frozenset({"disk_bytes", "disk_limit_bytes", "disk_objects", "disk_index_bytes", "disk_queued_bytes"}) | {
    "disk_pinned_bytes", "disk_pinned_limit_bytes",
}


def make_tier(
    tables: Tables, policy: Policy, state_dir: Path, credentials: Credentials, dataplane: DataPlane, origins: Origins,
    events: Events, causes: Causes, loop: asyncio.AbstractEventLoop,
) -> DiskTier | None:  # fmt: skip
    """None: the policy has no disk. Raises CredentialError where it wants a key, and there is none that can be used."""
    row = tables.disk
    if row is None:
        return None
    key = None
    if row.encrypt != "never":
        key = credentials.disk_key()
        if key is None and row.encrypt == "always":
            raise CredentialError("credential", "cache.disk.encrypt is always, and there is no disk.key")

    def note(kind: str, subject: str, why: str) -> None:
        end = causes.due(kind, clock.monotonic_ns())
        if end is not None:
            log.log(logging.INFO if kind == "disk-returned" else logging.WARNING, "%s: %s%s", subject, why, end)
        events.note(kind, subject, why=why, advice=_ADVICE.get(kind, ""), cause=kind)

    disk_log = DiskLog(dataplane, loop, state_dir / row.path, row.size_bytes, key, note)
    tier = DiskTier(dataplane, origins, disk_log, loop, note)
    take_classes(tier, tables, policy)
    return tier


def take_classes(tier: DiskTier, tables: Tables, policy: Policy) -> None:
    """Which classes may be on the disk, as origins number them: 0 is no class, which may."""
    rows = {row.name: row for row in tables.disk.classes} if tables.disk is not None else {}
    kept = {0: Kept("")}
    for index, name in enumerate(policy.classes, 1):
        if name in rows:
            kept[index] = Kept(name, rows[name].quota_bytes, rows[name].is_pinned)
    tier.set_classes(kept)
    tier.log.keeps_time = any(row.max_offline_s for row in tables.origins)


def figures_of(tier: DiskTier) -> dict[str, int]:
    return {**tier.log.figures(), **tier.quotas.figures()}


def counters_of(tier: DiskTier) -> dict[str, tuple[float, str]]:
    return {name: (value, _HELP[name]) for name, value in figures_of(tier).items() if name not in _GAUGES}


def gauges_of(tier: DiskTier) -> dict[str, tuple[float, str]]:
    gauges: dict[str, tuple[float, str]] = {
        name: (value, _HELP[name]) for name, value in figures_of(tier).items() if name in _GAUGES
    }
    gauges["disk_usable"] = (int(tier.log.is_usable), "1 while the disk is read and written")
    return gauges
