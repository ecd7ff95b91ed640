"""Fuzz target: which viewers share a variant (ext/vary.pyx) beside what the origin saw of them (upstream_fields.py).

Two requests that the worker takes for the same variant must have looked the same to the origin.

    .venv/bin/python -m pytest tests/fuzz/fuzz_variant_values.py          a short run
    PYTHONPATH=. .venv/bin/python tests/fuzz/fuzz_variant_values.py 600   so many seconds; prints the number of runs
"""

from __future__ import annotations

import random

from mutation import mutated, run

from accelerator.protocols.origin_rules import OriginRules
from accelerator.protocols.upstream_fields import variant_values
from ext.http_head import parse_request
from ext.vary import values

CODINGS = [
    b"gzip", b"gzip;q=0", b"gzip;q=0.000", b"gzip;q=0 .0", b"gzip; q=1", b"br, gzip;q=0.5", b'x="a, gzip"',
    b"GZIP ;Q=0", b"gzip;q=.0", b"*", b"identity;q=0, gzip", b"gzip;;q=0", b"",
]  # fmt: skip
TEXTS = [b"a", b"a b", b"a\tb", b"a  b", b"ab", b"a, b", b"a,b", b"", b"A"]
WORDS = [b";", b",", b" ", b"\t", b"q=", b"=", b"0", b".", b"gzip", b'"', b"a"]
GENERIC = OriginRules(profile="generic")
NAMES = (b"accept-encoding", b"x-a", b"x-b")


def head(source: random.Random) -> tuple[bytes, list[tuple[bytes, bytes]]] | None:
    fields = []
    for _ in range(source.randrange(4)):
        name = source.choice([b"Accept-Encoding", b"X-A", b"x-b"])
        seeds = CODINGS if name == b"Accept-Encoding" else TEXTS
        value = source.choice(seeds) if source.random() < 0.5 else mutated(source, seeds, WORDS)
        fields.append((name, value.translate(None, b"\r\n\x00")))
    raw = b"GET / HTTP/1.1\r\nHost: a\r\n" + b"".join(b"%b: %b\r\n" % field for field in fields) + b"\r\n"
    try:
        return raw, parse_request(raw).fields
    except Exception:
        return None  # another control character: no such head reaches a worker's look-up


def seen(fields: list[tuple[bytes, bytes]]) -> tuple[bytes | None, ...]:
    """What the origin saw; lines of a list are joined, with or without a space (RFC 9110 section 5.3)."""
    found = variant_values(fields, NAMES, GENERIC)
    return tuple(None if value is None else value.replace(b", ", b",") for value in found)


def check(source: random.Random) -> None:
    first, second = head(source), head(source)
    if first is None or second is None:
        return
    names = b"".join(name + b"\n" for name in NAMES)
    ours = [values(names, each[0]) for each in (first, second)]
    if ours[0] is not None and ours[0] == ours[1]:
        # Who names gzip in a way that only one of the two readings takes for a yes gets what everybody can read.
        assert seen(first[1])[1:] == seen(second[1])[1:], (first[0], second[0])
    # gzip goes up only for who is sorted with those that read it.
    if ours[0] is not None and variant_values(first[1], NAMES[:1], GENERIC) == (b"gzip",):
        assert ours[0].startswith(b"gz\n"), first[0]


def test_fuzz_variant_values() -> None:
    for seed in range(30_000):
        check(random.Random(seed))


if __name__ == "__main__":
    run(check)
