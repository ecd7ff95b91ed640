"""The servers under measurement, started from nothing: our daemon, nginx from Debian, configured well, the origin.

Each is a context manager that yields a `Server`, bound to SERVER_CPU, and ends what it started by its process id.
No figure is taken here.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import measure

NGINX = "/usr/sbin/nginx"
VARNISH = "/usr/sbin/varnishd"
START_LIMIT_S = 20.0
SEND_BUFFER_BYTES = 256 << 10  # as accelerator/dataplane.py sets it


@dataclass(frozen=True)
class Server:
    """A running server: where it listens, without TLS and with it (0: it doesn't), and its first process."""

    name: str
    port: int
    pid: int
    tls_port: int = 0

    @property
    def pids(self) -> list[int]:
        """Whose CPU time and memory are its own, now: nginx's cache loader ends after a minute."""
        return measure.tree(self.pid)

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def tls_url(self, path: str) -> str:
        return f"https://127.0.0.1:{self.tls_port}{path}"


@contextlib.contextmanager
def certificate() -> Iterator[Path]:
    """A folder with site.crt and site.key, signed by itself: ECDSA P-256, which is what `accelctl csr` makes."""
    with tempfile.TemporaryDirectory(prefix="bench-tls-") as folder:
        subprocess.run(
            [
                "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
                "-days", "2", "-subj", "/CN=bench", "-addext", "subjectAltName=DNS:bench",
                "-keyout", f"{folder}/site.key", "-out", f"{folder}/site.crt",
            ], check=True, capture_output=True,
        )  # fmt: skip
        yield Path(folder)


@contextlib.contextmanager
def running(command: Sequence[str], port: int, probe: str, cpu: int | None) -> Iterator[subprocess.Popen[bytes]]:
    """A process that answers GET `probe` with 200, until the block ends. RuntimeError with its output if it doesn't."""
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            measure.pin(command, cpu) if cpu is not None else command,
            stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=measure.ROOT,
        )  # fmt: skip
        try:
            limit = time.monotonic() + START_LIMIT_S
            while True:
                with contextlib.suppress(OSError, ValueError, KeyError, IndexError):
                    if measure.get(port, probe)[0] == 200:
                        break
                if process.poll() is not None or time.monotonic() > limit:
                    output.seek(0)
                    text = output.read().decode(errors="replace").strip()
                    raise RuntimeError(f"{' '.join(command)}: {text[-600:] or 'does not answer'}")
                time.sleep(0.02)
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextlib.contextmanager
def origin(rate_bps: float = 50e6, round_trip_s: float = 0.0) -> Iterator[Server]:
    """benchmarks/origin.py, on the load's core: it is no part of what is measured."""
    port = measure.free_port()
    script = str(measure.ROOT / "benchmarks" / "origin.py")
    command = [sys.executable, script, str(port), str(rate_bps), str(round_trip_s)]
    with running(command, port, "/count?-", measure.LOAD_CPU) as process:
        yield Server("origin", port, process.pid)


def times_asked(origin_server: Server, path: str) -> int:
    """How often the origin was asked for `path`."""
    return int(measure.get(origin_server.port, f"/count?{path}")[2])


@contextlib.contextmanager
def box(origin_port: int, memory: str = "512MiB", disk: str = "", tls: Path | None = None) -> Iterator[Server]:
    """Our daemon with one edge worker, as `acceleratord --policy … --state-dir …` starts it. `tls`: certificate()'s."""
    port = measure.free_port()
    tls_port = measure.free_port() if tls else 0
    listen = f'bench: {{address: "127.0.0.1:{port}", http2: cleartext}}'
    if tls:
        listen += f', tls: {{address: "127.0.0.1:{tls_port}", tls: site}}'
    with tempfile.TemporaryDirectory(prefix="bench-box-") as folder:
        policy = Path(folder, "policy.yaml")
        policy.write_text(
            f"""version: 1
site: {{name: bench}}
cache: {{memory: {memory}{f', disk: {{size: {disk}}}' if disk else ''}}}
listen: {{{listen}}}
workers: 1
origins: {{bench: {{from: ["http://127.0.0.1:{origin_port}"], hosts: ["*"]}}}}
limits: {{idle_timeout: 10m, head_timeout: 60s}}
"""
        )
        program = str(measure.ROOT / ".venv" / "bin" / "acceleratord")
        command = [program, "--policy", str(policy), "--state-dir", str(Path(folder, "state"))]
        command += ["--credentials", str(tls)] if tls else []
        with running(command, port, "/.well-known/accelerator/health", measure.SERVER_CPU) as process:
            yield Server("accelerator", port, process.pid, tls_port)


@contextlib.contextmanager
def plane(paths: Sequence[str], name: str = "accelerator", **settings: int) -> Iterator[Server]:
    """The data plane without control plane (plane_box.py, whose environment `settings` are)."""
    port = measure.free_port()
    script = str(measure.ROOT / "benchmarks" / "plane_box.py")
    command = ["env", *(f"{key}={value}" for key, value in settings.items()), sys.executable, script, str(port), *paths]
    with running(command, port, "/.well-known/accelerator/health", measure.SERVER_CPU) as process:
        yield Server(name, port, process.pid)


@contextlib.contextmanager
def bare_loop(body_bytes: int, name: str = "bare loop in C", spin_us: int = 0) -> Iterator[Server]:
    """bare_loop.c with our send buffer: the floor for one body size. Every path has the same bytes."""
    port = measure.free_port()
    spin = [str(spin_us)] if spin_us else []
    command = [measure.compiled("bare_loop"), str(port), str(body_bytes), str(SEND_BUFFER_BYTES), *spin]
    with running(command, port, "/", measure.SERVER_CPU) as process:
        yield Server(name, port, process.pid)


@contextlib.contextmanager
def bare_uring(body_bytes: int) -> Iterator[Server]:
    """bare_uring.c: the same by io_uring. RuntimeError where the kernel has none, or forbids it."""
    port = measure.free_port()
    command = [measure.compiled("bare_uring", "-luring"), str(port), str(body_bytes), str(SEND_BUFFER_BYTES)]
    with running(command, port, "/", measure.SERVER_CPU) as process:
        yield Server("io_uring in C", port, process.pid)


@contextlib.contextmanager
def nginx(
    name: str, location: str, http: str = "", connections: int = 20000, *, is_http2: bool = False,
    tls: Path | None = None,
) -> Iterator[Server]:  # fmt: skip
    """One worker of Debian's nginx. `location`: what stands in `location /`; FOLDER in both texts is its own folder.

    Logs off, keep-alive without end (the default closes after 1,000 requests), limits of descriptors out of the way.
    Everything else is Debian's default or nginx's own advice for static files. `tls`: what our own listeners agree on
    with every client that is measured, so that both encrypt the same."""
    port = measure.free_port()
    tls_port = measure.free_port() if tls else 0
    other = measure.free_port() if is_http2 else port  # a listener speaks either HTTP/1.1 or, without TLS, HTTP/2
    with tempfile.TemporaryDirectory(prefix="bench-nginx-") as folder:
        user = "user root;" if os.geteuid() == 0 else ""
        secure = (
            f"""listen 127.0.0.1:{tls_port} ssl {"http2" if is_http2 else ""} backlog=4096;
        ssl_certificate {tls}/site.crt;
        ssl_certificate_key {tls}/site.key;
        ssl_protocols TLSv1.2 TLSv1.3;
        ssl_conf_command Ciphersuites TLS_AES_128_GCM_SHA256;
        ssl_ecdh_curve X25519;
        ssl_session_timeout 4h;"""
            if tls
            else ""
        )
        config = Path(folder, "nginx.conf")
        config.write_text(
            f"""{user}
daemon off;
pid {folder}/nginx.pid;
error_log stderr crit;
worker_processes 1;
worker_rlimit_nofile {connections + 1000};
events {{ worker_connections {connections}; }}
http {{
    access_log off;
    sendfile on;
    tcp_nopush on;
    tcp_nodelay on;
    keepalive_timeout 600s;
    keepalive_requests 1000000000;
    reset_timedout_connection on;
    types {{ application/vnd.apple.mpegurl m3u8; video/iso.segment m4s; }}
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    {http.replace("FOLDER", folder)}
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        {f"listen 127.0.0.1:{other} http2 backlog=4096;" if is_http2 else ""}
        {secure}
        location = /probe {{ return 200 "ok"; }}
        location / {{ {location.replace("FOLDER", folder)} }}
    }}
}}
"""
        )
        command = [NGINX, "-p", folder, "-c", str(config), "-e", "stderr"]
        with running(command, port, "/probe", measure.SERVER_CPU) as process:
            yield Server(name, other, process.pid, tls_port)


@contextlib.contextmanager
def nginx_files(
    files: dict[str, bytes], is_sendfile: bool, *, is_http2: bool = False, tls: Path | None = None
) -> Iterator[Server]:
    """Files from the page cache, descriptors cached: by sendfile, or read and written, which costs less where they are
    small."""
    with tempfile.TemporaryDirectory(prefix="bench-files-") as folder:
        Path(folder).chmod(0o755)
        for path, body in files.items():
            target = Path(folder, path.lstrip("/"))
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(body)
        http = "open_file_cache max=1000 inactive=600s; open_file_cache_valid 600s;"
        how = "sendfile on;" if is_sendfile else "sendfile off; output_buffers 2 128k;"
        name = "nginx, sendfile" if is_sendfile else "nginx, read"
        location = f"root {folder}; {how} add_header Cache-Control max-age=86400;"
        with nginx(name, location, http, is_http2=is_http2, tls=tls) as server:
            yield server


@contextlib.contextmanager
def varnish(origin_port: int) -> Iterator[Server]:
    """Debian's Varnish, objects in memory, logging to its shared memory as by default; one pool of threads."""
    port = measure.free_port()
    with tempfile.TemporaryDirectory(prefix="bench-varnish-") as folder:
        Path(folder).chmod(0o755)
        vcl = Path(folder, "bench.vcl")
        vcl.write_text(
            f"""vcl 4.1;
backend default {{ .host = "127.0.0.1"; .port = "{origin_port}"; }}
sub vcl_recv {{ if (req.url == "/probe") {{ return (synth(200)); }} }}
sub vcl_backend_response {{ set beresp.ttl = 1d; }}
"""
        )
        command = [
            VARNISH, "-F", "-n", folder, "-f", str(vcl), "-a", f"127.0.0.1:{port}", "-s", "malloc,512m",
            "-p", "thread_pools=1", "-p", "thread_pool_min=200", "-p", "timeout_idle=600", "-T", "none",
        ]  # fmt: skip
        with running(command, port, "/probe", measure.SERVER_CPU) as process:
            yield Server("varnish", port, process.pid)


@contextlib.contextmanager
def nginx_cache(origin_port: int, tls: Path | None = None) -> Iterator[Server]:
    """proxy_cache, descriptors cached, concurrent misses collapsed."""
    http = (
        "open_file_cache max=1000 inactive=600s; open_file_cache_valid 600s;"
        "proxy_cache_path FOLDER/cache keys_zone=bench:10m max_size=2g inactive=1d use_temp_path=off;"
    )
    location = (
        f"proxy_pass http://127.0.0.1:{origin_port}; proxy_cache bench; proxy_cache_valid 200 1d; proxy_cache_lock on;"
        "proxy_cache_lock_timeout 60s; proxy_cache_lock_age 60s;"
        "proxy_http_version 1.1; proxy_set_header Connection '';"
        "add_header X-Cache-Status $upstream_cache_status;"
    )
    with nginx("nginx, proxy_cache", location, http, tls=tls) as server:
        yield server
