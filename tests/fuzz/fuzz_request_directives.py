"""Fuzz target: a viewer's Cache-Control and Pragma as the worker reads them (ext/directives.pyx), beside
protocols/cache_control.py, which decides on misses: the two have to agree on every byte string.

    .venv/bin/python -m pytest tests/fuzz/fuzz_request_directives.py          a short run
    PYTHONPATH=. .venv/bin/python tests/fuzz/fuzz_request_directives.py 600   so many seconds; prints the number of runs
"""

from __future__ import annotations

import random

from mutation import mutated, run

from accelerator.protocols.cache_control import request_directives
from accelerator.protocols.origin_rules import OriginRules
from ext.directives import refuses, takes_stale
from ext.http_head import parse_request

SEEDS = [
    b"no-cache", b"max-age=30", b'max-age="30", min-fresh=5', b"min-fresh=90", b"max-age=0", b'x="a, no-cache',
    b"No-Cache=x", b'x="a, no-cache, ", max-age=1', b"max-age =9", b'max-age="3\\0"', b"max-age=99999999999999999999",
    b"no-cache ,,", b"", b"max-stale", b"max-stale=5", b'max-stale="5"', b"max-stale =5", b"max-stale=x",
]  # fmt: skip
WORDS = [b'"', b"\\", b",", b" ", b"\t", b"=", b"no-cache", b"max-age=", b"min-fresh=", b"max-stale", b"60", b"0"]
GENERIC = OriginRules(profile="generic")
NS = 10**9


def check(source: random.Random) -> None:
    names = source.choices([b"Cache-Control", b"cache-control", b"Pragma", b"X-Cache-Control"], k=source.randrange(4))
    fields = [(name, mutated(source, SEEDS, WORDS).translate(None, b"\r\n\x00")) for name in names]
    head = b"GET / HTTP/1.1\r\nHost: a\r\n" + b"".join(b"%b: %b\r\n" % field for field in fields) + b"\r\n"
    try:
        request = parse_request(head)
    except Exception:
        return  # another control character: no such head reaches a worker's look-up
    age_s, left_s = source.choice([1, 29, 30, 31, 10**6]), source.choice([1, 4, 5, 6, 90])
    wanted = request_directives(request.fields, GENERIC)
    refused = not wanted.accepts(age_s=age_s, lifetime_s=age_s + left_s)
    assert refuses(head, age_s * NS, left_s * NS) is refused, head
    stale_s = source.choice([1, 5, 6, 10**6])
    assert takes_stale(head, stale_s * NS) is wanted.accepts_stale(stale_s), head


def test_fuzz_request_directives() -> None:
    for seed in range(20_000):
        check(random.Random(seed))


if __name__ == "__main__":
    run(check)
