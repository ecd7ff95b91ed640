"""Every byte right: random viewers, ranges, aborts, purges and changing content over two faulty upstreams.

SOAK_S makes it longer, SOAK_SEED repeats one.
"""

from __future__ import annotations

import asyncio
import functools
import os
import random
from collections import Counter
from pathlib import Path

import pytest
from box import GENERIC, TWIN, Answer, Box, Viewer, scenario, sound_box
from hostile_origin import Peer, Request, Script, reply
from origin_scripts import File, fields, noise

SECONDS = float(os.environ.get("SOAK_S", "12"))
SEED = int(os.environ.get("SOAK_SEED", "0")) or random.randrange(1 << 30)
SIZES = (0, 1, 1000, 70_000, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 3_500_000, 9_000_000)
LIFETIMES = ("max-age=60", "max-age=1", "max-age=0", "no-cache", "private", "no-store", "max-age=0, stale-if-error=9")
VIEWERS = 16


class Content:
    """One URL's truth, by the version that a response names; it changes now and then."""

    def __init__(self, name: str, dice: random.Random) -> None:
        self.name = name
        self.dice = dice
        self.size = dice.choice(SIZES)
        self.lifetime = dice.choice(LIFETIMES)
        self.tag = dice.choice(('"%s"', '"%s"', '"%s"', 'W/"%s"', ""))
        self.has_ranges = dice.random() < 0.8
        self.has_length = dice.random() < 0.8
        self.truth: dict[str, bytes] = {}
        self.change()

    def change(self) -> None:
        self.version = f"{self.name}.{len(self.truth)}"
        size = max(0, self.size - self.dice.randrange(3)) if self.truth else self.size
        self.truth[self.version] = noise(size, self.version)

    async def __call__(self, peer: Peer, request: Request) -> bool:
        dice = self.dice.random()
        if dice < 0.03:
            return await reply(b"sorry", status=503)(peer, request)
        if dice < 0.05:
            return False
        named = {"cache_control": self.lifetime, "x_version": self.version}
        file = File(self.truth[self.version], etag=self.tag % self.version if self.tag else None, **named)
        file.has_ranges = self.has_ranges
        if dice < 0.15 and self.size > 1:
            file.cut_at, file.how = self.dice.randrange(self.size), self.dice.choice(("reset", "close"))
        elif dice < 0.20:
            await asyncio.sleep(self.dice.random() / 50)
        elif dice < 0.22 and request.field(b"Range") and file.etag:
            return await self._elsewhere(peer, request, file)
        if not self.has_length and request.method == b"GET" and not request.field(b"If-None-Match"):
            return await self._chunked(peer, file)
        return await file(peer, request)

    async def _elsewhere(self, peer: Peer, request: Request, file: File) -> bool:
        """A part of another place than the one asked for, and it says so."""
        total = len(file.body)
        first = self.dice.randrange(max(1, total))
        last = min(total, first + self.dice.randrange(1, 200_000)) - 1
        named = fields(content_range=f"bytes {first}-{last}/{total}", etag=file.etag or "")
        return await reply(file.body[first : last + 1], status=206, fields=(*file.fields, *named))(peer, request)

    async def _chunked(self, peer: Peer, file: File) -> bool:
        lines = (*file.fields, *(fields(etag=file.etag) if file.etag else ()))
        head = b"".join(b"%b: %b\r\n" % pair for pair in lines)
        await peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n" + head + b"\r\n")
        end = len(file.body) if file.cut_at is None else file.cut_at
        for place in range(0, end, 100_000):
            piece = file.body[place : min(end, place + 100_000)]
            await peer.send(b"%x\r\n%b\r\n" % (len(piece), piece))
        if file.cut_at is not None:
            return False
        await peer.send(b"0\r\n\r\n")
        return True


def check(content: Content, answer: Answer, is_head: bool) -> str:
    """What kind of answer it was. Raises AssertionError for a wrong byte, or a whole that is none."""
    if answer.status >= 500:
        assert answer.is_whole or not answer.body, answer
        return "error"
    if answer.status in (304, 416):
        return str(answer.status)
    truth = content.truth[answer["X-Version"]]
    assert answer.status in (200, 206), answer
    first, last = 0, len(truth) - 1
    if answer["Content-Type"].startswith("multipart/byteranges"):
        return check_parts(truth, answer)
    if answer.status == 206:
        unit, _, rest = answer["Content-Range"].partition(" ")
        span, _, total = rest.partition("/")
        assert (unit, total) == ("bytes", str(len(truth))), answer
        first, last = (int(place) for place in span.split("-"))
    if "Content-Length" in answer:
        assert int(answer["Content-Length"]) == last - first + 1, answer
    if is_head:
        return "head"
    body = answer.body
    assert truth[first : first + len(body)] == body, wrong(content, answer, truth[first : first + len(body)])
    if answer.is_whole:
        assert len(body) == last - first + 1, answer
        return "whole" if answer.status == 200 else "part"
    return "broken"


def check_parts(truth: bytes, answer: Answer) -> str:
    """Each part is whole, of its place, and the text around it as it should be; of a cut answer as far as it goes."""
    boundary = answer["Content-Type"].partition("boundary=")[2]
    rest, n = answer.body, 0
    while rest:
        opening = (b"\r\n--" if n else b"--") + boundary.encode()
        head, found, body = rest.partition(b"\r\n\r\n")
        if not found:
            assert head == opening + b"--\r\n" or not answer.is_whole, answer
            break
        assert head.startswith(opening + b"\r\nContent-Range: bytes "), answer
        span, _, total = head.rpartition(b" ")[2].partition(b"/")
        first, last = (int(place) for place in span.split(b"-"))
        assert int(total) == len(truth)
        piece = body[: last - first + 1]
        assert piece == truth[first : first + len(piece)], answer
        assert len(piece) == last - first + 1 or not answer.is_whole
        rest, n = body[len(piece) :], n + 1
    assert n >= 2 or not answer.is_whole
    return "parts" if answer.is_whole else "broken"


def wrong(content: Content, answer: Answer, truth: bytes) -> str:
    """Where the first wrong byte is, and whose it is."""
    body = answer.body
    at = next((i for i, (is_, right) in enumerate(zip(body, truth, strict=False)) if is_ != right), len(truth))
    places = {version: text.find(body[at : at + 64]) for version, text in content.truth.items()}
    return f"wrong from byte {at}: found in { ({v: p for v, p in places.items() if p >= 0}) }: {answer}"


class Soak:
    def __init__(self, box: Box, contents: dict[str, Content], dice: random.Random) -> None:
        self.box, self.contents, self.dice = box, contents, dice
        self.seen: Counter[str] = Counter()
        self.n_bytes = 0
        self.ends = asyncio.get_running_loop().time() + SECONDS

    def goes_on(self) -> bool:
        return asyncio.get_running_loop().time() < self.ends

    async def watch(self) -> None:
        while self.goes_on():
            viewer = await Viewer.connect(self.box, receive_buffer=self.dice.choice((None, None, 16384)))
            try:
                for _ in range(self.dice.randrange(1, 6)):
                    if not await self._one(viewer):
                        break
            except (ConnectionError, asyncio.IncompleteReadError):
                self.seen["no head"] += 1
            finally:
                viewer.close()

    async def _one(self, viewer: Viewer) -> bool:
        dice = self.dice
        path, content = dice.choice(list(self.contents.items()))
        named = {}
        if dice.random() < 0.5:
            first = dice.randrange(content.size + 1)
            named["Range"] = "bytes=" + dice.choice(
                (f"{first}-", f"{first}-{first + dice.randrange(2_000_000)}", f"-{dice.randrange(1, 100_000)}", "0-1",
                 f"{first}-{first + 99},0-9,-5", ",".join(f"{i * content.size // 9}-{i * content.size // 9 + 9}"
                                                          for i in range(8)))
            )  # fmt: skip
            if dice.random() < 0.3 and content.tag:
                named["If-Range"] = content.tag % dice.choice(list(content.truth))
        if dice.random() < 0.1 and content.tag:
            named["If-None-Match"] = content.tag % content.version
        if dice.random() < 0.05:
            named["Authorization"] = "Bearer x"
        is_head = dice.random() < 0.05
        viewer.ask(path, named, host=dice.choice((TWIN, GENERIC)), method="HEAD" if is_head else "GET")
        answer = await viewer.head()
        if dice.random() < 0.1:
            await viewer.bytes_of_body(dice.randrange(content.size + 1))
            self._note(content, answer, is_head, named.get("If-Range", ""))
            viewer.reset()
            return False
        answer = await viewer.answer()
        self._note(content, answer, is_head, named.get("If-Range", ""))
        return answer.is_whole and answer["Connection"] != "close"

    def _note(self, content: Content, answer: Answer, is_head: bool, condition: str) -> None:
        if condition and answer.status == 206:  # he adds it to what he has
            assert answer["ETag"] == condition, (condition, answer)
        self.seen[check(content, answer, is_head)] += 1
        self.n_bytes += len(answer.received)

    async def disturb(self) -> None:
        while self.goes_on():
            await asyncio.sleep(self.dice.random() / 10)
            path, content = self.dice.choice(list(self.contents.items()))
            if self.dice.random() < 0.5:
                content.change()
            what = self.dice.choice(
                ({"url": f"http://{TWIN}{path}"}, {"prefix": f"http://{GENERIC}/1"}, {"origin": "twin"})
            )
            await asyncio.to_thread(self.box.control, "cache purge", **what)


CACHES = {"memory": {"memory": "24MiB"}, "disk": {"memory": "24MiB", "disk": {"size": "1GiB"}}}


@pytest.mark.parametrize("cache", ["memory", pytest.param("disk", marks=pytest.mark.slow)])
@functools.partial(scenario, seconds=SECONDS + 30)
async def test_no_wrong_byte(tmp_path: Path, cache: str) -> None:
    print(f"\nSOAK_SEED={SEED}")
    dice = random.Random(SEED)
    contents = {f"/{i}.m4s": Content(str(i), dice) for i in range(30)}
    scripts: dict[bytes, Script] = {path.encode(): content for path, content in contents.items()}
    with sound_box(tmp_path, cache=CACHES[cache]) as box:
        async with box.origin(scripts, scripts):
            soak = Soak(box, contents, dice)
            await asyncio.gather(soak.disturb(), *(soak.watch() for _ in range(VIEWERS)))
        stats = box.stats()
        print(f"{sum(soak.seen.values())} answers, {soak.n_bytes >> 20} MiB compared: {dict(soak.seen)}")
        print(
            {
                name: stats[name]
                for name in ("hits", "misses", "collapsed", "passed", "refused", "evictions", "upstream_resumed")
            }
        )
        assert stats["memory_bytes"] <= stats["memory_limit_bytes"]
    assert soak.seen["whole"] > 100
    assert soak.seen["part"] > 50
