"""A company's portal on raw sockets: log-in form, session cookie, personal page, upload form, event stream, long poll.

Runs in a thread of its own. It reads requests strictly (h11) and counts uploads that began, ended and broke off, so
that nothing that was cut can pass for whole. Test support, no test.
"""

from __future__ import annotations

import asyncio
import hashlib
from contextlib import suppress
from dataclasses import dataclass, field
from urllib.parse import parse_qs

import h11
from thread_origin import ThreadOrigin

USERS = {"ana": "secret-a", "bob": "secret-b"}


@dataclass
class Asked:
    method: str
    target: str
    fields: dict[str, str]
    minor: bytes
    body: hashlib._Hash = field(default_factory=hashlib.sha256)
    n_bytes: int = 0
    data: bytes = b""


class Portal(ThreadOrigin):
    """`n_begun`, `n_whole`, `n_cut` count requests with a body; `listeners` are the event streams that are open."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[Asked] = []
        self.n_begun = self.n_whole = self.n_cut = 0
        self.listeners: list[str] = []
        self.uploads: dict[str, list[str]] = {}

    def count(self, target: str) -> int:
        return sum(each.target == target for each in self.asked)

    def field(self, target: str, name: str) -> str | None:
        """Of the last request for `target`."""
        return next(each for each in reversed(self.asked) if each.target == target).fields.get(name)

    async def _passed(self, name: str) -> None:
        await self._gate(name).wait()
        self._gate(name).clear()

    # -- reading -------------------------------------------------------------------------------------------------------

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.CancelledError, h11.RemoteProtocolError):
            while await Exchange(self, reader, writer).run():
                pass
        writer.close()


class Exchange:
    """One request and its answer."""

    def __init__(self, portal: Portal, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.portal, self.reader, self.writer = portal, reader, writer
        self.parser = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
        self.asked: Asked

    async def run(self) -> bool:
        """False: the connection is over."""
        if not await self._head():
            return False
        path = self.asked.target.partition("?")[0].strip("/").split("/")
        handler = getattr(self, f"do_{path[0].replace('-', '_')}", None)
        if handler is None:
            await self._body()
            self.send(404, b"no such page")
            return True
        return await handler(*path[1:]) is not False

    async def _event(self) -> object:
        while True:
            event = self.parser.next_event()
            if event is not h11.NEED_DATA:
                return event
            data = await self.reader.read(262144)
            self.parser.receive_data(data)

    async def _head(self) -> bool:
        event = await self._event()
        if not isinstance(event, h11.Request):
            return False
        fields = {name.decode().lower(): value.decode("latin-1") for name, value in event.headers.raw_items()}
        self.asked = Asked(event.method.decode(), event.target.decode("latin-1"), fields, event.http_version)
        self.portal.asked.append(self.asked)
        return True

    async def _body(self, *, keep: bool = True) -> None:
        """All of it. Counts how it ended; raises ConnectionError where it did not."""
        has_body = self.asked.fields.get("content-length", "0") != "0" or "transfer-encoding" in self.asked.fields
        self.portal.n_begun += has_body
        try:
            while True:
                event = await self._event()
                if isinstance(event, h11.Data):
                    self._take(bytes(event.data), keep)
                elif isinstance(event, h11.EndOfMessage):
                    self.portal.n_whole += has_body
                    return
                else:
                    raise ConnectionError("the request broke off")
        except (ConnectionError, h11.RemoteProtocolError):
            self.portal.n_cut += has_body
            raise ConnectionError from None

    def _take(self, data: bytes, keep: bool) -> None:
        self.asked.n_bytes += len(data)
        if keep:
            self.asked.body.update(data)
            if len(self.asked.data) < 65536:
                self.asked.data += data

    # -- answering -----------------------------------------------------------------------------------------------------

    def send(self, status: int, body: bytes = b"", *lines: str) -> None:
        head = f"HTTP/1.1 {status} Some\r\n" + "".join(f"{line}\r\n" for line in lines)
        if status != 204:
            head += f"Content-Length: {len(body)}\r\n"
        self.writer.write(head.encode() + b"\r\n" + (b"" if self.asked.method == "HEAD" else body))

    async def do_echo(self, *rest: str) -> None:
        await self._body()
        self.send(200, f"{self.asked.method} {self.asked.body.hexdigest()} {self.asked.n_bytes}".encode())

    async def do_count(self) -> None:
        await self._body(keep=False)
        self.send(200, f"{self.asked.method} {self.asked.n_bytes}".encode())

    async def do_expect(self) -> None:
        self.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        await self.do_echo()

    async def do_refuse(self) -> bool:
        self.send(403, b"refused", "Connection: close")
        await self.writer.drain()
        return False

    async def do_hints(self) -> None:
        await self._body()
        self.writer.write(b"HTTP/1.1 102 Processing\r\nConnection: x-hop\r\nX-Hop: 1\r\n\r\n")
        self.writer.write(b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\nKeep-Alive: x\r\n\r\n")
        self.send(200, b"page", "Cache-Control: max-age=60")

    async def do_mirror(self) -> bool:
        self.writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while isinstance(event := await self._event(), h11.Data):
            self.writer.write(b"%x\r\n%b\r\n" % (len(event.data), event.data))
        self.writer.write(b"0\r\n\r\n")
        return isinstance(event, h11.EndOfMessage)

    async def do_stored(self) -> None:
        """Cacheable, in two languages; other methods are answered as their X- fields say."""
        await self._body()
        if self.asked.method in ("GET", "HEAD"):
            self.send(200, self.asked.target.encode(), "Cache-Control: max-age=60", "Vary: Accept-Language")
            return
        lines = [
            f"{name}: {self.asked.fields[f'x-{name.lower()}']}"
            for name in ("Location", "Content-Location")
            if f"x-{name.lower()}" in self.asked.fields
        ]
        self.send(int(self.asked.fields.get("x-status", "200")), b"", *lines)

    # -- the portal ----------------------------------------------------------------------------------------------------

    @property
    def user(self) -> str | None:
        cookies = dict(
            each.strip().partition("=")[::2] for each in self.asked.fields.get("cookie", "").split(";") if each
        )
        session = cookies.get("session", "")
        return next((user for user in USERS if session == f"of-{user}"), None)

    async def do_login(self) -> None:
        await self._body()
        if self.asked.method != "POST":
            self.send(200, b"<form method=post><input name=user><input name=password type=password></form>")
            return
        form = parse_qs(self.asked.data.decode())
        user = form.get("user", [""])[0]
        if USERS.get(user) != form.get("password", [""])[0]:
            self.send(403, b"wrong user or password")
            return
        self.send(
            302, b"", f"Set-Cookie: session=of-{user}; HttpOnly; Path=/", "Set-Cookie: theme=dark",
            "Location: /home?from=login",
        )  # fmt: skip

    async def do_home(self) -> None:
        await self._body()
        if self.user is None:
            self.send(302, b"", "Location: /login")
        else:
            files = " ".join(self.portal.uploads.get(self.user, ()))
            self.send(200, f"welcome {self.user}: {files}".encode(), "Content-Type: text/html")

    async def do_upload(self) -> None:
        await self._body()
        if self.user is None:
            self.send(401, b"log in", 'WWW-Authenticate: Basic realm="portal"')
        else:
            self.portal.uploads.setdefault(self.user, []).append(self.asked.body.hexdigest()[:8])
            self.send(303, b"", "Location: /home")

    async def do_logout(self) -> None:
        await self._body()
        self.send(302, b"", "Set-Cookie: session=gone; HttpOnly; Path=/", "Location: /login")

    # -- what stays open -----------------------------------------------------------------------------------------------

    async def do_events(self, name: str, form: str = "chunked") -> bool:
        """An event each time that the gate `name` opens, until `name-end` does; `listeners` names who listens."""
        await self._body()
        framing = "Transfer-Encoding: chunked\r\n" if form == "chunked" else "Connection: close\r\n"
        head = f"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache\r\n{framing}\r\n"
        self.writer.write(head.encode())
        self.portal.listeners.append(name)
        gone = asyncio.ensure_future(self.reader.read(1))
        end = asyncio.ensure_future(self.portal._passed(f"{name}-end"))
        n = 0
        try:
            while True:
                event = asyncio.ensure_future(self.portal._passed(name))
                await asyncio.wait({gone, end, event}, return_when=asyncio.FIRST_COMPLETED)
                if not event.done():
                    event.cancel()
                    break
                data = f"id: {n}\ndata: event {n} of {name}\n\n".encode()
                self.writer.write(b"%x\r\n%b\r\n" % (len(data), data) if form == "chunked" else data)
                n += 1
            if end.done() and form == "chunked":
                self.writer.write(b"0\r\n\r\n")
        finally:
            self.portal.listeners.remove(name)
            gone.cancel()
            end.cancel()
        return False

    async def do_poll(self, name: str) -> None:
        """Answered when the gate `name` opens."""
        await self._body()
        self.portal.listeners.append(name)
        try:
            await self.portal._passed(name)
        finally:
            self.portal.listeners.remove(name)
        self.send(200, b"news", "Cache-Control: no-store")
