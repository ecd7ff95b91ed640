"""Exchanges: who joins, what each answer does to whom, cancellation, slots, Vary, validation by time of arrival."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable

import pytest
from plane_rig import GENERIC, MEDIA, SECOND_NS, Rig, Viewer, pattern, wait_until

BODY = pattern(10_000)


def ask(rig: Rig, n: int, path: str = "/x", *fields: str) -> list[Viewer]:
    """`n` viewers, whose requests have all got to where they wait."""
    viewers = [rig.viewer() for _ in range(n)]
    for viewer in viewers:
        before = rig.passes()
        viewer.ask(path, *fields)
        wait_until(lambda before=before: rig.passes() > before)
    return viewers


def test_an_exchange_says_what_was_asked(rig: Rig) -> None:
    viewer = rig.viewer()
    before_ns = time.monotonic_ns()
    viewer.ask("/x?b=1", "Range: bytes=5-9", "X-Y: z")
    exchange = rig.exchange()
    assert (exchange.kind, exchange.origin, exchange.key, exchange.listener) == ("miss", MEDIA, b"/x?b=1", 0)
    assert exchange.head == b"GET /x?b=1 HTTP/1.1\r\nHost: a\r\nRange: bytes=5-9\r\nX-Y: z\r\n\r\n"
    assert (exchange.range_first, exchange.range_last, exchange.stored) == (5, 9, None)
    assert exchange.tables_generation == 1
    assert before_ns <= exchange.arrival_ns <= time.monotonic_ns()
    exchange.error(504)
    assert viewer.reply().status == 504


@pytest.mark.parametrize("workers", [1, 2])
def test_later_requests_join(rigs: Callable[..., Rig], workers: int) -> None:
    rig = rigs(workers=workers)
    viewers = ask(rig, 20)
    found = [rig.exchange("miss")]
    rig.take()
    found += rig.exchanges
    rig.exchanges.clear()
    assert len(found) <= workers
    rig.store("/x", BODY)
    for exchange in found:
        exchange.match(200)
    replies = [viewer.reply() for viewer in viewers]
    assert all(reply.body == BODY for reply in replies)
    statuses = [reply["cache-status"] for reply in replies]
    assert statuses.count("lyon; fwd=uri-miss; fwd-status=200; stored; collapsed") == 20 - len(found)
    assert (rig.total("misses"), rig.total("collapsed")) == (len(found), 20 - len(found))


def test_a_private_answer_is_for_the_leader_the_others_ask_alone(rig: Rig) -> None:
    viewers = ask(rig, 5)
    first = rig.exchange("miss")
    private = rig.create(4, private=True)
    assert private is not None
    rig.append(private, 0, b"mine")
    private.finish(4)
    first.leader(private, 200)
    assert viewers[0].reply().body == b"mine"
    for _ in viewers[1:]:
        alone = rig.exchange("alone")
        own = rig.create(3, private=True)
        assert own is not None
        rig.append(own, 0, b"own")
        own.finish(3)
        alone.leader(own, 200)
    assert all(viewer.reply().body == b"own" for viewer in viewers[1:])
    assert rig.total("passed") == 5
    assert rig.no_exchange()


def test_a_leader_whose_answer_comes_alone_goes_before_a_marked_key(rig: Rig) -> None:
    until_ns = time.monotonic_ns() + 100 * SECOND_NS
    assert rig.plane.mark_unshareable(MEDIA, b"/x", until_ns)
    viewers = ask(rig, 3)
    found = [rig.exchange("alone") for _ in viewers]
    assert len({exchange.identity for exchange in found}) == 3
    assert rig.plane.mark_unshareable(MEDIA, b"/x", 0)
    late = ask(rig, 2)
    miss = rig.exchange("miss")
    assert rig.no_exchange()
    rig.store("/x", BODY)
    for exchange in [*found, miss]:
        exchange.match()
    assert all(viewer.reply().body == BODY for viewer in viewers + late)


def test_a_mark_ends(rig: Rig) -> None:
    assert rig.plane.mark_unshareable(MEDIA, b"/x", time.monotonic_ns() - 1)
    viewers = ask(rig, 2)
    exchange = rig.exchange("miss")
    assert rig.no_exchange()
    exchange.error(504)
    assert [viewer.reply().status for viewer in viewers] == [504, 504]


def test_an_error_of_the_origin_answers_all_who_wait_and_nobody_later(rig: Rig) -> None:
    viewers = ask(rig, 4)
    exchange = rig.exchange("miss")
    shared = rig.create(9, status=404)
    assert shared is not None
    rig.append(shared, 0, b"not there")
    shared.finish(9)
    exchange.everybody(shared, 404)
    for viewer in viewers:
        reply = viewer.reply()
        assert (reply.status, reply.body) == (404, b"not there")
    assert (rig.total("misses"), rig.total("collapsed")) == (1, 3)
    viewers[0].ask("/x")
    rig.exchange("miss").error(504)
    assert viewers[0].reply().status == 504


def test_a_shared_error_is_not_for_one_with_credentials(rig: Rig) -> None:
    plain = ask(rig, 1)
    signed = ask(rig, 1, "/x", "Authorization: Basic eDp5")
    exchange = rig.exchange("miss")
    shared = rig.create(0, status=404)
    assert shared is not None
    shared.finish(0)
    exchange.everybody(shared, 404)
    assert plain[0].reply().status == 404
    alone = rig.exchange("alone")
    assert b"Authorization" in alone.head
    alone.error(502)
    assert signed[0].reply().status == 502


@pytest.mark.parametrize("status", [500, 502, 503, 504])
def test_an_error_of_our_own(rig: Rig, status: int) -> None:
    viewers = ask(rig, 3)
    rig.exchange("miss").error(status)
    for viewer in viewers:
        reply = viewer.reply()
        assert (reply.status, reply["cache-control"]) == (status, "no-store")
        assert reply.has("retry-after") == (status == 503)
        assert not reply.has("connection")
    assert rig.total("refused") == 3


def test_stale_is_served_by_permission(rig: Rig) -> None:
    stored = rig.store("/x", BODY, fresh_s=-5, etag=b'"v"')
    viewers = ask(rig, 3)
    conditional = ask(rig, 1, "/x", 'If-None-Match: "v"')
    exchange = rig.exchange("stale")
    assert exchange.stored == stored
    exchange.stale(stored)
    assert all(viewer.reply().body == BODY for viewer in viewers)
    assert conditional[0].reply().status == 304
    assert (rig.total("hits"), rig.total("stale_served")) == (4, 4)


def test_an_exchange_that_nobody_answers_is_a_502(rig: Rig) -> None:
    viewer = ask(rig, 1)[0]
    exchange = rig.exchange("miss")
    del exchange
    gc.collect()
    assert viewer.reply().status == 502


def test_a_second_answer_changes_nothing(rig: Rig) -> None:
    viewers = ask(rig, 1)
    exchange = rig.exchange("miss")
    exchange.error(504)
    exchange.error(502)
    assert exchange.is_answered
    assert viewers[0].reply().status == 504
    viewers[0].ask("/y")
    again = rig.exchange("miss")
    exchange.match()
    assert again.generation != exchange.generation or again.index != exchange.index
    again.error(503)
    assert viewers[0].reply().status == 503


def test_the_last_viewer_to_leave_cancels(rig: Rig) -> None:
    viewers = ask(rig, 3)
    exchange = rig.exchange("miss")
    viewers[0].reset()
    viewers[2].reset()
    wait_until(lambda: rig.plane.n_connections == 1)
    rig.take()
    assert rig.cancelled == []
    viewers[1].reset()
    wait_until(lambda: rig.take() or rig.cancelled)
    assert rig.cancelled == [exchange.identity]
    # A slot is freed by the answer only; who asks meanwhile has an exchange of his own.
    late = ask(rig, 1)
    second = rig.exchange("miss")
    assert second.identity != exchange.identity
    rig.store("/x", BODY)
    exchange.match()
    second.match()
    assert late[0].reply().body == BODY
    assert rig.total("exchanges_cancelled") == 1


def test_a_cancelled_exchange_may_be_answered_with_an_object(rig: Rig) -> None:
    viewers = ask(rig, 1)
    exchange = rig.exchange("miss")
    viewers[0].reset()
    wait_until(lambda: rig.take() or rig.cancelled)
    stored = rig.create(3, private=True)
    assert stored is not None
    exchange.leader(stored)
    wait_until(lambda: stored.n_readers == 0)


def test_slots_run_out_and_come_back(rigs: Callable[..., Rig]) -> None:
    rig = rigs(exchange_slots=4)
    viewers = [ask(rig, 1, f"/{i}")[0] for i in range(4)]
    found = [rig.exchange("miss") for _ in viewers]
    joined = ask(rig, 1, "/0")
    more = ask(rig, 2, "/9")
    for viewer in more:
        reply = viewer.reply()
        assert (reply.status, reply["retry-after"]) == (503, "2")
    assert rig.total("exchanges_exhausted") == 2
    for exchange in found:
        exchange.error(504)
    assert all(viewer.reply().status == 504 for viewer in viewers + joined)
    for _ in range(20):
        more[0].ask("/9")
        rig.exchange("miss").error(502)
        assert more[0].reply().status == 502


def test_slots_are_reused_with_new_generations(rigs: Callable[..., Rig]) -> None:
    rig = rigs(exchange_slots=2)
    viewer = rig.viewer()
    seen = set()
    for i in range(50):
        viewer.ask(f"/{i}")
        exchange = rig.exchange("miss")
        assert exchange.key == f"/{i}".encode()
        assert exchange.identity not in seen
        seen.add(exchange.identity)
        exchange.error(504)
        assert viewer.reply().status == 504


# --- Vary (RFC 9111 section 4.1) --------------------------------------------------------------------------------------


def head(*fields: str) -> bytes:
    return "\r\n".join(["GET /x HTTP/1.1", "Host: a", *fields, "", ""]).encode()


def test_variants_by_vary(rig: Rig) -> None:
    vary = b"accept-language\n"
    for value in ("fr", "de", "en"):
        rig.store("/x", value.encode(), vary=vary, request=head(f"Accept-Language: {value}"))
    rig.store("/x", b"none", vary=vary, request=head())
    viewer = rig.viewer()
    for value in ("fr", "de", "en", "fr"):
        assert viewer.get("/x", f"accept-language:  {value} ").body == value.encode()
    assert viewer.get("/x").body == b"none"
    viewer.ask("/x", "Accept-Language: fr", "Accept-Language: de")
    exchange = rig.exchange("miss")
    rig.store("/x", b"both", vary=vary, request=exchange.head)
    exchange.match(200)
    reply = viewer.reply()
    assert reply.body == b"both"
    assert "fwd=vary-miss" in reply["cache-status"]
    assert viewer.get("/x", "Accept-Language: fr,de").body == b"both"
    assert len(rig.plane.find(MEDIA, b"/x")) == 5
    rig.store("/x", b"new", vary=vary, request=head("Accept-Language: fr"))
    assert viewer.get("/x", "Accept-Language: fr").body == b"new"
    assert len(rig.plane.find(MEDIA, b"/x")) == 5


@pytest.mark.parametrize(
    ("field", "accepts"),
    [("gzip", True), ("br, gzip", True), ("GZIP;q=0.5", True), ("gzip;q=0", False), ("gzip; q=0.000", False),
     ("br", False), ("", False), ("x-gzip", False), ("gzip;q=0.001", True), ("identity,gzip ; q=1", True)],
)  # fmt: skip
def test_accept_encoding_is_reduced_to_gzip(rig: Rig, field: str, accepts: bool) -> None:
    vary = b"accept-encoding\n"
    rig.store("/x", b"zipped", vary=vary, request=head("Accept-Encoding: gzip"))
    rig.store("/x", b"plain", vary=vary, request=head())
    assert rig.viewer().get("/x", f"Accept-Encoding: {field}").body == (b"zipped" if accepts else b"plain")


def test_new_vary_names_end_the_old_variants(rig: Rig) -> None:
    rig.store("/x", b"plain")
    rig.store("/x", b"fr", vary=b"accept-language\n", request=head("Accept-Language: fr"))
    assert len(rig.plane.find(MEDIA, b"/x")) == 1
    viewer = rig.viewer()
    assert viewer.get("/x", "Accept-Language: fr").body == b"fr"
    rig.store("/x", b"player", vary=b"accept-language\nx-player\n", request=head("Accept-Language: fr", "X-Player: 1"))
    assert len(rig.plane.find(MEDIA, b"/x")) == 1
    assert viewer.get("/x", "X-Player: 1", "Accept-Language: fr").body == b"player"
    rig.store("/x", b"plain again")
    assert viewer.get("/x", "Accept-Language: fr").body == b"plain again"
    assert rig.plane.n_objects == 1


def test_a_key_has_at_most_32_variants(rig: Rig) -> None:
    vary = b"user-agent\n"
    for i in range(50):
        rig.store("/x", str(i).encode(), vary=vary, request=head(f"User-Agent: {i}"))
    assert len(rig.plane.find(MEDIA, b"/x")) == 32
    viewer = rig.viewer()
    assert viewer.get("/x", "User-Agent: 49").body == b"49"
    assert viewer.get("/x", "User-Agent: 18").body == b"18"
    viewer.ask("/x", "User-Agent: 17")
    rig.exchange("miss").error(504)
    assert viewer.reply().status == 504


def test_vary_values_beyond_the_bound_match_nothing(rig: Rig) -> None:
    vary = b"user-agent\n"
    long = "User-Agent: " + "x" * 2000
    stored = rig.create(1)
    assert stored is not None
    assert not stored.insert(b"/x", vary, head(long))
    rig.store("/x", b"1", vary=vary, request=head("User-Agent: a"))
    viewer = rig.viewer()
    viewer.ask("/x", long)
    for _ in range(4):
        rig.exchange("miss").match()
    alone = rig.exchange("alone")  # looking again is bounded
    alone.error(502)
    assert viewer.reply().status == 502


# --- validation -------------------------------------------------------------------------------------------------------


def test_what_was_validated_after_a_request_came_serves_it(rig: Rig) -> None:
    """no-cache: an answer whose request went up after the viewer's came in is good for him; later viewers ask again."""
    stored = rig.store("/x", BODY, fresh_s=-1, etag=b'"v"')
    early = ask(rig, 3)
    first = rig.exchange("stale")
    sent_ns = time.monotonic_ns()
    late = ask(rig, 3)
    assert rig.no_exchange()
    assert stored.set_head(200, b"HTTP/1.1 200 OK\r\n", b"", b"", b'"v"', -1, 0, 0, sent_ns, sent_ns, 0)
    first.match(304)
    assert all(viewer.reply().body == BODY for viewer in early)
    second = rig.exchange("stale")
    assert second.arrival_ns > sent_ns
    assert all(viewer.is_silent() for viewer in late)
    now_ns = time.monotonic_ns()
    assert stored.set_head(200, b"HTTP/1.1 200 OK\r\n", b"", b"", b'"v"', -1, 0, 0, now_ns, now_ns, 0)
    second.match(304)
    assert all(viewer.reply().body == BODY for viewer in late)
    assert rig.no_exchange()
    assert rig.total("exchanges") == 2


def test_a_new_object_in_place_of_the_stale_one(rig: Rig) -> None:
    rig.store("/x", BODY, fresh_s=-1)
    viewers = ask(rig, 2)
    exchange = rig.exchange("stale")
    rig.store("/x", b"new")
    exchange.match(200)
    assert all(viewer.reply().body == b"new" for viewer in viewers)
    assert rig.plane.n_objects == 1


def test_head_asks_alone(rig: Rig) -> None:
    get, probe = rig.viewer(), rig.viewer()
    probe.ask("/x", method="HEAD")
    alone = rig.exchange("alone")
    get.ask("/x")
    miss = rig.exchange("miss")
    answer = rig.create(10_000, private=True)
    assert answer is not None
    answer.finish(10_000)
    alone.leader(answer, 200)
    assert probe.reply("HEAD")["content-length"] == "10000"
    miss.error(504)
    assert get.reply().status == 504


def test_requests_for_a_generic_origin_collapse_too(rig: Rig) -> None:
    viewers = ask(rig, 3, "/generic/x")
    exchange = rig.exchange("miss")
    assert exchange.origin == GENERIC
    rig.store("/generic/x", BODY, origin=GENERIC)
    exchange.match()
    assert all(viewer.reply().body == BODY for viewer in viewers)
