"""The credentials of a box that speaks TLS, made by an authority of the test's own, and who trusts them. No test."""

from __future__ import annotations

import base64
import datetime
import hashlib
import ssl
from pathlib import Path

import trustme
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat


class Certified:
    """The credentials of a box, and who trusts them."""

    def __init__(self, folder: Path) -> None:
        self.ca = trustme.CA()
        self.folder = folder
        self.folder.mkdir(parents=True, exist_ok=True)

    def put(self, name: str, *hosts: str, days: float | None = None) -> trustme.LeafCert:
        until = None
        if days is not None:
            until = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=days)
        made = self.ca.issue_cert(*hosts, not_after=until, key_type=trustme.KeyType.ECDSA)
        (self.folder / f"{name}.crt").write_bytes(b"".join(blob.bytes() for blob in made.cert_chain_pems))
        (self.folder / f"{name}.key").write_bytes(made.private_key_pem.bytes())
        return made

    def pin(self, name: str = "site") -> str:
        """The digest of a certificate's key, by which Chromium is told to trust it."""
        key = x509.load_pem_x509_certificate((self.folder / f"{name}.crt").read_bytes()).public_key()
        der = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return base64.b64encode(hashlib.sha256(der).digest()).decode()

    def authority(self) -> Path:
        """A file with the authority's certificate."""
        path = self.folder.parent / "authority.pem"
        path.write_bytes(self.ca.cert_pem.bytes())
        return path

    def context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self.ca.configure_trust(context)
        return context
