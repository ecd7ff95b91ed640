"""Looks at the clock, the disk tier's folder and the listeners' certificates. Writes nothing, judges nothing."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from accelerator.doctor.facts import Certificate, DiskFolder

_STA_UNSYNC = 0x0040
_TIMEX_BYTES = 256  # struct timex has 208 on 64 bits
_TIMEX_STATUS_AT = 40


def is_clock_synchronised() -> bool | None:
    """What the kernel says (adjtimex(2), which asks only); None: it doesn't."""
    buffer = ctypes.create_string_buffer(_TIMEX_BYTES)
    if ctypes.CDLL(None).adjtimex(buffer) < 0:
        return None
    return not int.from_bytes(buffer.raw[_TIMEX_STATUS_AT : _TIMEX_STATUS_AT + 4], "little") & _STA_UNSYNC


def look_at_disk(path: Path, size_bytes: int) -> DiskFolder:
    """The folder, or the nearest one above it where it is not there yet."""
    place = path
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir():
        return DiskFolder(str(path), size_bytes, f"{place} is no folder")
    try:
        taken = sum(each.stat().st_blocks * 512 for each in path.rglob("*") if each.is_file()) if path.exists() else 0
        room = os.statvfs(place)
    except OSError as fault:
        return DiskFolder(str(path), size_bytes, f"{fault.strerror or fault}")
    if room.f_flag & os.ST_RDONLY:
        return DiskFolder(str(path), size_bytes, "its file system is read-only")
    is_owner = os.geteuid() == 0 or os.access(place, os.W_OK)
    if not is_owner:
        return DiskFolder(str(path), size_bytes, f"{place} can't be written to by this user")
    if room.f_files and not room.f_favail:
        return DiskFolder(str(path), size_bytes, "its file system has no inode left")
    return DiskFolder(
        str(path), size_bytes, "", room.f_bavail * room.f_frsize, taken, _kind_of(place) in ("tmpfs", "ramfs")
    )


def _kind_of(place: Path) -> str:
    """The type of the file system that holds a folder: of the mount with the longest name that is above it."""
    best, kind = -1, ""
    real = str(place.resolve())
    for line in Path("/proc/self/mounts").read_text().splitlines():
        words = line.split()
        where = words[1].encode().decode("unicode_escape")
        is_above = real == where or real.startswith(where.rstrip("/") + "/")
        if is_above and len(where) >= best:
            best, kind = len(where), words[2]
    return kind


def read_certificate(folder: Path, name: str) -> Certificate:
    from cryptography import x509

    path = folder / f"{name}.crt"
    try:
        found = x509.load_pem_x509_certificates(path.read_bytes())[0]
    except (OSError, ValueError, IndexError) as fault:
        why = fault.strerror if isinstance(fault, OSError) else "it is no PEM certificate"
        return Certificate(name, f"{path}: {why}")
    hosts: tuple[str, ...] = ()
    try:
        names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        hosts = (
            *names.get_values_for_type(x509.DNSName),
            *(str(each) for each in names.get_values_for_type(x509.IPAddress)),
        )
    except x509.ExtensionNotFound:
        pass
    return Certificate(
        name, "", found.not_valid_before_utc.timestamp(), found.not_valid_after_utc.timestamp(), hosts
    )
