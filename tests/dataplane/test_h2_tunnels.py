"""WebSocket over HTTP/2 (RFC 8441): tunnels that are streams, beside other streams of the same connection."""

from __future__ import annotations

import base64
import contextlib
import gc
import re
import socket
import struct
from collections.abc import Callable, Iterator

import h2.settings
import pytest
from h2_rig import CANCEL, CLEARTEXT, H2Viewer
from plane_rig import GENERIC, Rig, pattern, wait_until
from tunnel_rig import GOING_AWAY, HEAD, Peer, Tunnels, frame

Rigs = Callable[..., Rig]
STREAM_WINDOW = 131_072  # ext/h2.pxd
CONNECT = [
    (":method", "CONNECT"),
    (":protocol", "websocket"),
    (":scheme", "http"),
    (":authority", "a"),
    (":path", "/generic/chat"),
    ("sec-websocket-version", "13"),
    ("origin", "http://a"),
]
HANDSHAKE = HEAD.replace(b"\r\n\r\n", b"\r\nSec-WebSocket-Accept: x\r\nSec-WebSocket-Protocol: chat\r\n\r\n")


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    yield
    gc.collect()


@pytest.fixture
def rig(rigs: Rigs) -> Rig:
    return rigs(http2=CLEARTEXT)


@pytest.fixture
def tunnels(rig: Rig) -> Iterator[Tunnels]:
    tunnels = Tunnels(rig)
    yield tunnels
    tunnels.close()


def opened(
    tunnels: Tunnels, viewer: H2Viewer, *, first: bytes = b"", early: bytes = b"", is_websocket: bool = True,
    idle_ns: int = 0,
) -> tuple[int, Peer]:  # fmt: skip
    stream = viewer.h2.get_next_available_stream_id()
    viewer.headers(stream, CONNECT, end=False)
    exchange = tunnels.rig.exchange("tunnel")
    if early:
        viewer.body(stream, early, end=False)
    assert exchange.origin == GENERIC
    fd, peer = tunnels.upstream()
    exchange.tunnel(fd, HANDSHAKE, first, is_websocket, idle_ns)
    while not viewer.answers[stream].heads:
        assert viewer.step()
    return stream, peer


def until(viewer: H2Viewer, stream: int, n: int) -> bytes:
    while len(viewer.answers[stream].body) < n:
        assert viewer.step()
    return viewer.answers[stream].body


@pytest.mark.rfc("RFC 8441 4, 5", "extended CONNECT is told of, and becomes an Upgrade towards the origin")
def test_the_handshake(tunnels: Tunnels) -> None:
    viewer = H2Viewer(tunnels.rig)
    assert viewer.h2.remote_settings[h2.settings.SettingCodes.ENABLE_CONNECT_PROTOCOL] == 1
    keys = set()
    for i in range(3):
        viewer.headers(2 * i + 1, [*CONNECT, ("sec-websocket-key", "mine")], end=False)
        exchange = tunnels.rig.exchange("tunnel")
        head = exchange.head.decode()
        assert head.startswith("GET /generic/chat HTTP/1.1\r\nHost: a\r\n")
        assert "\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n" in head
        assert "\r\nsec-websocket-version: 13\r\n" in head
        key = re.findall(r"(?i)\r\nsec-websocket-key: (\S+)", head)
        assert len(key) == 1
        assert len(base64.b64decode(key[0], validate=True)) == 16
        assert base64.b64encode(base64.b64decode(key[0])).decode() == key[0]
        keys.add(key[0])
        exchange.error(502)
        assert viewer.until_over(2 * i + 1)[0].status == 502
    assert len(keys) == 3


def test_bytes_go_both_ways(tunnels: Tunnels) -> None:
    viewer = H2Viewer(tunnels.rig)
    stream, peer = opened(tunnels, viewer)
    assert viewer.answers[stream].heads[0] == [(":status", "200"), ("sec-websocket-protocol", "chat")]
    viewer.body(stream, b"question", end=False)
    assert peer.until(8) == b"question"
    peer.send(b"answer")
    assert until(viewer, stream, 6) == b"answer"
    tunnels.rig.store("/x", pattern(9000))
    assert viewer.fetch("/x").body == pattern(9000)
    viewer.body(stream, b"", end=True)
    assert peer.rest() == b""
    peer.socket.close()
    assert viewer.until_over(stream)[0].is_whole
    tunnels.all_closed()


def test_what_came_early_goes_on(tunnels: Tunnels) -> None:
    viewer = H2Viewer(tunnels.rig)
    early, first = pattern(9000), pattern(20_000, 2)
    stream, peer = opened(tunnels, viewer, first=first, early=early)
    assert peer.until(len(early)) == early
    assert until(viewer, stream, len(first)) == first


def test_much_both_ways(tunnels: Tunnels) -> None:
    viewer = H2Viewer(tunnels.rig)
    stream, peer = opened(tunnels, viewer, is_websocket=False)
    down, up = pattern(500_000, 3), pattern(400_000, 4)
    sent = got = 0
    taken = bytearray()
    peer.socket.setblocking(False)
    while got < len(down) or len(taken) < len(up):
        room = min(viewer.h2.local_flow_control_window(stream), viewer.h2.max_outbound_frame_size, len(up) - sent)
        if room:
            viewer.h2.send_data(stream, up[sent : sent + room])
            viewer.flush()
            sent += room
        with contextlib.suppress(BlockingIOError):
            got += peer.socket.send(down[got : got + 50_000])
        with contextlib.suppress(BlockingIOError):
            taken += peer.socket.recv(1 << 20)
        while not viewer.is_silent():
            assert viewer.step()
    peer.socket.setblocking(True)
    assert bytes(taken) == up
    peer.socket.close()
    viewer.body(stream, b"", end=True)
    assert viewer.until_over(stream)[0].body == down
    tunnels.all_closed()


def test_a_viewer_who_shuts_his_window_holds_the_origin_back(tunnels: Tunnels) -> None:
    viewer = H2Viewer(tunnels.rig, takes=False)
    stream, peer = opened(tunnels, viewer, is_websocket=False)
    peer.socket.setblocking(False)
    sent = 0
    with contextlib.suppress(BlockingIOError):
        while sent < 64 << 20:
            sent += peer.socket.send(bytes(100_000))
    assert sent < 64 << 20
    assert tunnels.rig.plane.memory["outside"] < tunnels.rig.empty["outside"] + 300_000
    tunnels.rig.store("/x", b"")
    assert viewer.fetch("/x").status == 200
    viewer.h2.reset_stream(stream, CANCEL)
    viewer.flush()
    tunnels.all_closed()


def test_an_origin_that_takes_nothing_holds_the_viewer_back(tunnels: Tunnels) -> None:
    viewer = H2Viewer(tunnels.rig)
    stream, peer = opened(tunnels, viewer, is_websocket=False)
    tunnels.rig.store("/x", b"")
    before = tunnels.rig.total("tunnel_bytes_to_origins")
    given = bytearray()
    carried, n_still = -1, 0
    while n_still < 3:  # the worker had its turns: it answered others on this connection meanwhile, and carried nothing
        while n := min(viewer.h2.local_flow_control_window(stream), 16384):
            piece = pattern(n, len(given))
            viewer.h2.send_data(stream, piece)
            viewer.flush()
            given += piece
        assert len(given) < 64 << 20
        assert viewer.fetch("/x").status == 200
        total = tunnels.rig.total("tunnel_bytes_to_origins") - before
        n_still = n_still + 1 if total == carried and not viewer.h2.local_flow_control_window(stream) else 0
        carried = total
    # Not all of the window: of what the origin took, nghttp2 tells the viewer by half a window at a time, and how much
    # remains untold depends on how the bytes came. A test that wanted all of it hung when the worker was quick.
    assert len(given) - carried > STREAM_WINDOW // 2
    assert tunnels.rig.plane.memory["outside"] < tunnels.rig.empty["outside"] + 700_000
    got = bytearray()
    while len(got) < len(given):
        got += peer.until(min(len(given) - len(got), 65536))
    assert got == given
    while not viewer.h2.local_flow_control_window(stream):
        assert viewer.step()
    viewer.body(stream, b"on", end=True)
    assert peer.rest() == b"on"


def test_a_reset_is_passed_on(tunnels: Tunnels) -> None:
    viewer = H2Viewer(tunnels.rig)
    stream, peer = opened(tunnels, viewer)
    viewer.h2.reset_stream(stream, CANCEL)
    viewer.flush()
    with pytest.raises(ConnectionResetError):
        peer.rest()
    stream, peer = opened(tunnels, viewer)
    peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.socket.close()
    assert viewer.until_over(stream)[0].reset is not None
    tunnels.all_closed()


def test_a_drain_closes_by_1001(tunnels: Tunnels) -> None:
    viewer = H2Viewer(tunnels.rig)
    stream, peer = opened(tunnels, viewer)
    tunnels.rig.plane.drain()
    assert until(viewer, stream, 4) == frame(GOING_AWAY, opcode=8)
    assert peer.until(8)[:2] == b"\x88\x82"
    viewer.body(stream, frame(GOING_AWAY, opcode=8, mask=b"abcd"), end=True)
    peer.send(frame(GOING_AWAY, opcode=8))
    assert viewer.until_over(stream)[0].is_whole
    tunnels.all_closed()
    while viewer.step():
        pass
    wait_until(lambda: tunnels.rig.plane.n_connections == 0)


def test_idle_for_too_long(tunnels: Tunnels) -> None:
    viewer = H2Viewer(tunnels.rig)
    stream, _ = opened(tunnels, viewer, idle_ns=300_000_000)
    assert until(viewer, stream, 4) == frame(GOING_AWAY, opcode=8)
    viewer.close()
    tunnels.all_closed()
    assert tunnels.rig.total("tunnels_ended_idle") == 1


@pytest.mark.parametrize("path", ["/x", "/.well-known/accelerator/health", "/generic/chat"])
def test_only_a_tunnel_is_answered_by_2xx(tunnels: Tunnels, path: str) -> None:
    """A stored object, the probe, an origin that ignores the Upgrade: each would be taken for an open tunnel."""
    rig = tunnels.rig
    rig.store("/x", b"no tunnel")
    viewer = H2Viewer(rig)
    viewer.headers(1, [(":path", path) if name == ":path" else (name, value) for name, value in CONNECT], end=False)
    if path == "/generic/chat":
        exchange = rig.exchange("tunnel")
        stored = rig.create(4, private=True, origin=GENERIC)
        assert stored is not None
        rig.append(stored, 0, b"page")
        stored.finish(4)
        exchange.leader(stored, 200)
    assert viewer.until_over(1)[0].status in (501, 502)


def test_other_protocols_are_not_carried(tunnels: Tunnels) -> None:
    viewer = H2Viewer(tunnels.rig)
    viewer.headers(1, [(n, "connect-udp" if n == ":protocol" else v) for n, v in CONNECT], end=False)
    assert viewer.until_over(1)[0].status == 501


def test_a_connection_that_breaks_ends_its_tunnels(tunnels: Tunnels) -> None:
    viewer = H2Viewer(tunnels.rig)
    _, first = opened(tunnels, viewer)
    _, second = opened(tunnels, viewer)
    viewer.reset()
    for peer in (first, second):
        with pytest.raises(ConnectionResetError):
            peer.rest()
    tunnels.all_closed()
