"""Certificates, and planes whose listener speaks TLS. No test lives here."""

from __future__ import annotations

import datetime
import functools
import os
import socket
import ssl
import threading
from collections.abc import Callable

import trustme
from plane_rig import Rig, Viewer
from tls_wire import TlsSocket

from ext.tls_context import TlsServer

TICKET_KEY_BYTES = 80
Issued = tuple[bytes, bytes, list[bytes]]


class Authority:
    """A certificate authority of a test's own."""

    def __init__(self) -> None:
        self._ca = trustme.CA()

    def issue(self, *names: str, rsa: bool = False, until: datetime.datetime | None = None) -> Issued:
        """(chain, key, names) as a TlsServer wants them."""
        kind = trustme.KeyType.RSA if rsa else trustme.KeyType.ECDSA
        made = self._ca.issue_cert(*names, key_type=kind, not_after=until)
        chain = b"".join(blob.bytes() for blob in made.cert_chain_pems)
        return chain, made.private_key_pem.bytes(), [name.encode() for name in names]

    def pem(self) -> bytes:
        return self._ca.cert_pem.bytes()

    def context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._ca.configure_trust(context)
        return context


@functools.cache
def authority() -> Authority:
    return Authority()


@functools.cache
def certificate() -> Issued:
    """For `a`, which is the host of most tests."""
    return authority().issue("a")


class OfThread(threading.local):
    """A context for each thread of viewers. OpenSSL guards what it found out about a context's authority by an atomic,
    which ThreadSanitizer can't see in a library that isn't built with it: it took two handshakes for a race."""

    def __init__(self, version: ssl.TLSVersion, protocols: tuple[str, ...]) -> None:
        self.context = authority().context()
        self.context.minimum_version = self.context.maximum_version = version
        if protocols:
            self.context.set_alpn_protocols(list(protocols))


def server(*certificates: Issued, legacy: bool = False) -> TlsServer:
    return TlsServer([(*each, b"", 0) for each in certificates], legacy)


def ticket_key() -> bytes:
    return os.urandom(TICKET_KEY_BYTES)


def tls_rig(rigs: Callable[..., Rig], **options: object) -> Rig:
    """A plane whose listener and viewers speak TLS."""
    rig = rigs(tls=server(certificate()), **options)
    rig.plane.set_ticket_keys([ticket_key()], 0)
    rig.context = authority().context()
    return rig


def one_way_socket(kind: str, *protocols: str) -> Callable[[socket.socket], socket.socket]:
    """Puts TLS of the version that `kind` ends with over a viewer's socket, for Rig.secure."""
    version = ssl.TLSVersion.TLSv1_2 if kind.endswith("1.2") else ssl.TLSVersion.TLSv1_3
    thread = OfThread(version, protocols)

    def secure(raw: socket.socket) -> socket.socket:
        secured = TlsSocket(raw, thread.context)
        secured.handshake()
        return secured  # type: ignore[return-value]

    return secure


def rig_of(rigs: Callable[..., Rig], kind: str, **options: object) -> Rig:
    """`kind`: "plain", "tls-1.2" or "tls-1.3". Viewers over TLS can close one way only."""
    if kind == "plain":
        return rigs(**options)
    rig = tls_rig(rigs, **options)
    rig.secure = one_way_socket(kind)
    return rig


def connect(
    rig: Rig, context: ssl.SSLContext | None = None, name: str | None = "a", session: ssl.SSLSession | None = None
) -> Viewer:
    """A viewer of one's own kind; the handshake is done on this side. Raises ssl.SSLError."""
    viewer = Viewer()
    viewer.connect(rig.address)
    rig.viewers.append(viewer)
    viewer.socket = (context or authority().context()).wrap_socket(
        viewer.socket, server_hostname=name, session=session, suppress_ragged_eofs=False
    )
    return viewer


def secured(viewer: Viewer) -> ssl.SSLSocket:
    assert isinstance(viewer.socket, ssl.SSLSocket)
    return viewer.socket
