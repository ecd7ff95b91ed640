"""Fuzzes what reads or cleans the text of logs: queries in texts, sealed lines, journal entries, access records' paths.

Run: .venv/bin/python tests/fuzz/fuzz_log_texts.py [SECONDS]
"""

from __future__ import annotations

import random
import sys
import time

from accelerator.protocols.hash_chain import first_break, link_of, seal
from accelerator.services.logs.journal import encode
from accelerator.services.logs.queries import shown_key, without_queries

PIECES = [
    "?", "…", " ", "'", '"', ")", "\n", "\x1b", "\u202e", "\ud800", "http://h/p", "/a", "=", "&", ',"link":"', "}",
]  # fmt: skip
CANARY = "kanarie7531"


def text_of(chance: random.Random, n: int = 12) -> str:
    return "".join(chance.choice([*PIECES, chr(chance.randrange(0x3000))]) for _ in range(chance.randrange(n)))


def once(chance: random.Random) -> None:
    before, after = text_of(chance), text_of(chance)
    shown = without_queries(f"{before}?{chance.choice(('', '…'))}{CANARY}{after}")
    assert CANARY not in shown, (before, after)
    assert without_queries(shown).count("…") >= 1
    assert b"kanarie" not in shown_key(f"/a?{CANARY}".encode() + chance.randbytes(9)).encode("utf-8", "surrogatepass")
    encode({"MESSAGE": before, "ACCELERATOR_X": after})
    lines, link = [], ""
    for number in range(3):
        entry: dict[str, object] = {"number": number, "what": text_of(chance)}
        link, line = seal(link, {**entry, "after": ""} if number == 0 else entry)
        lines.append(line)
    assert first_break(lines) is None
    assert link_of(lines[-1]) == link
    damaged = bytearray(b"".join(lines))
    place = chance.randrange(len(damaged) - 1)  # the end cut off shows in the next file only
    damaged[place] ^= 1 << chance.randrange(8)
    assert first_break(bytes(damaged).split(b"\n")[:-1]) is not None, (place, bytes(damaged))
    first_break([chance.randbytes(chance.randrange(80)), *lines])


def main() -> int:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 10.0
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    ends = time.monotonic() + seconds
    n = 0
    while time.monotonic() < ends:
        try:
            once(chance)
        except Exception:
            print(f"seed {seed}, round {n}", file=sys.stderr)
            raise
        n += 1
    print(f"{n} rounds, seed {seed}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
