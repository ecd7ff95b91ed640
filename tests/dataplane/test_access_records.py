"""What workers tell of their answers: each once, with what the policy keeps of its viewer, never a query."""

from __future__ import annotations

import json
import ssl
from collections.abc import Callable
from typing import Any

import pytest
from ext.access_reader import AccessReader, digest_of_query
from h2_rig import CLEARTEXT, H2Viewer
from plane_rig import Rig, Viewer, wait_until
from tls_rig import authority, certificate, connect, server, tls_rig

from ext.layout import COUNTERS

Rigs = Callable[..., Rig]
OFFERED = 1  # layout.pxd: HTTP/2 by ALPN
KEY = bytes(range(16))
ZONE, HASH, TRUNCATE = range(3)
V4 = bytes(10) + b"\xff\xff"


class Log:
    """The reader of a rig's records. `generation` is that of its first tables."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.reader = AccessReader(rig.plane)
        self.reader.open()
        self.found: list[dict[str, Any]] = []
        self.raw = b""

    def read(self) -> list[dict[str, Any]]:
        zones = [(generation, [b"desks", b"wifi"]) for generation in range(1, 9)]
        lines, n = self.reader.lines(10**18, KEY, [b"lan"], [b"", b"media", b"portal", b"signed"], zones)
        self.raw += lines
        got = [json.loads(line) for line in lines.decode("ascii").splitlines()]
        assert len(got) == n
        self.found += got
        return self.found

    def until(self, n: int) -> list[dict[str, Any]]:
        wait_until(lambda: len(self.read()) >= n, f"{n} records")
        assert len(self.found) == n
        return self.found


def logged(rig: Rig, **limits: float) -> Log:
    log = Log(rig)
    rig.publish(access_log=1, **limits)
    return log


def test_off_by_default_and_nothing_is_kept(rigs: Rigs) -> None:
    rig = rigs()
    log = Log(rig)
    rig.store("/x", b"abc")
    rig.viewer().get("/x")
    rig.plane.poke()
    assert log.read() == []
    assert rig.plane.totals()["access_log_dropped"] == 0


def test_hits_ranges_304_head_and_own_errors(rigs: Rigs) -> None:
    rig = rigs(nets=((V4 + b"\x7f\0\0\0", 104, 1),))
    log = logged(rig)
    rig.store("/x?q=1", b"0123456789", etag=b'"e"', strong=True)
    viewer = rig.viewer()
    assert viewer.get("/x?q=1").status == 200
    assert viewer.get("/x?q=1", "Range: bytes=2-4").status == 206
    assert viewer.get("/x?q=1", 'If-None-Match: "e"').status == 304
    assert viewer.get("/x?q=1", method="HEAD").status == 200
    assert viewer.get("/x?q=1", "Range: bytes=50-").status == 416
    assert viewer.get("/x", method="DELETE").status in (405, 413)
    assert viewer.get("/x", host="unknown").status == 421
    found = log.until(7)
    assert [each["status"] for each in found] == [200, 206, 304, 200, 416, 405, 421]
    assert [each["bytes"] for each in found] == [10, 3, 0, 0, 0, 0, 0]
    assert [each["how"] for each in found] == ["hit"] * 4 + ["refused"] * 3
    assert [each["method"] for each in found] == ["GET", "GET", "GET", "HEAD", "GET", "DELETE", "GET"]
    assert {each["path"] for each in found} == {"/x"}
    assert [each.get("query") for each in found] == [digest_of_query(b"q=1")] * 5 + [None] * 2
    assert {each["zone"] for each in found} == {"wifi"}
    assert all("viewer" not in each and "cut" not in each for each in found)
    assert found[0]["listener"] == "lan"
    assert found[0]["origin"] == "media"
    assert all(0 <= each["duration_ms"] < 40_000 for each in found)
    assert b"q=1" not in log.raw
    assert b"127.0.0" not in log.raw


def test_misses_and_joiners_end_when_their_bodies_do(rigs: Rigs) -> None:
    rig = rigs()
    log = logged(rig)
    viewers = [rig.viewer() for _ in range(3)]
    for viewer in viewers:
        viewer.ask("/slow?token=x")
    exchange = rig.exchange("miss")
    stored = rig.begin("/slow?token=x", 300_000)
    exchange.match()
    rig.append(stored, 0, bytes(100_000))
    for viewer in viewers:
        viewer.head()
        viewer.until(100_000)
    assert log.read() == []
    rig.append(stored, 100_000, bytes(200_000))
    stored.finish(300_000)
    stored.end_fill()
    for viewer in viewers:
        viewer.until(200_000)
    found = log.until(3)
    assert sorted(each["how"] for each in found) == ["collapsed", "collapsed", "miss"]
    assert {(each["bytes"], each["path"]) for each in found} == {(300_000, "/slow")}
    assert {each["fwd"] for each in found} <= {"uri-miss", "partial"}  # who came late found it filling
    assert {each["query"] for each in found} == {digest_of_query(b"token=x")}


def test_a_viewer_that_leaves_is_told_with_what_it_got(rigs: Rigs) -> None:
    rig = rigs()
    log = logged(rig)
    rig.store("/big", bytes(8 << 20))
    viewer = rig.viewer(receive_bytes=4096)
    viewer.ask("/big")
    viewer.until(10_000)
    viewer.socket.close()
    found = log.until(1)
    assert found[0]["cut"] is True
    assert 0 < found[0]["bytes"] < 8 << 20


@pytest.mark.parametrize(("mode", "shown"), [(ZONE, None), (TRUNCATE, "127.8.9.0/24"), (HASH, "hash")])
def test_what_is_kept_of_a_viewer(rigs: Rigs, mode: int, shown: str | None) -> None:
    rig = rigs()
    log = logged(rig, viewer=mode)
    rig.store("/x", b"abc")
    for source in ("127.8.9.77", "127.8.9.78", "127.8.9.77"):
        rig.viewer(source=source).get("/x")
    viewers = [each.get("viewer") for each in log.until(3)]
    assert b"127.8.9.7" not in log.raw
    if mode == HASH:
        assert viewers[0] == viewers[2] != viewers[1]
        assert all(len(viewer) == 16 for viewer in viewers)
        rig.viewer(source="127.8.9.77").get("/x")
        next_day: list[bytes] = []
        wait_until(lambda: next_day.append(log.reader.lines(0, KEY[::-1], [], [], [])[0]) or any(next_day))
        log.found.append(json.loads(b"".join(next_day)))
        assert log.found[-1]["viewer"] not in viewers, "another key, another hash"
    else:
        assert viewers == [shown] * 3


def test_odd_paths_are_plain_ascii_and_bounded(rigs: Rigs) -> None:
    rig = rigs()
    log = logged(rig)
    viewer = rig.viewer()
    paths = [b'/a"b', b"/a\\b", b"/\xc3\xa9\xe2\x80\xae", b"/" + b"x" * 6000 + b"?y", b"/%1b[2J"]
    n = 0
    for path in paths:
        viewer.send(b"GET " + path + b" HTTP/1.1\r\nHost: unknown\r\n\r\n")
        reply = viewer.reply()
        n += 1
        if reply.has("connection"):
            viewer = rig.viewer()
    found = log.until(n)
    assert log.raw.isascii()
    long = found[3]
    assert (len(long["path"]), long["path_bytes"]) == (296, 6001)
    assert found[4]["path"] == "/%1b[2J"


def test_a_full_ring_drops_and_counts_and_the_worker_goes_on(rigs: Rigs) -> None:
    rig = rigs(workers=1)
    log = logged(rig)
    rig.store("/x", b"abc")
    viewer = rig.viewer()
    request = b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n"
    for _ in range(100):
        viewer.send(request * 100)
        for _ in range(100):
            assert viewer.reply().body == b"abc"
    wait_until(lambda: len(log.read()) >= 8192)
    assert rig.plane.totals()["access_log_dropped"] == 10_000 - 8192
    viewer.get("/x")
    log.until(8193)


def test_refusals_are_told_though_the_log_is_off(rigs: Rigs) -> None:
    rig = rigs(nets=((V4 + b"\x7f\0\0\0", 104, 0),))
    rig.publish(viewer=TRUNCATE)
    reader = AccessReader(rig.plane)
    bad = [
        b"GET /x HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"GET /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n",
        b"GET /x HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"nonsense\r\n\r\n",
        b"GET /x HTTP/1.1\r\nHost: unknown\r\n\r\n",
    ]
    for data in bad:
        viewer = rig.viewer()
        viewer.send(data)
        viewer.reply()
    found: dict[tuple[int, bool], int] = {}

    def take() -> int:
        for (status, framing, listener, zone, viewer), n in reader.refusals(KEY, [(2, [b"desks"])]).items():
            assert (listener, zone, viewer) == (0, b"desks", b"127.0.0.0/24")
            found[status, framing] = found.get((status, framing), 0) + n
        return sum(found.values())

    wait_until(lambda: take() == 5)
    assert sum(n for (_, framing), n in found.items() if framing) == 3
    assert found[400, False] == 1
    assert found[421, False] == 1


def test_the_counters_are_named() -> None:
    assert {"access_log_dropped", "refusals_unlisted"} <= {name for _, name, _ in COUNTERS}


def test_records_of_all_workers_while_they_are_written(rigs: Rigs) -> None:
    """The ring under load: every answer is one whole line, none is torn, none is lost but the counted ones."""
    rig = rigs(workers=2)
    log = logged(rig)
    rig.store("/x", bytes(2000))
    viewers = [rig.viewer() for _ in range(8)]
    n = 0
    for _ in range(150):
        for viewer in viewers:
            viewer.send(b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n" * 5)
        for viewer in viewers:
            for _ in range(5):
                assert viewer.reply().status == 200
                n += 1
        log.read()
    wait_until(lambda: len(log.read()) + rig.plane.totals()["access_log_dropped"] == n)


def test_what_the_viewer_spoke(rigs: Rigs) -> None:
    plain = rigs(http2=CLEARTEXT)
    log = logged(plain)
    plain.store("/x", b"abc")
    assert plain.viewer().get("/x").status == plain.viewer().get("/x", minor=0).status == 200
    assert H2Viewer(plain).fetch("/x").status == 200
    plain.viewer().send(b"nonsense\r\n\r\n")
    assert [each["http"] for each in log.until(4)] == ["HTTP/1.1", "HTTP/1.0", "h2", "HTTP/1.1"]
    assert not any("tls" in each for each in log.found)

    secure = tls_rig(rigs, http2=OFFERED)
    log = logged(secure)
    secure.store("/x", b"abc")
    assert H2Viewer(secure).fetch("/x").status == 200
    old = authority().context()
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    for context in (authority().context(), old):
        assert connect(secure, context).get("/x").status == 200
    misplaced = Viewer()
    misplaced.connect(secure.address)
    assert misplaced.get("/x").status == 400
    misplaced.close()
    spoken = [(each["http"], each.get("tls")) for each in log.until(4)]
    assert spoken == [("h2", "1.3"), ("HTTP/1.1", "1.3"), ("HTTP/1.1", "1.2"), ("HTTP/1.1", None)]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_an_old_version_is_told_as_such(rigs: Rigs) -> None:
    rig = rigs(tls=server(certificate(), legacy=True))
    log = logged(rig)
    rig.store("/x", b"abc")
    context = authority().context()
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    context.maximum_version = ssl.TLSVersion.TLSv1_1
    assert connect(rig, context).get("/x").status == 200
    assert log.until(1)[0]["tls"] == "old"
