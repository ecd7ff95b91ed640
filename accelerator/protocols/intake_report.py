"""What the process of an SRT or RIST input says: lines of JSON, read with suspicion, as it parses what strangers send.

Pure. Texts end in events and logs: one line each, without addresses, of bounded length.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

LINE_BYTES_MAX = 4096
TEXT_MAX = 200
STATES = ("waiting", "connected", "failed")
STATS = ("packets", "missed", "given_up", "undecrypted")
REFUSALS = ("source", "stream-id", "idle", "second")
_COUNT_MAX = 2**63 - 1

# IPv4, and what has three colons or two at once; ports with them. (Two are a time of day.)
_ADDRESS = re.compile(
    r"\[?(?:(?:[0-9a-fA-F]{0,4}:){3,7}[0-9a-fA-F.]{0,15}|[0-9a-fA-F]{0,4}::[0-9a-fA-F.]{0,15}"
    r"|[0-9]{1,3}(?:\.[0-9]{1,3}){3})\]?(?::[0-9]{1,5})?"
)


@dataclass(slots=True)
class Report:
    """`state` "": nothing of it was said."""

    state: str = ""
    why: str = ""
    unconfined: str = ""
    stats: dict[str, int] = field(default_factory=dict)
    refused: dict[str, int] = field(default_factory=dict)


def plain(text: str) -> str:
    """One line of printable text, without addresses: of an encoder, but nobody can know."""
    words = "".join(each if each.isprintable() else " " for each in text[: 4 * TEXT_MAX])
    return _ADDRESS.sub("ADDRESS", " ".join(words.split()))[:TEXT_MAX]


def read_report(line: bytes) -> Report | None:
    """None: not one."""
    if len(line) > LINE_BYTES_MAX:
        return None
    try:
        said = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(said, dict):
        return None
    state = said.get("state", "")
    if state != "" and state not in STATES:
        return None
    return Report(
        state=state,
        why=_text(said.get("why")),
        unconfined=_text(said.get("unconfined")),
        stats=_counts(said.get("stats"), STATS),
        refused=_counts(said.get("refused"), REFUSALS),
    )


def _text(value: Any) -> str:
    return plain(value) if isinstance(value, str) else ""


def _counts(value: Any, names: tuple[str, ...]) -> dict[str, int]:
    if not isinstance(value, dict):
        return {}
    known = {name: value.get(name) for name in names}
    return {
        name: count for name, count in known.items()
        if isinstance(count, int) and not isinstance(count, bool) and 0 <= count <= _COUNT_MAX
    }  # fmt: skip


class Lines:
    """Cuts a stream into lines; one that is too long is dropped whole."""

    def __init__(self) -> None:
        self._rest = b""
        self._is_dropping = False

    def add(self, data: bytes) -> list[bytes]:
        *lines, rest = (self._rest + data).split(b"\n")
        if self._is_dropping and lines:
            lines, self._is_dropping = lines[1:], False
        if len(rest) > LINE_BYTES_MAX:
            rest, self._is_dropping = b"", True
        self._rest = rest if not self._is_dropping else b""
        return [each for each in lines if len(each) <= LINE_BYTES_MAX]
