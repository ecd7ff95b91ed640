"""What ext/http_head.pyx accepts and refuses, as tables: heads whole, every prefix of them, and with bytes after them.

Other parsers' readings are test_http_head_differential.py's, random bytes tests/fuzz/fuzz_http_head.py's.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from http_head_cases import (
    ACCEPTED,
    ACCEPTED_CONNECTS,
    ACCEPTED_RESPONSES,
    LINE,
    REFUSED,
    REFUSED_CONNECTS,
    REFUSED_EARLY,
    REFUSED_RESPONSES,
    H,
    with_fields,
)

from ext.http_head import HeadError, Request, Response, parse_request, parse_response, request_numbers

Parser = Callable[[bytes | memoryview], Request | Response | None]

TRAILERS = (b"", b"\r\n", b"\n", b"\x00", b"GET / HTTP/1.1\r\nHost: b\r\n\r\n", b"x" * 40000)


def outcome(parse: Parser, data: bytes | memoryview) -> int | None:
    """A length, minus a status, or None for an incomplete head."""
    try:
        head = parse(data)
    except HeadError as error:
        return -error.status
    return None if head is None else head.length


def check_accepted(parse: Parser, data: bytes, expected: dict[str, object]) -> None:
    head = parse(data)
    assert head is not None
    assert head.length == len(data)
    for name, value in expected.items():
        assert getattr(head, name) == value, name
    view = memoryview(data)
    for n in range(len(data)):
        assert parse(view[:n]) is None, data[:n][-80:]
    for trailer in TRAILERS:
        followed = parse(data + trailer)
        assert followed is not None
        assert followed.length == len(data)
        assert followed.fields == head.fields


def check_refused(parse: Parser, data: bytes, status: int) -> None:
    view = memoryview(data)
    is_refused = False
    for n in range(len(data) + 1):
        result = outcome(parse, view[:n])
        assert result in (None, -status), data[:n][-80:]
        assert not (is_refused and result is None), data[:n][-80:]
        is_refused = result is not None
    assert is_refused
    for trailer in TRAILERS:
        assert outcome(parse, data + trailer) == -status


@pytest.mark.parametrize("name", ACCEPTED)
def test_accepted_request(name: str) -> None:
    check_accepted(parse_request, *ACCEPTED[name])


@pytest.mark.parametrize("name", REFUSED)
def test_refused_request(name: str) -> None:
    check_refused(parse_request, *REFUSED[name])


@pytest.mark.parametrize("name", REFUSED_EARLY)
def test_refused_before_the_head_ends(name: str) -> None:
    data, status = REFUSED_EARLY[name]
    assert outcome(parse_request, data[:-1]) is None
    check_refused(parse_request, data, status)


@pytest.mark.parametrize("name", ACCEPTED_RESPONSES)
def test_accepted_response(name: str) -> None:
    check_accepted(parse_response, *ACCEPTED_RESPONSES[name])


@pytest.mark.parametrize("name", REFUSED_RESPONSES)
def test_refused_response(name: str) -> None:
    check_refused(parse_response, REFUSED_RESPONSES[name], 502)


def parse_with_connect(data: bytes | memoryview) -> Request | None:
    """As a worker does where policy lists a target of CONNECT."""
    return parse_request(data, may_connect=True)


@pytest.mark.parametrize("name", ACCEPTED_CONNECTS)
def test_accepted_connect(name: str) -> None:
    data, expected = ACCEPTED_CONNECTS[name]
    check_accepted(parse_with_connect, data, expected)
    check_refused(parse_request, data, 501)


@pytest.mark.rfc("RFC 9112 3.2.3", "a CONNECT without a port, or with a second reading, is refused")
@pytest.mark.parametrize("name", REFUSED_CONNECTS)
def test_refused_connect(name: str) -> None:
    check_refused(parse_with_connect, *REFUSED_CONNECTS[name])


@pytest.mark.parametrize("name", [*ACCEPTED, *REFUSED])
def test_other_requests_mean_the_same_where_connect_is_allowed(name: str) -> None:
    data: bytes = (ACCEPTED.get(name) or REFUSED[name])[0]
    if not data.startswith(b"CONNECT"):
        assert outcome(parse_with_connect, data) == outcome(parse_request, data)


def test_every_byte_in_every_place_of_a_value() -> None:
    """The 16-byte scan and the table agree on each byte at each distance from the value's start and end."""
    allowed = {9, *range(0x20, 0x7F), *range(0x80, 0x100)}
    for byte in range(256):
        for before in range(18):
            for after in (0, 1, 15, 16, 17):
                data = LINE + b"Host:a\r\nX:" + b"v" * before + bytes([byte]) + b"v" * after + b"\r\n\r\n"
                assert outcome(parse_request, data) == (len(data) if byte in allowed else -400), (byte, before, after)


def test_every_byte_in_every_place_of_a_target() -> None:
    allowed = set(range(0x21, 0x7F)) - {0x23}
    for byte in range(256):
        for before in range(18):
            data = b"GET /" + b"t" * before + bytes([byte]) + b"t HTTP/1.1\r\nHost:a\r\n\r\n"
            assert outcome(parse_request, data) == (len(data) if byte in allowed else -400), (byte, before)


def test_every_byte_in_a_name_and_a_method() -> None:
    allowed = set(b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
    for byte in range(256):
        name = LINE + H + b"a" + bytes([byte]) + b"b: c\r\n\r\n"
        if byte != ord(":"):
            assert outcome(parse_request, name) == (len(name) if byte in allowed else -400), byte
        method = b"A" + bytes([byte]) + b"B / HTTP/1.1\r\nHost: a\r\n\r\n"
        if byte != ord(" "):
            assert outcome(parse_request, method) == (len(method) if byte in allowed else -400), byte


METHODS = {
    b"GET": 1,
    b"HEAD": 2,
    b"OPTIONS": 3,
    b"POST": 4,
    b"PUT": 5,
    b"DELETE": 6,
    b"PATCH": 7,
    b"TRACE": 9,
    b"PURGE": 0,
    b"Get": 0,
    b"PUX": 0,
    b"HEAT": 0,
    b"DELETF": 0,
    b"OPTIONZ": 0,
    b"G": 0,
}

FIELD_IDS = {
    b"Host": 1,
    b"Content-Length": 2,
    b"Transfer-Encoding": 3,
    b"Connection": 4,
    b"Range": 5,
    b"If-Range": 6,
    b"If-None-Match": 7,
    b"If-Modified-Since": 8,
    b"If-Match": 9,
    b"If-Unmodified-Since": 10,
    b"Origin": 11,
    b"Access-Control-Request-Method": 12,
    b"Access-Control-Request-Headers": 13,
    b"Expect": 14,
    b"Upgrade": 15,
    b"Cache-Control": 16,
    b"Authorization": 17,
    b"Cookie": 18,
    b"Accept-Encoding": 19,
}


@pytest.mark.parametrize("method", METHODS)
def test_method_numbers(method: bytes) -> None:
    assert request_numbers(method + b" / HTTP/1.1\r\nHost: a\r\n\r\n")["method"] == METHODS[method]


def numbers_with(name: bytes, value: bytes) -> dict[str, object]:
    return request_numbers(
        b"GET / HTTP/1.1\r\nX: 1\r\n" + (b"" if name.lower() == b"host" else H) + name + b": " + value + b"\r\n\r\n"
    )


@pytest.mark.parametrize("name", FIELD_IDS)
def test_field_ids_in_any_case_and_no_neighbour(name: bytes) -> None:
    value = {b"Content-Length": b"1", b"Transfer-Encoding": b"chunked", b"Expect": b"100-continue", b"Host": b"b"}.get(
        name, b"v"
    )
    number = FIELD_IDS[name]
    for spelling in (name, name.lower(), name.upper(), name.swapcase()):
        numbers = numbers_with(spelling, value)
        ids, known, count = numbers["ids"], numbers["known"], numbers["count"]
        assert isinstance(ids, list)
        assert isinstance(known, list)
        assert isinstance(count, list)
        assert ids[-1] == number
        assert known[number] == len(ids)
        assert count[number] == 1
    for place in range(len(name)):
        neighbour = name[:place] + b"!" + name[place + 1 :]
        ids = request_numbers(LINE + H + neighbour + b": v\r\n\r\n")["ids"]
        assert ids == [1, 0], neighbour


def test_known_is_the_first_and_count_is_all() -> None:
    numbers = request_numbers(with_fields(b"Range: a\r\nX: 1\r\nrange: b\r\nRANGE: c\r\n"))
    known, count = numbers["known"], numbers["count"]
    assert isinstance(known, list)
    assert isinstance(count, list)
    assert (known[5], count[5]) == (2, 3)
    assert known[0] == count[0] == 0
    assert numbers["ids"] == [1, 5, 0, 5, 5]


def test_offsets_after_a_leading_crlf() -> None:
    data = b"\r\nGET http://a:80/p?q HTTP/1.1\r\nX: y\r\nHost: \ta:80 \r\n\r\n"
    numbers = request_numbers(data)
    assert numbers["start"] == 2
    assert numbers["form"] == 1
    for part, expected in (
        (("target", "target_length"), b"http://a:80/p?q"),
        (("path", "path_length"), b"/p?q"),
        (("host", "host_length"), b"a"),
        (("host", "authority_length"), b"a:80"),
    ):
        offset, length = (numbers[key] for key in part)
        assert isinstance(offset, int)
        assert isinstance(length, int)
        assert data[offset : offset + length] == expected


def test_absolute_form_without_path_has_path_length_0() -> None:
    assert request_numbers(b"GET http://a HTTP/1.1\r\nHost: a\r\n\r\n")["path_length"] == 0


def test_any_contiguous_buffer_and_nothing_else() -> None:
    data = with_fields(b"")
    for copy in (bytearray(data), memoryview(data), memoryview(bytearray(data))):
        head = parse_request(copy)
        assert head is not None
        assert head.method == b"GET"
    assert parse_response(memoryview(b"")) is None
    for wrong in ("GET / HTTP/1.1\r\n", None, memoryview(data)[::2]):
        with pytest.raises((TypeError, BufferError)):
            parse_request(wrong)  # type: ignore[arg-type]


def test_head_error_names_its_status() -> None:
    with pytest.raises(HeadError, match="400 Bad Request") as caught:
        parse_request(b"\x00")
    assert (caught.value.status, caught.value.reason) == (400, "Bad Request")
