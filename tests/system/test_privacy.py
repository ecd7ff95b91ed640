"""Addresses, secrets, tokens and titles are planted, the box is driven through all that may write or say something, its
end is a crash; then every file, line and answer is searched for them."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import resource
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from box import free_port
from hostile_origin import HostileOrigin, raw, reply, serving
from origin_scripts import fields
from running_box import HOST, RunningBox, policy_for, read_all, wait_for

ADDRESS = "127.201.77.43"
TITLE = "titel-vorstand-entlassungen"
NEEDLES = {
    "query": "geheimnis4711query", "token": "tokenABCDEF0123456789x", "cookie": "keksSESSION998877",
    "login": "loginKonto554433", "agent": "agentKarl221100", "referrer": "referrerIntranet667788",
    "body": "anfrageinhalt334455", "private": "antwortNurFuerIhn778899", "chat": "plauderei112233",
}  # fmt: skip
PRIVATE = NEEDLES["private"].encode()
SITE_KEY = "5e" * 32


def encodings(text: str) -> set[bytes]:
    """A text as it may stand somewhere, in parts of words too."""
    data = text.encode()
    found = {data, data.hex().encode(), text.upper().encode(), "".join(f"%{byte:02x}" for byte in data).encode()}
    # Wherever it begins in a group of three.
    return found | {base64.b64encode(b"x" * n + data)[4 if n else 0 : -4] for n in range(3)}


@pytest.fixture(scope="module")
def origin() -> Iterator[HostileOrigin]:
    lasting = fields(cache_control="max-age=600", etag='"1"', content_type="video/mp4")
    scripts = {
        f"/{TITLE}.mp4": reply(b"video " * 20_000, fields=lasting),
        "/varied": reply(b"for one", fields=fields(cache_control="max-age=600", etag='"1"', vary="Cookie")),
        "/agents": reply(b"for one", fields=fields(cache_control="max-age=600", etag='"1"', vary="Authorization")),
        "/private": reply(PRIVATE, fields=fields(cache_control="private", set_cookie=f"s={NEEDLES['cookie']}")),
        "/error": reply(PRIVATE, status=500), "/missing": reply(PRIVATE, status=404),
        "/broken": raw(b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n" + PRIVATE),
        "/garbage": raw(b"no HTTP " + PRIVATE + b"\r\n\r\n"),
        "/tagged": reply(b"x", fields=fields(cache_control="max-age=600", etag='"1"', cache_tag=NEEDLES["private"])),
        "/moved": reply(b"", status=302, fields=fields(location=f"/x?{NEEDLES['token']}")),
    }  # fmt: skip
    with serving({path.encode(): script for path, script in scripts.items()}) as running:
        yield running


def policy_of(origin: HostileOrigin, **sections: Any) -> dict[str, Any]:
    policy = policy_for(f"http://127.0.0.1:{origin.port}", cache={"disk": {"size": "64MiB"}}, **sections)
    policy["zones"] = {"desks": {"nets": ["127.201.0.0/16"]}, "nobody": {"nets": ["10.99.0.0/16"]}}
    policy["listen"]["closed"] = {"address": "127.0.0.1:0", "zones": ["nobody"]}
    portal = {"from": [f"http://127.0.0.1:{origin.port}"], "hosts": ["portal.example"], "profile": "generic"}
    judged = {**portal, "hosts": ["judged.example"], "credential": {"parameters": ["token"], "ask": "origin"}}
    gone = {**portal, "from": [f"http://127.0.0.1:{free_port()}"], "hosts": ["gone.example"]}
    policy["origins"] |= {"portal": portal, "judged": judged, "gone": gone}
    written: dict[str, Any] = json.loads(json.dumps(policy))  # no value twice by reference: YAML would write an alias
    return written


def drive(box: RunningBox) -> str:
    """Requests of all sorts from one known address, secrets wherever one has room; what the box says of it."""
    lines = [
        f"Cookie: s={NEEDLES['cookie']}", f"Authorization: Bearer {NEEDLES['login']}",
        f"User-Agent: {NEEDLES['agent']}", f"Referer: http://{NEEDLES['referrer']}/", f"X-Forwarded-For: {ADDRESS}",
    ]  # fmt: skip
    paths = [f"/{TITLE}.mp4", "/varied", "/agents", "/private", "/missing", "/tagged", "/moved", "/error", "/broken",
             "/garbage"]  # fmt: skip
    for host in (HOST, "portal.example", "judged.example", "gone.example", "unknown.example"):
        for path in paths:
            target = f"{path}?{NEEDLES['query']}&token={NEEDLES['token']}"
            for sent in (lines, [], [*lines, "Range: bytes=1-5"]):
                box.get(target, *sent, host=host, source=ADDRESS)
            box.get(target, *lines, host=host, source=ADDRESS, method="HEAD")
        body = NEEDLES["body"]
        asked = f"/x?{NEEDLES['query']} HTTP/1.1\r\nHost: {host}\r\n" + "".join(f"{line}\r\n" for line in lines)
        post = f"POST {asked}Connection: close\r\nContent-Length: {len(body)}\r\n\r\n{body}"
        chat = f"Upgrade: websocket\r\nSec-WebSocket-Protocol: {NEEDLES['chat']}\r\n\r\n"
        for request in (post, f"GET {asked}Connection: Upgrade, close\r\n{chat}"):
            box.ask(request.encode(), source=ADDRESS)
    for bad in (
        f"GET /{TITLE}?{NEEDLES['query']}\0 HTTP/1.1\r\n\r\n", f"{NEEDLES['body']}\r\n\r\n",
        f"GET /x HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
    ):  # fmt: skip
        box.ask(bad.encode(), source=ADDRESS)
    with contextlib.suppress(OSError):
        box.get("/", host=HOST, source=ADDRESS, listener="closed")
    for arguments in (
        ["cache", "purge", f"http://{HOST}/x?{NEEDLES['query']}"], ["cache", "purge", "--tag", "nothing"],
        ["cache", "purge", f"ftp://{HOST}/?{NEEDLES['query']}"],
    ):
        box.accelctl(*arguments)
    said = [box.accelctl(*words) for words in (
        ["status"], ["--json", "status"], ["cache", "stats"], ["cache", "ls"], ["--json", "cache", "ls"], ["events"],
        ["--json", "events"], ["top", "--once", "--interval", "0.1"], ["policy", "history"], ["policy", "show"],
        ["doctor"],
    )]  # fmt: skip
    pages = [box.admin(page)[1].decode() for page in ("/metrics", "/healthz", "/", "/api/live", "/api/recent")]
    return "".join(done.stdout + done.stderr for done in said) + "".join(pages) + json.dumps(box.control("top"))


def crash(box: RunningBox) -> None:
    """As a fault in compiled code ends a process, where cores are allowed."""
    box.signal(signal.SIGABRT)
    assert box.exit_code() == -signal.SIGABRT


def written_by(box: RunningBox) -> dict[Path, bytes]:
    ours = {box.policy_path, box.state / "credentials" / "disk.key"}
    return {path: path.read_bytes() for path in box.work.rglob("*") if path.is_file() and path not in ours}


def assert_nothing_of(needles: dict[str, str], data: bytes, where: object) -> None:
    for name, needle in needles.items():
        for form in encodings(needle):
            at = data.find(form)
            assert at < 0, f"{name} in {where}: {data[max(0, at - 200) : at + 100]!r}"


_SLOW = [pytest.param(each, marks=pytest.mark.slow) for each in ("zone", "hash")]  # 5 s each; the others show as much


@pytest.mark.parametrize("viewer", ["truncate", *_SLOW])
def test_nothing_of_a_viewer_is_left_anywhere(origin: HostileOrigin, tmp_path: Path, viewer: str) -> None:
    logs = {"access": {"enabled": True}}
    with RunningBox(tmp_path, policy_of(origin, logs=logs, privacy={"viewer": viewer})) as box:
        said = drive(box)
        wait_for(lambda: box.stats()["disk_objects"] >= 2)
        wait_for(lambda: TITLE in (box.state / "logs" / "access.log").read_text(), what="the access log is written")
        crash(box)
        written = written_by(box)
    text = NEEDLES | {"address": ADDRESS}
    assert_nothing_of(text, said.encode(), "what it said")
    assert any("seg-" in path.name and len(data) > 10_000 for path, data in written.items())
    for path, data in written.items():
        assert not path.name.startswith("core"), path
        assert_nothing_of(text, data, path)
        if path.suffix == ".log" and path.parent.name == "logs":
            lines = [json.loads(line) for line in data.splitlines()]
            viewers = {line.get("viewer", "") for line in lines if line.get("kind", "request") == "request"}
            allowed = {"zone": r"", "hash": r"[0-9a-f]+", "truncate": r"127\.201\.77\.0/24"}[viewer]
            assert all(not each or re.fullmatch(allowed, each) for each in viewers), (path, viewers)


def test_by_default_and_sealed_not_even_titles_are_left(origin: HostileOrigin, tmp_path: Path) -> None:
    """No access log, and the disk sealed: what is on the box says neither who saw something, nor what was seen."""
    credentials = tmp_path / "state" / "credentials"
    credentials.mkdir(parents=True)
    (credentials / "disk.key").write_text(SITE_KEY)
    with RunningBox(tmp_path, policy_of(origin)) as box:
        drive(box)
        wait_for(lambda: box.stats()["disk_objects"] >= 2)
        crash(box)
        written = written_by(box)
    for path, data in written.items():
        assert not path.name.startswith("core"), path
        needles = NEEDLES | {"address": ADDRESS, "network": "127.201.77", "video": "video video video"}
        if path.name != "daemon.log":  # errors of origins name the URL that failed, for whom nobody knows
            needles["title"] = TITLE
        assert_nothing_of(needles, data, path)


def test_no_core_is_left_although_the_shell_allows_it(tmp_path: Path, origin: HostileOrigin) -> None:
    before = resource.getrlimit(resource.RLIMIT_CORE)
    if before[1] not in (resource.RLIM_INFINITY, -1) and os.geteuid():
        pytest.skip("cores are forbidden here")
    resource.setrlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    try:
        with RunningBox(tmp_path, policy_of(origin)) as box:
            limits = Path(f"/proc/{box.process.pid}/limits").read_text()
            assert re.search(r"Max core file size +0 +0 ", limits)
            with box.connect() as connected:
                connected.sendall(f"GET /{TITLE}.mp4 HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n".encode())
                assert read_all(connected)
            box.signal(signal.SIGSEGV)
            assert box.exit_code() == -signal.SIGSEGV
            assert not list(tmp_path.rglob("core*"))
            assert "video video" not in box.output
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, before)
