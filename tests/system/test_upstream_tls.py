"""The upstream client over TLS: who is refused, how bodies end, what is lost at the end of a connection."""

from __future__ import annotations

import asyncio
import datetime
import socket
import ssl
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trustme
from hostile_origin import STANDARD, HostileOrigin, Script, chunked, raw, reply
from recording_sink import RecordingSink, until
from upstream_box import OK, Run, ca, ca_file, client_of, get, run

from accelerator.io.upstream import OriginSettings, Upstream, UpstreamClient

__all__ = ["ca", "ca_file", "run"]

NAME = "media.example"


def server_context(issued: trustme.LeafCert) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols(["h2", "http/1.1"])
    issued.configure_cert(context)
    return context


@asynccontextmanager
async def tls_box(
    context: ssl.SSLContext, ca_file: str | None, scripts: dict[bytes, Script] | None = None, **changes: Any
) -> AsyncIterator[tuple[HostileOrigin, UpstreamClient]]:
    origin = await HostileOrigin(STANDARD if scripts is None else scripts, tls=context).start()
    upstream = Upstream("https", changes.pop("host", NAME), origin.port)
    resolve = changes.pop("resolve", ("127.0.0.1",))
    limits: dict[str, Any] = {"head_timeout_s": 5, "body_timeout_s": 5, **changes}
    client = client_of(OriginSettings("test", (upstream,), resolve, ca_file, **limits))
    try:
        yield origin, client
    finally:
        await client.close()
        await origin.close()
    assert client.n_connections == 0


def test_verified_by_name_reused_and_spoken_http_1_1(run: Run, ca: trustme.CA, ca_file: str) -> None:
    async def main() -> None:
        names: list[Any] = []
        context = server_context(ca.issue_cert(NAME))
        context.sni_callback = lambda sock, name, context: names.append((name, sock))
        async with tls_box(context, ca_file) as (origin, client):
            for target in (b"/ok", b"/chunked", b"/ok"):
                assert (await get(client, target)).calls == OK
            assert origin.n_connections == 1
            assert origin.requests[0].field(b"host") == b"%b:%d" % (NAME.encode(), origin.port)
            assert [name for name, _ in names] == [NAME]
            assert names[0][1].selected_alpn_protocol() == "http/1.1"
            assert names[0][1].version() == "TLSv1.3"

    run(main())


def test_a_certificate_for_an_address(run: Run, ca: trustme.CA, ca_file: str) -> None:
    async def main() -> None:
        context = server_context(ca.issue_cert("127.0.0.1"))
        async with tls_box(context, ca_file, host="127.0.0.1", resolve=()) as (_, client):
            assert (await get(client, b"/ok")).calls == OK

    run(main())


def refused_cases(ca: trustme.CA) -> dict[str, ssl.SSLContext]:
    long_ago = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=400)
    expired = ca.issue_cert(NAME, not_before=long_ago, not_after=long_ago + datetime.timedelta(days=90))
    old = server_context(ca.issue_cert(NAME))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        old.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    old.set_ciphers("ALL:@SECLEVEL=0")
    return {
        "wrong host": server_context(ca.issue_cert("other.example")),
        "parent's wildcard": server_context(ca.issue_cert("*.media.example")),
        "expired": server_context(expired),
        "not yet valid": server_context(
            ca.issue_cert(NAME, not_before=datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=10))
        ),
        "unknown CA": server_context(trustme.CA().issue_cert(NAME)),
        "TLS 1.1": old,
    }


@pytest.mark.fault(24)
@pytest.mark.parametrize(
    "case", ["wrong host", "parent's wildcard", "expired", "not yet valid", "unknown CA", "TLS 1.1"]
)
def test_refused(run: Run, ca: trustme.CA, ca_file: str, case: str) -> None:
    async def main() -> None:
        async with tls_box(refused_cases(ca)[case], ca_file) as (origin, client):
            sink = await get(client, b"/ok")
            # A server that has no version in common hangs up without an alert.
            kind = "reset" if case == "TLS 1.1" else "tls"
            assert sink.calls == [("failed", kind, 502, False)]
            assert sink.error.can_retry == (kind == "reset")
            assert origin.requests == []

    run(main())


def test_without_the_corporate_ca_it_is_unknown(run: Run, ca: trustme.CA) -> None:
    async def main() -> None:
        async with tls_box(server_context(ca.issue_cert(NAME)), None) as (_, client):
            assert (await get(client, b"/ok")).calls == [("failed", "tls", 502, False)]

    run(main())


@pytest.mark.parametrize("content", [None, b"no certificate"])
def test_a_ca_file_that_cannot_be_read(run: Run, ca: trustme.CA, tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_bytes(content)

    async def main() -> None:
        async with tls_box(server_context(ca.issue_cert(NAME)), str(path)) as (_, client):
            sink = await get(client, b"/ok")
            assert sink.calls == [("failed", "tls", 502, False)]
            assert str(path) in sink.error.message

    run(main())


def test_plain_http_on_the_tls_port_is_refused(run: Run, ca_file: str) -> None:
    async def main() -> None:
        origin = await HostileOrigin({}).start()
        upstreams = (Upstream("https", NAME, origin.port),)
        client = client_of(OriginSettings("test", upstreams, ("127.0.0.1",), ca_file, connect_timeout_s=0.5))
        assert (await get(client, b"/ok")).calls[0][1] in ("tls", "connect-timeout", "reset")
        assert origin.requests == []
        await client.close()
        await origin.close()

    run(main())


def test_a_handshake_that_stalls_times_out(run: Run, ca_file: str) -> None:
    async def main() -> None:
        async with tls_box(None, ca_file, connect_timeout_s=0.2) as (_, client):  # type: ignore[arg-type]
            assert (await get(client, b"/ok")).calls == [("failed", "connect-timeout", 504, False)]

    run(main())


@pytest.mark.parametrize(
    ("path", "calls"),
    [
        (b"/until-close", OK),
        (b"/until-cut", [("head", 200), b"hello", ("failed", "truncated", 502, True)]),
        (b"/length-long", [("head", 200), b"hello", ("failed", "truncated", 502, True)]),
        (b"/length-short", [("head", 200), b"hello", ("failed", "excess", 502, True)]),
        (b"/chunked-excess", [("head", 200), b"hello", ("failed", "excess", 502, True)]),
        (b"/chunked-cut", [("head", 200), b"hello", ("failed", "truncated", 502, True)]),
        (b"/no-content-with-body", [("head", 204), ("ended",)]),
        (b"/no-bytes", [("failed", "closed", 502, False)]),
        (b"/stalls-in-body", [("head", 200), b"hello", ("failed", "body-timeout", 504, True)]),
        (b"/endless-head", [("failed", "bad-head", 502, True)]),
    ],
)
def test_behaviour_over_tls(run: Run, ca: trustme.CA, ca_file: str, path: bytes, calls: list[Any]) -> None:
    """A body up to the close is whole only with close_notify (RFC 9112 section 9.8): "until-cut" ends TCP alone."""

    async def cut(peer: Any, request: Any) -> bool:
        await peer.send(b"HTTP/1.1 200 OK\r\n\r\nhello")
        peer.shut_tcp()
        return False

    async def main() -> None:
        scripts = {**STANDARD, b"/until-cut": cut}
        context = server_context(ca.issue_cert(NAME))
        async with tls_box(context, ca_file, scripts, body_timeout_s=0.5) as (origin, client):
            assert (await get(client, path)).calls == calls
            assert (await get(client, b"/ok")).calls == OK
            assert origin.n_connections == 2

    run(main())


BODY = bytes(range(256)) * 12_000


async def get_pausing(client: UpstreamClient, size: int, n_pauses: int) -> RecordingSink:
    sink = RecordingSink(size=size)
    left = n_pauses

    def pause() -> None:
        nonlocal left
        if left > 0:
            left -= 1
            call.pause()
            asyncio.get_running_loop().call_later(0.005, call.resume)

    sink.on = {"bytes_received": pause}
    call = client.request(b"GET", b"/", [], sink)
    await sink.over()
    return sink


@pytest.mark.parametrize("size", [1_000, 50_000, 1 << 20])
@pytest.mark.parametrize("framing", ["length", "chunked", "until-close"])
@pytest.mark.parametrize("pausing", [False, True])
def test_what_the_transport_holds_at_the_end_is_not_lost(
    run: Run, ca: trustme.CA, ca_file: str, size: int, framing: str, pausing: bool
) -> None:
    """TLS transports drop what the last buffer had no room for when the connection ends: 3 MB, closed right behind."""
    wire = {
        "length": reply(BODY, keep=False),
        "chunked": raw(chunked(BODY[:1_000_000], BODY[1_000_000:])),
        "until-close": raw(b"HTTP/1.1 200 OK\r\n\r\n" + BODY),
    }[framing]

    async def main() -> None:
        async with tls_box(server_context(ca.issue_cert(NAME)), ca_file, {b"/": wire}) as (_, client):
            for _ in range(3):
                sink = await get_pausing(client, size, 5 if pausing else 0)
                assert len(sink.body) == len(BODY)
                assert sink.calls == [("head", 200), BODY, ("ended",)]
            await until(lambda: client.n_connections == 0)

    run(main())


@pytest.mark.parametrize("paused", [False, True])
@pytest.mark.parametrize("framing", ["length", "chunked", "until-close"])
def test_what_tcp_brought_before_it_ended_is_not_lost(
    run: Run, ca: trustme.CA, ca_file: str, framing: str, paused: bool
) -> None:
    """FIN makes both transports forget what they have decrypted and not delivered, as when reading is paused."""
    body = BODY[:100_000]
    head, rest = {
        "length": (b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n", body),
        "chunked": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", chunked(body).partition(b"\r\n\r\n")[2]),
        "until-close": (b"HTTP/1.1 200 OK\r\n\r\n", body),
    }[framing]

    async def main() -> None:
        is_paused = asyncio.Event()

        async def cut(peer: Any, request: Any) -> bool:
            peer.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 400_000)
            await peer.send(head)
            await is_paused.wait()
            await peer.send(rest)
            if framing != "until-close":
                peer.shut_tcp()
            return False

        async with tls_box(server_context(ca.issue_cert(NAME)), ca_file, {b"/": cut}) as (_, client):
            for _ in range(10):
                is_paused.clear()
                sink = RecordingSink(size=1_000)
                call = client.request(b"GET", b"/", [], sink)
                await until(lambda: sink.n_heads == 1)  # noqa: B023
                if paused:
                    call.pause()
                is_paused.set()
                if paused:
                    # Time for FIN to come; what is tested holds whether it came or not.
                    for _ in range(20):
                        await asyncio.sleep(0.001)
                    call.resume()
                assert await sink.over() == [("head", 200), body, ("ended",)]

    run(main())
