"""Fuzz target of ext/http_head.pyx. Alone it is a seeded mutational fuzzer; where atheris is installed, its target.

    .venv/bin/python tests/fuzz/fuzz_http_head.py [SECONDS] [SEED]

A build with SANITIZE=address,undefined (see tools/sanitized_tests.py) on PYTHONPATH also sees reads outside the head,
because each input lies in memory of exactly its size. Seeds are the heads of tests/dataplane/http_head_cases.py.
What must hold:
1. No byte outside data[:n] is read, nothing crashes, and nothing but HeadError is raised.
2. What is accepted has a length within data, and every byte string of it lies in data[:length].
3. An accepted head is accepted alike with other bytes behind it, and each of its prefixes is incomplete.
4. A refused head is refused with the same status when more bytes follow.
5. An incomplete head is shorter than MAX_HEAD_BYTES, and its beginning is incomplete too.
6. An accepted head written again from its parsed fields is accepted and means the same.
"""

from __future__ import annotations

import ctypes
import random
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[1:1] = [str(ROOT / "tests" / "dataplane")]
sys.path.append(str(ROOT))  # last, so that a sanitized build on PYTHONPATH wins

from http_head_cases import (  # noqa: E402
    ACCEPTED,
    ACCEPTED_CONNECTS,
    ACCEPTED_RESPONSES,
    MAX_HEAD_BYTES,
    REFUSED,
    REFUSED_CONNECTS,
    REFUSED_EARLY,
    REFUSED_RESPONSES,
)

from ext.http_head import HeadError, Request, Response, parse_request, parse_response, request_numbers  # noqa: E402

Head = Request | Response
Parser = Callable[[bytes | memoryview], Head | None]

LIBC = ctypes.CDLL(None)
LIBC.malloc.restype = ctypes.c_void_p
LIBC.malloc.argtypes = [ctypes.c_size_t]
LIBC.free.argtypes = [ctypes.c_void_p]



def parse_connect(data: bytes | memoryview) -> Request | None:
    """As a worker does where policy lists a target of CONNECT."""
    return parse_request(data, may_connect=True)


STATUSES = {
    parse_request: {400, 414, 417, 431, 501, 505}, parse_response: {502}, parse_connect: {400, 414, 417, 431, 501, 505},
}  # fmt: skip
TAILS = (b"\r\n", b"\x00", b"GET / HTTP/1.1\r\nHost: b\r\n\r\n", b" ")


@contextmanager
def exact_copy(data: bytes) -> Iterator[memoryview]:
    """`data` in memory of exactly its size: a bytes object has a NUL behind it, which would hide a read too far."""
    address = LIBC.malloc(len(data))
    ctypes.memmove(address, data, len(data))
    array = (ctypes.c_char * len(data)).from_address(address)
    try:
        yield memoryview(array).cast("B") if data else memoryview(b"")
    finally:
        LIBC.free(address)


def result_of(parse: Parser, data: bytes) -> Head | int | None:
    """The head, the status of its refusal, or None for an incomplete one."""
    with exact_copy(data) as view:
        try:
            return parse(view)
        except HeadError as error:
            status = error.status
    assert status in STATUSES[parse]
    return status


def meaning(head: Head) -> tuple[object, ...]:
    start: tuple[object, ...] = (
        (head.method, head.target, head.path, head.host, head.authority, head.expects_continue)
        if isinstance(head, Request)
        else (head.status, head.reason)
    )
    return (*start, head.minor, head.keep_alive, head.content_length, head.chunked, head.fields)


def rewritten(head: Head) -> bytes:
    version = b"HTTP/1.%d" % head.minor
    if isinstance(head, Request):
        line = b"%s %s %s\r\n" % (head.method, head.target, version)
    else:
        line = b"%s %d %s\r\n" % (version, head.status, head.reason)
    return line + b"".join(b"%s:%s\r\n" % field for field in head.fields) + b"\r\n"


def check_accepted(parse: Parser, data: bytes, head: Head) -> None:
    assert 0 < head.length <= min(len(data), MAX_HEAD_BYTES)
    own = data[: head.length]
    assert own.endswith(b"\r\n\r\n")
    for name, value in head.fields:
        assert name in own
        assert value in own
        assert b"\r" not in value
        assert b"\n" not in value
    if isinstance(head, Request) and head.method == b"CONNECT":
        assert not head.chunked
        assert head.content_length == -1
        assert head.authority == head.target
        assert head.target in own
    elif isinstance(head, Request):
        numbers = request_numbers(data)
        for offset, length in (("target", "target_length"), ("path", "path_length"), ("host", "authority_length")):
            assert int(str(numbers[offset])) + int(str(numbers[length])) <= head.length
    for tail in (b"", *TAILS):
        again = result_of(parse, own + tail)
        assert isinstance(again, Head)
        assert (again.length, meaning(again)) == (head.length, meaning(head))
    places = range(head.length) if head.length < 100 else [*range(0, head.length, head.length // 40), head.length - 1]
    for n in places:
        assert result_of(parse, own[:n]) is None, n
    again = result_of(parse, rewritten(head))
    assert isinstance(again, Head)
    assert meaning(again) == meaning(head)


def check(parse: Parser, data: bytes) -> str:
    """Checks every invariant for one input; what the parser made of it, for the statistics."""
    result = result_of(parse, data)
    if isinstance(result, Head):
        check_accepted(parse, data, result)
        return "accepted"
    if result is None:
        assert len(data) < MAX_HEAD_BYTES
        assert result_of(parse, data[: len(data) // 2]) is None
        return "incomplete"
    for tail in TAILS:
        assert result_of(parse, data + tail) == result
    return str(result)


REQUESTS = [data for data, _ in (*ACCEPTED.values(), *REFUSED.values(), *REFUSED_EARLY.values())]
CONNECTS = [data for data, _ in (*ACCEPTED_CONNECTS.values(), *REFUSED_CONNECTS.values())]
RESPONSES = [*(data for data, _ in ACCEPTED_RESPONSES.values()), *REFUSED_RESPONSES.values()]
SHORT = [head for head in REQUESTS + RESPONSES + CONNECTS if len(head) < 300]
WORDS = [word for head in SHORT for word in head.replace(b":", b" ").split()]


def mutate(rng: random.Random, seeds: list[bytes]) -> bytes:
    # Long seeds cost a hundred times a short one and only matter to the limits.
    data = rng.choice(seeds)
    while len(data) > 1000 and rng.random() < 0.95:
        data = rng.choice(seeds)
    for _ in range(rng.choice((0, 1, 1, 1, 2, 2, 3, 8))):
        place = rng.randrange(len(data) + 1)
        match rng.randrange(8):
            case 0:
                data = data[:place] + rng.randbytes(rng.randint(1, 3)) + data[place:]
            case 1:
                data = data[:place] + rng.randbytes(1) + data[place + 1 :]
            case 2:
                data = data[:place] + data[place + rng.randint(1, 20) :]
            case 3:
                data = data[:place] + rng.choice(WORDS) + data[place:]
            case 4:
                other = rng.choice(seeds)
                data = data[:place] + other[rng.randrange(len(other) + 1) :]
            case 5:
                data = data[:place] + data[place : place + 40] * rng.choice((2, 3, 101)) + data[place + 40 :]
            case 6:
                mark = rng.choice((b"\r\n", b"\n", b"\r", b" ", b"\t", b":", b",", b"\x00"))
                data = data[:place] + mark + data[place:]
            case _:
                lines = data.split(b"\r\n")
                lines.insert(rng.randrange(len(lines)), rng.choice(rng.choice(seeds).split(b"\r\n")))
                data = b"\r\n".join(lines)
    return data[: 2 * MAX_HEAD_BYTES]


def run(seconds: float, seed: int) -> None:
    rng = random.Random(seed)
    counts: dict[str, int] = {}
    targets = ((parse_request, REQUESTS), (parse_response, RESPONSES), (parse_connect, CONNECTS))
    for parse, seeds in targets:
        for data in seeds:
            check(parse, data)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        for parse, seeds in targets:
            data = mutate(rng, seeds)
            try:
                kind = f"{parse.__name__.removeprefix('read_')} {check(parse, data)}"
            except BaseException:
                print(f"seed {seed}, {parse.__name__}: {data!r}", file=sys.stderr)
                raise
            counts[kind] = counts.get(kind, 0) + 1
    print("tested", sys.modules["ext.http_head"].__file__)
    print(f"seed {seed}, {sum(counts.values())} heads in {seconds:.0f} s:", dict(sorted(counts.items())))


def one_input(data: bytes) -> None:
    """atheris' target."""
    check(parse_request, data)
    check(parse_response, data)
    check(parse_connect, data)


def main() -> None:
    try:
        import atheris  # type: ignore[import-not-found]
    except ImportError:
        run(float(sys.argv[1]) if len(sys.argv) > 1 else 10.0, int(sys.argv[2]) if len(sys.argv) > 2 else 1)
        return
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
