"""TLS towards origins: always verified, 1.2 at least, HTTP/1.1 by ALPN. No switch may turn verification off."""

from __future__ import annotations

import ssl

from accelerator.errors import OriginError


def client_context(ca_file: str | None) -> ssl.SSLContext:
    """A context that trusts the system's CAs and those of `ca_file` (PEM). OriginError('tls') if that can't be read."""
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    if ca_file is not None:
        try:
            context.load_verify_locations(ca_file)
        except (OSError, ssl.SSLError) as exc:
            raise OriginError("tls", f"CA file {ca_file}: {exc}") from exc
    return context
