"""Fuzz target: HTTP/2 frames into a worker. Whole conversations, mutated, go over real sockets into the glue and
nghttp2. The worker lives, other viewers get their bytes, and when all have left nothing is kept.

    .venv/bin/python tests/fuzz/fuzz_h2.py 600   so many seconds; prints the number of runs
"""

from __future__ import annotations

import contextlib
import random
import select
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[1:1] = [str(ROOT / "tests" / "dataplane")]
sys.path.append(str(ROOT))  # last, so that a sanitized build on PYTHONPATH wins

import hpack  # noqa: E402
from h2_rig import CLEARTEXT, H2Viewer, raw_frame  # noqa: E402
from mutation import mutated, run  # noqa: E402
from plane_rig import GENERIC, Rig, Viewer, pattern  # noqa: E402

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
BODY = pattern(30_000)


def head(path: str, *fields: tuple[str, str], method: str = "GET") -> bytes:
    return hpack.Encoder().encode(
        [(":method", method), (":scheme", "http"), (":authority", "a"), (":path", path), *fields]
    )


def seeds() -> list[bytes]:
    """Frames without the preface, which would hide everything behind it when it is mutated."""
    get, post = head("/x", ("cookie", "a=1"), ("cookie", "b")), head("/generic/x", method="POST")
    settings = raw_frame(4, b"\0\4\0\0\0\7") + raw_frame(4, flags=1)
    trailer = hpack.Encoder().encode([("t", "1")])
    chat = head("/generic/chat", (":protocol", "websocket"), method="CONNECT")
    padded = b"\x02" + post + b"\0\0"
    conversations = [
        [raw_frame(1, get, flags=5, stream=2 * i + 1) for i in range(5)],
        [raw_frame(1, get[:9], flags=1, stream=1), raw_frame(9, get[9:], flags=4, stream=1)],
        [raw_frame(1, post, flags=4, stream=1), raw_frame(0, b"body", stream=1), raw_frame(0, flags=1, stream=1)],
        [raw_frame(1, padded, flags=0xC, stream=1), raw_frame(0, b"\x03abc\0\0\0", flags=9, stream=1)],
        [raw_frame(1, get, flags=5, stream=1), raw_frame(8, b"\0\0\1\0", stream=1), raw_frame(8, b"\0\1\0\0")],
        [raw_frame(1, get, flags=5, stream=1), raw_frame(3, b"\0\0\0\x08", stream=1), raw_frame(6, bytes(8))],
        [raw_frame(16, b"\0\0\0\3u=1,i"), raw_frame(1, get, flags=5, stream=3), raw_frame(7, bytes(8))],
        [raw_frame(1, head("/x", method="CONNECT"), flags=4, stream=1), raw_frame(2, b"\0\0\0\1\x10", stream=1)],
        [raw_frame(1, post, flags=4, stream=1), raw_frame(1, trailer, flags=5, stream=1)],
        [raw_frame(1, chat, flags=4, stream=1), raw_frame(0, b"\x81\x80abcd", stream=1)],
    ]
    return [settings + b"".join(frames) for frames in conversations]


WORDS = [
    raw_frame(3, b"\0\0\0\x08", stream=1),
    raw_frame(6, bytes(8)),
    raw_frame(8, b"\x7f\xff\xff\xff"),
    raw_frame(4, flags=1),
    raw_frame(9, b"", stream=1),
    raw_frame(0, b"", stream=1),
    raw_frame(0, bytes(100), flags=1, stream=3),
    raw_frame(1, head("/y"), flags=5, stream=9),
    raw_frame(7, bytes(8)),
    b"\x00\x00",
    b"\x40\x00",
    b"\xbe" * 200,
]


class Target:
    def __init__(self) -> None:
        self.rig = Rig(http2=CLEARTEXT, memory=32 << 20)
        self.rig.store("/x", BODY)
        self.seeds = seeds()
        self.good = H2Viewer(self.rig)
        self.runs = 0

    def check(self, source: random.Random) -> None:
        viewer = Viewer()
        viewer.connect(self.rig.address)
        data = PREFACE + mutated(source, self.seeds, WORDS)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            while data:
                n = source.choice([1, 9, 100, 100_000])
                viewer.send(data[:n])
                data = data[n:]
            if select.select([viewer.socket], [], [], 0.002)[0]:
                viewer.socket.recv(1 << 20)
        self.rig.take()
        for exchange in self.rig.exchanges:
            self.answer(exchange, source)
        self.rig.exchanges.clear()
        viewer.reset() if source.random() < 0.5 else viewer.close()
        self.runs += 1
        if self.runs % 100 == 0:
            assert self.good.fetch("/x").body == BODY
            assert all(alive for _, _, alive in self.rig.plane.workers_state())
            self.rig.plane.reclaim()

    def answer(self, exchange: object, source: random.Random) -> None:
        if source.random() < 0.5:
            exchange.error(404)  # type: ignore[attr-defined]
            return
        stored = self.rig.create(4, private=True, origin=GENERIC)
        assert stored is not None
        self.rig.append(stored, 0, b"four")
        stored.finish(4)
        exchange.leader(stored, 200)  # type: ignore[attr-defined]


def main() -> None:
    target = Target()
    run(target.check)
    target.good.close()
    target.rig.close()  # holds the plane to account: memory, counters, connections


if __name__ == "__main__":
    main()
