"""HTTP/2 at the worker: the same answers as HTTP/1.1, what is refused, waiting, uploads, priorities, leaving."""

from __future__ import annotations

import gc
import re
from collections.abc import Callable, Iterator

import h2.settings
import pytest
from h2_rig import CANCEL, CLEARTEXT, NO_ERROR, PROTOCOL_ERROR, Answer, H2Viewer, raw_frame
from plane_rig import GENERIC, MEDIA, Rig, pattern, wait_until
from test_uploads import answer as answer_leader
from test_uploads import read_body

Rigs = Callable[..., Rig]


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    yield
    gc.collect()


@pytest.fixture
def rig(rigs: Rigs) -> Rig:
    return rigs(http2=CLEARTEXT)


@pytest.mark.parametrize("n", [0, 1, 4095, 4096, 4097, 50_001, 300_000])
def test_a_stored_object_comes_whole(rig: Rig, n: int) -> None:
    body = pattern(n)
    rig.store("/x", body, etag=b'"v1"', fresh_s=100, age_s=7)
    viewer = H2Viewer(rig)
    for _ in range(3):
        answer = viewer.fetch("/x")
        assert (answer.status, answer.body, answer.is_whole) == (200, body, True)
    totals = rig.plane.totals()
    assert (totals["requests"], totals["hits"], totals["h2_streams"], totals["h2_connections"]) == (3, 3, 3, 1)
    assert totals["bytes_to_viewers"] == 3 * n
    assert totals["connections_accepted"] == 1


REQUESTS = [
    ("GET", "/x", ()),
    ("HEAD", "/x", ()),
    ("GET", "/x", (("range", "bytes=5-99"),)),
    ("GET", "/x", (("range", "bytes=-7"),)),
    ("GET", "/x", (("range", "bytes=0-1, 4-5"),)),
    ("GET", "/x", (("range", "bytes=99999-"),)),
    ("GET", "/x", (("if-none-match", '"v1"'),)),
    ("GET", "/x", (("if-none-match", '"v2"'), ("accept-encoding", "gzip"))),
    ("GET", "/empty", ()),
    ("OPTIONS", "/x", (("origin", "https://a"), ("access-control-request-method", "GET"))),
    ("OPTIONS", "*", ()),
    ("POST", "/x", (("content-length", "0"),)),
    ("FROB", "/x", ()),
    ("TRACE", "/generic/x", ()),
    ("GET", "/" + "a" * 9000, ()),
    ("GET", "/.well-known/accelerator/health", ()),
    ("GET", "/x", (("expect", "tea"),)),
]


@pytest.mark.parametrize("case", REQUESTS, ids=lambda case: f"{case[0]} {case[1][:12]} {len(case[2])}")
def test_an_answer_is_the_same_over_http_1_and_2(rig: Rig, case: tuple[str, str, tuple[tuple[str, str], ...]]) -> None:
    method, path, fields = case
    rig.store("/x", pattern(10_000), etag=b'"v1"', fresh_s=100, lines=b"Set-Cookie: a=1\r\nSet-Cookie: b=2\r\n")
    rig.store("/empty", b"")
    old, new = rig.viewer(), H2Viewer(rig)
    first = old.get(path, *(f"{name}: {value}" for name, value in fields), method=method)
    second = new.fetch(path, *fields, method=method)
    boundary = re.compile(rb"[0-9a-f]{32}")  # of multipart/byteranges: drawn for each answer
    assert (first.status, boundary.sub(b"", first.body)) == (second.status, boundary.sub(b"", second.body))
    old_fields, new_fields = (
        [(name, boundary.sub(b"", value.encode())) for name, value in fields if name not in {"connection", "date"}]
        for fields in (first.fields, second.fields)
    )
    assert old_fields == new_fields
    if first.has("date"):
        assert second.has("date")


def test_an_unknown_host_is_misdirected(rig: Rig) -> None:
    assert H2Viewer(rig).fetch(host="elsewhere").status == 421


def test_too_many_fields_and_too_long_ones(rig: Rig) -> None:
    viewer = H2Viewer(rig)
    many = viewer.request("/x", *((f"x-{i}", "1") for i in range(101)))
    long = viewer.request("/x", ("x-long", "b" * 16_380))
    both = viewer.request("/x", *((f"x-{i}", "b" * 4000) for i in range(9)))
    assert [a.status for a in viewer.until_over(many, long, both)] == [431, 431, 431]
    rig.store("/x", b"still here")
    assert viewer.fetch("/x").body == b"still here"


def test_cookies_in_crumbs_are_one_field(rig: Rig) -> None:
    viewer = H2Viewer(rig)
    crumbs = [("cookie", "a=1"), ("x-y", "2"), ("cookie", "b=2"), ("cookie", "c=3")]
    stream = viewer.request("/generic/x", *crumbs)
    exchange = rig.exchange("miss")
    head = exchange.head
    assert head.startswith(b"GET /generic/x HTTP/1.1\r\nHost: a\r\n")
    assert b"cookie: a=1; b=2; c=3\r\n" in head
    assert head.count(b"cookie") == 1
    exchange.error(404)
    assert viewer.until_over(stream)[0].status == 404


BASE = [(":method", "GET"), (":scheme", "http"), (":authority", "a"), (":path", "/x")]
MALFORMED = {
    "upper case": [*BASE, ("X-Upper", "1")],
    "connection": [*BASE, ("connection", "close")],
    "transfer-encoding": [*BASE, ("transfer-encoding", "chunked")],
    "upgrade": [*BASE, ("upgrade", "websocket")],
    "keep-alive": [*BASE, ("keep-alive", "5")],
    "te": [*BASE, ("te", "gzip")],
    "two methods": [*BASE, (":method", "GET")],
    "two paths": [(":path", "/x"), *BASE],
    "pseudo after field": [*BASE[:3], ("a", "b"), (":path", "/x")],
    "unknown pseudo": [*BASE, (":status", "200")],
    "no path": BASE[:3],
    "no method": BASE[1:],
    "no scheme": [BASE[0], *BASE[2:]],
    "empty path": [*BASE[:3], (":path", "")],
    "new line in a value": [*BASE, ("a", "b\r\nc: d")],
    "new line in the path": [*BASE[:3], (":path", "/x HTTP/1.1\r\nA: b\r\n\r\nGET /y")],
    "zero in a value": [*BASE, ("a", "b\0c")],
    "space in a name": [*BASE, ("a b", "c")],
    "colon in a name": [*BASE, ("a:b", "c")],
    "white space around": [*BASE, ("a", " b ")],
    "two lengths": [*BASE, ("content-length", "1"), ("content-length", "2")],
    "length without body": [*BASE, ("content-length", "1")],
    "protocol without connect": [*BASE, (":protocol", "websocket")],
    "other host": [*BASE, ("host", "b")],
    "no authority": [*BASE[:2], BASE[3]],
    "user in authority": [*BASE[:2], (":authority", "u@a"), BASE[3]],
    "space in the path": [*BASE[:3], (":path", "/a b")],
    "absolute path": [*BASE[:3], (":path", "http://a/x")],
    "scheme": [BASE[0], (":scheme", "ftp"), *BASE[2:]],
}


@pytest.mark.rfc("RFC 9113 8.2, 8.3", "requests whose fields two readers could read differently are refused")
@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_request_is_refused_alone(rig: Rig, name: str) -> None:
    rig.store("/x", b"of the others")
    viewer = H2Viewer(rig)
    viewer.headers(1, MALFORMED[name])
    answer = viewer.until_over(1)[0]
    assert answer.reset == PROTOCOL_ERROR or answer.status == 400, answer
    assert rig.no_exchange()
    assert viewer.fetch("/x").body == b"of the others"
    assert not viewer.goaways


def test_host_may_stand_beside_authority_or_for_it(rig: Rig) -> None:
    rig.store("/x", b"yes")
    viewer = H2Viewer(rig)
    viewer.headers(1, [*BASE, ("host", "A")])
    viewer.headers(3, [*BASE[:2], BASE[3], ("host", "a")])
    assert [a.body for a in viewer.until_over(1, 3)] == [b"yes", b"yes"]


def test_a_plain_connect_is_not_implemented(rig: Rig) -> None:
    viewer = H2Viewer(rig)
    viewer.headers(1, [(":method", "CONNECT"), (":authority", "a:443")])
    assert viewer.until_over(1)[0].status == 501


def test_http_2_is_not_spoken_where_the_listener_does_not(rigs: Rigs) -> None:
    rig = rigs()
    viewer = rig.viewer()
    viewer.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
    assert viewer.reply().status == 505


def test_the_preface_comes_first_or_never(rig: Rig) -> None:
    rig.store("/x", b"1")
    viewer = rig.viewer()
    viewer.send(b"GET /x HTTP/1.1\r\nHost: a\r\n\r\nPRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
    assert viewer.reply().status == 200
    assert viewer.reply().status == 505


def test_the_preface_in_pieces(rig: Rig) -> None:
    rig.store("/x", b"in pieces")
    whole = H2Viewer(rig)
    viewer = rig.viewer()
    for byte in b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes.fromhex("000000040000000000"):
        viewer.send(bytes([byte]))
    assert viewer.until(9)[3] == 4
    assert whole.fetch("/x").body == b"in pieces"


# --- waiting ----------------------------------------------------------------------------------------------------------


def test_viewers_of_both_versions_wait_for_one_answer(rig: Rig) -> None:
    old, new = rig.viewer(), H2Viewer(rig)
    streams = [new.request("/x") for _ in range(5)]
    exchange = rig.exchange("miss")
    old.ask("/x")
    wait_until(lambda: rig.total("exchanges") == 1)
    stored = rig.begin("/x", 9000)
    exchange.match(200, True)
    rig.append(stored, 0, pattern(9000)[:5000])
    rig.append(stored, 5000, pattern(9000)[5000:])
    stored.finish(9000)
    stored.end_fill()
    answers = new.until_over(*streams)
    assert [a.body for a in answers] == [pattern(9000)] * 5
    assert old.reply().body == pattern(9000)
    rig.take()
    assert {e.kind for e in rig.exchanges} <= {"want"}  # a reader may be quicker than the fill
    assert sum("collapsed" in a["cache-status"] for a in answers) >= 4


def test_a_body_of_unknown_length_ends_with_its_stream(rig: Rig) -> None:
    viewer = H2Viewer(rig)
    stream = viewer.request("/x")
    exchange = rig.exchange("miss")
    stored = rig.begin("/x", -1)
    exchange.match(200, True)
    offset = 0
    for size in (1, 4096, 10_000):
        offset = rig.append(stored, offset, pattern(20_000)[offset : offset + size])
        while len(viewer.answers[stream].body) < offset:
            assert viewer.step()
    stored.finish(offset)
    stored.end_fill()
    answer = viewer.until_over(stream)[0]
    assert answer.body == pattern(20_000)[:offset]
    assert not answer.has("transfer-encoding")
    assert not answer.has("content-length")


def test_a_broken_source_resets_its_stream_and_no_other(rig: Rig) -> None:
    rig.store("/y", pattern(5000))
    viewer = H2Viewer(rig)
    stream = viewer.request("/x")
    exchange = rig.exchange("miss")
    stored = rig.begin("/x", 9000)
    exchange.match(200, True)
    rig.append(stored, 0, pattern(4000))
    while len(viewer.answers[stream].body) < 4000:
        assert viewer.step()
    stored.fail()
    stored.end_fill()
    assert viewer.until_over(stream)[0].reset is not None
    assert not viewer.answers[stream].is_whole
    assert viewer.fetch("/y").body == pattern(5000)
    assert rig.total("broken_transfers") == 1


def test_an_evicted_slice_is_asked_for(rig: Rig) -> None:
    body = pattern(3 * 4096)
    stored = rig.begin("/x", len(body), strong=True, etag=b'"s"')
    rig.append(stored, 0, body[:4096])
    stored.end_fill()
    viewer = H2Viewer(rig)
    stream = viewer.request("/x")
    for _ in range(2):
        want = rig.exchange("want")
        assert want.head.startswith(b"GET /x HTTP/1.1\r\n")
        rig.refill(stored, body, want.offset)
        want.done()
    assert viewer.until_over(stream)[0].body == body


def test_who_takes_a_request_back_ends_its_exchange(rig: Rig) -> None:
    viewer = H2Viewer(rig)
    stream = viewer.request("/x")
    exchange = rig.exchange("miss")
    viewer.h2.reset_stream(stream, CANCEL)
    viewer.flush()
    wait_until(lambda: rig.take() or rig.cancelled)
    exchange.error(504)
    wait_until(lambda: rig.total("exchanges_cancelled") == 1)
    rig.store("/y", b"y")
    assert viewer.fetch("/y").body == b"y"


def test_a_connection_that_breaks_lets_go_of_all_its_streams(rig: Rig) -> None:
    rig.store("/big", pattern(1 << 20))
    viewer = H2Viewer(rig, takes=False)
    for i in range(20):
        viewer.request(f"/{i}")
        viewer.request("/big")
    wait_until(lambda: rig.total("exchanges") == 20)
    viewer.reset()
    wait_until(lambda: rig.plane.n_connections == 0)
    wait_until(lambda: rig.take() or len(rig.cancelled) == 20)


def test_interim_responses_come_before_the_answer(rig: Rig) -> None:
    viewer = H2Viewer(rig)
    stream = viewer.request("/generic/x", method="POST", end=False)
    exchange = rig.exchange("pass")
    exchange.interim(b"HTTP/1.1 103 Early Hints\r\nLink: </a>; rel=preload\r\n\r\n")
    while not viewer.answers[stream].heads:
        assert viewer.step()
    assert viewer.answers[stream].heads[0] == [(":status", "103"), ("link", "</a>; rel=preload")]
    viewer.body(stream, b"hello")
    assert read_body(exchange) == b"hello"
    answer_leader(rig, exchange)
    assert viewer.until_over(stream)[0].body == b"ok"


# --- bodies of requests -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("has_length", [True, False])
@pytest.mark.parametrize("n", [1, 5000, 131_072, 131_073, 700_000])
def test_a_body_goes_up(rig: Rig, n: int, has_length: bool) -> None:
    viewer = H2Viewer(rig)
    fields = (("content-length", str(n)),) if has_length else ()
    stream = viewer.request("/generic/x", *fields, method="POST", end=False)
    exchange = rig.exchange("pass")
    assert exchange.body.length == (n if has_length else -1)
    taken = bytearray()
    sent = 0
    while sent < n:
        room = min(viewer.h2.local_flow_control_window(stream), viewer.h2.max_outbound_frame_size, n - sent)
        if room:
            viewer.h2.send_data(stream, pattern(n)[sent : sent + room])
            viewer.flush()
            sent += room
        else:
            taken += exchange.body.read(1 << 20)
            if not viewer.is_silent():
                viewer.step()
    viewer.h2.end_stream(stream)
    viewer.flush()
    taken += read_body(exchange)
    assert bytes(taken) == pattern(n)
    answer_leader(rig, exchange)
    assert viewer.until_over(stream)[0].body == b"ok"
    assert rig.total("bytes_from_viewers") == n


def test_a_slow_origin_holds_its_stream_back_and_no_other(rig: Rig) -> None:
    rig.store("/x", pattern(2000))
    viewer = H2Viewer(rig)
    stream = viewer.request("/generic/x", method="POST", end=False)
    exchange = rig.exchange("pass")
    sent = 0
    while viewer.h2.local_flow_control_window(stream):
        n = min(viewer.h2.local_flow_control_window(stream), 16384)
        viewer.h2.send_data(stream, bytes(n))
        viewer.flush()
        sent += n
        if viewer.h2.local_flow_control_window(stream) == 0:
            wait_until(lambda: rig.total("bytes_from_viewers") == 131_072)
            assert viewer.fetch("/x").body == pattern(2000)  # its window stays shut meanwhile
    assert sent == 131_072
    assert len(exchange.body.read(1 << 20)) == sent
    while not viewer.h2.local_flow_control_window(stream):
        viewer.step()
    viewer.body(stream, b"end")
    assert read_body(exchange) == b"end"
    answer_leader(rig, exchange)
    viewer.until_over(stream)


def test_an_answer_before_the_bodys_end_stops_it(rig: Rig) -> None:
    viewer = H2Viewer(rig)
    stream = viewer.request("/generic/x", method="POST", end=False)
    exchange = rig.exchange("pass")
    viewer.body(stream, b"some", end=False)
    answer_leader(rig, exchange, status=403)
    answer = viewer.until_over(stream)[0]
    assert (answer.status, answer.is_whole) == (403, True)
    while answer.reset is None:
        assert viewer.step()
    assert answer.reset == NO_ERROR
    assert rig.total("uploads_cut") == 1
    rig.store("/x", b"x")
    assert viewer.fetch("/x").body == b"x"


def test_a_body_that_breaks_off_never_ends(rig: Rig) -> None:
    viewer = H2Viewer(rig)
    stream = viewer.request("/generic/x", method="POST", end=False)
    exchange = rig.exchange("pass")
    viewer.body(stream, b"some", end=False)
    viewer.h2.reset_stream(stream, CANCEL)
    viewer.flush()
    wait_until(lambda: exchange.body.is_aborted)
    assert rig.total("uploads_aborted") == 1
    exchange.error(502)


def test_a_body_larger_than_allowed(rigs: Rigs) -> None:
    rig = rigs(http2=CLEARTEXT, body_max=1000)
    viewer = H2Viewer(rig)
    told = viewer.request("/generic/x", ("content-length", "1001"), method="POST", end=False)
    assert viewer.until_over(told)[0].status == 413
    untold = viewer.request("/generic/x", method="POST", end=False)
    exchange = rig.exchange("pass")
    viewer.body(untold, bytes(1001), end=False)
    assert viewer.until_over(untold)[0].status == 413
    exchange.error(502)


def test_a_body_that_comes_before_its_sender_may_send_it(rigs: Rigs) -> None:
    """Judging a credential takes an exchange of its own: what comes meanwhile is kept."""
    rig = rigs(http2=CLEARTEXT)
    rig.rule = 7
    rig.publish()
    viewer = H2Viewer(rig)
    stream = viewer.request("/signed/x", ("authorization", "Bearer a"), method="GET", end=False)
    viewer.body(stream, pattern(3000))
    answer = viewer.until_over(stream)[0]
    assert answer.status == 413  # profile media takes none


# --- turns ------------------------------------------------------------------------------------------------------------


def runs(viewer: H2Viewer) -> list[int]:
    """The streams of the DATA frames in a row, each change once; without those that went through the first window."""
    found: list[int] = []
    for stream, n in viewer.order:
        if n > 1 and (not found or found[-1] != stream):
            found.append(stream)
    return found


def asked_behind_a_shut_window(rig: Rig, *priorities: str, n: int = 200_000) -> tuple[H2Viewer, list[int]]:
    """Requests that wait for one window, which opens when all are there."""
    rig.store("/x", pattern(n))
    viewer = H2Viewer(rig, window=1)
    streams = [viewer.request("/x", priority=priority) for priority in priorities]
    while not all(viewer.answers[stream].heads for stream in streams):
        assert viewer.step()
    viewer.order.clear()
    viewer.h2.increment_flow_control_window(1 << 24)
    viewer.h2.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 1 << 20})
    viewer.flush()
    return viewer, streams


def test_streams_take_turns(rig: Rig) -> None:
    viewer, streams = asked_behind_a_shut_window(rig, "", "", "")
    assert all(a.body == pattern(200_000) for a in viewer.until_over(*streams))
    assert len(runs(viewer)) > 20


@pytest.mark.rfc("RFC 9218 10", "urgent streams first; incremental ones share, others go one after the other")
def test_urgency_goes_first_and_one_after_the_other(rig: Rig) -> None:
    viewer, streams = asked_behind_a_shut_window(rig, "u=5", "u=1", "u=3")
    viewer.until_over(*streams)
    first, urgent, middle = streams
    assert runs(viewer) == [urgent, middle, first]


def test_incremental_streams_share(rig: Rig) -> None:
    viewer, streams = asked_behind_a_shut_window(rig, "u=3, i", "u=3, i")
    viewer.until_over(*streams)
    assert len(runs(viewer)) > 10


def test_an_urgent_answer_does_not_wait_behind_a_full_socket(rigs: Rigs) -> None:
    rig = rigs(http2=CLEARTEXT, slice_bytes=1 << 20, send_bytes=1 << 20)
    rig.store("/film", pattern(4 << 20))
    rig.store("/playlist", b"#EXTM3U")
    viewer = H2Viewer(rig, window=1 << 24, receive_bytes=16384)
    viewer.h2.increment_flow_control_window(1 << 24)
    viewer.flush()
    film = viewer.request("/film", priority="u=5")
    # Its side of the connection is full: passes go by, and no more is written.
    written = -1
    while written != (written := rig.total("bytes_to_viewers")) or written == 0:
        passes = rig.plane.workers_state()[0][1]
        rig.plane.poke()
        wait_until(lambda passes=passes: rig.plane.workers_state()[0][1] > passes)
    playlist = viewer.request("/playlist", priority="u=0")
    viewer.until_over(playlist)
    ahead = sum(n for stream, n in viewer.order if stream == film)
    assert 0 < ahead < 400_000, f"{ahead} bytes of the film came before the playlist"


def priority_update(stream: int, value: bytes) -> bytes:
    return raw_frame(0x10, stream.to_bytes(4, "big") + value)


@pytest.mark.rfc("RFC 9218 7.1", "PRIORITY_UPDATE changes a request's priority, also before it comes")
def test_priority_update(rig: Rig) -> None:
    rig.store("/x", pattern(200_000))
    viewer = H2Viewer(rig, window=1)
    viewer.raw(priority_update(3, b"u=0"))
    first, second = viewer.request("/x"), viewer.request("/x")
    assert (first, second) == (1, 3)
    while not all(viewer.answers[stream].heads for stream in (first, second)):
        assert viewer.step()
    viewer.order.clear()
    viewer.h2.increment_flow_control_window(1 << 24)
    viewer.h2.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 1 << 20})
    viewer.flush()
    viewer.until_over(first, second)
    assert runs(viewer) == [second, first]


def test_many_streams_at_once_and_no_more(rig: Rig) -> None:
    viewer = H2Viewer(rig)
    assert viewer.h2.remote_settings.max_concurrent_streams == 100
    streams = [viewer.request(f"/{i}") for i in range(100)]
    wait_until(lambda: rig.total("exchanges") == 100)
    rig.take()
    for exchange in rig.exchanges:
        exchange.error(404)
    rig.exchanges.clear()
    assert [a.status for a in viewer.until_over(*streams)] == [404] * 100


# --- leaving ----------------------------------------------------------------------------------------------------------


@pytest.mark.rfc("RFC 9113 6.8", "GOAWAY in two steps; requests that were taken are answered")
def test_a_drain_says_go_away_twice_and_answers_what_was_asked(rig: Rig) -> None:
    viewer = H2Viewer(rig)
    stream = viewer.request("/x")
    exchange = rig.exchange("miss")
    rig.plane.drain()
    while not viewer.goaways:
        assert viewer.step()
    assert viewer.goaways == [(2**31 - 1, NO_ERROR)]
    while len(viewer.goaways) < 2:
        assert viewer.step()
    assert viewer.goaways[1] == (stream, NO_ERROR)
    stored = rig.begin("/x", 3)
    exchange.match(200, True)
    rig.append(stored, 0, b"abc")
    stored.finish(3)
    stored.end_fill()
    assert viewer.until_over(stream)[0].body == b"abc"
    while viewer.step():
        pass
    wait_until(lambda: rig.plane.n_connections == 0)


def test_an_idle_connection_is_told_to_go_and_closed(rig: Rig) -> None:
    viewer = H2Viewer(rig)
    rig.store("/x", b"x")
    viewer.fetch("/x")
    rig.plane.drain()
    assert viewer.ending() == NO_ERROR
    wait_until(lambda: rig.plane.n_connections == 0)


def test_who_is_idle_for_too_long_is_closed(rigs: Rigs) -> None:
    rig = rigs(http2=CLEARTEXT, idle_timeout_ns=400_000_000)
    rig.store("/x", b"x")
    viewer = H2Viewer(rig)
    assert viewer.fetch("/x").body == b"x"
    assert viewer.ending() == NO_ERROR
    assert rig.total("closed_idle") == 1


def test_a_connection_of_nothing_costs_nothing_when_it_is_gone(rig: Rig) -> None:
    viewer = H2Viewer(rig)
    assert rig.plane.memory["outside"] < rig.empty["outside"] + 40_000
    viewer.close()
    wait_until(lambda: rig.plane.n_connections == 0)


def is_complete(answer: Answer) -> bool:
    return answer.is_whole and answer.reset is None


def test_answers_go_on_while_a_stream_of_another_origin_waits(rig: Rig) -> None:
    """An event stream is open for ever; the rest of the connection doesn't notice."""
    viewer = H2Viewer(rig)
    events = viewer.request("/generic/events")
    exchange = rig.exchange("miss")
    stored = rig.create(-1, private=True, origin=GENERIC, lines=b"")
    assert stored is not None
    exchange.leader(stored, 200)
    offset = 0
    rig.store("/x", pattern(40_000), origin=MEDIA)
    for _ in range(5):
        offset = rig.append(stored, offset, b"data: 1\n\n")
        while len(viewer.answers[events].body) < offset:
            assert viewer.step()
        assert is_complete(viewer.until_over(viewer.request("/x"))[0])
    stored.finish(offset)
    assert viewer.until_over(events)[0].body == b"data: 1\n\n" * 5
