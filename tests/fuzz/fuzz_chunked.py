"""Fuzz target: a chunked body. However it is cut into pieces, it gives the same data and end, or is refused as framing;
what is accepted whole is what the definition of RFC 9112 section 7.1 says, read by a decoder that is slow and plain.

    .venv/bin/python -m pytest tests/fuzz/fuzz_chunked.py          a short run
    PYTHONPATH=. .venv/bin/python tests/fuzz/fuzz_chunked.py 600   so many seconds; prints the number of runs
"""

from __future__ import annotations

import random
import re

from mutation import mutated, run

from accelerator.errors import OriginError
from accelerator.protocols.chunked import ChunkedDecoder

SEEDS = [
    b"0\r\n\r\n",
    b"5\r\nhello\r\n0\r\n\r\n",
    b"a;x=y\r\n0123456789\r\n1\r\n!\r\n0;z\r\nX: y\r\nZ: \r\n\r\nHTTP/1.1 200 OK\r\n",
    b'A ; q="\r"\r\n0123456789\r\n00\r\n\r\n',
    b"1\r\na\r\n" * 20 + b"0\r\n\r\n",
]
WORDS = [b"0\r\n", b"\r\n\r\n", b"f" * 16, b";a=b", b"1\r\nx\r\n", b"ffffffffffffffff\r\n", b"X: y\r\n", b"0x"]

Outcome = tuple[bytes, int] | str


def decode(coded: bytes, cuts: list[int]) -> Outcome:
    """Data and length of the coded body; "open" where it has not ended, or the kind of the refusal."""
    decoder, body, consumed = ChunkedDecoder(), bytearray(), 0
    try:
        for first, last in zip([0, *cuts], [*cuts, len(coded)], strict=True):
            consumed += decoder.feed(memoryview(coded)[first:last], body.extend)
    except OriginError as error:
        return error.kind
    assert consumed == len(coded) or decoder.finished
    return (bytes(body), consumed) if decoder.finished else "open"


def by_definition(coded: bytes) -> Outcome:
    """The same by regular expressions on the whole text, without the decoder's limits on lengths."""
    body, position = b"", 0
    while True:
        size = re.compile(rb"([0-9A-Fa-f]+)(?:[ \t]*;[\t\x20-\x7e\x80-\xff]*)?\r\n").match(coded, position)
        if size is None:
            return "none"
        length = int(size.group(1), 16)
        position = size.end()
        if not length:
            break
        if coded[position + length : position + length + 2] != b"\r\n":
            return "none"
        body += coded[position : position + length]
        position += length + 2
    name = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
    trailers = re.compile(rb"(?:" + name + rb":[\t\x20-\x7e\x80-\xff]*\r\n)*\r\n").match(coded, position)
    return (body, trailers.end()) if trailers else "none"


def check(source: random.Random) -> None:
    """The target's invariant, for one mutation."""
    coded = mutated(source, SEEDS, WORDS)
    whole = decode(coded, [])
    assert isinstance(whole, tuple) or whole in ("open", "framing")
    assert decode(coded, list(range(1, len(coded)))) == whole
    assert decode(coded, sorted(source.randrange(len(coded) + 1) for _ in range(3))) == whole
    if isinstance(whole, tuple):
        assert by_definition(coded) == whole
    else:
        assert by_definition(coded) == "none" or whole == "framing"
    if isinstance(by_definition(coded), tuple) and max(map(len, coded.split(b"\r\n"))) < 16:
        assert isinstance(whole, tuple)


def test_fuzz_chunked() -> None:
    for seed in range(5000):
        check(random.Random(seed))


if __name__ == "__main__":
    run(check)
