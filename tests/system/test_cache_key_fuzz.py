"""A fuzz of the cache key: whatever an attacker asks, and however he writes it, the victim's answer is byte for byte
what the origin gives to a request that carries nothing of anybody's.
Seeds are fixed; CACHE_KEY_FUZZ_ROUNDS asks for more.
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
from collections.abc import Iterator

import pytest
from recording_origin import RecordingOrigin
from running_box import HOST, Response, RunningBox, policy_for
from test_poisoning import FIELDS, HOSTS, REACH_THE_ORIGIN, TARGETS, clean_body

ROUNDS = int(os.environ.get("CACHE_KEY_FUZZ_ROUNDS", "400"))
PORTAL = "portal.example"
# Fields that do reach the origin in profile media, and so have to select a variant or make an answer its asker's own.
KEYED = [
    "Origin: https://evil.example", "Authorization: Basic ZXZpbA==", "Accept-Encoding: gzip",
    "Accept-Encoding: gzip;q=0 .0",
    "Connection: Origin\r\nOrigin: https://evil.example", "Connection: Authorization\r\nAuthorization: x",
    "Accept-Encoding: br\r\nAccept-Encoding: gzip",
]  # fmt: skip
# Heads that parsers disagree on: refused, or read as the origin reads them.
ODD = [
    "Host : evil.example", "host: evil.example", "X-A: b\r\n Host: evil.example",
    "Content-Length: 0\r\nContent-Length: 5",
    "Content-Length: +0", "Content-Length: 0, 0", "Transfer-Encoding: chunked", "Transfer-Encoding: identity",
    "Transfer-Encoding: xchunked", "X-A\x00: b", "X-A: b\x00", "X-A: b\rX-B: c", "X-A: b\nX-B: c", ": x",
    "X-A", "X A: b",
    "Content-Length: 4\r\nTransfer-Encoding: chunked", "Expect: 100-continue", "Expect: evil", "HTTP2-Settings: AAAA",
]  # fmt: skip
METHODS = ["GET"] * 8 + ["HEAD", "POST", "OPTIONS", "get", "TRACE", "CONNECT", "PUT", "GET\t", "BREW"]
VERSIONS = ["HTTP/1.1"] * 6 + ["HTTP/1.0", "HTTP/1.2", "HTTP/2.0", "http/1.1", "HTTP/1.1 ", ""]


@pytest.fixture(scope="module")
def origin() -> Iterator[RecordingOrigin]:
    with RecordingOrigin() as running:
        yield running


@pytest.fixture(scope="module")
def box(origin: RecordingOrigin, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningBox]:
    policy = policy_for(origin.url)
    policy["origins"]["portal"] = {"from": [origin.url], "hosts": [PORTAL], "profile": "generic"}
    with RunningBox(tmp_path_factory.mktemp("fuzz"), policy) as running:
        yield running


def attack(source: random.Random, target: str, host: str) -> bytes:
    """One request, or two in a row, about `target` or something near it."""
    name = target.rpartition("/")[2]
    near = [target, target, target + source.choice(TARGETS).replace("{name}", name), target.upper(), f"/{target}",
            f"http://{host}{target}", f"http://{host}:80{target}", f"HTTP://{host.upper()}{target}", f"{target}?{name}",
            f"/x/..{target}", target.replace("/", "//"), target.replace("o", "%6f"), f"//{host}{target}",
            target[:-1] + f"%{ord(target[-1]):02x}", f"{target}#x", f"*{target}"]  # fmt: skip
    lines = [f"{source.choice(METHODS)} {source.choice(near)} {source.choice(VERSIONS)}"]
    spelled = source.choice([host] * 6 + ([each for each in HOSTS if host == HOST] or [host.upper()]))
    lines.append(f"Host: {spelled}")
    fields = [each for each in FIELDS if each not in REACH_THE_ORIGIN] + KEYED + ODD
    lines += source.choices(fields, k=source.randrange(4))
    head = "\r\n".join(lines) + "\r\n\r\n"
    second = f"GET {target} HTTP/1.1\r\nHost: {host}\r\nX-Evil: 1\r\nConnection: close\r\n\r\n"
    other = f"GET {target}?x HTTP/1.1\r\nHost: e\r\n\r\n"
    tail = source.choice(["", "", "", "evil", "0\r\n\r\n", "4\r\nevil\r\n0\r\n\r\n", other, second])
    return (head + tail).encode("latin-1", "replace")


def send(box: RunningBox, data: bytes) -> None:
    """Sends, says that nothing more comes, and reads what there is."""
    with contextlib.suppress(OSError), box.connect() as connected:
        connected.settimeout(2)
        connected.sendall(data)
        connected.shutdown(socket.SHUT_WR)
        while connected.recv(1 << 16):
            pass


@pytest.mark.parametrize("part", range(4))
def test_the_victims_answer_is_the_clean_one(part: int, box: RunningBox, origin: RecordingOrigin) -> None:
    for number in range(part * ROUNDS // 4, (part + 1) * ROUNDS // 4):
        source = random.Random(number)
        host = source.choice([HOST, HOST, PORTAL])
        target = f"/echo/fuzz/{number}v"
        attacks = [attack(source, target, host) for _ in range(source.randrange(1, 4))]
        for each in attacks:
            send(box, each)
        victim: Response = box.get(target, host=host)
        assert victim.status == 200, (number, attacks, victim)
        if host == HOST:
            # That somebody reads gzip does go up; what is not coded is for all (docs/decisions/0010).
            said = victim.body.replace(b"Accept-Encoding: gzip\n", b"")
            assert said == clean_body(origin, target), (number, attacks)
        else:
            # Profile generic sends all fields up, and Vary is the origin's duty: here it is the target that counts.
            assert victim.body.startswith(f"GET {target}\n".encode()), (number, attacks, victim)


def test_the_victims_own_fields_get_his_own_answers(box: RunningBox, origin: RecordingOrigin) -> None:
    """Each keyed field after each other one, asked twice: never another's."""
    target = "/echo/fuzz/keyed"
    for first in ("", *KEYED):
        for second in ("", *KEYED):
            path = f"{target}/{abs(hash((first, second)))}"
            for lines in ([first] if first else [], [second] if second else []):
                answers = [box.get(path, *lines) for _ in range(2)]
                wanted = dict.fromkeys((b"origin", b"authorization"), b"")
                for line in "\r\n".join(lines).split("\r\n"):
                    name, _, value = line.partition(": ")
                    wanted[name.lower().encode()] = value.encode()
                for answer in answers:
                    assert answer.status == 200
                    said = dict(line.split(b": ", 1) for line in answer.body.split(b"\n")[1:-1])
                    said = {name.lower(): value for name, value in said.items()}
                    assert said.get(b"origin", b"") in (b"", wanted[b"origin"]), (first, second, answer)
                    assert said.get(b"authorization", b"") in (b"", wanted[b"authorization"]), (first, second, answer)
