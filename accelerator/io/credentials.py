"""Secrets that the policy names and never contains: certificates with keys, log-ins. Files of one directory, read only.

`NAME.crt` and `NAME.key` (PEM) are a certificate, and `NAME.ocsp` is stapled to it; `NAME.login` is one line,
`USER:PASSWORD`. `NAME.pem`, `NAME.jwk` or `NAME.secret` verifies viewers' credentials; `NAME.passphrase` is one line,
of an SRT or RIST connection.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from pathlib import Path

from accelerator.errors import AcceleratorError, OriginError, Source
from accelerator.io.origin import ClientCertificate
from accelerator.io.server_certificate import CertificateFault, ServerCertificate, read_server_certificate
from accelerator.io.tls import client_context
from accelerator.protocols.tokens.keys import (
    Algorithm,
    KeyFault,
    VerificationKey,
    key_from_jwk,
    key_from_pem,
    key_from_secret,
)

# RFC 7617 section 2: no control character, no colon in the user's name.
_LOGIN = re.compile(r"[^\x00-\x1f\x7f:]+:[^\x00-\x1f\x7f]*")
_LOGIN_BYTES_MAX = 1024
_PASSPHRASE = re.compile(rb"[ -~]{10,79}")
_KEY_BYTES_MAX = 16384
_DISK_KEY_BYTES = 32
_DISK_KEY = re.compile(rb"[0-9A-Fa-f]{64}")


class CredentialError(AcceleratorError):
    """A credential that is missing or can't be used. The message never has its content."""

    source = Source.OPERATOR


def check_authorities(path: str) -> None:
    """Whether the file has certificates (PEM) that a connection can trust. Raises CredentialError."""
    try:
        client_context(path)
    except OriginError as error:
        raise CredentialError("credential", error.message) from error


class Credentials:
    """The files of `directory`; None: there are none."""

    def __init__(self, directory: Path | None) -> None:
        self._directory = directory

    def client_certificate(self, name: str) -> ClientCertificate:
        """The files of a certificate that can be used. Raises CredentialError."""
        found = ClientCertificate(str(self._path(name, "crt")), str(self._path(name, "key")))
        try:
            client_context(None, found)
        except OriginError as error:
            raise CredentialError("credential", error.message) from error
        return found

    def server_certificate(self, name: str, now_s: float) -> ServerCertificate:
        """What viewers are shown; whether the key fits it is not known yet. Raises CredentialError."""
        folder = self._path(name, "crt").parent
        try:
            return read_server_certificate(name, folder, now_s)
        except CertificateFault as fault:
            raise CredentialError("credential", f"certificate: {fault}") from fault

    def passphrase(self, name: str) -> str:
        """Of an SRT or RIST connection, in printable ASCII: 10 to 79 characters are what SRT takes. Raises
        CredentialError."""
        path = self._path(name, "passphrase")
        try:
            with path.open("rb") as file:
                data = file.read(_LOGIN_BYTES_MAX + 1)
        except OSError as exc:
            raise CredentialError("credential", f"passphrase: {path}: {exc.strerror}") from exc
        found = _PASSPHRASE.fullmatch(data.removesuffix(b"\n").removesuffix(b"\r"))
        if found is None:
            raise CredentialError("credential", f"passphrase: {path}: expected one line of 10 to 79 ASCII characters")
        return found[0].decode("ascii")

    def basic_authorization(self, name: str) -> bytes:
        """The value of Proxy-Authorization for a log-in (RFC 7617, UTF-8). Raises CredentialError."""
        path = self._path(name, "login")
        try:
            with path.open("rb") as file:
                data = file.read(_LOGIN_BYTES_MAX + 1)
        except OSError as exc:
            raise CredentialError("credential", f"log-in: {path}: {exc.strerror}") from exc
        try:
            login = data.decode("utf-8").removesuffix("\n").removesuffix("\r")
        except UnicodeDecodeError:
            login = ""
        if len(data) > _LOGIN_BYTES_MAX or _LOGIN.fullmatch(login) is None:
            raise CredentialError("credential", f"log-in: {path}: expected one line, USER:PASSWORD")
        return b"Basic " + base64.b64encode(login.encode("utf-8"))

    def verification_key(self, name: str, algorithm: Algorithm, *, is_hex: bool = False) -> VerificationKey:
        """A key that verifies viewers' credentials: NAME.pem, NAME.jwk or NAME.secret. Raises CredentialError."""
        readers: dict[str, Callable[[bytes], VerificationKey]] = {
            "pem": lambda data: key_from_pem(name, algorithm, data),
            "jwk": lambda data: key_from_jwk(name, algorithm, data),
            "secret": lambda data: key_from_secret(name, algorithm, data, is_hex=is_hex),
        }
        paths = [(self._path(name, suffix), suffix) for suffix in readers]
        there = [(path, suffix) for path, suffix in paths if path.exists()]
        if len(there) != 1:
            what = "more than one of them is there" if there else "none of them is there"
            raise CredentialError("credential", f"key: {paths[0][0].parent}/{name}.pem, .jwk, .secret: {what}")
        path, suffix = there[0]
        try:
            with path.open("rb") as file:
                data = file.read(_KEY_BYTES_MAX + 1)
            if len(data) > _KEY_BYTES_MAX:
                raise KeyFault("too large for a key")
            return readers[suffix](data)
        except OSError as exc:
            raise CredentialError("credential", f"key: {path}: {exc.strerror}") from exc
        except KeyFault as fault:
            raise CredentialError("credential", f"key: {path}: {fault}") from fault

    def disk_key(self) -> bytes | None:
        """The key of the disk tier, 32 bytes: `disk.key`, as they are or as hexadecimal digits. None: there is none.
        Raises CredentialError."""
        if self._directory is None:
            return None
        path = self._directory / "disk.key"
        try:
            with path.open("rb") as file:
                data = file.read(_LOGIN_BYTES_MAX)
        except FileNotFoundError:
            return None
        except OSError as exc:
            raise CredentialError("credential", f"disk key: {path}: {exc.strerror}") from exc
        if len(data) == _DISK_KEY_BYTES:
            return data
        if _DISK_KEY.fullmatch(data.strip()):
            return bytes.fromhex(data.decode("ascii"))
        raise CredentialError("credential", f"disk key: {path}: expected 32 bytes, or 64 hexadecimal digits")

    def _path(self, name: str, suffix: str) -> Path:
        if self._directory is None:
            raise CredentialError("credential", f"'{name}' is named, but there is no directory of credentials")
        return self._directory / f"{name}.{suffix}"
