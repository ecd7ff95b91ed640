"""The pass path of the real daemon, driven by curl and raw sockets: methods, bodies, expectations, interims."""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from portal import Portal
from running_box import HOST, RunningBox, policy_for, read_all, read_response, wait_for

MIB = 1 << 20


@pytest.fixture(scope="module")
def portal() -> Iterator[Portal]:
    with Portal() as running:
        yield running


@pytest.fixture(scope="module")
def box(portal: Portal, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningBox]:
    policy = policy_for(portal.url)
    policy["origins"] = {
        "portal": {"from": [portal.url], "hosts": [HOST], "profile": "generic"},
        "small": {"from": [portal.url], "hosts": ["small.example"], "profile": "generic", "body_max": "1MB"},
        "media": {"from": [portal.url], "hosts": ["media.example"], "methods": ["GET", "HEAD", "POST"]},
    }
    with RunningBox(tmp_path_factory.mktemp("box"), policy) as running:
        yield running
        figures = running.stats()
        parts = ("hits", "misses", "collapsed", "passed", "refused")
        assert figures["requests"] == sum(figures[name] for name in parts)


def curl(box: RunningBox, target: str, *options: str, host: str = HOST, data: bytes | None = None) -> str:
    """What curl prints, which is the body unless `-i` or `-w` say otherwise. Raises where curl fails."""
    address, port = box.address()
    command = ["curl", "-sS", "--max-time", "60", "--resolve", f"{host}:{port}:{address}", *options]
    done = subprocess.run([*command, f"http://{host}:{port}{target}"], input=data, capture_output=True, check=False)
    assert done.returncode == 0, (done.returncode, done.stderr.decode())
    return done.stdout.decode()


def rss_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


# -- bodies ------------------------------------------------------------------------------------------------------------


def test_a_form_goes_up_and_its_answer_comes_back(box: RunningBox) -> None:
    before = box.stats()
    answer = curl(box, "/echo", "-d", "name=value", "-i")
    assert "Cache-Status: test; fwd=method; fwd-status=200" in answer
    assert answer.endswith(f"POST {hashlib.sha256(b'name=value').hexdigest()} 10")
    grown = box.grown(before)
    assert (grown["requests"], grown["passed"], grown["uploads"], grown["bytes_from_viewers"]) == (1, 1, 1, 10)


@pytest.mark.parametrize("size", [0, 1, 200_000, 5 * MIB])
@pytest.mark.parametrize("options", [("-T", "-"), ("--data-binary", "@-")], ids=["chunked", "length"])
def test_curl_uploads_from_stdin(box: RunningBox, options: tuple[str, ...], size: int) -> None:
    """-T - is chunked, and from 1 MiB on curl says Expect: 100-continue by itself."""
    data = os.urandom(size)
    answer = curl(box, "/echo", "-X", "PUT", *options, data=data)
    assert answer == f"PUT {hashlib.sha256(data).hexdigest()} {size}"


def test_a_gibibyte_goes_through_little_memory(box: RunningBox, tmp_path: Path) -> None:
    file = tmp_path / "large"
    with file.open("wb") as out:
        out.truncate(1 << 30)
    before, most = rss_bytes(box.process.pid), 0
    answers: list[str] = []
    uploading = threading.Thread(target=lambda: answers.append(curl(box, "/count", "-T", str(file))))
    uploading.start()
    while uploading.is_alive():
        most = max(most, rss_bytes(box.process.pid))
        uploading.join(0.05)
    assert answers == [f"PUT {1 << 30}"]
    assert most - before < 32 * MIB


def test_expect_is_forwarded_end_to_end(box: RunningBox, portal: Portal) -> None:
    """The viewer sends nothing until the origin's own 100 has come."""
    with box.connect() as viewer:
        head = f"POST /expect HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n"
        viewer.sendall(head.encode())
        assert viewer.recv(4096) == b"HTTP/1.1 100 Continue\r\n\r\n"
        viewer.sendall(b"hello")
        response, _ = read_response(viewer)
    assert response.body == f"POST {hashlib.sha256(b'hello').hexdigest()} 5".encode()
    assert portal.field("/expect", "expect") == "100-continue"


def test_an_expectation_that_the_origin_ignores(box: RunningBox) -> None:
    """The viewer sends after a while by itself, as curl does after a second."""
    answer = curl(box, "/echo", "-H", "Expect: 100-continue", "--expect100-timeout", "0.2", "-d", "hello")
    assert answer.startswith("POST ")


def test_a_refused_expectation_never_sends_its_body(box: RunningBox) -> None:
    with box.connect() as viewer:
        viewer.sendall(
            f"POST /refuse HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 500000\r\nExpect: 100-continue\r\n\r\n".encode()
        )
        answer = read_all(viewer)
    assert answer.startswith(b"HTTP/1.1 403 ")


def test_an_old_viewer_hears_no_interim_response(box: RunningBox) -> None:
    answer = box.ask(f"POST /hints HTTP/1.0\r\nHost: {HOST}\r\nContent-Length: 2\r\n\r\nhi".encode())
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.count(b"HTTP/1.1") == 1


@pytest.mark.rfc("9110#15.2", "interim responses are forwarded")
def test_interim_responses_come_in_order_without_hop_by_hop_fields(box: RunningBox) -> None:
    answer = box.ask(f"GET /hints HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n".encode())
    first, second, third, _ = answer.split(b"\r\n\r\n")
    assert first == b"HTTP/1.1 102 Processing"
    assert second == b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload"
    assert third.startswith(b"HTTP/1.1 200 OK")


def test_what_comes_after_hints_is_stored_all_the_same(box: RunningBox) -> None:
    assert b"fwd-status=200; stored" in box.get("/hints?again").raw
    assert "hit" in box.get("/hints?again").fields["cache-status"]


def test_too_large_by_its_length(box: RunningBox) -> None:
    head = "POST /echo HTTP/1.1\r\nHost: small.example\r\nContent-Length: 1000001\r\nExpect: 100-continue\r\n\r\n"
    answer = box.ask(head.encode())
    assert answer.startswith(b"HTTP/1.1 413 ")


def test_too_large_when_it_gets_there(box: RunningBox, portal: Portal) -> None:
    """The origin never sees the end of it."""
    before = box.stats()
    n_cut = portal.n_cut
    answer = curl(box, "/echo", "-T", "-", "-w", "%{http_code}", "-o", "/dev/null", host="small.example",
                  data=bytes(3_000_000))  # fmt: skip
    assert answer == "413"
    wait_for(lambda: portal.n_cut == n_cut + 1)
    assert box.grown(before)["uploads_aborted"] == 1


@pytest.mark.parametrize("form", ["Content-Length: 100000", "Transfer-Encoding: chunked"])
def test_an_aborted_upload_is_never_whole_at_the_origin(box: RunningBox, portal: Portal, form: str) -> None:
    n_cut, n_whole = portal.n_cut, portal.n_whole
    before = box.stats()
    with box.connect() as viewer:
        viewer.sendall(f"POST /echo HTTP/1.1\r\nHost: {HOST}\r\n{form}\r\n\r\n5\r\nhello\r\n".encode())
        wait_for(lambda: portal.n_begun > portal.n_cut + portal.n_whole)
    wait_for(lambda: portal.n_cut == n_cut + 1)
    assert portal.n_whole == n_whole
    wait_for(lambda: box.stats()["uploads_aborted"] == before["uploads_aborted"] + 1)


def test_a_stalled_upload_is_408(portal: Portal, tmp_path: Path) -> None:
    policy = policy_for(portal.url, limits={"body_timeout": "300ms"})
    policy["origins"]["media"]["profile"] = "generic"
    with RunningBox(tmp_path, policy) as box:
        answer = box.ask(f"POST /echo HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 9\r\n\r\nhalf".encode())
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert box.stats()["closed_slow_body"] == 1


def test_pipelined_after_a_body(box: RunningBox) -> None:
    one = f"POST /echo HTTP/1.1\r\nHost: {HOST}\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
    two = f"PUT /echo HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 2\r\nConnection: close\r\n\r\nde"
    answer = box.ask((one + two).encode())
    assert answer.index(b"POST " + hashlib.sha256(b"abc").hexdigest().encode()) < answer.index(
        b"PUT " + hashlib.sha256(b"de").hexdigest().encode()
    )


# -- methods -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["DELETE", "PROPFIND", "OPTIONS", "M-SEARCH", "PATCH"])
def test_any_method_is_passed_in_generic(box: RunningBox, method: str) -> None:
    response = box.get("/echo", method=method)
    assert response.status == 200
    assert response.body.startswith(f"{method} ".encode())
    assert response.fields["cache-status"].startswith("test; fwd=method")


def test_trace_and_connect_are_refused(box: RunningBox) -> None:
    trace = box.get("/echo", method="TRACE")
    assert trace.status == 405
    assert trace.fields["allow"] == "GET, HEAD, OPTIONS, POST, PUT, PATCH, DELETE"
    assert box.ask(b"CONNECT a.example:443 HTTP/1.1\r\nHost: a.example:443\r\n\r\n").startswith(b"HTTP/1.1 501 ")


def test_media_passes_what_its_policy_lists(box: RunningBox, portal: Portal) -> None:
    assert curl(box, "/echo?media", "-d", "x", "-H", "Content-Type: text/x", host="media.example").startswith("POST ")
    assert portal.field("/echo?media", "content-type") == "text/x"
    refused = box.get("/echo", method="DELETE", host="media.example")
    assert (refused.status, refused.fields["allow"]) == (405, "GET, HEAD, POST, OPTIONS")
    assert box.get("/echo", "Content-Length: 1", host="media.example").status == 413
    preflight = box.get("/", "Origin: http://a", "Access-Control-Request-Method: POST", method="OPTIONS",
                        host="media.example")  # fmt: skip
    assert preflight.fields["access-control-allow-methods"] == "GET, HEAD, POST, OPTIONS"


def test_a_get_with_a_body_is_neither_stored_nor_answered_from_the_store(box: RunningBox, portal: Portal) -> None:
    target = "/stored?fat"
    assert box.get(target).body == box.get(target).body
    n = portal.count(target)
    answer = curl(box, target, "-X", "GET", "-d", "query", "-i")
    assert "fwd=bypass" in answer
    assert portal.count(target) == n + 1
    assert "hit" in box.get(target).fields["cache-status"]


# -- invalidation ------------------------------------------------------------------------------------------------------


@pytest.mark.rfc("9111#4.4", "unsafe methods MUST invalidate their target, unless they failed")
@pytest.mark.parametrize(
    ("method", "status", "goes"),
    [("POST", 200, True), ("PUT", 303, True), ("DELETE", 204, True), ("x-own", 200, True), ("POST", 404, False),
     ("POST", 500, False), ("PROPFIND", 200, False), ("OPTIONS", 200, False)],
)  # fmt: skip
def test_unsafe_methods_invalidate_their_target(box: RunningBox, method: str, status: int, goes: bool) -> None:
    target = f"/stored?{method}{status}"
    for language in ("fr", "en"):
        box.get(target, f"Accept-Language: {language}")
        assert "hit" in box.get(target, f"Accept-Language: {language}").fields["cache-status"]
    box.get(target, f"X-Status: {status}", method=method)
    for language in ("fr", "en"):
        assert ("hit" not in box.get(target, f"Accept-Language: {language}").fields["cache-status"]) == goes


@pytest.mark.rfc("9111#4.4", "Location and Content-Location of the same origin are invalidated, others MUST NOT be")
@pytest.mark.parametrize(
    ("reference", "goes"),
    [("/stored?loc", True), ("?loc", True), ("{viewer}/stored?loc", True), ("{origin}/stored?loc", True),
     ("http://other.example/stored?loc", False), ("//other.example/stored?loc", False), ("http://[", False)],
)  # fmt: skip
@pytest.mark.parametrize("field", ["Location", "Content-Location"])
def test_unsafe_methods_invalidate_what_they_name(
    box: RunningBox, portal: Portal, field: str, reference: str, goes: bool
) -> None:
    box.get("/stored?loc")
    assert "hit" in box.get("/stored?loc").fields["cache-status"]
    named = reference.replace("{origin}", portal.url).replace("{viewer}", f"http://{HOST}:{box.address()[1]}")
    curl(box, "/stored?other", "-X", "POST", "-d", "x", "-H", f"X-{field}: {named}")
    assert ("hit" not in box.get("/stored?loc").fields["cache-status"]) == goes


# -- early answers, ends -----------------------------------------------------------------------------------------------


def test_an_early_answer_reaches_who_still_sends(box: RunningBox) -> None:
    with box.connect() as viewer:
        head = f"POST /refuse HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 300000\r\n\r\n"
        viewer.sendall(head.encode() + bytes(1000))
        answer = read_all(viewer)
    assert answer.startswith(b"HTTP/1.1 403 ")
    assert answer.endswith(b"refused")


def test_both_ways_at_once(box: RunningBox) -> None:
    """The answer echoes the body while that still goes up."""
    with box.connect() as viewer:
        viewer.sendall(f"POST /mirror HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 10\r\n\r\nhello".encode())
        seen = b""
        while b"hello" not in seen:
            seen += viewer.recv(4096)
        viewer.sendall(b"world")
        while b"world" not in seen:
            seen += viewer.recv(4096)
    seen = seen.removesuffix(b"0\r\n\r\n")
    assert seen.partition(b"\r\n\r\n")[2] == b"5\r\nhello\r\n5\r\nworld\r\n"


def test_many_uploads_at_once(box: RunningBox, portal: Portal) -> None:
    """More than the origin's connections: each waits its turn, and arrives whole."""
    n = 100
    bodies = [os.urandom(1000 * (i + 1)) for i in range(n)]
    connections: list[socket.socket] = []
    for i, body in enumerate(bodies):
        viewer = box.connect()
        connections.append(viewer)
        viewer.sendall(f"PUT /echo?{i} HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
    for viewer, body in zip(connections, bodies, strict=True):
        response, _ = read_response(viewer)
        assert response.body == f"PUT {hashlib.sha256(body).hexdigest()} {len(body)}".encode()
        viewer.close()
