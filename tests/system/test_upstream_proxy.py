"""Origins behind a parent proxy: absolute-form, CONNECT, log-ins, refusals, Via; by squid, tinyproxy, a strict one."""

from __future__ import annotations

import shutil
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trustme
from hostile_origin import STANDARD, HostileOrigin, reply
from parent_proxies import AUTHORIZATION, StrictProxy, nginx, squid, tinyproxy
from recording_sink import RecordingSink, until
from upstream_box import OK, Run, ca, ca_file, client_of, get, run

from accelerator.io.origin import ParentProxy
from accelerator.io.upstream import OriginSettings, Upstream, UpstreamClient
from accelerator.protocols.origin_rules import OriginRules
from accelerator.protocols.upstream_fields import is_loop, upstream_fields

__all__ = ["ca", "ca_file", "run"]

# The proxies of Debian resolve it without DNS. The box never does.
NAME = "localhost"
ASCII_LOGIN = "branch:secret"


@pytest.fixture(scope="module")
def tls(ca: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert(NAME).configure_cert(context)
    return context


async def nobody(*_: Any, **__: Any) -> list[Any]:
    raise AssertionError("the proxy resolves the origin's name, not the box")


@asynccontextmanager
async def box(
    port: int, *, tls: ssl.SSLContext | None = None, ca_file: str | None = None, login: bytes | None = None, **more: Any
) -> AsyncIterator[tuple[HostileOrigin, UpstreamClient]]:
    """An origin, and a client of it by the proxy on `port`."""
    origin = await HostileOrigin(STANDARD, tls=tls).start()
    upstream = Upstream("https" if tls else "http", NAME, origin.port)
    limits: dict[str, Any] = {"connect_timeout_s": 5, "head_timeout_s": 5, "body_timeout_s": 5, **more}
    limits.setdefault("via", ParentProxy("127.0.0.1", port, login))
    client = client_of(OriginSettings("test", (upstream,), ca_file=ca_file, **limits), getaddrinfo=nobody)
    try:
        yield origin, client
    finally:
        await client.close()
        await origin.close()
    assert client.n_connections == 0


# -- Debian's proxies ------------------------------------------------------------------------------------------------

PROXIES: dict[str, Callable[..., Any]] = {"squid": squid, "tinyproxy": tinyproxy}


@pytest.fixture(scope="module", params=[*PROXIES, "nginx"])
def plain_proxy(request: pytest.FixtureRequest) -> Iterator[int]:
    """For http:// origins; nginx opens no tunnels."""
    if shutil.which(request.param) is None:
        pytest.skip(f"needs {request.param}")
    with (PROXIES | {"nginx": nginx})[request.param]() as port:
        yield port


@pytest.fixture(scope="module", params=PROXIES)
def proxy(request: pytest.FixtureRequest) -> Iterator[int]:
    if shutil.which(request.param) is None:
        pytest.skip(f"needs {request.param}")
    with PROXIES[request.param]() as port:
        yield port


@pytest.fixture(scope="module", params=PROXIES)
def proxy_with_login(request: pytest.FixtureRequest) -> Iterator[tuple[str, int]]:
    if shutil.which(request.param) is None:
        pytest.skip(f"needs {request.param}")
    with PROXIES[request.param](ASCII_LOGIN) as port:
        yield request.param, port


def test_http_through_a_real_proxy(run: Run, plain_proxy: int) -> None:
    async def main() -> None:
        async with box(plain_proxy) as (origin, client):
            for target in (b"/ok", b"/chunked", b"/until-close", b"/close", b"/ok"):
                assert (await get(client, target)).calls == OK, target
            assert (await get(client, b"/empty")).calls == [("head", 200), ("ended",)]
            assert (await get(client, b"/ok", b"HEAD")).calls == [("head", 200), ("ended",)]
            assert (await get(client, b"/none?x=%2f&&y")).calls[0] == ("head", 404)
            assert origin.targets()[-1] == b"/none?x=%2f&&y"
            assert all(request.field(b"host") == b"localhost:%d" % origin.port for request in origin.requests)
            assert all(request.field(b"proxy-authorization") is None for request in origin.requests)

    run(main())


def test_a_proxy_that_does_not_say_keep_alive_gets_one_request_a_connection(run: Run) -> None:
    """tinyproxy passed the second one on as it stood: the origin saw the proxy's log-in."""

    async def main() -> None:
        said = StrictProxy(says_keep_alive=True)
        for proxy, n_connections in ((StrictProxy(), 3), (said, 1)):
            await proxy.start()
            async with box(proxy.port, login=AUTHORIZATION) as (origin, client):
                for _ in range(3):
                    assert (await get(client, b"/ok")).calls == OK
                assert proxy.n_connections == n_connections
                assert len(proxy.heads) == 3
                assert all(AUTHORIZATION not in request.raw for request in origin.requests)
            await proxy.close()

    run(main())


def test_https_through_a_real_proxy(run: Run, proxy: int, tls: ssl.SSLContext, ca_file: str) -> None:
    async def main() -> None:
        async with box(proxy, tls=tls, ca_file=ca_file) as (origin, client):
            for target in (b"/ok", b"/chunked", b"/ok"):
                assert (await get(client, target)).calls == OK
            # One tunnel, used again; within it the origin's own form, and nothing of the proxy.
            assert origin.n_connections == 1
            head = b"GET /ok HTTP/1.1\r\nHost: localhost:%d\r\nAccept: */*\r\n\r\n" % origin.port
            assert origin.requests[0].raw == head

    run(main())


def test_the_origin_is_verified_inside_the_tunnel(run: Run, proxy: int, ca_file: str) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert(NAME).configure_cert(context)

    async def main() -> None:
        async with box(proxy, tls=context, ca_file=ca_file) as (origin, client):
            assert (await get(client, b"/ok")).calls == [("failed", "tls", 502, False)]
            assert origin.requests == []

    run(main())


def test_log_in_at_a_real_proxy(
    run: Run, proxy_with_login: tuple[str, int], tls: ssl.SSLContext, ca_file: str
) -> None:
    name, port = proxy_with_login
    right = b"Basic YnJhbmNoOnNlY3JldA=="

    async def main() -> None:
        for context in (None, tls):
            for login, calls in (
                (right, OK),
                (None, [("failed", "proxy-login", 502, context is None)]),
                (AUTHORIZATION, [("failed", "proxy-login", 502, context is None)]),
            ):
                if name == "tinyproxy" and login == AUTHORIZATION:
                    continue  # it answers a wrong one by 401, as an origin would
                async with box(port, tls=context, ca_file=ca_file, login=login) as (origin, client):
                    sink = await get(client, b"/ok")
                    assert sink.calls == calls
                    assert len(origin.requests) == (calls == OK)
                    if sink.error is not None:
                        assert "407" in sink.error.message
                        assert AUTHORIZATION.decode() not in sink.error.message
                        assert not sink.error.can_retry

    run(main())


def test_an_upstream_that_the_proxy_cannot_reach(run: Run, proxy: int, tls: ssl.SSLContext, ca_file: str) -> None:
    async def main() -> None:
        async with box(proxy, tls=tls, ca_file=ca_file) as (origin, client):
            await origin.stop_listening()
            sink = await get(client, b"/ok")
            assert sink.calls == [("failed", "proxy-refused", 502, False)]
            assert sink.error.can_retry

    run(main())


@pytest.mark.parametrize("profile", ["media", "generic"])
def test_via_and_cdn_loop_survive_a_real_proxy_and_show_the_loop(run: Run, proxy: int, profile: Any) -> None:
    """RFC 9110 section 7.6.3: the proxy appends itself behind us, so a request that comes back is known."""

    async def main() -> None:
        viewer = [(b"Host", b"video.example"), (b"Via", b"1.1 desk"), (b"CDN-Loop", b"other; a=1")]
        fields = upstream_fields(viewer, OriginRules(profile=profile), host=b"", site=b"lyon")
        async with box(proxy) as (origin, client):
            sink = RecordingSink()
            client.request(b"GET", b"/ok", fields, sink)
            assert await sink.over() == OK
            seen = [line.split(b": ", 1) for line in origin.requests[0].raw.split(b"\r\n")[1:-2]]
            via = b", ".join(value for name, value in seen if name.lower() == b"via")
            assert via.startswith(b"1.1 desk, 1.1 lyon, 1.")
            assert via.count(b",") == 2
            assert [value for name, value in seen if name.lower() == b"cdn-loop"] == [b"other; a=1, lyon"]
            received = [(name, value) for name, value in seen]
            assert is_loop(received, b"lyon")
            assert not is_loop(received, b"nice")
            for alone in (b"via", b"cdn-loop"):
                assert is_loop([field for field in received if field[0].lower() != alone], b"lyon")

    run(main())


# -- a strict one ----------------------------------------------------------------------------------------------------


def test_request_bytes_to_a_proxy(run: Run) -> None:
    async def main() -> None:
        proxy = await StrictProxy(AUTHORIZATION).start()
        async with box(proxy.port, login=AUTHORIZATION) as (origin, client):
            assert (await get(client, b"/ok?a=%2f&&b")).calls == OK
            authority = b"localhost:%d" % origin.port
            assert proxy.heads == [
                b"GET http://%b/ok?a=%%2f&&b HTTP/1.1\r\nHost: %b\r\nAccept: */*\r\nProxy-Authorization: %b\r\n\r\n"
                % (authority, authority, AUTHORIZATION)
            ]
            sink = RecordingSink()
            client.request(b"OPTIONS", b"*", [], sink)
            await until(lambda: len(origin.requests) == 2)
            await sink.over()
        await proxy.close()

    run(main())


def test_connect_bytes_and_reuse(run: Run, tls: ssl.SSLContext, ca_file: str) -> None:
    async def main() -> None:
        proxy = await StrictProxy(AUTHORIZATION).start()
        async with box(proxy.port, tls=tls, ca_file=ca_file, login=AUTHORIZATION) as (origin, client):
            for _ in range(3):
                assert (await get(client, b"/ok")).calls == OK
            authority = b"localhost:%d" % origin.port
            assert proxy.heads == [
                b"CONNECT %b HTTP/1.1\r\nHost: %b\r\nProxy-Authorization: %b\r\n\r\n"
                % (authority, authority, AUTHORIZATION)
            ]
            # The viewer's Host is the origin's business inside the tunnel.
            sink = RecordingSink()
            client.request(b"GET", b"/ok", [(b"Host", b"video.example")], sink)
            assert await sink.over() == OK
            assert origin.requests[-1].field(b"host") == b"video.example"
        await proxy.close()

    run(main())


def test_a_host_that_is_not_the_targets_is_not_sent_to_a_proxy(run: Run) -> None:
    """A proxy asks the target's host, a lax one or the next in line the field's: two servers for one key."""

    async def main() -> None:
        proxy = await StrictProxy().start()
        async with box(proxy.port) as (origin, client):
            for fields in (
                [(b"Host", b"video.example")],
                [(b"Proxy-Authorization", b"Basic x")],
            ):
                sink = RecordingSink()
                client.request(b"GET", b"/ok", fields, sink)
                assert await sink.over() == [("failed", "bad-field", 502, False)]
            sink = RecordingSink()
            client.request(b"GET", b"/ok", [(b"Host", b"localhost:%d" % origin.port)], sink)
            assert await sink.over() == OK
            assert proxy.n_connections == 1
        await proxy.close()

    run(main())


def test_a_407_of_the_origin_itself_passes_where_no_proxy_reads(run: Run, tls: ssl.SSLContext, ca_file: str) -> None:
    async def main() -> None:
        proxy = await StrictProxy().start()
        async with box(proxy.port, tls=tls, ca_file=ca_file) as (origin, client):
            origin.scripts[b"/407"] = reply(b"hello", status=407)
            assert (await get(client, b"/407")).calls == [("head", 407), *OK[1:]]
        await proxy.close()

    run(main())


# What a broken or hostile proxy may answer to CONNECT: kind, status.
ANSWERS: dict[str, tuple[bytes, str, int]] = {
    "403": (b"HTTP/1.1 403 No\r\nContent-Length: 5\r\n\r\nhello", "proxy-refused", 502),
    "502": (b"HTTP/1.1 502 Bad\r\n\r\n", "proxy-refused", 502),
    "504": (b"HTTP/1.1 504 Late\r\n\r\n", "proxy-refused", 504),
    "301": (b"HTTP/1.1 301 Go\r\nLocation: http://evil.example/\r\n\r\n", "proxy-refused", 502),
    "407": (b"HTTP/1.1 407 Who\r\n\r\n", "proxy-login", 502),
    "101": (b"HTTP/1.1 101 Switch\r\n\r\n", "bad-head", 502),
    "bytes behind": (b"HTTP/1.1 200 OK\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", "excess", 502),
    "two lengths": (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", "bad-head", 502),
    "bare LF": (b"HTTP/1.1 200 OK\n\n", "bad-head", 502),
    "not HTTP": (b"SSH-2.0-x\r\n\r\n", "bad-head", 502),
    "interims": (b"HTTP/1.1 100 C\r\n\r\n" * 17, "interim-flood", 502),
    "endless": (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 20_000, "bad-head", 502),
    "silence": (b"", "connect-timeout", 504),
    "half a head": (b"HTTP/1.1 200 OK\r\nX", "connect-timeout", 504),
}


@pytest.mark.parametrize("case", ANSWERS)
def test_answers_to_connect(run: Run, case: str, tls: ssl.SSLContext, ca_file: str) -> None:
    data, kind, status = ANSWERS[case]

    async def main() -> None:
        proxy = await StrictProxy(answer=data).start()
        timeout_s = 0.2 if kind == "connect-timeout" else 5
        async with box(proxy.port, tls=tls, ca_file=ca_file, connect_timeout_s=timeout_s) as (origin, client):
            sink = await get(client, b"/ok")
            assert sink.calls == [("failed", kind, status, False)]
            assert "127.0.0.1" in sink.error.message
            assert origin.n_connections == 0
        await proxy.close()

    run(main())


def test_the_proxys_name_is_resolved_and_checked_and_pins_are_its(run: Run) -> None:
    async def main() -> None:
        proxy = await StrictProxy().start()
        asked: list[str] = []

        async def getaddrinfo(host: str, port: Any, **more: Any) -> list[Any]:
            asked.append(host)
            return [(2, 1, 6, "", ("127.0.0.1", 0))]

        origin = await HostileOrigin().start()
        upstreams = (Upstream("http", NAME, origin.port),)
        for resolve, calls in (((), [("failed", "forbidden-address", 502, False)]), (("127.0.0.1",), OK)):
            settings = OriginSettings("test", upstreams, resolve, via=ParentProxy("proxy.example", proxy.port))
            client = client_of(settings, getaddrinfo=getaddrinfo)
            assert (await get(client, b"/ok")).calls == calls
            await client.close()
        assert asked == ["proxy.example"]
        # Our own listener is no proxy for us, whatever the policy says.
        own = frozenset({("127.0.0.1", proxy.port)})
        ours = ParentProxy("127.0.0.1", proxy.port)
        client = client_of(OriginSettings("test", upstreams, via=ours, own_listeners=own))
        assert (await get(client, b"/ok")).calls == [("failed", "forbidden-address", 502, False)]
        await client.close()
        await proxy.close()
        await origin.close()

    run(main())


def test_new_settings_move_to_the_proxy_and_back(run: Run) -> None:
    """A request that waits for a slot is sent in the form that its connection needs, not its policy's first one."""

    async def main() -> None:
        proxy = await StrictProxy().start()
        origin = await HostileOrigin().start()
        # By address, so that the box can reach it without a proxy too.
        direct = OriginSettings("test", (Upstream("http", "127.0.0.1", origin.port),), connections=1)
        proxied = OriginSettings(
            "test", direct.upstreams, connections=1, via=ParentProxy("127.0.0.1", proxy.port, AUTHORIZATION)
        )
        client = client_of(direct)
        n_proxied = 0
        for settings in (proxied, direct, proxied):
            first, queued = RecordingSink(), RecordingSink()
            client.request(b"GET", b"/ok", [], first)
            client.request(b"GET", b"/ok", [], queued)
            assert client.n_queued == 1
            await until(lambda: first.n_heads == 1 or first.is_over)  # noqa: B023
            client.set_settings(settings)
            assert await first.over() == OK
            assert await queued.over() == OK
            assert (await get(client, b"/ok")).calls == OK
            assert origin.requests[-1].raw.startswith(b"GET /ok HTTP/1.1\r\n")
            n_proxied += settings is proxied
            assert len(proxy.heads) >= n_proxied
        assert AUTHORIZATION.decode() not in repr(client.settings)
        await client.close()
        await proxy.close()
        await origin.close()

    run(main())


def test_fail_over_behind_a_proxy_rebuilds_the_target(run: Run) -> None:
    async def main() -> None:
        proxy = await StrictProxy().start()
        async with box(proxy.port) as (origin, client):
            gone = await HostileOrigin().start()
            await gone.close()
            assert (await get(client, b"/ok")).calls == OK
            # A proxy that answers for a dead upstream is an answer: no fail-over, its status is the origin's.
            upstreams = (Upstream("http", NAME, gone.port), *client.settings.upstreams)
            settings = OriginSettings("test", upstreams, via=client.settings.via)
            client.set_settings(settings)
            assert (await get(client, b"/ok")).calls[0] == ("head", 503)
            sink = RecordingSink()
            client.request(b"GET", b"/ok", [], sink, avoid=upstreams[0])
            assert await sink.over() == OK
            assert proxy.heads[-1].startswith(b"GET http://localhost:%d/ok " % origin.port)
        await proxy.close()

    run(main())
