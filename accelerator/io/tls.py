"""TLS towards origins: always verified, 1.2 at least, HTTP/1.1 by ALPN. No switch may turn verification off."""

from __future__ import annotations

import ssl

from accelerator.errors import OriginError
from accelerator.io.origin import ClientCertificate


def client_context(ca_file: str | None, certificate: ClientCertificate | None = None) -> ssl.SSLContext:
    """A context that trusts the system's CAs and those of `ca_file` (PEM), and shows `certificate` to who asks for one.

    OriginError('tls') if a file can't be read, or the key is not the certificate's.
    """
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    if ca_file is not None:
        try:
            context.load_verify_locations(ca_file)
        except (OSError, ssl.SSLError) as exc:
            raise OriginError("tls", f"CA file {ca_file}: {exc}") from exc
    if certificate is not None:
        _load(context, certificate)
    return context


def _load(context: ssl.SSLContext, certificate: ClientCertificate) -> None:
    # OpenSSL names no file in its errors, and without a callback it would ask a terminal for a passphrase.
    for path in (certificate.certificate_file, certificate.key_file):
        try:
            with open(path, "rb"):
                pass
        except OSError as exc:
            raise OriginError("tls", f"client certificate: {path}: {exc.strerror}") from exc
    try:
        context.load_cert_chain(certificate.certificate_file, certificate.key_file, password=lambda: b"")
    except (OSError, ValueError) as exc:  # ssl.SSLError is an OSError
        files = f"{certificate.certificate_file} with {certificate.key_file}"
        raise OriginError("tls", f"client certificate: {files}: {exc}") from exc
