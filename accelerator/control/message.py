"""The control socket's messages: one JSON document per line each way. Bytes in, values out; no socket, no clock here.

    request   {"command": "cache ls", "args": {"limit": 10}}          args may be left out
    reply     {"ok": true, "result": {...}}
              {"ok": false, "error": {"kind": "busy", "message": "..."}}

Strict on purpose: whatever is ambiguous (duplicate keys, NaN, other keys, control bytes) is refused, so that no two
readers of one message can understand it differently.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NoReturn

from accelerator.errors import ControlError

REQUEST_BYTES_MAX = 64 * 1024
# How a request begins that may be larger: with its command, so that the limit is known before the rest has come.
_BEGINNING = re.compile(rb'\s*\{\s*"command"\s*:\s*"([a-z -]{1,40})"')
BEGINNING_BYTES = 256
_CONTROL_BYTES = bytes(range(0x20)) + b"\x7f"


@dataclass(frozen=True)
class Request:
    """A well-formed request. The command may still be unknown and the arguments wrong: control.commands says so."""

    command: str
    arguments: Mapping[str, object]


def command_of(beginning: bytes) -> str:
    """The command that a request names first; "" where it begins otherwise, or not enough of it has come."""
    match = _BEGINNING.match(beginning, 0, BEGINNING_BYTES)
    return match[1].decode() if match is not None else ""


def parse_request(line: bytes, bytes_max: int = REQUEST_BYTES_MAX) -> Request:
    """Parse one line, given without its LF. Raises ControlError of kind "oversized", "binary" or "syntax", nothing
    else.
    """
    if len(line) > bytes_max:
        raise ControlError("oversized", f"a request has at most {bytes_max} bytes")
    if line.endswith(b"\r"):
        line = line[:-1]
    if line.translate(None, _CONTROL_BYTES) != line:
        raise ControlError("binary", "a request is one line of JSON text; control bytes found")
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError:
        raise ControlError("binary", "a request is one line of JSON text; not UTF-8") from None
    try:
        document = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except RecursionError:
        raise ControlError("syntax", "the request is nested too deeply") from None
    except ValueError as error:
        raise ControlError("syntax", f"the request is not JSON: {error}"[:200]) from None
    if not isinstance(document, dict) or not document.keys() <= {"command", "args"}:
        raise ControlError("syntax", 'a request is {"command": "...", "args": {...}}')
    command, arguments = document.get("command"), document.get("args", {})
    if not isinstance(command, str) or not isinstance(arguments, dict):
        raise ControlError("syntax", 'a request is {"command": "...", "args": {...}}')
    return Request(command, arguments)


def encode_result(result: Mapping[str, object]) -> bytes:
    """One line with its LF. Raises ValueError or TypeError where `result` is no JSON (NaN, bytes)."""
    return json.dumps({"ok": True, "result": result}, allow_nan=False, separators=(",", ":")).encode() + b"\n"


def encode_error(error: ControlError) -> bytes:
    """One line with its LF. Never fails: json.dumps escapes whatever the message holds."""
    return json.dumps({"ok": False, "error": {"kind": error.kind, "message": error.message}}).encode() + b"\n"


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a key stands twice")
    return members


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")
