"""Fuzz target: one line to the control socket. Whatever the bytes are, they are refused by one of three kinds, or are a
request that can be answered in one line; what is accepted means the same to json.loads.

    .venv/bin/python -m pytest tests/fuzz/fuzz_control_message.py          a short run
    PYTHONPATH=. .venv/bin/python tests/fuzz/fuzz_control_message.py 600   so many seconds; prints the number of runs
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Callable
from typing import TypeVar

from hypothesis import example, given, settings
from hypothesis import strategies as st

from accelerator.control.commands import BY_NAME, COMMANDS, check_arguments
from accelerator.control.message import encode_error, encode_result, parse_request
from accelerator.control.text import printable
from accelerator.errors import ControlError

T = TypeVar("T")
_NAMES = [command.name for command in COMMANDS]
_SEEDS = [
    b'{"command": "status"}',
    b'{"command": "cache ls", "args": {"limit": 10, "offset": 0, "sort": "size", "prefix": "http://a/"}}',
    b'{"command": "cache purge", "args": {"url": "http://a.example/\\u00e9\\ud83d\\ude00"}}\r',
    b'{"command": "policy apply", "args": {"files": [["a.yaml", "version: 1\\n"]], "folder": "/", "path": "/a"}}',
    b'{"args": {"prefix": "x", "limit": 1e2, "a": [null, true, {"b": NaN}]}, "command": "top"}',
]


def check_line(line: bytes) -> None:
    """The target's invariant."""
    request = _outcome(lambda: parse_request(line))
    if isinstance(request, ControlError):
        assert request.kind in ("oversized", "binary", "syntax")
        _check_reply(encode_error(request))
        return
    document = json.loads(line)
    assert document["command"] == request.command
    assert document.get("args", {}) == request.arguments
    command = BY_NAME.get(request.command)
    if command is None:
        _check_reply(encode_error(ControlError("unknown-command", f"no command {request.command[:80]!r}")))
        return
    arguments = _outcome(lambda: check_arguments(command, request.arguments))
    if isinstance(arguments, ControlError):
        assert (arguments.kind, arguments.exit_code) == ("arguments", 2)
        _check_reply(encode_error(arguments))
        return
    assert arguments.keys() == {argument.name for argument in command.arguments if not argument.is_local}
    for value in arguments.values():
        if isinstance(value, str):
            value.encode()
            assert "\n" not in value
    _check_reply(encode_result(arguments))


def _outcome(work: Callable[[], T]) -> T | ControlError:
    try:
        return work()
    except ControlError as error:
        return error


def _check_reply(reply: bytes) -> None:
    assert reply.endswith(b"\n")
    assert reply.count(b"\n") == 1
    document = json.loads(reply)
    if not document["ok"]:
        assert printable(document["error"]["message"]).isprintable()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
argument_names = st.sampled_from([argument.name for command in COMMANDS for argument in command.arguments]) | st.text()
requests = st.fixed_dictionaries(
    {"command": st.sampled_from(_NAMES) | st.text()}, optional={"args": st.dictionaries(argument_names, json_values)}
)


@settings(max_examples=1500, deadline=None)
@given(st.binary(max_size=300) | requests.map(lambda each: json.dumps(each).encode()))
@example(b"[" * 65_000)
@example(b'{"a":' * 13_000)
@example(b'{"command": "\\ud800", "args": {"\\udfff": 1}}')
@example(b"9" * 65_000)
@example(b"\xef\xbb\xbf{}")
@example(b"x" * 70_000)
def test_fuzz_control_message(line: bytes) -> None:
    check_line(line)


def test_fuzz_mutated_seeds() -> None:
    source = random.Random(2)
    for _ in range(20_000):
        check_line(_mutated(source))


def _mutated(source: random.Random) -> bytes:
    line = bytearray(source.choice(_SEEDS))
    for _ in range(source.randrange(4)):
        at = source.randrange(len(line) + 1)
        match source.randrange(4):
            case 0:
                line[at : at + 1] = bytes([source.randrange(256)])
            case 1:
                del line[at : at + source.randrange(8)]
            case 2:
                line[at:at] = source.choice(
                    [b'"', b"\\", b"\\ud800", b"{", b"[", b",", b"1e999", b"NaN", b"\x00", b"\xff", b"-0", b"null"]
                )
            case _:
                other = source.choice(_SEEDS)
                line[at:] = other[source.randrange(len(other)) :]
    return bytes(line)


if __name__ == "__main__":
    end = time.monotonic() + float(sys.argv[1])
    randomness = random.Random()
    n_runs = 0
    while time.monotonic() < end:
        check_line(_mutated(randomness))
        n_runs += 1
    print(f"{n_runs} runs, 0 findings")
