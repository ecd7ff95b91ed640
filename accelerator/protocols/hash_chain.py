"""A chain of hashes through the lines of a log, so that a line that was changed, taken out or put in is found. Pure.

It holds no secret: who may write all files can forge them all from some line on. What was sent elsewhere before (the
journal gets the newest link of each file) then tells.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from hashlib import sha256

LINK_LENGTH = 32  # hexadecimal digits; 128 bits, as nobody gains by two lines of one link


def seal(link: str, entry: Mapping[str, object]) -> tuple[str, bytes]:
    """(the entry's own link, its line) after `link`, the one before; "" for the first line of all."""
    text = json.dumps(entry, separators=(",", ":"))
    link = _next(link, text)
    return link, f'{text[:-1]},"link":"{link}"}}\n'.encode()


def link_of(line: bytes) -> str | None:
    """The link that a sealed line says it has."""
    body, mark, rest = line.rstrip(b"\n").rpartition(b',"link":"')
    link = rest[:LINK_LENGTH].decode("ascii", "replace")
    return link if mark and len(rest) == LINK_LENGTH + 2 and rest.endswith(b'"}') and body.startswith(b"{") else None


def first_break(lines: Iterable[bytes]) -> tuple[int, str] | None:
    """(number of the line, what is wrong) of the first line that does not follow; None: all do. Lines count from 1.

    The first line says in `after` which link it follows: that of the file before.
    """
    link: str | None = None
    for number, line in enumerate(lines, 1):
        claimed = link_of(line)
        if claimed is None:
            return number, "no sealed line"
        text = line.rstrip(b"\n").rpartition(b',"link":"')[0].decode("utf-8", "replace") + "}"
        if link is None:
            try:
                after = json.loads(text).get("after")
            except (ValueError, AttributeError, RecursionError):
                after = None
            if not isinstance(after, str):
                return number, "the first line does not say what it follows"
            link = after
        if _next(link, text) != claimed:
            return number, "changed, or a line before it is gone"
        link = claimed
    return None


def _next(link: str, text: str) -> str:
    return sha256(f"{link}\n{text}".encode()).hexdigest()[:LINK_LENGTH]
