"""Types of ext/disk_record.pyx: the log's records, checksums and seals."""

from typing import Any

RECORD_DTYPE: Any
KIND_HEAD: int
KIND_SLICE: int
KIND_GONE: int
KIND_ORIGIN_GONE: int
START_BYTES: int
HEADER_BYTES: int
PAYLOAD_MOST: int

def checksum(data: Any) -> int: ...
def checksum_soft(data: bytes) -> int: ...
def space_of(length: int) -> int: ...
def seal_bytes(key: bytes, nonce: bytes, bound: bytes, data: bytes) -> bytes: ...
def unseal_bytes(key: bytes, nonce: bytes, bound: bytes, data: bytes) -> bytes | None: ...
