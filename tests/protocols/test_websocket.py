"""Handshakes of RFC 6455 and other upgrades: what is refused of viewers and of origins, and what travels."""

from __future__ import annotations

import base64

import pytest

from accelerator.errors import OriginError
from accelerator.protocols.fields import Field
from accelerator.protocols.websocket import (
    Handshake,
    HandshakeError,
    accept_of,
    check_switch,
    read_handshake,
    switch_head,
    upgrade_fields,
)

KEY = b"dGhlIHNhbXBsZSBub25jZQ=="  # RFC 6455 section 1.3
ACCEPT = b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
ASKED: list[Field] = [
    (b"Host", b"chat.example"),
    (b"Upgrade", b"WebSocket"),
    (b"Connection", b"keep-alive, Upgrade"),
    (b"Sec-WebSocket-Key", KEY),
    (b"Sec-WebSocket-Version", b"13"),
    (b"Sec-WebSocket-Protocol", b"chat, superchat"),
    (b"Sec-WebSocket-Protocol", b"v3"),
    (b"Sec-WebSocket-Extensions", b'permessage-deflate; x="a, b", bbf'),
]
SWITCH: list[Field] = [
    (b"Upgrade", b"websocket"),
    (b"Connection", b"Upgrade"),
    (b"Sec-WebSocket-Accept", ACCEPT),
]


def changed(fields: list[Field], name: bytes, *values: bytes) -> list[Field]:
    kept = [field for field in fields if field[0].lower() != name.lower()]
    return [*kept, *((name, value) for value in values)]


def test_the_example_of_the_rfc() -> None:
    assert accept_of(KEY) == ACCEPT
    handshake = read_handshake(ASKED)
    subprotocols, extensions = frozenset({b"chat", b"superchat", b"v3"}), frozenset({b"permessage-deflate", b"bbf"})
    assert handshake == Handshake((b"WebSocket",), True, KEY, subprotocols, extensions)
    assert check_switch(handshake, SWITCH) == b"websocket"


@pytest.mark.parametrize(("fields", "kind", "status"), [
    (changed(ASKED, b"Upgrade"), "bad-upgrade", 400),
    (changed(ASKED, b"Upgrade", b"websocket, a b"), "bad-upgrade", 400),
    (changed(ASKED, b"Upgrade", b"websocket/"), "bad-upgrade", 400),
    (changed(ASKED, b"Upgrade", b"h2c"), "bad-upgrade", 400),
    (changed(ASKED, b"Upgrade", b"websocket", b"TLS/1.0"), "bad-upgrade", 400),
    (changed(ASKED, b"Upgrade", b",".join([b"x"] * 65)), "bad-upgrade", 400),
    (changed(ASKED, b"Sec-WebSocket-Version"), "bad-version", 400),
    (changed(ASKED, b"Sec-WebSocket-Version", b"12"), "bad-version", 426),
    (changed(ASKED, b"Sec-WebSocket-Version", b"013"), "bad-version", 426),
    (changed(ASKED, b"Sec-WebSocket-Version", b"13", b"13"), "bad-version", 426),
    (changed(ASKED, b"Sec-WebSocket-Key"), "bad-key", 400),
    (changed(ASKED, b"Sec-WebSocket-Key", b""), "bad-key", 400),
    (changed(ASKED, b"Sec-WebSocket-Key", KEY, KEY), "bad-key", 400),
    (changed(ASKED, b"Sec-WebSocket-Key", KEY[:-1]), "bad-key", 400),
    (changed(ASKED, b"Sec-WebSocket-Key", KEY[:-4] + b"===="), "bad-key", 400),
    (changed(ASKED, b"Sec-WebSocket-Key", base64.b64encode(b"x" * 18)), "bad-key", 400),
    (changed(ASKED, b"Sec-WebSocket-Key", b"dGhlIHNhbXBsZSBub25jZQ= "), "bad-key", 400),
    (changed(ASKED, b"Sec-WebSocket-Key", b"dGhlIHNhbXBsZSBub25jZ-=="), "bad-key", 400),
    (changed(ASKED, b"Sec-WebSocket-Protocol", b"a;b"), "bad-subprotocol", 400),
])  # fmt: skip
def test_bad_handshakes(fields: list[Field], kind: str, status: int) -> None:
    with pytest.raises(HandshakeError) as caught:
        read_handshake(fields)
    assert (caught.value.kind, caught.value.status) == (kind, status)


def test_other_protocols_need_no_key() -> None:
    handshake = read_handshake([(b"Upgrade", b"IRC/6.9, RTA/x11")])
    assert (handshake.protocols, handshake.is_websocket) == ((b"IRC/6.9", b"RTA/x11"), False)
    assert check_switch(handshake, [(b"Connection", b"upgrade"), (b"Upgrade", b"rta/x11")]) == b"rta/x11"


@pytest.mark.parametrize("fields", [
    changed(SWITCH, b"Connection"),
    changed(SWITCH, b"Connection", b"close"),
    changed(SWITCH, b"Upgrade"),
    changed(SWITCH, b"Upgrade", b"chat"),
    changed(SWITCH, b"Upgrade", b"websocket, websocket"),
    changed(SWITCH, b"Upgrade", b"websocket/13"),
    changed(SWITCH, b"Sec-WebSocket-Accept"),
    changed(SWITCH, b"Sec-WebSocket-Accept", ACCEPT.lower()),
    changed(SWITCH, b"Sec-WebSocket-Accept", ACCEPT, ACCEPT),
    changed(SWITCH, b"Sec-WebSocket-Accept", ACCEPT + b"="),
    changed(SWITCH, b"Sec-WebSocket-Protocol", b"none"),
    changed(SWITCH, b"Sec-WebSocket-Protocol", b"chat", b"v3"),
    changed(SWITCH, b"Sec-WebSocket-Protocol", b"chat, v3"),
    changed(SWITCH, b"Sec-WebSocket-Extensions", b"permessage-deflate, other"),
    changed(SWITCH, b"Content-Length", b"0"),
    changed(SWITCH, b"Transfer-Encoding", b"chunked"),
])  # fmt: skip
def test_a_wrong_101(fields: list[Field]) -> None:
    with pytest.raises(OriginError) as caught:
        check_switch(read_handshake(ASKED), fields)
    assert (caught.value.kind, caught.value.status) == ("bad-switch", 502)


def test_what_was_offered_may_be_chosen() -> None:
    fields = changed(SWITCH, b"Sec-WebSocket-Protocol", b"v3")
    fields = changed(fields, b"Sec-WebSocket-Extensions", b"PerMessage-Deflate; server_no_context_takeover", b"bbf")
    assert check_switch(read_handshake(ASKED), fields) == b"websocket"


def test_the_hop_is_rebuilt() -> None:
    sent = upgrade_fields([(b"Host", b"origin"), (b"sec-websocket-key", b"other")], ASKED, read_handshake(ASKED))
    assert sent[:3] == [(b"Host", b"origin"), (b"Connection", b"Upgrade"), (b"Upgrade", b"WebSocket")]
    assert sent[3:] == ASKED[3:]
    fields = [*SWITCH, (b"Set-Cookie", b"a=b"), (b"Keep-Alive", b"5"), (b"X-Hop", b"1"), (b"Connection", b"x-hop")]
    assert switch_head(b"websocket", fields) == (
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Accept: %b\r\nSet-Cookie: a=b\r\n\r\n" % ACCEPT
    )
