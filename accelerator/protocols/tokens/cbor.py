"""A strict reader of deterministic CBOR (RFC 8949 section 4.2.1) for tokens, and the little writing that COSE needs.

Read: integers, byte and text strings, arrays, maps, tags, false, true, null, floats. Refused: indefinite lengths,
numbers and lengths in more bytes than they need, a key twice, bytes after the end, depth and items beyond a token's.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import Any

from accelerator.protocols.tokens.verdict import Reason, Refused

DEPTH_MAX = 8
ITEMS_MAX = 512


@dataclass(frozen=True, slots=True)
class Tagged:
    number: int
    value: Any


def decode(data: bytes) -> Any:
    """The one item that `data` is, or Refused. Maps are dicts with int, text or bytes keys."""
    reader = _Reader(data)
    value = reader.item(0)
    if reader.position != len(data):
        raise Refused(Reason.ENCODING)
    return value


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self.position = 0
        self._items = 0

    def _take(self, n: int) -> bytes:
        end = self.position + n
        if end > len(self._data):
            raise Refused(Reason.MALFORMED)
        taken = self._data[self.position : end]
        self.position = end
        return taken

    def _argument(self, low: int) -> int:
        if low < 24:
            return low
        if low > 27:  # 28 to 30 reserved, 31 indefinite
            raise Refused(Reason.ENCODING)
        n = 1 << (low - 24)
        value = int.from_bytes(self._take(n), "big")
        if value < (24 if n == 1 else 1 << (4 * n)):
            raise Refused(Reason.ENCODING)
        return value

    def item(self, depth: int) -> Any:
        self._items += 1
        if depth > DEPTH_MAX or self._items > ITEMS_MAX:
            raise Refused(Reason.MALFORMED)
        first = self._take(1)[0]
        major, low = first >> 5, first & 31
        if major == 7:
            return self._simple(low)
        argument = self._argument(low)
        match major:
            case 0:
                return argument
            case 1:
                return -1 - argument
            case 2:
                return self._take(argument)
            case 3:
                try:
                    return self._take(argument).decode("utf-8")
                except UnicodeDecodeError:
                    raise Refused(Reason.MALFORMED) from None
            case 4:
                if argument > ITEMS_MAX:
                    raise Refused(Reason.MALFORMED)
                return [self.item(depth + 1) for _ in range(argument)]
            case 5:
                return self._map(argument, depth)
        return Tagged(argument, self.item(depth + 1))

    def _map(self, n: int, depth: int) -> dict[Any, Any]:
        if n > ITEMS_MAX:
            raise Refused(Reason.MALFORMED)
        members: dict[Any, Any] = {}
        kinds: set[tuple[type, Any]] = set()
        for _ in range(n):
            key = self.item(depth + 1)
            if isinstance(key, bool) or not isinstance(key, int | str | bytes):
                raise Refused(Reason.MALFORMED)
            if (type(key), key) in kinds:
                raise Refused(Reason.DUPLICATE)
            kinds.add((type(key), key))
            members[key] = self.item(depth + 1)
        return members

    def _simple(self, low: int) -> Any:
        match low:
            case 20 | 21:
                return low == 21
            case 22:
                return None
            case 25 | 26 | 27:
                n = 1 << (low - 24)
                value = struct.unpack({2: ">e", 4: ">f", 8: ">d"}[n], self._take(n))[0]
                if not math.isfinite(value):
                    raise Refused(Reason.MALFORMED)
                return value
        raise Refused(Reason.MALFORMED)


def encode_head(major: int, argument: int) -> bytes:
    """The first bytes of an item, as short as can be."""
    if argument < 24:
        return bytes([major << 5 | argument])
    for power, n in enumerate((1, 2, 4, 8)):
        if argument < 1 << (8 * n):
            return bytes([major << 5 | 24 + power]) + argument.to_bytes(n, "big")
    raise ValueError("larger than CBOR has")


def encode_structure(context: str, *parts: bytes) -> bytes:
    """The array of a text and byte strings that COSE signs (RFC 9052 sections 4.4 and 6.3)."""
    text = context.encode("ascii")
    strings = b"".join(encode_head(2, len(part)) + part for part in parts)
    return encode_head(4, 1 + len(parts)) + encode_head(3, len(text)) + text + strings
