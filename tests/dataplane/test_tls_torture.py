"""HTTP/1.1 over TLS tortured by the viewers and the control plane of test_socket_torture.py: what they hold the box to
without TLS holds over it, in each version, also where memory is short and sockets are full."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from plane_rig import Rig
from test_socket_torture import SECONDS, SEED, Client, Control
from tls_rig import rig_of
from torture_run import run_for


@pytest.mark.timeout(120 + 2 * SECONDS)
@pytest.mark.parametrize(("memory", "kind"), [(4 << 20, "tls-1.3"), (64 << 20, "tls-1.2")], ids=["tight", "wide-1.2"])
def test_viewers_over_tls(rigs: Callable[..., Rig], memory: int, kind: str) -> None:
    print(f"seed {SEED}")
    rig = rig_of(rigs, kind, workers=2, memory=memory, slice_bytes=8192, send_bytes=16384)
    control = Control(rig, SEED)
    clients = [Client(rig, SEED + i) for i in range(1, 7)]
    run_for(SECONDS / 2, control, clients)
    control.bodies.clear()
    figures = {name: n for name, n in rig.plane.totals().items() if n}
    print(sum(client.n_replies for client in clients), sum(client.n_resets for client in clients), figures)
    assert sum(client.n_replies for client in clients) > 50
    assert {"hits", "misses", "tls_handshakes"} <= figures.keys()
    assert "tls_broken" not in figures
    rig.check_counters()
