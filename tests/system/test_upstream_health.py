"""Upstreams that fail: breakers, fail-over by them, trials, what is told; address families of which one is dead."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import pytest
from hostile_origin import STANDARD, HostileOrigin, die_on_reuse, raw, reply
from recording_sink import RecordingSink, until
from upstream_box import OK, Run, box, client_of, get, run, settings_of

from accelerator.errors import OriginError
from accelerator.io.dial import STAGGER_S
from accelerator.io.health import Health
from accelerator.io.origin import OriginCounters, UpstreamEvent
from accelerator.io.upstream import OriginSettings, Upstream, UpstreamClient
from accelerator.protocols.breaker import CONNECT_FAILURES_MAX, FAILURES_MAX, TRIALS_MAX

__all__ = ["run"]

UNAVAILABLE = reply(b"", status=503, reason=b"Unavailable")
REFUSED_AT_ONCE = [("failed", "breaker-open", 503, False)]


@contextmanager
def black_hole(host: str = "127.0.0.1", port: int = 0) -> Iterator[int]:
    """A port that answers no SYN."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as hole:
        hole.bind((host, port))
        hole.listen(0)
        # One connection fills the queue, from then on SYNs are dropped.
        with socket.create_connection(hole.getsockname()[:2]):
            yield hole.getsockname()[1]


@contextmanager
def black_holes(first: str, second: str) -> Iterator[int]:
    """The same port of two addresses; one that is free here may be taken there."""
    for _ in range(100):
        with black_hole(first) as port, ExitStack() as stack:
            try:
                stack.enter_context(black_hole(second, port))
            except OSError:
                continue
            yield port
            return
    raise AssertionError("no port is free on both addresses")


def states(client: UpstreamClient) -> list[str]:
    return [upstream.state for upstream in client.health()]


async def all_over(client: UpstreamClient, n: int, target: bytes = b"/ok") -> list[Any]:
    """The last calls of `n` requests made at once."""
    sinks = [RecordingSink() for _ in range(n)]
    for sink in sinks:
        client.request(b"GET", target, [], sink)
    return [(await sink.over())[-1] for sink in sinks]


# -- breakers --------------------------------------------------------------------------------------------------------


@pytest.mark.fault(19)
def test_a_black_hole_costs_five_time_outs_and_then_two_waiting_trials(run: Run) -> None:
    """reliability.md fault 19."""

    async def main() -> None:
        with black_hole() as port:
            events: list[UpstreamEvent] = []
            settings = OriginSettings("test", (Upstream("http", "127.0.0.1", port),), connect_timeout_s=0.3)
            client = client_of(settings, note_event=events.append)
            late = ("failed", "connect-timeout", 504, False)
            assert await all_over(client, CONNECT_FAILURES_MAX) == [late] * CONNECT_FAILURES_MAX
            assert states(client) == ["open"]
            opened = client.counters.connect_failures
            assert await all_over(client, 100) == REFUSED_AT_ONCE * 100
            assert client.counters.connect_failures == opened
            assert client.counters.breaker_refused == 100
            await until(lambda: states(client) == ["half-open"])
            assert sorted(await all_over(client, 50)) == sorted(REFUSED_AT_ONCE * 48 + [late] * TRIALS_MAX)
            assert client.counters.connect_failures - opened == TRIALS_MAX
            health = client.health()[0]
            assert health.state == "open"
            assert 1 < health.trial_in_s <= 2
            assert "no connection in time" in health.error
            assert [(event.kind, event.subject) for event in events] == [("breaker-open", f"http://127.0.0.1:{port}")]
            sink = await get(client, b"/ok")
            assert sink.error.can_retry
            assert "no connection in time" in sink.error.message
            await client.close()

    run(main())


@pytest.mark.fault(22)
@pytest.mark.parametrize("status", [502, 503, 504])
def test_a_burst_of_5xx_opens_it_and_an_answer_closes_it(run: Run, status: int) -> None:
    """reliability.md fault 22."""

    async def main() -> None:
        async with box({b"/ok": reply(b"", status=status)}) as (origin, client):
            for _ in range(FAILURES_MAX):
                assert states(client)[0] in ("ok", "suspect")
                assert (await get(client, b"/ok")).calls == [("head", status), ("ended",)]
            assert states(client) == ["open"]
            assert (await get(client, b"/ok")).calls == REFUSED_AT_ONCE
            assert len(origin.requests) == FAILURES_MAX
            origin.scripts.update(STANDARD)
            await until(lambda: states(client) == ["half-open"])
            assert (await get(client, b"/ok")).calls == OK
            assert states(client) == ["ok"]
            assert client.counters.breaker_opened == 1

    run(main())


def test_what_is_no_failure(run: Run) -> None:
    """404 and 500 are answers; a pooled connection that died was idle for too long; who cancels knows nothing."""

    async def main() -> None:
        scripts = {b"/500": reply(b"", status=500), b"/a": die_on_reuse(reply(b"hello")), b"/silence": raw(b"", "hang")}
        async with box(scripts) as (origin, client):
            for target in (b"/404", b"/500", b"/a"):
                for _ in range(2 * FAILURES_MAX):
                    await get(client, target)
                assert states(client) == ["ok"]
            assert client.counters.retries > 0
            for i in range(2 * FAILURES_MAX):
                call = client.request(b"GET", b"/silence", [], RecordingSink())
                await until(lambda: origin.targets().count(b"/silence") == i + 1)  # noqa: B023
                call.cancel()
            assert states(client) == ["ok"]
            client.set_settings(replace(client.settings, failure_statuses=frozenset({500})))
            await get(client, b"/500")
            assert states(client) == ["suspect"]

    run(main())


@pytest.mark.parametrize("path", [b"/silence", b"/bare-lf", b"/no-bytes", b"/reset-at-once", b"/reset-in-body"])
def test_each_kind_of_failure_counts(run: Run, path: bytes) -> None:
    async def main() -> None:
        async with box(head_timeout_s=0.1, body_timeout_s=0.1) as (origin, client):
            await all_over(client, FAILURES_MAX, path)
            assert states(client) == ["open"]
            assert (await get(client, b"/ok")).calls == REFUSED_AT_ONCE
            assert len(origin.requests) == FAILURES_MAX

    run(main())


def test_who_waits_for_a_slot_is_answered_when_it_opens(run: Run) -> None:
    async def main() -> None:
        async with box({b"/ok": UNAVAILABLE}, connections=1) as (origin, client):
            ends = await all_over(client, 100)
            assert ends == [("ended",)] * FAILURES_MAX + REFUSED_AT_ONCE * (100 - FAILURES_MAX)
            assert len(origin.requests) == FAILURES_MAX
            assert client.n_queued == 0

    run(main())


def test_connects_under_way_end_when_it_opens(run: Run) -> None:
    """The first five connections are reset within the TLS handshake, the others hang in it: nobody waits for these."""

    async def main() -> None:
        n_connected = 0
        hanging = asyncio.Event()

        async def connected(reader: Any, writer: asyncio.StreamWriter) -> None:
            nonlocal n_connected
            n_connected += 1
            if n_connected <= 20 - CONNECT_FAILURES_MAX:
                await hanging.wait()
            writer.transport.abort()

        server = await asyncio.start_server(connected, "127.0.0.1", 0)
        upstream = Upstream("https", "127.0.0.1", server.sockets[0].getsockname()[1])
        client = client_of(OriginSettings("test", (upstream,), connect_timeout_s=60))
        ends = await all_over(client, 20)
        assert ends.count(REFUSED_AT_ONCE[0]) == 20 - CONNECT_FAILURES_MAX
        assert client.n_connections == 0
        hanging.set()
        await client.close()
        server.close()

    run(main())


@pytest.mark.fault(19)
def test_the_next_upstream_takes_over_and_the_first_gets_its_requests_back(run: Run) -> None:
    async def main() -> None:
        first, second = await HostileOrigin({b"/ok": UNAVAILABLE}).start(), await HostileOrigin().start()
        client = client_of(settings_of(first, second))
        for _ in range(FAILURES_MAX):
            assert (await get(client, b"/ok")).calls[0] == ("head", 503)
        assert states(client) == ["open", "ok"]
        for _ in range(5):
            assert (await get(client, b"/ok")).calls == OK
        assert len(second.requests) == 5
        assert client.counters.failovers == 1
        # The second fails too, when the first has recovered: its trial is a viewer's request.
        first.scripts.update(STANDARD)
        await second.close()
        await until(lambda: states(client)[0] == "half-open")
        assert (await get(client, b"/close")).calls == OK
        assert states(client) == ["ok", "suspect"]
        await first.close()
        await client.close()

    run(main())


def test_all_are_named_when_none_is_asked(run: Run) -> None:
    async def main() -> None:
        first, second = await HostileOrigin().start(), await HostileOrigin().start()
        await first.close()
        await second.close()
        client = client_of(settings_of(first, second))
        for _ in range(CONNECT_FAILURES_MAX):
            assert (await get(client, b"/ok")).calls == [("failed", "refused", 502, False)]
        sink = await get(client, b"/ok")
        assert sink.calls == REFUSED_AT_ONCE
        assert str(first.port) in sink.error.message
        assert str(second.port) in sink.error.message
        await client.close()

    run(main())


def test_a_trial_that_is_cancelled_gives_its_place_back(run: Run) -> None:
    async def main() -> None:
        async with box({b"/ok": UNAVAILABLE, b"/silence": raw(b"", "hang")}) as (origin, client):
            await all_over(client, FAILURES_MAX)
            await until(lambda: states(client) == ["half-open"])
            calls = [client.request(b"GET", b"/silence", [], RecordingSink()) for _ in range(TRIALS_MAX)]
            await until(lambda: origin.targets().count(b"/silence") == TRIALS_MAX)
            assert (await get(client, b"/ok")).calls == REFUSED_AT_ONCE
            calls[0].cancel()
            origin.scripts[b"/ok"] = reply(b"hello")
            assert (await get(client, b"/ok")).calls == OK
            assert states(client) == ["ok"]
            calls[1].cancel()

    run(main())


def test_other_upstreams_begin_in_good_health_and_the_old_are_no_news(run: Run) -> None:
    async def main() -> None:
        events: list[Any] = []
        gone, other = await HostileOrigin().start(), await HostileOrigin().start()
        await gone.close()
        client = client_of(settings_of(gone), note_event=events.append)
        await all_over(client, CONNECT_FAILURES_MAX)
        assert (await get(client, b"/ok")).calls == REFUSED_AT_ONCE
        # What doesn't change the way there doesn't change its health either.
        client.set_settings(replace(client.settings, connections=3))
        assert states(client) == ["open"]
        silent = [RecordingSink() for _ in range(3)]
        client.set_settings(settings_of(other))
        assert states(client) == ["ok"]
        for sink in silent:
            client.request(b"GET", b"/silence", [], sink)
        await until(lambda: len(other.requests) == 3)
        client.set_settings(settings_of(gone))
        other.close_connections()
        for sink in silent:
            await sink.over()
        assert states(client) == ["ok"]
        await until(lambda: len(events) == 1)
        await other.close()
        await client.close()

    run(main())


def test_a_listener_that_raises_harms_nobody(run: Run) -> None:
    async def main() -> None:
        faults: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: faults.append(context))

        def broken(event: UpstreamEvent) -> None:
            raise RuntimeError("listener")

        origin = await HostileOrigin().start()
        await origin.close()
        client = client_of(settings_of(origin), note_event=broken)
        assert (await all_over(client, CONNECT_FAILURES_MAX))[-1][1] == "refused"
        await until(lambda: len(faults) == 1)
        await client.close()

    run(main())


def test_an_attempt_ends_once(run: Run) -> None:
    async def main() -> None:
        upstream = Upstream("http", "10.0.0.1", 80)
        opened: list[int] = []
        health = Health(
            asyncio.get_running_loop(), (upstream,), OriginCounters(), lambda event: None, lambda: opened.append(1)
        )
        for _ in range(CONNECT_FAILURES_MAX):
            assert opened == []
            attempt = health.admit(upstream)
            assert attempt is not None
            for _ in range(3):
                attempt.connect_failed("x")
                attempt.failed("y")
                attempt.released()
        assert opened == [1]
        assert health.admit(upstream) is None
        with pytest.raises(OriginError, match="next trial in"):
            raise health.refusal()

    run(main())


# -- families --------------------------------------------------------------------------------------------------------


def open_sockets() -> int:
    names = []
    for number in os.listdir("/proc/self/fd"):
        try:
            names.append(os.readlink(f"/proc/self/fd/{number}"))
        except OSError:
            continue
    return sum(name.startswith("socket:") for name in names)


@pytest.fixture(scope="module")
def _has_ipv6() -> None:
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("::1", 0))
    except OSError as exc:
        pytest.skip(f"no IPv6 on loopback here: {exc}")


@pytest.mark.usefixtures("_has_ipv6")
@pytest.mark.parametrize(("dead", "alive"), [("::1", "127.0.0.1"), ("127.0.0.1", "::1")])
def test_a_family_that_is_black_holed_costs_a_quarter_of_a_second(run: Run, dead: str, alive: str) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        with ExitStack() as stack:
            while True:
                origin = HostileOrigin()
                origin.host = alive
                await origin.start()
                try:
                    stack.enter_context(black_hole(dead, origin.port))
                    break
                except OSError:  # somebody else has the port in the other family
                    await origin.close()
            upstream = Upstream("http", "media.example", origin.port)
            client = client_of(OriginSettings("test", (upstream,), (dead, alive), connect_timeout_s=60))
            n_sockets = open_sockets()
            started_s = loop.time()
            assert (await get(client, b"/close")).calls == OK
            assert STAGGER_S * 0.9 < loop.time() - started_s < 20
            # The loser is called off, not left to its time-out, and no failure.
            await until(lambda: client.n_connections == 0)
            await until(lambda: open_sockets() <= n_sockets)
            assert (client.counters.connect_failures, client.counters.timeouts) == (0, 0)
            assert states(client) == ["ok"]
            await client.close()
        await origin.close()

    run(main())


@pytest.mark.usefixtures("_has_ipv6")
def test_a_family_that_refuses_costs_nothing(run: Run) -> None:
    async def main() -> None:
        async with box() as (origin, client):
            upstream = Upstream("http", "media.example", origin.port)
            client.set_settings(OriginSettings("test", (upstream,), ("::1", "127.0.0.1"), connect_timeout_s=60))
            assert (await get(client, b"/ok")).calls == OK
            assert client.counters.connect_failures == 1
            assert states(client) == ["ok"]

    run(main())


@pytest.mark.usefixtures("_has_ipv6")
def test_one_time_out_is_over_all_addresses(run: Run) -> None:
    async def main() -> None:
        with black_holes("::1", "127.0.0.1") as port:
            upstream = Upstream("http", "media.example", port)
            client = client_of(OriginSettings("test", (upstream,), ("::1", "127.0.0.1"), connect_timeout_s=0.4))
            n_sockets = open_sockets()
            sink = await get(client, b"/ok")
            assert sink.calls == [("failed", "connect-timeout", 504, False)]
            assert "::1, 127.0.0.1" in sink.error.message
            assert (client.counters.connect_failures, client.counters.timeouts) == (1, 1)
            await until(lambda: open_sockets() <= n_sockets)
            await client.close()

    run(main())


def test_cancelled_while_addresses_race(run: Run) -> None:
    async def main() -> None:
        with black_hole() as port:
            client = client_of(OriginSettings("test", (Upstream("http", "127.0.0.1", port),), connect_timeout_s=60))
            n_sockets = open_sockets()
            call = client.request(b"GET", b"/", [], RecordingSink())
            await until(lambda: open_sockets() > n_sockets)
            call.cancel()
            await until(lambda: open_sockets() <= n_sockets)
            assert states(client) == ["ok"]
            await client.close()

    run(main())
