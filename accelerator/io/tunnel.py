"""The parent proxy's answer to CONNECT (RFC 9110 section 9.3.6), read with the strict head parser. Owns no socket."""

from __future__ import annotations

from accelerator.errors import OriginError
from accelerator.io.head_reader import HEAD_BYTES_MAX, HeadReader
from accelerator.io.origin import ParentProxy
from accelerator.io.response import ParseResponse


class TunnelReply:
    """Receive into `buffer()`, tell it by `received(n)`, until that is True: from there on the socket is the tunnel's.

    Stricter than the RFC: a 2xx head with contradictory framing fields is refused, not read past them.
    """

    def __init__(self, proxy: ParentProxy, parse: ParseResponse, head_error: type[Exception]) -> None:
        self._proxy = proxy
        self._scratch = bytearray(HEAD_BYTES_MAX)
        self._reader = HeadReader(self._scratch, parse, head_error, lambda response: None)

    def buffer(self) -> memoryview:
        return memoryview(self._scratch)[self._reader.filled :]

    def received(self, n: int) -> bool:
        """`n` more bytes are in the buffer, 0: end of file. True: the tunnel is open. Raises OriginError."""
        if n == 0:
            raise OriginError("closed", "closed without a tunnel", can_retry=True)
        head = self._reader.received(n)
        if head is None:
            return False
        response, end = head
        if not 200 <= response.status <= 299:
            raise proxy_refusal(self._proxy, response.status)
        if self._reader.filled > end:
            # TLS lets the client speak first: what comes before it did is not the origin's.
            raise OriginError("excess", "bytes before the tunnel's first")
        return True


def proxy_refusal(proxy: ParentProxy, status: int) -> OriginError:
    """What a proxy's own refusal is to us. A 407 is between it and us: no viewer may be asked for a log-in by it."""
    if status == 407:
        had = "refuses our log-in" if proxy.authorization is not None else "wants a log-in (via_credential)"
        return OriginError("proxy-login", f"{proxy} {had}: 407")
    return OriginError(
        "proxy-refused",
        f"{proxy} opens no tunnel: {status}",
        status=504 if status == 504 else 502,
        can_retry=status >= 500,
    )
