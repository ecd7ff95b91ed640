"""TLS listeners when there are too many: who is above a cap is told so over TLS while that is cheap, and is cut off
where it isn't; nothing that fails at the door is kept, or left uncounted."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest
from h2_rig import NO_ERROR, H2Viewer
from plane_rig import Rig, Viewer, wait_until
from tls_rig import authority, certificate, connect, server, tls_rig
from tls_wire import DATA, HANDSHAKE, KEY_UPDATE, KeyLog, Seal13, TlsSocket, message, seal_of

Rigs = Callable[..., Rig]
OFFERED = 1  # layout.pxd: HTTP/2 by ALPN
REFUSE, CALM = 3, 0  # protocols/overload.py
SURPLUS_MOST = 32  # accept.pyx
FAILURES = ("broken", "left", "plain", "refused", "slow", "suite", "version")


def full(rig: Rig, counter: str) -> None:
    """Makes the next connection one too many."""
    rig.store("/x", b"x")
    if counter == "refused_connections_overload":
        rig.plane.set_overload(REFUSE)
    else:
        assert rig.viewer().get("/x").body == b"x"


@pytest.mark.parametrize(
    ("counter", "limits"),
    [
        ("refused_connections_all", {"connections": 1}),
        ("refused_connections_address", {"connections_per_address": 1}),
        ("refused_connections_overload", {}),
    ],
)
def test_who_is_one_too_many_is_told_so(rigs: Rigs, counter: str, limits: dict[str, float]) -> None:
    rig = tls_rig(rigs, http2=OFFERED, **limits)
    full(rig, counter)
    reply = connect(rig).get("/x")
    assert (reply.status, reply["retry-after"], reply["connection"]) == (503, "2", "close")
    assert rig.viewers[-1].rest() == b""
    viewer = H2Viewer(rig)
    answer = viewer.fetch("/x")
    assert (answer.status, answer["retry-after"]) == (503, "2")
    assert viewer.ending() == NO_ERROR
    assert rig.total(counter) == rig.total("status_503") == 2


def test_an_upload_above_a_cap_is_told_too(rigs: Rigs) -> None:
    rig = tls_rig(rigs, connections=1)
    full(rig, "")
    viewer = connect(rig)
    viewer.send(b"POST /generic/x HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n" + bytes(100_000))
    assert viewer.reply().status == 503
    assert rig.no_exchange()


def test_only_so_many_are_told_and_the_others_cut_off_at_once(rigs: Rigs) -> None:
    rig = tls_rig(rigs, connections=1)
    full(rig, "")
    crowd = [Viewer() for _ in range(SURPLUS_MOST + 8)]
    for viewer in crowd:
        viewer.connect(rig.address)  # and says nothing
    wait_until(lambda: rig.total("refused_connections_all") == len(crowd))
    for viewer in crowd[SURPLUS_MOST:]:
        assert viewer.rest() == b""
    assert rig.plane.n_connections == SURPLUS_MOST + 1
    for viewer in crowd:
        viewer.close()
    wait_until(lambda: rig.plane.n_connections == 1)
    assert rig.viewers[0].get("/x").body == b"x", "the one within the cap"


def test_who_is_told_has_little_time(rigs: Rigs) -> None:
    """Three seconds for handshake and request together, and over HTTP/2 to take the answer, whatever the limits say."""
    rig = tls_rig(rigs, connections=1, http2=OFFERED)
    full(rig, "")
    silent = Viewer()
    silent.connect(rig.address)
    slow = connect(rig)
    slow.send(b"GET /x HT")
    shut = H2Viewer(rig, window=0)
    shut.request("/x")
    assert silent.rest() == b""
    assert slow.reply().status == 408
    assert rig.total("tls_failed_slow") == 1
    with contextlib.suppress(OSError):  # a reset
        while shut.step():
            pass
    assert rig.total("closed_idle") == 1
    assert not shut.answers[1].is_whole
    silent.close()


def test_when_the_crowd_has_gone_everything_is_as_before(rigs: Rigs) -> None:
    rig = tls_rig(rigs, connections_per_address=1)
    full(rig, "")
    for _ in range(10):
        assert connect(rig).get("/x").status == 503
    for viewer in rig.viewers:
        viewer.close()
    wait_until(lambda: rig.plane.n_connections == 0)
    viewer = rig.viewer()
    assert viewer.get("/x").status == 200
    rig.plane.set_overload(REFUSE)
    assert connect(rig).get("/x").status == 503
    rig.plane.set_overload(CALM)
    assert viewer.get("/x").status == 200


def test_without_memory_for_tls_the_address_gets_its_count_back(rigs: Rigs) -> None:
    """It was closed before its address was known: each left the address one more, and took an empty place of the
    table of addresses for ever. When that table had none left, a worker looked for one without end."""
    rig = rigs(tls=server(certificate()), memory=1 << 20, connections_per_address=101)
    for _ in range(3):
        before = rig.total("closed_memory")
        crowd = [Viewer() for _ in range(100)]
        for viewer in crowd:
            with contextlib.suppress(OSError):
                viewer.connect(rig.address)
        wait_until(lambda before=before: rig.total("closed_memory") > before + 10, "no memory for TLS")
        for viewer in crowd:
            viewer.close()
        wait_until(lambda: rig.plane.n_connections == 0)
    assert rig.total("connections_accepted") == rig.total("connections_closed")
    assert rig.total("refused_connections_address") == 0


def test_who_resets_while_we_answer_his_hello_is_counted(rigs: Rigs) -> None:
    """What couldn't be written in a handshake ended it without any counter."""
    rig = tls_rig(rigs)
    n = 200
    for _ in range(n):
        viewer = Viewer()
        viewer.connect(rig.address)
        viewer.send(TlsSocket(viewer.socket, authority().context()).flight())
        viewer.reset()
    wait_until(lambda: rig.total("connections_closed") == n)
    assert sum(rig.total(f"tls_failed_{each}") for each in FAILURES) == n


def test_a_handshake_of_single_bytes_is_ended_in_time(rigs: Rigs) -> None:
    """Each byte is news, and none may give it more time."""
    rig = tls_rig(rigs, head_timeout_ns=1_000_000_000)
    viewer = Viewer()
    viewer.connect(rig.address)
    hello = TlsSocket(viewer.socket, authority().context()).flight()
    viewer.socket.settimeout(0.02)
    has_ended = False
    for i in range(len(hello)):
        try:
            viewer.socket.send(hello[i : i + 1])
            if not viewer.socket.recv(100):
                has_ended = True
                break
        except TimeoutError:
            continue
        except ConnectionError:
            has_ended = True
            break
    assert has_ended
    assert rig.total("tls_failed_slow") == 1
    viewer.close()


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_slow_reader_is_cut_off_by_a_reset(rigs: Rigs, version: ssl.TLSVersion) -> None:
    """Without close_notify: nobody takes what he has for whole."""
    rig = tls_rig(rigs, send_bytes=8192, send_window_ns=1_000_000_000, send_window_bytes=100_000)
    rig.store("/x", bytes(3_000_000))
    context = authority().context()
    context.minimum_version = context.maximum_version = version
    viewer = Viewer(receive_bytes=4096)
    viewer.connect(rig.address)
    rig.viewers.append(viewer)
    secured = TlsSocket(viewer.socket, context)
    secured.handshake()
    viewer.socket = secured  # type: ignore[assignment]
    viewer.ask("/x")
    assert viewer.head().status == 200
    wait_until(lambda: rig.total("closed_slow_reader") == 1)
    with pytest.raises(ConnectionResetError):
        viewer.rest()
    wait_until(lambda: rig.kept() < 1000, "what waited is given back")


def test_an_end_without_close_notify_is_an_end(rigs: Rigs) -> None:
    """Many players just close: no fault, and what they asked for before is answered (RFC 8446 section 6.1)."""
    rig = tls_rig(rigs)
    rig.store("/x", b"x")
    viewer = Viewer()
    viewer.connect(rig.address)
    secured = TlsSocket(viewer.socket, authority().context())
    secured.handshake()
    secured.sendall(b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n")
    secured.raw.shutdown(socket.SHUT_WR)
    viewer.socket = secured  # type: ignore[assignment]
    assert viewer.reply().body == b"x"
    assert viewer.rest() == b""
    assert rig.total("tls_broken") == 0
    viewer.close()


@pytest.mark.parametrize("is_reading", [False, True], ids=["idle", "among answers"])
def test_who_asks_for_new_keys_without_end_and_takes_none_is_cut(rigs: Rigs, tmp_path: Path, is_reading: bool) -> None:
    """Each KeyUpdate may ask for one of ours (RFC 8446 section 4.6.3). They were kept for a full socket, all of them:
    one viewer could take the memory of everybody. While an answer is under way nothing is read, mostly."""
    rig = tls_rig(rigs, send_bytes=8192)
    rig.store("/x", bytes(3_000_000))
    context = authority().context()
    log = KeyLog(tmp_path / "keys", context)
    viewer = Viewer(receive_bytes=4096)
    viewer.connect(rig.address)
    secured = TlsSocket(viewer.socket, context)
    secured.handshake()
    seal = seal_of(secured, log)
    assert isinstance(seal, Seal13)
    if is_reading:
        viewer.send(seal(DATA, b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n"))
    most = 0
    viewer.socket.settimeout(1)
    with contextlib.suppress(ConnectionError, TimeoutError):
        for _ in range(500):
            flood = b""
            for _ in range(100):
                flood += seal(HANDSHAKE, message(KEY_UPDATE, b"\1"))
                seal.update()
            viewer.send(flood)
            most = max(most, rig.kept())
    viewer.close()
    assert most < 250_000
    wait_until(lambda: is_reading or rig.total("tls_broken") == 1)
    wait_until(lambda: rig.plane.n_connections == 0)
