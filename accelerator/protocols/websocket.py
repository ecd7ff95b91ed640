"""Upgrade as both peers write it: the viewer's handshake checked, what goes to the origin, the origin's 101 checked.

WebSocket by RFC 6455 sections 4.1 and 4.2, other protocols by RFC 9110 section 7.8. No socket, no frames.
"""

from __future__ import annotations

import binascii
import hashlib
from dataclasses import dataclass

from accelerator.errors import AcceleratorError, OriginError, Source
from accelerator.protocols.fields import (
    Field,
    Fields,
    get_all,
    get_list,
    has,
    is_token,
    without_hop_by_hop,
)

# RFC 6455 section 1.3
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
VERSION = b"13"
# What a handshake says in these goes to the origin, whatever the profile forwards of other fields.
_OF_HANDSHAKE = (
    b"sec-websocket-key", b"sec-websocket-version", b"sec-websocket-protocol", b"sec-websocket-extensions",
)  # fmt: skip
# They would carry requests that nobody looks at (RFC 9113 section 3.1 has withdrawn h2c). The edge ignores such
# requests; here is where none may get through all the same.
_NEVER = frozenset({b"h2c", b"h2", b"http", b"tls"})
# Of names in one field: browsers send a handful.
_NAMES_MAX = 64


class HandshakeError(AcceleratorError):
    """A viewer's handshake that is refused by `status`: 400, or 426 for another version than 13."""

    source = Source.VIEWER

    def __init__(self, kind: str, message: str, *, status: int = 400) -> None:
        super().__init__(kind, message)
        self.status = status


@dataclass(frozen=True)
class Handshake:
    """What a viewer asks for. `protocols`: of Upgrade, as written. The rest is WebSocket's, empty for others."""

    protocols: tuple[bytes, ...]
    is_websocket: bool
    key: bytes = b""
    subprotocols: frozenset[bytes] = frozenset()
    extensions: frozenset[bytes] = frozenset()


def read_handshake(fields: Fields) -> Handshake:
    """The handshake of a GET whose Connection names Upgrade. Raises HandshakeError."""
    protocols = tuple(get_list(fields, b"upgrade"))
    if not protocols or len(protocols) > _NAMES_MAX:
        raise HandshakeError("bad-upgrade", f"{len(protocols)} protocols in Upgrade")
    for protocol in protocols:
        name, slash, version = protocol.partition(b"/")
        if not is_token(name) or (slash and not is_token(version)):
            raise HandshakeError("bad-upgrade", "Upgrade is malformed")
        if name.lower() in _NEVER:
            raise HandshakeError("bad-upgrade", "Upgrade to HTTP/2 or TLS")
    if not any(protocol.lower() == b"websocket" for protocol in protocols):
        return Handshake(protocols, False)
    versions = get_list(fields, b"sec-websocket-version")
    if versions != [VERSION]:
        # RFC 6455 section 4.2.2: 426 tells the version that we know. Without any version it is no handshake.
        raise HandshakeError("bad-version", "Sec-WebSocket-Version is not 13", status=426 if versions else 400)
    keys = get_all(fields, b"sec-websocket-key")
    if len(keys) != 1 or not _is_key(keys[0]):
        raise HandshakeError("bad-key", "Sec-WebSocket-Key is not 16 bytes in base64")
    subprotocols = get_list(fields, b"sec-websocket-protocol")
    if len(subprotocols) > _NAMES_MAX or not all(is_token(name) for name in subprotocols):
        raise HandshakeError("bad-subprotocol", "Sec-WebSocket-Protocol is malformed")
    return Handshake(protocols, True, keys[0], frozenset(subprotocols), _extension_names(fields))


def upgrade_fields(sent: Fields, viewers: Fields, handshake: Handshake) -> list[Field]:
    """The fields of the request to the origin: `sent` is what would go up without an upgrade (upstream_fields)."""
    fields = [field for field in sent if field[0].lower() not in (*_OF_HANDSHAKE, b"connection", b"upgrade")]
    fields += [(b"Connection", b"Upgrade"), (b"Upgrade", b", ".join(handshake.protocols))]
    if handshake.is_websocket:
        fields += [field for field in viewers if field[0].lower() in _OF_HANDSHAKE]
    return fields


def check_switch(handshake: Handshake, fields: Fields) -> bytes:
    """The protocol that an origin's 101 changes to. Raises OriginError('bad-switch') for what RFC 6455 section 4.1
    lets no client accept, or what was not asked for."""
    if b"upgrade" not in {option.lower() for option in get_list(fields, b"connection")}:
        raise _bad("Connection does not name Upgrade")
    protocols = get_list(fields, b"upgrade")
    if len(protocols) != 1:
        # Layers of protocols are possible (RFC 9110 section 7.8), and nobody has them.
        raise _bad(f"{len(protocols)} protocols in Upgrade")
    if protocols[0].lower() not in {protocol.lower() for protocol in handshake.protocols}:
        raise _bad("Upgrade to what was not asked for")
    if has(fields, b"content-length") or has(fields, b"transfer-encoding"):
        raise _bad("a body in a 101")  # RFC 9112 section 6.3: what follows is the new protocol's
    if protocols[0].lower() != b"websocket":
        return protocols[0]
    accepts = get_all(fields, b"sec-websocket-accept")
    if len(accepts) != 1 or accepts[0] != accept_of(handshake.key):
        raise _bad("Sec-WebSocket-Accept is not the key's")
    chosen = get_all(fields, b"sec-websocket-protocol")
    if len(chosen) > 1 or any(name not in handshake.subprotocols for name in chosen):
        raise _bad("a subprotocol that was not offered")
    if not _extension_names(fields) <= handshake.extensions:
        raise _bad("an extension that was not offered")
    return protocols[0]


def switch_head(protocol: bytes, fields: Fields) -> bytes:
    """The 101 as the viewer gets it: the origin's end-to-end fields, and the hop's own."""
    lines = [b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %b\r\n" % protocol]
    lines += [b"%b: %b\r\n" % field for field in without_hop_by_hop(fields)]
    lines.append(b"\r\n")
    return b"".join(lines)


def accept_of(key: bytes) -> bytes:
    """Sec-WebSocket-Accept for a key (RFC 6455 section 4.2.2)."""
    digest = hashlib.sha1(key + _GUID, usedforsecurity=False).digest()
    return binascii.b2a_base64(digest, newline=False)


def _is_key(key: bytes) -> bool:
    """16 bytes in base64 (RFC 6455 section 4.1); bits beyond them are nobody's business, as with browsers' servers."""
    if len(key) != 24:
        return False
    try:
        return len(binascii.a2b_base64(key, strict_mode=True)) == 16
    except binascii.Error:
        return False


def _extension_names(fields: Fields) -> frozenset[bytes]:
    extensions = get_list(fields, b"sec-websocket-extensions")
    return frozenset(extension.partition(b";")[0].strip(b" \t").lower() for extension in extensions)


def _bad(what: str) -> OriginError:
    return OriginError("bad-switch", f"wrong 101: {what}")
