"""Builds the bytes of a request head from parsed parts. Pure: nothing that could end a line early gets through."""

from __future__ import annotations

import re
from collections.abc import Sequence

from accelerator.errors import OriginError, Source
from accelerator.io.origin import ParentProxy, Upstream

_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")  # RFC 9110 section 5.6.2
_TARGET = re.compile(rb"[\x21-\x7e\x80-\xff]+")
_VALUE = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")  # RFC 9110 section 5.5: no CTL but HTAB
# Only what the policy says may authenticate us to the proxy.
_NEVER = (b"transfer-encoding", b"proxy-authorization")


def build_request(
    method: bytes,
    target: bytes,
    fields: Sequence[tuple[bytes, bytes]],
    upstream: Upstream,
    proxy: ParentProxy | None = None,
    body_length: int | None = None,
) -> bytes:
    """The whole head, target as received. The upstream's authority becomes Host unless `fields` has one.

    `proxy`: the proxy that reads it, which gets the target in absolute-form (RFC 9112 section 3.2.2).
    `body_length`: of the body that follows, -1: chunked; None: there is none. The framing fields are written here, so
    neither Transfer-Encoding nor a Content-Length other than 0 may be among the fields.
    Raises OriginError('bad-field') for what could be read as another request.
    """
    if _TOKEN.fullmatch(method) is None:
        raise _bad("method", method)
    if _TARGET.fullmatch(target) is None:
        raise _bad("target", target)
    host: bytes | None = None
    if proxy is not None:
        target = _absolute_form(target, upstream)
    lines = [b"%b %b HTTP/1.1\r\n" % (method, target), b""]
    for name, value in fields:
        if _TOKEN.fullmatch(name) is None or _VALUE.fullmatch(value) is None:
            raise _bad("field", name)
        lowered = name.lower()
        if lowered == b"host":
            # A proxy must put the target's host in place of another (RFC 9112 section 3.2.2); those that don't would
            # ask one server for what is another's.
            if host is not None or not value or (proxy is not None and value != upstream.authority):
                raise _bad("field", name)
            host = value
            continue
        if lowered in _NEVER or (lowered == b"content-length" and (value != b"0" or body_length is not None)):
            raise _bad("field", name)
        lines.append(b"%b: %b\r\n" % (name, value))
    # Host goes first (RFC 9110 section 7.2).
    lines[1] = b"Host: %b\r\n" % (upstream.authority if host is None else host)
    if proxy is not None and proxy.authorization is not None:
        lines.append(b"Proxy-Authorization: %b\r\n" % proxy.authorization)
    if body_length is not None:
        lines.append(b"Transfer-Encoding: chunked\r\n" if body_length < 0 else b"Content-Length: %d\r\n" % body_length)
    lines.append(b"\r\n")
    return b"".join(lines)


def build_connect(upstream: Upstream, proxy: ParentProxy) -> bytes:
    """The request for a tunnel to `upstream` (RFC 9110 section 9.3.6)."""
    authority = upstream.authority_with_port
    lines = [b"CONNECT %b HTTP/1.1\r\nHost: %b\r\n" % (authority, authority)]
    if proxy.authorization is not None:
        lines.append(b"Proxy-Authorization: %b\r\n" % proxy.authorization)
    lines.append(b"\r\n")
    return b"".join(lines)


def _absolute_form(target: bytes, upstream: Upstream) -> bytes:
    path = b"" if target == b"*" else target  # OPTIONS *: RFC 9112 section 3.2.4
    if path and not path.startswith(b"/"):
        raise _bad("target", target)
    return b"%b://%b%b" % (upstream.scheme.encode("ascii"), upstream.authority, path)


def _bad(what: str, data: bytes) -> OriginError:
    error = OriginError("bad-field", f"request {what} not sent: {data[:80]!r}")
    error.source = Source.INTERNAL
    return error
