"""How much CPU time does a hit cost over TLS 1.3, and a handshake, beside nginx? Playlist and segment of hits.py.

Both have the same certificate (ECDSA P-256) and agree on the same cipher and group, which is checked before anything
counts; nginx reads files or sends them, the cheaper one is the peer. `handshakes.c` comes and goes, each time for one
playlist: with a full handshake, and with the ticket of the time before. What AES-128-GCM alone takes is printed beside.
Run: .venv/bin/python benchmarks/tls.py [--rounds N] [--seconds S] [--only hits|handshakes]
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import re
import resource
import socket
import ssl
import subprocess
import time

import measure
import servers
from hits import ROUNDS, SECONDS, Case
from http2 import show
from measure import Failure, Run
from origin import body_of

CIPHER = ("TLS_AES_128_GCM_SHA256", "TLSv1.3", 128)
PLAYLIST = "/vod-2700.m3u8"
CASES = (
    Case("2.7 KB playlist, 100 connections, TLS 1.3", PLAYLIST, 100, {"nginx": 1 / 1.3}),
    Case("1 MB segment, 50 connections, TLS 1.3", "/segment-1048576.m4s", 50, {"nginx": 1 / 1.2}),
)


def head_of(path: str, peer: servers.Server) -> str:
    """Bytes of the response head; "failed: …" where a server doesn't agree on our cipher or sends other bytes."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with (
            socket.create_connection(("127.0.0.1", peer.tls_port), timeout=30) as plain,
            context.wrap_socket(plain, server_hostname="bench") as s,
        ):
            if s.cipher() != CIPHER:
                return f"failed: {s.cipher()}"
            s.sendall(f"GET {path} HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n".encode())
            data = b"".join(iter(lambda: s.recv(65536), b""))
    except OSError as problem:
        return f"failed: {problem}"
    head, _, body = data.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200 ") or hashlib.sha256(body).digest() != hashlib.sha256(body_of(path)).digest():
        return f"failed: other bytes: {head[:40]!r}"
    return str(len(head) + 4)


def handshakes(peer: servers.Server, kind: str, seconds: int) -> Run | Failure:
    command = [
        measure.compiled("handshakes", "-lssl", "-lcrypto"), str(peer.tls_port), str(seconds), kind, PLAYLIST,
        str(len(body_of(PLAYLIST))),
    ]  # fmt: skip
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    before, busy = measure.cpu_s(peer.pids), measure.busy_s({measure.SERVER_CPU, measure.LOAD_CPU})
    begin = time.monotonic()
    done = subprocess.run(
        measure.pin(command, measure.LOAD_CPU), capture_output=True, text=True, timeout=seconds + 30, check=False
    )
    elapsed_s = time.monotonic() - begin
    server_cpu_s = measure.cpu_s(peer.pids) - before
    busy = measure.busy_s({measure.SERVER_CPU, measure.LOAD_CPU}) - busy
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    load_cpu_s = after.ru_utime + after.ru_stime - children.ru_utime - children.ru_stime
    if done.returncode != 0:
        return Failure((done.stderr or "handshakes").strip().splitlines()[-1])
    found = json.loads(done.stdout)
    if found["errors"] or not found["connections"]:
        return Failure(f"{found['errors']} of {found['connections'] + found['errors']} connections failed")
    others_s = max(0.0, busy - server_cpu_s - load_cpu_s)
    return Run(found["connections"], elapsed_s, server_cpu_s, load_cpu_s, others_s)


def floor() -> None:
    """What one core takes to seal 1 MiB in records of 16 KiB: no server over TLS can cost less."""
    command = ["openssl", "speed", "-seconds", "1", "-bytes", "16384", "-evp", "aes-128-gcm"]
    done = subprocess.run(measure.pin(command, measure.SERVER_CPU), capture_output=True, text=True, check=False)
    found = re.search(r"^AES-128-GCM\s+([\d.]+)k", done.stdout, re.MULTILINE | re.IGNORECASE)
    if found:
        bytes_per_s = float(found[1]) * 1000
        mib_us = 2**20 / bytes_per_s * 1e6
        print(f"AES-128-GCM alone (openssl speed): {bytes_per_s / 1e9:.2f} GB/s, {mib_us:.0f} µs/MiB")


def main(rounds: int = ROUNDS, seconds: int = SECONDS, only: str | None = None) -> None:
    if absent := measure.missing("wrk", "nginx", "taskset", "gcc", "openssl"):
        print(f"tls: not measured, not installed: {absent}")
        return
    measure.allow_many_files(65536)
    files = {case.path: body_of(case.path) for case in CASES}
    print(f"{rounds} windows of {seconds} s each, the servers in turn; medians; one server core, one load core")
    print(f"ECDSA P-256, X25519, {CIPHER[1]} {CIPHER[0]}")
    floor()
    with contextlib.ExitStack() as stack:
        origin = stack.enter_context(servers.origin())
        tls = stack.enter_context(servers.certificate())
        peers = [
            stack.enter_context(servers.box(origin.port, tls=tls)),
            stack.enter_context(servers.nginx_files(files, True, tls=tls)),
            stack.enter_context(servers.nginx_files(files, False, tls=tls)),
        ]
        for case in CASES if only != "handshakes" else ():
            heads = {peer.name: head_of(case.path, peer) for peer in peers}
            found: dict[str, list[Run | Failure]] = {peer.name: [] for peer in peers}
            for peer in peers:
                measure.wrk(peer.tls_url(case.path), case.connections, 1, peer.pids)
            for _ in range(rounds):
                for peer in peers:
                    found[peer.name].append(measure.wrk(peer.tls_url(case.path), case.connections, seconds, peer.pids))
            show(f"{case.title} ({case.path})", found, case.targets["nginx"], heads)
        for kind in ("full", "resumed") if only != "hits" else ():
            heads = {peer.name: head_of(PLAYLIST, peer) for peer in peers}
            found = {peer.name: [] for peer in peers}
            for _ in range(rounds):
                for peer in peers:
                    found[peer.name].append(handshakes(peer, kind, seconds))
            show(f"connect, {kind} handshake, one 2.7 KB playlist, close: one after the other", found, 1.0, heads)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--seconds", type=int, default=SECONDS)
    parser.add_argument("--only", choices=["hits", "handshakes"])
    arguments = parser.parse_args()
    main(arguments.rounds, arguments.seconds, arguments.only)
