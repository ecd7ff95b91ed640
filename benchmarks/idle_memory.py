"""What does a viewer cost who only stays connected? Process memory per idle keep-alive connection, 10,000 of them, and
over TLS 2,000 (the load's own memory is the limit).

Each connection has had one answer (2.7 KB) before it idles, so that what a request leaves behind counts. Memory is the
proportional set size (smaps_rollup) of all the server's processes; the kernel's own socket memory is not in it.
Run: .venv/bin/python benchmarks/idle_memory.py [--connections N]
"""

from __future__ import annotations

import argparse
import contextlib
import socket
import ssl
import time

import measure
import servers
from origin import body_of

CONNECTIONS = 10_000
WARM_UP = 100
TLS_CONNECTIONS = 2000
TARGET_BYTES = 2048
# What ext/tls.pyx counts for one against the memory limit (TLS_BYTES).
TLS_COUNTED_BYTES = 16384
PATH = "/vod-2700.m3u8"


def settled_pss(pids: list[int]) -> int:
    """Memory once two looks 0.2 s apart agree within 64 KiB, or after 3 s."""
    found = measure.pss_bytes(pids)
    for _ in range(15):
        time.sleep(0.2)
        before, found = found, measure.pss_bytes(pids)
        if abs(found - before) < 65536:
            break
    return found


def unverified() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def open_idle(port: int, n: int, tls: ssl.SSLContext | None, stack: contextlib.ExitStack) -> None:
    """`n` connections that have each had one whole answer. OSError, ValueError when one hasn't."""
    request = f"GET {PATH} HTTP/1.1\r\nHost: bench\r\n\r\n".encode()
    body = body_of(PATH)
    for _ in range(n):
        connection = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10))
        if tls:
            connection = stack.enter_context(tls.wrap_socket(connection, server_hostname="bench"))
        connection.sendall(request)
        data = b""
        while not (data.endswith(body) and b"\r\n\r\n" in data):
            piece = connection.recv(65536)
            if not piece:
                raise ValueError("closed before the whole answer")
            data += piece
        if not data.startswith(b"HTTP/1.1 200 "):
            raise ValueError(data[:60].decode("latin-1"))


def is_open(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        return connection.recv(1) != b""
    except BlockingIOError:
        return True


def row(server: servers.Server, n: int, is_tls: bool = False) -> tuple[list[str], float | None]:
    port, tls = (server.tls_port, unverified()) if is_tls else (server.port, None)
    with contextlib.ExitStack() as stack:
        try:
            measure.get(server.port, PATH)
            with contextlib.ExitStack() as warm_up:
                open_idle(port, WARM_UP, tls, warm_up)
            before = settled_pss(server.pids)
            open_idle(port, n, tls, stack)
            after = settled_pss(server.pids)
        except (OSError, ValueError, KeyError) as problem:
            return [server.name, f"failed: {problem}"], None
    per_connection = (after - before) / n
    return [server.name, f"{before / 2**20:.1f}", f"{after / 2**20:.1f}", f"{per_connection:,.0f}"], per_connection


def main(n: int = CONNECTIONS) -> None:
    if absent := measure.missing("nginx", "taskset"):
        print(f"idle_memory: not measured, not installed: {absent}")
        return
    limit = measure.allow_many_files(65536)
    if limit < n + 200:
        print(f"  only {limit} open files are allowed: {limit - 200} connections instead of {n}")
        n = limit - 200
    print(f"{n:,} idle keep-alive connections, each after one answer")
    rows = []
    with servers.origin() as origin:
        with servers.box(origin.port) as box:
            line, ours = row(box, n)
            rows.append(line)
        with servers.nginx_cache(origin.port) as nginx:
            rows.append(row(nginx, n)[0])
    measure.table(["server", "MiB before", "MiB with them", "bytes/connection"], rows)
    if ours is not None:
        answer = measure.reached(ours <= TARGET_BYTES)
        print(f"  bytes per idle connection: {ours:,.0f}: {answer} (at most {TARGET_BYTES:,})")
    over_tls(min(n, TLS_CONNECTIONS))


def over_tls(n: int) -> None:
    print(f"\n{n:,} idle keep-alive connections over TLS 1.3, each after one answer")
    with servers.origin() as origin, servers.certificate() as tls:
        with servers.box(origin.port, tls=tls) as box:
            line, ours = row(box, n, True)
        with servers.nginx_cache(origin.port, tls) as nginx:
            other, theirs = row(nginx, n, True)
    measure.table(["server", "MiB before", "MiB with them", "bytes/connection"], [line, other])
    if ours is not None and theirs is not None:
        answer = measure.reached(ours <= theirs)
        print(f"  bytes per idle connection, ours / nginx: {ours / theirs:.2f}: {answer} (at most 1)")
        print(f"  counted against cache.memory: {TLS_COUNTED_BYTES:,}: {measure.reached(ours <= TLS_COUNTED_BYTES)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--connections", type=int, default=CONNECTIONS)
    main(parser.parse_args().connections)
