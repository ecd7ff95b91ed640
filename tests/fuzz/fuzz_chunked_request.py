"""Fuzz target: chunked bodies of requests. The worker's decoder and the control plane's give the same data, end at the
same byte, or both refuse, however the body is cut into pieces.

    .venv/bin/python -m pytest tests/fuzz/fuzz_chunked_request.py          a short run
    PYTHONPATH=. .venv/bin/python tests/fuzz/fuzz_chunked_request.py 600   so many seconds; prints the number of runs
"""

from __future__ import annotations

import random

from fuzz_chunked import SEEDS, WORDS
from mutation import mutated, run

from accelerator.errors import OriginError
from accelerator.protocols.chunked import ChunkedDecoder
from ext.chunked import decode


def by_control_plane(coded: bytes) -> tuple[bytes, int, str]:
    decoder, body = ChunkedDecoder(), bytearray()
    try:
        used = decoder.feed(memoryview(coded), body.extend)
    except OriginError:
        return bytes(body), 0, "bad"
    return bytes(body), used, "whole" if decoder.finished else "open"


def check(source: random.Random) -> None:
    """The target's invariant, for one mutation."""
    coded = mutated(source, SEEDS, WORDS)
    cuts = sorted(source.randrange(len(coded) + 1) for _ in range(source.choice([0, 1, 3, len(coded)])))
    ours, theirs = decode(coded, cuts), by_control_plane(coded)
    if ours[2] == "bad" and theirs[2] == "open":
        # The control plane judges a line when it is whole, the worker each byte. It must agree when the line ends.
        assert by_control_plane(coded + b"\r\n" * 2)[2] == "bad", (coded, cuts)
        return
    assert ours[2] == theirs[2], (coded, cuts, ours, theirs)
    if ours[2] != "bad":
        assert ours == theirs, (coded, cuts)


def test_fuzz_chunked_request() -> None:
    for seed in range(5000):
        check(random.Random(seed))


if __name__ == "__main__":
    run(check)
