"""What an answer of the mixed run must be, judged by what was asked and what the origin has. No socket, no clock."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from mixed_origin import EVIL, SLACK_S, Key, Kind, body_of, span_of, variant_of

NOT_FOUND_S = 0.2


class Wrong(Exception):
    """An answer that must not be."""


@dataclass
class Asked:
    """One request, and what an answer to it is compared with."""

    key: Key | None
    path: str
    method: str
    fields: dict[str, str]
    raw: bytes
    at: float = 0.0
    floor: float = 0.0
    may: bool = True
    nonce: str = ""
    sent: bytes = b""


@dataclass
class Answer:
    status: int
    fields: dict[str, str]
    body: bytes
    is_whole: bool
    at: float


class Judge:
    def __init__(self, keys: dict[str, Key]) -> None:
        self.keys = keys

    def sort_of(self, asked: Asked, answer: Answer) -> str:
        """What sort of answer it was; `!...`: none that counts. Raises Wrong."""
        status, fields = answer.status, answer.fields
        if EVIL[-5:] in answer.body[:100]:
            raise Wrong("bytes of another answer")
        if not asked.may:
            if status == 403:
                return "refused rightly"
            raise Wrong("let in")
        if status in (502, 503, 504):
            if answer.body not in (b"sorry", b"") and b"cache-control" not in str(fields).lower().encode():
                raise Wrong("an error that may be stored")
            return f"! {status}"
        if asked.path == "/echo":
            return self._echoed(asked, answer)
        if asked.key is None:
            return self._live_segment(asked, answer)
        key = asked.key
        told = fields.get("cache-status", "")
        is_stale = "ttl=-" in told or told.endswith("ttl=0")  # less than a second over
        if status == 416:
            size = int(fields["content-range"].rpartition("/")[2])
            for version in range(len(key.versions)):
                if size == len(key.body(version, variant_of(key, asked.fields))) and key.may_answer(
                    version, asked.at, asked.floor, is_stale=is_stale
                ):
                    if any(span_of(span, size)[0] <= span_of(span, size)[1] for span in spans_of(asked)):
                        raise Wrong("a range that is there was refused")
                    return "416"
            raise Wrong("416 of no version")
        if status not in (200, 206, 304):
            raise Wrong("a status that nobody gave")
        variant = variant_of(key, asked.fields)
        version = int(fields["x-version"] if status != 304 else fields["etag"].split("-")[1])
        if key.has_etag and fields.get("etag") != key.etag(version, variant):
            raise Wrong("another's ETag")
        if not key.may_answer(version, asked.at, asked.floor, is_stale=is_stale):
            raise Wrong("older than it may be")
        if key.kind is Kind.STRICT and int(fields.get("age", 0)) > key.lifetime_s + 1:
            raise Wrong("an Age that may not be")
        if status == 304:
            if asked.fields.get("if-none-match") != key.etag(version, variant):
                raise Wrong("304 to who has another")
            return "304"
        return self._bytes(asked, answer, key.body(version, variant), is_stale=is_stale)

    def _bytes(self, asked: Asked, answer: Answer, truth: bytes, *, is_stale: bool = False) -> str:
        fields, body = answer.fields, answer.body
        expected = truth
        if answer.status == 206:
            if fields.get("content-type", "").startswith("multipart/byteranges"):
                return self._parts(asked, answer, truth)
            span, _, total = fields["content-range"].removeprefix("bytes ").partition("/")
            first, last = span_of(span, len(truth))
            spans = [span_of(each, len(truth)) for each in spans_of(asked)]
            # Several that overlap, or nearly, may come as one (RFC 9110 section 15.3.7.2).
            is_joined = len(spans) > 1 and any(first <= one and other <= last for one, other in spans)
            if total != str(len(truth)) or not ((first, last) in spans or is_joined):
                raise Wrong("a range that nobody asked for")
            expected = truth[first : last + 1]
        if "content-length" in fields and int(fields["content-length"]) != len(expected):
            raise Wrong(f"a length that is none: {len(expected)} is right")
        if asked.method == "HEAD":
            return "HEAD"
        if body != expected[: len(body)]:
            pairs = enumerate(zip(body, expected, strict=False))
            at = next((i for i, (is_, right) in pairs if is_ != right), len(expected))
            raise Wrong(f"wrong byte at {at} of {len(expected)}: {body[at : at + 40]!r}")
        if not answer.is_whole:
            return "! broken"
        if len(body) != len(expected):
            raise Wrong(f"{len(body)} bytes for {len(expected)}, and a clean end")
        return ("stale " if is_stale else "") + str(answer.status)

    def _parts(self, asked: Asked, answer: Answer, truth: bytes) -> str:
        mark = answer.fields["content-type"].partition("boundary=")[2].strip('"').encode()
        if not answer.is_whole:
            return "! broken"
        parts = answer.body.split(b"--" + mark)
        if len(parts) < 3 or not parts[-1].startswith(b"--"):
            raise Wrong("parts without an end")
        asked_for = [span_of(each, len(truth)) for each in spans_of(asked)]
        for part in parts[1:-1]:
            head, _, body = part.partition(b"\r\n\r\n")
            line = next(line for line in head.split(b"\r\n") if line.lower().startswith(b"content-range"))
            first, last = span_of(line.rpartition(b" ")[2].partition(b"/")[0].decode(), len(truth))
            if body.removesuffix(b"\r\n") != truth[first : last + 1]:
                raise Wrong("wrong bytes in a part")
            if not any(first <= one and other <= last for one, other in asked_for if one <= other):
                raise Wrong("a part that nobody asked for")
        return "parts"

    def _echoed(self, asked: Asked, answer: Answer) -> str:
        if not answer.is_whole:
            return "! broken"
        if answer.body != b"echo %08x %d %s\n" % (zlib.crc32(asked.sent), len(asked.sent), asked.nonce.encode()):
            raise Wrong("not what was sent")
        return "echo"

    def _live_segment(self, asked: Asked, answer: Answer) -> str:
        number = int(asked.path.rpartition("-")[2].removesuffix(".m4s"))
        channel = self.keys[asked.path.rpartition("/")[0] + "/live.m3u8"]
        if answer.status == 404:
            came = channel.versions[max(0, number - 2)] if number - 2 < len(channel.versions) else answer.at
            if came < asked.at - NOT_FOUND_S - SLACK_S:
                raise Wrong(f"404 of what is there for {asked.at - came:.2f} s")
            return "404"
        if answer.status not in (200, 206):
            raise Wrong("a status that nobody gave")
        return self._bytes(asked, answer, body_of(asked.path, Kind.VOD, 2000, 0, ""))


def spans_of(asked: Asked) -> Iterator[str]:
    yield from asked.fields.get("range", "bytes=0-").partition("=")[2].split(",")
