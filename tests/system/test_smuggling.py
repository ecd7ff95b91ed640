"""Smuggling, judged by a strict origin behind the box: it never sees a request that a compliant reader of the viewer's
bytes would not see, and never more than the outer one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import h11
import pytest
from recording_origin import RecordingOrigin
from running_box import HOST, RunningBox, policy_for, read_all
from smuggling_corpus import CORPUS, NOT_FRAMING

HOST_LINE = f"Host: {HOST}\r\n".encode()


@pytest.fixture(scope="module")
def origin() -> Iterator[RecordingOrigin]:
    with RecordingOrigin() as running:
        yield running


@pytest.fixture(scope="module")
def box(origin: RecordingOrigin, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningBox]:
    policy = policy_for(origin.url)
    policy["origins"]["media"]["hosts"] = [HOST, "other.example"]
    with RunningBox(tmp_path_factory.mktemp("box"), policy) as running:
        yield running


def test_the_corpus_is_as_large_as_promised() -> None:
    assert len(set(CORPUS.values())) >= 150


@pytest.mark.parametrize("name", CORPUS)
def test_nothing_is_smuggled(name: str, box: RunningBox, origin: RecordingOrigin) -> None:
    number = list(CORPUS).index(name)
    outer, hidden = b"/echo/outer/%d" % number, b"/smuggled/%d" % number
    payload = CORPUS[name].replace(b"{outer}", outer).replace(b"{hidden}", hidden)
    n_asked = len(origin.asked)
    with box.connect() as viewer:
        with contextlib.suppress(ConnectionError):
            viewer.sendall(payload)
            viewer.shutdown(1)
        answer = read_all(viewer)
    asked = origin.asked[n_asked:]
    may_be_two = name in NOT_FRAMING
    assert all(each.target == outer or may_be_two for each in asked), asked
    assert len(asked) <= 1 + may_be_two
    assert {each.target for each in asked} <= compliantly_read(payload)
    for each in asked:
        assert each.method in (b"GET", b"HEAD")
        assert each.body == b""
        names = {field.lower() for field, _ in each.fields}
        assert names <= {b"host", b"accept", b"accept-encoding", b"user-agent", b"via", b"cdn-loop"}
    assert answer.count(b"HTTP/1.1 ") <= 1 + may_be_two, answer
    assert origin.faults == []


def compliantly_read(payload: bytes) -> set[bytes]:
    """The targets that h11, itself lenient in places, reads from the bytes."""
    parser = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    parser.receive_data(payload)
    parser.receive_data(b"")
    targets = set()
    with contextlib.suppress(h11.RemoteProtocolError, h11.LocalProtocolError):
        while True:
            event = parser.next_event()
            if isinstance(event, h11.Request):
                targets.add(event.target.removeprefix(f"http://{HOST}".encode()))
            elif isinstance(event, h11.EndOfMessage):
                parser.send(h11.Response(status_code=200, headers=[(b"content-length", b"0")]))
                parser.send(h11.EndOfMessage())
                parser.start_next_cycle()
            elif not isinstance(event, h11.Data):
                break
    return targets


def test_a_pipelined_second_request_is_a_request(box: RunningBox, origin: RecordingOrigin) -> None:
    """What a compliant reader sees twice goes up twice, in order, each rebuilt."""
    first = b"GET /echo/first HTTP/1.1\r\n" + HOST_LINE + b"\r\n"
    answer = box.ask(first + first.replace(b"first", b"second").replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
    assert answer.count(b"HTTP/1.1 200 OK") == 2
    assert answer.index(b"GET /echo/first") < answer.index(b"GET /echo/second")
    assert origin.targets("/echo/first") == ["/echo/first"]
    assert origin.targets("/echo/second") == ["/echo/second"]


def test_nothing_of_one_viewer_is_left_for_the_next(box: RunningBox, origin: RecordingOrigin) -> None:
    """The corpus a second time, each followed by a clean request on another connection, over reused origin ones."""
    before = origin.targets("/smuggled")
    for number, (name, payload) in enumerate(CORPUS.items()):
        if name in NOT_FRAMING:
            continue
        with box.connect() as attacker:
            with contextlib.suppress(ConnectionError):
                attacker.sendall(payload.replace(b"{outer}", b"/echo/again").replace(b"{hidden}", b"/smuggled/again"))
            victim = box.get(f"/echo/victim/{number}")
        assert victim.status == 200
        assert victim.body.startswith(b"GET /echo/victim/%d\n" % number)
    assert origin.targets("/smuggled") == before
    assert origin.faults == []
