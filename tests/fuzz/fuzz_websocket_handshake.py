"""Fuzz target: a viewer's Upgrade and an origin's 101, as parsed from the wire. What is accepted is what RFC 6455 says
(another reader judges), goes up as one request that names the same, and comes down as a 101 that is accepted again.

    .venv/bin/python -m pytest tests/fuzz/fuzz_websocket_handshake.py          a short run
    PYTHONPATH=. .venv/bin/python tests/fuzz/fuzz_websocket_handshake.py 600   so many seconds; prints runs
"""

from __future__ import annotations

import random
import re

from mutation import mutated, run

from accelerator.errors import OriginError
from accelerator.io.origin import Upstream
from accelerator.io.request import build_request
from accelerator.protocols.fields import get_list
from accelerator.protocols.origin_rules import OriginRules
from accelerator.protocols.upstream_fields import upstream_fields
from accelerator.protocols.websocket import (
    Handshake,
    HandshakeError,
    check_switch,
    read_handshake,
    switch_head,
    upgrade_fields,
)
from ext.http_head import HeadError, parse_request, parse_response

KEY, ACCEPT = b"dGhlIHNhbXBsZSBub25jZQ==", b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
REQUESTS = [
    b"GET /chat HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: keep-alive, Upgrade\r\nSec-WebSocket-Key: "
    + KEY + b"\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: chat, v2\r\nSec-WebSocket-Extensions: "
    b"permessage-deflate; client_max_window_bits\r\nOrigin: http://a\r\n\r\n",
    b"GET /x HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: IRC/6.9, RTA/x11\r\n\r\n",
    b"GET /x HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAM\r\n\r\n",
]
ANSWERS = [
    b"HTTP/1.1 101 Switching\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: " + ACCEPT
    + b"\r\nSec-WebSocket-Protocol: chat\r\nSec-WebSocket-Extensions: permessage-deflate\r\nSet-Cookie: a=b\r\n\r\n",
    b"HTTP/1.1 101 x\r\nConnection: upgrade, X-Hop\r\nUpgrade: RTA/x11\r\nX-Hop: 1\r\n\r\n",
]
WORDS = [
    b"Upgrade: websocket\r\n", b"Upgrade: h2c\r\n", b"Connection: Upgrade\r\n", b"Sec-WebSocket-Version: 13\r\n",
    b"Sec-WebSocket-Key: " + KEY + b"\r\n", b"Sec-WebSocket-Accept: " + ACCEPT + b"\r\n", b"websocket", b"TLS/1.0",
    b"Sec-WebSocket-Protocol: v2\r\n", b"Content-Length: 0\r\n", b", ", b"Connection: Sec-WebSocket-Key\r\n",
]  # fmt: skip
OFFERED = Handshake(
    (b"websocket", b"RTA/x11"), True, KEY, frozenset({b"chat", b"v2"}), frozenset({b"permessage-deflate"})
)
_KEY = re.compile(rb"[A-Za-z0-9+/]{21}[A-Za-z0-9+/]==")
_UPSTREAM = Upstream("http", "origin.example", 80)


def check_request(data: bytes) -> bool:
    """Whether it was accepted."""
    try:
        request = parse_request(data)
        if request is None:
            return False
        handshake = read_handshake(request.fields)
    except HeadError:
        return False
    except HandshakeError as error:
        return error.status not in (400, 426)
    assert not {name.partition(b"/")[0].lower() for name in handshake.protocols} & {b"h2c", b"h2", b"http", b"tls"}
    if handshake.is_websocket:
        assert _KEY.fullmatch(handshake.key)
        assert get_list(request.fields, b"sec-websocket-version") == [b"13"]
    for profile in ("generic", "media"):
        rules = OriginRules(profile=profile)  # type: ignore[arg-type]
        fields = upgrade_fields(upstream_fields(request.fields, rules, host=b"", site=b"s"), request.fields, handshake)
        sent = parse_request(build_request(b"GET", b"/", fields, _UPSTREAM))
        assert sent is not None
        assert (sent.content_length, sent.chunked) == (-1, False)
        assert read_handshake(sent.fields) == handshake
        assert get_list(sent.fields, b"connection") == [b"Upgrade"]
    return True


def check_answer(data: bytes) -> bool:
    try:
        response = parse_response(data)
        if response is None or response.status != 101:
            return False
        protocol = check_switch(OFFERED, response.fields)
    except HeadError:
        return False
    except OriginError as error:
        return (error.kind, error.status) != ("bad-switch", 502)
    again = parse_response(switch_head(protocol, response.fields))
    assert again is not None
    assert (again.status, check_switch(OFFERED, again.fields)) == (101, protocol)
    assert get_list(again.fields, b"connection") == [b"Upgrade"]
    return True


def once(source: random.Random) -> None:
    check_request(mutated(source, REQUESTS, WORDS))
    check_answer(mutated(source, ANSWERS, WORDS))


def test_fuzz_websocket_handshake() -> None:
    source = random.Random(6455)
    for _ in range(5_000):
        once(source)


def test_the_seeds() -> None:
    assert [check_request(seed) for seed in REQUESTS] == [True, True, False]
    assert [check_answer(seed) for seed in ANSWERS] == [True, True]


if __name__ == "__main__":
    run(once)
