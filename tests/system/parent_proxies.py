"""Parent proxies as peers: squid, tinyproxy and nginx from Debian, and a strict one that notes every byte of a request.
Test support, no test."""

from __future__ import annotations

import asyncio
import base64
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

LOGIN = "branch:pa ss:é"
AUTHORIZATION = b"Basic " + base64.b64encode(LOGIN.encode())

_SQUID = """
http_port 127.0.0.1:{port}
cache deny all
pid_filename none
access_log none
cache_log {folder}/cache.log
coredump_dir {folder}
shutdown_lifetime 0 seconds
visible_hostname squid.example
via on
{login}
http_access {who}
"""
_TINYPROXY = """
Listen 127.0.0.1
Port {port}
Timeout 60
MaxClients 50
LogLevel Warning
{login}
"""
# It opens no tunnels (CONNECT), and asks nobody for an address that stands there.
_NGINX = """
daemon off; master_process off; pid {folder}/pid; error_log stderr error;
events {{}}
http {{
    access_log off; proxy_temp_path {folder}/temporary; client_body_temp_path {folder}/bodies;
    map $http_host $origin_port {{ ~:(?<port>[0-9]+)$ $port; }}
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://127.0.0.1:$origin_port$request_uri;
            proxy_http_version 1.1; proxy_set_header Host $http_host; proxy_buffering off;
        }}
    }}
}}
"""


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextmanager
def running_peer(command: list[str], port: int, user: str | None = None) -> Iterator[int]:
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, user=user, group=user)
        try:
            ends = time.monotonic() + 20
            while True:
                with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                    break
                if process.poll() is not None or time.monotonic() > ends:
                    output.seek(0)
                    raise RuntimeError(f"{command[0]} does not listen: {output.read().decode(errors='replace')}")
                time.sleep(0.01)
            yield port
        finally:
            process.kill()
            process.wait(10)


@contextmanager
def nginx() -> Iterator[int]:
    """Its port: it passes requests in absolute-form on to the port of 127.0.0.1 that their Host names."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="nginx-") as folder:
        configuration = Path(folder) / "nginx.conf"
        configuration.write_text(_NGINX.format(port=port, folder=folder))
        with running_peer(["nginx", "-c", str(configuration), "-p", folder], port):
            yield port


@contextmanager
def squid(login: str | None = None) -> Iterator[int]:
    """Its port. `login`: USER:PASSWORD that it asks for."""
    folder = Path(tempfile.mkdtemp(prefix="squid-"))
    port = free_port()
    user = None
    lines, who = "", "allow all"
    if login is not None:
        name, _, password = login.partition(":")
        done = subprocess.run(["openssl", "passwd", "-apr1", password], capture_output=True, text=True, check=True)
        (folder / "users").write_text(f"{name}:{done.stdout}")
        lines = (
            f"auth_param basic program /usr/lib/squid/basic_ncsa_auth {folder}/users\n"
            "auth_param basic children 1\nauth_param basic utf8 off\nacl known proxy_auth REQUIRED"
        )
        who = "allow known\nhttp_access deny all"
    (folder / "squid.conf").write_text(_SQUID.format(port=port, folder=folder, login=lines, who=who))
    if os.geteuid() == 0:  # squid does not run as root
        user = "proxy"
        for path in (folder, *folder.iterdir()):
            os.chown(path, pwd.getpwnam(user).pw_uid, pwd.getpwnam(user).pw_gid)
    try:
        with running_peer(["squid", "-N", "-f", str(folder / "squid.conf")], port, user):
            yield port
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def tinyproxy(login: str | None = None) -> Iterator[int]:
    """Its port. `login`: USER:PASSWORD that it asks for."""
    folder = Path(tempfile.mkdtemp(prefix="tinyproxy-"))
    port = free_port()
    lines = "" if login is None else "BasicAuth {} {}".format(*login.split(":", 1))
    (folder / "tinyproxy.conf").write_text(_TINYPROXY.format(port=port, login=lines))
    try:
        with running_peer(["tinyproxy", "-d", "-c", str(folder / "tinyproxy.conf")], port):
            yield port
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class StrictProxy:
    """Takes CONNECT and absolute-form only, Host equal to the target's authority, and each one's log-in. Whatever name
    is asked for, it goes to 127.0.0.1 and the port in the request. `answer`: sent instead to each request.

    `says_keep_alive`: its answers say so, and it reads on (responses with Content-Length only); else one request each.
    """

    def __init__(
        self, authorization: bytes | None = None, answer: bytes | None = None, says_keep_alive: bool = False
    ) -> None:
        self.port = 0
        self.heads: list[bytes] = []
        self.n_connections = 0
        self._authorization = authorization
        self._says_keep_alive = says_keep_alive
        self.answer = answer
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, port: int = 0) -> StrictProxy:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.n_connections += 1
        try:
            while await self._serve(await reader.readuntil(b"\r\n\r\n"), reader, writer):
                pass
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _serve(self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        self.heads.append(head)
        method, target, version = head.split(b"\r\n")[0].split(b" ")
        fields = [line.split(b": ", 1) for line in head.split(b"\r\n")[1:-2]]
        assert version == b"HTTP/1.1"
        log_ins = [value for name, value in fields if name.lower() == b"proxy-authorization"]
        if self.answer is not None:
            writer.write(self.answer)
            await reader.read()
            return False
        if self._authorization is not None and log_ins != [self._authorization]:
            writer.write(b"HTTP/1.1 407 Log in\r\nProxy-Authenticate: Basic realm=\"x\"\r\nContent-Length: 0\r\n\r\n")
            return True
        hosts = [value for name, value in fields if name.lower() == b"host"]
        if method == b"CONNECT":
            authority, rest = target, b""
        else:
            assert target.startswith(b"http://"), target
            authority, slash, rest = target.removeprefix(b"http://").partition(b"/")
            rest = slash + rest
        assert hosts == [authority], (hosts, target)
        try:
            there = await asyncio.open_connection("127.0.0.1", int(authority.rpartition(b":")[2]))
        except OSError:
            writer.write(b"HTTP/1.1 503 No way\r\nContent-Length: 0\r\n\r\n")
            return True
        if method == b"CONNECT":
            writer.write(b"HTTP/1.1 200 Yes\r\n\r\n")
        else:
            kept = [b": ".join(field) for field in fields if field[0].lower() != b"proxy-authorization"]
            there[1].write(b"\r\n".join([b"%b %b HTTP/1.1" % (method, rest), *kept, b"", b""]))
            if self._says_keep_alive:
                answer = await there[0].readuntil(b"\r\n\r\n")
                length = next(
                    int(line[16:]) for line in answer.split(b"\r\n") if line.lower().startswith(b"content-length: ")
                )
                writer.write(answer[:-2] + b"Connection: Keep-Alive\r\n\r\n" + await there[0].readexactly(length))
                there[1].close()
                return True
        await asyncio.gather(self._pump(reader, there[1]), self._pump(there[0], writer))
        return False

    @staticmethod
    async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        with suppress(OSError):
            writer.close()
