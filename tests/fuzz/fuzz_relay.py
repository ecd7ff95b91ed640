"""Fuzz target: what relays read. Readers answer for any bytes; a relay gives out nothing that didn't come in or was
repaired, and every datagram is counted under one name.

    .venv/bin/python -m pytest tests/fuzz/fuzz_relay.py          a short run
    PYTHONPATH=. .venv/bin/python tests/fuzz/fuzz_relay.py 600   so many seconds; prints the number of runs
"""

from __future__ import annotations

import random
import struct
import sys
from pathlib import Path

from mutation import mutated, run

from ext.relay_plane import RelayBench, Settings
from ext.relay_wire import TsMeter, fec_of, format_of, rtp_of, ts_of

sys.path.append(str(Path(__file__).resolve().parents[1] / "dataplane"))
from relay_packets import matrix, pcr, rtp, stream, transport

MEDIA = stream(12)
COLUMNS, ROWS = matrix(MEDIA, 4, 3)
SEEDS = [*MEDIA[:3], *COLUMNS[:2], *ROWS[:2], MEDIA[0][12:], rtp(9, b""), b"text"]
SEEDS += [transport(5, 1, adaptation=pcr(2_700_000))]
WORDS = [b"\x47", b"\x80\x21", b"\x80\xc8", b"\xff\xff", b"\x00\x01", b"\x47\x40\x00\x30\x01\x00"]
DROPS = (
    "duplicate", "late", "empty", "fec_packets", "drop_oversize", "drop_malformed", "drop_rtcp", "drop_type",
    "drop_ssrc", "drop_sender", "drop_jump", "drop_format", "drop_standby", "drop_fec_malformed", "drop_fec_refused",
)  # fmt: skip


def check_readers(source: random.Random) -> None:
    data = mutated(source, SEEDS, WORDS)
    found = rtp_of(data)
    if isinstance(found, dict):
        assert found["header_bytes"] + found["payload_bytes"] <= len(data)
    repair = fec_of(data)
    if isinstance(repair, dict):
        assert repair["payload"] + repair["payload_bytes"] <= len(data)
    packet = data[:188].ljust(188, b"\x47")
    transported = ts_of(packet)
    if isinstance(transported, dict):
        assert 4 <= transported["payload"] <= 188
    assert format_of(data) in ("rtp", "ts", "opaque")
    meter = TsMeter()
    meter.add(packet)
    for _ in range(4):
        data = mutated(source, SEEDS, WORDS)
        meter.add(data[: len(data) // 188 * 188])


def check_relay(source: random.Random) -> None:
    """Media out of order, with mutations among it: each released packet is one that came, or was repaired."""
    legs: list[tuple[int, str, tuple[tuple[bytes, int], ...]]] = [(-1, "media", ()), (-1, "media", ()), (-1, "fec", ())]
    asks = source.random() < 0.5
    legs += [(-1, "rtx", ())] * asks
    asking = {"ask_to": bytes(32), "ask_name": bytes(16), "rtx_type": 97} if asks else {}
    bench = RelayBench(
        Settings(
            legs=legs, is_rtp=source.random() < 0.5, mode=source.choice(["merge", "backup"]),
            wait_ns=source.choice([0, 10**7]), window_packets=source.choice([64, 1024]),
            payload_type=source.choice([255, 33]), slot_bytes=1400, **asking,
        )
    )  # fmt: skip
    now, out, came, n = 10**9, [], set(), 0
    at = source.randrange(65_536)
    for _ in range(200):
        now += source.choice([0, 0, 10**5, 10**7, 3 * 10**9 if source.random() < 0.01 else 0])
        at = (at + source.choice([1, 1, 1, 1, 2, -1, 5, 100, 5000])) % 65_536
        leg = source.choice([0, 0, 1, 2, 3][: 4 + asks])
        request = bench.ask(now)
        assert len(request) <= 176
        if leg == 3:
            number = struct.pack("!H", (at - source.randrange(8)) % 65_536)
            data = rtp(source.randrange(65_536), number + MEDIA[at % 12][12:], ssrc=9, kind=97)
            data = mutated(source, [data], WORDS, most=2) if source.random() < 0.3 else data
        elif leg == 2 or source.random() < 0.3:
            data = mutated(source, [*SEEDS, *COLUMNS, *ROWS], WORDS, most=2)
            if source.random() < 0.7 and len(data) > 30:
                base = struct.pack("!H", (at - 12) % 65_536)
                data = data[:2] + base + data[4:12] + (base if leg == 2 else data[12:14]) + data[14:]
        else:
            data = rtp(at, MEDIA[at % 12][12:], ssrc=source.choice([1] * 20 + [2]))
        n += 1
        came.add(data)
        out += bench.take(leg, data, now, source.choice([bytes(16)] * 20 + [b"other".ljust(16)]))
        if source.random() < 0.1:
            out += bench.expire(now)
    out += bench.expire(now + 10**10)
    known = bench.known()
    assert known["datagrams"] == n
    assert len(out) == known["packets"]
    # A retransmission that was put back, or refused for what it holds, is counted as `retransmitted` alone.
    counted = sum(known[name] for name in (*DROPS, "drop_apart")) + known["retransmitted"]
    assert known["packets"] - known["repaired"] + counted == n
    assert sum(packet not in came for packet in out) <= known["repaired"]


def check_bare(source: random.Random) -> None:
    """MPEG-TS without numbers on several legs, with counters that lie: what goes out came in, and all is counted."""
    legs: list[tuple[int, str, tuple[tuple[bytes, int], ...]]] = [(-1, "media", ())] * 3
    bench = RelayBench(
        Settings(
            legs=legs, wait_ns=source.choice([0, 10**7, 10**9]), window_packets=source.choice([64, 1024]),
            slot_bytes=1400,
        )
    )  # fmt: skip
    now, out, came, n, at = 10**9, [], set(), 0, 0
    behind = [source.randrange(40) for _ in legs]
    for _ in range(400):
        now += source.choice([10**5, 10**6, 10**7, 3 * 10**9 if source.random() < 0.01 else 0])
        at += source.choice([1, 1, 1, 1, 0, -1, 2, 5000 if source.random() < 0.02 else 0])
        leg = source.randrange(3)
        if source.random() < 0.01:
            behind[leg] = source.randrange(40)
        number = max(0, at - behind[leg])
        if number % 5 == 0:
            data = transport(8191, 0) * 7
        else:
            data = b"".join(transport(0x100 + number % 3, 7 * number + j) for j in range(1 + number % 7))
            data = data[:-4] + struct.pack("!I", number)
        if source.random() < 0.1:
            data = mutated(source, [*SEEDS, data], WORDS, most=2)
        n += 1
        came.add(data)
        out += bench.take(leg, data, now)
        out += bench.expire(now) if source.random() < 0.2 else []
    out += bench.expire(now + 10**10)
    known = bench.known()
    assert known["packets"] + sum(known[name] for name in (*DROPS, "drop_apart")) == n
    assert len(out) == known["packets"]
    assert all(packet in came for packet in out)


def check_wrapped(source: random.Random) -> None:
    """As SRT and RIST give it, on legs with numbers of their own: what goes out came in, without our header."""
    legs: list[tuple[int, str, tuple[tuple[bytes, int], ...]]] = [(-1, "media", ())] * 3
    bench = RelayBench(
        Settings(
            legs=legs, is_rtp=True, is_wrapped=True, mode=source.choice(["merge", "merge", "backup"]),
            wait_ns=source.choice([0, 10**7, 10**9]), window_packets=source.choice([64, 1024]), slot_bytes=1400,
        )
    )  # fmt: skip
    now, out, came, n, at = 10**9, [], set(), 0, 0
    shifts = [source.randrange(65_536) for _ in legs]
    for _ in range(300):
        now += source.choice([10**5, 10**6, 10**7, 3 * 10**9 if source.random() < 0.01 else 0])
        at += source.choice([1, 1, 1, 1, 0, -1, 2, 5000 if source.random() < 0.02 else 0])
        leg = source.randrange(3)
        if source.random() < 0.01:
            shifts[leg] = source.randrange(65_536)
        payload = struct.pack("!I", at % 50) + MEDIA[at % 12][16:] if source.random() < 0.2 else MEDIA[at % 12][12:]
        payload = payload[:5] + struct.pack("!I", at & 0xFFFFFFFF) + payload[9:]
        if source.random() < 0.1:
            payload = mutated(source, SEEDS, WORDS, most=2)
        data = rtp(at + shifts[leg], payload, ssrc=shifts[leg])
        data = mutated(source, [data], WORDS, most=2) if source.random() < 0.05 else data
        n += 1
        came.add(data)
        out += bench.take(leg, data, now)
    out += bench.expire(now + 10**10)
    known = bench.known()
    assert known["packets"] + sum(known[name] for name in (*DROPS, "drop_apart")) == n
    assert len(out) == known["packets"]
    contents = {each[found["header_bytes"] :][: found["payload_bytes"]] for each in came
                if isinstance(found := rtp_of(each), dict)}  # fmt: skip
    assert all(packet in contents for packet in out)


def check(source: random.Random) -> None:
    """The target's invariants, for one seed."""
    check_readers(source)
    if source.random() < 0.2:
        check_relay(source)
    if source.random() < 0.1:
        check_wrapped(source)
        check_bare(source)


def test_fuzz_relay() -> None:
    for seed in range(3000):
        check(random.Random(seed))


if __name__ == "__main__":
    run(check)
