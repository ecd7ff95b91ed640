"""TLS as bytes, for tests that send what no TLS library would: ClientHellos with any extension, records cut anywhere,
and records sealed with a real connection's keys. And a socket over TLS that can close one way only. No test is here."""

from __future__ import annotations

import contextlib
import hmac
import os
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

CHANGE_CIPHER, ALERT, HANDSHAKE, DATA = 20, 21, 22, 23
CLIENT_HELLO, NEW_TICKET, END_OF_EARLY_DATA, CERTIFICATE, FINISHED, KEY_UPDATE = 1, 4, 5, 11, 20, 24
SNI, STATUS, GROUPS, SIGNATURES, ALPN, TICKET, PSK, VERSIONS, PSK_MODES, KEY_SHARE, RENEGOTIATION = (
    0, 5, 10, 13, 16, 35, 41, 43, 45, 51, 0xFF01,
)  # fmt: skip
CLOSE_NOTIFY = b"\1\0"


def record(kind: int, payload: bytes, version: bytes = b"\3\3") -> bytes:
    """One record, whatever it says (RFC 8446 section 5.1)."""
    return bytes([kind]) + version + (len(payload) & 0xFFFF).to_bytes(2, "big") + payload


def message(kind: int, body: bytes) -> bytes:
    """One handshake message (section 4)."""
    return bytes([kind]) + len(body).to_bytes(3, "big") + body


def records(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(kind, payload) of each whole record."""
    while len(data) >= 5:
        n = int.from_bytes(data[3:5], "big")
        yield data[0], data[5 : 5 + n]
        data = data[5 + n :]


def vector(width: int, data: bytes) -> bytes:
    """What is too long for its length is cut."""
    data = data[: (1 << 8 * width) - 1]
    return len(data).to_bytes(width, "big") + data


def server_names(*names: bytes, kind: int = 0) -> bytes:
    """Extension SNI (RFC 6066 section 3)."""
    return vector(2, b"".join(bytes([kind]) + vector(2, name) for name in names))


def protocols(*names: bytes) -> bytes:
    """Extension ALPN (RFC 7301 section 3.1)."""
    return vector(2, b"".join(vector(1, name) for name in names))


@dataclass
class Hello:
    """A ClientHello, to be changed and written again with lengths that are right."""

    head: bytes  # version and random
    session: bytes
    suites: bytes
    compression: bytes
    extensions: list[tuple[int, bytes]] = field(default_factory=list)

    @staticmethod
    def read(body: bytes) -> Hello:
        """Of a message without its head, which must be right."""
        at = 34

        def take(width: int) -> bytes:
            nonlocal at
            n = int.from_bytes(body[at : at + width], "big")
            at += width + n
            return body[at - n : at]

        hello = Hello(body[:34], take(1), take(2), take(1))
        rest = take(2)
        while rest:
            n = int.from_bytes(rest[2:4], "big")
            hello.extensions.append((int.from_bytes(rest[:2], "big"), rest[4 : 4 + n]))
            rest = rest[4 + n :]
        return hello

    def write(self) -> bytes:
        """The whole message."""
        extensions = b"".join(kind.to_bytes(2, "big") + vector(2, data) for kind, data in self.extensions)
        return message(
            CLIENT_HELLO,
            self.head + vector(1, self.session) + vector(2, self.suites) + vector(1, self.compression)
            + vector(2, extensions),
        )  # fmt: skip


# --- sealed records ---------------------------------------------------------------------------------------------------


class KeyLog:
    """The secrets of connections that a context made (the format of NSS), by ClientHello's random."""

    def __init__(self, path: Path, context: ssl.SSLContext) -> None:
        self._path = path
        path.touch()
        context.keylog_filename = str(path)

    def secrets(self, random: bytes) -> dict[str, bytes]:
        found = {}
        for line in self._path.read_text().splitlines():
            words = line.split()
            if len(words) == 3 and words[1] == random.hex():
                found[words[0]] = bytes.fromhex(words[2])
        return found

    def forget(self) -> None:
        os.truncate(self._path, 0)  # the context appends


def expand_label(secret: bytes, label: bytes, n: int) -> bytes:
    """RFC 8446 section 7.1, for one block of SHA-256 and no context."""
    info = n.to_bytes(2, "big") + vector(1, b"tls13 " + label) + b"\0"
    return hmac.digest(secret, info + b"\1", "sha256")[:n]


class Seal13:
    """Seals a viewer's records of TLS 1.3 with AES-128-GCM, from the secret of a phase."""

    def __init__(self, secret: bytes) -> None:
        self._begin(secret)

    def _begin(self, secret: bytes) -> None:
        self._secret = secret
        self._key = AESGCM(expand_label(secret, b"key", 16))
        self._iv = int.from_bytes(expand_label(secret, b"iv", 12), "big")
        self._n = 0

    def __call__(self, kind: int, data: bytes, padding: int = 0) -> bytes:
        inner = data + bytes([kind]) + bytes(padding)
        head = b"\x17\3\3" + (len(inner) + 16).to_bytes(2, "big")
        sealed = self._key.encrypt((self._iv ^ self._n).to_bytes(12, "big"), inner, head)
        self._n += 1
        return head + sealed

    def update(self) -> None:
        """What follows a KeyUpdate is sealed anew (section 7.2)."""
        self._begin(expand_label(self._secret, b"traffic upd", 32))


class Seal12:
    """The same for TLS 1.2 (RFC 5288), once Finished has gone as the first sealed record."""

    def __init__(self, master: bytes, client_random: bytes, server_random: bytes) -> None:
        seed = b"key expansion" + server_random + client_random
        block, each = b"", seed
        while len(block) < 40:
            each = hmac.digest(master, each, "sha256")
            block += hmac.digest(master, each + seed, "sha256")
        self._key, self._iv, self._n = AESGCM(block[:16]), block[32:36], 1

    def __call__(self, kind: int, data: bytes, padding: int = 0) -> bytes:
        explicit = self._n.to_bytes(8, "big")
        about = explicit + bytes([kind]) + b"\3\3" + len(data).to_bytes(2, "big")
        sealed = self._key.encrypt(self._iv + explicit, data, about)
        self._n += 1
        return record(kind, explicit + sealed)

    def update(self) -> None:
        """There is none in this version."""


# --- a connection -----------------------------------------------------------------------------------------------------


class TlsSocket:
    """What Viewer needs of a socket, over TLS. Unlike ssl.SSLSocket it can close one way only, and knows its bytes.

    Where the socket doesn't block, records that it didn't take wait here, and nothing new is taken before they left."""

    def __init__(
        self, raw: socket.socket, context: ssl.SSLContext, name: str | None = "a",
        session: ssl.SSLSession | None = None,
    ) -> None:  # fmt: skip
        self.raw = raw
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=name, session=session)
        self._left, self._plain = b"", b""  # not sent yet; read ahead
        self.has_ended = False  # by close_notify
        self.hello = b""
        self.answer = b""  # the server's first bytes

    def flight(self) -> bytes:
        """Takes the handshake a step on. Returns what is to be sent now; b"": it is over, or more must come first."""
        with contextlib.suppress(ssl.SSLWantReadError):
            self.tls.do_handshake()
        data = self._outgoing.read()
        self.hello = self.hello or data
        return data

    def feed(self, data: bytes) -> None:
        self.answer = self.answer or data
        self._incoming.write(data) if data else self._incoming.write_eof()

    @property
    def is_done(self) -> bool:
        return self.tls.version() is not None and self.tls.cipher() is not None and self._finished()

    def _finished(self) -> bool:
        try:
            self.tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True

    def handshake(self) -> None:
        """Raises ssl.SSLError, ConnectionError."""
        while True:
            data = self.flight()
            if data:
                self.raw.sendall(data)
            if self.is_done:
                self.flush()
                return
            piece = self.raw.recv(1 << 16)
            if not piece:
                raise ConnectionResetError("ended in the handshake")
            self.feed(piece)

    def client_random(self) -> bytes:
        return self.hello[11:43]

    def server_random(self) -> bytes:
        return self.answer[11:43]

    def flush(self) -> bool:
        """Whether all has left."""
        self._left += self._outgoing.read()
        try:
            while self._left:
                self._left = self._left[self.raw.send(self._left) :]
        except BlockingIOError:
            return False
        return True

    def send(self, data: bytes) -> int:
        if not self.flush():
            raise BlockingIOError
        n = self.tls.write(data[:16384]) if data else 0
        self.flush()
        return n

    def sendall(self, data: bytes) -> None:
        while data:
            data = data[self.send(data) :]

    def recv(self, n: int) -> bytes:
        """As a socket's: b"" after close_notify. Raises ConnectionResetError where the end came without one."""
        while True:
            if self._plain:
                piece, self._plain = self._plain[:n], self._plain[n:]
                return piece
            if self.has_ended:
                return b""
            if self._left:
                self.flush()
            try:
                return self.tls.read(n)
            except ssl.SSLWantReadError:
                self.flush()
            except ssl.SSLZeroReturnError:
                self.has_ended = True
                continue
            except ssl.SSLEOFError as error:
                raise ConnectionResetError("ended without close_notify") from error
            piece = self.raw.recv(1 << 16)
            self.feed(piece)

    def pending(self) -> int:
        return len(self._plain) or self.tls.pending() or self._incoming.pending

    def shutdown(self, how: int) -> None:
        """close_notify, and the other way stays open (RFC 8446 section 6.1)."""
        assert how == socket.SHUT_WR
        # unwrap() reads on until the other side's, and throws away what it finds before it: so that goes first.
        with contextlib.suppress(ssl.SSLError):  # wants more, or it has ended
            while piece := self.tls.read(1 << 16):
                self._plain += piece
        with contextlib.suppress(ssl.SSLError):
            self.tls.unwrap()
        self.flush()

    def close(self) -> None:
        self.raw.close()

    def setsockopt(self, *options: object) -> None:
        self.raw.setsockopt(*options)  # type: ignore[arg-type]

    def setblocking(self, is_blocking: bool) -> None:
        self.raw.setblocking(is_blocking)

    def settimeout(self, seconds: float | None) -> None:
        self.raw.settimeout(seconds)

    def fileno(self) -> int:
        return self.raw.fileno()


def seal_of(connected: TlsSocket, log: KeyLog, phase: str = "CLIENT_TRAFFIC_SECRET_0") -> Seal13 | Seal12:
    """Seals as this viewer would, whose handshake is over (`phase`: or has got so far)."""
    secrets = log.secrets(connected.client_random())
    if "CLIENT_RANDOM" in secrets:
        return Seal12(secrets["CLIENT_RANDOM"], connected.client_random(), connected.server_random())
    return Seal13(secrets[phase])
