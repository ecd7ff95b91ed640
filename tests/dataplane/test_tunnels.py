"""Tunnels through a worker: bytes both ways, ends and resets, back-pressure, Close frames, idle limits."""

from __future__ import annotations

import fcntl
import random
import socket
import struct
import termios
from collections.abc import Callable, Iterator

import pytest
from ext.frames import frame_ends
from plane_rig import Rig, pattern, wait_until
from tunnel_rig import GOING_AWAY, HEAD, UPGRADE, Tunnels, frame, random_frames

SECOND_NS = 10**9


@pytest.fixture
def tunnels(all_rigs: Callable[..., Rig]) -> Iterator[Tunnels]:
    tunnels = Tunnels(all_rigs())
    yield tunnels
    tunnels.close()


def test_bytes_go_both_ways(tunnels: Tunnels) -> None:
    viewer, peer = tunnels.open()
    viewer.send(b"question")
    assert peer.until(8) == b"question"
    peer.send(b"answer")
    assert viewer.until(6) == b"answer"
    rig = tunnels.rig
    assert rig.total("tunnels_opened") == 1
    assert rig.total("passed") == rig.total("requests") == 1
    viewer.close()
    assert peer.rest() == b""
    peer.socket.close()
    tunnels.all_closed()
    assert rig.plane.origin_tunnels([2])[2] == (1, len(HEAD) + 6, 8)


def test_what_came_early_goes_on(tunnels: Tunnels) -> None:
    early, first = pattern(9000), pattern(20000, 2)
    viewer, peer = tunnels.open(early=early, first=first)
    assert peer.until(len(early)) == early
    assert viewer.until(len(first)) == first


@pytest.mark.parametrize("is_pair", [False, True], ids=["tcp", "pair"])
def test_half_closes_are_passed_on(tunnels: Tunnels, is_pair: bool) -> None:
    viewer, peer = tunnels.open(is_websocket=False, is_pair=is_pair)
    viewer.send(b"last words")
    viewer.socket.shutdown(socket.SHUT_WR)
    assert peer.rest() == b"last words"
    assert viewer.is_silent()
    peer.send(b"after the end")
    assert viewer.until(13) == b"after the end"
    peer.socket.shutdown(socket.SHUT_WR)
    assert viewer.rest() == b""
    tunnels.all_closed()


def test_an_origins_half_close_leaves_the_other_way(tunnels: Tunnels) -> None:
    viewer, peer = tunnels.open(is_websocket=False)
    peer.send(b"bye")
    peer.socket.shutdown(socket.SHUT_WR)
    assert viewer.rest() == b"bye"
    viewer.send(b"still here")
    assert peer.until(10) == b"still here"
    viewer.close()
    assert peer.rest() == b""
    tunnels.all_closed()


def test_a_reset_is_passed_on(tunnels: Tunnels) -> None:
    viewer, peer = tunnels.open()
    viewer.reset()
    with pytest.raises(ConnectionResetError):
        peer.rest()
    viewer, peer = tunnels.open()
    peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.socket.close()
    assert viewer.is_reset()
    tunnels.all_closed()


def test_what_was_sent_before_the_origin_closed_arrives_although_the_viewer_still_talks(tunnels: Tunnels) -> None:
    viewer, peer = tunnels.open(receive_bytes=4096, buffer_bytes=8192)
    data = pattern(60_000)
    peer.socket.settimeout(None)
    peer.send(data)
    # What the origin's own kernel still holds when the viewer talks to the closed socket, that kernel throws away.
    wait_until(lambda: not any(fcntl.ioctl(peer.socket, termios.TIOCOUTQ, bytes(4))), "all is on our side")
    peer.socket.close()
    viewer.send(b"talk" * 10)
    assert viewer.until(len(data)) == data
    assert viewer.rest() == b""
    tunnels.all_closed()


def test_a_slow_reader_stops_the_sender_and_costs_little(tunnels: Tunnels) -> None:
    viewer, peer = tunnels.open(receive_bytes=4096, buffer_bytes=8192)
    rig = tunnels.rig
    peer.socket.setblocking(False)
    data, sent = pattern(1 << 16), 0
    stuck = 0
    while stuck < 50:
        try:
            sent += peer.socket.send(data[sent % 65536 :])
            stuck = 0
        except BlockingIOError:
            stuck += 1
            before = rig.passes()
            rig.plane.poke()
            wait_until(lambda before=before: rig.passes() > before, "a pass")
    outside = rig.kept()
    assert outside < 40_000, "one read's worth waits in the box"
    received = viewer.until(sent)
    assert received == (data * (sent // 65536 + 1))[:sent]
    wait_until(lambda: rig.kept() < 2000, "the buffer is given back")


def test_an_idle_tunnel_holds_no_buffer(tunnels: Tunnels) -> None:
    rig = tunnels.rig
    viewer, peer = tunnels.open(early=b"x" * 5000, first=b"y" * 5000)
    peer.until(5000), viewer.until(5000)
    wait_until(lambda: rig.kept() <= 1024, "buffers given back")
    print(f"one idle tunnel: {rig.plane.memory['outside'] - rig.empty['outside']} bytes of ours")


@pytest.mark.parametrize("lines", [
    ("Connection: Upgrade", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA"),
    ("Connection: Upgrade", "Upgrade: websocket, h2c"),
    ("Connection: Upgrade", "Upgrade: TLS/1.0, HTTP/1.1"),
    ("Connection: Upgrade", "Upgrade: HTTP/2.0"),
])  # fmt: skip
def test_http2_and_tls_by_upgrade_are_ignored(tunnels: Tunnels, lines: tuple[str, ...]) -> None:
    viewer = tunnels.rig.viewer()
    viewer.ask("/generic/x", *lines)
    tunnels.rig.exchange("miss").error(502)
    assert viewer.reply().status == 502
    assert tunnels.rig.total("upgrades_ignored") >= 1


def test_upgrade_is_ignored_where_it_may_not_be(tunnels: Tunnels) -> None:
    rig = tunnels.rig
    viewer = rig.viewer()
    for path, minor, lines in (("/media", 1, UPGRADE), ("/generic/a", 0, UPGRADE), ("/generic/b", 1, UPGRADE[1:])):
        viewer = rig.viewer()
        viewer.ask(path, *lines, minor=minor)
        rig.exchange("miss").error(502)
        assert viewer.reply().status == 502


def test_a_refused_upgrade_leaves_the_connection(tunnels: Tunnels) -> None:
    viewer = tunnels.rig.viewer()
    for status in (400, 502, 503):
        viewer.ask("/generic/x", *UPGRADE)
        tunnels.rig.exchange("tunnel").refuse(status)
        assert viewer.reply().status == status
    viewer.ask("/generic/x", *UPGRADE)
    tunnels.rig.exchange("tunnel").refuse(426)
    reply = viewer.reply()
    assert (reply.status, reply["upgrade"], reply["sec-websocket-version"]) == (426, "websocket", "13")
    assert viewer.rest() == b""


def test_a_viewer_that_left_costs_nothing(tunnels: Tunnels) -> None:
    rig = tunnels.rig
    viewer = rig.viewer()
    viewer.ask("/generic/x", *UPGRADE)
    exchange = rig.exchange("tunnel")
    viewer.reset()
    wait_until(lambda: rig.take() or rig.cancelled, "the cancellation")
    fd, peer = tunnels.upstream()
    exchange.tunnel(fd, HEAD, b"", True)
    with pytest.raises(ConnectionResetError):
        peer.rest()
    assert rig.plane.origin_tunnels([2])[2][0] == 1
    assert rig.total("tunnels_opened") == 0


# --- closing ----------------------------------------------------------------------------------------------------------


def test_a_drain_says_goodbye_to_both_sides(tunnels: Tunnels) -> None:
    viewer, peer = tunnels.open()
    viewer.send(frame(b"hello", mask=b"abcd"))
    assert peer.until(11) == frame(b"hello", mask=b"abcd")
    tunnels.rig.plane.drain(0, 1000)
    assert viewer.until(4) == frame(GOING_AWAY, opcode=8)
    goodbye = peer.until(8)
    assert goodbye == frame(GOING_AWAY, opcode=8, mask=goodbye[2:6])
    viewer.send(frame(GOING_AWAY, opcode=8, mask=b"1234"))
    assert viewer.rest() == b""
    assert peer.rest() == b"", "the viewer's own Close comes after ours, and is dropped"
    tunnels.all_closed()


def test_goodbye_waits_for_the_end_of_a_frame(tunnels: Tunnels) -> None:
    viewer, peer = tunnels.open()
    whole, following = frame(pattern(1000)), frame(pattern(50, 3))
    peer.send(whole[:100])
    assert viewer.until(100) == whole[:100]
    tunnels.rig.plane.drain(0, 0)
    peer.until(8)
    assert viewer.is_silent()
    peer.send(whole[100:] + following)
    assert viewer.until(904 + 4) == whole[100:] + frame(GOING_AWAY, opcode=8)
    viewer.close()
    tunnels.all_closed()


def test_goodbye_in_a_frame_that_never_ends_is_a_reset(tunnels: Tunnels) -> None:
    viewer, _peer = tunnels.open(first=frame(b"x" * 100)[:50])
    viewer.until(50)
    tunnels.rig.plane.drain(0, 0)
    assert viewer.is_reset()
    tunnels.all_closed()


def test_a_side_that_had_a_close_gets_no_other(tunnels: Tunnels) -> None:
    viewer, peer = tunnels.open(first=frame(b"\x03\xe8", opcode=8))
    assert viewer.until(4) == frame(b"\x03\xe8", opcode=8)
    tunnels.rig.plane.drain(0, 0)
    peer.until(8)
    assert viewer.rest() == b""
    tunnels.all_closed()


def test_other_protocols_are_cut_at_the_end_of_a_drain(tunnels: Tunnels) -> None:
    viewer, peer = tunnels.open(is_websocket=False)
    tunnels.rig.plane.drain(0, 500)
    peer.send(b"frames? what frames?")
    assert viewer.until(20) == b"frames? what frames?"
    assert viewer.is_reset()
    tunnels.all_closed()


def test_a_tunnel_that_opens_during_a_drain_is_closed_too(tunnels: Tunnels) -> None:
    rig = tunnels.rig
    viewer = rig.viewer()
    viewer.ask("/generic/x", *UPGRADE)
    exchange = rig.exchange("tunnel")
    rig.plane.drain(0, 20_000)
    fd, _peer = tunnels.upstream()
    exchange.tunnel(fd, HEAD, b"", True)
    assert viewer.until(len(HEAD) + 4) == HEAD + frame(GOING_AWAY, opcode=8)


def test_an_idle_tunnel_is_closed_where_the_policy_says_so(tunnels: Tunnels) -> None:
    viewer, _ = tunnels.open(idle_ns=SECOND_NS // 2)
    assert viewer.until(4) == frame(GOING_AWAY, opcode=8)
    viewer.close()
    other, _peer = tunnels.open(is_websocket=False, idle_ns=SECOND_NS // 2)
    assert other.rest() == b""
    tunnels.all_closed()
    assert tunnels.rig.total("tunnels_ended_idle") == 2


def test_the_end_of_the_plane_ends_tunnels(tunnels: Tunnels) -> None:
    viewer, peer = tunnels.open()
    tunnels.rig.plane.close()
    assert viewer.is_reset()
    with pytest.raises(ConnectionResetError):
        peer.rest()


def _ends(data: bytes) -> list[int]:
    """Where frames end, by another reader of RFC 6455 section 5.2."""
    ends, at = [], 0
    while at + 2 <= len(data):
        n, size = data[at + 1] & 127, at + 2
        if n >= 126:
            long = 2 if n == 126 else 8
            n, size = int.from_bytes(data[size : size + long], "big"), size + long
        at = size + n + (4 if data[at + 1] & 128 else 0)
        if at <= len(data):
            ends.append(at)
    return ends


@pytest.mark.parametrize("seed", range(20))
def test_frames_are_followed_however_they_are_cut(seed: int) -> None:
    rng = random.Random(seed)
    data = random_frames(rng, 12, masked=seed % 2 == 0)[: rng.choice([10**9, 70_000])]
    for n_cuts in (0, 5, 400):
        cuts = sorted(rng.randrange(len(data) + 1) for _ in range(n_cuts))
        assert frame_ends(data, cuts) == _ends(data)
