"""What viewers are shown: NAME.crt (the chain, the server's own first), NAME.key, and NAME.ocsp to staple, where there
is one. Read and understood here; whether the key fits, OpenSSL says when a listener takes them.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.x509 import ocsp

# A chain of ten RSA-4096 certificates is below this.
_BYTES_MAX = 256 << 10


class CertificateFault(Exception):
    """One line: which file, and what is wrong with it."""


@dataclass(frozen=True)
class ServerCertificate:
    """`names`: in lower case, as bytes, "*.corp.example" among them. `ocsp_until_s`: since the epoch. `ocsp_fault`: why
    NAME.ocsp, although there, is not stapled."""

    name: str
    chain: bytes
    key: bytes
    names: tuple[bytes, ...]
    not_after_s: float
    not_before_s: float
    serial: int
    issuer: str
    ocsp: bytes = b""
    ocsp_until_s: int = 0
    ocsp_fault: str = ""


def read_server_certificate(name: str, folder: Path, now_s: float) -> ServerCertificate:
    """Raises CertificateFault."""
    chain_path, key_path = folder / f"{name}.crt", folder / f"{name}.key"
    chain, key = _read(chain_path), _read(key_path)
    try:
        certificates = x509.load_pem_x509_certificates(chain)
    except ValueError as fault:
        raise CertificateFault(f"{chain_path}: no certificate in PEM") from fault
    own = certificates[0]
    staple, until_s, ocsp_fault = _staple(folder / f"{name}.ocsp", own, now_s)
    return ServerCertificate(
        name, chain, key, _names(own), own.not_valid_after_utc.timestamp(), own.not_valid_before_utc.timestamp(),
        own.serial_number, own.issuer.rfc4514_string(), staple, until_s, ocsp_fault,
    )  # fmt: skip


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(_BYTES_MAX + 1)
    except OSError as fault:
        raise CertificateFault(f"{path}: {fault.strerror}") from fault
    if len(data) > _BYTES_MAX:
        raise CertificateFault(f"{path}: too large")
    return data


def _names(certificate: x509.Certificate) -> tuple[bytes, ...]:
    """RFC 9525 section 2: alternative names only; without any, the certificate is for whoever names no other."""
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        names: Sequence[str] = found.get_values_for_type(x509.DNSName)
    except (x509.ExtensionNotFound, ValueError):
        return ()
    return tuple(name.lower().rstrip(".").encode("ascii", "replace") for name in names)


def _staple(path: Path, certificate: x509.Certificate, now_s: float) -> tuple[bytes, int, str]:
    """(response, good until, fault). A response that isn't good for anything costs no start: nothing is stapled."""
    if not path.exists():
        return b"", 0, ""
    try:
        data = _read(path)
        response = ocsp.load_der_ocsp_response(data)
        if response.response_status is not ocsp.OCSPResponseStatus.SUCCESSFUL:
            return b"", 0, f"{path}: the responder says {response.response_status.name.lower()}"
        if response.serial_number != certificate.serial_number:
            return b"", 0, f"{path}: it is about another certificate"
        ends: datetime.datetime | None = response.next_update_utc
    except (CertificateFault, ValueError) as fault:
        return b"", 0, f"{path}: {fault}" if isinstance(fault, CertificateFault) else f"{path}: no OCSP response in DER"
    if ends is None:
        return b"", 0, f"{path}: it doesn't say how long it is good for"
    if ends.timestamp() <= now_s:
        return b"", 0, f"{path}: it was good until {ends:%Y-%m-%d %H:%M} UTC: fetch a new one, then reload"
    return data, int(ends.timestamp()), ""
