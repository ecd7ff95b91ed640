"""What the bytes of a connection ask for, read as RFC 9112 says and refusing all that two readers may read differently.

Made apart from the box, from the grammar alone, by regular expressions on the whole text: slow, plain, and the judge of
what the box may send on. No test here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_HEAD = re.compile(
    rb"(?:\r\n)?([!#$%&'*+\-.^_`|~0-9A-Za-z]{1,32}) ([\x21-\x7e]+) HTTP/1\.([0-9])\r\n"
    rb"((?:[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[\t\x20-\x7e\x80-\xff]*\r\n)*)\r\n"
)
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,15})(?:[ \t]*;[\t\x20-\x7e\x80-\xff]{0,1000})?\r\n")
_TRAILERS = re.compile(rb"(?:[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[\t\x20-\x7e\x80-\xff]*\r\n)*\r\n")
NEVER = (b"CONNECT", b"TRACE")


@dataclass(frozen=True, order=True)
class Read:
    """A request. `body` None: its end is missing or malformed, so nobody may take it for whole."""

    method: bytes
    target: bytes
    body: bytes | None


def requests_in(data: bytes, host: bytes) -> list[Read]:
    """The requests in order, up to the first byte that is not of the grammar; the last one may be cut."""
    found: list[Read] = []
    position = 0
    while head := _HEAD.match(data, position):
        position = head.end()
        method, target, minor, lines = head.groups()
        fields = [line.partition(b":")[::2] for line in lines.split(b"\r\n")[:-1]]
        by_name: dict[bytes, list[bytes]] = {}
        for name, value in fields:
            by_name.setdefault(name.lower(), []).append(value)
        if method in NEVER or not _is_for(host, target, by_name):
            break
        lengths, codings = by_name.get(b"content-length", []), by_name.get(b"transfer-encoding", [])
        expectations = [value.strip(b" \t").lower() for value in by_name.get(b"expect", [])]
        if len(lengths) + len(codings) > 1 or expectations not in ([], [b"100-continue"]):
            break
        body: bytes | None = b""
        if lengths:
            digits = lengths[0].strip(b" ")
            if not re.fullmatch(rb"[0-9]{1,18}", digits):
                break
            end = position + int(digits)
            body, position = (data[position:end], end) if end <= len(data) else (None, len(data))
        elif codings:
            if codings[0].strip(b" ").lower() != b"chunked" or minor == b"0":
                break
            body, position = _chunks(data, position)
        target = target.removeprefix(b"http://" + host)
        found.append(Read(method, target, body))
        options = b",".join(by_name.get(b"connection", [])).lower()
        if body is None or b"close" in options or (minor == b"0" and b"keep-alive" not in options):
            break
    return found


def _is_for(host: bytes, target: bytes, by_name: dict[bytes, list[bytes]]) -> bool:
    named = [value.strip(b" \t") for value in by_name.get(b"host", [])]
    return named == [host] and (target.startswith((b"/", b"http://" + host + b"/")))


def _chunks(data: bytes, position: int) -> tuple[bytes | None, int]:
    body = b""
    while size := _CHUNK.match(data, position):
        n, position = int(size[1], 16), size.end()
        if n == 0:
            trailers = _TRAILERS.match(data, position)
            if trailers is None or len(trailers[0]) > 8192:
                break
            return body, trailers.end()
        if data[position + n : position + n + 2] != b"\r\n":
            break
        body += data[position : position + n]
        position += n + 2
    return None, len(data)
