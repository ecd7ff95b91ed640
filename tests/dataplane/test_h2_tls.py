"""HTTP/2 over TLS, where browsers speak it: ALPN, and that records and frames get on with each other."""

from __future__ import annotations

import gc
import ssl
from collections.abc import Callable, Iterator

import pytest
from h2_rig import NO_ERROR, H2Viewer
from plane_rig import Rig, pattern, wait_until
from test_uploads import answer, read_body
from tls_rig import authority, connect, secured, tls_rig

Rigs = Callable[..., Rig]
OFF, OFFERED = 0, 1  # layout.pxd


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    yield
    gc.collect()


@pytest.fixture
def rig(rigs: Rigs) -> Rig:
    return tls_rig(rigs, http2=OFFERED)


def context(*protocols: str) -> ssl.SSLContext:
    made = authority().context()
    made.set_alpn_protocols(list(protocols))
    return made


@pytest.mark.rfc("RFC 9113 3.2", "over TLS, HTTP/2 is agreed on by ALPN")
def test_what_is_agreed_on(rigs: Rigs) -> None:
    offering, silent = tls_rig(rigs, http2=OFFERED), tls_rig(rigs, http2=OFF)
    offering.store("/x", b"old")
    assert secured(connect(offering, context("h2", "http/1.1"))).selected_alpn_protocol() == "h2"
    assert secured(connect(offering, context("http/1.1"))).selected_alpn_protocol() == "http/1.1"
    assert secured(connect(silent, context("h2", "http/1.1"))).selected_alpn_protocol() == "http/1.1"
    with pytest.raises(ssl.SSLError, match=r"(?i)no.application.protocol"):
        connect(silent, context("h2"))
    old = connect(offering)
    assert secured(old).selected_alpn_protocol() is None
    assert old.get("/x").body == b"old"


@pytest.mark.parametrize("n", [0, 1, 16_384, 50_001, 1_500_000])
def test_a_stored_object_comes_whole(rig: Rig, n: int) -> None:
    rig.store("/x", pattern(n))
    viewer = H2Viewer(rig)
    streams = [viewer.request("/x") for _ in range(4)]
    assert all(each.body == pattern(n) and each.is_whole for each in viewer.until_over(*streams))


def test_an_upload_and_a_wait(rig: Rig) -> None:
    viewer = H2Viewer(rig)
    stream = viewer.request("/generic/x", method="POST", end=False)
    exchange = rig.exchange("pass")
    viewer.body(stream, pattern(100_000))
    assert read_body(exchange) == pattern(100_000)
    answer(rig, exchange)
    assert viewer.until_over(stream)[0].body == b"ok"


def test_a_viewer_who_reads_slowly_gets_every_byte(rigs: Rigs) -> None:
    """Full sockets, at places that fall together with no frame and no record."""
    rig = tls_rig(rigs, http2=OFFERED, send_bytes=8192)
    rig.store("/x", pattern(700_000))
    viewer = H2Viewer(rig, window=(1 << 31) - 1, receive_bytes=4096)
    viewer.h2.increment_flow_control_window(1 << 30)
    streams = [viewer.request("/x") for _ in range(3)]
    assert all(each.body == pattern(700_000) for each in viewer.until_over(*streams))


def test_who_does_not_read_costs_a_batch_at_most(rigs: Rigs) -> None:
    """A full socket kept what had been gathered for it, up to 256 KiB. Most keep nothing now; some keep one batch."""
    rig = tls_rig(rigs, http2=OFFERED, send_bytes=256 << 10, slice_bytes=1 << 20)
    rig.store("/x", pattern(3_000_000))
    rig.store("/small", b"small")
    witness = connect(rig)
    viewers = [H2Viewer(rig, takes=False, window=(1 << 31) - 1, receive_bytes=65_536) for _ in range(8)]
    for viewer in viewers:
        viewer.h2.increment_flow_control_window(1 << 30)
        viewer.flush()
    assert witness.get("/small").body == b"small"
    idle = rig.plane.memory["outside"]
    streams = [[viewer.request("/x"), viewer.request("/x")] for viewer in viewers]
    wait_until(lambda: rig.total("requests") == 17)
    sent = -1
    while sent != rig.total("bytes_to_viewers"):  # until all are blocked
        sent = rig.total("bytes_to_viewers") + len(b"small")
        assert witness.get("/small").body == b"small"
    assert rig.plane.memory["outside"] - idle < 8 * (65_536 + 8192)
    for viewer, both in zip(viewers, streams, strict=True):
        assert all(each.body == pattern(3_000_000) for each in viewer.until_over(*both))


def test_who_is_cut_for_want_of_memory_is_counted_as_such(rigs: Rigs) -> None:
    """The connection went without a counter that said why, and its streams' viewers were said to have left."""
    rig = tls_rig(rigs, http2=OFFERED, memory=4 << 20, slice_bytes=65_536, send_bytes=4096)
    rig.store("/x", pattern(300_000))
    viewers = [H2Viewer(rig, takes=False, window=1 << 20, receive_bytes=4096) for _ in range(60)]
    for viewer in viewers:
        viewer.h2.increment_flow_control_window(1 << 20)
        viewer.request("/x")
    wait_until(lambda: rig.total("closed_memory") > 0)
    assert rig.total("closed_by_viewer") == 0


def test_who_agreed_on_http_2_speaks_nothing_else(rig: Rig) -> None:
    rig.store("/x", b"x")
    viewer = connect(rig, context("h2"))
    viewer.send(b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n")
    assert b"HTTP/1.1" not in viewer.rest()
    wait_until(lambda: rig.total("h2_protocol_errors") == 1)


def test_what_was_not_agreed_on_is_not_spoken(rig: Rig) -> None:
    viewer = connect(rig, context("http/1.1"))
    viewer.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
    assert viewer.reply().status == 505


def test_a_drain(rig: Rig) -> None:
    viewer = H2Viewer(rig)
    rig.store("/x", b"x")
    assert viewer.fetch("/x").body == b"x"
    rig.plane.drain()
    assert viewer.ending() == NO_ERROR
    wait_until(lambda: rig.plane.n_connections == 0)
