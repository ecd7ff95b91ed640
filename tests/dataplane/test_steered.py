"""How viewers are steered, at the worker: URL prefix, own pages, CONNECT, and a listener that comes and goes as
interception's does. Whole heads that CONNECT may have are test_http_head.py's."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator

import pytest
from h2_rig import CLEARTEXT, H2Viewer
from http_head_cases import ACCEPTED_CONNECTS, REFUSED_CONNECTS, connect
from plane_rig import GENERIC, MEDIA, Rig, Viewer, pattern, wait_until
from tunnel_rig import Tunnels, frame

Rigs = Callable[..., Rig]
OWN = 0  # the origin that the box's own pages belong to
REWRITTEN = b"\x01"  # what the key of a manifest begins with that is asked for by prefix
MANIFEST = b"#EXTM3U\n/vod/1.ts\n"


@pytest.fixture
def rig(all_rigs: Rigs) -> Rig:
    return all_rigs(has_prefix=True, may_connect=1)


@pytest.fixture
def tunnels(rig: Rig) -> Iterator[Tunnels]:
    made = Tunnels(rig)
    yield made
    made.close()


# -- URL prefix --------------------------------------------------------------------------------------------------------


def test_a_prefix_is_left_out_of_key_and_head(rig: Rig) -> None:
    viewer = rig.viewer()
    viewer.ask("/media/vod/1.ts?a=/media/b&token=t", "X: /media", host="box.example")
    exchange = rig.exchange("miss")
    assert (exchange.origin, exchange.key) == (MEDIA, b"/vod/1.ts?a=/media/b&token=t")
    assert exchange.head.startswith(b"GET /vod/1.ts?a=/media/b&token=t HTTP/1.1\r\nHost: box.example\r\nX: /media\r\n")
    exchange.error(502)
    assert viewer.reply().status == 502


def test_an_object_is_shared_by_both_ways_in(rig: Rig) -> None:
    body = pattern(20_000)
    rig.store("/vod/1.ts", body, etag=b'"v"')
    viewer = rig.viewer()
    assert viewer.get("/media/vod/1.ts", host="box.example").body == body
    assert viewer.get("/vod/1.ts").body == body
    part = viewer.get("/media/vod/1.ts", "Range: bytes=4090-4100", host="box.example")
    assert (part.status, part.body) == (206, body[4090:4101])
    assert viewer.get("/media/vod/1.ts", 'If-None-Match: "v"', host="box.example").status == 304
    assert viewer.get("http://box.example/media/vod/1.ts", host="box.example").body == body
    assert rig.total("hits") == 5
    assert rig.no_exchange()


@pytest.mark.parametrize(
    "path",
    ["/media", "/media?x", "/mediax/1.ts", "/medi", "/", "//media/x", "/MEDIA/x", "/%6dedia/x"],
)
def test_what_is_no_prefix_is_nobodys(rig: Rig, path: str) -> None:
    assert rig.viewer().get(path, host="box.example").status == 421
    assert rig.total("refused") == 1
    assert rig.no_exchange()


def test_a_known_host_has_no_prefixes(rig: Rig) -> None:
    rig.store("/media/x", b"its own")
    assert rig.viewer().get("/media/x").body == b"its own"


def test_requests_by_prefix_come_in_pieces_and_in_a_row(rig: Rig) -> None:
    rig.store("/x", b"stored")
    one = b"GET /media/x HTTP/1.1\r\nHost: box.example\r\n\r\n"
    viewer = rig.viewer()
    for n in range(1, len(one)):
        viewer.send(one[:n])
        viewer.send(one[n:] + one)
        assert [viewer.reply().body, viewer.reply().body] == [b"stored", b"stored"]


def test_the_longest_head_by_prefix_is_asked_whole(rig: Rig) -> None:
    fields = [f"X: {'x' * 8000}"] * 3
    viewer = rig.viewer()
    viewer.ask("/media/" + "p" * 8000, *fields, host="box.example")
    exchange = rig.exchange("miss")
    assert exchange.head.count(b"x" * 8000) == 3
    assert exchange.head.startswith(b"GET /" + b"p" * 8000 + b" HTTP/1.1\r\n")
    exchange.error(404)
    assert viewer.reply().status == 404


def test_a_manifest_by_prefix_is_asked_apart_and_never_stored(rig: Rig) -> None:
    rig.store("/vod/a.m3u8", MANIFEST)
    first, second = rig.viewer(), rig.viewer()
    for viewer in (first, second):
        viewer.ask("/media/vod/a.m3u8?_HLS_msn=1", host="box.example")
    exchange = rig.exchange()
    assert (exchange.origin, exchange.key) == (MEDIA, REWRITTEN + b"/vod/a.m3u8?_HLS_msn=1")
    stored = rig.create(len(MANIFEST) + 6, private=True)
    assert stored is not None
    rig.append(stored, 0, MANIFEST.replace(b"/vod", b"/media/vod"))
    stored.finish(len(MANIFEST) + 6)
    exchange.everybody(stored, 200)
    answers = [first.reply().body]
    while not second.data and rig.no_exchange():
        assert second.more()
    if rig.exchanges:  # it came too late to be told with the first
        rig.exchange().everybody(stored, 200)
    answers.append(second.reply().body)
    assert answers == [MANIFEST.replace(b"/vod", b"/media/vod")] * 2
    assert rig.viewer().get("/vod/a.m3u8").body == MANIFEST, "others get the origin's own"
    assert {key for _, key, _ in rig.plane.objects()} == {b"/vod/a.m3u8"}


def test_an_upload_and_a_chat_by_prefix(tunnels: Tunnels) -> None:
    rig = tunnels.rig
    viewer = rig.viewer()
    viewer.send(b"POST /box/up HTTP/1.1\r\nHost: box.example\r\nContent-Length: 5\r\n\r\nhello")
    exchange = rig.exchange("pass")
    assert (exchange.origin, exchange.key) == (GENERIC, b"/up")
    assert exchange.head.startswith(b"POST /up HTTP/1.1\r\n")
    exchange.error(503)
    viewer = rig.viewer()
    viewer.ask("/box/chat", "Connection: Upgrade", "Upgrade: websocket", host="box.example")
    exchange = rig.exchange("tunnel")
    assert (exchange.origin, exchange.key) == (GENERIC, b"/chat")
    fd, peer = tunnels.upstream()
    exchange.tunnel(fd, b"HTTP/1.1 101 Switching Protocols\r\n\r\n", b"", True)
    viewer.head()
    viewer.send(frame(b"hello", mask=b"mask"))
    assert peer.until(11) == frame(b"hello", mask=b"mask")


def test_prefixes_over_http2(rigs: Rigs) -> None:
    rig = rigs(has_prefix=True, http2=CLEARTEXT, may_connect=1)
    rig.store("/x", b"stored")
    viewer = H2Viewer(rig)
    streams = [viewer.request("/media/x", host="box.example"), viewer.request("/media/y", host="box.example"),
               viewer.request("/x"), viewer.request("/nobody/x", host="box.example")]  # fmt: skip
    exchange = rig.exchange("miss")
    assert exchange.key == b"/y"
    assert b"/media" not in exchange.head
    exchange.error(504)
    while any(viewer.answers[stream].is_open for stream in streams):
        assert viewer.step()
    assert [viewer.answers[stream].status for stream in streams] == [200, 504, 200, 421]


def test_tables_change_while_requests_by_prefix_wait(rig: Rig) -> None:
    viewers = [rig.viewer() for _ in range(3)]
    for n, viewer in enumerate(viewers):
        viewer.ask(f"/media/{n}", host="box.example")
    exchanges = [rig.exchange("miss") for _ in viewers]
    rig.has_prefix = False
    rig.publish()
    for exchange in exchanges:
        exchange.match()
    assert [viewer.reply().status for viewer in viewers] == [421, 421, 421], "who looks again looks at the new tables"


# -- own pages ---------------------------------------------------------------------------------------------------------


def test_own_pages_are_for_every_host_but_not_for_a_proxys_requests(all_rigs: Rigs) -> None:
    rig = all_rigs(has_prefix=True, has_pages=1)
    rig.store("/proxy.pac", b"function", origin=OWN)
    rig.store("/proxy.pac", b"the origin's own", origin=MEDIA)
    viewer = rig.viewer()
    assert viewer.get("/proxy.pac").body == b"function"
    assert viewer.get("/proxy.pac?x", host="other.example").body == b"function"
    assert viewer.get("/proxy.pac", method="HEAD", host="b")["content-length"] == "8"
    assert viewer.get("http://a/proxy.pac").body == b"the origin's own"
    assert rig.total("own_pages") == 3
    assert viewer.get("/proxy.pacx", host="other.example").status == 421


# -- CONNECT -----------------------------------------------------------------------------------------------------------

ESTABLISHED = b"HTTP/1.1 200 Connection established\r\n\r\n"


def taken(tunnels: Tunnels, request: bytes) -> tuple[Viewer, socket.socket]:
    viewer = tunnels.rig.viewer()
    viewer.send(request)
    exchange = tunnels.rig.exchange("tunnel")
    assert exchange.origin == OWN
    fd, peer = tunnels.upstream()
    exchange.tunnel(fd, ESTABLISHED, b"", False)
    assert viewer.until(len(ESTABLISHED)) == ESTABLISHED
    return viewer, peer.socket


@pytest.mark.parametrize("name", ACCEPTED_CONNECTS)
def test_a_connect_is_asked_by_its_authority(rig: Rig, name: str) -> None:
    data, expected = ACCEPTED_CONNECTS[name]
    viewer = rig.viewer()
    viewer.send(data)
    exchange = rig.exchange("tunnel")
    assert exchange.key == expected["target"]
    assert exchange.head == data
    exchange.error(501)
    reply = viewer.reply()
    assert (reply.status, reply["connection"]) == (501, "close")
    assert viewer.rest() == b""


@pytest.mark.parametrize("name", REFUSED_CONNECTS)
def test_a_bad_connect_is_refused_and_ends_the_connection(rig: Rig, name: str) -> None:
    data, status = REFUSED_CONNECTS[name]
    viewer = rig.viewer()
    viewer.send(data)
    assert viewer.reply().status == status
    viewer.is_reset()  # the end, whichever way: what came behind the fault may not have been read
    assert rig.no_exchange()


def test_what_comes_with_a_connect_is_the_tunnels(tunnels: Tunnels) -> None:
    early = pattern(9000)
    viewer, peer = taken(tunnels, connect(b"a.example:443") + early)
    got = b""
    while len(got) < len(early):
        got += peer.recv(1 << 16)
    assert got == early
    peer.sendall(b"back")
    assert viewer.until(4) == b"back"
    viewer.close()
    peer.close()
    rig = tunnels.rig
    wait_until(lambda: rig.total("tunnels_closed") == rig.total("tunnels_opened") == 1, "the tunnel is closed")


def test_a_connect_in_pieces_and_behind_another_request(tunnels: Tunnels) -> None:
    tunnels.rig.store("/x", b"stored")
    data = connect(b"a.example:443", b"User-Agent: x")
    before = b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n"
    for n in range(1, len(data), 7):
        viewer = tunnels.rig.viewer()
        viewer.send(before + data[:n])
        assert viewer.reply().body == b"stored"
        viewer.send(data[n:])
        tunnels.rig.exchange("tunnel").error(502)
        assert viewer.reply().status == 502


def test_a_viewer_that_leaves_before_its_connect_is_answered(tunnels: Tunnels) -> None:
    viewer = tunnels.rig.viewer()
    viewer.send(connect(b"a.example:443"))
    exchange = tunnels.rig.exchange("tunnel")
    viewer.reset()
    wait_until(lambda: tunnels.rig.plane.n_connections == 0, "the worker knows")
    fd, peer = tunnels.upstream()
    exchange.tunnel(fd, ESTABLISHED, b"", False)
    with contextlib.suppress(ConnectionResetError):
        assert peer.rest() == b"", "the origin's side is closed"


def test_connect_is_501_where_policy_lists_none_and_403_in_other_zones(all_rigs: Rigs) -> None:
    rig = all_rigs(has_prefix=True)
    assert rig.viewer().get("a.example:443", method="CONNECT", host="a.example:443").status == 501
    rig = all_rigs(may_connect=1, zone_mask=0b10, nets=((bytes(15) + b"\1", 128, 1),))
    assert rig.viewer().get("a.example:443", method="CONNECT", host="a.example:443").status == 403
    assert rig.total("refused_zone") == 1


def test_plain_connect_over_http2_is_no_tunnel(rigs: Rigs) -> None:
    rig = rigs(http2=CLEARTEXT, may_connect=1)
    viewer = H2Viewer(rig)
    viewer.headers(1, [(":method", "CONNECT"), (":authority", "a.example:443")], end=False)
    while viewer.answers[1].is_open:
        assert viewer.step()
    assert rig.no_exchange()


def test_tunnels_of_connect_end_with_a_drain(tunnels: Tunnels) -> None:
    viewer, peer = taken(tunnels, connect(b"a.example:443"))
    tunnels.rig.plane.drain(100)
    viewer.is_reset()  # the end, whichever way
    with contextlib.suppress(ConnectionResetError):
        assert peer.recv(1) == b""


# -- interception ------------------------------------------------------------------------------------------------------


def test_workers_that_are_poked_move_although_nobody_asks(rigs: Rigs) -> None:
    """What netd's watchdog is told: an idle worker that is poked begins a pass."""
    rig = rigs(workers=3)
    for _ in range(5):
        before = [passes for _, passes, _ in rig.plane.workers_state()]
        rig.plane.poke()
        wait_until(
            lambda before=before: all(  # type: ignore[misc]
                passes > old for (_, passes, _), old in zip(rig.plane.workers_state(), before, strict=True)),
            "each worker has begun a pass",
        )  # fmt: skip


@pytest.fixture
def retired() -> Iterator[list[socket.socket]]:
    """Listening sockets whose numbers stay taken until no worker can have them in hand, as the appliance's do."""
    sockets: list[socket.socket] = []
    yield sockets
    for each in sockets:
        each.close()


def test_a_second_listener_comes_and_goes_while_viewers_are_served(retired: list[socket.socket], rigs: Rigs) -> None:
    """As the transparent one does when interception is withdrawn and comes back; its viewers' answers end whole."""
    rig = rigs(workers=2, listeners=2)
    body = pattern(300_000)
    rig.store("/x", body)
    for _ in range(10):
        other = socket.create_server(("127.0.0.1", 0))
        other.setblocking(False)
        rig.plane.listen(other.fileno(), 1)
        viewers = [Viewer() for _ in range(4)]
        for viewer in viewers:
            viewer.connect(other.getsockname())
            rig.viewers.append(viewer)
            viewer.ask()
        assert all(viewer.head().status == 200 for viewer in viewers)
        rig.plane.unlisten(1)
        assert all(viewer.until(len(body)) == body for viewer in viewers)
        other.shutdown(socket.SHUT_RDWR)
        retired.append(other)
    assert rig.viewer().get("/x").body == body
