"""Types of ext/layout.pyx: counter names and row dtypes."""

from typing import Any

COUNTERS: tuple[tuple[int, str, str], ...]
N_COLUMNS: int
ORIGIN_DTYPE: Any
HOST_DTYPE: Any
PATH_DTYPE: Any
NET_DTYPE: Any
LISTENER_DTYPE: Any
STRING_DTYPE: Any
LIMITS_DTYPE: Any

def struct_sizes() -> dict[str, int]: ...
