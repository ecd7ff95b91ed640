"""The admin listener over real HTTP: health, metrics that Prometheus' own parser reads, and what it refuses."""

from __future__ import annotations

import contextlib
import http.client
import socket
from collections.abc import Iterator

import pytest
from memory_box import LOOPS, LoopThread, MemoryBox, wait_until
from prometheus_client.parser import text_string_to_metric_families

from accelerator.web.admin import CONNECTIONS_MAX, start_admin, stop_admin


class RunningAdmin:
    def __init__(self, box: MemoryBox, port: int) -> None:
        self.box = box
        self.port = port

    def ask(self, path: str, method: str = "GET", **fields: str) -> tuple[http.client.HTTPResponse, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request(method, path, headers=fields)
            response = connection.getresponse()
            return response, response.read().decode()
        finally:
            connection.close()

    def send(self, data: bytes) -> bytes:
        """Everything that comes back until the server closes."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=10) as peer:
            peer.sendall(data)
            pieces = []
            with contextlib.suppress(ConnectionResetError):
                while piece := peer.recv(65536):
                    pieces.append(piece)
            return b"".join(pieces)


@pytest.fixture(params=sorted(LOOPS))
def admin(request: pytest.FixtureRequest) -> Iterator[RunningAdmin]:
    with LoopThread(request.param) as thread:
        box = MemoryBox()

        async def start() -> tuple[object, int]:
            return await start_admin(box, "127.0.0.1", 0)

        runner, port = thread.run(start())
        yield RunningAdmin(box, port)
        thread.run(stop_admin(runner))
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=10)


def test_healthz(admin: RunningAdmin) -> None:
    response, body = admin.ask("/healthz")
    assert (response.status, body) == (200, "ok\n")
    admin.box.reasons = ["listener lan does not accept", "no tables\r\nSet-Cookie: \x1b[2J"]
    response, body = admin.ask("/healthz")
    assert response.status == 503
    assert body == "listener lan does not accept\nno tables\\r\\nSet-Cookie: \\x1b[2J\n"
    admin.box.reasons = []
    assert admin.ask("/healthz?probe=1")[0].status == 200


def test_metrics(admin: RunningAdmin) -> None:
    admin.box.origin_names.append('quo"ted\\\n')
    admin.box.cache_stats()
    response, body = admin.ask("/metrics")
    assert response.status == 200
    assert response.getheader("Content-Type") == "text/plain; version=0.0.4; charset=utf-8"
    families = {family.name: family for family in text_string_to_metric_families(body)}
    assert all(name.startswith("accelerator_") for name in families)
    assert all(family.documentation for family in families.values())
    assert families["accelerator_requests"].type == "counter"
    samples = {
        sample.name: sample.value for family in families.values() for sample in family.samples if not sample.labels
    }
    assert samples["accelerator_requests_total"] == 100
    assert samples["accelerator_refused_head_total"] == 3
    assert samples["accelerator_memory_bytes"] == 3 * 2**20
    assert samples["accelerator_healthy"] == 1
    by_origin = {sample.labels["origin"]: sample.value for sample in families["accelerator_origin_requests"].samples}
    assert by_origin == {"media": 200, "library": 200, 'quo"ted\\\\n': 200}
    build = families["accelerator_build_info"].samples[0]
    assert build.labels == {"site": "lyon", "version": "0.1.0"}
    admin.box.reasons = ["x"]
    assert "accelerator_healthy 0.0" in admin.ask("/metrics")[1]


def test_only_our_hosts(admin: RunningAdmin) -> None:
    for host in (
        "localhost",
        "LocalHost:8081",
        "127.0.0.1",
        f"127.0.0.1:{admin.port}",
        "[::1]:80",
        "192.0.2.7",
        "[2001:db8::1]",
    ):
        assert admin.ask("/healthz", Host=host)[0].status == 200, host
    for host in (
        "evil.example",
        "localhost.evil.example",
        "127.0.0.1.evil.example:80",
        "",
        "[localhost]",
        "a@127.0.0.1",
        "1",
    ):
        for path in ("/healthz", "/metrics", "/"):
            response, body = admin.ask(path, Host=host)
            assert response.status in (400, 421), host
            assert "accelerator" not in body
    assert admin.send(b"GET /metrics HTTP/1.1\r\nConnection: close\r\n\r\n")[9:12] in (b"400", b"421")
    two = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\nConnection: close\r\n\r\n"
    assert admin.send(two)[9:12] in (b"400", b"421")
    assert admin.send(b"GET /healthz HTTP/1.0\r\n\r\n").endswith(b"\r\n\r\nok\n"), "what load balancers send"


def test_nothing_else(admin: RunningAdmin) -> None:
    for path in ("/nothing", "/healthz/", "//healthz", "/metrics/../metrics", "/%68ealthz", "/status", "/favicon.ico"):
        assert admin.ask(path)[0].status == 404, path
    for method in ("HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE"):
        response, _ = admin.ask("/metrics", method)
        assert (response.status, response.getheader("Allow")) == (405, "GET"), method


def test_fields_of_every_answer(admin: RunningAdmin) -> None:
    answers = [
        admin.send(b"GET %b HTTP/1.1\r\nHost: %b\r\nConnection: close\r\n\r\n" % each)
        for each in ((b"/healthz", b"localhost"), (b"/metrics", b"localhost"), (b"/", b"localhost"), (b"/", b"evil"))
    ]
    for bad in (
        b"\x16\x03\x01\x00\x00\r\n\r\n",
        b"GET /nothing\r\n\r\n",
        b"GET / HTTP/1.1\r\nX: " + b"x" * 10_000 + b"\r\n\r\n",
    ):
        answers.append(admin.send(bad))
    for answer in answers:
        head = answer.partition(b"\r\n\r\n")[0].lower()
        assert b"server:" not in head
        assert b"aiohttp" not in answer.lower()
        assert b"python" not in answer.lower()
        assert b"x-content-type-options: nosniff" in head
        assert b"content-security-policy: default-src 'none'" in head
        assert b"cache-control: no-store" in head
    assert b"\r\nok\n" in answers[0]
    assert [answer[9:12] for answer in answers[4:]] == [b"400", b"404", b"400"], "the second is HTTP/0.9"


def test_a_fault_of_the_box_is_500_and_not_the_end(admin: RunningAdmin, caplog: pytest.LogCaptureFixture) -> None:
    whole = admin.box.status
    admin.box.status = dict  # type: ignore[method-assign]
    for _ in range(5):
        response, body = admin.ask("/healthz")
        assert (response.status, body) == (500, "KeyError\n")
    assert len(caplog.records) == 1
    admin.box.status = whole  # type: ignore[method-assign]
    assert admin.ask("/healthz")[0].status == 200


def test_connections_are_bounded(admin: RunningAdmin) -> None:
    with contextlib.ExitStack() as stack:
        peers = [
            stack.enter_context(socket.create_connection(("127.0.0.1", admin.port), timeout=10))
            for _ in range(CONNECTIONS_MAX + 50)
        ]
        for peer in peers[CONNECTIONS_MAX:]:
            assert peer.recv(1) == b""
        peers[0].sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert peers[0].recv(4096).startswith(b"HTTP/1.1 200 ")

    def is_back() -> bool:
        with contextlib.suppress(http.client.RemoteDisconnected, ConnectionResetError):
            return admin.ask("/healthz")[0].status == 200
        return False

    wait_until(is_back)
