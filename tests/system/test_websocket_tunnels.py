"""WebSocket and other tunnels through the running box: frames, handshakes good and bad, caps, ends, reloads, drains."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import signal
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from parent_proxies import squid, tinyproxy
from running_box import HOST, RunningBox, policy_for, read_all, read_response, wait_for
from websocket_origin import SEGMENT, WebSocketOrigin, accept_of

KEY = base64.b64encode(b"sixteen bytes ok").decode()
GENERIC = {"origins": {"media": {"profile": "generic"}}}


@pytest.fixture(scope="module")
def origin() -> Iterator[WebSocketOrigin]:
    with WebSocketOrigin() as running:
        yield running


@pytest.fixture(scope="module")
def box(origin: WebSocketOrigin, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningBox]:
    with RunningBox(tmp_path_factory.mktemp("box"), policy_for(origin.url, **GENERIC)) as running:
        yield running


def url_of(box: RunningBox, path: str) -> str:
    host, port = box.address()
    return f"http://{host}:{port}{path}"


def handshake(
    path: str, *lines: str, key: str | None = KEY, version: str | None = "13", upgrade: str = "websocket"
) -> bytes:
    head = [f"GET {path} HTTP/1.1", f"Host: {HOST}", "Connection: keep-alive, Upgrade", f"Upgrade: {upgrade}"]
    head += [f"Sec-WebSocket-Key: {key}"] if key is not None else []
    head += [f"Sec-WebSocket-Version: {version}"] if version is not None else []
    return "\r\n".join([*head, *lines, "", ""]).encode()


def open_raw(box: RunningBox, path: str = "/echo", *lines: str, early: bytes = b"", **how: Any) -> socket.socket:
    """A connection whose tunnel is open."""
    connected = box.connect()
    connected.sendall(handshake(path, *lines, **how) + early)
    response, rest = read_response(connected)
    assert response.status == 101, response
    assert not rest
    return connected


def n_tunnels(box: RunningBox) -> int:
    return int(box.control("top")["origins"][0]["tunnels"])


async def talk(box: RunningBox, path: str, **how: Any) -> list[Any]:
    """Messages of all kinds and sizes, back as they went; returns what was negotiated."""
    fields = {"Host": HOST, **how.pop("headers", {})}
    async with aiohttp.ClientSession() as session:
        async with session.ws_connect(url_of(box, path), headers=fields, max_msg_size=1 << 26, **how) as ws:
            for size in (0, 1, 125, 126, 65535, 65536, 3_000_000):
                data = os.urandom(size)
                await ws.send_bytes(data)
                assert await ws.receive_bytes(timeout=20) == data
                text = "é" * (size // 2)
                await ws.send_str(text)
                assert await ws.receive_str(timeout=20) == text
            await ws.ping(b"are you there")
            # Nobody but the origin answers a ping.
            pong = await ws.receive(timeout=20) if not ws._autoping else None
            assert pong is None or (pong.type, pong.data) == (aiohttp.WSMsgType.PONG, b"are you there")
            negotiated = [ws.protocol, ws.compress]
        assert ws.close_code == 1000
    return negotiated


def test_messages_of_all_kinds(box: RunningBox, origin: WebSocketOrigin) -> None:
    before = box.stats()
    assert asyncio.run(talk(box, "/echo", autoping=False)) == [None, 0]
    assert asyncio.run(talk(box, "/echo?room=1", compress=15, protocols=("chat", "other"))) == ["chat", 15]
    grown = box.grown(before)
    assert grown["tunnels_opened"] == grown["requests"] == grown["passed"] == 2
    assert grown["tunnel_bytes_to_viewers"] > 9_000_000
    wait_for(lambda: n_tunnels(box) == 0)


def test_what_goes_to_the_origin(box: RunningBox, origin: WebSocketOrigin) -> None:
    fields = ("Origin: https://portal.example", "Cookie: session=1", "Authorization: Bearer t", "X-Forwarded-For: 1.2")
    open_raw(box, "/echo/fields", *fields, "Sec-WebSocket-Protocol: chat").close()
    sent = next(head for path, head in origin.heads if path == "/echo/fields")
    assert (sent["Connection"], sent["Upgrade"]) == ("Upgrade", "websocket")
    assert (sent["Origin"], sent["Cookie"]) == ("https://portal.example", "session=1")
    assert sent["Authorization"] == "Bearer t"
    assert sent["Sec-WebSocket-Key"] == KEY
    assert "X-Forwarded-For" not in sent
    assert sent["Via"] == "1.1 test"
    assert len(sent.getall("Sec-WebSocket-Version")) == 1


def test_other_protocols_and_half_closes(box: RunningBox) -> None:
    with box.connect() as connected:
        connected.sendall(handshake("/lower", upgrade="lower/2, websocket/x", key=None, version=None) + b"EARLY")
        response, rest = read_response(connected)
        assert (response.status, response.fields["upgrade"]) == (101, "lower/2")
        while len(rest) < 10:
            rest += connected.recv(100)
        assert rest == b"helloearly"
        connected.sendall(b"Some More")
        connected.shutdown(socket.SHUT_WR)
        assert read_all(connected) == b"some morebye"


@pytest.mark.parametrize(("request_head", "status"), [
    (handshake("/echo", key=None), 400),
    (handshake("/echo", key="short"), 400),
    (handshake("/echo", key=base64.b64encode(b"seventeen bytes!!").decode()), 400),
    (handshake("/echo", key="!!!!!!!!!!!!!!!!!!!!!!=="), 400),
    (handshake("/echo", f"Sec-WebSocket-Key: {KEY}"), 400),
    (handshake("/echo", version=None), 400),
    (handshake("/echo", version="8"), 426),
    (handshake("/echo", version="13, 8"), 426),
    (handshake("/echo", "Sec-WebSocket-Protocol: a b"), 400),
    (handshake("/echo", upgrade="web socket"), 400),
    (handshake("/echo", upgrade="websocket, \"x\""), 400),
])  # fmt: skip
def test_bad_handshakes_are_refused(box: RunningBox, origin: WebSocketOrigin, request_head: bytes, status: int) -> None:
    before, n_before = box.stats(), len(origin.heads)
    with box.connect() as connected:
        connected.sendall(request_head)
        response, _ = read_response(connected)
    assert response.status == status
    assert len(origin.heads) == n_before
    assert box.grown(before)["tunnel_handshakes_refused"] == 1
    if status == 426:
        assert response.fields["sec-websocket-version"] == "13"
        assert response.fields["upgrade"] == "websocket"


def _switch(*lines: str, accept: str | None = None, upgrade: str = "websocket", connection: str = "Upgrade") -> Any:
    def raw(request: Any) -> bytes:
        mine = accept if accept is not None else accept_of(request.headers["Sec-WebSocket-Key"])
        head = ["HTTP/1.1 101 Switching", f"Connection: {connection}", f"Upgrade: {upgrade}"]
        head += [f"Sec-WebSocket-Accept: {mine}"] if mine else []
        return "\r\n".join([*head, *lines, "", ""]).encode()

    return raw


@pytest.mark.parametrize("raw", [
    _switch(accept="bm90IHRoZSBrZXkncyBhY2NlcHQ="),
    _switch(accept=""),
    _switch(upgrade="chat"),
    _switch(upgrade="websocket, chat"),
    _switch(upgrade="h2c"),
    _switch(connection="close"),
    _switch("Sec-WebSocket-Protocol: unasked"),
    _switch("Sec-WebSocket-Extensions: permessage-deflate"),
    _switch("Content-Length: 5"),
    _switch("Transfer-Encoding: chunked"),
    lambda request: b"HTTP/1.1 101\r\n\r\n",
    lambda request: b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
])  # fmt: skip
def test_a_wrong_101_is_a_502(box: RunningBox, origin: WebSocketOrigin, raw: Any) -> None:
    origin.raw = raw
    before = box.stats()
    with box.connect() as connected:
        connected.sendall(handshake("/raw"))
        response, _ = read_response(connected)
    assert response.status == 502
    grown = box.grown(before)
    assert grown["status_502"] == grown["upstream_errors"] == 1
    assert "tunnels_opened" not in grown
    assert box.get("/segment/after").body == SEGMENT


def test_a_right_101_byte_by_byte(box: RunningBox, origin: WebSocketOrigin) -> None:
    origin.raw = _switch("Set-Cookie: a=b", "X-Hop: 1", connection="X-Hop, upgrade")
    with box.connect() as connected:
        connected.sendall(handshake("/raw"))
        response, _ = read_response(connected)
    assert (response.status, response.fields["set-cookie"]) == (101, "a=b")
    assert response.fields["connection"] == "Upgrade"
    assert "x-hop" not in response.fields


def test_an_answer_without_upgrade_is_passed(box: RunningBox) -> None:
    with box.connect() as connected:
        for path, status, body in (("/login", 302, b"go there"), ("/private", 401, b"who are you?")):
            connected.sendall(handshake(path))
            response, _ = read_response(connected)
            assert (response.status, response.body) == (status, body)
            if status == 302:
                assert response.fields["set-cookie"] == "session=1"
    assert n_tunnels(box) == 0


def test_http2_by_upgrade_is_answered_in_http1(box: RunningBox) -> None:
    before = box.stats()
    response = box.get("/segment/1", "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk")
    assert (response.status, response.body) == (200, SEGMENT)
    assert box.grown(before)["upgrades_ignored"] == 1


def test_above_the_cap_is_503(origin: WebSocketOrigin, tmp_path: Path) -> None:
    with RunningBox(tmp_path, policy_for(origin.url, origins={"media": {"profile": "generic", "tunnels": 3}})) as box:
        open_ones = [open_raw(box) for _ in range(3)]
        with box.connect() as fourth:
            fourth.sendall(handshake("/echo"))
            response, _ = read_response(fourth)
            assert (response.status, "retry-after" in response.fields) == (503, True)
            assert n_tunnels(box) == 3
            assert box.stats()["tunnels_refused"] == 1
            assert box.get_on(fourth, "/segment/2").body == SEGMENT
            open_ones.pop().close()
            wait_for(lambda: n_tunnels(box) == 2)
            fourth.sendall(handshake("/echo"))
            assert read_response(fourth)[0].status == 101
        assert box.metrics()["accelerator_tunnels{media}"] >= 2
        for each in open_ones:
            each.close()


def test_media_needs_a_word_of_the_policy(origin: WebSocketOrigin, tmp_path: Path) -> None:
    with RunningBox(tmp_path, policy_for(origin.url)) as box:
        with box.connect() as connected:
            connected.sendall(handshake("/segment/3"))
            assert read_response(connected)[0].body == SEGMENT
        box.reload({"origins": {"media": {"upgrade": True}}})
        assert asyncio.run(talk(box, "/echo", protocols=("chat",), compress=15)) == ["chat", 15]


def test_slow_handshakes_wait_for_each_other_and_nobody_else(origin: WebSocketOrigin, tmp_path: Path) -> None:
    changes = {"origins": {"media": {"profile": "generic", "connections": 2, "timeouts": {"head": "2s"}}}}
    with RunningBox(tmp_path, policy_for(origin.url, **changes)) as box:
        waiting = []
        for _ in range(4):
            connected = box.connect()
            connected.sendall(handshake("/late/0.3"))
            waiting.append(connected)
        assert box.get("/segment/4").body == SEGMENT, "handshakes take no connection from requests"
        assert [read_response(connected)[0].status for connected in waiting] == [101] * 4
        leaving = box.connect()
        leaving.sendall(handshake("/late/60"))
        for connected in waiting:
            connected.close()
        wait_for(lambda: box.metrics()["accelerator_flights"] == 1)
        leaving.close()
        wait_for(lambda: box.metrics()["accelerator_flights"] == 0)


def test_an_idle_limit(origin: WebSocketOrigin, tmp_path: Path) -> None:
    changes = {"origins": {"media": {"profile": "generic", "timeouts": {"tunnel": "1s"}}}}
    with RunningBox(tmp_path, policy_for(origin.url, **changes)) as box, open_raw(box) as idle:
        assert idle.recv(100) == b"\x88\x02\x03\xe9"
        assert box.stats()["tunnels_ended_idle"] == 1


# -- ends --------------------------------------------------------------------------------------------------------------


def test_the_origins_death_ends_the_tunnel(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        origin = stack.enter_context(WebSocketOrigin())
        box = stack.enter_context(RunningBox(tmp_path, policy_for(origin.url, **GENERIC)))
        connected = stack.enter_context(open_raw(box))
        wait_for(lambda: len(origin.sockets) == 1)

        async def die() -> None:
            for ws in origin.sockets:
                transport = ws._req.transport  # type: ignore[union-attr]
                transport.abort()

        origin.run(die())
        assert read_all(connected) == b""
        connected.close()
        wait_for(lambda: n_tunnels(box) == 0)


def test_a_viewers_death_ends_the_tunnel(box: RunningBox, origin: WebSocketOrigin) -> None:
    wait_for(lambda: not origin.sockets)
    connected = open_raw(box)
    wait_for(lambda: len(origin.sockets) == 1)
    connected.close()
    wait_for(lambda: not origin.sockets and n_tunnels(box) == 0)


async def _closed_by_drain(box: RunningBox, n: int, drain: Any) -> list[tuple[int | None, float]]:
    """(close code, when) of `n` sockets after `drain()`."""
    loop = asyncio.get_running_loop()
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:
        sockets = [await session.ws_connect(url_of(box, "/echo"), headers={"Host": HOST}) for _ in range(n)]
        drain()
        began = loop.time()

        async def end(ws: aiohttp.ClientWebSocketResponse) -> tuple[int | None, float]:
            message = await ws.receive(timeout=30)
            assert message.type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED), message
            return ws.close_code, loop.time() - began

        return await asyncio.gather(*(end(ws) for ws in sockets))


def test_a_drain_closes_with_1001_one_after_the_other(tmp_path: Path) -> None:
    with WebSocketOrigin() as origin:
        policy = policy_for(origin.url, limits={"drain": "4s"}, **GENERIC)
        with RunningBox(tmp_path, policy) as box:
            ends = asyncio.run(_closed_by_drain(box, 100, lambda: box.signal(signal.SIGTERM)))
            assert box.exit_code() == 0
        assert {code for code, _ in ends} == {1001}
        times = sorted(at for _, at in ends)
        assert times[-1] - times[0] > 1.0, "not all at once"
        wait_for(lambda: len(origin.closed_with) == 100)
        assert set(origin.closed_with) == {1001}


def test_a_hand_over_closes_with_1001_and_the_next_one_serves(origin: WebSocketOrigin, tmp_path: Path) -> None:
    policy = policy_for(origin.url, limits={"drain": "3s"}, **GENERIC)
    with RunningBox(tmp_path, policy) as box:
        ends = asyncio.run(_closed_by_drain(box, 20, lambda: box.signal(signal.SIGUSR2)))
        assert {code for code, _ in ends} == {1001}
        wait_for(lambda: box.process.poll() is not None)
        successor = box.control("status")
        assert asyncio.run(talk(box, "/echo", autoping=False)) == [None, 0]
        pid = _pid_of_control(box)
        os.kill(pid, signal.SIGTERM)
        wait_for(lambda: not Path(f"/proc/{pid}").exists())
        assert successor["health"]["ok"]


def _pid_of_control(box: RunningBox) -> int:
    import struct

    with socket.socket(socket.AF_UNIX) as connected:
        connected.connect(str(box.state / "control.sock"))
        pid, _, _ = struct.unpack("3i", connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return int(pid)


def test_tunnels_outlive_reloads_and_their_origin(origin: WebSocketOrigin, tmp_path: Path) -> None:
    with RunningBox(tmp_path, policy_for(origin.url, **GENERIC)) as box, open_raw(box) as connected:
        frame = b"\x82\x85abcd" + bytes(byte ^ b"abcda"[i % 4] for i, byte in enumerate(b"hello"))
        for policy in (
            policy_for(origin.url, limits={"send_rate": "0bit/s"}, **GENERIC),
            {**policy_for(origin.url), "origins": {"other": {"from": [origin.url], "hosts": ["other.example"]}}},
        ):
            assert "policy taken over" in box.reload(policy=policy)
            connected.sendall(frame)
            assert connected.recv(100) == b"\x82\x05hello"
        assert box.get("/echo").status == 421


# -- ways --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tls_origin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[WebSocketOrigin, Path]]:
    folder = tmp_path_factory.mktemp("tls")
    certificate = make_certificate(folder)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, folder / "origin.key")
    with WebSocketOrigin(context) as running:
        yield running, certificate


def make_certificate(folder: Path) -> Path:
    import subprocess

    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", str(folder / "origin.key")]
    subprocess.run([*command, "-out", str(folder / "origin.crt")], check=True, capture_output=True)
    return folder / "origin.crt"


def tls_policy(origin: WebSocketOrigin, certificate: Path, **more: Any) -> dict[str, Any]:
    way = {"profile": "generic", "ca": str(certificate), "resolve": ["127.0.0.1"], **more}
    return policy_for(origin.url, origins={"media": way}, limits={"drain": "3s"})


def test_tls_upstream(tls_origin: tuple[WebSocketOrigin, Path], tmp_path: Path) -> None:
    with RunningBox(tmp_path, tls_policy(*tls_origin)) as box:
        assert asyncio.run(talk(box, "/echo", compress=15, protocols=("chat",))) == ["chat", 15]
        wait_for(lambda: n_tunnels(box) == 0)
        ends = asyncio.run(_closed_by_drain(box, 10, lambda: box.signal(signal.SIGTERM)))
        assert {code for code, _ in ends} == {1001}
        assert box.exit_code() == 0
    assert not tls_origin[0].sockets


def test_what_a_tunnel_over_tls_costs(tls_origin: tuple[WebSocketOrigin, Path], tmp_path: Path) -> None:
    """Printed, for docs/decisions/0085-tunnels.md; a bound that only a leak of buffers would pass."""
    with RunningBox(tmp_path, tls_policy(*tls_origin)) as box:
        statm = Path(f"/proc/{box.process.pid}/statm")

        def resident_bytes() -> int:
            return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGESIZE")

        open_raw(box).close()
        before, n = resident_bytes(), 150
        opened = [open_raw(box) for _ in range(n)]
        cost = (resident_bytes() - before) / n
        print(f"{cost / 1024:.0f} KiB a tunnel over TLS, {box.metrics()['accelerator_tls_relays']:.0f} relays")
        assert cost < 400 * 1024
        for each in opened:
            each.close()
        wait_for(lambda: box.metrics()["accelerator_tls_relays"] == 0)


def test_a_slow_viewer_over_tls_costs_no_memory(tls_origin: tuple[WebSocketOrigin, Path], tmp_path: Path) -> None:
    with RunningBox(tmp_path, tls_policy(*tls_origin)) as box, open_raw(box) as connected:
        wait_for(lambda: tls_origin[0].sockets)
        before = box.stats()["memory_bytes"]
        (ws,) = tls_origin[0].sockets

        async def flood() -> None:
            for i in range(300):
                await ws.send_bytes(bytes([i % 251]) * 100_000)

        flooding = asyncio.run_coroutine_threadsafe(flood(), tls_origin[0]._loop)
        wait_for(lambda: box.stats()["tunnel_bytes_to_viewers"] > 0)
        stuck = -1
        while stuck != (stuck := box.stats()["tunnel_bytes_to_viewers"]):
            box.metrics()
        assert not flooding.done(), "30 MB are somewhere, and not at the viewer"
        assert box.stats()["memory_bytes"] - before < 100_000
        for i in range(300):
            head = _exactly(connected, 10)
            assert head == b"\x82\x7f" + (100_000).to_bytes(8, "big")
            assert _exactly(connected, 100_000) == bytes([i % 251]) * 100_000
        flooding.result(10)


def _exactly(connected: socket.socket, n: int) -> bytes:
    data = b""
    while len(data) < n:
        piece = connected.recv(n - len(data))
        assert piece, f"ended after {len(data)} bytes"
        data += piece
    return data


@pytest.mark.parametrize("proxy", [squid, tinyproxy])
@pytest.mark.parametrize("is_tls", [False, True], ids=["plain", "tls"])
def test_through_a_parent_proxy(
    origin: WebSocketOrigin, tls_origin: tuple[WebSocketOrigin, Path], tmp_path: Path, is_tls: bool, proxy: Any
) -> None:
    with proxy() as port:
        via = {"via": f"http://127.0.0.1:{port}"}
        if is_tls:
            policy = tls_policy(*tls_origin, **via)
        else:
            policy = policy_for(origin.url, origins={"media": {"profile": "generic", **via}})
        with RunningBox(tmp_path, policy) as box:
            assert asyncio.run(talk(box, "/echo", autoping=False)) == [None, 0]
            assert box.get("/segment/5").body == SEGMENT
