"""Grants: who has none asks, a yes is for its unit and its time, a no never becomes a yes while grants come and go."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from plane_rig import CREDENTIAL, SECOND_NS, Rig, pattern

from ext.authorise import Grants


@pytest.fixture
def grants(rig: Rig) -> Grants:
    rig.rule = 7
    rig.publish()
    return Grants(rig.plane)


def head_of(target: str) -> bytes:
    return f"GET {target} HTTP/1.1\r\nHost: a\r\n\r\n".encode()


def put(grants: Grants, target: str, *, seconds: float = 60, directory: bool = False, allowed: bool = True) -> bool:
    now_ns = time.monotonic_ns()
    return grants.put(CREDENTIAL, head_of(target), directory, allowed, now_ns, now_ns + int(seconds * SECOND_NS))


def test_what_a_request_presents(grants: Grants) -> None:
    head = head_of("/signed/a?b=c&token=x&tokens=y&token=z&token")
    assert grants.credential(CREDENTIAL, head) == [(b"p", 0, b"token=x"), (b"p", 0, b"token=z"), (b"p", 0, b"token")]
    assert grants.credential(CREDENTIAL, head_of("/signed/a")) == []
    assert grants.credential(CREDENTIAL, head_of("/signed/a?token=" + "x" * 9000)) is None
    assert grants.credential(99, head) is None
    assert grants.credential(CREDENTIAL, b"GET") is None


def test_a_yes_is_for_its_unit(rig: Rig, grants: Grants) -> None:
    for name in ("/signed/a", "/signed/b", "/signed/d/c"):
        rig.store(name, b"body", origin=CREDENTIAL)
    put(grants, "/signed/a?token=1")
    put(grants, "/signed/a?token=2", directory=True)
    put(grants, "/signed/b?token=3", allowed=False)
    viewer = rig.viewer()
    for target in ("/signed/a?token=1", "/signed/a?token=2", "/signed/b?token=2"):
        assert viewer.get(target).status == 200
    assert viewer.get("/signed/b?token=3").status == 403
    assert rig.total("authorisations") == 0
    others = ("/signed/b?token=1", "/signed/a", "/signed/d/c?token=2", "/signed/a?x&token=1", "/signed/a?token=1x")
    for target in others:
        rig.viewer().ask(target)
        exchange = rig.exchange()
        assert (exchange.kind, exchange.key[:1]) == ("authorise", b"\xff")
        exchange.error(403)
    grants.forget()
    rig.viewer().ask("/signed/a?token=1")
    assert rig.exchange().kind == "authorise"


@pytest.mark.parametrize("name", ["..%2fpaid%2fa", ".hidden", "..", "a%20b", "a\\b", "%2e", "..;x"])
def test_a_yes_for_a_directory_is_for_plain_names_in_it(rig: Rig, grants: Grants, name: str) -> None:
    put(grants, "/signed/a?token=2", directory=True)
    viewer = rig.viewer()
    viewer.ask(f"/signed/{name}?token=2")
    exchange = rig.exchange()
    assert exchange.kind == "authorise"
    # A yes for such a name is for it alone, whatever unit was asked for.
    rig.store(f"/signed/{name}", b"body", origin=CREDENTIAL)
    put(grants, f"/signed/{name}?token=2", directory=True)
    exchange.match()
    assert viewer.reply().status == 200
    rig.viewer().ask(f"/signed/{name}x?token=2")
    assert rig.exchange().kind == "authorise"


def test_a_yes_for_a_method_is_none_for_another(rig: Rig, grants: Grants) -> None:
    rig.store("/signed/a", b"body", origin=CREDENTIAL)
    now_ns = time.monotonic_ns()
    for method in (b"PUT", b"POST", b"BREW"):
        head = method + b" /signed/a?token=1 HTTP/1.1\r\nHost: a\r\n\r\n"
        grants.put(CREDENTIAL, head, True, True, now_ns, now_ns + 60 * SECOND_NS)
    viewer = rig.viewer()
    viewer.ask("/signed/a?token=1")
    exchange = rig.exchange()
    assert exchange.kind == "authorise"
    exchange.error(403)
    assert viewer.reply().status == 403
    put(grants, "/signed/a?token=1")
    assert viewer.get("/signed/a?token=1").status == viewer.get("/signed/a?token=1", method="HEAD").status == 200


def test_grants_end(rig: Rig, grants: Grants) -> None:
    rig.store("/signed/a", b"body", origin=CREDENTIAL)
    assert not put(grants, "/signed/a?token=1", seconds=0)
    put(grants, "/signed/a?token=1", seconds=0.2)
    viewer = rig.viewer()
    assert viewer.get("/signed/a?token=1").status == 200
    ends = time.monotonic() + 0.2
    while time.monotonic() <= ends + 0.01:
        pass
    viewer.ask("/signed/a?token=1")
    assert rig.exchange().kind == "authorise"


def test_a_no_never_becomes_a_yes_while_grants_come_and_go(rig: Rig, grants: Grants) -> None:
    """Even tokens are allowed, odd ones refused; the table is forgotten and refilled under the workers' eyes."""
    rig.store("/signed/a", pattern(100), origin=CREDENTIAL)
    wrong: list[Any] = []
    done = threading.Event()
    seen = [0, 0]

    def watch(first: int) -> None:
        viewer = rig.viewer()
        for n in range(first, first + 10_000):
            if done.is_set():
                return
            token = n % 512
            status = viewer.get(f"/signed/a?token={token}").status
            seen[token % 2] += 1
            if status != (403 if token % 2 else 200):
                wrong.append((token, status))

    threads = [threading.Thread(target=watch, args=(n * 97,)) for n in range(4)]
    for thread in threads:
        thread.start()
    ends = time.monotonic() + 3
    while time.monotonic() < ends and any(thread.is_alive() for thread in threads):
        for exchange in rig.plane.take()[0]:
            target = exchange.head.split(b" ")[1].decode()
            allowed = int(target.rpartition("=")[2]) % 2 == 0
            put(grants, target, allowed=allowed, seconds=0.05 if allowed else 0.01)
            exchange.match()
        if seen[0] % 50 == 0:
            grants.forget()
    done.set()
    while any(thread.is_alive() for thread in threads):
        for exchange in rig.plane.take()[0]:
            exchange.error(403)
    assert [each for each in wrong if each[1] == 200] == []
    assert min(seen) > 20
