"""Faults of clock, disk, certificates, names and origins: provoked for real, named by the doctor."""

from __future__ import annotations

import datetime
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import netns
import pytest
import trustme
from conftest import ACCELCTL, Doctor

Hosts = Callable[[str], tuple[str, ...]]
pytestmark = [pytest.mark.netns, pytest.mark.skipif(bool(netns.why_not()), reason=netns.why_not() or "")]


@contextmanager
def origin(box: netns.Namespace, fields: dict[str, str], tls: ssl.SSLContext | None = None) -> Iterator[int]:
    """Its port on the box's loopback."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            if "Status" in fields and fields["Status"] == "silent":
                self.close_connection = True
                return
            self.send_response(int(fields.get("Status", "200")))
            for name, value in fields.items():
                self.send_header(name, value)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    def listening() -> ThreadingHTTPServer:
        made = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        if tls is not None:
            made.socket = tls.wrap_socket(made.socket, server_side=True)
        return made

    server = box.call(listening)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def media(port: int, scheme: str = "http", more: str = "") -> str:
    return f'origins: {{media: {{from: ["{scheme}://127.0.0.1:{port}"], hosts: [media.example]{more}}}}}\n'


def test_an_origin_that_answers_well(box: netns.Namespace, doctor: Doctor) -> None:
    with origin(box, {"Cache-Control": "max-age=60"}) as port:
        assert doctor(media(port))["ok"]


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"Cache-Control": "no-store"}, "no-store"),
        ({"Cache-Control": "private, max-age=60"}, "private"),
        ({"Set-Cookie": "a=b", "Cache-Control": "max-age=60"}, "cookie"),
        ({"Vary": "*"}, "Vary"),
    ],
)
def test_headers_that_prevent_caching(box: netns.Namespace, doctor: Doctor, fields: dict[str, str], why: str) -> None:
    with origin(box, fields) as port:
        found = doctor(media(port), "--url", "http://media.example/talk/seg1.m4s?x=1")["found"]["origin-uncacheable"]
    assert why in found["text"]
    assert "/talk/seg1.m4s" in found["text"]


@pytest.mark.parametrize(
    ("fields", "code", "is_ok"),
    [
        ({"Status": "503"}, "origin-error", False),
        ({"Status": "silent"}, "origin-answer", False),
        ({"ETag": '"v"', "Cache-Control": "no-cache"}, "origin-no-lifetime", True),
    ],
)
def test_answers_that_are_no_good(
    box: netns.Namespace, doctor: Doctor, fields: dict[str, str], code: str, is_ok: bool
) -> None:
    with origin(box, fields) as port:
        said = doctor(media(port))
    assert code in said["found"]
    assert said["ok"] is is_ok


def test_a_way_to_the_origin_with_smaller_packets(box: netns.Namespace, doctor: Doctor) -> None:
    with netns.Topology() as topology:
        host = topology.namespace("origin")
        topology.wire(host, "eth0", box, "wan")
        host.ip("addr", "add", "10.0.0.2/24", "dev", "eth0")
        box.ip("addr", "add", "10.0.0.1/24", "dev", "wan")
        box.ip("route", "add", "10.0.0.2/32", "dev", "wan", "mtu", "1300")
        server = host.call(lambda: socket.create_server(("10.0.0.2", 80)))
        with server:
            policy = 'origins: {media: {from: ["http://10.0.0.2"], hosts: [media.example]}}\n'
            assert "1300 bytes" in accepting(server, lambda: doctor(policy))["path-mtu"]["text"]


def accepting(server: socket.socket, ask: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What is found while a server answers one request."""

    def serve() -> None:
        taken, _ = server.accept()
        with taken:
            taken.recv(4096)
            taken.sendall(b"HTTP/1.1 200 OK\r\nCache-Control: max-age=9\r\nContent-Length: 0\r\n\r\n")

    thread = threading.Thread(target=serve)
    thread.start()
    found: dict[str, Any] = ask()["found"]
    thread.join()
    return found


def test_a_url_that_no_origin_has(box: netns.Namespace, doctor: Doctor) -> None:
    with origin(box, {"Cache-Control": "max-age=60"}) as port:
        assert "url-unknown" in doctor(media(port), "--url", "http://other.example/")["found"]


def test_what_is_no_url_is_a_wrong_call() -> None:
    done = subprocess.run([str(ACCELCTL), "doctor", "--url", "media.example"], capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.count(b"\n") == 1


def test_an_origin_that_is_not_there(box: netns.Namespace, doctor: Doctor) -> None:
    with origin(box, {}) as port:
        pass
    found = doctor(media(port))["found"]["origin-connect"]
    assert "refused" in found["text"]


def test_an_origin_whose_certificate_nobody_knows_until_ca_names_its_authority(
    box: netns.Namespace, doctor: Doctor, tmp_path: Path
) -> None:
    authority = trustme.CA()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(server)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    with origin(box, {"Cache-Control": "max-age=9"}, tls=server) as port:
        assert "not accepted" in doctor(media(port, "https"))["found"]["origin-tls"]["text"]
        assert doctor(media(port, "https", ", ca: ca.pem"))["ok"]


def test_a_name_that_leads_back_to_this_box(box: netns.Namespace, doctor: Doctor, hosts: Hosts) -> None:
    box.ip("addr", "add", "10.7.0.1/24", "dev", "lo")
    policy = 'origins: {media: {from: ["http://media.corp.example"], hosts: [media.example]}}\n'
    found = doctor(policy, before=hosts("10.7.0.1 media.corp.example"))["found"]["origin-is-us"]
    assert "10.7.0.1" in found["text"]


def test_a_name_that_nobody_knows(box: netns.Namespace, doctor: Doctor, hosts: Hosts) -> None:
    policy = 'origins: {media: {from: ["http://media.corp.invalid"], hosts: [media.example]}}\n'
    assert "origin-dns" in doctor(policy, before=hosts(""))["found"]


@pytest.fixture
def hosts(tmp_path: Path) -> Hosts:
    """What goes before a command so that it has this /etc/hosts, and no resolver."""

    def before(text: str) -> tuple[str, ...]:
        (tmp_path / "hosts").write_text(f"127.0.0.1 localhost\n{text}\n")
        (tmp_path / "resolv.conf").write_text("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
        script = "mount --bind $0/hosts /etc/hosts && mount --bind $0/resolv.conf /etc/resolv.conf && exec \"$@\""
        return ("unshare", "--mount", "sh", "-c", script, str(tmp_path))

    return before


def test_a_clock_that_is_an_hour_off(box: netns.Namespace, doctor: Doctor) -> None:
    with origin(box, {"Cache-Control": "max-age=60"}) as port:
        found = doctor(media(port), before=("faketime", "-f", "+1h"))["found"]["clock"]
        assert found["level"] == "bad"
        assert "ahead of" in found["text"]
        found = doctor(media(port), before=("faketime", "-f", "-30s"))["found"]["clock"]
        assert found["level"] == "warn"
        assert "behind" in found["text"]


DISK = "cache: {disk: {path: cache, size: 1GiB}}\n"


def test_a_disk_that_is_too_small_and_in_memory(box: netns.Namespace, doctor: Doctor, tmp_path: Path) -> None:
    state = tmp_path / "state"
    (state / "cache").mkdir(parents=True)
    script = 'mount -t tmpfs -o size=100m tmpfs $0 && exec "$@"'
    before = ("unshare", "--mount", "sh", "-c", script, str(state / "cache"))
    found = doctor(DISK, "--state-dir", str(state), before=before)["found"]
    assert "1.0GiB" in found["disk-small"]["text"]
    assert "disk-memory" in found
    assert not {"disk", "disk-small"} & doctor(DISK, "--state-dir", str(state))["found"].keys()


def test_a_disk_that_is_read_only(box: netns.Namespace, doctor: Doctor, tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    before = ("unshare", "--mount", "sh", "-c", 'mount -t tmpfs -o ro tmpfs $0 && exec "$@"', str(state))
    found = doctor(DISK, "--state-dir", str(state), before=before)["found"]["disk"]
    assert "read-only" in found["text"]


TLS = 'origins: {media: {from: ["http://127.0.0.1:9"], hosts: [media.corp.example]}}\n' + (
    'listen: {tls: {address: "127.0.0.1:8443", tls: site}}\n'
)


def test_a_certificate_that_is_not_good_yet(box: netns.Namespace, doctor: Doctor, tmp_path: Path) -> None:
    now = datetime.datetime.now(datetime.UTC)
    begin, end = now + datetime.timedelta(days=1), now + datetime.timedelta(days=90)
    made = trustme.CA().issue_cert("media.corp.example", not_before=begin, not_after=end)
    made.cert_chain_pems[0].write_to_path(tmp_path / "site.crt")
    assert "not good yet" in doctor(TLS, "--credentials", str(tmp_path))["found"]["certificate-early"]["text"]


@pytest.mark.parametrize(
    ("days", "host", "code"),
    [(-1, "media.corp.example", "certificate-expired"), (10, "media.corp.example", "certificate-expiring"),
     (90, "other.example", "certificate-name"), (90, "*.corp.example", None)],
)  # fmt: skip
def test_certificates(
    box: netns.Namespace, doctor: Doctor, tmp_path: Path, days: int, host: str, code: str | None
) -> None:
    now = datetime.datetime.now(datetime.UTC)
    begin, end = now - datetime.timedelta(days=9), now + datetime.timedelta(days=days)
    made = trustme.CA().issue_cert(host, not_before=begin, not_after=end)
    made.cert_chain_pems[0].write_to_path(tmp_path / "site.crt")
    found = doctor(TLS, "--credentials", str(tmp_path))["found"]
    codes = {each for each in found if each.startswith("certificate")}
    assert codes == ({code} if code else set())


def test_a_certificate_that_is_not_there(box: netns.Namespace, doctor: Doctor, tmp_path: Path) -> None:
    assert "certificate" in doctor(TLS, "--credentials", str(tmp_path))["found"]
