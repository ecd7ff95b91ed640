"""Fuzz target: what the doctor reads of strangers: captured packets, a bridge's attribute, a date, a host's certificate
names. Whatever it is, an answer comes.

    .venv/bin/python -m pytest tests/fuzz/fuzz_doctor.py          a short run
    PYTHONPATH=. .venv/bin/python tests/fuzz/fuzz_doctor.py 600   so many seconds; prints the number of runs
"""

from __future__ import annotations

import random
from ipaddress import ip_address

from mutation import mutated, run

from accelerator.doctor.facts import Answer, Upstream
from accelerator.doctor.judge_service import judge_clock, judge_upstream
from accelerator.doctor.listen import read_packet
from accelerator.doctor.observe_links import querier_in
from accelerator.protocols.origin_rules import OriginRules

IP = bytes.fromhex("4500001c0000400001020000") + bytes((10, 0, 0, 2))
PACKETS = [
    IP + bytes((224, 0, 0, 1)) + bytes.fromhex("1164ee9b00000000"),
    bytes.fromhex("4600002000004000010200000a000002e000000194040000") + bytes.fromhex("1164ee9b00000000"),
    IP[:9] + b"\x11" + IP[10:] + bytes((239, 1, 1, 1)) + b"\x13\x8c\x13\x8c\x00\x08\x00\x00",
]
STATES = [bytes.fromhex("080001000a000002080002000300000010000300") + bytes(12)]
DATES = [b"Mon, 30 Nov 2026 10:00:00 GMT", b"Monday, 30-Nov-26 10:00:00 GMT", b"Mon Nov 30 10:00:00 2026"]
FIELDS = [b"cache-control", b"date", b"age", b"vary", b"content-type", b"set-cookie", b"expires"]


def check(source: random.Random) -> None:
    """The target's invariant, for one mutation."""
    found = read_packet(mutated(source, PACKETS))
    if found is not None:
        assert found[0] in ("query", "expiring")
        assert ip_address(found[2]).is_multicast
    querier = querier_in(mutated(source, STATES))
    assert not querier or ip_address(querier)
    fields = tuple((source.choice(FIELDS), mutated(source, DATES)) for _ in range(source.randrange(5)))
    answer = Answer("/a.m3u8", source.choice([200, 206, 304, 404, 503]), fields, 1e9, 1e9 + 1)
    upstream = Upstream("media", "http://media.example", "media.example", answer=answer)
    said = [*judge_clock(True, [upstream]), *judge_upstream(upstream, OriginRules())]
    assert all("\n" not in each.text for each in said)


def test_fuzz_doctor() -> None:
    for seed in range(3000):
        check(random.Random(seed))


if __name__ == "__main__":
    run(check)
