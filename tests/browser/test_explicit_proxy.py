"""The explicit proxy as browsers use it: Chromium finds it by its PAC, takes CONNECT for HTTPS, and goes DIRECT when
the box is dead; and curl does the same by hand. A viewer, the box and the origins are in namespaces of their own."""

from __future__ import annotations

import json
import shutil
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import netns
import pytest
from certified import Certified
from namespaced import Page, Server
from running_box import PROJECT, RunningBox, policy_for

HAS_BROWSER = shutil.which("chromium") is not None and shutil.which("node") is not None
pytestmark = [
    pytest.mark.browser,
    pytest.mark.netns,
    pytest.mark.timeout(180),
    pytest.mark.skipif(bool(netns.why_not()), reason=netns.why_not() or ""),
]

MEDIA, PORTAL, OTHER, BOX = (f"{name}.corp.example" for name in ("media", "portal", "other", "box"))
PROXY = f"{BOX}:8080"
HOSTS = f"127.0.0.1 localhost\n10.0.0.2 {MEDIA} {PORTAL} {OTHER}\n10.1.0.1 {BOX}\n"


class Said(Page):
    """Says who asked for what."""

    def body(self) -> bytes:
        return f"{self.headers['Host']}{self.path} for {self.client_address[0]}".encode()

    def fields(self) -> dict[str, str]:
        return {"Cache-Control": "no-cache"}


class Branch:
    """`daemon` routes between viewer and origin too, so that DIRECT works with or without it."""

    def __init__(self, topology: netns.Topology, folder: Path) -> None:
        origin, box, (self.viewer,) = topology.proxy(1)
        box.sysctl("net.ipv4.ip_forward", "1")
        (folder / "hosts").write_text(HOSTS)
        script = 'mount --bind $0 /etc/hosts && exec "$@"'
        self.names = ["unshare", "--mount", "sh", "-c", script, str(folder / "hosts")]
        self.made = Certified(folder / "portal")
        self.made.put("site", PORTAL, OTHER)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "portal/site.crt", folder / "portal/site.key")
        plain = origin.call(lambda: Server(("10.0.0.2", 80), Said))
        secure = origin.call(lambda: Server(("10.0.0.2", 443), Said))
        secure.socket = context.wrap_socket(secure.socket, server_side=True)
        self.servers = [plain, secure]
        for server in self.servers:
            server.begin()
        policy = policy_for(
            f"http://{MEDIA}",
            listen={"lan": {"address": "10.1.0.1:8080"}},
            origins={"media": {"hosts": [MEDIA]}},
            steering={"hosts": [BOX], "proxy": {"address": PROXY}, "connect": [f"{PORTAL}:443"]},
        )
        self.daemon = RunningBox(folder, policy)
        self.daemon.prefix = ["ip", "netns", "exec", box.name, *self.names]

    def __enter__(self) -> Branch:
        self.daemon.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.daemon.__exit__(None, None, None)
        for server in self.servers:
            server.close()

    def curl(self, *words: str) -> str:
        return self.viewer.run(*self.names, "curl", "-sS", "-i", "--max-time", "10", *words)


@pytest.fixture
def branch(tmp_path: Path) -> Iterator[Branch]:
    with netns.Topology() as topology, Branch(topology, tmp_path) as made:
        yield made


def test_curl_by_the_proxy(branch: Branch) -> None:
    ca = str(branch.made.authority())
    said = branch.curl("-x", PROXY, f"http://{MEDIA}/a")
    assert f"{MEDIA}/a for 10.0.0.1" in said
    assert "Cache-Status: test" in said
    said = branch.curl("-x", PROXY, "--cacert", ca, f"https://{PORTAL}/b")
    assert said.startswith("HTTP/1.1 200 Connection established")
    assert f"{PORTAL}/b for 10.0.0.1" in said
    assert "Cache-Status: test" not in said.partition("\r\n\r\n")[2], "what goes through it is not read"
    with pytest.raises(RuntimeError, match="501"):
        branch.curl("-x", PROXY, "--cacert", ca, f"https://{OTHER}/b")
    stats = branch.daemon.stats()
    assert stats["tunnels_opened"] == 1


@pytest.mark.slow  # six pages, one of them past a dead proxy
@pytest.mark.skipif(not HAS_BROWSER, reason="needs Debian's chromium and nodejs: make setup")
def test_chromium_by_the_pac(branch: Branch) -> None:
    command = ["node", str(PROJECT / "tests/browser/proxied.mjs"), f"http://{PROXY}/proxy.pac", branch.made.pin()]
    browser = branch.viewer.popen(*branch.names, *command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=PROJECT)
    assert browser.stdin is not None
    assert browser.stdout is not None

    def opened(url: str) -> dict[str, Any]:
        browser.stdin.write(f"{url}\n".encode())
        browser.stdin.flush()
        said: dict[str, Any] = json.loads(browser.stdout.readline())
        assert said.get("status") == 200, said
        return said

    try:
        said = opened(f"http://{MEDIA}/a")
        assert said["text"] == f"{MEDIA}/a for 10.0.0.1", "the origin sees the box"
        assert said["fields"]["cache-status"].startswith("test")
        assert opened(f"https://{PORTAL}/b")["text"] == f"{PORTAL}/b for 10.0.0.1"
        assert opened(f"http://{OTHER}/c")["text"] == f"{OTHER}/c for 10.1.0.2", "strangers' go their own way"
        assert opened(f"https://{OTHER}/d")["text"] == f"{OTHER}/d for 10.1.0.2"
        stats = branch.daemon.stats()
        assert stats["tunnels_opened"] >= 1
        assert stats["own_pages"] >= 1, "the PAC came from the box"
        branch.daemon.kill()
        assert opened(f"http://{MEDIA}/e")["text"] == f"{MEDIA}/e for 10.1.0.2", "DIRECT, as the PAC says"
        assert opened(f"https://{PORTAL}/f")["text"] == f"{PORTAL}/f for 10.1.0.2"
    finally:
        browser.stdin.close()
        browser.terminate()
        browser.wait()
        browser.stdout.close()
