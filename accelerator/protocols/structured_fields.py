"""Structured Field dictionaries (RFC 8941 section 4.2.2), reading only: one wrong byte makes a field invalid."""

from __future__ import annotations

import re
from enum import Enum

_KEY = re.compile(rb"[a-z*][a-z0-9_\-.*]*")
_NUMBER = re.compile(rb"-?(?:([0-9]{1,12}\.[0-9]{1,3})|[0-9]{1,15})(?![0-9.])")
_STRING = re.compile(rb'"((?:[\x20-\x21\x23-\x5b\x5d-\x7e]|\\["\\])*+)"')
_SF_TOKEN = re.compile(rb"[A-Za-z*][!#$%&'*+\-.^_`|~0-9A-Za-z:/]*")
_BYTES = re.compile(rb":[A-Za-z0-9+/]*={0,2}:")
_OWS = re.compile(rb"[ \t]*")
_SP = re.compile(rb" *")


class ItemType(Enum):
    """The type of a dictionary member's value."""

    BOOLEAN = "boolean"
    INTEGER = "integer"
    DECIMAL = "decimal"
    STRING = "string"
    TOKEN = "token"
    BYTES = "bytes"
    INNER_LIST = "inner-list"


Item = tuple[ItemType, bytes]


def parse_dictionary(value: bytes) -> dict[bytes, Item] | None:
    """Members as (type, text of the value); a boolean's text is b"1" or b"0". None: not a valid dictionary.

    Parameters are checked and dropped. With duplicate keys the last one wins (RFC 8941 section 3.2). An empty field
    is {}.
    """
    text = value.strip(b" ")
    members: dict[bytes, Item] = {}
    position = 0
    while position < len(text):
        key = _KEY.match(text, position)
        if key is None:
            return None
        position = key.end()
        item: tuple[Item, int] | None
        if text[position : position + 1] == b"=":
            item = _member(text, position + 1)
        else:
            item = ((ItemType.BOOLEAN, b"1"), position)
        if item is None:
            return None
        members[key.group()] = item[0]
        after = _parameters(text, item[1])
        if after is None:
            return None
        position = _skip(_OWS, text, after)
        if position == len(text):
            return members
        if text[position] != 0x2C:
            return None
        position = _skip(_OWS, text, position + 1)
        if position == len(text):  # a trailing comma
            return None
    return members


def _skip(pattern: re.Pattern[bytes], text: bytes, position: int) -> int:
    match = pattern.match(text, position)
    return match.end() if match else position


def _member(text: bytes, position: int) -> tuple[Item, int] | None:
    if text[position : position + 1] != b"(":
        return _bare_item(text, position)
    start = position
    position += 1
    while True:
        position = _skip(_SP, text, position)
        if text[position : position + 1] == b")":
            return (ItemType.INNER_LIST, text[start : position + 1]), position + 1
        item = _bare_item(text, position)
        after = _parameters(text, item[1]) if item else None
        if after is None or text[after : after + 1] not in (b" ", b")"):
            return None
        position = after


def _bare_item(text: bytes, position: int) -> tuple[Item, int] | None:
    if match := _STRING.match(text, position):
        return (ItemType.STRING, re.sub(rb"\\(.)", rb"\1", match.group(1))), match.end()
    if match := _NUMBER.match(text, position):
        return (ItemType.DECIMAL if match.group(1) else ItemType.INTEGER, match.group()), match.end()
    if text[position : position + 2] in (b"?0", b"?1"):
        return (ItemType.BOOLEAN, text[position + 1 : position + 2]), position + 2
    if match := _BYTES.match(text, position):
        return (ItemType.BYTES, match.group()[1:-1]), match.end()
    if match := _SF_TOKEN.match(text, position):
        return (ItemType.TOKEN, match.group()), match.end()
    return None


def _parameters(text: bytes, position: int) -> int | None:
    while text[position : position + 1] == b";":
        key = _KEY.match(text, _skip(_SP, text, position + 1))
        if key is None:
            return None
        position = key.end()
        if text[position : position + 1] == b"=":
            item = _bare_item(text, position + 1)
            if item is None:
                return None
            position = item[1]
    return position
