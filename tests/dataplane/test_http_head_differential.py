"""Heads that we accept are read the same by h11 and httptools (llhttp): method, target, fields, framing, and the end.

We may refuse what they accept (LAXER_IN_... lists what and who), never read it differently. The few heads that we
accept and one of them refuses are named in `excuse`; anything else fails here.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import h11
import httptools
import pytest
from http_head_cases import ACCEPTED, ACCEPTED_RESPONSES, REFUSED, REFUSED_RESPONSES, H
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ext.http_head import HeadError, Request, Response, parse_request, parse_response

Fields = list[tuple[bytes, bytes]]


@dataclass(frozen=True)
class Reading:
    """What a parser says of a head. `start` is (method, target) or (status, reason); names are in lower case.

    `body` is "chunked", "close" (it ends with the connection) or its length, as RFC 9112 section 6.3 has it for a GET.
    """

    start: tuple[bytes, bytes]
    minor: int
    fields: Fields
    body: str
    keep_alive: bool


class Refused(Exception):
    """The other parser refuses the head."""


def lower(fields: Fields) -> Fields:
    """Names in lower case, and codings too: h11 reports both so."""
    lowered = [(name.lower(), value) for name, value in fields]
    return [(name, value.lower() if name == b"transfer-encoding" else value) for name, value in lowered]


def connection_members(fields: Fields) -> list[bytes]:
    values = [value for name, value in fields if name == b"connection"]
    return [member.strip(b" \t").lower() for value in values for member in value.split(b",")]


def body_of(is_request: bool, status: int, content_length: int, is_chunked: bool) -> str:
    if not is_request and (status < 200 or status in (204, 304)):
        return "0"
    if is_chunked:
        return "chunked"
    if content_length >= 0:
        return str(content_length)
    return "0" if is_request else "close"


def ours(head: Request | Response) -> Reading:
    is_request = isinstance(head, Request)
    start = (head.method, head.target) if isinstance(head, Request) else (b"%d" % head.status, head.reason)
    body = body_of(is_request, 0 if is_request else int(start[0]), head.content_length, head.chunked)
    return Reading(start, head.minor, lower(head.fields), body, head.keep_alive and body != "close")


def by_h11(data: bytes, is_request: bool) -> Reading | None:
    """h11's reading; None: it wants more. Body framing is that of the reader it sets up, not of the fields."""
    connection = h11.Connection(h11.SERVER if is_request else h11.CLIENT, max_incomplete_event_size=1 << 20)
    if not is_request:
        connection.send(h11.Request(method="GET", target="/", headers=[("Host", "a")]))
        connection.send(h11.EndOfMessage())
    connection.receive_data(data)
    try:
        event = connection.next_event()
    except h11.RemoteProtocolError as error:
        raise Refused(str(error)) from error
    if event is h11.NEED_DATA:
        return None
    assert isinstance(event, h11.Request | h11.Response | h11.InformationalResponse)
    assert connection.trailing_data[0] == b""
    start = (
        (event.method, event.target) if isinstance(event, h11.Request) else (b"%d" % event.status_code, event.reason)
    )
    fields = [(bytes(name), bytes(value)) for name, value in event.headers]
    if isinstance(event, h11.InformationalResponse):
        body = "0"
    else:
        reader = connection._reader
        body = {"ChunkedReader": "chunked", "Http10Reader": "close"}.get(type(reader).__name__) or str(reader._length)
    # h11 never keeps an HTTP/1.0 connection alive; what Connection says is read here then.
    members = connection_members(fields)
    says_keep_alive = b"keep-alive" in members and b"close" not in members
    keep_alive = h11._connection._keep_alive(event) or (event.http_version == b"1.0" and says_keep_alive)
    return Reading(
        (bytes(start[0]), bytes(start[1])),
        min(int(event.http_version[-1:]), 1),
        fields,
        body,
        keep_alive and body != "close",
    )


class Collector:
    """httptools' callbacks."""

    def __init__(self) -> None:
        self.start = b""
        self.fields: Fields = []
        self.is_complete = False
        self.keep_alive = False
        self.parser: httptools.HttpRequestParser | httptools.HttpResponseParser

    def on_url(self, url: bytes) -> None:
        self.start += url

    def on_status(self, reason: bytes) -> None:
        self.start += reason

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields.append((name, value))

    def on_headers_complete(self) -> None:
        self.is_complete = True
        self.keep_alive = self.parser.should_keep_alive()


def by_httptools(data: bytes, is_request: bool) -> Reading | None:
    """llhttp's reading; None: it wants more. It leaves framing to its callers but for what it refuses."""
    collector = Collector()
    parser = httptools.HttpRequestParser(collector) if is_request else httptools.HttpResponseParser(collector)
    collector.parser = parser
    try:
        parser.feed_data(data)
    except httptools.HttpParserUpgrade:
        pass
    except httptools.HttpParserError as error:
        raise Refused(str(error)) from error
    if not collector.is_complete:
        return None
    # llhttp leaves trailing whitespace in values to its caller.
    fields = [(name.lower(), value.rstrip(b" \t")) for name, value in collector.fields]
    start = (
        (parser.get_method(), collector.start)
        if isinstance(parser, httptools.HttpRequestParser)
        else (b"%d" % parser.get_status_code(), collector.start)
    )
    lengths = [int(value) for name, value in fields if name == b"content-length"]
    is_chunked = any(name == b"transfer-encoding" for name, _ in fields)
    body = body_of(is_request, 0 if is_request else int(start[0]), lengths[0] if lengths else -1, is_chunked)
    minor = int(parser.get_http_version()[-1])
    keep_alive = collector.keep_alive
    members = connection_members(fields)
    if (
        minor == 0 and b"close" in members
    ):  # llhttp lets keep-alive win there; RFC 9112 section 9.3 looks at close first
        keep_alive = False
    if any(name == b"proxy-connection" for name, _ in fields):  # llhttp takes it for Connection; no RFC does
        keep_alive = body != "close" and b"close" not in members and (minor > 0 or b"keep-alive" in members)
    return Reading(start, minor, lower(fields), body, keep_alive)


OTHERS: dict[str, Callable[[bytes, bool], Reading | None]] = {"h11": by_h11, "httptools": by_httptools}


# llhttp knows its methods by name; of those that it knows, CONNECT is 501 here.
LLHTTP_METHODS = frozenset(
    b"GET HEAD POST PUT DELETE OPTIONS TRACE PATCH COPY LOCK MKCOL MOVE PROPFIND PROPPATCH SEARCH UNLOCK BIND "
    b"REBIND UNBIND ACL REPORT MKACTIVITY CHECKOUT MERGE "
    b"M-SEARCH NOTIFY SUBSCRIBE UNSUBSCRIBE PURGE MKCALENDAR LINK UNLINK QUERY".split()
)


def excuse(other: str, refusal: str, data: bytes, head: Request | Response) -> bool:
    """Whether `other` may refuse this head that we accept, and gives the reason that is known for it."""
    if isinstance(head, Response):  # h11 knows that nobody asked to upgrade; llhttp stops there, as its API has it
        return head.status == 101
    if other == "h11":  # RFC 9112 section 2.2 lets a server skip the empty line; h11 doesn't
        return data.startswith(b"\r\n") and refusal == "no request line received"
    if refusal in ("Invalid method encountered", "Expected space after method"):
        return head.method not in LLHTTP_METHODS
    if refusal == "Invalid HTTP version":  # RFC 9110 section 2.5: a higher minor version is read as 1.1
        return not data.split(b"\r\n\r\n")[0].removeprefix(b"\r\n").split(b"\r\n")[0].endswith((b"1.0", b"1.1"))
    return False


def compare(data: bytes, is_request: bool) -> bool:
    """Whether we accept the head at the start of `data`; then everybody must read it as we do."""
    head: Request | Response | None
    try:
        head = parse_request(data) if is_request else parse_response(data)
    except HeadError:
        return False
    if head is None:
        return False
    data = data[: head.length]
    mine = ours(head)
    for name, read in OTHERS.items():
        try:
            theirs = read(data, is_request)
        except Refused as refusal:
            if excuse(name, str(refusal), data, head):
                continue
            raise AssertionError(f"{name}: {refusal}: {data!r}") from refusal
        assert theirs == mine, (name, data)
        try:
            assert read(data[:-1], is_request) is None, (name, data)
        except Refused:
            raise AssertionError((name, data)) from None
    return True


SEEDS_REQUESTS = [data for data, _ in ACCEPTED.values() if len(data) < 1000] * 4 + [
    data for data, _ in REFUSED.values() if len(data) < 1000
]
SEEDS_RESPONSES = [data for data, _ in ACCEPTED_RESPONSES.values() if len(data) < 1000] * 4 + [
    data for data in REFUSED_RESPONSES.values() if len(data) < 1000
]

PIECES = [
    *(bytes([c]) for c in b'\x00\t\n\x0b\x0c\r\x1b !"#%,-./0159:;=?@AZ[\\]_az|~\x7f\x80\x85\xa0\xff'),
    *b"close|keep-alive|chunked|gzip|Upgrade: x\r\n|Connection: |Connection: upgrade\r\n|Transfer-Encoding: |Host: "
    b"|X: y\r\n|Content-Length: 3\r\n|Content-Length: |Expect: 100-continue\r\n|HTTP/1.0|HTTP/1.1|HTTP/1.2|http://a|//|\r\n|\r\n\r\n"
    b"|, |Trailer: x\r\n|Proxy-Connection: close\r\n|204|304|101|100|OPTIONS|*|POST|[::1]|:80".split(b"|"),
]


def mutate(rng: random.Random, seeds: list[bytes]) -> bytes:
    data = rng.choice(seeds)
    for _ in range(rng.randint(1, 3)):
        place = rng.randrange(len(data) + 1)
        match rng.randrange(5):
            case 0:
                data = data[:place] + rng.choice(PIECES) + data[place:]
            case 1:
                piece = rng.choice(PIECES)
                data = data[:place] + piece + data[place + len(piece) :]
            case 2:
                data = data[:place] + data[place + rng.randint(1, 4) :]
            case 3:  # a line of another head
                lines = rng.choice(seeds).split(b"\r\n")
                own = data.split(b"\r\n")
                own.insert(rng.randrange(1, len(own) + 1), rng.choice(lines))
                data = b"\r\n".join(own)
            case _:  # two lines change places, or one comes twice
                own = data.split(b"\r\n")
                own.insert(rng.randrange(len(own)), own[rng.randrange(len(own))])
                data = b"\r\n".join(own)
    return data


@pytest.mark.parametrize("is_request", [True, False])
def test_mutated_heads_are_read_alike(is_request: bool) -> None:
    rng = random.Random(20)
    seeds = SEEDS_REQUESTS if is_request else SEEDS_RESPONSES
    n_accepted = sum(compare(mutate(rng, seeds), is_request) for _ in range(20_000))
    assert n_accepted > 1000, "the mutations must leave enough heads to compare"


@pytest.mark.parametrize("name", ACCEPTED)
def test_accepted_requests_are_read_alike(name: str) -> None:
    assert compare(ACCEPTED[name][0], True)


@pytest.mark.parametrize("name", ACCEPTED_RESPONSES)
def test_accepted_responses_are_read_alike(name: str) -> None:
    assert compare(ACCEPTED_RESPONSES[name][0], False)


TOKENS = st.text("!#$%&'*+-.^_`|~09azAZ", min_size=1, max_size=12).map(str.encode)
OWS = st.text(" \t", max_size=3).map(str.encode)
VALUES = st.binary(max_size=40) | st.sampled_from(
    [
        b"close",
        b"keep-alive",
        b"keep-alive, close",
        b"Upgrade, close",
        b"chunked",
        b"5",
        b"05",
        b"100-continue",
        b"a:80",
        b"a",
    ]
)
NAMES = TOKENS | st.sampled_from(
    [
        b"Connection",
        b"Content-Length",
        b"Transfer-Encoding",
        b"Upgrade",
        b"Expect",
        b"Proxy-Connection",
        b"Trailer",
        b"Host",
    ]
)
ENDS = st.sampled_from([b"\r\n"] * 30 + [b"\n", b"\r", b"\r\r\n", b"\r\n "])
LINES = st.tuples(NAMES, st.just(b":"), OWS, VALUES, OWS, ENDS).map(b"".join)
TARGETS = st.text([chr(c) for c in range(0x21, 0x7F)], max_size=30).map(
    lambda text: b"/" + text.encode()
) | st.sampled_from([b"*", b"http://a/", b"http://a", b"//", b"/%00"])
REQUEST_LINES = st.tuples(
    st.sampled_from([b"", b"", b"", b"\r\n"]),
    st.sampled_from(sorted(LLHTTP_METHODS)) | TOKENS,
    st.just(b" "),
    TARGETS,
    st.sampled_from([b" HTTP/1.1\r\n", b" HTTP/1.1\r\n", b" HTTP/1.0\r\n", b" HTTP/1.3\r\n"]),
    st.sampled_from([H, H, b""]),
).map(b"".join)
STATUS_LINES = st.tuples(
    st.sampled_from([b"HTTP/1.1 ", b"HTTP/1.0 "]),
    st.integers(100, 999).map(lambda status: b"%d" % status),
    st.sampled_from([b"", b" "]) | st.binary(max_size=20).map(lambda reason: b" " + reason),
    ENDS,
).map(b"".join)


@given(REQUEST_LINES, st.lists(LINES, max_size=5))
@settings(max_examples=1000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_generated_requests_are_read_alike(line: bytes, lines: list[bytes]) -> None:
    compare(line + b"".join(lines) + b"\r\n", True)


@given(STATUS_LINES, st.lists(LINES, max_size=5))
@settings(max_examples=1000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_generated_responses_are_read_alike(line: bytes, lines: list[bytes]) -> None:
    compare(line + b"".join(lines) + b"\r\n", False)


# Where they are laxer than we are. Exact: a version of theirs that gets stricter or laxer shows here. Not in it: the
# grammar of Host and absolute-form against Host, which neither looks at, and the HTTP/2 preface, which h11 takes for
# a request with pipelined garbage.
BOTH = ("h11", "httptools")
LAXER_IN_REQUESTS: dict[tuple[str, ...], list[str]] = {
    ("h11",): [
        "method too long", "relative target", "query only", "backslash for a slash", "authority-form",
        "authority-form that starts like a scheme", "bare LF after the request line", "bare LF after a field",
        "bare LF for the empty line", "bare LF in a value", "DEL in a value", "ESC in a value",
        "obs-fold with space", "obs-fold with HTAB", "Content-Length b'5,5'", "Content-Length b'5, 5'",
        "Content-Length b'18446744073709551621'", "two equal Content-Lengths", "Content-Length, then chunked",
        "chunked, then Content-Length", "HTAB after chunked",
    ],
    ("httptools",): [
        "second leading CRLF", "leading bare LF", "leading bare CR", "two spaces before the target",
        "two spaces before the version", "other protocol", "no Host", "two Hosts", "two Hosts in HTTP/1.0",
        "two Hosts, other case", "Content-Length b'0000000000000000000000000000001'",
        "Transfer-Encoding b'gzip, chunked'", "Transfer-Encoding b',chunked'",
    ],
    BOTH: [
        "CONNECT", "fragment", "fragment in the seventeenth byte", "other scheme",
        "other scheme that starts like ours", "asterisk-form for GET", "asterisk with more", "target too long",
        "HTTP/0.9 by name", "HTTP/2.0", "too many fields", "field too long", "field too long by its OWS",
        "head too long", "empty Host in HTTP/1.0", "Content-Length b'1111111111111111111'",
        "Transfer-Encoding in HTTP/1.0", "other expectation", "two expectations", "Expect twice",
        "HTAB before a Content-Length", "HTAB after a Content-Length", "HTAB before chunked",
    ],
}  # fmt: skip
LAXER_IN_RESPONSES: dict[tuple[str, ...], list[str]] = {
    ("h11",): [
        "HTTP/1.2", "bare LF after the reason", "bare LF after the status", "bare LF after a field",
        "bare LF for the empty line", "obs-fold", "two equal Content-Lengths", "list of equal Content-Lengths",
        "Content-Length and chunked", "chunked and Content-Length",
    ],
    ("httptools",): [
        "leading CRLF", "status below 100", "NUL in the reason", "other coding", "chunked twice",
    ],
    BOTH: [
        "HTTP/2.0", "DEL in the reason", "chunked in HTTP/1.0", "chunked in 204", "Content-Length 1 in 204",
        "Content-Length 1 in 103", "too many fields", "field too long", "HTAB after a Content-Length",
        "HTAB after chunked",
    ],
}  # fmt: skip


def who_accepts(data: bytes, is_request: bool) -> Iterator[str]:
    for name, read in OTHERS.items():
        try:
            if read(data, is_request) is not None:
                yield name
        except Refused:
            pass


@pytest.mark.parametrize("name", [n for n in REFUSED if not n.startswith(("Host ", "absolute-form", "HTTP/2 preface"))])
def test_who_is_laxer_in_requests(name: str) -> None:
    expected = next((who for who, names in LAXER_IN_REQUESTS.items() if name in names), ())
    assert tuple(who_accepts(REFUSED[name][0], True)) == expected


@pytest.mark.parametrize("name", REFUSED_RESPONSES)
def test_who_is_laxer_in_responses(name: str) -> None:
    expected = next((who for who, names in LAXER_IN_RESPONSES.items() if name in names), ())
    assert tuple(who_accepts(REFUSED_RESPONSES[name], False)) == expected
