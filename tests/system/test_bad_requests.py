"""What bad requests get from the running daemon: the exact status, a counter, a closed connection; and nobody else
notices.

The origin behind the box keeps every byte: what is refused must not have reached it.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from recording_origin import GOOD_BODY, RecordingOrigin
from running_box import HOST, PROBE, Response, RunningBox, policy_for, read_all, read_response, wait_for

HOST_LINE = f"Host: {HOST}\r\n".encode()


@dataclass
class Site:
    """One box, its origin, and a viewer who is served all the time on a connection of their own."""

    box: RunningBox
    origin: RecordingOrigin
    good: socket.socket
    rest: bytes = field(default=b"")

    def good_viewer_is_served(self) -> None:
        self.good.sendall(b"GET /good/film HTTP/1.1\r\n" + HOST_LINE + b"\r\n")
        response, self.rest = read_response(self.good, self.rest)
        assert (response.status, response.body) == (200, GOOD_BODY)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with RecordingOrigin() as origin:
        policy = policy_for(origin.url, origins={"media": {"paths": ["/"]}})
        policy["origins"]["portal"] = {"from": [origin.url], "hosts": ["portal.example"], "profile": "generic"}
        policy["origins"]["part"] = {"from": [origin.url], "hosts": ["part.example"], "paths": ["/only/here"]}
        with RunningBox(tmp_path_factory.mktemp("box"), policy) as box, box.connect() as good:
            yield Site(box, origin, good)


def head(*lines: bytes, request: bytes = b"GET /good/film HTTP/1.1", host: bytes = HOST_LINE) -> bytes:
    return request + b"\r\n" + host + b"".join(line + b"\r\n" for line in lines) + b"\r\n"


def line(request: bytes) -> bytes:
    return head(request=request)


def fields(*lines: bytes) -> bytes:
    return head(*lines)


# After these nobody knows where the next request begins, so the connection closes: (status, bytes).
SYNTAX: dict[str, tuple[int, bytes]] = {
    # the request line
    "no version": (400, b"GET /good/film\r\n\r\n"),
    "no target": (400, line(b"GET HTTP/1.1")),
    "two spaces": (400, line(b"GET  /good/film HTTP/1.1")),
    "tab for space": (400, line(b"GET\t/good/film HTTP/1.1")),
    "space at the end": (400, line(b"GET /good/film HTTP/1.1 ")),
    "space in the target": (400, line(b"GET /good/fi lm HTTP/1.1")),
    "leading space": (400, line(b" GET /good/film HTTP/1.1")),
    "lower-case version": (400, line(b"GET /good/film http/1.1")),
    "version without minor": (400, line(b"GET /good/film HTTP/1")),
    "two digits of version": (400, line(b"GET /good/film HTTP/1.10")),
    "signed version": (400, line(b"GET /good/film HTTP/+1.1")),
    "HTTP/2.0": (505, line(b"GET /good/film HTTP/2.0")),
    "HTTP/0.9": (505, line(b"GET /good/film HTTP/0.9")),
    "HTTP/3.1": (505, line(b"GET /good/film HTTP/3.1")),
    "HTTP/2 preface": (505, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    "NUL in the target": (400, line(b"GET /good\0/film HTTP/1.1")),
    "raw UTF-8 in the target": (400, line("GET /good/filmé HTTP/1.1".encode())),
    "fragment": (400, line(b"GET /good/film#part HTTP/1.1")),
    "backslash first": (400, line(b"GET \\good\\film HTTP/1.1")),
    "relative target": (400, line(b"GET good/film HTTP/1.1")),
    "authority for GET": (400, line(b"GET video.example:80 HTTP/1.1")),
    "asterisk for GET": (400, line(b"GET * HTTP/1.1")),
    "TLS hello": (400, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64)),
    "binary": (400, bytes(range(256)) + b"\r\n\r\n"),
    "only NUL": (400, bytes(64) + b"\r\n\r\n"),
    "method with a colon": (400, line(b"GET: /good/film HTTP/1.1")),
    "CONNECT": (501, b"CONNECT intranet.example:443 HTTP/1.1\r\nHost: intranet.example:443\r\n\r\n"),
    "CONNECT to us": (501, b"CONNECT video.example:80 HTTP/1.1\r\nHost: video.example:80\r\n\r\n"),
    "endless method": (501, b"A" * 40 + b" /good/film HTTP/1.1\r\n\r\n"),
    "long target": (414, line(b"GET /" + b"a" * 8192 + b" HTTP/1.1")),
    "long query": (414, line(b"GET /?" + b"a" * 20000 + b" HTTP/1.1")),
    "target without end": (414, b"GET /" + b"a" * 60000),
    # Host and absolute-form
    "no Host": (400, head(host=b"")),
    "two Hosts": (400, fields(HOST_LINE[:-2])),
    "two Hosts that differ": (400, fields(b"Host: other.example")),
    "empty Host": (400, head(host=b"Host:\r\n")),
    "Host with user": (400, head(host=b"Host: user@video.example\r\n")),
    "Host with path": (400, head(host=b"Host: video.example/x\r\n")),
    "Host list": (400, head(host=b"Host: video.example, other.example\r\n")),
    "Host port 0": (400, head(host=b"Host: video.example:0\r\n")),
    "Host port 65536": (400, head(host=b"Host: video.example:65536\r\n")),
    "Host port signed": (400, head(host=b"Host: video.example:+80\r\n")),
    "Host port underscore": (400, head(host=b"Host: video.example:8_0\r\n")),
    "Host port text": (400, head(host=b"Host: video.example:http\r\n")),
    "Host bracket open": (400, head(host=b"Host: [::1\r\n")),
    "Host percent": (400, head(host=b"Host: video%2eexample\r\n")),
    "Host tab": (400, head(host=b"Host: video\texample\r\n")),
    "absolute-form, other Host": (400, line(b"GET http://intranet.example/good/film HTTP/1.1")),
    "absolute-form, other port": (400, line(b"GET http://video.example:81/good/film HTTP/1.1")),
    "absolute-form, user": (400, line(b"GET http://user@video.example/good/film HTTP/1.1")),
    "absolute-form, no authority": (400, line(b"GET http:///good/film HTTP/1.1")),
    "absolute-form, ftp": (400, line(b"GET ftp://video.example/good/film HTTP/1.1")),
    "absolute-form, file": (400, line(b"GET file:///etc/passwd HTTP/1.1")),
    "absolute-form, no Host": (400, head(request=b"GET http://video.example/good/film HTTP/1.1", host=b"")),
    # field lines
    "bare LF everywhere": (400, b"GET /good/film HTTP/1.1\nHost: video.example\n\n"),
    "bare LF after a field": (400, b"GET /good/film HTTP/1.1\r\nHost: video.example\nX: 1\r\n\r\n"),
    "bare LF at the end": (400, b"GET /good/film HTTP/1.1\r\nHost: video.example\r\n\n"),
    "bare CR in a value": (400, fields(b"X: a\rb")),
    "bare CR in the request line": (400, line(b"GET /good/film\r HTTP/1.1")),
    "NUL in a value": (400, fields(b"X: a\0b")),
    "NUL in a name": (400, fields(b"X\0: a")),
    "DEL in a value": (400, fields(b"X: a\x7fb")),
    "obs-fold": (400, fields(b"X: a", b" b")),
    "obs-fold by tab": (400, fields(b"X: a", b"\tb")),
    "obs-fold first": (400, b"GET /good/film HTTP/1.1\r\n Host: video.example\r\n\r\n"),
    "space before the colon": (400, fields(b"X : a")),
    "tab before the colon": (400, fields(b"X\t: a")),
    "no colon": (400, fields(b"X a")),
    "no name": (400, fields(b": a")),
    "slash in a name": (400, fields(b"X/Y: a")),
    "raw UTF-8 in a name": (400, fields("Xé: a".encode())),
    "Expect of something": (417, fields(b"Expect: 200-ok")),
    # framing
    "CL and TE": (400, fields(b"Content-Length: 5", b"Transfer-Encoding: chunked")),
    "TE and CL": (400, fields(b"Transfer-Encoding: chunked", b"Content-Length: 5")),
    "two CL": (400, fields(b"Content-Length: 5", b"Content-Length: 5")),
    "CL list": (400, fields(b"Content-Length: 5, 5")),
    "CL signed": (400, fields(b"Content-Length: +5")),
    "CL negative": (400, fields(b"Content-Length: -1")),
    "CL underscore": (400, fields(b"Content-Length: 1_0")),
    "CL hex": (400, fields(b"Content-Length: 0x5")),
    "CL fraction": (400, fields(b"Content-Length: 5.0")),
    "CL empty": (400, fields(b"Content-Length:")),
    "CL Arabic digit": (400, fields("Content-Length: \u0665".encode())),
    "CL huge": (400, fields(b"Content-Length: " + b"9" * 30)),
    "CL with a space inside": (400, fields(b"Content-Length: 1 0")),
    "TE in HTTP/1.0": (400, head(b"Transfer-Encoding: chunked", request=b"GET /good/film HTTP/1.0")),
    "unknown coding": (501, fields(b"Transfer-Encoding: br")),
    "coding before chunked": (501, fields(b"Transfer-Encoding: gzip, chunked")),
    "coding after chunked": (501, fields(b"Transfer-Encoding: chunked, identity")),
    "two TE": (501, fields(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked")),
    # sizes
    "100 fields and one": (431, fields(*[b"X: a"] * 101)),
    "flood of short fields": (431, fields(*[b"X:"] * 5000)),
    "long value": (431, fields(b"X: " + b"a" * 16384)),
    "long name": (431, fields(b"X" * 16385 + b": a")),
    "head above 32 KiB": (431, fields(b"A: " + b"a" * 16000, b"B: " + b"a" * 16000, b"C: " + b"a" * 1000)),
    "value without end": (431, b"GET /good/film HTTP/1.1\r\n" + HOST_LINE + b"X: " + b"a" * 60000),
    "fields without end": (431, b"GET /good/film HTTP/1.1\r\n" + HOST_LINE + b"X-Name: value\r\n" * 4000),
    # bodies
    "fat GET": (413, fields(b"Content-Length: 5") + b"hello"),
    "fat GET, body to come": (413, fields(b"Content-Length: 5000000000")),
    "chunked GET": (413, fields(b"Transfer-Encoding: chunked") + b"5\r\nhello\r\n0\r\n\r\n"),
    "fat HEAD": (413, head(b"Content-Length: 5", request=b"HEAD /good/film HTTP/1.1") + b"hello"),
    "fat GET that expects": (413, fields(b"Content-Length: 5", b"Expect: 100-continue")),
}

# Well-formed, refused; the next request on the connection is served. (status, bytes, a field that must be there)
REFUSED: dict[str, tuple[int, bytes, tuple[str, str] | None]] = {
    "unknown host": (421, head(host=b"Host: intranet.example\r\n"), None),
    "unknown address": (421, head(host=b"Host: 169.254.169.254\r\n"), None),
    "unknown IPv6 address": (421, head(host=b"Host: [::1]:8080\r\n"), None),
    "suffix of a host": (421, head(host=b"Host: evil-video.example\r\n"), None),
    "host below a host": (421, head(host=b"Host: a.video.example\r\n"), None),
    "absolute-form, unknown host": (
        421, head(request=b"GET http://intranet.example/ HTTP/1.1", host=b"Host: intranet.example\r\n"), None,
    ),
    "no such path": (404, head(host=b"Host: part.example\r\n"), None),
    "prefix within a segment": (
        404, head(request=b"GET /only/hereafter HTTP/1.1", host=b"Host: part.example\r\n"), None,
    ),
    "POST": (405, line(b"POST /good/film HTTP/1.1"), ("allow", "GET, HEAD, OPTIONS")),
    "PUT": (405, line(b"PUT /good/film HTTP/1.1"), ("allow", "GET, HEAD, OPTIONS")),
    "DELETE": (405, line(b"DELETE /good/film HTTP/1.1"), ("allow", "GET, HEAD, OPTIONS")),
    "PATCH": (405, line(b"PATCH /good/film HTTP/1.1"), ("allow", "GET, HEAD, OPTIONS")),
    "TRACE": (405, line(b"TRACE /good/film HTTP/1.1"), ("allow", "GET, HEAD, OPTIONS")),
    "POST to the health probe": (405, line(f"POST {PROBE} HTTP/1.1".encode()), ("allow", "GET, HEAD, OPTIONS")),
    "unknown method": (501, line(b"BREW /good/film HTTP/1.1"), None),
    "PURGE": (501, line(b"PURGE /good/film HTTP/1.1"), None),
    "lower-case method": (501, line(b"get /good/film HTTP/1.1"), None),
    "range beyond the end": (416, fields(b"Range: bytes=5000-"), ("content-range", "bytes */1000")),
    "suffix range of nothing": (416, fields(b"Range: bytes=-0"), ("content-range", "bytes */1000")),
}  # fmt: skip

# Odd and legal: answered 200 with the whole body, as RFC 9110 section 14.2 has it for ranges that say nothing.
LEGAL: dict[str, bytes] = {
    "absolute-form": line(b"GET http://video.example/good/film HTTP/1.1"),
    "absolute-form, upper case": line(b"GET HTTP://VIDEO.example/good/film HTTP/1.1"),
    "absolute-form, default port": line(b"GET http://video.example:80/good/film HTTP/1.1"),
    "Host with port": head(host=b"Host: video.example:8080\r\n"),
    "Host in upper case": head(host=b"Host: VIDEO.EXAMPLE\r\n"),
    "Host with its root dot": head(host=b"Host: video.example.\r\n"),
    "name in lower case": head(host=b"host: video.example\r\n"),
    "no space after the colon": head(host=b"Host:video.example\r\n"),
    "spaces after the colon": head(host=b"Host:    video.example   \r\n"),
    "leading empty line": b"\r\n" + head(),
    "HTTP/1.9": line(b"GET /good/film HTTP/1.9"),
    "100 fields": fields(*[b"X: a"] * 99),
    "obs-text in a value": fields(b"X: \xe9"),
    "tab in a value": fields(b"X: a\tb"),
    "empty value": fields(b"X:"),
    "CL 0": fields(b"Content-Length: 0"),
    "range of an unknown unit": fields(b"Range: seconds=1-2"),
    "range backwards": fields(b"Range: bytes=5-2"),
    "range without numbers": fields(b"Range: bytes=-"),
    "range signed": fields(b"Range: bytes=+1-2"),
    "range underscore": fields(b"Range: bytes=1_0-20"),
    "range fraction": fields(b"Range: bytes=0.5-1"),
    "range text": fields(b"Range: bytes=a-b"),
    "range hex": fields(b"Range: bytes=0x0-0x5"),
    "two Range fields": fields(b"Range: bytes=0-1", b"Range: bytes=5-6"),
    "bad dates and tags": fields(b"If-Modified-Since: yesterday", b"If-None-Match: nonsense", b"If-Range: nonsense"),
}


def check_own_error(response: Response, status: int, *, has_body: bool = True) -> None:
    assert response.status == status, response
    assert response.fields["cache-control"] == "no-store"
    assert response.fields["cache-status"].partition(";")[0] == "test"
    assert len(response.body) == (int(response.fields["content-length"]) if has_body else 0)


@pytest.mark.parametrize("name", SYNTAX)
def test_a_syntax_error_is_named_counted_and_closes(name: str, site: Site) -> None:
    status, request = SYNTAX[name]
    site.good_viewer_is_served()
    n_bytes, before = site.origin.n_bytes, site.box.stats()
    with site.box.connect() as viewer:
        with contextlib.suppress(ConnectionError):
            viewer.sendall(request)
        site.good_viewer_is_served()
        response = Response(read_all(viewer))  # ends because the box closes
    check_own_error(response, status, has_body=not request.startswith(b"HEAD"))
    assert response.fields["connection"] == "close"
    grown = site.box.grown(before)
    assert (grown[f"status_{status}"], grown["refused"], grown["requests"]) == (1, 1, 2)
    assert site.origin.n_bytes == n_bytes


@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_request_does_not_cost_the_connection(name: str, site: Site) -> None:
    status, request, extra = REFUSED[name]
    site.good_viewer_is_served()
    n_bytes, before = site.origin.n_bytes, site.box.stats()
    with site.box.connect() as viewer:
        viewer.sendall(request)
        response, rest = read_response(viewer)
        assert response.status == status, response
        assert rest == b""
        check_own_error(response, status)
        if extra:
            assert response.fields[extra[0]] == extra[1]
        viewer.sendall(head())
        assert read_response(viewer)[0].body == GOOD_BODY
    grown = site.box.grown(before)
    assert (grown[f"status_{status}"], grown["refused"], grown["requests"]) == (1, 1, 2)
    assert site.origin.n_bytes == n_bytes


@pytest.mark.parametrize("name", LEGAL)
def test_what_is_odd_but_legal_is_served_from_the_same_object(name: str, site: Site) -> None:
    site.good_viewer_is_served()
    n_bytes, before = site.origin.n_bytes, site.box.stats()
    with site.box.connect() as viewer:
        viewer.sendall(LEGAL[name])
        response, rest = read_response(viewer)
    assert (response.status, response.body, rest) == (200, GOOD_BODY, b"")
    assert site.box.grown(before)["hits"] == 1
    assert site.origin.n_bytes == n_bytes


@pytest.mark.parametrize(
    ("request_line", "lines", "stays"),
    [
        (b"GET /good/film HTTP/1.0", (), False),
        (b"GET /good/film HTTP/1.0", (b"Connection: keep-alive",), True),
        (b"GET /good/film HTTP/1.0", (b"Connection: close, keep-alive",), False),
        (b"GET /good/film HTTP/1.1", (b"Connection: close",), False),
        (b"GET /good/film HTTP/1.1", (b"Connection: x", b"Connection: CLOSE"), False),
        (b"GET /good/film HTTP/1.1", (), True),
    ],
)
def test_who_stays_connected(request_line: bytes, lines: tuple[bytes, ...], stays: bool, site: Site) -> None:
    with site.box.connect() as viewer:
        viewer.sendall(head(*lines, request=request_line))
        response, _ = read_response(viewer)
        assert response.body == GOOD_BODY
        assert response.raw.startswith(b"HTTP/1.1 200 OK\r\n")
        if stays:
            assert response.fields.get("connection", "keep-alive") == "keep-alive"
            viewer.sendall(head(b"Connection: close"))
            assert read_response(viewer)[0].body == GOOD_BODY
        else:
            assert response.fields["connection"] == "close"
        assert read_all(viewer) == b""


def test_http_1_0_without_host_is_a_request_to_an_unknown_host(site: Site) -> None:
    response = Response(site.box.ask(b"GET /good/film HTTP/1.0\r\n\r\n"))
    check_own_error(response, 421)


def test_http_1_0_gets_a_body_of_unknown_length_until_the_end(site: Site) -> None:
    response = Response(site.box.ask(b"GET /good/ten HTTP/1.0\r\n" + HOST_LINE + b"\r\n"))
    assert response.body == GOOD_BODY
    assert "transfer-encoding" not in response.fields


def test_a_head_request_gets_the_heads_of_errors_too(site: Site) -> None:
    with site.box.connect() as viewer:
        viewer.sendall(head(request=b"HEAD / HTTP/1.1", host=b"Host: intranet.example\r\n"))
        response, rest = read_response(viewer, has_body=False)
        assert (response.status, rest) == (421, b"")
        assert response.fields["content-length"] != "0"
        viewer.sendall(head(b"Connection: close"))
        assert Response(read_all(viewer)).body == GOOD_BODY


@pytest.mark.parametrize("method", [b"POST", b"PUT", b"DELETE"])
def test_bug_a_method_that_is_not_allowed_was_called_too_large(method: bytes, site: Site) -> None:
    """A licence request that a player posts was answered 413, although the method is what is not allowed."""
    request = head(b"Content-Length: 5", request=method + b" /good/film HTTP/1.1") + b"hello"
    response = Response(site.box.ask(request))
    check_own_error(response, 405)
    assert response.fields["allow"] == "GET, HEAD, OPTIONS"
    assert response.fields["connection"] == "close"


def test_bug_an_answer_was_lost_when_its_viewer_was_still_sending(site: Site) -> None:
    """Closing with unread bytes resets the connection, and a reset can throw the answer away (RFC 9112 section 9.6)."""
    with site.box.connect() as viewer:
        viewer.sendall(fields(b"Content-Length: 200000"))
        sent = 0
        with contextlib.suppress(ConnectionError):
            while sent < 200000:
                viewer.sendall(bytes(1000))
                sent += 1000
        assert sent == 200000
        pieces = []
        while piece := viewer.recv(65536):  # an error here is the reset
            pieces.append(piece)
    check_own_error(Response(b"".join(pieces)), 413)


def test_each_byte_of_a_head_may_come_alone(site: Site) -> None:
    with site.box.connect() as viewer:
        viewer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in head(b"Range: bytes=1-3"):
            viewer.sendall(bytes([byte]))
        response, _ = read_response(viewer)
    assert (response.status, response.body) == (206, GOOD_BODY[1:4])


def test_a_range_may_end_beyond_any_number(site: Site) -> None:
    """RFC 9110 section 14.1.2: a last position beyond the end is the end."""
    with site.box.connect() as viewer:
        viewer.sendall(fields(b"Range: bytes=990-99999999999999999999999"))
        response, _ = read_response(viewer)
    assert (response.status, response.fields["content-range"]) == (206, "bytes 990-999/1000")


def test_an_error_in_a_pipeline_comes_in_its_turn_and_ends_it(site: Site) -> None:
    site.good_viewer_is_served()
    before = site.box.stats()
    answer = site.box.ask(head() + head(request=b"GET /good/film HTTP/2.0") + head(request=b"GET /never HTTP/1.1"))
    assert answer.count(b"HTTP/1.1 200") == 1
    assert answer.count(b"HTTP/1.1 505") == 1
    assert answer.index(b"HTTP/1.1 200") < answer.index(b"HTTP/1.1 505")
    assert answer.count(b"HTTP/1.1 ") == 2
    assert site.box.grown(before)["requests"] == 2
    assert "/never" not in site.origin.targets()


def test_the_origin_was_never_sent_anything_that_is_not_a_plain_request(site: Site) -> None:
    assert wait_for(lambda: site.origin.asked)
    assert site.origin.faults == []
    assert {each.method for each in site.origin.asked} <= {b"GET", b"HEAD"}
    assert all(each.body == b"" for each in site.origin.asked)
