"""What the tests of RFC clauses have in common: two requests for the same, and what the origin heard. No test."""

from __future__ import annotations

from typing import Any

import pytest
from box import GENERIC, MEDIA, Answer, Box, get
from hostile_origin import Request, raw, reply
from origin_scripts import by_request

rfc = pytest.mark.rfc
BOTH = (MEDIA, GENERIC)
ETAG = (b"ETag", b'"v"')


def lines(text: str) -> tuple[tuple[bytes, bytes], ...]:
    """`A: b | C: d` as fields."""
    pairs = (line.partition(":") for line in text.split("|") if line.strip())
    return tuple((name.strip().encode(), value.strip().encode("latin-1")) for name, _, value in pairs)


async def twice(
    box: Box, path: str, host: str, response: str, status: int = 200,
    first: dict[str, str] | None = None, second: dict[str, str] | None = None,
) -> tuple[Answer, Answer, list[Request]]:  # fmt: skip
    """Two requests, the second with other fields; the origin answers 1, 2, 3 in turn, and 304 to a condition."""
    count = iter(range(1, 9))

    def choose(request: Request) -> Any:
        if request.field(b"If-None-Match") or request.field(b"If-Modified-Since"):
            return raw(b"HTTP/1.1 304 Not Modified\r\n\r\n", "keep")
        body = b"" if status in (204, 304) else b"%d" % next(count)
        return reply(body, status=status, fields=lines(response))

    async with box.origin({path.encode(): by_request(choose)}) as origin:
        one = await get(box, path, first or {}, host=host)
        two = await get(box, path, second or {}, host=host)
        return one, two, list(origin.requests)
