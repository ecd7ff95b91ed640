"""Fuzz target: a proxy's answer to CONNECT. However it is cut, a tunnel opens or is refused alike; no other exception;
where one opens, h11 reads a 2xx answer too, and nothing stands behind it.

    .venv/bin/python -m pytest tests/fuzz/fuzz_connect_response.py          a short run
    PYTHONPATH=. .venv/bin/python tests/fuzz/fuzz_connect_response.py 600   so many seconds; prints the number of runs
"""

from __future__ import annotations

import random

import h11
from mutation import mutated, run

from accelerator.errors import OriginError
from accelerator.io.origin import ParentProxy
from accelerator.io.tunnel import TunnelReply
from ext.http_head import HeadError, read_response

SEEDS = [
    b"HTTP/1.1 200 Connection established\r\n\r\n",
    b"HTTP/1.0 200 Connection established\r\nProxy-agent: tinyproxy/1.11.1\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nX: y\r\n\r\n",
    b"HTTP/1.1 204 No Content\r\nVia: 1.1 squid\r\n\r\n",
    b'HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic realm="x"\r\nContent-Length: 2\r\n\r\nno',
    b"HTTP/1.1 503 Service Unavailable\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\n\r\n\x16\x03\x03\x00\x7a",
]
WORDS = [
    b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 103 \r\n\r\n", b"\r\n\r\n", b"\n\n", b"Content-Length: 5\r\n",
    b"X: " + b"a" * 900, b"Transfer-Encoding: chunked\r\n", b"Connection: close\r\n", b"HTTP/1.1 101 \r\n\r\n",
]  # fmt: skip
KINDS = {"proxy-login", "proxy-refused", "bad-head", "interim-flood", "excess", "closed"}
_PROXY = ParentProxy("proxy.example", 3128)


def outcome(data: bytes, cuts: list[int]) -> tuple[str, int]:
    """"open" or the refusal's kind, and how many bytes had been taken by then."""
    reply = TunnelReply(_PROXY, read_response, HeadError)
    taken = 0
    try:
        for first, last in zip([0, *cuts], [*cuts, len(data)], strict=True):
            piece = data[first:last]
            while piece:
                buffer = reply.buffer()
                assert len(buffer) > 0
                n = min(len(buffer), len(piece))
                buffer[:n] = piece[:n]
                taken += n
                if reply.received(n):
                    return "open", taken
                piece = piece[n:]
        reply.received(0)
    except OriginError as error:
        refusal = error
    else:
        raise AssertionError("the end of file opens no tunnel")
    assert refusal.kind in KINDS, refusal.kind
    assert refusal.status in (502, 504)
    # A bad head that is cut off is both.
    return refusal.kind.replace("closed", "bad-head"), taken


def check(data: bytes, source: random.Random) -> None:
    """The target's invariant."""
    whole, _ = outcome(data, [])
    cuts = sorted(source.randrange(len(data) + 1) for _ in range(source.randrange(1, 8)))
    for some in (cuts, list(range(1, len(data))) if len(data) < 400 else cuts):
        kind, taken = outcome(data, some)
        # What stands behind the head is seen only if it comes with it; TLS hears it then.
        assert kind == whole or (kind, whole) == ("open", "excess"), (kind, whole)
        if kind == "open":
            assert _h11_opens(data[:taken])


def _h11_opens(data: bytes) -> bool:
    peer = h11.Connection(h11.CLIENT)
    peer.send(h11.Request(method="CONNECT", target="a.example:443", headers=[("Host", "a.example:443")]))
    peer.send(h11.EndOfMessage())
    peer.receive_data(data)
    while isinstance(event := peer.next_event(), h11.InformationalResponse):
        pass
    return isinstance(event, h11.Response) and 200 <= event.status_code <= 299 and peer.trailing_data == (b"", False)


def once(source: random.Random) -> None:
    check(mutated(source, SEEDS, WORDS), source)


def test_fuzz_connect_response() -> None:
    source = random.Random(21)
    for _ in range(4_000):
        once(source)


def test_the_seeds() -> None:
    kinds = [outcome(seed, [])[0] for seed in SEEDS]
    assert kinds == ["open", "open", "open", "open", "proxy-login", "proxy-refused", "excess"]


def test_a_long_head_ends() -> None:
    for data in (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 20_000, b"HTTP/1.1 103 \r\n\r\n" * 40_000, b"x" * 200_000):
        assert outcome(data, [])[0] in ("bad-head", "interim-flood")


if __name__ == "__main__":
    run(once)
