"""Smuggling, judged by a strict origin behind the box: it never sees a request that a compliant reader of the viewer's
bytes would not see, and never more than the outer one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import h11
import pytest
from recording_origin import Asked, RecordingOrigin
from running_box import HOST, RunningBox, policy_for, read_all, wait_for
from smuggling_corpus import CORPUS, NOT_FRAMING
from strict_reader import Read, requests_in

GENERIC = "portal.example"
HOST_LINE = f"Host: {HOST}\r\n".encode()


@pytest.fixture(scope="module")
def origin() -> Iterator[RecordingOrigin]:
    with RecordingOrigin() as running:
        yield running


@pytest.fixture(scope="module")
def box(origin: RecordingOrigin, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningBox]:
    policy = policy_for(origin.url)
    policy["origins"]["media"]["hosts"] = [HOST, "other.example"]
    policy["origins"]["generic"] = {"from": [origin.url], "hosts": [GENERIC], "profile": "generic"}
    with RunningBox(tmp_path_factory.mktemp("box"), policy) as running:
        yield running


def test_the_corpus_is_as_large_as_promised() -> None:
    assert len(set(CORPUS.values())) >= 300
    payloads = [each.replace(b"{outer}", b"/echo").replace(b"{hidden}", b"/smuggled") for each in CORPUS.values()]
    read = [requests_in(payload, HOST.encode()) for payload in payloads]
    assert sum(any(each.body for each in requests) for requests in read) > 30, "bodies that are meant to arrive"
    assert sum(len(requests) > 1 for requests in read) > 20, "requests behind a body"
    assert sum(not requests for requests in read) > 150, "refusals"
    print(len(CORPUS), [sum(len(requests) == n for requests in read) for n in range(3)])


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


@pytest.mark.parametrize("name", CORPUS)
def test_bodies_are_cut_where_a_strict_reader_cuts_them(name: str, box: RunningBox, origin: RecordingOrigin) -> None:
    """Profile generic passes bodies: the origin gets exactly the requests that were meant for it, byte for byte."""
    number = list(CORPUS).index(name)
    outer, hidden = b"/echo/body/%d" % number, b"/echo/next/%d" % number
    payload = CORPUS[name].replace(b"{outer}", outer).replace(b"{hidden}", hidden)
    payload = payload.replace(HOST.encode(), GENERIC.encode())
    meant = requests_in(payload, GENERIC.encode())
    seen: list[Asked] = []

    def came() -> bool:
        seen[:] = [each for each in origin.asked if each.target in (outer, hidden)]
        return sum(each.is_whole for each in seen) >= sum(each.body is not None for each in meant)

    with box.connect() as viewer:
        with contextlib.suppress(ConnectionError):
            viewer.sendall(payload)
            viewer.shutdown(1)
        answer = read_all(viewer)
    wait_for(came)
    whole = sorted(Read(each.method, each.target, each.body) for each in seen if each.is_whole)
    expected = sorted(each for each in meant if each.body is not None)
    if b"\r\nUpgrade:" in payload:  # a hand-shake with a body may be refused
        assert whole in ([], expected)
    else:
        assert whole == expected
    for each in seen:
        if not each.is_whole:
            assert any((read.method, read.target) == (each.method, each.target) for read in meant)
    assert answer.count(b"HTTP/1.1 200 ") <= len(expected), answer
    assert real_faults(origin) == []


def real_faults(origin: RecordingOrigin) -> list[str]:
    """What a strict reader could not read; a body that is cut for good was meant to be."""
    return [fault for fault in origin.faults if "closed connection" not in fault]


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
    assert real_faults(origin) == []
