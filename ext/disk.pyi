"""Types of ext/disk.pyx: the disk tier's threads, as the control plane speaks to them."""

from typing import Any

from ext.stored import StoredObject
from ext.workers import Workers

READ: int
WRITE: int
SYNC: int
SCAN: int
UNLINK: int
REPLACE: int
BAD: int
OTHER: int
LOCKED: int
NEWER: int

class DiskIo:
    path: str
    def __init__(
        self, path: str, plane: Workers | None, readers: int = ..., segment_bytes: int = ..., aside_bytes: int = ...
    ) -> None: ...
    def close(self, patience_s: float = ...) -> bool: ...
    def write(
        self, segment: int, offset: int, row: tuple[Any, ...], payload: bytes, key: bytes | None = None,
        must_sync: bool = False,
    ) -> int: ...  # fmt: skip
    def write_slice(
        self, segment: int, offset: int, row: tuple[Any, ...], stored: StoredObject, index: int,
        key: bytes | None = None,
    ) -> int: ...  # fmt: skip
    def sync(self) -> int: ...
    def unlink(self, name: bytes) -> int: ...
    def shred(self, name: bytes) -> int: ...
    def wipe(self, segment: int, class_id: int, before: int, overwrites: bool) -> int: ...
    def replace(self, name: bytes, parts: list[bytes], shreds: bool = False) -> int: ...
    def read(
        self, segment: int, offset: int, length: int, kind: int, generation: int, key: bytes | None = None,
        index: int = ..., digest: bytes | None = None,
    ) -> int: ...  # fmt: skip
    def read_slice(
        self, segment: int, offset: int, length: int, digest: bytes, generation: int, stored: StoredObject, index: int,
        key: bytes | None = None,
    ) -> int: ...  # fmt: skip
    def scan(self, segment: int, offset: int = 0) -> int: ...
    @property
    def bell_fd(self) -> int: ...
    @property
    def queued_bytes(self) -> int: ...
    def take(self) -> list[tuple[int, int, int, Any, int]]: ...
