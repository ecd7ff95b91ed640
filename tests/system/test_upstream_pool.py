"""The upstream client's slots, pool, retry and fail-over, counted at real origins."""

from __future__ import annotations

import socket
from dataclasses import replace
from typing import Any

import pytest
from hostile_origin import STANDARD, HostileOrigin, die_on_reuse, in_turn, pieces, raw, reply, then_close
from recording_sink import RecordingSink, until
from upstream_box import OK, Run, box, client_of, get, run, settings_of

from accelerator.io.failover import FIRST_AGAIN_S, UpstreamOrder
from accelerator.io.upstream import Upstream

__all__ = ["run"]


# -- pool and retry --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["close", "reset"])
def test_an_idempotent_request_is_repeated_once_when_its_reused_connection_dies(run: Run, how: str) -> None:
    async def main() -> None:
        async with box({b"/a": die_on_reuse(reply(b"hello"), how)}) as (origin, client):
            for _ in range(2):
                assert (await get(client, b"/a")).calls == OK
            assert client.counters.retries == 1
            assert [(request.connection, request.index) for request in origin.requests] == [(0, 0), (0, 1), (1, 0)]

    run(main())


@pytest.mark.parametrize("path", [b"/no-bytes", b"/reset-at-once"])
def test_never_repeated_twice(run: Run, path: bytes) -> None:
    async def main() -> None:
        async with box() as (origin, client):
            sinks = [RecordingSink() for _ in range(3)]
            # Three pooled connections that all die: the repetition goes over a new one, not over the next pooled one.
            for sink in sinks:
                client.request(b"GET", b"/ok", [], sink)
            for sink in sinks:
                await sink.over()
            assert (await get(client, path)).calls[0][:2] == ("failed", "closed" if path == b"/no-bytes" else "reset")
            assert origin.targets().count(path) == 2
            assert origin.requests[-1].connection == 3
            assert client.counters.retries == 1

    run(main())


@pytest.mark.parametrize("path", [b"/no-bytes", b"/reset-at-once"])
def test_not_repeated_on_a_new_connection(run: Run, path: bytes) -> None:
    async def main() -> None:
        async with box() as (origin, client):
            sink = await get(client, path)
            assert sink.error.can_retry
            assert len(origin.requests) == 1
            assert client.counters.retries == 0

    run(main())


def test_not_repeated_when_not_idempotent(run: Run) -> None:
    async def main() -> None:
        async with box() as (origin, client):
            await get(client, b"/ok")
            sink = RecordingSink()
            client.request(b"POST", b"/no-bytes", [], sink, idempotent=False)
            assert await sink.over() == [("failed", "closed", 502, False)]
            assert origin.targets() == [b"/ok", b"/no-bytes"]

    run(main())


@pytest.mark.parametrize("path", [b"/head-cut", b"/reset-in-head", b"/silence", b"/bare-lf"])
def test_not_repeated_after_a_byte_or_a_time_out(run: Run, path: bytes) -> None:
    async def main() -> None:
        async with box(head_timeout_s=0.2) as (origin, client):
            await get(client, b"/ok")
            await get(client, path)
            assert origin.targets() == [b"/ok", path]
            assert client.counters.connections_reused == 1

    run(main())


def test_a_connection_closed_while_idle_is_not_used(run: Run) -> None:
    async def main() -> None:
        async with box({b"/a": then_close(reply(b"hello"))}) as (origin, client):
            for _ in range(3):
                assert (await get(client, b"/a")).calls == OK
                await until(lambda: client.n_connections == 0)
            assert len(origin.requests) == 3
            assert client.counters.retries == 0

    run(main())


def test_the_connection_used_last_is_reused_and_idle_ones_close_in_time(run: Run) -> None:
    async def main() -> None:
        async with box(idle_s=0.15) as (origin, client):
            sinks = [RecordingSink() for _ in range(4)]
            for sink in sinks:
                client.request(b"GET", b"/ok", [], sink)
            for sink in sinks:
                await sink.over()
            assert client.n_connections == 4
            for _ in range(3):
                await get(client, b"/ok")
            assert len({request.connection for request in origin.requests[4:]}) == 1
            await until(lambda: client.n_connections == 0)
            assert (await get(client, b"/ok")).calls == OK

    run(main())


def test_bytes_on_an_idle_connection_close_it_and_answer_nobody(run: Run) -> None:
    """A second response that nobody asked for must not become the answer to the next request."""
    poison = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison"

    async def main() -> None:
        good = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
        scripts = {b"/a": pieces(good, poison, gate="g", then="hang"), b"/b": reply(b"hello")}
        async with box(scripts) as (origin, client):
            assert (await get(client, b"/a")).calls == OK
            assert client.n_connections == 1
            origin.gate("g").set()
            await until(lambda: client.n_connections == 0)
            assert client.counters.excess_bytes == len(poison)
            assert client.counters.excess_connections == 1
            assert (await get(client, b"/b")).calls == OK

    run(main())


def test_bytes_that_wait_in_the_socket_are_seen_before_a_connection_is_reused(run: Run) -> None:
    """The loop has not read them yet when the next request begins: the socket is asked."""

    async def main() -> None:
        good = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
        async with box({b"/a": raw(good, "keep"), b"/b": reply(b"hello")}) as (origin, client):
            await get(client, b"/a")
            server_side = next(iter(origin.peers)).writer.get_extra_info("socket")
            with socket.fromfd(server_side.fileno(), socket.AF_INET, socket.SOCK_STREAM) as same:
                same.send(b"poison")
            assert (await get(client, b"/b")).calls == OK
            assert client.counters.excess_bytes == 6
            assert origin.n_connections == 2

    run(main())


# -- slots -----------------------------------------------------------------------------------------------------------


def test_slots_bound_the_connections_and_are_given_in_order(run: Run) -> None:
    async def main() -> None:
        head = b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n"
        scripts = {b"/%d" % i: pieces(head, b"x", gate=str(i)) for i in range(9)}
        async with box(scripts, connections=2) as (origin, client):
            sinks = [RecordingSink() for _ in range(9)]
            for i, sink in enumerate(sinks):
                client.request(b"GET", b"/%d" % i, [], sink)
            assert client.n_queued == 7
            for i, sink in enumerate(sinks):
                await until(lambda: len(origin.requests) == min(9, i + 2))  # noqa: B023
                assert client.n_connections <= 2
                origin.gate(str(i)).set()
                await sink.over()
            targets = origin.targets()
            # Two connections are dialled at once: either may be accepted first.
            assert sorted(targets[:2]) == [b"/0", b"/1"]
            assert targets[2:] == [b"/%d" % i for i in range(2, 9)]
            assert client.counters.queued == 7
            assert client.n_queued == 0

    run(main())


def test_the_queue_is_bounded_in_length_and_time(run: Run) -> None:
    async def main() -> None:
        async with box(connections=1, queue_limit=2, head_timeout_s=0.2, body_timeout_s=1) as (origin, client):
            stalled = RecordingSink()
            client.request(b"GET", b"/stalls-in-body", [], stalled)
            sinks = [RecordingSink() for _ in range(3)]
            for sink in sinks:
                client.request(b"GET", b"/ok", [], sink)
            assert await sinks[2].over() == [("failed", "queue-full", 503, False)]
            for sink in sinks[:2]:
                assert await sink.over() == [("failed", "queue-timeout", 504, False)]
            assert not stalled.is_over
            assert (client.counters.queue_refused, client.counters.timeouts) == (1, 2)
            await stalled.over()
            assert (await get(client, b"/ok")).calls == OK
            assert origin.targets() == [b"/stalls-in-body", b"/ok"]

    run(main())


def test_a_failed_connect_gives_its_slot_back(run: Run) -> None:
    async def main() -> None:
        origin = await HostileOrigin().start()
        client = client_of(settings_of(origin, connections=1))
        await origin.stop_listening()
        sinks = [RecordingSink() for _ in range(5)]
        for sink in sinks:
            client.request(b"GET", b"/ok", [], sink)
        for sink in sinks:
            assert await sink.over() == [("failed", "refused", 502, False)]
        assert client.counters.connect_failures == 5
        await client.close()
        await origin.close()

    run(main())


def test_new_settings_open_more_slots_and_drop_connections_to_elsewhere(run: Run) -> None:
    async def main() -> None:
        other = await HostileOrigin().start()
        async with box(connections=1) as (origin, client):
            silent = RecordingSink()
            call = client.request(b"GET", b"/silence", [], silent)
            queued = RecordingSink()
            client.request(b"GET", b"/ok", [], queued)
            await until(lambda: len(origin.requests) == 1)
            client.set_settings(replace(client.settings, connections=2))
            assert await queued.over() == OK
            assert client.n_connections == 2
            client.set_settings(replace(client.settings, upstreams=settings_of(other).upstreams))
            await until(lambda: client.n_connections == 1)
            assert (await get(client, b"/ok")).calls == OK
            assert other.targets() == [b"/ok"]
            assert other.requests[0].field(b"host") == b"127.0.0.1:%d" % other.port
            call.cancel()
        await other.close()

    run(main())


def test_a_connection_of_old_settings_finishes_but_is_not_kept(run: Run) -> None:
    async def main() -> None:
        other = await HostileOrigin().start()
        script = pieces(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", b"hello", gate="g", then="keep")
        async with box({b"/a": script}) as (origin, client):
            sink = RecordingSink()
            client.request(b"GET", b"/a", [], sink)
            await until(lambda: sink.n_heads == 1)
            client.set_settings(replace(client.settings, upstreams=settings_of(other).upstreams))
            origin.gate("g").set()
            assert await sink.over() == OK
            await until(lambda: client.n_connections == 0)
        await other.close()

    run(main())


# -- several upstreams -----------------------------------------------------------------------------------------------


def two_order() -> tuple[UpstreamOrder, list[Upstream]]:
    upstreams = [Upstream("http", f"10.0.0.{i}", 80) for i in (1, 2, 3)]
    return UpstreamOrder(tuple(upstreams)), upstreams


def test_order_sticks_to_who_answered_and_tries_the_first_again_every_30_s() -> None:
    order, (a, b, c) = two_order()
    assert order.order(0) == [a, b, c]
    order.answered(b, 100)
    assert order.order(100) == order.order(100 + FIRST_AGAIN_S - 0.1) == [b, a, c]
    assert order.order(100 + FIRST_AGAIN_S) == [a, b, c]
    # That was one request's trial; until it is answered by the first one, the others stay.
    assert order.order(100 + FIRST_AGAIN_S) == [b, a, c]
    assert order.order(100 + 2 * FIRST_AGAIN_S) == [a, b, c]
    order.answered(c, 200)
    assert order.order(200) == [c, a, b]
    order.answered(a, 300)
    assert order.order(1000) == [a, b, c]
    order.answered(Upstream("http", "10.0.0.9", 80), 1000)
    assert order.order(1000) == [a, b, c]


def test_order_puts_the_avoided_one_last() -> None:
    order, (a, b, c) = two_order()
    assert order.order(0, avoid=a) == [b, c, a]
    assert order.order(0, avoid=Upstream("http", "10.0.0.9", 80)) == [a, b, c]
    assert UpstreamOrder((a,)).order(0, avoid=a) == [a]


def test_fail_over_on_refusal_sticks(run: Run) -> None:
    async def main() -> None:
        first, second = await HostileOrigin().start(), await HostileOrigin().start()
        client = client_of(settings_of(first, second))
        port = first.port
        await first.close()
        sink = await get(client, b"/ok")
        assert sink.calls == OK
        assert sink.upstream == client.settings.upstreams[1]
        assert second.requests[0].field(b"host") == b"127.0.0.1:%d" % second.port
        # The first is back, but nobody asks it before its time.
        await first.start(port)
        assert (await get(client, b"/close")).calls == OK
        assert (await get(client, b"/close")).calls == OK
        assert (client.counters.failovers, client.counters.connect_failures) == (1, 1)
        # The second goes away too: back to the first.
        await second.close()
        sink = await get(client, b"/ok")
        assert sink.calls == OK
        assert sink.upstream == client.settings.upstreams[0]
        await first.close()
        await client.close()

    run(main())


def test_all_upstreams_fail_and_all_are_named(run: Run) -> None:
    async def main() -> None:
        first, second = await HostileOrigin().start(), await HostileOrigin().start()
        client = client_of(settings_of(first, second))
        await first.close()
        await second.close()
        sink = await get(client, b"/ok")
        assert sink.calls == [("failed", "refused", 502, False)]
        assert str(first.port) in sink.error.message
        assert str(second.port) in sink.error.message
        assert sink.error.can_retry
        await client.close()

    run(main())


def test_an_answer_that_breaks_off_is_not_failed_over_but_may_be_asked_for_elsewhere(run: Run) -> None:
    async def main() -> None:
        first, second = await HostileOrigin().start(), await HostileOrigin().start()
        client = client_of(settings_of(first, second))
        broken = await get(client, b"/length-long")
        assert broken.error.kind == "truncated"
        assert broken.upstream == client.settings.upstreams[0]
        assert second.requests == []
        sink = RecordingSink()
        client.request(b"GET", b"/ok", [], sink, avoid=broken.upstream)
        assert await sink.over() == OK
        assert sink.upstream == client.settings.upstreams[1]
        # One detour does not move everybody.
        assert (await get(client, b"/ok")).upstream == client.settings.upstreams[0]
        await client.close()
        await first.close()
        await second.close()

    run(main())


def test_a_black_hole_is_a_connect_time_out_and_the_next_upstream_answers(run: Run) -> None:
    async def main() -> None:
        with socket.socket() as hole:
            hole.bind(("127.0.0.1", 0))
            hole.listen(0)
            # One connection fills the queue, from then on SYNs are dropped.
            with socket.create_connection(hole.getsockname()):
                origin = await HostileOrigin().start()
                lost = Upstream("http", "127.0.0.1", hole.getsockname()[1])
                settings = settings_of(origin, connect_timeout_s=0.2)
                client = client_of(replace(settings, upstreams=(lost,)))
                assert (await get(client, b"/ok")).calls == [("failed", "connect-timeout", 504, False)]
                client.set_settings(replace(settings, upstreams=(lost, *settings.upstreams)))
                sink = await get(client, b"/ok")
                assert sink.calls == OK
                assert sink.upstream == settings.upstreams[0]
                assert client.counters.timeouts == 2
                await client.close()
                await origin.close()

    run(main())


def test_a_names_addresses_are_tried_in_turn_and_the_one_checked_is_connected_to(run: Run) -> None:
    async def main() -> None:
        async with box() as (origin, client):
            asked: list[Any] = []

            async def getaddrinfo(host: str, port: Any, **more: Any) -> list[Any]:
                asked.append(host)
                return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, 0)) for ip in ("127.0.0.9", "127.0.0.1")]

            name = Upstream("http", "media.example", origin.port)
            settings = replace(client.settings, upstreams=(name,))
            named = client_of(settings, getaddrinfo=getaddrinfo)
            assert (await get(named, b"/ok")).calls == [("failed", "forbidden-address", 502, False)]
            assert named.counters.addresses_refused == 1
            # The same addresses, pinned: allowed, the first refuses, the second answers, and no name is looked up.
            named.set_settings(replace(settings, resolve=("127.0.0.9", "127.0.0.1")))
            assert (await get(named, b"/ok")).calls == OK
            assert origin.requests[0].field(b"host") == b"media.example:%d" % origin.port
            assert named.counters.connect_failures == 2
            ours = frozenset({("0.0.0.0", origin.port)})
            named.set_settings(replace(settings, resolve=("127.0.0.1",), own_listeners=ours))
            assert (await get(named, b"/ok")).calls == [("failed", "forbidden-address", 502, False)]
            assert asked == ["media.example"]
            assert len(origin.requests) == 1
            await named.close()

    run(main())


def test_idle_connections_make_room_for_another_upstream(run: Run) -> None:
    async def main() -> None:
        first, second = await HostileOrigin().start(), await HostileOrigin().start()
        client = client_of(settings_of(first, second, connections=2))
        sinks = [RecordingSink(), RecordingSink()]
        for sink in sinks:
            client.request(b"GET", b"/ok", [], sink)
        for sink in sinks:
            await sink.over()
        assert client.n_connections == 2
        sink = RecordingSink()
        client.request(b"GET", b"/ok", [], sink, avoid=client.settings.upstreams[0])
        assert await sink.over() == OK
        await until(lambda: client.n_connections == 2)
        await client.close()
        await first.close()
        await second.close()

    run(main())


def test_a_busy_origin_with_dying_connections_asks_at_most_once_more(run: Run) -> None:
    async def main() -> None:
        scripts = {b"/a": die_on_reuse(reply(b"hello")), b"/b": in_turn(STANDARD[b"/reset-in-body"], reply(b"hello"))}
        async with box(scripts, connections=4) as (origin, client):
            sinks = [RecordingSink() for _ in range(200)]
            for sink in sinks:
                client.request(b"GET", b"/a", [], sink)
            for sink in sinks:
                assert await sink.over() == OK
            assert len(origin.requests) == 200 + client.counters.retries
            assert client.counters.retries <= 200
            assert client.n_connections <= 4

    run(main())
