"""A key and a request that an authority signs: NAME.key and NAME.csr. A key that is there is kept."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from accelerator.errors import AcceleratorError, Source

# RFC 5280 appendix A: ub-common-name.
_COMMON_NAME_MAX = 64
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")


class RequestError(AcceleratorError):
    """No request was made: one line that says why."""

    source = Source.OPERATOR


@dataclass(frozen=True)
class Made:
    key: Path
    request: Path
    is_new_key: bool


def make_request(name: str, folder: Path, hosts: Sequence[str]) -> Made:
    """Raises RequestError."""
    if not _NAME.fullmatch(name):
        raise RequestError("csr", f"{name!r} is no name of a credential: letters, digits, dots, - and _")
    if not folder.is_dir():
        raise RequestError("csr", f"{folder}: there is no such directory: make it with mkdir -m 700, or name another")
    key_path, request_path = folder / f"{name}.key", folder / f"{name}.csr"
    try:
        key, is_new = _key(key_path)
        subject = [x509.NameAttribute(NameOID.COMMON_NAME, hosts[0])] if len(hosts[0]) <= _COMMON_NAME_MAX else []
        names = x509.SubjectAlternativeName([_general_name(host) for host in hosts])
        request = (
            x509.CertificateSigningRequestBuilder()
            .subject_name(x509.Name(subject))
            .add_extension(names, critical=not subject)
            .sign(key, hashes.SHA256())
        )
        _write(request_path, request.public_bytes(serialization.Encoding.PEM), 0o644, is_exclusive=False)
    except OSError as fault:
        raise RequestError("csr", f"{fault.filename or folder}: {fault.strerror}") from fault
    return Made(key_path, request_path, is_new)


def _general_name(host: str) -> x509.GeneralName:
    """RFC 6125 section 6.2.1, RFC 9110 section 4.3.5: an address is never found among the DNS names."""
    try:
        return x509.IPAddress(ip_address(host.removeprefix("[").removesuffix("]")))
    except ValueError:
        return x509.DNSName(host)


def _key(path: Path) -> tuple[ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey, bool]:
    """The key that is there, so that a certificate can be renewed under the one that runs, or a new one."""
    with contextlib.suppress(FileNotFoundError):
        try:
            found = serialization.load_pem_private_key(path.read_bytes(), None)
        except (ValueError, TypeError) as fault:
            raise RequestError("csr", f"{path}: no PEM key without passphrase: move it away for a new one") from fault
        if not isinstance(found, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
            raise RequestError("csr", f"{path}: neither an ECDSA nor an RSA key: move it away for a new one")
        return found, False
    key = ec.generate_private_key(ec.SECP256R1())
    text = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    _write(path, text, 0o600, is_exclusive=True)
    return key, True


def _write(path: Path, data: bytes, mode: int, *, is_exclusive: bool) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | (os.O_EXCL if is_exclusive else os.O_TRUNC)
    with os.fdopen(os.open(path, flags, mode), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
