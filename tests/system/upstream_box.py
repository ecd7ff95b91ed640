"""An upstream client and its origin, on either loop; import its fixtures `run`, `ca`, `ca_file`. No test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
import trustme
import uvloop
from hostile_origin import STANDARD, HostileOrigin, Script
from recording_sink import RecordingSink

from accelerator.io.upstream import OriginSettings, Upstream, UpstreamClient
from ext.http_head import HeadError, read_response

Run = Callable[[Awaitable[Any]], Any]
OK = [("head", 200), b"hello", ("ended",)]


@pytest.fixture(scope="module")
def ca() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def ca_file(ca: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("ca") / "ca.pem"
    ca.cert_pem.write_to_path(str(path))
    return str(path)


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    """Runs a coroutine to its end on a loop of the kind."""

    def run(main: Awaitable[Any]) -> Any:
        with asyncio.Runner(loop_factory=request.param) as runner:
            return runner.run(main)

    return run


def settings_of(*origins: HostileOrigin, **changes: Any) -> OriginSettings:
    upstreams = tuple(Upstream("http", origin.host, origin.port) for origin in origins)
    settings = OriginSettings("test", upstreams, connect_timeout_s=2, head_timeout_s=5, body_timeout_s=5)
    return replace(settings, **changes)


def client_of(settings: OriginSettings, **others: Any) -> UpstreamClient:
    loop = asyncio.get_running_loop()
    return UpstreamClient(settings, loop, parse_response=read_response, head_error=HeadError, **others)


@asynccontextmanager
async def box(
    scripts: dict[bytes, Script] | None = None, **changes: Any
) -> AsyncIterator[tuple[HostileOrigin, UpstreamClient]]:
    """One origin and a client of it; nothing may be left open behind."""
    faults: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: faults.append(context))
    origin = await HostileOrigin(STANDARD if scripts is None else scripts).start()
    client = client_of(settings_of(origin, **changes))
    client.faults = faults  # type: ignore[attr-defined]
    try:
        yield origin, client
    finally:
        await client.close()
        await origin.close()
    assert client.n_connections == 0


async def get(client: UpstreamClient, target: bytes, method: bytes = b"GET", **more: Any) -> RecordingSink:
    sink = RecordingSink(**more)
    client.request(method, target, [(b"Accept", b"*/*")], sink)
    await sink.over()
    return sink
