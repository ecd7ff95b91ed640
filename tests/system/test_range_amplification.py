"""What a request can cost its origin (RangeAmp, RFC 9110 section 17.15): what it asks for and two slices at most."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from box import Answer, Box, Viewer, get, scenario, sound_box, until
from hostile_origin import Peer, Request
from origin_scripts import File, noise

MIB = 1 << 20
SIZE = 24 * MIB
BODY = noise(SIZE, "amplified")


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    with sound_box(tmp_path_factory.mktemp("amplification"), cache={"memory": "256MiB"}) as running:
        yield running


class RangedFile(File):
    """Serves several ranges too, each as it is asked for, overlapping or not: what RangeAmp uses against it."""

    async def __call__(self, peer: Peer, request: Request) -> bool:
        value = request.field(b"Range") or b""
        if b"," not in value or not self.has_ranges:
            return await super().__call__(peer, request)
        self.asked.append(request)
        body = b""
        for member in value.removeprefix(b"bytes=").split(b","):
            first_text, _, last_text = member.strip().partition(b"-")
            first = int(first_text) if first_text else SIZE - int(last_text)
            last = min(SIZE - 1, int(last_text)) if first_text and last_text else SIZE - 1
            body += b"--B\r\nContent-Range: bytes %d-%d/%d\r\n\r\n%b\r\n" % (
                first, last, SIZE, self.body[first : last + 1])  # fmt: skip
        body += b"--B--\r\n"
        await peer.send(
            b"HTTP/1.1 206 Partial Content\r\nContent-Type: multipart/byteranges; boundary=B\r\nContent-Length: %d\r\n"
            b'Cache-Control: max-age=60\r\nETag: "v1"\r\n\r\n' % len(body)
        )
        return await self._send(peer, body, None)


def scattered(n: int, size: int = 1) -> str:
    return ",".join(f"{i * 3 * MIB + 500_000}-{i * 3 * MIB + 500_000 + size - 1}" for i in range(n))


# name -> (Range, bytes asked for, its status)
PATTERNS = {
    "1 byte": ("7000001-7000001", 1, 206),
    "the first byte": ("0-0", 1, 206),
    "the last byte": (f"{SIZE - 1}-", 1, 206),
    "the last byte as a suffix": ("-1", 1, 206),
    "2 bytes over a slice's end": (f"{5 * MIB - 1}-{5 * MIB}", 2, 206),
    "a slice and 2 bytes": (f"{5 * MIB - 1}-{6 * MIB}", MIB + 2, 206),
    "nothing": ("-0", 0, 416),
    "behind the end": (f"{SIZE}-", 0, 416),
    "far behind the end": ("99999999999-", 0, 416),
    "2 bytes far apart": ("0-0,-1", 2, 206),
    "8 bytes far apart": (scattered(8), 8, 206),
    "8 times 100,000 bytes far apart": (scattered(8, 100_000), 800_000, 206),
    "4 bytes far apart, from the end": (",".join(reversed(scattered(4).split(","))), 4, 206),
    "64 bytes of one slice": (",".join(f"{i * 2}-{i * 2}" for i in range(64)), SIZE, 200),
    "8 bytes of one slice": (",".join(f"{i * 2}-{i * 2}" for i in range(8)), 8, 206),
    "64 times the same byte": (",".join(["9000000-9000000"] * 64), 1, 206),
    "128 that overlap": (",".join(f"{i}-{i + 1000}" for i in range(128)), 1128, 206),
    "128 times everything": (",".join(["0-"] * 128), SIZE, 206),
    "a condition that does not hold": ("5-5", SIZE, 200),
}


@pytest.mark.rfc("9110#17.15", "what is fetched is bounded by what was asked for and two slices")
@pytest.mark.parametrize("state", ["unknown", "stored in part"])
@scenario
async def test_the_known_patterns(box: Box, state: str) -> None:
    print(f"\n{state + ':':<36}{'asked for':>12}{'from the origin':>17}  requests")
    for number, (name, (written, n_asked, status)) in enumerate(PATTERNS.items()):
        path = f"/{state[:3]}-{number}.mp4"
        file = RangedFile(BODY, cache_control="max-age=600")
        async with box.origin({path.encode(): file}):
            if state != "unknown":
                await get(box, path, {"Range": f"bytes={23 * MIB}-{23 * MIB + 9}"})
            before, n_before = await settled(box), len(file.asked)
            condition = {"If-Range": '"other"'} if "condition" in name else {}
            answer = await get(box, path, {"Range": f"bytes={written}", **condition})
            assert answer.status == status, (name, answer)
            assert answer.is_whole
            cost = await settled(box) - before
            print(f"{name:<36}{n_asked:>12,}{cost:>17,}{len(file.asked) - n_before:>10}")
            text_bytes = 8 * 200  # of parts as an origin writes them
            assert cost <= n_asked + 2 * MIB + text_bytes, name
            await check(answer, written)
            assert (await get(box, path, {"Range": "bytes=100-199"})).body == BODY[100:200]


async def check(answer: Answer, written: str) -> None:
    """The bytes are those of their Content-Range, each."""
    if answer["Content-Type"].startswith("multipart"):
        boundary = b"--" + answer["Content-Type"].partition("boundary=")[2].encode()
        pieces = [piece.strip(b"\r\n").partition(b"\r\n\r\n") for piece in answer.body.split(boundary)[1:-1]]
        assert len(pieces) == len(written.split(","))
        heads = [head.lower().partition(b"content-range: bytes ")[2].split(b"\r\n")[0] for head, _, _ in pieces]
        parts = list(zip(heads, [body for _, _, body in pieces], strict=True))
    elif answer.status == 206:
        parts = [(answer["Content-Range"].removeprefix("bytes ").encode(), answer.body)]
    else:
        assert answer.body == (BODY if answer.status == 200 else b"")
        return
    for shown, body in parts:
        first, last = shown.partition(b"/")[0].split(b"-")
        assert body == BODY[int(first) : int(last) + 1], shown


async def settled(box: Box) -> int:
    """bytes_from_origin once it stands still."""
    seen = [-1]

    def stands() -> bool:
        seen.append(box.stats()["bytes_from_origin"])
        return len(seen) > 12 and len(set(seen[-12:])) == 1

    await until(stands, "the origin is quiet")
    return seen[-1]


@pytest.mark.parametrize("state", ["unknown", "stored in part"])
@scenario
async def test_an_origin_that_knows_one_range_only_is_asked_slice_by_slice(box: Box, state: str) -> None:
    """As object stores do, it sends the whole where several are asked for."""
    host = f"spare-{len(state) % 2}.media.example"
    file = File(BODY, cache_control="max-age=600")
    async with box.origin({b"/one-range.mp4": file}):
        if state != "unknown":
            await get(box, "/one-range.mp4", {"Range": f"bytes={23 * MIB}-{23 * MIB + 9}"}, host=host)
        for turn in range(2):
            before = await settled(box)
            answer = await get(box, "/one-range.mp4", {"Range": f"bytes={scattered(7)}"}, host=host)
            assert answer["Content-Type"].startswith("multipart/byteranges")
            await check(answer, scattered(7))
            cost = await settled(box) - before
            assert cost <= (7 + (8 if turn == 0 else 0)) * MIB, turn
        assert cost == 0
        answer = await get(box, "/one-range.mp4", {"Range": f"bytes={scattered(8)}"}, host=host)
        await check(answer, scattered(8))


@scenario
async def test_queries_that_miss_each_time_cost_a_slice_each(box: Box) -> None:
    file = File(BODY, cache_control="max-age=600")
    async with box.origin({b"/busted.mp4": file}), box.growth() as growth:
        for i in range(20):
            answer = await get(box, f"/busted.mp4?{i}", {"Range": "bytes=5000000-5000000"})
            assert answer.body == BODY[5_000_000:5_000_001]
    assert growth["bytes_from_origin"] <= 20 * (1 + 2 * MIB)
    assert growth["upstream_requests"] == 20


@scenario
async def test_a_crowd_at_one_byte_costs_a_slice(box: Box) -> None:
    file = File(BODY, cache_control="max-age=600")
    async with box.origin({b"/crowd.mp4": file}), box.growth() as growth:
        answers = await asyncio.gather(
            *(get(box, "/crowd.mp4", {"Range": f"bytes={5_000_000 + i}-{5_000_000 + i}"}) for i in range(50))
        )
        assert [answer.body for answer in answers] == [BODY[5_000_000 + i : 5_000_001 + i] for i in range(50)]
    assert growth["bytes_from_origin"] <= 2 * MIB
    assert growth["upstream_requests"] <= 2


@scenario
async def test_who_asks_for_parts_and_leaves_at_once(box: Box) -> None:
    file = RangedFile(BODY, cache_control="max-age=600")
    async with box.origin({b"/left.mp4": file}), box.growth() as growth:
        for written in ("5000000-5000000", scattered(8), "-1"):
            viewer = await Viewer.connect(box)
            viewer.ask("/left.mp4", {"Range": f"bytes={written}"})
            await viewer.writer.drain()
            viewer.reset()
        await settled(box)
    assert growth["bytes_from_origin"] <= 4 * MIB
