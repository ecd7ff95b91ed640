"""Types of ext/tls_context.pyx."""

from collections.abc import Sequence

class TlsServer:
    def __init__(
        self, certificates: Sequence[tuple[bytes, bytes, Sequence[bytes], bytes, int]], is_legacy: bool = False
    ) -> None: ...
