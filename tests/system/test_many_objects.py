"""`cache ls` and `top` of a box with 100,000 stored objects: quick, the control loop free, viewers undisturbed."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import threading
import time
from pathlib import Path

import pytest
from parent_proxies import free_port, running_peer
from running_box import HOST, RunningBox, policy_for, wait_for

N_OBJECTS = 100_000
NGINX = """
daemon off; master_process off; worker_processes 1; pid {folder}/pid; error_log stderr crit;
events {{ worker_connections 512; }}
http {{
  access_log off; keepalive_requests 10000000;
  server {{
    listen 127.0.0.1:{port};
    location / {{ default_type text/plain; add_header Cache-Control "max-age=86400"; return 200 "a small object\\n"; }}
  }}
}}
"""


async def fill(address: tuple[str, int], n: int, n_connections: int = 48) -> None:
    """Asks for /N/objectN?token=canaryN, n times, over so many connections."""
    numbers = iter(range(n))

    async def ask() -> None:
        reader, writer = await asyncio.open_connection(*address)
        for number in numbers:
            path = f"/{number % 97}/object{number}?token=canary{number}"
            writer.write(f"GET {path} HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200"), head
            await reader.readexactly(15)
        writer.close()

    await asyncio.gather(*(ask() for _ in range(n_connections)))


class Pulse:
    """Asks again and again in a thread, and keeps the longest answer: of a loop that does nothing else, its stall."""

    def __init__(self, ask: object) -> None:
        self.longest_s = 0.0
        self.n = 0
        self._ask = ask
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Pulse:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ends.wait(0.002):
            begun = time.monotonic()
            self._ask()  # type: ignore[operator]
            self.longest_s = max(self.longest_s, time.monotonic() - begun)
            self.n += 1


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is not installed")
def test_a_hundred_thousand_objects(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    port = free_port()
    (tmp_path / "nginx.conf").write_text(NGINX.format(folder=tmp_path, port=port))
    nginx = ["nginx", "-p", str(tmp_path), "-c", str(tmp_path / "nginx.conf")]
    policy = policy_for(f"http://127.0.0.1:{port}", cache={"memory": "1GiB"})
    with running_peer(nginx, port), RunningBox(tmp_path, policy) as box:
        begun = time.monotonic()
        asyncio.run(fill(box.address(), N_OBJECTS))
        wait_for(lambda: box.stats()["objects"] == N_OBJECTS)
        figures = [f"filled in {time.monotonic() - begun:.0f} s"]
        control = socket.socket(socket.AF_UNIX)
        control.connect(str(box.state / "control.sock"))

        def ask_status() -> None:
            control.sendall(b'{"command":"status"}\n')
            while not control.recv(1 << 16).endswith(b"\n"):
                pass

        viewer = box.connect()

        def ask_hit() -> None:
            assert box.get_on(viewer, "/1/object1?token=canary1").status == 200

        def ask_miss() -> None:
            assert box.get(f"/new/{time.monotonic_ns()}").status == 200

        commands = {
            "ls": ["cache", "ls"],
            "ls by size, page 500": ["cache", "ls", "--sort", "size", "--offset", "50000", "--limit", "500"],
            "ls filtered": ["cache", "ls", "--contains", "/96/object9", "--sort", "ttl"],
            "ls 10,000 rows, json": ["--json", "cache", "ls", "--limit", "10000"],
            "ls --prefix": ["cache", "ls", "--prefix", f"http://{HOST}/42/"],
            "top": ["top", "--once", "--interval", "0.1"],
        }
        with Pulse(ask_status) as quiet:
            time.sleep(2)
        figures.append(f"quiet: longest control answer {quiet.longest_s * 1000:.1f} ms of {quiet.n}")
        for name, arguments in commands.items():
            with Pulse(ask_status) as pulse, Pulse(ask_hit) as hits, Pulse(ask_miss) as misses:
                begun = time.monotonic()
                shown = box.accelctl(*arguments)
                took_s = time.monotonic() - begun
            assert shown.returncode == 0, shown.stderr
            assert "canary" not in shown.stdout
            figures.append(
                f"{name}: {took_s:.2f} s with accelctl's start; longest control answer {pulse.longest_s * 1000:.1f} ms "
                f"of {pulse.n}, hit {hits.longest_s * 1000:.1f} ms, miss {misses.longest_s * 1000:.1f} ms"
            )
            assert took_s < 10
            # The contract is 50 ms; a shared machine with two cores gets more room.
            assert pulse.longest_s < 0.5, figures
        listing = json.loads(box.accelctl("--json", "cache", "ls", "--contains", "object99999").stdout)
        assert listing["total"] == len(listing["objects"]) == 1
        with capsys.disabled():
            print("\n" + "\n".join(figures))
