"""A canary in queries, driven through all that takes one, then looked for in all that the box writes and says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from recording_origin import RecordingOrigin
from running_box import HOST, RunningBox, policy_for, wait_for

from accelerator.services.logs.queries import shown_key, without_queries

CANARY = "kanarie7531"


@pytest.fixture(scope="module")
def origin() -> Iterator[RecordingOrigin]:
    with RecordingOrigin() as running:
        yield running


def drive(box: RunningBox) -> str:
    """All kinds of answers to requests with a canary; what accelctl says on the way."""
    said = ""
    for path in ("/good/a", "/good/b", "/missing/x", "/garbage/x", "/break/x", "/close/x", "/private/x"):
        for query in (f"token={CANARY}", f"'{CANARY}", f"?{CANARY}", f"){CANARY}=(%20)", f'"{CANARY}"'):
            for method in ("GET", "HEAD", "POST", "BREW", "GET"):
                box.get(f"{path}?{query}", method=method)
            box.get(f"{path}?{query}", "Range: bytes=0-1")
            box.get(f"{path}?{query}", host="unknown.example")
    for bad in (
        f"GET /a?{CANARY}\0 HTTP/1.1\r\nHost: {HOST}\r\n\r\n", f"GET /a?{CANARY} HTTP/9.1\r\n\r\n",
        f"GET /a?{CANARY} HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        f"GET http://{HOST}?{CANARY} HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n",
        f"GET /a?{CANARY}{'x' * 70_000} HTTP/1.1\r\nHost: {HOST}\r\n\r\n",
        f"CONNECT {HOST}?{CANARY} HTTP/1.1\r\n\r\n",
    ):  # fmt: skip
        box.ask(bad.encode())
    for arguments in (
        ["cache", "purge", f"http://{HOST}/good/a?token={CANARY}"], ["cache", "purge", f"http://{HOST}/none?{CANARY}"],
        ["cache", "purge", "--prefix", f"http://{HOST}/good/b?{CANARY}"],
        ["cache", "purge", f"http://unknown.example/x?{CANARY}"], ["cache", "purge", f"ftp://x?{CANARY}"],
        ["cache", "ls", "--prefix", f"http://{HOST}/good/?{CANARY}"], ["cache", "ls", "--contains", CANARY],
        ["cache", "ls"], ["--json", "cache", "ls"], ["top", "--once", "--interval", "0.1"], ["events"],
        ["--json", "status"], ["cache", "stats"], ["policy", "history"], ["policy", "show"],
    ):  # fmt: skip
        done = box.accelctl(*arguments)
        said += done.stdout + done.stderr
    return said


@pytest.mark.parametrize("profile", ["media", "generic"])
def test_no_query_is_written_or_shown(origin: RecordingOrigin, tmp_path: Path, profile: str) -> None:
    policy = policy_for(origin.url, logs={"access": {"enabled": True}}, privacy={"viewer": "truncate"})
    policy["origins"]["media"]["profile"] = profile
    with RunningBox(tmp_path, policy) as box:
        said = drive(box)
        box.admin(f"/metrics?{CANARY}")
        box.admin(f"/nothing?{CANARY}")
        said += box.admin("/metrics")[1].decode() + json.dumps(box.control("events"))
        wait_for(lambda: (box.state / "logs" / "access.log").exists())
        state, log_path = box.state, box.log_path
    written = {path: path.read_bytes() for path in [log_path, *state.rglob("*")] if path.is_file()}
    assert any("access-" in path.name and data for path, data in written.items())
    for path, data in written.items():
        assert CANARY.encode() not in data, path
    assert CANARY not in said
    assert "…" in said, "a digest stands for it"


@pytest.mark.parametrize(
    "text",
    [f"GET /x?{CANARY} failed", f"'/x?{CANARY}'", f"(http://h/p?{CANARY})", f"?'{CANARY}", f"a??{CANARY}",
     f"x?{CANARY}…", f"x?…{CANARY}", f"x?…0123456789ab{CANARY}"],
)
def test_texts_lose_their_queries_once(text: str) -> None:
    shown = without_queries(text)
    assert CANARY not in shown
    assert without_queries(shown) == shown


def test_the_same_query_has_the_same_digest_everywhere() -> None:
    key = shown_key(b"/p?token=1")
    assert without_queries("/p?token=1") == key
    assert shown_key(b"/p") == "/p"
    assert shown_key(b"/p?") == "/p?"
    assert without_queries("what now? nothing") == "what now? nothing"
    assert without_queries("(did you mean 'x'?)") == "(did you mean 'x'?)"
