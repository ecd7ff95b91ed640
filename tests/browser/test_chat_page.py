"""A person's chat beside the video: Chromium's WebSocket through the box, and what it hears when the box is drained."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from certified import Certified
from running_box import PROJECT, RunningBox, policy_for
from websocket_origin import WebSocketOrigin

HAS_BROWSER = shutil.which("chromium") is not None and shutil.which("node") is not None
pytestmark = [
    pytest.mark.browser,
    pytest.mark.timeout(180),
    pytest.mark.skipif(not HAS_BROWSER, reason="needs Debian's chromium and nodejs: make setup"),
]


@pytest.mark.parametrize(("hop", "http2"), [("http/1.1", ""), ("http/1.1", "never"), ("h2", "tls")])
def test_chromium_chats_through_the_box_and_hears_of_its_end(tmp_path: Path, hop: str, http2: str) -> None:
    """Plain, over TLS, and over HTTP/2, where the WebSocket is a stream of the connection that brought the page (RFC
    8441)."""
    listen = {}
    if http2:
        Certified(tmp_path / "state" / "credentials").put("site", "127.0.0.1")
        listen = {"lan": {"tls": "site", "http2": http2}}
    with WebSocketOrigin() as origin:
        policy = policy_for(
            origin.url,
            listen=listen,
            origins={"media": {"profile": "generic", "hosts": ["*"]}},
            limits={"drain": "2s"},
        )
        with RunningBox(tmp_path, policy) as box:
            host, port = box.address()
            scheme = "https" if http2 else "http"
            command = ["node", str(PROJECT / "tests/browser/chat.mjs"), f"{scheme}://{host}:{port}/page"]
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=PROJECT) as browser:
                assert browser.stdout is not None
                seen = json.loads(browser.stdout.readline())
                assert seen == {
                    "text": "réponse ✓", "extensions": "permessage-deflate", "protocol": "chat", "same": True,
                    "hop": hop,
                }  # fmt: skip
                assert box.stats()["tunnels_opened"] == 1
                if hop == "h2":  # the page and the chat in one connection; one more was given up for its certificate
                    assert box.stats()["h2_connections"] == box.stats()["tls_handshakes"] == 1
                box.signal(signal.SIGTERM)
                closed = json.loads(browser.stdout.readline())
                assert closed == {"code": 1001, "clean": True}
                assert browser.wait(60) == 0
            assert box.exit_code() == 0
