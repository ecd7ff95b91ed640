"""HTTP/2 viewers who mean harm: each kind of flood is counted by its name, ends its connection with the right code,
costs bounded memory, and other viewers don't notice."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator

import hpack
import pytest
from h2_rig import CANCEL, CLEARTEXT, ENHANCE_YOUR_CALM, PROTOCOL_ERROR, Answer, H2Viewer, raw_frame
from plane_rig import Rig, pattern, wait_until

Rigs = Callable[..., Rig]
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PING, WINDOW_UPDATE, CONTINUATION = 0, 1, 2, 3, 4, 6, 8, 9
END_STREAM, END_HEADERS = 1, 4
BASE = [(":method", "GET"), (":scheme", "http"), (":authority", "a"), (":path", "/x")]


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    yield
    gc.collect()


@pytest.fixture
def rig(rigs: Rigs) -> Iterator[Rig]:
    """Another viewer is served before and after, and memory stays within a megabyte."""
    rig = rigs(http2=CLEARTEXT)
    rig.store("/x", pattern(5000))
    rig.store("/large", pattern(1 << 20))
    other = H2Viewer(rig)
    assert other.fetch("/x").body == pattern(5000)
    yield rig
    assert other.fetch("/x").body == pattern(5000)
    assert rig.plane.memory["outside"] < rig.empty["outside"] + (1 << 20)


def flood(viewer: H2Viewer, frames: bytes, times: int) -> int:
    """Sends frames until the other side has had enough. Returns the GOAWAY's code."""
    try:
        for _ in range(times):
            viewer.send(frames)
            while not viewer.is_silent():
                if not viewer.step():
                    return viewer.ending()
    except (BrokenPipeError, ConnectionResetError):
        pass
    return viewer.ending()


FLOODS = {
    "pings": ("h2_flood_pings", raw_frame(PING, bytes(8)) * 100),
    "settings": ("h2_flood_settings", raw_frame(SETTINGS) * 100),
    "priorities": ("h2_flood_priorities", raw_frame(PRIORITY, bytes(4) + b"\x10", stream=9) * 100),
    "priority updates": ("h2_flood_priorities", raw_frame(16, b"\0\0\0\x01u=1") * 100),
    "windows": ("h2_flood_windows", raw_frame(WINDOW_UPDATE, b"\0\0\0\1") * 100),
    "unknown": ("h2_flood_unknown", raw_frame(0xBE, b"??") * 100),
}


@pytest.mark.parametrize("name", FLOODS)
def test_a_flood_of_frames_that_ask_for_nothing(rig: Rig, name: str) -> None:
    counter, frames = FLOODS[name]
    assert flood(H2Viewer(rig), frames, 200) == ENHANCE_YOUR_CALM
    assert rig.total(counter) == 1


def test_a_flood_of_empty_data(rig: Rig) -> None:
    viewer = H2Viewer(rig)
    stream = viewer.request("/generic/x", method="POST", end=False)
    exchange = rig.exchange("pass")
    assert flood(viewer, raw_frame(DATA, stream=stream) * 100, 200) == ENHANCE_YOUR_CALM
    assert rig.total("h2_flood_empty_data") == 1
    exchange.error(502)


@pytest.mark.rfc("RFC 9113 10.5", "rapid reset: who takes all requests back is cut off")
def test_rapid_reset(rig: Rig) -> None:
    viewer = H2Viewer(rig)
    try:
        for _ in range(2000):
            stream = viewer.request("/never")
            viewer.h2.reset_stream(stream, CANCEL)
            viewer.flush()
            if not viewer.is_silent() and not viewer.step():
                break
    except (BrokenPipeError, ConnectionResetError):
        pass
    assert viewer.ending() == ENHANCE_YOUR_CALM
    assert rig.total("h2_flood_resets") == 1
    assert rig.total("h2_streams") < 400


def test_being_made_to_reset_counts_like_a_reset(rig: Rig) -> None:
    """CVE-2025-8671: the viewer breaks its streams' rules, and we are the ones who reset them."""
    viewer = H2Viewer(rig)
    is_open, stream = True, -1
    try:
        while is_open:
            stream += 2
            viewer.headers(stream, [*BASE, ("connection", "close")])
            while is_open and viewer.answers[stream].reset is None:
                is_open = viewer.step()
    except (BrokenPipeError, ConnectionResetError):
        pass
    assert viewer.ending() == ENHANCE_YOUR_CALM
    assert rig.total("h2_flood_resets") == 1


def test_a_player_that_seeks_is_no_flood(rig: Rig) -> None:
    viewer = H2Viewer(rig)
    for _ in range(20):
        streams = [viewer.request("/never") for _ in range(6)]
        for stream in streams:
            viewer.h2.reset_stream(stream, CANCEL)
        viewer.flush()
        assert viewer.fetch("/x").body == pattern(5000)
    assert not viewer.goaways


def test_continuations_without_end(rig: Rig) -> None:
    viewer = H2Viewer(rig)
    block = hpack.Encoder().encode(BASE)
    viewer.raw(raw_frame(HEADERS, block, flags=END_STREAM, stream=1))
    assert flood(viewer, raw_frame(CONTINUATION, b"", stream=1), 100) == ENHANCE_YOUR_CALM
    assert rig.total("h2_flood_continuations") == 1


def test_a_field_block_that_never_ends_is_a_slow_head(rigs: Rigs) -> None:
    rig = rigs(http2=CLEARTEXT, head_timeout_ns=300_000_000)
    viewer = H2Viewer(rig)
    viewer.raw(raw_frame(HEADERS, hpack.Encoder().encode(BASE), flags=END_STREAM, stream=1))
    assert viewer.ending() == ENHANCE_YOUR_CALM
    assert rig.total("closed_slow_head") == 1


def test_a_field_block_in_many_reads(rig: Rig) -> None:
    viewer, between = H2Viewer(rig), H2Viewer(rig)
    fields = [("cookie", "a=1"), *((f"x-{i}", "v" * 50) for i in range(40)), ("cookie", "b=2")]
    block = hpack.Encoder().encode([*BASE, *fields])
    viewer.answers[1] = Answer()
    viewer.h2.get_next_available_stream_id()
    viewer.h2.send_headers(1, BASE, end_stream=True)
    viewer.h2.data_to_send()  # only its state is wanted: the same request goes out by hand
    pieces = [block[i : i + 400] for i in range(0, len(block), 400)]
    for i, piece in enumerate(pieces):
        kind = HEADERS if i == 0 else CONTINUATION
        flags = (END_STREAM if i == 0 else 0) | (END_HEADERS if i == len(pieces) - 1 else 0)
        frame = raw_frame(kind, piece, flags=flags, stream=1)
        viewer.send(frame[:13])
        assert between.fetch("/x").body == pattern(5000)
        viewer.send(frame[13:])
        assert between.fetch("/x").body == pattern(5000)
    assert viewer.until_over(1)[0].body == pattern(5000)


def bomb() -> bytes:
    """A field block of 16 KB that unpacks to 30 MB: one large field in the table, then one byte for each repetition."""
    encoder = hpack.Encoder()
    block = encoder.encode([*BASE, ("x", "b" * 4000)])
    return block + b"\xbe" * (16_000 - len(block))


def test_a_header_bomb(rig: Rig) -> None:
    viewer = H2Viewer(rig)
    viewer.raw(raw_frame(HEADERS, bomb(), flags=END_STREAM | END_HEADERS, stream=1))
    wait_until(lambda: rig.total("h2_flood_fields") == 1)


def test_who_does_not_read_what_he_asks_for(rigs: Rigs) -> None:
    """Requests over and over, and a full socket: reading stops, and the minimum send rate ends it."""
    rig = rigs(http2=CLEARTEXT, send_bytes=8192, send_window_ns=400_000_000, send_window_bytes=1000)
    rig.store("/large", pattern(1 << 20))
    viewer = H2Viewer(rig, takes=False, window=(1 << 31) - 1, receive_bytes=4096)
    viewer.h2.increment_flow_control_window((1 << 31) - 1 - 65535)
    for _ in range(90):
        viewer.request("/large")
    wait_until(lambda: rig.total("closed_slow_reader") == 1)
    wait_until(lambda: rig.plane.n_connections == 0)


def test_a_shut_window_resets_its_stream(rigs: Rigs) -> None:
    rig = rigs(http2=CLEARTEXT, send_window_ns=300_000_000, send_window_bytes=1000)
    rig.store("/large", pattern(1 << 20))
    rig.store("/x", b"")
    viewer = H2Viewer(rig, takes=False, window=0)
    stream = viewer.request("/large")
    answer = viewer.until_over(stream)[0]
    assert answer.reset is not None
    assert rig.total("h2_stalled") == 1
    assert viewer.fetch("/x").status == 200


def test_a_window_opened_byte_by_byte(rigs: Rigs) -> None:
    rig = rigs(http2=CLEARTEXT, send_window_ns=300_000_000, send_window_bytes=100_000)
    rig.store("/large", pattern(1 << 20))
    viewer = H2Viewer(rig, takes=False, window=1)
    stream = viewer.request("/large")
    while viewer.answers[stream].reset is None:
        viewer.h2.increment_flow_control_window(1, stream)
        viewer.flush()
        assert viewer.step()
    assert rig.total("h2_stalled") == 1


def test_more_streams_than_allowed_end_the_connection(rig: Rig) -> None:
    """The limit was acknowledged: who goes beyond has broken the protocol (RFC 9113 section 5.1.2)."""
    viewer = H2Viewer(rig)
    encoder = hpack.Encoder()
    for i in range(150):
        block = encoder.encode([*BASE[:3], (":path", "/never")])
        viewer.raw(raw_frame(HEADERS, block, flags=END_STREAM | END_HEADERS, stream=2 * i + 1))
    assert viewer.ending() == PROTOCOL_ERROR
    assert rig.total("h2_streams") == 1 + 100
    assert rig.total("exchanges") == 1


BROKEN = {
    "data on stream 0": raw_frame(DATA, b"x"),
    "headers on an even stream": raw_frame(HEADERS, hpack.Encoder().encode(BASE), flags=5, stream=2),
    "a frame too large": raw_frame(DATA, bytes(16385), stream=1),
    "bad compression": raw_frame(HEADERS, b"\xff\xff\xff\xff\xff\xff\xff\xff", flags=5, stream=1),
    "settings of five bytes": raw_frame(SETTINGS, bytes(5)),
    "a ping of seven": raw_frame(PING, bytes(7)),
    "a window of 0 for all": raw_frame(WINDOW_UPDATE, bytes(4)),
    "a window that overflows": raw_frame(WINDOW_UPDATE, b"\x7f\xff\xff\xff"),
    "continuation of nothing": raw_frame(CONTINUATION, b"", flags=4, stream=1),
    "a push": raw_frame(5, bytes(8), flags=4, stream=1),
    "data on an idle stream": raw_frame(DATA, b"x", stream=7),
}


@pytest.mark.rfc("RFC 9113 5.4.1", "connection errors end the connection with a GOAWAY that says why")
@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_frame_ends_its_connection(rig: Rig, name: str) -> None:
    viewer = H2Viewer(rig)
    viewer.raw(BROKEN[name])
    assert viewer.ending() not in (0, ENHANCE_YOUR_CALM)
    assert rig.total("h2_protocol_errors") == 1


def test_no_preface_but_rubbish(rig: Rig) -> None:
    viewer = rig.viewer()
    viewer.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\nX\n" + bytes(100))
    viewer.rest()
    wait_until(lambda: rig.total("h2_protocol_errors") == 1)
