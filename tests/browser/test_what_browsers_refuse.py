"""The reasons that `accelctl steering test` gives are a browser's: what it warns of, Chromium really refuses, and what
it finds nothing against, Chromium loads. Portal, box and viewer are in namespaces; the portal's address is public."""

from __future__ import annotations

import json
import shutil
import ssl
import subprocess
from collections.abc import Callable, Iterator
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
    pytest.mark.slow,  # a browser, two daemons' worth of start, seven pages
    pytest.mark.timeout(180),
    pytest.mark.skipif(bool(netns.why_not()), reason=netns.why_not() or ""),
    pytest.mark.skipif(not HAS_BROWSER, reason="needs Debian's chromium and nodejs: make setup"),
]

PORTAL, INTRANET, BOX = "portal.example", "intranet.corp.example", "box.corp.example"
HEALTH = "/.well-known/accelerator/health"
# 44.0.0.0/9 is a public network that nothing routes to from here.
HOSTS = f"127.0.0.1 localhost\n44.0.0.2 {PORTAL}\n10.0.0.2 {INTRANET}\n10.1.0.1 {BOX}\n"


class Blank(Page):
    kind = "text/html"

    def body(self) -> bytes:
        return b"<!doctype html><title>page</title>"

    def fields(self) -> dict[str, str]:
        may_be_read = {"Access-Control-Allow-Origin": "*"} if self.path.startswith("/open/") else {}
        return {"Cache-Control": "max-age=60", **may_be_read}


Ask = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def ask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ask]:
    folder = tmp_path_factory.mktemp("branch")
    made = Certified(folder / "state" / "credentials")
    made.put("site", PORTAL, INTRANET, BOX)
    (folder / "hosts").write_text(HOSTS)
    script = 'mount --bind $0 /etc/hosts && exec "$@"'
    names = ["unshare", "--mount", "sh", "-c", script, str(folder / "hosts")]
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made.folder / "site.crt", made.folder / "site.key")
    with netns.Topology() as topology:
        portal, box, (viewer,) = topology.proxy(1)
        portal.ip("addr", "add", "44.0.0.2/32", "dev", "lo")
        box.ip("route", "add", "44.0.0.2/32", "via", "10.0.0.2")
        box.sysctl("net.ipv4.ip_forward", "1")
        plain = portal.call(lambda: Server(("", 80), Blank))
        secure = portal.call(lambda: Server(("", 443), Blank))
        secure.socket = context.wrap_socket(secure.socket, server_side=True)
        for server in (plain, secure):
            server.begin()
        policy = policy_for(
            "http://10.0.0.2",
            listen={"lan": {"address": "10.1.0.1:8080"}, "tls": {"address": "10.1.0.1:8443", "tls": "site"}},
            origins={"media": {"hosts": [BOX]}},
        )
        daemon = RunningBox(folder, policy)
        daemon.prefix = ["ip", "netns", "exec", box.name, *names]
        with daemon:
            command = [*names, "node", str(PROJECT / "tests/browser/refused.mjs"), made.pin()]
            browser = viewer.popen(*command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=PROJECT)
            assert browser.stdin is not None
            assert browser.stdout is not None

            def fetched(page: str, url: str, permission: str = "") -> dict[str, Any]:
                browser.stdin.write(json.dumps([page, url, permission]).encode() + b"\n")
                browser.stdin.flush()
                said: dict[str, Any] = json.loads(browser.stdout.readline())
                return said

            def found(page: str) -> set[str]:
                """What `accelctl steering test hosts` names for that page, there."""
                told = viewer.popen(
                    *names, str(PROJECT / ".venv/bin/accelctl"), "--json", "--socket", "none", "steering", "test",
                    "hosts", "--policy", str(daemon.policy_path), "--ca", str(made.authority()), "--page", page,
                    stdout=subprocess.PIPE,
                )  # fmt: skip
                return {each["code"] for each in json.loads(told.communicate(timeout=60)[0])["findings"]}

            fetched.found = found  # type: ignore[attr-defined]
            try:
                yield fetched
            finally:
                browser.stdin.close()
                browser.terminate()
                browser.wait()
                browser.stdout.close()
        for server in (plain, secure):
            server.close()


def test_a_page_over_https_may_not_fetch_plain_http(ask: Any) -> None:
    page = f"https://{INTRANET}"
    assert "mixed-content" in ask.found(page)
    assert "Failed to fetch" in str(ask(f"{page}/", f"http://{BOX}:8080{HEALTH}")["status"])
    assert ask(f"{page}/", f"https://{BOX}:8443{HEALTH}")["status"] == 200


def test_a_page_may_not_read_what_has_no_cors_field(ask: Any) -> None:
    page = f"http://{INTRANET}/"
    refused = ask(page, f"http://{BOX}:8080/shut/a.ts")
    assert "Failed to fetch" in str(refused["status"])
    assert "Access-Control-Allow-Origin" in refused["said"]
    assert ask(page, f"http://{BOX}:8080/open/a.ts")["status"] == 200


def test_a_public_page_needs_a_permission_for_the_local_network(ask: Any) -> None:
    page, url = f"https://{PORTAL}", f"https://{BOX}:8443{HEALTH}"
    assert "local-network" in ask.found(page)
    assert "local-network" not in ask.found(f"https://{INTRANET}")
    assert ask(f"{page}/", url)["status"] != 200, "asked, and nobody says yes"
    assert ask(f"{page}/", url, "local-network-access")["status"] == 200
