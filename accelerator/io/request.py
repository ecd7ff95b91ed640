"""Builds the bytes of a request head from parsed parts. Pure: nothing that could end a line early gets through."""

from __future__ import annotations

import re
from collections.abc import Sequence

from accelerator.errors import OriginError, Source

_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")  # RFC 9110 section 5.6.2
_TARGET = re.compile(rb"[\x21-\x7e\x80-\xff]+")
_VALUE = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")  # RFC 9110 section 5.5: no CTL but HTAB


def build_request(method: bytes, target: bytes, fields: Sequence[tuple[bytes, bytes]], authority: bytes) -> bytes:
    """The whole head, target as received. `authority` becomes Host unless `fields` has one.

    Raises OriginError('bad-field') for what could be read as another request; these requests have no body, so neither
    Transfer-Encoding nor a Content-Length other than 0 may be among the fields.
    """
    if _TOKEN.fullmatch(method) is None:
        raise _bad("method", method)
    if _TARGET.fullmatch(target) is None:
        raise _bad("target", target)
    host: bytes | None = None
    lines = [b"%b %b HTTP/1.1\r\n" % (method, target), b""]
    for name, value in fields:
        if _TOKEN.fullmatch(name) is None or _VALUE.fullmatch(value) is None:
            raise _bad("field", name)
        lowered = name.lower()
        if lowered == b"host":
            if host is not None or not value:
                raise _bad("field", name)
            host = value
            continue
        if lowered == b"transfer-encoding" or (lowered == b"content-length" and value != b"0"):
            raise _bad("field", name)
        lines.append(b"%b: %b\r\n" % (name, value))
    # Host goes first (RFC 9110 section 7.2).
    lines[1] = b"Host: %b\r\n" % (authority if host is None else host)
    lines.append(b"\r\n")
    return b"".join(lines)


def _bad(what: str, data: bytes) -> OriginError:
    error = OriginError("bad-field", f"request {what} not sent: {data[:80]!r}")
    error.source = Source.INTERNAL
    return error
