"""A WebSocket server as origin (aiohttp's, on a loop of its own thread), with log-ins, segments and wrong 101s.
Test support, no test.

/echo, /echo/PROTOCOL   every message back as it came; `permessage-deflate` and subprotocol `chat` where asked for
/late/SECONDS           the same, the 101 only then
/segment/N              100 kB of video, fresh for an hour;  /login 302 with a cookie;  /private 401
/raw                    what `raw` holds, after the head; then silence
/page                   an empty page, for a browser that talks from it
/lower                  another protocol, `lower/2`: every byte back in lower case
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import socket
import ssl
import threading
from collections.abc import Callable
from typing import Any, Self

from aiohttp import web
from aiohttp.web_ws import WSMsgType

SEGMENT = bytes(range(256)) * 400
GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


def accept_of(key: str) -> str:
    return base64.b64encode(hashlib.sha1(key.encode() + GUID).digest()).decode()


class WebSocketOrigin:
    """`heads`: the fields of each request by path; `sockets`: open ones. Handlers run in its thread."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.heads: list[tuple[str, Any]] = []
        self.sockets: set[web.WebSocketResponse] = set()
        self.closed_with: list[int | None] = []
        self.raw: Callable[[Any], bytes] = lambda request: b""
        self._tls = tls
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._ending = asyncio.Event()

    def __enter__(self) -> Self:
        self._thread.start()
        self.run(self._start())
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._ending.set)
        with contextlib.suppress(TimeoutError):
            self.run(self._runner.cleanup(), seconds=5)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def run(self, coroutine: Any, seconds: float = 30) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(seconds)

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://{'localhost' if self._tls else '127.0.0.1'}:{self.port}"

    async def _start(self) -> None:
        app = web.Application()
        app.router.add_get("/echo{rest:.*}", self._echo)
        app.router.add_get("/late/{seconds}", self._late)
        app.router.add_get("/segment/{n}", self._segment)
        app.router.add_get("/login", self._login)
        app.router.add_get("/private", self._private)
        app.router.add_get("/page", self._page)
        app.router.add_get("/raw", self._send_raw)
        app.router.add_get("/lower", self._lower)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        listening = socket.create_server(("127.0.0.1", 0), backlog=4096)
        self.port = listening.getsockname()[1]
        await web.SockSite(self._runner, listening, ssl_context=self._tls).start()

    async def _echo(self, request: web.Request) -> web.StreamResponse:
        self.heads.append((request.path, request.headers))
        response = web.WebSocketResponse(protocols=("chat",), compress=True, autoping=False, max_msg_size=1 << 26)
        await response.prepare(request)
        self.sockets.add(response)
        try:
            async for message in response:
                if message.type is WSMsgType.TEXT:
                    await response.send_str(message.data)
                elif message.type is WSMsgType.BINARY:
                    await response.send_bytes(message.data)
                elif message.type is WSMsgType.PING:
                    await response.pong(message.data)
        finally:
            self.sockets.discard(response)
            self.closed_with.append(response.close_code)
        return response

    async def _late(self, request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(float(request.match_info["seconds"]))
        return await self._echo(request)

    async def _segment(self, request: web.Request) -> web.Response:
        return web.Response(body=SEGMENT, headers={"Cache-Control": "max-age=3600", "Content-Type": "video/mp4"})

    async def _login(self, request: web.Request) -> web.Response:
        return web.Response(status=302, headers={"Location": "/portal", "Set-Cookie": "session=1"}, text="go there")

    async def _private(self, request: web.Request) -> web.Response:
        return web.Response(status=401, headers={"WWW-Authenticate": "Basic"}, text="who are you?")

    async def _page(self, request: web.Request) -> web.Response:
        return web.Response(text="<!doctype html><title>chat</title>", content_type="text/html")

    async def _send_raw(self, request: web.Request) -> web.Response:
        transport = request.transport
        assert transport is not None
        transport.write(self.raw(request))  # type: ignore[attr-defined]
        await self._ending.wait()
        return web.Response()

    async def _lower(self, request: web.Request) -> web.StreamResponse:
        """Takes the connection over from aiohttp."""
        transport = request.transport
        assert isinstance(transport, asyncio.Transport)
        transport.write(b"HTTP/1.1 101 x\r\nConnection: upgrade\r\nUpgrade: lower/2\r\n\r\nhello")
        transport.set_protocol(_Lower(transport))
        await self._ending.wait()
        return web.Response()


class _Lower(asyncio.Protocol):
    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._transport.write(data.lower())

    def eof_received(self) -> bool:
        self._transport.write(b"bye")
        return False
