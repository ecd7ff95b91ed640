"""Types of ext/asked.pyx: a worker's question and its answers."""

from ext.stored import StoredObject
from ext.workers import Workers

KINDS: tuple[str, ...]

class Exchange:
    plane: Workers
    worker: int
    index: int
    generation: int
    origin: int
    listener: int
    zone: int
    kind: str
    arrival_ns: int
    offset: int
    range_first: int
    range_last: int
    tables_generation: int
    head: bytes
    key: bytes
    stored: StoredObject | None
    is_answered: bool
    @property
    def identity(self) -> tuple[int, int, int]: ...
    def match(self, fwd_status: int = 0, stored: bool = True, joined: bool = False) -> None: ...
    def alone(self, fwd_status: int = 0) -> None: ...
    def leader(self, stored: StoredObject, fwd_status: int = 0, others: int = 0) -> None: ...
    def everybody(self, stored: StoredObject, fwd_status: int = 0) -> None: ...
    def stale(self, stored: StoredObject, fwd_status: int = 0) -> None: ...
    def error(self, status: int) -> None: ...
    def refuse(self, status: int) -> None: ...
    def done(self) -> None: ...
