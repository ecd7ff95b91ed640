"""Range fields against a model in Python: which bytes they select (RFC 9110 section 14.1.2), coalesced, in order.

Run: .venv/bin/python tests/fuzz/fuzz_ranges.py [SECONDS]
"""

from __future__ import annotations

import random
import re
import sys
import time

from ext.request import ranges_of

SPECIFIER = re.compile(rb"([0-9]*)-([0-9]*)")
TOTALS = (0, 1, 2, 10, 1000, 20_000_000_000, 2**62)
MOST, SPECIFIERS_MOST = 8, 128
FURTHEST = 2**63 - 1


def model(field: bytes, total: int) -> list[tuple[int, int]] | None:
    if field[:6].lower() != b"bytes=" or len(field) == 6:
        return None
    members = [each.strip(b" \t") for each in field[6:].split(b",")]
    members = [each for each in members if each]
    if not members or len(members) > SPECIFIERS_MOST:
        return None
    found: list[tuple[int, int]] = []
    is_any = False
    for member in members:
        match = SPECIFIER.fullmatch(member)
        if match is None or member == b"-":
            return None
        first_text, last_text = match.groups()
        if first_text:
            # Beyond the furthest is beyond any body, so which of two such numbers is larger doesn't matter.
            first, last = min(int(first_text), FURTHEST), min(int(last_text or FURTHEST), FURTHEST)
            if last < first:
                return None
        else:
            first, last = max(0, total - int(last_text)), total - 1
            if int(last_text) == 0:
                continue
        if first >= total:
            continue
        is_any = True
        found = united(found, (first, min(last, total - 1)))
    if not is_any:
        return []
    return found if len(found) <= MOST else None


def united(found: list[tuple[int, int]], added: tuple[int, int]) -> list[tuple[int, int]]:
    first, last = added
    touched: set[int] = set()
    while True:
        more = {i for i, (a, b) in enumerate(found) if a <= last + 1 and first <= b + 1} - touched
        if not more:
            break
        touched |= more
        first, last = min(first, *(found[i][0] for i in more)), max(last, *(found[i][1] for i in more))
    place = min(touched, default=len(found))
    before = [each for i, each in enumerate(found[:place]) if i not in touched]
    after = [each for i, each in enumerate(found) if i >= place and i not in touched]
    return [*before, (first, last), *after]


def written(chance: random.Random, total: int) -> bytes:
    def number() -> bytes:
        kind = chance.randrange(6)
        if kind == 0:
            return b"%d" % chance.randrange(12)
        if kind == 1:
            return b"%d" % max(0, total + chance.randrange(-3, 4))
        if kind == 2:
            return chance.choice((b"0", b"000", b"9" * 18, b"9" * 30, b"%d" % 2**63, b"%d" % (2**63 - 1)))
        if kind == 3:
            return b""
        return b"%d" % chance.randrange(total + 2)

    members = []
    for _ in range(chance.choice((1, 1, 2, 3, 8, 9, 20, 128, 129))):
        first, last = number(), number()
        if chance.random() < 0.8 and first and last and int(first) > int(last):
            first, last = last, first
        members.append(chance.choice((b"", b" ", b"\t")) + first + b"-" + last + chance.choice((b"", b"", b" ")))
        if chance.random() < 0.02:
            members.append(chance.choice((b"", b" ", b"a-b", b"1", b"-", b"+1-2", b"1 -2", b"\xff-1")))
    field = chance.choice((b"bytes=", b"Bytes=", b"bytes=")) + b",".join(members)
    if chance.random() < 0.1:
        place = chance.randrange(len(field))
        field = field[:place] + chance.randbytes(1) + field[place + chance.randrange(2) :]
    return field


def main(seconds: float) -> None:
    ends = time.monotonic() + seconds
    chance = random.Random(int(time.time()))
    n = 0
    while time.monotonic() < ends:
        total = chance.choice(TOTALS)
        field = written(chance, total)
        assert ranges_of(field, total) == model(field, total), (field, total, ranges_of(field, total))
        n += 1
    print(f"{n} Range fields, the model and the data plane agree")


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 10)
