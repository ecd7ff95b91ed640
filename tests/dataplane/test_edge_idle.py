"""What idle keep-alive connections cost: at most 2 KiB of process memory each, and none of it when they are gone."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Callable

import pytest
from plane_rig import Rig, wait_until

N = 10_000
BUDGET_BYTES = 2048
# A process of its own, so that its sockets are not counted as ours.
VIEWERS = """
import socket, sys
port, n = int(sys.argv[1]), int(sys.argv[2])
request = b"GET /x HTTP/1.1\\r\\nHost: a\\r\\nUser-Agent: " + b"u" * 400 + b"\\r\\n\\r\\n"
open_sockets = []
for i in range(n):
    s = socket.create_connection(("127.0.0.1", port))
    s.sendall(request)
    open_sockets.append(s)
    if i % 100 == 99:
        for s in open_sockets[-100:]:
            data = b""
            while not data.endswith(b"body"):
                data += s.recv(4096)
print("ready", flush=True)
sys.stdin.readline()
for s in open_sockets:
    s.sendall(request)
for s in open_sockets:
    assert s.recv(4096).endswith(b"body")
print("again", flush=True)
sys.stdin.readline()
"""


def resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(
    resource.getrlimit(resource.RLIMIT_NOFILE)[0] < N + 1000, reason=f"needs {N + 1000} open files (ulimit -n)"
)
@pytest.mark.skipif("ACCELERATOR_EXT_MUST_BE_IN" in os.environ, reason="sanitizers take memory of their own")
def test_idle_connections_are_cheap(rigs: Callable[..., Rig]) -> None:
    rig = rigs(workers=2)
    rig.store("/x", b"body")
    warm = rig.viewer()
    assert warm.get().body == b"body"
    before = resident_bytes()
    command = [sys.executable, "-c", VIEWERS, str(rig.address[1]), str(N)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as viewers:
        assert viewers.stdin is not None
        assert viewers.stdout is not None
        assert viewers.stdout.readline() == "ready\n"
        idle = resident_bytes() - before
        outside = rig.plane.memory["outside"]
        viewers.stdin.write("\n")
        viewers.stdin.flush()
        assert viewers.stdout.readline() == "again\n"
        used = resident_bytes() - before
        figures = f"{idle / N:.0f} B resident, {outside / N:.0f} B counted, {used / N:.0f} B after use"
        print("per idle connection:", figures)
        assert idle / N <= BUDGET_BYTES
        assert used / N <= BUDGET_BYTES
        viewers.communicate("\n")
    wait_until(lambda: rig.plane.n_connections == 1)
    warm.close()
    wait_until(lambda: rig.plane.memory["outside"] == 0)
