"""Hits over real sockets: whole answers, HEAD, keep-alive, HTTP/1.0, preflights, our own errors, the health probe."""

from __future__ import annotations

import socket
from collections.abc import Callable

import pytest
from plane_rig import CREDENTIAL, GENERIC, SECOND_NS, Rig, pattern, wait_until

from ext.plane import FLAG_MAY_BE_STALE

HEALTH = "/.well-known/accelerator/health"


@pytest.mark.parametrize("n", [0, 1, 4095, 4096, 4097, 8192, 50_001, 300_000])
def test_a_stored_object_comes_whole(rig: Rig, n: int) -> None:
    body = pattern(n)
    rig.store("/x", body, etag=b'"v1"', fresh_s=100, age_s=7)
    viewer = rig.viewer()
    for _ in range(3):
        reply = viewer.get("/x")
        assert (reply.status, reply.body) == (200, body)
        assert reply["content-length"] == str(n)
        assert reply["etag"] == '"v1"'
        assert reply["age"] == "7"
        assert reply["cache-status"] in ("lyon; hit; ttl=99", "lyon; hit; ttl=100")
        assert not reply.has("connection")
    totals = rig.plane.totals()
    assert (totals["requests"], totals["hits"]) == (3, 3)
    wait_until(lambda: rig.total("bytes_to_viewers") == 3 * n)  # counted after the write
    assert totals["connections_accepted"] == 1


def test_head_has_the_heads_of_get_and_no_body(rig: Rig) -> None:
    rig.store("/x", pattern(9000))
    viewer = rig.viewer()
    whole, head = viewer.get("/x"), viewer.get("/x", method="HEAD")
    assert whole.fields == head.fields
    assert viewer.get("/x").body == pattern(9000)
    wait_until(lambda: rig.total("bytes_to_viewers") == 18_000)


def test_the_target_is_taken_in_its_forms(rig: Rig) -> None:
    rig.store("/x", b"one")
    rig.store("/", b"root")
    viewer = rig.viewer()
    assert viewer.get("http://a/x").body == b"one"
    assert viewer.get("http://a").body == b"root"
    viewer.ask("/x", host="a:8080")
    assert viewer.reply().body == b"one"
    assert viewer.get("/x", host="A.").body == b"one"


def test_http_1_0_closes_unless_it_asks_to_stay(rig: Rig) -> None:
    rig.store("/x", b"body")
    viewer = rig.viewer()
    reply = viewer.get("/x", "Connection: keep-alive", minor=0)
    assert reply["connection"] == "keep-alive"
    reply = viewer.get("/x", minor=0)
    assert reply["connection"] == "close"
    assert viewer.rest() == b""


def test_http_1_0_that_stays_hears_so_with_errors_too(rig: Rig) -> None:
    viewer = rig.viewer()
    reply = viewer.get("/x", "Connection: keep-alive", minor=0, host="unknown")
    assert (reply.status, reply["connection"]) == (421, "keep-alive")
    assert viewer.get("/x", host="unknown").status == 421


def test_connection_close_is_heard_and_said(rig: Rig) -> None:
    rig.store("/x", b"body")
    viewer = rig.viewer()
    reply = viewer.get("/x", "Connection: close")
    assert (reply.body, reply["connection"]) == (b"body", "close")
    assert viewer.rest() == b""


def test_a_preflight_is_answered_at_the_edge(rig: Rig) -> None:
    viewer = rig.viewer()
    reply = viewer.get(
        "/x", "Origin: http://player", "Access-Control-Request-Method: GET",
        "Access-Control-Request-Headers: range, x-y", method="OPTIONS",
    )  # fmt: skip
    assert reply.status == 204
    assert reply["access-control-allow-origin"] == "http://player"
    assert reply["access-control-allow-methods"] == "GET, HEAD, OPTIONS"
    assert reply["access-control-allow-headers"] == "range, x-y"
    assert not reply.has("content-length")
    assert viewer.get("*", method="OPTIONS").status == 204
    assert rig.total("preflights") == 2
    assert rig.total("hits") == 2


@pytest.mark.parametrize(
    ("sent", "flags", "is_answered"),
    [
        ("max-stale", FLAG_MAY_BE_STALE, True), ("max-stale=60", FLAG_MAY_BE_STALE, True),
        ("max-stale=1", FLAG_MAY_BE_STALE, False), ("max-stale=", FLAG_MAY_BE_STALE, False),
        ("max-stale, no-cache", FLAG_MAY_BE_STALE, False), ("max-stale", 0, False), ("x", FLAG_MAY_BE_STALE, False),
    ],
)  # fmt: skip
def test_max_stale_takes_what_may_be_stale(rig: Rig, sent: str, flags: int, is_answered: bool) -> None:
    rig.store("/generic/s", b"body", origin=GENERIC, fresh_s=-5, flags=flags)
    viewer = rig.viewer()
    viewer.ask("/generic/s", f"Cache-Control: {sent}")
    if not is_answered:
        exchange = rig.exchange("stale")
        exchange.error(502)
    assert viewer.reply().status == (200 if is_answered else 502)


def test_options_with_max_forwards_0_is_answered_here(rig: Rig) -> None:
    viewer = rig.viewer()
    assert viewer.get("/generic/x", "Max-Forwards: 0", method="OPTIONS").status == 204
    for value in ("1", "x", ""):
        viewer.ask("/generic/x", f"Max-Forwards: {value}", method="OPTIONS")
        rig.exchange("pass").error(502)
        assert viewer.reply().status == 502


def test_a_preflight_for_a_generic_origin_goes_up(rig: Rig) -> None:
    viewer = rig.viewer()
    viewer.ask("/generic/x", "Origin: http://player", "Access-Control-Request-Method: PUT", method="OPTIONS")
    exchange = rig.exchange("pass")
    assert exchange.origin == GENERIC
    exchange.error(502)
    assert viewer.reply().status == 502


@pytest.mark.parametrize(
    ("request_bytes", "status", "closes"),
    [
        (b"GET / HTTP/1.1\nHost: a\r\n\r\n", 400, True),
        (b"GET /x HTTP/1.1\r\n\r\n", 400, True),
        (b"GET /x HTTP/1.1\r\nHost: other\r\n\r\n", 421, False),
        (b"POST /x HTTP/1.1\r\nHost: a\r\n\r\n", 405, False),
        (b"PUT /x HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbody", 405, True),
        (b"GET /x HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbody", 413, True),
        (b"GET /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 413, True),
        (b"BREW /x HTTP/1.1\r\nHost: a\r\n\r\n", 501, False),
        (b"CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n", 501, True),
        (b"GET /x HTTP/3.0\r\nHost: a\r\n\r\n", 505, True),
        (b"GET /" + b"x" * 9000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414, True),
        (b"GET /x HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 40_000 + b"\r\n\r\n", 431, True),
    ],
)
def test_what_cannot_be_answered(rig: Rig, request_bytes: bytes, status: int, closes: bool) -> None:
    rig.store("/x", b"body")
    viewer = rig.viewer()
    viewer.send(request_bytes)
    reply = viewer.reply()
    assert reply.status == status
    assert reply["cache-control"] == "no-store"
    assert reply["cache-status"] == "lyon"
    assert reply.has("allow") == (status in (405, 501))
    assert reply.has("connection") == closes
    if closes:
        assert viewer.rest() == b""
    else:
        assert viewer.get("/x").body == b"body"
    assert rig.total(f"status_{status}") == 1
    assert rig.total("refused") == 1


def test_a_long_body_that_is_refused_does_not_reset_the_answer_away(rig: Rig) -> None:
    """A close with unread input sends a reset, which overtook the 413."""
    viewer = rig.viewer()
    viewer.send(b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 3000000\r\n\r\n")
    for _ in range(20):
        viewer.send(bytes(100_000))
    assert viewer.reply().status == 405
    assert viewer.rest() == b""
    viewer.send(bytes(10_000))
    viewer.close()
    wait_until(lambda: rig.plane.n_connections == 0)


def test_who_lingers_is_closed_in_the_end(rig: Rig) -> None:
    viewer = rig.viewer()
    viewer.send(b"bad\r\n\r\n")
    assert viewer.reply().status == 400
    assert viewer.rest() == b""
    wait_until(lambda: rig.plane.n_connections == 0)


def test_credentials_and_cmcd_are_no_part_of_the_key(rig: Rig) -> None:
    rig.store("/signed/x?a=1", b"signed", origin=CREDENTIAL)
    rig.store("/x", b"plain")
    viewer = rig.viewer()
    assert viewer.get("/signed/x?token=abc&a=1").body == b"signed"
    assert viewer.get("/signed/x?a=1&token=z&CMCD=br%3D1").body == b"signed"
    assert viewer.get("/x?CMCD=br%3D1").body == b"plain"
    viewer.ask("/x?token=1")
    exchange = rig.exchange("miss")
    assert exchange.key == b"/x?token=1"
    exchange.error(504)
    assert viewer.reply().status == 504


def test_a_listener_for_zones_refuses_others(rigs: Callable[..., Rig]) -> None:
    here = bytes(10) + b"\xff\xff" + socket.inet_aton("127.0.0.1")
    allowed = rigs(zone_mask=2, nets=((here, 128, 1), (here, 104, 0)))
    refused = rigs(zone_mask=1, nets=((here, 128, 1), (here, 104, 0)))
    stranger = rigs(zone_mask=1)
    for rig, status in ((allowed, 200), (refused, 403), (stranger, 403)):
        rig.store("/x", b"body")
        assert rig.viewer().get("/x").status == status
    assert allowed.viewer(source="127.0.0.9").get("/x").status == 403
    assert refused.viewer(source="127.0.0.9").get("/x").status == 200
    assert refused.total("refused_zone") == 1


def test_the_health_probe_goes_through_the_store(rig: Rig) -> None:
    viewer = rig.viewer()
    assert viewer.get(HEALTH, host="whatever").status == 503
    rig.store(HEALTH, b"ok\n", origin=0)
    assert viewer.get(HEALTH, host="whatever").body == b"ok\n"
    assert rig.total("health_probes") == 1


def test_stale_while_revalidate_serves_and_refreshes_once(rig: Rig) -> None:
    stored = rig.store("/x", b"old", fresh_s=-1, stale_s=100, etag=b'"v"')
    viewer = rig.viewer()
    for _ in range(5):
        reply = viewer.get("/x")
        assert reply.body == b"old"
        assert reply["cache-status"].startswith("lyon; hit; ttl=-")
    refresh = rig.exchange("refresh")
    assert refresh.stored == stored
    assert rig.no_exchange()
    refresh.done()
    wait_until(lambda: viewer.get("/x").body == b"old" and not rig.no_exchange(), "a second refresh")
    assert rig.exchange("refresh").stored == stored
    assert rig.total("revalidations_background") == 2
    assert rig.total("stale_served") == rig.total("hits")


def test_the_head_is_swapped_by_a_304(rig: Rig) -> None:
    stored = rig.store("/x", b"body", etag=b'"v"', fresh_s=-1)
    viewer = rig.viewer()
    viewer.ask("/x")
    stale = rig.exchange("stale")
    assert stale.stored == stored
    now_ns = stale.arrival_ns + 1
    line, until_ns = b"HTTP/1.1 200 OK\r\n", now_ns + 100 * SECOND_NS
    assert stored.set_head(200, line, b"X: new\r\n", b"", b'"v"', -1, until_ns, 0, now_ns, now_ns, 0)
    stale.match(304)
    reply = viewer.reply()
    assert (reply["x"], reply.body) == ("new", b"body")
    assert reply["cache-status"] == "lyon; fwd=stale; fwd-status=304; stored"
    assert viewer.get("/x")["cache-status"].startswith("lyon; hit")
    assert stored.lines() == b"X: new\r\n"
